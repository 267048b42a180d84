"""Pictures of one channel with more than 8 bits: distances or labels, never an RGB camera, whatever info.json says.

Shown as colours they would keep their highest byte only (13100 mm would be 51 of 255): found before training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa

from edgevla.dataset.layout import Episode, Findings, Info
from edgevla.dataset.tables import open_parquet
from edgevla.errors import DatasetError

_DEEP_GRAY = re.compile(r"(gray|ya)f?(9|10|12|14|16|32)(le|be)?")
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"


def deep_gray_video(pix_fmt: str) -> bool:
    """Whether a video's pixels are one channel of more than 8 bits: `gray10le`, `gray12le`, `gray16be`, ..."""
    return _DEEP_GRAY.fullmatch(pix_fmt) is not None


def deep_gray_picture(data: bytes) -> str:
    """`16-bit gray` or the like for an encoded picture of one channel with more than 8 bits; else empty."""
    if data.startswith(_JPEG):
        return ""
    if data.startswith(
        _PNG
    ):  # told by the header: depth of a sample, and kind 0 (gray) or 4 (gray with alpha)
        return f"{data[24]}-bit gray" if len(data) > 25 and data[24] > 8 and data[25] in (0, 4) else ""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if picture is None or picture.ndim != 2 or picture.dtype.itemsize == 1:
        return ""
    return f"{picture.dtype} gray"


def find_depth(
    root: Path, info: Info, episodes: Sequence[Episode], files: Sequence[str], findings: Findings
) -> Info:
    """The description with such features marked, by the first picture that each has; all that is depth is said."""
    features = dict(info.features)
    for name in info.cameras:
        feature = features[name]
        if feature.dtype == "image":
            levels = deep_gray_picture(_first_picture(root, files, feature.column))
        else:
            span = next((e.videos[name] for e in episodes if name in e.videos), None)
            pix_fmt = "" if span is None else _pix_fmt(root / span.file)
            levels = pix_fmt if deep_gray_video(pix_fmt) else ""
        features[name] = replace(feature, levels=levels)
    for feature in features.values():
        if feature.is_depth:
            findings.warn(
                f"feature '{feature.name}' {feature.why_depth}: it is left out, no policy here takes it as a camera",
                feature=feature.name,
            )
    return replace(info, features=features)


def _first_picture(root: Path, files: Sequence[str], column: str) -> bytes:
    """Empty where none can be read, which is said elsewhere."""
    try:
        with open_parquet(root, files[0]) as parquet:
            batch = next(parquet.iter_batches(batch_size=1, columns=[column]))
            return picture_bytes(root, batch.column(0)[0].as_py())
    except (DatasetError, pa.ArrowException, OSError, LookupError, StopIteration):
        return b""


def picture_bytes(root: Path, cell: Any) -> bytes:
    """The encoded picture of one cell of an image column: its `bytes`, else the file that its `path` names."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if data is None and isinstance(cell, dict) and cell.get("path"):
        path = root / cell["path"]
        data = path.read_bytes() if path.is_file() else None
    return data if isinstance(data, bytes) else b""


def _pix_fmt(path: Path) -> str:
    try:
        with av.open(str(path)) as container:
            return container.streams.video[0].codec_context.pix_fmt or ""
    except (av.FFmpegError, OSError, ValueError, LookupError):
        return ""

"""Datasets of two short episodes with one thing about them; depth pictures and subtasks as LeRobot writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edgevla.dataset.writer import DatasetWriter

JOINTS = ["shoulder.pos", "elbow.pos", "gripper.pos"]
TOP = "observation.images.top"
DATA = "data/chunk-000/file-000.parquet"
Row = Callable[[int, int], Mapping[str, Any]]


def moving(episode: int, frame: int) -> np.ndarray:
    return np.array([10 * np.sin(frame + episode), 5 * np.cos(frame) + episode, 50 + 3 * frame], np.float32)


def make(
    root: Path,
    *,
    lengths: Sequence[int] = (6, 5),
    state: str = "observation.state",
    action: str = "action",
    cameras: Sequence[str] = (TOP,),
    size: tuple[int, int] = (32, 32),
    dtype: str = "image",
    features: Mapping[str, Mapping[str, Any]] | None = None,
    row: Row = lambda episode, frame: {},
    move: Callable[[int, int], np.ndarray] = moving,
) -> Path:
    """Episodes of these lengths with our writer. features, row: more columns and what stands in them."""
    joints = {"dtype": "float32", "shape": (3,), "names": JOINTS}
    picture = {"dtype": dtype, "shape": (*size, 3), "names": ["height", "width", "channels"]}
    named = {state: joints, action: joints, **dict.fromkeys(cameras, picture), **(features or {})}
    random = np.random.default_rng(0)
    with DatasetWriter(root, fps=10, features=named, joint_units="degrees") as writer:
        for episode, length in enumerate(lengths):
            for frame in range(length):
                now = move(episode, frame)
                seen = {camera: random.integers(0, 256, (*size, 3), np.uint8) for camera in cameras}
                writer.add_frame(
                    {state: now, action: now + 1, **seen, **row(episode, frame)}, f"task {episode % 2}"
                )
            writer.save_episode()
    return root


def change_info(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = root / "meta/info.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def add_feature(root: Path, name: str, dtype: str, shape: Sequence[int] = (1,), **more: Any) -> None:
    """Into info.json alone."""
    spec = {"dtype": dtype, "shape": list(shape), "names": None, **more}
    change_info(root, lambda info: info["features"].update({name: spec}))


def set_column(root: Path, name: str, values: pa.Array, file: str = DATA) -> None:
    """Adds a column to a data file, or replaces it."""
    table = pq.read_table(root / file)
    if name in table.column_names:
        table = table.drop_columns([name])
    pq.write_table(table.append_column(name, values), root / file)


def png16(picture: np.ndarray) -> bytes:
    """One channel of 16 bits, as depth cameras are stored."""
    assert picture.dtype == np.uint16
    assert picture.ndim == 2
    return cv2.imencode(".png", picture)[1].tobytes()


def set_pictures(root: Path, camera: str, pictures: Sequence[bytes]) -> None:
    cells = [{"bytes": data, "path": None} for data in pictures]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    set_column(root, camera, pa.array(cells, kind))


def gray_video(
    path: Path, n: int, pix_fmt: str, codec: str = "ffv1", size: tuple[int, int] = (32, 32)
) -> None:
    """A video of one channel with more than 8 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="matroska") as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(np.full(size, 500 + 50 * i, np.uint16), format="gray16le")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def language(rows: Sequence[Sequence[tuple[str, str, float]]]) -> pa.Array:
    """A `language_persistent` column: per frame its rows of (style, content, timestamp)."""
    cell = pa.struct(
        [
            ("role", pa.string()),
            ("content", pa.string()),
            ("style", pa.string()),
            ("timestamp", pa.float32()),
            ("camera", pa.string()),
            ("tool_calls", pa.list_(pa.string())),
        ]
    )
    names = ("style", "content", "timestamp")
    written = [[{"role": "assistant", **dict(zip(names, r, strict=True))} for r in frame] for frame in rows]
    return pa.array(written, pa.list_(cell))

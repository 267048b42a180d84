"""Room on the disk for an episode: what it takes while it is recorded and saved, guessed from those that are there.

Saving joins an episode's video to the camera's current file in a copy beside it, and writes the current table anew; so
more must be free than the episode itself takes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgevla.dataset.layout import FeatureInfo

SPARE = 64 * 2**20
"""Whatever else writes to that disk: the arm's log, other programs."""
BYTES_PER_PIXEL = 0.15
"""Of a video frame, as long as no episode tells: h264 with a keyframe every second frame, of a noisy camera."""
MARGIN = 1.5
"""The next episode may show more that moves than those before."""
BYTES_PER_NUMBER = 8


@dataclass(frozen=True)
class EpisodeRoom:
    """fixed: bytes that saving takes however short the episode is. per_row: bytes of a row, pictures included."""

    fixed: float
    per_row: float

    def to_record(self, n_rows: int) -> int:
        """Bytes that must be free before an episode of so many rows: its own, and the copy when it is saved."""
        return round(self.fixed + 2 * n_rows * self.per_row)

    def to_save(self, n_rows: int) -> int:
        """Bytes that must be free to save the open episode: its own are written already."""
        return round(self.fixed + n_rows * self.per_row)


def episode_room(root: Path, features: Mapping[str, FeatureInfo], n_frames: int) -> EpisodeRoom:
    """For the next episode of the dataset in `root`, which holds `n_frames` rows so far."""
    fixed, per_row = float(SPARE), 0.0
    tables = sorted((root / "data").rglob("*.parquet"))
    fixed += tables[-1].stat().st_size if tables else 0
    for feature in features.values():
        if not feature.is_camera:
            numbers = 1
            for n in feature.shape:
                numbers *= n
            per_row += numbers * BYTES_PER_NUMBER
            continue
        files = sorted((root / "videos" / feature.name).rglob("*.mp4"))
        sizes = [file.stat().st_size for file in files]
        height, width, _ = feature.hwc
        seen = sum(sizes) / n_frames if n_frames and sizes else BYTES_PER_PIXEL * height * width
        per_row += MARGIN * seen
        fixed += sizes[-1] if sizes else 0
    return EpisodeRoom(fixed, per_row)


def free_bytes(folder: Path) -> int:
    """What may still be written where `folder` is, or will be."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free


def in_words(n_bytes: float) -> str:
    """`1.2 GB`, `340 MB`."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"

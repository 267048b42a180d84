"""A contact sheet: one row per episode and camera, frames evenly over its length. For a quick look, nothing else."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from edgevla.dataset.layout import short_name
from edgevla.dataset.reader import Dataset
from edgevla.errors import DatasetError, UsageError

ROW_HEIGHT = 96
CAPTION = 20
COLUMNS = 8
MAX_EPISODES = 12


def write_contact_sheet(dataset: Dataset, path: Path) -> None:
    """Writes a PNG; more than `MAX_EPISODES` episodes are thinned evenly.

    Raises:
        UsageError: the dataset has no cameras. DatasetError: the file cannot be written.
    """
    if not dataset.cameras:
        raise UsageError(f"{dataset.root} has no cameras to draw a contact sheet of")
    chosen = np.unique(
        np.linspace(0, dataset.n_episodes - 1, min(dataset.n_episodes, MAX_EPISODES)).astype(int)
    )
    strips = [_strip(dataset, int(e), camera) for e in chosen for camera in dataset.cameras]
    width = max(s.shape[1] for s in strips)
    sheet = np.vstack(
        [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=24) for s in strips]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    try:
        path.write_bytes(data.tobytes() if ok else b"")
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error.strerror}", file=str(path)) from error


def _strip(dataset: Dataset, position: int, camera: str) -> np.ndarray:
    """uint8 (CAPTION + ROW_HEIGHT, W, 3): a caption above frames side by side."""
    episode = dataset.episodes[position]
    rows = np.linspace(episode.from_index, episode.to_index - 1, COLUMNS).round().astype(int)
    pictures = []
    for frame in dataset.frames(camera, rows):
        width = max(1, round(frame.shape[1] * ROW_HEIGHT / frame.shape[0]))
        small = cv2.resize(frame, (width, ROW_HEIGHT), interpolation=cv2.INTER_AREA)
        pictures.append(np.pad(small, ((0, 0), (0, 4), (0, 0)), constant_values=24))
    strip = np.hstack(pictures)
    caption = np.full((CAPTION, strip.shape[1], 3), 24, np.uint8)
    text = (
        f"episode {episode.index}  {short_name(camera)}  {episode.length} frames  {'; '.join(episode.tasks)}"
    )
    cv2.putText(caption, text, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (230, 230, 230), 1, cv2.LINE_AA)
    return np.vstack([caption, strip])

"""What a policy would have seen at a row of a dataset: its cameras at its own size, its vectors, the task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgevla.types import ENVIRONMENT_STATE, STATE, Feature, Observation

if TYPE_CHECKING:
    from edgevla.dataset.reader import Dataset


def observations(
    dataset: Dataset, rows: Iterable[int], features: Mapping[str, Feature], sources: Mapping[str, str]
) -> dict[int, Observation]:
    """The observation of each row; pictures of all of them are decoded together.

    features: the policy's. sources: policy feature -> feature of the dataset, where they are called differently.

    Raises:
        DatasetError: a picture that is missing or damaged.
    """
    wanted = sorted(set(rows))
    cameras = [name for name, f in features.items() if f.kind == "camera"]
    pictures = {c: dataset.frames(sources.get(c, c), wanted) for c in cameras}
    vectors = {
        name: np.asarray(dataset.columns[sources.get(name, name)][wanted], np.float32).reshape(
            len(wanted), -1
        )
        for name in (STATE, ENVIRONMENT_STATE)
        if name in features
    }
    seen = {}
    for i, row in enumerate(wanted):
        images = {c: sized(pictures[c][i], features[c].shape[:2]) for c in cameras}
        state = vectors[STATE][i] if STATE in vectors else np.zeros(0, np.float32)
        environment = vectors[ENVIRONMENT_STATE][i] if ENVIRONMENT_STATE in vectors else None
        seen[row] = Observation(state, images, environment, dataset.task(row))
    return seen


def moments_until(dataset: Dataset, row: int, n_moments: int) -> list[int]:
    """Rows of the moments that a policy with so many of them looks at, oldest first, as far as the episode goes back."""
    first = dataset.episode_of(row).from_index
    return list(range(max(first, row - n_moments + 1), row + 1))


def sized(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """image: uint8 (H, W, 3); as it is, or brought to another size by areas."""
    if image.shape[:2] == tuple(size):
        return np.array(image)
    import cv2

    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)

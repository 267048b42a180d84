"""Whether all pictures of a camera have one size: two recordings in one dataset may differ, and no batch holds both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgevla.dataset.layout import Episode, Findings, short_name
from edgevla.dataset.reader import Dataset
from edgevla.errors import DatasetError

Size = tuple[int, int]
MOST_LOOKED_AT = 200
"""Episodes inside shared video files whose first picture is decoded; a recording of other size spans many of them."""


def check_sizes(dataset: Dataset, findings: Findings, cameras: Sequence[str]) -> None:
    """One error per camera that names each size's episodes; a picture that cannot be read is said elsewhere."""
    for camera in cameras:
        sizes = _sizes(dataset, camera, _chosen(dataset, camera))
        if len(set(sizes.values())) > 1:
            _say(camera, _sizes(dataset, camera, dataset.episodes), findings)


def _chosen(dataset: Dataset, camera: str) -> list[Episode]:
    """Every first episode of a video file, and many in between; with pictures in the table, many."""
    episodes = dataset.episodes
    evenly = np.linspace(0, len(episodes) - 1, min(len(episodes), MOST_LOOKED_AT)).round().astype(int)
    firsts: dict[str, int] = {}
    for i, episode in enumerate(episodes):
        if camera in episode.videos:
            firsts.setdefault(episode.videos[camera].file, i)
    return [episodes[i] for i in sorted({*evenly.tolist(), *firsts.values()})]


def _sizes(dataset: Dataset, camera: str, episodes: Sequence[Episode]) -> dict[int, Size]:
    """(H, W) of each episode's first picture."""
    users: dict[str, int] = {}
    for episode in dataset.episodes:
        if camera in episode.videos:
            users[episode.videos[camera].file] = users.get(episode.videos[camera].file, 0) + 1
    found: dict[int, Size] = {}
    for episode in episodes:
        span = episode.videos.get(camera)
        try:
            if span is not None and users[span.file] == 1:  # its header says it
                index = dataset.video_index(span.file)
                found[episode.index] = index.height, index.width
            else:
                height, width = dataset.frame(camera, episode.from_index).shape[:2]
                found[episode.index] = height, width
        except DatasetError:
            continue
    return found


def _say(camera: str, sizes: dict[int, Size], findings: Findings) -> None:
    groups: dict[Size, list[int]] = {}
    for episode, size in sizes.items():
        groups.setdefault(size, []).append(episode)
    usual = max(groups.values(), key=len)
    other = next(numbers for numbers in groups.values() if numbers is not usual)
    listed = ", ".join(f"{w}x{h} in {_episodes(numbers)}" for (h, w), numbers in groups.items())
    findings.error(
        f"the pictures of camera '{short_name(camera)}' are {listed}; a policy takes one size: train on the episodes of "
        f"one (--episodes {_ranges(usual)}), or resize the others",
        feature=camera,
        episode=other[0],
    )


def _episodes(numbers: list[int]) -> str:
    return f"episode{'s' * (len(numbers) > 1)} {_ranges(numbers, ' to ', 0)}"


def _ranges(numbers: Sequence[int], joint: str = ":", beyond: int = 1) -> str:
    """[0, 1, 2, 5] -> `0:3,5` as --episodes takes it."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    words = [f"{p[0]}{joint}{p[-1] + beyond}" if len(p) > 1 else f"{p[0]}" for p in parts]
    return (", " if beyond == 0 else ",").join(words)

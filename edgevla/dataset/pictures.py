"""Whether a dataset's pictures show what they should: cameras exchanged in some episodes, no picture, one for too long.

Looks at the first picture of at most `MAX_EPISODES` episodes: there the arm is where it always begins.
"""

from __future__ import annotations

import numpy as np

from edgevla.dataset.layout import Episode, Findings, short_name
from edgevla.dataset.reader import Dataset
from edgevla.dataset.stated import Stated
from edgevla.errors import DatasetError
from edgevla.look import Glance, arrangement, glance, look_of

MAX_EPISODES = 100
LEAST_EPISODES = 5
"""So many are needed to tell which of two arrangements is the usual one."""
STILL_S = 1.0


def check_pictures(dataset: Dataset, stated: Stated, findings: Findings) -> None:
    """Each defect as one warning that names camera and episodes; what cannot be decoded has been said before."""
    _repeated(dataset, stated, findings)
    chosen, seen = first_pictures(dataset, MAX_EPISODES)
    for camera, glances in seen.items():
        blank = [e.index for e, g in zip(chosen, glances, strict=False) if g.is_blank]
        if blank:
            findings.warn(
                f"camera '{short_name(camera)}' shows nothing at the beginning of {_listed(blank)}: black, covered, "
                "or of one colour",
                feature=camera,
                episode=blank[0],
            )
    _exchanged(chosen, {c: g for c, g in seen.items() if len(g) == len(chosen)}, findings)


def first_pictures(dataset: Dataset, most: int) -> tuple[list[Episode], dict[str, list[Glance]]]:
    """Up to so many episodes, spread evenly, and per camera the first picture of each (empty: cannot be decoded)."""
    n = len(dataset.episodes)
    chosen = [dataset.episodes[i] for i in np.unique(np.linspace(0, n - 1, min(n, most)).astype(int))]
    return chosen, {camera: _first_pictures(dataset, camera, chosen) for camera in dataset.cameras}


def _first_pictures(dataset: Dataset, camera: str, episodes: list[Episode]) -> list[Glance]:
    """Empty where they cannot be decoded."""
    try:
        return [glance(dataset.frame(camera, episode.from_index)) for episode in episodes]
    except DatasetError:
        return []


def _listed(episodes: list[int]) -> str:
    names = ", ".join(map(str, episodes[:8])) + (", ..." if len(episodes) > 8 else "")
    return f"episode{'s' if len(episodes) > 1 else ''} {names}"


def _exchanged(episodes: list[Episode], seen: dict[str, list[Glance]], findings: Findings) -> None:
    """Episodes in which cameras show each other's usual view."""
    if len(episodes) < LEAST_EPISODES or len(seen) < 2:
        return
    looks = {camera: look for camera, glances in seen.items() if (look := look_of(glances)) is not None}
    found: dict[tuple[str, ...], list[int]] = {}
    for i, episode in enumerate(episodes):
        live = {camera: glances[i] for camera, glances in seen.items() if not glances[i].is_blank}
        moved = tuple(short_name(a) for a, b in arrangement(live, looks).items() if a != b)
        if moved:
            found.setdefault(moved, []).append(episode.index)
    for cameras, numbers in found.items():
        findings.warn(
            f"the cameras {' and '.join(cameras)} are exchanged in {_listed(numbers)}, against the other episodes: each "
            "shows what the other shows there. Remove these episodes",
            episode=numbers[0],
        )


def _repeated(dataset: Dataset, stated: Stated, findings: Findings) -> None:
    """What the recording counted."""
    names = {feature.column: feature.name for feature in dataset.info.features.values()}
    for column, of_each in stated.repeated_pictures.items():
        camera = names.get(column, column)
        counted = [(e.index, of_each[e.index]) for e in dataset.episodes if e.index < len(of_each)]
        long = {number: found.longest / dataset.fps for number, found in counted if found is not None}
        long = {number: seconds for number, seconds in long.items() if seconds >= STILL_S}
        if long:
            worst = max(long, key=lambda number: long[number])
            findings.warn(
                f"camera '{short_name(camera)}' shows one picture, equal to the last bit, for {STILL_S:g} s or more in "
                f"{_listed(list(long))} (longest {long[worst]:.1f} s, in episode {worst}): it froze, or it is a "
                "simulated one before which nothing moved",
                feature=camera,
                episode=worst,
            )

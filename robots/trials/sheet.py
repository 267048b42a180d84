"""A contact sheet of episodes: what the camera saw, with time and distance, for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..world.follow_cube.places import above
from ..world.follow_cube.scene import Scene
from ..world.follow_cube.world import TOLERANCE_M, FollowCube

CELL_PX = 240
COLUMNS = 6
_GOOD, _BAD, _INK = (24, 128, 56), (190, 40, 32), (30, 30, 30)


@dataclass(frozen=True)
class Glimpse:
    """The world at one moment of an episode."""

    seconds: float
    joint_rad: np.ndarray
    cubes_m: np.ndarray
    belt_m: np.ndarray | None
    distance_m: float

    @classmethod
    def of(cls, world: FollowCube) -> Glimpse:
        belt = next(iter(world.message().places_of("belt")), None)
        distance = float(np.linalg.norm(world.tool_m - above(world.cubes_m), axis=-1).min())
        return cls(world.sim_ns / 1e9, world.joint_rad.copy(), world.cubes_m.copy(), belt, distance)


def draw_sheet(episodes: Sequence[Sequence[Glimpse]], camera: str = "front") -> np.ndarray:
    """uint8 (H, W, 3) RGB: one row per episode, six moments each from the first to the last."""
    scene = Scene(camera, CELL_PX, CELL_PX)
    rows = []
    for glimpses in episodes:
        chosen = np.linspace(0, len(glimpses) - 1, COLUMNS).round().astype(int)
        rows.append(np.hstack([_cell(scene, glimpses[i]) for i in chosen]))
    return np.vstack(rows)


def _cell(scene: Scene, glimpse: Glimpse) -> np.ndarray:
    image = scene.draw(glimpse.joint_rad, list(glimpse.cubes_m), glimpse.belt_m)
    colour = _GOOD if glimpse.distance_m <= TOLERANCE_M else _BAD
    font, thin = cv2.FONT_HERSHEY_SIMPLEX, cv2.LINE_AA
    cv2.putText(image, f"{glimpse.seconds:.1f} s", (8, 20), font, 0.5, _INK, 1, thin)
    cv2.putText(image, f"{glimpse.distance_m * 1000:.0f} mm", (8, CELL_PX - 10), font, 0.5, colour, 1, thin)
    cv2.rectangle(image, (0, 0), (CELL_PX - 1, CELL_PX - 1), colour, 2)
    return image


def save_sheet(path: Path, episodes: Sequence[Sequence[Glimpse]]) -> None:
    """Writes a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(draw_sheet(episodes), cv2.COLOR_RGB2BGR))

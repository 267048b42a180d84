"""Draws the arm, the table and the cube with OpenCV: a pinhole camera, filled polygons, nearest last.

No GL, no meshes: links are tapered bars between projected joints, which is what a policy needs to see of an arm.
Colours are RGB, like every picture in this project, so OpenCV's own order never enters here. A 64 px picture
takes about 0.8 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from edgevla import messages
from edgevla.errors import CameraError

from .kinematics import frames, link_points
from .places import CUBE_SIDE_M

_SHIFT = 4  # OpenCV's sub-pixel drawing: coordinates in 1/16 px
_TABLE = np.array([(-0.25, -0.45, 0), (0.5, -0.45, 0), (0.5, 0.45, 0), (-0.25, 0.45, 0)], float)
_ROOM, _WOOD = (205, 210, 214), (226, 221, 208)
_SHADE, _BELT, _SEAM = (176, 171, 160), (96, 100, 108), (128, 132, 140)
_CUBE_TOP, _CUBE_FRONT, _CUBE_SIDE = (225, 58, 46), (178, 36, 30), (150, 28, 24)
_LINKS = ((52, 56, 64), (44, 92, 150), (58, 116, 176), (74, 136, 194), (60, 64, 72), (236, 160, 36))
_RADII_M = (0.042, 0.030, 0.024, 0.021, 0.018, 0.015, 0.008)
_JAW = (244, 180, 60)


@dataclass(frozen=True)
class View:
    """Where a camera is. Fixed cameras look from `eye_m` to `target_m`; the wrist camera rides on the last link."""

    eye_m: tuple[float, float, float]
    target_m: tuple[float, float, float]
    fov_deg: float
    is_on_wrist: bool = False


VIEWS: dict[str, View] = {
    "front": View((0.62, 0.0, 0.44), (0.19, 0.0, 0.06), 48.0),
    "top": View((0.20, 0.0, 0.85), (0.21, 0.0, 0.0), 46.0),
    "wrist": View((-0.0079, 0.075, -0.02), (-0.0079, -0.01, -0.14), 75.0, is_on_wrist=True),
}


@dataclass
class Pinhole:
    """Projects points in metres to pixels of a `width` x `height` picture. Square pixels, no distortion."""

    view: View
    width: int
    height: int
    eye: np.ndarray = field(init=False)
    axes: np.ndarray = field(init=False)
    focal_px: float = field(init=False)

    def __post_init__(self) -> None:
        self.focal_px = 0.5 * min(self.width, self.height) / np.tan(np.deg2rad(self.view.fov_deg) / 2)
        self.look(np.array(self.view.eye_m), np.array(self.view.target_m), np.array((0.0, 0.0, 1.0)))

    def look(self, eye: np.ndarray, target: np.ndarray, up: np.ndarray) -> None:
        """Turns the camera; straight down counts forward (+x) as up."""
        ahead = (target - eye) / np.linalg.norm(target - eye)
        right = np.cross(ahead, up)
        if np.linalg.norm(right) < 0.05:
            right = np.cross(ahead, np.array((1.0, 0.0, 0.0)))
        right /= np.linalg.norm(right)
        self.eye, self.axes = eye, np.stack((right, np.cross(ahead, right), ahead))

    def project(self, points_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(..., 3) metres -> pixels (..., 2) as x, y, and depth (...) in metres; behind the camera counts as 2 cm."""
        local = (np.asarray(points_m, float) - self.eye) @ self.axes.T
        depth = np.maximum(local[..., 2], 0.02)
        centre = np.array((self.width, self.height)) / 2 - 0.5
        return self.focal_px * local[..., :2] / depth[..., None] + centre, depth


class SceneCamera:
    """One camera's picture of the world. Keeps the empty table, which never changes, for fixed cameras."""

    def __init__(self, camera: str, width: int, height: int) -> None:
        if camera not in VIEWS:
            raise CameraError(
                f"the simulated world has no camera '{camera}'; it has: {', '.join(VIEWS)}. "
                "Name one of these in the profile, or bind it: --camera front=sim",
                camera=camera,
            )
        if not (16 <= width <= 1920 and 16 <= height <= 1920):
            raise CameraError(
                f"simulated camera '{camera}' cannot draw {width}x{height} px; 16 to 1920 are possible",
                camera=camera,
            )
        self.camera = camera
        self.pinhole = Pinhole(VIEWS[camera], width, height)
        self._table: np.ndarray | None = None

    def draw(
        self, joint_rad: np.ndarray, cubes_m: Sequence[np.ndarray] = (), belt_m: np.ndarray | None = None
    ) -> np.ndarray:
        """uint8 (H, W, 3) RGB of the arm at `joint_rad` (6,), cubes and a belt where given, metres."""
        if self.pinhole.view.is_on_wrist:
            self._ride(joint_rad)
        image = self._empty_table().copy()
        if belt_m is not None:
            self._draw_belt(image, belt_m)
        points = link_points(joint_rad)
        tool, hand = points[-1], points[-2]
        self._disc_on_table(image, tool, 0.014)
        parts: list[tuple[float, Any, tuple[Any, ...]]] = []  # distance, what paints it, its arguments
        parts.append((self._far(points[:2]), self._base, (points[0],)))
        for i in range(len(points) - 1):
            parts.append((self._far(points[i : i + 2]), self._bar, (points[i], points[i + 1], i)))
        parts.append((self._far(points[-2:]) - 0.005, self._jaws, (hand, tool, joint_rad)))
        for cube_m in cubes_m:
            self._disc_on_table(image, cube_m, CUBE_SIDE_M * 0.75)
            parts.append((self._far(cube_m[None]), self._cube, (cube_m,)))
        for _, paint, what in sorted(parts, key=lambda part: -part[0]):
            paint(image, *what)
        return image

    # -- pieces -------------------------------------------------------------------------------------------

    def _empty_table(self) -> np.ndarray:
        if self._table is None or self.pinhole.view.is_on_wrist:
            image = np.empty((self.pinhole.height, self.pinhole.width, 3), np.uint8)
            image[:] = _WOOD if self.pinhole.view.is_on_wrist else _ROOM
            if not self.pinhole.view.is_on_wrist:
                self._fill(image, _TABLE, _WOOD)
            self._table = image
        return self._table

    def _draw_belt(self, image: np.ndarray, belt_m: np.ndarray) -> None:
        x = float(belt_m[0])
        corners = [(x - 0.03, -0.45, 0), (x + 0.03, -0.45, 0), (x + 0.03, 0.45, 0), (x - 0.03, 0.45, 0)]
        self._fill(image, np.array(corners), _BELT)

    def _disc_on_table(self, image: np.ndarray, point_m: np.ndarray, radius_m: float) -> None:
        """A soft lamp above: the shadow straight below a point."""
        angles = np.linspace(0, 2 * np.pi, 13)[:-1]
        ring = np.stack((np.cos(angles), np.sin(angles), np.zeros(12)), axis=1) * radius_m
        self._fill(image, ring + np.array((point_m[0], point_m[1], 0.0005)), _SHADE)

    def _base(self, image: np.ndarray, at: np.ndarray) -> None:
        x, y = at[0], at[1]
        corners = [
            (x - 0.06, y - 0.045, 0),
            (x + 0.03, y - 0.045, 0),
            (x + 0.03, y + 0.045, 0),
            (x - 0.06, y + 0.045, 0),
        ]
        self._fill(image, np.array(corners), _LINKS[0])

    def _bar(self, image: np.ndarray, start: np.ndarray, end: np.ndarray, link: int) -> None:
        """A tapered bar with round ends from joint `link` to the next."""
        pixels, depth = self.pinhole.project(np.stack((start, end)))
        radius = np.array(_RADII_M[link : link + 2]) * self.pinhole.focal_px / depth
        along = pixels[1] - pixels[0]
        length = float(np.hypot(*along))
        colour = _LINKS[link]
        if length > 1e-6:
            normal = np.array((-along[1], along[0])) / length
            side = normal[None] * radius[:, None]
            self._poly(image, np.concatenate((pixels + side, (pixels - side)[::-1])), colour)
        for point, r in zip(pixels, radius, strict=True):
            cv2.circle(image, _fixed(point), max(1, int(r * 16)), colour, -1, cv2.LINE_AA, _SHIFT)

    def _jaws(self, image: np.ndarray, hand: np.ndarray, tool: np.ndarray, joint_rad: np.ndarray) -> None:
        """Two fingers beside the tool point; they open with the gripper's angle."""
        _, turns = frames(joint_rad)
        across = turns[-1][:, 0]
        opening = 0.008 + 0.025 * np.clip(joint_rad[5] + 0.17, 0, 1.9)
        middle = hand + 0.45 * (tool - hand)
        for side in (-1.0, 1.0):
            root, tip = middle + side * 0.014 * across, tool + side * opening * across
            pixels, depth = self.pinhole.project(np.stack((root, tip)))
            width = max(1, round(float(0.011 * self.pinhole.focal_px / depth.mean())))
            cv2.line(image, _fixed(pixels[0]), _fixed(pixels[1]), _JAW, width, cv2.LINE_AA, _SHIFT)

    def _cube(self, image: np.ndarray, centre: np.ndarray) -> None:
        h = CUBE_SIDE_M / 2
        corners = np.array([(x, y, z) for x in (-h, h) for y in (-h, h) for z in (-h, h)]) + centre
        faces = (  # corner numbers, normal, colour
            ((4, 5, 7, 6), (1, 0, 0), _CUBE_FRONT),
            ((0, 1, 3, 2), (-1, 0, 0), _CUBE_FRONT),
            ((2, 3, 7, 6), (0, 1, 0), _CUBE_SIDE),
            ((0, 1, 5, 4), (0, -1, 0), _CUBE_SIDE),
            ((1, 3, 7, 5), (0, 0, 1), _CUBE_TOP),
        )
        for numbers, normal, colour in faces:
            if np.dot(self.pinhole.eye - centre - h * np.array(normal), normal) > 0:
                self._fill(image, corners[list(numbers)], colour)

    # -- helpers ------------------------------------------------------------------------------------------

    def _far(self, points: np.ndarray) -> float:
        return float(np.linalg.norm(points.mean(axis=0) - self.pinhole.eye))

    def _fill(self, image: np.ndarray, corners_m: np.ndarray, colour: tuple[int, int, int]) -> None:
        self._poly(image, self.pinhole.project(corners_m)[0], colour)

    def _poly(self, image: np.ndarray, pixels: np.ndarray, colour: tuple[int, int, int]) -> None:
        fixed = np.clip(np.round(pixels * 16), -(2**20), 2**20).astype(np.int32)
        cv2.fillConvexPoly(image, fixed, colour, cv2.LINE_AA, _SHIFT)

    def _ride(self, joint_rad: np.ndarray) -> None:
        origins, turns = frames(joint_rad)
        origin, turn = origins[-1], turns[-1]
        view = self.pinhole.view
        self.pinhole.look(
            origin + turn @ np.array(view.eye_m),
            origin + turn @ np.array(view.target_m),
            turn @ np.array((0.0, 1.0, 0.0)),
        )


def _fixed(pixel: np.ndarray) -> tuple[int, int]:
    x, y = np.clip(np.round(pixel * 16), -(2**20), 2**20)
    return int(x), int(y)


class ScenePainter:
    """The painter of *follow the cube*: a `SceneCamera` per camera and size."""

    def __init__(self) -> None:
        self._scenes: dict[tuple[str, int, int], SceneCamera] = {}

    def open(self, camera: str, width: int, height: int) -> None:
        self._scenes[camera, width, height] = SceneCamera(camera, width, height)

    def draw(self, camera: str, width: int, height: int, world: messages.World) -> np.ndarray:
        scene = self._scenes[camera, width, height]
        return scene.draw(world.joint_rad, world.places_of("cube"), next(iter(world.places_of("belt")), None))

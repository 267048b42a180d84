"""Random changes of camera frames in training: LeRobot's six with its ranges, on uint8 by OpenCV.

One draw per camera and sample: all frames of a window change alike, different cameras independently. Geometry and
blending follow torchvision's definitions (grey = 0.299 R + 0.587 G + 0.114 B; sharpness blends with a 3x3 blur).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from edgevla.errors import ConfigError

Frame = np.ndarray
"""uint8 (H, W, 3) RGB."""


def brightness(frame: Frame, factor: float) -> Frame:
    """factor: 1 leaves the picture as it is, 0 makes it black."""
    return cv2.convertScaleAbs(frame, alpha=factor)


def contrast(frame: Frame, factor: float) -> Frame:
    """factor: 1 leaves the picture as it is, 0 makes it its mean grey."""
    mean = float(_grey(frame).mean())
    return _blend(frame, np.full_like(frame, round(mean)), factor)


def saturation(frame: Frame, factor: float) -> Frame:
    """factor: 1 leaves the picture as it is, 0 makes it grey."""
    return _blend(frame, cv2.cvtColor(_grey(frame), cv2.COLOR_GRAY2RGB), factor)


def hue(frame: Frame, turn: float) -> Frame:
    """turn: share of the colour circle."""
    hsv = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * turn) % 360
    return np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).clip(0, 255).astype(np.uint8)


def sharpness(frame: Frame, factor: float) -> Frame:
    """0 blurs, 1 leaves as is, 2 sharpens; the outermost pixels stay."""
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    blurred = frame.copy()
    blurred[1:-1, 1:-1] = cv2.filter2D(frame, -1, kernel)[1:-1, 1:-1]
    return _blend(frame, blurred, factor)


def affine(frame: Frame, degrees: float, shift: tuple[int, int]) -> Frame:
    """Turns about the centre, then shifts by whole pixels (x, y); what comes from outside is black."""
    height, width = frame.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1.0)
    matrix[:, 2] += shift
    return cv2.warpAffine(frame, matrix, (width, height), flags=cv2.INTER_NEAREST)


def _grey(frame: Frame) -> np.ndarray:
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def _blend(frame: Frame, other: Frame, factor: float) -> Frame:
    return cv2.addWeighted(frame, factor, other, 1 - factor, 0)


def _even(low: float, high: float) -> Callable[[np.random.Generator, Frame], tuple[float, ...]]:
    return lambda generator, _: (float(generator.uniform(low, high)),)


def _affine_draw(generator: np.random.Generator, frame: Frame) -> tuple[float, tuple[int, int]]:
    height, width = frame.shape[:2]
    degrees = float(generator.uniform(-5, 5))
    shift = generator.uniform(-0.05, 0.05, 2) * (width, height)
    return degrees, (round(shift[0]), round(shift[1]))


TRANSFORMS: dict[str, tuple[Callable[..., Frame], Callable[..., tuple]]] = {
    "brightness": (brightness, _even(0.8, 1.2)),
    "contrast": (contrast, _even(0.8, 1.2)),
    "saturation": (saturation, _even(0.5, 1.5)),
    "hue": (hue, _even(-0.05, 0.05)),
    "sharpness": (sharpness, _even(0.5, 1.5)),
    "affine": (affine, _affine_draw),
}
"""Name -> (what it does, how its parameters are drawn), in the order they are applied."""


@dataclass(frozen=True)
class Augmentation:
    """Draws up to `max_num_transforms` distinct transforms by weight and applies them in the order of the table,
    or in drawn order with `random_order`."""

    max_num_transforms: int = 3
    random_order: bool = False
    weights: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TRANSFORMS, 1.0))

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(TRANSFORMS))
        if unknown:
            raise ConfigError(f"image transform '{unknown[0]}' is unknown; known: {', '.join(TRANSFORMS)}")
        if self.max_num_transforms < 1 or not any(w > 0 for w in self.weights.values()):
            raise ConfigError("image augmentation needs max_num_transforms >= 1 and a weight above 0")

    def __call__(self, frames: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """uint8 (H, W, 3) or (T, H, W, 3), all frames alike; a new array of the same shape."""
        names = [n for n in TRANSFORMS if self.weights.get(n, 0) > 0]
        weights = np.array([self.weights[n] for n in names])
        count = min(self.max_num_transforms, len(names))
        drawn = generator.choice(len(names), count, replace=False, p=weights / weights.sum())
        chosen = [names[i] for i in (drawn if self.random_order else np.sort(drawn))]
        window = frames[None] if frames.ndim == 3 else frames
        steps = [(TRANSFORMS[n][0], TRANSFORMS[n][1](generator, window[0])) for n in chosen]
        result = np.empty_like(window)
        for i, frame in enumerate(window):
            for change, parameters in steps:
                frame = change(frame, *parameters)
            result[i] = frame
        return result.reshape(frames.shape)

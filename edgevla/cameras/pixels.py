"""Pixel work: the one conversion to RGB, fitting to the declared size, JPEG. RGB in, RGB out, everywhere else."""

from __future__ import annotations

import cv2
import numpy as np

from edgevla.cameras.base import CameraSettings, Picture
from edgevla.errors import CameraError

THUMBNAIL_PX = 160


TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


def to_rgb(picture: Picture) -> np.ndarray:
    """uint8 (H, W, 3) RGB of what a device gave."""
    return cv2.cvtColor(picture.pixels, cv2.COLOR_BGR2RGB) if picture.is_bgr else picture.pixels


def turned(image: np.ndarray, rotation: int) -> np.ndarray:
    """The picture turned clockwise by 0, 90, 180 or 270 degrees; width and height change places for 90 and 270."""
    return cv2.rotate(image, TURNS[rotation]) if rotation else image


def fit(image: np.ndarray, settings: CameraSettings) -> np.ndarray:
    """The picture at its declared size.

    Raises:
        CameraError: another size arrived and no `fit` is declared.
    """
    height, width = image.shape[:2]
    want_h, want_w = settings.height, settings.width
    if (height, width) == (want_h, want_w):
        return image
    gives = f"camera '{settings.name}' ({settings.source}) gives {width}x{height} px{_after(settings)}"
    if settings.fit == "exact":
        raise CameraError(
            f"{gives}, but {want_w}x{want_h} is declared. Set its size in the robot's profile, or declare how to fit "
            'it: fit = "crop" or "resize"',
            camera=settings.name,
        )
    if settings.fit == "crop":
        if height < want_h or width < want_w:
            raise CameraError(
                f'{gives}, which cannot be cropped to {want_w}x{want_h}; choose a larger format or fit = "resize"',
                camera=settings.name,
            )
        top, left = (height - want_h) // 2, (width - want_w) // 2
        return np.ascontiguousarray(image[top : top + want_h, left : left + want_w])
    return cv2.resize(image, (want_w, want_h), interpolation=cv2.INTER_AREA)


def _after(settings: CameraSettings) -> str:
    return f" after being turned by {settings.rotation} degrees" if settings.rotation else ""


def encode_jpeg(image: np.ndarray, quality: int = 90) -> np.ndarray:
    """uint8 (H, W, 3) RGB -> uint8 (n,), a JPEG that any viewer shows in these colours."""
    ok, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    assert ok, "OpenCV encodes any uint8 picture as JPEG"
    return encoded.reshape(-1)


def decode_jpeg(encoded: np.ndarray) -> np.ndarray | None:
    """uint8 (n,) -> uint8 (H, W, 3) RGB; None where it is no picture."""
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if len(encoded) else None  # OpenCV raises for no bytes
    return None if decoded is None else cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def thumbnail(image: np.ndarray) -> np.ndarray:
    """At most 160 px on the longer side."""
    height, width = image.shape[:2]
    scale = THUMBNAIL_PX / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)

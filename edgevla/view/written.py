"""A file for another program, whole or not at all; and pictures as they go into it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edgevla.errors import EdgeVLAError
from edgevla.view.scene import Scene

JPEG_QUALITY = 90


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when all went well, and is gone otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def jpegs(scene: Scene, camera: str, problems: list[str]) -> Iterator[tuple[float, bytes]]:
    """(time, JPEG) of all pictures of a camera; where one cannot be read they end, and that is said."""
    pictures = scene.cameras[camera]
    try:
        for time, image in zip(pictures.times, pictures.at(range(len(pictures.times))), strict=True):
            yield float(time), as_jpeg(image)
    except EdgeVLAError as error:
        problems.append(str(error))


def as_jpeg(image: np.ndarray) -> bytes:
    """image: uint8 (H, W, 3) RGB."""
    import cv2

    turned = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", turned, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])


def prefix(scene: Scene, scenes: Sequence[Scene]) -> str:
    """What a scene's names begin with: nothing where it is the only one."""
    return f"{scene.name}/" if len(scenes) > 1 else ""

"""What a camera saw of an episode: a strip of six moments, a sheet of such strips, a video. For people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from edgevla.errors import EdgeVLAError, MissingExtraError
from edgevla.messages import World

from ..world.contract import Painter

CELL_PX = 200
COLUMNS = 6
WIDTH, HEIGHT = 320, 240
"""Of videos."""
FONT_SCALE = 0.45
OUTLINE = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
GOOD, BAD, INK, PALE = (0, 114, 178), (213, 94, 0), (30, 30, 30), (255, 255, 255)
"""Blue and vermilion, which colour-blind eyes tell apart."""


def draw_strip(
    painter: Painter, camera: str, scenes: Sequence[World], caption: Sequence[str], is_success: bool
) -> np.ndarray:
    """uint8 (H, W, 3) RGB: six moments, first to last, with their time; on the first the caption, line by line."""
    chosen = np.linspace(0, len(scenes) - 1, COLUMNS).round().astype(int)
    colour = GOOD if is_success else BAD
    cells = []
    for column, i in enumerate(chosen):
        image = np.array(painter.draw(camera, CELL_PX, CELL_PX, scenes[i]))
        _write(image, f"{max(0, scenes[i].sim_ns) / 1e9:.1f} s", (6, CELL_PX - 8), INK)
        if column == 0:
            for row, text in enumerate(caption):
                _write(image, text, (6, 18 + 17 * row), colour)
        cv2.rectangle(image, (0, 0), (CELL_PX - 1, CELL_PX - 1), colour, 2)
        cells.append(image)
    return np.hstack(cells)


def _write(image: np.ndarray, text: str, at: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """On a pale outline: scenes are bright and dark. Smaller where it would not fit into the picture.

    The outline is the same text, shifted: drawn thicker it would be wider, too (OpenCV 5).
    """
    font, smooth = cv2.FONT_HERSHEY_SIMPLEX, cv2.LINE_AA
    (width, _), _ = cv2.getTextSize(text, font, FONT_SCALE, 1)
    scale = FONT_SCALE * min(1.0, (image.shape[1] - 2 * at[0]) / max(width, 1))
    for x, y in OUTLINE:
        cv2.putText(image, text, (at[0] + x, at[1] + y), font, scale, PALE, 1, smooth)
    cv2.putText(image, text, at, font, scale, colour, 1, smooth)


def save_picture(path: Path, image: np.ndarray) -> None:
    """RGB to a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.png")
    if not cv2.imwrite(str(part), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        raise EdgeVLAError(f"{path} could not be written; check the room on the disk")
    part.replace(path)


def save_sheet(path: Path, strips: Iterable[Path]) -> bool:
    """Strips below each other; whether there was one."""
    images = [image for strip in strips if strip.is_file() and (image := cv2.imread(str(strip))) is not None]
    if images:
        save_picture(path, cv2.cvtColor(np.vstack(images), cv2.COLOR_BGR2RGB))
    return bool(images)


def check_video() -> None:
    """
    Raises:
        MissingExtraError: PyAV is not installed.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("record", "av", "videos need it") from error


def save_video(path: Path, painter: Painter, camera: str, scenes: Sequence[World], fps: float) -> None:
    """H.264, a frame per scene, played as fast as it was."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w") as container:
        stream = container.add_stream("libx264", rate=round(fps), options={"crf": "20", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for scene in scenes:
            image = np.ascontiguousarray(painter.draw(camera, WIDTH, HEIGHT, scene))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    part.replace(path)

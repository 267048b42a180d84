"""A camera of your own: any class with these few methods is one (`edgevla.cameras.base.Source`), without a base class.

    python examples/own_camera.py

It draws a bar that moves by one column a picture, in RGB, and is read as the camera node reads any other. To deploy
with it, its class goes into `edgevla/cameras/` and one branch into `open_source`, by what `--camera NAME=SOURCE` shall
look like.
"""

from __future__ import annotations

import time

import numpy as np

from edgevla import CameraSettings, Picture
from edgevla.cameras.pixels import fit, to_rgb


class MovingBar:
    """A white bar on black. A real device opens in `open`, waits in `read` for its next picture, raises CameraError."""

    is_drawn = True  # without noise: equal pictures are no sign of a camera that hangs
    is_at_end = False
    n_rounds = 0

    def __init__(self, settings: CameraSettings) -> None:
        self.settings = settings
        self._n = 0

    @property
    def about(self) -> str:
        return "a bar that moves"

    def open(self) -> None:
        self._n = 0

    def read(self) -> Picture | None:
        pixels = np.zeros((self.settings.height, self.settings.width, 3), np.uint8)
        pixels[:, self._n % self.settings.width] = 255
        self._n += 1
        return Picture(pixels, time.monotonic_ns(), is_bgr=False)

    def close(self) -> None:
        self._n = 0


def main() -> None:
    camera = MovingBar(CameraSettings("front", "bar", width=32, height=24))
    camera.open()
    for _ in range(3):
        picture = camera.read()
        assert picture is not None, (
            "None: no picture within half a second; the node counts it and opens the device again"
        )
        image = fit(
            to_rgb(picture), camera.settings
        )  # uint8 (H, W, 3) RGB, the size that the policy was exported for
        print(f"{image.shape}, the bar is in column {image[0, :, 0].argmax()}")
    camera.close()


if __name__ == "__main__":
    main()

"""Pictures of episodes that people can read."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edgevla.robots.trials import film


@pytest.mark.parametrize(
    "text", ["reach-211257-sync-0ms", "a-policy-with-a-rather-long-name-3f2a1b-async-200ms"]
)
def test_the_outline_lies_around_its_letters_and_a_long_text_stays_inside(text: str) -> None:
    image = np.zeros((40, film.CELL_PX, 3), np.uint8)
    film._write(image, text, (6, 18), film.INK)
    pale = image.min(axis=2) > 200
    bare = cv2.dilate(_letters(text), np.ones((3, 3), np.uint8)) == 0
    assert not (pale & bare).any(), "something pale where no letter is near"
    assert np.flatnonzero(pale.any(axis=0)).max() < film.CELL_PX - 2


def _letters(text: str) -> np.ndarray:
    """Where the same text is, without an outline."""
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, film.FONT_SCALE, 1)
    scale = film.FONT_SCALE * min(1.0, (film.CELL_PX - 12) / width)
    image = np.zeros((40, film.CELL_PX), np.uint8)
    cv2.putText(image, text, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1, cv2.LINE_AA)
    return image

"""Notices when a camera goes on sending pictures and shows nothing new, or nothing at all: said once, and when it is
over."""

from __future__ import annotations

import numpy as np

from edgevla.clock import NS_PER_S
from edgevla.look import BLANK, nothing, shades, thinned
from edgevla.messages import Severity

PATIENCE_NS = NS_PER_S
GLANCE_NS = NS_PER_S // 5
AGAIN_NS = 10 * NS_PER_S
"""Between two tellings of the same: a stream whose scene hardly moves may stand still every few seconds."""

News = tuple[Severity, str, str]
"""(severity, code, sentence)"""


class PictureWatch:
    """One camera. name: as the user knows it. who: with its device, for sentences.

    A sensor has noise, so two pictures that are equal to the last bit are rare, and a second of them is a camera, a
    driver or a hub that hangs. What is drawn (`Source.is_drawn`) stands still whenever the arm does, and is not watched.
    """

    def __init__(self, name: str, who: str) -> None:
        self._frozen = _Lasting()
        self._blank = _Lasting()
        self._name, self._who = name, who
        self._glanced_ns = -GLANCE_NS
        self._shades = (0.0, 0.0)

    def see(self, image: np.ndarray, captured_ns: int, is_same: bool) -> list[News]:
        """image: uint8 (H, W, 3) RGB. is_same: whether it is equal to the one before."""
        if captured_ns - self._glanced_ns >= GLANCE_NS:
            self._glanced_ns = captured_ns
            self._shades = shades(thinned(image))
        is_blank = self._shades[1] < BLANK
        told, over_s = self._blank.turn(is_blank, captured_ns)
        if told:
            return [("warning", "camera_blank", nothing(self._name, *self._shades))]
        if over_s:
            return [("info", "camera_sees", f"{self._who} shows something again, after {over_s:.1f} s")]
        told, over_s = self._frozen.turn(is_same and not is_blank, captured_ns)
        if told:
            text = (
                f"{self._who} has shown the same picture for {PATIENCE_NS / NS_PER_S:g} s, to the last bit: it is "
                "frozen, and what the arm does is not seen. Unplug it and plug it in again"
            )
            return [("warning", "camera_frozen", text)]
        if over_s:
            return [("info", "camera_moves", f"{self._who} shows new pictures again, after {over_s:.1f} s")]
        return []


class _Lasting:
    """A state that is told when it has lasted for `PATIENCE_NS`, and its end when its beginning was told."""

    def __init__(self) -> None:
        self._since_ns: int | None = None
        self._told_ns: int | None = None
        self._is_told = False

    def turn(self, is_so: bool, now_ns: int) -> tuple[bool, float]:
        """(whether it is to be told now, seconds that what was told has lasted when it just ended, else 0)."""
        if not is_so:
            since_ns = self._since_ns if self._is_told else None
            self._since_ns, self._is_told = None, False
            return False, 0.0 if since_ns is None else (now_ns - since_ns) / NS_PER_S
        if self._since_ns is None:
            self._since_ns = now_ns
        is_due = self._told_ns is None or now_ns - self._told_ns >= AGAIN_NS
        if self._is_told or not is_due or now_ns - self._since_ns < PATIENCE_NS:
            return False, 0.0
        self._is_told, self._told_ns = True, now_ns
        return True, 0.0

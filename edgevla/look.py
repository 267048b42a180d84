"""What a camera's pictures look like, in a few hundred numbers: enough to tell one view from another, and no picture at
all from a picture, whatever the light.

A picture becomes a thumbnail of 6 x 8 cells, from which brightness, contrast and the colour of the light are taken
out. Training data give one `CameraLook` per camera: the usual thumbnail and how far each cell strays from it, wide for
a camera on the wrist, narrow for one on a stand. Before an arm moves, live pictures are held against it. Numpy only.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

GRID = (6, 8)
"""Cells of a thumbnail: rows, columns."""
FINENESS = 32
"""Steps of a stored number per unit of contrast."""
LUMA = np.array([0.299, 0.587, 0.114])
"""Brightness of red, green and blue (ITU-R BT.601)."""
LEAST_CONTRAST = 4.0
"""Below this, grey levels, a thumbnail is not stretched further: what remains is noise."""
LEAST_SPREAD = 0.25
"""A cell that never changed in training may differ by so much, in units of the picture's contrast."""
BLANK = 3.0
"""Grey levels of contrast that sensor noise alone has: a picture below it shows nothing."""
MAX_COUNTED = 6
"""Cameras whose every arrangement is tried; robots have two to four."""


@dataclass(frozen=True)
class CameraLook:
    """What a camera showed in the training data.

    brightness, contrast: mean and deviation of a picture's grey levels, 0..255: what 90 of 100 lie between.
    thumbnail: base64 of 144 int8, 1/32 of the picture's contrast: cells row by row, red, green, blue.
    spread: base64 of 48 uint8 of the same unit: how far each cell usually is from it. usual: the distance (`away`) that
    95 of 100 training pictures stay within. n_pictures: so many were looked at.
    """

    brightness: tuple[float, float]
    contrast: tuple[float, float]
    thumbnail: str
    spread: str
    usual: float
    n_pictures: int

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """thumbnail float64 (6, 8, 3), spread float64 (6, 8), in units of the contrast. Raises ValueError: damaged."""
        return (
            np.frombuffer(base64.b64decode(self.thumbnail), np.int8).reshape(*GRID, 3) / FINENESS,
            np.frombuffer(base64.b64decode(self.spread), np.uint8).reshape(GRID) / FINENESS,
        )


@dataclass(frozen=True)
class Glance:
    """One picture. brightness, contrast: grey levels. thumbnail: float64 (6, 8, 3), in units of the contrast."""

    brightness: float
    contrast: float
    thumbnail: np.ndarray

    @property
    def is_blank(self) -> bool:
        """Whether the picture shows nothing: it has next to no contrast."""
        return self.contrast < BLANK

    def turned(self) -> Glance:
        """The same picture upside down."""
        return Glance(self.brightness, self.contrast, self.thumbnail[::-1, ::-1])


def thinned(picture: np.ndarray) -> np.ndarray:
    """About 96 pixels on the shorter side, float64: every so many-th pixel."""
    step = max(1, min(picture.shape[:2]) // 96)
    return picture[::step, ::step].astype(np.float64)


def shades(pixels: np.ndarray) -> tuple[float, float]:
    """(brightness, contrast): mean and deviation of the grey levels of (H, W, 3) RGB."""
    grey = pixels @ LUMA
    return float(grey.mean()), float(grey.std())


def nothing(name: str, brightness: float, contrast: float) -> str:
    """What to say of a camera whose contrast is below `BLANK`."""
    shade = "black" if brightness < 30 else "white" if brightness > 225 else "of one colour"
    return (
        f"camera '{name}' shows nothing: its pictures are {shade} (brightness {brightness:.0f} of 255, contrast "
        f"{contrast:.1f}). Look for a cap, a cover, or no light"
    )


def glance(picture: np.ndarray) -> Glance:
    """picture: uint8 (H, W, 3) RGB."""
    times = -(-max(GRID) // min(picture.shape[:2]))
    pixels = thinned(np.repeat(np.repeat(picture, times, 0), times, 1) if times > 1 else picture)
    cells = _cells(pixels)
    scale = max(float((cells @ LUMA).std()), LEAST_CONTRAST)
    return Glance(*shades(pixels), (cells - cells.mean((0, 1))) / scale)


def _cells(picture: np.ndarray) -> np.ndarray:
    """Mean colour of each cell: float64 (6, 8, 3)."""
    rows, columns = (np.arange(n) * size // n for n, size in zip(GRID, picture.shape[:2], strict=True))
    sums = np.add.reduceat(np.add.reduceat(picture, rows, axis=0), columns, axis=1)
    heights, widths = (
        np.diff(np.append(starts, size))
        for starts, size in ((rows, len(picture)), (columns, picture.shape[1]))
    )
    return sums / (heights[:, None] * widths)[..., None]


def look_of(pictures: Sequence[Glance]) -> CameraLook | None:
    """What these have in common; None of fewer than two."""
    if len(pictures) < 2:
        return None
    thumbnails = np.stack([p.thumbnail for p in pictures])
    usual = np.median(thumbnails, axis=0)
    spread = np.abs(thumbnails - usual).mean((0, 3))
    brightness, contrast = ([getattr(p, name) for p in pictures] for name in ("brightness", "contrast"))
    look = CameraLook(
        brightness=_ends(brightness),
        contrast=_ends(contrast),
        thumbnail=_packed(usual, np.int8),
        spread=_packed(spread, np.uint8),
        usual=0.0,
        n_pictures=len(pictures),
    )
    distances = [away(p, look) for p in pictures]
    return CameraLook(**{**vars(look), "usual": round(float(np.quantile(distances, 0.95)), 3)})


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Without the few black pictures that many a camera begins with."""
    low, high = np.quantile(values, [0.05, 0.95])
    return round(float(low), 1), round(float(high), 1)


def _packed(values: np.ndarray, dtype: type[np.integer]) -> str:
    ends = np.iinfo(dtype)
    whole = np.clip(np.round(FINENESS * values), ends.min, ends.max).astype(dtype)
    return base64.b64encode(whole.tobytes()).decode()


def away(picture: Glance, look: CameraLook) -> float:
    """How far a picture is from what a camera showed: about `look.usual` for the same view, well above 1 for another."""
    thumbnail, spread = look.cells()
    return float((np.abs(picture.thumbnail - thumbnail).mean(-1) / (spread + LEAST_SPREAD)).mean())


# -- live pictures against those of training --------------------------------------------------------------------


@dataclass(frozen=True)
class Oddity:
    """camera: name. is_blind: it certainly shows no picture, and the policy learned from pictures."""

    camera: str
    text: str
    is_blind: bool = False


def oddities(live: Mapping[str, Glance], trained: Mapping[str, CameraLook]) -> list[Oddity]:
    """What a person should know of these cameras before the arm moves. Both by the robot's name of the camera.

    A camera without a look of training is left out: that it shows nothing, it says itself.
    """
    found = [o for name, picture in live.items() for o in _blank(name, picture, trained.get(name))]
    seeing = {n: p for n, p in live.items() if n in trained and not p.is_blank}
    places = arrangement(seeing, trained)
    for name, picture in seeing.items():
        if places.get(name, name) != name:
            found.append(_exchanged(name, places))
        else:
            found += _other(name, picture, trained[name])
    return found


def _blank(name: str, picture: Glance, trained: CameraLook | None) -> list[Oddity]:
    if not picture.is_blank or trained is None or trained.contrast[0] < 3 * BLANK:
        return []
    text = nothing(name, picture.brightness, picture.contrast)
    return [
        Oddity(
            name, f"{text}; in the training data the contrast was {_range(trained.contrast)}", is_blind=True
        )
    ]


def _range(low_high: tuple[float, float]) -> str:
    return f"{low_high[0]:.0f} to {low_high[1]:.0f}"


def arrangement(seeing: Mapping[str, Glance], trained: Mapping[str, CameraLook]) -> dict[str, str]:
    """Camera -> whose view it shows, by the arrangement in which all are nearest to what training showed.

    Another than the declared one must be clearly better, and better for each camera that it moves.
    """
    names = list(seeing)
    if not 2 <= len(names) <= MAX_COUNTED:
        return {}
    apart = {(a, b): away(seeing[a], trained[b]) for a in names for b in names}
    best = min(
        itertools.permutations(names), key=lambda order: sum(apart[p] for p in zip(names, order, strict=True))
    )
    pairs = list(zip(names, best, strict=True))
    declared = sum(apart[n, n] for n in names)
    is_better = all(apart[a, b] < apart[a, a] for a, b in pairs if a != b)
    return dict(pairs) if is_better and sum(apart[p] for p in pairs) < 0.7 * declared else {}


def _exchanged(name: str, places: Mapping[str, str]) -> Oddity:
    other = places[name]
    word = "are exchanged" if places[other] == name else "are mixed up"
    return Oddity(
        name,
        f"camera '{name}' shows what '{other}' showed in the training data: the cameras {word}. Exchange their plugs, "
        f"or say which is which: --camera {name}=DEVICE --camera {other}=DEVICE",
    )


def _other(name: str, picture: Glance, trained: CameraLook) -> list[Oddity]:
    """One camera that shows its own view, but not as in training."""
    low, high = trained.brightness
    if picture.brightness < 0.5 * low or picture.brightness > 1.5 * high + 20:
        word = "darker" if picture.brightness < low else "brighter"
        text = (
            f"camera '{name}' is {word} than in the training data: brightness {picture.brightness:.0f} of 255, "
            f"there {_range(trained.brightness)}. Look at the light and the camera's exposure"
        )
        return [Oddity(name, text)]
    distance = away(picture, trained)
    if distance <= 2 * trained.usual + 0.5:
        return []
    if away(picture.turned(), trained) < 0.5 * distance:
        text = f"camera '{name}' shows the training data's view upside down: turn it, or set its rotation in the profile"
        return [Oddity(name, text)]
    text = (
        f"camera '{name}' shows another view than in the training data (distance {distance:.1f}, usually up to "
        f"{trained.usual:.1f}): has it been moved, or the scene changed?"
    )
    return [Oddity(name, text)]

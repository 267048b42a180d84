"""The last ten seconds of a figure, in cells of fixed times: a sparkline that scrolls, and does not flicker. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np

SAMPLE_NS = 250_000_000
N_SAMPLES = 40
"""Ten seconds."""
JITTER = 2
"""So many samples without a value are a screen that looked a little late, no silence."""
WIDTHS = (40, 20, 10, 8)
"""So many cells show all samples, the same number in each."""
LEVELS = "▁▂▃▄▅▆▇█"


def spark_width(room: int) -> int:
    """The widest sparkline that fits; 0: none does."""
    return next((width for width in WIDTHS if width <= room), 0)


class History:
    """Values per quarter of a second; where nothing was said, nan.

    merge: what a sample becomes when another value comes within its time, per element.
    """

    def __init__(self, merge: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda _, new: new) -> None:
        self._merge = merge
        self._index: int | None = None
        self._samples: deque[np.ndarray] = deque(maxlen=N_SAMPLES)

    def take(self, values: np.ndarray, at_ns: int) -> None:
        """values: float (n,), the same n each time; another n begins anew."""
        index = at_ns // SAMPLE_NS
        if self._index is None or self._samples[-1].shape != values.shape or index < self._index:
            self._samples.clear()
            self._samples.append(values)
        elif index == self._index:
            self._samples[-1] = self._merge(self._samples[-1], values)
        else:
            silent = min(index - self._index - 1, N_SAMPLES)
            between = self._samples[-1] if silent <= JITTER else np.full(values.shape, np.nan)
            self._samples.extend([between] * silent)
            self._samples.append(values)
        self._index = index

    def cells(self, k: int, width: int, now_ns: int) -> list[float]:
        """Element k in `width` cells, the newest last; a cell is the largest of its samples, nan where it has none."""
        if self._index is None or width not in WIDTHS:
            return [np.nan] * width
        per_cell = N_SAMPLES // width
        last = (now_ns // SAMPLE_NS) // per_cell
        found = [np.nan] * width
        for i, sample in enumerate(reversed(self._samples)):
            cell = width - 1 - (last - (self._index - i) // per_cell)
            if 0 <= cell < width and not found[cell] >= sample[k]:
                found[cell] = float(sample[k])
        return found


def sparkline(
    values: Sequence[float], least_span: float, floor: float | None = None, rows: int = 1
) -> list[str]:
    """One column per value, lowest to highest of them, in `rows` lines, the upper one first.

    least_span: a smaller change looks flat. floor: where the lowest level stands; None: at the lowest value.
    """
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return [" " * len(values)] * rows
    low, high = (min(known) if floor is None else floor), max(known)
    high = max(high, low + least_span)
    levels = [_level(value, low, high, rows * len(LEVELS)) for value in values]
    return ["".join(_block(level - row * len(LEVELS)) for level in levels) for row in reversed(range(rows))]


def _level(value: float, low: float, high: float, n: int) -> int:
    """1 to n; 0: not known."""
    if not np.isfinite(value):
        return 0
    share = (value - low) / (high - low) if high > low else 0.0
    return min(n, max(1, 1 + int(share * n)))


def _block(level: int) -> str:
    return " " if level <= 0 else LEVELS[min(level, len(LEVELS)) - 1]


class CounterRates:
    """Counters of one node over the last ten seconds, as rates. One that fell belongs to another process."""

    def __init__(self) -> None:
        self.now: dict[str, int] = {}
        self._seen: deque[tuple[int, dict[str, int]]] = deque()

    def take(self, counters: dict[str, int], at_ns: int) -> None:
        if any(counters.get(name, 0) < n for name, n in self.now.items()):
            self._seen.clear()
        self.now = counters
        self._seen.append((at_ns, counters))
        while at_ns - self._seen[0][0] > N_SAMPLES * SAMPLE_NS:
            self._seen.popleft()

    def grown(self, *names: str) -> int:
        """By how much, together, in the last ten seconds."""
        return _total(self.now, names) - _total(self._seen[0][1], names) if self._seen else 0

    def per_s(self, *names: str) -> float | None:
        """None before there were two beats."""
        if len(self._seen) < 2:
            return None
        return self.grown(*names) * 1e9 / max(1, self._seen[-1][0] - self._seen[0][0])

    def share(self, part: str, whole: str) -> float | None:
        """Since the node began; None where there was nothing yet."""
        n = self.now.get(whole, 0)
        return self.now.get(part, 0) / n if n else None


def _total(counters: dict[str, int], names: Iterable[str]) -> int:
    return sum(counters.get(name, 0) for name in names)

"""What can be said of successes that were counted: intervals, paired comparison, and what so many episodes can show.

Shares are between 0 and 1. A pair is the same place met by two settings; `gained` are places where only the second
succeeded, `lost` those where only the first did.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054
ALPHA, POWER = 0.05, 0.8
DISAGREEMENT = 0.25
"""Share of the places on which two settings are supposed to disagree, where nothing is known yet."""
N_RESAMPLED = 2000
EXACT_UP_TO = 500


def wilson(n_good: float, n: int, z: float = Z95) -> tuple[float, float]:
    """95 % interval of a share, Wilson's score interval; everything of no trials."""
    if n == 0:
        return 0.0, 1.0
    share, zz = n_good / n, z * z / n
    middle = (share + zz / 2) / (1 + zz)
    half = z * math.sqrt(share * (1 - share) / n + zz / (4 * n)) / (1 + zz)
    return max(0.0, middle - half), min(1.0, middle + half)


def half_width(share: float, n: int) -> float:
    """Half of the 95 % interval that n trials give near a share."""
    low, high = wilson(share * n, n)
    return (high - low) / 2


# -- two settings on the same places ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Counts over the places that both met. difference: of the shares, second minus first; interval: of it, 95 %."""

    both: int
    lost: int
    gained: int
    neither: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> Pairs:
        """Place by place, in the same order."""
        met = list(zip(first, second, strict=True))
        return cls(
            *(met.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
        )

    @property
    def n(self) -> int:
        """Places that both tried."""
        return self.both + self.lost + self.gained + self.neither

    @property
    def difference(self) -> float:
        """Share of successes of the second minus that of the first."""
        return (self.gained - self.lost) / self.n if self.n else 0.0

    @property
    def p(self) -> float:
        """Of McNemar's exact test, two-sided."""
        return mcnemar_exact(self.lost, self.gained)

    @property
    def interval(self) -> tuple[float, float]:
        """Newcombe's hybrid score interval for paired shares. Unlike a bootstrap it does not shrink to a point where the
        two never disagreed."""
        if not self.n:
            return -1.0, 1.0
        first, second = (self.both + self.lost) / self.n, (self.both + self.gained) / self.n
        (low1, high1), (low2, high2) = (wilson(s * self.n, self.n) for s in (first, second))
        phi = self._phi()
        below = (second - low2) ** 2 - 2 * phi * (second - low2) * (high1 - first) + (high1 - first) ** 2
        above = (high2 - second) ** 2 - 2 * phi * (high2 - second) * (first - low1) + (first - low1) ** 2
        return self.difference - math.sqrt(max(0.0, below)), self.difference + math.sqrt(max(0.0, above))

    def _phi(self) -> float:
        """Correlation of the two, with Newcombe's correction for continuity where it is positive."""
        a, b, c, d, n = self.both, self.lost, self.gained, self.neither, self.n
        scale = (a + b) * (c + d) * (a + c) * (b + d)
        if not scale:
            return 0.0
        product = a * d - b * c
        return (max(product - n / 2, 0.0) if product > 0 else product) / math.sqrt(scale)


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided p of McNemar's exact test: would a fair coin disagree so unevenly?"""
    n, fewer = lost + gained, min(lost, gained)
    if n == 0:
        return 1.0
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


# -- what so many episodes can show -------------------------------------------------------------------------------


def detectable_difference(n: int, disagreement: float = DISAGREEMENT) -> float | None:
    """The smallest difference of two shares on the same n places that McNemar's exact test finds (two-sided 5 %) four
    times out of five; None: not even the largest.

    disagreement: share of the places where only one of the two succeeds; where the difference is larger, that.
    """
    if _power(n, 1.0, 1.0) < POWER:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        if _power(n, max(disagreement, middle), middle) < POWER:
            low = middle
        else:
            high = middle
    return high


def _power(n: int, disagreement: float, difference: float) -> float:
    """Probability that the test finds it: the sum over how many places disagree, and how few of those go the other way;
    of many places, the normal distribution's."""
    if n > EXACT_UP_TO:
        spread = math.sqrt(max(1e-12, disagreement - difference**2))
        at = (difference * math.sqrt(n) - Z95 * math.sqrt(disagreement)) / spread
        return (1 + math.erf(at / math.sqrt(2))) / 2
    share = min(1.0, (disagreement - difference) / (2 * disagreement))
    k = np.arange(n + 1)
    how_many = _binomial(n, disagreement)
    found = 0.0
    for m in k[how_many > 1e-9].tolist():
        one_way = _binomial(m, share)
        most = _most_against(m)
        if most >= 0:  # uneven one way, or the other
            found += how_many[m] * (one_way[: most + 1].sum() + one_way[m - most :].sum())
    return float(found)


@functools.cache
def _most_against(m: int) -> int:
    """The largest minority among m disagreements that is still significant; -1: none is."""
    total, k = 0, -1
    limit = ALPHA / 2 * 2**m
    while total + math.comb(m, k + 1) <= limit:
        k += 1
        total += math.comb(m, k)
    return k


def _binomial(n: int, share: float) -> np.ndarray:
    """float64 (n + 1,): probabilities of 0 ... n."""
    if share <= 0 or share >= 1:
        return np.eye(n + 1)[0 if share <= 0 else n]
    k = np.arange(n + 1)
    ways = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k])
    return np.asarray(np.exp(ways + k * math.log(share) + (n - k) * math.log1p(-share)))


# -- figures without a formula --------------------------------------------------------------------------------------


def bootstrap(
    groups: Sequence[Sequence[float]], of: Callable[[np.ndarray], float], seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of a figure of pooled values, by drawing whole groups (episodes) again and again.

    Values within an episode hang together, so the episode is what is drawn. None: fewer than two have values.
    """
    kept = [np.asarray(group, float) for group in groups if len(group)]
    if len(kept) < 2:
        return None
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(kept), (N_RESAMPLED, len(kept)))
    found = [of(np.concatenate([kept[i] for i in draw])) for draw in draws]
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)

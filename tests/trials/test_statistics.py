"""Intervals and tests against values that are known from elsewhere, or can be counted out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from edgevla.evaluation.statistics import (
    Pairs,
    bootstrap,
    detectable_difference,
    half_width,
    mcnemar_exact,
    wilson,
)
from edgevla.evaluation.verdict_table import what_it_shows


@pytest.mark.parametrize(
    ("good", "n", "percent"),
    [
        (99, 100, (95, 100)),
        (93, 100, (86, 97)),
        (0, 60, (0, 6)),
        (186, 200, (88.6, 95.8)),
        (128, 200, (57.1, 70.3)),
    ],
)
def test_wilson_intervals_are_the_published_ones(good: int, n: int, percent: tuple[float, float]) -> None:
    """The last two are LeRobot's ACT on gym-aloha's two tasks."""
    digits = 1 if n == 200 else 0
    assert [round(100 * share, digits) for share in wilson(good, n)] == list(percent)


def test_of_no_trials_everything_is_possible() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_mcnemar_is_a_fair_coin() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(0, 5) == 2 / 32
    assert mcnemar_exact(6, 0) == 2 / 64
    assert mcnemar_exact(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert mcnemar_exact(3, 3) == 1.0


def test_pairs_are_counted_place_by_place() -> None:
    first, second = [True, True, False, False, False], [True, False, True, True, False]
    pairs = Pairs.of(first, second)
    assert (pairs.both, pairs.lost, pairs.gained, pairs.neither) == (1, 1, 2, 1)
    assert pairs.difference == pytest.approx(0.2)


def test_the_interval_of_a_difference_covers_the_truth_and_never_shrinks_to_a_point() -> None:
    rng = np.random.default_rng(0)
    shares, truth, covered = (0.55, 0.05, 0.2, 0.2), 0.15, 0
    for both, lost, gained, neither in rng.multinomial(60, shares, 1000):
        low, high = Pairs(both, lost, gained, neither).interval
        covered += low <= truth <= high
    assert 0.93 <= covered / 1000 <= 0.98
    low, high = Pairs(20, 0, 0, 0).interval
    assert low < -0.1
    assert high > 0.1


def test_the_detectable_difference_is_where_the_test_finds_it_four_times_of_five() -> None:
    """Counted out: every way in which 12 places can agree or not."""
    n, difference = 12, detectable_difference(12)
    assert difference is not None
    gained, found = difference, 0.0  # larger than a quarter: all that disagree do it one way
    for k in range(n + 1):
        if mcnemar_exact(0, k) < 0.05:
            found += math.comb(n, k) * gained**k * (1 - gained) ** (n - k)
    assert found == pytest.approx(0.8, abs=0.01)


def test_more_places_show_smaller_differences_and_fewer_than_six_none() -> None:
    assert detectable_difference(5) is None
    least = [detectable_difference(n) for n in (6, 20, 50, 100, 200, 500, 2000)]
    assert all(a is not None and b is not None and a > b for a, b in itertools.pairwise(least))
    assert least[4] == pytest.approx(0.10, abs=0.01)
    assert detectable_difference(500) == pytest.approx(
        detectable_difference(501), abs=0.004
    )  # another formula


def test_half_widths_are_what_is_said() -> None:
    assert half_width(0.5, 100) == pytest.approx(0.096, abs=0.001)
    first, second = what_it_shows(100, 2)
    assert "about 10 points either way where it is near 50 %, 8 near 80 %, 5 near 95 %" in first
    assert "a difference of 14 points or more" in second
    assert len(what_it_shows(100, 1)) == 1


def test_a_bootstrap_draws_episodes() -> None:
    """Values within an episode are all the same here: the interval is that of 30 episodes, not of 3000 values."""
    rng = np.random.default_rng(1)
    groups = [[value] * 100 for value in rng.standard_normal(30)]
    found = bootstrap(groups, lambda values: float(np.mean(values)))
    assert found is not None
    assert found[1] - found[0] == pytest.approx(2 * 1.96 / math.sqrt(30), rel=0.35)
    assert bootstrap(groups[:1], np.mean) is None
    assert bootstrap(groups, np.mean) == bootstrap(groups, np.mean)

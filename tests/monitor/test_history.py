"""The last ten seconds as sparklines and rates, and what was said."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgevla.monitor.history import N_SAMPLES, SAMPLE_NS, CounterRates, History, sparkline
from edgevla.monitor.said import Said

SECOND = 1_000_000_000


def test_a_history_scrolls_and_a_cell_keeps_its_value() -> None:
    history = History()
    for i in range(20):
        history.take(np.array([float(i)]), i * SAMPLE_NS)
    before = history.cells(0, 10, 19 * SAMPLE_NS)
    assert before[-1] == 19
    assert math.isnan(before[0])
    history.take(np.array([20.0]), 20 * SAMPLE_NS)
    assert history.cells(0, 10, 20 * SAMPLE_NS)[-2] == 19, "moved on by a cell"
    assert history.cells(0, 40, 20 * SAMPLE_NS)[-2:] == [19, 20]


def test_silence_is_a_gap_and_a_screen_that_was_late_is_none() -> None:
    history = History()
    history.take(np.array([1.0]), 0)
    history.take(np.array([2.0]), 2 * SAMPLE_NS)
    assert history.cells(0, 40, 2 * SAMPLE_NS)[-3:] == [1, 1, 2]
    history.take(np.array([3.0]), 12 * SAMPLE_NS)
    cells = history.cells(0, 40, 12 * SAMPLE_NS)
    assert cells[-1] == 3
    assert all(math.isnan(value) for value in cells[-10:-1])
    assert all(math.isnan(value) for value in history.cells(0, 40, 100 * N_SAMPLES * SAMPLE_NS))


def test_the_worst_of_a_sample_stays() -> None:
    history = History(np.fmax)
    for value in (1.0, 9.0, 2.0):
        history.take(np.array([value]), 0)
    assert history.cells(0, 40, 0)[-1] == 9


def test_a_sparkline_is_flat_where_hardly_anything_moves_and_has_levels_where_it_does() -> None:
    assert sparkline([5.0, 5.1, 5.0], least_span=4.0) == ["▁▁▁"]
    assert sparkline([0.0, 4.0, 8.0, math.nan], least_span=1.0) == ["▁▅█ "]
    assert sparkline([0.0, 8.0], least_span=1.0, rows=2) == [" █", "▁█"]
    assert sparkline([math.nan], least_span=1.0, rows=2) == [" ", " "]


def test_rates_are_of_the_last_ten_seconds_and_of_one_process() -> None:
    counters = CounterRates()
    assert counters.per_s("late") is None
    for i in range(30):
        counters.take({"late": 2 * i, "ticks": 100 * i}, i * SECOND)
    assert counters.per_s("late") == pytest.approx(2.0)
    assert counters.grown("late") == 20
    assert counters.share("late", "ticks") == pytest.approx(0.02)
    counters.take({"late": 1, "ticks": 10}, 31 * SECOND)
    assert counters.per_s("late") is None, "another process"


def test_events_are_searched_by_all_words_and_scrolled() -> None:
    said = Said()
    for i in range(50):
        said.say("warning" if i % 10 == 0 else "info", "robot", f"sentence {i}")
    said.look_for("warning SENTENCE")
    assert len(said.found()) == 5
    said.look_for("")
    said.scroll(10)
    assert said.back == 10
    said.say("info", "robot", "a new one")
    assert said.back == 11, "what is being read stays where it is"
    said.scroll(-100)
    assert said.back == 0
    said.scroll(1000)
    assert said.back == len(said.found()) - 1

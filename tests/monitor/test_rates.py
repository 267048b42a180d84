"""Rates that mean something: not over a change of grid, and a lost sync read is the line's, not six servos'."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edgevla.monitor.rates import Clockwork, TickTiming, TroubleRates, percentiles

S = 1_000_000_000


def ticks(clockwork: Clockwork, first: int, n: int, t0_ns: int, hz: float = 100.0) -> None:
    for tick in range(first, first + n):
        clockwork.take(TickTiming(tick, t0_ns, t0_ns + round(tick * 1e9 / hz), 1_000_000))


def test_the_rate_is_that_of_the_newest_grid() -> None:
    clockwork = Clockwork()
    ticks(clockwork, 4000, 300, t0_ns=0)
    assert clockwork.hz == pytest.approx(100)
    ticks(clockwork, 0, 1, t0_ns=60 * S)
    assert clockwork.hz is None, "one tick has no rate"
    ticks(clockwork, 1, 50, t0_ns=60 * S, hz=50.0)
    assert clockwork.hz == pytest.approx(50, rel=0.1)


def test_a_tick_that_jumps_back_begins_anew() -> None:
    clockwork = Clockwork()
    ticks(clockwork, 1000, 10, t0_ns=0)
    ticks(clockwork, 5, 10, t0_ns=0)
    assert clockwork.hz == pytest.approx(100)


def test_skipped_ticks_are_time_that_passed() -> None:
    clockwork = Clockwork()
    for tick in (0, 1, 2, 50, 100):
        clockwork.take(TickTiming(tick, 0, tick * 10_000_000, 0))
    assert clockwork.hz == pytest.approx(100)


def servo(id: int, retries: int = 0, corrupt: int = 0, stale: int = 0, bus: str = "main") -> SimpleNamespace:
    return SimpleNamespace(bus=bus, id=id, n_retries=retries, n_corrupt=corrupt, n_stale=stale)


def test_a_lost_sync_read_now_and_then_is_nobodys_trouble() -> None:
    rates = TroubleRates()
    for i in range(21):
        rates.take([servo(n, retries=100 + i // 5) for n in range(1, 7)], i * S // 2)
    assert all(rates.of(("main", n)).retries == 0 for n in range(1, 7))
    shared = rates.shared()["main"]
    assert shared.retries == pytest.approx(0.4)
    assert not shared.is_noteworthy


def test_a_servo_that_needs_more_tries_than_its_line_is_noteworthy() -> None:
    rates = TroubleRates()
    for i in range(21):
        rates.take([servo(1, retries=i), servo(2, retries=3 * i), servo(3, retries=i)], i * S // 2)
    assert rates.of(("main", 2)).retries == pytest.approx(4)
    assert rates.of(("main", 2)).is_noteworthy
    assert not rates.of(("main", 1)).is_noteworthy


def test_a_noisy_line_is_said_once_for_all() -> None:
    rates = TroubleRates()
    for i in range(21):
        rates.take([servo(n, retries=5 * i, stale=i) for n in range(1, 7)], i * S // 2)
    assert rates.shared()["main"].is_noteworthy
    assert not any(rates.of(("main", n)).is_noteworthy for n in range(1, 7))


def test_old_trouble_is_forgotten() -> None:
    rates = TroubleRates()
    for i in range(40):
        rates.take([servo(1, retries=min(i, 4) * 50), servo(2)], i * S // 2)
    assert rates.of(("main", 1)).retries == 0


def test_counters_that_begin_anew_are_a_node_that_was_started_again() -> None:
    rates = TroubleRates()
    rates.take([servo(1, retries=500), servo(2)], 0)
    rates.take([servo(1, retries=0), servo(2)], S)
    rates.take([servo(1, retries=1), servo(2)], 2 * S)
    assert rates.of(("main", 1)).retries == pytest.approx(1)


def test_a_servo_that_gives_no_value_is_mute() -> None:
    rates = TroubleRates()
    rates.take([servo(1, stale=3), servo(2, stale=1)], 0)
    rates.take([servo(1, stale=50), servo(2, stale=2)], S // 2)
    assert rates.is_mute(("main", 1), loop_hz=100.0)
    assert not rates.is_mute(("main", 2), loop_hz=100.0)


def test_percentiles_of_nothing_are_nothing() -> None:
    assert percentiles([]) is None
    spread = percentiles([1.0, 2.0, 10.0])
    assert spread is not None
    assert (spread.p50, spread.worst) == (2.0, 10.0)

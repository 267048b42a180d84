"""Chunks become goals: who asks when, what is skipped, what is held. Time is ticks; no clock anywhere."""

import numpy as np
import pytest

from edgevla.errors import UsageError
from edgevla.execution import (
    Async,
    Ensemble,
    Executor,
    Rtc,
    Sync,
    execution_from,
    execution_to,
    judge_latency,
)
from edgevla.execution.rtc import rtc_weights
from edgevla.types import ActionChunk

R = 4  # ticks per grid moment


def make(execution, chunk_size=20, n_action_steps=10):
    return Executor(
        execution,
        ticks_per_step=R,
        chunk_size=chunk_size,
        n_action_steps=n_action_steps,
        n_joints=2,
        fps=30.0,
        guidance_end=8,
    )


def chunk(observed, n=20, seq=0, offset=0.0):
    """Action j of moment n is n + j (+ offset): the goal of any tick is then its time in steps."""
    ramp = observed + np.arange(n, dtype=np.float32) + offset
    return ActionChunk(np.stack([ramp, -ramp], 1), tick=observed * R, ticks_per_step=R, seq=seq)


def ask_and_answer(executor, ask_tick, answer_tick, **kwargs):
    assert executor.wants_chunk(ask_tick)
    executor.asked(ask_tick, ask_tick)
    return executor.receive(chunk(ask_tick // R, **kwargs), ask_tick, answer_tick, None)


def test_nothing_is_wanted_before_the_first_chunk():
    executor = make(Async())
    assert executor.goal_at(0).wanted is None
    assert executor.wants_chunk(0)
    assert not executor.wants_chunk(1)  # only at grid moments


def test_one_request_is_out_at_a_time_and_a_passed_deadline_frees_it():
    executor = make(Async(every=1))
    executor.asked(1, 0)
    assert not executor.wants_chunk(R)
    executor.give_up(1)
    assert executor.wants_chunk(2 * R)


def test_a_late_chunk_skips_the_actions_already_past():
    executor = make(Async())
    receipt = ask_and_answer(executor, 0, 6 * R)  # 6 steps late
    assert receipt.is_taken
    assert (receipt.n_skipped, receipt.delay_steps) == (6, 6)
    goal = executor.goal_at(6 * R)
    assert goal.wanted[0] == 6.0  # action 6 of the chunk observed at moment 0, not action 0
    assert goal.n_left == 13


def test_goals_between_grid_moments_are_interpolated():
    executor = make(Async())
    ask_and_answer(executor, 0, 1)
    for tick in range(1, 19 * R):
        np.testing.assert_allclose(executor.goal_at(tick).wanted, [tick / R, -tick / R], rtol=1e-6)


def test_the_last_action_is_held_and_the_executor_says_that_it_starves():
    executor = make(Async())
    ask_and_answer(executor, 0, 1)
    assert not executor.goal_at(20 * R - 1).is_starved
    beyond = executor.goal_at(25 * R)
    assert beyond.is_starved
    assert beyond.wanted[0] == 19.0
    assert beyond.n_left == 0


def test_sync_waits_and_begins_with_action_zero_where_the_chunk_arrives():
    executor = make(Sync())
    last_goal = np.array([-1.0, 1.0], np.float32)
    executor.asked(7, 0)
    receipt = executor.receive(chunk(0), 7, 5 * R + 2, last_goal)
    assert (receipt.grid_index, receipt.n_skipped) == (6, 0)  # the next grid moment; nothing is lost
    assert executor.goal_at(6 * R).wanted[0] == 0.0
    lead = [executor.goal_at(5 * R + k).wanted[0] for k in (2, 3)]
    np.testing.assert_allclose(lead, [-2 / 3, -1 / 3], rtol=1e-5)  # a straight line from the last goal
    assert executor.goal_at(8 * R).wanted[0] == 2.0


def test_sync_asks_again_only_when_its_actions_are_used_up():
    executor = make(Sync(n_action_steps=3))
    executor.asked(1, 0)
    executor.receive(chunk(0), 1, R, None)
    assert not executor.wants_chunk(3 * R)
    assert executor.wants_chunk(4 * R)
    assert executor.goal_at(4 * R).wanted[0] == 2.0  # holds its third action meanwhile


def test_sync_takes_no_answer_that_it_gave_up():
    executor = make(Sync())
    executor.asked(1, 0)
    executor.give_up(1)
    assert executor.receive(chunk(0), 1, R, None).reason == "unasked"


def test_async_takes_a_late_answer_unless_a_newer_chunk_is_there():
    executor = make(Async(every=1))
    executor.asked(1, 0)
    executor.give_up(1)
    executor.asked(2, 2 * R)
    assert executor.receive(chunk(2, seq=2), 2, 3 * R, None).is_taken
    assert executor.receive(chunk(0, seq=1), 1, 3 * R, None).reason == "late"
    assert executor.receive(chunk(3, n=2, seq=3), 3, 9 * R, None).reason == "late"  # all of it is past


def test_the_newest_chunk_replaces_at_the_same_moment():
    executor = make(Async(every=2))
    ask_and_answer(executor, 0, R)
    ask_and_answer(executor, 2 * R, 3 * R, seq=1, offset=100.0)
    goal = executor.goal_at(3 * R)
    assert goal.wanted[0] == 103.0
    assert (goal.chunk_seq, goal.action_index) == (1, 1.0)


def test_ensembling_averages_all_that_covers_with_the_oldest_at_weight_one():
    executor = make(Ensemble(decay=0.5))
    for n, offset in enumerate((0.0, 10.0, 20.0)):
        ask_and_answer(executor, n * R, n * R + 1, seq=n, offset=offset)
    weights = np.exp(-0.5 * np.arange(3))
    expected = 4.0 + (weights @ [0.0, 10.0, 20.0]) / weights.sum()
    np.testing.assert_allclose(executor.goal_at(4 * R).wanted[0], expected, rtol=1e-6)


def test_ensembling_counts_age_in_moments_not_in_chunks():
    executor = make(Ensemble(decay=0.5, every=4))
    ask_and_answer(executor, 0, 1)
    ask_and_answer(executor, 4 * R, 4 * R + 1, seq=1, offset=10.0)
    newer = np.exp(-0.5 * 4)
    expected = 5.0 + 10.0 * newer / (1 + newer)
    np.testing.assert_allclose(executor.goal_at(5 * R).wanted[0], expected, rtol=1e-6)


def test_rtc_commits_what_is_decided_and_weights_the_rest():
    executor = make(Rtc(every=5))
    assert executor.committed(0, None)[1].max() == 0  # no old chunk: the plain step
    ask_and_answer(executor, 0, 2 * R)
    sent = np.array([5.5, -5.5], np.float32)
    committed, weights, limit = executor.committed(5 * R, sent)
    assert committed[0, 0] == 5.5  # what was really sent, not what was wanted
    np.testing.assert_array_equal(committed[1:15, 0], np.arange(6, 20))
    assert not committed[15:].any()
    np.testing.assert_allclose(weights[:9], [1, 1, *np.linspace(1, 0, 8)[1:-1], 0], rtol=1e-6)
    assert limit == 10.0
    assert make(Async()).committed(0, None) is None


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("linear", [1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0]),
        ("exp", [1, 1, 0.5705891, 0.2870724, 0.1144922, 0.0257703, 0, 0]),
        ("zeros", [1, 1, 0, 0, 0, 0, 0, 0]),
        ("ones", [1, 1, 1, 1, 1, 1, 0, 0]),
    ],
)
def test_rtc_weights_are_the_reference_s(kind, expected):
    np.testing.assert_allclose(rtc_weights(kind, 2, 6, 8, 8), expected, atol=2e-7)


def test_rtc_guidance_ends_with_the_old_chunk():
    weights = rtc_weights("linear", delay=5, guidance_end=10, rest=3, chunk_size=8)
    np.testing.assert_array_equal(weights, [1, 1, 1, 0, 0, 0, 0, 0])
    assert not rtc_weights("exp", 2, 6, 0, 8).any()


def test_a_chunk_with_nan_or_of_another_robot_is_refused():
    executor = make(Async())
    damaged = chunk(0)
    damaged.actions[3, 1] = np.nan
    assert executor.receive(damaged, 1, R, None).reason == "damaged"
    other = ActionChunk(np.zeros((20, 7), np.float32), 0, R)
    assert executor.receive(other, 1, R, None).reason == "damaged"


def test_reset_forgets_everything():
    executor = make(Async())
    ask_and_answer(executor, 0, R)
    executor.reset()
    assert executor.goal_at(2 * R).wanted is None
    assert executor.wants_chunk(2 * R)


@pytest.mark.parametrize("execution", [Sync(5), Ensemble(0.1, 2), Async(3), Rtc(None, 8, "exp", 5.0)])
def test_an_execution_survives_the_way_through_json(execution):
    assert execution_from(execution_to(execution)) == execution


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"kind": "asinc"}, "kind is 'asinc'; expected one of sync, .*; did you mean 'async'"),
        ({"kind": "async", "decay": 0.1}, "'async' has the unknown key 'decay'; known: blend, every"),
        (
            {"kind": "sync", "n_action_steps": 0},
            "'sync'.n_action_steps is 0; expected a whole number from 1 to",
        ),
        ({"kind": "ensemble", "decay": "a"}, "decay"),
        ({"kind": "rtc", "weights": "cosine"}, "cosine"),
    ],
)
def test_an_option_that_cannot_take_effect_is_an_error(data, words):
    with pytest.raises(UsageError, match=words):
        execution_from(data)


def test_latency_is_judged_before_the_arm_moves():
    def judge(execution, latency_ms):
        return judge_latency(execution, chunk_size=30, fps=30.0, latency_ms=latency_ms)

    assert judge(Async(), 100).severity == "info"
    assert judge(Async(), 400).severity == "warning"  # 2 x 12 + 12 > 30
    starving = judge(Async(), 1100)  # 33 steps of a chunk of 30
    assert (starving.severity, starving.execution) == ("error", Sync())
    assert "every action would be past" in starving.sentence
    assert judge(Rtc(), 600).execution == Sync()
    assert judge(Sync(), 5000).severity == "info"

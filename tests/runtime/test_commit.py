"""Execution `rtc` of a policy that was trained for it: what is committed, and which chunks come too late for it."""

import numpy as np
import pytest

from edgevla.errors import BundleError, UsageError
from edgevla.execution import Async, Executor, Rtc, Sync, judge_latency
from edgevla.execution.commit import check_commitment, check_untrained_options, rtc_words
from edgevla.launch.deployment import execution_words
from edgevla.robots.trials.closed_loop import ClosedLoop
from edgevla.types import ActionChunk

R, LONGEST, T = 2, 4, 20


def make(expected=3, execution=None):
    executor = Executor(
        execution or Rtc(every=5),
        ticks_per_step=R,
        chunk_size=T,
        n_action_steps=T,
        n_joints=2,
        fps=30.0,
        trained_delay=LONGEST,
    )
    executor.expect_delay(expected)
    return executor


def chunk(moment, seq=0):
    ramp = moment + np.arange(T, dtype=np.float32)
    return ActionChunk(np.stack([ramp, -ramp], 1), tick=moment * R, ticks_per_step=R, seq=seq)


def ask(executor, moment, sent=None):
    """What the request of a grid moment says: committed actions, and how many of them are marked."""
    committed, weights, _ = executor.committed(moment * R, sent)
    executor.asked(moment, moment * R)
    n = int(weights.sum())
    np.testing.assert_array_equal(weights, np.arange(T) < n)
    assert weights.dtype == np.float32
    return committed, n


def answer(executor, moment, after):
    return executor.receive(chunk(moment, seq=moment), moment, (moment + after) * R, None)


def running(expected=3):
    """With a chunk of moment 0 under way."""
    executor = make(expected)
    assert ask(executor, 0)[1] == 0
    assert answer(executor, 0, 2).is_taken
    return executor


def test_the_first_chunk_goes_on_from_nothing_and_its_latency_is_not_expected_of_others():
    executor = make(expected=2)
    committed, n = ask(executor, 0)
    assert n == 0
    assert not committed.any()
    assert answer(executor, 0, 9).is_taken, "however late it comes"
    assert executor.delay_steps == 2
    assert ask(executor, 10)[1] == 2


def test_as_much_is_committed_as_the_chunk_will_be_late():
    executor = running()
    sent = np.array([7.5, -7.5], np.float32)
    committed, n = ask(executor, 5, sent)
    assert n == 3
    np.testing.assert_array_equal(committed[:4], [[7.5, -7.5], [6, -6], [7, -7], [8, -8]])


def test_without_a_measured_delay_it_is_the_longest_that_was_trained():
    executor = running(expected=0)
    assert ask(executor, 5)[1] == LONGEST


def test_it_is_never_more_than_was_trained():
    executor = running(expected=9)
    assert ask(executor, 5)[1] == LONGEST


def test_what_the_old_chunk_lacks_is_not_made_up():
    executor = running()
    committed, n = ask(executor, T - 2)
    assert n == 2
    assert not committed[2:].any()
    executor.give_up(T - 2)
    assert ask(executor, T)[1] == 0


@pytest.mark.parametrize(("after", "reason"), [(1, "taken"), (3, "taken"), (4, "overdue"), (9, "overdue")])
def test_a_chunk_later_than_its_committed_actions_is_refused(after, reason):
    executor = running()
    ask(executor, 5)
    receipt = answer(executor, 5, after)
    assert (receipt.reason, receipt.delay_steps) == (reason, after)
    goal = executor.goal_at((5 + after) * R)
    assert goal.chunk_seq == (5 if reason == "taken" else 0), "the old chunk goes on"


def test_the_delay_of_a_refused_chunk_counts_for_the_next():
    executor = running()
    ask(executor, 5)
    assert answer(executor, 5, 4).reason == "overdue"
    assert ask(executor, 10)[1] == 4
    assert answer(executor, 10, 4).is_taken


def test_a_chunk_that_was_given_up_is_still_judged_by_what_it_committed():
    executor = running()
    ask(executor, 5)
    executor.give_up(5)
    assert answer(executor, 5, 4).reason == "overdue"
    ask(executor, 10)
    executor.give_up(10)
    assert answer(executor, 10, 3).is_taken


def test_an_arm_that_has_used_up_its_chunk_takes_any_new_one():
    executor = running(expected=9)
    ask(executor, 5)
    assert answer(executor, 5, 9).reason == "overdue"
    assert ask(executor, T + 1)[1] == 0
    assert answer(executor, T + 1, 9).is_taken


def test_reset_forgets_what_was_committed():
    executor = running()
    ask(executor, 5)
    executor.reset()
    assert ask(executor, 8)[1] == 0
    assert answer(executor, 8, 9).is_taken


def test_other_executions_of_such_a_policy_are_as_ever():
    executor = make(execution=Async(every=5))
    assert executor.committed(0, None) is None
    executor.asked(0, 0)
    assert answer(executor, 0, 2).is_taken
    executor.asked(5, 5 * R)
    assert answer(executor, 5, 9).is_taken
    assert executor.delay_steps == 9


def test_a_latency_beyond_training_is_refused_before_the_arm_moves():
    def judge(latency_ms, trained_delay):
        return judge_latency(
            Rtc(), chunk_size=30, fps=30.0, latency_ms=latency_ms, trained_delay=trained_delay
        )

    assert judge(130, 4).severity == "info"
    refused = judge(140, 4)
    assert (refused.severity, refused.execution) == ("error", Sync())
    assert "trained for delays of at most 4" in refused.sentence
    assert judge(140, None).severity == "info"


@pytest.mark.parametrize("execution", [Rtc(guidance_end=3), Rtc(weights="exp"), Rtc(max_guidance=2.0)])
def test_options_of_guidance_are_refused(execution):
    with pytest.raises(UsageError, match="leave it out"):
        check_untrained_options(execution, LONGEST)
    check_untrained_options(execution, None)
    check_untrained_options(Rtc(every=3), LONGEST)


def test_weights_must_be_a_beginning_of_ones_within_training():
    check_commitment(np.array([1, 1, 0, 0], np.float32), 2)
    check_commitment(np.zeros(4, np.float32), 2)
    for weights in ([1, 0.5, 0, 0], [0, 1, 0, 0], [2, 0, 0, 0]):
        with pytest.raises(BundleError, match="1 for the first actions and 0 for the rest"):
            check_commitment(np.array(weights, np.float32), 2)
    with pytest.raises(
        BundleError, match="3 actions are committed, but this policy was trained for at most 2"
    ):
        check_commitment(np.array([1, 1, 1, 0], np.float32), 2)


def test_it_is_said_what_a_bundle_can_do():
    assert rtc_words("trained", 5, 30.0) == (
        "trained: a new chunk goes on from up to 5 committed actions (delays to 167 ms)"
    )
    assert "1 committed action (" in rtc_words("trained", 1, 30.0)
    assert "rtc_training_max_delay=N" in rtc_words("guided", None, 30.0)
    assert rtc_words("inpaint", None, 30.0).startswith("inpaint: a new chunk is filled in")
    assert rtc_words(None, None, 30.0).startswith("none")


# -- in the control loop --------------------------------------------------------------------------------------


def goes_on(seen, rtc=None):
    """A policy that does what it was trained for: the committed actions, then on from the last of them."""
    committed, weights = rtc[:2]
    n = int(weights.sum())
    start = committed[n - 1] if n else seen.state
    steps = np.arange(1, T + 1 - n, dtype=np.float32)[:, None] * 0.05
    return np.concatenate([committed[:n], start + steps])


def test_in_the_loop_chunks_follow_one_another_without_a_seam_and_late_ones_are_said():
    delays = [9, 3, 3, 2, 2, 7, 3]

    def late(request):
        return delays[request] if request < len(delays) else 3

    loop = ClosedLoop(
        goes_on, chunk_size=T, execution=Rtc(every=4), delay_ticks=late, servo_hz=30.0, trained_delay=5
    )
    loop.start()
    states = loop.run(2.0)
    counters = loop.loop.counters
    assert counters["chunks_overdue"] == 1
    assert [code for _, code, _ in loop.links.events].count("chunk_overdue") == 1
    wanted = np.array([s.wanted for s in states if s.wanted is not None and s.chunk_seq is not None])
    assert len({s.chunk_seq for s in states if s.chunk_seq is not None}) > 6
    steps = np.diff(wanted[5:], axis=0)
    np.testing.assert_allclose(steps, 0.05, atol=2e-3)


def test_what_guides_nothing_is_not_said_of_it() -> None:
    assert execution_words(Rtc()) == "rtc weights=linear"
    assert execution_words(Rtc(), trained_delay=4) == "rtc"

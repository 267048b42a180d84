"""Where one chunk takes over from another, blended: what is played, in which order, and how far it jumps."""

import numpy as np
import pytest

from edgevla.errors import UsageError
from edgevla.evaluation.seams import seams
from edgevla.execution import Async, Executor, Rtc, Sync, execution_from, judge_latency
from edgevla.execution.blend import blended
from edgevla.execution.strategies import check_chunk
from edgevla.robots.trials.closed_loop import ClosedLoop
from edgevla.types import ActionChunk

R = 4  # ticks per grid moment
T = 20


def make(execution, r=R, **more):
    return Executor(
        execution, ticks_per_step=r, chunk_size=T, n_action_steps=10, n_joints=2, fps=30.0, **more
    )


def level(observed, value, r=R, n=T):
    """A chunk that wants one posture all along."""
    return ActionChunk(np.full((n, 2), value, np.float32), tick=observed * r, ticks_per_step=r)


def taken(executor, chunk, tick, last_goal=None):
    executor.asked(tick, chunk.tick)
    receipt = executor.receive(chunk, tick, tick, last_goal)
    assert receipt.is_taken
    return receipt


def goals(executor, ticks):
    return np.array([executor.goal_at(tick).wanted[0] for tick in ticks])


@pytest.mark.parametrize("execution", [Async(every=1, blend=4), Rtc(every=1, blend=4)])
def test_a_seam_is_a_ramp_over_the_blended_actions(execution):
    executor = make(execution)
    taken(executor, level(0, 0.0), 0)
    before = goals(executor, range(4 * R, 5 * R))
    taken(executor, level(2, 10.0), 5 * R)  # 3 steps late
    played = np.concatenate([before, goals(executor, range(5 * R, 12 * R))])
    np.testing.assert_allclose(played[::R], [0, 2, 4, 6, 8, 10, 10, 10], atol=1e-5)
    assert np.diff(played)[R:].max() == pytest.approx(10 / 5 / R, abs=1e-5)  # without a blend: 10 in one tick


@pytest.mark.parametrize("late", [1, 2, 3])
def test_a_chunk_that_comes_between_two_moments_changes_nothing_that_has_begun(late):
    executor = make(Async(every=1, blend=4))
    taken(executor, level(0, 0.0), 0)
    taken(executor, level(2, 10.0), 5 * R + late)
    played = goals(executor, range(5 * R + late, 12 * R))
    np.testing.assert_array_equal(played[: R - late + 1], 0.0)
    assert np.diff(played).max() <= 10 / 5 / R + 1e-5


def test_a_blend_is_as_long_as_what_the_old_chunk_still_holds():
    executor = make(Async(every=1, blend=12))
    taken(executor, level(0, 0.0), 0)
    taken(executor, level(16, 10.0), 17 * R)  # the old one has its actions 17, 18 and 19 left
    np.testing.assert_allclose(
        goals(executor, range(16 * R, 22 * R, R))[1:], [2.5, 5, 7.5, 10, 10], atol=1e-5
    )


def test_nothing_is_blended_with_a_chunk_that_has_run_out():
    executor = make(Async(every=1, blend=12))
    taken(executor, level(0, 0.0), 0)
    taken(executor, level(19, 10.0), 20 * R)
    assert executor.goal_at(20 * R).wanted[0] == 10.0


def test_a_blend_begins_where_the_chunk_arrives_however_late_it_is():
    executor = make(Async(every=1, blend=2))
    taken(executor, level(0, 0.0), 0)
    receipt = taken(executor, level(1, 9.0), 8 * R)  # 7 steps late, 2 are blended
    assert receipt.n_skipped == 7
    np.testing.assert_allclose(goals(executor, range(8 * R, 11 * R, R)), [3, 6, 9], atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_chunks_that_agree_are_played_as_one_each_action_once_and_in_order(seed):
    """Every action is its own moment, so whatever is played twice, left out or mixed with a neighbour shows."""
    rng = np.random.default_rng(seed)
    r, blend = int(rng.integers(1, 5)), int(rng.integers(1, T + 1))
    executor = make(Async(every=1, blend=blend), r)
    observed, arrives, checked = 0, 0, 0
    for tick in range(60 * r):
        if tick == arrives:
            ramp = observed + np.arange(T, dtype=np.float32)
            taken(executor, ActionChunk(np.stack([ramp, -ramp], 1), observed * r, r), tick)
            observed = max(observed + 1, tick // r)
            arrives = max(tick + 1, observed * r + int(rng.integers(0, 8 * r)))
        goal = executor.goal_at(tick)
        if not goal.is_starved and goal.n_left > 0:
            np.testing.assert_allclose(goal.wanted, [tick / r, -tick / r], rtol=1e-5, atol=1e-5)
            checked += 1
    assert checked > 50 * r


@pytest.mark.parametrize("seed", range(20))
def test_a_goal_stays_between_what_two_chunks_want_and_never_goes_back(seed):
    rng = np.random.default_rng(seed)
    blend, delay = int(rng.integers(1, T + 1)), int(rng.integers(0, T - 1))
    executor = make(Async(every=1, blend=blend))
    taken(executor, level(0, -3.0), 0)
    taken(executor, level(1, 7.0), (1 + delay) * R + int(rng.integers(0, R)))
    overlap = min(blend, T - 1 - delay - 3)
    played = goals(executor, range((2 + delay) * R - R, 30 * R))
    assert (np.diff(played) >= -1e-5).all()
    assert (played >= -3 - 1e-5).all()
    assert (played <= 7 + 1e-5).all()
    assert (np.diff(played[R:]) <= 10 / max(1, overlap) / R + 1e-5).all()


def test_sync_goes_on_where_the_old_chunk_would_have_gone_on():
    executor = make(Sync(n_action_steps=5, blend=3))
    ramp = np.arange(T, dtype=np.float32)
    taken(executor, ActionChunk(np.stack([ramp, ramp], 1), 0, R), 0)
    assert executor.goal_at(7 * R).wanted[0] == 4.0  # waits behind its fifth action
    taken(executor, ActionChunk(np.full((T, 2), 50.0, np.float32), 7 * R, R), 9 * R)
    expected = [5 + 45 * 0.25, 6 + 44 * 0.5, 7 + 43 * 0.75, 50]
    np.testing.assert_allclose(goals(executor, range(9 * R, 13 * R, R)), expected, rtol=1e-5)


def test_a_gripper_does_at_once_what_the_new_chunk_wants():
    executor = make(Async(every=1, blend=4), is_gripper=[False, True])
    taken(executor, level(0, 0.0), 0)
    taken(executor, level(2, 10.0), 5 * R)
    np.testing.assert_allclose(executor.goal_at(5 * R).wanted, [2.0, 10.0], atol=1e-5)


def test_what_is_committed_is_what_will_be_played():
    executor = make(Rtc(every=1, blend=4), guidance_end=8)
    taken(executor, level(0, 0.0), 0)
    taken(executor, level(2, 10.0), 5 * R)
    committed, _, _ = executor.committed(6 * R, None)
    np.testing.assert_allclose(committed[:5, 0], goals(executor, range(6 * R, 11 * R, R)), atol=1e-5)


def test_after_a_pause_nothing_of_before_is_blended_in():
    executor = make(Async(every=1, blend=4))
    taken(executor, level(0, 0.0), 0)
    taken(executor, level(2, 10.0), 5 * R)
    assert executor.goal_at(6 * R).wanted[0] == pytest.approx(4.0)  # in the midst of a blend
    executor.reset()
    assert executor.goal_at(6 * R).wanted is None
    taken(executor, level(7, -8.0), 7 * R)
    np.testing.assert_array_equal(goals(executor, range(7 * R, 9 * R)), -8.0)


def test_a_damaged_chunk_or_one_of_another_arm_leaves_the_old_one_as_it_was():
    executor = make(Async(every=1, blend=4))
    taken(executor, level(0, 1.0), 0)
    other = ActionChunk(np.zeros((T, 3), np.float32), 2 * R, R)
    assert executor.receive(other, 1, 5 * R, None).reason == "damaged"
    damaged = ActionChunk(np.full((T, 2), np.nan, np.float32), 2 * R, R)
    assert executor.receive(damaged, 1, 5 * R, None).reason == "damaged"
    np.testing.assert_array_equal(goals(executor, range(5 * R, 9 * R)), 1.0)


def test_a_chunk_is_not_changed_by_being_blended():
    new = np.full((T, 2), 10.0, np.float32)
    blended(new, np.zeros((T, 2), np.float32), 5)
    np.testing.assert_array_equal(new, 10.0)


def test_where_a_blend_could_have_no_effect_it_is_refused():
    with pytest.raises(UsageError, match="--blend 4 has no effect on 'ensemble': it averages all chunks"):
        execution_from({"kind": "ensemble", "blend": 4})
    with pytest.raises(UsageError, match="'sync' executes all 20 actions of a chunk"):
        check_chunk(Sync(blend=4), T, T)
    check_chunk(Sync(blend=4), T, 10)
    with pytest.raises(UsageError, match="--blend 21 must be at most 20"):
        check_chunk(Async(blend=21), T, T)


def test_a_blend_that_is_given_up_for_a_delay_is_said():
    late = judge_latency(Async(blend=10), chunk_size=T, fps=30.0, latency_ms=2000)
    assert "running 'sync' instead, without --blend" in late.sentence
    assert "blend" not in judge_latency(Async(), chunk_size=T, fps=30.0, latency_ms=2000).sentence


# -- in the real control loop ------------------------------------------------------------------------------------------


def undecided(step=1.0):
    """A policy that wants two postures in turn, near each other: safety has nothing to clip."""
    asked = iter(range(10_000))

    def policy(observation, rtc=None):
        return np.full((30, 6), 20.0 + step * (next(asked) % 2), np.float32)

    return policy


def rollout(blend):
    loop = ClosedLoop(undecided(), chunk_size=30, execution=Async(every=12, blend=blend), delay_ticks=12)
    loop.start()
    loop.run(3.0)
    return loop


def jumps(states):
    return np.abs(np.diff([s.goal[:5] for s in states], axis=0)).max()


def test_the_arm_is_sent_no_jump_where_chunks_meet():
    is_body = [True] * 5 + [False]
    plain, mixed = (seams(rollout(blend).run(4.0), is_body)[0] for blend in (0, 8))
    assert len(plain) == len(mixed) > 5
    assert max(mixed) < 0.2 * min(plain)


@pytest.mark.parametrize("stop", ["pause", "emergency_stop"])
def test_an_arm_that_is_stopped_in_the_midst_of_a_blend_stays_there(stop):
    loop = rollout(8)
    for _ in range(200):  # until a chunk has just begun to fade in
        before, now = loop.links.states[-1].chunk_seq, loop.step()
        if before != now.chunk_seq:
            break
    loop.run(0.05)
    loop.command(stop)
    stopped = loop.run(1.0)
    assert len({s.mode for s in stopped}) == 1
    assert jumps(stopped[1:]) == 0
    if stop == "emergency_stop":
        loop.command("clear_stop")
    loop.command("resume")
    after = loop.run(2.0)
    assert jumps([stopped[-1], *after]) < 1.0
    assert after[-1].mode == "running"

"""Policies of future states (VLASH, arXiv 2512.01031): a chunk is made for where the arm will be, and begins there.

The toy policy here climbs from the state that it is told: action j = state + slope * (j + 1), every chunk with a slope
of its own. Where chunk and moment belong together, the way from one goal to the next is always the slope of the chunk in
force; one step too early or too late, and it is not.
"""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevla.bundle import load_bundle
from edgevla.errors import BundleError, UsageError
from edgevla.execution import Async, Ensemble, Executor, Rtc, Sync
from edgevla.launch.deployment import DeployOptions, chosen_execution
from edgevla.manifest import Manifest
from edgevla.robots.trials.closed_loop import ClosedLoop
from edgevla.seam_methods import seam_words
from edgevla.types import ActionChunk

T = 24


def slope(number):
    return 1.0 + number % 5


def climb(state, number):
    return (state + slope(number) * np.arange(1, T + 1, dtype=np.float32)[:, None]).astype(np.float32)


def make(execution=None, r=1, most=8, **more):
    return Executor(
        execution or Async(every=3),
        ticks_per_step=r,
        chunk_size=T,
        n_action_steps=T,
        n_joints=2,
        fps=30.0,
        future_offset=most,
        **more,
    )


class LockStep:
    """An executor and an arm that has reached a goal one grid moment after it was given."""

    def __init__(self, executor, delays):
        """delays: number of a request -> ticks until its chunk is heard; 0: before the next tick is decided."""
        self.executor, self.delays = executor, delays
        self.tick, self.n = 0, 0
        self.sent = np.zeros(2, np.float32)
        self.measured = self.sent
        self.coming, self.seen, self.taken = [], [], {}

    def step(self):
        """One tick; the chunk in force and its goal."""
        tick, r = self.tick, self.executor.ticks_per_step
        for due, number, chunk in list(self.coming):
            if due <= tick:
                self.coming.remove((due, number, chunk))
                self.taken[number] = self.executor.receive(chunk, number, tick, self.sent)
        if tick % r == 0:
            self.measured = self.sent if tick < r else self.seen[tick - r][1]
        goal = self.executor.goal_at(tick)
        self.sent = self.sent if goal.wanted is None else goal.wanted
        self.seen.append((goal.chunk_seq, self.sent))
        if self.executor.wants_chunk(tick):
            ahead, state = self.executor.state_for(tick, self.measured, self.sent)
            self.executor.asked(self.n, tick)
            chunk = ActionChunk(climb(state, self.n), tick + ahead * r, r, self.n, ahead)
            number, self.n = self.n, self.n + 1
            if self.delays(number):
                self.coming.append((tick + self.delays(number), number, chunk))
            else:
                self.taken[number] = self.executor.receive(chunk, number, tick, self.sent)
        self.tick += 1
        return self.seen[-1]

    def moments(self, n):
        """Chunk and goal of n further grid moments."""
        ticks = [self.step() for _ in range(n * self.executor.ticks_per_step)]
        return ticks[:: self.executor.ticks_per_step]


def check_climb(seen):
    """Every goal is one slope of its own chunk above the one before."""
    goals = np.array([goal[0] for _, goal in seen])
    expected = [slope(seq) for seq, _ in seen[1:]]
    np.testing.assert_allclose(np.diff(goals), expected, atol=1e-3 * max(1, abs(goals).max()))


@settings(max_examples=60, deadline=None)
@given(delay=st.integers(1, 12), r=st.integers(1, 3), every=st.integers(1, 6))
def test_every_chunk_begins_where_the_one_before_has_led(delay, r, every):
    """For any constant delay up to the longest trained one."""
    lock = LockStep(make(Async(every=every), r, most=12), lambda n: delay * r)
    lock.executor.expect_delay(delay)
    lock.moments(2 * delay + 2)
    seen = lock.moments(60)
    check_climb(seen)
    assert len({seq for seq, _ in seen}) > 2
    assert all(receipt.n_skipped == 0 for n, receipt in lock.taken.items() if n)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=40, max_size=40))
def test_jitter_below_the_worst_of_late_leaves_no_seam_either(delays):
    """The worst delay is expected throughout, so each chunk is there before its moment; the arm waits for that."""
    lock = LockStep(make(Async(every=2), most=8), lambda n: 8 if n % 4 == 0 else delays[n % 40])
    lock.executor.expect_delay(8)
    lock.moments(20)
    check_climb(lock.moments(80))


def test_one_step_beside_it_would_be_seen():
    """The tests above can fail: the same run with chunks that stand a step later than their states."""
    lock = LockStep(make(most=6), lambda n: 4)
    lock.executor.expect_delay(4)
    receive = lock.executor.receive
    lock.executor.receive = lambda c, *rest: receive(
        ActionChunk(c.actions, c.tick + 1, 1, c.seq, c.ahead + 1), *rest
    )
    lock.moments(12)
    with pytest.raises(AssertionError):
        check_climb(lock.moments(40))


def test_a_delay_beyond_what_was_trained_skips_the_rest_as_ever():
    lock = LockStep(make(Async(every=1), most=2), lambda n: 5)
    lock.executor.expect_delay(5)
    lock.moments(30)
    last = max(lock.taken)
    assert (lock.taken[last].n_skipped, lock.taken[last].delay_steps) == (3, 5)
    assert lock.executor.state_for(30, lock.measured, lock.sent)[0] == 2


@pytest.mark.parametrize(
    ("execution", "delay"), [(Async(every=3), 0), (Sync(6), 4), (Ensemble(every=2), 4), (Rtc(every=3), 4)]
)
def test_without_a_delay_and_wherever_else_no_future_is_told_it_is_the_plain_policy(execution, delay):
    """To the bit."""
    runs = []
    for most in (8, 0):
        lock = LockStep(make(execution, most=most), lambda n: delay)
        runs.append(np.array([goal for _, goal in lock.moments(40)]))
    np.testing.assert_array_equal(*runs)
    assert lock.n > 3


def test_where_the_arm_waits_or_has_nothing_to_do_the_state_is_the_measured_one():
    measured, sent = np.zeros(2, np.float32), np.ones(2, np.float32)
    for execution in (Sync(6), Rtc(every=3), Ensemble()):
        executor = make(execution)
        executor.expect_delay(4)
        executor.asked(0, 0)
        executor.receive(ActionChunk(climb(sent, 0), 0, 1, 0), 0, 0, None)
        assert executor.state_for(3, measured, sent) == (0, measured)
    executor = make()
    executor.expect_delay(4)
    assert executor.state_for(0, measured, sent)[0] == 0, "there is no chunk to go on with"
    executor.asked(0, 0)
    executor.receive(ActionChunk(climb(sent, 0), 0, 1, 0), 0, 0, None)
    assert executor.state_for(T - 2, measured, sent)[0] == 2, "no farther than there are actions"
    assert executor.state_for(T + 1, measured, sent)[0] == 0
    executor.reset()
    assert executor.state_for(3, measured, sent) == (0, measured)


def test_the_next_goal_is_the_one_that_was_really_sent():
    executor = make(most=1)
    executor.expect_delay(1)
    executor.asked(0, 0)
    executor.receive(ActionChunk(climb(np.zeros(2), 0), 0, 1, 0), 0, 0, None)
    limited = np.array([0.25, 0.5], np.float32)
    ahead, state = executor.state_for(3, np.zeros(2, np.float32), limited)
    assert ahead == 1
    np.testing.assert_array_equal(state, limited)


def test_a_chunk_before_its_time_leaves_the_old_one_in_force():
    executor = make(Async(every=1), most=6)
    executor.expect_delay(6)
    executor.asked(0, 0)
    executor.receive(ActionChunk(climb(np.zeros(2), 0), 0, 1, 0), 0, 0, None)
    ahead, state = executor.state_for(4, np.zeros(2, np.float32), None)
    executor.asked(1, 4)
    receipt = executor.receive(ActionChunk(climb(state, 1), 4 + ahead, 1, 1, ahead), 1, 6, None)
    assert (receipt.is_taken, receipt.grid_index, receipt.delay_steps, receipt.n_skipped) == (True, 10, 2, 0)
    goals = [executor.goal_at(tick) for tick in range(6, 12)]
    assert [g.chunk_seq for g in goals] == [0, 0, 0, 0, 1, 1]
    assert [float(g.wanted[0]) for g in goals] == [7, 8, 9, 10, 12, 14]
    assert [g.action_index for g in goals] == [6, 7, 8, 9, 0, 1]
    executor.switch(Async(every=2))
    assert executor.goal_at(8).chunk_seq == 0, "another strategy does not take the old one away"


def test_a_blend_begins_where_the_chunk_does():
    executor = make(Async(every=1, blend=3), most=4)
    executor.expect_delay(4)
    executor.asked(0, 0)
    executor.receive(ActionChunk(np.zeros((T, 2), np.float32), 0, 1, 0), 0, 0, None)
    ahead, _ = executor.state_for(4, np.zeros(2, np.float32), None)
    executor.asked(1, 4)
    executor.receive(ActionChunk(np.full((T, 2), 8, np.float32), 4 + ahead, 1, 1, ahead), 1, 6, None)
    assert [float(executor.goal_at(t).wanted[0]) for t in range(6, 12)] == [0, 0, 2, 4, 6, 8]


def test_what_is_chosen_among_is_held_against_the_same_moments():
    """`select`: row 0 of what is committed is the moment of action 0."""
    executor = make(Async(every=1, select=4), most=4)
    executor.expect_delay(4)
    executor.asked(0, 0)
    executor.receive(ActionChunk(climb(np.zeros(2), 0), 0, 1, 0), 0, 0, None)
    assert executor.state_for(5, np.zeros(2, np.float32), None)[0] == 4
    committed, weights, _ = executor.committed(5, np.full(2, 99, np.float32))
    np.testing.assert_array_equal(committed[:3, 0], [10, 11, 12])
    assert weights[0] > weights[1] > 0


# -- through the real loop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [1, 3, 5])
@pytest.mark.parametrize("servo_hz", [30.0, 90.0])
def test_in_the_loop_the_right_action_is_played_at_the_right_tick(delay, servo_hz):
    """Driver, packets and codec between: what is wanted climbs by the slope of the chunk in force."""
    r = round(servo_hz / 30)
    numbers = []

    def gentle(seen):
        numbers.append(len(numbers))
        return seen.state + 0.02 * slope(numbers[-1]) * np.arange(1, T + 1, dtype=np.float32)[:, None]

    loop = ClosedLoop(
        gentle,
        chunk_size=T,
        execution=Async(every=7),
        delay_ticks=delay * r,
        servo_hz=servo_hz,
        future_offset=8,
    )
    loop.start()
    states = [s for s in loop.run(2.5) if s.tick % r == 0 and s.chunk_seq is not None]
    by_chunk = {seq: i for i, seq in enumerate(dict.fromkeys(s.chunk_seq for s in states))}
    later = [s for s in states if by_chunk[s.chunk_seq] >= 2]
    wanted = np.array([s.wanted[0] for s in later])
    expected = [0.02 * slope(by_chunk[s.chunk_seq]) for s in later[1:]]
    assert len(by_chunk) > 5
    np.testing.assert_allclose(np.diff(wanted), expected, atol=2e-3)


# -- what a bundle says ---------------------------------------------------------------------------------------


def of_future(bundle, **changes):
    data = json.loads((bundle / "manifest.json").read_text())
    kinds = {"default": {"kind": "async"}, "allowed": ["sync", "async"], "ensemble_decay": 0.01}
    return {**data, "future_offset": 4, "execution": kinds, **changes}


def test_a_bundle_says_it_and_refuses_what_makes_no_sense_of_it(bundle):
    m = Manifest.from_json(of_future(bundle))
    assert m.future_offset == 4
    assert Manifest.from_json(m.to_json()) == m
    assert "future state (--execution async)" in seam_words(m)
    assert "guided rtc (its chunks begin where the one before leads to instead)" in seam_words(m)
    assert chosen_execution(m, DeployOptions("so101")) == Async()
    assert chosen_execution(m, DeployOptions("so101", execution={"kind": "async", "blend": 2})).blend == 2
    for kind in ("ensemble", "rtc"):
        with pytest.raises(UsageError, match="its chunks begin where the one before leads to"):
            chosen_execution(m, DeployOptions("so101", execution={"kind": kind}))
    plain = load_bundle(bundle).manifest
    assert plain.future_offset == 0
    assert "future_offset" not in plain.to_json()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"future_offset": 1000}, "within a chunk"),
        ({"future_offset": -1}, "within a chunk"),
        ({"n_obs_steps": 2}, "looks at 2 moments"),
        (
            {
                "execution": {
                    "default": {"kind": "sync"},
                    "allowed": ["sync", "ensemble"],
                    "ensemble_decay": 0.01,
                }
            },
            "execution 'ensemble' is allowed, but",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(bundle, changes, says):
    with pytest.raises(BundleError, match=says):
        Manifest.from_json(of_future(bundle, **changes))


def test_goals_in_other_units_are_no_states(bundle):
    data = of_future(bundle)
    data["features"]["observation.state"]["units"] = ["rad"] * 6
    with pytest.raises(BundleError, match="are not of one kind"):
        Manifest.from_json(data)

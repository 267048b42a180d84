"""A plan is what `start` said, checked; and under way only the chunks of its own grid count."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from edgevla.arguments import Start
from edgevla.clock import NS_PER_MS, NS_PER_S, Tick
from edgevla.errors import ConfigError
from edgevla.execution import Async, Sync
from edgevla.robots.rollout import Rollout, led, plan_from
from edgevla.types import ActionChunk

D = 2
START = Start(
    fps=30.0, chunk_size=5, n_action_steps=4, execution=Async(), allowed=("sync", "async"), task="go", n_steps=3,
    guidance_end=7, max_guidance=9.0, trained_speed=None, trained_range=None, latency_ms=0.0, max_hz=None,
)  # fmt: skip


def plan(servo_hz=90.0, **changes):
    return plan_from(replace(START, **changes), servo_hz, D)


def test_a_plan_says_what_start_said():
    made = plan(trained_speed=(1.0, 2.0), trained_range=((0.0, 1.0), (2.0, 3.0)), latency_ms=12.5)
    assert (made.fps, made.chunk_size, made.n_action_steps, made.execution) == (30.0, 5, 4, Async())
    assert (made.allowed, made.task, made.n_steps) == (("sync", "async"), "go", 3)
    assert (made.guidance_end, made.max_guidance, made.latency_ms) == (7, 9.0, 12.5)
    np.testing.assert_array_equal(made.trained_speed, [1, 2])
    np.testing.assert_array_equal(made.trained_range, [[0, 1], [2, 3]])
    assert made.trained_speed.dtype == made.trained_range.dtype == np.float32
    assert (plan().trained_speed, plan().trained_range) == (None, None)


@pytest.mark.parametrize(
    ("servo_hz", "changes", "ticks"),
    [
        (90.0, {}, 3),
        (100.0, {}, 3),
        (89.9, {}, 2),
        (30.0, {}, 1),
        (100.0, {"max_hz": 60.0}, 2),
        (60.0, {"max_hz": 100.0}, 2),
        (90.0, {"max_hz": 30.0}, 1),
        (3 * (1 / 3) * 0.3, {"fps": 0.1}, 3),  # 2.9999... in floating point
    ],
)
def test_the_loop_runs_at_the_largest_whole_multiple_that_the_buses_carry(servo_hz, changes, ticks):
    assert plan(servo_hz, **changes).ticks_per_step == ticks


def test_the_period_is_a_tick_and_the_step_a_whole_number_of_them():
    made = plan()
    assert made.period_ns == round(NS_PER_S / 90)
    assert made.step_ns == 3 * made.period_ns


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fps": 0.0}, "runs at 0 Hz"),
        ({"fps": -1.0}, "runs at -1 Hz"),
        ({"fps": 90.1}, "carry 90 Hz at most"),
        ({"max_hz": 29.9}, "--servo-hz 29.9 is slower"),
        ({"n_action_steps": 0}, "n_action_steps 0 is not within the chunk of 5"),
        ({"n_action_steps": 6}, "n_action_steps 6"),
        ({"trained_speed": (1.0,)}, r"trained_speed has the shape \(1,\); this robot has 2 joints"),
        ({"trained_range": ((1.0, 2.0),)}, "trained_range has the shape"),
    ],
)
def test_what_this_robot_cannot_do_is_refused_with_the_value(changes, words):
    with pytest.raises(ConfigError, match=words):
        plan(**changes)


@pytest.mark.parametrize(
    "changes", [{"fps": 90.0}, {"n_action_steps": 1}, {"n_action_steps": 5}, {"fps": 0.001}]
)
def test_the_bounds_are_allowed(changes):
    plan(**changes)


@pytest.mark.parametrize(("latency_ms", "steps"), [(0.0, 0), (1.0, 1), (33.0, 1), (34.0, 2), (1000.0, 30)])
def test_the_delay_to_expect_is_the_measured_one_in_whole_steps(latency_ms, steps):
    assert Rollout(plan(latency_ms=latency_ms), [False] * D).executor.delay_steps == steps


def test_the_executor_is_the_plans():
    executor = Rollout(plan(), [False] * D).executor
    assert (executor.execution, executor.ticks_per_step, executor.chunk_size) == (Async(), 3, 5)
    assert (executor.n_joints, executor.fps, executor._guidance, executor._n_action_steps) == (
        D,
        30.0,
        (7, 9.0),
        4,
    )


class Course:
    """A rollout on its grid of 1/90 s."""

    def __init__(self, first_request=0, **changes):
        self.rollout = Rollout(plan(**changes), [False] * D, first_request)
        self.period_ns = self.rollout.plan.period_ns

    def tick(self, number):
        return Tick(number, NS_PER_S + number * self.period_ns, 0)

    def ask(self, number):
        tick = self.tick(number)
        deadline = self.rollout.deadline_ns(tick.deadline_ns)
        self.rollout.has_asked(tick, deadline)
        return self.rollout.next_request - 1

    def answer(self, request, number, grid=0, rows=5, n_valid=None, seq=11, last=None, ahead=0):
        actions = np.arange(rows, dtype=np.float32)[:, None] * np.ones(D, np.float32)
        body = SimpleNamespace(
            request_id=request, grid_index=grid, n_valid=rows if n_valid is None else n_valid, ahead=ahead
        )
        message = SimpleNamespace(body=body, payloads=[actions], seq=seq)
        return self.rollout.take(message, self.tick(number), last)


def test_a_chunk_is_anchored_at_its_grid_moment_and_executed():
    course = Course(first_request=40)
    request = course.ask(0)
    assert course.rollout.answered_ns == 0
    receipt = course.answer(request, 3)
    assert (receipt.reason, receipt.grid_index, receipt.n_skipped) == ("taken", 0, 1)
    assert course.rollout.answered_ns == course.tick(3).deadline_ns
    goal, silent_ns = course.rollout.goal_at(course.tick(6))
    assert (goal.wanted[0], goal.chunk_seq, silent_ns) == (2.0, 40, 0), (
        "by its request, as its picture is kept"
    )


def test_a_chunk_of_a_later_moment_begins_there():
    course = Course()
    course.answer(course.ask(6), 6, grid=2)
    assert course.rollout.goal_at(course.tick(9))[0].wanted[0] == 1.0


def test_a_chunk_that_looked_ahead_is_as_late_as_its_request_is_old():
    course = Course()
    receipt = course.answer(course.ask(0), 6, grid=3, ahead=3)
    assert (receipt.reason, receipt.grid_index, receipt.n_skipped) == ("taken", 3, 0)
    assert receipt.delay_steps == 2, "asked at 0, there before moment 2"


def test_how_far_ahead_a_policy_may_be_told_of_is_the_executors():
    made = plan(future_offset=2, latency_ms=100.0)
    assert (made.future_offset, plan().future_offset) == (2, 0)
    executor, there = made.executor([False] * D), np.zeros(D, np.float32)
    executor.asked(0, 0)
    executor.receive(ActionChunk(np.ones((5, D), np.float32), 0, 3), 0, 0, None)
    assert executor.state_for(3, there, None)[0] == 2
    assert led(made, 10.0).future_offset == 0, "a person is asked where the arm is"


def test_only_the_valid_rows_are_executed():
    course = Course()
    course.answer(course.ask(0), 0, n_valid=2)
    goal, _ = course.rollout.goal_at(course.tick(6))
    assert goal.is_starved
    assert goal.wanted[0] == 1.0


def test_a_chunk_of_another_grid_is_nobodys():
    course = Course(first_request=5)
    assert course.rollout.next_request == 5
    assert course.answer(4, 0) is None
    assert course.rollout.answered_ns == 0
    old = course.ask(0)
    course.answer(old, 0)
    course.rollout.restart()
    assert course.rollout.answered_ns == 0
    assert course.answer(old, 3) is None
    assert course.answer(course.ask(3), 3).is_taken


def test_a_sync_chunk_leads_in_from_the_last_goal():
    course = Course(execution=Sync())
    course.answer(course.ask(0), 1, last=np.full(D, -9.0, np.float32))
    goal, _ = course.rollout.goal_at(course.tick(1))
    assert goal.wanted[0] == pytest.approx(-6.0)


def test_a_request_is_given_a_second_or_four_times_what_an_inference_takes():
    assert Course().rollout.deadline_ns(100) == 100 + NS_PER_S
    assert Course(latency_ms=250.0).rollout.deadline_ns(100) == 100 + NS_PER_S
    assert Course(latency_ms=300.0).rollout.deadline_ns(100) == 100 + 1200 * NS_PER_MS


def test_how_long_there_are_still_actions_is_told_in_time():
    course = Course()
    assert course.rollout.buffered_ns(course.tick(0)) == 0
    course.answer(course.ask(0), 0)
    left = [course.rollout.buffered_ns(course.tick(number)) for number in (0, 3, 12, 15, 30)]
    assert left == [n * course.rollout.plan.step_ns for n in (5, 4, 1, 0, 0)]


def test_a_request_without_an_answer_is_given_up_after_its_deadline_and_asked_again():
    course = Course()
    course.ask(0)
    due = course.rollout.deadline_ns(course.tick(0).deadline_ns)
    assert not course.rollout.executor.wants_chunk(3)
    assert course.rollout.give_up_late_requests(due) == 0
    assert course.rollout.give_up_late_requests(due + 1) == 1
    assert course.rollout.executor.wants_chunk(3)
    assert course.rollout.give_up_late_requests(due + 1) == 0


def test_an_answered_request_is_not_given_up():
    course = Course()
    course.answer(course.ask(0), 3)
    assert course.rollout.give_up_late_requests(1 << 60) == 0


def test_restart_forgets_requests_and_chunks():
    course = Course()
    course.answer(course.ask(0), 0)
    course.ask(30)
    course.rollout.restart()
    assert course.rollout.give_up_late_requests(1 << 60) == 0
    assert course.rollout.goal_at(course.tick(0))[0].wanted is None


def test_before_the_first_chunk_there_is_no_goal_and_no_silence():
    course = Course()
    assert not course.rollout.is_starved
    goal, silent_ns = course.rollout.goal_at(course.tick(0))
    assert (goal.wanted, silent_ns, course.rollout.is_starved) == (None, 0, True)
    course.answer(course.ask(0), 900, grid=300)
    goal, silent_ns = course.rollout.goal_at(course.tick(900))
    assert (goal.wanted[0], silent_ns, course.rollout.is_starved) == (0.0, 0, False)


def starved(course, first=15):
    """A chunk of five steps was executed until it was used up, at tick `first`."""
    course.answer(course.ask(0), 0)
    course.rollout.goal_at(course.tick(0))
    goal, silent_ns = course.rollout.goal_at(course.tick(first))
    assert silent_ns == 0
    return goal


@pytest.mark.parametrize(
    ("execution", "latency_ms", "patience_ticks"),
    [(Async(), 0.0, 18), (Async(), 900.0, 18), (Sync(), 0.0, 45), (Sync(), 200.0, 72)],
)
def test_a_source_that_was_silent_for_longer_than_its_patience_is_told(execution, latency_ms, patience_ticks):
    for extra, is_told in ((0, False), (1, True)):
        course = Course(execution=execution, latency_ms=latency_ms)
        starved(course)
        back = 15 + patience_ticks + extra
        course.answer(course.ask(back // 3 * 3), back, grid=back // 3, last=np.zeros(D, np.float32))
        _, silent_ns = course.rollout.goal_at(course.tick(back))
        expected = (patience_ticks + extra) * course.period_ns
        assert silent_ns == (expected if is_told else 0)
        assert not course.rollout.is_starved
        assert course.rollout.goal_at(course.tick(back + 1))[1] == 0, "once"


@pytest.mark.parametrize(("ticks", "is_told"), [(20, False), (21, True)])
def test_exactly_its_patience_is_no_silence(ticks, is_told):
    course = Course()
    course.rollout = Rollout(plan(100.0, fps=50.0), [False] * D)
    course.period_ns = course.rollout.plan.period_ns
    assert course.period_ns == 10 * NS_PER_MS
    assert course.rollout.next_request == 0
    starved(course, first=10)
    back = 10 + ticks
    course.answer(course.ask(back // 2 * 2), back, grid=back // 2)
    assert (course.rollout.goal_at(course.tick(back))[1] > 0) is is_told


def test_silence_counts_from_its_first_tick():
    course = Course()
    starved(course)
    course.rollout.goal_at(course.tick(60))
    course.answer(course.ask(90), 90, grid=30)
    assert course.rollout.goal_at(course.tick(90))[1] == 75 * course.period_ns


def test_an_arm_that_is_held_has_no_goal_whatever_the_chunks_say():
    course = Course()
    course.answer(course.ask(0), 0)
    goal, _ = course.rollout.goal_at(course.tick(0), is_held=True)
    assert goal.wanted is None
    assert course.rollout.is_starved
    assert course.rollout.goal_at(course.tick(3))[0].wanted[0] == 1.0


def test_whoever_goes_elsewhere_forgets_its_silence():
    course = Course()
    starved(course)
    course.rollout.forget()
    assert not course.rollout.is_starved
    course.answer(course.ask(90), 90, grid=30)
    assert course.rollout.goal_at(course.tick(90))[1] == 0


def test_a_leader_is_followed_on_the_policy_s_grid_within_the_profile_s_caps_alone():
    made = plan(
        trained_speed=(1.0, 2.0),
        trained_range=((0.0, 1.0), (2.0, 3.0)),
        trained_delay=2,
        most_drawn=8,
        leader_ms=4.0,
    )
    assert made.leader_ms == 4.0
    assert plan().leader_ms is None
    hand = led(made, 4.0)
    assert (hand.fps, hand.period_ns, hand.ticks_per_step, hand.task) == (30.0, made.period_ns, 3, "go")
    assert (hand.trained_speed, hand.trained_range, hand.trained_delay) == (None, None, None)
    assert (hand.execution, hand.allowed, hand.n_action_steps) == (Async(every=1), ("async",), 1)
    assert (hand.latency_ms, hand.most_drawn) == (4.0, 1)
    assert hand.chunk_size == 15, "half a second"
    assert led(replace(made, fps=1.0), 4.0).chunk_size == 2


def test_a_rollout_counts_on_where_another_one_has_counted_to():
    made = Rollout(plan(), [False] * D, 3)
    made.restart(8)
    assert (made._first_request, made.next_request) == (8, 8)
    made.restart(5)
    assert (made._first_request, made.next_request) == (8, 8)

"""The table's hands, one by one: what each deed does to an arm that writes down what is done to it."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from edgevla.arguments import SetTask, Start
from edgevla.clock import NS_PER_S, VirtualClock
from edgevla.errors import BusError
from edgevla.execution import Async, Rtc, Sync
from edgevla.robots.commands import COMMANDS, FROZEN, TERMINATED_GRACE_NS, Commands
from edgevla.robots.links import PARKED, RELEASED, RUNNING, STOPPING
from edgevla.robots.modes import Event, State
from edgevla.robots.profile import load_profile
from edgevla.robots.telling import Teller

PROFILE = load_profile("so101")
D = len(PROFILE.joints)
START = Start(
    fps=30.0, chunk_size=20, n_action_steps=20, execution=Sync(), allowed=("sync", "async", "rtc"), task="go",
    n_steps=None, guidance_end=10, max_guidance=10.0, trained_speed=None,
    trained_range=((-1.0,) * D, (1.0,) * D), latency_ms=0.0, max_hz=None,
)  # fmt: skip
T0 = 50 * NS_PER_S


class Arm:
    """A `Body` without an arm."""

    def __init__(self, profile=PROFILE):
        self.profile, self.robot = profile, SimpleNamespace(max_hz=60.0, is_cut_off=False)
        self.did = []
        self.is_torque_on = self.is_reduced = False
        self.last_goal = np.zeros(D, np.float32)
        self.fails = self.at_goal = False
        self.unreached, self.outside, self.unreachable = [], [], ""

    def energise(self, plan):
        self.did.append("energise")
        if self.fails:
            self.is_torque_on = False
            raise BusError("a pair disagrees")
        self.is_torque_on, self.is_reduced = True, False

    def switch_off(self):
        self.did.append("off")
        self.is_torque_on = False
        return self.unreached

    lost = switch_off

    def limit_torque(self, share):
        self.did.append(share)
        self.is_reduced = share < 1

    def outside_training(self, seen):
        assert seen.shape == (2, D)
        return self.outside

    def unreachable_rest(self):
        return self.unreachable

    def approach(self):
        self.did.append("approach")

    def freeze(self):
        self.did.append("freeze")

    def rest(self):
        return np.full(D, 5.0, np.float32)

    def is_at_goal(self):
        return self.at_goal

    def ticks(self):
        return {}


class Loop:
    def __init__(self, profile=PROFILE):
        self.clock, self.events, self.leases = VirtualClock(T0), [], []
        self.arm = Arm(profile)
        links = SimpleNamespace(
            event=lambda severity, code, text, **more: self.events.append((severity, code, text)),
            lease=self.leases.append,
        )
        self.teller = Teller(links, self.clock, Counter())
        self.commands = Commands(self.arm, links, self.clock, self.teller)

    @property
    def state(self):
        return self.commands.machine.state

    def obey(self, action, arguments=None):
        return self.commands.obey(action, arguments)

    def start(self, **changes):
        assert self.obey("start", replace(START, **changes)) == (True, "")
        self.arm.did.clear()
        self.events.clear()
        self.leases.clear()
        return self

    def did(self):
        done, self.arm.did = self.arm.did, []
        return done

    def after(self, seconds):
        self.clock.advance(round(seconds * NS_PER_S))
        return self

    def press(self):
        self.after(2)
        return self.commands.emergency_stop()

    def told(self, code):
        return [(severity, text) for severity, found, text in self.events if found == code]

    def finish(self, limit=4000):
        for _ in range(limit):
            if self.commands.ending is None:
                return self
            self.after(0.01)
            self.commands.step_ending()
        raise AssertionError("it never ends")


def test_a_start_says_so_to_the_guardian_before_it_energises():
    loop = Loop()
    order = []
    loop.commands._links.lease = lambda byte: order.append((byte, list(loop.arm.did)))
    loop.teller.remark("usb", "a slow adapter")
    loop.arm.outside, loop.arm.unreachable = ["elbow is at 200"], "the rest pose lies outside"
    assert loop.obey("start", START) == (True, "")
    assert order[0] == (STOPPING, [])
    assert loop.arm.did == ["energise", "approach"]
    assert loop.commands.wants_new_grid
    assert [code for _, code, _ in loop.events] == [
        "outside_training", "rest_unreachable", "usb", "mode_running",
    ]  # fmt: skip
    assert loop.commands.plan.task == loop.commands.rollout.task == "go"
    assert loop.commands.lease == RUNNING
    assert loop.commands.rollout.next_request == 0
    loop.commands.begin_grid()
    assert not loop.commands.wants_new_grid


def test_before_the_first_start_there_is_no_plan_and_nothing_is_held():
    commands = Loop().commands
    assert (commands.plan, commands.rollout, commands.ending) == (None, None, None)
    assert (commands.lease, commands.is_held, commands.is_over, commands.wants_new_grid) == (
        RELEASED, False, False, False,
    )  # fmt: skip


def test_a_start_makes_everything_news_again():
    loop = Loop().start()
    loop.teller.once("stop", "jump", "it jumped")
    loop.obey("stop")
    loop.arm.at_goal = True
    loop.arm.last_goal = loop.arm.rest()
    loop.finish()
    loop.start()
    loop.teller.once("stop", "jump", "it jumped")
    assert loop.told("jump") == [("stop", "it jumped")]


def test_a_start_that_fails_leaves_it_where_it_was():
    loop = Loop()
    loop.arm.fails = True
    assert loop.obey("start", START) == (False, "a pair disagrees")
    assert (loop.state, loop.commands.rollout) == (State.IDLE, None)


def test_a_parked_arm_whose_start_fails_has_stopped():
    loop = parked()
    loop.arm.fails = True
    assert loop.obey("start", START) == (False, "a pair disagrees")
    assert loop.state is State.STOPPED


def test_a_start_that_this_robot_cannot_do_touches_nothing():
    loop = Loop()
    is_accepted, reason = loop.obey("start", replace(START, fps=61.0))
    assert not is_accepted
    assert "60 Hz" in reason
    assert (loop.arm.did, loop.leases) == ([], [])


def test_requests_count_on_from_one_start_to_the_next():
    loop = Loop().start()
    loop.commands.rollout._next_request = 7
    loop.obey("stop")
    loop.arm.last_goal = loop.arm.rest()
    loop.arm.at_goal = True
    loop.finish().start()
    assert loop.commands.rollout.next_request == 7


def parked():
    loop = Loop(replace(PROFILE, escalation=replace(PROFILE.escalation, release=False))).start()
    loop.obey("stop")
    loop.arm.last_goal = loop.arm.rest()
    loop.arm.at_goal = True
    loop.finish()
    assert loop.state is State.PARKED
    return loop


def test_a_parked_arm_is_left_at_its_share_and_said_to_be_so():
    loop = parked()
    assert loop.did() == [0.4]
    assert loop.commands.lease == PARKED
    assert loop.leases[-1] == PARKED
    assert not loop.commands.is_held
    assert "torque stays on, at 40%" in loop.told("released")[0][1]


@pytest.mark.parametrize("action", ["", "dance"])
def test_a_word_that_nobody_knows_is_refused(action):
    assert Loop().obey(action) == (False, f"the robot node does not know '{action}'")


def test_a_command_has_its_reason():
    loop = Loop().start()
    loop.obey("pause")
    assert loop.commands.machine.reason == "asked to"
    loop.obey("resume")
    assert loop.commands.machine.reason == ""
    assert set(COMMANDS) >= {"start", "stop", "clear_stop", "home"}


def chunk_is_there(loop):
    """Marks the plan under way, so that one that is forgotten shows."""
    loop.commands.rollout._has_flowed = True


@pytest.mark.parametrize(
    ("action", "state"), [("pause", State.PAUSED), ("home", State.HOMING), ("stop", State.ENDING)]
)
def test_who_leaves_the_plan_forgets_its_chunks(action, state):
    loop = Loop().start()
    chunk_is_there(loop)
    assert loop.obey(action) == (True, "")
    assert loop.state is state
    assert not loop.commands.rollout._has_flowed
    assert loop.did() == []


@pytest.mark.parametrize(("first", "action"), [(None, "reset"), ("pause", "resume")])
def test_a_new_beginning_is_a_new_grid_and_a_slow_approach(first, action):
    loop = Loop().start()
    loop.commands.begin_grid()
    if first:
        loop.obey(first)
    loop.commands.rollout._next_request = 3
    loop.commands.rollout._pending[2] = 1
    assert loop.obey(action) == (True, "")
    assert loop.did() == ["approach"]
    assert loop.commands.wants_new_grid
    assert (loop.commands.rollout._first_request, loop.commands.rollout._pending) == (3, {})


def test_a_task_is_changed_and_told():
    loop = Loop().start()
    loop.obey("set_task", SetTask("push"))
    assert loop.commands.rollout.task == "push"
    assert loop.told("task") == [("info", "task: push")]


def test_an_execution_is_changed_if_the_bundle_allows_and_the_policy_is_fast_enough():
    loop = Loop().start()
    assert loop.obey("set_execution", Async()) == (True, "")
    assert isinstance(loop.commands.rollout.executor.execution, Async)
    assert loop.told("execution") == [("info", "execution: async")]
    loop = Loop().start(allowed=("sync",))
    assert loop.obey("set_execution", Async()) == (False, "this bundle allows sync, not async")
    loop = Loop().start()
    is_accepted, reason = loop.obey("set_execution", Rtc(guidance_end=99))
    assert not is_accepted
    assert "99" in reason


@pytest.mark.parametrize("measured", ["while warming up", "while running"])
def test_a_policy_that_is_too_slow_is_refused_and_a_slow_one_is_warned_of(measured):
    def started(latency_ms):
        if measured == "while warming up":
            return Loop().start(latency_ms=latency_ms)
        loop = Loop().start()
        loop.commands.rollout.executor.expect_delay(round(latency_ms * 30 / 1000))
        return loop

    loop = started(700.0)
    is_accepted, reason = loop.obey("set_execution", Async())
    assert not is_accepted
    assert len(reason.split()) > 5
    assert isinstance(loop.commands.rollout.executor.execution, Sync)
    loop = started(400.0)
    assert loop.obey("set_execution", Async()) == (True, "")
    assert [severity for severity, _ in loop.told("latency")] == ["warning"]


# -- emergency -----------------------------------------------------------------------------------------------


def test_the_first_press_freezes_and_the_second_after_a_pause_lets_go():
    loop = Loop().start()
    chunk_is_there(loop)
    assert loop.press() == ""
    assert (loop.state, loop.did()) == (State.EMERGENCY, ["freeze"])
    assert loop.commands.machine.reason == FROZEN
    assert not loop.commands.rollout._has_flowed
    assert loop.commands.lease == STOPPING
    loop.after(0.1).commands.emergency_stop()
    assert (loop.state, loop.commands.n_emergencies) == (State.EMERGENCY, 1), "a key held down"
    loop.press()
    assert (loop.state, loop.commands.n_emergencies) == (State.ENDING, 2)
    assert loop.commands.ending.kind == "release"
    assert loop.commands.machine.reason == "released by the second emergency stop"
    loop.commands.step_ending()
    assert (loop.did(), loop.state, loop.commands.lease) == (["off"], State.STOPPED, RELEASED)


def test_a_press_by_command_counts_as_one_by_signal():
    loop = Loop().start()
    assert loop.obey("emergency_stop") == (True, "")
    loop.commands.hear("emergency_stop")
    assert loop.commands.n_emergencies == 1
    loop.after(2).commands.hear("emergency_stop")
    assert loop.commands.n_emergencies == 2


def test_a_press_without_torque_latches_and_the_second_has_nothing_to_let_go():
    loop = Loop()
    loop.press()
    assert loop.state is State.EMERGENCY
    loop.press()
    assert loop.state is State.STOPPED
    assert loop.commands.ending is None


@pytest.mark.parametrize(
    ("torque", "reduced", "state"),
    [(False, False, State.IDLE), (True, False, State.PAUSED), (True, True, State.PARKED)],
)
def test_a_cleared_stop_goes_back_to_where_the_arm_is(torque, reduced, state):
    loop = Loop().start()
    loop.press()
    loop.arm.is_torque_on, loop.arm.is_reduced = torque, reduced
    assert loop.obey("clear_stop") == (True, "")
    assert loop.state is state
    loop.press()
    assert loop.state is State.EMERGENCY, "a first press again"
    assert loop.commands._presses.n == 1


def test_a_press_on_the_way_to_rest_stops_the_arm_there_with_full_torque():
    loop = Loop().start()
    loop.obey("stop")
    assert loop.commands.ending.kind == "rest"
    loop.press()
    assert (loop.state, loop.did(), loop.commands.ending) == (State.EMERGENCY, ["freeze", 1.0], None)


def test_a_press_on_the_way_to_rest_with_nobody_left_is_a_faults_end():
    loop = Loop().start()
    loop.obey("stop")
    loop.commands.hear("supervisor_gone")
    loop.press()
    assert (loop.state, loop.commands.ending.kind) == (State.ENDING, "fault")
    assert loop.did() == ["freeze", 1.0]


def test_a_press_during_an_end_that_is_latched_lets_go():
    loop = Loop().start()
    loop.press()
    loop.commands.fail("it is hot")
    assert loop.commands.ending.kind == "fault"
    loop.did()
    loop.press()
    assert loop.commands.ending.kind == "release"
    assert loop.did() == []


# -- faults and losses ---------------------------------------------------------------------------------------


def test_a_fault_freezes_holds_and_lowers():
    loop = Loop().start()
    loop.commands.fail("it is hot")
    assert (loop.did(), loop.commands.ending.kind, loop.state) == (["freeze"], "fault", State.ENDING)
    assert loop.commands.machine.has_failed
    loop.finish()
    assert loop.arm.did[-1] == "off"
    assert loop.told("released") == [("info", "torque is off")]
    assert loop.commands.is_over


def test_a_fault_without_torque_or_of_a_parked_arm_is_nobodys():
    loop = Loop()
    loop.commands.fail("it is hot")
    assert not loop.commands.machine.has_failed
    loop = parked()
    loop.commands.fail("it is hot")
    assert loop.state is State.PARKED


def test_a_fault_on_the_way_to_rest_ends_it_there_and_any_other_end_goes_on():
    loop = Loop().start()
    loop.obey("stop")
    loop.commands.fail("it is hot")
    assert (loop.commands.ending.kind, loop.did()) == ("fault", ["freeze"])
    ending = loop.commands.ending
    loop.commands.fail("it is hotter")
    assert loop.commands.ending is ending
    assert loop.did() == []


def test_a_line_that_goes_while_another_is_left_lowers_the_arm():
    loop = Loop().start()
    loop.commands.line_gone("left arm: unplugged")
    assert loop.told("bus_gone") == [("stop", "left arm: unplugged")]
    assert (loop.state, loop.commands.ending.kind) == (State.ENDING, "fault")
    assert loop.commands.machine.reason == "left arm: unplugged"


def test_the_last_line_that_goes_ends_the_run_and_names_what_may_have_torque():
    loop = Loop().start()
    loop.arm.robot.is_cut_off, loop.arm.unreached = True, ["elbow", "wrist"]
    loop.obey("stop")
    loop.commands.line_gone("unplugged")
    assert (loop.state, loop.commands.ending, loop.leases[-1]) == (State.STOPPED, None, STOPPING)
    assert loop.commands.is_over
    assert "elbow, wrist" in loop.told("torque_unconfirmed")[0][1]
    assert loop.told("torque_unconfirmed")[0][0] == "error"


def test_the_last_line_of_an_arm_that_was_let_go_is_no_news_of_torque():
    loop = Loop()
    loop.arm.robot.is_cut_off = True
    loop.commands.line_gone("unplugged")
    assert loop.told("torque_unconfirmed") == []
    assert loop.commands.is_over


def test_torque_that_does_not_go_off_is_named_at_the_end():
    loop = Loop().start()
    loop.arm.unreached = ["elbow"]
    loop.press()
    loop.press()
    loop.commands.step_ending()
    assert "elbow" in loop.told("torque_unconfirmed")[0][1]
    assert loop.told("released") == [("info", "torque is off on the others")]


def test_an_end_says_that_it_may_be_silent_at_every_step():
    loop = Loop().start()
    loop.obey("stop")
    wanted = loop.commands.step_ending()
    assert loop.leases == [STOPPING]
    np.testing.assert_array_equal(wanted, loop.arm.rest())


# -- nobody left ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signal", "words"),
    [("guardian_gone", "the guardian has died"), ("supervisor_gone", "the supervisor has gone")],
)
def test_an_arm_that_nobody_looks_after_is_lowered(signal, words):
    loop = Loop().start()
    loop.commands.hear(signal)
    assert loop.told(signal) == [("stop", f"{words}; the arm is held, lowered and released")]
    assert (loop.state, loop.commands.ending.kind, loop.did()) == (State.ENDING, "fault", ["freeze"])
    assert loop.commands.machine.reason == words


def test_an_end_that_was_asked_for_goes_on_when_nobody_is_left():
    loop = Loop().start()
    loop.obey("stop")
    loop.commands.hear("supervisor_gone")
    assert loop.told("supervisor_gone")[0][1].endswith("the arm comes to rest as was asked")
    assert loop.commands.ending.kind == "rest"


def test_without_torque_the_process_ends_in_silence():
    loop = Loop()
    loop.commands.hear("terminated")
    assert loop.told("terminated") == []
    assert loop.commands.is_over


def test_a_supervisor_has_three_seconds_to_begin_the_end_in_order():
    loop = Loop().start()
    loop.commands.hear("terminated")
    assert loop.state is State.RUNNING
    loop.clock.advance(TERMINATED_GRACE_NS - 1)
    loop.commands.wait_for_supervisor()
    assert loop.state is State.RUNNING
    loop.clock.advance(1)
    loop.commands.wait_for_supervisor()
    assert loop.state is State.ENDING
    assert loop.told("terminated")[0][1].startswith("asked to terminate")
    assert TERMINATED_GRACE_NS == 3 * NS_PER_S
    events = len(loop.events)
    loop.after(10).commands.wait_for_supervisor()
    assert len(loop.events) == events, "once"


def test_an_end_that_has_begun_in_time_is_left_alone():
    loop = Loop().start()
    loop.commands.hear("terminated")
    loop.obey("stop")
    loop.after(3).commands.wait_for_supervisor()
    assert loop.told("terminated") == []
    assert not loop.commands.machine.must_end
    loop.commands.hear("terminated")
    assert not loop.commands.machine.must_end, "asked anew, waited for anew"


def test_whoever_terminates_twice_is_obeyed_at_once():
    loop = Loop().start()
    loop.commands.hear("terminated")
    loop.commands.hear("terminated")
    assert loop.state is State.ENDING


def test_an_arm_that_is_held_has_torque_and_is_not_parked():
    loop = Loop().start()
    assert loop.commands.is_held
    assert not loop.commands.is_over


def test_an_emergency_without_torque_is_over_when_nobody_is_left():
    loop = Loop()
    loop.press()
    assert not loop.commands.is_over
    loop.commands.machine._must_end = True
    assert loop.commands.is_over
    loop.arm.is_torque_on = True
    assert not loop.commands.is_over


def test_what_a_person_should_see_is_a_warning():
    loop = Loop().start()
    loop.commands.machine.fire(Event.STALLED, "no chunk")
    assert loop.told("mode_holding") == [("warning", "holding: no chunk")]
    loop.press()
    assert loop.told("mode_emergency")[0][0] == "warning"
    loop.obey("clear_stop")
    assert loop.told("mode_paused")[0][0] == "info"
    loop.obey("resume")
    assert loop.told("mode_running") == [("info", "running")]


def test_a_deed_before_the_first_plan_forgets_nothing():
    loop = Loop()
    loop.commands._halt("", None)
    loop.commands._restart("", None)
    assert loop.did() == ["approach"]

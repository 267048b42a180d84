"""What `fire` does besides walking the table: what is latched, what has failed, what is told, and when it is over."""

import pytest

from edgevla.robots.modes import (
    LAST_EVENTS,
    LOSSES,
    STAY,
    TABLE,
    UNDER_WAY,
    NodeEvent,
    NodeState,
    StateMachine,
    Transition,
    draw,
)


class Robot:
    """A machine whose deeds are written down; `becomes`: deed -> the state that it says."""

    def __init__(self, *events, **becomes):
        self.did, self.told, self.becomes = [], [], becomes
        self.machine = StateMachine(self.do, lambda mode, reason: self.told.append((mode, reason)))
        for event in events:
            assert self.machine.fire(event, event.value) == ""
        self.did.clear()
        self.told.clear()

    def do(self, deed, reason, arguments):
        self.did.append((deed, reason, arguments))
        return self.becomes.get(deed)


RUN = (NodeEvent.START,)


def test_it_begins_idle_and_says_why():
    machine = Robot().machine
    assert (machine.state, machine.mode, machine.reason) == (NodeState.IDLE, "idle", "waiting for start")
    assert not (machine.must_end)
    assert not (machine.has_failed)
    assert not (machine.is_latched)
    assert not (machine.is_over)


def test_a_deed_is_given_the_reason_and_the_arguments_and_the_change_is_told():
    robot = Robot()
    assert robot.machine.fire(NodeEvent.START, "go", "arguments") == ""
    assert robot.did == [("begin", "go", "arguments")]
    assert robot.told == [("running", "go")]
    assert robot.machine.reason == "go"


def test_a_refusal_does_nothing_and_says_why():
    robot = Robot()
    assert robot.machine.fire(NodeEvent.PAUSE) == "cannot pause: nothing was started yet"
    assert (robot.did, robot.told) == ([], [])


def test_what_changes_nothing_is_done_by_nobody_and_told_to_nobody():
    robot = Robot(*RUN)
    assert robot.machine.fire(NodeEvent.FLOWING, "flows") == ""
    assert (robot.did, robot.told, robot.machine.reason) == ([], [], "start")


def test_a_deed_without_a_change_keeps_the_reason():
    robot = Robot(*RUN)
    robot.machine.fire(NodeEvent.RESET, "anew")
    assert [deed for deed, _, _ in robot.did] == ["restart"]
    assert (robot.told, robot.machine.reason) == ([], "start")


def test_the_state_that_a_deed_says_is_the_one_it_is_in():
    robot = Robot(*RUN, come_to_rest=NodeState.STOPPED)
    robot.machine.fire(NodeEvent.STOP)
    assert robot.machine.state is NodeState.STOPPED


def test_a_state_that_is_shown_alike_is_not_told_again():
    robot = Robot(*RUN, NodeEvent.STOP)
    robot.machine.fire(NodeEvent.RELEASED)
    assert robot.machine.state is NodeState.STOPPED
    assert robot.told == []


def test_an_end_after_a_press_is_shown_as_an_emergency_until_it_is_over():
    robot = Robot(*RUN, NodeEvent.EMERGENCY_STOP)
    assert robot.machine.is_latched
    robot.machine.fire(NodeEvent.EMERGENCY_STOP)
    assert (robot.machine.state, robot.machine.mode) == (NodeState.ENDING, "emergency")
    assert robot.told == []
    robot.machine.fire(NodeEvent.RELEASED, "off")
    assert (robot.machine.mode, robot.machine.is_latched, robot.told) == (
        "stopped",
        False,
        [("stopped", "off")],
    )


def test_an_end_without_a_press_is_no_emergency():
    robot = Robot(*RUN, NodeEvent.STOP)
    assert (robot.machine.mode, robot.machine.is_latched) == ("stopped", False)


def test_a_stop_that_is_cleared_is_not_latched():
    robot = Robot(*RUN, NodeEvent.EMERGENCY_STOP, unfreeze=NodeState.PAUSED)
    robot.machine.fire(NodeEvent.CLEAR_STOP)
    assert (robot.machine.state, robot.machine.is_latched) == (NodeState.PAUSED, False)
    robot.machine.fire(NodeEvent.NOBODY_LEFT)
    assert robot.machine.mode == "stopped"


@pytest.mark.parametrize("event", list(NodeEvent))
def test_only_the_last_events_end_the_process(event):
    robot = Robot(*RUN)
    robot.machine.fire(event)
    assert robot.machine.must_end is (event in LAST_EVENTS)
    assert {NodeEvent.NOBODY_LEFT, *LOSSES} == set(LAST_EVENTS)


@pytest.mark.parametrize("event", list(NodeEvent))
def test_only_a_fault_or_a_loss_is_a_failure(event):
    robot = Robot(*RUN)
    robot.machine.fire(event)
    assert robot.machine.has_failed is (event in (NodeEvent.FAULT, NodeEvent.LINE_GONE, NodeEvent.CUT_OFF))


@pytest.mark.parametrize("event", LOSSES)
def test_a_lost_line_is_a_failure_even_of_an_arm_without_torque(event):
    machine = Robot().machine
    machine.fire(event)
    assert machine.has_failed
    assert machine.is_over


def test_a_fault_that_worsens_an_end_is_a_failure():
    robot = Robot(*RUN, NodeEvent.STOP)
    robot.machine.fire(NodeEvent.FAULT)
    assert [deed for deed, _, _ in robot.did] == ["worsen"]
    assert robot.machine.has_failed


def test_a_failure_stays_one_until_the_next_start():
    robot = Robot(*RUN, NodeEvent.FAULT)
    robot.machine.fire(NodeEvent.RELEASED)
    assert robot.machine.has_failed
    assert robot.machine.is_over
    robot.machine.fire(NodeEvent.START)
    assert not robot.machine.has_failed
    assert not robot.machine.is_over


def test_an_end_that_must_come_is_over_only_at_rest():
    for state in NodeState:
        machine = Robot().machine
        machine._state, machine._must_end = state, True
        assert machine.is_over is (state in (NodeState.IDLE, NodeState.STOPPED, NodeState.PARKED))
        machine._must_end = False
        assert not machine.is_over


def test_nothing_starts_once_nobody_is_left_not_even_where_it_would_be_refused_anyway():
    robot = Robot(*RUN, NodeEvent.NOBODY_LEFT)
    assert robot.machine.fire(NodeEvent.START) == "the robot's processes are ending"
    assert robot.did == []


def test_another_reason_for_the_same_state():
    robot = Robot(*RUN, NodeEvent.STALLED)
    robot.machine.rename("no chunk for 3 s")
    assert robot.machine.reason == "no chunk for 3 s"
    assert robot.told == []


def test_under_way_is_where_somebody_may_move_the_arm():
    assert UNDER_WAY == (NodeState.RUNNING, NodeState.HOLDING, NodeState.PAUSED, NodeState.HOMING)
    assert Transition() == STAY == Transition("", None, "")


def test_the_table_is_drawn_with_a_row_per_event():
    lines = draw().splitlines()
    assert len(lines) == 2 + len(NodeEvent)
    assert lines[1] == "| --- " * (1 + len(NodeState)) + "|"
    row = next(line for line in lines if line.startswith("| **stop**"))
    assert row.split(" | ")[1:3] == ["→ stopped", "come to rest → ending"]
    assert TABLE[NodeEvent.STOP][NodeState.ENDING] is STAY

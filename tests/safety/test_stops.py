"""Presses, faults, lost lines, and nobody left: how each ends an arm, deed by deed."""

import numpy as np
import pytest
from deeds_kit import Loop, chunk_is_there, parked

from edgevla.clock import NS_PER_S
from edgevla.robots.commands import FROZEN, TERMINATED_GRACE_NS
from edgevla.robots.links import RELEASED, STOPPING
from edgevla.robots.modes import NodeEvent, NodeState

# -- emergency -----------------------------------------------------------------------------------------------


def test_the_first_press_freezes_and_the_second_after_a_pause_lets_go():
    loop = Loop().start()
    chunk_is_there(loop)
    assert loop.press() == ""
    assert (loop.state, loop.did()) == (NodeState.EMERGENCY, ["freeze"])
    assert loop.commands.machine.reason == FROZEN
    assert not loop.commands.rollout._has_flowed
    assert loop.commands.lease == STOPPING
    loop.after(0.1).commands.emergency_stop()
    assert (loop.state, loop.commands.n_emergencies) == (NodeState.EMERGENCY, 1), "a key held down"
    loop.press()
    assert (loop.state, loop.commands.n_emergencies) == (NodeState.ENDING, 2)
    assert loop.commands.ending.kind == "release"
    assert loop.commands.machine.reason == "released by the second emergency stop"
    loop.commands.step_ending()
    assert (loop.did(), loop.state, loop.commands.lease) == (["off"], NodeState.STOPPED, RELEASED)


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
    assert loop.state is NodeState.EMERGENCY
    loop.press()
    assert loop.state is NodeState.STOPPED
    assert loop.commands.ending is None


@pytest.mark.parametrize(
    ("torque", "reduced", "state"),
    [(False, False, NodeState.IDLE), (True, False, NodeState.PAUSED), (True, True, NodeState.PARKED)],
)
def test_a_cleared_stop_goes_back_to_where_the_arm_is(torque, reduced, state):
    loop = Loop().start()
    loop.press()
    loop.arm.is_torque_on, loop.arm.is_reduced = torque, reduced
    assert loop.obey("clear_stop") == (True, "")
    assert loop.state is state
    loop.press()
    assert loop.state is NodeState.EMERGENCY, "a first press again"
    assert loop.commands._presses.n == 1


def test_a_press_on_the_way_to_rest_stops_the_arm_there_with_full_torque():
    loop = Loop().start()
    loop.obey("stop")
    assert loop.commands.ending.kind == "rest"
    loop.press()
    assert (loop.state, loop.did(), loop.commands.ending) == (NodeState.EMERGENCY, ["freeze", 1.0], None)


def test_a_press_on_the_way_to_rest_with_nobody_left_is_a_faults_end():
    loop = Loop().start()
    loop.obey("stop")
    loop.commands.hear("supervisor_gone")
    loop.press()
    assert (loop.state, loop.commands.ending.kind) == (NodeState.ENDING, "fault")
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
    assert (loop.did(), loop.commands.ending.kind, loop.state) == (["freeze"], "fault", NodeState.ENDING)
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
    assert loop.state is NodeState.PARKED


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
    assert (loop.state, loop.commands.ending.kind) == (NodeState.ENDING, "fault")
    assert loop.commands.machine.reason == "left arm: unplugged"


def test_the_last_line_that_goes_ends_the_run_and_names_what_may_have_torque():
    loop = Loop().start()
    loop.arm.robot.is_cut_off, loop.arm.unreached = True, ["elbow", "wrist"]
    loop.obey("stop")
    loop.commands.line_gone("unplugged")
    assert (loop.state, loop.commands.ending, loop.leases[-1]) == (NodeState.STOPPED, None, STOPPING)
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
    assert (loop.state, loop.commands.ending.kind, loop.did()) == (NodeState.ENDING, "fault", ["freeze"])
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
    assert loop.state is NodeState.RUNNING
    loop.clock.advance(TERMINATED_GRACE_NS - 1)
    loop.commands.wait_for_supervisor()
    assert loop.state is NodeState.RUNNING
    loop.clock.advance(1)
    loop.commands.wait_for_supervisor()
    assert loop.state is NodeState.ENDING
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
    assert loop.state is NodeState.ENDING


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
    loop.commands.machine.fire(NodeEvent.STALLED, "no chunk")
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

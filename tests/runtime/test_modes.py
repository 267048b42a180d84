"""The machine of modes: its table, and the whole loop driven by commands, signals, faults and time in any order."""

import ast
import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgevla.arguments import SetTask
from edgevla.errors import BusError, UsageError
from edgevla.execution import Async, Ensemble, Rtc, Sync
from edgevla.messages import MODES
from edgevla.robots import modes
from edgevla.robots.commands import COMMANDS, Commands
from edgevla.robots.emulator.faults import InjectedFault
from edgevla.robots.modes import TABLE, UNDER_WAY, NodeEvent, NodeState, StateMachine, draw
from edgevla.robots.profile import load_profile
from edgevla.robots.trials.closed_loop import ClosedLoop

DOCS = Path(__file__).parents[2] / "docs" / "modes.md"
T = 20
SERVO_HZ = 30.0
PROFILE = load_profile("so101")
PROFILE = replace(PROFILE, escalation=replace(PROFILE.escalation, hold_ms=200, park_ms=300))


def walk_to(state):
    """A machine in that state, whose deeds do nothing."""
    machine = StateMachine(lambda deed, reason, arguments: None, lambda mode, reason: None)
    ways = {
        NodeState.IDLE: (),
        NodeState.RUNNING: (NodeEvent.START,),
        NodeState.HOLDING: (NodeEvent.START, NodeEvent.STALLED),
        NodeState.PAUSED: (NodeEvent.START, NodeEvent.PAUSE),
        NodeState.HOMING: (NodeEvent.START, NodeEvent.HOME),
        NodeState.ENDING: (NodeEvent.START, NodeEvent.STOP),
        NodeState.EMERGENCY: (NodeEvent.START, NodeEvent.EMERGENCY_STOP),
        NodeState.PARKED: (NodeEvent.START, NodeEvent.STOP, NodeEvent.LEFT_PARKED),
        NodeState.STOPPED: (NodeEvent.START, NodeEvent.STOP, NodeEvent.RELEASED),
    }
    for event in ways[state]:
        assert machine.fire(event) == ""
    assert machine.state is state
    return machine


def test_every_event_has_an_answer_in_every_state():
    assert set(TABLE) == set(NodeEvent)
    for event, row in TABLE.items():
        assert set(row) == set(NodeState), event
        for cell in row.values():
            assert not (cell.refusal and (cell.deed or cell.to)), "refused, and nothing else"


def test_every_deed_of_the_table_is_a_method_and_every_deed_is_in_the_table():
    named = {cell.deed for row in TABLE.values() for cell in row.values() if cell.deed}
    source = ast.parse(inspect.getsource(inspect.getmodule(Commands)))
    (cls,) = (node for node in source.body if isinstance(node, ast.ClassDef) and node.name == "Commands")
    methods = {node.name for node in cls.body if isinstance(node, ast.FunctionDef)}
    assert {f"_{deed}" for deed in named} <= methods


def test_the_page_of_the_documentation_is_the_table():
    assert draw() in DOCS.read_text(encoding="utf-8"), "write modes.draw() into docs/modes.md"


@pytest.mark.parametrize("state", list(NodeState))
def test_what_a_state_is_called_on_the_wire_is_of_schema_1(state):
    assert walk_to(state).mode in MODES


@pytest.mark.parametrize("state", list(NodeState))
@pytest.mark.parametrize("event", [*dict.fromkeys(COMMANDS.values()), NodeEvent.EMERGENCY_STOP])
def test_a_command_is_done_or_refused_with_the_reason_and_then_changes_nothing(state, event):
    machine = walk_to(state)
    refusal = machine.fire(event, "asked to")
    if refusal:
        assert machine.state is state
        assert len(refusal.split()) > 3, "a sentence, not a code"


@pytest.mark.parametrize("state", list(NodeState))
def test_no_command_clears_a_latched_stop_but_the_one_that_says_so(state):
    machine = walk_to(NodeState.EMERGENCY)
    for event in dict.fromkeys(COMMANDS.values()):
        if event is not NodeEvent.CLEAR_STOP:
            assert machine.fire(event)
            assert machine.is_latched


def test_after_the_last_event_nothing_starts_and_a_machine_at_rest_is_over():
    for state in (NodeState.IDLE, NodeState.STOPPED, NodeState.PARKED):
        machine = walk_to(state)
        assert machine.fire(NodeEvent.NOBODY_LEFT) == ""
        assert machine.fire(NodeEvent.START) == "the robot's processes are ending"
        assert machine.is_over
    for state in UNDER_WAY:
        machine = walk_to(state)
        machine.fire(NodeEvent.NOBODY_LEFT)
        assert machine.state is NodeState.ENDING
        assert not machine.is_over
        machine.fire(NodeEvent.RELEASED)
        assert machine.is_over


def test_a_deed_that_fails_leaves_the_machine_where_it_is():
    def fail(deed, reason, arguments):
        raise UsageError("no")

    machine = StateMachine(fail, lambda mode, reason: None)
    with pytest.raises(UsageError):
        machine.fire(NodeEvent.START)
    assert machine.state is NodeState.IDLE


def test_a_fault_without_torque_is_no_failure_and_with_torque_it_is():
    machine = walk_to(NodeState.IDLE)
    machine.fire(NodeEvent.FAULT, "hot")
    assert not machine.has_failed
    machine = walk_to(NodeState.RUNNING)
    machine.fire(NodeEvent.FAULT, "hot")
    assert machine.has_failed
    assert machine.state is NodeState.ENDING
    machine.fire(NodeEvent.RELEASED)
    assert machine.is_over, "a run that failed ends with its process"


# -- the loop, in any order --------------------------------------------------------------------------------------


def wild(observation, rtc=None):
    """A policy that wants the arm to be everywhere."""
    return np.where(np.arange(T)[:, None] % 4 < 2, 80.0, -80.0) * np.ones((1, 6), np.float32)


PATIENCE = st.sampled_from([0.03, 0.03, 0.3, 0.9, 2.6])
"""Seconds between two things that happen: within a press, within a stage, beyond both."""
STEERING = st.sampled_from(["pause", "hold", "resume", "home", "reset", "clear_stop"])
ENDINGS = st.sampled_from(["start", "start", "stop", "emergency_stop", "clear_stop"])
WORDS = st.sampled_from([("set_task", SetTask("push")), ("set_execution", Async()), ("set_execution", Rtc()),
                         ("dance", None), ("", None)])  # fmt: skip


def is_going(self):
    return not self.loop.loop.is_over


class AnyOrder(RuleBasedStateMachine):
    """Whatever comes in whatever order: torque off where it should be, nothing moves in an emergency, no goal step
    above the cap, and an end always ends."""

    @initialize(execution=st.sampled_from([Sync(), Async(), Ensemble(), Rtc()]), is_released=st.booleans())
    def begin(self, execution, is_released):
        profile = replace(PROFILE, escalation=replace(PROFILE.escalation, release=is_released))
        self.loop = ClosedLoop(wild, chunk_size=T, execution=execution, profile=profile, servo_hz=SERVO_HZ)
        self.checked = 0
        self.hurt = set()
        self.is_unplugged = False
        self.loop.start()

    @property
    def machine(self):
        return self.loop.loop.machine

    @rule(actions=st.lists(STEERING, min_size=2, max_size=6), seconds=st.sampled_from([0.03, 0.3, 1.5]))
    @precondition(is_going)
    def steer(self, actions, seconds):
        for action in actions:
            if is_going(self):
                self.command(action, None)
                self.loop.run(seconds)

    @rule(actions=st.lists(ENDINGS, min_size=1, max_size=4), seconds=PATIENCE)
    @precondition(is_going)
    def begin_or_end(self, actions, seconds):
        for action in actions:
            if is_going(self):
                self.command(action, self.loop._arguments if action == "start" else None)
        self.loop.run(seconds)

    @rule(words=WORDS)
    @precondition(is_going)
    def words(self, words):
        is_accepted, reason = self.command(*words)
        assert is_accepted or len(reason.split()) > 2

    @rule(names=st.lists(st.just("emergency_stop"), min_size=1, max_size=3), seconds=PATIENCE)
    @precondition(is_going)
    def presses(self, names, seconds):
        self.loop.links.pending_signals += names
        self.loop.run(seconds)

    @rule(name=st.sampled_from(["terminated", "supervisor_gone", "guardian_gone"]), seconds=PATIENCE)
    @precondition(lambda self: is_going(self) and len(self.loop.links.states) > 100)
    def signal(self, name, seconds):
        self.loop.links.pending_signals.append(name)
        self.loop.run(seconds)

    @rule(kind=st.sampled_from(["mute", "overload", "brownout", "stuck", "jump", "unplug"]), servo_id=st.integers(1, 6),
          seconds=PATIENCE)  # fmt: skip
    @precondition(lambda self: is_going(self) and len(self.loop.links.states) > 100)
    def fault(self, kind, servo_id, seconds):
        self.loop.arm.apply(InjectedFault(kind, target=None if kind == "unplug" else servo_id))
        self.is_unplugged = self.is_unplugged or kind == "unplug"
        if kind in ("mute", "overload"):
            self.hurt.add(servo_id)
        self.loop.run(seconds)

    @rule(is_dead=st.booleans(), seconds=PATIENCE)
    @precondition(is_going)
    def policy(self, is_dead, seconds):
        self.loop.links.is_policy_dead = is_dead
        self.loop.run(seconds)

    @rule(probability=st.sampled_from([0.05, 0.5]), seconds=PATIENCE)
    @precondition(is_going)
    def noise(self, probability, seconds):
        self.loop.arm.apply(InjectedFault("drop", probability=probability, duration_ms=300.0))
        self.loop.run(seconds)

    @rule(seconds=PATIENCE)
    def time(self, seconds):
        self.loop.run(seconds)

    def command(self, action, arguments):
        request = self.loop.links.post(action, arguments)
        self.loop.step()
        assert request.outcome is not None, "every command is answered"
        is_accepted, reason = request.outcome
        assert is_accepted or reason
        return request.outcome

    def deaf(self):
        """Servos that nobody can tell anything, so that theirs is no promise."""
        return {servo.id for servo in self.loop.arm.servos.values() if servo.is_mute} | self.hurt

    @invariant()
    def torque_is_off_where_it_should_be(self):
        if (
            not hasattr(self, "loop")
            or self.is_unplugged
            or self.machine.state not in (NodeState.IDLE, NodeState.STOPPED)
        ):
            return
        deaf = self.deaf()
        on = [s.name for s in self.loop.arm.servos.values() if s.torque_on and s.id not in deaf]
        said = " ".join(text for _, code, text in self.loop.links.events if code == "torque_unconfirmed")
        assert not [name for name in on if name not in said]

    @invariant()
    def nothing_moves_in_an_emergency_and_no_step_is_above_the_cap(self):
        if not hasattr(self, "loop"):
            return
        states = self.loop.links.states
        caps = np.array([joint.max_velocity for joint in PROFILE.joints])
        for before, after in zip(
            states[max(0, self.checked - 1) :], states[self.checked or 1 :], strict=False
        ):
            step = np.abs(after.goal - before.goal)
            if not np.isfinite(step).all():
                continue
            n_ticks = max(1, (after.deadline_ns - before.deadline_ns) / self.loop.loop.period_ns)
            allowed = caps * n_ticks * self.loop.loop.period_ns / 1e9 * 1.001 + 1e-3
            is_frozen = np.abs(after.goal - after.position) < 1.0
            # A joint that was moved by hand or has jumped is frozen where it is; that moves nothing.
            assert (is_frozen | (step <= allowed)).all(), (before.mode, after.mode, step)
            if before.mode == after.mode == "emergency" and not self.machine.must_end:
                assert (is_frozen | (step < 1e-3)).all(), step
        self.checked = len(states)

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        self.loop.links.pending_signals.append("supervisor_gone")
        self.loop.run(40.0)
        assert self.loop.loop.is_over, f"an end always ends: {self.machine.state} {self.machine.reason}"


TestAnyOrder = AnyOrder.TestCase
# A minute on an idle machine; to hypothesis a time limit in the midst of it looks like a draw that differs.
TestAnyOrder.pytestmark = pytest.mark.timeout(3600)
TestAnyOrder.settings = settings(
    max_examples=20,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)


def test_a_start_that_fails_on_a_parked_arm_is_told_from_one_that_has_torque():
    """It had torque before the start, and has none after it."""
    profile = replace(PROFILE, escalation=replace(PROFILE.escalation, release=False))
    loop = ClosedLoop(wild, chunk_size=T, profile=profile, servo_hz=SERVO_HZ)
    loop.start()
    loop.run(0.5)
    loop.command("stop")
    loop.run(12.0)
    assert loop.loop.machine.state is NodeState.PARKED
    loop.robot._torque._energise = lambda units: (_ for _ in ()).throw(BusError("a pair of servos disagrees"))
    with pytest.raises(UsageError, match="disagrees"):
        loop.start()
    assert loop.loop.machine.state is NodeState.STOPPED
    assert not any(servo.torque_on for servo in loop.arm.servos.values())


def test_modes_know_no_robot_no_numpy_and_no_clock():
    source = ast.parse(inspect.getsource(modes))
    imported = {n.module or "" for n in source.body if isinstance(n, ast.ImportFrom)}  # types are no imports
    assert imported <= {"__future__", "collections.abc", "dataclasses", "enum", "typing"}

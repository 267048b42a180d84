"""What a person, a pipe or a failing bus may ask of the control loop, and the deeds that follow: the table's hands.

`Commands.obey`, `hear` and `fail` turn what comes into events of the machine (`modes.py`); each method under "deeds" is
named in its table, does one thing to the arm, and may say in which state the arm is then.
"""

from __future__ import annotations

import numpy as np

from edgevla.arguments import Arguments, SetTask, Start
from edgevla.clock import NS_PER_S, Clock
from edgevla.errors import BusError, EdgeVLAError, UsageError
from edgevla.execution import Execution, judge_latency
from edgevla.execution.commit import check_untrained_options
from edgevla.execution.strategies import check_chunk, drawn_by, kind_of
from edgevla.messages import Mode, Severity
from edgevla.presses import Presses

from .body import Body
from .ending import Ending, Kind
from .lease import TERMINATED_GRACE_S
from .links import PARKED, RELEASED, RUNNING, STOPPING, Driver, Links
from .modes import NodeEvent, NodeState, StateMachine
from .onlooker import Onlooker
from .rescue import unconfirmed
from .rollout import Plan, Rollout, led, plan_from
from .telling import Teller

COMMANDS = {
    "start": NodeEvent.START,
    "pause": NodeEvent.PAUSE,
    "hold": NodeEvent.PAUSE,
    "resume": NodeEvent.RESUME,
    "home": NodeEvent.HOME,
    "stop": NodeEvent.STOP,
    "clear_stop": NodeEvent.CLEAR_STOP,
    "set_task": NodeEvent.SET_TASK,
    "set_execution": NodeEvent.SET_EXECUTION,
    "reset": NodeEvent.RESET,
    "lead": NodeEvent.LEAD,
    "hand_back": NodeEvent.HAND_BACK,
}
REASONS = {
    NodeEvent.PAUSE: "asked to",
    NodeEvent.HOME: "moving slowly to the home pose",
    NodeEvent.STOP: "asked to stop: to the rest pose, then released",
    NodeEvent.CLEAR_STOP: "emergency stop cleared",
    NodeEvent.LEAD: "the leader drives",
    NodeEvent.HAND_BACK: "the policy drives",
}
UNTOUCHED = "asked to stop: the arm was never touched"
SIGNALS = {
    "guardian_gone": "the guardian has died",
    "supervisor_gone": "the supervisor has gone",
    "terminated": "asked to terminate",
}
FROZEN = "frozen; press again, after a pause, to release; clear the stop to go on"
TERMINATED_GRACE_NS = round(TERMINATED_GRACE_S * NS_PER_S)


class Commands:
    """Obeys on behalf of one loop. The machine is its own, and nobody else fires it."""

    def __init__(self, body: Body, links: Links, clock: Clock, tell: Teller) -> None:
        self.body, self._links, self._clock, self._tell = body, links, clock, tell
        self.machine = StateMachine(self._do, self._show)
        self.rollout: Rollout | None = None
        """Of whoever drives."""
        self._policy: Rollout | None = None
        """The policy's own, while a leader drives."""
        self.onlooker: Onlooker | None = None
        """The policy, where it is only compared with what the leader does."""
        self._wants_new_grid = False
        self._ending: Ending | None = None
        self._presses = Presses()
        self._terminated_ns: int | None = None
        self.n_emergencies = self.n_takeovers = 0

    # -- what comes -----------------------------------------------------------------------------------------------

    def obey(self, action: str, arguments: Arguments | None) -> tuple[bool, str]:
        """(is accepted, why not). arguments: of the class that belongs to the action."""
        try:
            if action == "emergency_stop":
                reason = self.emergency_stop()
            elif action in COMMANDS:
                event = COMMANDS[action]
                words = (
                    UNTOUCHED
                    if self.body.robot.is_shadow and event is NodeEvent.STOP
                    else REASONS.get(event, "")
                )
                reason = self.machine.fire(event, words, arguments)
            else:
                reason = f"the robot node does not know '{action}'"
        except EdgeVLAError as error:
            reason = str(error)
        return not reason, reason

    def emergency_stop(self) -> str:
        """First: freeze, latched. Again, after a pause: release. A key held down, and the same press by another way,
        are one press."""
        if not self._presses.press(self._clock.now_ns()):
            return ""
        self.n_emergencies += 1
        is_second = self.machine.is_latched
        return self.machine.fire(
            NodeEvent.EMERGENCY_STOP, "released by the second emergency stop" if is_second else FROZEN
        )

    def hear(self, signal: str) -> None:
        """`emergency_stop` from the guardian, a pipe that closed, or SIGTERM."""
        if signal == "emergency_stop":
            self.emergency_stop()
        elif signal == "terminated" and self.is_held and self._terminated_ns is None:
            self._terminated_ns = self._clock.now_ns()
        else:
            self._nobody_left(signal)

    def wait_for_supervisor(self) -> None:
        """SIGTERM has come: whoever started this deployment is given time to end it in order."""
        if self._terminated_ns is None:
            return
        if self._clock.now_ns() - self._terminated_ns >= TERMINATED_GRACE_NS:
            self._terminated_ns = None
            if self.machine.state is not NodeState.ENDING:
                self._nobody_left("terminated")

    def _nobody_left(self, what: str) -> None:
        words = SIGNALS[what]
        if self.is_held:
            is_ending = self.machine.state is NodeState.ENDING
            then = "comes to rest as was asked" if is_ending else "is held, lowered and released"
            self._links.event("stop", what, f"{words}; the arm {then}")
        self.machine.fire(NodeEvent.NOBODY_LEFT, words)

    def fail(self, sentence: str) -> None:
        """A finding that no run survives."""
        if self.is_held:
            self.machine.fire(NodeEvent.FAULT, sentence)

    def line_gone(self, sentence: str) -> None:
        """A bus has gone. Arms on others are held, lowered and released; without any the run ends at once."""
        self._tell.once("stop", "bus_gone", sentence)
        is_cut_off = self.body.robot.is_cut_off
        self.machine.fire(NodeEvent.CUT_OFF if is_cut_off else NodeEvent.LINE_GONE, sentence)

    # -- what the loop asks -----------------------------------------------------------------------------------------

    @property
    def wants_new_grid(self) -> bool:
        """Whether the loop shall count its ticks from 0 again."""
        return self._wants_new_grid

    def begin_grid(self) -> None:
        """The loop counts from 0."""
        self._wants_new_grid = False

    @property
    def is_held(self) -> bool:
        """Whether somebody must still look after the arm: it has torque, and is not left parked."""
        return self.body.is_torque_on and self.machine.state is not NodeState.PARKED

    @property
    def is_over(self) -> bool:
        """Whether this process has nothing left to do."""
        is_off = (
            not self.body.is_torque_on and self.machine.state is NodeState.EMERGENCY and self.machine.must_end
        )
        return self.machine.is_over or is_off

    @property
    def ending(self) -> Ending | None:
        return self._ending

    @property
    def plan(self) -> Plan | None:
        return None if self.rollout is None else self.rollout.plan

    @property
    def driver(self) -> Driver:
        """Whose chunks move the arm, whenever it runs."""
        return "policy" if self._policy is None else "leader"

    @property
    def lease(self) -> bytes:
        """What the guardian is told with every tick."""
        if not self.body.is_torque_on:
            return RELEASED
        if self.machine.state is NodeState.PARKED:
            return PARKED
        return STOPPING if self.machine.state in (NodeState.ENDING, NodeState.EMERGENCY) else RUNNING

    # -- deeds ------------------------------------------------------------------------------------------------------

    def _do(self, deed: str, reason: str, arguments: Arguments | None) -> NodeState | None:
        made: NodeState | None = getattr(self, f"_{deed}")(reason, arguments)
        return made

    def _begin(self, _: str, start: Start) -> NodeState | None:
        body = self.body
        plan = plan_from(start, body.robot.max_hz, len(body.profile.joints))
        # Servo by servo, so longer than a running loop may be silent; and whoever dies in between leaves torque on.
        self._links.lease(RELEASED if body.robot.is_shadow else STOPPING)
        try:
            body.energise(_driving(plan))
        except BusError:
            self.machine.fire(
                NodeEvent.RELEASED, "torque is off"
            )  # an arm that was left parked has none any more
            raise
        self._tell.forget()
        state = self._follow(plan, start)
        for sentence in body.outside_training(plan.trained_range):
            self._links.event("warning", "outside_training", sentence)
        if sentence := body.unreachable_rest():
            self._links.event("warning", "rest_unreachable", sentence)
        self._tell.remarks()
        return state

    def _change_plan(self, _: str, start: Start) -> NodeState | None:
        """Another policy goes on from where the arm is held; its torque stays on."""
        plan = plan_from(start, self.body.robot.max_hz, len(self.body.profile.joints))
        self.body.follow(_driving(plan))
        return self._follow(plan, start)

    def _follow(self, plan: Plan, start: Start) -> NodeState | None:
        first = 0 if self.rollout is None else self.rollout.next_request
        self._policy = self.onlooker = None
        self.rollout = self._new_rollout(plan, first)
        if plan.is_shadow:
            self._policy = self.rollout
            self.onlooker = Onlooker(self._policy, self.body)
            self.rollout = self._new_rollout(_driving(plan), first)
        self._restart("", None)
        return NodeState.PAUSED if start.is_held else None

    def _new_rollout(self, plan: Plan, first_request: int) -> Rollout:
        return Rollout(plan, [joint.is_gripper for joint in self.body.profile.joints], first_request)

    def _lead(self, _: str, __: Arguments | None) -> None:
        """A person takes over with the leader arm."""
        assert self.rollout is not None
        plan = self.rollout.plan
        if self._policy is not None:
            return
        if plan.leader_ms is None:
            raise UsageError("no leader arm belongs to this deployment; start it with --leader")
        self._policy = self.rollout
        self.n_takeovers += 1
        self._drive(self._new_rollout(led(plan, plan.leader_ms), self.rollout.next_request), "leader")

    def _hand_back(self, _: str, __: Arguments | None) -> None:
        if self.onlooker is not None:
            raise UsageError(
                "the policy only looks on in a shadow run, and the leader drives; start without --shadow to take turns"
            )
        if self._policy is not None:
            policy, self._policy = self._policy, None
            self._drive(policy, "policy")

    def _drive(self, rollout: Rollout, driver: Driver) -> None:
        """On the same grid. What was asked for before is nobody's; the first goal may be far, and is gone to slowly."""
        assert self.rollout is not None
        rollout.restart(self.rollout.next_request)
        rollout.task, rollout.answered_ns = self.rollout.task, self._clock.now_ns()
        self.rollout = rollout
        self.body.follow(rollout.plan)
        self._links.event("info", "driver", f"the {driver} drives")

    def _restart(self, _: str, __: Arguments | None) -> None:
        """A new grid: chunks of before are nobody's, and its first goal may be far away."""
        for rollout in self._under_way:
            rollout.restart()
        if self.onlooker is not None:
            self.onlooker.approach()
        self._wants_new_grid = True
        self.body.approach()

    def _resume(self, reason: str, arguments: Arguments | None) -> None:
        self._restart(reason, arguments)

    def _halt(self, _: str, __: Arguments | None) -> None:
        for rollout in self._under_way:
            rollout.forget()

    @property
    def _under_way(self) -> list[Rollout]:
        """Those whose chunks count now."""
        looking_on = None if self.onlooker is None else self.onlooker.rollout
        return [rollout for rollout in (self.rollout, looking_on) if rollout is not None]

    def _go_home(self, _: str, __: Arguments | None) -> None:
        if self.body.robot.is_shadow:
            raise UsageError("cannot move home: a shadow run moves nothing")
        self._halt("", None)

    def _set_task(self, _: str, arguments: SetTask) -> None:
        assert self.rollout is not None
        for rollout in self._under_way:
            rollout.task = arguments.task
        self._links.event("info", "task", f"task: {arguments.task}")

    def _set_execution(self, _: str, execution: Execution) -> None:
        assert self.rollout is not None
        rollout = self.rollout if self.onlooker is None else self.onlooker.rollout
        plan, executor = rollout.plan, rollout.executor
        if self._policy is not None and self.onlooker is None:
            raise UsageError("the leader drives; hand back to the policy first, its execution is as it was")
        if kind_of(execution) not in plan.allowed:
            raise UsageError(f"this bundle allows {', '.join(plan.allowed)}, not {kind_of(execution)}")
        check_chunk(execution, plan.chunk_size, plan.n_action_steps)
        if drawn_by(execution) > plan.most_drawn:
            raise UsageError(
                f"select {drawn_by(execution)}: this policy draws {plan.most_drawn} per inference at most"
            )
        latency_ms = max(plan.latency_ms, 1000 * executor.delay_steps / plan.fps)
        check_untrained_options(execution, plan.trained_delay)
        verdict = judge_latency(
            execution,
            chunk_size=plan.chunk_size,
            fps=plan.fps,
            latency_ms=latency_ms,
            trained_delay=plan.trained_delay,
        )
        if verdict.severity == "error":
            raise UsageError(verdict.sentence)
        if verdict.sentence:
            self._links.event("warning", "latency", verdict.sentence)
        executor.switch(execution)
        self._links.event("info", "execution", f"execution: {kind_of(execution)}")

    def _come_to_rest(self, _: str, __: Arguments | None) -> NodeState:
        return self._end("rest")

    def _give_up(self, _: str, __: Arguments | None) -> NodeState:
        self.body.freeze()
        return self._end("fault")

    def _worsen(self, reason: str, arguments: Arguments | None) -> NodeState | None:
        """A fault on the way to rest stops the arm there; any other ending goes on."""
        if self._ending is not None and self._ending.kind == "rest":
            return self._give_up(reason, arguments)
        return None

    def _freeze(self, _: str, __: Arguments | None) -> None:
        self._halt("", None)
        self.body.freeze()

    def _freeze_ending(self, reason: str, arguments: Arguments | None) -> NodeState:
        """The arm stops where it is, with its full torque. With nobody left to clear it, it is then lowered."""
        if self.machine.is_latched:
            return self._let_go(reason, arguments)
        self.body.freeze()
        self.body.limit_torque(1.0)
        if self.machine.must_end:
            return self._end("fault")
        self._ending = None
        return NodeState.EMERGENCY

    def _let_go(self, _: str, __: Arguments | None) -> NodeState:
        return self._end("release")

    def _unfreeze(self, _: str, __: Arguments | None) -> NodeState:
        self._presses.forget()
        if not self.body.is_torque_on:
            return NodeState.PAUSED if self.body.is_shadowing else NodeState.IDLE
        return NodeState.PARKED if self.body.is_reduced else NodeState.PAUSED

    def _abandon(self, _: str, __: Arguments | None) -> None:
        """No line, or none that matters: what can be said of torque is said."""
        self._ending = None
        if self.body.robot.is_shadow:
            self.body.switch_off()
            return
        self._links.lease(STOPPING)
        if unreached := self.body.lost():
            self._links.event("error", "torque_unconfirmed", unconfirmed(unreached))

    def _end(self, kind: Kind) -> NodeState:
        """Begins an ending; an arm without torque is at its end already."""
        self._halt("", None)
        if self.body.is_shadowing:
            self.body.switch_off()
        if not self.body.is_torque_on:
            return NodeState.STOPPED
        body = self.body
        self._ending = Ending(kind, body.profile.escalation, self._clock.now_ns(), body.rest())
        return NodeState.ENDING

    # -- the end, tick by tick ------------------------------------------------------------------------------------

    def step_ending(self) -> np.ndarray | None:
        """One tick of the ending: the goal wanted, None as before. The last one confirms the torque."""
        assert self._ending is not None
        self._links.lease(STOPPING)  # what follows may take several transactions
        wanted = self._ending.step(self.body, self.body.last_goal, self._clock.now_ns())
        if self._ending.is_over:
            self._conclude(self._ending)
        return wanted

    def _conclude(self, ending: Ending) -> None:
        self._ending = None
        if ending.unreached:
            self._links.event("error", "torque_unconfirmed", unconfirmed(ending.unreached))
        text = "torque is off on the others" if ending.unreached else "torque is off"
        if not ending.releases:
            share = self.body.profile.escalation.park_torque
            text = f"torque stays on, at {share:.0%}: the profile does not release the arm; its power switch does"
        self.machine.fire(
            NodeEvent.RELEASED if ending.releases else NodeEvent.LEFT_PARKED, self.machine.reason
        )
        self._links.event("info", "released", text)
        self._links.lease(self.lease)

    def _show(self, mode: Mode, reason: str) -> None:
        severity: Severity = "warning" if mode in ("holding", "emergency") else "info"
        self._links.event(severity, f"mode_{mode}", f"{mode}{': ' + reason if reason else ''}")


def _driving(plan: Plan) -> Plan:
    """That of whoever moves the arm."""
    return led(plan, plan.leader_ms) if plan.is_shadow and plan.leader_ms is not None else plan

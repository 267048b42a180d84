"""What a person, a pipe or a failing bus may ask of the control loop, and when the answer is no."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgevla.arguments import Arguments, SetTask, Start
from edgevla.errors import BusError, EdgeVLAError, UsageError
from edgevla.execution import Execution, judge_latency
from edgevla.execution.strategies import kind_of

from .links import STOPPING
from .rescue import unconfirmed
from .rollout import plan_from

if TYPE_CHECKING:
    from .modes import Modes

ONE_PRESS_NS = 300_000_000
"""An emergency stop arrives by two ways; what comes within 0.3 s is one press."""


class Commands:
    """Obeys on behalf of one loop. Every handler of a command returns why not, or an empty string."""

    def __init__(self, loop: Modes) -> None:
        self._loop = loop
        self._pressed_ns: int | None = None
        self._handlers: dict[str, Callable[[Any], str]] = {
            "start": self._start,
            "pause": self._pause,
            "hold": self._pause,
            "resume": self._resume,
            "home": self._home,
            "stop": self._stop,
            "emergency_stop": lambda _: self.emergency_stop(),
            "clear_stop": self._clear_stop,
            "set_task": self._set_task,
            "set_execution": self._set_execution,
            "reset": self._reset,
        }

    def obey(self, action: str, arguments: Arguments | None) -> tuple[bool, str]:
        """(is accepted, reason). arguments: of the class that belongs to the action."""
        handler = self._handlers.get(action)
        if handler is None:
            return False, f"the robot node does not know '{action}'"
        if self._loop.must_end and action == "start":  # it may have come with the news that nobody is left
            return False, "the robot's processes are ending"
        if self._loop.mode == "emergency" and action not in ("emergency_stop", "clear_stop"):
            return False, "the emergency stop is latched; clear it first"
        try:
            reason = handler(arguments)
        except EdgeVLAError as error:
            reason = str(error)
        return not reason, reason

    # -- one method per command -------------------------------------------------------------------------------

    def _start(self, arguments: Start) -> str:
        loop = self._loop
        if loop.mode not in ("idle", "stopped") or loop.ending is not None:
            return f"cannot start while {loop.mode}"
        plan = plan_from(arguments, loop.robot.max_hz, loop.n_joints)
        loop.has_failed = False
        loop.begin(plan)
        return ""

    def _pause(self, _: None) -> str:
        loop = self._loop
        if loop.mode not in ("running", "holding", "homing"):
            return f"cannot pause while {loop.mode}"
        if loop.executor is not None:
            loop.executor.reset()
        loop.set_mode("paused", "asked to")
        return ""

    def _resume(self, _: None) -> str:
        loop = self._loop
        if loop.mode != "paused" or loop.plan is None:
            return f"cannot resume while {loop.mode}" if loop.plan else "nothing was started yet"
        loop.restart_grid()
        loop.set_mode("running", "")
        return ""

    def _home(self, _: None) -> str:
        loop = self._loop
        if not loop.is_torque_on or loop.ending is not None:
            return f"cannot move home while {loop.mode}"
        if loop.executor is not None:
            loop.executor.reset()
        loop.set_mode("homing", "moving slowly to the home pose")
        return ""

    def _stop(self, _: None) -> str:
        if self._loop.ending is None:
            self._loop.stop("rest", "asked to stop: to the rest pose, then released")
        return ""

    def emergency_stop(self) -> str:
        """First: freeze, latched. Again: release. The same press by another way is not a second one."""
        loop, now = self._loop, self._loop.clock.now_ns()
        if self._pressed_ns is not None and now - self._pressed_ns < ONE_PRESS_NS:
            return ""
        self._pressed_ns = now
        loop.counters["emergency_stops"] += 1
        if loop.mode == "emergency":
            loop.stop("release", "released by the second emergency stop")
            return ""
        loop.ending = None
        if loop.executor is not None:
            loop.executor.reset()
        loop.freeze()
        loop.set_mode("emergency", "frozen; press again to release, clear the stop to go on")
        return ""

    def _clear_stop(self, _: None) -> str:
        loop = self._loop
        if loop.mode != "emergency":
            return "no emergency stop is latched"
        if loop.ending is not None:
            return "the arm is being released"
        self._pressed_ns = None
        loop.set_mode("paused" if loop.is_torque_on else "idle", "emergency stop cleared")
        return ""

    def _set_task(self, arguments: SetTask) -> str:
        self._loop.task = arguments.task
        self._loop.links.event("info", "task", f"task: {arguments.task}")
        return ""

    def _set_execution(self, execution: Execution) -> str:
        loop = self._loop
        if loop.executor is None or loop.plan is None:
            return "nothing was started yet"
        if kind_of(execution) not in loop.plan.allowed:
            raise UsageError(f"this bundle allows {', '.join(loop.plan.allowed)}, not {kind_of(execution)}")
        latency_ms = max(loop.plan.latency_ms, 1000 * loop.executor.delay_steps / loop.plan.fps)
        verdict = judge_latency(
            execution, chunk_size=loop.plan.chunk_size, fps=loop.plan.fps, latency_ms=latency_ms
        )
        if verdict.severity == "error":
            return verdict.sentence
        if verdict.sentence:
            loop.links.event("warning", "latency", verdict.sentence)
        loop.executor.switch(execution)
        loop.links.event("info", "execution", f"execution: {kind_of(execution)}")
        return ""

    def _reset(self, _: None) -> str:
        if self._loop.plan is None:
            return "nothing was started yet"
        self._loop.restart_grid()
        return ""

    # -- what is not asked but happens -------------------------------------------------------------------------

    def nobody_left(self, what: str) -> None:
        """A pipe closed or a signal came: hold, park, end."""
        loop = self._loop
        loop.must_end = True
        if not loop.is_held:  # an ordinary end
            loop.is_done = True
            return
        words = {
            "guardian_gone": "the guardian has died",
            "supervisor_gone": "the supervisor has gone",
            "terminated": "asked to terminate",
        }[what]
        then = "is held, parked and released" if loop.ending is None else "comes to rest as was asked"
        loop.links.event("stop", what, f"{words}; the arm {then}")
        if loop.ending is None:
            loop.stop("fault", words)

    def bus_gone(self, sentence: str) -> None:
        """A line has gone. Arms on other lines are held, parked and released; without any the run ends at once."""
        loop = self._loop
        loop.has_failed = loop.must_end = True
        loop.tell_once("stop", "bus_gone", sentence)
        if loop.is_torque_on and not loop.robot.is_cut_off:
            if loop.ending is None:
                loop.stop("fault", sentence)
            return
        loop.links.lease(STOPPING)
        try:
            unreached = loop.robot.set_torque(False) if loop.is_torque_on else []
        except BusError:
            unreached = [joint.motor for joint in loop.profile.joints]
        if unreached:
            loop.links.event("error", "torque_unconfirmed", unconfirmed(unreached))
        loop.ending, loop.is_torque_on, loop.is_done = None, False, True
        loop.set_mode("stopped", sentence)

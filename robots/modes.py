"""What the robot node is and can become: its mode, torque, rollout and ending. The control loop stands on this.

Commands (`commands.py`), findings (`safety.py`) and closed pipes change it; the loop reads it every tick.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from edgevla.clock import NS_PER_S, Clock
from edgevla.errors import BusError
from edgevla.execution import Executor
from edgevla.messages import Mode, Severity

from .arm import Reading, Robot
from .ending import Ending, Kind
from .grip import GripRelief
from .links import RELEASED, STOPPING, Links
from .profile import Profile
from .rescue import unconfirmed
from .rollout import Plan
from .safety import SafetyFilter, Watch, make_caps

IDLE_HZ = 30.0
REPEAT_NS, NEVER_NS = 5 * NS_PER_S, 1 << 62


class Modes:
    """One connected robot, torque off at first. `begin` energises, `stop` brings to rest."""

    def __init__(self, profile: Profile, robot: Robot, links: Links, clock: Clock) -> None:
        self.profile, self.robot, self.links, self.clock = profile, robot, links, clock
        self.n_joints = len(profile.joints)
        self.mode: Mode = "idle"
        self.reason = "waiting for start"
        self.counters: Counter[str] = Counter()
        self.is_done, self.must_end, self.has_failed = False, False, False
        self.is_torque_on = False
        self.is_left_parked = False
        """Whether torque stays on, reduced, because the profile's escalation does not release."""
        self.period_ns = round(NS_PER_S / min(IDLE_HZ, profile.rates.servo_hz))
        self.plan: Plan | None = None
        self.executor: Executor | None = None
        self.ending: Ending | None = None
        self.task = ""
        self.reading: Reading | None = None
        self.wants_new_grid = False
        self.home = np.array([joint.home for joint in profile.joints], np.float32)
        self._rest = np.array([joint.rest for joint in profile.joints], np.float32)
        self.filter = self._make_filter(None)
        self.watch = self._make_watch()
        self.grip = GripRelief(profile.joints, *robot.limits())
        self.pending: dict[int, int] = {}
        self.next_request, self.first_request = 0, 0
        self.answered_ns = 0
        self.told: dict[str, int] = {}
        self.remarks: list[tuple[str, str]] = []
        """(code, sentence): told with the first start, when there is somebody to hear."""
        self.t0_ns = 0

    @property
    def is_held(self) -> bool:
        """Whether somebody must still look after the arm: it has torque, and is not left parked."""
        return self.is_torque_on and not self.is_left_parked

    @property
    def is_stopping(self) -> bool:
        return self.ending is not None or self.mode == "emergency"

    def begin(self, plan: Plan) -> None:
        """Torque on where the arm is, and a new grid: tick 0 is the next tick."""
        self.plan, self.task = plan, plan.task
        self.executor = plan.executor(self.n_joints)
        self.filter = self._make_filter(plan)
        self.watch = self._make_watch()
        self.grip.forget()
        self.told.clear()
        self.energise()
        self.restart_grid()
        self.set_mode("running", "")
        self._check_first_state()
        while self.remarks:
            self.links.event("info", *self.remarks.pop(0))

    def energise(self) -> None:
        """Goals at the present position, then torque on: in the other order the arm would jump.

        Raises:
            BusError: a servo did not take its torque; names them. All torque is off again.
        """
        # Servo by servo, so longer than a running loop may be silent; and whoever dies in between leaves torque on.
        self.links.lease(STOPPING)
        self.robot.set_torque_limit(1.0)
        unreached = self.robot.set_torque(True)
        if unreached:
            self.robot.set_torque(False)
            raise BusError(f"torque could not be switched on at {', '.join(unreached)}; the arm stays off")
        self.is_torque_on, self.is_left_parked = True, False
        self.reading = self.robot.exchange(None, self.clock.now_ns() + self.period_ns)
        self.filter.begin(self.robot.present_goal())

    def restart_grid(self) -> None:
        """A new rollout on a new grid: chunks of before are nobody's."""
        self.period_ns = self.plan.period_ns if self.plan else self.period_ns
        self.wants_new_grid = True
        self.pending.clear()
        self.first_request = self.next_request
        self.answered_ns = 0
        if self.executor is not None:
            self.executor.reset()
        if self.filter.last_goal is not None:
            self.filter.begin(self.filter.last_goal)

    def freeze(self) -> None:
        """The goal is where the arm is now; a joint that does not say where it is keeps its goal."""
        if self.is_torque_on:
            assert self.filter.last_goal is not None
            is_known = self.robot.last_reading().position_age_us <= 2 * self.period_ns / 1000
            self.filter.begin(np.where(is_known, self.robot.present_goal(), self.filter.last_goal))
            self.grip.forget()

    def stop(self, kind: Kind, reason: str) -> None:
        """Begins to come to rest; a graver ending replaces a milder one."""
        self.reason = reason
        if self.executor is not None:
            self.executor.reset()
        if not self.is_held:
            self.set_mode("stopped", reason)
            self.is_done = self.must_end
            return
        if kind == "fault":
            self.freeze()
        rest, _ = self.grip.bend(self._rest, self._rest)  # a blocked gripper is not asked to reach it
        assert rest is not None
        self.ending = Ending(kind, self.profile.escalation, self.clock.now_ns(), rest)
        if self.mode != "emergency":
            self.set_mode("stopped", reason)

    def finish_ending(self) -> None:
        assert self.ending is not None
        ending, self.ending = self.ending, None
        if ending.unreached:
            self.links.event("error", "torque_unconfirmed", unconfirmed(ending.unreached))
        text = "torque is off on the others" if ending.unreached else "torque is off"
        if self.profile.escalation.release or ending.kind == "release":
            self.is_torque_on = False
        else:
            self.is_left_parked = True
            share = self.profile.escalation.park_torque
            text = f"torque stays on, at {share:.0%}: the profile does not release the arm; its power switch does"
        self.links.event("info", "released", text)
        self.links.lease(RELEASED)
        self.is_done = self.must_end or self.has_failed

    def set_mode(self, mode: Mode, reason: str) -> None:
        if mode != self.mode:
            severity: Severity = "warning" if mode in ("holding", "emergency") else "info"
            self.links.event(severity, f"mode_{mode}", f"{mode}{': ' + reason if reason else ''}")
        self.mode, self.reason = mode, reason

    def tell_once(self, severity: Severity, code: str, text: str) -> None:
        """A person sees the first, then one every five seconds with the number of the others; what stopped, once."""
        now = self.clock.now_ns()
        self.counters[f"finding_{code}"] += 1
        if now >= self.told.get(code, 0):
            self.told[code] = NEVER_NS if severity == "stop" else now + REPEAT_NS
            self.links.event(severity, code, text, count=self.counters[f"finding_{code}"])

    def _make_filter(self, plan: Plan | None) -> SafetyFilter:
        low, high = self.robot.limits()
        made = make_caps(
            low,
            high,
            np.array([joint.max_velocity for joint in self.profile.joints], np.float32),
            np.array([joint.is_gripper for joint in self.profile.joints]),
            self.profile.rates.home_speed,
            plan.trained_speed if plan else None,
        )
        period_ns = plan.period_ns if plan else self.period_ns
        return SafetyFilter(made, period_ns / NS_PER_S)

    def _make_watch(self) -> Watch:
        joints = self.profile.joints
        names, grippers = [j.name for j in joints], [j.is_gripper for j in joints]
        return Watch(self.profile.limits, names, grippers, self.robot.explain_silence)

    def _check_first_state(self) -> None:
        """Says so when the arm stands where training never was."""
        seen = self.plan.trained_range if self.plan else None
        if seen is None or self.reading is None:
            return
        margin = 0.1 * (seen[1] - seen[0]) + 1e-3
        position = self.reading.position
        outside = (position < seen[0] - margin) | (position > seen[1] + margin)
        for i in np.flatnonzero(outside):
            self.links.event(
                "warning",
                "outside_training",
                f"{self.profile.joints[i].name} is at {position[i]:.1f}; training saw {seen[0][i]:.1f} to "
                f"{seen[1][i]:.1f}: the policy may do anything from here",
            )

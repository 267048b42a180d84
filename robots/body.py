"""The arm in the loop's hands: its torque, the goal it was given last, and what bends and judges goals.

Whoever moves the arm goes through here: `energise` and `switch_off` are the only places where the loop's torque changes,
and the last goal is always one that the servos were really given. What it may do when is the machine's (`modes.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from edgevla.clock import NS_PER_S, Clock
from edgevla.errors import BusError

from .arm import Reading, Robot
from .grip import GripRelief
from .profile import Profile
from .rollout import Plan
from .safety import SLOW_START_FROM_S, Judgement, Level, SafetyFilter, Watch, make_caps

AT_GOAL_SHARE = 1 / 3
"""Of the following error that would stop a run: a joint this near to its goal is there."""
FRESH_PERIODS = 2


class Body:
    """One connected robot, torque off at first. period_ns: of the loop; changes with every plan."""

    def __init__(self, profile: Profile, robot: Robot, clock: Clock, period_ns: int) -> None:
        self.profile, self.robot, self._clock = profile, robot, clock
        self._period_ns = period_ns
        low, high = robot.limits()
        self.home = np.clip([joint.home for joint in profile.joints], low, high).astype(np.float32)
        wanted = np.array([joint.rest for joint in profile.joints], np.float32)
        self._rest = np.clip(wanted, low, high)
        self._bent_rest = [
            (joint.name, float(asked), float(got))
            for joint, asked, got in zip(profile.joints, wanted, self._rest, strict=True)
            if abs(asked - got) > 1e-3
        ]
        self.is_torque_on = False
        self.is_shadowing = False
        """Whether a plan is followed in thought: goals are made and bent, and none is sent."""
        self._is_reduced = False
        self.filter = self._make_filter(None)
        self._watch = self._make_watch()
        self._grip = GripRelief(profile.joints, low, high)
        self.reading: Reading | None = None

    # -- torque ---------------------------------------------------------------------------------------------------

    def energise(self, plan: Plan) -> None:
        """Torque on where the arm is, under the caps of a plan. Goals are set first: in the other order it would jump.

        Raises:
            BusError: a joint or servo does not allow it; names them. All torque is off again.
        """
        self._period_ns = plan.period_ns
        self.filter, self._watch = self._make_filter(plan), self._make_watch()
        self._grip.forget()
        if self.robot.is_shadow:
            self.reading = self.robot.exchange(None, self._clock.now_ns() + self._period_ns)
            self.filter.begin(self.robot.present_goal())
            self.is_shadowing = True
            return
        try:
            unreached = self.robot.set_torque(True)
        except BusError:
            self.switch_off()
            raise
        if unreached:
            self.switch_off()
            raise BusError(f"torque could not be switched on at {', '.join(unreached)}; the arm stays off")
        self.is_torque_on = True
        self.limit_torque(1.0)
        self.reading = self.robot.exchange(None, self._clock.now_ns() + self._period_ns)
        self.filter.begin(self.robot.present_goal())

    def follow(self, plan: Plan) -> None:
        """Another plan's period and caps, with the torque on: the goal stays what it is."""
        goal = self.last_goal
        self._period_ns = plan.period_ns
        self.filter = self._make_filter(plan)
        self.filter.begin(goal)

    def filter_in_thought(self, plan: Plan) -> SafetyFilter:
        """What would bend the goals of a plan that is followed in thought, beside the one that moves the arm."""
        made = self._make_filter(replace(plan, leader_ms=None))
        made.begin(self.robot.present_goal())
        return made

    def switch_off(self) -> Sequence[str]:
        """Torque off on every servo; the motors for which it could not be confirmed."""
        if self.robot.is_shadow:
            self.is_shadowing = False
            return []
        unreached = self.robot.set_torque(False)
        self.is_torque_on = self._is_reduced = False
        return unreached

    def limit_torque(self, share: float) -> None:
        self.robot.set_torque_limit(share)
        self._is_reduced = share < 1.0

    @property
    def is_reduced(self) -> bool:
        """Whether the arm has less than its torque: it may sink from where its goals are."""
        return self._is_reduced

    def lost(self) -> Sequence[str]:
        """No line is left: what could be done about torque is done. Motors for which it could not be confirmed."""
        if not self.is_torque_on:
            return []
        try:
            return self.switch_off()
        except BusError:
            self.is_torque_on = False
            return [joint.motor for joint in self.profile.joints]

    def saw(self, reading: Reading) -> None:
        """What this tick's exchange brought."""
        self.reading = reading

    # -- goals ----------------------------------------------------------------------------------------------------

    @property
    def last_goal(self) -> np.ndarray:
        """float32 (D,): what the servos were given last. Only while torque is on."""
        assert self.filter.last_goal is not None
        return self.filter.last_goal

    def freeze(self) -> None:
        """The goal is where the arm is now; a joint that does not say where it is keeps its goal."""
        if not self.is_torque_on:
            return
        oldest_us = FRESH_PERIODS * self._period_ns / 1000
        is_known = self.robot.last_reading().position_age_us <= oldest_us
        self.filter.begin(np.where(is_known, self.robot.present_goal(), self.last_goal))
        self._grip.forget()

    def approach(self) -> None:
        """The next wanted goal may be far from the last one: it is gone to slowly."""
        if self.filter.last_goal is not None:
            self.filter.begin(self.robot.present_goal() if self.is_shadowing else self.filter.last_goal)

    @property
    def is_approaching(self) -> bool:
        return self.filter.is_approaching

    def far_from(self, wanted: np.ndarray | None) -> str:
        """Which joint has farthest to go, where the way is not a short one; else an empty string."""
        if wanted is None or np.shape(wanted) != self.last_goal.shape or not np.isfinite(wanted).all():
            return ""
        away = np.abs(np.clip(wanted, self.filter.caps.low, self.filter.caps.high) - self.last_goal)
        i = int(np.argmax(away / np.maximum(self.filter.caps.speed, 1e-6)))
        if away[i] <= self.filter.caps.speed[i] * SLOW_START_FROM_S:
            return ""
        return f"{self.profile.joints[i].name} by {away[i]:.1f}"

    def bent_home(self) -> np.ndarray:
        """float32 (D,): the home pose; a blocked gripper is not asked for it."""
        home, _ = self._grip.bend(self.home, self.last_goal)
        assert home is not None
        return home

    def rest(self) -> np.ndarray:
        """float32 (D,): the rest pose as near as the joints reach; a blocked gripper is not asked for it."""
        rest, _ = self._grip.bend(self._rest, self._rest)
        assert rest is not None
        return rest

    def unreachable_rest(self) -> str:
        """Which joints' rest lies outside what they reach, in one sentence; empty: none."""
        if not self._bent_rest:
            return ""
        said = ", ".join(f"{name} {asked:g} (it gets to {got:.1f})" for name, asked, got in self._bent_rest)
        return (
            f"the rest pose lies outside the calibrated range: {said}; the arm ends as near as it gets. If the "
            "joint can go there by hand, calibrate again, through its whole range"
        )

    def bend(self, wanted: np.ndarray | None, is_slow: bool) -> tuple[np.ndarray | None, np.ndarray]:
        """float32 (D,) goal that may be sent (in a shadow: might), None while torque is off; uint16 (D,) reasons."""
        if not (self.is_torque_on or self.is_shadowing) or self.filter.last_goal is None:
            return None, np.zeros(len(self.profile.joints), np.uint16)
        wanted, held_back = self._grip.bend(wanted, self.filter.last_goal)
        goal, bits = self.filter.allow(wanted, is_slow, self.robot.withheld)
        return goal, bits | held_back

    def renew_torque(self, goal: np.ndarray) -> None:
        """A gripper that has just been let go to where it holds lightly: that clears its servo's report."""
        for motor in self._grip.arrived(goal):
            self.robot.renew_torque(motor)

    def is_at_goal(self) -> bool:
        """Whether every joint but the grippers is where it was told to be, roughly."""
        if self.filter.last_goal is None:
            return True
        near = AT_GOAL_SHARE * self.profile.limits.following_error
        away = np.abs(self.robot.present_goal() - self.filter.last_goal)
        return bool((away <= near)[[not joint.is_gripper for joint in self.profile.joints]].all())

    def ticks(self) -> Mapping[str, int]:
        """Raw positions by motor, of the joints that were read in the last two periods."""
        oldest_us = FRESH_PERIODS * self._period_ns / 1000
        ages, ticks = self.robot.last_reading().position_age_us, self.robot.present_ticks()
        joints = self.profile.joints
        return {joint.motor: int(ticks[k]) for k, joint in enumerate(joints) if ages[k] <= oldest_us}

    # -- judging --------------------------------------------------------------------------------------------------

    def judge(self, goal: np.ndarray | None, is_sinking: bool, is_gripping: bool) -> list[Judgement]:
        """What is wrong with what was measured, the gravest first.

        goal: what was sent. is_sinking: torque is being taken away, so the arm need not be where its goals are.
        is_gripping: whether an overloaded gripper may be let go.
        """
        assert self.reading is not None
        reading, now_ns, servos = self.reading, self._clock.now_ns(), self.robot.health()
        found = self._watch.look(
            reading.position,
            reading.position_age_us,
            None if is_sinking else goal,
            servos,
            now_ns,
            self.is_torque_on,
            self._period_ns / 1000,
        )
        found += self._jumps()
        if is_gripping and goal is not None:
            found += self._grip.look(servos, goal, self.robot.present_goal(), now_ns)
        return sorted(found, key=lambda finding: -finding.level)

    def _jumps(self) -> list[Judgement]:
        if not self.is_torque_on or not (names := self.robot.jumped):
            return []
        text = (
            f"{', '.join(names)} jumped within a tick, and stayed there: a horn or gear has slipped, or the servo has "
            "restarted; look after it, then: edgevla calibrate --check"
        )
        return [Judgement(Level.STOP, "jump", text)]

    def outside_training(self, seen: np.ndarray | None) -> list[str]:
        """A sentence per joint that stands where training never was. seen: float32 (2, D), lowest and highest."""
        if seen is None or self.reading is None:
            return []
        margin = 0.1 * (seen[1] - seen[0]) + 1e-3
        position = self.reading.position
        outside = (position < seen[0] - margin) | (position > seen[1] + margin)
        return [
            f"{self.profile.joints[i].name} is at {position[i]:.1f}; training saw {seen[0][i]:.1f} to {seen[1][i]:.1f}: "
            "the policy may do anything from here"
            for i in np.flatnonzero(outside)
        ]

    # -- made from the profile ------------------------------------------------------------------------------------

    def _make_filter(self, plan: Plan | None) -> SafetyFilter:
        low, high = self.robot.limits()
        joints = self.profile.joints
        made = make_caps(
            low,
            high,
            np.array([joint.max_velocity for joint in joints], np.float32),
            np.array([joint.is_gripper for joint in joints]),
            self.profile.rates.home_speed,
            plan.trained_speed if plan else None,
        )
        # Beside a person who holds a leader arm, what is a short way for a policy is a jump, in either direction.
        has_leader = plan is not None and plan.leader_ms is not None
        return SafetyFilter(made, self._period_ns / NS_PER_S, 0.0 if has_leader else SLOW_START_FROM_S)

    def _make_watch(self) -> Watch:
        joints = self.profile.joints
        names, grippers = [j.name for j in joints], [j.is_gripper for j in joints]
        return Watch(self.profile.limits, names, grippers, self.robot.explain_silence)

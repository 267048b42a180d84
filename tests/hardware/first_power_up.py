"""The first power-up of an arm that nobody has run yet, in steps that a person follows: reading, one servo, all of them.

    1 to 5   only read: who answers, volts and heat, torque, joints moved by hand, calibration
    6        settings are written, torque stays off
    7, 8     the last joint alone (a gripper), at a fifth of its torque: it holds, then goes a little and back
    9, 10    all joints at a third of their torque: they hold, then each goes 3 degrees and back
    11       let down little by little, torque off

A step raises AssertionError or an EdgeVLAError with what is wrong; `PowerUp.close` lets the arm down whatever happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from edgevla.errors import BusError
from edgevla.robots import handshake
from edgevla.robots.arm import Reading, Robot
from edgevla.robots.calibration import load
from edgevla.robots.ports import open_ports
from edgevla.robots.profile import load_profile

ALONE, ALL = 0.2, 0.33
"""Share of the torque, for one servo and for all."""
STILL, MOVED, STEP = 3.0, 5.0, 3.0
"""Units of a joint (degrees, percent): drift of one that holds, what a hand moves at least, how far a joint goes."""
HAND_S, HOLD_S, WAY_S = 60.0, 2.0, 1.5
PERIOD_NS = 20_000_000


class PowerUp:
    """One arm on its way. ask: shows a sentence and returns when the person says go on; raises to stop."""

    def __init__(
        self, robot: str, ports: Sequence[str], calibration: str | None, ask: Callable[[str], None]
    ) -> None:
        self.profile = load_profile(robot)
        self.ask = ask
        self.calibration_id = calibration
        self._opened = open_ports(self.profile, ports)
        self.robot = Robot(self.profile, self._opened)

    def close(self) -> None:
        """Whatever was switched on is held where it is, let down and switched off."""
        try:
            if handshake.energised(self.robot.buses, self.profile):
                self.robot.rescue.freeze()
                self.robot.rescue.lower()
            self.robot.rescue.release()
        finally:
            for port in self._opened.values():
                port.close()

    # -- reading alone

    def everybody_answers(self) -> None:
        """1. Every servo of the profile answers, under its own id and as its own model."""
        for bus in self.profile.buses:
            line = self.robot.buses[bus.name]
            line.greet()
            silent = [motor.name for motor in bus.motors if line.ping(motor.id) is None]
            assert not silent, (
                f"{', '.join(silent)} do not answer; edgevla doctor --robot {self.profile.name}"
            )
            handshake.check_motors(line, bus, self.profile)

    def volts_and_heat(self) -> None:
        """2. Supply and temperatures are within the profile's limits, and no servo reports a fault."""
        for bus in self.profile.buses:
            handshake.check_health(self.robot.buses[bus.name], bus, self.profile.limits)

    def torque_is_off(self) -> None:
        """3. The arm is limp."""
        found = handshake.energised(self.robot.buses, self.profile)
        assert not found, f"{', '.join(found)} have torque: hold the arm and switch its power off and on"

    def joints_follow_a_hand(self) -> None:
        """4. Each joint, moved by hand, is seen to move; nothing is written."""
        names = [joint.motor for joint in self.profile.joints]
        self.ask(
            "Support the arm, press Enter, then move every joint by hand, one after the other, to and fro."
        )
        least = most = np.array([self.robot.rescue.positions()[name] for name in names])
        until = time.monotonic() + HAND_S
        while True:
            present = self.robot.rescue.positions()
            now = np.array([present.get(name, low) for name, low in zip(names, least, strict=True)])
            least, most = np.minimum(least, now), np.maximum(most, now)
            still = [
                name for name, span in zip(names, most - least, strict=True) if span < MOVED * 4096 / 360
            ]
            if not still:
                return
            assert time.monotonic() < until, (
                f"{', '.join(still)} did not move, or their encoders do not see it"
            )

    def calibration_is_the_servos(self) -> None:
        """5. The calibration file and what the servos hold agree, where the arm has a file."""
        if self.profile.is_calibrated_by_file:
            self.robot.calibration = load(self.profile, self.calibration_id)
            handshake.check_calibration(self.robot.buses, self.profile, self.robot.calibration)

    # -- settings

    def connects(self) -> None:
        """6. Settings of the profile are written and read back; torque is still off."""
        self.ask("Put the arm near its rest pose. Enter: its settings are written; nothing moves.")
        self.robot.connect()
        self.torque_is_off()

    # -- one servo

    def one_holds(self) -> None:
        """7. The last servo alone takes its torque, weakly, and stays where it is."""
        line, servo_id = self._last()
        self.ask(
            "Hands off. Enter: the last servo alone (the gripper) takes a fifth of its torque and stays."
        )
        before = line.read_raw(servo_id, "present_position")
        line.write_raw(servo_id, line.torque_limit, int(ALONE * line.full_torque))
        line.write_raw(servo_id, "goal_position", before)
        line.write_raw(servo_id, "torque_enable", 1)
        time.sleep(HOLD_S)
        drift = abs(line.read_raw(servo_id, "present_position") - before)
        assert drift < STILL * 4096 / 360, f"it went {drift} steps by itself; look at its horn and its goal"

    def one_moves(self) -> None:
        """8. It goes a little, back, and is let go."""
        line, servo_id = self._last()
        before = line.read_raw(servo_id, "present_position")
        far = before + round(MOVED * 4096 / 360)
        try:
            for goal in (far, before):
                line.write_raw(servo_id, "goal_position", goal)
                time.sleep(WAY_S)
                missed = abs(line.read_raw(servo_id, "present_position") - goal)
                assert missed < STILL * 4096 / 360, f"it stopped {missed} steps from its goal"
        finally:
            line.write_raw(servo_id, "torque_enable", 0)

    def _last(self):
        bus = self.profile.buses[-1]
        return self.robot.buses[bus.name], bus.motors[-1].id

    # -- all of them

    def all_hold(self) -> None:
        """9. All take a third of their torque and stay where they are."""
        self.ask(
            "Clamped, nothing within reach, a hand at the switch? Enter: all joints take a third of their torque."
        )
        self.robot.set_torque_limit(ALL)
        before = self._at_rest().position
        unreached = self.robot.set_torque(True)
        assert not unreached, f"{', '.join(unreached)} did not take torque"
        drift = np.abs(self._drive(before, HOLD_S).position - before)
        assert drift.max() < STILL, f"joints went {np.round(drift, 1)} by themselves"

    def all_move(self) -> None:
        """10. Each joint goes 3 degrees within its range and back, one after the other."""
        self.ask("Enter: each joint goes 3 degrees and back, one after the other.")
        start = self._at_rest().position.astype(float)
        for k, joint in enumerate(self.profile.joints):
            goal = start.copy()
            goal[k] += STEP
            if (self._ticks(goal) != self._ticks(goal, is_clamped=False))[k]:
                goal[k] -= 2 * STEP
            reached = self._drive(goal, WAY_S).position[k]
            assert abs(reached - start[k]) > STEP / 3, f"{joint.name} did not move"
            self._drive(start, WAY_S)

    def is_let_down(self) -> None:
        """11. The arm sinks little by little, and its torque is off."""
        self.ask("Enter: the arm is let down.")
        self.robot.rescue.freeze()
        self.robot.rescue.lower()
        unreached = self.robot.set_torque(False)
        if unreached:
            raise BusError(
                f"torque of {', '.join(unreached)} could not be confirmed off: hold the arm, cut the power"
            )
        self.torque_is_off()

    def _ticks(self, goal: np.ndarray, is_clamped: bool = True) -> np.ndarray:
        return self.robot.units.ticks(goal, is_clamped=is_clamped)

    def _at_rest(self) -> Reading:
        return self.robot.exchange(None, self.robot.clock.now_ns() + 2 * PERIOD_NS)

    def _drive(self, goal: np.ndarray, seconds: float) -> Reading:
        """Sends goals that go straight there, at 50 Hz; the last reading."""
        start, n = self._at_rest().position.astype(float), max(1, int(seconds * 1e9 / PERIOD_NS))
        for k in range(1, n + 1):
            deadline = self.robot.clock.now_ns() + PERIOD_NS
            reading = self.robot.exchange(start + (goal - start) * min(1.0, 2 * k / n), deadline)
            self.robot.clock.sleep_until(deadline)
        return reading


STEPS = (
    PowerUp.everybody_answers, PowerUp.volts_and_heat, PowerUp.torque_is_off, PowerUp.joints_follow_a_hand,
    PowerUp.calibration_is_the_servos, PowerUp.connects, PowerUp.one_holds, PowerUp.one_moves, PowerUp.all_hold,
    PowerUp.all_move, PowerUp.is_let_down,
)  # fmt: skip

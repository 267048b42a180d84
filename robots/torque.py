"""An arm's torque: how it comes on without a jump, and goes off on every servo that can be reached.

Before it comes on, goals stand where the joints are. A joint outside its range cannot be told to stay there: a little
outside it comes back at a speed that its servo is limited to meanwhile, farther outside a person has to move it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np

from edgevla.clock import Clock
from edgevla.errors import BusError, UsageError

from . import handshake
from .arm_line import ArmLine
from .bus.servo_bus import ServoBus
from .profile import Profile
from .rescue import Rescue
from .units import OUTSIDE_TICKS, JointUnits, OutOfRange

RETURN_TICKS_S = 341.0
"""30 degrees/s: how fast a joint that is found a little outside its range comes back."""
RETURN_LOOK_NS = 20_000_000
RETURN_PATIENCE_NS = 300_000_000
"""More than its way takes; what is not there then stands against something, or hangs in its own weight."""


class Torque:
    """Of all servos of one robot. is_on: as it was switched last."""

    def __init__(
        self,
        profile: Profile,
        lines: Sequence[ArmLine],
        rescue: Rescue,
        clock: Clock,
        say: Callable[[str], None],
    ) -> None:
        self._profile, self._lines, self._rescue, self._clock, self._say = profile, lines, rescue, clock, say
        self.is_on = False

    def switch_off(self) -> list[str]:
        """The motors for which it could not be confirmed."""
        self.is_on = False
        self._clear_watchdogs()
        unreached = self._rescue.release()
        self._note(unreached)
        return unreached

    def switch_on(self, units: JointUnits) -> list[str]:
        """The motors that did not take it. Raises BusError for a joint too far outside its range."""
        unreached = self._energise(units)
        self.is_on = not unreached
        self._note(unreached)
        return unreached

    def _note(self, unreached: Sequence[str]) -> None:
        for line in self._lines:
            for health in line.health.servos.values():
                if health.name not in unreached:
                    health.torque_on = self.is_on

    def _energise(self, units: JointUnits) -> list[str]:
        self._clear_watchdogs()
        self._remind()
        if not self.is_on:
            for line in self._lines:
                handshake.align_shadows(line.line, line.bus, self._profile.limits.pair_ticks)
        ticks = self._fresh_ticks()
        if isinstance(ticks, list):
            return ticks
        outside = units.outside(ticks)
        if far := [each for each in outside if each.ticks > OUTSIDE_TICKS]:
            them = "it" if len(far) == 1 else "them"
            raise BusError(f"{', '.join(map(str, far))}: move {them} by hand, then start again")
        goals = np.clip(ticks, units.least, units.most)
        slowed = self._slow_down(outside)
        try:
            self._send(goals)
            unreached = self._enable()
            if outside and not unreached:
                self._send(goals)  # a Dynamixel takes where it is for its goal when torque comes on
                self._await_return(units, outside)
        finally:
            self._restore_speed(slowed)
        return unreached

    def _send(self, goals: np.ndarray) -> None:
        for line in self._lines:
            line.line.sync_write("goal_position", {i: int(goals[line.joint_of[i]]) for i in line.ids})

    def _fresh_ticks(self) -> np.ndarray | list[str]:
        """int64 (D,) positions read now; or the motors that did not answer."""
        present = self._rescue.positions()
        if silent := [joint.motor for joint in self._profile.joints if joint.motor not in present]:
            return silent
        return np.array([present[joint.motor] for joint in self._profile.joints], np.int64)

    def _remind(self) -> None:
        """Sets up again what has restarted or was changed; a person has asked for torque."""
        for line in self._lines:
            if altered := line.health.altered:
                for sentence in handshake.configure(line.line, line.bus, altered):
                    self._say(sentence)
                line.look_at(altered, self._clock)

    def _enable(self) -> list[str]:
        unreached = []
        for line in self._lines:
            bus = line.line
            for servo_id in line.order:
                with contextlib.suppress(BusError):
                    bus.write_raw(servo_id, "torque_enable", 1, is_checked=False)
            held = {i: self._torque_of(bus, i) for i in line.order}
            unreached += [line.health.servos[i].name for i, on in held.items() if on != 1]
        if not unreached and self._profile.rates.watchdog_ms:
            for line in self._lines:
                if sentence := line.line.arm_watchdog(self._profile.rates.watchdog_ms):
                    self._say(sentence)
        return unreached

    @staticmethod
    def _torque_of(bus: ServoBus, servo_id: int) -> int | None:
        try:
            return bus.read_raw(servo_id, "torque_enable")
        except BusError:
            return None

    def _slow_down(self, outside: Sequence[OutOfRange]) -> list[tuple[ServoBus, int, int]]:
        """Limits the speed of servos whose joint will move as soon as it has torque; what it was, shadows too."""
        motors = {each.motor for each in outside}
        slowed = []
        for line in self._lines:
            for motor in line.bus.motors:
                if (motor.shadow_of or motor.name) in motors:
                    bus = line.line
                    slowed.append((bus, motor.id, bus.read_raw(motor.id, bus.speed)))
                    bus.write_raw(motor.id, bus.speed, bus.speed_counts(motor.id, RETURN_TICKS_S))
        return slowed

    def _await_return(self, units: JointUnits, outside: Sequence[OutOfRange]) -> None:
        """Until all joints are inside, or have had the time that it takes."""
        far = max(each.ticks for each in outside)
        until_ns = self._clock.now_ns() + int(far / RETURN_TICKS_S * 1e9) + RETURN_PATIENCE_NS
        while self._clock.now_ns() < until_ns:
            ticks = self._fresh_ticks()
            if not isinstance(ticks, list) and not units.outside(ticks):
                return
            self._clock.sleep_until(self._clock.now_ns() + RETURN_LOOK_NS)

    @staticmethod
    def _restore_speed(slowed: Sequence[tuple[ServoBus, int, int]]) -> None:
        for bus, servo_id, speed in slowed:
            with contextlib.suppress(BusError):  # the next exchange says so; slow is safe
                bus.write_raw(servo_id, bus.speed, speed)

    def _clear_watchdogs(self) -> None:
        for line in self._lines:
            with contextlib.suppress(BusError):
                line.line.clear_watchdog()

    def renew(self, motor: str) -> None:
        """Enables one servo once more, if it has torque and has certainly not restarted."""
        for line in self._lines:
            for servo_id, health in line.health.servos.items():
                if health.name == motor:
                    if health.torque_on and servo_id not in line.health.withheld:
                        with contextlib.suppress(BusError):  # the next exchange says so
                            line.line.sync_write("torque_enable", {servo_id: 1})
                    return
        raise UsageError(f"{self._profile.name} has no motor '{motor}'")

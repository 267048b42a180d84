"""One bus of an arm with its place in the robot's vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgevla.clock import Clock
from edgevla.errors import BusError

from .bus.servo_bus import ServoBus
from .health import LineHealth
from .profile import Bus, Profile
from .rescue import goal_ids
from .units import JointUnits


class ArmLine:
    """ids: servos that get goals; joint_of: their index in the profile's joints; order: all servos, shadows too."""

    def __init__(self, bus: Bus, line: ServoBus, profile: Profile) -> None:
        self.bus, self.line = bus, line
        self.ids = goal_ids(bus)
        motors = {joint.motor: k for k, joint in enumerate(profile.joints)}
        self.joint_of = {m.id: motors[m.name] for m in bus.motors if m.name in motors}
        self.order = [m.id for m in bus.motors]
        self.health = LineHealth(bus, line, {joint.motor for joint in profile.joints if joint.is_gripper})

    def look_at(self, ids: Sequence[int], clock: Clock) -> None:
        """Servos that have just been set up: what they remember now is what they may not forget."""
        for servo_id in ids:
            values = self.line.read_block(servo_id, self.line.health_block)
            self.health.take_anew(servo_id, values, clock.now_ns())

    def reachable(self, units: JointUnits) -> JointUnits:
        """The same maps, with goals no farther than the servos let them be: beyond, one clips and another refuses."""
        least, most = units.least.copy(), units.most.copy()
        for servo_id in self.ids:
            if (ends := self.line.goal_range(servo_id)) is None:
                continue
            k = self.joint_of[servo_id]
            least[k], most[k] = max(least[k], ends[0]), min(most[k], ends[1])
            if least[k] >= most[k]:
                raise BusError(
                    f"{self.line.robot} on {self.line.port.name}: {self.line.name_of(servo_id)} takes goals from "
                    f"{ends[0]} to {ends[1]}, its range is {units.low[k]} to {units.high[k]}: correct its limits",
                    port=self.line.port.name, motor_id=servo_id, register="min_position",
                )  # fmt: skip
        return replace(units, least=least, most=most)

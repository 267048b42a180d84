"""What may be done to servos when nobody drives them any more: freeze, park at reduced torque, release.

The guardian's hands. Every action goes bus by bus and servo by servo: one that has gone or reports overload does not
keep the others from being reached, and is named. No numpy here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgevla.errors import EdgeVLAError

from .bus.port import Port
from .bus.servo_bus import BUSES, ServoBus
from .profile import Bus, Profile

FULL_PWM = 885
"""Dynamixel X: goal_pwm at which torque is not limited (100 %)."""


class Rescue:
    """What the guardian does to servos, bus by bus; a bus that has gone is skipped and named."""

    def __init__(self, profile: Profile, ports: Mapping[str, Port]) -> None:
        self.lost: dict[str, str] = {}
        self.buses = {bus.name: self._bus(bus, ports[bus.name]) for bus in profile.buses}

    @staticmethod
    def _bus(bus: Bus, port: Port) -> ServoBus:
        names = {m.id: f"{m.name}, {m.model.upper()}" for m in bus.motors}
        return BUSES[bus.protocol](port, names, robot=bus.name)

    def each(self, action: Callable[[ServoBus], None]) -> None:
        for name, bus in self.buses.items():
            try:
                bus.port.flush_input()
                action(bus)
            except EdgeVLAError as error:
                self.lost[name] = str(error)

    def freeze(self) -> None:
        self.each(self._freeze)

    def _freeze(self, bus: ServoBus) -> None:
        if "bus_watchdog" in bus.registers:  # a watchdog that fired refuses goals until it is cleared
            bus.sync_write("bus_watchdog", dict.fromkeys(bus.ids, 0))
        present = bus.sync_read(["present_position"])
        if present:
            bus.sync_write("goal_position", {i: values["present_position"] for i, values in present.items()})

    def limit_torque(self, share: float) -> None:
        def act(bus: ServoBus) -> None:
            if "torque_limit" in bus.registers:
                now = bus.sync_read(["torque_limit"])
                bus.sync_write(
                    "torque_limit", {i: min(v["torque_limit"], int(1000 * share)) for i, v in now.items()}
                )
            else:
                bus.sync_write("goal_pwm", dict.fromkeys(bus.ids, int(FULL_PWM * share)))

        self.each(act)

    def release(self) -> list[str]:
        """Torque off, servo by servo; the names of those that did not confirm."""
        unreached: list[str] = []

        def act(bus: ServoBus) -> None:
            bus.sync_write("torque_enable", dict.fromkeys(bus.ids, 0))  # all at once, then each confirms
            for servo_id in bus.ids:
                try:
                    if bus.read_raw(servo_id, "torque_enable") != 0:
                        bus.write_raw(servo_id, "torque_enable", 0)
                except EdgeVLAError:
                    unreached.append(f"{bus.motors[servo_id].split(',')[0]} ({servo_id})")

        self.each(act)
        return unreached

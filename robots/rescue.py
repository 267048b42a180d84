"""The last resort on a robot's buses: freeze, park, release. Small, without numpy, for the guardian and for `Robot`.

Every step goes on when a servo does not answer, and says which one it did not reach. ERR bits are ignored here: a
servo that reports overload has still received the instruction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from edgevla.clock import Clock, MonotonicClock
from edgevla.errors import BusError

from .bus import dynamixel
from .bus.port import Port, SerialPort
from .bus.reads import finish
from .bus.registers import Block
from .bus.servo_bus import BUSES, DynamixelBus, ServoBus
from .lowering import Lowering
from .profile import Bus, Profile

FREEZE_NS = 60_000_000
LOOK_S = 0.05
"""Between two looks at an arm that is being lowered."""
N_TRIES = 3
WRITE_TIMEOUT_NS = 15_000_000
"""For the first try; the next ones get twice as long each, for adapters that answer after 16 ms."""
FULL_TORQUE = {"feetech": 1000, "dynamixel": dynamixel.FULL_PWM}
TORQUE_LIMIT = {"feetech": "torque_limit", "dynamixel": "goal_pwm"}


def make_buses(
    profile: Profile, ports: Mapping[str, Port | int], clock: Clock | None = None
) -> dict[str, ServoBus]:
    """A bus object per line of the profile. ports: by bus name, an open port or an inherited descriptor."""
    buses = {}
    for bus in profile.buses:
        port = ports[bus.name]
        if isinstance(port, int):
            port = SerialPort(port, bus.port or bus.name, bus.baud)
        names = {motor.id: f"{motor.name}, {motor.model.upper()}" for motor in bus.motors}
        buses[bus.name] = BUSES[bus.protocol](port, names, robot=profile.name, clock=clock)
    return buses


def goal_ids(bus: Bus) -> tuple[int, ...]:
    """Servos that are given goals; shadows obey their partner."""
    return tuple(motor.id for motor in bus.motors if motor.shadow_of is None)


def full_torque(bus: Bus) -> dict[int, int]:
    """Raw torque limit of each servo at share 1: what the profile sets, else the servo's full torque."""
    register = TORQUE_LIMIT[bus.protocol]
    return {m.id: dict(m.settings).get(register, FULL_TORQUE[bus.protocol]) for m in bus.motors}


class Rescue:
    """Takes the buses of a robot to a safe state. Nothing here raises for a servo or a line that has gone.

    lost: bus name -> why its line could not be used, when it was tried last.
    """

    def __init__(self, profile: Profile, ports: Mapping[str, Port | int], clock: Clock | None = None) -> None:
        self.profile = profile
        self.clock: Clock = clock or MonotonicClock()
        self.buses = make_buses(profile, ports, self.clock)
        self.lost: dict[str, str] = {}

    def freeze(self) -> list[str]:
        """Goal := present on every servo with a goal; returns the motors that could not be read, which keep theirs."""
        unread: list[str] = []
        for bus in self.profile.buses:
            line = self.buses[bus.name]
            try:
                present = self._present(line, goal_ids(bus))
                if isinstance(line, DynamixelBus):  # a watchdog that fired refuses goals until it is cleared
                    line.sync_write("bus_watchdog", dict.fromkeys(line.ids, 0))
                if present:
                    line.sync_write("goal_position", present)
            except BusError as error:
                self.lost[bus.name] = str(error)
                present = {}
            unread += [m.name for m in bus.motors if m.shadow_of is None and m.id not in present]
        return unread

    def _present(self, line: ServoBus, ids: Iterable[int]) -> dict[int, int]:
        register = line.registers["present_position"]
        read = line.begin(Block((register,)), tuple(ids), self.clock.now_ns() + FREEZE_NS, may_merge=False)
        finish([read], self.clock)
        if read.failure is not None:
            raise read.failure
        return {i: register.decode(data) for i, data in read.replies.items()}

    def limit_torque(self, share: float) -> None:
        """Limits every servo to a share (0..1) of its torque, by one sync write per line."""
        for bus in self.profile.buses:
            limits = {i: int(full * share) for i, full in full_torque(bus).items()}
            try:
                self.buses[bus.name].sync_write(TORQUE_LIMIT[bus.protocol], limits)
            except BusError as error:
                self.lost[bus.name] = str(error)

    def lower(self, wait: Callable[[float], bool]) -> bool:
        """Less and less torque, so that the arm sinks instead of falling; parked at the first share where the profile
        does not release. wait: sleeps so many seconds, and says whether to stop here. Returns whether it did.
        """
        rule = self.profile.escalation
        if not rule.release:
            self.limit_torque(rule.park_torque)
            return wait(rule.park_ms / 1000)
        lowering = Lowering(rule, self.clock.now_ns())
        while not lowering.is_over:
            share = lowering.step(self.clock.now_ns(), self.positions())
            if share is not None:
                self.limit_torque(share)
            if wait(LOOK_S):
                return True
        return False

    def positions(self) -> dict[str, int]:
        """Raw positions by motor, of those that answer; shadows are not asked."""
        found: dict[str, int] = {}
        for bus in self.profile.buses:
            with contextlib.suppress(BusError):
                present = self._present(self.buses[bus.name], goal_ids(bus))
                found |= {m.name: present[m.id] for m in bus.motors if m.id in present}
        return found

    def release(self) -> list[str]:
        """Torque off on every servo, each by itself and three times, then by sync write. Returns those not confirmed.

        Servos with a torque limit get it back, so that the next start finds full torque.
        """
        unreached: list[str] = []
        for bus in self.profile.buses:
            line = self.buses[bus.name]
            try:
                missing = torque_off(line)
                line.sync_write(TORQUE_LIMIT[bus.protocol], full_torque(bus))
            except BusError as error:
                self.lost[bus.name] = str(error)
                missing = list(line.ids)
            unreached += [m.name for m in bus.motors if m.id in missing]
        return unreached

    def close(self) -> None:
        for line in self.buses.values():
            line.close()


def unconfirmed(motors: Sequence[str]) -> str:
    return f"torque could not be confirmed off on {', '.join(motors)}: switch the arm's power off before you touch it"


def torque_off(line: ServoBus) -> list[int]:
    """Ids whose torque could not be confirmed off. Raises BusError only when the line has gone."""
    register = line.registers["torque_enable"]
    missing = []
    for servo_id in line.ids:
        frame = line.codec.write(servo_id, register.address, b"\0")
        acknowledged = None
        for attempt in range(N_TRIES):
            with contextlib.suppress(_Refused):
                acknowledged = _transact(line, frame, servo_id, 0, WRITE_TIMEOUT_NS << attempt)
            if acknowledged is not None:
                break
        if acknowledged is None:
            missing.append(servo_id)
    line.sync_write("torque_enable", dict.fromkeys(line.ids, 0))
    if not missing:
        return []
    # No word on the write does not mean that it was not heard: ask once more what the register holds.
    still = []
    for servo_id in missing:
        with contextlib.suppress(_Refused):
            frame = line.codec.read(servo_id, register.address, 1)
            data = _transact(line, frame, servo_id, 1, WRITE_TIMEOUT_NS << N_TRIES - 1)
            if data == b"\0":
                continue
        still.append(servo_id)
    return still


class _Refused(BusError):
    pass


def _transact(line: ServoBus, frame: bytes, servo_id: int, size: int, timeout_ns: int) -> bytes | None:
    """One try; a refusal is told apart from a line that has gone."""
    try:
        return line.transact(frame, servo_id, size, timeout_ns, 1)
    except BusError as error:
        if error.fields.get("is_unplugged"):
            raise
        raise _Refused(str(error)) from error

"""The last resort on a robot's buses: freeze, let down, release. Small, without numpy, for the guardian and for `Robot`.

Every step goes on when a servo does not answer, and says which one it did not reach. ERR bits are ignored here: a
servo that reports overload has still received the instruction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

from edgevla.clock import Clock, MonotonicClock
from edgevla.errors import BusError

from .bus.port import Port, SerialPort
from .bus.protocols import BUSES
from .bus.registers import Block
from .bus.servo_bus import ServoBus
from .lowering import STEP_NS, Lowering
from .profile import Bus, Profile

FREEZE_NS = 60_000_000
N_TRIES = 3
WRITE_TIMEOUT_NS = 15_000_000
"""For the first try; the next ones get twice as long each, for adapters that answer after 16 ms."""


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
        models = {motor.id: motor.model for motor in bus.motors}
        buses[bus.name] = BUSES[bus.protocol](port, names, robot=profile.name, models=models, clock=clock)
    return buses


def goal_ids(bus: Bus) -> tuple[int, ...]:
    """Servos that are given goals; shadows obey their partner."""
    return tuple(motor.id for motor in bus.motors if motor.shadow_of is None)


def full_torque(bus: Bus) -> dict[int, int]:
    """Raw torque limit of each servo at share 1: what the profile sets, else the servo's full torque."""
    kind = BUSES[bus.protocol]
    return {m.id: dict(m.settings).get(kind.torque_limit, kind.full_torque) for m in bus.motors}


class Rescue:
    """Takes the buses of a robot to a safe state. Nothing here raises for a servo or a line that has gone.

    lost: bus name -> why its line could not be used, when it was tried last.
    """

    def __init__(self, profile: Profile, ports: Mapping[str, Port | int], clock: Clock | None = None) -> None:
        self.profile = profile
        self.clock: Clock = clock or MonotonicClock()
        self.buses = make_buses(profile, ports, self.clock)
        self.lost: dict[str, str] = {}
        self._full: dict[str, dict[int, int]] = {}
        """By bus, once it was asked: what `limit_torque(1.0)` writes."""

    def freeze(self) -> list[str]:
        """Goal := present on every servo that has torque; returns the motors that could not be read: they keep theirs.

        A servo without torque gets no goal: some firmware would switch it on by that.
        """
        unread: list[str] = []
        present: dict[int, int]
        for bus in self.profile.buses:
            line = self.buses[bus.name]
            try:
                torque = self._read(bus, "torque_enable")
                line.clear_watchdog()  # one that fired refuses goals
                present = self._read(bus, "present_position")  # last: an arm that moves goes on meanwhile
                if goals := {i: tick for i, tick in present.items() if torque.get(i, 1)}:
                    line.sync_write("goal_position", goals)
            except BusError as error:
                self.lost[bus.name] = str(error)
                present = {}
            unread += [m.name for m in bus.motors if m.shadow_of is None and m.id not in present]
        return unread

    def positions(self) -> dict[str, int]:
        """Ticks by motor name, of the servos with a goal that answer."""
        found = {}
        for bus in self.profile.buses:
            names = {motor.id: motor.name for motor in bus.motors}
            try:
                present = self._read(bus, "present_position")
            except BusError as error:
                self.lost[bus.name] = str(error)
                continue
            found.update({names[i]: tick for i, tick in present.items()})
        return found

    def _read(self, bus: Bus, name: str) -> dict[int, int]:
        """A register of the servos with a goal that answer."""
        line = self.buses[bus.name]
        block = Block((line.registers[name],))
        return {i: values[name] for i, values in line.read_all(block, goal_ids(bus), FREEZE_NS).items()}

    def learn_limits(self) -> dict[str, dict[int, int]]:
        """Reads how much torque the owner allows each servo, which is never exceeded; what `limit_torque(1.0)` writes.

        By bus and servo. One that does not answer counts as the profile has it.
        """
        for bus in self.profile.buses:
            line = self.buses[bus.name]
            own = line.registers[line.own_limit]
            held: Mapping[int, Mapping[str, int]] = {}
            try:
                held = line.read_all(Block((own,)), line.ids, FREEZE_NS)
            except BusError as error:
                self.lost[bus.name] = str(error)
            wanted = full_torque(bus)
            self._full[bus.name] = {
                i: min(full, held[i][own.name]) if i in held else full for i, full in wanted.items()
            }
        return self._full

    def limit_torque(self, share: float) -> None:
        """Limits every servo to a share (0..1) of its torque, by one sync write per line."""
        full_of = self._full or self.learn_limits()
        for bus in self.profile.buses:
            line = self.buses[bus.name]
            try:
                line.sync_write(
                    line.torque_limit, {i: int(full * share) for i, full in full_of[bus.name].items()}
                )
            except BusError as error:
                self.lost[bus.name] = str(error)

    def park(self) -> None:
        """The torque at which letting down begins."""
        self.limit_torque(self.profile.escalation.park_torque)

    def lower_step(self, lowering: Lowering) -> None:
        """One look at the joints, and what that means for their torque; to be called every `lowering.STEP_NS` or so."""
        positions = self.positions()
        share = lowering.step(self.clock.now_ns(), positions)
        if share is not None:
            self.limit_torque(share)

    def lower(self, wait: Callable[[float], bool] | None = None) -> bool:
        """Less and less torque, so that the arm sinks instead of falling; at the first share for as long where the
        profile does not release. Nothing is switched off. Returns whether `wait` asked to stop here.

        wait: sleeps so many seconds, and says whether to stop.
        """
        wait = wait or self._sleep
        rule = self.profile.escalation
        if not rule.release:
            self.park()
            return wait(rule.park_ms / 1000)
        lowering = Lowering(rule, self.clock.now_ns())
        while not lowering.is_over and not self.is_cut_off:
            self.lower_step(lowering)
            if wait(STEP_NS / 1e9):
                return True
        return False

    def _sleep(self, seconds: float) -> bool:
        self.clock.sleep_until(self.clock.now_ns() + int(seconds * 1e9))
        return False

    @property
    def is_cut_off(self) -> bool:
        """Whether no line is left."""
        return len(self.lost) == len(self.buses)

    def release(self) -> list[str]:
        """Torque off on every servo, each by itself and three times, then by sync write. Returns those not confirmed.

        Servos with a torque limit get it back, so that the next start finds the torque that they may have.
        """
        unreached: list[str] = []
        for bus in self.profile.buses:
            try:
                missing = torque_off(self.buses[bus.name])
            except BusError as error:
                self.lost[bus.name] = str(error)
                missing = list(self.buses[bus.name].ids)
            unreached += [m.name for m in bus.motors if m.id in missing]
        self.limit_torque(1.0)
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

"""What the doctor looks at on a servo bus: who answers, how well, at which speed, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgevla.errors import BusError

from .. import handshake
from ..bus.adapters import LATENCY_WARN_MS, latency_timer_ms, latency_timer_path
from ..bus.port import READ_SIZE, Port
from ..bus.protocols import BUSES
from ..bus.registers import Block
from ..bus.report import ServoReport
from ..bus.servo_bus import ServoBus, cable_hint
from ..profile import Bus, Profile

N_PINGS = 4
LISTEN_NS = 150_000_000
SCAN_TIMEOUT_NS = 6_000_000
LIKELY_IDS = range(31)

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One finding. next_step: what to do about it, empty when nothing."""

    level: Level
    what: str
    text: str
    next_step: str = ""


@dataclass
class MotorReport:
    """What one servo says; None where it was not asked or did not answer."""

    bus: str
    id: int
    name: str
    is_there: bool = False
    model: str = ""
    firmware: str = ""
    voltage_v: float | None = None
    temperature_c: float | None = None
    position: int | None = None
    torque_on: bool | None = None
    faults: list[str] = field(default_factory=list)


class BusCheckup:
    """Examines one bus. open_at: opens the line at a baud rate (the scan for a wrong one needs it)."""

    def __init__(self, profile: Profile, bus: Bus, open_at: Callable[[int], Port]) -> None:
        self.profile, self.bus = profile, bus
        self.checks: list[Check] = []
        self.motors = [MotorReport(bus.name, motor.id, motor.name) for motor in bus.motors]
        self._open_at = open_at
        self._names = {m.id: f"{m.name}, {m.model.upper()}" for m in bus.motors}

    def run(self) -> None:
        """Raises BusError when the line cannot be opened or goes away."""
        port = self._open_at(self.bus.baud)
        try:
            line = self._line(port)
            self._latency_timer(port.name)
            self._listen(line)
            line.greet()
            quality = {motor.id: self._answers(line, motor.id) for motor in self.bus.motors}
            found = [i for i, n in quality.items() if n]
            if not found:
                port.close()  # the line is opened at other speeds
                self._nobody(port.name)
                return
            self._missing(line, found)
            self._unsteady(line, quality)
            for report in self.motors:
                if report.id in found:
                    self._examine(line, report)
            self._torque()
            self._firmwares()
            if len(found) == len(self.bus.motors):
                self._speed(line)
        finally:
            port.close()

    def _line(self, port: Port) -> ServoBus:
        models = {motor.id: motor.model for motor in self.bus.motors}
        return BUSES[self.bus.protocol](port, self._names, robot=self.profile.name, models=models)

    def _say(self, level: Level, what: str, text: str, next_step: str = "") -> None:
        self.checks.append(Check(level, f"bus {self.bus.name}: {what}", text, next_step))

    def _latency_timer(self, path: str) -> None:
        timer = latency_timer_path(path)
        ms = latency_timer_ms(timer)
        if ms is None:
            return
        if ms > LATENCY_WARN_MS:
            self._say(
                "warn", "latency timer", f"the adapter delays every answer by up to {ms} ms",
                f"echo 1 | sudo tee {timer}",
            )  # fmt: skip
        else:
            self._say("ok", "latency timer", f"{ms} ms")

    def _listen(self, line: ServoBus) -> None:
        """Servos speak when they are spoken to: what comes before anything was asked has another cause."""
        heard = line.port.read(READ_SIZE, line.clock.now_ns() + LISTEN_NS)
        if heard:
            self._say(
                "warn", "somebody else", f"{len(heard)} bytes came before anything was asked: somebody else talks on it",
                "end the other program, or take the other controller off the line",
            )  # fmt: skip

    def _torque(self) -> None:
        """Nothing of ours holds the arm while its line could be opened here."""
        on = [report.name for report in self.motors if report.torque_on]
        if on:
            whose = "all its servos" if len(on) == len(self.motors) else ", ".join(on)
            self._say(
                "warn", "torque", f"torque is on ({whose}): whoever drove the arm has not released it",
                "deploy, teleop and calibrate let it down first; by hand: support it, then switch its power off",
            )  # fmt: skip

    def _answers(self, line: ServoBus, servo_id: int) -> int:
        """How many of a few pings a servo answers; what they say of themselves shows two with one id."""
        n = sum(line.ping(servo_id, 1) is not None for _ in range(N_PINGS))
        if n:
            n_damaged(line, servo_id)
        return n

    def _nobody(self, path: str) -> None:
        """No servo of the profile answers: another speed, another id, or no power."""
        for baud in line_bauds(self.bus):
            port = self._open_or_none(baud)
            if port is None:
                continue
            try:
                found = scan(self._line(port), LIKELY_IDS)
            finally:
                port.close()
            if found and baud != self.bus.baud:
                self._say(
                    "fail", "baud rate", f"{_list(found)} answer at {baud} baud, the profile says {self.bus.baud}",
                    f"edgevla setup-motors --robot {self.profile.name} --port {path}, or set baud in the profile",
                )  # fmt: skip
                return
            if found:
                self._wrong_ids(found, list(self._names))
                return
        self._say(
            "fail", "servos", "no servo answers at any speed",
            "switch the arm's power supply on, check the cable between adapter and first servo",
        )  # fmt: skip

    def _open_or_none(self, baud: int) -> Port | None:
        try:
            return self._open_at(baud)
        except BusError:
            return None  # this adapter cannot do that speed

    def _missing(self, line: ServoBus, found: Sequence[int]) -> None:
        missing = [i for i in self._names if i not in found]
        if not missing:
            self._say("ok", "servos", f"all {len(found)} answer at {self.bus.baud} baud")
            return
        others = scan(line, [i for i in LIKELY_IDS if i not in self._names])
        if others:
            self._wrong_ids(others, missing)
            return
        names = ", ".join(f"{i} ({self._names[i].split(',')[0]})" for i in missing)
        doubled = [i for i in found if line.counters[i].n_corrupt]
        if list(found) == [1] and len(missing) > 1:
            step = f"all servos may have id 1: edgevla setup-motors --robot {self.profile.name}"
        elif len(doubled) == 1:
            step = (
                f"it may have id {doubled[0]}, whose answers are damaged: edgevla setup-motors --robot "
                f"{self.profile.name}"
            )
        else:
            step = f"check {cable_hint(list(self._names), found, self._names)}"
        self._say("fail", "servos", f"no answer from {names}; answered: {_list(found)}", step)

    def _wrong_ids(self, found: Sequence[int], missing: Sequence[int]) -> None:
        self._say(
            "fail", "ids", f"ids {_list(found)} answer, which the profile does not have; missing: {_list(missing)}",
            f"edgevla setup-motors --robot {self.profile.name}",
        )  # fmt: skip

    def _unsteady(self, line: ServoBus, quality: dict[int, int]) -> None:
        """A servo that answers now and then, or damaged: two with one id, or a bad cable."""
        for servo_id, n in quality.items():
            n_corrupt = line.counters[servo_id].n_corrupt
            if n_corrupt or 0 < n < N_PINGS:
                text = f"id {servo_id} answered {n} of {N_PINGS} pings; {n_corrupt} answers were damaged"
                self._say(
                    "warn" if n else "fail", "duplicate id or bad cable", text,
                    f"if only id {servo_id} does this, two servos have it: edgevla setup-motors --robot "
                    f"{self.profile.name}; else check the cable to it",
                )  # fmt: skip

    def _examine(self, line: ServoBus, report: MotorReport) -> None:
        reply = line.ping(report.id)
        if reply is None:
            return
        report.is_there, report.firmware = True, reply.firmware
        by_number = {number: name for name, number in BUSES[self.bus.protocol].known_models.items()}
        report.model = by_number.get(reply.model, f"model {reply.model}")
        expected = next(m.model for m in self.bus.motors if m.id == report.id)
        if report.model != expected:
            self._say(
                "fail", f"motor {report.id} ({report.name})", f"is a {report.model}, the profile expects {expected}",
                "correct the profile or the wiring",
            )  # fmt: skip
        try:
            block = line.read_block(report.id, line.health_block)
        except BusError as error:
            self._say("fail", f"motor {report.id} ({report.name})", str(error), "check its cable")
            return
        said = line.report(report.id, block)
        report.voltage_v = None if said.voltage_v is None else round(said.voltage_v, 1)
        report.temperature_c, report.torque_on = said.temperature_c, said.torque_on
        report.position, report.faults = block["present_position"], list(said.faults or ())
        self._judge(line, report, said)

    def _judge(self, line: ServoBus, report: MotorReport, said: ServoReport) -> None:
        who, limits = f"motor {report.id} ({report.name})", self.profile.limits
        own = line.learn_limits(report.id)
        least, most = max(limits.voltage_min, own.voltage_v[0]), min(limits.voltage_max, own.voltage_v[1])
        volts, heat = report.voltage_v, report.temperature_c
        if volts is not None and not least <= volts <= most and "voltage" not in report.faults:
            self._say("fail", who, f"{volts} V, allowed are {least:.1f}..{most:.1f} V",
                      "use the supply that fits these servos")  # fmt: skip
        if heat is not None and heat >= limits.temperature_warn_c and "over-temperature" not in report.faults:
            level: Level = "fail" if heat >= limits.temperature_stop_c else "warn"
            self._say(level, who, f"{heat:.0f} degC, it is stopped at {limits.temperature_stop_c:.0f}",
                      "let it cool down; look for a joint that pushes")  # fmt: skip
        if report.faults:
            step = line.cure(report.id, report.faults, said)
            self._say("fail", who, f"reports {', '.join(report.faults)}", step)

    def _firmwares(self) -> None:
        versions = sorted({r.firmware for r in self.motors if r.is_there and r.model == self.motors[0].model})
        if len(versions) > 1:
            self._say("warn", "firmware", f"mixed versions {', '.join(versions)}", "update the older servos")

    def _speed(self, line: ServoBus) -> None:
        if sentence := line.probe_reading():
            self._say("warn", "sync read", sentence)
        latency_ms = handshake.pulse_ms(line)
        if latency_ms > handshake.SLOW_ADAPTER_MS:
            self._say(
                "warn", "speed", f"answers come {latency_ms:.0f} ms later than the wire needs",
                "lower the adapter's latency timer, avoid USB hubs, or use another adapter",
            )  # fmt: skip
        else:
            self._say("ok", "speed", f"the adapter adds {latency_ms:.1f} ms to an answer")


def n_damaged(line: ServoBus, servo_id: int) -> int:
    """How many damaged answers a closer look brings. Two servos with one id say the same to a ping, but hardly where
    they stand and what their range is: their answers damage each other."""
    limits = Block((line.register("min_position"), line.register("max_position")))
    before = line.counters[servo_id].n_corrupt
    for block in (line.tick_block, limits):
        line.transact(line.codec.read(servo_id, block.address, block.size), servo_id, block.size)
    return line.counters[servo_id].n_corrupt - before


def line_bauds(bus: Bus) -> list[int]:
    """Speeds to try, the profile's first, then the usual ones."""
    return list(dict.fromkeys((bus.baud, 1_000_000, 57_600, *BUSES[bus.protocol].bauds)))


def scan(line: ServoBus, ids: Sequence[int]) -> list[int]:
    """Ids that answer a short question."""
    register = line.registers["model_number"]
    return [
        i
        for i in ids
        if line.transact(
            line.codec.read(i, register.address, register.size), i, register.size, SCAN_TIMEOUT_NS, 2
        )
        is not None
    ]


def _list(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))

"""How the servos of one line are, read in turn beside the tick's work, and which of them have been away.

Every servo is asked for its torque, errors, heat and memory within `HEALTH_PERIOD_NS`. A servo that has forgotten what
connecting had set has restarted: it gets no more goals, since some firmware switches its torque on by a goal, and
nothing may be energised unattended. A servo that is silent gets none either, and is looked at first when it is back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from edgevla.messages import Servo

from .bus.reads import BlockRead
from .bus.report import CHANGED, RESTARTED, SHARED, ServoReport
from .bus.servo_bus import ServoBus
from .profile import Bus

HEALTH_PERIOD_NS = 400_000_000
"""Every servo is read at least this often; where no tick has room for it, a tick is late."""
AIM_NS = 300_000_000
"""What is aimed at: the next tick with room for it may be some way off."""
HEALTH_MARGIN_NS = 1_500_000


@dataclass
class ServoCondition:
    """What is known of one servo, each value as last read. faults: conditions that it reports, or that are concluded,
    in words; cure: what a person does about them. restart: how it is made to forget them."""

    id: int
    bus: str
    name: str
    temperature_c: float | None = None
    voltage_v: float | None = None
    load_percent: float | None = None
    current_ma: float | None = None
    error_bits: int = 0
    torque_on: bool | None = None
    faults: tuple[str, ...] = ()
    cure: str = ""
    is_gripper: bool = False
    restart: str = ""
    concluded: tuple[str, ...] = ()
    """Of `report.CONCLUDED`, since torque was switched on, or connecting."""
    changed: str = ""
    """What is meant by `report.CHANGED`."""
    n_retries: int = 0
    n_corrupt: int = 0
    n_stale: int = 0

    def to_wire(self) -> Servo:
        """As the `servo_health` message has it."""
        return Servo(
            id=self.id,
            bus=self.bus,
            name=self.name,
            temperature_c=self.temperature_c if self.temperature_c is not None else float("nan"),
            voltage_v=self.voltage_v if self.voltage_v is not None else float("nan"),
            load_percent=self.load_percent if self.load_percent is not None else float("nan"),
            current_ma=self.current_ma,
            error_bits=self.error_bits,
            torque_on=bool(self.torque_on),
            n_retries=self.n_retries,
            n_corrupt=self.n_corrupt,
            n_stale=self.n_stale,
        )

    @property
    def has_restarted(self) -> bool:
        """Whether it has lost what was set: it gets no goals."""
        return RESTARTED in self.concluded

    def conclude(self, fault: str) -> None:
        if fault not in self.concluded:
            self.concluded += (fault,)

    def take(self, report: ServoReport, line: ServoBus) -> None:
        """The newer of what is known."""
        self.torque_on = self.torque_on if report.torque_on is None else report.torque_on
        self.voltage_v = self.voltage_v if report.voltage_v is None else report.voltage_v
        self.temperature_c = self.temperature_c if report.temperature_c is None else report.temperature_c
        self.load_percent = self.load_percent if report.load_percent is None else report.load_percent
        self.current_ma = self.current_ma if report.current_ma is None else report.current_ma
        self.error_bits = self.error_bits if report.error_bits is None else report.error_bits
        if report.faults is not None:
            self.faults = (*report.faults, *self.concluded)
            self.cure = self._cure(line) if self.faults else ""

    def _cure(self, line: ServoBus) -> str:
        known = ServoReport(
            voltage_v=self.voltage_v, temperature_c=self.temperature_c, load_percent=self.load_percent
        )
        cure = line.cure(self.id, self.faults, known)
        return f"{self.changed}: {cure}" if CHANGED in self.faults else cure


@dataclass(frozen=True)
class _Seen:
    at_ns: int
    values: Mapping[str, int]


class LineHealth:
    """The servos of one line. `servos`: by id, shadows too, in the profile's order."""

    def __init__(self, bus: Bus, line: ServoBus, grippers: Collection[str]) -> None:
        self.line = line
        self.servos = {
            m.id: ServoCondition(
                m.id, bus.name, m.name, is_gripper=m.name in grippers, restart=line.restart_words(m.id)
            )
            for m in bus.motors
        }
        self.doubted: set[int] = set()
        """Were silent in the last exchange."""
        self.next_ns = 0
        self._last_ns = 0
        self._each_ns = AIM_NS // len(self.servos)
        self._asked_ns: dict[int, int] = dict.fromkeys(self.servos, 0)
        self._seen: dict[int, _Seen] = {}

    @property
    def altered(self) -> list[int]:
        """Servos that do not hold any more what was set."""
        return [i for i, health in self.servos.items() if {RESTARTED, CHANGED} & {*health.concluded}]

    @property
    def withheld(self) -> set[int]:
        """Servos that get no goals."""
        return self.doubted.union(
            i for i, health in self.servos.items() if health.concluded and health.has_restarted
        )

    def begin(self, now_ns: int, deadline_ns: int, answered: Collection[int]) -> BlockRead | None:
        """The read that is due now, or None. answered: the servos that have just answered the tick's read.

        Done by the deadline, but for what is overdue. A servo that is back is read now where there is time: else it
        gets goals again unseen, since what it missed would make it jump, and is the next.
        """
        back = [i for i in self.doubted if i in answered]
        self._asked_ns.update(dict.fromkeys(back, -1))  # before those that were never asked
        waiting = sorted(self.servos, key=lambda i: self._asked_ns[i])
        is_due, late_ns = now_ns >= self.next_ns, now_ns - self.next_ns
        n_due = min(len(waiting), 1 + late_ns // self._each_ns) if is_due else 0
        n = max(len(back), n_due)
        while n and now_ns + self._needed_ns(n) > deadline_ns:
            n -= 1
        self.doubted.difference_update(back[n:])
        if n == 0 and n_due and now_ns - max(self._asked_ns[waiting[0]], self._last_ns) >= HEALTH_PERIOD_NS:
            n = len(waiting)
        if n == 0:
            return None
        self._last_ns = now_ns
        self.next_ns = max(self.next_ns + n * self._each_ns, now_ns - AIM_NS)
        ids = waiting[:n]
        self._asked_ns.update(dict.fromkeys(ids, now_ns))
        until_ns = max(deadline_ns, now_ns + self._needed_ns(n))
        return self.line.begin(self.line.health_block, ids, until_ns, n_retries=1, may_merge=False)

    def _needed_ns(self, n: int) -> int:
        size, line = self.line.health_block.size, self.line
        n_reads = 1 if line.uses_sync_read else n
        per_read = line.adapter_latency_ns + HEALTH_MARGIN_NS
        return line.wire_time_ns(size, n, 14 + n) + n_reads * per_read

    def take(self, servo_id: int, values: Mapping[str, int], now_ns: int) -> None:
        """Raw values of the health block."""
        health, seen = self.servos[servo_id], self._seen.get(servo_id)
        report = self.line.report(servo_id, values)
        if seen is None:
            pass
        elif self.line.has_restarted(servo_id, seen.values, values, now_ns - seen.at_ns):
            health.conclude(RESTARTED)
        elif not report.faults and (changed := self._changed(servo_id, seen.values, values)):
            health.conclude(CHANGED)
            health.changed = changed
        if self.line.is_shared and servo_id == next(iter(self.servos)):
            health.conclude(SHARED)
        self._seen[servo_id] = _Seen(now_ns, values)
        self.doubted.discard(servo_id)
        health.take(report, self.line)

    def _changed(self, servo_id: int, before: Mapping[str, int], now: Mapping[str, int]) -> str:
        """Registers that held what we had written, or what they had when we came, and hold something else now.

        What a servo that reports a fault switches by itself is no riddle.
        """
        written = self.line.written.get(servo_id, {})
        changed = [n for n in self.line.kept if before[n] == written.get(n, before[n]) != now[n]]
        return ", ".join(f"{name} is {now[name]}, not {before[name]} as it was set" for name in changed)

    def take_anew(self, servo_id: int, values: Mapping[str, int], now_ns: int) -> None:
        """The same, of a servo that has just been set up."""
        self.servos[servo_id].concluded = ()
        self._seen.pop(servo_id, None)
        self.take(servo_id, values, now_ns)

    def count(self) -> None:
        """Takes over what the line has counted."""
        for servo_id, health in self.servos.items():
            counted = self.line.counters[servo_id]
            health.n_retries, health.n_corrupt, health.n_stale = (
                counted.n_retries, counted.n_corrupt, counted.n_stale,
            )  # fmt: skip

"""All buses of one profile as one vector of joints, in robot units.

`exchange` is the tick's work: one write and one read per bus, all buses at the same time, lost answers asked again
within the budget. It never raises for a servo that is silent: the joint keeps its value, and the value its age. What
is slow (connecting, torque) is in calls of its own. State and action have the same units but for ALOHA's grippers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevla.clock import Clock, MonotonicClock
from edgevla.errors import BusError

from . import handshake
from .bus import dynamixel
from .bus.adapters import set_latency_timer
from .bus.port import Port
from .bus.reads import BlockRead, finish
from .bus.servo_bus import DynamixelBus, ServoBus, cable_hint
from .calibration import LAST_TICK, Calibration, adopted
from .profile import Bus, Profile
from .rescue import Rescue, goal_ids
from .units import TICKS_PER_DEGREE, JointUnits, joint_units

HEALTH_PERIOD_NS = 400_000_000
"""Every servo's torque, error bits and heat are read at least this often."""
HEALTH_MARGIN_NS = 1_500_000
HEALTH_OVERDUE_NS = 1_000_000_000
"""On an adapter so slow that no tick has room for it, health is read this often, and a tick is late."""
FASTEST_TICKS_S = 4500.0
"""No servo of the profiles turns faster; a sample that says so is damaged."""
JUMP_FLOOR_TICKS = 80
EXCHANGE_SHARE = 0.75
"""Of a tick, for the exchange with the servos."""
EXCHANGE_MARGIN_NS = 2_000_000
FULL_LOAD = {"xm430-w350": 1193, "xm540-w270": 2047, "xl330-m288": 1750, "xl430-w250": 1000}
"""Raw present current of a Dynamixel at full load, others as the XM430; XL430 reports load in 0.1 % instead."""


@dataclass
class ServoHealth:
    """What is known of one servo, each value as last read. faults: conditions that the servo reports, in words.
    restart: how it is made to forget them."""

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
    is_gripper: bool = False
    restart: str = ""
    n_retries: int = 0
    n_corrupt: int = 0
    n_stale: int = 0

    def to_wire(self) -> dict[str, Any]:
        """As the `servo_health` message has it."""
        return {
            "id": self.id,
            "bus": self.bus,
            "name": self.name,
            "temperature_c": self.temperature_c if self.temperature_c is not None else float("nan"),
            "voltage_v": self.voltage_v if self.voltage_v is not None else float("nan"),
            "load_percent": self.load_percent if self.load_percent is not None else float("nan"),
            "current_ma": self.current_ma,
            "error_bits": self.error_bits,
            "torque_on": bool(self.torque_on),
            "n_retries": self.n_retries,
            "n_corrupt": self.n_corrupt,
            "n_stale": self.n_stale,
        }


@dataclass(frozen=True)
class Reading:
    """The joints after one exchange.

    position: float32 (D,) state units. position_age_us: uint32 (D,), 0 for a value of this exchange.
    observed_ns: when the last answer came. duration_ns: of the whole exchange. n_stale: joints without a new value.
    """

    position: np.ndarray
    position_age_us: np.ndarray
    observed_ns: int
    duration_ns: int = 0
    n_stale: int = 0


class _Line:
    """One bus with its place in the robot's vectors."""

    def __init__(self, bus: Bus, line: ServoBus, profile: Profile) -> None:
        self.bus, self.line = bus, line
        self.ids = goal_ids(bus)
        motors = {joint.motor: k for k, joint in enumerate(profile.joints)}
        self.joint_of = {m.id: motors[m.name] for m in bus.motors if m.name in motors}
        grippers = {joint.motor for joint in profile.joints if joint.is_gripper}
        self.health = {
            m.id: ServoHealth(
                m.id,
                bus.name,
                m.name,
                is_gripper=m.name in grippers,
                restart=handshake.restart_words(bus, profile.name, m.id),
            )
            for m in bus.motors
        }
        self.full_load = {m.id: FULL_LOAD.get(m.model, FULL_LOAD["xm430-w350"]) for m in bus.motors}
        self.order = [m.id for m in bus.motors]
        self.next_health_ns = 0
        self.next_health = 0


class Robot:
    """See the module.

    ports: by bus name, an open `Port` or an inherited descriptor. calibration: None takes what the servos hold.
    """

    def __init__(
        self,
        profile: Profile,
        ports: Mapping[str, Port | int],
        calibration: Calibration | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.profile, self.calibration = profile, calibration
        self.clock: Clock = clock or MonotonicClock()
        self.rescue = Rescue(profile, ports, self.clock)
        self.warnings: list[str] = []
        """Sentences for the user that connecting found."""
        self.torque_on = False
        self._lines = [_Line(bus, self.rescue.buses[bus.name], profile) for bus in profile.buses]
        n = len(profile.joints)
        self._ticks = np.zeros(n, np.int64)
        self._observed_ns = np.zeros(n, np.int64)
        self._asked_ns = np.zeros(n, np.int64)
        self._beyond: dict[int, int] = {}
        self._jumps = np.zeros(n, np.int64)
        self._n_invalid = 0
        self._gone: set[str] = set()
        self._reading = Reading(np.zeros(n, np.float32), np.zeros(n, np.uint32), 0)
        self._units: JointUnits | None = None

    @property
    def ports(self) -> dict[str, Port]:
        return {line.bus.name: line.line.port for line in self._lines}

    @property
    def buses(self) -> dict[str, ServoBus]:
        return {line.bus.name: line.line for line in self._lines}

    @property
    def units(self) -> JointUnits:
        assert self._units is not None, "connect() comes first"
        return self._units

    # ---- connecting ----

    def connect(self) -> None:
        """Finds, checks and configures the servos; torque is off afterwards and the first positions are known.

        Raises BusError or CalibrationError with what is wrong and the next step. Whatever had been energised is
        switched off again first.
        """
        try:
            self._connect()
        except BusError as error:
            unreached = [] if error.fields.get("is_unplugged") else self.set_torque(False)
            if unreached and len(unreached) < sum(len(line.order) for line in self._lines):
                raise type(error)(
                    f"{error}. Torque could not be confirmed off on {', '.join(unreached)}", port=error.port,
                    motor_id=error.motor_id, register=error.register,
                ) from error  # fmt: skip
            raise

    def _connect(self) -> None:
        for line in self._lines:
            self._tune_adapter(line.line)
            self._warn(handshake.check_motors(line.line, line.bus, self.profile))
        lines = self.buses
        if self.profile.is_calibrated_by_file:
            if self.calibration is None:
                self.calibration = adopted(self.profile, handshake.held_calibration(lines, self.profile))
            else:
                handshake.check_calibration(lines, self.profile, self.calibration)
        self._units = joint_units(self.profile, self.calibration)
        for line in self._lines:
            handshake.check_health(line.line, line.bus, self.profile.limits, self.profile.name)
            handshake.configure(line.line, line.bus)
            handshake.align_shadows(line.line, line.bus, self.profile.limits.pair_ticks)
            self._warn(handshake.probe(line.line))
            self._warn(handshake.probe_joined(line.line))
            if line.line.echoes:
                self._warn(
                    f"{line.line.port.name} returns what is sent (echo); that is taken out, but costs time"
                )
            for servo_id in line.order:
                block = line.line.read_block(servo_id, line.line.health_block)
                self._take_health(line, servo_id, block)
        self._first_positions()

    def _warn(self, sentence: str | None) -> None:
        if sentence:
            self.warnings.append(sentence)

    def _tune_adapter(self, line: ServoBus) -> None:
        self._warn(set_latency_timer(line.port.name))
        latency_ms = handshake.pulse_ms(line)
        line.adapter_latency_ns = int(min(latency_ms, 20.0) * 1e6)
        if latency_ms > handshake.SLOW_ADAPTER_MS:
            self._warn(
                f"{line.port.name} answers {latency_ms:.0f} ms later than the wire needs, so the control loop runs "
                "slower: see its USB latency timer, avoid hubs, or use another adapter; edgevla doctor says more"
            )

    def _first_positions(self) -> None:
        for _ in range(3):
            reading = self.exchange(None, self.clock.now_ns() + 200_000_000)
            if self._observed_ns.all():
                return
        silent = [j.name for j, ns in zip(self.profile.joints, self._observed_ns, strict=True) if not ns]
        raise BusError(
            f"{self.profile.name}: no position of {', '.join(silent)} ({reading.n_stale} servos silent); "
            f"run: edgevla doctor --robot {self.profile.name}"
        )

    # ---- the tick ----

    def exchange(self, goal: np.ndarray | None, deadline_ns: int) -> Reading:
        """Sends goals (float (D,), action units; None sends nothing) and reads all joints, done by the deadline.

        Goals are not sent while torque is off. Raises BusError when a line has gone; the other lines were served.
        """
        begun_ns = self.clock.now_ns()
        reads = [self._begin(line, goal, deadline_ns) for line in self._lines]
        finish(reads, self.clock)
        now_ns = self.clock.now_ns()
        n_stale = 0
        for line, read in zip(self._lines, reads, strict=True):
            n_stale += self._take(line, read, begun_ns, now_ns)
        self._read_health(deadline_ns)
        self._reading = self._make_reading(now_ns, begun_ns, n_stale)
        self._gone |= {line.bus.name for line, read in zip(self._lines, reads, strict=True) if read.failure}
        for read in reads:
            if read.failure is not None:
                raise read.failure
        return self._reading

    @property
    def has_lost_lines(self) -> bool:
        return bool(self._gone)

    @property
    def is_cut_off(self) -> bool:
        """Whether no line is left through which a servo could be told anything."""
        return len(self._gone) == len(self._lines)

    def _begin(self, line: _Line, goal: np.ndarray | None, deadline_ns: int) -> BlockRead:
        prefix = b""
        if goal is not None and self.torque_on:
            ticks = self.units.ticks(goal)
            prefix = line.line.goal_frame({i: int(ticks[line.joint_of[i]]) for i in line.ids})
        return line.line.begin(line.line.tick_block, line.ids, deadline_ns, prefix)

    def _take(self, line: _Line, read: BlockRead, begun_ns: int, now_ns: int) -> int:
        """Takes the values that came; returns how many joints of this bus got none."""
        n_stale = 0
        for servo_id in line.ids:
            data = read.replies.get(servo_id)
            if data is not None:
                values = line.line.tick_block.decode(data)
                self._beyond.pop(line.joint_of[servo_id], None)
                if self._is_plausible(line, line.joint_of[servo_id], values["present_position"], now_ns):
                    k = line.joint_of[servo_id]
                    self._ticks[k], self._observed_ns[k] = values["present_position"], now_ns
                    self._asked_ns[k] = begun_ns
                    self._take_tick(line, servo_id, values)
                    continue
                self._n_invalid += 1
            n_stale += 1
            line.line.counters[servo_id].n_stale += 1
        return n_stale

    def _is_plausible(self, line: _Line, k: int, tick: int, now_ns: int) -> bool:
        """Within one turn, and no farther than a servo can have gone; a jump is believed when it is there twice."""
        if line.bus.protocol == "feetech" and not 0 <= tick <= LAST_TICK:
            self._beyond[k] = tick
            return False  # Dynamixel in extended position mode may count on
        if not self._observed_ns[k]:
            return True
        reach = FASTEST_TICKS_S * (now_ns - self._asked_ns[k]) / 1e9 * 2 + JUMP_FLOOR_TICKS
        is_jump = abs(tick - self._ticks[k]) > reach
        self._jumps[k] = self._jumps[k] + 1 if is_jump else 0
        return self._jumps[k] != 1

    def _make_reading(self, now_ns: int, begun_ns: int, n_stale: int) -> Reading:
        ages = np.where(self._observed_ns > 0, (now_ns - self._observed_ns) // 1000, 2**32 - 1)
        return Reading(
            self.units.state(self._ticks),
            np.minimum(ages, 2**32 - 1).astype(np.uint32),
            now_ns,
            self.clock.now_ns() - begun_ns,
            n_stale,
        )

    def last_reading(self) -> Reading:
        """The newest values with their ages now, without touching a bus."""
        now_ns = self.clock.now_ns()
        aged = self._make_reading(now_ns, now_ns, len(self._ticks))
        return Reading(aged.position, aged.position_age_us, self._reading.observed_ns, 0, aged.n_stale)

    @property
    def jumped(self) -> list[str]:
        """Joints that have just been found, for the second time, where no servo could have got to."""
        return [joint.name for joint, n in zip(self.profile.joints, self._jumps, strict=True) if n == 2]

    def explain_silence(self, is_silent: np.ndarray) -> str:
        """bool (D,) -> for each line with such joints, who does not answer, and where to look."""
        return "; ".join(
            self._explain(each, silent)
            for each in self._lines
            if (silent := [i for i in each.ids if is_silent[each.joint_of[i]]])
        )

    def _explain(self, each: _Line, silent: list[int]) -> str:
        line, port = each.line, each.line.port.name
        if beyond := [i for i in silent if each.joint_of[i] in self._beyond]:
            return (
                f"{line.name_of(beyond[0])} on {port} says {self._beyond[each.joint_of[beyond[0]]]}, beyond one turn: "
                "turn it back by hand and start again"
            )
        if len(silent) == len(each.ids):
            return f"no servo on {port} answers: look after the arm's power and the adapter"
        names = ", ".join(f"{i} ({each.health[i].name})" for i in silent)
        who = f"motor {names} does" if len(silent) == 1 else f"motors {names} do"
        alive = [i for i in line.ids if i not in silent]
        return f"{who} not answer on {port}: check {cable_hint(line.ids, alive, line.motors)}"

    # ---- health ----

    def _read_health(self, deadline_ns: int) -> None:
        """One servo per bus, in turn, when it is due and there is time."""
        now_ns = self.clock.now_ns()
        reads: list[tuple[_Line, BlockRead]] = []
        for line in self._lines:
            block = line.line.health_block
            needed = (
                line.line.wire_time_ns(block.size, 1, 14) + line.line.adapter_latency_ns + HEALTH_MARGIN_NS
            )
            is_overdue = line.next_health_ns and now_ns > line.next_health_ns + HEALTH_OVERDUE_NS
            if now_ns < line.next_health_ns or (now_ns + needed > deadline_ns and not is_overdue):
                continue
            line.next_health_ns = now_ns + HEALTH_PERIOD_NS // len(line.order)
            servo_id = line.order[line.next_health]
            line.next_health = (line.next_health + 1) % len(line.order)
            until_ns = max(deadline_ns, now_ns + needed)
            reads.append((line, line.line.begin(block, (servo_id,), until_ns, n_retries=0)))
        finish([read for _, read in reads], self.clock)
        for line, read in reads:
            for servo_id, data in read.replies.items():
                self._take_health(line, servo_id, line.line.health_block.decode(data))

    def _take_tick(self, line: _Line, servo_id: int, values: Mapping[str, int]) -> None:
        health, registers = line.health[servo_id], line.line.registers
        if "present_load" in values:
            health.load_percent = values["present_load"] * registers["present_load"].scale
            health.voltage_v = values["present_voltage"] * registers["present_voltage"].scale
            health.temperature_c = float(values["present_temperature"])
            health.error_bits = line.line.errors[servo_id]
            health.faults = tuple(line.line.codec.error_texts(health.error_bits)) if health.error_bits else ()
        elif "present_current" in values:
            self._take_current(line, servo_id, values["present_current"])

    def _take_current(self, line: _Line, servo_id: int, raw: int) -> None:
        health = line.health[servo_id]
        health.current_ma = raw * line.line.registers["present_current"].scale
        health.load_percent = 100.0 * raw / line.full_load[servo_id]

    def _take_health(self, line: _Line, servo_id: int, values: Mapping[str, int]) -> None:
        health, registers = line.health[servo_id], line.line.registers
        health.torque_on = values["torque_enable"] == 1
        health.voltage_v = values["present_voltage"] * registers["present_voltage"].scale
        health.temperature_c = float(values["present_temperature"])
        health.error_bits = values["status"]
        health.faults = tuple(line.line.codec.error_texts(health.error_bits))
        if "present_load" in values:
            health.load_percent = values["present_load"] * registers["present_load"].scale
            health.current_ma = values["present_current"] * registers["present_current"].scale
        else:
            self._take_current(line, servo_id, values["present_current"])
            if values["bus_watchdog"] == dynamixel.WATCHDOG_FIRED:
                health.faults += ("bus watchdog",)

    def health(self) -> list[ServoHealth]:
        """All servos in the profile's order, shadows too; values as last read, no bus traffic."""
        for line in self._lines:
            for servo_id, health in line.health.items():
                counted = line.line.counters[servo_id]
                health.n_retries, health.n_corrupt, health.n_stale = (
                    counted.n_retries, counted.n_corrupt, counted.n_stale,
                )  # fmt: skip
        return [health for line in self._lines for health in line.health.values()]

    def counters(self) -> dict[str, int]:
        """Sums over all servos since the start."""
        every = [c for line in self._lines for c in line.line.counters.values()]
        return {
            "bus_retries": sum(c.n_retries for c in every),
            "bus_corrupt": sum(c.n_corrupt for c in every),
            "bus_lost": sum(c.n_lost for c in every),
            "bus_stale": sum(c.n_stale for c in every),
            "bus_invalid": self._n_invalid,
        }

    # ---- torque ----

    def set_torque(self, on: bool) -> list[str]:
        """Switches all servos; returns the motors for which it could not be confirmed.

        On: goal := present first, or the arm would jump to an old goal. Off: every servo by itself, three times, ERR
        bits ignored, then all by sync write.
        """
        if not on:
            self.torque_on = False
            self._arm_watchdogs(False)
            unreached = self.rescue.release()
        else:
            unreached = self._energise()
            self.torque_on = not unreached
        for line in self._lines:
            for health in line.health.values():
                if health.name not in unreached:
                    health.torque_on = on
        return unreached

    def _energise(self) -> list[str]:
        self._arm_watchdogs(False)
        unreached = self.rescue.freeze()
        if unreached:
            return unreached
        for line in self._lines:
            handshake.align_shadows(line.line, line.bus, self.profile.limits.pair_ticks)
        for line in self._lines:
            bus = line.line
            for servo_id in line.order:
                with contextlib.suppress(BusError):
                    bus.write_raw(servo_id, "torque_enable", 1, is_checked=False)
            held = {i: self._torque_of(bus, i) for i in line.order}
            unreached += [line.health[i].name for i, on in held.items() if on != 1]
        if not unreached:
            self._arm_watchdogs(True)
        return unreached

    @staticmethod
    def _torque_of(bus: ServoBus, servo_id: int) -> int | None:
        try:
            return bus.read_raw(servo_id, "torque_enable")
        except BusError:
            return None

    def _arm_watchdogs(self, on: bool) -> None:
        """Dynamixel servos freeze by themselves when the line falls silent."""
        counts = max(1, min(127, self.profile.rates.watchdog_ms // 20)) if on else 0
        for line in self._lines:
            if isinstance(line.line, DynamixelBus) and self.profile.rates.watchdog_ms:
                with contextlib.suppress(BusError):
                    line.line.sync_write("bus_watchdog", dict.fromkeys(line.order, counts))

    def renew_torque(self, motor: str) -> None:
        """Enables the torque of one servo once more, which clears a Feetech's overload. Only of one that has torque:
        what a brown-out switched off stays off."""
        for line in self._lines:
            for servo_id, health in line.health.items():
                if health.name == motor and health.torque_on:
                    with contextlib.suppress(BusError):  # the next exchange says so
                        line.line.sync_write("torque_enable", {servo_id: 1})

    def set_torque_limit(self, share: float) -> None:
        """Limits all servos to a share (0..1) of the torque that the profile gives them."""
        self.rescue.limit_torque(share)

    # ---- what else is known ----

    def present_goal(self) -> np.ndarray:
        """float32 (D,), action units: goals that leave every joint where it was read last."""
        return self.units.action(self._ticks + 0.25)  # a quarter tick survives float32 and truncation

    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 (D,) lowest and highest action: the profile's within the calibrated range."""
        return self.units.limits()

    def range_deg(self, k: int) -> tuple[float, float] | None:
        """Degrees from the middle at which joint k's share of its range is -100 and 100; None unless it is a body
        joint in degrees or -100..100. Drive mode 1 turns the share round, but not the degrees."""
        if self.profile.joints[k].unit not in ("deg", "range100"):
            return None
        half = float(self.units.high[k] - self.units.low[k]) / 2 / TICKS_PER_DEGREE
        return (half, -half) if self.units.drive_mode[k] == 1 else (-half, half)

    @property
    def max_hz(self) -> float:
        """The fastest control loop: the profile's, or less where an adapter is slow."""
        hz = float(self.profile.rates.servo_hz)
        for each in self._lines:
            line, n = each.line, len(each.ids)
            if line.adapter_latency_ns > handshake.SLOW_ADAPTER_MS * 1e6:
                needed_ns = line.wire_time_ns(line.tick_block.size, n, 14 + 5 * n) + line.adapter_latency_ns
                hz = min(hz, EXCHANGE_SHARE * 1e9 / (needed_ns + EXCHANGE_MARGIN_NS))
        return hz

    def present_ticks(self) -> np.ndarray:
        """int64 (D,): raw positions as read last."""
        return self._ticks.copy()

    def close(self) -> None:
        """Closes the ports; torque stays as it is."""
        self.rescue.close()

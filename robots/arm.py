"""All buses of one profile as one vector of joints, in robot units.

`exchange` is the tick's work: one write and one read per bus, all buses at the same time, lost answers asked again
within the budget. It never raises for a servo that is silent: the joint keeps its value, and the value its age. What
is slow (connecting, torque) is in calls of its own. State and action have the same units but for ALOHA's grippers.

A goal is clipped to what the servos take; `limits` and `present_goal` are so as well: the goal that is judged is the
goal that is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgevla.clock import Clock, MonotonicClock
from edgevla.errors import BusError, UsageError

from . import handshake
from .arm_line import ArmLine
from .bus.adapters import set_latency_timer
from .bus.port import Port
from .bus.reads import BlockRead, finish
from .bus.servo_bus import ServoBus, cable_hint
from .calibration import Calibration, adopted, refuse_other_kind
from .health import ServoCondition
from .profile import Profile
from .rescue import Rescue
from .torque import Torque
from .units import TICKS_PER_DEGREE, JointUnits, OutOfRange, joint_units

FASTEST_TICKS_S = 4500.0
"""No servo of the profiles turns faster; a sample that says so is damaged."""
JUMP_FLOOR_TICKS = 80
EXCHANGE_SHARE = 0.75
"""Of a tick, for the exchange with the servos."""
EXCHANGE_MARGIN_NS = 2_000_000


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


class Robot:
    """See the module.

    ports: by bus name, an open `Port` or an inherited descriptor. calibration: None takes what the servos hold.
    is_shadow: nothing is written into the servos, so there is no torque; they are read as they are.
    say: is told at once what a person beside the arm must know while it happens; it is in `warnings`, too.
    """

    def __init__(
        self,
        profile: Profile,
        ports: Mapping[str, Port | int],
        calibration: Calibration | None = None,
        clock: Clock | None = None,
        say: Callable[[str], None] = lambda _: None,
        is_shadow: bool = False,
    ) -> None:
        self.is_shadow = is_shadow
        self.profile, self.calibration = profile, calibration
        self._say = say
        self.clock: Clock = clock or MonotonicClock()
        self.rescue = Rescue(profile, ports, self.clock)
        self.warnings: list[str] = []
        """Sentences for the user that connecting found."""
        self._lines = [ArmLine(bus, self.rescue.buses[bus.name], profile) for bus in profile.buses]
        self._torque = Torque(profile, self._lines, self.rescue, self.clock, self._tell)
        n = len(profile.joints)
        self._ticks = np.zeros(n, np.int64)
        self._observed_ns = np.zeros(n, np.int64)
        self._asked_ns = np.zeros(n, np.int64)
        self._beyond: dict[int, int] = {}
        self._jumps = np.zeros(n, np.int64)
        self._n_invalid, self._n_refused = 0, 0
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
        if self._units is None:
            raise UsageError(f"{self.profile.name} is not connected yet: connect() comes first")
        return self._units

    # ---- connecting ----

    def connect(self) -> None:
        """Finds, checks and configures the servos; torque is off afterwards and the first positions are known.

        An arm that is found with torque on is held and let down first, by the profile's escalation table; where that
        never releases an arm, connecting is refused and the arm stays held. Raises BusError or CalibrationError with
        what is wrong and the next step. Whatever had been energised is switched off again first.
        """
        for line in self._lines:
            line.line.greet()
        found = handshake.energised(self.buses, self.profile)
        if found and self.is_shadow:
            raise BusError(
                f"{self.profile.name}: torque is on ({', '.join(found)}), and a shadow run touches nothing; end whoever "
                "drives the arm, or switch its power off and on, then start again"
            )
        if found:
            handshake.let_down(self.rescue, found, self._tell)
        self._torque.is_on = False
        try:
            self._connect()
        except BusError as error:
            is_left = self.is_shadow or error.fields.get("is_unplugged")
            unreached = [] if is_left else self.set_torque(False)
            more = [words for line in self._lines if (words := handshake.others_on(line.line))]
            if unreached and len(unreached) < sum(len(line.order) for line in self._lines):
                more.append(f"Torque could not be confirmed off on {', '.join(unreached)}")
            if more and str(error) not in more:
                raise type(error)(
                    ". ".join([str(error), *more]),
                    port=error.port,
                    motor_id=error.motor_id,
                    register=error.register,
                ) from error
            raise

    def _connect(self) -> None:
        for line in self._lines:
            self._tune_adapter(line.line)
            self._warn(handshake.check_motors(line.line, line.bus, self.profile))
            if not self.is_shadow:
                self._warn(line.line.ensure_answers())
            if self.profile.rates.watchdog_ms:
                self._warn(*line.line.quirks())
        lines = self.buses
        if self.profile.is_calibrated_by_file:
            if self.calibration is None:
                held = handshake.held_calibration(lines, self.profile)
                refuse_other_kind(self.profile, held, handshake.port_names(lines))
                self.calibration = adopted(self.profile, held)
            else:
                handshake.check_calibration(lines, self.profile, self.calibration)
        for line in self._lines:
            handshake.check_health(line.line, line.bus, self.profile.limits)
            if not self.is_shadow:
                self._warn(*handshake.configure(line.line, line.bus))
                handshake.align_shadows(line.line, line.bus, self.profile.limits.pair_ticks)
            self._warn(line.line.probe_reading())
            if not self.is_shadow:
                self._warn(handshake.probe_joined(line.line))
            if line.line.echoes:
                self._warn(
                    f"{line.line.port.name} returns what is sent (echo); that is taken out, but costs time"
                )
            line.look_at(line.order, self.clock)
            if words := handshake.others_on(line.line):
                raise BusError(words, port=line.line.port.name)
        units = joint_units(self.profile, self.calibration)
        for line in self._lines:
            units = line.reachable(units)
        self._units = units
        self._warn(*handshake.weaker(self.rescue))
        self._first_positions()

    def _warn(self, *sentences: str | None) -> None:
        self.warnings += [sentence for sentence in sentences if sentence]

    def _tell(self, sentence: str) -> None:
        self._warn(sentence)
        self._say(sentence)

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

        Goals are not sent while torque is off, nor to a servo that has restarted (see `health`). Raises UsageError for
        goals that are no numbers or too few, before anything is sent: the arm keeps its last goal. Raises BusError when
        a line has gone; the other lines were served.
        """
        begun_ns = self.clock.now_ns()
        goal = None if goal is None else self._sound(goal)
        reads = [self._begin(line, goal, deadline_ns) for line in self._lines]
        finish(reads, self.clock)
        now_ns = self.clock.now_ns()
        n_stale = 0
        for line, read in zip(self._lines, reads, strict=True):
            n_stale += self._take(line, read, begun_ns, now_ns)
        self._read_health(reads, deadline_ns)
        self._reading = self._make_reading(now_ns, begun_ns, n_stale)
        self._gone |= {line.bus.name for line, read in zip(self._lines, reads, strict=True) if read.failure}
        for read in reads:
            if read.failure is not None:
                raise read.failure
        return self._reading

    def _sound(self, goal: np.ndarray) -> np.ndarray:
        """float64 (D,). A number that is none would end as a joint's lower limit."""
        n, names = len(self.profile.joints), [joint.name for joint in self.profile.joints]
        try:
            numbers = np.asarray(goal, np.float64)
        except (TypeError, ValueError):
            numbers = np.full(0, np.nan)
        if numbers.shape == (n,) and np.isfinite(numbers).all():
            return numbers
        self._n_refused += 1
        if numbers.shape != (n,):
            what = f"a goal of {self.profile.name} is {n} numbers ({', '.join(names)}), not {np.shape(goal)}"
        else:
            bad = [f"{names[k]} is {numbers[k]}" for k in np.flatnonzero(~np.isfinite(numbers))]
            what = f"the goal of {self.profile.name} is no number: {', '.join(bad)}"
        raise UsageError(f"{what}; nothing was sent, the arm keeps its last goal")

    @property
    def withheld(self) -> np.ndarray:
        """bool (D,): joints whose servos would get no goal now: they were silent, or have restarted (see `health`)."""
        found = np.zeros(len(self.profile.joints), bool)
        for line in self._lines:
            found[[line.joint_of[i] for i in line.health.withheld if i in line.joint_of]] = True
        return found

    @property
    def has_lost_lines(self) -> bool:
        return bool(self._gone)

    @property
    def is_cut_off(self) -> bool:
        """Whether no line is left through which a servo could be told anything."""
        return len(self._gone) == len(self._lines)

    def _begin(self, line: ArmLine, goal: np.ndarray | None, deadline_ns: int) -> BlockRead:
        prefix = b""
        if goal is not None and self.torque_on:
            ticks, withheld = self.units.ticks(goal), line.health.withheld
            goals = {i: int(ticks[line.joint_of[i]]) for i in line.ids if i not in withheld}
            prefix = line.line.goal_frame(goals) if goals else b""
        return line.line.begin(line.line.tick_block, line.ids, deadline_ns, prefix)

    def _take(self, line: ArmLine, read: BlockRead, begun_ns: int, now_ns: int) -> int:
        """Takes the values that came; returns how many joints of this bus got none."""
        n_stale = 0
        for servo_id in line.ids:
            data = read.replies.get(servo_id)
            if data is None:
                line.health.doubted.add(servo_id)
            else:
                values = line.line.tick_block.decode(data)
                self._beyond.pop(line.joint_of[servo_id], None)
                if self._is_plausible(line, line.joint_of[servo_id], values["present_position"], now_ns):
                    k = line.joint_of[servo_id]
                    self._ticks[k], self._observed_ns[k] = values["present_position"], now_ns
                    self._asked_ns[k] = begun_ns
                    line.health.servos[servo_id].take(line.line.report(servo_id, values), line.line)
                    continue
                self._n_invalid += 1
            n_stale += 1
            line.line.counters[servo_id].n_stale += 1
        return n_stale

    def _is_plausible(self, line: ArmLine, k: int, tick: int, now_ns: int) -> bool:
        """Within one turn, and no farther than a servo can have gone; a jump is believed when it is there twice."""
        if not line.line.is_plausible(tick):
            self._beyond[k] = tick
            return False
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

    def _explain(self, each: ArmLine, silent: list[int]) -> str:
        line, port = each.line, each.line.port.name
        if beyond := [i for i in silent if each.joint_of[i] in self._beyond]:
            return (
                f"{line.name_of(beyond[0])} on {port} says {self._beyond[each.joint_of[beyond[0]]]}, beyond one turn: "
                "turn it back by hand and start again"
            )
        if len(silent) == len(each.ids):
            return f"no servo on {port} answers: look after the arm's power and the adapter"
        names = ", ".join(f"{i} ({each.health.servos[i].name})" for i in silent)
        who = f"motor {names} does" if len(silent) == 1 else f"motors {names} do"
        alive = [i for i in line.ids if i not in silent]
        return f"{who} not answer on {port}: check {cable_hint(line.ids, alive, line.motors)}"

    # ---- health ----

    def _read_health(self, ticks: Sequence[BlockRead], deadline_ns: int) -> None:
        """What is due of every line, when there is time."""
        now_ns, reads = self.clock.now_ns(), []
        for line, tick in zip(self._lines, ticks, strict=True):
            if (read := line.health.begin(now_ns, deadline_ns, tick.replies)) is not None:
                reads.append((line, read))
        finish([read for _, read in reads], self.clock)
        now_ns = self.clock.now_ns()
        for line, read in reads:
            for servo_id, data in read.replies.items():
                line.health.take(servo_id, line.line.health_block.decode(data), now_ns)

    def health(self) -> list[ServoCondition]:
        """All servos in the profile's order, shadows too; values as last read, no bus traffic."""
        for line in self._lines:
            line.health.count()
        return [health for line in self._lines for health in line.health.servos.values()]

    def counters(self) -> dict[str, int]:
        """Sums over all servos since the start."""
        every = [c for line in self._lines for c in line.line.counters.values()]
        return {
            "bus_retries": sum(c.n_retries for c in every),
            "bus_corrupt": sum(c.n_corrupt for c in every),
            "bus_lost": sum(c.n_lost for c in every),
            "bus_stale": sum(c.n_stale for c in every),
            "bus_invalid": self._n_invalid,
            "goals_refused": self._n_refused,
        }

    # ---- torque ----

    def set_torque(self, on: bool) -> list[str]:
        """Switches all servos; returns the motors for which it could not be confirmed.

        On: goal := present first, or the arm would jump to an old goal. A joint a little outside its range comes back
        slowly before this returns; raises BusError for one that is farther outside, and nothing is switched on. Off:
        every servo by itself, three times, ERR bits ignored, then all by sync write.
        """
        return self._torque.switch_on(self.units) if on else self._torque.switch_off()

    @property
    def torque_on(self) -> bool:
        """As it was switched last."""
        return self._torque.is_on

    def renew_torque(self, motor: str) -> None:
        """Enables the torque of one servo once more, which clears a Feetech's overload. Only of one that has torque:
        what a brown-out switched off stays off, and so does what has restarted or may have."""
        self._torque.renew(motor)

    def set_torque_limit(self, share: float) -> None:
        """Limits all servos to a share (0..1) of the torque that profile and owner give them."""
        if not 0.0 <= share <= 1.0:
            raise UsageError(f"a torque limit is a share of 0 to 1, not {share}; nothing was changed")
        self.rescue.limit_torque(share)

    def outside(self) -> list[OutOfRange]:
        """Joints that stand outside their range, as read last: what they cannot be told to keep."""
        return self.units.outside(self._ticks)

    # ---- what else is known ----

    def present_goal(self) -> np.ndarray:
        """float32 (D,), action units: goals that leave every joint where it was read last, or at the end of its range
        that is nearest: as they would be sent."""
        inside = np.clip(self._ticks, self.units.least, self.units.most)
        return self.units.action(inside + 0.25)  # a quarter tick survives float32 and truncation

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

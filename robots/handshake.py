"""From an open line to servos that are known, checked and configured: what `Robot.connect` does, step by step.

An arm that is found with torque on is let down first. After that torque is off, nothing moves, and only registers that
differ are written: EEPROM wears.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from edgevla.errors import BusError, CalibrationError

from .bus.reads import finish
from .bus.registers import Block
from .bus.report import SHARED, what_it_says
from .bus.servo_bus import ServoBus, cable_hint
from .calibration import REGISTER_OF, Calibration, differences, refuse_other_kind
from .profile import Bus, Limits, Motor, Profile
from .rescue import Rescue, full_torque, unconfirmed

PULSE_TIMEOUT_NS = 60_000_000
PATIENCE_NS = 100_000_000
PROBES = 3
SLOW_ADAPTER_MS = 6.0
"""An adapter that adds more than this to an answer (`pulse_ms`) slows the control loop."""
PAIR_SAMPLES = 5
PAIR_NOISE_TICKS = 3
"""Two servos of a pair that differ by no more agree: an EEPROM write for a tick of noise wears it."""
TURN = 4096
LEAST_SHIFT_TICKS = 40
"""A homing offset changed by less cannot be told from a hand that moves the joint meanwhile."""
SHIFT_TRIES, SHIFT_WAIT_NS = 3, 10_000_000


# ---- an arm that is found with torque on ----


def energised(lines: Mapping[str, ServoBus], profile: Profile) -> list[str]:
    """Motors whose torque is on, of those that answer. Changes nothing."""
    found = []
    for bus in profile.buses:
        line = lines[bus.name]
        register = line.registers["torque_enable"]
        held = line.read_all(Block((register,)), line.ids, PATIENCE_NS)
        found += [m.name for m in bus.motors if held.get(m.id, {}).get(register.name)]
    return found


def let_down(rescue: Rescue, motors: Sequence[str], say: Callable[[str], None]) -> None:
    """By the profile's escalation table: held where it is, lowered, released; every step is said while it happens.

    motors: whose torque was found on. Raises BusError for a profile that does not release its arm, which stays held,
    and when torque could not be confirmed off.
    """
    profile, rule = rescue.profile, rescue.profile.escalation
    who = "all its servos" if len(motors) == sum(len(b.motors) for b in profile.buses) else ", ".join(motors)
    found = f"{profile.name}: torque was found on ({who}): whoever drove it has not released it"
    if unread := rescue.freeze():
        found += f"; {', '.join(unread)} did not answer"
    if not rule.release:
        raise BusError(
            f"{found}. Its profile never releases the arm (escalation.release = false), so it is held where it is: "
            "support it, switch its power off and on, then start again"
        )
    seconds = (rule.hold_ms + rule.park_ms) / 1000
    say(f"{found}. It is held where it is and sinks slowly within about {seconds:g} s; support it")
    rescue.clock.sleep_until(rescue.clock.now_ns() + rule.hold_ms * 1_000_000)
    rescue.freeze()  # where it is now: a push meanwhile is not fought
    rescue.lower()
    if unreached := rescue.release():
        raise BusError(f"{profile.name}: torque was found on, and the arm let down; {unconfirmed(unreached)}")
    say(f"{profile.name}: the arm was let down; its torque is off")


# ---- who is there ----


def check_motors(line: ServoBus, bus: Bus, profile: Profile) -> str | None:
    """All servos answer, each once and with the right model; else BusError with the likeliest cure.

    Returns a sentence for the user when servos of one model have different firmware.
    """
    found = {reply.id: reply for reply in line.scan(line.ids, n_tries=3)}
    missing = [motor for motor in bus.motors if motor.id not in found]
    if missing:
        raise BusError(_missing_text(line, bus, profile, sorted(found), missing), port=line.port.name,
                       motor_id=missing[0].id)  # fmt: skip
    for motor in bus.motors:
        reply, expected = found[motor.id], motor.model_number
        if reply.model != expected:
            known = {number: name for name, number in line.known_models.items()}
            raise BusError(
                f"{profile.name} on {line.port.name}: motor {motor.id} ({motor.name}) is a "
                f"{known.get(reply.model, 'servo')} (model {reply.model}), the profile expects {motor.model} "
                f"({expected}); correct the profile or the wiring",
                port=line.port.name,
                motor_id=motor.id,
            )
    return _mixed_firmware(line, bus, {i: reply.firmware for i, reply in found.items()})


def others_on(line: ServoBus) -> str:
    """The sentence for another master that was heard on the line; empty when there was none."""
    if not line.is_shared:
        return ""
    return f"{line.robot} on {line.port.name}: another program talks to the servos on this line; {line.cures[SHARED].do}"


def _mixed_firmware(line: ServoBus, bus: Bus, firmware: Mapping[int, str]) -> str | None:
    for model in sorted({motor.model for motor in bus.motors}):
        held: dict[str, list[str]] = {}
        for motor in bus.motors:
            if motor.model == model:
                held.setdefault(firmware[motor.id], []).append(motor.name)
        if len(held) > 1:
            rarest = min(held, key=lambda version: len(held[version]))
            return (
                f"{line.robot} on {line.port.name}: firmware {rarest} in {', '.join(held[rarest])}, "
                f"{' and '.join(sorted(held.keys() - {rarest}))} in the other {model}; give all of them the same"
            )
    return None


def _missing_text(line: ServoBus, bus: Bus, profile: Profile, found: list[int], missing: list[Motor]) -> str:
    names = {motor.id: motor.name for motor in bus.motors}
    who = ", ".join(f"{m.id} ({m.name})" for m in missing)
    text = f"{profile.name} on {line.port.name}: no answer from motor {who} at {line.port.baud} baud"
    if not found:
        ask = f"edgevla doctor --robot {profile.name} --port {line.port.name}"
        return text + f"; no servo answered at all: switch the arm's power supply on; if it is on, ask: {ask}"
    text += f"; answered: {', '.join(map(str, found))}"
    if len(missing) > 1 and found == [1]:
        return text + f"; all servos may still have id 1: edgevla setup-motors --robot {profile.name}"
    return text + f"; check {cable_hint([m.id for m in bus.motors], found, names)}"


def check_calibration(lines: Mapping[str, ServoBus], profile: Profile, calibration: Calibration) -> None:
    """Raises CalibrationError with every register in which file and servos differ."""
    held = held_calibration(lines, profile, calibration)
    if lines_differ := differences(calibration, held):
        port = port_names(lines)
        refuse_other_kind(profile, held, port)
        raise CalibrationError(
            f"{profile.name} on {port}: calibration {calibration.source} differs from what the servos hold: "
            + "; ".join(lines_differ)
            + f". The arm was not moved. If the file is right: edgevla calibrate --robot {profile.name} --write; "
            "if the servos are: --adopt (with the arm's --id, where it has one)"
        )


def port_names(lines: Mapping[str, ServoBus]) -> str:
    return ", ".join(line.port.name for line in lines.values())


def held_calibration(
    lines: Mapping[str, ServoBus], profile: Profile, calibration: Calibration | None = None
) -> dict[str, dict[str, int]]:
    """Registers 31, 9 and 11 by motor name (of the motors of `calibration`, or of all)."""
    wanted = None if calibration is None else set(calibration.motors)
    return {
        motor.name: {name: lines[bus.name].read_raw(motor.id, name) for name in REGISTER_OF.values()}
        for bus in profile.buses
        for motor in bus.motors
        if wanted is None or motor.name in wanted
    }


def write_calibration(lines: Mapping[str, ServoBus], profile: Profile, calibration: Calibration) -> list[str]:
    """Writes offsets and limits into the servos, torque off; returns what was changed, in words."""
    changed = []
    for bus in profile.buses:
        line = lines[bus.name]
        for motor in bus.motors:
            entry = calibration.motors[motor.name]
            wanted = {register: getattr(entry, key) for key, register in REGISTER_OF.items()}
            for name in write_differing(line, motor.id, wanted):
                changed.append(f"{motor.name}: {name} = {wanted[name]}")
    return changed


def check_health(line: ServoBus, bus: Bus, limits: Limits) -> None:
    """Refuses to start on a supply, heat or state that would stop the run at once."""
    for motor in bus.motors:
        report = line.report(motor.id, line.read_block(motor.id, line.health_block))
        own = line.learn_limits(motor.id)
        where = f"{line.robot} on {line.port.name}: motor {motor.id} ({motor.name})"
        volts, heat = report.voltage_v, report.temperature_c
        least, most = max(limits.voltage_min, own.voltage_v[0]), min(limits.voltage_max, own.voltage_v[1])
        if volts is not None and not least - 0.05 <= volts <= most + 0.05:
            raise BusError(
                f"{where} measures {volts:.1f} V, allowed are {least:.1f}..{most:.1f} V; use the supply that fits "
                "these servos (7.4 V and 12 V versions exist)",
                port=line.port.name, motor_id=motor.id, register="present_voltage",
            )  # fmt: skip
        if heat is not None and heat >= limits.temperature_stop_c:
            raise BusError(
                f"{where} is at {heat:.0f} degC, the limit is {limits.temperature_stop_c:.0f}; let it cool down",
                port=line.port.name, motor_id=motor.id, register="present_temperature",
            )  # fmt: skip
        if report.faults:
            raise BusError(
                f"{where} {what_it_says(report.faults)}; {line.cure(motor.id, report.faults, report)}",
                port=line.port.name, motor_id=motor.id, register="status", error_bits=report.error_bits,
            )  # fmt: skip


# ---- what connecting writes ----


def configure(line: ServoBus, bus: Bus, only: Collection[int] | None = None) -> list[str]:
    """Registers as the profile wants them; torque is off and the EEPROM unlocked meanwhile.

    only: ids; None: all. Returns sentences for the user: where a servo's own limit is lower than the profile's.
    """
    motors = [motor for motor in bus.motors if only is None or motor.id in only]
    for motor in motors:
        if line.read_raw(motor.id, "torque_enable"):
            line.write_raw(motor.id, "torque_enable", 0)
    kept: dict[str, list[str]] = {}
    for motor in motors:
        wanted = _wanted(line, bus, motor)
        for name, own in _own_limits(line, motor.id, wanted).items():
            kept.setdefault(f"{name} ({line.register(name).address}) = {own}", []).append(motor.name)
        write_differing(
            line, motor.id, {k: v for k, v in wanted.items() if line.register(k).area == "eeprom"}
        )
        for name, value in wanted.items():
            if line.register(name).area == "ram" and line.read_raw(motor.id, name) != value:
                line.write_raw(motor.id, name, value)
    return [
        f"{line.robot} on {line.port.name}: {', '.join(names)}: the servo's own {what} is lower than the profile's and "
        "stays; raise it with the vendor's tool if that is not wanted"
        for what, names in kept.items()
    ]


def _wanted(line: ServoBus, bus: Bus, motor: Motor) -> dict[str, int]:
    ids = {m.name: m.id for m in bus.motors}
    partner = ids[motor.shadow_of] if motor.shadow_of else None
    return {**line.settings(motor.id, motor.drive_mode, partner), **dict(motor.settings)}


def _own_limits(line: ServoBus, servo_id: int, wanted: dict[str, int]) -> dict[str, int]:
    """Takes down in `wanted` what would exceed a limit that the servo's owner has set; those limits, by register."""
    kept = {}
    for name in line.ceilings:
        if name in wanted and (own := line.read_raw(servo_id, name)) < wanted[name]:
            wanted[name] = kept[name] = own
    for name, bound in line.bounds:
        if name in wanted:
            most = wanted[bound] if bound in wanted else line.read_raw(servo_id, bound)
            wanted[name] = min(wanted[name], most)
    return kept


def weaker(rescue: Rescue) -> list[str]:
    """Sentences for the user: servos whose owner allows less torque than a profile that says nothing of it."""
    said = []
    for bus in rescue.profile.buses:
        line, wanted, held = rescue.buses[bus.name], full_torque(bus), rescue.learn_limits()[bus.name]
        low = [
            f"{m.name} {held[m.id] / line.full_torque:.0%}"
            for m in bus.motors
            if held[m.id] < wanted[m.id] and line.torque_limit not in dict(m.settings)
        ]
        if low:
            said.append(
                f"{line.robot} on {line.port.name}: less torque than the servos could give, because their own "
                f"{line.own_limit} ({line.registers[line.own_limit].address}) says so: {', '.join(low)}"
            )
    return said


def write_differing(line: ServoBus, servo_id: int, wanted: Mapping[str, int]) -> list[str]:
    """Writes those EEPROM registers that differ and reads them back; returns their names.

    Raises BusError for a value that the servo does not hold afterwards, and for a homing offset by which the present
    position has not moved.
    """
    held = {name: line.read_raw(servo_id, name) for name in wanted}
    changed = [name for name, value in wanted.items() if held[name] != value]
    if not changed:
        return []
    has_moved = "homing_offset" in changed
    before = line.read_raw(servo_id, "present_position") if has_moved else 0
    with line.unlocked(servo_id):
        for name in changed:
            _write_back(line, servo_id, name, wanted[name])
    if has_moved:
        _check_shift(line, servo_id, before, wanted["homing_offset"] - held["homing_offset"])
    return changed


def _write_back(line: ServoBus, servo_id: int, name: str, value: int) -> None:
    line.write_raw(servo_id, name, value)
    held = line.read_raw(servo_id, name)
    if held != value:
        r = line.register(name)
        raise BusError(
            f"{line.robot} on {line.port.name}: {line.name_of(servo_id)} holds {held} in {name} ({r.address}) after "
            f"{value} was written; switch the arm off and on and try again",
            port=line.port.name, motor_id=servo_id, register=name,
        )  # fmt: skip


def _check_shift(line: ServoBus, servo_id: int, before: int, change: int) -> None:
    """An offset that is in the register and not in the position makes every angle wrong by it."""
    shift = line.homing_sign * change
    if abs(_within_a_turn(shift)) < LEAST_SHIFT_TICKS:
        return
    for _ in range(SHIFT_TRIES):
        present = line.read_raw(servo_id, "present_position")
        if abs(_within_a_turn(present - before - shift)) < abs(_within_a_turn(present - before)):
            return
        line.clock.sleep_until(line.clock.now_ns() + SHIFT_WAIT_NS)
    raise BusError(
        f"{line.robot} on {line.port.name}: {line.name_of(servo_id)} holds its new homing_offset, but its position has "
        f"not moved by {shift} ticks (it was {before}, it is {present}): it did not take; switch the arm off and on and "
        "try again",
        port=line.port.name, motor_id=servo_id, register="homing_offset",
    )  # fmt: skip


def _within_a_turn(ticks: int) -> int:
    return (ticks + TURN // 2) % TURN - TURN // 2


def align_shadows(line: ServoBus, bus: Bus, pair_ticks: int) -> None:
    """Both servos of a pair report the same tick, or torque is refused: two that pull against each other burn out."""
    ids = {motor.name: motor.id for motor in bus.motors}
    pairs = [(ids[m.shadow_of], m.id) for m in bus.motors if m.shadow_of is not None]
    if not pairs:
        return
    for (leader, shadow), gap in _gaps(line, pairs).items():
        if abs(gap) > pair_ticks:
            raise _unequal(line, leader, shadow, f"differ by {gap} ticks, at most {pair_ticks} are safe")
        if abs(gap) <= PAIR_NOISE_TICKS:
            continue
        offset = line.read_raw(shadow, "homing_offset") + line.homing_sign * gap
        write_differing(line, shadow, {"homing_offset": offset})
        left = _gaps(line, [(leader, shadow)])[leader, shadow]
        if abs(left) > PAIR_NOISE_TICKS + 1:
            raise _unequal(
                line, leader, shadow, f"still differ by {left} ticks after homing_offset = {offset}"
            )


def _unequal(line: ServoBus, leader: int, shadow: int, how: str) -> BusError:
    names = {i: f"{line.motors[i].split(',')[0]} ({i})" for i in (leader, shadow)}
    return BusError(
        f"{line.robot} on {line.port.name}: {names[leader]} and {names[shadow]} turn one joint but {how}; check the "
        f"horns, then correct homing_offset (20) of motor {shadow}",
        port=line.port.name, motor_id=shadow, register="homing_offset",
    )  # fmt: skip


def _gaps(line: ServoBus, pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Ticks by which the leaders are ahead of their shadows: read together, and the median of a few."""
    register = line.registers["present_position"]
    ids = sorted({i for pair in pairs for i in pair})
    samples: dict[tuple[int, int], list[int]] = {pair: [] for pair in pairs}
    for _ in range(PAIR_SAMPLES):
        read = line.read_all(Block((register,)), ids, PATIENCE_NS)
        if missing := [i for i in ids if i not in read]:
            raise line.no_answer(missing[0], "READ", register)
        for leader, shadow in pairs:
            samples[leader, shadow].append(read[leader][register.name] - read[shadow][register.name])
    return {pair: sorted(gaps)[len(gaps) // 2] for pair, gaps in samples.items()}


# ---- how fast the line is ----


def probe_joined(line: ServoBus) -> str | None:
    """Whether a read may follow a sync write in the same bytes, which saves one USB transfer per tick.

    Tried with a write that changes nothing (torque is off). A sentence when it does not work; two writes are used then.
    """
    prefix = line.goal_frame(dict.fromkeys(line.ids, 0), "torque_enable")
    for _ in range(PROBES):
        deadline_ns = line.clock.now_ns() + PULSE_TIMEOUT_NS
        read = line.begin(line.tick_block, line.ids, deadline_ns, prefix, n_retries=0)
        finish([read], line.clock)
        if read.failure is not None:
            raise read.failure
        if read.replies:
            return None
    line.joins_writes = False
    return f"{line.robot} on {line.port.name}: servos do not answer a read sent together with a write; sent apart now"


def pulse_ms(line: ServoBus, n: int = 7) -> float:
    """Time of a one-servo read beyond the wire's own, in ms: the adapter's latency. 0 when nobody answers.

    The lower quartile of a few: a busy machine only adds.
    """
    r = line.registers["model_number"]
    for servo_id in line.ids:
        frame = line.codec.read(servo_id, r.address, r.size)
        if line.transact(frame, servo_id, r.size, PULSE_TIMEOUT_NS, 1) is None:
            continue
        times = []
        for _ in range(n):
            begun_ns = line.clock.now_ns()
            if line.transact(frame, servo_id, r.size, PULSE_TIMEOUT_NS, 1) is not None:
                times.append(line.clock.now_ns() - begun_ns)
        if times:
            wire_ns = line.wire_time_ns(r.size, 1, len(frame))
            return max(0.0, (sorted(times)[len(times) // 4] - wire_ns) / 1e6)
    return 0.0

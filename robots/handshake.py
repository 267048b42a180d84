"""From an open line to servos that are known, checked and configured: what `Robot.connect` does, step by step.

Only registers that differ are written: EEPROM wears. Torque is off while EEPROM is written, and nothing moves here.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgevla.errors import BusError, CalibrationError

from .bus import feetech
from .bus.reads import finish
from .bus.servo_bus import DynamixelBus, FeetechBus, ServoBus, cable_hint
from .calibration import REGISTER_OF, Calibration, differences
from .profile import Bus, Limits, Motor, Profile
from .servo_settings import MODELS

MULTI_TURN = 0x10
PULSE_TIMEOUT_NS = 60_000_000
PROBES = 3
SLOW_ADAPTER_MS = 6.0
"""An adapter that adds more than this to an answer (`pulse_ms`) slows the control loop."""
FEETECH_SETTINGS = {"return_delay": 0, "operating_mode": 0, "max_acceleration": 254}
FEETECH_RAM = {"acceleration": 254, "goal_velocity": 0}
DYNAMIXEL_SETTINGS = {"return_delay": 0, "operating_mode": 3}
DYNAMIXEL_RAM = {"profile_acceleration": 0, "profile_velocity": 0, "response_level": 2}


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
            known = {number: name for name, number in MODELS[bus.protocol].items()}
            raise BusError(
                f"{profile.name} on {line.port.name}: motor {motor.id} ({motor.name}) is a "
                f"{known.get(reply.model, 'servo')} (model {reply.model}), the profile expects {motor.model} "
                f"({expected}); correct the profile or the wiring",
                port=line.port.name,
                motor_id=motor.id,
            )
    return _mixed_firmware(line, bus, {i: reply.firmware for i, reply in found.items()})


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
        port = ", ".join(line.port.name for line in lines.values())
        raise CalibrationError(
            f"{profile.name} on {port}: calibration {calibration.source} differs from what the servos hold: "
            + "; ".join(lines_differ)
            + f". The arm was not moved. If the file is right: edgevla calibrate --robot {profile.name} --write; "
            "if the servos are: --adopt (with the arm's --id, where it has one)"
        )


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


def check_health(line: ServoBus, bus: Bus, limits: Limits, name: str) -> None:
    """Refuses to start on a supply, heat or state that would stop the run at once."""
    for motor in bus.motors:
        block = line.read_block(motor.id, line.health_block)
        volts = block["present_voltage"] * 0.1
        where = f"{name} on {line.port.name}: motor {motor.id} ({motor.name})"
        least = max(limits.voltage_min, line.read(motor.id, "min_voltage"))
        most = min(limits.voltage_max, line.read(motor.id, "max_voltage"))
        if not least - 0.05 <= volts <= most + 0.05:
            raise BusError(
                f"{where} measures {volts:.1f} V, allowed are {least:.1f}..{most:.1f} V; use the supply that fits "
                "these servos (7.4 V and 12 V versions exist)",
                port=line.port.name, motor_id=motor.id, register="present_voltage",
            )  # fmt: skip
        if block["present_temperature"] >= limits.temperature_stop_c:
            raise BusError(
                f"{where} is at {block['present_temperature']} degC, the limit is {limits.temperature_stop_c:.0f}; "
                "let it cool down",
                port=line.port.name, motor_id=motor.id, register="present_temperature",
            )  # fmt: skip
        if texts := line.codec.error_texts(block["status"]):
            raise BusError(
                f"{where} reports {', '.join(texts)}; free the joint, then {restart_words(bus, name, motor.id)}",
                port=line.port.name, motor_id=motor.id, register="status", error_bits=block["status"],
            )  # fmt: skip


def restart_words(bus: Bus, robot: str, servo_id: int) -> str:
    """How a servo forgets what it reports."""
    if bus.protocol == "dynamixel":
        return f"reboot it: edgevla doctor --robot {robot} --reboot {servo_id} (the arm may drop)"
    return "switch the arm off and on"


def configure(line: ServoBus, bus: Bus) -> None:
    """Registers as the profile wants them; torque is off and the EEPROM unlocked meanwhile."""
    for motor in bus.motors:
        if line.read_raw(motor.id, "torque_enable"):
            line.write_raw(motor.id, "torque_enable", 0)
    for motor in bus.motors:
        wanted = _wanted(line, bus, motor)
        write_differing(
            line, motor.id, {k: v for k, v in wanted.items() if line.register(k).area == "eeprom"}
        )
        for name, value in wanted.items():
            if line.register(name).area == "ram" and line.read_raw(motor.id, name) != value:
                line.write_raw(motor.id, name, value)


def _wanted(line: ServoBus, bus: Bus, motor: Motor) -> dict[str, int]:
    settings = dict(motor.settings)
    if isinstance(line, FeetechBus):
        phase = line.read_raw(motor.id, "phase") & ~MULTI_TURN
        return {**FEETECH_SETTINGS, "phase": phase, **FEETECH_RAM, **settings}
    ids = {m.name: m.id for m in bus.motors}
    secondary = ids[motor.shadow_of] if motor.shadow_of else 255
    fixed = {"drive_mode": motor.drive_mode, "secondary_id": secondary}
    return {**DYNAMIXEL_SETTINGS, **fixed, **DYNAMIXEL_RAM, **settings}


def write_differing(line: ServoBus, servo_id: int, wanted: Mapping[str, int]) -> list[str]:
    """Writes those EEPROM registers that differ and reads them back; returns their names."""
    changed = [name for name, value in wanted.items() if line.read_raw(servo_id, name) != value]
    if not changed:
        return []
    is_feetech = line.codec is feetech
    if is_feetech:
        line.write_raw(servo_id, "lock", 0)
    for name in changed:
        line.write_raw(servo_id, name, wanted[name])
        held = line.read_raw(servo_id, name)
        if held != wanted[name]:
            r = line.register(name)
            raise BusError(
                f"{line.robot} on {line.port.name}: {line.name_of(servo_id)} holds {held} in {name} ({r.address}) after "
                f"{wanted[name]} was written; switch the arm off and on and try again",
                port=line.port.name, motor_id=servo_id, register=name,
            )  # fmt: skip
    if is_feetech:
        line.write_raw(servo_id, "lock", 1)
    return changed


def align_shadows(line: ServoBus, bus: Bus, pair_ticks: int) -> None:
    """Both servos of a pair report the same tick, or torque is refused: two that pull against each other burn out."""
    ids = {motor.name: motor.id for motor in bus.motors}
    for motor in bus.motors:
        if motor.shadow_of is None:
            continue
        gap = line.read_raw(ids[motor.shadow_of], "present_position") - line.read_raw(
            motor.id, "present_position"
        )
        if abs(gap) > pair_ticks:
            raise BusError(
                f"{line.robot} on {line.port.name}: {motor.shadow_of} ({ids[motor.shadow_of]}) and {motor.name} "
                f"({motor.id}) turn one joint but differ by {gap} ticks, at most {pair_ticks} are safe; check the "
                f"horns, then correct homing_offset (20) of motor {motor.id}",
                port=line.port.name, motor_id=motor.id, register="homing_offset",
            )  # fmt: skip
        if gap:
            write_differing(line, motor.id, {"homing_offset": line.read_raw(motor.id, "homing_offset") + gap})


def probe(line: ServoBus) -> str | None:
    """Finds the fastest way to read all servos; a sentence for the user when it is a slow one."""
    if isinstance(line, DynamixelBus):
        line.probe_fast_read()
        return None
    if isinstance(line, FeetechBus) and not line.probe_sync_read():
        versions = {reply.firmware for reply in line.scan(line.ids)}
        return (
            f"{line.robot} on {line.port.name}: sync read does not work; servos are read one by one, which is slower. "
            f"Firmware before 3.10 cannot do it (here: {', '.join(sorted(versions))}); a bad cable may be why, too: "
            f"edgevla doctor --robot {line.robot}"
        )
    return None


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

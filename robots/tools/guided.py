"""The guided calibration: centre, sweep, save; what cannot be right is asked about joint by joint, and only that again.

The servos' registers are written once, at the end, but for what a position needs to mean anything. What they held before
is put back whatever ends it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgevla.errors import BusError, CalibrationError, UsageError

from .. import calibration
from ..calibration import LAST_TICK, Calibration, MotorCalibration, implausible, out_of_reach
from ..handshake import check_motors, held_calibration, write_calibration, write_differing
from .holding import release
from .sweeping import Doubt, Encoders, Swept, doubt, sweep
from .terminal import endings_raise, unbroken

if TYPE_CHECKING:
    from ..bus.servo_bus import ServoBus
    from ..profile import Joint, Profile
    from .terminal import Terminal


def guide(
    profile: Profile, lines: Mapping[str, ServoBus], calibration_id: str | None, person: Terminal
) -> int:
    """Centre, sweep, check, save: into the servos and into LeRobot's file."""
    calibration.targets(profile, calibration_id)  # refused now, or after all the work
    for bus in profile.buses:
        for sentence in (check_motors(lines[bus.name], bus, profile), lines[bus.name].probe_reading()):
            if sentence:
                person.say(sentence)
    release(profile, lines, person)
    held = held_calibration(lines, profile)
    with endings_raise():
        try:
            made = _measure(profile, lines, held, person)
            with unbroken():
                write_calibration(lines, profile, made)
                paths = calibration.write(profile, made, calibration_id)
        except BaseException:
            _say_to_whom_it_may_concern(person, put_back(profile, lines, held))
            raise
    for sentence in out_of_reach(profile, made):
        person.say(f"Careful: {sentence}. Move it to both its ends, or change the pose in the profile.")
    for path in paths:
        person.say(f"Saved {path}")
    return 0


def _measure(
    profile: Profile,
    lines: Mapping[str, ServoBus],
    held: dict[str, dict[str, int]],
    person: Terminal,
) -> Calibration:
    """From the first question to the last answer. held: takes up what else is written meanwhile."""
    prepare(profile, lines, held)
    encoders = Encoders(profile, lines, held)
    person.wait(
        f"Torque is off: hold the {profile.name}.\n1. Move every joint to the middle of its range, then press Enter."
    )
    encoders.home()
    person.say("2. Move every joint to both its ends, then press Enter.")
    person.settle()
    swept = sweep(encoders, person.pressed, lambda s: person.draw(table(profile, s)))
    swept = settle_doubts(profile, encoders, swept, person)
    if not person.is_live:
        for row in table(profile, swept):
            person.say(row)
    return conclude(profile, encoders.offsets, swept)


def prepare(profile: Profile, lines: Mapping[str, ServoBus], held: dict[str, dict[str, int]]) -> None:
    """Sets what a servo needs for its positions to mean anything, as connecting does; `held` gets what it was before."""
    for bus in profile.buses:
        line = lines[bus.name]
        for motor in bus.motors:
            wanted = line.to_calibrate(motor.id, motor.drive_mode)
            held[motor.name] |= {name: line.read_raw(motor.id, name) for name in wanted}
            write_differing(line, motor.id, wanted)


def put_back(profile: Profile, lines: Mapping[str, ServoBus], held: Mapping[str, Mapping[str, int]]) -> str:
    """Gives the servos the registers they had before a calibration that came to nothing; what became of it."""
    with unbroken():
        try:
            for bus in profile.buses:
                for motor in bus.motors:
                    write_differing(lines[bus.name], motor.id, held[motor.name])
        except BusError as error:
            return f"The servos hold half a calibration, which could not be taken back: {error}"
    return "Nothing was saved; the servos hold again what they held before."


def _say_to_whom_it_may_concern(person: Terminal, text: str) -> None:
    with contextlib.suppress(UsageError):  # nobody reads it any more, and that is what ended it
        person.say(text)


# ---- what cannot be right ----


def settle_doubts(
    profile: Profile, encoders: Encoders, swept: dict[str, Swept], person: Terminal
) -> dict[str, Swept]:
    """Asks about every joint whose sweep cannot be right, and has only that one moved again."""
    joints = {joint.motor: joint for joint in profile.joints}
    done = dict(swept)
    for bus in profile.buses:
        for motor in bus.motors:
            name = motor.name
            while found := doubt(name, joints.get(name), done.get(name)):
                answer = _answer(found, person)
                if answer == "k":
                    break
                if answer == "c":
                    person.wait(f"Put {name} in the middle of its range, then press Enter.")
                    encoders.home([name])
                    person.say(f"Move {name} to both its ends, then press Enter.")
                    person.settle()
                again = sweep(encoders, person.pressed, lambda s: person.draw(table(profile, s)), [name])
                done = {**{k: v for k, v in done.items() if k != name}, **again}
    return done


def _answer(found: Doubt, person: Terminal) -> str:
    """What to do about a doubt: `` sweep again, `c` centre first, `k` keep it."""
    if found.kind == "again":
        person.say(f"{found.text}. Move it to both its ends, then press Enter.")
        person.settle()
        return ""
    if found.kind == "centre":
        person.say(f"{found.text}.")
        return "c"
    answer = person.ask(
        f"{found.text}. Press Enter to move it again, c to give it another middle first, k to keep it as it is.",
        ("", "c", "k"),
    )
    if not answer:
        person.say("Move it to both its ends, then press Enter.")
        person.settle()
    return answer


def conclude(profile: Profile, offsets: Mapping[str, int], swept: Mapping[str, Swept]) -> Calibration:
    """The calibration. Raises CalibrationError for a joint of which nothing is known."""
    joints = {joint.motor: joint for joint in profile.joints}
    motors = {}
    for bus in profile.buses:
        for motor in bus.motors:
            seen, offset = swept.get(motor.name), offsets.get(motor.name)
            low, high = (
                (0, LAST_TICK) if _is_full_turn(joints, motor.name) or seen is None else (seen.low, seen.high)
            )
            if offset is None:
                raise CalibrationError(
                    f"joint '{motor.name}' was never read; check its cable and calibrate again"
                )
            entry = MotorCalibration(motor.id, motor.drive_mode, offset, low, high)
            if fault := implausible(entry, motor.id):
                raise CalibrationError(f"joint '{motor.name}' {fault}; calibrate again")
            motors[motor.name] = entry
    return Calibration(motors, "this calibration")


def _is_full_turn(joints: Mapping[str, Joint], motor: str) -> bool:
    return motor in joints and joints[motor].is_full_turn


def table(profile: Profile, swept: Mapping[str, Swept]) -> list[str]:
    """What is known of every joint, a row each."""
    rows = [f"{'joint':<22} {'min':>6} {'now':>6} {'max':>6}  range"]
    joints = {joint.motor: joint for joint in profile.joints}
    for name, s in swept.items():
        note = f"{(s.high - s.low) * 360 / LAST_TICK:.0f} deg"
        if _is_full_turn(joints, name):
            note = "whole turn"
        elif s.has_wrapped:
            note = "WRAPPED: it is centred again afterwards"
        rows.append(f"{name:<22} {s.low:>6} {s.last:>6} {s.high:>6}  {note}")
    return rows

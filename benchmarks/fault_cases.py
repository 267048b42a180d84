"""The fault catalogue as data: what is done to an emulated arm, and the rule that what happens then must follow.

Rules that hold for every case (goals, torque, falls) are `tests/runtime/bus_trace.py`'s; here are those of one case. A
rule looks at the outcome and returns what broke it, in sentences. `fault_catalogue.py` carries the cases out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from edgevla.robots.arm import Robot
from edgevla.robots.emulator.robot import EmulatedRobot
from edgevla.robots.emulator.servo import GOAL_ENERGISES

RIGHT_PHASE, PHASE_BITS = 0x0C, 0x8D
"""Phase register: turns and counts forward, speeds in steps/s, speed 0 is the fastest."""
FOUND_S, BEHIND_S = 0.6, 1.0
"""Every servo's settings are read once in 0.4 s. Torque that is off must be so twice before it counts."""
WEAK = 60
"""Percent of full torque: an owner's limit that still holds the arm."""
FOUND_ON = r"found with torque on|torque .{0,40}(found|already|still) on"
FOREIGN = r"another (program|master|host|process)|other (program|master|host)|somebody else|foreign"


@dataclass
class Outcome:
    """What came of a case. robot: the driver, None when it refused to connect. told: sentences for the user.

    stopped_s: from the fault to the loop's own stop; None: it went on. trace: as `emulator.trace` writes it.
    firmware: of the Feetech servos.
    """

    arm: EmulatedRobot
    robot: Robot | None
    told: list[str]
    firmware: str = "plain"
    trace: list[dict[str, Any]] = field(default_factory=list)
    stopped_s: float | None = None
    is_refused: bool = False

    def says(self, pattern: str) -> bool:
        return any(re.search(pattern, text, re.IGNORECASE) for text in self.told)

    def written(self, register: str) -> Iterator[tuple[str, int]]:
        """(motor, value) of every write to a register that the host sent."""
        for entry in self.trace:
            if entry["dir"] == "tx" and entry.get("register") == register:
                ids = {s.id: s.name for s in self.arm.lines[entry["bus"]].servos}
                yield from ((ids[int(i)], v) for i, v in entry["values"].items() if int(i) in ids)

    def seen(self, motor: str) -> list[tuple[int, int, int, bool]]:
        """(t_ns, position, goal, whether it has torque) of one servo, whenever they changed."""
        servo = self.arm.servos[motor]
        bus = next(name for name, line in self.arm.lines.items() if servo in line.servos)
        return [
            (e["t_ns"], int(v[0]), int(v[1]), bool(v[2]))
            for e in self.trace
            if e["dir"] == "arm" and e["bus"] == bus and (v := e["servos"].get(str(servo.id)))
        ]


@dataclass(frozen=True)
class Rule:
    words: str
    broken_by: Callable[[Outcome], list[str]] = lambda _: []


def _unless(holds: bool, sentence: str) -> list[str]:
    return [] if holds else [sentence]


def says(words: str, pattern: str) -> Rule:
    return Rule(words, lambda o: _unless(o.says(pattern), f"nobody was told: {words}"))


def _found(outcome: Outcome, within_s: float = FOUND_S) -> list[str]:
    stopped = outcome.stopped_s
    if stopped is None:
        return ["the run went on"]
    return _unless(stopped <= within_s, f"found after {stopped:.2f} s only")


def _behind_the_back(outcome: Outcome) -> list[str]:
    return _found(outcome, BEHIND_S) + _unless(
        outcome.says(FOREIGN) or outcome.says("by itself"), "it was not said that nobody here did it"
    )


def _torque_behind_the_back(outcome: Outcome) -> list[str]:
    """With firmware that a goal energises it is back before anybody could read that it was off."""
    return [] if outcome.firmware == GOAL_ENERGISES else _behind_the_back(outcome)


def owners(percent: int) -> Rule:
    """The owner has set this torque limit, in every servo."""

    def broken_by(outcome: Outcome) -> list[str]:
        _, hosts, full = next(iter(outcome.arm.servos.values())).limits
        most = round(full * percent / 100)
        bad = []
        if above := {motor for motor, value in outcome.written(hosts) if value > most}:
            bad.append(f"{hosts} above the owner's {most} was asked of {', '.join(sorted(above))}")
        usual = {name: min(most, 500) if name == "gripper" else most for name in outcome.arm.servos}
        wrong = [f"{name} ({servo.get(hosts)})" for name, servo in outcome.arm.servos.items()
                 if servo.get(hosts) != usual[name]]  # fmt: skip
        return bad + ([f"{hosts} is not the owner's at {', '.join(wrong)}"] if wrong else [])

    return Rule("never above the owner's limit, in the run or after it; left as it was found", broken_by)


def _outside(motor: str, cap_ticks_s: float) -> Callable[[Outcome], list[str]]:
    def broken_by(outcome: Outcome) -> list[str]:
        if outcome.is_refused:
            return _unless(outcome.says(motor), f"refused without a word of {motor}")
        seen = [(t, at) for t, at, _, is_on in outcome.seen(motor) if is_on]
        speeds = [abs(b - a) * 1e9 / (u - t) for (t, a), (u, b) in zip(seen, seen[3:], strict=False)]
        fastest = max(speeds, default=0.0)
        return _unless(
            fastest <= cap_ticks_s * 1.1, f"{motor} moved with {fastest:.0f} ticks/s, cap {cap_ticks_s:.0f}"
        )

    return broken_by


def _phase(motor: str) -> Callable[[Outcome], list[str]]:
    def broken_by(outcome: Outcome) -> list[str]:
        if outcome.is_refused:
            return _unless(outcome.says("phase"), "refused without a word of the phase register")
        is_right = outcome.arm.servos[motor].get("phase") & PHASE_BITS == RIGHT_PHASE
        bad = _unless(
            is_right or outcome.says("phase"), "the phase register is as it was, and nobody was told"
        )
        away = max((abs(goal - at) for _, at, goal, is_on in outcome.seen(motor) if is_on), default=0)
        return bad + _unless(away < 300, f"{motor} was {away} ticks from its goal")

    return broken_by


def _response_level(outcome: Outcome) -> list[str]:
    levels = {name: servo.get("response_level") for name, servo in outcome.arm.servos.items()}
    is_set = all(level == (1 if servo.limits[2] == 1000 else 2) for level, servo in
                 zip(levels.values(), outcome.arm.servos.values(), strict=True))  # fmt: skip
    return _unless(is_set or outcome.says("response level|return level"), "neither set nor named")


def _freezes(outcome: Outcome) -> list[str]:
    assert outcome.robot is not None
    unread = outcome.robot.rescue.freeze()
    return _unless(not unread, f"a freeze could not read {', '.join(unread)}")


def _no_eeprom(outcome: Outcome) -> list[str]:
    n = len(list(outcome.written("homing_offset")))
    return _unless(n == 0, f"homing_offset (EEPROM) was written {n} times")


def _drive_mode(outcome: Outcome) -> list[str]:
    left = [name for name, servo in outcome.arm.servos.items() if servo.get("drive_mode") & 8]
    return _unless(not left, f"goals still switch torque on at {', '.join(left)}")


def cure(words: str, pattern: str, not_pattern: str = "free the joint") -> Rule:
    def broken_by(outcome: Outcome) -> list[str]:
        bad = _unless(outcome.says(pattern), f"nobody was told: {words}")
        return bad + _unless(not outcome.says(not_pattern), f"'{not_pattern}' is no cure for this")

    return Rule(words, broken_by)


TABLE = Rule("by the profile's table")
FOUND_OUT = Rule("found within 0.4 s; the run ends by the table; nothing switches torque on again", _found)
TAKEN_OVER = says(
    "torque that is found on is said, held, and taken over or lowered; it is never cut", FOUND_ON
)
BEHIND = Rule("the run ends by the table; it is said that nobody here did it", _behind_the_back)
TORQUE_BEHIND = Rule(f"{BEHIND.words}; unless the next goal brings it back", _torque_behind_the_back)
ANOTHER = says("another master on the line is said as what it is", FOREIGN)
OWNERS = owners(WEAK)
OUTSIDE = Rule(
    "refused with the joint's name, or never faster than its cap", _outside("wrist_flex", 180 * 4095 / 360)
)
PHASE = Rule("set right, or named; no joint runs away", _phase("wrist_flex"))
QUIET = Rule("the servo is made to answer, or named with its response level", _response_level)
NEVER_CALIBRATED = says("servos that were never calibrated are refused as that", "never calibrated")
FREEZES = Rule("read one by one, by whoever freezes the arm too", _freezes)
NO_EEPROM = Rule("a tick of noise is no reason to write EEPROM", _no_eeprom)


@dataclass(frozen=True)
class Case:
    """name: the catalogue's row. faults: what comes three seconds into the run, or before connecting.

    born: faults that the arm has before anybody connects. arm: options of the emulated robot. ends_s: when the faults
    are cleared again. policy: what the arm does, or what else is special.
    """

    name: str
    faults: tuple[dict[str, Any], ...] = ()
    robot: str = "so101"
    ends_s: float | None = None
    policy: str = "wave"
    while_stopping: bool = False
    arm: dict[str, Any] = field(default_factory=dict)
    born: tuple[dict[str, Any], ...] = ()
    rule: Rule = TABLE

    @property
    def injected(self) -> str:
        words = []
        for fault in self.born + self.faults:
            rest = {k: v for k, v in fault.items() if k not in ("kind", "target")}
            target = f" {fault['target']}" if "target" in fault else ""
            words.append(f"{fault['kind']}{target}" + "".join(f", {k} {v}" for k, v in rest.items()))
        words += [f"{k} {v}" for k, v in self.arm.items()]
        text = "; ".join(dict.fromkeys(words)) + (f"; cleared after {self.ends_s:g} s" if self.ends_s else "")
        return text or self.policy.replace("_", " ")


def fault(kind: str, target: Any = None, **more: Any) -> dict[str, Any]:
    return {"kind": kind, **({} if target is None else {"target": target}), **more}


def registers(register: str, amount: int, motors: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    return tuple(fault("register", f"{motor}.{register}", amount=amount) for motor in motors)


SO101 = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
SHADOWS = tuple(f"{arm}_{joint}_shadow" for arm in ("left", "right") for joint in ("shoulder", "elbow"))
FACTORY = (
    *registers("homing_offset", 0, SO101), *registers("min_position", 0, SO101), *registers("max_position", 4095, SO101),
)  # fmt: skip
PHASES = {
    "motor reversed": RIGHT_PHASE | 0x01,
    "speed in fifties": RIGHT_PHASE & ~0x04,
    "speed 0 stands": RIGHT_PHASE & ~0x08,
    "feedback reversed": RIGHT_PHASE | 0x80,
    "motor and feedback reversed": RIGHT_PHASE | 0x81,
}
TREMBLING = (fault("torque_off"), *(fault("jitter", name) for name in SHADOWS))
"""An arm whose pairs are aligned, as a run leaves them, and whose shadows' readings are off by a tick."""

CONNECTING = (
    Case("missing ID at connect", (fault("mute", "wrist_flex"), fault("mute", "wrist_roll"), fault("mute", "gripper"))),
    Case("missing ID at connect (no power)", (fault("mute"),)),
    Case("all servos on ID 1", tuple(fault("duplicate_id", i, amount=1) for i in range(2, 7))),
    Case("duplicate ID", (fault("duplicate_id", 5, amount=4),)),
    Case("wrong model", (fault("wrong_model", "elbow_flex"),)),
    Case("old firmware, without sync read", arm={"firmware": ("no-sync-read",)}, rule=FREEZES),
    Case("old firmware in one servo", arm={"firmware": ("elbow_flex=no-sync-read",)}, rule=FREEZES),
    Case("mixed firmware", (fault("wrong_firmware", "elbow_flex", amount=9),)),
    Case("echo", (fault("echo"),)),
    Case("noise bytes", (fault("noise", probability=0.3),)),
    Case("checksum error", (fault("corrupt", probability=0.1),)),
    Case("overload at connect", (fault("overload", "gripper"),)),
    Case("overload at connect, tripped", (fault("trip", "gripper"),)),
    Case("over-temperature at connect", (fault("overheat", "elbow_flex", amount=68),)),
    Case("over-temperature reported at connect", (fault("overheat", "elbow_flex"),),
         rule=cure("let it cool down, with value and limit", r"cool")),
    Case("voltage at connect (12 V servos on 5 V)", (fault("voltage", amount=4.2),)),
    Case("voltage reported at connect", (fault("voltage", "elbow_flex"),),
         rule=cure("the supply, with its volts", r"supply")),
    Case("sensor error at connect", (fault("sensor", "elbow_flex"),),
         rule=cure("the servo's sensor: it is to be replaced", r"sensor")),
    Case("over-current at connect", (fault("overcurrent", "elbow_flex"),)),
    Case("multi-turn reading at connect", policy="multi_turn"),
    Case("calibration differs from the servos", policy="other_calibration"),
    Case("servos that were never calibrated", born=FACTORY, policy="held_calibration", rule=NEVER_CALIBRATED),
    Case("adapter latency 16 ms", arm={"adapter": "ftdi16"}),
    Case("torque found on", arm={"is_energised": True, "gravity": 0.3}, rule=TAKEN_OVER),
    Case("response level 0", born=(fault("quiet"),), rule=QUIET),
    Case("another master on the line at connect", (fault("foreign", probability=0.2),), rule=ANOTHER),
    Case("owner's lower torque limit at connect", born=(fault("weak", amount=WEAK),), rule=OWNERS),
    *(Case(f"phase at connect: {words}", born=registers("phase", bits, ("wrist_flex",)),
           rule=PHASE) for words, bits in PHASES.items()),
    Case("DXL hardware error at connect", (fault("overload", "left_gripper"),), robot="aloha"),
    Case("DXL without fast sync read", robot="aloha", arm={"firmware": ("no-fast-read",)}),
    Case("DXL return level 1", born=(fault("quiet", amount=1),), robot="aloha", rule=QUIET),
    Case("DXL torque found on", robot="aloha", arm={"is_energised": True, "gravity": 0.3}, rule=TAKEN_OVER),
    Case("DXL torque by goals (drive mode)", robot="aloha", arm={"firmware": ("goal-energises",)},
         rule=Rule("the bit is cleared", _drive_mode)),
    Case("DXL owner's lower PWM limit at connect", born=(fault("weak", amount=WEAK),), robot="aloha", rule=OWNERS),
    Case("DXL shadows that read a tick off", born=TREMBLING, robot="aloha", arm={"is_energised": True}, rule=NO_EEPROM),
)  # fmt: skip

RUNNING = (
    Case("no status packet", (fault("drop", probability=0.01),)),
    Case("no status packet, all for 60 ms", (fault("drop", duration_ms=60),)),
    Case("no status packet, all for 300 ms", (fault("drop", duration_ms=300),)),
    Case("no status packet from one servo, 300 ms", (fault("mute", "elbow_flex"),), ends_s=0.3),
    Case("no status packet from one servo any more", (fault("mute", "elbow_flex"),)),
    Case("cable broken behind elbow_flex",
         (fault("mute", "wrist_flex"), fault("mute", "wrist_roll"), fault("mute", "gripper"))),
    Case("no servo any more (power lost)", (fault("mute"),)),
    Case("partial packet", (fault("truncate", probability=0.02),)),
    Case("checksum error", (fault("corrupt", probability=0.02),)),
    Case("noise bytes", (fault("noise", probability=0.1),)),
    Case("stale input", (fault("delay", probability=0.05, amount=12.0),)),
    Case("duplicate answers", (fault("duplicate", probability=0.1),)),
    Case("wrong ID answers", (fault("wrong_id", probability=0.02),)),
    Case("servos behind a silent one stall", (fault("mute", "shoulder_lift"),), ends_s=0.3,
         arm={"stalls_on_missing": True}),
    Case("overload", (fault("overload", "elbow_flex"),)),
    Case("overload, tripped", (fault("trip", "elbow_flex"),)),
    Case("overload, gripper blocked while it closes", (fault("stuck", "gripper"),), policy="grip"),
    Case("overload, gripper does not recover", (fault("overload", "gripper"),)),
    Case("overload, gripper recovers when torque is enabled", (fault("trip", "gripper"),)),
    Case("joint blocked", (fault("stuck", "elbow_flex"),), policy="far"),
    Case("voltage error reported", (fault("voltage", "elbow_flex"),)),
    Case("voltage below minimum", (fault("voltage", amount=4.2),)),
    Case("over-temperature, warm", (fault("overheat", "elbow_flex", amount=61),)),
    Case("over-temperature", (fault("overheat", "elbow_flex", amount=66),)),
    Case("over-temperature, servo cuts torque", (fault("overheat", "elbow_flex"),)),
    Case("sensor error", (fault("sensor", "elbow_flex"),), rule=cure("the servo's sensor", "sensor")),
    Case("over-current", (fault("overcurrent", "elbow_flex"),)),
    Case("brown-out of one servo", (fault("brownout", "wrist_flex"),), rule=FOUND_OUT),
    Case("brown-out of all", (fault("brownout"),), rule=FOUND_OUT),
    Case("encoder jump", (fault("jump", "elbow_flex", amount=700),)),
    Case("multi-turn reading in a run", (fault("jump", "wrist_roll", amount=4096),), policy="multi_turn"),
    Case("adapter latency 16 ms, for 2 s", (fault("latency", duration_ms=2000),)),
    Case("unplug", (fault("unplug"),)),
    Case("unplug, one arm of two", (fault("unplug", "left"),), robot="so101_bimanual"),
    Case("torque-off fails on a silent servo", (fault("mute", "elbow_flex"),), while_stopping=True),
    Case("torque-off while a servo reports overload", (fault("overload", "elbow_flex"),), while_stopping=True),
    Case("torque found on", arm={"is_energised": True}, rule=TAKEN_OVER),
    Case("torque found on, left by another program", born=(fault("torque_on"),), rule=TAKEN_OVER),
    Case("torque found on at one servo", born=(fault("torque_on", "shoulder_lift"),), rule=TAKEN_OVER),
    Case("outside its range at start", born=(fault("hand", "wrist_flex", amount=125.0),),
         rule=OUTSIDE),
    Case("owner's lower torque limit", born=(fault("weak", amount=WEAK),), rule=OWNERS),
    Case("another master on the line", (fault("foreign", probability=0.05),), rule=ANOTHER),
    Case("another master switches torque off", (fault("foreign", count=6), fault("torque_off")), rule=TORQUE_BEHIND),
    Case("torque switched off behind our back", (fault("torque_off", "elbow_flex"),), rule=TORQUE_BEHIND),
    Case("a register changed by itself: torque limit", registers("torque_limit", 250, ("elbow_flex",)), rule=BEHIND),
    Case("a register changed by itself: acceleration", registers("acceleration", 5, ("elbow_flex",)), rule=BEHIND),
    Case("a register changed by itself: lock", registers("lock", 0, ("elbow_flex",)), rule=BEHIND),
    Case("response level 0", born=(fault("quiet"),), rule=QUIET),
    *(Case(f"phase: {words}", born=registers("phase", bits, ("wrist_flex",)),
           rule=PHASE) for words, bits in PHASES.items()),
    Case("firmware without sync read", arm={"firmware": ("no-sync-read",)}, rule=FREEZES),
    Case("DXL no status packet", (fault("drop", probability=0.01),), robot="aloha"),
    Case("DXL CRC error", (fault("corrupt", probability=0.01),), robot="aloha"),
    Case("DXL hardware error (overload)", (fault("overload", "left_elbow"),), robot="aloha"),
    Case("DXL hardware error (overload), gone after a reboot", (fault("trip", "left_elbow"),), robot="aloha"),
    Case("DXL hardware error, gripper", (fault("overload", "left_gripper"),), robot="aloha"),
    Case("DXL hardware error, sensor", (fault("sensor", "left_elbow"),), robot="aloha",
         rule=cure("the servo's sensor", "sensor")),
    Case("DXL reboot in a run", (fault("brownout", "left_waist"),), robot="aloha", rule=FOUND_OUT),
    Case("DXL silent servo (watchdog keeps the others)", (fault("mute", "left_wrist_angle"),), robot="aloha"),
    Case("DXL watchdog fired (line silent for 350 ms)", robot="aloha", policy="silent_line"),
    Case("DXL unplug, one arm of two", (fault("unplug", "left"),), robot="aloha"),
    Case("DXL torque found on", robot="aloha", arm={"is_energised": True}, rule=TAKEN_OVER),
    Case("DXL torque found on, left by another program", robot="aloha", born=(fault("torque_on"),), rule=TAKEN_OVER),
    Case("DXL owner's lower PWM limit", born=(fault("weak", amount=WEAK),), robot="aloha", rule=OWNERS),
    Case("DXL another master on the line", (fault("foreign", probability=0.05),), robot="aloha", rule=ANOTHER),
    Case("DXL torque switched off behind our back", (fault("torque_off", "left_elbow"),), robot="aloha", rule=BEHIND),
    Case("DXL a register changed by itself: goal PWM", registers("goal_pwm", 250, ("left_elbow",)), robot="aloha",
         rule=BEHIND),
    Case("DXL shadows that read a tick off", born=TREMBLING, robot="aloha", arm={"is_energised": True}, rule=NO_EEPROM),
)  # fmt: skip

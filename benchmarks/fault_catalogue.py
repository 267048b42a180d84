"""Each fault of the catalogue on an emulated arm: what the arm did, what was read.

    python benchmarks/fault_catalogue.py [--case WORDS] [--firmware plain] [--out FILE.md]

Faults while connecting and while running: the real driver, control loop and safety on emulated servos that speak the
real protocol, on a virtual clock, so that a busy machine adds nothing; an arm that weighs 0.3 of its shoulder's torque;
Feetech servos of both kinds of firmware. Faults of the port itself: real processes on pseudo-terminals. The arm waves
with all joints under a policy; three seconds in, the fault comes; four seconds later the arm is told to stop in order,
if it has not stopped by itself. What it did is taken from the trace of its lines and from the emulated servos; the rules
of `tests/runtime/bus_trace.py` are held against every trace, and those of `fault_cases.py` against theirs. Exit code 1
when one was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.clock import VirtualClock
from edgevla.errors import EdgeVLAError
from edgevla.execution import Async
from edgevla.robots.arm import Robot
from edgevla.robots.calibration import Calibration, MotorCalibration, nominal
from edgevla.robots.emulator.faults import InjectedFault
from edgevla.robots.emulator.robot import EmulatedRobot
from edgevla.robots.emulator.servo import GOAL_ENERGISES
from edgevla.robots.profile import PROFILES_DIR, load_profile
from edgevla.robots.trials.closed_loop import ClosedLoop

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
import bus_trace
from deployment_kit import make_bundle
from fault_cases import CONNECTING, RUNNING, Case, Outcome

HORIZON = 30
BEFORE_S, AFTER_S, STOPPING_S = 3.0, 4.0, 12.0
AFTERWARDS_S = 1.0
"""The arm is watched for so long when nobody speaks to it any more: it may fall."""
GRAVITY = 0.3
"""What the arm weighs in a run; see `edgevla emulate --help`."""
FIRMWARE = {"plain": (), GOAL_ENERGISES: (GOAL_ENERGISES,)}
"""Of Feetech servos: both kinds that are reported of the STS3215."""


@dataclass
class Row:
    case: str
    injected: str
    arm: str
    read: list[str]
    violations: list[str] = field(default_factory=list)
    rule: str = "named, with the next step"


def born(case: Case, firmware: str, **options: Any) -> EmulatedRobot:
    """The arm before anybody connects."""
    profile = load_profile(case.robot)
    kinds = (*FIRMWARE[firmware], *case.arm.get("firmware", ()))
    arm = EmulatedRobot(profile, VirtualClock(1_000_000_000), **{**options, **case.arm, "firmware": kinds})
    for values in case.born:
        arm.apply(InjectedFault.from_map(values))
    return arm


def broken(case: Case, outcome: Outcome, trained_speed: list[float], servo_hz: float) -> list[str]:
    """What no case may do, and what this one must."""
    verdict = bus_trace.judge(outcome.trace, case.robot, trained_speed, servo_hz)
    violations = [v for v in verdict.violations if not _is_excused(v, case, outcome.told)]
    on = [name for name, servo in outcome.arm.servos.items() if servo.torque_on]
    if on and not outcome.says("could not be confirmed off|torque stays on"):
        violations.append(f"torque stayed on at {', '.join(on)}, and nobody was told")
    return violations + case.rule.broken_by(outcome)


def _is_excused(violation: str, case: Case, told: list[str]) -> bool:
    """Who is unplugged or mute is told nothing any more: its trace ends with torque on, and the user reads so."""
    is_told = any("could not be confirmed off" in text for text in told)
    return "left on" in violation and ("unplug" in case.name or is_told)


# -- connecting ----------------------------------------------------------------------------------------------------


def connect(case: Case, firmware: str) -> Row:
    arm = born(case, firmware)
    profile, clock = arm.profile, arm.clock
    calibration = nominal(profile) if profile.is_calibrated_by_file else None
    if case.policy == "held_calibration":
        calibration = None
    if case.policy == "other_calibration":
        changed = {**nominal(profile).motors, "elbow_flex": MotorCalibration(3, 0, 77, 700, 3000)}
        calibration = Calibration(changed, "blue.json")
    if case.policy == "multi_turn":
        arm.servos["wrist_roll"].put("phase", 12 | 0x10)
    for values in case.faults:
        arm.apply(InjectedFault.from_map(values))
    trace, let_pass = bus_trace.record(arm)
    before = arm.joint_rad()
    robot = Robot(profile, arm.memory_ports(), calibration, clock)
    try:
        robot.connect()
        did, read = "connected", list(robot.warnings)
    except EdgeVLAError as error:
        did, read = "refused, not switched on", [str(error)]
    let_pass(AFTERWARDS_S)
    is_refused = did != "connected"
    outcome = Outcome(arm, None if is_refused else robot, read, firmware, trace, is_refused=is_refused)
    if case.arm.get("is_energised"):
        speed = [joint.max_velocity for joint in profile.joints]
        violations = bus_trace.judge(trace, case.robot, speed, profile.rates.servo_hz).violations
    else:
        violations = [] if np.allclose(before, arm.joint_rad(), atol=0.01) else ["the arm moved"]
    on = [name for name, servo in arm.servos.items() if servo.torque_on]
    if on and not case.arm.get("is_energised"):
        violations.append(f"torque is on at {', '.join(on)}")
    violations += case.rule.broken_by(outcome)
    if not is_refused:
        retries = robot.counters()["bus_lost"]
        did += f" ({retries} questions asked again)" if retries else ""
        did += f", torque on at {len(on)} servos" if on else ""
        did += f", control loop at most {robot.max_hz:.0f} Hz" if case.arm else ""
    return Row(case.name, case.injected, did, read, violations, case.rule.words)


# -- running -------------------------------------------------------------------------------------------------------


class Run(ClosedLoop):
    """The closed loop with a trace of its lines and the time of each event."""

    def __init__(self, case: Case, arm: EmulatedRobot) -> None:
        self.case = case
        is_aloha = arm.profile.buses[0].protocol == "dynamixel"
        super().__init__(self.actions, chunk_size=HORIZON, execution=Async(), profile=arm.profile, arm=arm,
                         fps=50.0 if is_aloha else 30.0)  # fmt: skip
        self.heard: list[tuple[int, str, str, str]] = []
        self.links.event = lambda severity, code, text, **_: self.heard.append(
            (self.clock.now_ns(), severity, code, text)
        )

    def actions(self, observation: Any, rtc: Any = None) -> np.ndarray:
        """A wave about home for every joint; or a joint sent far away, or a gripper closed."""
        home = np.array([joint.home for joint in self.profile.joints], np.float32)
        low, high = self.robot.limits()
        at_s = self.clock.now_ns() / 1e9 + np.arange(HORIZON)[:, None] / 30
        wave = home + 0.08 * (high - low) * np.sin(1.2 * at_s + np.arange(len(home)))
        made = np.clip(wave, low, high).astype(np.float32)
        seconds = self.clock.now_ns() / 1e9 - 1.0
        if self.case.policy == "far" and seconds > BEFORE_S:
            made[:, 2] = 80.0
        if self.case.policy == "grip":
            made[:, 5] = 30.0 if seconds < BEFORE_S else 0.0
        return made


def run(case: Case, firmware: str) -> Row:
    is_raised = "is_energised" in case.arm or any(values["kind"] == "torque_on" for values in case.born)
    arm = born(case, firmware, gravity=GRAVITY, start="home" if is_raised else "rest")
    trace, let_pass = bus_trace.record(arm)
    speed = [joint.max_velocity / 1.5 for joint in arm.profile.joints]
    try:
        loop = Run(case, arm)
        loop.start(trained_speed=speed)
    except EdgeVLAError as error:
        let_pass(AFTERWARDS_S)
        outcome = Outcome(arm, None, [str(error)], firmware, trace, is_refused=True)
        violations = broken(case, outcome, speed, arm.profile.rates.servo_hz)
        return Row(case.name, case.injected, "refused", outcome.told, violations, case.rule.words)
    loop.run(BEFORE_S)
    if case.while_stopping:
        loop.command("stop")
    begun_ns, before = loop.clock.now_ns(), loop.robot.counters()
    first = len(loop.links.states)
    _hurt(loop, case)
    stopped_by_itself = loop.loop.machine.mode == "stopped" and not case.while_stopping
    if loop.loop.machine.mode not in ("stopped", "emergency") and not loop.loop.is_over:
        loop.command("stop")
    loop.run(STOPPING_S)
    let_pass(AFTERWARDS_S)
    told = _told(loop, 0 if case.born or case.arm else begun_ns)
    times = [t for t, _, code, _ in loop.heard if t >= begun_ns and code == "mode_stopped"]
    stopped_s = (times[0] - begun_ns) / 1e9 if stopped_by_itself and times else None
    outcome = Outcome(arm, loop.robot, [*loop.robot.warnings, *told], firmware, trace, stopped_s)
    violations = broken(case, outcome, speed, 1e9 / loop.loop.period_ns)
    did = _did(loop, begun_ns, first, before, trace, stopped_s)
    return Row(case.name, case.injected, did, outcome.told, violations, case.rule.words)


def _hurt(loop: Run, case: Case) -> None:
    if case.policy == "multi_turn":
        servo = loop.arm.servos["wrist_roll"]
        servo.put("phase", servo.get("phase") | 0x10)
    if case.policy == "silent_line":
        loop.clock.sleep_until(loop.clock.now_ns() + 350_000_000)
    for values in case.faults:
        loop.arm.apply(InjectedFault.from_map(values))
    loop.run(case.ends_s or AFTER_S)
    if case.ends_s is not None:
        loop.arm.apply(InjectedFault("clear"))
        loop.run(AFTER_S - case.ends_s)


def _told(loop: Run, begun_ns: int) -> list[str]:
    """Warnings and worse, in order, each once."""
    worse = [
        text
        for t, severity, _, text in loop.heard
        if t >= begun_ns and severity in ("warning", "error", "stop")
    ]
    return list(dict.fromkeys(worse))


def _did(
    loop: Run,
    begun_ns: int,
    first: int,
    before: dict[str, int],
    trace: list[dict[str, Any]],
    stopped_s: float | None,
) -> str:
    states = loop.links.states[first:]
    holding = sum(state.mode == "holding" for state in states) * loop.loop.period_ns / 1e9
    asked = loop.robot.counters()["bus_retries"] - before["bus_retries"]
    age_ms = max(
        (float(np.max(s.position_age_us)) for s in states if s.mode in ("running", "holding")), default=0.0
    ) / 1000  # fmt: skip
    speed = [joint.max_velocity / 1.5 for joint in loop.profile.joints]
    verdict = bus_trace.judge(trace, loop.case.robot, speed, 1e9 / loop.loop.period_ns)
    parts = []
    if stopped_s is None:
        parts.append("went on" + (f", held its last goal for {holding:.2f} s" if holding else ""))
        if loop.case.while_stopping:
            parts = [
                "went on to rest" if verdict.endings["rest"] else "stopped on the way to rest, frozen, parked"
            ]
        parts.append("released at rest" if verdict.endings["rest"] else "released")
    else:
        stopped_ns = begun_ns + round(stopped_s * 1e9)
        parts.append(f"stopped after {stopped_s:.2f} s")
        parts.append("can be told nothing any more" if loop.robot.is_cut_off else "frozen where it was")
        parked = [e["t_ns"] for e in trace if e["dir"] == "tx" and e["t_ns"] > stopped_ns
                  and e.get("register") in ("torque_limit", "goal_pwm")]  # fmt: skip
        if parked:
            parts.append(f"reduced torque {(parked[0] - stopped_ns) / 1e9:.1f} s later")
        if verdict.off_ns and verdict.off_ns > stopped_ns:  # else its power had gone before
            parts.append(f"torque off {(verdict.off_ns - stopped_ns) / 1e9:.1f} s later")
    if on := [name for name, servo in loop.arm.servos.items() if servo.torque_on]:
        parts.append(f"torque still on at {', '.join(on)}")
    if asked or age_ms > 20:
        parts.append(f"{asked} questions asked again, oldest value {age_ms:.0f} ms")
    return ", ".join(parts)


# -- the port itself: real processes -------------------------------------------------------------------------------


@contextlib.contextmanager
def emulator(robot: str | Path, link: Path) -> Iterator[subprocess.Popen[str]]:
    args = [sys.executable, "-m", "edgevla", "emulate", str(robot), "--link", str(link), "--faults", "-"]
    process = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline(), "the emulator did not start"
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def deploy(bundle: Path, port: Path, *more: str) -> subprocess.Popen[str]:
    args = [sys.executable, "-m", "edgevla", "deploy", str(bundle), "--robot=so101", f"--port={port}", *more]
    return subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen[str]) -> list[str]:
    """Its lines with a mark, and what it said last."""
    text, _ = process.communicate(timeout=120)
    marked = [line for line in text.splitlines() if "!" in line[20:28] or line.startswith("edgevla ")]
    return list(
        dict.fromkeys(
            line[8:].split(maxsplit=1)[-1].lstrip("! ") if line[0] == " " else line for line in marked
        )
    )


def ports(folder: Path) -> Iterator[Row]:
    bundle, link = make_bundle(folder / "bundle", cameras=()), folder / "arm"
    calibrate = [sys.executable, "-m", "edgevla", "calibrate", "--robot=so101", f"--port={link}", "--adopt"]
    yield Row(
        "port missing", "no such device", "never switched on", ended(deploy(bundle, folder / "ttyNONE"))
    )
    with emulator("so101", link) as arm:
        subprocess.run(calibrate, check=True, capture_output=True)
        holder = deploy(bundle, link)
        _await(holder, "running")
        yield Row("port busy", "another deployment has it", "never switched on", ended(deploy(bundle, link)))
        assert arm.stdin is not None
        arm.stdin.write("unplug\n")
        arm.stdin.flush()
        time.sleep(1.0)
        arm.stdin.write("replug\n")
        arm.stdin.flush()
        yield Row("unplug and replug 1 s later", "unplug; replug", "stopped at once; not touched again when it is back: "
                  "torque stays as it was until the next start", ended(holder))  # fmt: skip
        yield Row("start again after the replug", "-", "switched off, then on where it was; released at rest",
                  ended(deploy(bundle, link, "--duration=1")) or ["nothing out of the ordinary"])  # fmt: skip
    slow = folder / "slow.toml"
    slow.write_text((PROFILES_DIR / "so101.toml").read_text().replace("baud = 1000000", "baud = 500000"))
    with emulator(slow, link):
        yield Row("wrong baud", "servos at 500000", "never switched on", ended(deploy(bundle, link)))
        doctor = [sys.executable, "-m", "edgevla", "doctor", "--robot=so101", f"--port={link}"]
        said = subprocess.run(doctor, check=False, capture_output=True, text=True).stdout.splitlines()
        yield Row(
            "wrong baud, asked the doctor", "servos at 500000", "-", [s.strip() for s in said if "baud" in s]
        )


def _await(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"never said '{words}'")


# -- the table -----------------------------------------------------------------------------------------------------


def table(title: str, rows: list[Row]) -> str:
    lines = [
        f"## {title}",
        "",
        "| fault | injected | rule | what the arm did | what the user read |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        read = "<br>".join(text.replace("|", "\\|") for text in row.read) or "nothing"
        bad = f" **{'; '.join(row.violations)}**" if row.violations else ""
        lines.append(f"| {row.case} | {row.injected} | {row.rule} | {row.arm}{bad} | {read} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", default="", help="only faults whose name contains this")
    parser.add_argument(
        "--firmware",
        choices=(*FIRMWARE, "both"),
        default="both",
        help="of the Feetech servos (default: both kinds)",
    )
    parser.add_argument("--without-ports", action="store_true", help="leave out the real processes")
    parser.add_argument("--out", type=Path, help="write the tables there")
    args = parser.parse_args()
    groups: dict[str, list[Row]] = {}
    for firmware in FIRMWARE if args.firmware == "both" else (args.firmware,):
        for title, cases, do in (("While connecting", CONNECTING, connect), ("In a run", RUNNING, run)):
            for case in cases:
                is_feetech = load_profile(case.robot).buses[0].protocol == "feetech"
                if args.case not in case.name or (firmware != "plain" and not is_feetech):
                    continue
                row = do(case, firmware)
                named = (
                    title
                    if firmware == "plain"
                    else f"{title}, firmware that energises when a goal is written"
                )
                groups.setdefault(named, []).append(row)
                _show(row)
    if not args.without_ports and not args.case:
        with tempfile.TemporaryDirectory(prefix="faults-", dir="/tmp") as folder:
            os.environ.update(XDG_RUNTIME_DIR=folder, HF_LEROBOT_CALIBRATION=f"{folder}/calibration")
            for row in ports(Path(folder)):
                groups.setdefault("The port", []).append(row)
                _show(row)
    rows = [row for some in groups.values() for row in some]
    n_bad = sum(bool(row.violations) for row in rows)
    if args.out:
        head = (
            "# The fault catalogue on emulated arms\n\n"
            f"`python benchmarks/fault_catalogue.py`, {datetime.date.today()}: {len(rows)} faults, {n_bad} with a "
            "broken rule (bold). Emulated servos, real driver and control loop; never on metal.\n\n"
        )
        args.out.write_text(
            head + "\n".join(table(title, some) for title, some in groups.items()), encoding="utf-8"
        )
    return int(n_bad > 0)


def _show(row: Row) -> None:
    print(f"{row.case} [{row.injected}]\n    arm: {row.arm}", flush=True)
    for text in row.read:
        print(f"    read: {text}")
    for text in row.violations:
        print(f"    BROKEN: {text}")


if __name__ == "__main__":
    sys.exit(main())

"""Each fault of the catalogue (hardware specification, section 5) on an emulated arm: what the arm did, what was read.

    python benchmarks/fault_catalogue.py [--case WORDS] [--out FILE.md]

Faults while connecting and while running: the real driver, control loop and safety on emulated servos that speak the
real protocol, on a virtual clock, so that a busy machine adds nothing. Faults of the port itself: real processes on
pseudo-terminals. The arm waves with all joints under a policy; two seconds in, the fault comes; four seconds later
the arm is told to stop in order, if it has not stopped by itself. What it did is taken from the trace of its lines and
from the emulated servos; the rules of `tests/runtime/bus_trace.py` are held against every trace. Exit code 1 when one
was broken.
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
from edgevla.robots.emulator.faults import Fault
from edgevla.robots.emulator.robot import EmulatedRobot
from edgevla.robots.emulator.trace import describe
from edgevla.robots.profile import PROFILES_DIR, load_profile
from edgevla.robots.trials.closed_loop import ClosedLoop

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
import bus_trace
from deployment_kit import make_bundle

HORIZON = 30
BEFORE_S, AFTER_S, STOPPING_S = 2.0, 4.0, 12.0


@dataclass(frozen=True)
class Case:
    """name: the catalogue's row. faults: `kind` and what it takes. ends_s: when the faults are cleared again."""

    name: str
    faults: tuple[dict[str, Any], ...]
    robot: str = "so101"
    ends_s: float | None = None
    policy: str = "wave"
    while_stopping: bool = False
    arm: dict[str, Any] = field(default_factory=dict)

    @property
    def injected(self) -> str:
        words = []
        for fault in self.faults:
            rest = {k: v for k, v in fault.items() if k not in ("kind", "target")}
            target = f" {fault['target']}" if "target" in fault else ""
            words.append(f"{fault['kind']}{target}" + "".join(f", {k} {v}" for k, v in rest.items()))
        words += [f"{k} {v}" for k, v in self.arm.items()]
        return "; ".join(words) + (f"; cleared after {self.ends_s:g} s" if self.ends_s else "")


def fault(kind: str, target: Any = None, **more: Any) -> dict[str, Any]:
    return {"kind": kind, **({} if target is None else {"target": target}), **more}


CONNECTING = (
    Case(
        "missing ID at connect",
        (fault("mute", "wrist_flex"), fault("mute", "wrist_roll"), fault("mute", "gripper")),
    ),
    Case("missing ID at connect (no power)", (fault("mute"),)),
    Case("all servos on ID 1", tuple(fault("duplicate_id", i, amount=1) for i in range(2, 7))),
    Case("duplicate ID", (fault("duplicate_id", 5, amount=4),)),
    Case("wrong model", (fault("wrong_model", "elbow_flex"),)),
    Case(
        "old firmware",
        tuple(fault("wrong_firmware", i, amount=9) for i in range(1, 7)),
        arm={"has_sync_read": False},
    ),
    Case("mixed firmware", (fault("wrong_firmware", "elbow_flex", amount=9),)),
    Case("echo", (fault("echo"),)),
    Case("noise bytes", (fault("noise", probability=0.3),)),
    Case("checksum error", (fault("corrupt", probability=0.1),)),
    Case("overload at connect", (fault("overload", "gripper"),)),
    Case("over-temperature at connect", (fault("overheat", "elbow_flex", amount=68),)),
    Case("voltage at connect (12 V servos on 5 V)", (fault("voltage", amount=4.2),)),
    Case("multi-turn reading at connect", (), policy="multi_turn"),
    Case("calibration differs from the servos", (), policy="other_calibration"),
    Case("adapter latency 16 ms", (), arm={"adapter": "ftdi16"}),
    Case("DXL hardware error at connect", (fault("overload", "left_gripper"),), robot="aloha"),
    Case("DXL without fast sync read", (), robot="aloha", arm={"has_fast_read": False}),
)

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
    Case("overload, gripper blocked while it closes", (fault("stuck", "gripper"),), policy="grip"),
    Case("overload, gripper does not recover", (fault("overload", "gripper"),)),
    Case("joint blocked", (fault("stuck", "elbow_flex"),), policy="far"),
    Case("voltage error reported", (fault("voltage", "elbow_flex"),)),
    Case("voltage below minimum", (fault("voltage", amount=4.2),)),
    Case("over-temperature, warm", (fault("overheat", "elbow_flex", amount=61),)),
    Case("over-temperature", (fault("overheat", "elbow_flex", amount=66),)),
    Case("over-temperature, servo cuts torque", (fault("overheat", "elbow_flex"),)),
    Case("brown-out of one servo", (fault("brownout", "wrist_flex"),)),
    Case("brown-out of all", (fault("brownout"),)),
    Case("encoder jump", (fault("jump", "elbow_flex", amount=700),)),
    Case("multi-turn reading in a run", (fault("jump", "wrist_roll", amount=4096),), policy="multi_turn"),
    Case("adapter latency 16 ms, for 2 s", (fault("latency", duration_ms=2000),)),
    Case("unplug", (fault("unplug"),)),
    Case("unplug, one arm of two", (fault("unplug", "left"),), robot="so101_bimanual"),
    Case("torque-off fails on a silent servo", (fault("mute", "elbow_flex"),), while_stopping=True),
    Case("torque-off while a servo reports overload", (fault("overload", "elbow_flex"),), while_stopping=True),
    Case("DXL no status packet", (fault("drop", probability=0.01),), robot="aloha"),
    Case("DXL CRC error", (fault("corrupt", probability=0.01),), robot="aloha"),
    Case("DXL hardware error (overload)", (fault("overload", "left_elbow"),), robot="aloha"),
    Case("DXL hardware error, gripper", (fault("overload", "left_gripper"),), robot="aloha"),
    Case("DXL reboot in a run", (fault("brownout", "left_waist"),), robot="aloha"),
    Case("DXL silent servo (watchdog keeps the others)", (fault("mute", "left_wrist_angle"),), robot="aloha"),
    Case("DXL watchdog fired (line silent for 350 ms)", (), robot="aloha", policy="silent_line"),
    Case("DXL unplug, one arm of two", (fault("unplug", "left"),), robot="aloha"),
)  # fmt: skip


@dataclass
class Row:
    case: str
    injected: str
    arm: str
    read: list[str]
    violations: list[str] = field(default_factory=list)


def _injected(case: Case) -> str:
    return case.injected or case.policy.replace("_", " ")


# -- connecting ----------------------------------------------------------------------------------------------------


def connect(case: Case) -> Row:
    profile, clock = load_profile(case.robot), VirtualClock(1_000_000_000)
    emulated = EmulatedRobot(profile, clock, **case.arm)
    calibration = nominal(profile) if profile.is_calibrated_by_file else None
    if case.policy == "other_calibration":
        changed = {**calibration.motors, "elbow_flex": MotorCalibration(3, 0, 77, 700, 3000)}
        calibration = Calibration(changed, "blue.json")
    if case.policy == "multi_turn":
        emulated.servos["wrist_roll"].put("phase", 12 | 0x10)
    for values in case.faults:
        emulated.apply(Fault.from_map(values))
    before = emulated.joint_rad()
    robot = Robot(profile, emulated.memory_ports(), calibration, clock)
    try:
        robot.connect()
        did, read = "connected", list(robot.warnings)
    except EdgeVLAError as error:
        did, read = "refused, not switched on", [str(error)]
    violations = []
    if not np.array_equal(before, emulated.joint_rad()):
        violations.append("the arm moved")
    if on := [name for name, servo in emulated.servos.items() if servo.torque_on]:
        violations.append(f"torque is on at {', '.join(on)}")
    if did == "connected":
        retries = robot.counters()["bus_lost"]
        did += f" ({retries} questions asked again)" if retries else ""
        if case.arm:
            did += f", control loop at most {robot.max_hz:.0f} Hz"
    return Row(case.name, _injected(case), did, read, violations)


# -- running -------------------------------------------------------------------------------------------------------


class Run(ClosedLoop):
    """The closed loop with a trace of its lines and the time of each event."""

    def __init__(self, case: Case) -> None:
        self.case = case
        profile = load_profile(case.robot)
        self.is_aloha = profile.buses[0].protocol == "dynamixel"
        super().__init__(self.actions, chunk_size=HORIZON, execution=Async(), profile=profile,
                         fps=50.0 if self.is_aloha else 30.0)  # fmt: skip
        self.trace: list[dict[str, Any]] = []
        self.heard: list[tuple[int, str, str, str]] = []
        for name, line in self.arm.lines.items():
            line.stalls_on_missing = bool(case.arm.get("stalls_on_missing"))
            line.on_frame = self._watcher(name, line.protocol)
        self.links.event = lambda severity, code, text, **_: self.heard.append(
            (self.clock.now_ns(), severity, code, text)
        )
        self.speed = [joint.max_velocity / 1.5 for joint in profile.joints]

    def _watcher(self, bus: str, protocol: Any) -> Any:
        def watch(direction: str, frame: bytes, t_ns: int) -> None:
            self.trace.append(
                {"t_ns": t_ns, "bus": bus, "dir": direction, **describe(protocol, direction, frame)}
            )

        return watch

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


def run(case: Case) -> Row:
    loop = Run(case)
    loop.start(trained_speed=loop.speed)
    loop.run(BEFORE_S)
    if case.while_stopping:
        loop.command("stop")
    begun_ns, before = loop.clock.now_ns(), loop.robot.counters()
    first = len(loop.links.states)
    if case.policy == "multi_turn":
        servo = loop.arm.servos["wrist_roll"]
        servo.put("phase", servo.get("phase") | 0x10)
    if case.policy == "silent_line":
        loop.clock.advance(350_000_000)
    for values in case.faults:
        loop.arm.apply(Fault.from_map(values))
    loop.run(case.ends_s or AFTER_S)
    if case.ends_s is not None:
        loop.arm.apply(Fault("clear"))
        loop.run(AFTER_S - case.ends_s)
    stopped_by_itself = loop.loop.machine.mode == "stopped" and not case.while_stopping
    if loop.loop.machine.mode not in ("stopped", "emergency") and not loop.loop.is_over:
        loop.command("stop")
    loop.run(STOPPING_S)
    verdict = bus_trace.judge(loop.trace, case.robot, loop.speed, 1e9 / loop.loop.period_ns)
    on = [name for name, servo in loop.arm.servos.items() if servo.torque_on]
    told = _told(loop, begun_ns)
    violations = [v for v in verdict.violations if not _is_excused(v, case)]
    if on and not any("could not be confirmed off" in text for text in told):
        violations.append(f"torque stayed on at {', '.join(on)}, and nobody was told")
    did = _did(loop, begun_ns, first, before, stopped_by_itself, verdict, on)
    return Row(case.name, _injected(case), did, told, violations)


def _is_excused(violation: str, case: Case) -> bool:
    """An unplugged line is told nothing any more: its trace ends with torque on, and the user reads so."""
    return "unplug" in case.name and "left on" in violation


def _told(loop: Run, begun_ns: int) -> list[str]:
    """Warnings and worse, in order, each once."""
    worse = [
        text
        for t, severity, _, text in loop.heard
        if t >= begun_ns and severity in ("warning", "error", "stop")
    ]
    return list(dict.fromkeys(worse))


def _did(
    loop: Run, begun_ns: int, first: int, before: dict[str, int], stopped: bool, verdict: Any, on: list[str]
) -> str:
    states = loop.links.states[first:]
    period_s = loop.loop.period_ns / 1e9
    holding = sum(state.mode == "holding" for state in states) * period_s
    after = loop.robot.counters()
    asked = after["bus_retries"] - before["bus_retries"]
    age_ms = max(
        (float(np.max(s.position_age_us)) for s in states if s.mode in ("running", "holding")), default=0.0
    ) / 1000  # fmt: skip
    parts = []
    if not stopped:
        parts.append("went on" + (f", held its last goal for {holding:.2f} s" if holding else ""))
        if loop.case.while_stopping:
            parts = (
                ["went on to rest"]
                if verdict.endings["rest"]
                else ["stopped on the way to rest, frozen, parked"]
            )
        parts.append("released at rest" if verdict.endings["rest"] else "released")
    else:
        times = [t for t, _, code, _ in loop.heard if t >= begun_ns and code == "mode_stopped"]
        parts.append(f"stopped after {(times[0] - begun_ns) / 1e9:.2f} s")
        parts.append("can be told nothing any more" if loop.robot.is_cut_off else "frozen where it was")
        parked = [e["t_ns"] for e in loop.trace if e["dir"] == "tx" and e["t_ns"] > times[0]
                  and e.get("register") in ("torque_limit", "goal_pwm")]  # fmt: skip
        if parked:
            parts.append(f"reduced torque {(parked[0] - times[0]) / 1e9:.1f} s later")
        if verdict.off_ns:
            parts.append(f"torque off {(verdict.off_ns - times[0]) / 1e9:.1f} s later")
    if on:
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
        "| fault | injected | what the arm did | what the user read |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        read = "<br>".join(text.replace("|", "\\|") for text in row.read) or "nothing"
        bad = f" **{'; '.join(row.violations)}**" if row.violations else ""
        lines.append(f"| {row.case} | {row.injected} | {row.arm}{bad} | {read} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", default="", help="only faults whose name contains this")
    parser.add_argument("--without-ports", action="store_true", help="leave out the real processes")
    parser.add_argument("--out", type=Path, help="write the tables there")
    args = parser.parse_args()
    groups: dict[str, list[Row]] = {}
    for title, cases, do in (("While connecting", CONNECTING, connect), ("In a run", RUNNING, run)):
        for case in cases:
            if args.case in case.name:
                row = do(case)
                groups.setdefault(title, []).append(row)
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

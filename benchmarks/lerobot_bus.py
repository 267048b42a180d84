"""LeRobot 0.4.4's own motor buses, unmodified, as clients of our emulated servos; and its angles against ours.

    python -m venv LR && LR/bin/pip install --no-deps lerobot==0.4.4
    LR/bin/pip install deepdiff tqdm pyserial feetech-servo-sdk dynamixel-sdk
    python benchmarks/lerobot_bus.py LR/bin/python [--out FILE.md]

No torch: of LeRobot only `lerobot.motors` is imported; its two helpers for the keyboard come from a module that
imports torch, and stand in here as nothing. This Python runs the emulators and our driver, the other one LeRobot.
Prints one line per check; exit code 1 when one failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Check = Callable[[str, Callable[[], Any]], Any]
MODES = {"deg": "DEGREES", "percent": "RANGE_0_100", "rad": "RANGE_M100_100", "unit": "RANGE_M100_100"}


# -- in LeRobot's Python -------------------------------------------------------------------------------------------


def client(task: dict[str, Any]) -> int:
    """Runs the checks of one protocol against the port of the task; JSON lines on stdout."""
    import types

    keyboard = types.ModuleType("lerobot.utils.utils")
    keyboard.enter_pressed, keyboard.move_cursor_up = lambda: False, lambda n: None  # type: ignore[attr-defined]
    sys.modules["lerobot.utils.utils"] = keyboard

    def check(name: str, do: Callable[[], Any]) -> Any:
        try:
            value, error = do(), None
        except Exception as caught:  # whatever LeRobot raises is the finding
            value, error = None, f"{type(caught).__name__}: {caught}"
        print(json.dumps({"name": name, "error": error, "value": value}, default=str), flush=True)
        return value

    from lerobot.motors import Motor, MotorCalibration, MotorNormMode

    motors = {
        m["name"]: Motor(m["id"], m["model"], MotorNormMode[m["mode"]]) for m in task["motors"]
    }  # fmt: skip
    calibration = {name: MotorCalibration(**values) for name, values in task["calibration"].items()}
    checks = feetech if task["protocol"] == "feetech" else dynamixel
    checks(check, task["port"], motors, calibration)
    return 0


def truth(claim: bool, text: str = "") -> str:
    if not claim:
        raise AssertionError(text or "not so")
    return text or "yes"


def drive(check: Check, bus: Any, goal: dict[str, float], tolerance: float) -> None:
    """Torque on, goals by sync write, arrival by sync read, torque off."""
    check("enable torque", lambda: bus.enable_torque())
    check("torque is on", lambda: truth(set(bus.sync_read("Torque_Enable", normalize=False).values()) == {1}))
    check("goals by sync write", lambda: bus.sync_write("Goal_Position", goal))

    def arrive() -> str:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            time.sleep(0.05)
            at = bus.sync_read("Present_Position", num_retry=3)
            far = max(abs(at[name] - goal[name]) for name in goal)
            if far < tolerance:
                return f"within {far:.2f}"
        raise AssertionError(f"still {far:.1f} away")

    check("the arm arrives (sync read, normalised)", arrive)

    def pace() -> str:
        times = []
        for _ in range(200):
            begun = time.perf_counter()
            bus.sync_read("Present_Position", num_retry=3)
            times.append(time.perf_counter() - begun)
        return f"median {statistics.median(times) * 1000:.2f} ms"

    check("200 sync reads of all positions", pace)
    check("disable torque", lambda: bus.disable_torque(num_retry=3))
    check(
        "torque is off", lambda: truth(set(bus.sync_read("Torque_Enable", normalize=False).values()) == {0})
    )


def feetech(check: Check, port: str, motors: dict[str, Any], calibration: dict[str, Any]) -> None:
    from lerobot.motors.feetech import FeetechMotorsBus, OperatingMode

    bus = FeetechMotorsBus(port, motors, calibration)
    check("connect with handshake (models, firmware)", lambda: bus.connect())
    check(
        "broadcast ping finds all",
        lambda: truth(set(bus.broadcast_ping(num_retry=3)) == {m.id for m in motors.values()}),
    )
    check("calibration in the servos is the file's", lambda: truth(bus.is_calibrated))
    check("angles", lambda: bus.sync_read("Present_Position", num_retry=3))

    def configure() -> None:
        with bus.torque_disabled():
            bus.configure_motors()
            for name in motors:
                bus.write("Operating_Mode", name, OperatingMode.POSITION.value)
                for register, value in (("P_Coefficient", 16), ("I_Coefficient", 0), ("D_Coefficient", 32)):
                    bus.write(register, name, value)
            for register, value in (
                ("Max_Torque_Limit", 500),
                ("Protection_Current", 250),
                ("Overload_Torque", 25),
            ):
                bus.write(register, "gripper", value)

    check("configure as its SO101 follower does", configure)
    check("P, I, D read back", lambda: truth(
        [bus.read(f"{k}_Coefficient", "elbow_flex", normalize=False) for k in "PID"] == [16, 0, 32]))  # fmt: skip
    goal = {"shoulder_pan": 20.0, "shoulder_lift": -30.0, "elbow_flex": 25.0, "wrist_flex": -15.0,
            "wrist_roll": 40.0, "gripper": 60.0}  # fmt: skip
    drive(check, bus, goal, 0.5)

    def home() -> str:
        held = bus.read_calibration()
        bus.reset_calibration()
        homings = bus.set_half_turn_homings()
        middle = bus.sync_read("Present_Position", normalize=False)
        bus.write_calibration(held)
        truth(all(abs(tick - 2047) <= 1 for tick in middle.values()), f"homed to {middle}")
        return f"offsets {min(homings.values())} to {max(homings.values())}, all at 2047 or 2048"

    check("half-turn homing, and the calibration written back", home)
    check("the calibration is back", lambda: truth(bus.is_calibrated))
    check("disconnect", lambda: bus.disconnect())
    check("scan of the port at all its speeds", lambda: truth(
        FeetechMotorsBus.scan_port(port) == {1_000_000: [1, 2, 3, 4, 5, 6]}))  # fmt: skip


def dynamixel(check: Check, port: str, motors: dict[str, Any], calibration: dict[str, Any]) -> None:
    from lerobot.motors.dynamixel import DynamixelMotorsBus, OperatingMode

    bus = DynamixelMotorsBus(port, motors, calibration)
    check("connect with handshake (models)", lambda: bus.connect())
    check(
        "broadcast ping finds all",
        lambda: truth(set(bus.broadcast_ping(num_retry=3)) == {m.id for m in motors.values()}),
    )
    check("ticks", lambda: bus.sync_read("Present_Position", normalize=False, num_retry=3))

    def configure() -> None:
        with bus.torque_disabled():
            bus.configure_motors()
            for name in motors:
                bus.write("Operating_Mode", name, OperatingMode.POSITION.value)

    check("configure", configure)
    held = check("read the calibration", lambda: {k: vars(v) for k, v in bus.read_calibration().items()})
    if held is not None:
        bus.calibration = bus.read_calibration()
    check("the calibration is the servos'", lambda: truth(bus.is_calibrated))
    name = next(n for n in motors if n.endswith("waist"))

    def twos_complement() -> str:
        bus.disable_torque()  # LeRobot's `torque_disabled` has switched it on; EEPROM is locked then
        before = bus.read("Homing_Offset", name, normalize=False)
        bus.write("Homing_Offset", name, -321, normalize=False)
        told = bus.read("Homing_Offset", name, normalize=False)
        bus.write("Homing_Offset", name, before, normalize=False)
        truth(told == -321, f"read {told}")
        return "-321"

    check("a negative offset, written and read", twos_complement)
    drive(check, bus, {n: 20.0 for n in motors if n.endswith(("waist", "wrist_rotate"))}, 1.0)
    check("disconnect", lambda: bus.disconnect())


# -- in ours -------------------------------------------------------------------------------------------------------


def task_for(robot: str, bus_name: str, port: str) -> dict[str, Any]:
    from edgevla.robots.calibration import nominal
    from edgevla.robots.profile import load_profile

    profile = load_profile(robot)
    bus = next(bus for bus in profile.buses if bus.name == bus_name)
    units = {joint.motor: joint.unit for joint in profile.joints}
    motors = [
        {"name": m.name, "id": m.id, "model": m.model, "mode": MODES[units.get(m.name, "rad")]} for m in bus.motors
    ]  # fmt: skip
    names = {m.name for m in bus.motors}
    calibration = {n: vars(c) for n, c in nominal(profile).motors.items() if n in names}
    return {"protocol": bus.protocol, "port": port, "motors": motors, "calibration": calibration}


def our_reading(robot: str, links: Path) -> dict[str, float]:
    """What our driver reads of the same servos: state by motor (SO101), ticks by motor (ALOHA)."""
    from edgevla.robots.arm import Robot
    from edgevla.robots.bus.port import SerialPort
    from edgevla.robots.calibration import nominal
    from edgevla.robots.profile import load_profile

    profile = load_profile(robot)
    ports = {bus.name: SerialPort.open(str(links / bus.name), bus.baud) for bus in profile.buses}
    arm = Robot(profile, ports, nominal(profile) if profile.is_calibrated_by_file else None)
    arm.connect()
    values = arm.last_reading().position if robot == "so101" else arm.present_ticks()
    arm.close()
    return {joint.motor: float(v) for joint, v in zip(profile.joints, values, strict=True)}


def compare(theirs: dict[str, float], ours: dict[str, float]) -> str:
    gaps = {name: abs(theirs[name] - ours[name]) for name in theirs if name in ours}
    worst = max(gaps, key=lambda name: gaps[name])
    truth(gaps[worst] < 1e-4, f"{worst}: {theirs[worst]} there, {ours[worst]} here")
    return f"{len(gaps)} joints equal"


def run(python: str, robot: str, bus_name: str, folder: Path) -> list[dict[str, Any]]:
    links = folder / robot
    args = [sys.executable, "-m", "edgevla", "emulate", robot, "--link", f"{links}/"]
    emulator = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
    assert emulator.stdout is not None
    try:
        assert emulator.stdout.readline(), "the emulator did not start"
        ours = our_reading(robot, links)
        task = task_for(robot, bus_name, str(links / bus_name))
        done = subprocess.run(
            [python, __file__, "--client", json.dumps(task)], check=False, capture_output=True, text=True,
            timeout=300, env={**os.environ, "PYTHONPATH": ""},
        )  # fmt: skip
    finally:
        emulator.terminate()
        emulator.communicate(timeout=20)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not found or done.returncode:
        raise SystemExit(f"LeRobot's side ended with {done.returncode}:\n{done.stderr[-3000:]}")
    for line in found:
        if line["name"] in ("angles", "ticks") and line["value"] is not None:
            try:
                line["value"] = compare(line["value"], ours)
            except AssertionError as error:
                line["error"] = str(error)
            line["name"] += " equal those of our driver"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python", nargs="?", help="the Python that has lerobot 0.4.4")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.client:
        return client(json.loads(args.client))
    if args.python is None:
        parser.error("name the Python that has lerobot 0.4.4")
    lines, n_failed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for robot, bus, title in (("so101", "arm", "FeetechMotorsBus, SO101"),
                                  ("aloha", "left", "DynamixelMotorsBus, ALOHA's left follower")):  # fmt: skip
            lines += [f"## {title}", "", "| check | outcome |", "| --- | --- |"]
            for found in run(args.python, robot, bus, Path(folder)):
                outcome = f"**failed**: {found['error']}" if found["error"] else found["value"] or "done"
                n_failed += found["error"] is not None
                outcome = outcome if isinstance(outcome, str) else f"{len(outcome)} values"
                lines.append(f"| {found['name']} | {outcome} |")
                print(f"{robot}: {found['name']}: {outcome}")
            lines.append("")
    if args.out:
        head = (
            "# LeRobot's motor buses on our emulator\n\n"
            f"lerobot 0.4.4 unmodified, `benchmarks/lerobot_bus.py`, {datetime.date.today()}: {n_failed} checks "
            "failed. Two shared cores, other work running.\n\n"
        )
        args.out.write_text(head + "\n".join(lines), encoding="utf-8")
    return int(n_failed > 0)


if __name__ == "__main__":
    sys.exit(main())

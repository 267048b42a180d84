"""Finds out what is wrong, and says the next step.

    edgevla doctor                                       this machine: Python, engines, extras, cameras, ports
    edgevla doctor --robot so101 --port /dev/ttyACM0     the arm: every servo, its model, firmware, volts, heat
    edgevla doctor --root /mnt/jetson                    a Jetson's disk: JetPack, power mode, clocks, memory, groups
    edgevla doctor --robot aloha --reboot 9              clears a Dynamixel's hardware error (the arm may drop)

Nothing moves and no setting is kept (but for --reboot). Exit code 1 when something must be repaired.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgevla.errors import BusError, CalibrationError, EngineError, UsageError
from edgevla.extras import install_words

if TYPE_CHECKING:
    from ..bus.servo_bus import ServoBus
    from ..profile import Profile
    from .checkup import Check, Level, MotorReport

EXTRAS = {"language": ("tokenizers",), "record": ("pyarrow", "av"), "train": ("torch", "safetensors")}
ENGINES = ("onnxruntime", "onnxruntime-gpu")
OLDEST_PYTHON = (3, 10)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ..ports import add_port_argument

    parser.add_argument("--robot", help="name of a profile, or a path to a .toml file")
    add_port_argument(parser)
    parser.add_argument("--calibration", metavar="ID|FILE", help="compare with this calibration")
    parser.add_argument(
        "--reboot", type=int, metavar="ID", help="reboot this Dynamixel servo (torque goes off)"
    )
    parser.add_argument("--bus", help="bus of the servo to reboot, where the robot has several")
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="examine a Jetson's disk that lies there, nothing of this machine",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    if args.robot is None and (args.port or args.reboot is not None):
        raise UsageError("say which robot: edgevla doctor --robot so101 --port ...")
    if args.robot is None and args.calibration is not None:
        raise UsageError("--calibration needs --robot: it is compared with what that arm's servos hold")
    if args.bus is not None and args.reboot is None:
        raise UsageError(
            "--bus says where the servo of --reboot ID is; without --reboot every bus is examined"
        )
    if args.reboot is not None:
        return _reboot(args)
    if args.root is not None:
        if args.robot is not None:
            raise UsageError("--root is for a disk, --robot for the arm on this machine; say one of them")
        checks = disk(args.root)
    else:
        checks = environment()
    motors: list[MotorReport] = []
    if args.robot is not None:
        robot_checks, motors = examine(args)
        checks += robot_checks
    if args.json:
        found = {
            "checks": [dataclasses.asdict(check) for check in checks],
            "motors": [dataclasses.asdict(motor) for motor in motors],
        }
        print(json.dumps(found, indent=1))
    else:
        _print(checks, motors)
    return int(any(check.level == "fail" for check in checks))


# ---- this machine ----


def environment() -> list[Check]:
    """Python, engines, extras, cameras and serial ports of this machine."""
    from .checkup import Check
    from .jetpack import is_jetson, jetpack

    version = platform.python_version()
    is_new = sys.version_info[:2] >= OLDEST_PYTHON
    checks = [
        Check("ok" if is_new else "fail", "python", version, "" if is_new else "install Python 3.10 or later")
    ]
    checks.append(_engines())
    if importlib.util.find_spec("tensorrt") is not None:
        checks.append(_tensorrt())
    for extra, modules in EXTRAS.items():
        lacks = [m for m in modules if importlib.util.find_spec(m) is None]
        text = f"not installed ({', '.join(lacks)})" if lacks else "installed"
        checks.append(Check("ok", f"extra {extra}", text, install_words(extra) if lacks else ""))
    cameras = sorted(str(p) for p in Path("/dev").glob("video*"))
    checks.append(Check("ok", "cameras", ", ".join(cameras) or "none"))
    checks += _serial_ports()
    return [*checks, *jetpack()] if is_jetson() else checks


def disk(root: Path) -> list[Check]:
    """
    Raises:
        UsageError: no Jetson's disk lies there.
    """
    from .jetpack import RELEASE, is_jetson, jetpack

    if not is_jetson(root):
        raise UsageError(
            f"--root {root}: there is no {RELEASE}, so it is no Jetson's disk; name the folder where "
            "its root partition is mounted"
        )
    return jetpack(root)


def _engines() -> Check:
    from .checkup import Check

    there = {}
    for name in ENGINES:
        try:
            there[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    has_tensorrt = importlib.util.find_spec("tensorrt") is not None
    if len(there) > 1:
        return Check(
            "fail", "engine", "onnxruntime and onnxruntime-gpu overwrite each other in one environment",
            f"pip uninstall both, then install one: {install_words('cpu')}, or [gpu]",
        )  # fmt: skip
    names = [f"{n} {v}" for n, v in there.items()] + (["tensorrt"] if has_tensorrt else [])
    if not names:
        return Check("warn", "engine", "none: bundles cannot run here", install_words("cpu"))
    return Check("ok", "engine", ", ".join(names))


def _tensorrt() -> Check:
    """Loaded, not only found, with the GPU that its engines are built for."""
    from edgevla.engines.cudart import Cuda
    from edgevla.engines.tensorrt import import_tensorrt

    from .checkup import Check

    try:
        version, gpu = import_tensorrt().__version__, Cuda().describe()
    except EngineError as error:
        return Check("fail", "tensorrt", str(error), "docs/tensorrt.md")
    capability = f"compute capability {gpu['major']}.{gpu['minor']}"
    return Check("ok", "tensorrt", f"{version} on {gpu['name']}, {capability}, driver {gpu['driver']}")


def _serial_ports() -> list[Check]:
    from ..bus.adapters import CURES, candidate_ports, is_left_to_us, is_running
    from .checkup import Check

    ports = candidate_ports()
    checks = [check for port in ports for check in _serial_port(port)] or [
        Check("ok", "serial ports", "none")
    ]
    is_managed = not ports or not all(is_left_to_us(port) for port in ports)
    for program, cure in CURES.items():
        if is_running(program) and (is_managed or program != "ModemManager"):
            vendor = next((v for port in ports if (v := _vendor(port))), "1a86")
            checks.append(Check("warn", program, "is running", cure.format(vendor=vendor)))
    return checks


def _vendor(port: str) -> str | None:
    from ..bus.adapters import usb_device

    device = usb_device(port)
    return None if device is None else (device / "idVendor").read_text().strip()


def _serial_port(port: str) -> list[Check]:
    """What is wrong with an adapter, or that nothing is."""
    from ..bus.adapters import (
        LATENCY_WARN_MS,
        autosuspend_file,
        latency_timer_ms,
        latency_timer_path,
        openers,
    )
    from .checkup import Check

    if not os.access(port, os.R_OK | os.W_OK):
        step = "sudo usermod -aG dialout $USER, then log in again"
        return [Check("fail", "serial port", f"{port}: no permission", step)]
    found = []
    if who := ", ".join(f"pid {o.pid}, {o.program}" for o in openers(port)):
        found.append(
            Check("warn", "serial port", f"{port} is in use ({who})", "stop it before you use the arm")
        )
    timer = latency_timer_path(port)
    if (latency_timer_ms(timer) or 0) > LATENCY_WARN_MS:
        found.append(Check("warn", "serial port", f"{port} (slow)", f"echo 1 | sudo tee {timer}"))
    if asleep := autosuspend_file(port):
        text = f"{port} may fall asleep between two uses (USB autosuspend)"
        found.append(Check("warn", "serial port", text, f"echo on | sudo tee {asleep}"))
    return found or [Check("ok", "serial port", port)]


# ---- the arm ----


def examine(args: argparse.Namespace) -> tuple[list[Check], list[MotorReport]]:
    """All buses of the robot, each as far as it can be reached."""
    from ..bus.port import SerialPort
    from ..ports import choose_ports
    from ..profile import load_profile
    from .checkup import BusCheckup, Check

    profile = load_profile(args.robot)
    checks: list[Check] = []
    motors: list[MotorReport] = []
    try:
        paths = choose_ports(profile, args.port)
    except BusError as error:
        return [Check("fail", "ports", str(error), "plug the adapter in, or name its port with --port")], []
    for bus in profile.buses:
        path = paths[bus.name]
        checkup = BusCheckup(profile, bus, lambda baud, path=path: SerialPort.open(path, baud))  # type: ignore[misc]
        try:
            checkup.run()
        except BusError as error:
            checkup.checks.append(Check("fail", f"bus {bus.name}", str(error)))
        checks += checkup.checks
        motors += checkup.motors
    if profile.is_calibrated_by_file and motors and all(m.is_there for m in motors):
        checks += _calibration(profile, args, paths)
    return checks, motors


def _calibration(profile: Profile, args: argparse.Namespace, paths: dict[str, str]) -> list[Check]:
    from ..bus.port import SerialPort
    from ..calibration import adopted, differences, find_calibration, out_of_reach
    from ..handshake import held_calibration
    from ..rescue import make_buses
    from .checkup import Check

    again = f"edgevla calibrate --robot {profile.name}"
    ports = {b.name: SerialPort.open(paths[b.name], b.baud) for b in profile.buses}
    try:
        held = held_calibration(make_buses(profile, ports), profile)
    finally:
        for port in ports.values():
            port.close()
    try:
        wanted = find_calibration(profile, args.calibration)
        made = wanted or adopted(profile, held)
    except CalibrationError as error:
        level: Level = "fail" if args.calibration == "servos" else "warn"
        return [Check(level, "calibration", str(error), again)]
    if wanted is not None and (lines := differences(wanted, held)):
        step = f"{again} --write (the file is right) or --adopt (the servos are), with the arm's --id where it has one"
        return [Check("fail", "calibration", f"{wanted.source}: " + "; ".join(lines), step)]
    checks = [Check("ok", "calibration", "as the servos hold it" if wanted is None else made.source)]
    for sentence in out_of_reach(profile, made):
        step = f"move it to both its ends: {again}; or change the pose in the profile"
        checks.append(Check("warn", "pose out of reach", sentence, step))
    return checks


def _reboot(args: argparse.Namespace) -> int:
    from ..ports import open_ports
    from ..profile import load_profile
    from ..rescue import make_buses

    profile = load_profile(args.robot)
    names = [b.name for b in profile.buses if any(m.id == args.reboot for m in b.motors)]
    if args.bus is not None:
        names = [n for n in names if n == args.bus]
    if not names:
        where = f"bus {args.bus} of {profile.name}" if args.bus is not None else profile.name
        raise UsageError(f"--reboot {args.reboot}: {where} has no such servo; edgevla doctor lists all ids")
    if len(names) != 1:
        raise UsageError(
            f"which bus has the servo {args.reboot}? Say --bus {'|'.join(b.name for b in profile.buses)}"
        )
    ports = open_ports(profile, args.port)
    try:
        line = make_buses(profile, ports)[names[0]]
        if not line.can_reboot:
            raise UsageError(
                f"{profile.name} has Feetech servos, which have no reboot: switch the arm off and on"
            )
        texts = _let_go_and_reboot(profile, line, names[0], args.reboot)
    finally:
        for port in ports.values():
            port.close()
    print(
        f"motor {args.reboot} was rebooted; torque is off"
        + (f"; it still reports {', '.join(texts)}" if texts else "")
    )
    return int(bool(texts))


def _let_go_and_reboot(profile: Profile, line: ServoBus, bus_name: str, servo_id: int) -> list[str]:
    """What the servo still reports afterwards. One that holds its arm is asked about, and the arm is let down first."""
    from .holding import release
    from .terminal import Terminal

    line.greet()
    if line.read_raw(servo_id, "torque_enable"):
        arm = dataclasses.replace(profile, buses=tuple(b for b in profile.buses if b.name == bus_name))
        release(arm, {bus_name: line}, Terminal("doctor --reboot"))
    line.reboot(servo_id)
    if next((r for _ in range(20) if (r := line.ping(servo_id, 1)) is not None), None) is None:
        raise BusError(f"motor {servo_id} has not come back from its reboot; switch the arm off and on")
    return list(line.codec.error_texts(line.read_raw(servo_id, "status")))


def _print(checks: list[Check], motors: list[MotorReport]) -> None:
    marks = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}
    if motors:
        print(
            f"{'bus':<8} {'id':>3} {'motor':<20} {'model':<12} {'fw':<6} {'V':>5} {'degC':>5} {'tick':>6}  state"
        )
        for m in motors:
            if not m.is_there:
                print(f"{m.bus:<8} {m.id:>3} {m.name:<20} no answer")
                continue
            torque = {True: ["torque on"], False: ["torque off"], None: []}[m.torque_on]
            state = ", ".join([*m.faults, *torque])
            volts = "" if m.voltage_v is None else f"{m.voltage_v:.1f}"
            heat = "" if m.temperature_c is None else f"{m.temperature_c:.0f}"
            tick = "" if m.position is None else str(m.position)
            who = f"{m.bus:<8} {m.id:>3} {m.name:<20} {m.model:<12} {m.firmware:<6}"
            print(f"{who} {volts:>5} {heat:>5} {tick:>6}  {state}")
        print()
    for check in checks:
        print(f"{marks[check.level]}  {check.what}: {check.text}")
        if check.next_step:
            print(f"      -> {check.next_step}")

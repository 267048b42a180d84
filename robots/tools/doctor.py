"""Finds out what is wrong, and says the next step.

    edgevla doctor                                       this machine: Python, engines, extras, cameras, ports
    edgevla doctor --robot so101 --port /dev/ttyACM0     the arm: every servo, its model, firmware, volts, heat
    edgevla doctor --robot aloha --reboot 9              clears a Dynamixel's hardware error (the arm may drop)

Nothing moves and no setting is changed (but for --reboot). Exit code 1 when something must be repaired.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edgevla.errors import BusError, CalibrationError, UsageError

if TYPE_CHECKING:
    from ..profile import Profile
    from .checkup import Check, MotorReport

EXTRAS = {"record": ("pyarrow", "av"), "train": ("torch", "safetensors")}
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
    checks = environment()
    motors: list[MotorReport] = []
    if args.robot is not None:
        robot_checks, motors = examine(args)
        checks += robot_checks
    if args.json:
        print(
            json.dumps(
                {"checks": [asdict(c) for c in checks], "motors": [asdict(m) for m in motors]}, indent=1
            )
        )
    else:
        _print(checks, motors)
    return int(any(check.level == "fail" for check in checks))


# ---- this machine ----


def environment() -> list[Check]:
    """Python, engines, extras, cameras and serial ports of this machine."""
    from .checkup import Check

    version = platform.python_version()
    is_new = sys.version_info[:2] >= OLDEST_PYTHON
    checks = [
        Check("ok" if is_new else "fail", "python", version, "" if is_new else "install Python 3.10 or later")
    ]
    checks.append(_engines())
    for extra, modules in EXTRAS.items():
        lacks = [m for m in modules if importlib.util.find_spec(m) is None]
        text = f"not installed ({', '.join(lacks)})" if lacks else "installed"
        checks.append(Check("ok", f"extra {extra}", text, f'pip install "edgevla[{extra}]"' if lacks else ""))
    cameras = sorted(str(p) for p in Path("/dev").glob("video*"))
    checks.append(Check("ok", "cameras", ", ".join(cameras) or "none"))
    checks += _serial_ports()
    return checks


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
            "pip uninstall both, then install one: edgevla[cpu] or edgevla[gpu]",
        )  # fmt: skip
    names = [f"{n} {v}" for n, v in there.items()] + (["tensorrt"] if has_tensorrt else [])
    if not names:
        return Check("warn", "engine", "none: bundles cannot run here", 'pip install "edgevla[cpu]"')
    return Check("ok", "engine", ", ".join(names))


def _serial_ports() -> list[Check]:
    from ..bus.port import LATENCY_WARN_MS, candidate_ports, latency_timer_ms, latency_timer_path
    from .checkup import Check

    ports = candidate_ports()
    if not ports:
        return [Check("ok", "serial ports", "none", "")]
    checks = []
    for port in ports:
        if not os.access(port, os.R_OK | os.W_OK):
            step = "sudo usermod -aG dialout $USER, then log in again"
            checks.append(Check("fail", "serial port", f"{port}: no permission", step))
            continue
        timer = latency_timer_path(port)
        slow = (latency_timer_ms(timer) or 0) > LATENCY_WARN_MS
        step = f"echo 1 | sudo tee {timer}" if slow else ""
        checks.append(
            Check("warn" if slow else "ok", "serial port", port + (" (slow)" if slow else ""), step)
        )
    return checks


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
        checks.append(_calibration(profile, args, paths))
    return checks, motors


def _calibration(profile: Profile, args: argparse.Namespace, paths: dict[str, str]) -> Check:
    from ..bus.port import SerialPort
    from ..calibration import differences, find_calibration
    from ..handshake import held_calibration
    from ..rescue import make_buses
    from .checkup import Check

    try:
        wanted = find_calibration(profile, args.calibration)
    except CalibrationError as error:
        return Check("warn", "calibration", str(error), f"edgevla calibrate --robot {profile.name}")
    if wanted is None:
        return Check("ok", "calibration", "as the servos hold it")
    ports = {b.name: SerialPort.open(paths[b.name], b.baud) for b in profile.buses}
    try:
        lines = differences(wanted, held_calibration(make_buses(profile, ports), profile, wanted))
    finally:
        for port in ports.values():
            port.close()
    if lines:
        step = f"edgevla calibrate --robot {profile.name} --write (the file is right) or --adopt (the servos are)"
        step += ", with the arm's --id where it has one"
        return Check("fail", "calibration", f"{wanted.source}: " + "; ".join(lines), step)
    return Check("ok", "calibration", wanted.source)


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
        line.reboot(args.reboot)
        reply = next((r for _ in range(20) if (r := line.ping(args.reboot, 1)) is not None), None)
        if reply is None:
            raise BusError(
                f"motor {args.reboot} has not come back from its reboot; switch the arm off and on"
            )
        texts = line.codec.error_texts(line.read_raw(args.reboot, "status"))
    finally:
        for port in ports.values():
            port.close()
    print(
        f"motor {args.reboot} was rebooted; torque is off"
        + (f"; it still reports {', '.join(texts)}" if texts else "")
    )
    return int(bool(texts))


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
            state = ", ".join(m.faults) or ("torque on" if m.torque_on else "torque off")
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

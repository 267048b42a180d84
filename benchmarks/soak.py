"""A long run on a bad line: 100 Hz on the emulated SO101 with 1 % of answers lost and 0.1 % damaged.

    python benchmarks/soak.py [--seconds 3600] [--hz 100] [--drop 0.01] [--corrupt 0.001] [--out FILE.json]

The arm follows slow waves through the safety filter, with a step far away every 20 s. Every goal that goes out on the
line is decoded again and compared with the one before: a step above the velocity cap must not occur. Prints ticks
missed, retries, stale values, the largest goal step, and the memory of driver and emulator at start and end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path

import numpy as np

from edgevla.clock import MonotonicClock, ticker
from edgevla.robots.arm import Robot
from edgevla.robots.bus import feetech
from edgevla.robots.bus.port import SerialPort
from edgevla.robots.calibration import nominal
from edgevla.robots.profile import load_profile
from edgevla.robots.safety import SafetyFilter, make_caps

PAGE = os.sysconf("SC_PAGE_SIZE")


class Witness(SerialPort):
    """The port, and what goals really left through it: largest step per servo in ticks."""

    largest_step: dict[int, int]
    last: dict[int, int]

    def write(self, data: bytes) -> None:
        for _, code, parameters in feetech.split_instructions(bytearray(data)):
            if code == feetech.SYNC_WRITE and parameters[0] == feetech.REGISTERS["goal_position"].address:
                for at in range(2, len(parameters), 3):
                    servo_id, goal = parameters[at], parameters[at + 1] | parameters[at + 2] << 8
                    step = abs(goal - self.last.get(servo_id, goal))
                    self.largest_step[servo_id] = max(self.largest_step.get(servo_id, 0), step)
                    self.last[servo_id] = goal
        super().write(data)


def rss_mb(pid: int | str) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6


def wanted(seconds: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Slow waves about the middle; for one second in twenty the far end, at once."""
    middle, half = (low + high) / 2, (high - low) / 2
    wave = middle + 0.3 * half * np.sin(seconds * 0.8 + np.arange(len(low)))
    return np.where(seconds % 20 > 19, high, wave).astype(np.float32)


def run(port_path: str, emulator_pid: int, seconds: float, hz: float) -> dict[str, object]:
    profile = load_profile("so101")
    port = Witness.open(port_path, 1_000_000)
    port.largest_step, port.last = {}, {}
    robot = Robot(profile, {"arm": port}, nominal(profile))
    robot.connect()
    assert robot.set_torque(True) == []
    low, high = robot.limits()
    caps = make_caps(
        low, high, np.array([j.max_velocity for j in profile.joints]),
        np.array([j.is_gripper for j in profile.joints]), profile.rates.home_speed,
    )  # fmt: skip
    safety = SafetyFilter(caps, 1 / hz)
    safety.begin(robot.present_goal())
    memory = {"driver_start_mb": rss_mb("self"), "emulator_start_mb": rss_mb(emulator_pid)}
    period_ns, clock = round(1e9 / hz), MonotonicClock()
    begun, cpu = time.monotonic(), time.process_time()
    late_ms = array("f")
    n, worst_age_us, last_number, n_missed = 0, 0, -1, 0
    for tick in ticker(clock, period_ns):
        spent = time.monotonic() - begun
        if spent >= seconds:
            break
        n_missed += tick.number - last_number - 1
        last_number = tick.number
        goal, _ = safety.allow(wanted(spent, low, high), is_withheld=robot.withheld)
        reading = robot.exchange(goal, tick.deadline_ns + period_ns * 9 // 10)
        worst_age_us = max(worst_age_us, int(reading.position_age_us.max()))
        late_ms.append(tick.late_ns / 1e6)
        n += 1
    cpu = time.process_time() - cpu
    # A step may be one tick more than the cap: both ends are rounded to ticks.
    caps_ticks = np.ceil(caps.speed / hz / robot.units.scale()) + 1
    ids = [profile.motor(j.motor).id for j in profile.joints]
    n_jumps = sum(port.largest_step.get(i, 0) > cap for i, cap in zip(ids, caps_ticks, strict=True))
    unreached = robot.set_torque(False)
    robot.close()
    return {
        "seconds": seconds, "hz": hz, "ticks": n, "ticks_missed": n_missed,
        "late_p50_ms": float(np.median(late_ms)), "late_p99_ms": float(np.percentile(late_ms, 99)),
        "cpu_us_per_tick": cpu / n * 1e6, **robot.counters(), "worst_age_ms": worst_age_us / 1000,
        "joints_with_a_jump_above_the_cap": int(n_jumps),
        "largest_step_ticks": max(port.largest_step.values()), "cap_ticks": float(caps_ticks[:5].max()),
        "torque_not_confirmed_off": unreached, **memory,
        "driver_end_mb": rss_mb("self"), "emulator_end_mb": rss_mb(emulator_pid),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--hz", type=float, default=100.0)
    parser.add_argument("--drop", type=float, default=0.01)
    parser.add_argument("--corrupt", type=float, default=0.001)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        script, link = Path(folder, "faults.jsonl"), Path(folder, "so101")
        script.write_text(
            json.dumps({"at_s": 0, "kind": "drop", "probability": args.drop})
            + "\n"
            + json.dumps({"at_s": 0, "kind": "corrupt", "probability": args.corrupt})
        )
        command = [sys.executable, "-m", "edgevla.robots.emulator.cli", "so101", "--link", str(link)]
        process = subprocess.Popen([*command, "--faults", str(script)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            assert process.stdout.readline(), "the emulator did not start"
            found = run(str(link), process.pid, args.seconds, args.hz)
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()
    for name, value in found.items():
        print(f"{name:<34} {value if not isinstance(value, float) else round(value, 3)}")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))
    return int(bool(found["joints_with_a_jump_above_the_cap"]))


if __name__ == "__main__":
    sys.exit(main())

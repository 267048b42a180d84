"""An emulated robot in a process of its own, and one in this process on a virtual clock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgevla.clock import VirtualClock
from edgevla.robots.arm import Robot
from edgevla.robots.calibration import nominal
from edgevla.robots.emulator.robot import EmulatedRobot
from edgevla.robots.profile import load_profile


class EmulatorProcess:
    """`python -m edgevla.robots.emulator.cli`; `ports`: bus -> link."""

    def __init__(self, robot: str, folder: Path, *options: str) -> None:
        link = str(folder / "ports") + "/"
        args = [sys.executable, "-m", "edgevla.robots.emulator.cli", robot, "--link", link, *options]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(args, stdout=subprocess.PIPE, text=True, env=env)
        profile = load_profile(robot)
        self.ports = {bus.name: str(folder / "ports" / bus.name) for bus in profile.buses}
        assert self.process.stdout is not None
        for _ in profile.buses:  # one line per bus, printed when its pseudo-terminal is there
            assert self.process.stdout.readline(), "the emulator ended"

    def stop(self) -> int:
        self.process.terminate()
        code = self.process.wait(timeout=20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def start_emulator(tmp_path):
    """`start_emulator("so101", "--untimed")` -> EmulatorProcess, stopped at the end."""
    started: list[EmulatorProcess] = []

    def start(robot: str, *options: str) -> EmulatorProcess:
        folder = tmp_path / f"emulator{len(started)}"
        folder.mkdir()
        started.append(EmulatorProcess(robot, folder, *options))
        return started[-1]

    yield start
    for emulator in started:
        if emulator.process.poll() is None:
            emulator.stop()
        else:
            emulator.process.stdout.close()


class Bench:
    """A robot and its emulated servos on one virtual clock."""

    def __init__(self, name: str, calibration="nominal", **options) -> None:
        self.profile = load_profile(name)
        self.clock = VirtualClock(1_000_000_000)
        self.emulated = EmulatedRobot(self.profile, self.clock, **options)
        if calibration == "nominal":
            calibration = nominal(self.profile) if self.profile.is_calibrated_by_file else None
        self.robot = Robot(self.profile, self.emulated.memory_ports(), calibration, self.clock)

    def tick(self, goal=None, budget_ms: float = 9.0):
        """One exchange on a grid of 10 ms."""
        self.clock.sleep_until((self.clock.now_ns() // 10_000_000 + 1) * 10_000_000)
        return self.robot.exchange(goal, self.clock.now_ns() + int(budget_ms * 1e6))

    def fault(self, kind: str, **values) -> None:
        from edgevla.robots.emulator.faults import InjectedFault

        self.emulated.apply(InjectedFault(kind, **values))

    def servo(self, name: str):
        return self.emulated.servos[name]


@pytest.fixture
def bench():
    return Bench

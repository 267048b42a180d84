"""A leader arm as the source of a deployment's actions: its cameras, and the processes that it consists of."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from edgevla.arguments import Start
from edgevla.cameras import CameraSettings
from edgevla.descriptions import AboutPolicy
from edgevla.errors import BusError, UsageError
from edgevla.launch.deployment import DeployOptions
from edgevla.launch.sources import DirectSource, SupervisorLike
from edgevla.vocabulary import NONE

from .describe import about_camera
from .leader_node import check_pair
from .links import Driver
from .ports import choose_ports, is_same_line
from .profile import Profile
from .rollout import held_actions

SIM_SWAY = 0.25
"""Share of its range by which an emulated leader moves to and fro."""
READY_S = 30.0


@dataclass(frozen=True)
class LeaderArm:
    """A leader arm, and the processes that it consists of. ports: `[BUS=]PATH` texts. calibration: its id or file."""

    profile: Profile
    ports: Sequence[str] = ()
    calibration: str | None = None

    def start(self, run: SupervisorLike, fps: float, driver: Driver) -> float:
        """In the policy's place, or beside it; its latency in ms. fps: of the grid.

        Raises:
            BusError: it does not answer.
        """
        ports, calibration = self.ports, self.calibration
        if run.options.is_sim:
            ports, calibration = [self._emulate(run)], "nominal"
        words = ["edgevla.robots.leader_node", f"--leader={self.profile.path}", f"--fps={fps}"]
        words += [f"--node={driver}", *run.place, *(f"--port={text}" for text in ports)]
        words += [f"--calibration={calibration}"] if calibration else []
        run.spawn(driver, words)
        about = run.await_ready(driver, driver, AboutPolicy, READY_S, BusError)
        run.say("info", driver, f"{about.provider} answers in {about.latency_ms:.1f} ms")
        return about.latency_ms

    def _emulate(self, run: SupervisorLike) -> str:
        """Starts an emulated leader that sways; the folder with a link per bus."""
        links = run.folder / "leader"
        words = [
            "edgevla.robots.emulator.cli",
            str(self.profile.path),
            f"--link={links}/",
            f"--sway={SIM_SWAY}",
            "--end-with-parent",
        ]
        emulator = run.spawn("leader_emulator", words)
        until = time.monotonic() + READY_S
        while not all((links / bus.name).exists() for bus in self.profile.buses):
            if time.monotonic() > until or not emulator.is_alive:
                raise BusError(emulator.last_sentence())
            time.sleep(0.05)
        return str(links)


def check_arms(leader: LeaderArm, follower: Profile, options: DeployOptions) -> None:
    """What profiles and ports tell of the two arms, before a process is started.

    Raises:
        ConfigError: one does not fit the other. UsageError: both are on one line.
    """
    check_pair(leader.profile, follower)
    if options.is_sim:
        return
    with contextlib.suppress(BusError):  # a port that nobody can guess is told by the process that opens it
        lines = choose_ports(follower, options.ports)
        for bus, port in choose_ports(leader.profile, leader.ports, "--leader-port").items():
            if same := [name for name, other in lines.items() if is_same_line(port, other)]:
                raise UsageError(
                    f"{port} is the line of the leader's bus '{bus}' and of the follower's '{same[0]}'; each arm has an "
                    "adapter of its own: name them with --leader-port and --port"
                )


class LeaderSource(DirectSource):
    """fps: how often the leader's pose is taken.

    Raises:
        ConfigError, UsageError: the two arms do not fit.
    """

    def __init__(
        self,
        leader: LeaderArm,
        follower: Profile,
        options: DeployOptions,
        fps: float | None = None,
    ) -> None:
        check_arms(leader, follower, options)
        self._leader, self._latency_ms = leader, 0.0
        self._settings = _camera_settings(follower, options)
        rate = float(fps or follower.rates.record_hz)
        super().__init__(f"leader {leader.profile.name}", rate, [camera.name for camera in self._settings])

    def fit(self, run: SupervisorLike) -> list[CameraSettings]:
        for camera in self._settings:
            run.say("info", "teleop", f"camera {camera.name}: {camera.source}")
        return self._settings

    def spawn(self, run: SupervisorLike) -> None:
        self._latency_ms = self._leader.start(run, self.fps, "policy")

    def ready(self, run: SupervisorLike) -> float:
        return self._latency_ms

    def start_arguments(self, run: SupervisorLike, latency_ms: float) -> Start:
        return self.direct_arguments(run, held_actions(self.fps), latency_ms)


def _camera_settings(follower: Profile, options: DeployOptions) -> list[CameraSettings]:
    """Those of the follower's profile, as the command line changes them; simulated ones where there is a world."""
    made = []
    for camera in follower.cameras:
        source = options.cameras.get(camera.name, "sim" if options.is_sim else camera.source)
        if source == NONE or (source == "sim" and not follower.world):
            continue
        made.append(CameraSettings.of_profile(about_camera(camera), source))
    return made

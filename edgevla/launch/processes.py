"""How the processes beside the policy are started: the module of each, by name, and its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgevla.cameras import CameraSettings
from edgevla.launch.deployment import DeployOptions
from edgevla.session import endpoint
from edgevla.simulated import default_task

GUARDIAN, CAMERA = "edgevla.robots.guardian", "edgevla.nodes.camera"
EMULATOR, SIM_CAMERA = "edgevla.robots.emulator.cli", "edgevla.robots.world.sim_camera"
PORTS = "ports"
"""Folder of the emulated arm's lines, in the run directory."""


def emulator_args(o: DeployOptions, cameras: Sequence[str], folder: Path, session: bytes) -> list[str]:
    """cameras: names of those that may be looked through; simulated ones need a world to see."""
    args = [EMULATOR, o.robot, f"--link={folder / PORTS}/", f"--session={session.hex()}", f"--seed={o.seed}"]
    is_seen = not o.has_stand_in and "sim" in [o.cameras.get(name, "sim") for name in cameras]
    if o.sim_task or is_seen:
        args.append(f"--world={o.sim_task or default_task(o.robot)}")
    if o.sim_trace is not None:
        args.append(f"--trace={o.sim_trace}")
    return args


def guardian_args(o: DeployOptions, folder: Path, alive_fd: int) -> list[str]:
    """alive_fd: the end of a pipe whose closing says that nobody is left."""
    ports = [str(folder / PORTS)] if o.is_sim else o.ports
    args = [GUARDIAN, f"--robot={o.robot}", f"--alive-fd={alive_fd}", *(f"--port={text}" for text in ports)]
    calibration = "nominal" if o.is_sim else o.calibration
    args += ["--shadow"] if o.is_untouched else []
    args += ["--has-leader"] if o.leader is not None else []
    return args + ([f"--calibration={calibration}"] if calibration else [])


def camera_child(is_sim: bool) -> str:
    """Name of the process that has the real cameras, or the simulated ones."""
    return "sim_camera" if is_sim else "camera"


def camera_args(
    cameras: Sequence[CameraSettings], is_sim: bool, o: DeployOptions, folder: Path, session: bytes
) -> list[str]:
    """One process for all real cameras, one for all simulated ones."""
    args = [SIM_CAMERA if is_sim else CAMERA, "--session", session.hex()]
    args += (
        [f"--task={o.sim_task or default_task(o.robot)}", "--world", endpoint(folder, "emulator")]
        if is_sim
        else []
    )
    return args + [part for camera in cameras for part in ("--camera", camera.to_json())]

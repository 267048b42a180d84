"""A leader arm moves a follower, through the same processes and the same safety as a policy.

    edgevla teleop --leader so101_leader --leader-port /dev/ttyACM1 --robot so101 --port /dev/ttyACM0
    edgevla teleop --leader aloha_leader --robot aloha
    edgevla teleop --leader so101_leader --robot so101 --sim           both arms emulated; the leader sways

The follower approaches the leader's pose slowly first. Record in another terminal: edgevla record DATASET. Ctrl-C stops:
the follower moves to rest and is released.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edgevla.errors import UsageError
from edgevla.launch import options
from edgevla.launch.foreground import carry_out, report
from edgevla.launch.options import Number, add_duration
from edgevla.launch.screen import Screen
from edgevla.simulated import default_task, task_named
from edgevla.vocabulary import NONE, camera_help, pairs

if TYPE_CHECKING:
    from edgevla.launch.deployment import DeployOptions
    from edgevla.launch.supervisor import Say

    from .profile import Profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from .ports import add_port_argument

    add = parser.add_argument
    add("--leader", required=True, help="profile of the leader arm, or a path to a .toml file")
    add_port_argument(parser, "--leader-port", " of the leader")
    add("--leader-calibration", metavar="ID|FILE", help="LeRobot calibration of the leader")
    options.add_arguments(parser)
    add("--camera", action="append", default=[], metavar="NAME=SOURCE",
        help=camera_help("a device, image folder or video"))  # fmt: skip
    add_duration(parser)
    options.add_recording(parser)
    add(
        "--fps",
        type=Number(0, 10_000, above=True),
        metavar="HZ",
        help="how often the leader's pose is taken, and recorded; default: the robot's",
    )
    add("--task", help="instruction, for what is recorded")


def run(args: argparse.Namespace) -> int:
    """The follower's deployment, with the leader arm where the policy would be."""
    from edgevla.launch.supervisor import Supervisor

    from .leader_source import LeaderArm, LeaderSource
    from .profile import load_profile

    options.check_arguments(args)
    leader, follower = load_profile(args.leader), load_profile(args.robot)
    most = follower.rates.servo_hz
    if args.fps is not None and not 0 < args.fps <= most:
        raise UsageError(
            f"--fps {args.fps:g} must be above 0 and at most {most}, the rate of {follower.name}"
        )
    shown = Screen(to_stderr=args.json)
    wanted = _options(args, follower, shown)
    arm = LeaderArm(leader, args.leader_port, args.leader_calibration)
    source = LeaderSource(arm, follower, wanted, args.fps)
    return report(args, carry_out(Supervisor(wanted, source, shown)), shown)


def _options(args: argparse.Namespace, follower: Profile, say: Say) -> DeployOptions:
    from edgevla.launch.deployment import DeployOptions

    cameras = pairs(args.camera, "--camera")
    from_file = pairs(getattr(args, "camera_from_file", ()), "--camera")
    known = [camera.name for camera in follower.cameras]
    for name in [name for name in cameras if name not in known]:
        why = f"{follower.name} has no such camera; it has {', '.join(known) or 'none'}"
        if name not in from_file:
            raise UsageError(f"--camera {name}=...: {why}")
        del cameras[name]
        say("warning", "teleop", f"camera {name} of edgevla.toml is left out: {why}")
    if args.sim and follower.world and task_named(default_task(follower.world)).has_physics:
        # Four pictures of physics are more than a small machine draws beside two arms: those that are asked for.
        cameras = {camera.name: NONE for camera in follower.cameras} | cameras
    is_looked_at = any(cameras.get(camera.name, "sim") == "sim" for camera in follower.cameras)
    return DeployOptions(
        robot=args.robot,
        is_sim=args.sim,
        ports=args.port,
        cameras=cameras,
        task=args.task or "",
        duration_s=args.duration,
        log_dir=options.log_place(args),
        calibration=args.calibration,
        sim_task=default_task(follower.world) if follower.world and is_looked_at else None,
        sim_trace=args.sim_trace,
        recording=args.recorded_into,
    )

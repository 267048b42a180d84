"""A leader arm moves a follower, through the same processes and the same safety as a policy.

    edgevla teleop --leader so101_leader --leader-port /dev/ttyACM1 --robot so101 --port /dev/ttyACM0
    edgevla teleop --leader aloha_leader --robot aloha
    edgevla teleop --leader so101_leader --robot so101 --sim           both arms emulated; the leader sways

The follower approaches the leader's pose slowly first. Record in another terminal: edgevla record DATASET. Ctrl-C stops:
the follower moves to rest and is released.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevla.errors import BusError, UsageError

if TYPE_CHECKING:
    from edgevla.nodes.supervisor import Supervisor

SIM_SWAY = 0.25
SIM_READY_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from .opening import add_port_argument

    parser.add_argument(
        "--leader", required=True, help="profile of the leader arm, or a path to a .toml file"
    )
    parser.add_argument("--robot", required=True, help="profile of the follower, or a path to a .toml file")
    add_port_argument(parser, "--leader-port", " of the leader")
    add_port_argument(parser, "--port", " of the follower")
    parser.add_argument("--leader-calibration", metavar="ID|FILE", help="LeRobot calibration of the leader")
    parser.add_argument("--calibration", metavar="ID|FILE", help="LeRobot calibration of the follower")
    parser.add_argument("--camera", action="append", default=[], metavar="NAME=SOURCE",
                        help="another source for a camera of the profile, or `none`")  # fmt: skip
    parser.add_argument("--task", default="", help="instruction, for what is recorded")
    parser.add_argument("--duration", type=float, metavar="S", help="stop in order after so many seconds")
    parser.add_argument("--sim", action="store_true", help="emulate both arms and the cameras")
    parser.add_argument(
        "--sim-trace", type=Path, metavar="FILE", help="with --sim: frames of the follower's lines"
    )
    parser.add_argument("--log", type=Path, metavar="DIR", help="write run.jsonl and summary.json there")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    from edgevla.nodes.deploy_cli import _report, _Screen, carry_out

    if args.sim and (args.port or args.leader_port or args.calibration or args.leader_calibration):
        raise UsageError("--sim makes its own arms; leave out ports and calibrations")
    if args.duration is not None and args.duration <= 0:
        raise UsageError(f"--duration must be above 0 s, not {args.duration:g}")
    shown = _Screen(to_stderr=args.json)
    summary = carry_out(make_supervisor(args, shown))
    return 130 if summary is None else _report(args, summary, shown)


def make_supervisor(args: argparse.Namespace, say: Any) -> Supervisor:
    """A deployment whose policy is a leader arm. Raises ConfigError when the two arms do not fit."""
    from edgevla.nodes.deployment import DeployOptions

    from .leader_node import check_pair
    from .opening import parse_ports
    from .profile import load_profile

    leader, follower = load_profile(args.leader), load_profile(args.robot)
    check_pair(leader, follower)
    cameras = {}
    for text in args.camera:
        name, is_pair, source = text.partition("=")
        if not is_pair or name not in {camera.name for camera in follower.cameras}:
            known = ", ".join(camera.name for camera in follower.cameras) or "none"
            raise UsageError(
                f"--camera {text}: expected NAME=SOURCE with a camera of {follower.name} ({known})"
            )
        cameras[name] = source
    options = DeployOptions(
        bundle=Path(f"leader {leader.name}"),
        robot=args.robot,
        is_sim=args.sim,
        ports=parse_ports(follower, args.port),
        cameras=cameras,
        task=args.task,
        duration_s=args.duration,
        log_dir=args.log,
        calibration=args.calibration,
        sim_task="rest" if follower.world else None,
        sim_trace=args.sim_trace,
    )
    return _supervisor_class()(options, say, args)


def _supervisor_class() -> Any:
    """The class is made when it is needed: its base imports ZeroMQ and OpenCV, and `--help` must be instant."""
    from types import SimpleNamespace

    from edgevla.bundle import Bundle, Fit
    from edgevla.cameras import CameraSettings
    from edgevla.execution import Execution, execution_from
    from edgevla.nodes.supervisor import Supervisor
    from edgevla.session import Deployment, write_deployment

    from .leader_node import CHUNK_SIZE, FPS
    from .profile import load_profile

    class TeleopSupervisor(Supervisor):
        """The supervisor of a deployment, with a leader where the policy would be."""

        def __init__(self, options: Any, say: Any, args: argparse.Namespace) -> None:
            self._args = args
            self._follower = load_profile(args.robot)
            super().__init__(options, say)

        def _load(self) -> None:
            self.bundle: Bundle = SimpleNamespace(sha256="")  # type: ignore[assignment]
            self.execution = execution_from({"kind": "async", "every": 1})

        def _camera_list(self) -> list[CameraSettings]:
            o = self.options
            made = []
            for camera in self._follower.cameras:
                source = o.cameras.get(camera.name, "sim" if o.is_sim else camera.source)
                if source == "none" or (source == "sim" and not self._follower.world):
                    continue
                made.append(
                    CameraSettings(
                        camera.name, source, camera.width, camera.height, camera.fps,
                        has_locked_exposure=camera.has_locked_exposure,
                    )
                )  # fmt: skip
            return made

        def _note(self) -> None:
            nodes = ["robot", "policy", *(f"camera/{c.name}" for c in self._camera_list())]
            write_deployment(
                self.folder,
                Deployment(
                    self.session.hex(), os.getpid(), self.options.robot, None, nodes, self.options.task
                ),
            )

        def _start_emulator(self) -> None:
            o = self.options
            args = ["edgevla.robots.emulator.server", o.robot, f"--link={self.folder / 'ports'}/"]
            args.append(f"--session={self.session.hex()}")
            args += [f"--world={o.sim_task}"] if o.sim_task else []
            args += [f"--trace={o.sim_trace}"] if o.sim_trace is not None else []
            self._spawn("emulator", args)
            self._await_ready("emulator", "emulator", SIM_READY_S, BusError)
            leader = load_profile(self._args.leader)
            links = self.folder / "leader"
            args = [
                "edgevla.robots.emulator.server",
                self._args.leader,
                f"--link={links}/",
                f"--sway={SIM_SWAY}",
            ]
            self._spawn("leader_emulator", args)
            until = time.monotonic() + SIM_READY_S
            while not all((links / bus.name).exists() for bus in leader.buses):
                if time.monotonic() > until or not self.children["leader_emulator"].is_alive:
                    raise BusError(self.children["leader_emulator"].last_sentence())
                time.sleep(0.05)

        def _fit_bundle(self) -> None:
            self._cameras = self._camera_list()
            self.fit: Fit | None = None
            for camera in self._cameras:
                self._say("info", "teleop", f"camera {camera.name}: {camera.source}")

        def _start_policy(self) -> float:
            a, sim = self._args, self.options.is_sim
            args = ["edgevla.robots.leader_node", f"--leader={a.leader}", f"--run-dir={self.folder}"]
            args.append(f"--session={self.session.hex()}")
            args += (
                [f"--port={self.folder / 'leader'}"] if sim else [f"--port={text}" for text in a.leader_port]
            )
            calibration = "nominal" if sim else a.leader_calibration
            args += [f"--calibration={calibration}"] if calibration else []
            self._spawn("policy", args)
            about = self._await_ready("policy", "policy", SIM_READY_S, BusError)
            latency_ms = float(about["latency_ms"])
            self._say("info", "teleop", f"{about['provider']} answers in {latency_ms:.1f} ms")
            return latency_ms

        def _judge(self, latency_ms: float) -> Execution:
            return self.execution

        def _start_arguments(self, latency_ms: float) -> dict[str, Any]:
            fps = min(FPS, float(self.robot["servo_hz"]))
            return {
                "fps": fps, "chunk_size": CHUNK_SIZE, "n_action_steps": 1, "execution": {"kind": "async", "every": 1},
                "allowed": ["async"], "task": self.options.task, "n_steps": None, "guidance_end": 0,
                "max_guidance": 0.0, "trained_speed": None, "trained_range": None, "latency_ms": latency_ms,
                "max_hz": None,
            }  # fmt: skip

    return TeleopSupervisor

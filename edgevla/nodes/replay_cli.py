"""Play a recorded episode on a robot: the actions of a LeRobot dataset, through the same safety as a policy's.

    edgevla replay datasets/mine --episode 3 --robot so101 --port /dev/ttyACM0
    edgevla replay datasets/mine --robot so101 --sim

The arm goes slowly to where the episode begins, plays it once, moves to rest and is released. At the end it says how
far the arm was from what had been recorded. Ctrl-C stops in order.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

READY_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="LeRobot dataset: a folder or a hub id")
    parser.add_argument("--episode", type=int, default=0, metavar="N", help="which one (default 0)")
    parser.add_argument("--robot", required=True, help="so101, so101_bimanual, aloha, or your own .toml")
    parser.add_argument("--sim", action="store_true", help="on an emulated arm")
    parser.add_argument(
        "--port", action="append", default=[], metavar="[BUS=]PATH", help="serial port; repeat"
    )
    parser.add_argument("--calibration", metavar="ID|FILE", help="LeRobot calibration of this arm")
    parser.add_argument(
        "--joint-units", choices=("degrees", "range100"), help="of the dataset, where it does not say"
    )
    parser.add_argument(
        "--sim-trace", metavar="FILE", type=Path, help="with --sim: write every frame on the lines there"
    )
    parser.add_argument("--log", metavar="DIR", type=Path, help="write run.jsonl and summary.json there")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    from edgevla.errors import UsageError
    from edgevla.nodes.deploy_cli import _report, _Screen, carry_out

    if args.sim and (args.port or args.calibration):
        raise UsageError("--sim makes its own arm; leave out --port and --calibration")
    shown = _Screen(to_stderr=args.json)
    supervisor = _make_supervisor(args, shown)
    summary = carry_out(supervisor)
    return 130 if summary is None else _report(args, summary, shown)


def _make_supervisor(args: argparse.Namespace, shown: Any) -> Any:
    """The class is made here: its base imports ZeroMQ, and `--help` must be instant."""
    import json
    import os
    from types import SimpleNamespace

    from edgevla.dataset import open_dataset
    from edgevla.errors import EdgeVLAError
    from edgevla.execution import Execution, execution_from
    from edgevla.nodes.deploy_cli import _pairs
    from edgevla.nodes.deployment import DeployOptions
    from edgevla.nodes.replay import CHUNK_SIZE, DONE, NEVER_THERE, load_episode
    from edgevla.nodes.supervisor import EMULATOR, EMULATOR_READY_S, Supervisor
    from edgevla.session import Deployment, write_deployment

    options = DeployOptions(
        bundle=Path(f"episode {args.episode} of {args.dataset}"),
        robot=args.robot,
        is_sim=args.sim,
        ports=_pairs(args.port, "--port", default_key=""),
        calibration=args.calibration,
        log_dir=args.log,
        sim_trace=args.sim_trace,
    )

    class ReplaySupervisor(Supervisor):
        """The supervisor of a deployment, with a recorded episode where the policy would be."""

        def _load(self) -> None:
            dataset = open_dataset(args.dataset)  # a dataset that cannot be read moves nothing
            self._fps = float(dataset.info.fps)
            self.bundle = SimpleNamespace(sha256="")  # type: ignore[assignment]
            self.execution = execution_from({"kind": "async", "every": 1})

        def _note(self) -> None:
            note = Deployment(self.session.hex(), os.getpid(), args.robot, None, ["robot", "policy"])
            write_deployment(self.folder, note)

        def _start_emulator(self) -> None:
            words = [
                EMULATOR,
                args.robot,
                f"--link={self.folder / 'ports'}/",
                f"--session={self.session.hex()}",
            ]
            words += [f"--trace={args.sim_trace}"] if args.sim_trace else []
            self._spawn("emulator", words)
            self._await_ready("emulator", "emulator", EMULATOR_READY_S, EdgeVLAError)

        def _fit_bundle(self) -> None:
            self._cameras = []
            load_episode(args.dataset, args.episode, self.robot, args.joint_units)
            (self.folder / "robot.json").write_text(json.dumps(self.robot))

        def _start_policy(self) -> float:
            words = ["edgevla.nodes.replay", f"--dataset={args.dataset}", f"--episode={args.episode}"]
            words += [f"--run-dir={self.folder}", f"--session={self.session.hex()}"]
            words += [f"--robot-json={self.folder / 'robot.json'}"]
            words += [f"--joint-units={args.joint_units}"] if args.joint_units else []
            self._spawn("policy", words)
            return float(self._await_ready("policy", "policy", READY_S, EdgeVLAError)["latency_ms"])

        def _judge(self, latency_ms: float) -> Execution:
            return self.execution

        def _start_arguments(self, latency_ms: float) -> dict[str, Any]:
            return {
                "fps": self._fps, "chunk_size": CHUNK_SIZE, "n_action_steps": 1, "allowed": ["async"],
                "execution": {"kind": "async", "every": 1}, "task": "", "n_steps": None, "guidance_end": 0,
                "max_guidance": 0.0, "trained_speed": None, "trained_range": None, "latency_ms": latency_ms,
                "max_hz": None,
            }  # fmt: skip

    last_words: list[str] = []

    def heard(severity: str, source: str, text: str) -> None:
        shown(severity, source, text)
        if source == "policy" and text.startswith((DONE, NEVER_THERE)):
            last_words.append(text)
            if text.startswith(NEVER_THERE):
                supervisor.failure = text

    supervisor = ReplaySupervisor(options, heard)
    supervisor.stop_when(lambda: bool(last_words))
    return supervisor

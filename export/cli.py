"""Compiles a checkpoint into a policy bundle that runs without PyTorch, and proves that it computes the same.

CHECKPOINT is a training run, one of its checkpoints, or any LeRobot policy folder or hub id:

    edgevla export runs/act -o bundles/act
    edgevla export me/smolvla_cubes -o bundles/smolvla --robot so101 --fps 30 --joint-units degrees \\
        --camera camera1=front --camera camera3=none

The bundle appears whole or not at all. Next: edgevla deploy BUNDLE --robot so101 --sim
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevla.checkpoints import run_name
from edgevla.dataset.reading_options import add_reading_arguments, reading_of
from edgevla.vocabulary import BASE_HELP, camera_help, pairs, size

from .options import JOINT_UNITS, PRECISIONS, TARGETS, ExportOptions

if TYPE_CHECKING:
    from .build import Exported


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="run, checkpoint, policy folder or hub id")
    parser.add_argument("-o", "--output", metavar="DIR", help="the bundle's folder (default: bundles/NAME)")
    parser.add_argument(
        "--dataset", metavar="PATH", help="training data: frames to compare on, and what names and units"
    )
    parser.add_argument("--base", metavar="PATH", default="", help=BASE_HELP)
    parser.add_argument(
        "--robot", metavar="NAME", help="instead of a dataset: the profile whose joints the policy drives"
    )
    parser.add_argument("--fps", type=float, help="instead of a dataset: rate the policy was trained at, 1/s")
    parser.add_argument(
        "--joint-units", choices=JOINT_UNITS, help="what the joints' numbers are, where nothing says so"
    )
    parser.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help=camera_help("a camera of the robot"),
    )
    parser.add_argument(
        "--camera-size",
        action="append",
        default=[],
        metavar="NAME=WxH",
        help="size the camera will deliver, where it differs from the training data's",
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="of encode and denoise (default fp32)"
    )
    parser.add_argument("--target", choices=TARGETS, default="cpu", help="what will run it (default cpu)")
    parser.add_argument("--n-steps", type=int, metavar="N", help="denoise steps by default")
    parser.add_argument(
        "--max-batch",
        type=int,
        default=1,
        metavar="N",
        help="for edgevla serve: up to N robots share one inference (default 1; beyond 8 little is gained)",
    )
    parser.add_argument("--task", help="instruction that is used when a deployment names none")
    parser.add_argument("--name", help="the bundle's name (default: the run's)")
    parser.add_argument(
        "--samples", type=int, default=32, metavar="N", help="observations to compare on (default 32)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise in the comparison")
    parser.add_argument(
        "--adapt-to-pi-aloha",
        action="store_true",
        help="for openpi's Pi0 on ALOHA, which sees mapped joints and grippers",
    )
    parser.add_argument(
        "--allow-parity-failure",
        action="store_true",
        help="write the bundle even if it computes something else than torch; the report says so",
    )
    parser.add_argument(
        "--still-joints",
        choices=("trained", "live"),
        default="trained",
        help="what the policy is told of a joint that never moved in training: where it was (default), or where it is",
    )
    add_reading_arguments(
        parser.add_argument_group("how the dataset is read, where the checkpoint does not know it")
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    from .build import export_checkpoint

    options = ExportOptions(
        base=args.base,
        dataset=args.dataset,
        robot=args.robot,
        fps=args.fps,
        joint_units=args.joint_units,
        cameras=pairs(args.camera, "--camera"),
        camera_sizes={
            name: size(text, f"--camera-size {name}")
            for name, text in pairs(args.camera_size, "--camera-size").items()
        },
        precision=args.precision,
        target=args.target,
        n_steps=args.n_steps,
        max_batch=args.max_batch,
        task=args.task,
        name=args.name,
        n_samples=args.samples,
        seed=args.seed,
        adapt_to_pi_aloha=args.adapt_to_pi_aloha,
        allow_parity_failure=args.allow_parity_failure,
        reading=reading_of(args.features, args.without, args.task_from),
        still_joints=args.still_joints,
    )
    target = Path(args.output) if args.output else Path("bundles") / run_name(args.checkpoint)
    stream = sys.stderr if args.json else sys.stdout
    done = export_checkpoint(
        args.checkpoint, target, options, lambda text: print(text, file=stream, flush=True)
    )
    print(
        json.dumps(_as_json(done), indent=2)
        if args.json
        else "\n".join(_summary(done, args.robot or "so101"))
    )
    return 0


def _summary(done: Exported, robot: str) -> list[str]:
    from .build import chunk_ms
    from .certified import certificate_words
    from .verdict import kept_words, on_the_arm, rule

    m = done.bundle.manifest
    parity, latency = m.parity, m.latency
    assert parity is not None
    size = sum(f.bytes for f in m.files) / 1e6
    verdict = "as torch" if parity.passed else "NOT as torch (allowed by --allow-parity-failure)"
    steps = m.schedule.n_steps if m.schedule is not None else 0
    lines = [
        f"{m.policy} '{m.name}': {size:.1f} MB, {m.fps:g} Hz, chunks of {m.chunk_size}, for {m.target.provider} "
        f"in {'/'.join(dict.fromkeys(m.target.precision.values()))}",
        f"computes {verdict}: {rule(m)}",
        f"against torch: {on_the_arm(m)}",
    ]
    lines += [f"precision: {kept_words(m)}"] if m.lowered is not None else []
    lines.append(f"from raw frames to robot units it {certificate_words(parity)}")
    if parity.batch is not None:
        b = parity.batch
        verdict = "as each alone" if b.passed else "NOT as each alone (allowed by --allow-parity-failure)"
        lines.append(f"up to {b.size} observations in one inference: {verdict}, on {b.n_samples} samples")
    if latency is not None and done.speedup is not None:
        lines.append(
            f"one chunk: {chunk_ms(latency, steps):.1f} ms, eager PyTorch {latency.eager_ms.p50:.1f} ms "
            f"({done.speedup:.2f} times as fast; {latency.machine})"
        )
    lines += [
        f"written to {done.bundle.folder} (see report.html)",
        f"next: {shlex.join(['edgevla', 'deploy', str(done.bundle.folder), '--robot', robot])}",
    ]
    return lines


def _as_json(done: Exported) -> dict[str, Any]:
    return {
        "bundle": str(done.bundle.folder),
        "sha256": done.bundle.sha256,
        "speedup": None if done.speedup is None else round(done.speedup, 3),
        "warnings": list(done.meaning.warnings),
        "manifest": done.bundle.manifest.to_json(),
    }

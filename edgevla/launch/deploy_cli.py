"""Run a policy bundle on a robot, real or emulated.

  edgevla deploy bundles/act --robot so101 --port /dev/ttyACM0 --camera front=0
  edgevla deploy --robot so101 --sim                      the newest bundle, on an emulated arm

Ctrl-C stops in order: the arm moves to its rest pose and is released. A second Ctrl-C is an emergency stop (the arm
freezes), a third lets go. `edgevla monitor` in another terminal shows and steers a running deployment.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgevla.errors import UsageError
from edgevla.launch import foreground
from edgevla.launch.foreground import Screen, carry_out, pairs, report

BUNDLE_PLACES: tuple[str, ...] = (
    "bundles/*",
    "bundle",
    "*/bundle",
    "runs/*/bundle",
    "runs/*/*/bundle",
    "runs/bundles/*",
    "demo-runs/*/bundles/*",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bundle", nargs="?", help="folder made by edgevla export; default: the newest one below here")
    foreground.add_arguments(parser)
    add("--camera", action="append", default=[], metavar="NAME=SOURCE",
        help="device, image folder or video; repeat")  # fmt: skip
    add("--duration", type=float, metavar="S", help="stop in order after so many seconds")
    add("--task", default="", help="what the policy shall do, for policies that read text")
    add("--execution", choices=("sync", "ensemble", "async", "rtc"), help="default: the bundle's")
    add("--n-action-steps", type=int, metavar="N", help="sync: actions executed per inference")
    add("--every", type=int, metavar="N", help="ensemble, async, rtc: policy steps between two requests")
    add("--decay", type=float, help="ensemble: weight exp(-decay * age); the oldest chunk has age 0")
    add("--guidance-end", type=int, metavar="N", help="rtc: step where guidance ends")
    add("--rtc-weights", choices=("zeros", "ones", "linear", "exp"), help="rtc: how guidance fades")
    add("--max-guidance", type=float, help="rtc: largest guidance weight")
    add("--n-steps", type=int, metavar="N", help="denoise steps; default: the bundle's")
    add(
        "--provider",
        choices=("cpu", "cuda", "tensorrt"),
        help="inference engine; default: the bundle's target",
    )
    add("--threads", type=int, default=0, metavar="N", help="of the CPU engine; default: all cores but one")
    add("--seed", type=int, default=0, help="of the policy's noise and of the simulated world")
    add(
        "--servo-hz",
        type=float,
        metavar="HZ",
        help="upper bound of the control loop's rate; default: the robot's",
    )
    add(
        "--inject-delay-ms", type=float, default=0.0, metavar="MS", help="hold every chunk back (for studies)"
    )
    add("--allow-lost-cameras", action="store_true", help="go on without a camera where the policy can")
    add("--allow-blind-cameras", action="store_true", help="start although a camera shows no picture at all")
    add("--sim-task", choices=("rest", "conveyor"), help="with --sim: what the cube does (default: rest)")
    add("--monitor", action="store_true", help="show the monitor in this terminal; leaving it stops")


def run(args: argparse.Namespace) -> int:
    from edgevla.launch.sources import PolicySource
    from edgevla.launch.supervisor import Supervisor

    shown = Screen(to_stderr=args.json)
    options = _options(args)
    bundle = Path(args.bundle) if args.bundle else newest_bundle()
    if args.bundle is None:
        shown("info", "deploy", f"bundle: {bundle} (the newest one here)")
    supervisor = Supervisor(options, PolicySource(bundle, options), shown)
    summary = carry_out(supervisor, _open_monitor(supervisor, shown) if args.monitor else None)
    return report(args, summary, shown)


class _open_monitor(contextlib.AbstractContextManager[None]):
    """The monitor in this terminal, as a process of its own; when it is left, the deployment stops."""

    def __init__(self, supervisor: Any, screen: Screen) -> None:
        self._supervisor, self._screen = supervisor, screen

    def __enter__(self) -> None:
        self._screen.give_way()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgevla", "monitor", f"--run-dir={self._supervisor.folder}"]
        )
        self._supervisor.stop_when(lambda: self._process.poll() is not None)

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()
        self._screen.come_back()


# -- from words to options ---------------------------------------------------------------------------------------


def _options(args: argparse.Namespace) -> Any:
    from edgevla.launch.deployment import DeployOptions

    foreground.check_arguments(args)
    if args.inject_delay_ms < 0:
        raise UsageError(f"--inject-delay-ms {args.inject_delay_ms:g} must not be negative")
    return DeployOptions(
        robot=args.robot,
        is_sim=args.sim,
        ports=args.port,
        cameras=pairs(args.camera, "--camera"),
        execution=_execution(args),
        task=args.task,
        duration_s=args.duration,
        inject_delay_ms=args.inject_delay_ms,
        log_dir=args.log,
        provider=args.provider,
        threads=args.threads,
        seed=args.seed,
        n_steps=args.n_steps,
        calibration=args.calibration,
        servo_hz=args.servo_hz,
        may_lose_cameras=args.allow_lost_cameras,
        may_be_blind=args.allow_blind_cameras,
        sim_task=args.sim_task,
        sim_trace=args.sim_trace,
    )


def _execution(args: argparse.Namespace) -> dict[str, Any]:
    """Only what was said; options that the chosen kind does not have are refused where it is known."""
    given = {
        "kind": args.execution,
        "n_action_steps": args.n_action_steps,
        "every": args.every,
        "decay": args.decay,
        "guidance_end": args.guidance_end,
        "weights": args.rtc_weights,
        "max_guidance": args.max_guidance,
    }
    return {name: value for name, value in given.items() if value is not None}


def newest_bundle(here: Path | None = None) -> Path:
    """
    Raises:
        UsageError: there is none in the usual places.
    """
    root = here or Path()
    found = [m for place in BUNDLE_PLACES for m in root.glob(f"{place}/manifest.json")]
    if not found:
        raise UsageError(
            f"no bundle given and none found in {', '.join(BUNDLE_PLACES[:3])} ...; make one with: edgevla export "
            "CHECKPOINT -o bundles/NAME, or watch everything at once with: edgevla demo"
        )
    return max(found, key=lambda manifest: manifest.stat().st_mtime).parent

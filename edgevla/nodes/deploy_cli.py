"""Run a policy bundle on a robot, real or emulated.

  edgevla deploy bundles/act --robot so101 --port /dev/ttyACM0 --camera front=0
  edgevla deploy --robot so101 --sim                      the newest bundle, on an emulated arm

Ctrl-C stops in order: the arm moves to its rest pose and is released. A second Ctrl-C is an emergency stop (the arm
freezes), a third lets go. `edgevla monitor` in another terminal shows and steers a running deployment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from edgevla.errors import EdgeVLAError, UsageError

if TYPE_CHECKING:
    from edgevla.nodes.supervisor import Supervisor

BUNDLE_PLACES: tuple[str, ...] = (
    "bundles/*",
    "bundle",
    "*/bundle",
    "runs/*/bundle",
    "runs/*/*/bundle",
    "runs/bundles/*",
    "demo-runs/*/bundles/*",
)
MARKS = {"warning": "! ", "error": "!! ", "stop": "!! ", "info": "", "log": ""}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bundle", nargs="?", help="folder made by edgevla export; default: the newest one below here")
    add("--robot", required=True, help="so101, so101_bimanual, aloha, or the path of your own .toml")
    add("--sim", action="store_true", help="emulate the servos and the cameras; everything else is real")
    add(
        "--port",
        action="append",
        default=[],
        metavar="[BUS=]PATH",
        help="serial port; repeat for several buses",
    )
    add(
        "--camera",
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help="device, image folder or video; repeat",
    )
    add("--calibration", metavar="ID|FILE", help="LeRobot calibration of this arm")
    add("--task", default="", help="what the policy shall do, for policies that read text")
    add("--duration", type=float, metavar="S", help="stop in order after so many seconds")
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
    add("--sim-task", choices=("rest", "conveyor"), help="with --sim: what the cube does (default: rest)")
    add(
        "--sim-trace",
        metavar="FILE",
        type=Path,
        help="with --sim: write every frame on the emulated lines there",
    )
    add("--log", metavar="DIR", type=Path, help="write run.jsonl and summary.json there")
    add("--monitor", action="store_true", help="show the monitor in this terminal; leaving it stops")
    add("--json", action="store_true", help="print the summary as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    from edgevla.nodes.supervisor import Supervisor

    shown = _Screen(to_stderr=args.json)
    options = _options(args)
    if args.bundle is None:
        shown("info", "deploy", f"bundle: {options.bundle} (the newest one here)")
    supervisor = Supervisor(options, shown)
    summary = carry_out(supervisor, _open_monitor(supervisor, shown) if args.monitor else None)
    if summary is None:
        shown("info", "deploy", "stopped before the arm was switched on")
        return 130
    return _report(args, summary, shown)


def carry_out(
    supervisor: Supervisor, watcher: contextlib.AbstractContextManager[None] | None = None
) -> dict[str, Any] | None:
    """Starts, watches, stops, and closes whatever happens; the summary, None when Ctrl-C came before the arm was on.

    Raises:
        EdgeVLAError: what a person must act on, after everything was ended.
    """
    supervisor.obey_signals()
    failure: EdgeVLAError | None = None
    was_interrupted = False
    try:
        supervisor.start()
        with watcher or contextlib.nullcontext():
            supervisor.watch()
        supervisor.stop()
    except EdgeVLAError as error:
        failure = error
    except KeyboardInterrupt:
        was_interrupted = True
    summary = supervisor.close()
    if failure is not None:
        raise failure
    return None if was_interrupted else summary


def _report(args: argparse.Namespace, summary: Mapping[str, Any], shown: _Screen) -> int:
    from edgevla.nodes.runlog import describe_summary, plain

    if args.json:
        _write(sys.stdout, json.dumps(plain(dict(summary)), indent=1))
    else:
        _write(sys.stdout, describe_summary(summary))
        if args.log:
            _write(sys.stdout, f"log: {args.log / 'run.jsonl'}")
    if summary["failure"]:
        shown("error", "deploy", str(summary["failure"]))
        return 1
    return 130 if summary["was_interrupted"] else 0


class _Screen:
    """One clear line per event, with the time since the start and who says it.

    While the monitor has the terminal, lines wait; they are shown when it is left.
    """

    def __init__(self, to_stderr: bool) -> None:
        self._began = time.monotonic()
        self._waiting: list[str] | None = None
        self._stream = sys.stderr if to_stderr else sys.stdout

    def __call__(self, severity: str, source: str, text: str) -> None:
        line = f"{time.monotonic() - self._began:8.2f}  {source:<12} {MARKS[severity]}{text}"
        if self._waiting is not None:
            self._waiting.append(line)
            return
        _write(self._stream, line)

    def give_way(self) -> None:
        self._waiting = []

    def come_back(self) -> None:
        lines, self._waiting = self._waiting or [], None
        for line in lines:
            _write(self._stream, line)


def _write(stream: TextIO, line: str) -> None:
    """Past the stream's buffer: Ctrl-C's sentence may come while another is being written, and a buffer refuses that.

    Nothing is raised when the terminal has gone: the arm still has to be brought to rest.
    """
    left = (line + "\n").encode(stream.encoding or "utf-8", "replace")
    with contextlib.suppress(OSError):
        while left:
            left = left[os.write(stream.fileno(), left) :]


class _open_monitor(contextlib.AbstractContextManager[None]):
    """The monitor in this terminal, as a process of its own; when it is left, the deployment stops."""

    def __init__(self, supervisor: Any, screen: _Screen) -> None:
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
    from edgevla.nodes.deployment import DeployOptions

    if args.sim and args.port:
        raise UsageError("--sim makes its own ports; leave out --port")
    if args.sim and args.calibration:
        raise UsageError("--sim has its own calibration; leave out --calibration")
    for option in ("sim_task", "sim_trace"):
        if getattr(args, option) and not args.sim:
            raise UsageError(f"--{option.replace('_', '-')} needs --sim")
    if args.duration is not None and args.duration <= 0:
        raise UsageError(f"--duration {args.duration:g} must be positive")
    if args.inject_delay_ms < 0:
        raise UsageError(f"--inject-delay-ms {args.inject_delay_ms:g} must not be negative")
    return DeployOptions(
        bundle=Path(args.bundle) if args.bundle else newest_bundle(),
        robot=args.robot,
        is_sim=args.sim,
        ports=_pairs(args.port, "--port", default_key=""),
        cameras=_pairs(args.camera, "--camera"),
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


def _pairs(texts: list[str], option: str, default_key: str | None = None) -> dict[str, str]:
    """`NAME=VALUE` texts. default_key: where a bare value belongs (the only bus)."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals and default_key is not None:
            name, value = default_key, text
        if not value or (not name and default_key is None):
            raise UsageError(f"{option} {text}: expected NAME=VALUE")
        if name in found:
            raise UsageError(f"{option} {name} is given twice")
        found[name] = value
    return found


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

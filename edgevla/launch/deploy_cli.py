"""Run a policy bundle on a robot, real or emulated.

  edgevla deploy bundles/act --robot so101 --port /dev/ttyACM0 --camera front=0
  edgevla deploy --robot so101 --sim                      the newest bundle, on an emulated arm
  edgevla deploy bundles/act --robot so101 --dry-run      everything up to torque, without the arm
  edgevla deploy --policy tcp://127.0.0.1:5599/act --robot so101 ...        a policy that `edgevla serve` runs
  edgevla deploy --policy ws://127.0.0.1:8000 --keys map.toml --robot ...   one that an openpi server runs
  edgevla deploy bundles/act --robot so101 --shadow ...   what it would do, beside an arm that nobody touches
  edgevla deploy bundles/act --robot so101 --shadow --leader so101_leader ...   the same; you move it by a leader arm
  edgevla deploy bundles/act --robot so101 --leader so101_leader ...        with a leader arm, to take over by hand

Ctrl-C stops in order: the arm moves to its rest pose and is released. A second Ctrl-C is an emergency stop (the arm
freezes), a third lets go; holding the keys down never does. SIGTERM stops in order, and so does every other signal
that ends a process; under nohup the terminal may close. `edgevla monitor` in another terminal shows and steers a
running deployment; `edgevla service` starts one at boot.

Exit codes: 0 done, or stopped by a signal; 1 failed, or there was an emergency stop, cleared or not; 2 wrong usage;
130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from edgevla.errors import BusError, EdgeVLAError, UsageError, WireError
from edgevla.launch import options
from edgevla.launch.foreground import carry_out, report
from edgevla.launch.options import Number, add_duration, whole
from edgevla.launch.screen import MonitorWindow, Screen, check_terminal
from edgevla.nodes.vitals import use_one_blas_thread
from edgevla.simulated import TASKS, task_named
from edgevla.vocabulary import WeightKind, camera_help, pairs

if TYPE_CHECKING:
    from edgevla.launch.deployment import DeployOptions
    from edgevla.launch.sources import ActionSource, PolicySource

BUNDLE_PLACES: tuple[str, ...] = (
    "bundles/*",
    "bundle",
    "*/bundle",
    "runs/*/bundle",
    "runs/*/*/bundle",
    "runs/bundles/*",
    "demo-runs/*/bundles/*",
)

NOT_YET = 75
"""A port, a camera or an engine that is not there, perhaps not yet (EX_TEMPFAIL of sysexits.h)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bundle", nargs="?", help="folder made by edgevla export; default: the newest one below here")
    add("--policy", metavar="tcp://HOST:PORT[/NAME][,...]",
        help="in place of a bundle: what policy servers run; they are tried in turn, also while running; or "
        "ws://HOST:PORT: what an openpi server runs")  # fmt: skip
    add("--keys", type=Path, metavar="MAP.toml",
        help="what an openpi server's joints, units, rate and pictures are (docs/openpi.md)")  # fmt: skip
    add("--frames", metavar="raw|jpeg[:QUALITY]",
        help="how pictures travel to a policy server; default: raw on this machine, jpeg:90 elsewhere")  # fmt: skip
    options.add_arguments(parser)
    add_duration(parser)
    add("--camera", action="append", default=[], metavar="NAME=SOURCE",
        help=camera_help("a device, image folder or video"))  # fmt: skip
    add("--task", help="what the policy shall do, for policies that read text, else the label of recordings; "
        "with --sim also the name of a simulated task, which brings its text along")  # fmt: skip
    add_leader(parser.add_argument_group("a leader arm, by which a person may take the policy's place"))
    _add_execution(parser)
    add("--n-steps", type=whole(1, 1000), metavar="N", help="denoise steps; default: the bundle's")
    add("--provider", choices=("cpu", "cuda", "tensorrt"),
        help="inference engine; default: the bundle's target")  # fmt: skip
    add("--threads", type=whole(1, 1024), metavar="N", help="of the CPU engine; default: all cores but one")
    add("--seed", type=whole(0, 2**32 - 1), default=0, metavar="N",
        help="of the policy's noise and of the simulated world")  # fmt: skip
    add("--servo-hz", type=Number(0, 1000, above=True), metavar="HZ",
        help="upper bound of the control loop's rate; default: the robot's")  # fmt: skip
    add("--inject-delay-ms", type=Number(0, 60_000), default=0.0, metavar="MS",
        help="hold every chunk back (for studies)")  # fmt: skip
    add("--allow-lost-cameras", action="store_true", help="go on without a camera where the policy can")
    add("--allow-blind-cameras", action="store_true", help="start although a camera shows no picture at all")
    add("--sim-task", metavar="NAME",
        help=f"with --sim: the simulated task: {', '.join(TASKS)} (default: the robot's first)")  # fmt: skip
    add("--shadow", action="store_true",
        help="everything runs but the arm: nothing is written into its servos, it stays limp. Move it by hand (with "
        "--leader: by a leader arm, which it follows): monitor, log and summary hold what the policy would do against "
        "what the arm does")  # fmt: skip
    add("--dry-run", action="store_true",
        help="check all that is checked before torque, say what would be done, and end; an emulated arm stands in for "
        "the real one, whose port is not opened")  # fmt: skip
    add("--observations", type=Number(0, 3600, unit="seconds"), default=60.0, metavar="S",
        help="remember so long what the policy saw; a fault saves its last 30 s (default: 60; 0: none)")  # fmt: skip
    add("--monitor", action="store_true", help="show the monitor in this terminal; leaving it stops")
    add("--unattended", action="store_true",
        help=f"exit code {NOT_YET} where it could not begin and nothing moved, so that systemd tries again")  # fmt: skip


def _add_execution(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--execution", choices=("sync", "ensemble", "async", "rtc"), help="default: the bundle's")
    add("--n-action-steps", type=whole(1, 100_000), metavar="N", help="sync: actions executed per inference")
    add("--every", type=whole(1, 100_000), metavar="N",
        help="ensemble, async, rtc: policy steps between two requests")  # fmt: skip
    add(
        "--decay",
        type=Number(-100, 100),
        help="ensemble: weight exp(-decay * age); the oldest chunk has age 0",
    )
    add("--blend", type=whole(0, 100_000), metavar="N",
        help="sync, async, rtc: blend the first N actions of a chunk with what the one before still holds")  # fmt: skip
    add("--select", type=whole(2, 64), metavar="N",
        help="async: draw N chunks per inference, take the one nearest to the one before")  # fmt: skip
    add("--guidance-end", type=whole(0, 100_000), metavar="N", help="rtc: step where guidance ends")
    add("--rtc-weights", choices=get_args(WeightKind), help="rtc: how guidance fades; default: the bundle's")
    add("--max-guidance", type=Number(0, 1e6), help="rtc: largest guidance weight")


def add_leader(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--leader", metavar="PROFILE",
        help="profile of the leader, or a path to a .toml file; key l in the monitor, or t in edgevla record, changes "
        "who drives")  # fmt: skip
    add("--leader-port", action="append", default=[], metavar="[BUS=]PATH", help="serial port of the leader")
    add("--leader-calibration", metavar="ID|FILE", help="LeRobot calibration of the leader")
    options.add_recording(group)


def run(args: argparse.Namespace) -> int:
    use_one_blas_thread()
    from edgevla.launch.supervisor import Supervisor

    shown = Screen(to_stderr=args.json)
    wanted = options_from(args)
    try:
        source: ActionSource = source_from(args, wanted, shown)
    except WireError as error:
        return _not_yet(args, shown, error)
    if wanted.leader is not None:  # `edgevla/` names the robots' code only as strings
        source = importlib.import_module("edgevla.robots.led_source").LedSource(source, wanted)
    supervisor = Supervisor(wanted, source, shown)
    if args.dry_run:
        from edgevla.launch.rehearsal import rehearse

        return rehearse(supervisor, as_json=args.json)
    try:
        summary = carry_out(supervisor, MonitorWindow(supervisor, shown) if args.monitor else None)
    except UsageError:
        raise
    except (EdgeVLAError, OSError) as error:
        return _not_yet(args, shown, error)
    return report(args, summary, shown)


def _not_yet(args: argparse.Namespace, shown: Screen, error: Exception) -> int:
    """The exit code where nobody sits there, after which it is tried again; a person reads the error itself."""
    if not args.unattended:
        raise error
    shown("error", "deploy", f"{error}; nothing has moved, it may be tried again")
    return NOT_YET


def source_from(args: argparse.Namespace, wanted: DeployOptions, shown: Screen | None = None) -> PolicySource:
    """The bundle, the newest one, or what policy servers run. shown: is told which is the newest; None: it must be said.

    Raises:
        UsageError: both, or none; and what the source itself refuses.
    """
    from edgevla.launch.sources import PolicySource

    if args.policy is not None:
        if args.bundle is not None:
            raise UsageError(f"the bundle {args.bundle} and --policy {args.policy}: leave one of them out")
        return _served(args, wanted)
    if args.keys is not None:
        raise UsageError("--keys is for an openpi server: give --policy ws://HOST:PORT too, or leave it out")
    if args.frames is not None:
        raise UsageError("--frames is for a policy server: give --policy too, or leave it out")
    if args.bundle is not None:
        return PolicySource(Path(args.bundle), wanted)
    if shown is None:
        raise UsageError("say which bundle: at boot nobody sees which one is the newest")
    bundle = newest_bundle()
    shown("info", "deploy", f"bundle: {bundle} (the newest one here)")
    return PolicySource(bundle, wanted)


def _served(args: argparse.Namespace, wanted: DeployOptions) -> PolicySource:
    """The address's scheme says which protocol is spoken there."""
    if args.policy.startswith("ws://"):
        from edgevla.launch.openpi_source import OpenpiSource

        return OpenpiSource(args.policy, args.keys, args.frames, wanted)
    if args.keys is not None:
        raise UsageError(f"--policy {args.policy}: its server says itself what it needs; leave out --keys")
    from edgevla.launch.served import ServedSource

    return ServedSource(args.policy, args.frames, wanted)


# -- from words to options ---------------------------------------------------------------------------------------


def options_from(args: argparse.Namespace) -> Any:
    """What the command line asks for. Raises UsageError: options that contradict each other."""
    from edgevla.launch.deployment import DeployOptions

    options.check_arguments(args)
    if args.monitor and args.unattended:
        raise UsageError("--monitor needs somebody to look at it; leave out --unattended")
    if args.monitor:
        check_terminal()
    check_leader(args)
    if args.dry_run:
        check_rehearsal(args)
    sim_task, task = _simulated(args)
    return DeployOptions(
        robot=args.robot,
        is_sim=args.sim or args.dry_run,
        has_stand_in=args.dry_run and not args.sim,
        ports=args.port,
        cameras=pairs(args.camera, "--camera"),
        execution=_execution(args),
        task=task,
        duration_s=args.duration,
        inject_delay_ms=args.inject_delay_ms,
        log_dir=None if args.dry_run else options.log_place(args),
        observations_s=args.observations,
        provider=args.provider,
        threads=args.threads or 0,
        seed=args.seed,
        n_steps=args.n_steps,
        calibration=args.calibration,
        servo_hz=args.servo_hz,
        may_lose_cameras=args.allow_lost_cameras,
        may_be_blind=args.allow_blind_cameras,
        sim_task=sim_task,
        sim_trace=args.sim_trace,
        is_shadow=args.shadow,
        leader=args.leader,
        leader_ports=args.leader_port,
        leader_calibration=args.leader_calibration,
        recording=args.recorded_into,
    )


def check_leader(args: argparse.Namespace) -> None:
    """
    Raises:
        UsageError: options of a leader arm that is not there, or is emulated.
    """
    for name in ("leader_port", "leader_calibration"):
        option = f"--{name.replace('_', '-')}"
        if getattr(args, name) and args.leader is None:
            raise UsageError(f"{option} is of a leader arm: give --leader too")
        if getattr(args, name) and args.sim:
            raise UsageError(f"--sim makes its own arm; leave out {option}")


def check_rehearsal(args: argparse.Namespace) -> None:
    """
    Raises:
        UsageError: an option that has no effect where nothing runs. BusError: a port that is not there.
    """
    for name in ("monitor", "unattended", "log", "duration", "sim_trace", "leader", "shadow"):
        if getattr(args, name):
            raise UsageError(f"--dry-run runs nothing; leave out --{name.replace('_', '-')}")
    for text in args.port:
        if not Path(text.partition("=")[2] or text).exists():
            raise BusError(f"--port {text}: there is no such port; edgevla doctor lists those that there are")


def _simulated(args: argparse.Namespace) -> tuple[str | None, str]:
    """The simulated task that was asked for, and what the policy is told: `--task`, else the task's own words."""
    named = args.sim_task or (args.task if args.sim and args.task in TASKS else None)
    if named is None:
        return None, args.task or ""
    task = task_named(named)
    return task.name, task.instruction if args.task in (None, task.name) else args.task


def _execution(args: argparse.Namespace) -> dict[str, Any]:
    """Only what was said; options that the chosen kind does not have are refused where it is known."""
    given = {
        "kind": args.execution,
        "n_action_steps": args.n_action_steps,
        "every": args.every,
        "decay": args.decay,
        "blend": args.blend,
        "select": args.select,
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

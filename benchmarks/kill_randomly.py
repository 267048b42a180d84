"""Whoever holds the arm is killed at a random moment, many times; the trace of the bus says what the arm was told.

    python benchmarks/kill_randomly.py [--kills 20] [--robot so101] [--seed 0] [--victim robot ...] [--out FILE.md]
    python benchmarks/kill_randomly.py --n 6                     a handful, over all victims

Real deployments of a small bundle on an emulated arm that has weight and outlives them, as metal does; its servos have
either kind of firmware, in turn. Victims: the robot node (control loop), the supervisor, the policy, the guardian
(SIGKILL); the terminal: a shell's window is closed, with everything that follows from it; and everything: all processes
at once, after which the arm is started again as it was left, with torque on. Moments, at random within each: while
starting up, while torque is switched on, under the policy, while the arm moves to rest after Ctrl-C. A violation is a
broken rule of `tests/runtime/bus_trace.py` (no jump, torque cut at no time but by rule, no fall), a process that is
left over, a traceback, or an ending other than the profile's table has it. Exit code 1 when there was one.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from edgevla.flight.reader import entries, is_run
from edgevla.robots.emulator.servo import GOAL_ENERGISES

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
import bus_trace
from deployment_kit import SO101, Deployment, LivingArm, make_bundle, write_fast_profile
from fault_cases import FOUND_ON

VICTIMS = ("robot", "guardian", "supervisor", "policy", "terminal", "everything")
MOMENTS = ("start-up", "switching on", "running", "stopping")
START_UP_S, SWITCH_ON_S, RUNNING_S, STOPPING_S = 5.0, 0.08, 3.0, 2.6
END_S = 90.0
AGAIN_S = (0.05, 1.5)
"""After everything was killed, the next start comes so much later."""
AFTERWARDS_S = 1.0
"""The arm is watched for so long when all is over: it may fall."""
ESCALATION = {"hold_ms": 400, "park_ms": 2000}
GRAVITY = 0.3
FIRMWARE = {"plain": (), GOAL_ENERGISES: (f"--firmware={GOAL_ENERGISES}",)}
DISTURBED = ("the control loop was silent for", "The arm is held, parked and released")
WATCHDOG = "reports bus watchdog"
"""A machine too busy for the loop's deadlines stops the arm, too, by the same table. Where everything was killed, the
servos' own watchdog is no sign of that."""
ALOHA_ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")


def aloha_joints() -> dict[str, tuple[str, float, float]]:
    joints: dict[str, tuple[str, float, float]] = {}
    for arm in ("left", "right"):
        joints |= {f"{arm}_{name}": ("rad", -1.5, 1.5) for name in ALOHA_ARM}
        joints[f"{arm}_gripper"] = ("unit", 0.0, 1.0)
    return joints


ALOHA_TARGET = [0.2, -0.8, 1.0, 0.1, -0.3, 0.1, 0.7, -0.2, -0.8, 1.0, -0.1, -0.3, -0.1, 0.3]


@dataclass
class Kill:
    """One run: who was killed when, and what the trace says."""

    victim: str
    moment: str
    seed: int
    firmware: str = "plain"
    after_ms: float = 0.0
    ending: str = ""
    was_on: bool = False
    reaction_ms: float | None = None
    n_goals: int = 0
    largest_step: int = 0
    violations: list[str] = field(default_factory=list)
    words: str = ""
    was_disturbed: bool = False


class Arena:
    """What all runs share: the bundle, the profile, and how fast the arm may go."""

    def __init__(self, robot: str, gravity: float, folder: Path, keep: Path | None) -> None:
        self.robot, self.gravity, self.folder, self.keep = robot, gravity, folder, keep
        self.profile = write_fast_profile(folder / f"{robot}_fast.toml", robot, ESCALATION)
        joints = SO101 if robot == "so101" else aloha_joints()
        self.servo_hz = 120.0 if robot == "so101" else 100.0
        more = {} if robot == "so101" else {"joints": joints, "target": ALOHA_TARGET, "fps": 50.0}
        self.bundle = make_bundle(folder / "bundle", cameras=(), **more)
        self.trained_speed = [0.9 * (high - low) / 2 for _, low, high in joints.values()]

    def run(self, victim: str, moment: str, seed: int, firmware: str) -> Kill:
        rng = random.Random(seed)
        kill = Kill(victim, moment, seed, firmware)
        with tempfile.TemporaryDirectory(dir=self.folder) as run_folder:
            # A runtime folder of its own: what is left there afterwards is seen.
            os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="ev-", dir="/tmp")
            place = Path(run_folder)
            arm = LivingArm(
                place, self.profile, f"--gravity={self.gravity}", "--start=rest", *FIRMWARE[firmware]
            )
            runs = [self._deploy(place, arm, victim, seed)]
            try:
                killed_ns = self._go(runs[0], kill, rng)
                if victim == "everything":
                    (place / "again").mkdir()
                    time.sleep(rng.uniform(*AGAIN_S))
                    runs.append(self._deploy(place / "again", arm, victim, seed))
                    self._go_again(runs[-1], kill, rng)
                self._judge(runs[-1], arm, kill, killed_ns)
            except AssertionError as error:
                kill.violations.append(str(error).splitlines()[0])
                kill.words = runs[-1].output[-2000:]
            finally:
                for run in runs:
                    run.close()
                arm.close()
            if kill.violations and self.keep is not None:
                shutil.copytree(run_folder, self.keep / str(seed))
        return kill

    def _deploy(self, folder: Path, arm: LivingArm, victim: str, seed: int) -> Deployment:
        return Deployment(
            folder,
            self.bundle,
            self.profile,
            f"--seed={seed % 1000}",
            in_terminal=victim == "terminal",
            arm=arm,
        )

    def _go(self, run: Deployment, kill: Kill, rng: random.Random) -> int:
        """Monotonic ns of the kill; the run has ended, or all of it was killed."""
        began = time.monotonic()
        if kill.moment == "start-up":
            time.sleep(rng.uniform(0, START_UP_S))
        else:
            run.wait_for("policy ready on" if kill.moment == "switching on" else "robot        running")
            self._pass(run, kill, rng)
        killed_ns = self._kill(run, kill)
        kill.after_ms = (killed_ns / 1e9 - began) * 1000
        self._go_on(run, kill, rng)
        self._await_end(run, kill)
        return killed_ns

    def _go_again(self, run: Deployment, kill: Kill, rng: random.Random) -> None:
        """On the arm as it was left: until the policy has run, or the start was refused; then Ctrl-C."""
        until = time.monotonic() + 60
        while run.is_running and "robot        running" not in run.output and time.monotonic() < until:
            time.sleep(0.02)
        if run.is_running:
            time.sleep(rng.uniform(1.0, 3.0))
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                run.process.send_signal(signal.SIGINT)
        self._await_end(run, kill)

    @staticmethod
    def _await_end(run: Deployment, kill: Kill) -> None:
        try:
            run.wait_for_end(END_S)
        except (psutil.TimeoutExpired, TimeoutError):
            kill.violations.append(f"did not end within {END_S:.0f} s")

    @staticmethod
    def _pass(run: Deployment, kill: Kill, rng: random.Random) -> None:
        if kill.moment == "switching on":
            time.sleep(rng.uniform(0, SWITCH_ON_S))
        elif kill.moment == "running":
            time.sleep(rng.uniform(0, RUNNING_S))
        else:
            time.sleep(1.0)
            run.process.send_signal(signal.SIGINT)
            time.sleep(rng.uniform(0, STOPPING_S))

    @staticmethod
    def _kill(run: Deployment, kill: Kill) -> int:
        """Monotonic ns of the kill; a victim that has not begun yet is waited for, one that has ended is left."""
        until = time.monotonic() + 20
        while kill.victim in ("robot", "guardian", "policy") and kill.victim not in run.known:
            assert time.monotonic() < until, f"there never was a {kill.victim}"
            if not run.is_running:
                break
            run.find()
        now = time.monotonic_ns()
        with contextlib.suppress(psutil.NoSuchProcess, KeyError):
            run.kill(kill.victim)
        return now

    @staticmethod
    def _go_on(run: Deployment, kill: Kill, rng: random.Random) -> None:
        """A policy is started again, and the run goes on until Ctrl-C."""
        if kill.victim != "policy" or kill.moment == "stopping":
            return
        until = time.monotonic() + 30
        while run.is_running and "robot        running" not in run.output and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(rng.uniform(1.0, 4.0))
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            run.process.send_signal(signal.SIGINT)

    def _judge(self, run: Deployment, arm: LivingArm, kill: Kill, killed_ns: int) -> None:
        here = run.left_over(END_S)  # who outlives the supervisor still brings the arm to rest
        time.sleep(AFTERWARDS_S)
        trace = arm.trace()
        verdict = bus_trace.judge(trace, self.profile, self.trained_speed, self.servo_hz)
        kill.violations += verdict.violations
        kill.n_goals, kill.largest_step = verdict.n_goals, verdict.largest_step
        kill.ending = "+".join(sorted(verdict.endings)) or "never on"
        kill.was_on = verdict.is_on_at(killed_ns)
        if kill.was_on:
            sent = [e["t_ns"] for e in trace if e["dir"] == "tx" and e["t_ns"] > killed_ns]
            if sent and kill.victim != "everything":
                kill.reaction_ms = (sent[0] - killed_ns) / 1e6
            if kill.victim == "everything" and not re.search(FOUND_ON, _said(run)):
                kill.violations.append("the next start did not say that it found torque on")
            signs = DISTURBED if kill.victim == "everything" else (*DISTURBED, WATCHDOG)
            kill.was_disturbed = any(words in _said(run) for words in signs)
            if kill.was_disturbed:  # a stalled emulator notes late what it was told, so its times say little
                kill.violations = [
                    v for v in kill.violations if "before the arm was at rest or parked" not in v
                ]
            elif kill.ending not in (wanted := self._wanted(kill)):
                kill.violations.append(f"the arm ended by '{kill.ending}', not by '{' or '.join(wanted)}'")
        if here:
            kill.violations.append(f"left over: {'; '.join(here)}")
        if "Traceback" in run.output:
            kill.violations.append("a traceback was shown")
        lines = [line for line in run.output.splitlines() if "!" in line[:30] or "edgevla deploy:" in line]
        kill.words = " / ".join(" ".join(line.split()) for line in lines[-3:])
        if kill.violations:
            kill.words = _said(run)[-3000:]

    @staticmethod
    def _wanted(kill: Kill) -> Sequence[str]:
        """How the profile's table and the design end a run of which this one was killed with torque on."""
        if kill.victim == "everything":  # the next start takes the arm over, or lowers it first
            return "rest", "park", "park+rest"
        if kill.victim in ("policy", "terminal"):
            return ("rest",)
        if kill.moment == "switching on":  # it may not have left its rest pose yet, or not all of it be on
            return "park", "rest", "never on"
        if kill.victim == "robot" or kill.moment != "stopping":
            return ("park",)
        return ("rest",)  # the loop brings the arm to rest, as it was asked, though its parents are gone


def _said(run: Deployment) -> str:
    """What was shown, and what the log kept when nobody was left to show it to."""
    log = run.log_path
    events = [str(e) for e in entries(log) if e["type"] == "event"] if is_run(log) else []
    summary = run.log_path / "summary.json"
    failure = str(json.loads(summary.read_text())["failure"]) if summary.exists() else ""
    return "\n".join([run.output, *events, failure])


def table(kills: list[Kill], args: argparse.Namespace) -> str:
    rows = [
        "| victim | moment | kills | torque was on | ended at rest / parked / never on | reaction, worst | goals sent | "
        "largest step | violations |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for victim in VICTIMS:
        for moment in MOMENTS:
            some = [k for k in kills if (k.victim, k.moment) == (victim, moment)]
            if not some:
                continue
            endings = Counter(k.ending for k in some)
            reactions = [k.reaction_ms for k in some if k.reaction_ms is not None]
            worst = f"{max(reactions):.0f} ms" if reactions else "-"
            rows.append(
                f"| {victim} | {moment} | {len(some)} | {sum(k.was_on for k in some)} | "
                f"{endings['rest'] + endings['park+rest']} / {endings['park']} / "
                f"{endings['never on']} | {worst} | {sum(k.n_goals for k in some)} | "
                f"{max(k.largest_step for k in some)} | {sum(bool(k.violations) for k in some)} |"
            )
    n_bad = sum(bool(k.violations) for k in kills)
    how_many = f"--n {args.n}" if args.n else f"--kills {args.kills}"
    kinds = " and ".join(dict.fromkeys(k.firmware for k in kills))
    return (
        f"`python benchmarks/kill_randomly.py --robot {args.robot} {how_many} --seed {args.seed}`, "
        f"{datetime.date.today()}, gravity {args.gravity:g}, firmware {kinds}: {len(kills)} kills, "
        f"**{n_bad} with a violation**; "
        f"{sum(k.was_disturbed for k in kills)} runs were stopped by the busy machine as well.\n\n"
        + "\n".join(rows)
        + "\n"
    )


def plan(args: argparse.Namespace) -> list[tuple[str, str, int, str]]:
    """(victim, moment, seed, firmware) of every kill: each victim in turn, then the next moment and kind of firmware."""
    victims, moments = args.victim or VICTIMS, args.moment or MOMENTS
    kinds = list(FIRMWARE) if args.firmware == "both" else [args.firmware]
    n = args.n or args.kills * len(victims)
    found = []
    for k in range(n):
        number, victim = k // len(victims), victims[k % len(victims)]
        turn = number + k if args.n else number  # of a handful, each shall be another one
        seed = args.seed * 1_000_000 + number * 10 + VICTIMS.index(victim)
        firmware = kinds[(turn // len(moments) + turn) % len(kinds)]
        found.append((victim, moments[turn % len(moments)], seed, firmware))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="per victim")
    parser.add_argument("--n", type=int, metavar="N", help="in all, instead")
    parser.add_argument(
        "--gravity", type=float, default=GRAVITY, help="what the arm weighs (default: %(default)s)"
    )
    parser.add_argument("--firmware", choices=(*FIRMWARE, "both"), default="both", help="of the servos")
    parser.add_argument("--robot", choices=("so101", "aloha"), default="so101")
    parser.add_argument("--victim", action="append", choices=VICTIMS)
    parser.add_argument("--moment", action="append", choices=MOMENTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep trace and log of runs with a violation there"
    )
    parser.add_argument("--out", type=Path, help="append the table to this file")
    args = parser.parse_args()
    kills: list[Kill] = []
    with tempfile.TemporaryDirectory(prefix="kill-", dir="/tmp") as folder:
        arena = Arena(args.robot, args.gravity, Path(folder), args.keep)
        for victim, moment, seed, firmware in plan(args):
            kill = arena.run(victim, moment, seed, firmware)
            kills.append(kill)
            print(
                f"{len(kills):4d} seed {seed} {victim:<10} {moment:<12} {firmware:<14} at {kill.after_ms:6.0f} ms: "
                f"{kill.ending}; {kill.words if not kill.violations else ''}",
                flush=True,
            )
            for text in kill.violations:
                print(f"     VIOLATION: {text}", flush=True)
            if kill.violations:
                print(kill.words, flush=True)
    made = table(kills, args)
    print(made)
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(made + "\n")
    return int(any(k.violations for k in kills))


if __name__ == "__main__":
    sys.exit(main())

"""Records demonstrations of a simulated task: its scripted expert on emulated servos, into a LeRobot dataset.

In lock-step, through driver, packets, servos and safety filter, so a minute of demonstrations takes seconds. What is
executed is disturbed, what is recorded as action is not (see `experts.contract`). A demonstration that failed is dropped
and counted. Each has an arm and a world of its own: episode n of a seed is the same whatever was recorded before it, and
however many processes record. Run as

    python -m edgevla.robots.trials.demonstrate --task aloha/transfer_cube --episodes 100 --size 120x160 --output DIR
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.clock import NS_PER_S
from edgevla.errors import EdgeVLAError, UsageError
from edgevla.simulated import TASKS, Task, task_named

from ..profile import Profile, load_profile
from ..safety import SafetyFilter, make_caps
from ..world.contract import Painter, TaskWorld, make_painter, make_world
from .experts.contract import Expert, Manner, make_expert
from .lockstep import LockstepArm

MOST_FAILURES = 0.5
"""An expert that fails more often than this teaches nothing: its task or its setting is wrong."""
ENOUGH = 20
"""So many demonstrations are looked at before that is said."""


@dataclass(frozen=True)
class DemonstrationPlan:
    """What is recorded. size: height and width of the camera's pictures. camera: None takes the task's first.

    disturbance: share of the expert's own that is executed, 0: none. n_steps: of every demonstration; None: until the
    expert is done. jobs: processes that record.
    """

    task: str
    n_episodes: int
    size: tuple[int, int] = (64, 64)
    camera: str | None = None
    seed: int = 0
    disturbance: float = 1.0
    n_steps: int | None = None
    jobs: int = 1


Row = dict[str, Any]


@dataclass(frozen=True)
class Demonstration:
    """rows: one per step, as the dataset has them. outcome: the word of the world's judge. figures: what it measured."""

    rows: list[Row]
    is_good: bool
    outcome: str
    figures: dict[str, float]


def features(profile: Profile, camera: str, size: tuple[int, int]) -> dict[str, Any]:
    """Columns as LeRobot names them, with the camera's age (always 0 here: the picture is drawn at the moment)."""
    from edgevla.dataset.layout import camera_age_key

    names = [joint.name for joint in profile.joints]
    vector = {"dtype": "float32", "shape": (len(names),), "names": names}
    key = f"observation.images.{camera}"
    return {
        "observation.state": vector,
        key: {"dtype": "video", "shape": (*size, 3), "names": ["height", "width", "channels"]},
        camera_age_key(key): {"dtype": "float32", "shape": (1,), "names": None},
        "action": dict(vector),
    }


def demonstrate(
    root: Path, plan: DemonstrationPlan, told: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Records `plan` into a new dataset at `root`. told: hears the number of every demonstration that was saved.

    Returns:
        n_episodes, n_frames, failures (outcome -> how many were dropped), and the mean of what the judge measured.

    Raises:
        UsageError: nobody has written an expert for this task.
        CameraError: there is no such camera, or it cannot be drawn on this machine.
        EdgeVLAError: the expert fails more often than not.
    """
    from edgevla.dataset.writer import DatasetWriter

    task = task_named(plan.task)
    plan = replace(plan, camera=plan.camera or task.cameras[0])
    profile = load_profile(task.world)
    make_expert(task)  # what cannot be is refused before there is a folder
    make_painter(task).open(str(plan.camera), plan.size[1], plan.size[0])
    writer = DatasetWriter(
        root,
        fps=task.fps,
        features=features(profile, str(plan.camera), plan.size),
        robot_type=_robot_type(profile),
        joint_units=None if profile.joint_units == "rad" else profile.joint_units,
    )
    failures: dict[str, int] = {}
    figures: list[dict[str, float]] = []
    with writer, closing(_demonstrations(plan)) as all_shown:
        for shown in all_shown:
            if shown.is_good:
                for row in shown.rows:
                    writer.add_frame(row, task.instruction)
                writer.save_episode()
                figures.append(shown.figures)
                told(writer.n_episodes)
            else:
                failures[shown.outcome] = failures.get(shown.outcome, 0) + 1
                _check_failures(plan.task, sum(failures.values()), writer.n_episodes)
            if writer.n_episodes == plan.n_episodes:
                break
        n_frames = writer.n_frames
    means = {name: float(np.mean([f[name] for f in figures])) for name in (figures[0] if figures else ())}
    return {"n_episodes": plan.n_episodes, "n_frames": n_frames, "failures": failures, "figures": means}


def _robot_type(profile: Profile) -> str:
    """As LeRobot calls the robot."""
    follower = f"{profile.name}_follower"
    return follower if follower in profile.lerobot_types else profile.name


def _check_failures(task: str, n_failed: int, n_good: int) -> None:
    if n_failed >= ENOUGH and n_failed > MOST_FAILURES * (n_failed + n_good):
        raise EdgeVLAError(
            f"the expert of {task} failed {n_failed} of {n_failed + n_good} demonstrations: too many to imitate it; "
            "ask for less --disturbance"
        )


def _demonstrations(plan: DemonstrationPlan) -> Generator[Demonstration, None, None]:
    """Episodes 0, 1, 2, ... in order, for as long as somebody asks."""
    if plan.jobs == 1:
        for episode in count():
            yield show(plan, episode)
    waiting: deque[Any] = deque()
    pool = ProcessPoolExecutor(plan.jobs, get_context("spawn"))
    try:
        for episode in count():
            waiting.append(pool.submit(show, plan, episode))
            if len(waiting) > plan.jobs:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def show(plan: DemonstrationPlan, episode: int) -> Demonstration:
    """One demonstration, from its place to its end."""
    task = task_named(plan.task)
    world = make_world(task, plan.seed, 0.0)
    stage = _Stage(plan, world, LockstepArm(load_profile(task.world), plan.seed, world), _painter(plan, task))
    expert = make_expert(task)
    rows = stage.play(expert, episode)
    verdict = world.verdict()
    return Demonstration(rows, expert.went_well(world), verdict.outcome, dict(verdict.figures))


_PAINTERS: dict[tuple[str, str, tuple[int, int]], Painter] = {}


def _painter(plan: DemonstrationPlan, task: Task) -> Painter:
    """One per process: a scene takes long to load, and is always the same."""
    key = (plan.task, str(plan.camera), plan.size)
    if key not in _PAINTERS:
        _PAINTERS[key] = make_painter(task)
        _PAINTERS[key].open(str(plan.camera), plan.size[1], plan.size[0])
    return _PAINTERS[key]


class _Stage:
    """One arm before one world."""

    def __init__(self, plan: DemonstrationPlan, world: TaskWorld, arm: LockstepArm, painter: Painter) -> None:
        self.plan, self.world, self.arm, self.painter = plan, world, arm, painter
        self.task = world.task
        self._ticks_per_step = max(1, int(arm.profile.rates.servo_hz / self.task.fps + 1e-6))
        self._filter = _make_filter(arm, self.task.fps * self._ticks_per_step)

    def play(self, expert: Expert, episode: int) -> list[Row]:
        rng, manner = np.random.default_rng([self.plan.seed, episode, 11]), expert.manner
        begin_ns = self._begin(manner, episode, rng)
        disturbances = _disturbances(manner, self.plan.disturbance, rng)
        rows: list[Row] = []
        n_steps, n_after = self.plan.n_steps or manner.n_steps, manner.n_after
        for k in range(n_steps):
            self.arm.wait_until(begin_ns + round(k * NS_PER_S / self.task.fps))
            image = self.painter.draw(str(self.plan.camera), *self.plan.size[::-1], self.world.message())
            state = self.arm.exchange(None).position
            goal = np.asarray(expert.goal(self.world, state))
            rows.append(self._row(state, goal, image))
            self._execute(goal + next(disturbances), begin_ns, k)
            if self.plan.n_steps is None and expert.is_done(self.world, state):
                n_after -= 1
                if n_after < 0:
                    break
        self.arm.wait_until(begin_ns + round(len(rows) * NS_PER_S / self.task.fps))
        return rows

    def _begin(self, manner: Manner, episode: int, rng: np.random.Generator) -> int:
        """The arm to where the episode begins it, things to their places; the moment of step 0."""
        head_start_s = rng.uniform(0.0, manner.head_start_s) if manner.head_start_s and episode % 2 else 0.0
        first = self.world.start(episode)
        self.arm.put(first)
        self._filter.begin(first)
        begin_ns = self.arm.clock.now_ns()
        self.world.reset(episode, begin_ns - round(head_start_s * NS_PER_S))
        return begin_ns

    def _execute(self, goal: np.ndarray, begin_ns: int, k: int) -> None:
        """Sends what the safety filter leaves of `goal`, at every tick of the step."""
        for part in range(self._ticks_per_step):
            moment = k + part / self._ticks_per_step
            self.arm.wait_until(begin_ns + round(moment * NS_PER_S / self.task.fps))
            allowed, _ = self._filter.allow(goal.astype(np.float32))
            self.arm.exchange(allowed)

    def _row(self, state: np.ndarray, goal: np.ndarray, image: np.ndarray) -> Row:
        return {
            "observation.state": state,
            "action": goal.astype(np.float32),
            f"observation.images.{self.plan.camera}": image,
            f"camera_age_ms.{self.plan.camera}": 0.0,
        }


def _make_filter(arm: LockstepArm, rate_hz: float) -> SafetyFilter:
    """A rollout's, but for the speeds of training, which there are none of yet."""
    joints, (low, high) = arm.profile.joints, arm.robot.limits()
    caps = make_caps(
        low,
        high,
        np.array([joint.max_velocity for joint in joints]),
        np.array([joint.is_gripper for joint in joints]),
        arm.profile.rates.home_speed,
    )
    return SafetyFilter(caps, 1 / rate_hz)


def _disturbances(manner: Manner, amount: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """(D,) robot units for each step; each remembers a part of the one before it, and all have the same spread."""
    spread = amount * manner.disturbance * (rng.uniform() if manner.is_graded else 1.0)
    kept, fresh = manner.correlation, np.sqrt(1 - manner.correlation**2)
    now = np.zeros(len(spread))
    while True:
        now = kept * now + fresh * rng.standard_normal(len(spread))
        yield spread * now


def parse_size(text: str) -> tuple[int, int]:
    """`120x160` is height and width; `64` is square.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found or min(sizes := (int(found[1]), int(found[2] or found[1]))) < 16:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no size: HEIGHTxWIDTH (120x160) or one number, 16 px at least"
        )
    return sizes


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m edgevla.robots.trials.demonstrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", required=True, metavar="NAME", help=f"one of {', '.join(TASKS)}")
    parser.add_argument("--output", type=Path, required=True, help="folder of the new dataset")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument(
        "--size", type=parse_size, default=(64, 64), metavar="HxW", help="of the pictures; default 64"
    )
    parser.add_argument("--camera", help="default: the task's first")
    parser.add_argument("--seed", type=int, default=0, help="of places and disturbances")
    parser.add_argument(
        "--disturbance", type=float, default=1.0, metavar="SHARE", help="of the expert's own; 0: none"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes that record; the result is the same")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    args = parser.parse_args(argv)

    def told(done: int) -> None:
        if not args.json and (done % 10 == 0 or done == args.episodes):
            print(f"  {done} of {args.episodes} demonstrations", flush=True)

    try:
        result = demonstrate(args.output, _plan(args), told)
    except EdgeVLAError as error:
        print(f"edgevla demonstrate: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(result) if args.json else _closing_words(result))
    return 0


def _plan(args: argparse.Namespace) -> DemonstrationPlan:
    for name, value in (("--episodes", args.episodes), ("--jobs", args.jobs)):
        if value < 1:
            raise UsageError(f"{name} is {value}; it must be 1 or more")
    if args.disturbance < 0:
        raise UsageError(f"--disturbance is {args.disturbance}; it must be 0 or more")
    return DemonstrationPlan(
        args.task, args.episodes, args.size, args.camera, args.seed, args.disturbance, jobs=args.jobs
    )


def _closing_words(result: dict[str, Any]) -> str:
    said = f"{result['n_episodes']} demonstrations, {result['n_frames']} frames"
    failed = ", ".join(f"{n} {outcome}" for outcome, n in result["failures"].items())
    return f"{said}; dropped: {failed or 'none'}"


if __name__ == "__main__":
    sys.exit(main())

"""Records demonstrations of *follow the cube*: the scripted expert on a simulated SO101, into a LeRobot dataset.

In lock-step, so a minute of demonstrations takes seconds. What is executed is disturbed, what is recorded as action
is not: see `expert.py`. Run as `python -m edgevla.robots.trials.demonstrate --task rest --output DIR`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.clock import NS_PER_S
from edgevla.errors import EdgeVLAError
from edgevla.simulated import task_named

from ..world.contract import make_painter
from ..world.follow_cube.kinematics import radians, robot_units
from ..world.follow_cube.places import CONVEYOR, REST, first_posture, place, velocity
from ..world.follow_cube.world import FollowCube
from .expert import NOISE_RAD, STEP_S, Expert
from .lockstep import LockstepArm

N_STEPS = {REST: 55, CONVEYOR: 130}
HEAD_START_S = 0.3
"""A demonstration on the belt begins up to so much later than an episode, so that its end is shown as well."""
FPS = round(1 / STEP_S)


@dataclass(frozen=True)
class Plan:
    """What is recorded. size_px: of the square front camera. noise_rad: what disturbs the execution."""

    task: str
    n_episodes: int
    size_px: int = 64
    camera: str = "front"
    seed: int = 0
    noise_rad: float = NOISE_RAD
    n_steps: int | None = None


def features(names: list[str], camera: str, size_px: int) -> dict[str, Any]:
    """Columns as LeRobot names them, with the camera's age (always 0 here: the picture is drawn at the moment)."""
    from edgevla.dataset.layout import camera_age_key

    vector = {"dtype": "float32", "shape": (len(names),), "names": names}
    key = f"observation.images.{camera}"
    return {
        "observation.state": vector,
        key: {"dtype": "video", "shape": (size_px, size_px, 3), "names": ["height", "width", "channels"]},
        camera_age_key(key): {"dtype": "float32", "shape": (1,), "names": None},
        "action": dict(vector),
    }


def demonstrate(root: Path, plan: Plan, told: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Records `plan` into a new dataset at `root`. told: hears the number of every finished episode.

    Returns:
        n_episodes, n_frames, and the share of the expert's ticks within tolerance after 1.5 s (undisturbed it is 1).
    """
    from edgevla.dataset.writer import DatasetWriter

    arm = LockstepArm(seed=plan.seed)
    names = [joint.name for joint in arm.profile.joints]
    writer = DatasetWriter(
        root,
        fps=FPS,
        features=features(names, plan.camera, plan.size_px),
        robot_type="so101_follower",
        joint_units="degrees",
    )
    shares = []
    with writer:
        for episode in range(plan.n_episodes):
            shares.append(_episode(arm, writer, plan, episode))
            writer.save_episode()
            told(episode + 1)
        n_frames = writer.n_frames
    return {"n_episodes": plan.n_episodes, "n_frames": n_frames, "expert_share": float(np.mean(shares))}


def _episode(arm: LockstepArm, writer: Any, plan: Plan, episode: int) -> float:
    rng = np.random.default_rng([plan.seed, episode, 11])
    task = task_named(plan.task)
    painter = make_painter(task)
    painter.open(plan.camera, plan.size_px, plan.size_px)
    world = FollowCube(task, plan.seed, episode_s=0)
    n_steps = plan.n_steps or N_STEPS[plan.task]
    expert = Expert()
    head_start_s = rng.uniform(0.0, HEAD_START_S) if plan.task == CONVEYOR and episode % 2 else 0.0
    start = place(plan.task, plan.seed, episode) + velocity(plan.task) * head_start_s
    postures = expert.postures(plan.task, start, n_steps)
    arm.put(first_posture(plan.task, plan.seed, episode))
    t0 = arm.clock.now_ns()
    world.reset(episode, t0 - round(head_start_s * NS_PER_S))
    disturbed = np.zeros(6)
    for k in range(n_steps):
        arm.clock.sleep_until(t0 + round(k * NS_PER_S * STEP_S))
        world.step(arm.clock.now_ns(), arm.joint_rad())
        image = painter.draw(plan.camera, plan.size_px, plan.size_px, world.message())
        state = arm.exchange(None).position
        goal = expert.goal(radians(state), postures[k])
        row = {
            "observation.state": state,
            "action": robot_units(goal).astype(np.float32),
            f"observation.images.{plan.camera}": image,
            f"camera_age_ms.{plan.camera}": 0.0,
        }
        writer.add_frame(row, task.instruction)
        disturbed[:5] = plan.noise_rad * rng.standard_normal(5)
        arm.exchange(robot_units(goal + disturbed))
    return world.verdict().figures["share_in_tolerance"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgevla.robots.trials.demonstrate", description=__doc__)
    parser.add_argument("--task", choices=list(N_STEPS), required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of the new dataset")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--size", type=int, default=64, metavar="PX", help="of the square front camera")
    parser.add_argument("--camera", default="front", help="front, top or wrist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    args = parser.parse_args(argv)
    plan = Plan(args.task, args.episodes, args.size, args.camera, args.seed)

    def told(done: int) -> None:
        if not args.json and (done % 10 == 0 or done == plan.n_episodes):
            print(f"  {done} of {plan.n_episodes} demonstrations", flush=True)

    try:
        result = demonstrate(args.output, plan, told)
    except EdgeVLAError as error:
        print(f"edgevla demonstrate: {error}", file=sys.stderr)
        return error.exit_code
    if args.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

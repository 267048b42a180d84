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

from ..world.kinematics import gripper_rad, inverse, radians, robot_units
from ..world.scene import Scene
from ..world.world import BELT_X_M, HOVER_M, TASKS, Task, World, place, velocity
from .expert import NOISE_RAD, OPEN_PERCENT, STEP_S, Expert, start_posture
from .lockstep import LockstepArm

INSTRUCTION = {"rest": "reach for the cube", "conveyor": "follow the cube on the belt"}
N_STEPS = {"rest": 55, "conveyor": 130}
HEAD_START_S = 0.3
"""A demonstration on the belt begins up to so much later than an episode, so that its end is shown as well."""
FPS = round(1 / STEP_S)
HOME_PERCENT = 10.0
"""Of the jaws in the SO101 profile's home pose."""


@dataclass(frozen=True)
class Plan:
    """What is recorded. size_px: of the square front camera. noise_rad: what disturbs the execution."""

    task: Task
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


def first_posture(task: Task, seed: int, episode: int) -> np.ndarray:
    """Where an episode begins (6,): near the ready posture, above some other place with open jaws as the last episode
    left it, or (one in eight) on the way from the profile's home pose, where a deployment finds the arm.

    The jaws matter: were they always half closed at first, a policy would read from them how far an episode is, and
    stay where it is when it finds them open.
    """
    rng = np.random.default_rng([seed, episode, 7])
    posture = start_posture(rng)
    kind = rng.random()
    if kind < 0.5:
        elsewhere = place("rest", seed + 1_000_003, episode)
        if task == "conveyor":  # where the last cube went: far from where the next one comes
            elsewhere = np.array([rng.uniform(*BELT_X_M), rng.uniform(0.0, 0.22), 0.0])
        elsewhere[2] = HOVER_M + rng.uniform(0.0, 0.06)
        posture[:5] = inverse(elsewhere)[:5]
        posture[5] = gripper_rad(np.array(OPEN_PERCENT))
    elif kind < 0.625:
        share = rng.uniform(0.0, 1.0)
        posture[1:4] *= share
        posture[5] += (1 - share) * (gripper_rad(np.array(HOME_PERCENT)) - posture[5])
    return posture


def _episode(arm: LockstepArm, writer: Any, plan: Plan, episode: int) -> float:
    rng = np.random.default_rng([plan.seed, episode, 11])
    scene = Scene(plan.camera, plan.size_px, plan.size_px)
    world = World(plan.task, plan.seed, episode_s=0)
    n_steps = plan.n_steps or N_STEPS[plan.task]
    expert = Expert()
    head_start_s = rng.uniform(0.0, HEAD_START_S) if plan.task == "conveyor" and episode % 2 else 0.0
    start = place(plan.task, plan.seed, episode) + velocity(plan.task) * head_start_s
    postures = expert.postures(plan.task, start, n_steps)
    arm.put(first_posture(plan.task, plan.seed, episode))
    t0 = arm.clock.now_ns()
    world.reset(episode, t0 - round(head_start_s * NS_PER_S))
    disturbed = np.zeros(6)
    for k in range(n_steps):
        arm.clock.sleep_until(t0 + round(k * NS_PER_S * STEP_S))
        world.step(arm.clock.now_ns(), arm.joint_rad())
        message = world.message()
        image = scene.draw(world.joint_rad, message.place_of("cube"), message.place_of("belt"))
        state = arm.exchange(None).position
        goal = expert.goal(radians(state), postures[k])
        row = {
            "observation.state": state,
            "action": robot_units(goal).astype(np.float32),
            f"observation.images.{plan.camera}": image,
            f"camera_age_ms.{plan.camera}": 0.0,
        }
        writer.add_frame(row, INSTRUCTION[plan.task])
        disturbed[:5] = plan.noise_rad * rng.standard_normal(5)
        arm.exchange(robot_units(goal + disturbed))
    return world.judge.verdict().share


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgevla.robots.trials.demonstrate", description=__doc__)
    parser.add_argument("--task", choices=TASKS, required=True)
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

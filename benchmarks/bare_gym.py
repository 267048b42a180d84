"""The same policy without us: gym-aloha's own environment gets its actions, no servos, no bus, no safety filter.

What `edgevla eval BUNDLE --task aloha/... --execution sync` loses or wins by going through driver, packets, servos and
filter shows against this, place by place. It needs gym-aloha in an environment of its own, and neither torch nor a GPU:

    python3.11 -m venv aloha && aloha/bin/pip install gym-aloha==0.1.5 mujoco==3.8.1 -e '.[cpu]'
    aloha/bin/python benchmarks/bare_gym.py BUNDLE --task aloha/transfer_cube --episodes 200 -o bare.jsonl --against EVAL

EVAL: folder of an evaluation of the same bundle, whose first cell is compared. Episodes that the file holds are not
played again.

Actions: gym-aloha wants grippers as metres of its fingers, 0 closed and 1 open, ours are the motor's angle; the
profile's linkage turns one into the other. States are the same. Pictures are drawn by our painter from gym-aloha's
positions: its own have shadows, which no demonstration had.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgevla import messages
from edgevla.bundle import load_bundle
from edgevla.engines import EngineOptions
from edgevla.evaluation.episodes import UNSEEN
from edgevla.evaluation.statistics import Pairs, wilson
from edgevla.robots.profile import load_profile
from edgevla.robots.trials.contest import cameras_of
from edgevla.robots.units import finger_m
from edgevla.robots.world.contract import make_painter
from edgevla.robots.world.physics.aloha import HEIGHT_M, place
from edgevla.runner import BundlePolicy
from edgevla.simulated import task_named
from edgevla.types import Observation

FINGERS_CLOSED_M, FINGERS_OPEN_M = 0.01844, 0.05800
"""gym-aloha's constants of a follower's gripper."""
GRIPPERS = (6, 13)
BEST = 4


class Bare:
    """gym-aloha's environment, laid out by our places of one seed."""

    def __init__(self, task: str, seed: int) -> None:
        import gym_aloha.tasks.sim as sim
        from gym_aloha.env import AlohaEnv

        self.task, self.seed, self._sim = task, seed, sim
        self._env = AlohaEnv(task.partition("/")[2])._env
        # Its own observation draws every camera, with shadows, at full size: 180 ms a step.
        qpos_of = self._env.task.get_qpos
        self._env.task.get_observation = lambda physics: {"qpos": qpos_of(physics)}

    def reset(self, episode: int) -> None:
        at = place(self.task, UNSEEN + self.seed, episode)
        self._sim.BOX_POSE[0] = np.concatenate([(x, y, HEIGHT_M, 1, 0, 0, 0) for x, y in at])
        self._env.reset()

    def step(self, action: np.ndarray) -> float:
        """The reward. action: (14,) as gym-aloha wants it."""
        return float(self._env.step(action).reward)

    @property
    def state(self) -> np.ndarray:
        """float32 (14,): as gym-aloha says it."""
        return np.asarray(self._env.task.get_qpos(self._env.physics), np.float32)

    @property
    def scene(self) -> messages.World:
        """What a painter needs of it."""
        qpos = self._env.physics.data.qpos.astype("<f4")
        nothing = np.zeros(0, "<f4")
        return messages.World(
            joint_rad=nothing, gripper_m=nothing, objects=(), qpos=qpos, episode=0, sim_ns=0
        )


class Player:
    """A bundle before it, chunk after chunk."""

    def __init__(self, bundle: Path, task: str) -> None:
        self.policy = BundlePolicy(load_bundle(bundle), options=EngineOptions(threads=1))
        self.task = task_named(task)
        self._cameras = cameras_of(self.policy.manifest, self.task, {})
        self._painter = make_painter(self.task)
        for camera in self._cameras.values():
            self._painter.open(*camera)
        self._grippers = [load_profile("aloha").joints[k].gripper for k in GRIPPERS]

    def play(self, bare: Bare, episode: int) -> dict[str, Any]:
        bare.reset(episode)
        self.policy.reset()
        n_steps, rewards = round(self.task.episode_s * self.task.fps), [0.0]
        chunk: list[np.ndarray] = []
        for k in range(n_steps):
            if not chunk:
                chunk = list(self._chunk(bare, k))
            rewards.append(bare.step(self._as_gym(chunk.pop(0))))
            if rewards[-1] == BEST:
                break
        return {
            "episode_ix": episode,
            "success": max(rewards) == BEST,
            "max_reward": max(rewards),
            "n_steps": len(rewards) - 1,
        }

    def _chunk(self, bare: Bare, k: int) -> np.ndarray:
        scene = bare.scene
        images = {name: self._painter.draw(*camera, scene) for name, camera in self._cameras.items()}
        seen = Observation(bare.state, images, task=self.task.instruction)
        return self.policy.infer(seen, grid_index=k).actions[: self.policy.manifest.n_action_steps]

    def _as_gym(self, action: np.ndarray) -> np.ndarray:
        out = np.array(action, float)
        for k, gripper in zip(GRIPPERS, self._grippers, strict=True):
            assert gripper is not None
            angle = gripper.closed_rad + out[k] * (gripper.open_rad - gripper.closed_rad)
            out[k] = (finger_m(angle, gripper) - FINGERS_CLOSED_M) / (FINGERS_OPEN_M - FINGERS_CLOSED_M)
        return out


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--task", default="aloha/transfer_cube")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the places, as `edgevla eval --seed`")
    parser.add_argument("--against", type=Path, help="folder of an evaluation by `edgevla eval`")
    args = parser.parse_args()
    there = args.output.read_text().splitlines() if args.output.exists() else []
    done = {e["episode_ix"]: e for e in map(json.loads, there)}
    bare, player = Bare(args.task, args.seed), Player(args.bundle, args.task)
    with args.output.open("a") as out:
        for episode in range(args.episodes):
            if episode not in done:
                done[episode] = player.play(bare, episode)
                print(json.dumps(done[episode]), file=out, flush=True)
    good = [done[k]["success"] for k in range(args.episodes)]
    low, high = wilson(sum(good), len(good))
    print(
        f"bare gym-aloha: {sum(good)} of {len(good)} = {100 * np.mean(good):.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    )
    if args.against:
        cell = json.loads((args.against / "eval_info.json").read_text())["cells"][0]
        ours = {e["episode_ix"]: e["success"] for e in cell["per_episode"]}
        both = [k for k in range(args.episodes) if k in ours]
        pairs = Pairs.of([done[k]["success"] for k in both], [ours[k] for k in both])
        low, high = pairs.interval
        print(f"{cell['name']}: {pairs.both + pairs.gained} of {pairs.n}")
        print(f"only bare {pairs.lost}, only ours {pairs.gained}, McNemar p {pairs.p:.3g}")
        print(f"ours - bare: {100 * pairs.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())

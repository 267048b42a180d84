"""Episodes of a MuJoCo scene: what all worlds with physics have in common.

A world of this kind says which model it has, what drives its joints, how things are laid out and what its judge looks
at; time, episodes and verdicts are kept here. The arm is moved by whoever steps `physics`: the emulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from edgevla.clock import NS_PER_S
from edgevla.simulated import Task

from ..contract import Verdict
from .engine import mujoco
from .joints import Drive, MujocoJoints


class Judge(Protocol):
    """Of one episode. due_ns: when, since it began, the judge wants to look again. is_over: nothing changes any more."""

    @property
    def due_ns(self) -> int: ...

    @property
    def is_over(self) -> bool: ...

    def verdict(self) -> Verdict: ...


class Episodes:
    """See the module. drives: one per joint of the profile.

    episode_s: the next episode begins by itself after so long; None: after the task's length, 0: never.
    """

    _judge: Judge

    def __init__(
        self, task: Task, seed: int, episode_s: float | None, model: Any, drives: Sequence[Drive]
    ) -> None:
        self.task, self.seed, self.episode = task, seed, 0
        self.model, self.data = model, mujoco().MjData(model)
        if model.nkey:
            mujoco().mj_resetDataKeyframe(model, self.data, 0)
        self.physics = MujocoJoints(model, self.data, drives)
        self.verdicts: list[Verdict] = []
        self._episode_ns = round((task.episode_s if episode_s is None else episode_s) * NS_PER_S)
        self._begin_ns: int | None = None
        self._now_ns = 0

    def lay_out(self) -> None:
        """Things to their places of `episode`, at rest, before a new judge."""
        raise NotImplementedError

    def look(self) -> None:
        """Shows the judge what there is to see."""
        raise NotImplementedError

    def put_thing(self, body: str, pose: Sequence[float]) -> None:
        """A free body to a position and quaternion (7,), at rest."""
        joint = self.model.joint(int(self.model.body(body).jntadr[0]))
        self.data.qpos[joint.qposadr[0] : joint.qposadr[0] + 7] = pose
        self.data.qvel[joint.dofadr[0] : joint.dofadr[0] + 6] = 0

    @property
    def sim_ns(self) -> int:
        return 0 if self._begin_ns is None else self._now_ns - self._begin_ns

    def reset(self, episode: int, now_ns: int) -> None:
        self.episode = episode
        self._begin_ns = self._now_ns = now_ns
        self.lay_out()
        self.physics.refresh()

    def step(self, now_ns: int, joint_rad: np.ndarray) -> None:
        """The physics has come to `now_ns`: judges when a policy step is over, begins the next episode when due."""
        if self._begin_ns is None:
            self._begin_ns = now_ns
        self._now_ns = now_ns
        if self.sim_ns >= self._judge.due_ns and not self._judge.is_over:
            self.look()
        if self._episode_ns and self.sim_ns >= self._episode_ns:
            self.verdicts.append(self.verdict())
            self.reset(self.episode + 1, now_ns)

    def verdict(self) -> Verdict:
        return self._judge.verdict()

    def is_decided(self) -> bool:
        return self._judge.is_over

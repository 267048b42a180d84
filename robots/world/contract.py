"""What a simulated world is to those who use it: the emulator, the cameras, trials, demonstrations.

Physics    what moves the joints of an emulated robot instead of its shafts' own mechanics
TaskWorld  things, places and a judge; it is stepped with the arm and never reads a clock
Painter    draws cameras from what a world tells; often in another process
Verdict    how one episode went
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edgevla import messages
from edgevla.simulated import Task

SUCCESS = "success"


@dataclass(frozen=True)
class Verdict:
    """How one episode went.

    time_to_success_s: None unless it was a success. max_reward, sum_reward: as the task counts them, once per policy
    step. place: x y of what lay on the table when the episode began, metres; of two things x y x y. outcome: `success`,
    or the short word by which failures are sorted (`dropped`). figures: what else the task measures, by name.
    """

    is_success: bool
    time_to_success_s: float | None
    max_reward: float
    sum_reward: float
    place: tuple[float, ...]
    outcome: str
    figures: Mapping[str, float] = field(default_factory=dict)


class Physics(Protocol):
    """Moves joints. The servos stay what they are (registers, torque, trajectory generator, heat): once per step each
    says where its shaft shall be and how much of its force it may use; physics says where the joints are, and how hard.

    Arrays are float64 (D,), in the profile's order; angles are the shafts', as `EmulatedRobot.joint_rad` has them.
    step_ns: length of one step. angle_rad: where the joints are. effort: -1..1 of each joint's full force, in the last
    step.
    """

    step_ns: int

    @property
    def angle_rad(self) -> np.ndarray:
        """Where the joints are."""
        ...

    @property
    def effort(self) -> np.ndarray:
        """-1..1 of each joint's full force, in the last step."""
        ...

    def put(self, angle_rad: np.ndarray) -> None:
        """The joints are there, at rest, as by a person's hand."""
        ...

    def step(self, wanted_rad: np.ndarray, strength: np.ndarray, is_stuck: np.ndarray) -> None:
        """One step later. wanted_rad: set points. strength: share (0..1) of full force that may be used, 0: limp."""
        ...


class TaskWorld(Protocol):
    """One task's world. Episode n of a seed is always the same, so that strategies are compared on equal terms.

    seed: of the places. episode: the one that runs. verdicts: of whole episodes, where the world begins the next by
    itself.
    """

    task: Task
    seed: int
    episode: int
    verdicts: list[Verdict]

    @property
    def physics(self) -> Physics | None:
        """Of a world that moves the arm, too; None: the arm's servos move it as they like."""
        ...

    @property
    def sim_ns(self) -> int:
        """Time since the episode began."""
        ...

    def start(self, episode: int) -> np.ndarray:
        """(D,) robot units as in `action`: where the arm begins an episode."""
        ...

    def reset(self, episode: int, now_ns: int) -> None:
        """Everything but the arm to its place of `episode`; a running episode is dropped without a verdict."""
        ...

    def step(self, now_ns: int, joint_rad: np.ndarray) -> None:
        """The arm is at `joint_rad` (D,) at `now_ns`."""
        ...

    def verdict(self) -> Verdict:
        """Of the running episode, up to now."""
        ...

    def is_decided(self) -> bool:
        """Nothing that follows changes the verdict."""
        ...

    def message(self) -> messages.World:
        """All that a painter needs."""
        ...


class Painter(Protocol):
    """Draws the cameras of one task."""

    def open(self, camera: str, width: int, height: int) -> None:
        """
        Raises:
            CameraError: the task has no such camera, or it cannot be drawn so large, or not on this machine.
        """
        ...

    def draw(self, camera: str, width: int, height: int, world: messages.World) -> np.ndarray:
        """uint8 (H, W, 3) RGB, of a camera that was opened with this size."""
        ...


def make_world(task: Task, seed: int, episode_s: float | None = None) -> TaskWorld:
    """episode_s: the next episode begins by itself after so long; None: after the task's length, 0: never."""
    world: TaskWorld = _module(task).make_world(task, seed, episode_s)
    return world


def make_painter(task: Task) -> Painter:
    """Who draws a task's cameras."""
    painter: Painter = _module(task).make_painter(task)
    return painter


def _module(task: Task) -> Any:
    return importlib.import_module(task.module, __package__)

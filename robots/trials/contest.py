"""One episode of any task in lock-step: a bundle under one setting, on emulated servos, in the task's world.

The bundle's graphs, the real control loop, executor, safety filter, driver and packets; only processes and waiting are
left out. Delays are whole ticks of the control loop and exact. Each episode has an arm and a world of its own, and all
that is drawn by chance comes from (seed, episode, request): in whatever order, and in whatever process, it is the same.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.bundle import Fit, fit
from edgevla.clock import NS_PER_S, VirtualClock
from edgevla.descriptions import AboutCamera, AboutRobot
from edgevla.errors import EdgeVLAError, UsageError
from edgevla.evaluation.episodes import UNSEEN, Cell, Conditions, EpisodeResult
from edgevla.evaluation.seams import seams
from edgevla.execution import Async, judge_latency
from edgevla.launch.deployment import DeployOptions, check_fitting, chosen_execution, start_arguments
from edgevla.manifest import Manifest
from edgevla.messages import Chunk, Message, State, World
from edgevla.predictor import Predictor, RtcInputs
from edgevla.simulated import Task, task_named
from edgevla.types import Observation

from ..arm import Robot
from ..describe import describe
from ..emulator.robot import EmulatedRobot
from ..profile import Profile, load_profile
from ..world.contract import Painter, TaskWorld, Verdict, make_painter, make_world
from .closed_loop import ClosedLoop
from .entrants import entrant, open_bundle, open_policy, patiently
from .experts.contract import Expert, make_expert

ARRIVED_SHARE = 0.005
"""The arm is at its start within so much of each joint's range."""
ARRIVE_S = 3.0
REQUESTS_PER_EPISODE = 100_000
STOPPED = "arm stopped"


@dataclass
class Played:
    """One episode. scenes: the world at each policy step, for pictures. counters: of the control loop, of this episode.

    delays_ms: from each request to its chunk; None: it never came. infer_ms: of each inference. seconds: of the episode.
    stopped: why the arm ended it itself.
    """

    verdict: Verdict
    states: list[State] = field(default_factory=list)
    scenes: list[World] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    delays_ms: list[float | None] = field(default_factory=list)
    infer_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str = ""


def options_of(conditions: Conditions, cell: Cell, manifest: Manifest, task: Task) -> DeployOptions:
    """As a deployment under these conditions would be told.

    Raises:
        UsageError: the bundle cannot do that.
    """
    options = DeployOptions(
        robot=profile_of(task).name,
        is_sim=True,
        execution=cell.options,
        task=task.instruction,
        n_steps=conditions.n_steps,
        servo_hz=conditions.servo_hz or manifest.fps,
        sim_task=task.name,
    )
    check_fitting(manifest, options)
    return options


def profile_of(task: Task) -> Profile:
    """The robot of a task's world."""
    return load_profile(task.world)


class Competitor:
    """A bundle under one setting, ready for any number of episodes."""

    def __init__(self, cell: Cell, conditions: Conditions, policy: Predictor, painter: Painter) -> None:
        """
        Raises:
            UsageError, BundleError, CameraError: bundle, setting and task do not belong together.
        """
        self.cell, self.conditions, self.policy, self.painter = cell, conditions, policy, painter
        self.task = task_named(conditions.task)
        self.profile = profile_of(self.task)
        m = policy.manifest
        self.options = options_of(conditions, cell, m, self.task)
        chosen = chosen_execution(m, self.options)
        self.verdict = judge_latency(
            chosen,
            chunk_size=m.chunk_size,
            fps=m.fps,
            latency_ms=cell.delay_ms,
            trained_delay=m.rtc.max_delay if m.rtc else None,
        )
        self.cameras = cameras_of(m, self.task, conditions.cameras)
        for camera in self.cameras.values():
            painter.open(*camera)
        self._expert: Expert | None = make_expert(self.task) if cell.control == "expert" else None
        self._fit: Fit | None = None
        self._loop: ClosedLoop | None = None
        self._world: TaskWorld | None = None
        self._episode = 0
        self._past: dict[int, Observation] = {}
        """Grid moment -> what was seen then, for policies with a history; of the newest moments."""
        self._infer_ms: list[float] = []
        self._delays: list[int | None] = []

    # -- what the policy node does, without its process -------------------------------------------------------------

    def look(self) -> dict[str, np.ndarray]:
        """Images by feature name of the world as it is."""
        assert self._world is not None
        scene = self._world.message()
        images = {name: self.painter.draw(*camera, scene) for name, camera in self.cameras.items()}
        is_black = self.cell.control == "black"
        return {n: np.zeros_like(i) for n, i in images.items()} if is_black else images

    def act(self, seen: Observation, rtc: tuple[Any, ...] | None = None) -> np.ndarray:
        """float32 (T, D), robot units. rtc: as `Policy` has it."""
        assert self._fit is not None
        grid = self._grid_index()
        past = {n: self._past[n] for n in self.policy.missing_moments(grid) if n in self._past}
        seen = replace(seen, state=self._to_policy(seen.state))
        guidance = None if rtc is None else RtcInputs(self._fit.action.to_policy(rtc[0]), *rtc[1:])
        request = self._episode * REQUESTS_PER_EPISODE + len(self._infer_ms)
        began = time.perf_counter()
        result = self.policy.infer(
            seen, grid_index=grid, past=past, n_steps=self.conditions.n_steps, rtc=guidance, chunk_seq=request,
            wanted=patiently(),
        )  # fmt: skip
        self._infer_ms.append(1000 * (time.perf_counter() - began))
        return np.asarray(self._fit.action.to_robot(result.actions), np.float32)

    def act_as_expert(self, seen: Observation) -> np.ndarray:
        """float32 (T, D), robot units: what the task's expert would do now, for as long as it is not asked again."""
        assert self._expert is not None
        assert self._world is not None
        return _tiled(self._expert.goal(self._world, seen.state), self.policy.manifest.chunk_size)

    def _to_policy(self, state: np.ndarray) -> np.ndarray:
        assert self._fit is not None
        seen = np.zeros_like(state) if self.cell.control == "zero-state" else state
        return seen if self._fit.state is None else np.asarray(self._fit.state.to_policy(seen), np.float32)

    def _grid_index(self) -> int:
        """The grid moment of the tick that runs, or the one before it between two."""
        assert self._loop is not None
        plan = self._loop.loop.plan
        assert plan is not None
        return int(self._loop.links.tick // plan.ticks_per_step)

    def _remember(self, state: State) -> None:
        """Keeps what a recorder would have written at this grid moment, as the policy node keeps states and frames."""
        if self.policy.n_moments == 1:
            return
        now = self._grid_index()
        position = self._to_policy(np.asarray(state.position, np.float32))
        kept = {n: o for n, o in self._past.items() if n > now - self.policy.n_moments}
        self._past = {**kept, now: Observation(position, self.look())}

    # -- an episode -------------------------------------------------------------------------------------------------

    def play(self, episode: int) -> Played:
        """One place.

        Raises:
            EdgeVLAError: the policy or the arm failed in a way that no episode should.
        """
        world = make_world(self.task, UNSEEN + self.conditions.seed, episode_s=0)
        loop = self._seated(world, episode)
        self._begin(loop, world, episode)
        played = Played(world.verdict())
        before = Counter(loop.loop.counters)
        plan = loop.loop.plan
        assert plan is not None
        begin_ns = loop.clock.now_ns()
        end_ns = begin_ns + round(self.task.episode_s * NS_PER_S)
        while loop.clock.now_ns() < end_ns and not world.is_decided():
            state = loop.step()
            played.states.append(state)
            if state.mode not in ("running", "holding"):
                played.stopped = state.reason or state.mode
                break
            if state.tick % plan.ticks_per_step == 0:
                self._remember(state)
                played.scenes.append(world.message())
        played.scenes.append(world.message())
        played.verdict = _stopped(world.verdict()) if played.stopped else world.verdict()
        played.counters = Counter(loop.loop.counters) - before
        played.seconds = (loop.clock.now_ns() - begin_ns) / NS_PER_S
        played.infer_ms = list(self._infer_ms)
        period_ms = plan.period_ns / 1e6
        played.delays_ms = [None if ticks is None else ticks * period_ms for ticks in self._delays]
        return played

    def _seated(self, world: TaskWorld, episode: int) -> ClosedLoop:
        """An arm of its own under this policy; limp."""
        loop = ClosedLoop(
            self.act, profile=self.profile, world=world, look=self.look, delay_ticks=self._delay, seed=episode
        )
        if self._fit is None:
            robot = with_cameras(describe(self.profile, loop.robot), self.policy.manifest, self.cameras)
            self._fit = fit(self.policy.manifest, robot)
        self._loop, self._world = loop, world
        if self.cell.control == "misaligned":
            misalign(loop)
        return loop

    def _begin(self, loop: ClosedLoop, world: TaskWorld, episode: int) -> None:
        """The arm to where the episode begins, with torque; then everything else to its place, and the policy's turn."""
        assert self._fit is not None
        start = world.start(episode)
        loop.put(start)
        world.reset(episode, loop.clock.now_ns())
        loop.links.policy = _stay(start, self.policy.manifest.chunk_size)
        m = self.policy.manifest
        execution = self.verdict.execution if self._expert is None else Async(every=1)
        loop.start(start_arguments(m, self._fit, self.options, execution, self.cell.delay_ms))
        _await(loop, start)
        loop.reset()
        world.reset(episode, loop.clock.now_ns())
        loop.links.policy = self.act if self._expert is None else self.act_as_expert
        loop.links.n_inferences = 0
        loop.links.states.clear()
        self.policy.reset()
        self._episode, self._past, self._infer_ms, self._delays = episode, {}, [], []

    def _delay(self, request: int) -> int | None:
        """Ticks until the chunk of a request is heard; None: it never comes."""
        assert self._loop is not None
        plan, c = self._loop.loop.plan, self.conditions
        assert plan is not None
        rng = np.random.default_rng([UNSEEN + c.seed, self._episode, request, 23])
        is_lost, later = rng.random() < c.drop, rng.random() * c.jitter_ms
        ticks = round((self.cell.delay_ms + later) * 1e6 / plan.period_ns)
        self._delays.append(None if is_lost else ticks)
        return self._delays[-1]


def cameras_of(m: Manifest, task: Task, chosen: dict[str, str]) -> dict[str, tuple[str, int, int]]:
    """Feature -> the task's camera, width, height.

    Raises:
        UsageError: the task has no such camera, or the policy none that was chosen for.
    """
    own = own_names(m)
    for name, source in chosen.items():
        if name not in own.values():
            raise UsageError(
                f"--camera {name}={source}: the policy has no such camera; it has {', '.join(own.values()) or 'none'}"
            )
    found = {}
    for feature, name in own.items():
        camera = chosen.get(name, name)
        if camera not in task.cameras:
            raise UsageError(
                f"the policy looks through '{name}', the task {task.name} shows {', '.join(task.cameras)}; say which it "
                f"gets: --camera {name}={task.cameras[0]}"
            )
        height, width = m.features[feature].shape[:2]
        found[feature] = (camera, width, height)
    return found


def emulated(profile: Profile) -> Robot:
    """One that is only asked what it is."""
    arm = EmulatedRobot(profile, VirtualClock(NS_PER_S))
    robot = Robot(profile, arm.memory_ports(), arm.calibration, arm.clock)
    robot.connect()
    return robot


def with_cameras(robot: AboutRobot, m: Manifest, cameras: dict[str, tuple[str, int, int]]) -> AboutRobot:
    """The robot with the cameras of a simulation; see `cameras_of`."""
    found = tuple(
        AboutCamera(name, "sim", cameras[feature][2], cameras[feature][1], m.fps, True, "exact")
        for feature, name in own_names(m).items()
    )
    return replace(robot, cameras=found)


def own_names(m: Manifest) -> dict[str, str]:
    """Camera feature -> the robot's name for it."""
    return {feature: str(m.features[feature].camera_name) for feature in m.cameras}


def _stay(posture: np.ndarray, n: int) -> Any:
    """A policy that wants the arm to be there."""
    chunk = _tiled(posture, n)
    return lambda seen, **_: chunk


def _tiled(goal: np.ndarray, n: int) -> np.ndarray:
    """(D,) -> float32 (n, D)."""
    return np.tile(np.asarray(goal, np.float32), (n, 1))


def _await(loop: ClosedLoop, posture: np.ndarray) -> None:
    """Until the arm is there, or has had its time: it may have sagged while torque was switched on.

    Raises:
        EdgeVLAError: it has stopped.
    """
    width = np.array([joint.max - joint.min for joint in loop.profile.joints])
    until = loop.clock.now_ns() + round(ARRIVE_S * NS_PER_S)
    while loop.clock.now_ns() < until:
        state = loop.step()
        if state.mode not in ("running", "holding"):
            raise EdgeVLAError(f"the arm stopped before the episode began: {state.reason or state.mode}")
        if (np.abs(loop.robot.present_goal() - posture) <= ARRIVED_SHARE * width).all():
            return


def _stopped(verdict: Verdict) -> Verdict:
    """An arm that has ended the episode itself has not succeeded, wherever it stands."""
    return replace(verdict, is_success=False, time_to_success_s=None, outcome=STOPPED)


def misalign(loop: ClosedLoop) -> None:
    """Chunks claim to belong to the moment they arrive, as a naive executor takes them."""
    heard = loop.links.chunks

    def chunks() -> Sequence[Message[Chunk]]:
        found = heard()
        plan = loop.loop.plan
        if plan is None:
            return found
        grid = -(-loop.links.tick // plan.ticks_per_step)
        return [replace(message, body=replace(message.body, grid_index=grid)) for message in found]

    loop.links.chunks = chunks  # type: ignore[method-assign]


class Contest:
    """All cells of one evaluation in this process: policies and painters are opened once, when they are needed."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self.task = task_named(conditions.task)
        self.painter = make_painter(self.task)
        self._policies: dict[str, Predictor] = {}
        self._closing = contextlib.ExitStack()
        self._contestants: dict[str, Competitor] = {}

    def contestant(self, cell: Cell) -> Competitor:
        if cell.key not in self._contestants:
            policy = self._policies.get(cell.bundle) or self._open(cell)
            self._contestants[cell.key] = Competitor(cell, self.conditions, policy, self.painter)
        return self._contestants[cell.key]

    def _open(self, cell: Cell) -> Predictor:
        one = entrant(cell.bundle)
        m = one.manifest

        def robot() -> AboutRobot:
            profile, cameras = profile_of(self.task), cameras_of(m, self.task, self.conditions.cameras)
            return with_cameras(describe(profile, emulated(profile)), m, cameras)

        self._policies[cell.bundle] = open_policy(one, robot, self.conditions.seed, self._closing)
        return self._policies[cell.bundle]

    def close(self) -> None:
        """Lines to policy servers."""
        self._closing.close()

    def play(self, cell: Cell, number: int) -> tuple[EpisodeResult, Played]:
        """One episode of one cell: what is kept of it, and all of it."""
        began = time.perf_counter()
        contestant = self.contestant(cell)
        played = contestant.play(number)
        seed = UNSEEN + self.conditions.seed
        is_body = [not joint.is_gripper for joint in contestant.profile.joints]
        return kept(cell, number, seed, played, is_body, time.perf_counter() - began), played


def one(
    folder: Path,
    task: str,
    execution: str = "sync",
    *,
    control: str = "none",
    delay_ms: float = 0.0,
    n_steps: int | None = None,
    make: type[Competitor] = Competitor,
) -> Competitor:
    """One bundle under one setting, for programs that play episodes themselves."""
    conditions = Conditions(task, 0, n_steps=n_steps)
    policy = open_bundle(folder)
    cell = Cell(str(folder), folder.name, policy.sha256, execution, delay_ms, control)
    return make(cell, conditions, policy, make_painter(task_named(task)))


def kept(
    cell: Cell, number: int, seed: int, played: Played, is_body: Sequence[bool], eval_s: float
) -> EpisodeResult:
    """What the journal keeps of an episode. is_body: per joint, whether it is none of a gripper."""
    verdict, counters = played.verdict, played.counters
    at_seams, within = seams(played.states, is_body)
    return EpisodeResult(
        cell=cell.key,
        episode_ix=number,
        seed=seed,
        success=verdict.is_success,
        sum_reward=float(verdict.sum_reward),
        max_reward=float(verdict.max_reward),
        outcome=verdict.outcome,
        place=tuple(float(v) for v in verdict.place),
        figures={name: float(value) for name, value in verdict.figures.items()},
        time_to_success_s=None if verdict.time_to_success_s is None else float(verdict.time_to_success_s),
        seconds=round(played.seconds, 4),
        eval_s=round(eval_s, 3),
        n_ticks=counters["ticks_running"],
        n_starved=counters["ticks_starved"],
        n_clipped=counters["ticks_clipped"],
        clipped={n.removeprefix("clipped_"): c for n, c in counters.items() if n.startswith("clipped_")},
        delays_ms=tuple(None if ms is None else round(ms, 3) for ms in played.delays_ms),
        infer_ms=tuple(round(ms, 3) for ms in played.infer_ms),
        seams=tuple(at_seams),
        within=tuple(within),
        stopped=played.stopped,
    )

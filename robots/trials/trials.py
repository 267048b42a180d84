"""How often does a policy succeed? One bundle, many unseen places, in lock-step on a virtual clock.

The bundle's graphs, the real control loop, executor, safety filter, driver and packets; only processes and waiting
are left out. A delay is injected in ticks and is exact. The same seed gives the same places to every strategy, so
they can be compared pair by pair. Run as

    python -m edgevla.robots.trials.trials BUNDLE --task conveyor --execution async --delay-ms 200
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.bundle import load_bundle
from edgevla.clock import NS_PER_S
from edgevla.descriptions import AboutCamera
from edgevla.engines import EngineOptions
from edgevla.errors import EdgeVLAError, UsageError
from edgevla.execution import execution_from
from edgevla.messages import Chunk, Message, State
from edgevla.runner import BundlePolicy, RtcInputs
from edgevla.simulated import TASKS, task_named
from edgevla.types import Observation

from ..describe import describe
from ..profile import load_profile
from ..world.contract import Verdict, make_painter
from ..world.follow_cube.kinematics import radians
from ..world.follow_cube.world import FollowCube
from .closed_loop import ClosedLoop
from .sheet import Glimpse, save_sheet

UNSEEN = 500_000_000
"""Seeds of trials start here, those of demonstrations at 0: no place is met twice."""
CONTROLS = ("none", "black", "misaligned")
SHOWN = 2
"""Episodes on a contact sheet."""


@dataclass(frozen=True)
class Trial:
    """One setting. delay_ms: injected between observation and chunk. control: `none`; `black`: the cameras see nothing;
    `misaligned`: a new chunk is started at its action 0 instead of at the action that is due."""

    task: str
    execution: str = "sync"
    delay_ms: float = 0.0
    n_episodes: int = 100
    seed: int = 0
    control: str = "none"
    servo_hz: float | None = 30.0


class BundleArm:
    """A bundle on an emulated SO101: what the policy node does, without its process."""

    def __init__(self, folder: Path, trial: Trial, *, threads: int = 1, n_steps: int | None = None) -> None:
        """n_steps: of the denoise loop; None takes the bundle's."""
        self.trial, self.n_steps = trial, n_steps
        self.policy = BundlePolicy(load_bundle(folder), options=EngineOptions(threads=threads))
        m = self.policy.manifest
        self.task = task_named(trial.task)
        self.world = FollowCube(self.task, UNSEEN + trial.seed, episode_s=0)
        self.painter = make_painter(self.task)
        self.cameras: dict[str, tuple[str, int, int]] = {}
        """Name of a feature -> its camera, width and height."""
        for name in m.cameras:
            feature = m.features[name]
            height, width = feature.shape[:2]
            self.cameras[name] = (str(feature.camera_name), width, height)
            self.painter.open(*self.cameras[name])
        self._fit: Any = None
        self._loop: ClosedLoop | None = None
        self._past: dict[int, Observation] = {}
        """Grid moment -> what was seen then, for policies with a history; of the newest moments."""
        self.glimpses: list[Glimpse] = []
        """Of the newest episode, one per tick."""

    def look(self) -> dict[str, np.ndarray]:
        """Images by feature name of the world as it is."""
        world = self.world.message()
        images = {name: self.painter.draw(*camera, world) for name, camera in self.cameras.items()}
        return {n: np.zeros_like(i) for n, i in images.items()} if self.trial.control == "black" else images

    def act(self, seen: Observation, rtc: tuple[np.ndarray, np.ndarray, float] | None = None) -> np.ndarray:
        """float32 (T, D), robot units. rtc: committed goals (T, D) in robot units, weights (T,), guidance limit."""
        grid = self._grid_index()
        past = {n: self._past[n] for n in self.policy.missing_moments(grid) if n in self._past}
        seen = replace(seen, state=self._to_policy(seen.state))
        guidance = None if rtc is None else RtcInputs(self._fit.action.to_policy(rtc[0]), *rtc[1:])
        result = self.policy.infer(seen, grid_index=grid, past=past, n_steps=self.n_steps, rtc=guidance)
        return np.asarray(self._fit.action.to_robot(result.actions), np.float32)

    def _to_policy(self, state: np.ndarray) -> np.ndarray:
        return state if self._fit.state is None else np.asarray(self._fit.state.to_policy(state), np.float32)

    def _grid_index(self) -> int:
        """The grid moment of the tick that runs, or the one before it between two."""
        assert self._loop is not None
        plan = self._loop.loop.plan
        assert plan is not None
        return int(self._loop.links.tick // plan.ticks_per_step)

    def _remember(self, state: State) -> None:
        """Keeps what a recorder would have written at this tick, as the policy node keeps states and frames."""
        assert self._loop is not None
        plan, tick = self._loop.loop.plan, self._loop.links.tick
        if self.policy.n_moments == 1 or plan is None or tick % plan.ticks_per_step:
            return
        now = tick // plan.ticks_per_step
        position = self._to_policy(np.asarray(state.position, np.float32))
        kept = {n: o for n, o in self._past.items() if n > now - self.policy.n_moments}
        self._past = {**kept, now: Observation(position, self.look())}

    def episode(self, number: int) -> tuple[Verdict, list[State]]:
        """One place: the verdict, and the `state` of every tick."""
        m, trial = self.policy.manifest, self.trial
        ticks = round(trial.delay_ms / 1000 * (trial.servo_hz or 120.0))
        loop = ClosedLoop(
            self.act,
            chunk_size=m.chunk_size,
            execution=execution_from({"kind": trial.execution}),
            fps=m.fps,
            n_action_steps=m.n_action_steps,
            delay_ticks=ticks,
            look=self.look,
            world=self.world,
            profile=load_profile("so101"),
            servo_hz=trial.servo_hz,
            seed=number,
        )
        self._loop, self._past = loop, {}
        if self._fit is None:
            cameras = tuple(
                AboutCamera(camera, "sim", height, width, m.fps, True, "exact")
                for camera, width, height in self.cameras.values()
            )
            self._fit = self.policy.bundle.fits(replace(describe(loop.profile, loop.robot), cameras=cameras))
        if trial.control == "misaligned":
            _misalign(loop)
        speed = m.trained_speed_p999.get("action") if m.trained_speed_p999 else None
        trained = None if speed is None else [float(v) for v in self._fit.action.speeds_to_robot(speed)]
        self.policy.reset()
        loop.put(radians(self.world.start(number)))
        self.world.reset(number, loop.clock.now_ns())
        loop.start(trained_speed=trained, latency_ms=float(trial.delay_ms))
        self.world.reset(number, loop.clock.now_ns())
        self.glimpses = []
        states: list[State] = []
        end_ns = loop.clock.now_ns() + round(self.task.episode_s * NS_PER_S)
        while loop.clock.now_ns() < end_ns and not loop.loop.is_over:
            states.append(loop.step())
            self._remember(states[-1])
            if number < SHOWN:
                self.glimpses.append(Glimpse.of(self.world))
        return self.world.verdict(), states


def _misalign(loop: ClosedLoop) -> None:
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


def wilson(n_good: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share, Wilson's score interval; shares between 0 and 1."""
    if n == 0:
        return 0.0, 1.0
    share, zz = n_good / n, z * z / n
    middle = (share + zz / 2) / (1 + zz)
    half = z * math.sqrt(share * (1 - share) / n + zz / (4 * n)) / (1 + zz)
    return max(0.0, middle - half), min(1.0, middle + half)


def judged(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """n, n_success, success, interval (Wilson, 95 %), share_in_tolerance, rms_mm, time_to_success_s (median).

    What cannot be said of no episodes is None.
    """
    n, n_good = len(verdicts), sum(v.is_success for v in verdicts)
    times = [v.time_to_success_s for v in verdicts if v.time_to_success_s is not None]
    return {
        "n": n,
        "n_success": n_good,
        "success": n_good / n if n else None,
        "interval": list(wilson(n_good, n)),
        "share_in_tolerance": _mean([v.figures["share_in_tolerance"] for v in verdicts]),
        "rms_mm": _root(_mean([v.figures["rms_mm"] ** 2 for v in verdicts])),
        "time_to_success_s": float(np.median(times)) if times else None,
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _root(value: float | None) -> float | None:
    return None if value is None else math.sqrt(value)


def seams(states: Sequence[State]) -> tuple[list[float], list[float]]:
    """Second difference of the body joints' goals, degrees per tick squared (largest joint): at ticks where the chunk
    changed, and at the others."""
    goals = np.array([s.goal[:5] for s in states], float)
    chunks = np.array([-1 if s.chunk_seq is None else s.chunk_seq for s in states])
    if len(goals) < 3:
        return [], []
    bend = np.abs(goals[2:] - 2 * goals[1:-1] + goals[:-2]).max(axis=1)
    is_valid = np.isfinite(bend) & (chunks[:-2] >= 0)
    at_seam = chunks[2:] != chunks[1:-1]
    return list(bend[is_valid & at_seam]), list(bend[is_valid & ~at_seam])


def run_trial(
    folder: Path, trial: Trial, sheet: Path | None = None, told: Callable[[int, int], None] = lambda *_: None
) -> dict[str, Any]:
    """All episodes of one setting. sheet: a picture of the first two. told: hears (episodes done, successes) after each.

    Returns:
        What `judged` says, seam_p95_deg, within_p95_deg, per_episode (booleans, for paired comparison).
    """
    arm = BundleArm(folder, trial)
    verdicts: list[Verdict] = []
    at_seam: list[float] = []
    within: list[float] = []
    shown: list[list[Glimpse]] = []
    for number in range(trial.n_episodes):
        verdict, states = arm.episode(number)
        verdicts.append(verdict)
        shown += [arm.glimpses] if arm.glimpses else []
        seam, other = seams(states)
        at_seam += seam
        within += other
        told(number + 1, sum(v.is_success for v in verdicts))
    if sheet is not None:
        save_sheet(sheet, shown)
    return {
        "task": trial.task,
        "execution": trial.execution,
        "delay_ms": trial.delay_ms,
        "control": trial.control,
        **judged(verdicts),
        "seam_p95_deg": float(np.percentile(at_seam, 95)) if at_seam else None,
        "within_p95_deg": float(np.percentile(within, 95)) if within else None,
        "per_episode": [v.is_success for v in verdicts],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgevla.robots.trials.trials", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--execution", choices=("sync", "ensemble", "async", "rtc"), default="sync")
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--control", choices=CONTROLS, default="none")
    parser.add_argument("--servo-hz", type=float, default=30.0)
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="draw the first episodes there")
    args = parser.parse_args(argv)
    trial = Trial(
        args.task, args.execution, args.delay_ms, args.episodes, args.seed, args.control, args.servo_hz
    )
    try:
        if trial.n_episodes < 1:
            raise UsageError(f"--episodes is {trial.n_episodes}; it must be at least 1")
        result = run_trial(args.bundle, trial, args.sheet)
    except EdgeVLAError as error:
        print(f"edgevla trials: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

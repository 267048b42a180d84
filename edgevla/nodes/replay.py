"""A recorded episode in the place of a policy: one `infer` in, one `chunk` of recorded actions out.

The arm first goes to where the episode begins (slowly, as safety has it); then the recorded actions follow on the
grid, one per row. Runs as `python -m edgevla.nodes.replay`; the supervisor's side is `launch/episode.py`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zmq

from edgevla.descriptions import AboutRobot, read_robot
from edgevla.errors import EdgeVLAError, UsageError
from edgevla.joint_units import joint_map
from edgevla.messages import Infer, Message
from edgevla.nodes.stand_in import StandIn
from edgevla.nodes.vitals import stop_when_asked
from edgevla.types import ACTION, STATE

CHUNK_SIZE = 30
NEAR_SHARE = 0.03
"""Of a joint's range: this near to the first state the episode may begin."""
PATIENCE_S = 15.0
SETTLE_S = 0.5
DONE = "the episode has been replayed"
NEVER_THERE = "the arm did not reach where the episode begins"
"""How the last words of a replay begin: its supervisor listens for them."""


@dataclass(frozen=True)
class Recorded:
    """One episode in robot order and units. state, action: float32 (T, D). near: (D,), see NEAR_SHARE."""

    fps: float
    state: np.ndarray
    action: np.ndarray
    near: np.ndarray
    names: list[str]


def load_episode(path: str, episode: int, robot: AboutRobot, joint_units: str | None = None) -> Recorded:
    """
    Raises:
        DatasetError, UsageError: no such dataset, units that nobody stated.
        BundleError: the recorded joints are not this robot's.
    """
    from edgevla.dataset import open_dataset
    from edgevla.dataset.facts import facts_of

    dataset = open_dataset(path)
    check_units(dataset.root, joint_units)
    facts = facts_of(dataset, joint_units)
    if facts.joint_units is None and any(joint.unit in ("deg", "range100") for joint in robot.joints):
        hint = f" (they look like {facts.units_guess}: {facts.units_reason})" if facts.units_guess else ""
        raise UsageError(
            f"{path} does not say whether its joints are degrees or -100..100{hint}; "
            "say --joint-units degrees or range100"
        )
    at = dataset.episodes[episode]
    rows = slice(at.from_index, at.from_index + at.length)
    values = {}
    for name in (STATE, ACTION):
        fit = joint_map(facts.features[name], robot.joints, robot.robot)
        values[name] = fit.to_robot(dataset.columns[name][rows])
    near = np.array([NEAR_SHARE * (joint.max - joint.min) for joint in robot.joints], np.float32)
    names = [joint.name for joint in robot.joints]
    return Recorded(float(dataset.info.fps), values[STATE], values[ACTION], near, names)


def check_units(root: Path, joint_units: str | None) -> None:
    """The recording's own word stands: other units would drive the arm to other places.

    Raises:
        UsageError: --joint-units contradicts what the dataset states.
    """
    from edgevla.dataset.stated import read_stated

    stated = read_stated(root).joint_units
    if joint_units is not None and stated is not None and joint_units != stated:
        raise UsageError(
            f"{root} was recorded in {stated}; --joint-units {joint_units} would drive the arm to other places. "
            "Leave it out"
        )


class Player:
    """Which recorded action belongs to which grid moment. Knows no sockets."""

    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded
        self.begin: int | None = None
        self._first_asked: int | None = None
        self._errors: list[np.ndarray] = []
        self.is_lost = False

    def chunk(self, grid: int, state: np.ndarray) -> np.ndarray:
        """float32 (CHUNK_SIZE, D) for the moments from `grid` on; state: (D,) measured there."""
        r = self.recorded
        if self._first_asked is None or grid < self._first_asked:  # a new rollout: from the beginning
            self._first_asked, self.begin, self._errors = grid, None, []
        if self.begin is None:
            away = np.abs(state - r.action[0])
            if (away <= r.near).all():
                self.begin = grid
            elif (grid - self._first_asked) / r.fps > PATIENCE_S:
                self.is_lost = True
        if self.begin is None:
            return np.repeat(r.action[:1], CHUNK_SIZE, axis=0)
        row = grid - self.begin
        if row < len(r.state):
            self._errors.append(state - r.state[row])
        return r.action[np.clip(row + np.arange(CHUNK_SIZE), 0, len(r.action) - 1)]

    def is_done(self, grid: int) -> bool:
        r = self.recorded
        return self.begin is not None and grid - self.begin >= len(r.action) + SETTLE_S * r.fps

    def words(self) -> str:
        """What was replayed, and how far the arm was from what was recorded."""
        r = self.recorded
        error = np.sqrt(np.mean(np.square(self._errors), axis=0)) if self._errors else np.zeros(len(r.names))
        worst = int(np.argmax(error / r.near))
        return (
            f"{DONE}: {len(r.action)} steps; the arm was where it had been within "
            f"{error[worst]:.2f} ({r.names[worst]}, RMS, the worst joint)"
        )

    def never_there(self, state: np.ndarray) -> str:
        """Why the episode could not begin: the joint that is farthest from its first goal."""
        r = self.recorded
        i = int(np.argmax(np.abs(state - r.action[0]) / r.near))
        return (
            f"{NEVER_THERE} within {PATIENCE_S:g} s: {r.names[i]} is at {state[i]:.1f}, "
            f"the episode begins at {r.action[0, i]:.1f}"
        )


class ReplayNode(StandIn):
    def __init__(self, ctx: zmq.Context, folder: Path | str, session: bytes, player: Player) -> None:
        super().__init__(ctx, folder, session, "a recording")
        self._player, self._has_told = player, False
        self.is_ready("a recorded episode", latency_ms=1.0)

    def answer(self, request: Message[Infer]) -> None:
        player, grid, state = self._player, request.body.grid_index, request.body.state
        actions = np.ascontiguousarray(player.chunk(grid, state), np.float32)
        self.send_chunk(request, actions, "replay", player.recorded.fps)
        if not self._has_told and (player.is_done(grid) or player.is_lost):
            self._has_told = True
            if player.is_lost:
                self.publisher.event("error", "replay_lost", player.never_there(state))
            else:
                self.publisher.event("info", "replay_done", player.words())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m edgevla.nodes.replay", description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--episode", type=int, required=True)
    parser.add_argument("--joint-units", choices=("degrees", "range100"))
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--session", required=True)
    parser.add_argument("--robot-json", type=Path, required=True, help="the robot's describe, as JSON")
    args = parser.parse_args()
    stopping, ctx = stop_when_asked(), zmq.Context()
    try:
        robot = read_robot(args.robot_json)
        recorded = load_episode(args.dataset, args.episode, robot, args.joint_units)
        node = ReplayNode(ctx, args.run_dir, bytes.fromhex(args.session), Player(recorded))
    except EdgeVLAError as error:
        print(f"replay: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    try:
        node.serve(stopping)
    finally:
        node.close()
        ctx.term()
    return 0


if __name__ == "__main__":
    sys.exit(main())

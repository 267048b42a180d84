"""A leader arm in the place of a policy: one `infer` in, one `chunk` out, in which the follower does as the leader.

Torque of the leader is off. A chunk holds the leader's present pose for a while; the next one replaces it a moment
later, so the follower trails by a grid step or two, and holds when the leader falls silent.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import zmq

from edgevla.clock import NS_PER_MS, NS_PER_S
from edgevla.errors import BusError, ConfigError, EdgeVLAError
from edgevla.messages import Infer, Message
from edgevla.nodes.stand_in import NO_TIME, StandIn
from edgevla.nodes.vitals import stop_when_asked, tell_at_once

from .arm import Robot
from .calibration import find_calibration
from .links import Driver
from .ports import open_ports
from .profile import Profile, load_profile
from .rollout import held_actions

BUDGET_NS = 12 * NS_PER_MS
STALE_US = 100_000
WARM_UPS = 20
STILL_NS, MOVED_SHARE = 5 * NS_PER_S, 0.01
"""A leader that nobody has moved by this share of a joint's range, so long after it was asked first."""


STILL = (
    f"the leader has not moved in its first {STILL_NS // NS_PER_S} s. If the arm in your hands is stiff, it has the "
    "follower's torque: stop, and exchange --port and --leader-port"
)


def check_pair(leader: Profile, follower: Profile) -> None:
    """
    Raises:
        ConfigError: they are not a leader and a follower, or have not the same joints in the same units.
    """
    for profile, kind, option in ((leader, "leader", "--leader"), (follower, "follower", "--robot")):
        if profile.kind != kind:
            raise ConfigError(f"{option}: {profile.name} is a {profile.kind} arm, not a {kind}")
    names = [[joint.name for joint in profile.joints] for profile in (leader, follower)]
    if names[0] != names[1]:
        raise ConfigError(
            f"{leader.name} cannot lead {follower.name}: its joints are {', '.join(names[0])}, the follower's "
            f"{', '.join(names[1])}"
        )
    for ours, theirs in zip(leader.joints, follower.joints, strict=True):
        if ours.unit != theirs.unit:
            raise ConfigError(
                f"{leader.name} cannot lead {follower.name}: joint {ours.name} is in {ours.unit} there and in "
                f"{theirs.unit} here"
            )


class LeaderNode(StandIn):
    """Reads the leader when it is asked. folder: the run directory of the deployment. fps: rate of the grid.

    node: `policy`, or `leader` where there is a policy, too.
    """

    def __init__(
        self, ctx: zmq.Context, folder: Path | str, session: bytes, leader: Robot, fps: float, node: Driver
    ) -> None:
        super().__init__(ctx, folder, session, "the leader", node)
        self._leader, self._fps, self._name = leader, fps, f"leader {leader.profile.name}"
        self._told_ns = 0
        low, high = leader.limits()
        self._least_move = MOVED_SHARE * np.abs(high - low)
        self._first: tuple[int, np.ndarray] | None = None
        """When it was asked first, and its pose then."""
        self._is_looked_at = False
        """Whether it has moved, or it was said that it has not."""

    def warm_up(self) -> None:
        """Measures how long a reading takes, then is ready."""
        spent = []
        for _ in range(WARM_UPS):
            begun = time.monotonic_ns()
            self._leader.exchange(None, begun + BUDGET_NS)
            spent.append(time.monotonic_ns() - begun)
        self.is_ready(self._name, sorted(spent)[len(spent) // 2] / NS_PER_MS)

    def all_counters(self) -> Mapping[str, int]:
        return {**self.counters, **self._leader.counters()}

    def answer(self, request: Message[Infer]) -> None:
        begun = time.monotonic_ns()
        reading = self._leader.exchange(None, begun + BUDGET_NS)
        age_us = int(reading.position_age_us.max())
        if age_us > STALE_US:  # no chunk: the follower holds
            self.counters["leader_stale"] += 1
            self._tell(f"the leader has not been read for {age_us / 1000:.0f} ms; the follower holds")
            return
        pose = self._leader.present_goal().astype(np.float32)
        self._look_for_a_hand(pose, begun)
        actions = np.tile(pose, (held_actions(self._fps), 1))
        timing = replace(NO_TIME, encode=time.monotonic_ns() - begun)
        age_ns = age_us * 1000
        self.send_chunk(request, actions, self._name, self._fps, state_age_ns=age_ns, timing_ns=timing)

    def _look_for_a_hand(self, pose: np.ndarray, now_ns: int) -> None:
        """Whether it has moved at all; what a person should hear where it has not: then it may be the wrong arm."""
        if self._is_looked_at:
            return
        if self._first is None:
            self._first = now_ns, pose
        since_ns, first = self._first
        is_moved = bool((np.abs(pose - first) > self._least_move).any())
        if is_moved or now_ns - since_ns > STILL_NS:
            self._is_looked_at = True
            if not is_moved:
                self.publisher.event("warning", "leader_still", STILL)

    def _tell(self, text: str) -> None:
        now = time.monotonic_ns()
        if now >= self._told_ns:
            self._told_ns = now + 5 * NS_PER_S
            self.publisher.event("warning", "leader_stale", text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="edgevla.robots.leader_node", description=__doc__)
    parser.add_argument("--leader", required=True)
    parser.add_argument("--port", action="append", default=[])
    parser.add_argument("--calibration")
    parser.add_argument("--fps", type=float, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--session", required=True)
    parser.add_argument("--node", choices=get_args(Driver), default="policy")
    args = parser.parse_args()
    try:
        return _run(args)
    except EdgeVLAError as error:
        print(f"leader: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def _run(args: argparse.Namespace) -> int:
    stopping = stop_when_asked()
    profile = load_profile(args.leader)
    ports = open_ports(profile, args.port, "--leader-port")
    leader = Robot(profile, ports, find_calibration(profile, args.calibration), say=tell_at_once)
    ctx = zmq.Context()
    node = None
    try:
        leader.connect()
        node = LeaderNode(ctx, args.run_dir, bytes.fromhex(args.session), leader, args.fps, args.node)
        node.warm_up()
        node.serve(stopping)
    except BusError as error:
        raise BusError(f"leader arm: {error}", port=error.port) from error
    finally:
        if node is not None:
            node.close()
        leader.close()
        ctx.term()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A leader arm in the place of a policy: one `infer` in, one `chunk` out, in which the follower does as the leader.

Torque of the leader is off. A chunk holds the leader's present pose for a while; the next one replaces it a moment
later, so the follower trails by a grid step or two, and holds when the leader falls silent. The robot node, the
guardian, safety, cameras, recorder and monitor see no difference to a policy.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from edgevla.clock import NS_PER_MS, NS_PER_S
from edgevla.codec import Message
from edgevla.errors import BusError, ConfigError, EdgeVLAError
from edgevla.nodes.vitals import heartbeat, is_orphan
from edgevla.wire import CommandServer, Publisher, Router, endpoint

from .arm import Robot
from .calibration import find_calibration
from .opening import open_ports
from .profile import Profile, load_profile

HOLD_S = 0.5
"""Length of a chunk: longer than any hiccup, shorter than anybody would want a lost leader to be followed."""
BUDGET_NS = 12 * NS_PER_MS
STALE_US = 100_000
WARM_UPS = 20
TIMING = ("assemble", "prompt", "encode", "denoise", "decode", "wait", "network")


def check_pair(leader: Profile, follower: Profile) -> None:
    """Raises ConfigError when the two arms do not have the same joints in the same units."""
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


def chunk_size(fps: float) -> int:
    return max(2, round(HOLD_S * fps))


class LeaderNode:
    """Reads the leader when it is asked. folder: the run directory of the deployment. fps: rate of the grid."""

    def __init__(
        self, ctx: zmq.Context, folder: Path | str, session: bytes, leader: Robot, fps: float
    ) -> None:
        self._leader, self._fps = leader, fps
        self._publisher = Publisher(ctx, endpoint(folder, "policy"), session, "policy")
        self._router = Router(ctx, endpoint(folder, "policy", "infer"), session, "policy")
        self._server = CommandServer(ctx, endpoint(folder, "policy", "commands"), session, "policy")
        self._beat_ns = 0
        self._told_ns = 0
        self.counters: Counter[str] = Counter()

    @property
    def router_socket(self) -> zmq.Socket:
        return self._router.socket

    def warm_up(self) -> None:
        """Measures how long a reading takes, then is ready."""
        spent = []
        for _ in range(WARM_UPS):
            begun = time.monotonic_ns()
            self._leader.exchange(None, begun + BUDGET_NS)
            spent.append(time.monotonic_ns() - begun)
        self._server.about = {
            "node": "policy",
            "provider": f"leader {self._leader.profile.name}",
            "latency_ms": sorted(spent)[len(spent) // 2] / NS_PER_MS,
        }

    def step(self, now_ns: int) -> None:
        newest: Message | None = None
        for _, message in self._router.poll():
            if message.type == "infer":
                newest = message
        if newest is not None:
            self._answer(newest)
        for command in self._server.poll():
            command.answer(False, f"the leader does not know '{command.action}'")
        if now_ns - self._beat_ns >= NS_PER_S // 5:
            self._beat_ns = now_ns
            counters = {**self.counters, **self._leader.counters()}
            self._publisher.send("heartbeat", heartbeat("ready", counters))

    def _answer(self, request: Message) -> None:
        begun = time.monotonic_ns()
        reading = self._leader.exchange(None, begun + BUDGET_NS)
        age_us = int(reading.position_age_us.max())
        if age_us > STALE_US:  # no chunk: the follower holds
            self.counters["leader_stale"] += 1
            self._tell(f"the leader has not been read for {age_us / 1000:.0f} ms; the follower holds")
            return
        goal = self._leader.present_goal().astype(np.float32)
        timing = dict.fromkeys(TIMING, 0)
        timing["encode"] = time.monotonic_ns() - begun
        fields: dict[str, Any] = {
            "request_id": request["request_id"],
            "grid_index": request["grid_index"],
            "step_ns": round(NS_PER_S / self._fps),
            "n_valid": chunk_size(self._fps),
            "policy": f"leader {self._leader.profile.name}",
            "task": request["task"],
            "is_guided": False,
            "n_steps": 0,
            "noise_seed": 0,
            "image_age_ns": 0,
            "state_age_ns": age_us * 1000,
            "timing_ns": timing,
        }
        self._publisher.send(
            "chunk", fields, [np.tile(goal, (chunk_size(self._fps), 1))], request.observed_ns
        )
        self.counters["chunks"] += 1

    def _tell(self, text: str) -> None:
        now = time.monotonic_ns()
        if now >= self._told_ns:
            self._told_ns = now + 5 * NS_PER_S
            self._publisher.event("warning", "leader_stale", text)

    def close(self) -> None:
        for part in (self._publisher, self._router, self._server):
            part.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="edgevla.robots.leader_node", description=__doc__)
    parser.add_argument("--leader", required=True)
    parser.add_argument("--port", action="append", default=[])
    parser.add_argument("--calibration")
    parser.add_argument("--fps", type=float, required=True)
    parser.add_argument("--joint-units", choices=("degrees", "range100"))
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--session", required=True)
    args = parser.parse_args()
    try:
        return _run(args)
    except EdgeVLAError as error:
        print(f"leader: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def _run(args: argparse.Namespace) -> int:
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    profile = load_profile(args.leader)
    if profile.kind != "leader":
        raise ConfigError(f"{profile.name} is a {profile.kind}, not a leader arm")
    if args.joint_units:
        profile = profile.with_units(args.joint_units)
    leader = Robot(
        profile, open_ports(profile, args.port, "--leader-port"), find_calibration(profile, args.calibration)
    )
    ctx = zmq.Context()
    node = None
    try:
        leader.connect()
        node = LeaderNode(ctx, args.run_dir, bytes.fromhex(args.session), leader, args.fps)
        node.warm_up()
        poller = zmq.Poller()
        poller.register(node.router_socket, zmq.POLLIN)
        while not stopping.is_set() and not is_orphan():
            poller.poll(20)
            node.step(time.monotonic_ns())
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

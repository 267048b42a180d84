"""A node in the place of the policy node: a leader arm, a recorded episode. One `infer` in, one `chunk` out.

The robot node, the guardian, safety, cameras, the recorder and the monitor see no difference to a policy.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from edgevla.clock import NS_PER_S
from edgevla.codec import Message
from edgevla.messages import TIMING
from edgevla.nodes.vitals import heartbeat, is_orphan
from edgevla.wire import CommandServer, Publisher, Router, endpoint


def chunk_fields(request: Message, policy: str, n_valid: int, step_ns: int, **known: Any) -> dict[str, Any]:
    """Fields of the `chunk` that answers `request` where no policy ran. known: those that are not zero after all."""
    return {
        "request_id": request["request_id"],
        "grid_index": request["grid_index"],
        "step_ns": step_ns,
        "n_valid": n_valid,
        "policy": policy,
        "task": request["task"],
        "is_guided": False,
        "n_steps": 0,
        "noise_seed": 0,
        "image_age_ns": 0,
        "state_age_ns": 0,
        "timing_ns": dict.fromkeys(TIMING, 0),
        **known,
    }


class StandIn(ABC):
    """Its sockets and its turn. folder: the run directory, or `inproc`. who: "the leader", for refusals."""

    def __init__(self, ctx: zmq.Context, folder: Path | str, session: bytes, who: str) -> None:
        self._who = who
        self.publisher = Publisher(ctx, endpoint(folder, "policy"), session, "policy")
        self._router = Router(ctx, endpoint(folder, "policy", "infer"), session, "policy")
        self._server = CommandServer(ctx, endpoint(folder, "policy", "commands"), session, "policy")
        self._beat_ns = 0
        self.counters: Counter[str] = Counter()

    @abstractmethod
    def answer(self, request: Message) -> None:
        """Sends the chunk for one `infer`, or none: the arm then holds."""

    def all_counters(self) -> Mapping[str, int]:
        return self.counters

    def is_ready(self, provider: str, latency_ms: float) -> None:
        """Tells the supervisor."""
        self._server.about = {"node": "policy", "provider": provider, "latency_ms": latency_ms}

    def send_chunk(
        self, request: Message, actions: np.ndarray, policy: str, fps: float, **known: Any
    ) -> None:
        """actions: float32 (T, D), robot units, for the moments from the request's on. known: see `chunk_fields`."""
        fields = chunk_fields(request, policy, len(actions), round(NS_PER_S / fps), **known)
        self.publisher.send("chunk", fields, [actions], request.observed_ns)
        self.counters["chunks"] += 1

    def step(self, now_ns: int) -> None:
        requests = [message for _, message in self._router.poll() if message.type == "infer"]
        if requests:
            self.answer(requests[-1])  # who asked again has given up the ones before
        for command in self._server.poll():
            command.answer(False, f"{self._who} does not know '{command.action}'")
        if now_ns - self._beat_ns >= NS_PER_S // 5:
            self._beat_ns = now_ns
            self.publisher.send("heartbeat", heartbeat("ready", self.all_counters()))

    def serve(self, stopping: threading.Event) -> None:
        """Turns until `stopping` is set or the supervisor has died."""
        poller = zmq.Poller()
        poller.register(self._router.socket, zmq.POLLIN)
        while not stopping.is_set() and not is_orphan():
            poller.poll(20)
            self.step(time.monotonic_ns())

    def close(self) -> None:
        for part in (self.publisher, self._router, self._server):
            part.close()

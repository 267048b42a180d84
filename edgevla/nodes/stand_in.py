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
from edgevla.descriptions import AboutPolicy
from edgevla.messages import Chunk, Infer, Message, Timing, holds
from edgevla.nodes.vitals import heartbeat, is_orphan
from edgevla.wire import CommandServer, Publisher, Router, endpoint

NO_TIME = Timing(assemble=0, prompt=0, encode=0, denoise=0, decode=0, wait=0, network=0)


def answer_to(
    request: Infer,
    policy: str,
    n_valid: int,
    step_ns: int,
    *,
    is_guided: bool = False,
    state_age_ns: int = 0,
    timing_ns: Timing = NO_TIME,
) -> Chunk:
    """The chunk where no policy ran."""
    return Chunk(
        request_id=request.request_id,
        grid_index=request.grid_index + request.ahead,
        step_ns=step_ns,
        n_valid=n_valid,
        policy=policy,
        task=request.task,
        is_guided=is_guided,
        n_steps=0,
        noise_seed=0,
        image_age_ns=0,
        state_age_ns=state_age_ns,
        timing_ns=timing_ns,
        ahead=request.ahead,
    )


class StandIn(ABC):
    """Its sockets and its turn. folder: the run directory, or `inproc`. who: "the leader", for refusals.

    node: its name among the others, where it is not in the policy's place.
    """

    def __init__(
        self, ctx: zmq.Context, folder: Path | str, session: bytes, who: str, node: str = "policy"
    ) -> None:
        self._who = who
        self.publisher = Publisher(ctx, endpoint(folder, node), session, node)
        self._router = Router(ctx, endpoint(folder, node, "infer"), session, node)
        self._server = CommandServer(ctx, endpoint(folder, node, "commands"), session, node)
        self._beat_ns = 0
        self.counters: Counter[str] = Counter()

    @abstractmethod
    def answer(self, request: Message[Infer]) -> None:
        """Sends the chunk for one `infer`, or none: the arm then holds."""

    def all_counters(self) -> Mapping[str, int]:
        """What goes into its heartbeat."""
        return self.counters

    def is_ready(self, provider: str, latency_ms: float) -> None:
        """Tells the supervisor."""
        self._server.about = AboutPolicy(node="policy", provider=provider, latency_ms=latency_ms)

    def send_chunk(
        self, request: Message[Infer], actions: np.ndarray, policy: str, fps: float, **known: Any
    ) -> None:
        """actions: float32 (T, D), robot units, for the moments from the request's on. known: see `answer_to`."""
        chunk = answer_to(request.body, policy, len(actions), round(NS_PER_S / fps), **known)
        self.publisher.send(chunk, [actions], request.observed_ns)
        self.counters["chunks"] += 1

    def step(self, now_ns: int) -> None:
        requests = [message for _, message in self._router.poll() if holds(message, Infer)]
        if requests:
            self.answer(requests[-1])  # who asked again has given up the ones before
        for command in self._server.poll():
            command.answer(False, f"{self._who} does not know '{command.action}'")
        if now_ns - self._beat_ns >= NS_PER_S // 5:
            self._beat_ns = now_ns
            self.publisher.send(heartbeat("ready", self.all_counters()))

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

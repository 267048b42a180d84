"""A policy that infers at an openpi server: what stands in a bundle's place in a robot's policy node.

The same rules as for EdgeVLA's own servers (`serve/remote.py`): nothing waits longer than somebody wants the answer, a
server that does not answer is looked for until then, and meanwhile the arm plays what it has and holds. openpi's servers
answer no ping while they infer, so how long is too long is measured: three times the slowest inference before the arm
was armed, at least a second.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Mapping
from itertools import chain, repeat
from typing import Any

import numpy as np

from edgevla.clock import NS_PER_MS, NS_PER_S
from edgevla.errors import BundleError, EngineError, WireError
from edgevla.predictor import InferenceResult, RtcInputs, Wanted
from edgevla.serve.openpi.address import WsAddress
from edgevla.serve.openpi.declared import ServerMap
from edgevla.serve.openpi.line import CONNECT_NS, OpenpiLine
from edgevla.serve.openpi.packing import pack, unpack
from edgevla.types import Observation

PAUSES_NS = tuple(ms * NS_PER_MS for ms in (50, 100, 200, 400))
"""Between two attempts to connect."""
LEAST_PATIENCE_NS, PATIENCE = NS_PER_S, 3
WARM_UP_NS = 300 * NS_PER_S
"""openpi's server compiles its network at the first request."""


class OpenpiPolicy:
    """One question at a time; `close` may come from another thread.

    Raises:
        WireError: nobody answers within patience_s, or who does speaks another protocol.
    """

    def __init__(self, server: WsAddress, keys: ServerMap, patience_s: float) -> None:
        self.manifest, self.sha256 = keys.manifest, keys.sha256
        self.counters: Counter[str] = Counter()
        self._server, self._keys = server, keys
        self._line: OpenpiLine | None = None
        self._left: str | None = None
        self._patience_ns = WARM_UP_NS
        self._is_closing, self._asking = threading.Event(), threading.Lock()
        try:
            self._joined(time.monotonic_ns() + round(patience_s * NS_PER_S))
        except WireError as error:
            if error.reason != "timeout":
                raise
            raise WireError(
                f"nothing that speaks openpi's protocol is at {server} ({self._left}); start the server, or the ssh "
                "that leads to it",
                "timeout",
            ) from error

    # -- what the node asks -----------------------------------------------------------------------------------------

    @property
    def provider(self) -> str:
        return f"the openpi server at {self._server}"

    @property
    def n_moments(self) -> int:
        return 1

    def missing_moments(self, grid_index: int) -> list[int]:
        return []

    def reset(self) -> None:
        """There is nothing to forget."""

    def warm_up(self, n: int = 3) -> list[int]:
        """ns of each of n inferences on blank input, there and back; from then on it is known how long they take."""
        spent = []
        for i in range(n):
            began = time.monotonic_ns()
            self.infer(
                self._keys.blank(), grid_index=0, past={}, n_steps=None, rtc=None, chunk_seq=i,
                wanted=Wanted(began + WARM_UP_NS),
            )  # fmt: skip
            spent.append(time.monotonic_ns() - began)
        self._patience_ns = max(LEAST_PATIENCE_NS, PATIENCE * max(spent[1:] or spent))
        return spent

    def infer(
        self,
        observation: Observation,
        *,
        grid_index: int,
        past: Mapping[int, Observation],
        n_steps: int | None,
        rtc: RtcInputs | None,
        chunk_seq: int,
        wanted: Wanted,
    ) -> InferenceResult:
        """
        Raises:
            WireError: nobody answered until the deadline, or what is no chunk of this map.
            EngineError: the server says that it failed. BundleError: what its protocol cannot carry.
        """
        if rtc is not None or n_steps is not None:
            what = "real-time chunking" if rtc is not None else "a number of denoise steps"
            raise BundleError(f"openpi's protocol cannot carry {what}, and it is not left out in silence")
        data = pack(self._keys.request(observation))
        with self._asking:
            while True:
                line, news = self._joined(wanted.deadline_ns)
                sent_ns = time.monotonic_ns()
                answer = line.ask(data, min(wanted.deadline_ns, sent_ns + self._patience_ns))
                if answer is not None:
                    break
                self._leave("does not answer")
            spent_ns = time.monotonic_ns() - sent_ns
            if isinstance(answer, str):
                self.counters["requests_refused"] += 1
                self._leave("answered an error")
                raise EngineError(f"openpi server {self._server} answered an error: {_last_line(answer)}")
            actions, reply = self._checked(answer)
        return InferenceResult(actions, _timing(reply, spent_ns), 0, chunk_seq, 0, False, grid_index, news)

    def close(self) -> None:
        """Ends a question that is still open."""
        self._is_closing.set()
        with self._asking:
            self._drop()

    # -- the server ---------------------------------------------------------------------------------------------------

    def _joined(self, until_ns: int) -> tuple[OpenpiLine, tuple[str, ...]]:
        """The line in use, or a new one; what there is to say about it.

        Raises:
            WireError: nobody answered until then.
        """
        if self._line is not None and not self._line.is_lost:
            return self._line, ()
        self._drop()  # one that the server closed between two questions is no news
        for pause_ns in chain(PAUSES_NS, repeat(PAUSES_NS[-1])):
            if (line := self._try(until_ns)) is not None:
                left, self._left, self._line = self._left, None, line
                self.counters["server_joins"] += 1
                return line, () if left is None else (f"openpi server {self._server} answers again",)
            left_ns = until_ns - time.monotonic_ns()
            if left_ns <= 0 or self._is_closing.wait(min(pause_ns, left_ns) / NS_PER_S):
                break
        raise WireError(f"openpi server {self._server} {self._left}; looking for it", "timeout")

    def _try(self, until_ns: int) -> OpenpiLine | None:
        """
        Raises:
            WireError: who answers there speaks another protocol, or runs another policy than the map says.
        """
        line = OpenpiLine(self._server, self._is_closing)
        least_ns = max(CONNECT_NS, self._patience_ns // PATIENCE)
        said = line.open(min(until_ns, time.monotonic_ns() + least_ns))
        if said is None:
            self._left = self._left or line.why
            line.close()
            return None
        metadata = _unpacked(said)
        if not isinstance(metadata, dict):
            wrong: str | None = f"began with what is no openpi metadata: {metadata}"
        else:
            wrong = self._keys.differs(metadata)
        if wrong is not None:
            line.close()
            self._left = wrong
            raise WireError(f"the server at {self._server} {wrong}", "type")
        return line

    def _checked(self, answer: bytes) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Raises:
            WireError: it is no chunk of this map; the line is left.
        """
        reply = _unpacked(answer)
        made = self._keys.chunk(reply) if isinstance(reply, dict) else f"what is no map: {reply}"
        if isinstance(made, np.ndarray):
            return made, reply
        self.counters["replies_refused"] += 1
        self._leave(f"answered {made}")
        raise WireError(f"openpi server {self._server} answered {made}; the chunk is not used", "type")

    def _leave(self, why: str) -> None:
        self._left = why
        self.counters["servers_left"] += 1
        self._drop()

    def _drop(self) -> None:
        if self._line is not None:
            self._line.close()
        self._line = None


def _unpacked(message: str | bytes) -> Any:
    """What it holds; a sentence where it is no message."""
    try:
        return f"a text: {_last_line(message)}" if isinstance(message, str) else unpack(message)
    except WireError as error:
        return str(error)


def _last_line(text: str) -> str:
    """Of a traceback that is what says it; printable."""
    last = (text.strip().splitlines() or ["nothing"])[-1]
    return "".join(c if c.isprintable() else "?" for c in last)[:300]


def _timing(reply: Mapping[str, Any], spent_ns: int) -> dict[str, int]:
    """The server's own figure, where it has one that can be, counts as `denoise`; the rest was the network."""
    server, policy = reply.get("server_timing"), reply.get("policy_timing")
    inside = 0
    for said in (server, policy):
        ms = said.get("infer_ms") if isinstance(said, dict) else None
        if isinstance(ms, (int, float, np.number)) and math.isfinite(ms) and ms >= 0:
            inside = min(spent_ns, round(float(ms) * NS_PER_MS))
            break
    return {"prompt": 0, "encode": 0, "denoise": inside, "decode": 0, "network": spent_ns - inside}

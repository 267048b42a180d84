"""A policy that infers at a policy server: what stands in a bundle's place in a robot's policy node.

Observations are put together on the robot, and all that an inference needs travels with it, so it does not matter which
server answers, or whether it has just been started. A server that does not answer is left; the next address is tried,
round and round until the request's deadline. Meanwhile the arm plays what it has, and then holds: nothing here waits
longer than somebody wants the answer.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat

import numpy as np
import zmq

from edgevla.clock import NS_PER_MS, NS_PER_S
from edgevla.descriptions import AboutPolicy, AboutRobot
from edgevla.errors import BundleError, EngineError, WireError
from edgevla.fields import Guidance
from edgevla.manifest import Manifest
from edgevla.predictor import InferenceResult, RtcInputs, Wanted, blank_observation
from edgevla.seam_methods import ONE_PER_REQUEST
from edgevla.serve.line import ServerLine, policy_of
from edgevla.serve.pictures import RAW, Encoding, jpeg_cost
from edgevla.serve.transport import Address
from edgevla.server_messages import Answer, Moment, Refusal, Request, SentFrame
from edgevla.types import Observation

CONNECT_NS, JOIN_NS = 700 * NS_PER_MS, 4 * NS_PER_S
"""For being connected, and from there for being admitted; then the next address has its turn. Keys and admission take
six ways there and back, which on a long line is seconds; where nobody takes the connection, it is soon known."""
PAUSES_NS = (50 * NS_PER_MS, 100 * NS_PER_MS, 200 * NS_PER_MS, 400 * NS_PER_MS)
"""After a round in which nobody answered."""
WARM_UP_NS = 60 * NS_PER_S
ELSEWHERE = ("draining", "busy")
"""Refusals after which another server may do it."""


@dataclass(frozen=True)
class Served:
    """A policy as its server describes it. sha256: of the manifest there."""

    manifest: Manifest
    sha256: str
    provider: str


def look_up(ctx: zmq.Context, servers: Sequence[Address], session: bytes, patience_s: float) -> Served:
    """The policy of the first server that answers.

    Raises:
        WireError: none does in time. UsageError: it has no such policy. BundleError: its manifest cannot be used.
    """
    until = time.monotonic_ns() + round(patience_s * NS_PER_S)
    while True:
        barred, hint = [], ""
        for server in servers:
            line = ServerLine(ctx, server, session, "robot", threading.Event())
            try:
                is_there = _reached(line, until)
                about = policy_of(line, min(until, time.monotonic_ns() + JOIN_NS)) if is_there else None
            finally:
                line.close()
            if about is not None:
                return _served(about, server)
            barred += [f"{server} {line.barred}"] if line.barred else []
            hint = hint or line.hint
        if len(barred) == len(servers):
            raise WireError(f"policy server {'; '.join(barred)}", "refused")
        if time.monotonic_ns() >= until:
            names = " nor at ".join(map(str, servers))
            raise WireError(
                f"no policy server answers at {names}; start one there: edgevla serve BUNDLE{hint}", "timeout"
            )


def _reached(line: ServerLine, until_ns: int) -> bool:
    return line.reach(min(until_ns, time.monotonic_ns() + CONNECT_NS))


def _served(about: AboutPolicy, server: Address) -> Served:
    manifest = Manifest.from_json(about.manifest, f"the manifest of {server}")
    return Served(manifest, about.sha256, about.provider)


class RemotePolicy:
    """One policy, at one of several servers. One question at a time; `close` may come from another thread.

    robot: what it tells of itself when it joins. session: the deployment's.
    """

    def __init__(
        self,
        ctx: zmq.Context,
        servers: Sequence[Address],
        served: Served,
        robot: AboutRobot,
        session: bytes,
        *,
        seed: int = 0,
        encoding: Encoding = RAW,
    ) -> None:
        self.manifest, self.sha256, self.seed = served.manifest, served.sha256, seed
        self._engine = served.provider
        self.counters: Counter[str] = Counter()
        self._ctx, self._servers, self._robot, self._session = ctx, tuple(servers), robot, session
        self._encoding = encoding
        self._turn = 0
        self._line: ServerLine | None = None
        self._left: str | None = None
        self._is_closing, self._asking = threading.Event(), threading.Lock()

    # -- what the node asks -----------------------------------------------------------------------------------

    @property
    def provider(self) -> str:
        """The engine, and whose: the server's in use, or the first's."""
        server = self._servers[0] if self._line is None else self._line.address
        return f"{self._engine} at {server}, pictures {self._encoding}"

    @property
    def n_moments(self) -> int:
        return max([output.history or 1 for output in self.manifest.graphs["encode"].outputs], default=1)

    def missing_moments(self, grid_index: int) -> list[int]:
        """All of them, every time: the server remembers nothing."""
        return list(range(grid_index - self.n_moments + 1, grid_index))

    def reset(self) -> None:
        """There is nothing to forget."""

    def warm_up(self, n: int = 3) -> list[int]:
        """ns of each of n inferences on blank input, there and back."""
        blank = blank_observation(self.manifest)
        past = dict.fromkeys(self.missing_moments(0), blank)
        spent = []
        for i in range(n):
            began = time.monotonic_ns()
            self.infer(
                blank, grid_index=0, past=past, n_steps=None, rtc=None, chunk_seq=i,
                wanted=Wanted(began + WARM_UP_NS),
            )  # fmt: skip
            spent.append(time.monotonic_ns() - began)
        return spent

    def weigh(self, seen: Observation) -> str | None:
        """What JPEG does to the actions for these pictures, in words; None where pictures travel as they are."""
        if self._encoding.kind == "rgb8":
            return None
        chunks, sizes = [], []
        for encoding in (RAW, self._encoding):
            request, payloads = self._request({0: seen}, 0, None, None, 0, encoding)
            wanted = Wanted(time.monotonic_ns() + WARM_UP_NS)
            chunks.append(self._ask(request, payloads, 0, wanted).actions)
            sizes.append(sum(payload.nbytes for payload in payloads) / 1000)
        return jpeg_cost(self.manifest, self._encoding, chunks[0], chunks[1], sizes[0], sizes[1])

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
            WireError: no server answered until the deadline, or one answered what is no answer.
            BundleError: the server refuses the request. EngineError: the inference failed there.
        """
        moments = {**past, grid_index: observation}
        request, payloads = self._request(moments, grid_index, n_steps, rtc, chunk_seq, self._encoding)
        return self._ask(request, payloads, grid_index, wanted)

    def _ask(
        self, request: Request, payloads: Sequence[np.ndarray], grid_index: int, wanted: Wanted
    ) -> InferenceResult:
        """The answer to one request, from whichever server; the request says its times when it leaves."""
        empty_ns = time.monotonic_ns() + wanted.buffered_ns
        with self._asking:
            while True:
                line, news = self._joined(wanted.deadline_ns)
                sent_ns = time.monotonic_ns()
                budget_ms, buffered_ms = _ms(wanted.deadline_ns - sent_ns), _ms(empty_ns - sent_ns)
                timed = replace(request, budget_ms=budget_ms, buffered_ms=buffered_ms)
                message = line.ask(timed, payloads, wanted.deadline_ns)
                if message is None:
                    self._leave(line, "does not answer")
                elif message.body.answer is None:
                    self._refused(line, message.body.refused)
                else:
                    answer, number = message.body.answer, request.request_id
                    timing = _timing(answer, time.monotonic_ns() - sent_ns)
                    actions = self._checked(line, answer, message.payloads[0])
                    seed, n_steps = answer.noise_seed, answer.n_steps
                    return InferenceResult(
                        actions, timing, seed, number, n_steps, answer.is_guided, grid_index, news
                    )  # fmt: skip

    def close(self) -> None:
        """Ends a question that is still open."""
        self._is_closing.set()
        with self._asking:
            if self._line is not None:
                self._line.close()
            self._line = None

    # -- which server ------------------------------------------------------------------------------------------

    def _joined(self, until_ns: int) -> tuple[ServerLine, tuple[str, ...]]:
        """The line in use, or a new one to whoever answers; what there is to say about it.

        Raises:
            WireError: nobody did until then.
        """
        if self._line is not None and not self._line.is_lost:
            return self._line, ()
        if self._line is not None:
            self._leave(self._line, "does not answer")
        for pause_ns in chain(PAUSES_NS, repeat(PAUSES_NS[-1])):
            refusals = 0
            for _ in self._servers:
                line = self._try(self._servers[self._turn], until_ns)
                if isinstance(line, ServerLine):
                    left, self._left, self._line = self._left, None, line
                    return line, () if left is None else (self._back(left, line),)
                self._turn = (self._turn + 1) % len(self._servers)
                refusals += line is not None
            if refusals == len(self._servers):  # all are there, and none takes us
                raise WireError(f"policy server {self._left}", "refused")
            left_ns = until_ns - time.monotonic_ns()
            if left_ns <= 0 or self._is_closing.wait(min(pause_ns, left_ns) / NS_PER_S):
                break
        raise WireError(f"policy server {self._left}; looking for it", "timeout")

    def _try(self, server: Address, until_ns: int) -> ServerLine | str | None:
        """A line to a server that takes this robot; why it does not; None: it does not answer."""
        line = ServerLine(self._ctx, server, self._session, self._robot.robot, self._is_closing)
        ack = None
        if _reached(line, until_ns):
            ack = line.join(self.sha256, self._robot, min(until_ns, time.monotonic_ns() + JOIN_NS))
        if ack is not None and ack.is_accepted:
            self.counters["server_joins"] += 1
            return line
        line.close()
        if ack is not None:
            self._left = f"{server} refuses: {ack.reason}"
            return ack.reason
        if line.barred:
            self._left = f"{server} {line.barred}"
            return line.barred
        if line.hint or not self._left:
            self._left = f"{server} does not answer{line.hint}"
        return None

    def _leave(self, line: ServerLine, why: str) -> None:
        """The next address has its turn."""
        self._left = f"{line.address} {why}"
        self.counters["servers_left"] += 1
        self.counters.update(line.refusals)
        line.close()
        self._line = None
        self._turn = (self._turn + 1) % len(self._servers)

    @staticmethod
    def _back(left: str, line: ServerLine) -> str:
        if left.startswith(f"{line.address} "):
            return f"policy server {line.address} answers again"
        return f"policy server {left}; {line.address} takes over"

    # -- what it says --------------------------------------------------------------------------------------------

    def _refused(self, line: ServerLine, refused: Refusal | None) -> None:
        """Returns where another try may help.

        Raises:
            BundleError, EngineError: the same would come of it.
        """
        assert refused is not None, "a reply is an answer or a refusal: it was checked on arrival"
        self.counters["requests_refused"] += 1
        if refused.code in ELSEWHERE:
            self._leave(line, refused.text)
        elif refused.code == "not_joined":  # it has forgotten us: the next line says again who we are
            line.close()
            self._line = None
        else:
            kind = EngineError if refused.code == "failed" else BundleError
            raise kind(f"policy server {line.address}: {refused.text}")

    def _checked(self, line: ServerLine, answer: Answer, actions: np.ndarray) -> np.ndarray:
        """The chunk, if it is one of this policy.

        Raises:
            WireError: it is not; the server is left.
        """
        wanted = (self.manifest.chunk_size, *self.manifest.action.shape)
        wrong = None
        if answer.policy != self.sha256:
            wrong = (
                f"runs another policy ({answer.policy[:12]}, this deployment began with {self.sha256[:12]})"
            )
        elif actions.shape != wanted:
            wrong = f"answered a chunk of shape {actions.shape}; this policy's have {wanted}"
        elif not np.isfinite(actions).all():
            wrong = "answered actions that are not finite"
        if wrong is not None:
            self.counters["replies_refused"] += 1
            self._leave(line, wrong)
            raise WireError(f"policy server {self._left}; the chunk is not used", "type")
        return actions

    def _request(
        self,
        moments: Mapping[int, Observation],
        grid_index: int,
        n_steps: int | None,
        rtc: RtcInputs | None,
        chunk_seq: int,
        encoding: Encoding,
    ) -> tuple[Request, list[np.ndarray]]:
        """The request without its times, and its payloads."""
        payloads: list[np.ndarray] = []
        guidance = None
        if rtc is not None:
            if rtc.select > 1:
                raise BundleError(f"select {rtc.select}: {ONE_PER_REQUEST}")
            assert self.manifest.rtc is not None, "a robot is told which executions a policy allows"
            limit = self.manifest.rtc.max_guidance if rtc.max_guidance is None else rtc.max_guidance
            guidance = Guidance(np.asarray(rtc.weights, np.float32), limit)
            payloads.append(np.asarray(rtc.committed, np.float32))
        said = []
        for moment in sorted(moments):
            frames: list[SentFrame] = []
            for feature, image in moments[moment].images.items():
                frame, payload = encoding.frame(feature, image)
                frames.append(frame)
                payloads.append(payload)
            state = np.asarray(moments[moment].state, np.float32)
            said.append(Moment(grid_index - moment, state, tuple(frames)))
        task = moments[grid_index].task
        made = Request(chunk_seq, self.sha256, 0.0, 0.0, task, tuple(said), n_steps, self.seed, guidance)
        return made, payloads


def _timing(answer: Answer, spent_ns: int) -> dict[str, int]:
    """Where the time went; what the server does not account for was the network."""
    at = answer.server_ns
    stages = {name: max(0, int(ns)) for name, ns in vars(answer.timing_ns).items()}
    inside = max(0, at.done - at.received)
    wait = max(0, inside - sum(stages.values()))
    return {**stages, "wait": wait, "network": max(0, spent_ns - inside)}


def _ms(ns: int) -> float:
    return min(1e9, max(0, ns) / NS_PER_MS)

"""The policy server: robots join, ask, and are answered; one inference at a time, the most urgent robot first, and
with it whoever waits and may share its inference. Nobody waits for others to come.

    door -> check -> turns -> worker -> door

It is stepped by a loop and never blocks; inference runs in one worker thread, because a device is shared by all
policies here anyway. Between requests it remembers who has joined and nothing else, so it may be killed and started
again under moving arms. `drain`: who waits is told at once, what runs is finished, then `is_drained`.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import zmq

from edgevla import strict
from edgevla.clock import NS_PER_MS, NS_PER_S
from edgevla.codec import encode
from edgevla.descriptions import AboutRobot, AboutRobots, AboutServer, AskedAbout
from edgevla.errors import BundleError, EdgeVLAError, EngineError, WireError
from edgevla.messages import Describe, Header, Message, MessageBody
from edgevla.predictor import InferenceResult
from edgevla.serve.authority import Authority
from edgevla.serve.door import SOURCE, Caller, Door
from edgevla.serve.gate import MOST_PER_KEY
from edgevla.serve.hosted import Hosted
from edgevla.serve.metrics import Metrics
from edgevla.serve.roster import Guest
from edgevla.serve.turns import Turn, Turns
from edgevla.server_messages import Answer, Join, Refusal, Reply, Request, ServerTimes, Stages
from edgevla.strict import Mismatch, nearest

MOST_ROBOTS = 64
FORGOTTEN_NS = 30 * NS_PER_S
"""A robot that was silent for so long has left; one that was only paused joins again by itself."""
LOOK_NS = NS_PER_S // 5
"""How often it is looked who has left; not between a request and its inference."""
MOST_WORDS = 1000
"""Characters of a sentence to a robot: it may repeat what the robot said, and that can be long."""
DRAINING = "is going down; the arm holds until a policy server answers again"

Note = Callable[..., None]
"""(kind, **fields): one line of the log."""


@dataclass(frozen=True)
class _Job:
    """A request that waits, or runs."""

    caller: Caller
    request: Request
    hosted: Hosted


@dataclass(frozen=True)
class _Done:
    """One inference. results: one per turn, or the refusal in its place."""

    turns: Sequence[Turn[_Job]]
    results: Sequence[InferenceResult | Refusal]
    started_ns: int
    done_ns: int


class PolicyServer:
    """hosted: policies, warmed up. endpoint: to listen at. note: see `Note`. wake: called when an inference is done.

    authority: which robots are served, already started in `ctx`; None: whoever is on this machine.

    Raises:
        zmq.ZMQError: the endpoint cannot be bound. WireError: a manifest is too large to be told.
    """

    def __init__(
        self,
        ctx: zmq.Context,
        endpoint: str,
        hosted: Sequence[Hosted],
        *,
        note: Note = lambda *_, **__: None,
        wake: Callable[[], None] = lambda: None,
        authority: Authority | None = None,
    ) -> None:
        self.metrics = Metrics()
        self._by_name = {h.name: h for h in hosted}
        self._by_sha256 = {h.sha256: h for h in hosted}
        self._about = AboutServer("serve", tuple(h.about() for h in hosted))
        _check_descriptions([self._about, *(h.about_policy() for h in hosted)])
        self._note, self._wake = note, wake
        self._authority = authority
        self._robots: dict[tuple[str, bytes], Guest] = {}
        self._turns: Turns[_Job] = Turns()
        self._worker = ThreadPoolExecutor(1, "inference")
        self._running: Future[_Done] | None = None
        self._looked_ns = 0
        self.is_draining = False
        self.door = Door(ctx, endpoint, max(h.most_bytes for h in hosted), authority)

    @property
    def is_drained(self) -> bool:
        """Whether it was asked to end and nothing runs any more."""
        return self.is_draining and self._running is None

    def step(self, now_ns: int) -> None:
        """Hears, answers what is done, begins what is due. Never blocks."""
        for caller in self.door.poll():
            self._hear(caller, now_ns)
        self._collect()
        for late in self._turns.expire(now_ns):
            self._tell_guest(late.what.caller, "expired")
            self._became("expired", late)
        if self._running is None and (turns := self._turns.next(self._joins)):
            self._running = self._worker.submit(_infer, turns)
            self._running.add_done_callback(lambda _: self._wake())
        if now_ns - self._looked_ns >= LOOK_NS:
            self._looked_ns = now_ns
            self._look_who_is_paired()
            self._forget(now_ns)
            self._figures()

    def drain(self) -> None:
        """Takes nothing more; whoever waits is told."""
        self.is_draining = True
        for turn in self._turns.clear():
            self._refuse(turn.what.caller, turn.what.request, "draining", DRAINING)
        self._note("drain")

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)
        self.door.close()

    # -- hearing ------------------------------------------------------------------------------------------------

    def _hear(self, caller: Caller, now_ns: int) -> None:
        body = caller.asked.body
        if isinstance(body, Request):
            self._on_request(caller, body, now_ns)
        elif isinstance(body, Join):
            self._on_join(caller, body, now_ns)
        elif isinstance(body, Describe):
            self._on_describe(caller, body, now_ns)
        else:
            self.door.counters["type"] += 1

    def _on_describe(self, caller: Caller, body: Describe, now_ns: int) -> None:
        if body.about is None:
            self.door.answer(caller, Describe(strict.write(self._about)))
            return
        try:
            asked = strict.read(AskedAbout, body.about, "describe")
        except Mismatch as error:
            self.door.ack(caller, False, str(error)[:MOST_WORDS])
            return
        name = asked.policy
        if asked.robots:
            self.door.answer(caller, Describe(strict.write(self._about_robots(now_ns))))
        elif name in self._by_name:
            self.door.answer(caller, Describe(strict.write(self._by_name[name].about_policy())))
        else:
            have = ", ".join(self._by_name)
            words = f"no policy '{name[:80]}' here; there are {have}{nearest(name, self._by_name)}"
            self.door.ack(caller, False, words)

    def _about_robots(self, now_ns: int) -> AboutRobots:
        def machine(key: str) -> str:
            return "" if self._authority is None else self._authority.name_of(key) or ""

        found = [
            guest.about(now_ns, identity, machine(identity[0]), self.door.gate)
            for identity, guest in self._robots.items()
        ]
        return AboutRobots("serve", self.is_draining, tuple(found))

    def _on_join(self, caller: Caller, join: Join, now_ns: int) -> None:
        reason = self._why_not(caller, join)[:MOST_WORDS]
        if not reason:
            hosted = self._by_sha256[join.policy]
            guest = Guest(str(join.robot["robot"]), hosted, caller.fd, caller.who, now_ns, now_ns)
            self._robots[caller.identity] = guest
            self._note("join", robot=guest.name, policy=hosted.name, **self._who(caller))
        else:
            self._note("join_refused", reason=reason, **self._who(caller))
        self.metrics.count("joins_total", outcome="refused" if reason else "admitted")
        self.door.ack(caller, not reason, reason)

    def _why_not(self, caller: Caller, join: Join) -> str:
        """Why a robot is not taken; empty: it is."""
        if self.is_draining:
            return DRAINING
        hosted = self._by_sha256.get(join.policy)
        if hosted is None:
            have = ", ".join(f"{h.name} ({h.sha256[:12]})" for h in self._by_name.values())
            return f"it runs another policy than {join.policy[:12]}: {have}"
        try:
            hosted.admit(strict.read(AboutRobot, join.robot, "the robot's description"))
        except (Mismatch, BundleError) as error:
            return str(error)
        if caller.identity in self._robots:
            return ""
        if len(self._robots) >= MOST_ROBOTS:
            return f"it serves {MOST_ROBOTS} robots already"
        if caller.key and sum(key == caller.key for key, _ in self._robots) >= MOST_PER_KEY:
            return f"it serves {MOST_PER_KEY} deployments of this machine already"
        return ""

    def _on_request(self, caller: Caller, request: Request, now_ns: int) -> None:
        robot, hosted = self._robots.get(caller.identity), self._by_sha256.get(request.policy)
        if self.is_draining:
            self._refuse(caller, request, "draining", DRAINING)
        elif robot is None or hosted is None or robot.hosted is not hosted:
            self._refuse(caller, request, "not_joined", "this robot has not joined for this policy")
        elif wrong := hosted.check(request, caller.asked.payloads):
            self._refuse(caller, request, "unfit", f"the request has {wrong}")
        else:
            robot.asks(request, caller, now_ns)
            empty_ns = now_ns + round(request.buffered_ms * NS_PER_MS)
            expires_ns = now_ns + round(request.budget_ms * NS_PER_MS)
            job = _Job(caller, request, hosted)
            superseded = self._turns.add(Turn(caller.identity, job, now_ns, empty_ns, expires_ns))
            if superseded is not None:
                self._became("superseded", superseded)

    @staticmethod
    def _joins(taken: Sequence[Turn[_Job]], turn: Turn[_Job]) -> bool:
        """Whether a request may share the inference of those taken, and all of them still get their answer in time."""
        first, job, n = taken[0].what, turn.what, len(taken) + 1
        if job.hosted is not first.hosted or n > job.hosted.max_batch:
            return False
        done_ns = time.monotonic_ns() + job.hosted.expected_ns(n)
        in_time = all(done_ns <= one.expires_ns for one in (*taken, turn))
        return in_time and job.hosted.shares(first.request, job.request)

    def _forget(self, now_ns: int) -> None:
        for identity, robot in list(self._robots.items()):
            if now_ns - robot.heard_ns > FORGOTTEN_NS:
                del self._robots[identity]
                self._note("left", robot=robot.name, session=identity[1].hex())

    def _look_who_is_paired(self) -> None:
        """Whoever was taken off the list is thrown out; ZeroMQ itself asks only when somebody connects."""
        if self._authority is None:
            return
        news = self._authority.news()
        for key, name in news.gone.items():
            self.door.gate.throw_out(key)
            self._robots = {who: robot for who, robot in self._robots.items() if who[0] != key}
            self._note("revoked", name=name)
        for words in news.words:
            self._note("pairing", words=words)

    def _who(self, caller: Caller) -> dict[str, str]:
        """Of a line in the log: the session, and which paired robot it is."""
        session = {"session": caller.session.hex()}
        if self._authority is None:
            return session
        return {**session, "paired": self._authority.name_of(caller.key) or ""}

    # -- answering ----------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        if self._running is None or not self._running.done():
            return
        done, self._running = self._running.result(), None
        n, name = len(done.turns), done.turns[0].what.hosted.name
        self.metrics.count("inferences_total", policy=name, batch=str(n))
        self.metrics.observe("inference_seconds", (done.done_ns - done.started_ns) / NS_PER_S, policy=name)
        for turn, result in zip(done.turns, done.results, strict=True):
            if isinstance(result, Refusal):
                self._refuse(turn.what.caller, turn.what.request, result.code, result.text)
            else:
                self._answer(turn, result, done)

    def _answer(self, turn: Turn[_Job], result: InferenceResult, done: _Done) -> None:
        job = turn.what
        answer = Answer(
            policy=job.hosted.sha256,
            is_guided=result.is_guided,
            n_steps=result.n_steps,
            noise_seed=result.noise_seed,
            server_ns=ServerTimes(turn.arrived_ns, done.started_ns, done.done_ns),
            timing_ns=Stages(**result.timing_ns),
        )
        self.door.answer(job.caller, Reply(job.request.request_id, answer, None), [result.actions])
        wait_ns, spent_ns = done.started_ns - turn.arrived_ns, done.done_ns - done.started_ns
        self.metrics.observe("wait_seconds", wait_ns / NS_PER_S, policy=job.hosted.name)
        self._tell_guest(job.caller, "answered", spent_ns=done.done_ns - turn.arrived_ns)
        self._became(
            "answered",
            turn,
            wait_ms=wait_ns / NS_PER_MS,
            spent_ms=spent_ns / NS_PER_MS,
            batch=len(done.turns),
        )

    def _refuse(self, caller: Caller, request: Request, code: str, text: str) -> None:
        text = text[:MOST_WORDS]
        self.door.answer(caller, Reply(request.request_id, None, Refusal(code, text)))
        self._tell_guest(caller, code, text)
        self._count(caller, code)
        self._note("refused", request_id=request.request_id, code=code, text=text, **self._who(caller))

    def _tell_guest(self, caller: Caller, outcome: str, words: str = "", spent_ns: int | None = None) -> None:
        """To be shown to whoever looks."""
        if (guest := self._robots.get(caller.identity)) is not None:
            guest.is_told(outcome, words, spent_ns)

    def _became(self, outcome: str, turn: Turn[_Job], **fields: Any) -> None:
        job = turn.what
        self._count(job.caller, outcome)
        fields = {"policy": job.hosted.name, **fields, **self._who(job.caller)}
        self._note(outcome, request_id=job.request.request_id, **fields)

    def _count(self, caller: Caller, outcome: str) -> None:
        self.metrics.count("requests_total", outcome=outcome)
        if name := self._who(caller).get("paired"):
            self.metrics.count("robot_requests_total", robot=name, outcome=outcome)

    def _figures(self) -> None:
        self.metrics.set("robots", len(self._robots))
        self.metrics.set("waiting", len(self._turns))
        self.metrics.set("draining", self.is_draining)
        for reason, n in self.door.counters.items():
            self.metrics.set("messages_refused_total", n, reason=reason)
        gate = self.door.gate
        self.metrics.set("connections", len(gate))
        for reason, n in gate.failed.items():
            self.metrics.set("handshakes_failed_total", n, reason=reason)
        for reason, n in gate.closed.items():
            self.metrics.set("connections_closed_total", n, reason=reason)


def _infer(turns: Sequence[Turn[_Job]]) -> _Done:
    """In the worker."""
    jobs, started_ns = [turn.what for turn in turns], time.monotonic_ns()
    results = _together(jobs) if len(jobs) > 1 else [_alone(jobs[0])]
    return _Done(turns, results, started_ns, time.monotonic_ns())


def _together(jobs: Sequence[_Job]) -> list[InferenceResult | Refusal]:
    """Several requests in one inference; where that fails each alone, because one of them may be the cause."""
    try:
        results = jobs[0].hosted.infer_batch([(job.request, job.caller.asked.payloads) for job in jobs])
    except Exception:
        traceback.print_exc()
        return [_alone(job) for job in jobs]
    return [_refusal(r) if isinstance(r, EdgeVLAError) else r for r in results]


def _alone(job: _Job) -> InferenceResult | Refusal:
    try:
        return job.hosted.infer(job.request, job.caller.asked.payloads)
    except EdgeVLAError as error:
        return _refusal(error)
    except (
        Exception
    ) as error:  # one robot's request must not end the others' server; the traceback is the log's
        traceback.print_exc()
        return Refusal("failed", f"the inference failed: {type(error).__name__}")


def _refusal(error: EdgeVLAError) -> Refusal:
    return Refusal("failed" if isinstance(error, EngineError) else "unfit", str(error))


def _check_descriptions(abouts: Sequence[Any]) -> None:
    """
    Raises:
        WireError: one of them does not fit into a message.
    """
    header = Header(bytes(8), SOURCE, 0, 0, 0)
    for about in abouts:
        body: MessageBody = Describe(strict.write(about))
        try:
            encode(Message(header, body))
        except WireError as error:
            raise WireError(f"what this server would tell of its policies does not fit: {error}") from error

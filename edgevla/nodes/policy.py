"""The policy node: one `infer` in, one `chunk` out. It adds the frames; the robot node decides when.

Inference runs in a worker thread (the engines release the interpreter's lock), so that the node answers and beats
meanwhile. Only the newest request counts. Run as `python -m edgevla.nodes.policy`, by the supervisor.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zmq

from edgevla.bundle import Fit, fit, load_bundle
from edgevla.clock import NS_PER_MS, NS_PER_S
from edgevla.descriptions import AboutPolicy, AboutRobot, read_robot
from edgevla.engines import EngineOptions
from edgevla.errors import BundleError, CameraError, EdgeVLAError, WireError
from edgevla.flight.witness import Witness, run_folder_of
from edgevla.look import Oddity
from edgevla.manifest import Manifest
from edgevla.messages import Chunk, Event, Frame, Infer, Message, MessageBody, Severity, State, Timing, holds
from edgevla.nodes.assembler import AgeWatch, Assembler, StillWatch
from edgevla.nodes.first_look import FirstLook
from edgevla.nodes.vitals import heartbeat, is_orphan, stop_when_asked
from edgevla.predictor import InferenceResult, Predictor, RtcInputs, Wanted, blank_observation, described
from edgevla.runner import BundlePolicy
from edgevla.serve.authority import introduced
from edgevla.serve.pictures import encoding
from edgevla.serve.remote import RemotePolicy, look_up
from edgevla.serve.transport import addresses
from edgevla.session import are_cameras_open
from edgevla.types import STATE, Observation
from edgevla.wire import CommandServer, Inbox, Publisher, Router, Stream, endpoint

HEARTBEAT_NS = NS_PER_S // 5
FRAMES_KEPT = 12
STATES_KEPT = 400
EVENTS_KEPT = 64
WARM_UPS = 3
LOOK_UP_S = 30.0


@dataclass(frozen=True)
class _Done:
    """A finished inference, on its way out at `due_ns`. ages_ns: of the pictures it saw, by feature.

    elsewhere: sentences about joints that are not where they always were in the training data. news: of who inferred.
    """

    chunk: Chunk
    actions: np.ndarray
    ages_ns: Mapping[str, int]
    observed_ns: int
    due_ns: int
    elsewhere: Sequence[str]
    news: Sequence[str]


class PolicyNode:
    """The policy of one deployment.

    folder: the run directory, or `inproc`. inject_delay_ns: held back this long on purpose, for studies.
    """

    def __init__(
        self,
        ctx: zmq.Context,
        folder: Path | str,
        session: bytes,
        policy: Predictor,
        fit: Fit,
        *,
        inject_delay_ns: int = 0,
        allow_lost_cameras: bool = False,
        wake: Callable[[], None] = lambda: None,
        witness: Callable[[Callable[[str], None]], Witness] | None = None,
    ) -> None:
        self._policy, self._fit = policy, fit
        self._inject_delay_ns = inject_delay_ns
        self._step_ns = round(NS_PER_S / policy.manifest.fps)
        streams: dict[type[MessageBody], Stream] = {
            Frame: ([endpoint(folder, f"camera/{c}") for c in fit.cameras.values()], FRAMES_KEPT),
            Event: (endpoint(folder, "robot"), EVENTS_KEPT),
        }
        if policy.n_moments > 1:
            streams[State] = (endpoint(folder, "robot"), STATES_KEPT)
        self._inbox = Inbox(ctx, streams, session)
        self._assembler = Assembler(self._inbox, fit.cameras, allow_lost_cameras)
        trained_ages = policy.manifest.trained_camera_age_ms or {}
        self._age_watch = AgeWatch(trained_ages, fit.cameras, self._step_ns / NS_PER_MS)
        self._still_watch = still_watch(policy.manifest)
        self._publisher = Publisher(ctx, endpoint(folder, "policy"), session, "policy")
        self._router = Router(ctx, endpoint(folder, "policy", "infer"), session, "policy")
        self._server = CommandServer(ctx, endpoint(folder, "policy", "commands"), session, "policy")
        self._worker = ThreadPoolExecutor(1, "inference")
        self._running: Future[_Done] | None = None
        self._done: _Done | None = None
        self._waiting: Message[Infer] | None = None
        self._last_grid = -1
        self._beat_ns = 0
        self._told_ns: dict[str, int] = {}
        self.counters: Counter[str] = Counter()
        self._wake = wake
        self._news: deque[str] = deque()
        self._witness = None if witness is None else witness(self._news.append)

    @property
    def router_socket(self) -> zmq.Socket:
        """Where requests come in; for pollers."""
        return self._router.socket

    def first_look(self, drawn: Collection[str]) -> FirstLook:
        """At the live pictures, before the arm may move. drawn: names of simulated cameras."""
        trained = self._policy.manifest.trained_camera_look or {}
        return FirstLook(self._inbox, self._fit.cameras, trained, drawn)

    def glance(self) -> Observation:
        """What the cameras show now, with a usual state.

        Raises:
            CameraError: one of them shows nothing.
        """
        usual = blank_observation(self._policy.manifest)
        return self._assembler.assemble(usual.state, time.monotonic_ns(), usual.task).observation

    def say(self, text: str) -> None:
        """One sentence for the person who watches."""
        self._publisher.event("info", "policy_server", text)

    def warm_up(self, seen: Sequence[Oddity] = ()) -> None:
        """Runs the policy on blank input, then is ready: `describe` tells the latency measured here.

        seen: what the first look found.
        """
        spent = self._policy.warm_up(WARM_UPS)
        worst = max(spent[1:] or spent) + self._inject_delay_ns
        self._server.about = AboutPolicy(
            node="policy",
            manifest=described(self._policy.manifest),
            sha256=self._policy.sha256,
            provider=self._policy.provider,
            latency_ms=worst / NS_PER_MS,
            oddities=tuple(seen),
        )

    def step(self, now_ns: int) -> None:
        """Takes requests, publishes what is due, answers, beats. Never blocks."""
        for _, message in self._router.poll():
            if holds(message, Infer):
                self.counters["requests_superseded"] += self._waiting is not None
                self._waiting = message
        self._collect()
        if self._done is not None and now_ns >= self._done.due_ns:
            done, self._done = self._done, None
            self._publisher.send(done.chunk, [done.actions], done.observed_ns)
            self.counters["chunks"] += 1
        if self._running is None and self._done is None and self._waiting is not None:
            request, self._waiting = self._waiting, None
            self._begin(request, now_ns)
        self._save(now_ns)
        if now_ns - self._beat_ns >= HEARTBEAT_NS:
            self._beat_ns = now_ns
            counters = {
                **self.counters,
                **self._inbox.counters,
                **self._router.counters,
                **self._policy.counters,
            }
            self._publisher.send(heartbeat("ready" if self._server.about else "starting", counters))

    def _save(self, now_ns: int) -> None:
        """A fault, or somebody who asks, saves for good what was seen and answered."""
        events = self._inbox.drain(Event)
        if self._witness is not None:
            self._witness.hear(events, now_ns)
        for command in self._server.poll():
            if command.action != "save":
                command.answer(False, f"the policy node does not know '{command.action}'")
            elif self._witness is None:
                command.answer(
                    False, "this run keeps no observations; start it without --observations 0 and --log none"
                )
            else:
                command.answer(True, self._witness.save(f"asked for by {command.source}", now_ns))
        while self._news:
            self._publisher.event("info", "moment_saved", self._news.popleft())

    def wait_ms(self, now_ns: int) -> int:
        """How long nothing is due: until a held-back chunk, at most 20 ms (commands and the heartbeat)."""
        if self._done is None:
            return 20
        return max(0, min(20, -(-(self._done.due_ns - now_ns) // NS_PER_MS)))

    def _begin(self, request: Message[Infer], now_ns: int) -> None:
        if request.body.deadline_ns < now_ns:
            self.counters["requests_expired"] += 1
            return
        if request.body.grid_index <= self._last_grid:  # a new rollout: the past is another one's
            self._policy.reset()
            if self._witness is not None:
                self._witness.forget()
        self._last_grid = request.body.grid_index
        self._running = self._worker.submit(self._infer, request, now_ns)
        self._running.add_done_callback(lambda _: self._wake())

    def _collect(self) -> None:
        if self._running is None or not self._running.done():
            return
        running, self._running = self._running, None
        try:
            self._done = running.result()
            self.counters["inferences"] += 1
            for sentence in self._age_watch.see(self._done.ages_ns):
                self._publisher.event("warning", "camera_age", sentence)
            for sentence in self._done.elsewhere:
                self._publisher.event("warning", "still_joint", sentence)
            for sentence in self._done.news:
                self.say(sentence)
        except EdgeVLAError as error:  # no chunk: the robot asks again, and holds meanwhile
            self.counters["inferences_failed"] += 1
            self._tell(error)

    def _tell(self, error: EdgeVLAError) -> None:
        """The first of a kind, then one every five seconds."""
        now, kind = time.monotonic_ns(), type(error).__name__
        if now >= self._told_ns.get(kind, 0):
            self._told_ns[kind] = now + 5 * NS_PER_S
            # A line that is cut is no fault of the policy: it is waited for.
            severity: Severity = "warning" if isinstance(error, WireError) else "error"
            self._publisher.event(severity, f"inference_{kind}", str(error))

    # -- in the worker ----------------------------------------------------------------------------------------

    def _infer(self, message: Message[Infer], taken_ns: int) -> _Done:
        began = time.monotonic_ns()
        request, moment, grid = message.body, message.observed_ns, message.body.grid_index
        assembled = self._assembler.assemble(self._to_policy(request.state), moment, request.task)
        past = {
            n: p for n in self._policy.missing_moments(grid) if (p := self._past(n, grid, moment)) is not None
        }
        rtc = self._rtc(message)
        assembled_ns = time.monotonic_ns()
        result = self._policy.infer(
            assembled.observation,
            grid_index=grid,
            past=past,
            n_steps=request.n_steps,
            rtc=rtc,
            chunk_seq=request.request_id,
            wanted=Wanted(request.deadline_ns, request.buffered_ns),
        )
        done_ns = time.monotonic_ns()
        if self._witness is not None:
            self._witness.see(
                request.request_id,
                grid,
                moment,
                assembled.observation,
                past,
                self._policy.n_moments,
                request.n_steps,
                rtc,
                result,
            )
        spent = {"wait": 0, "network": 0, **result.timing_ns}
        spent["wait"] += began - taken_ns + self._inject_delay_ns
        timing = Timing(assemble=assembled_ns - began, **spent)
        ages = assembled.ages_ns
        chunk = self._chunk(request, result, timing, max(ages.values(), default=0))
        actions = self._fit.action.to_robot(result.actions)
        elsewhere = (
            self._still_watch.see(assembled.observation.state) if self._still_watch is not None else ()
        )
        due_ns = done_ns + self._inject_delay_ns
        return _Done(chunk, actions, ages, moment, due_ns, elsewhere, result.news)

    def _chunk(self, request: Infer, result: InferenceResult, timing: Timing, image_age_ns: int) -> Chunk:
        return Chunk(
            request_id=request.request_id,
            grid_index=request.grid_index + request.ahead,
            step_ns=self._step_ns,
            n_valid=len(result.actions),
            policy=self._policy.sha256,
            task=request.task,
            is_guided=result.is_guided,
            n_steps=result.n_steps,
            noise_seed=result.noise_seed,
            image_age_ns=image_age_ns,
            state_age_ns=0,
            timing_ns=timing,
            ahead=request.ahead,
        )

    def _to_policy(self, state: np.ndarray) -> np.ndarray:
        return np.zeros(0, np.float32) if self._fit.state is None else self._fit.state.to_policy(state)

    def _past(self, n: int, grid: int, moment_ns: int) -> Observation | None:
        """The observation of an earlier grid moment of this rollout, if its tick was heard."""
        then = moment_ns - (grid - n) * self._step_ns
        states = [message.body for message in self._inbox.recent(State, "robot")]
        near = [s for s in states if abs(s.deadline_ns - then) < self._step_ns // 2]
        if n < 0 or not near:
            return None
        state = min(near, key=lambda s: abs(s.deadline_ns - then))
        return self._assembler.assemble(self._to_policy(state.position), then, "").observation

    def _rtc(self, request: Message[Infer]) -> RtcInputs | None:
        rtc = request.body.rtc
        if rtc is None:
            return None
        committed = self._fit.action.to_policy(request.payloads[0])
        return RtcInputs(committed, rtc.weights, rtc.max_guidance, rtc.select)

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)
        self._inbox.stop()
        if self._witness is not None:
            self._witness.close()
        for part in (self._publisher, self._router, self._server):
            part.close()


def still_watch(manifest: Manifest) -> StillWatch | None:
    """Over the joints that never moved in training; None where all of them did."""
    still, state = (manifest.trained_still or {}).get(STATE), manifest.state
    if still is None or state is None:
        return None
    return StillWatch(still, state.names, state.units, manifest.still_joints == "trained")


# -- the process -----------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m edgevla.nodes.policy", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--bundle")
    source.add_argument("--servers", help="policy servers in place of a bundle, joined by commas")
    parser.add_argument("--sha256", default="", help="of the servers' manifest")
    parser.add_argument("--frames", help="how pictures travel to a server")
    parser.add_argument("--keys", type=Path, help="the map of an openpi server")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--session", required=True)
    parser.add_argument("--robot-json", type=Path, required=True, help="the robot's describe, as JSON")
    parser.add_argument("--provider")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--select", type=int, default=1, help="chunks that an inference will draw")
    parser.add_argument("--inject-delay-ms", type=float, default=0.0)
    parser.add_argument("--allow-lost-cameras", action="store_true")
    parser.add_argument("--observations", type=float, default=0.0, help="seconds of them that are remembered")
    args = parser.parse_args()
    warnings.formatwarning = _sentence
    try:
        return _run(args)
    except EdgeVLAError as error:
        print(f"policy: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Exception:  # the edge of the process: the robot holds, the supervisor starts us again
        traceback.print_exc()
        return 1


def _sentence(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning for who reads the deployment's log: what happened, without the place in our source."""
    return f"{message}\n"


def _run(args: argparse.Namespace) -> int:
    stopping = stop_when_asked()
    ctx = zmq.Context()
    robot = read_robot(args.robot_json)
    waker, woken = ctx.socket(zmq.PUSH), ctx.socket(zmq.PULL)
    woken.bind("inproc://worker-done")
    waker.connect("inproc://worker-done")
    with contextlib.ExitStack() as closing:
        closing.callback(ctx.destroy, linger=200)
        policy = _predictor(args, ctx, robot, closing)
        node = PolicyNode(
            ctx,
            args.run_dir,
            bytes.fromhex(args.session),
            policy,
            fit(policy.manifest, robot),
            inject_delay_ns=round(args.inject_delay_ms * NS_PER_MS),
            allow_lost_cameras=args.allow_lost_cameras,
            wake=lambda: waker.send(b"", zmq.NOBLOCK),
            witness=_witness(args, policy),
        )
        closing.callback(node.close)
        while not (are_cameras_open(args.run_dir) or is_orphan() or stopping.wait(0.01)):
            pass  # loaded by now; a look before would find nothing wrong with a camera that is still silent
        first_look = node.first_look([c.name for c in robot.cameras if c.source == "sim"])
        while (seen := first_look.step(time.monotonic_ns())) is None and not stopping.wait(0.02):
            pass
        node.warm_up(seen or ())
        if isinstance(policy, RemotePolicy):
            with contextlib.suppress(CameraError):  # the first inference says so
                if (cost := policy.weigh(node.glance())) is not None:
                    node.say(cost)
        poller = zmq.Poller()
        poller.register(node.router_socket, zmq.POLLIN)
        poller.register(woken, zmq.POLLIN)
        while not stopping.is_set() and not is_orphan():
            if any(socket is woken for socket, _ in poller.poll(node.wait_ms(time.monotonic_ns()))):
                woken.recv()
            node.step(time.monotonic_ns())
    return 0


def _witness(
    args: argparse.Namespace, policy: Predictor
) -> Callable[[Callable[[str], None]], Witness] | None:
    """None where nothing shall be kept."""
    folder = run_folder_of(args.run_dir)
    if folder is None or not args.observations:
        return None
    bundle = str(Path(args.bundle).resolve()) if args.bundle is not None else args.servers
    about = (args.observations, bundle, policy.sha256, policy.provider, args.threads)
    return lambda say: Witness(folder, *about, say)


def _predictor(
    args: argparse.Namespace, ctx: zmq.Context, robot: AboutRobot, closing: contextlib.ExitStack
) -> Predictor:
    """The bundle, or what the policy servers run."""
    if args.bundle is not None:
        return BundlePolicy(
            load_bundle(args.bundle),
            provider=args.provider,
            seed=args.seed,
            options=EngineOptions(threads=args.threads),
            allow_lost_cameras=args.allow_lost_cameras,
            select=args.select,
        )
    if args.keys is not None:
        return _openpi(args, closing)
    servers = introduced(addresses(args.servers, "--policy"), "--policy")
    session = bytes.fromhex(args.session)
    served = look_up(ctx, servers, session, LOOK_UP_S)
    if args.sha256 and served.sha256 != args.sha256:
        raise BundleError(
            f"the policy server now runs another policy ({served.sha256[:12]}) than this deployment began with "
            f"({args.sha256[:12]}); start it again with the same bundle, or end the deployment"
        )
    frames = encoding(args.frames, servers)
    policy = RemotePolicy(ctx, servers, served, robot, session, seed=args.seed, encoding=frames)
    closing.callback(policy.close)
    return policy


def _openpi(args: argparse.Namespace, closing: contextlib.ExitStack) -> Predictor:
    """What an openpi server runs."""
    from edgevla.serve.openpi.address import ws_address
    from edgevla.serve.openpi.declared import ServerMap
    from edgevla.serve.openpi.remote import OpenpiPolicy

    keys = ServerMap(args.keys)
    if keys.sha256 != args.sha256:
        raise BundleError(f"{args.keys} was changed since this deployment began; end it, and begin again")
    policy = OpenpiPolicy(ws_address(args.servers, "--policy"), keys, LOOK_UP_S)
    closing.callback(policy.close)
    return policy


if __name__ == "__main__":
    sys.exit(main())

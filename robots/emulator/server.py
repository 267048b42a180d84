"""Emulated servos behind pseudo-terminals, in a process of its own: what `deploy --sim` starts, and `edgevla emulate`.

One thread: it sleeps until a host writes, an answer is due, or the world is to be published, and answers at absolute
times. Faults come in over ZeroMQ (`fault`), from a script file, or as lines on standard input.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import os
import re
import select
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from edgevla.clock import NS_PER_S, MonotonicClock
from edgevla.errors import EdgeVLAError, UsageError
from edgevla.nodes.vitals import ask_for_real_time, is_orphan, stop_when_asked
from edgevla.simulated import task_for

from ..profile import Profile, load_profile
from ..world.contract import TaskWorld, Verdict, make_world
from .faults import InjectedFault
from .pty_port import PtyPort
from .robot import EmulatedRobot
from .trace import ArmWatch, Trace

if TYPE_CHECKING:
    from edgevla.messages import Judged, MessageBody

WORLD_HZ = 60
EARLY_NS = 200_000
"""Wake this much before an answer is due, then spin: sleeping is not exact enough for the wire's pace."""


class Server:
    """Serves the lines of one emulated robot on pseudo-terminals.

    links: bus name -> path of the symbolic link to make. is_paced: whether answers wait for the wire's time.
    """

    def __init__(self, robot: EmulatedRobot, links: dict[str, Path], trace: Trace | None = None) -> None:
        self.robot, self.trace = robot, trace
        self.clock = MonotonicClock()
        self.ports: dict[str, PtyPort] = {}
        try:
            for name, path in links.items():
                self.ports[name] = PtyPort(path)
        except UsageError:
            self.close()
            raise
        self.stopping = threading.Event()
        self.heard_ns = 0
        self._is_left = True
        self.on_turn: list[Callable[[int], int]] = []
        """Called with the time; each says when it wants to be called next."""
        self._due: list[tuple[int, int, str, bytes]] = []
        self._n = 0
        robot.on_unplug = self._unplug
        for name, line in robot.lines.items():
            if trace is not None:
                line.on_frame = trace.watcher(name, line.protocol)

    def run(self) -> None:
        """Until `stopping`. Links are removed at the end whatever happens."""
        try:
            while not self.stopping.is_set():
                self._turn()
        finally:
            self.close()

    def close(self) -> None:
        for port in self.ports.values():
            port.close()
        if self.trace is not None:
            self.trace.close()

    def _turn(self) -> None:
        now = self.clock.now_ns()
        wake = min([call(now) for call in self.on_turn], default=now + NS_PER_S // 10)
        if self._due:
            wake = min(wake, self._due[0][0] - EARLY_NS)
        masters = {port.master: name for name, port in self.ports.items() if port.master is not None}
        timeout = min(max(0.0, (wake - self.clock.now_ns()) / NS_PER_S), 0.1)
        ready, _, _ = select.select(list(masters), [], [], timeout)
        come_ns = self.clock.now_ns()
        for fd in ready:
            self._serve(masters[fd], come_ns)
        self._send_due()
        if not self._is_left and come_ns - self.heard_ns > NS_PER_S:
            self._is_left = True
            for port in self.ports.values():
                port.let_others_in()

    def _serve(self, name: str, come_ns: int) -> None:
        """The wire's time counts from when the bytes came: our own work, or that for another line, hides behind it."""
        port, line = self.ports[name], self.robot.lines[name]
        data = port.read()
        if not data:
            return
        self.heard_ns, self._is_left = come_ns, False
        line.client_baud = port.client_baud()
        for ready_ns, answer in line.receive(data, come_ns):
            self._n += 1
            heapq.heappush(self._due, (ready_ns, self._n, name, answer))

    def _send_due(self) -> None:
        while self._due and self._due[0][0] - EARLY_NS <= (now := self.clock.now_ns()):
            due_ns = self._due[0][0]
            while now < due_ns:
                now = self.clock.now_ns()
            _, _, name, data = heapq.heappop(self._due)
            self.ports[name].write(data)

    def _unplug(self, name: str, is_out: bool) -> None:
        if is_out:
            self.ports[name].unplug()
        else:
            self.ports[name].replug()
        self._due = [item for item in self._due if item[2] != name]
        heapq.heapify(self._due)


class WorldLink:
    """The server's sockets: publishes `world` at 60 Hz and `judged` when an episode is over, says when it is ready,
    obeys `fault` and `begin_episode`."""

    def __init__(self, robot: EmulatedRobot, session: bytes) -> None:
        import zmq

        from edgevla.descriptions import AboutEmulator
        from edgevla.wire import CommandServer, Publisher, Router, endpoint, run_dir

        folder = run_dir(session)
        self._robot = robot
        self._ctx = zmq.Context()
        self._publisher = Publisher(self._ctx, endpoint(folder, "emulator"), session, "emulator")
        self._commands = CommandServer(
            self._ctx, endpoint(folder, "emulator", "commands"), session, "emulator"
        )
        self._asked = Router(self._ctx, endpoint(folder, "emulator", "fault"), session, "emulator")
        joints = tuple(joint.name for joint in robot.profile.joints)
        self._commands.about = AboutEmulator("emulator", robot.profile.name, joints)
        self._next_ns = 0
        self._n_told, self._is_told = 0, False
        """Whole episodes that were told; whether the running one was, because it is decided."""
        self.on_fault: Callable[[dict[str, Any]], str] = lambda _: ""

    def turn(self, now_ns: int) -> int:
        """Publishes when due and answers what came; returns when to call again."""
        for request in self._commands.poll():
            request.answer(False, "the emulator takes no commands; send a fault")
        from edgevla.messages import Ack

        for peer, message in self._asked.poll():
            refusal = self._obey(message.body, now_ns)
            if refusal is not None:
                self._asked.send(peer, Ack(message.seq, not refusal, refusal))
        if now_ns >= self._next_ns:
            self._next_ns = max(self._next_ns + NS_PER_S // WORLD_HZ, now_ns + NS_PER_S // (2 * WORLD_HZ))
            self._robot.step(now_ns)
            if self._robot.world is not None:
                self._publisher.send(self._robot.world.message(), observed_ns=now_ns)
                self._tell_verdicts(self._robot.world, now_ns)
        return min(self._next_ns, now_ns + NS_PER_S // 50)

    def _obey(self, body: MessageBody, now_ns: int) -> str | None:
        """Why not, empty when it was done; None: it is nothing that is asked of an emulator."""
        from edgevla.messages import BeginEpisode, Fault

        if isinstance(body, Fault):
            return self.on_fault({k: v for k, v in vars(body).items() if v is not None})
        if not isinstance(body, BeginEpisode):
            return None
        world = self._robot.world
        if world is None:
            return "this arm has no world around it; start it with --world TASK"
        world.reset(body.episode, now_ns)
        self._n_told, self._is_told = len(world.verdicts), False
        return ""

    def _tell_verdicts(self, world: TaskWorld, now_ns: int) -> None:
        """Of the episode that is decided, or that has just given way to the next; each once."""
        for verdict in world.verdicts[self._n_told :]:
            if not self._is_told:
                self._publisher.send(judged(world.episode - 1, verdict), observed_ns=now_ns)
            self._n_told, self._is_told = self._n_told + 1, False
        if world.is_decided() and not self._is_told:
            self._publisher.send(judged(world.episode, world.verdict()), observed_ns=now_ns)
            self._is_told = True

    def close(self) -> None:
        for part in (self._publisher, self._commands, self._asked):
            part.close()
        self._ctx.term()


def judged(episode: int, verdict: Verdict) -> Judged:
    """A verdict as it is told."""
    from edgevla.messages import Judged

    told = {**vars(verdict), "figures": dict(verdict.figures)}
    return Judged(episode=episode, **told)


def link_paths(profile: Profile, link: str | None) -> dict[str, Path]:
    """Where each bus is linked.

    A robot with one bus may name the link itself; an existing folder, a name that ends in `/`, and a robot with
    several buses mean a folder with one link per bus.
    """
    if link is None:
        root = (
            Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/edgevla-{os.getuid()}")
            / "emulated"
            / profile.name
        )
    else:
        root = Path(link)
        if len(profile.buses) == 1 and not root.is_dir() and not link.endswith("/"):
            return {profile.buses[0].name: root}
    root.mkdir(parents=True, exist_ok=True)
    return {bus.name: root / bus.name for bus in profile.buses}


class FaultScript:
    """Faults with their times, from a file; `turn` applies what is due."""

    def __init__(self, path: Path, apply: Callable[[dict[str, Any]], str], now_ns: int) -> None:
        self._apply = apply
        self._steps: list[tuple[int, dict[str, Any]]] = []
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--faults {path} cannot be read ({error}); name a file of JSON lines"
            ) from error
        for number, text in enumerate(lines, 1):
            if not text.strip() or text.startswith("#"):
                continue
            try:
                values = json.loads(text)
                at_ns = now_ns + int(float(values.pop("at_s", 0)) * NS_PER_S)
                InjectedFault.from_map(values)
            except (ValueError, TypeError, AttributeError, EdgeVLAError) as error:
                raise UsageError(f"{path}, line {number}: {error}") from error
            self._steps.append((at_ns, values))
        self._steps.sort(key=lambda step: step[0])

    def turn(self, now_ns: int) -> int:
        while self._steps and self._steps[0][0] <= now_ns:
            if refused := self._apply(self._steps.pop(0)[1]):
                print(f"edgevla emulate: {refused}", file=sys.stderr, flush=True)
        return self._steps[0][0] if self._steps else now_ns + NS_PER_S


class TypedFaults:
    """Faults as lines on standard input, applied at once: `mute 4`, `weak gripper 30`, `clear`, or a script's JSON."""

    def __init__(self, apply: Callable[[dict[str, Any]], str], out: TextIO) -> None:
        self._apply, self._out = apply, out
        self._read, self._has_ended = b"", False

    def turn(self, now_ns: int) -> int:
        while not self._has_ended and select.select([0], [], [], 0)[0]:
            more = os.read(0, 4096)
            self._has_ended = not more
            self._read += more
        *lines, self._read = self._read.split(b"\n")
        for line in lines:
            if text := line.decode(errors="replace").strip():
                print(self._obey(text), file=self._out, flush=True)
        return now_ns + NS_PER_S // 20

    def _obey(self, text: str) -> str:
        """What became of it, in words."""
        if not text.startswith("{"):
            return self._apply_words(text)
        try:
            return self._apply(json.loads(text)) or text
        except (ValueError, TypeError) as error:
            return f"{text}: {error}"

    def _apply_words(self, text: str) -> str:
        kind, *rest = text.split()
        values: dict[str, Any] = {"kind": kind}
        if rest:
            values["target"] = int(rest[0]) if rest[0].isdigit() else rest[0]
        try:
            if rest[1:]:
                (amount,) = rest[1:]
                values["amount"] = float(amount)
        except ValueError:
            return f"{text}: expected KIND, or KIND TARGET, or KIND TARGET AMOUNT with a number"
        return self._apply(values) or text


def step_at_leisure(robot: EmulatedRobot, now_ns: int) -> int:
    """Lets an arm move on while nobody asks; returns when to call again."""
    robot.step(now_ns)
    return now_ns + NS_PER_S // WORLD_HZ


class OrphanWatch:
    """Ends the emulator of a deployment whose supervisor has died, once nobody has written for two seconds: the loop
    and the guardian still bring the arm to rest."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def turn(self, now_ns: int) -> int:
        if is_orphan() and now_ns - self._server.heard_ns > 2 * NS_PER_S:
            self._server.stopping.set()
        return now_ns + NS_PER_S // 2


def make_server(args: argparse.Namespace, out: TextIO) -> tuple[Server, Callable[[], None]]:
    """The server as the options say, and what closes its sockets. out: where typed faults are answered."""
    profile = load_profile(args.robot)
    for option, share in (("--gravity", args.gravity), ("--sway", args.sway)):
        if not 0 <= share <= 1:
            raise UsageError(f"{option} is {share:g}; a share is from 0 to 1")
    if args.session is not None and not re.fullmatch("[0-9a-f]{16}", args.session):
        raise UsageError(f"--session {args.session}: expected the 16 hex digits of a deployment's session")
    clock = MonotonicClock()
    world = None
    if args.world:
        world = make_world(task_for(profile.world, profile.name, args.world), args.seed)
        if world.physics is not None and args.gravity:
            raise UsageError(f"the physics of {args.world} has its own gravity; leave out --gravity")
    robot = EmulatedRobot(
        profile, clock, args.seed, gravity=args.gravity, start=args.start, is_timed=not args.untimed,
        adapter=args.adapter, sway=args.sway, world=world, stalls_on_missing=args.missing == "stall",
        is_energised=args.energised, firmware=args.firmware,
    )  # fmt: skip
    trace = Trace(Path(args.trace)) if args.trace else None

    def apply(values: dict[str, Any]) -> str:
        try:
            robot.apply(InjectedFault.from_map(values))
        except EdgeVLAError as error:
            return str(error)
        if trace is not None:
            trace.note(clock.now_ns(), fault=values)
        return ""

    faults: TypedFaults | FaultScript | None = None
    if args.faults == "-":
        faults = TypedFaults(apply, out)
    elif args.faults:
        faults = FaultScript(Path(args.faults), apply, clock.now_ns())
    # It makes links, so it comes after all that may refuse.
    server = Server(robot, link_paths(profile, args.link), trace)
    close: Callable[[], None] = lambda: None  # noqa: E731
    if args.session is not None:
        link = WorldLink(robot, bytes.fromhex(args.session))
        link.on_fault = apply
        server.on_turn.append(link.turn)
        close = link.close
    else:
        server.on_turn.append(lambda now: step_at_leisure(robot, now))
    if args.session is not None or args.end_with_parent:
        server.on_turn.append(OrphanWatch(server).turn)
    if faults is not None:
        server.on_turn.append(faults.turn)
    if trace is not None:  # after what brings the arm up to the time
        server.on_turn.append(ArmWatch(robot.lines.values(), trace.write).turn)
    return server, close


def serve(args: argparse.Namespace, out: TextIO) -> int:
    """Runs until it is asked to end; prints one line per bus first."""
    server, close = make_server(args, out)
    server.stopping = stop_when_asked()
    ask_for_real_time()  # servos do not wait for a busy machine; where it is not permitted, they may
    profile = server.robot.profile
    for bus in profile.buses:
        port = server.ports[bus.name]
        with contextlib.suppress(OSError):
            print(
                f"{profile.name} {bus.name}: {port.link} -> {port.path} at {bus.baud} baud",
                file=out,
                flush=True,
            )
    try:
        server.run()
    finally:
        close()
    return 0

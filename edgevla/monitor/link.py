"""The monitor's connection to a deployment: one socket that is emptied when the screen wants to know, and commands
with their answers in two threads, so that an emergency stop waits for no answer. The guardian hears of it first, by a
datagram from whoever pressed.

A robot speaks up to 200 times a second and a screen shows ten: of the states only the newest is decoded, and of the
others the time of their tick is read.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgpack
import zmq

from edgevla.arguments import Arguments
from edgevla.codec import decode
from edgevla.descriptions import About, AboutPolicy, AboutRobot
from edgevla.errors import WireError
from edgevla.messages import (
    NAMES,
    Action,
    Chunk,
    Event,
    Heartbeat,
    MessageBody,
    ServoHealth,
    Severity,
    State,
    Thumbnail,
)
from edgevla.monitor import outside
from edgevla.monitor.model import MonitorModel
from edgevla.monitor.outside import Outside
from edgevla.monitor.rates import TickTiming
from edgevla.monitor.standing import SWITCH_OFF
from edgevla.session import endpoint, read_deployment, tell_guardian
from edgevla.wire import CommandClient, make_socket

STREAMS = (State, ServoHealth, Chunk, Thumbnail, Heartbeat, Event)
STATE = NAMES[State].encode()
QUEUE = 4096
"""Messages that wait while the screen does not ask: some fifteen seconds."""
ASKED_S = 0.2
A = TypeVar("A", bound=About)
Commands = queue.SimpleQueue[tuple[Action, Arguments | None] | None]
News = Callable[[MonitorModel], object]
"""What a thread has to tell the model."""


class Listener:
    """Hears what a deployment's nodes say, and asks nothing of them. streams: what of it.

    robot, bundle, cameras, is_ours: as of `Link`.

    Raises:
        WireError: the directory describes no deployment.
    """

    def __init__(self, folder: Path, streams: Sequence[type[MessageBody]]) -> None:
        deployment = read_deployment(folder)
        self.folder, self._session = folder, deployment.session_bytes
        self.note = deployment
        self.is_ours = os.getppid() == deployment.supervisor_pid
        self.robot = Path(deployment.robot).stem
        self.bundle = deployment.bundle_name
        self.cameras: Sequence[str] = [
            n.removeprefix("camera/") for n in deployment.nodes if n.startswith("camera/")
        ]
        self._ctx = zmq.Context()
        self._socket = make_socket(self._ctx, zmq.SUB, hwm=QUEUE)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        for stream in streams:
            self._socket.setsockopt(zmq.SUBSCRIBE, NAMES[stream].encode())
        for node in deployment.nodes:
            self._socket.connect(endpoint(folder, node))
        self._refusals: set[str] = set()

    def poll(self, model: MonitorModel) -> None:
        """Tells the model what was said since the last call."""
        states: list[list[bytes]] = []
        for _ in range(QUEUE):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if parts[0] == STATE:
                states.append(parts)
            else:
                self._take(model, parts)
        if states:
            model.ticks([tick for parts in states[:-1] if (tick := _tick(parts)) is not None])
            self._take(model, states[-1])

    def _take(self, model: MonitorModel, parts: Sequence[bytes]) -> None:
        try:
            message = decode(parts, self._session)
        except WireError as error:
            if error.reason not in self._refusals:
                self._refusals.add(error.reason)
                model.say("warning", f"a message could not be read: {error}")
            return
        model.apply(message)

    def look(self, before: Outside) -> Outside:
        """What is true past the sockets."""
        return outside.look(self.folder, self.note, before)

    def close(self) -> None:
        """Hears nothing more."""
        self._socket.close()
        self._ctx.destroy(linger=0)


class DeploymentLink(Listener):
    """Attaches to the deployment in a run directory: all that it says, and commands.

    Raises:
        WireError: the directory describes no deployment.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, STREAMS)
        nodes = self.note.nodes
        self._is_guardian_told = False
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._commands: Commands = queue.SimpleQueue()
        self._emergencies: Commands = queue.SimpleQueue()
        self._to_policy: Commands = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._ask_by, args=args, name=name, daemon=True)
            for name, args in (
                ("commands", ("robot", self._commands, AboutRobot)),
                ("emergencies", ("robot", self._emergencies, None)),
                ("policy", ("policy", self._to_policy, AboutPolicy)),
            )
            if args[0] in nodes
        ]
        self.has_policy, self.has_leader = (name in nodes for name in ("policy", "leader"))
        for thread in self._threads:
            thread.start()

    def poll(self, model: MonitorModel) -> None:
        """What was said, and what came of commands."""
        while not self._news.empty():
            self._news.get()(model)
        super().poll(model)

    # -- what is asked -------------------------------------------------------------------------------------------

    def command(self, action: Action, arguments: Arguments | None = None) -> None:
        if action != "emergency_stop":
            self._commands.put((action, arguments))
            return
        self._is_guardian_told = tell_guardian(self.folder)
        self._emergencies.put((action, arguments))

    def save(self) -> None:
        """Asks the policy's node to keep for good what it saw lately."""
        if self.has_policy:
            self._to_policy.put(("save", None))
        else:
            self._tell("warning", "no policy runs here whose observations could be saved")

    def interrupt(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.note.supervisor_pid, signal.SIGINT)

    def close(self) -> None:
        self._commands.put(None)
        self._emergencies.put(None)
        self._to_policy.put(None)
        for thread in self._threads:
            thread.join(timeout=3)
        super().close()

    def _ask_by(
        self, node: str, commands: Commands, about: type[AboutRobot] | type[AboutPolicy] | None
    ) -> None:
        """Owns a command socket: learns what the node is, where `about` says so, and sends one command at a time."""
        client = CommandClient(self._ctx, endpoint(self.folder, node, "commands"), self._session, "monitor")
        told: About | None = None
        try:
            while True:
                if about is not None and told is None and (told := _described(client, about)) is not None:
                    self._news.put(partial(MonitorModel.describe, about=told))
                try:
                    item = commands.get(timeout=None if about is None or told is not None else ASKED_S)
                except queue.Empty:
                    continue
                if item is None:
                    return
                self._send(client, *item)
        finally:
            client.close()

    def _send(self, client: CommandClient, action: Action, arguments: Arguments | None) -> None:
        words = action.replace("_", " ")
        try:
            ack = client.request(action, arguments)
        except WireError as error:
            self._tell("error", self._unanswered(action) or str(error))
        else:
            text = (
                f"{words}: {ack.reason or 'accepted'}"
                if ack.is_accepted
                else f"{words} was refused: {ack.reason}"
            )
            self._tell("info" if ack.is_accepted else "warning", text)

    def _unanswered(self, action: Action) -> str:
        """What becomes of an emergency stop that the robot node does not answer; empty for other commands."""
        if action != "emergency_stop":
            return ""
        if self._is_guardian_told:
            return "the robot node does not answer the emergency stop; the guardian was told, and acts"
        return f"nobody answers the emergency stop: {SWITCH_OFF}"

    def _tell(self, severity: Severity, text: str) -> None:
        self._news.put(lambda model: model.say(severity, text))


def _described(client: CommandClient, cls: type[A]) -> A | None:
    """What a node tells of itself; None: not yet."""
    try:
        return client.describe(cls, timeout_s=0.5)
    except WireError:
        return None


def _tick(parts: Sequence[bytes]) -> TickTiming | None:
    """The time of a state that is not shown, read past the codec; None where it cannot be read."""
    try:
        header = msgpack.unpackb(parts[1])
        tick, t0, deadline, late = (int(header[name]) for name in ("tick", "t0_ns", "deadline_ns", "late_ns"))
        seq = header["chunk_seq"] if isinstance(header["chunk_seq"], int) else None
        return TickTiming(tick, t0, deadline, late, seq, float(header["action_index"]), bytes(header["goal"]))
    except (ValueError, TypeError, KeyError, IndexError):
        return None

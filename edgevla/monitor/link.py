"""The monitor's connection to a deployment: subscriptions in one thread, commands and their answers in two others, so
that an emergency stop waits for no answer."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import zmq

from edgevla.arguments import Arguments
from edgevla.descriptions import AboutRobot
from edgevla.errors import WireError
from edgevla.messages import Action, Body, Chunk, Event, Heartbeat, ServoHealth, Severity, State, Thumbnail
from edgevla.monitor.model import Note, Received
from edgevla.session import endpoint, read_deployment
from edgevla.wire import CommandClient, Inbox

RING_SIZES: dict[type[Body], int] = {
    State: 400,
    ServoHealth: 4,
    Chunk: 64,
    Thumbnail: 2,
    Heartbeat: 4,
    Event: 200,
}
Commands = queue.SimpleQueue[tuple[Action, Arguments | None] | None]


class DeploymentLink:
    """Attaches to the deployment in a run directory.

    Raises:
        WireError: the directory describes no deployment.
    """

    def __init__(self, folder: Path) -> None:
        deployment = read_deployment(folder)
        self._folder, self._session = folder, deployment.session_bytes
        self._ctx = zmq.Context()
        self._news: queue.SimpleQueue[Received] = queue.SimpleQueue()
        addresses = [endpoint(folder, node) for node in deployment.nodes]
        streams = {cls: (addresses, size) for cls, size in RING_SIZES.items()}
        self._inbox = Inbox(self._ctx, streams, self._session)
        self._commands: Commands = queue.SimpleQueue()
        self._emergencies: Commands = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._steer, args=args, name=name, daemon=True)
            for name, args in (
                ("commands", (self._commands, True)),
                ("emergencies", (self._emergencies, False)),
            )
        ]
        for thread in self._threads:
            thread.start()
        self._news.put(deployment)

    def poll(self) -> list[Received]:
        received: list[Received] = []
        while not self._news.empty():
            received.append(self._news.get())
        for cls in RING_SIZES:
            received += self._inbox.drain(cls)
        return received

    def command(self, action: Action, arguments: Arguments | None = None) -> None:
        is_urgent = action == "emergency_stop"
        (self._emergencies if is_urgent else self._commands).put((action, arguments))

    def close(self) -> None:
        self._commands.put(None)
        self._emergencies.put(None)
        for thread in self._threads:
            thread.join(timeout=3)
        self._inbox.stop()
        self._ctx.destroy(linger=0)

    def _steer(self, commands: Commands, describes: bool) -> None:
        """Owns a command socket: learns what the robot is (if it `describes`), then sends one command at a time."""
        address = endpoint(self._folder, "robot", "commands")
        client = CommandClient(self._ctx, address, self._session, "monitor", self._folder)
        is_described = not describes
        try:
            while True:
                if not is_described:
                    is_described = self._describe(client)
                try:
                    item = commands.get(timeout=None if is_described else 0.2)
                except queue.Empty:
                    continue
                if item is None:
                    return
                self._send(client, *item)
        finally:
            client.close()

    def _describe(self, client: CommandClient) -> bool:
        try:
            about = client.describe(AboutRobot, timeout_s=0.5)
        except WireError:
            return False
        if about is None:
            return False
        self._news.put(about)
        return True

    def _send(self, client: CommandClient, action: Action, arguments: Arguments | None) -> None:
        words = action.replace("_", " ")
        try:
            ack = client.request(action, arguments)
        except WireError as error:
            self._tell("error", str(error))
        else:
            text = f"{words}: accepted" if ack.is_accepted else f"{words} was refused: {ack.reason}"
            self._tell("info" if ack.is_accepted else "warning", text)

    def _tell(self, severity: Severity, text: str) -> None:
        self._news.put(Note(severity, text))

"""The monitor's connection to a deployment: subscriptions in one thread, commands and their answers in two others, so
that an emergency stop waits for no answer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zmq

from edgevla.errors import WireError
from edgevla.monitor.app import Received
from edgevla.session import endpoint, read_deployment
from edgevla.wire import CommandClient, Inbox

RING_SIZES = {
    "state": 400,
    "servo_health": 4,
    "chunk": 64,
    "thumbnail": 2,
    "heartbeat": 4,
    "event": 200,
}
Commands = queue.SimpleQueue[tuple[str, dict[str, Any]] | None]


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
        streams = {kind: (addresses, size) for kind, size in RING_SIZES.items()}
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
        about = {"name": Path(deployment.bundle).name if deployment.bundle else "", "policy": ""}
        self._news.put(("describe", {"source": "supervisor", **about}, []))

    def poll(self) -> list[Received]:
        received: list[Received] = []
        while not self._news.empty():
            received.append(self._news.get())
        for kind in RING_SIZES:
            for message in self._inbox.drain(kind):
                received.append((kind, message.header, message.payloads))
        return received

    def command(self, action: str, arguments: Mapping[str, Any]) -> None:
        is_urgent = action == "emergency_stop"
        (self._emergencies if is_urgent else self._commands).put((action, dict(arguments)))

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
            about = client.describe(timeout_s=0.5)
        except WireError:
            return False
        if about is None:
            return False
        self._news.put(("describe", {**about, "source": "robot"}, []))
        return True

    def _send(self, client: CommandClient, action: str, arguments: dict[str, Any]) -> None:
        words = action.replace("_", " ")
        try:
            ack = client.request(action, arguments)
        except WireError as error:
            severity, text = "error", str(error)
        else:
            severity = "info" if ack.is_accepted else "warning"
            text = f"{words}: accepted" if ack.is_accepted else f"{words} was refused: {ack.reason}"
        self._news.put(("event", {"source": "monitor", "severity": severity, "text": text}, []))

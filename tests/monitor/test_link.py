"""The monitor's link against real sockets: what a node publishes arrives, what a key commands is answered."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from edgevla.descriptions import AboutJoint, AboutRobot
from edgevla.errors import WireError
from edgevla.messages import Message
from edgevla.monitor.link import DeploymentLink
from edgevla.monitor.model import Note, Received
from edgevla.session import Deployment, endpoint, new_session, write_deployment
from edgevla.wire import CommandServer, Publisher


@pytest.fixture
def folder() -> Iterator[tuple[Path, bytes]]:
    session = new_session()
    path = Path(f"/tmp/edgevla-test-{os.getpid()}-{session.hex()[:6]}")
    path.mkdir(mode=0o700)
    write_deployment(
        path, Deployment(session.hex(), os.getpid(), "so101", "bundles/reach", ["robot", "policy"])
    )
    yield path, session
    for item in path.iterdir():
        item.unlink()
    path.rmdir()


JOINT = AboutJoint("gripper.pos", "percent", 0.0, 100.0, 200.0, True, None, None)
ROBOT = AboutRobot("robot", "so101", (JOINT,), (), 100.0, (), ())


def is_note(received: Received) -> bool:
    return isinstance(received, Note)


def collect(link: DeploymentLink, step: Callable[[], None], wanted: Callable[[Received], bool]) -> Any:
    """Steps the fake robot until a message like the wanted one arrives."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        step()
        for received in link.poll():
            if wanted(received):
                return received
        time.sleep(0.02)
    raise AssertionError("nothing like it arrived within 10 s")


def test_it_learns_the_robot_hears_events_and_gets_answers(folder: tuple[Path, bytes]) -> None:
    path, session = folder
    ctx = zmq.Context()
    server = CommandServer(ctx, endpoint(path, "robot", "commands"), session, "robot")
    publisher = Publisher(ctx, endpoint(path, "robot"), session, "robot")
    server.about = ROBOT
    heard: list[str] = []

    def robot() -> None:
        publisher.event("warning", "warm", "gripper is warm")
        for command in server.poll():
            heard.append(command.action)
            command.answer(command.action != "home", "the arm is paused" if command.action == "home" else "")

    link = DeploymentLink(path)
    try:
        assert collect(link, robot, lambda r: isinstance(r, AboutRobot)) == ROBOT
        message = collect(link, robot, lambda r: isinstance(r, Message) and r.type == "event")
        assert message.body.text == "gripper is warm"
        link.command("pause")
        assert collect(link, robot, is_note) == Note("info", "pause: accepted")
        link.command("home")
        assert collect(link, robot, is_note) == Note("warning", "home was refused: the arm is paused")
        assert heard == ["pause", "home"]
    finally:
        link.close()
        publisher.close()
        server.close()
        ctx.destroy(linger=0)


def test_an_emergency_stop_does_not_wait_behind_a_command_without_an_answer(
    folder: tuple[Path, bytes],
) -> None:
    path, session = folder
    ctx = zmq.Context()
    server = CommandServer(ctx, endpoint(path, "robot", "commands"), session, "robot")
    server.about = ROBOT
    came: dict[str, float] = {}

    def robot() -> None:
        for command in server.poll():
            came[command.action] = time.monotonic()
            if command.action == "emergency_stop":
                command.answer(True, "")

    link = DeploymentLink(path)
    try:
        collect(link, robot, lambda r: isinstance(r, AboutRobot))
        link.command("pause")
        while "pause" not in came:
            robot()
        link.command("emergency_stop")
        note = collect(link, robot, is_note)
        assert note.text == "emergency stop: accepted", "before the pause is given up"
        note = collect(link, robot, is_note)
        assert note.severity == "error"
        assert "'pause' was not answered" in note.text
    finally:
        link.close()
        server.close()
        ctx.destroy(linger=0)


def test_a_folder_without_a_deployment_is_named(tmp_path: Path) -> None:
    with pytest.raises(WireError, match=r"deployment\.json"):
        DeploymentLink(tmp_path)

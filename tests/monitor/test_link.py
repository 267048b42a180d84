"""The monitor's link against real sockets: what a node publishes arrives, what a key commands is answered."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from edgevla.errors import WireError
from edgevla.monitor.app import Received
from edgevla.monitor.link import DeploymentLink
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


def collect(link: DeploymentLink, step: Callable[[], None], wanted: Callable[[Received], bool]) -> Received:
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
    joint = {"name": "gripper.pos", "unit": "percent", "min": 0.0, "max": 100.0, "max_velocity": 200.0}
    server.about = {"node": "robot", "robot": "so101", "joints": [joint]}
    heard: list[str] = []

    def robot() -> None:
        publisher.event("warning", "warm", "gripper is warm")
        for command in server.poll():
            heard.append(command.action)
            command.answer(command.action != "home", "the arm is paused" if command.action == "home" else "")

    link = DeploymentLink(path)
    try:
        _, header, _ = collect(link, robot, lambda r: r[0] == "describe" and "joints" in r[1])
        assert header["robot"] == "so101"
        _, header, _ = collect(link, robot, lambda r: r[0] == "event" and r[1]["source"] == "robot")
        assert header["text"] == "gripper is warm"
        link.command("pause", {})
        _, header, _ = collect(link, robot, lambda r: r[0] == "event" and r[1]["source"] == "monitor")
        assert header["text"] == "pause: accepted"
        link.command("home", {})
        _, header, _ = collect(link, robot, lambda r: r[0] == "event" and "refused" in r[1]["text"])
        assert header["text"] == "home was refused: the arm is paused"
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
    server.about = {"node": "robot", "robot": "so101", "joints": []}
    came: dict[str, float] = {}

    def robot() -> None:
        for command in server.poll():
            came[command.action] = time.monotonic()
            if command.action == "emergency_stop":
                command.answer(True, "")

    link = DeploymentLink(path)
    try:
        collect(link, robot, lambda r: r[0] == "describe" and r[1]["source"] == "robot")
        link.command("pause", {})
        while "pause" not in came:
            robot()
        link.command("emergency_stop", {})
        _, header, _ = collect(link, robot, lambda r: r[0] == "event" and r[1]["source"] == "monitor")
        assert header["text"] == "emergency stop: accepted", "before the pause is given up"
        _, header, _ = collect(link, robot, lambda r: r[0] == "event" and r[1]["severity"] == "error")
        assert "'pause' was not answered" in header["text"]
    finally:
        link.close()
        server.close()
        ctx.destroy(linger=0)


def test_a_folder_without_a_deployment_is_named(tmp_path: Path) -> None:
    with pytest.raises(WireError, match=r"deployment\.json"):
        DeploymentLink(tmp_path)

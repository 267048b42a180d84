"""The monitor's link against real sockets: what nodes publish reaches the model, what a key asks is answered."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from monitor_kit import Robot

from edgevla.errors import WireError
from edgevla.messages import Event
from edgevla.monitor.link import DeploymentLink
from edgevla.monitor.model import MonitorModel
from edgevla.session import EMERGENCY_STOP, endpoint, guardian_socket
from edgevla.wire import CommandServer


@pytest.fixture
def linked(robot: Robot) -> Iterator[tuple[DeploymentLink, MonitorModel]]:
    link = DeploymentLink(robot.folder)
    yield link, MonitorModel(link.robot, link.bundle)
    link.close()


def until(
    link: DeploymentLink, model: MonitorModel, holds: Callable[[], bool], timeout_s: float = 10
) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come"
        link.poll(model)
        time.sleep(0.02)


def texts(model: MonitorModel) -> list[str]:
    return [line.text for line in model.said]


def test_it_learns_the_robot_hears_events_and_gets_answers(
    robot: Robot, linked: tuple[DeploymentLink, MonitorModel]
) -> None:
    link, model = linked
    assert (link.robot, link.bundle) == ("so101", "reach")
    until(link, model, lambda: bool(model.joints) and model.joints[0].unit == "deg")
    robot.say(Event("warning", "warm", "gripper is warm", {}))
    until(link, model, lambda: "gripper is warm" in texts(model))
    link.command("pause")
    until(link, model, lambda: "pause: accepted" in texts(model))
    robot.refusal = "the arm is paused"
    link.command("home")
    until(link, model, lambda: "home was refused: the arm is paused" in texts(model))
    assert robot.actions() == ["pause", "home"]


def test_a_moment_is_saved_by_the_policy_s_node(
    robot: Robot, linked: tuple[DeploymentLink, MonitorModel]
) -> None:
    link, model = linked
    ctx = zmq.Context()
    server = CommandServer(ctx, endpoint(robot.folder, "policy", "commands"), link._session, "policy")
    asked: list[str] = []

    def policy() -> bool:
        for command in server.poll():
            asked.append(command.action)
            command.answer(True, "saving the last 30 s")
        return "save: saving the last 30 s" in texts(model)

    link.save()
    until(link, model, policy)
    assert asked == ["save"]
    server.close()
    ctx.destroy(linger=0)


def test_every_tick_counts_though_only_the_newest_state_is_decoded(
    robot: Robot, linked: tuple[DeploymentLink, MonitorModel]
) -> None:
    link, model = linked
    until(link, model, lambda: model.state is not None)
    time.sleep(1.0)
    link.poll(model)
    assert len(model.clockwork.late_ms) > 20, "of some 50 that were sent meanwhile"
    assert model.clockwork.hz == pytest.approx(50, abs=1)


def test_a_monitor_that_slept_sees_the_newest_state(
    robot: Robot, linked: tuple[DeploymentLink, MonitorModel]
) -> None:
    link, model = linked
    until(link, model, lambda: model.state is not None)
    robot.mode = "paused"
    time.sleep(1.0)
    link.poll(model)
    assert model.mode == "paused"
    assert model.standing(time.monotonic_ns()).word == "PAUSED"


def test_an_emergency_stop_does_not_wait_behind_a_command_without_an_answer(
    robot: Robot, linked: tuple[DeploymentLink, MonitorModel]
) -> None:
    link, model = linked
    until(link, model, lambda: model.state is not None)
    robot.is_deaf_to = "pause"
    link.command("pause")
    robot.wait_for("pause")
    link.command("emergency_stop")
    until(link, model, lambda: "emergency stop: accepted" in texts(model))
    assert not any("was not answered" in text for text in texts(model)), "before the pause is given up"
    until(link, model, lambda: any("'pause' was not answered" in text for text in texts(model)))


def test_the_guardian_hears_of_every_press_at_once_though_the_robot_node_is_deaf(
    robot: Robot, linked: tuple[DeploymentLink, MonitorModel]
) -> None:
    link, model = linked
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as guardian:
        guardian.bind(str(guardian_socket(robot.folder)))
        guardian.settimeout(0.5)
        robot.is_deaf_to = "emergency_stop"
        for _ in range(2):
            link.command("emergency_stop")
            assert guardian.recv(64) == EMERGENCY_STOP
        until(link, model, lambda: any("the guardian was told, and acts" in text for text in texts(model)))
        guardian.setblocking(False)
        with pytest.raises(BlockingIOError):  # the robot's own way tells it nothing twice
            guardian.recv(64)


def test_an_emergency_stop_that_nobody_hears_says_what_is_left_to_do(
    robot: Robot, linked: tuple[DeploymentLink, MonitorModel]
) -> None:
    link, model = linked
    robot.is_deaf_to = "emergency_stop"
    link.command("emergency_stop")
    until(link, model, lambda: any("switch the arm's power off" in text for text in texts(model)))


def test_a_folder_without_a_deployment_is_named(tmp_path: Path) -> None:
    with pytest.raises(WireError, match="it has ended, or never was one"):
        DeploymentLink(tmp_path)

"""Leader's and follower's ports exchanged: found out before torque by the calibrations, else as no hand moves it."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import zmq

from edgevla.clock import NS_PER_S, VirtualClock
from edgevla.errors import CalibrationError
from edgevla.robots import leader_node
from edgevla.robots.arm import Robot
from edgevla.robots.calibration import find_calibration, nominal
from edgevla.robots.emulator.robot import EmulatedRobot
from edgevla.robots.profile import load_profile

FOLDERS = {"so101": "robots/so_follower", "so101_leader": "teleoperators/so_leader"}


@pytest.fixture(autouse=True)
def calibrations(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path))
    return tmp_path


def save(root, robot, name, shift=0):
    """A calibration file: what emulated servos hold, or with another offset."""
    motors = nominal(load_profile(robot)).motors
    motors = {key: replace(entry, homing_offset=entry.homing_offset + shift) for key, entry in motors.items()}
    path = root / FOLDERS[robot] / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key: asdict(entry) for key, entry in motors.items()}))
    return path


def connect(robot, calibration):
    profile = load_profile(robot)
    arm = EmulatedRobot(profile, VirtualClock(NS_PER_S))
    made = Robot(profile, arm.memory_ports(), find_calibration(profile, calibration), arm.clock)
    made.connect()
    return made


@pytest.mark.parametrize(("expected", "other"), [("so101", "so101_leader"), ("so101_leader", "so101")])
@pytest.mark.parametrize("calibration", [None, "blue", "servos"])
def test_an_arm_of_the_other_kind_is_refused_with_the_file_that_tells(
    calibrations, expected, other, calibration
):
    save(calibrations, expected, "blue", shift=300)
    theirs = save(calibrations, other, "red")
    with pytest.raises(CalibrationError) as found:
        connect(expected, calibration)
    kind = load_profile(other).kind
    assert f"this arm is a {kind}, its servos hold what {theirs} says" in str(found.value)
    assert "--write" not in str(found.value), "that would spoil the other arm"


def test_an_arm_that_is_what_it_should_be_is_taken_whatever_else_lies_there(calibrations):
    save(calibrations, "so101", "blue")
    save(calibrations, "so101_leader", "red")
    (calibrations / FOLDERS["so101_leader"] / "damaged.json").write_text("{")
    assert connect("so101", "servos").units is not None


def test_where_no_file_tells_them_apart_a_difference_is_said_as_before(calibrations):
    save(calibrations, "so101", "blue", shift=300)
    with pytest.raises(CalibrationError, match="differs from what the servos hold"):
        connect("so101", "blue")


@pytest.fixture
def node(tmp_path):
    with zmq.Context() as ctx:
        made = leader_node.LeaderNode(
            ctx, tmp_path, b"s" * 8, connect("so101_leader", "nominal"), 30.0, "leader"
        )
        yield made
        made.close()


@pytest.mark.parametrize(("moved_deg", "is_told"), [(0.2, True), (10.0, False)])
def test_a_leader_that_nobody_moves_is_said_once(node, monkeypatch, moved_deg, is_told):
    told = []
    monkeypatch.setattr(node.publisher, "event", lambda severity, code, text: told.append((code, text)))
    pose = np.zeros(6, np.float32)
    for k in range(20):
        node._look_for_a_hand(pose + np.float32(moved_deg * (k % 2)), k * NS_PER_S)
    assert told == ([("leader_still", leader_node.STILL)] if is_told else [])


def test_a_leader_that_is_moved_within_the_five_seconds_is_not_told_of(node, monkeypatch):
    told = []
    monkeypatch.setattr(node.publisher, "event", lambda *said: told.append(said))
    for k in range(20):
        node._look_for_a_hand(np.full(6, 30.0 * (k > 4), np.float32), k * NS_PER_S)
    assert told == []

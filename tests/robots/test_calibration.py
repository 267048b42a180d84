"""LeRobot's calibration files: found where LeRobot wrote them, checked, written with a backup."""

from __future__ import annotations

import dataclasses
import json

import pytest

from edgevla.errors import CalibrationError
from edgevla.robots import calibration
from edgevla.robots.calibration import MotorCalibration, find_calibration, nominal
from edgevla.robots.profile import load_profile

NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty place where LeRobot would keep calibrations."""
    monkeypatch.delenv("HF_LEROBOT_HOME", raising=False)
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path / "calibration"))
    return tmp_path / "calibration"


def entries(**changes):
    made = {
        name: {"id": i, "drive_mode": 0, "homing_offset": -100 * i, "range_min": 700 + i, "range_max": 3300}
        for i, name in enumerate(NAMES, 1)
    }
    made["wrist_roll"].update(range_min=0, range_max=4095)
    for name, change in changes.items():
        made[name].update(change)
    return made


def put(home, kind, name, content):
    path = home / "robots" / kind / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("kind", ["so_follower", "so101_follower", "so100_follower"])
def test_files_of_every_naming_are_found(home, kind):
    put(home, kind, "blue", entries())
    found = find_calibration(load_profile("so101"), "blue")
    assert found.motors["elbow_flex"] == MotorCalibration(3, 0, -300, 703, 3300)


def test_folders_follow_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_LEROBOT_CALIBRATION", raising=False)
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "a"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    for folder, name in zip(calibration.folders(), ("a", "b", "c"), strict=True):
        assert folder.is_relative_to(tmp_path / name)
    put(calibration.folders()[2], "so_follower", "x", entries())
    assert find_calibration(load_profile("so101"), "x") is not None


def test_two_files_that_differ_stop_and_ask(home):
    put(home, "so_follower", "blue", entries())
    put(home, "so101_follower", "blue", entries())
    assert find_calibration(load_profile("so101"), "blue") is not None
    put(home, "so101_follower", "blue", entries(gripper={"homing_offset": 7}))
    with pytest.raises(CalibrationError, match="differ"):
        find_calibration(load_profile("so101"), "blue")


def test_without_an_id_the_only_file_is_taken_and_two_are_a_question(home):
    put(home, "so_follower", "blue", entries())
    assert "blue.json" in find_calibration(load_profile("so101"), None).source
    put(home, "so_follower", "red", entries())
    with pytest.raises(CalibrationError, match=r"blue, red; choose with --calibration"):
        find_calibration(load_profile("so101"), None)


def test_lerobot_s_file_without_an_id_is_called_none(home):
    put(home, "so_follower", "None", entries())
    assert "None.json" in find_calibration(load_profile("so101"), None).source


def test_a_missing_calibration_names_the_place_and_the_command(home):
    with pytest.raises(
        CalibrationError, match=r"no calibration of so101.*Run: edgevla calibrate --robot so101"
    ):
        find_calibration(load_profile("so101"), "blue")


BAD = [
    ({"motor_names": [], "homing_offset": [1, 2]}, "list form from before LeRobot 0.2"),
    ({**entries(), "gripper": [1]}, "list form"),
    ({k: v for k, v in entries().items() if k != "gripper"}, "lacks gripper"),
    ({**entries(), "extra": entries()["gripper"]}, "has also extra"),
    (entries(elbow_flex={"id": 4}), "has id 4, the profile says 3"),
    (entries(elbow_flex={"range_min": 3300}), r"has the range 3300\.\.3300"),
    (entries(elbow_flex={"range_max": 4096}), r"has the range 703\.\.4096"),
    (entries(elbow_flex={"homing_offset": 2114}), "has homing_offset 2114, which register 31 cannot hold"),
    (entries(elbow_flex={"range_max": 760}), "range of only 57 ticks: it was not moved"),
    (entries(elbow_flex={"drive_mode": 2}), "has drive_mode 2"),
    (
        entries(elbow_flex={"range_min": 700.5}),
        r"json: elbow_flex\.range_min is 700\.5; expected a whole number",
    ),
    ([], "holds no joints"),
    ({"elbow_flex": {"id": 3}}, "elbow_flex lacks the key 'drive_mode'"),
]


@pytest.mark.parametrize(("content", "sentence"), BAD, ids=[b[1][:24] for b in BAD])
def test_implausible_files_are_refused_with_joint_and_value(home, content, sentence):
    put(home, "so_follower", "blue", content)
    with pytest.raises(CalibrationError, match=sentence):
        find_calibration(load_profile("so101"), "blue")


def test_a_file_that_is_no_json_is_a_sentence(home):
    put(home, "so_follower", "blue", {}).write_text("{")
    with pytest.raises(CalibrationError, match="not readable JSON"):
        find_calibration(load_profile("so101"), "blue")


def test_two_arms_have_a_file_each_without_the_arm_s_prefix(home):
    put(home, "so_follower", "blue_left", entries())
    put(home, "so_follower", "blue_right", entries(gripper={"homing_offset": 5}))
    found = find_calibration(load_profile("so101_bimanual"), "blue")
    assert found.motors["left_gripper"].homing_offset == -600
    assert found.motors["right_gripper"].homing_offset == 5


def test_writing_keeps_lerobot_s_form_and_a_backup_of_the_old_file(home):
    profile = load_profile("so101")
    old = put(home, "so101_follower", "blue", entries())
    before = old.read_text()
    made = nominal(profile)
    assert calibration.write(profile, made, "blue") == [old]
    assert json.loads(old.read_text())["gripper"] == {
        "id": 6, "drive_mode": 0, "homing_offset": made.motors["gripper"].homing_offset,
        "range_min": 2030, "range_max": 3281,
    }  # fmt: skip
    backups = list(old.parent.glob("blue.json.bak-*"))
    assert [b.read_text() for b in backups] == [before]
    assert calibration.write(profile, made, "new")[0] == home / "robots" / "so_follower" / "new.json"
    assert find_calibration(profile, "new").motors == made.motors


def test_leaders_are_kept_with_the_teleoperators(home):
    profile = load_profile("so101_leader")
    path = calibration.write(profile, nominal(profile), "black")[0]
    assert path == home / "teleoperators" / "so_leader" / "black.json"
    assert find_calibration(profile, "black") is not None


def test_robots_with_absolute_encoders_need_no_file(home):
    assert find_calibration(load_profile("aloha"), None) is None


# ---- what is no calibration ----

FACTORY = {"homing_offset": 0, "min_position": 0, "max_position": 4095}


def held(profile, **changes):
    """What the servos of a calibrated arm hold, but for some."""
    made = {
        name: {"homing_offset": e.homing_offset, "min_position": e.range_min, "max_position": e.range_max}
        for name, e in nominal(profile).motors.items()
    }
    for name, registers in changes.items():
        made[name] = {**made[name], **registers}
    return made


@pytest.mark.parametrize("name", ["so101", "so101_leader", "so101_bimanual"])
def test_servos_as_they_come_from_the_factory_are_no_calibration(name):
    profile = load_profile(name)
    fresh = {motor.name: FACTORY for bus in profile.buses for motor in bus.motors}
    with pytest.raises(
        CalibrationError, match=rf"all servos of {name} were never calibrated.*edgevla calibrate"
    ):
        calibration.adopted(profile, fresh)


def test_a_joint_that_turns_all_the_way_round_has_the_whole_turn_and_is_calibrated():
    profile = load_profile("so101")
    assert calibration.adopted(profile, held(profile)).motors["wrist_roll"].range_max == 4095
    assert (
        calibration.adopted(profile.with_units("range100"), held(profile)).motors["wrist_roll"].range_max
        == 4095
    )
    by_chance = held(profile, wrist_roll={"homing_offset": 0})
    assert calibration.adopted(profile, by_chance).motors["wrist_roll"].homing_offset == 0


def test_one_new_servo_in_a_calibrated_arm_is_named():
    profile = load_profile("so101_bimanual")
    with pytest.raises(CalibrationError, match=r"right_elbow_flex of so101_bimanual was never calibrated"):
        calibration.adopted(profile, held(profile, right_elbow_flex=FACTORY))


def test_a_calibration_that_ended_after_homing_is_none():
    profile = load_profile("so101")
    homed = {
        name: {**registers, "min_position": 0, "max_position": 4095}
        for name, registers in held(profile).items()
    }
    with pytest.raises(CalibrationError, match="gripper of so101 was never calibrated"):
        calibration.adopted(profile, homed)


def test_a_file_with_a_new_servo_s_values_is_refused(home):
    put(home, "so_follower", "blue", entries(gripper={"homing_offset": 0, "range_min": 0, "range_max": 4095}))
    with pytest.raises(CalibrationError, match=r"blue.json: gripper of so101 was never calibrated"):
        find_calibration(load_profile("so101"), "blue")


def test_a_robot_is_not_driven_with_what_new_servos_hold(bench):
    made = bench("so101", calibration=None)
    for servo in made.emulated.servos.values():
        for register, value in FACTORY.items():
            servo.put(register, value)
    with pytest.raises(CalibrationError, match="all servos of so101 were never calibrated"):
        made.robot.connect()
    assert not any(servo.torque_on for servo in made.emulated.servos.values())


def test_an_arm_with_absolute_encoders_has_the_whole_turn_by_its_profile(bench):
    bench("aloha").robot.connect()


# ---- poses out of reach ----


def test_a_pose_beyond_a_joint_s_calibrated_range_is_said_with_both_values():
    profile = load_profile("so101")
    made = nominal(profile)
    assert calibration.out_of_reach(profile, made) == []
    short = dataclasses.replace(made.motors["shoulder_lift"], range_min=1400, range_max=2700)
    incomplete = calibration.Calibration({**made.motors, "shoulder_lift": short})
    assert calibration.out_of_reach(profile, incomplete) == [
        "shoulder_lift: rest is -95 in so101.toml, its calibrated range ends at -57.14"
    ]
    assert calibration.out_of_reach(profile.with_units("range100"), incomplete) == [], (
        "a share is always reachable"
    )


@pytest.mark.parametrize("name", ["so101_leader", "so101_bimanual", "so101_leader_bimanual"])
def test_nominal_arms_reach_their_poses(name):
    profile = load_profile(name)
    assert calibration.out_of_reach(profile, nominal(profile)) == []

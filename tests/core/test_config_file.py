"""`edgevla.toml` as a person meets it: what a verb takes from it, what wins, and what is said."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevla.cli import VERBS, _parser_for, main
from edgevla.config_file import TAKES, parse
from edgevla.errors import UsageError
from edgevla.launch.led import command
from edgevla.robots.profile import load_profile
from edgevla.robots.teleop import _options

ARM = """
robot = "so101"
bundle = "bundles/act"
port = "/dev/arm"
calibration = "mine"
[camera]
front = 0
wrist = "w.mp4"
"""
Given = Callable[..., argparse.Namespace]


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    """`given(verb, *argv, says=TOML)`: the arguments that the verb gets in a folder with this `edgevla.toml`."""
    monkeypatch.chdir(tmp_path)

    def parsed(verb: str, *argv: str, says: str = ARM) -> argparse.Namespace:
        Path("edgevla.toml").write_text(says)
        return parse(verb, _parser_for(verb)[0], argv)

    return parsed


def test_what_is_not_typed_comes_from_the_file_and_is_said_first(
    given: Given, capsys: pytest.CaptureFixture[str]
) -> None:
    args = given("deploy")
    assert (args.robot, args.bundle, args.port, args.calibration) == (
        "so101",
        "bundles/act",
        ["/dev/arm"],
        "mine",
    )
    assert args.camera == ["front=0", "wrist=w.mp4"]
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("edgevla deploy: from edgevla.toml: ")
    for words in (
        "--robot so101",
        " bundles/act",
        "--port /dev/arm",
        "--calibration mine",
        "--camera front=0",
    ):
        assert words in first


def test_the_command_line_wins_cameras_by_name(given: Given, capsys: pytest.CaptureFixture[str]) -> None:
    args = given("deploy", "other", "--port", "/dev/b", "--camera", "front=2")
    assert (args.bundle, args.port, args.camera) == ("other", ["/dev/b"], ["front=2", "wrist=w.mp4"])
    said = capsys.readouterr().err
    assert "/dev/arm" not in said
    assert "front=0" not in said


def test_another_robot_takes_nothing_of_this_one(given: Given, capsys: pytest.CaptureFixture[str]) -> None:
    args = given("deploy", "--robot", "aloha")
    assert (args.robot, args.bundle, args.port, args.calibration, args.camera) == (
        "aloha",
        None,
        [],
        None,
        [],
    )
    assert capsys.readouterr().err == ""
    assert given("deploy", "--robot", "so101").port == ["/dev/arm"]


def test_what_stands_in_its_place_keeps_it_out(given: Given) -> None:
    args = given("deploy", "--sim", "--policy", "tcp://h:1")
    assert (args.robot, args.bundle, args.port, args.calibration, args.camera) == (
        "so101",
        None,
        [],
        None,
        [],
    )


def test_doctor_without_a_robot_still_looks_at_the_machine(given: Given) -> None:
    assert (given("doctor").robot, given("doctor").port) == (None, [])
    assert given("doctor", "--robot", "so101").port == ["/dev/arm"]


LEADER = 'leader_port = "/dev/lead"\nleader_calibration = "hers"\n' + ARM


def test_the_leader_s_keys_count_where_there_is_a_leader(given: Given) -> None:
    led = given("deploy", "--leader", "so101_leader", says=LEADER)
    assert (led.leader_port, led.leader_calibration) == (["/dev/lead"], "hers")
    alone = given("deploy", says=LEADER)
    assert (alone.leader_port, alone.leader_calibration) == ([], None)
    led = given("teleop", "--leader", "so101_leader", "--leader-port", "/dev/b", "--sim", says=LEADER)
    assert (led.leader_port, led.leader_calibration, led.port) == (["/dev/b"], None, [])


def test_a_recording_takes_its_robot_and_says_what_does_not_drive(
    given: Given, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest is taken by what it starts, from the same file."""
    assert given("record", "set").robot is None
    assert capsys.readouterr().err == "", "what runs already has its own arm"
    args = given("record", "set", "--leader", "so101_leader")
    assert (args.robot, args.port, args.camera, args.policy) == ("so101", [], [], None)
    assert "bundles/act of edgevla.toml does not drive here" in capsys.readouterr().err
    assert command(given("record", "set", "--leader", "so101_leader", "--config", "edgevla.toml"))[1][-1] == (
        "--config=edgevla.toml"
    )


def test_teleoperation_leaves_out_a_camera_that_only_the_file_has(given: Given) -> None:
    args = given("teleop", "--leader", "so101_leader")
    heard: list[str] = []

    def tell(*words: str) -> None:
        heard.append(" ".join(words))

    assert _options(args, load_profile("so101"), tell).cameras == {"front": "0"}
    assert "camera wrist of edgevla.toml is left out: so101 has no such camera" in heard[0]
    typed = given("teleop", "--leader", "so101_leader", "--camera", "wrist=w.mp4")
    with pytest.raises(UsageError, match=r"--camera wrist=.*no such camera"):
        _options(typed, load_profile("so101"), tell)


def test_where_nobody_sits_only_a_named_file_counts(given: Given, tmp_path: Path) -> None:
    assert given("deploy", "--robot", "so101", "--unattended").port == []
    named = ["--robot", "so101", "--unattended", "--config", str(tmp_path / "edgevla.toml")]
    assert given("deploy", *named).port == ["/dev/arm"]


@pytest.mark.parametrize(
    ("says", "code", "words"),
    [
        ('robto = "so101"\n', 1, "edgevla.toml has the unknown key 'robto'; did you mean 'robot'?"),
        ("robot = 3\n", 1, "edgevla.toml: robot is 3; expected"),
        ("robot = \n", 1, "edgevla.toml cannot be read"),
        ('port = "/dev/x"\n', 2, "the following arguments are required: --robot"),
    ],
)
def test_a_wrong_file_is_one_sentence(
    says: str,
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgevla.toml").write_text(says)
    assert main(["deploy"]) == code
    assert words in capsys.readouterr().err


def test_a_file_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", "--config", "/nowhere/edgevla.toml"]) == 1
    assert "--config /nowhere/edgevla.toml: there is no such file" in capsys.readouterr().err


def test_the_table_names_options_that_there_are() -> None:
    assert set(TAKES) <= set(VERBS)
    for verb, keys in TAKES.items():
        assert set(keys) <= {action.dest for action in _parser_for(verb)[0]._actions}, verb

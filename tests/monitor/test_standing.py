"""How the arm stands: the header's word and sentence for every state of loop, guardian, supervisor, run directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgevla.monitor.outside import Outside, is_at_work, look
from edgevla.monitor.standing import FRESH_NS, Heard, Standing, judge
from edgevla.session import (
    Deployment,
    GuardianState,
    GuardianStatus,
    write_deployment,
    write_guardian_status,
    write_preparing,
)

S = 1_000_000_000
NOW = 1000 * S
RUNNING = Heard("running", "", 10_000_000)
SILENT = Heard("running", "", 3 * S)


def guardian(state: GuardianState, why: str = "", unconfirmed: tuple[str, ...] = ()) -> GuardianStatus:
    return GuardianStatus(state, 4242, NOW - 5 * S, why, list(unconfirmed))


def standing(heard: Heard, **outside: object) -> Standing:
    return judge(heard, Outside(**{"is_guardian_alive": True, **outside}), NOW)  # type: ignore[arg-type]


def test_a_loop_that_speaks_is_believed() -> None:
    said = standing(Heard("holding", "no chunk for 3 s", 0), guardian=guardian("watching"))
    assert (said.word, said.sentence, said.is_live) == ("HOLDING", "no chunk for 3 s", True)


@pytest.mark.parametrize(
    ("mode", "word"), [("running", "LED BY HAND"), ("paused", "PAUSED"), ("holding", "HOLDING")]
)
def test_who_drives_is_said_in_every_mode(mode: str, word: str) -> None:
    said = standing(Heard(mode, "", 0, is_led=True), guardian=guardian("watching"))
    assert (said.word, said.sentence) == (word, "the leader drives, not the policy")
    assert "leader" not in standing(Heard(mode, "", 0), guardian=guardian("watching")).sentence


@pytest.mark.parametrize(("mode", "word"), [("running", "SHADOW"), ("paused", "SHADOW PAUSED")])
def test_a_shadow_is_called_so(mode: str, word: str) -> None:
    said = standing(Heard(mode, "", 0, is_shadow=True), guardian=guardian("watching"))
    assert said.word == word
    assert "nothing is sent to the arm" in said.sentence
    by_leader = standing(Heard(mode, "", 0, is_shadow=True, is_led=True), guardian=guardian("watching"))
    assert by_leader.word == word
    assert "the leader moves the arm; ┃ is what the policy would do" in by_leader.sentence


def test_a_silence_is_lost_after_half_a_second_and_says_how_long() -> None:
    assert standing(Heard("running", "", FRESH_NS - 1)).word == "RUNNING"
    said = standing(SILENT, guardian=guardian("watching"))
    assert said.word == "LOST"
    assert "3 s" in said.sentence
    assert "running before" in said.sentence


@pytest.mark.parametrize(
    ("state", "word", "words"),
    [
        ("held", "HELD BY GUARDIAN", "held where it is for 5 s"),
        ("parking", "PARKING", "lowered at reduced torque for 5 s"),
        ("parked", "PARKED", "torque stays on, reduced"),
        ("released", "RELEASED", "torque has been off for 5 s"),
    ],
)
@pytest.mark.parametrize("heard", [RUNNING, SILENT, Heard()])
def test_what_the_guardian_does_it_says_itself(
    state: GuardianState, word: str, words: str, heard: Heard
) -> None:
    said = standing(heard, guardian=guardian(state, "the control loop was silent for 120 ms"))
    assert said.word == word
    assert "silent for 120 ms" in said.sentence
    assert words in said.sentence
    assert not said.is_live
    assert "green" not in said.style


def test_motors_that_are_not_confirmed_off_are_an_alarm() -> None:
    said = standing(SILENT, guardian=guardian("released", "why", ("elbow_flex", "gripper")))
    assert "red" in said.style
    assert "may still be ON at elbow_flex, gripper" in said.sentence


@pytest.mark.parametrize("state", ["watching", "held", "parking"])
def test_a_guardian_that_died_with_torque_on_holds_nothing(state: GuardianState) -> None:
    said = standing(SILENT, guardian=guardian(state), is_guardian_alive=False)
    assert said.word == "UNHELD"
    assert "red" in said.style
    assert "power off" in said.sentence


def test_a_guardian_that_ended_after_an_orderly_release_is_no_alarm() -> None:
    heard = Heard("stopped", "asked to stop", 3 * S, on=(), has_released=True)
    said = standing(heard, guardian=guardian("watching"), is_guardian_alive=False)
    assert said.word == "ENDED"
    assert "stopped when it was last heard" in said.sentence


def test_an_arm_that_comes_to_rest_is_not_called_stopped_while_it_has_torque() -> None:
    on = ("elbow_flex", "gripper")
    assert standing(Heard("stopped", "to the rest pose", 0, on=on)).word == "STOPPING"
    assert standing(Heard("stopped", "", 0, on=on, has_released=True)).word == "PARKED"
    assert standing(Heard("stopped", "", 0, on=(), has_released=True)).word == "STOPPED"
    doubtful = Heard("stopped", "", 0, on=("gripper",), has_released=True, is_unconfirmed=True)
    for said in (standing(doubtful), standing(doubtful, guardian=guardian("released"))):
        assert "red" in said.style
        assert "may still be ON at gripper" in said.sentence


def test_a_loop_that_outlives_its_guardian_is_heard() -> None:
    said = standing(RUNNING, guardian=guardian("watching"), is_guardian_alive=False)
    assert said.is_live


def test_a_run_directory_that_has_gone_is_the_end_with_what_was_known() -> None:
    said = standing(SILENT, guardian=guardian("released", "asked to stop"), is_folder_there=False)
    assert said.word == "ENDED"
    assert "released" in said.sentence
    assert "asked to stop" in said.sentence
    without = standing(SILENT, is_folder_there=False)
    assert "running when it was last heard, 3 s ago" in without.sentence
    alarming = standing(SILENT, guardian=guardian("released", "", ("gripper",)), is_folder_there=False)
    assert "red" in alarming.style


def test_before_the_first_word_nothing_is_claimed() -> None:
    said = standing(Heard())
    assert said.word == "NO ROBOT YET"
    assert not said.is_live


def test_an_engine_that_is_being_built_is_what_a_robot_waits_for(tmp_path: Path) -> None:
    note = Deployment("00" * 8, os.getpid(), "so101", None)
    write_deployment(tmp_path, note)
    write_preparing(tmp_path, "denoise.onnx (2 of 3): 40 %, about 3 min left")
    building = look(tmp_path, note, Outside())
    said = judge(Heard(), building, NOW)
    assert (said.word, said.sentence) == ("BUILDING", "denoise.onnx (2 of 3): 40 %, about 3 min left")
    assert judge(RUNNING, building, NOW).word == "RUNNING"
    write_preparing(tmp_path, "")
    assert judge(Heard(), look(tmp_path, note, building), NOW).word == "NO ROBOT YET"


def test_the_guardians_last_word_outlives_its_file(tmp_path: Path) -> None:
    note = Deployment("00" * 8, os.getpid(), "so101", None)
    write_deployment(tmp_path, note)
    write_guardian_status(tmp_path, GuardianStatus("released", os.getpid(), 5, "why"))
    seen = look(tmp_path, note, Outside())
    assert seen.guardian is not None
    assert (seen.guardian.state, seen.is_guardian_alive, seen.is_folder_there) == ("released", True, True)
    for item in tmp_path.iterdir():
        item.unlink()
    later = look(tmp_path, note, seen)
    assert later.guardian == seen.guardian
    assert not later.is_folder_there


def test_a_process_that_has_died_and_waits_to_be_counted_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but not yet counted: a zombie
        assert not is_at_work(process.pid)
    finally:
        process.wait()
    assert is_at_work(os.getpid())

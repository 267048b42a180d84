"""The cockpit on real terminals: its parts at the usual sizes, how one looks around, and that looking moves nothing."""

from __future__ import annotations

import time

import pytest
from monitor_kit import Robot

from edgevla.messages import Event


def press(watcher, key):
    """As a hand does: what follows another key at once is a paste."""
    time.sleep(0.4)
    watcher.write(key)


@pytest.fixture
def four_cameras():
    made = Robot(("high", "low", "left_wrist", "right_wrist"))
    yield made
    made.close()


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
def test_every_part_is_on_the_screen(four_cameras, watch, size):
    watcher = watch(four_cameras, size)
    four_cameras.guardian("watching")
    for words in (
        "guardian watching",
        "shoulder_lift",
        "12.5°",
        "10 s",
        "chunks",
        "latency",
        "50.0 Hz",
        "load on",
    ):
        watcher.wait_for(words)
    for number, camera in enumerate(("high", "low", "left_wrist", "right_wrist"), 1):
        watcher.wait_for(f"{number} {camera}")
    watcher.wait_for("EMERGENCY")


def test_a_camera_is_enlarged_and_given_back(four_cameras, watch):
    watcher = watch(four_cameras, (120, 40))
    watcher.wait_for("2 low")
    press(watcher, "2")
    watcher.wait_until(lambda: "shoulder_pan" not in watcher.screen, "one camera has the screen")
    watcher.wait_for("2 low")
    assert "RUNNING" in watcher.screen
    press(watcher, "c")
    watcher.wait_for("3 left_wrist")
    press(watcher, "\x1b")
    watcher.wait_for("shoulder_pan")
    assert four_cameras.heard == []


def test_events_are_searched_while_a_word_is_typed_and_none_of_it_moves_the_arm(robot, watch):
    watcher = watch(robot)
    for i in range(30):
        robot.say(Event("info", "x", f"sentence {i}", {}))
    robot.say(Event("warning", "hot", "the elbow is hot", {}))
    watcher.wait_for("the elbow is hot")
    for _ in range(6):
        robot.say(Event("info", "x", "something else", {}))
    press(watcher, "/")
    watcher.wait_for("search ❯")
    for letter in "hot":
        press(watcher, letter)
    watcher.wait_for("with “hot”: 1 of")
    assert "sentence" not in watcher.screen
    press(watcher, "\x1b")
    watcher.wait_for("sentence 29")
    press(watcher, "\x1b[5~")  # page up
    watcher.wait_for("10 newer below")
    assert robot.heard == []


def test_help_names_all_keys_and_the_state_stays(robot, watch):
    watcher = watch(robot, (80, 24))
    press(watcher, "?")
    for words in ("F12 ctrl+e", "space", "PageUp", "the signs", "RUNNING"):
        watcher.wait_for(words)
    press(watcher, "?")
    watcher.wait_for("shoulder_pan")


def test_without_colours_everything_can_be_read(four_cameras, watch):
    watcher = watch(four_cameras, (120, 40), NO_COLOR="1")
    watcher.wait_until(lambda: watcher.screen.count("░" * 8) > 20, "pictures in shades")
    watcher.wait_until(lambda: "on retry/s" in watcher.screen, "the servos")
    assert watcher.colours <= {"default"}
    assert watcher.style_of("RUNNING").reverse

"""The page of all deployments on a real terminal: what comes and goes is said, one is opened, none is touched."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from monitor_kit import Robot, Watcher

from edgevla.cli import main
from edgevla.messages import Event
from edgevla.monitor.fleet import Fleet
from edgevla.monitor.panels.fleet import EMPTY, fleet
from edgevla.monitor.rows import fitted
from edgevla.session import write_deployment


@pytest.fixture
def place(monkeypatch):
    """`place(name)`: a scripted robot among the only deployments that this test's processes see."""
    root, made = Path(tempfile.mkdtemp(prefix="ev-", dir="/tmp")), []
    monkeypatch.setenv("EDGEVLA_RUNTIME_DIR", str(root))

    def start(name, bundle="bundles/reach"):
        robot = Robot()
        robot.is_called(name)
        made.append(robot)
        write_deployment(robot.folder, replace(robot.note, robot=name, bundle=bundle))
        robot.guardian("watching")
        (root / robot.folder.name).symlink_to(robot.folder)
        return robot

    yield start
    for robot in made:
        robot.close()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def monitor():
    """`monitor(words, *options)`: `edgevla monitor` on a terminal, once it shows the words."""
    made = []

    def start(first, *options, size=(120, 30)):
        made.append(Watcher(["-m", "edgevla", "monitor", *options], size))
        made[-1].wait_for(first, 40)
        return made[-1]

    yield start
    for watcher in made:
        watcher.close()


def press(watcher, key):
    """As a hand does: what follows another key at once is a paste."""
    time.sleep(0.4)
    watcher.write(key)


def line_of(watcher, name):
    return next((line for line in watcher.screen.split("\n") if f" {name} " in line[:24]), "")


def wait_for_line(watcher, name, words):
    watcher.wait_until(lambda: words in line_of(watcher, name), f"{name} never was {words!r}")


def test_several_robots_are_a_line_each_and_one_is_opened_and_left_again(place, monitor):
    kitchen, lab = place("kitchen"), place("lab", "bundles/pour")
    watcher = monitor("robots on this machine")
    for name, bundle in (("kitchen", "reach"), ("lab", "pour")):
        wait_for_line(watcher, name, "RUNNING")
        wait_for_line(watcher, name, bundle)
    watcher.wait_for("2 running")
    kitchen.say(Event("warning", "hot", "the elbow is hot", {}))
    kitchen.say(Event("info", "x", "later, and less grave", {}))
    wait_for_line(watcher, "kitchen", "! robot: the elbow is hot")
    press(watcher, "e")
    watcher.wait_for("no key here acts on a robot: open its cockpit with Enter")
    press(watcher, "\x1b[B")  # down
    wait_for_line(watcher, "lab", "❯2")
    press(watcher, "\r")
    watcher.wait_for("EMERGENCY")
    watcher.wait_for("shoulder_pan")
    assert (kitchen.heard, lab.heard) == ([], [])
    press(watcher, " ")
    lab.wait_for("pause")
    watcher.wait_for("PAUSED")
    watcher.wait_for("all robots")
    press(watcher, "b")
    watcher.wait_for("robots on this machine")
    wait_for_line(watcher, "lab", "❯2")
    wait_for_line(watcher, "lab", "PAUSED")
    press(watcher, "1")
    watcher.wait_for("kitchen  RUNNING")
    assert (kitchen.actions(), lab.actions()) == ([], ["pause"])


def test_a_deployment_that_ends_says_so_and_gives_its_line_to_the_next_one(place, monitor):
    place("kitchen")
    lab = place("lab")
    watcher = monitor("robots on this machine")
    wait_for_line(watcher, "lab", "RUNNING")
    press(watcher, "\x1b[B")  # down
    wait_for_line(watcher, "lab", "❯2")
    lab.close()
    wait_for_line(watcher, "lab", "ENDED")
    watcher.wait_for("1 running")
    watcher.wait_for("the deployment has ended; running when it was last heard")
    press(watcher, "2")
    watcher.wait_for("lab has ended: there is nothing to open")
    place("lab", "bundles/pour")
    wait_for_line(watcher, "lab", "RUNNING")
    watcher.wait_for("2 running")
    assert "ENDED" not in watcher.screen
    wait_for_line(watcher, "lab", "❯2")  # what Enter opens is still the robot that was chosen
    press(watcher, "q")
    assert watcher.wait_for_end() == 0
    watcher.assert_sane()


def test_one_robot_is_opened_at_once_and_b_shows_the_page(place, monitor):
    place("kitchen")
    watcher = monitor("EMERGENCY")
    press(watcher, "b")
    watcher.wait_for("1 running")
    os.kill(watcher.process.pid, signal.SIGTERM)
    assert watcher.wait_for_end() == 130
    assert "asked to terminate" in watcher.after_the_screen
    watcher.assert_sane()


def test_the_page_waits_where_none_runs(place, monitor):
    watcher = monitor(EMPTY, "--fleet", size=(80, 24))
    place("kitchen")
    wait_for_line(watcher, "kitchen", "RUNNING")
    watcher.write("\x03")
    assert watcher.wait_for_end() == 130
    assert "left; no robot was asked anything" in watcher.after_the_screen


def test_all_and_one_at_once_are_refused(tmp_path, capsys):
    assert main(["monitor", "--fleet", "--run-dir", str(tmp_path)]) == 2
    assert "leave one of them out" in capsys.readouterr().err


def test_no_size_breaks_a_row_and_the_chosen_line_is_in_view(place):
    for n in range(7):
        place(f"arm{n}")
    seen = Fleet()
    try:
        seen.look(time.monotonic_ns())
        assert [line.model.robot for line in seen.lines] == [f"arm{n}" for n in range(7)]
        for width, height in ((20, 3), (40, 8), (59, 13), (80, 23), (200, 59)):
            for chosen in range(7):
                rows = fleet(seen, chosen, width, height, time.monotonic_ns())
                assert len(rows) <= max(height, 3)
                texts = ["".join(text for text, _ in fitted(row, width)) for row in rows]
                assert any(f"❯{chosen + 1}" in text for text in texts)
                n_shown = sum(text.startswith(" ") and "  arm" in text for text in texts)
                left_out = [re.search(r"(\d+) rows above, (\d+) below", text) for text in texts]
                counts = [int(n) for found in left_out if found for n in found.groups()]
                assert height == 3 or n_shown + sum(counts) == 7, texts
    finally:
        seen.close()


GIVEN_BACK, TAKEN = b"\x1b[?1049l", b"\x1b[?1049h"
"""What the monitor writes when it leaves the terminal, and when it draws on it."""
PRESS_THERE = "and press e there"


def open_first(watcher, when):
    """Key 1 on the page, and until its screen has gone (`when`: GIVEN_BACK) or the cockpit's begins (TAKEN)."""
    n = watcher.raw.count(when)
    press(watcher, "1")
    until = time.monotonic() + 15
    while watcher.raw.count(when) == n:
        assert time.monotonic() < until
        time.sleep(0.001)


def back_to_page(watcher, robot):
    robot.heard.clear()
    robot.mode = "running"
    press(watcher, "b")
    watcher.wait_for("robots on this machine")
    wait_for_line(watcher, "kitchen", "RUNNING")


def test_no_gap_between_page_and_cockpit_swallows_an_emergency_key(place, monitor):
    """Every other key that is typed there was typed blind, and moves nothing."""
    kitchen, lab = place("kitchen"), place("lab")
    watcher = monitor("robots on this machine")
    wait_for_line(watcher, "kitchen", "RUNNING")
    for when in (GIVEN_BACK, TAKEN):
        open_first(watcher, when)
        watcher.write("e")
        kitchen.wait_for("emergency_stop")
        watcher.wait_for("shoulder_pan")
        time.sleep(0.3)
        assert kitchen.actions() == ["emergency_stop"]
        back_to_page(watcher, kitchen)
    for gap_s in (0.075, 0.09, 0.11):  # the page is about to go
        press(watcher, "1")
        time.sleep(gap_s)
        watcher.write("e")
        watcher.wait_until(
            lambda: "emergency_stop" in kitchen.actions() or PRESS_THERE in watcher.screen, "swallowed"
        )
        if kitchen.heard:
            watcher.wait_for("shoulder_pan")
            back_to_page(watcher, kitchen)
    open_first(watcher, GIVEN_BACK)
    watcher.write("h")
    watcher.wait_for("shoulder_pan")
    time.sleep(0.3)
    assert (kitchen.heard, lab.heard) == ([], [])


def test_a_key_on_the_page_is_no_emergency_of_the_cockpit_that_is_opened_afterwards(place, monitor):
    kitchen, _ = place("kitchen"), place("lab")
    watcher = monitor("robots on this machine")
    wait_for_line(watcher, "kitchen", "RUNNING")
    press(watcher, "e")
    watcher.wait_for(PRESS_THERE)
    open_first(watcher, TAKEN)
    watcher.wait_for("shoulder_pan")
    time.sleep(0.3)
    assert kitchen.heard == []

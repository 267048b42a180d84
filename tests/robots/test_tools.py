"""Calibrations through the command line, on an emulator in a process of its own; keys come through a pipe."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path

import pytest

from edgevla.cli import main
from edgevla.errors import UsageError
from edgevla.robots.calibration import find_calibration
from edgevla.robots.handshake import held_calibration, write_differing
from edgevla.robots.ports import open_ports
from edgevla.robots.profile import load_profile
from edgevla.robots.rescue import make_buses
from edgevla.robots.tools.guided import guide
from edgevla.robots.tools.terminal import Terminal


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path / "calibration"))
    return tmp_path / "calibration"


def test_check_adopt_and_write_through_the_command_line(start_emulator, capsys, home):
    port = start_emulator("so101", "--untimed").ports["arm"]
    base = ["calibrate", "--robot", "so101", "--port", port, "--id", "blue"]
    assert main([*base, "--check"]) == 1
    assert "no calibration of so101" in capsys.readouterr().err
    assert main([*base, "--adopt"]) == 0
    assert main([*base, "--check"]) == 0
    path = home / "robots" / "so_follower" / "blue.json"
    content = json.loads(path.read_text())
    content["elbow_flex"]["homing_offset"] += 40
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert main([*base, "--check"]) == 1
    out = capsys.readouterr().out
    assert f"elbow_flex: homing_offset is {content['elbow_flex']['homing_offset']} in the file" in out
    assert main([*base, "--write"]) == 0
    assert main([*base, "--check"]) == 0
    assert main([*base[:-1], "../blue", "--adopt"]) == 2
    assert "'../blue' is no name of an arm" in capsys.readouterr().err
    assert not list((home / "robots").glob("*.json"))


def test_the_guided_way_at_a_terminal(start_emulator, home):
    """A person presses Enter, sweeps (the emulated arm sways by itself, a little), presses Enter again, and keeps it."""
    profile = load_profile("so101")
    ports = open_ports(profile, [start_emulator("so101", "--untimed", "--sway", "0.2").ports["arm"]])
    read, write = os.pipe()
    os.write(write, b"\n")
    timer = threading.Timer(9.0, lambda: os.write(write, b"\n" + b"k\n" * 5))
    timer.start()
    out = io.StringIO()
    with os.fdopen(read) as keys:
        code = guide(profile, make_buses(profile, ports), "green", Terminal("calibration", keys, out))
    timer.join()
    os.close(write)
    ports["arm"].close()
    assert code == 0
    made = find_calibration(profile, "green").motors
    assert (made["wrist_roll"].range_min, made["wrist_roll"].range_max) == (0, 4095)
    assert made["elbow_flex"].range_max - made["elbow_flex"].range_min == pytest.approx(440, abs=12)
    assert "hold the so101" in out.getvalue()
    assert "elbow_flex was seen from" in out.getvalue()
    assert f"Saved {home}" in out.getvalue()


def test_a_calibration_that_is_given_up_leaves_the_servos_as_they_were(start_emulator, home):
    profile = load_profile("so101")
    ports = open_ports(profile, [start_emulator("so101", "--untimed", "--sway", "0.2").ports["arm"]])
    lines = make_buses(profile, ports)
    write_differing(lines["arm"], 3, {"homing_offset": 77, "min_position": 800, "max_position": 3300})
    before = held_calibration(lines, profile)
    read, write = os.pipe()
    os.write(write, b"\n")
    os.close(write)  # Enter once, then nobody is there
    out = io.StringIO()
    with os.fdopen(read) as keys, pytest.raises(UsageError, match="the input has ended"):
        guide(profile, lines, "green", Terminal("calibration", keys, out))
    assert held_calibration(lines, profile) == before
    assert "2. Move every joint" in out.getvalue()
    assert "the servos hold again what they held before" in out.getvalue()
    assert not list(home.rglob("green.json"))
    ports["arm"].close()


def test_nobody_at_the_terminal_is_a_sentence(start_emulator, capsys, monkeypatch):
    port = start_emulator("so101", "--untimed").ports["arm"]
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        assert main(["calibrate", "--robot", "so101", "--port", port]) == 2
        assert main(["setup-motors", "--robot", "so101", "--port", port]) == 2
    assert capsys.readouterr().err.count("the input has ended") == 2

"""The steps of tests/hardware on an emulated arm, which a leader's sway moves as a hand would."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "hardware"))

import first_power_up
from first_power_up import STEPS, PowerUp

from edgevla.robots import calibration
from edgevla.robots.emulator.trace import read_trace
from edgevla.robots.profile import load_profile

pytestmark = pytest.mark.realtime


@pytest.fixture
def a_calibration(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path / "calibration"))
    calibration.write(load_profile("so101"), calibration.nominal(load_profile("so101")), "blue")


def test_every_step_passes_on_a_sound_arm_and_leaves_it_limp(start_emulator, a_calibration, monkeypatch):
    monkeypatch.setattr(first_power_up, "WAY_S", 0.5)
    monkeypatch.setattr(first_power_up, "HOLD_S", 0.3)
    asked = []
    port = start_emulator("so101", "--sway", "0.2").ports["arm"]
    arm = PowerUp("so101", [port], "blue", asked.append)
    try:
        for step in STEPS:
            step(arm)
        arm.torque_is_off()
    finally:
        arm.close()
    assert len(asked) == 6
    numbers = [int(step.__doc__.split(".")[0]) for step in STEPS]
    assert numbers == list(range(1, len(STEPS) + 1))


def test_nothing_is_written_before_a_person_said_so(start_emulator, a_calibration, tmp_path):
    """The first five steps: no write on the wire."""
    trace = tmp_path / "trace.jsonl"
    emulator = start_emulator("so101", "--sway", "0.2", "--trace", str(trace))
    arm = PowerUp("so101", [emulator.ports["arm"]], "blue", lambda _: None)
    try:
        for step in STEPS[:5]:
            step(arm)
    finally:
        for port in arm.robot.ports.values():
            port.close()
    emulator.stop()
    sent = [entry["op"] for entry in read_trace(trace) if entry["dir"] == "tx"]
    assert "read" in sent
    assert {op for op in sent if "write" in op} == set()


def test_an_arm_with_torque_is_not_gone_on_with(start_emulator, a_calibration):
    arm = PowerUp("so101", [start_emulator("so101", "--energised").ports["arm"]], "blue", lambda _: None)
    try:
        with pytest.raises(AssertionError, match="have torque: hold the arm"):
            arm.torque_is_off()
    finally:
        arm.close()

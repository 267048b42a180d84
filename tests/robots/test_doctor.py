"""`edgevla doctor`: what is wrong with a machine and an arm, and what to do about it. Real ptys, emulated servos."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import tty
from pathlib import Path

import pytest

from edgevla.cli import main
from edgevla.robots import calibration
from edgevla.robots.bus import adapters
from edgevla.robots.calibration import nominal
from edgevla.robots.handshake import write_differing
from edgevla.robots.ports import open_ports
from edgevla.robots.profile import load_profile
from edgevla.robots.rescue import make_buses
from edgevla.robots.tools.checkup import BusCheckup
from edgevla.robots.tools.doctor import _serial_port


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path / "calibration"))
    return tmp_path / "calibration"


def doctor(capsys, *args):
    code = main(["doctor", "--json", *args])
    found = json.loads(capsys.readouterr().out)
    return code, found


def test_a_healthy_arm_is_named_servo_by_servo(start_emulator, capsys, home):
    profile = load_profile("so101")
    calibration.write(profile, nominal(profile), None)
    port = start_emulator("so101", "--untimed").ports["arm"]
    code, found = doctor(capsys, "--robot", "so101", "--port", port)
    assert code == 0, found["checks"]
    assert [m["name"] for m in found["motors"]] == [m.name for m in profile.buses[0].motors]
    for motor in found["motors"]:
        assert motor["model"] == "sts3215"
        assert motor["firmware"] == "3.10"
        assert motor["voltage_v"] == pytest.approx(7.4, abs=0.1)
        assert motor["temperature_c"] == pytest.approx(30, abs=2)
        assert motor["torque_on"] is False
    assert any("all 6 answer at 1000000 baud" in c["text"] for c in found["checks"])
    assert main(["doctor", "--robot", "so101", "--port", port]) == 0
    assert "wrist_flex" in capsys.readouterr().out


def test_torque_that_nobody_released_is_a_finding_with_a_cure(start_emulator, capsys, home):
    calibration.write(load_profile("so101"), nominal(load_profile("so101")), None)
    port = start_emulator("so101", "--untimed", "--energised").ports["arm"]
    _, found = doctor(capsys, "--robot", "so101", "--port", port)
    (check,) = [c for c in found["checks"] if c["what"].endswith("torque")]
    assert check["level"] == "warn"
    assert "all its servos" in check["text"]
    assert "let it down" in check["next_step"]
    main(["doctor", "--robot", "so101", "--port", port])
    assert capsys.readouterr().out.count("torque on") == 6


def test_a_port_that_is_not_there_is_a_finding_with_a_cure(capsys):
    code, found = doctor(capsys, "--robot", "so101", "--port", "/dev/nowhere")
    assert code == 1
    assert any("does not exist; ports on this machine" in c["text"] for c in found["checks"])


def test_without_a_robot_the_machine_itself_is_examined(capsys):
    code, found = doctor(capsys)
    assert {"python", "engine", "cameras"} <= {c["what"] for c in found["checks"]}
    assert found["motors"] == []
    assert code == int(any(c["level"] == "fail" for c in found["checks"]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--calibration", "blue"], "--calibration needs --robot"),
        (["--robot", "aloha", "--bus", "left"], "--bus says where the servo of --reboot ID is"),
        (["--robot", "aloha", "--reboot", "99"], "--reboot 99: aloha has no such servo"),
        (["--robot", "aloha", "--bus", "up", "--reboot", "9"], "bus up of aloha has no such servo"),
        (["--robot", "aloha", "--reboot", "9"], "which bus has the servo 9? Say --bus left|right"),
    ],
)
def test_options_of_doctor_that_cannot_take_effect_are_refused(capsys, options, words):
    assert main(["doctor", *options]) == 2
    assert words in capsys.readouterr().err


def examined(bench, *faults, name="so101", **options):
    made = bench(name, **options)
    for kind, values in faults:
        made.fault(kind, **values)
    bus = made.profile.buses[0]
    port = made.emulated.memory_ports()[bus.name]
    line = made.emulated.lines[bus.name]

    def open_at(baud):
        line.client_baud = port.baud = baud
        return port

    checkup = BusCheckup(made.profile, bus, open_at)
    checkup._line = lambda port: type(made.robot.buses[bus.name])(  # the bench's clock
        port, checkup._names, robot=made.profile.name, clock=made.clock
    )
    checkup.run()
    return {c.what.split(": ")[1]: c for c in checkup.checks if c.level != "ok"}, checkup


def test_a_broken_cable_is_where_the_first_silent_servo_is(bench):
    found, _ = examined(bench, *[("mute", {"target": i}) for i in (4, 5, 6)])
    assert found["servos"].level == "fail"
    assert (
        "no answer from 4 (wrist_flex), 5 (wrist_roll), 6 (gripper); answered: 1, 2, 3"
        in found["servos"].text
    )
    assert found["servos"].next_step == "check the cable between elbow_flex (3) and wrist_flex (4)"


def test_no_power(bench):
    found, _ = examined(bench, ("mute", {}))
    assert "no servo answers at any speed" in found["servos"].text
    assert "switch the arm's power supply on" in found["servos"].next_step


def test_a_wrong_baud_rate_is_found_and_named(bench):
    made = bench("so101")
    for servo in made.emulated.servos.values():
        servo.put("baud", 6)
    bus, port = made.profile.buses[0], made.emulated.memory_ports()["arm"]

    def open_at(baud):
        made.emulated.lines["arm"].client_baud = port.baud = baud
        return port

    checkup = BusCheckup(made.profile, bus, open_at)
    checkup._line = lambda port: type(made.robot.buses["arm"])(
        port, checkup._names, robot="so101", clock=made.clock
    )
    checkup.run()
    text = next(c.text for c in checkup.checks if "baud rate" in c.what)
    assert "1, 2, 3, 4, 5, 6 answer at 57600 baud, the profile says 1000000" in text


def test_a_wrong_id_is_found(bench):
    found, _ = examined(bench, ("duplicate_id", {"target": 5, "amount": 17}))
    assert "ids 17 answer, which the profile does not have; missing: 5" in found["ids"].text


@pytest.mark.parametrize("name", ["so101", "widowx250s"])
def test_two_servos_with_one_id_garble_each_other(bench, name):
    found, _ = examined(bench, ("duplicate_id", {"target": 5, "amount": 4}), name=name)
    assert "no answer from 5" in found["servos"].text
    assert "it may have id 4, whose answers are damaged: edgevla setup-motors" in found["servos"].next_step
    assert re.search(
        r"id 4 answered \d of \d pings; \d+ answers were damaged", found["duplicate id or bad cable"].text
    )


def test_all_servos_on_id_1_means_setup(bench):
    found, _ = examined(bench, *[("duplicate_id", {"target": i, "amount": 1}) for i in (2, 3, 4, 5, 6)])
    assert any("setup-motors" in c.next_step for c in found.values())


def test_heat_volts_faults_and_mixed_firmware_have_a_next_step(bench):
    found, _ = examined(
        bench, ("overload", {"target": 6}), ("wrong_firmware", {"target": 2}), ("wrong_model", {"target": 3})
    )
    assert "reports overload" in found["motor 6 (gripper)"].text
    assert "mixed versions 3.10, 3.9" in found["firmware"].text
    assert "is a model 1284, the profile expects sts3215" in found["motor 3 (elbow_flex)"].text
    assert all(c.next_step for c in found.values())


def test_a_dynamixel_error_is_cured_by_a_reboot_on_request(start_emulator, capsys, tmp_path):
    script = tmp_path / "faults.jsonl"
    script.write_text('{"at_s": 0, "kind": "wrong_firmware", "target": 2}\n')
    port = start_emulator("widowx250s", "--untimed", "--faults", str(script)).ports["arm"]
    code, found = doctor(capsys, "--robot", "widowx250s", "--port", port)
    assert code == 0
    assert any(c["what"].endswith("firmware") and c["level"] == "warn" for c in found["checks"])
    assert main(["doctor", "--robot", "widowx250s", "--port", port, "--reboot", "9"]) == 0
    assert "motor 9 was rebooted; torque is off" in capsys.readouterr().out


# ---- what a servo reports, with its cure ----


@pytest.mark.parametrize(
    ("fault", "words", "cure"),
    [
        (
            ("voltage", {"target": 6, "amount": 16.9}),
            "reports voltage",
            r"it measures 16.9 V, the servo allows 4.0 to 14.0 V",
        ),
        (
            ("overheat", {"target": 6, "amount": 75}),
            "reports over-temperature",
            r"it has 75 degC, its limit is 70: let it cool",
        ),
        (("overload", {"target": 6}), "reports overload", "free the joint, then switch the arm off and on"),
    ],
)
def test_a_servo_s_report_comes_with_the_cure_that_fits_value_and_limit(bench, fault, words, cure):
    found, _ = examined(bench, fault)
    check = found["motor 6 (gripper)"]
    assert words in check.text
    assert cure in check.next_step
    assert ("free the joint" in check.next_step) == (fault[0] == "overload")


def test_bytes_that_nobody_asked_for_are_another_master(capsys):
    master, slave = os.openpty()
    tty.setraw(slave)
    stopping = threading.Event()

    def talk():
        while not stopping.wait(0.02):
            os.write(master, b"\xff\xff\x01\x04\x00\x7b\x08\x77")

    talker = threading.Thread(target=talk)
    talker.start()
    try:
        _, found = doctor(capsys, "--robot", "so101", "--port", os.ttyname(slave))
    finally:
        stopping.set()
        talker.join()
        os.close(master)
        os.close(slave)
    check = next(c for c in found["checks"] if "somebody else" in c["what"])
    assert "bytes came before anything was asked: somebody else talks on it" in check["text"]


# ---- this machine ----


def test_programs_that_take_adapters_are_named_with_their_cure(capsys, tmp_path):
    program = tmp_path / "brltty"
    shutil.copy("/bin/sleep", program)
    process = subprocess.Popen([str(program), "60"])
    try:
        _, found = doctor(capsys)
    finally:
        process.kill()
        process.wait()
    check = next(c for c in found["checks"] if c["what"] == "brltty")
    assert (check["level"], check["text"]) == ("warn", "is running")
    assert "sudo apt purge brltty" in check["next_step"]
    assert not any(c["what"] == "brltty" for c in doctor(capsys)[1]["checks"])


def test_an_adapter_that_sleeps_or_is_in_use_is_said_with_the_cure(monkeypatch, tmp_path):
    adapter, control = tmp_path / "ttyACM0", tmp_path / "power/control"
    adapter.touch()
    monkeypatch.setattr(adapters, "autosuspend_file", lambda _: control)
    monkeypatch.setattr(adapters, "openers", lambda _: [adapters.Opener(17, "lerobot-record")])
    used, asleep = _serial_port(str(adapter))
    assert used.text == f"{adapter} is in use (pid 17, lerobot-record)"
    assert "may fall asleep between two uses (USB autosuspend)" in asleep.text
    assert asleep.next_step == f"echo on | sudo tee {control}"
    monkeypatch.setattr(adapters, "autosuspend_file", lambda _: None)
    monkeypatch.setattr(adapters, "openers", lambda _: [])
    assert [check.level for check in _serial_port(str(adapter))] == ["ok"]


# ---- calibration ----


@pytest.fixture
def arm(start_emulator):
    """An emulated SO101 and `write(motor, registers)`, which changes what a servo holds."""
    port = start_emulator("so101", "--untimed").ports["arm"]
    profile = load_profile("so101")

    def write(motor, registers):
        ports = open_ports(profile, [port])
        line = make_buses(profile, ports)["arm"]
        write_differing(line, profile.motor(motor).id, registers)
        ports["arm"].close()

    return port, write


def test_new_servos_are_never_calibrated_not_as_the_servos_hold_it(arm, capsys):
    port, write = arm
    for name in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"):
        write(name, {"homing_offset": 0, "min_position": 0, "max_position": 4095})
    code, found = doctor(capsys, "--robot", "so101", "--port", port, "--calibration", "servos")
    check = next(c for c in found["checks"] if c["what"] == "calibration")
    assert (code, check["level"]) == (1, "fail")
    assert "all servos of so101 were never calibrated" in check["text"]
    assert main(["calibrate", "--robot", "so101", "--port", port, "--id", "blue", "--adopt"]) == 1
    assert "never calibrated" in capsys.readouterr().err


def test_a_rest_pose_out_of_reach_is_a_finding(arm, capsys):
    port, write = arm
    write("shoulder_lift", {"min_position": 1400, "max_position": 2700})
    code, found = doctor(capsys, "--robot", "so101", "--port", port, "--calibration", "servos")
    check = next(c for c in found["checks"] if c["what"] == "pose out of reach")
    assert (code, check["level"]) == (0, "warn")
    assert check["text"] == "shoulder_lift: rest is -95 in so101.toml, its calibrated range ends at -57.14"
    assert main(["calibrate", "--robot", "so101", "--port", port, "--id", "blue", "--adopt"]) == 0
    assert "shoulder_lift: rest is -95" in capsys.readouterr().out


# ---- rebooting ----


def test_a_servo_that_holds_its_arm_is_rebooted_only_when_a_person_holds_it(
    start_emulator, capsys, monkeypatch
):
    port = start_emulator("widowx250s", "--untimed").ports["arm"]
    profile = load_profile("widowx250s")

    def torque(on=None):
        ports = open_ports(profile, [port])
        line = make_buses(profile, ports)["arm"]
        if on is not None:
            line.write_raw(9, "torque_enable", on)
        held = line.read_raw(9, "torque_enable")
        ports["arm"].close()
        return held

    assert torque(1) == 1
    words = ["doctor", "--robot", "widowx250s", "--port", port, "--reboot", "9"]
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        assert main(words) == 2
    assert "the input has ended" in capsys.readouterr().err
    assert torque() == 1
    read, write = os.pipe()
    os.write(write, b"\n")
    with os.fdopen(read) as keys:
        monkeypatch.setattr("sys.stdin", keys)
        assert main(words) == 0
    os.close(write)
    out = capsys.readouterr().out
    assert "widowx250s has torque (gripper) and is held where it is. Hold the arm, then press Enter" in out
    assert "motor 9 was rebooted; torque is off" in out
    assert torque() == 0

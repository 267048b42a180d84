"""The tools a person uses when something is wrong or new: doctor, calibrate, setup-motors, emulate. Real ptys."""

from __future__ import annotations

import io
import json
import os
import re
import threading
from pathlib import Path

import pytest

from edgevla.cli import main
from edgevla.clock import VirtualClock
from edgevla.errors import BusError, CalibrationError, UsageError
from edgevla.robots import calibration
from edgevla.robots.bus.port import MemoryPort
from edgevla.robots.calibration import find_calibration, nominal
from edgevla.robots.emulator.feetech_bus import FeetechLine, FeetechServo
from edgevla.robots.emulator.motion import Axis, MotorModel
from edgevla.robots.handshake import held_calibration, write_differing
from edgevla.robots.ports import open_ports
from edgevla.robots.profile import load_profile
from edgevla.robots.rescue import make_buses
from edgevla.robots.tools import calibrate_cli, setup_motors_cli
from edgevla.robots.tools.calibrate_cli import Swept, Terminal
from edgevla.robots.tools.checkup import BusCheckup


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path / "calibration"))
    return tmp_path / "calibration"


# ---- doctor ----


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


# ---- calibrate ----


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
    """A person presses Enter, sweeps (the emulated arm sways by itself), and presses Enter again."""
    profile = load_profile("so101")
    ports = open_ports(profile, [start_emulator("so101", "--untimed", "--sway", "0.2").ports["arm"]])
    read, write = os.pipe()
    os.write(write, b"\n")
    timer = threading.Timer(9.0, lambda: os.write(write, b"\n"))
    timer.start()
    out = io.StringIO()
    with os.fdopen(read) as keys:
        code = calibrate_cli.guide(profile, make_buses(profile, ports), "green", Terminal(keys, out))
    timer.join()
    os.close(write)
    ports["arm"].close()
    assert code == 0
    made = find_calibration(profile, "green").motors
    assert (made["wrist_roll"].range_min, made["wrist_roll"].range_max) == (0, 4095)
    assert made["elbow_flex"].range_max - made["elbow_flex"].range_min == pytest.approx(440, abs=12)
    assert "hold the so101" in out.getvalue()
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
        calibrate_cli.guide(profile, lines, "green", Terminal(keys, out))
    assert held_calibration(lines, profile) == before
    assert "2. Move every joint" in out.getvalue(), "the middle had been written"
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


def swept_arm(bench, path):
    """Homes and sweeps an emulated arm whose joints follow `path`: a list of ticks to add, for every joint."""
    made = bench("so101", calibration=None)
    for servo in made.emulated.servos.values():
        servo.axis.position = 3000  # anywhere: the person holds it in the middle
    lines = made.robot.buses
    offsets = calibrate_cli.home(made.profile, lines)
    steps = iter(path)

    def is_done():
        step = next(steps, None)
        if step is None:
            return True
        for servo in made.emulated.servos.values():
            servo.axis.position = 3000 + step
        return False

    return made, offsets, calibrate_cli.sweep(made.profile, lines, is_done, lambda _: None)


def test_homing_makes_the_middle_tick_2047_and_the_sweep_finds_both_ends(bench, home):
    path = [*range(0, 1000, 50), *range(1000, -1100, -50), *range(-1100, 0, 50)]
    made, offsets, swept = swept_arm(bench, path)
    assert set(offsets.values()) == {3000 - 2047}
    done = calibrate_cli.conclude(made.profile, offsets, swept)
    assert (done.motors["elbow_flex"].range_min, done.motors["elbow_flex"].range_max) == (
        2047 - 1100,
        2047 + 1000,
    )
    assert (done.motors["wrist_roll"].range_min, done.motors["wrist_roll"].range_max) == (0, 4095)
    assert "WRAPPED" not in "".join(calibrate_cli._table(made.profile, swept))


def test_a_sweep_over_the_encoder_s_end_is_noticed(bench):
    made, offsets, swept = swept_arm(bench, [*range(0, 2400, 100)])
    with pytest.raises(CalibrationError, match=r"joint 'shoulder_pan' passed the end of its encoder"):
        calibrate_cli.conclude(made.profile, offsets, swept)


def test_a_joint_that_was_not_moved_is_named(bench):
    made, offsets, swept = swept_arm(bench, [0, 20, -20])
    with pytest.raises(CalibrationError, match="range of only 40 ticks"):
        calibrate_cli.conclude(made.profile, offsets, swept)
    swept["shoulder_pan"] = Swept(500, 3000, 700)
    with pytest.raises(CalibrationError, match="shoulder_lift"):
        calibrate_cli.conclude(made.profile, offsets, swept)


# ---- setup-motors ----


def one_servo(clock, servo_id=1, baud_code=0, model="sts3215"):
    servo = FeetechServo("new", servo_id, model, Axis(2048, MotorModel()), 7.4)
    servo.put("baud", baud_code)
    return servo, FeetechLine("arm", [servo])


@pytest.mark.parametrize(("old_id", "baud_code"), [(1, 0), (1, 4), (9, 6)])
def test_a_new_servo_gets_its_id_and_speed(old_id, baud_code, monkeypatch, capsys):
    clock = VirtualClock(1_000_000_000)
    servo, line = one_servo(clock, old_id, baud_code)
    profile = load_profile("so101")

    def open_at(baud):
        line.client_baud = baud
        return MemoryPort("new", baud, line.receive, clock)

    real = setup_motors_cli._line

    def with_clock(profile, bus, port):
        made = real(profile, bus, port)
        made.clock = clock
        return made

    monkeypatch.setattr(setup_motors_cli, "_line", with_clock)
    bus = profile.buses[0]
    assert setup_motors_cli.setup_one(profile, bus, bus.motors[3], open_at, lambda _: "")
    assert (servo.id, servo.baud, servo.get("lock")) == (4, 1_000_000, 1)
    servo.power_up(clock.now_ns())
    assert (servo.id, servo.baud) == (4, 1_000_000)  # it was written into the EEPROM
    assert f"id {old_id} -> 4" in capsys.readouterr().out


def test_two_servos_at_once_are_refused_until_one_is_left(monkeypatch, capsys):
    clock = VirtualClock(1_000_000_000)
    _, line = one_servo(clock)
    other, _ = one_servo(clock, 2)
    line.servos.append(other)
    real = setup_motors_cli._line
    monkeypatch.setattr(
        setup_motors_cli, "_line", lambda *a: setattr(made := real(*a), "clock", clock) or made
    )
    answers = iter(["", "s"])
    profile = load_profile("so101")
    bus = profile.buses[0]

    def open_at(baud):
        line.client_baud = baud
        return MemoryPort("new", baud, line.receive, clock)

    assert not setup_motors_cli.setup_one(profile, bus, bus.motors[0], open_at, lambda _: next(answers))
    assert "2 servos answer (ids 1, 2); connect only one" in capsys.readouterr().out


def test_a_wrong_model_is_not_renamed(monkeypatch):
    clock = VirtualClock(1_000_000_000)
    servo, line = one_servo(clock, model="sts3250")
    real = setup_motors_cli._line
    monkeypatch.setattr(
        setup_motors_cli, "_line", lambda *a: setattr(made := real(*a), "clock", clock) or made
    )
    profile = load_profile("so101")
    bus = profile.buses[0]

    def open_at(baud):
        line.client_baud = baud
        return MemoryPort("new", baud, line.receive, clock)

    with pytest.raises(BusError, match="has model number 2825; gripper needs a sts3215"):
        setup_motors_cli.setup_one(profile, bus, bus.motors[5], open_at, lambda _: "")
    assert servo.id == 1

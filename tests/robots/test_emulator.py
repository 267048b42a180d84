"""The emulator as a process on pseudo-terminals: links, wire time, speeds, unplugging, traces, faults from outside."""

from __future__ import annotations

import os
import select
import signal
import statistics
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import zmq

from edgevla.cli import main
from edgevla.errors import BusError, UsageError
from edgevla.messages import Fault as FaultMessage
from edgevla.messages import World
from edgevla.robots.arm import EXCHANGE_SHARE, Robot
from edgevla.robots.bus import feetech
from edgevla.robots.bus.adapters import candidate_ports, set_latency_timer
from edgevla.robots.bus.feetech_bus import FeetechBus
from edgevla.robots.bus.port import SerialPort, wire_ns
from edgevla.robots.bus.protocols import BUSES
from edgevla.robots.calibration import nominal
from edgevla.robots.describe import describe
from edgevla.robots.emulator.trace import read_trace
from edgevla.robots.profile import load_profile

pytestmark = pytest.mark.realtime


def connected(emulator, name="so101"):
    profile = load_profile(name)
    ports = {bus.name: SerialPort.open(emulator.ports[bus.name], bus.baud) for bus in profile.buses}
    robot = Robot(profile, ports, nominal(profile) if profile.is_calibrated_by_file else None)
    robot.connect()
    return robot


def exchange_until(robot, goal, reached, limit_s=20.0):
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        reading = robot.exchange(goal, time.monotonic_ns() + 40_000_000)
        if reached(reading):
            return reading
        time.sleep(0.005)
    pytest.fail(f"not reached: {reading}")


@pytest.mark.parametrize("name", ["so101", "aloha"])
def test_an_arm_on_its_ports_goes_where_it_is_told_and_links_vanish_at_the_end(start_emulator, name):
    emulator = start_emulator(name)
    assert all(Path(port).is_symlink() for port in emulator.ports.values())
    robot = connected(emulator, name)
    assert robot.set_torque(True) == []
    goal = robot.present_goal()
    goal[0] += 0.3 if name == "aloha" else 15
    exchange_until(robot, goal, lambda r: abs(r.position[0] - goal[0]) < (0.01 if name == "aloha" else 0.5))
    assert robot.set_torque(False) == []
    robot.close()
    assert emulator.stop() == 0
    assert not any(os.path.lexists(port) for port in emulator.ports.values())


def test_answers_come_at_the_wire_s_pace(start_emulator):
    robot = connected(start_emulator("so101"))
    bus = robot.buses["arm"]
    block = feetech.POSITION_BLOCK
    wire_ms = bus.wire_time_ns(block.size, 6, 14) / 1e6
    spent = []
    for _ in range(100):
        begun = time.monotonic_ns()
        assert len(bus.sync_read(["present_position"])) == 6
        spent.append((time.monotonic_ns() - begun) / 1e6)
    # Never faster than the wire; slower by what a busy machine takes (bench/ measures that).
    assert min(spent) > 0.9 * (wire_ns(14 + 48, 1_000_000) / 1e6)
    assert statistics.median(spent) < wire_ms + 15
    robot.close()


def test_a_host_at_another_speed_hears_nothing_and_odd_speeds_work(start_emulator):
    port = start_emulator("so101", "--untimed").ports["arm"]
    for baud, answers in ((500_000, False), (250_000, False), (1_000_000, True)):
        line = FeetechBus(SerialPort.open(port, baud), {1: "shoulder_pan, STS3215"})
        assert (line.ping(1, 3) is not None) is answers
        line.close()


def test_a_line_is_opened_by_one_process_only(start_emulator):
    port = start_emulator("so101", "--untimed").ports["arm"]
    first = SerialPort.open(port, 1_000_000)
    with pytest.raises(BusError, match="in use by another process"):
        SerialPort.open(port, 1_000_000)
    first.close()
    SerialPort.open(port, 1_000_000).close()


def test_a_descriptor_can_be_handed_on(start_emulator):
    emulator = start_emulator("so101", "--untimed")
    port = SerialPort.open(emulator.ports["arm"], 1_000_000)
    line = FeetechBus(SerialPort(os.dup(port.fileno()), port.name, 1_000_000), {2: "shoulder_lift, STS3215"})
    assert line.read_raw(2, "model_number") == 777
    port.close()
    assert line.read_raw(2, "model_number") == 777
    line.close()


def test_unplugged_is_an_error_and_the_same_link_works_again_after_replugging(start_emulator, tmp_path):
    script = tmp_path / "faults.jsonl"
    script.write_text('{"at_s": 6, "kind": "unplug"}\n# and back\n{"at_s": 8, "kind": "replug"}\n')
    emulator = start_emulator(
        "so101", "--untimed", "--faults", str(script), "--trace", str(tmp_path / "trace")
    )
    robot = connected(emulator)
    robot.set_torque(True)
    goal = robot.present_goal()
    with pytest.raises(BusError, match="torque ON"):
        exchange_until(robot, goal, lambda _: False)
    with pytest.raises(BusError, match="torque ON"):
        robot.exchange(goal, time.monotonic_ns() + 10_000_000)
    assert len(robot.set_torque(False)) == 6
    robot.close()
    until = time.monotonic() + 20
    while not os.path.lexists(emulator.ports["arm"]) and time.monotonic() < until:
        time.sleep(0.05)
    again = connected(emulator)  # new pseudo-terminal, same link; connecting switched the torque off
    assert [s.torque_on for s in again.health()] == [False] * 6
    again.close()
    emulator.stop()
    notes = [e["fault"]["kind"] for e in read_trace(tmp_path / "trace") if e["dir"] == "note"]
    assert notes == ["unplug", "replug"]


def test_a_link_belongs_to_one_emulator_and_is_free_when_it_was_killed(start_emulator, tmp_path):
    first = start_emulator("so101", "--untimed")
    link = Path(first.ports["arm"])
    words = [sys.executable, "-m", "edgevla", "emulate", "so101", "--untimed", "--link", f"{link.parent}/"]
    second = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert (second.returncode, second.stderr) == (
        2,
        f"edgevla emulate: another emulator has {link}; end it, or name another place with --link\n",
    )
    connected(first).close()
    first.process.kill()
    first.process.wait()
    assert link.is_symlink(), "left over"
    again = start_emulator("so101", "--untimed", "--link", f"{link.parent}/")
    again.ports = first.ports
    connected(again).close()


def test_faults_may_be_typed(tmp_path):
    args = [sys.executable, "-m", "edgevla.robots.emulator.cli", "so101", "--untimed", "--faults", "-"]
    emulator = subprocess.Popen(
        [*args, "--link", str(tmp_path / "arm")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert "so101 arm:" in emulator.stdout.readline()
        bus = FeetechBus(SerialPort.open(str(tmp_path / "arm"), 1_000_000), {3: "elbow_flex, STS3215"})
        assert bus.ping(3)

        def typed(text):
            emulator.stdin.write(text + "\n")
            emulator.stdin.flush()
            return emulator.stdout.readline().strip()

        assert typed("weak 3 30") == "weak 3 30"
        assert bus.read_raw(3, "max_torque") == 300
        assert "expected KIND, or KIND TARGET" in typed("weak 3 strong")
        assert typed("mute 3") == "mute 3"
        assert bus.ping(3) is None
        assert typed('{"kind": "clear"}') == '{"kind": "clear"}'
        assert bus.ping(3)
        assert "unknown fault 'melt'" in typed("melt 3")
        assert "no servo or bus '9'" in typed("mute 9")
        assert "no servo or bus '9' for the fault 'drop'" in typed("drop 9")
        assert "no bus 'left' to unplug; buses: arm" in typed("unplug left")
        assert "Expecting" in typed("{mute 3")
        bus.close()
    finally:
        emulator.terminate()
        emulator.communicate(timeout=20)


def test_the_trace_tells_every_frame_and_what_it_means(start_emulator, tmp_path):
    emulator = start_emulator("so101", "--untimed", "--trace", str(tmp_path / "trace"))
    robot = connected(emulator)
    robot.set_torque(True)
    goal = robot.present_goal()
    goal[2] = 12.0
    robot.exchange(goal, time.monotonic_ns() + 100_000_000)
    robot.set_torque(False)
    robot.close()
    emulator.stop()
    entries = list(read_trace(tmp_path / "trace"))
    goals = [e["values"]["3"] for e in entries if e.get("register") == "goal_position" and "3" in e["values"]]
    assert goals == [2047, 2047, robot.units.ticks(goal)[2]][-len(goals):]  # fmt: skip
    torque = [e for e in entries if e.get("register") == "torque_enable" and e["op"] == "write"]
    assert {k: v for e in torque for k, v in e["values"].items()} == {str(i): 0 for i in range(1, 7)}
    assert [e["t_ns"] for e in entries if e["dir"] == "tx"] == sorted(
        e["t_ns"] for e in entries if e["dir"] == "tx"
    )
    assert all(e["error"] == 0 for e in entries if e.get("op") == "status")


HOST = """
import sys, time
from edgevla.robots.arm import Robot
from edgevla.robots.bus.port import SerialPort
from edgevla.robots.calibration import nominal
from edgevla.robots.profile import load_profile
profile = load_profile(sys.argv[1])
ports = {bus.name: SerialPort.open(f"{sys.argv[2]}/{bus.name}", bus.baud) for bus in profile.buses}
robot = Robot(profile, ports, nominal(profile) if profile.is_calibrated_by_file else None)
robot.connect()
assert robot.set_torque(True) == []
print("on", flush=True)
while True:
    robot.exchange(robot.present_goal(), time.monotonic_ns() + 20_000_000)
"""


@pytest.mark.parametrize("name", ["so101", "aloha"])
def test_torque_and_goals_stay_when_a_host_is_killed_and_the_next_one_finds_them(
    start_emulator, tmp_path, name
):
    trace = tmp_path / "trace"
    emulator = start_emulator(name, "--untimed", "--gravity", "0.3", "--trace", str(trace))
    folder = Path(next(iter(emulator.ports.values()))).parent
    host = subprocess.Popen([sys.executable, "-c", HOST, name, folder], stdout=subprocess.PIPE, text=True)
    assert host.stdout.readline() == "on\n"
    time.sleep(0.3)
    host.kill()
    host.communicate()
    time.sleep(0.7)
    profile = load_profile(name)
    for bus in profile.buses:
        motors = {m.id: m.name for m in bus.motors}
        line = BUSES[bus.protocol](SerialPort.open(emulator.ports[bus.name], bus.baud), motors)
        held = line.sync_read(["torque_enable"])
        assert {i: values["torque_enable"] for i, values in held.items()} == dict.fromkeys(motors, 1)
        line.close()
    emulator.stop()
    arm = [e for e in read_trace(trace) if e["dir"] == "arm"]
    first, last = arm[0]["servos"]["2"], [e for e in arm if e["bus"] == arm[0]["bus"]][-1]["servos"]["2"]
    assert (first[2], last[2]) == (0, 1)
    assert abs(last[0] - last[1]) <= 3, "it holds its goal"


def test_an_arm_is_found_with_torque_on_where_it_is(start_emulator):
    emulator = start_emulator(
        "so101", "--untimed", "--energised", "--gravity=0.3", "--firmware=goal-energises"
    )
    line = FeetechBus(SerialPort.open(emulator.ports["arm"], 1_000_000), dict.fromkeys(range(1, 7), "servo"))
    at = line.sync_read(["present_position", "torque_enable"])
    assert [values["torque_enable"] for values in at.values()] == [1] * 6
    line.write_raw(2, "torque_enable", 0)
    time.sleep(0.3)
    line.sync_write("goal_position", {2: 1500})
    assert line.read_raw(2, "torque_enable") == 1, "as that firmware does"
    line.close()


def test_a_second_program_on_the_same_port_is_obeyed_and_takes_answers_that_are_not_its_own(start_emulator):
    """What a pseudo-terminal shares with a real one that is not held exclusively."""
    port = start_emulator("so101", "--untimed").ports["arm"]
    ours, theirs = (os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK) for _ in range(2))
    try:
        termios.tcsetattr(ours, termios.TCSANOW, _at_a_megabaud(ours))
        broadcast = feetech.write(254, 41, b"\x21")
        os.write(theirs, broadcast)
        os.write(ours, feetech.read(3, 41, 1))
        heard = b""
        until = time.monotonic() + 5
        while len(heard) < 7 and time.monotonic() < until:
            if select.select([theirs], [], [], 0.1)[0]:
                heard += os.read(theirs, 100)
        found = feetech.FeetechDecoder().feed(heard)
        assert [(status.id, status.data) for status in found] == [(3, b"\x21")]
    finally:
        os.close(ours)
        os.close(theirs)


def _at_a_megabaud(fd):
    settings = termios.tcgetattr(fd)
    settings[4] = settings[5] = termios.B1000000
    return settings


def test_faults_and_the_world_come_and_go_over_zeromq(start_emulator):
    from edgevla.wire import Dealer, Inbox, endpoint, new_session, run_dir

    session = new_session()
    folder = run_dir(session)
    ctx = zmq.Context()
    emulator = start_emulator("so101", "--untimed", "--session", session.hex(), "--world", "follow_cube")
    inbox = Inbox(ctx, {World: (endpoint(folder, "emulator"), 10)}, session)
    dealer = Dealer(ctx, endpoint(folder, "emulator", "fault"), session, "test")
    try:
        line = FeetechBus(SerialPort.open(emulator.ports["arm"], 1_000_000), {3: "elbow_flex, STS3215"})
        assert line.ping(3) is not None
        for kind, accepted in (("mute", True), ("mut", False)):
            seq = send_fault(dealer, kind, "elbow_flex")
            ack = answer(dealer)
            assert (ack.of_seq, ack.is_accepted) == (seq, accepted)
        assert "unknown fault 'mut'" in ack.reason
        assert line.ping(3) is None
        send_fault(dealer, "clear")
        assert answer(dealer).is_accepted
        assert line.ping(3) is not None
        line.close()
        assert inbox.wait(10)
        world = inbox.newest(World).body
        assert world.joint_rad.shape == (6,)
        assert world.objects[0].name == "cube"
    finally:
        dealer.close()
        inbox.stop()
        ctx.term()
        emulator.stop()
        folder.rmdir() if not any(folder.iterdir()) else None


def send_fault(dealer, kind, target=None):
    fault = FaultMessage(kind, target, None, None, None, None)
    until = time.monotonic() + 10
    while (seq := dealer.send(fault)) is None and time.monotonic() < until:
        time.sleep(0.02)
    return seq


def answer(dealer):
    for _ in range(100):
        if found := dealer.poll(0.1):
            return found[0].body
    pytest.fail("no answer to a fault")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--faults=/nowhere/faults.jsonl", "--faults /nowhere/faults.jsonl cannot be read"),
        ("--gravity=nan", "a share is from 0 to 1"),
        ("--session=zz", "expected the 16 hex digits"),
        ("--firmware=elbow_flex=melts", "elbow_flex cannot have the firmware 'melts'"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, capsys, option, words):
    assert main(["emulate", "so101", f"--link={tmp_path}/arm", option]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_fault_script_with_a_mistake_names_its_line(tmp_path):
    from edgevla.robots.emulator.server import FaultScript

    path = tmp_path / "faults.jsonl"
    path.write_text('{"at_s": 1, "kind": "drop"}\n{"at_s": 1, "kind": "dorp"}\n')
    with pytest.raises(UsageError, match=r"line 2: unknown fault 'dorp'; known: drop"):
        FaultScript(path, lambda _: "", 0)


@pytest.mark.parametrize(
    ("adapter", "least_ms"), [("none", 0.8), ("cdc", 1.8), ("ftdi1", 1.8), ("ftdi16", 16)]
)
def test_an_adapter_s_latency_is_added(bench, adapter, least_ms):
    made = bench("so101", adapter=adapter)
    bus = made.robot.buses["arm"]
    begun = made.clock.now_ns()
    assert len(bus.sync_read(["present_position"])) == 6
    assert least_ms <= (made.clock.now_ns() - begun) / 1e6 < least_ms + 1.2


def test_a_slow_adapter_is_noticed_while_connecting(bench):
    made = bench("so101", adapter="ftdi16")
    made.robot.connect()
    assert any("answers 16 ms later than the wire needs" in w for w in made.robot.warnings)
    assert made.robot.buses["arm"].adapter_latency_ns == pytest.approx(16e6, rel=0.05)
    about = describe(made.profile, made.robot)
    assert list(about.warnings) == made.robot.warnings, "the deployment's user reads them"
    assert 30 < about.servo_hz < 40, "no faster than this adapter allows"


@pytest.mark.parametrize("name", ["so101", "aloha"])
def test_on_a_slow_adapter_the_loop_is_slower_and_nothing_is_stale_or_left_on(bench, name):
    made = bench(name, adapter="ftdi16")
    made.robot.connect()
    assert made.robot.set_torque(True) == []
    period_ns = int(1e9 / made.robot.max_hz)
    for tick in range(1, 60):
        made.clock.sleep_until(made.clock.now_ns() // period_ns * period_ns + period_ns)
        deadline_ns = made.clock.now_ns() + int(EXCHANGE_SHARE * period_ns)
        assert made.robot.exchange(made.robot.present_goal(), deadline_ns).n_stale == 0, tick
    made.fault("brownout", target=made.profile.buses[0].motors[0].name)
    for _ in range(600):  # every servo's torque is read in turn, if only once a second
        made.clock.sleep_until(made.clock.now_ns() // period_ns * period_ns + period_ns)
        made.robot.exchange(None, made.clock.now_ns() + int(EXCHANGE_SHARE * period_ns))
    assert made.robot.health()[0].torque_on is False
    assert made.robot.set_torque(False) == [], "confirmed on every servo"


def test_the_latency_timer_is_set_where_permitted_else_the_command_is_said(tmp_path, monkeypatch):
    timer = tmp_path / "bus/usb-serial/devices/ttyUSB7/latency_timer"
    timer.parent.mkdir(parents=True)
    timer.write_text("16\n")
    assert set_latency_timer("/dev/ttyUSB7", sysfs=str(tmp_path)) is None
    assert timer.read_text() == "1"
    timer.write_text("16\n")
    monkeypatch.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(PermissionError()))
    sentence = set_latency_timer("/dev/ttyUSB7", sysfs=str(tmp_path))
    assert f"echo 1 | sudo tee {timer}" in sentence
    assert set_latency_timer("/dev/ttyACM0", sysfs=str(tmp_path)) is None
    assert isinstance(candidate_ports(), list)


def test_a_latency_timer_that_cannot_be_read_is_none(tmp_path):
    # A folder in its place: reading is an OSError, as of an adapter that goes away between two looks.
    (tmp_path / "bus/usb-serial/devices/ttyUSB7/latency_timer").mkdir(parents=True)
    assert set_latency_timer("/dev/ttyUSB7", sysfs=str(tmp_path)) is None


@pytest.mark.parametrize("name", ["so101", "aloha"])
def test_an_emulator_that_is_held_up_goes_on_as_if_no_time_had_passed(start_emulator, name):
    emulator = start_emulator(name)
    robot = connected(emulator, name)
    assert robot.set_torque(True) == []
    goal = robot.present_goal()
    emulator.process.send_signal(signal.SIGSTOP)
    until = time.monotonic() + 0.4
    while time.monotonic() < until:
        robot.exchange(goal, time.monotonic_ns() + 7_000_000)
        time.sleep(0.003)
    emulator.process.send_signal(signal.SIGCONT)
    exchange_until(robot, goal, lambda reading: reading.n_stale == 0, limit_s=2.0)
    for _ in range(150):  # the servos' health is read one by one
        robot.exchange(goal, time.monotonic_ns() + 10_000_000)
        time.sleep(0.01)
    assert [health.faults for health in robot.health() if health.faults] == []
    assert robot.set_torque(False) == []
    robot.close()

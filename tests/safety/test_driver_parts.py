"""The rest of the driver on lines without wires: connecting, what it says of silence, and how fast it can go."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safety_kit import robot_of

from edgevla.clock import VirtualClock
from edgevla.errors import BusError, UsageError
from edgevla.robots import arm as module
from edgevla.robots.arm import EXCHANGE_MARGIN_NS, EXCHANGE_SHARE, Robot
from edgevla.robots.profile import load_profile

ONE, TWO = load_profile("so101"), load_profile("aloha")
MS = 1_000_000


class Bench:
    """A robot that connects; `says`: step of connecting -> what it returns, or an error that it raises."""

    def __init__(self, monkeypatch, profile=ONE, **says):
        self.clock, self.said, self.order, self.says = VirtualClock(8_000 * MS), [], [], says
        self.robot, self.lines = robot_of(profile, self.clock, self.said.append)
        self.line = self.lines[0]
        names = (
            "energised", "let_down", "pulse_ms", "check_motors", "held_calibration", "check_calibration", "check_health",
            "configure", "align_shadows", "probe_joined", "weaker", "others_on", "port_names",
        )  # fmt: skip
        steps = {name: self.step(name) for name in names}
        monkeypatch.setattr(module, "handshake", SimpleNamespace(SLOW_ADAPTER_MS=3.0, **steps))
        monkeypatch.setattr(module, "adopted", self.step("adopted"))
        monkeypatch.setattr(module, "refuse_other_kind", self.step("refuse_other_kind"))
        monkeypatch.setattr(module, "set_latency_timer", lambda name: None)
        monkeypatch.setattr(module, "finish", lambda reads, clock: self.clock.advance(MS))
        for line in self.lines:
            line.greet, line.quirks = self.step("greet"), self.step("quirks")
            line.ensure_answers, line.probe_reading = self.step("ensure_answers"), self.step("probe_reading")
            line.goal_range, line.echoes = lambda servo_id: None, False

    def step(self, name):
        usual = {"energised": {}, "pulse_ms": 1.0, "configure": [], "weaker": [], "quirks": []}

        def do(*_):
            self.order.append(name)
            value = self.says.get(name, usual.get(name))
            if isinstance(value, BaseException):
                raise value
            return value

        return do


@pytest.fixture
def bench(monkeypatch):
    return lambda *args, **says: Bench(monkeypatch, *args, **says)


def test_connecting_checks_before_it_configures_and_reads_the_first_positions(bench):
    made = bench()
    made.robot.connect()
    assert made.order == [
        "greet", "energised", "pulse_ms", "check_motors", "ensure_answers", "quirks", "check_calibration",
        "check_health", "configure", "align_shadows", "probe_reading", "probe_joined", "others_on", "weaker",
    ]  # fmt: skip
    assert made.robot.warnings == made.said == []
    assert made.line.adapter_latency_ns == MS
    assert list(made.robot.present_ticks()) == list(range(2101, 2107))
    assert not made.robot.torque_on


def test_an_arm_that_is_found_with_torque_is_let_down_first(bench):
    made = bench(energised={"arm": [1]})
    made.robot.connect()
    assert made.order[:3] == ["greet", "energised", "let_down"]


def test_a_profile_without_a_watchdog_has_no_quirks_of_it(bench):
    profile = replace(ONE, rates=replace(ONE.rates, watchdog_ms=0))
    made = bench(profile)
    made.robot.connect()
    assert "quirks" not in made.order


def test_without_a_file_what_the_servos_hold_is_taken(bench):
    held = bench().robot.calibration
    made = bench(adopted=held)
    made.robot.calibration = None
    made.robot.connect()
    at = made.order.index("held_calibration")
    assert made.order[at : at + 4] == ["held_calibration", "port_names", "refuse_other_kind", "adopted"]
    assert made.robot.calibration is held
    made = bench(TWO)
    made.robot.connect()
    assert "adopted" not in made.order
    assert "check_calibration" not in made.order


def test_what_connecting_found_is_told(bench):
    made = bench(pulse_ms=16.0, check_motors="old firmware", weaker=["the elbow is weaker"])
    made.line.echoes = True
    made.robot.connect()
    said = "\n".join(made.robot.warnings)
    assert "old firmware" in said
    assert "the elbow is weaker" in said
    assert "returns what is sent (echo)" in said
    assert "/dev/arm answers 16 ms later than the wire needs" in said
    assert made.line.adapter_latency_ns == 16 * MS
    made = bench(pulse_ms=50.0)
    made.robot.connect()
    assert made.line.adapter_latency_ns == 20 * MS


def test_what_fails_while_connecting_is_undone(bench):
    made = bench(configure=BusError("no answer", port="/dev/arm", motor_id=3, register="lock"))
    with pytest.raises(BusError, match=r"^no answer$"):
        made.robot.connect()
    assert [made.line.held[i]["torque_enable"] for i in made.line.ids] == [0] * 6
    made.line.silent = {2}
    with pytest.raises(
        BusError, match=r"no answer. Torque could not be confirmed off on shoulder_lift"
    ) as caught:
        made.robot.connect()
    assert (caught.value.port, caught.value.motor_id, caught.value.register) == ("/dev/arm", 3, "lock")
    made.line.silent = set(made.line.ids)
    with pytest.raises(BusError, match=r"^no answer$"):
        made.robot.connect()
    made = bench(configure=BusError("gone", is_unplugged=True))
    with pytest.raises(BusError, match="gone"):
        made.robot.connect()
    assert made.line.done("write") == []


def test_a_shadow_configures_nothing_and_leaves_an_arm_that_has_torque(bench):
    made = bench()
    made.robot.is_shadow = True
    made.robot.connect()
    assert made.order == [
        "greet", "energised", "pulse_ms", "check_motors", "quirks", "check_calibration", "check_health", "probe_reading",
        "others_on", "weaker",
    ]  # fmt: skip
    made = bench(energised=["elbow_flex", "gripper"])
    made.robot.is_shadow = True
    with pytest.raises(
        BusError, match=r"torque is on \(elbow_flex, gripper\), and a shadow run touches nothing"
    ):
        made.robot.connect()
    assert made.order == ["greet", "energised"]
    made = bench(check_health=BusError("no answer"))
    made.robot.is_shadow = True
    with pytest.raises(BusError, match=r"^no answer$"):
        made.robot.connect()
    assert [made.line.held[i]["torque_enable"] for i in made.line.ids] == [1] * 6, "as it was"


def test_another_master_on_the_line_is_told_with_what_failed_and_is_refused(bench):
    made = bench(others_on="another program asks on /dev/arm", configure=BusError("no answer"))
    with pytest.raises(BusError, match=r"^no answer\. another program asks on /dev/arm$"):
        made.robot.connect()
    made = bench(others_on="another program asks on /dev/arm")
    with pytest.raises(BusError, match=r"^another program asks on /dev/arm$") as caught:
        made.robot.connect()
    assert caught.value.port == "/dev/arm"


def test_a_joint_without_a_first_position_is_named(bench):
    made = bench()
    made.line.silent = {4}
    made.line.read_block = lambda servo_id, block: dict.fromkeys((r.name for r in block.registers), 0)
    with pytest.raises(
        BusError, match=r"no position of wrist_flex.pos \(1 servos silent\); run: edgevla doctor"
    ):
        made.robot.connect()
    assert len([e for e in made.line.done("begin") if len(e[1]) == 6]) >= 3


def test_before_connecting_nothing_is_known():
    robot = Robot(ONE, {"arm": SimpleNamespace(name="x")}, None, VirtualClock())
    with pytest.raises(UsageError, match="so101 is not connected yet"):
        _ = robot.units
    assert robot.ports["arm"].name == "x"
    assert list(robot.buses) == ["arm"]


def test_silence_is_explained_by_line(bench):
    made = bench(TWO)
    made.robot._beyond = {}
    names = [joint.motor for joint in TWO.joints]
    silent = np.zeros(len(names), bool)
    assert made.robot.explain_silence(silent) == ""
    silent[names.index("left_waist")] = True
    assert "motor 1 (left_waist) does not answer on /dev/left: check " in made.robot.explain_silence(silent)
    silent[names.index("left_wrist_angle")] = True
    assert "motors 1 (left_waist), 7 (left_wrist_angle) do not answer" in made.robot.explain_silence(silent)
    silent[:] = True
    assert made.robot.explain_silence(silent) == (
        "no servo on /dev/left answers: look after the arm's power and the adapter; "
        "no servo on /dev/right answers: look after the arm's power and the adapter"
    )
    made.robot._beyond = {0: 5000}
    made.line.name_of = lambda servo_id: f"motor {servo_id}"
    assert "motor 1 on /dev/left says 5000, beyond one turn" in made.robot.explain_silence(silent)


def test_the_range_of_a_joint_in_degrees_turns_with_its_drive_mode(bench):
    made = bench()
    low, high = made.robot.range_deg(1)
    assert low == -high < 0
    assert made.robot.range_deg(5) is None
    made.robot.units.drive_mode[1] = 1
    assert made.robot.range_deg(1) == (high, low)


def test_a_slow_adapter_slows_the_loop(bench):
    made = bench()
    assert made.robot.max_hz == ONE.rates.servo_hz
    made.line.adapter_latency_ns = 3 * MS
    assert made.robot.max_hz == ONE.rates.servo_hz
    made.line.adapter_latency_ns = 16 * MS
    needed = made.line.wire_time_ns(made.line.tick_block.size, 6, 44) + 16 * MS
    assert made.robot.max_hz == pytest.approx(EXCHANGE_SHARE * 1e9 / (needed + EXCHANGE_MARGIN_NS))


def test_the_rest_is_passed_on(bench):
    made = bench()
    made.robot.connect()
    made.robot.renew_torque("gripper")
    assert made.robot.outside() == []
    assert made.robot.limits()[0].shape == (6,)
    made.robot.close()
    assert made.line.is_closed

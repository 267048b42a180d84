"""`edgevla setup-motors`: new servos get their ids and speed, one by one."""

from __future__ import annotations

import io

import pytest

from edgevla.clock import VirtualClock
from edgevla.errors import UsageError
from edgevla.robots.bus.port import MemoryPort
from edgevla.robots.emulator.dynamixel_bus import DynamixelLine, DynamixelServo
from edgevla.robots.emulator.feetech_bus import FeetechLine, FeetechServo
from edgevla.robots.emulator.motion import Axis, MotorModel
from edgevla.robots.profile import load_profile
from edgevla.robots.tools import setup_motors_cli
from edgevla.robots.tools.setup_motors_cli import setup_one
from edgevla.robots.tools.terminal import Terminal


class Answers(Terminal):
    """A person who gives these answers, one per question, and does something to the line first."""

    def __init__(self, *answers):
        super().__init__("setup-motors", io.StringIO(), io.StringIO())
        self.answers, self.said = list(answers), []

    def say(self, text):
        self.said.append(text)

    def ask(self, text, answers):
        self.said.append(text)
        if not self.answers:
            raise UsageError("the input has ended")
        answer = self.answers.pop(0)
        if callable(answer):
            answer = answer()
        assert answer in answers
        return answer


class Desk:
    """A line with servos fresh from the box, on a virtual clock."""

    def __init__(self, monkeypatch, *servos, robot="so101"):
        self.clock = VirtualClock(1_000_000_000)
        self.servos = list(servos)
        kind = FeetechLine if robot == "so101" else DynamixelLine
        self.line = kind("arm", self.servos)
        self.profile = load_profile(robot)
        self.bus = self.profile.buses[0]
        real = setup_motors_cli._line

        def with_clock(*args):
            made = real(*args)
            made.clock = self.clock
            return made

        monkeypatch.setattr(setup_motors_cli, "_line", with_clock)

    def open_at(self, baud):
        self.line.client_baud = baud
        return MemoryPort("new", baud, self.line.receive, self.clock)

    def set_up(self, motor, person):
        return setup_one(self.profile, self.bus, self.bus.motors[motor], self.open_at, person)

    def leave_only(self, servo):
        self.line.servos[:] = [servo]
        return ""


def sts(servo_id=1, baud_code=0, model="sts3215", tick=2048):
    servo = FeetechServo("new", servo_id, model, Axis(tick, MotorModel()), 7.4)
    servo.put("baud", baud_code)
    return servo


def xm(servo_id=1, tick=2048):
    return DynamixelServo("new", servo_id, "xm430-w350", Axis(tick, MotorModel()), 12.0)


@pytest.mark.parametrize(("old_id", "baud_code"), [(1, 0), (1, 4), (9, 6)])
def test_a_new_servo_gets_its_id_and_speed(monkeypatch, old_id, baud_code):
    servo = sts(old_id, baud_code)
    desk, person = Desk(monkeypatch, servo), Answers("")
    assert desk.set_up(3, person)
    assert (servo.id, servo.baud, servo.get("lock")) == (4, 1_000_000, 1)
    servo.power_up(desk.clock.now_ns())
    assert (servo.id, servo.baud) == (4, 1_000_000)  # it was written into the EEPROM
    assert f"id {old_id} -> 4" in person.said[-1]


def test_a_new_dynamixel_gets_its_id_and_speed(monkeypatch):
    servo = xm()
    desk = Desk(monkeypatch, servo, robot="widowx250s")
    assert desk.set_up(0, Answers(""))
    assert (servo.id, servo.baud) == (1, 1_000_000)


def test_servos_with_different_ids_are_refused_until_one_is_left(monkeypatch):
    desk, person = Desk(monkeypatch, sts(1), sts(2)), Answers("", "s")
    assert not desk.set_up(0, person)
    assert "2 servos answer (ids 1, 2); connect only one. Try again." in person.said[1]
    assert sorted(servo.id for servo in desk.servos) == [1, 2]


@pytest.mark.parametrize("make", [sts, xm])
def test_two_new_servos_that_answer_as_one_are_refused(monkeypatch, make):
    """They say the same to a ping, but do not stand at the same place."""
    first, second = make(tick=2048), make(tick=1311)
    desk = Desk(monkeypatch, first, second, robot="so101" if make is sts else "widowx250s")
    person = Answers("", lambda: desk.leave_only(second))
    assert desk.set_up(1, person)
    assert (
        "two servos answer as id 1, for their answers damage each other; connect only one" in person.said[1]
    )
    assert (first.id, second.id) == (1, 2)


def test_two_servos_at_different_speeds_are_refused(monkeypatch):
    desk = Desk(monkeypatch, sts(5), sts(1, baud_code=4))
    person = Answers("", "s")
    assert not desk.set_up(0, person)
    assert "id 5 answers at 1000000 baud and id 1 at 115200; connect only one" in person.said[1]


def test_a_wrong_model_is_not_renamed_and_another_one_may_be_connected(monkeypatch):
    wrong, right = sts(model="sts3250"), sts()
    desk = Desk(monkeypatch, wrong)
    person = Answers("", lambda: desk.leave_only(right))
    assert desk.set_up(5, person)
    assert "has model number 2825; gripper needs a sts3215 (777). Try again." in person.said[1]
    assert (wrong.id, right.id) == (1, 6)


def test_a_servo_with_torque_is_let_go_only_when_a_person_holds_it(monkeypatch):
    servo = sts()
    servo.put("torque_enable", 1)
    held = []

    def look():
        held.append((servo.torque_on, servo.id))
        return ""

    desk = Desk(monkeypatch, servo)
    assert desk.set_up(5, person := Answers("", look))
    assert held == [(True, 1)]
    assert any("It has torque. Hold what hangs on it" in text for text in person.said)
    assert not servo.torque_on
    servo.put("torque_enable", 1)
    with pytest.raises(UsageError):
        desk.set_up(4, Answers(""))
    assert servo.torque_on
    assert servo.id == 6

"""The judge of the fault catalogue and the kill study: what it must see, and what it must let pass. Virtual time."""

import pytest
from bus_trace import FALL_TICKS_S, judge, record

from edgevla.clock import VirtualClock
from edgevla.robots.arm import Robot
from edgevla.robots.calibration import nominal
from edgevla.robots.emulator.faults import InjectedFault
from edgevla.robots.emulator.robot import EmulatedRobot
from edgevla.robots.profile import load_profile
from edgevla.robots.rescue import Rescue

SPEED = {"so101": [90.0] * 5 + [100.0], "aloha": [2.0] * 14}
BOTH = pytest.mark.parametrize("name", ["so101", "aloha"])


class Story:
    """An emulated arm, whoever speaks to it, and what the judge says of it."""

    def __init__(self, name, **options):
        self.name, self.profile = name, load_profile(name)
        self.arm = EmulatedRobot(self.profile, VirtualClock(1_000_000_000), **options)
        self.trace, self.let_pass = record(self.arm)

    def driver(self):
        calibration = nominal(self.profile) if self.profile.is_calibrated_by_file else None
        return Robot(self.profile, self.arm.memory_ports(), calibration, self.arm.clock)

    def rescue(self):
        return Rescue(self.profile, self.arm.memory_ports(), self.arm.clock)

    def run(self, robot, seconds, goal=None):
        for _ in range(round(seconds * 100)):
            self.arm.clock.sleep_until(self.arm.clock.now_ns() + 10_000_000)
            robot.exchange(goal, self.arm.clock.now_ns() + 8_000_000)

    def verdict(self):
        return judge(self.trace, self.name, SPEED[self.name], 100.0)


def said(story, words):
    return [text for text in story.verdict().violations if words in text]


@BOTH
def test_an_arm_that_lies_at_rest_may_be_switched_on_and_off(name):
    story = Story(name, gravity=0.3, start="rest")
    robot = story.driver()
    robot.connect()
    assert robot.set_torque(True) == []
    story.run(robot, 0.3, robot.present_goal())
    assert robot.set_torque(False) == []
    story.let_pass(1.0)
    verdict = story.verdict()
    assert verdict.violations == []
    assert verdict.endings["rest"] == len(story.profile.buses)


@BOTH
def test_torque_that_is_cut_on_an_arm_found_energised_is_seen_and_so_is_its_fall(name):
    story = Story(name, gravity=0.3, is_energised=True)
    assert story.rescue().release() == []
    story.let_pass(1.0)
    assert len(said(story, "torque went off before the arm was at rest or parked")) == len(
        story.profile.buses
    )
    falls = said(story, f"sinking may have {FALL_TICKS_S}")
    assert [text.split()[1].removeprefix("left_").removeprefix("right_")[:8] for text in falls] == [
        "shoulder"
    ] * len(story.profile.buses)


@pytest.mark.parametrize("is_lowered", [True, False])
def test_an_arm_that_is_lowered_slowly_is_let_pass_and_one_that_is_dropped_after_it_was_held_is_not(
    is_lowered,
):
    story = Story("so101", gravity=0.3, is_energised=True)
    rescue, rule = story.rescue(), story.profile.escalation
    rescue.freeze()
    story.let_pass(rule.hold_ms / 1000)
    steps = 80
    for k in range(steps):
        rescue.limit_torque(rule.park_torque * (1 - k / steps) if is_lowered else rule.park_torque)
        story.let_pass(1.5 * rule.park_ms / 1000 / steps)
    rescue.release()
    story.let_pass(1.0)
    assert bool(said(story, "fell with")) is not is_lowered
    assert not said(story, "torque went off")
    assert story.verdict().endings["park"] == 1


@BOTH
def test_torque_left_on_is_seen_by_what_the_servos_say_not_by_what_they_were_told(name):
    story = Story(name, is_energised=True)
    motor = story.arm.lines[story.profile.buses[0].name].servos[3].name
    rescue = story.rescue()
    story.arm.apply(InjectedFault("mute", motor))
    assert rescue.release() == [motor]
    assert said(story, "torque was left on") == [
        f"{story.profile.buses[0].name}: torque was left on at {motor}"
    ]


def test_a_servo_that_a_goal_energises_elsewhere_than_where_it_is_is_seen():
    for goal, is_seen in ((2047, False), (2200, True)):
        story = Story("so101", firmware=("goal-energises",))
        bus = story.rescue().buses["arm"]
        bus.sync_read(["present_position"])
        bus.sync_write("goal_position", {3: goal})
        story.let_pass(0.5)
        assert bool(said(story, "elbow_flex came on by itself")) is is_seen


def test_a_servo_that_loses_its_own_power_is_no_fault_of_the_host():
    story = Story("so101", gravity=0.6, is_energised=True)
    story.arm.apply(InjectedFault("brownout", "shoulder_lift"))
    story.let_pass(1.0)
    assert not said(story, "fell with")
    assert not said(story, "torque went off")

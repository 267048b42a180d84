"""Each stage of an end has its time, and what it does to torque is written down here in order."""

import numpy as np
import pytest

from edgevla.robots.ending import REST_LIMIT_MS, SETTLE_MS, Ending
from edgevla.robots.profile import Escalation

MS = 1_000_000
T0 = 7_000 * MS
REST = np.array([10.0, 20.0], np.float32)
AWAY = np.array([0.0, 20.0], np.float32)
RULE = Escalation(hold_ms=2000, park_ms=4000, park_torque=0.4)
KEPT = Escalation(hold_ms=2000, park_ms=4000, park_torque=0.4, release=False)


class Arm:
    """What an ending may do, written down."""

    def __init__(self, is_at_goal=True, tick=2048):
        self.at_goal, self.tick, self.did = is_at_goal, tick, []

    def switch_off(self):
        self.did.append("off")
        return ["elbow"]

    def limit_torque(self, share):
        self.did.append(share)

    def is_at_goal(self):
        return self.at_goal

    def ticks(self):
        return {"elbow": self.tick}


def test_the_patience_is_15_s_to_rest_and_one_to_settle():
    assert (REST_LIMIT_MS, SETTLE_MS) == (15_000, 1000)


def test_a_stop_moves_to_rest_waits_for_the_arm_and_lets_go():
    arm, ending = Arm(is_at_goal=False), Ending("rest", RULE, T0, REST)
    assert ending.step(arm, AWAY, T0) is REST
    assert ending.stage == "rest"
    assert ending.step(arm, REST + np.float32(5e-4), T0 + 10 * MS) is REST
    assert ending.stage == "settle"
    assert ending.step(arm, REST, T0 + 20 * MS) is None
    assert arm.did == []
    assert not ending.is_reduced
    arm.at_goal = True
    assert ending.step(arm, REST, T0 + 30 * MS) is None
    assert (arm.did, ending.is_over, ending.unreached) == (["off"], True, ["elbow"])


def test_a_rest_pose_that_is_a_hundredth_away_is_not_reached():
    ending = Ending("rest", RULE, T0, REST)
    ending.step(Arm(), REST + np.float32(0.01), T0)
    assert ending.stage == "rest"


def test_a_rest_pose_that_is_not_reached_in_15_s_becomes_a_faults_end():
    arm, ending = Arm(), Ending("rest", RULE, T0, REST)
    assert ending.step(arm, AWAY, T0 + 15_000 * MS) is REST
    assert ending.step(arm, AWAY, T0 + 15_001 * MS) is None
    assert ending.stage == "hold"
    ending.step(arm, AWAY, T0 + 17_000 * MS)
    assert ending.stage == "hold", "the time of a stage begins with it"
    ending.step(arm, AWAY, T0 + 17_001 * MS)
    assert ending.stage == "park"


def test_an_arm_that_does_not_settle_in_a_second_is_held_and_lowered():
    arm, ending = Arm(is_at_goal=False), Ending("rest", RULE, T0, REST)
    ending.step(arm, REST, T0)
    ending.step(arm, REST, T0 + 1000 * MS)
    assert ending.stage == "settle"
    ending.step(arm, REST, T0 + 1001 * MS)
    assert ending.stage == "hold"
    assert arm.did == []


def test_a_fault_holds_for_its_time_then_lowers_in_steps_and_lets_go():
    arm, ending = Arm(), Ending("fault", RULE, T0, REST)
    assert ending.step(arm, AWAY, T0 + 1999 * MS) is None
    assert (ending.stage, arm.did, ending.is_reduced) == ("hold", [], False)
    ending.step(arm, AWAY, T0 + 2000 * MS)
    assert (ending.stage, arm.did, ending.is_reduced) == ("park", [0.4], True)
    now = T0 + 2000 * MS
    while not ending.is_over:
        now += 10 * MS
        assert ending.step(arm, AWAY, now) is None
    assert arm.did[-1] == "off"
    shares = arm.did[:-1]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0.0
    assert len(shares) > 60
    assert (now - T0) / MS == pytest.approx(2000 + 4000 + 200, abs=80)


def test_the_arms_joints_are_watched_while_it_is_lowered():
    arm, ending = Arm(), Ending("fault", RULE, T0, REST)
    ending.step(arm, AWAY, T0 + 2000 * MS)
    for n in range(20):
        arm.tick += 20
        ending.step(arm, AWAY, T0 + (2050 + 50 * n) * MS)
    assert arm.did == [0.4, 0.4], "it sinks fast enough"


def test_an_arm_that_is_never_released_stays_at_its_share_after_its_time():
    arm, ending = Arm(), Ending("fault", KEPT, T0, REST)
    assert not ending.releases
    ending.step(arm, AWAY, T0 + 2000 * MS)
    ending.step(arm, AWAY, T0 + 5999 * MS)
    assert (ending.stage, ending.is_over) == ("park", False)
    ending.step(arm, AWAY, T0 + 6000 * MS)
    assert (arm.did, ending.is_over, ending.unreached) == ([0.4, 0.4], True, ())
    assert ending.is_reduced


def test_an_arm_that_is_never_released_is_left_in_its_rest_pose_at_its_share():
    arm, ending = Arm(), Ending("rest", KEPT, T0, REST)
    ending.step(arm, REST, T0)
    ending.step(arm, REST, T0)
    assert (arm.did, ending.is_over) == ([0.4], True)


@pytest.mark.parametrize("rule", [RULE, KEPT])
def test_a_second_press_lets_go_at_once_whatever_the_profile_says(rule):
    arm, ending = Arm(), Ending("release", rule, T0, REST)
    assert ending.releases
    assert ending.is_reduced
    assert not ending.is_over
    assert ending.step(arm, AWAY, T0) is None
    assert (arm.did, ending.is_over) == (["off"], True)


def test_an_end_that_is_over_does_nothing_more():
    arm, ending = Arm(), Ending("release", RULE, T0, REST)
    ending.step(arm, AWAY, T0)
    ending.step(arm, AWAY, T0 + 10_000 * MS)
    assert arm.did == ["off"]

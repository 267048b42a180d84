"""An arm that is let down: how its torque falls, on a virtual clock, with an arm that falls by a simple law."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest

from edgevla.robots.lowering import FAST_TICKS_S, LONGEST_TIMES, Lowering
from edgevla.robots.profile import Escalation

MS = 1_000_000
RULE = Escalation(park_ms=4000, park_torque=0.4)


class FallingArm:
    """One joint, raised by `angle` (rad) above level. weight: share of full torque that holds it when level; what
    the torque left to it does not hold makes it sink, against the gear's friction."""

    def __init__(self, weight: float, angle: float = 1.0) -> None:
        self.weight, self.angle, self.share, self.fastest = weight, angle, 1.0, 0.0
        self.speed = 0.0

    @property
    def tick(self) -> int:
        return 2048 + round(self.angle * 4096 / math.tau)

    def step(self, dt_s: float) -> None:
        pull = self.weight * math.cos(self.angle) - self.share
        push = 60.0 * pull if pull > 0 else 0.0
        self.speed = max(0.0, self.speed + (push - 12.0 * self.speed) * dt_s) if pull > 0 else 0.0
        self.angle -= self.speed * dt_s
        if self.angle <= -1.2:
            self.angle, self.speed = -1.2, 0.0
        self.fastest = max(self.fastest, self.speed * 4096 / math.tau)


def let_down(arm: FallingArm, rule: Escalation = RULE, every_ms: int = 10):
    """Until it is over: ms that it took, the shares that were set, and when."""
    lowering, now, shares = Lowering(rule, 0), 0, []
    while not lowering.is_over:
        share = lowering.step(now, {"shoulder": arm.tick})
        if share is not None:
            arm.share = share
            shares.append((now // MS, share))
        for _ in range(every_ms):
            arm.step(0.001)
        now += every_ms * MS
        assert now < 60_000 * MS, "it never ends"
    return now // MS, shares


def test_the_torque_falls_from_the_park_share_to_nothing_in_the_profiles_time():
    took, shares = let_down(FallingArm(weight=0.0))
    assert shares[0] == (0, 0.4)
    assert shares[-1][1] == 0.0
    assert took == pytest.approx(4200, abs=100)
    steps = [b - a for (a, _), (b, _) in itertools.pairwise(shares)]
    assert min(steps) >= 50
    drops = [a - b for (_, a), (_, b) in itertools.pairwise(shares)]
    assert max(drops) < 0.02, "never a leap"


@pytest.mark.parametrize("weight", [0.05, 0.15, 0.3, 0.39])
def test_an_arm_that_stands_at_the_park_share_sinks_and_does_not_drop(weight):
    """What H8 is about: parked at 40 % it stood, and fell from its full height when it was released."""
    arm = FallingArm(weight)
    let_down(arm)
    arm.share = 0.0
    for _ in range(30000):
        arm.step(0.001)
    assert arm.angle == -1.2
    dropped = FallingArm(weight)
    dropped.share = 0.0
    for _ in range(3000):
        dropped.step(0.001)
    assert arm.fastest < 2.2 * FAST_TICKS_S
    assert arm.fastest < 0.8 * dropped.fastest or dropped.fastest < 2 * FAST_TICKS_S


def test_while_a_joint_sinks_fast_nothing_more_is_taken_from_it():
    lowering, tick = Lowering(RULE, 0), 3000
    assert lowering.step(0, {"elbow": tick, "wrist": 100}) == 0.4
    for k in range(1, 21):
        tick -= 18  # in 50 ms: 360 ticks/s
        assert lowering.step(k * 50 * MS, {"elbow": tick, "wrist": 100}) is None
    share = lowering.step(21 * 50 * MS, {"elbow": tick, "wrist": 100})
    assert share is not None
    assert share < 0.4


def test_a_joint_that_falls_gets_torque_back_but_never_more_than_it_began_with():
    lowering, tick = Lowering(RULE, 0), 3000
    shares = [lowering.step(k * 50 * MS, {"elbow": tick}) for k in range(41)]
    low = shares[-1]
    assert low == pytest.approx(0.2, abs=0.01)
    for k in range(41, 81):
        tick -= 60  # 1200 ticks/s
        share = lowering.step(k * 50 * MS, {"elbow": tick % 4096})
        assert share is None or low < share <= 0.4
    assert not lowering.is_over


def test_what_still_moves_at_the_end_of_its_time_is_over_all_the_same():
    lowering, now, tick = Lowering(RULE, 0), 0, 0
    while not lowering.is_over:
        share = lowering.step(now, {"elbow": tick % 4096})
        now, tick = now + 50 * MS, tick + 100
    assert share == 0.0
    assert now / MS == pytest.approx(LONGEST_TIMES * RULE.park_ms, abs=60)


def test_an_arm_that_cannot_be_read_is_let_down_by_time_alone():
    lowering, now = Lowering(RULE, 0), 0
    while not lowering.is_over:
        lowering.step(now, {})
        now += 20 * MS
    assert now / MS == pytest.approx(4800, abs=900)


def test_a_tick_of_noise_and_the_end_of_the_encoder_are_no_fall():
    lowering = Lowering(RULE, 0)
    shares = [lowering.step(k * 50 * MS, {"roll": (4095, 0, 1)[k % 3]}) for k in range(20)]
    assert None not in shares


def test_whoever_was_held_up_does_not_make_up_for_it_in_one_deep_step():
    lowering = Lowering(RULE, 0)
    lowering.step(0, {"elbow": 2000})
    assert lowering.step(2_000 * MS, {"elbow": 2000}) == pytest.approx(0.4 - 0.4 * 100 / 4000)


@pytest.mark.parametrize("rule", [Escalation(park_ms=0), Escalation(park_torque=0.0)])
def test_a_profile_that_does_not_park_is_over_at_once(rule):
    lowering = Lowering(rule, 0)
    assert lowering.step(0, {}) == 0.0
    assert lowering.is_over
    assert lowering.step(1, {}) is None


def test_the_guardian_can_use_it_without_numpy():
    code = "import sys; import edgevla.robots.lowering; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

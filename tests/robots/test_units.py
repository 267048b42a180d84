"""Ticks to units and back: LeRobot's formulas to the tick, ALOHA's two gripper maps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgevla.robots.calibration import Calibration, MotorCalibration, nominal
from edgevla.robots.profile import load_profile
from edgevla.robots.units import finger_m, joint_units

LOW, HIGH = 823, 3297


def reference_to_unit(tick: int, low: int, high: int, drive_mode: int, mode: str) -> float:
    """LeRobot's degrees and ranges of Feetech servos, written out for one number."""
    if mode == "degrees":
        return (tick - (low + high) / 2) * 360 / 4095
    bounded = min(high, max(low, tick))
    if mode == "range100":
        value = (bounded - low) / (high - low) * 200 - 100
        return -value if drive_mode else value
    value = (bounded - low) / (high - low) * 100
    return 100 - value if drive_mode else value


def reference_to_tick(value: float, low: int, high: int, drive_mode: int, mode: str) -> int:
    if mode == "degrees":
        return int(value * 4095 / 360 + (low + high) / 2)
    if mode == "range100":
        value = -value if drive_mode else value
        value = min(100.0, max(-100.0, value))
        return int((value + 100) / 200 * (high - low) + low)
    value = 100 - value if drive_mode else value
    value = min(100.0, max(0.0, value))
    return int(value / 100 * (high - low) + low)


def so101_units(low: int, high: int, drive_mode: int, joint_units_: str):
    profile = load_profile("so101").with_units(joint_units_)
    motors = {
        m.name: MotorCalibration(m.id, drive_mode, 0, low, high) for b in profile.buses for m in b.motors
    }
    return joint_units(profile, Calibration(motors))


@pytest.mark.parametrize("drive_mode", [0, 1])
@pytest.mark.parametrize("mode", ["degrees", "range100"])
def test_all_4096_ticks_in_all_modes_equal_the_reference(mode, drive_mode):
    units = so101_units(LOW, HIGH, drive_mode, mode)
    for tick in range(4096):
        state = units.state(np.full(6, tick))
        body = reference_to_unit(tick, LOW, HIGH, drive_mode, mode)
        jaw = reference_to_unit(tick, LOW, HIGH, drive_mode, "percent")
        assert state[0] == np.float32(body)
        assert state[5] == np.float32(jaw)


@pytest.mark.parametrize("drive_mode", [0, 1])
@pytest.mark.parametrize("mode", ["degrees", "range100"])
def test_goals_become_the_reference_s_ticks(mode, drive_mode):
    units = so101_units(LOW, HIGH, drive_mode, mode)
    rng = np.random.default_rng(0)
    for value in np.concatenate((rng.uniform(-190, 190, 3000), np.arange(-120, 121, 0.5))).astype(np.float32):
        ticks = units.ticks(np.full(6, value), is_clamped=False)
        assert ticks[0] == reference_to_tick(float(value), LOW, HIGH, drive_mode, mode)
        assert ticks[5] == reference_to_tick(float(value), LOW, HIGH, drive_mode, "percent")


def test_the_examples_of_the_specification():
    degrees, range100 = so101_units(LOW, HIGH, 0, "degrees"), so101_units(LOW, HIGH, 0, "range100")
    assert degrees.state(np.full(6, 3400))[0] == pytest.approx(117.80, abs=0.005)
    assert degrees.state(np.full(6, 700))[0] == pytest.approx(-119.56, abs=0.005)
    assert range100.state(np.full(6, 3400))[0] == 100
    assert list(degrees.ticks(np.array([45, -30.5, 0, 0, 0, 0]))[:2]) == [2571, 1713]
    assert list(range100.ticks(np.array([33.3, 120, 0, 0, 0, 0]))[:2]) == [2471, 3297]
    gripper = so101_units(2030, 3450, 0, "degrees")
    assert [gripper.ticks(np.array([0, 0, 0, 0, 0, v]))[5] for v in (0, 50, 100)] == [2030, 2740, 3450]
    assert gripper.state(np.full(6, 2500))[5] == pytest.approx(33.099, abs=0.0005)


def test_a_goal_beyond_the_calibrated_range_is_clamped_before_it_is_sent():
    units = so101_units(LOW, HIGH, 0, "degrees")
    assert list(units.ticks(np.array([170, -170, 0, 0, 0, 500]))[[0, 1, 5]]) == [HIGH, LOW, HIGH]


def test_limits_are_the_profile_s_within_what_the_servos_reach():
    low, high = so101_units(LOW, HIGH, 0, "degrees").limits()
    assert high[0] == pytest.approx((HIGH - LOW) / 2 * 360 / 4095)
    assert (low[5], high[5]) == (0, 100)
    wide = joint_units(load_profile("so101"), nominal(load_profile("so101"))).limits()
    assert wide[1][4] == pytest.approx(180, abs=0.1)


def test_aloha_gripper_state_and_action_are_different_quantities():
    units = joint_units(load_profile("aloha"), None)
    gripper = load_profile("aloha").joints[6].gripper
    assert finger_m(np.array(1.4910), gripper) == pytest.approx(0.05789, abs=5e-6)
    assert finger_m(np.array(-0.6213), gripper) == pytest.approx(0.01843, abs=5e-6)
    half = np.zeros(14)
    half[[6, 13]] = 0.5
    ticks = units.ticks(half)
    assert (ticks[6] - 2048) * 2 * np.pi / 4096 == pytest.approx(0.43485, abs=1e-3)
    assert units.action(ticks)[6] == pytest.approx(0.5, abs=1e-3)
    linear = (finger_m(np.array(0.43485), gripper) - 0.01844) / (0.058 - 0.01844)
    assert units.state(ticks)[6] == pytest.approx(linear, abs=1e-3)
    assert abs(units.state(ticks)[6] - units.action(ticks)[6]) > 0.02


def test_aloha_start_pose_in_ticks():
    units = joint_units(load_profile("aloha"), None)
    pose = np.array([0, -0.96, 1.16, 0, -0.3, 0, 0] * 2)
    assert list(units.ticks(pose)[:6]) == [2048, 1422, 2804, 2048, 1852, 2048]
    assert list(units.ticks(np.array([0.0, 0, 0, 0, 0, 0, 1.0] * 2))[[6, 13]]) == [3020, 3020]


@pytest.mark.parametrize(
    "robot", ["so101", "so101_bimanual", "aloha", "aloha_leader", "widowx250s", "so101_leader"]
)
def test_every_tick_within_the_range_survives_the_way_to_units_and_back_within_one(robot):
    profile = load_profile(robot)
    units = joint_units(profile, nominal(profile) if profile.is_calibrated_by_file else None)
    for share in np.linspace(0, 1, 40):
        ticks = np.trunc(units.low + share * (units.high - units.low)).astype(int)
        assert np.abs(units.ticks(units.action(ticks)) - ticks).max() <= 1


def test_units_of_a_profile_are_a_choice_only_where_they_are_one():
    so101 = load_profile("so101")
    shares = so101.with_units("range100")
    assert {j.unit for j in shares.joints[:5]} == {"range100"}
    assert shares.joints[0].max_velocity == pytest.approx(so101.joints[0].max_velocity * 100 / 110)
    assert dataclasses.replace(shares.joints[5]) == so101.joints[5]
    with pytest.raises(Exception, match="works in rad"):
        load_profile("aloha").with_units("degrees")

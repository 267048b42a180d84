"""Emulated servos with MuJoCo behind them: through the real driver and codec, on the virtual clock."""

from __future__ import annotations

import numpy as np
import pytest

from edgevla.clock import NS_PER_S
from edgevla.robots.units import finger_m, finger_rad
from edgevla.robots.world.contract import make_world
from edgevla.simulated import task_named

pytest.importorskip("mujoco")

TICK_RAD = 2 * np.pi / 4096
LEFT, RIGHT = 6, 13
"""Indices of the grippers in state and action."""
HELD_FINGER_M = 0.0435
"""Fingers that stand just off a cube of 4 cm."""


class Table:
    """Both arms at the start of an episode, holding there; `goal` may be changed."""

    def __init__(self, bench, task="aloha/transfer_cube", is_on=True):
        self.world = make_world(task_named(task), 0, episode_s=0)
        self.bench = bench("aloha", world=self.world)
        self.bench.robot.connect()
        self.goal = self.world.start(0).astype(np.float32)
        self.put(self.goal)
        if is_on:
            assert self.bench.robot.set_torque(True) == []
        self.world.reset(0, self.bench.clock.now_ns())
        self.wait(0.05)

    def put(self, units):
        for joint, value in zip(self.bench.profile.joints, units, strict=True):
            self.bench.emulated.move_by_hand(joint.name, float(value))

    def wait(self, seconds, is_told=True):
        """The goal is sent 100 times a second; the last reading."""
        for _ in range(round(seconds * 100)):
            reading = self.bench.tick(self.goal if is_told else None)
        return reading

    def angle(self, name):
        """Of a joint, as MuJoCo has it."""
        return float(self.world.data.joint(name).qpos[0])

    def said(self, motor, register):
        bus = motor.split("_")[0]
        line = self.bench.robot.buses[bus]
        return line.read_raw(self.bench.servo(motor).id, register)


@pytest.fixture
def table(bench):
    return lambda **options: Table(bench, **options)


def test_the_arm_goes_where_it_is_told_and_the_servos_say_what_the_physics_did(table):
    t = table()
    t.goal[[0, 8]] += [0.4, 0.3]
    reading = t.wait(1.5)
    assert reading.position[[0, 8]] == pytest.approx(t.goal[[0, 8]], abs=0.02)
    said = [reading.position[0], reading.position[8]]
    moved = [t.angle("vx300s_left/waist"), t.angle("vx300s_right/shoulder")]
    assert said == pytest.approx(moved, abs=2 * TICK_RAD)


def test_a_goal_far_away_is_approached_no_faster_than_the_servo_turns(table):
    t = table()
    begun = t.angle("vx300s_left/waist")
    t.goal[0] += 1.5
    t.wait(0.4)
    most = t.bench.servo("left_waist").axis.model.max_speed * TICK_RAD * 0.4
    assert 0.7 * most < t.angle("vx300s_left/waist") - begun < 1.02 * most


def test_both_servos_of_a_joint_say_the_same_and_carry_half_each(table):
    t = table()
    t.goal[1] += 0.5
    t.wait(0.2)
    pair = [t.bench.servo(name) for name in ("left_shoulder", "left_shoulder_shadow")]
    assert pair[0].present == pytest.approx(pair[1].present, abs=1)
    assert pair[0].axis.load == pytest.approx(pair[1].axis.load)
    assert pair[0].axis.load > 0.05


@pytest.mark.parametrize("is_open", [0.2, 0.6, 0.95])
def test_the_gripper_s_state_is_its_finger_s_place_whatever_its_motor_s_angle_is(table, is_open):
    t = table()
    gripper = t.bench.profile.joints[LEFT].gripper
    x = gripper.closed_m + is_open * (gripper.open_m - gripper.closed_m)
    angle = finger_rad(x, gripper)
    assert finger_m(angle, gripper) == pytest.approx(x)
    t.goal[LEFT] = (angle - gripper.closed_rad) / (gripper.open_rad - gripper.closed_rad)
    reading = t.wait(1.5)
    assert reading.position[LEFT] == pytest.approx(is_open, abs=0.03)
    assert t.angle("vx300s_left/left_finger") == pytest.approx(x, abs=0.001)
    assert t.angle("vx300s_left/right_finger") == pytest.approx(-x, abs=0.001)


def give_cube(t, side):
    """The cube hangs between the fingers of a hand, which stand just off it."""
    gripper = t.bench.profile.joints[LEFT].gripper
    index = {"left": LEFT, "right": RIGHT}[side]
    t.goal[index] = (finger_rad(HELD_FINGER_M, gripper) - gripper.closed_rad) / (
        gripper.open_rad - gripper.closed_rad
    )
    t.put(t.goal)
    hand = t.world.data.site(f"cali_{side}_site1")
    cube = t.world.data.joint("red_box_joint")
    cube.qpos[:3] = hand.xpos + hand.xmat.reshape(3, 3) @ [-0.03, 0, 0]
    cube.qpos[3:] = (1, 0, 0, 0)
    cube.qvel[:] = 0
    t.world.physics.refresh()
    t.goal[index] = 0.0


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_held_cube_stays_in_the_hand_and_loads_the_gripper(table, side):
    t = table()
    empty = t.said(f"{side}_gripper", "present_current")
    give_cube(t, side)
    t.wait(1.0)
    assert t.world.data.body("box").xpos[2] > 0.1, "it was not dropped"
    assert t.said(f"{side}_gripper", "present_current") < empty - 30, "closing is the negative direction"
    assert t.world.verdict().max_reward == {"left": 4, "right": 2}[side]
    t.bench.robot.set_torque(False)
    t.wait(1.0, is_told=False)
    assert t.world.data.body("box").xpos[2] < 0.05, "and limp fingers let it go"
    assert t.said(f"{side}_gripper", "present_current") == 0


def test_without_torque_the_arm_sinks_by_its_weight_and_with_torque_it_stays(table):
    t = table()
    held = t.angle("vx300s_left/elbow")
    t.wait(1.0)
    assert t.angle("vx300s_left/elbow") == pytest.approx(held, abs=0.01)
    t.bench.robot.set_torque(False)
    reading = t.wait(1.0, is_told=False)
    assert t.angle("vx300s_left/elbow") > held + 0.08
    assert reading.position[2] == pytest.approx(t.angle("vx300s_left/elbow"), abs=2 * TICK_RAD)
    assert t.said("left_elbow", "present_current") == 0


def test_torque_that_comes_on_holds_the_arm_where_it_has_sunk_to(table):
    t = table(is_on=False)
    t.wait(0.5, is_told=False)
    t.bench.robot.set_torque(True)
    sunk = t.angle("vx300s_right/elbow")
    t.wait(0.5, is_told=False)
    assert t.angle("vx300s_right/elbow") == pytest.approx(sunk, abs=0.02)


def test_a_stuck_joint_stays_pulls_with_all_it_has_and_goes_on_when_it_is_free(table):
    t = table()
    before = t.angle("vx300s_left/waist")
    t.bench.fault("stuck", target="left_waist")
    t.goal[0] += 0.5
    t.wait(0.5)
    assert t.angle("vx300s_left/waist") == pytest.approx(before, abs=1e-4)
    assert t.bench.servo("left_waist").axis.load > 0.95
    assert t.said("left_waist", "present_current") > 1500
    t.bench.fault("clear")
    t.wait(1.0)
    assert t.angle("vx300s_left/waist") == pytest.approx(before + 0.5, abs=0.03)


def test_a_weak_servo_pushes_with_no_more_than_its_share(table):
    t = table()
    t.bench.fault("weak", target="left_waist", amount=10)
    t.goal[0] += 0.5
    forces = []
    for _ in range(20):
        t.wait(0.01)
        forces.append(abs(t.world.data.actuator_force[0]))
    assert max(forces) == pytest.approx(15.0, abs=0.5), "a tenth of the scene's 150 Nm"
    assert abs(t.bench.servo("left_waist").axis.load) <= 0.101


def test_a_brown_out_lets_the_joint_go(table):
    t = table()
    held = t.angle("vx300s_left/elbow")
    for name in ("left_elbow", "left_elbow_shadow"):
        t.bench.fault("brownout", target=name)
    t.wait(0.5)
    assert t.angle("vx300s_left/elbow") > held + 0.05


def test_load_heats_the_servo_and_pulls_the_supply_down(table):
    t = table()
    servo = t.bench.servo("left_waist")
    cool, full = servo.axis.temperature_c, servo.voltage_v
    t.bench.fault("stuck", target="left_waist")
    t.goal[0] += 0.5
    t.wait(1.0)
    assert servo.axis.temperature_c > cool + 0.5
    assert servo.voltage_v < full - 0.2


def test_an_encoder_that_jumps_moves_no_joint_until_the_servo_corrects_what_it_believes(table):
    t = table(is_on=False)
    before, present = t.angle("vx300s_left/waist"), t.bench.servo("left_waist").present
    t.bench.fault("jump", target="left_waist", amount=300)
    t.wait(0.1, is_told=False)
    assert t.bench.servo("left_waist").present == pytest.approx(present + 300, abs=1)
    assert t.angle("vx300s_left/waist") == pytest.approx(before, abs=0.001)
    t.bench.robot.set_torque(True)
    t.wait(1.5)
    assert t.angle("vx300s_left/waist") == pytest.approx(before - 300 * TICK_RAD, abs=0.03)


def test_a_hand_moves_the_joint_of_the_scene(table):
    t = table(is_on=False)
    t.bench.fault("hand", target="right_waist", amount=0.7)
    assert t.angle("vx300s_right/waist") == pytest.approx(0.7, abs=TICK_RAD)
    assert t.wait(0.05, is_told=False).position[7] == pytest.approx(0.7, abs=2 * TICK_RAD)


def test_the_same_goals_give_the_same_positions_however_often_somebody_looks(table):
    ends = []
    for is_watched in (False, True):
        t = table()
        for _ in range(60):
            t.goal[0] += 0.005
            t.wait(0.01)
            if is_watched:
                for ns in (1, 700_000, 1_300_001):
                    t.bench.clock.advance(ns)
                    t.bench.emulated.step(t.bench.clock.now_ns())
                    t.world.message()
        t.wait(0.01)
        ends.append(t.world.data.qpos.copy())
    assert np.array_equal(ends[0], ends[1])


def test_an_hour_without_a_look_costs_a_tenth_of_a_second_of_physics(table):
    t = table()
    before = t.world.data.time
    t.bench.emulated.step(t.bench.clock.now_ns() + 3600 * NS_PER_S)
    assert t.world.data.time - before == pytest.approx(0.1, abs=0.01)

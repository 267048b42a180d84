"""The scripted experts of ALOHA's tasks: without memory, from any place, and back from where they were pushed to."""

from __future__ import annotations

import numpy as np
import pytest

from edgevla.errors import UsageError
from edgevla.robots.profile import load_profile
from edgevla.robots.trials.experts import viperx
from edgevla.robots.trials.experts.contract import make_expert
from edgevla.robots.units import joint_units
from edgevla.robots.world.contract import make_world
from edgevla.simulated import Task, task_named

TRANSFER, INSERTION = "aloha/transfer_cube", "aloha/insertion"
STEP_NS = 20_000_000

# Joint angles of the left arm -> the point 0.135 m before 'vx300s_left/gripper_link', by MuJoCo 3.8.1 on gym-aloha's
# scene.
BY_MUJOCO = [
    ((0.0, -0.96, 1.16, 0.0, -0.3, 0.0), (0.286137, 0.0, 0.308728)),
    ((0.3, -0.5, 0.9, 0.4, -0.6, 1.0), (0.378109, 0.069838, 0.334320)),
    ((-0.4, 0.25, 0.4, 0.0, 0.91, 0.2), (0.343515, -0.145236, 0.016703)),
]


class Bare:
    """ALOHA's arms without servos: the scene's own actuators get the goals, as in gym-aloha."""

    def __init__(self, task, seed=0, episode=0, disturbance=0.0):
        self.task = task_named(task)
        self.world, self.expert = make_world(self.task, seed, 0.0), make_expert(self.task)
        self.units = joint_units(load_profile("aloha"), None)
        self.rng, self.disturbance = np.random.default_rng([seed, episode]), disturbance
        self.now_ns, self.n_steps = 0, 0
        self.world.physics.put(self._angles(self.world.start(episode)))
        self.world.reset(episode, 0)

    def _angles(self, action):
        ticks = self.units.ticks(action, is_clamped=False)
        return (ticks - 2048) * 2 * np.pi / 4096

    @property
    def state(self):
        return self.units.state(self.world.physics.angle_rad * 4096 / 2 / np.pi + 2048)

    @property
    def cube_m(self):
        return self.world.data.qpos[16:19]

    def step(self):
        """One step of the expert; its goal."""
        goal = self.expert.goal(self.world, self.state)
        spread = self.disturbance * self.expert.manner.disturbance
        self.drive(goal + spread * self.rng.standard_normal(14))
        return goal

    def drive(self, goal):
        physics, everywhere = self.world.physics, np.ones(14)
        for _ in range(STEP_NS // physics.step_ns):
            physics.step(self._angles(goal), everywhere, everywhere < 0)
            self.now_ns += physics.step_ns
            self.world.step(self.now_ns, physics.angle_rad)
        self.n_steps += 1

    def run(self, n_steps=400):
        while self.n_steps < n_steps and not self.expert.is_done(self.world, self.state):
            self.step()
        return self.expert.went_well(self.world)


@pytest.fixture(autouse=True)
def _physics():
    pytest.importorskip("mujoco")


@pytest.mark.parametrize(("joints", "point"), BY_MUJOCO)
def test_the_tool_is_where_mujoco_has_it_and_the_inverse_leads_there(joints, point):
    joints = np.array(joints)
    assert np.allclose(viperx.tool_m(joints), point, atol=2e-6)
    back = viperx.joints_at(np.array(point), float(viperx.pitch_rad(joints)), joints[5])
    if joints[3] == 0:  # the only forearm that the experts ask for
        assert np.allclose(back, joints, atol=1e-4)
    else:
        assert np.allclose(viperx.tool_m(back), point, atol=1e-4)


@pytest.mark.parametrize("task", [TRANSFER, INSERTION])
def test_experts_succeed_from_all_over_the_table_though_they_are_disturbed(task):
    went = {episode: Bare(task, 3, episode, disturbance=0.4).run() for episode in range(5)}
    assert all(went.values()), went


@pytest.mark.parametrize("task", [TRANSFER, INSERTION])
def test_an_expert_remembers_nothing(task):
    """What was asked of it before, of this or another episode, does not change what it says."""
    arm, other = Bare(task, 3, 0), Bare(task, 3, 1)
    for _ in range(120):
        arm.step()
        other.step()
    state = arm.state
    said = arm.expert.goal(arm.world, state)
    arm.expert.goal(other.world, other.state)
    assert np.array_equal(arm.expert.goal(arm.world, state), said)
    assert np.array_equal(make_expert(arm.task).goal(arm.world, state), said)


def test_a_cube_that_is_lost_on_the_way_is_fetched_again():
    arm = Bare(TRANSFER, 3, 0)
    while arm.cube_m[2] < 0.12:
        arm.step()
    goal = arm.expert.goal(arm.world, arm.state)
    goal[13] = 1.0
    while arm.cube_m[2] > 0.03:
        arm.drive(goal)
    assert arm.run(arm.n_steps + 400)


def test_an_arm_that_was_pushed_away_comes_back():
    arm = Bare(TRANSFER, 3, 1)
    for _ in range(45):
        arm.step()
    pushed = arm.expert.goal(arm.world, arm.state)
    pushed[7:12] += [0.4, -0.3, 0.0, 0.3, 0.3]
    for _ in range(15):
        arm.drive(pushed)
    assert arm.run()


@pytest.mark.parametrize("task", [TRANSFER, INSERTION])
def test_no_rollout_begins_slowly_and_no_goal_is_beyond_a_limit(task):
    """The safety filter approaches a first goal slowly that is more than a quarter of a second away."""
    arm = Bare(task, 3, 2)
    profile = load_profile("aloha")
    speed = np.array([joint.max_velocity for joint in profile.joints])
    low, high = arm.units.limits()
    start = arm.world.start(2)
    first = arm.expert.goal(arm.world, arm.state)
    assert (np.abs(first - start) < 0.25 * speed).all()
    for _ in range(150):
        goal = arm.step()
        assert (goal >= low).all()
        assert (goal <= high).all()
        body = [k for k in range(14) if k not in (6, 13)]
        assert (np.abs(goal - arm.state)[body] < 0.2).all(), "a goal leads the arm a little, it does not jump"


def test_a_task_that_nobody_has_shown_is_refused_by_name():
    with pytest.raises(UsageError, match="no scripted expert of 'other/task' yet"):
        make_expert(Task("other/task", "aloha", "do it", 50, 8.0, ("top",), "physics.aloha"))

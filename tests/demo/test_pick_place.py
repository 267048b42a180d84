"""The SO101's pick and place: its scene against our kinematics, the judge's rules, the expert, what cameras show."""

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="extra `sim`")

from edgevla.clock import NS_PER_S
from edgevla.robots.trials.experts.contract import make_expert
from edgevla.robots.trials.experts.pick_place import PickPlaceExpert
from edgevla.robots.trials.lockstep import LockstepArm
from edgevla.robots.world.contract import make_painter, make_world
from edgevla.robots.world.follow_cube import kinematics
from edgevla.robots.world.follow_cube.kinematics import radians, robot_units
from edgevla.robots.world.grasp import grasp_frame, grasp_posture
from edgevla.robots.world.physics.pick_place import BOX_M, REST_M, Look, PickPlace, PickPlaceJudge, place
from edgevla.simulated import task_named

TASK = task_named("so101/pick_place")
LIMITS = kinematics.LIMITS_RAD


@pytest.fixture
def world() -> PickPlace:
    return PickPlace(TASK, seed=3, episode_s=0.0)


def run(world: PickPlace, seconds: float, goal) -> None:
    """The bare physics, without servos; `goal` (6,) robot units is asked for once per policy step."""
    now, free, strength = world.sim_ns, np.zeros(6, bool), np.ones(6)
    end = now + round(seconds * NS_PER_S)
    due = now
    while now < end and not world.is_decided():
        if now >= due:
            wanted, due = radians(goal()), due + NS_PER_S // TASK.fps
        now += world.physics.step_ns
        world.physics.step(wanted, strength, free)
        world.step(now, world.physics.angle_rad)


def state(world: PickPlace) -> np.ndarray:
    return robot_units(world.physics.angle_rad)


def begin(world: PickPlace, episode: int) -> None:
    world.physics.put(radians(world.start(episode)))
    world.reset(episode, 0)


def put_block(world: PickPlace, position_m) -> None:
    """By hand, at rest."""
    world.put_thing("block", (*position_m, 1, 0, 0, 0))
    world.physics.refresh()


# ---- the arm ----


def test_the_scene_has_the_kinematics_that_everything_else_uses(world):
    rng = np.random.default_rng(0)
    for joints in rng.uniform(LIMITS[:, 0], LIMITS[:, 1], (20, 6)):
        world.physics.put(joints)
        tool = world.data.site("gripperframe")
        assert np.abs(tool.xpos - kinematics.forward(joints)).max() < 1e-5
        body = world.data.body("gripper").xmat.reshape(3, 3)
        assert np.abs(body - grasp_frame(joints)[1]).max() < 1e-5


def test_joints_of_the_scene_have_the_ranges_and_names_of_the_profile(world):
    assert (
        np.abs(world.model.actuator_ctrlrange - LIMITS).max() < 2e-2
    )  # the elbow's is rounded to 0.03 degrees
    names = [world.model.actuator(k).name for k in range(world.model.nu)]
    assert names == list(kinematics.JOINTS)


def test_the_grasp_point_is_in_the_middle_of_the_pads_when_they_are_as_far_apart_as_the_block_is_wide(world):
    world.physics.put(np.array([0.2, 0.1, 0.3, 0.8, -1.2, 0.46]))
    pads = [world.data.geom(f"{side}_pad").xpos for side in ("fixed", "moving")]
    assert np.linalg.norm(np.mean(pads, 0) - grasp_frame(world.physics.angle_rad)[0]) < 1e-3


def targets(height: float) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(*BOX_M[0], 16), np.linspace(*BOX_M[1], 21))
    return np.stack((x.ravel(), y.ravel(), np.full(x.size, height)), axis=-1)


@pytest.mark.parametrize("height", [0.02, 0.026, 0.09])
def test_every_place_can_be_grasped_with_the_jaws_closing_along_y(height):
    there = targets(height)
    joints = grasp_posture(there)
    point, axes = grasp_frame(joints)
    assert np.linalg.norm(point - there, axis=-1).max() < 1e-3
    assert np.abs(axes[:, 0, 0]).max() < 1e-3
    assert (axes[:, 1, 0] < -0.99).all()
    assert ((joints >= LIMITS[:, 0]) & (joints <= LIMITS[:, 1])).all()


def test_jaws_come_straight_down_where_the_wrist_turns_far_enough():
    axes = grasp_frame(grasp_posture(np.array([0.24, 0.03, 0.026])))[1]
    assert axes[2, 2] > 0.9999


def test_jaws_turn_with_the_block():
    axes = grasp_frame(grasp_posture(np.array([0.24, 0.0, 0.03]), 0.4))[1]
    assert axes[:, 0] @ [np.sin(0.4), -np.cos(0.4), 0] > 0.9999


def test_neighbouring_places_have_neighbouring_postures():
    there = targets(0.05)
    for step in np.eye(3) * 1e-3:
        change = np.abs(grasp_posture(there + step) - grasp_posture(there)).max()
        assert change < 0.05  # a millimetre of the jaws is less than three degrees of any joint


def test_out_of_reach_the_arm_stretches_as_far_as_it_can():
    joints = grasp_posture(np.array([[0.7, 0.0, 0.1], [0.04, 0.0, 0.3]]))
    assert np.isfinite(joints).all()
    assert grasp_frame(joints)[0][0, 0] > 0.35


# ---- places ----


def test_a_place_is_the_same_for_the_same_numbers_and_another_for_others():
    assert (place(5, 7) == place(5, 7)).all()
    assert (place(5, 7) != place(5, 8)).all()
    assert (place(5, 7) != place(6, 7)).all()


def test_block_and_goal_lie_in_reach_and_apart():
    places = np.array([place(1, n) for n in range(300)])
    low, high = np.array(BOX_M).T
    assert ((places >= low) & (places <= high)).all()
    assert np.linalg.norm(places[:, 0] - places[:, 1], axis=-1).min() >= 0.08
    assert (np.ptp(places[:, 0], axis=0) > 0.9 * (high - low)).all()


def test_an_arm_begins_near_home_and_not_always_there(world):
    starts = np.array([world.start(n) for n in range(20)])
    assert np.abs(starts[:, :5]).max() <= 10.0
    assert starts[:, 5].min() >= 0.0
    assert np.ptp(starts, axis=0).min() > 3.0
    assert (world.start(4) == world.start(4)).all()


# ---- the judge ----

ON_TABLE = {"rise_m": 0.0, "speed_m_s": 0.0, "jaws_percent": 80.0, "is_touched": False}
HELD_HIGH = {"rise_m": 0.05, "speed_m_s": 0.1, "jaws_percent": 33.0, "is_touched": True}


def judged(*looks: tuple[int, dict]) -> PickPlaceJudge:
    """looks: for so many steps, what is seen."""
    judge = PickPlaceJudge(TASK, place(0, 0))
    for n, look in looks:
        for _ in range(n):
            judge.see(Look(**look))
    return judge


def test_a_block_that_was_carried_and_lies_free_at_the_goal_for_half_a_second_is_a_success():
    judge = judged((5, {"off_m": 0.1, **HELD_HIGH}), (15, {"off_m": 0.02, **ON_TABLE}))
    verdict = judge.verdict()
    assert judge.is_over
    assert (verdict.is_success, verdict.outcome) == (True, "success")
    assert verdict.time_to_success_s == pytest.approx(20 / 30)
    assert (verdict.max_reward, verdict.sum_reward) == (4, 5 * 2 + 15 * 4)
    assert verdict.place == tuple(place(0, 0).ravel())


def test_rewards_count_the_stages():
    judge = judged(
        (1, {"off_m": 0.1, **ON_TABLE}),
        (1, {"off_m": 0.1, **ON_TABLE, "is_touched": True}),
        (1, {"off_m": 0.1, **HELD_HIGH}),
        (1, {"off_m": 0.01, **HELD_HIGH}),
        (1, {"off_m": 0.01, **ON_TABLE}),
    )
    assert judge.rewards == [0, 1, 2, 3, 4]


CARRIED = (3, {"off_m": 0.1, **HELD_HIGH})
TOUCHED = (1, {"off_m": 0.1, **ON_TABLE, "is_touched": True})


@pytest.mark.parametrize(
    ("outcome", "looks"),
    [
        ("not reached", [(30, {"off_m": 0.1, **ON_TABLE})]),
        ("not reached", []),
        ("not grasped", [TOUCHED, (30, {"off_m": 0.1, **ON_TABLE})]),
        ("not grasped", [TOUCHED, (30, {"off_m": 0.0, **ON_TABLE})]),  # pushed there
        ("dropped", [CARRIED, (30, {"off_m": 0.2, **ON_TABLE})]),
        ("beside the goal", [CARRIED, (30, {"off_m": 0.05, **ON_TABLE})]),
        ("not put down", [CARRIED, (30, {"off_m": 0.01, **HELD_HIGH})]),
        ("not let go", [CARRIED, (30, {"off_m": 0.01, **ON_TABLE, "jaws_percent": 40.0})]),
        ("not let go", [CARRIED, (10, {"off_m": 0.01, **ON_TABLE})]),  # not for half a second
        ("not let go", [CARRIED, (30, {"off_m": 0.01, **ON_TABLE, "speed_m_s": 0.05})]),
    ],
)
def test_failures_are_sorted_by_how_far_it_went(outcome, looks):
    verdict = judged(*looks).verdict()
    assert (verdict.outcome, verdict.is_success, verdict.time_to_success_s) == (outcome, False, None)


def test_the_distance_to_the_goal_is_known_before_the_first_look():
    block, goal = place(0, 0)
    assert judged().verdict().figures["goal_mm"] == pytest.approx(1e3 * np.linalg.norm(block - goal))
    assert judged((1, {"off_m": 0.05, **ON_TABLE})).verdict().figures["goal_mm"] == pytest.approx(50)


def test_half_a_second_must_be_without_a_break():
    free, moved = {"off_m": 0.01, **ON_TABLE}, {"off_m": 0.01, **ON_TABLE, "speed_m_s": 0.5}
    assert not judged(CARRIED, (14, free), (1, moved), (14, free)).is_success


def test_in_the_scene_a_block_that_a_person_lifts_and_lays_on_the_goal_counts_and_one_that_is_only_laid_there_does_not(
    world,
):
    def stand() -> np.ndarray:
        return np.array([0.0, -30.0, 0.0, 0.0, 0.0, 80.0])

    world.physics.put(radians(stand()))
    world.reset(0, 0)
    put_block(world, world.goal_m)
    run(world, 1.0, stand)
    assert world.verdict().outcome == "not reached"
    put_block(world, world.goal_m + np.array([0.0, 0.0, 0.1]))
    run(world, 1.5, stand)
    assert world.verdict().is_success


def test_a_world_that_runs_by_itself_begins_the_next_episode_at_another_place():
    world = make_world(TASK, 3, episode_s=0.5)
    begin(world, 0)
    (first,) = world.message().places_of("block")
    run(world, 0.6, lambda: state(world))
    assert world.episode == 1
    assert [v.outcome for v in world.verdicts] == ["not reached"]
    assert world.sim_ns < NS_PER_S // 5
    (second,), (goal,) = world.message().places_of("block"), world.message().places_of("goal")
    assert np.linalg.norm(second - first) > 0.01
    assert goal[:2] == pytest.approx(place(3, 1)[1])


# ---- the expert ----


@pytest.mark.parametrize("episode", [0, 1, 2])
def test_the_expert_carries_the_block_to_the_goal(world, episode):
    expert = PickPlaceExpert()
    begin(world, episode)
    run(world, TASK.episode_s, lambda: expert.goal(world, state(world)))
    verdict = world.verdict()
    assert verdict.is_success
    assert verdict.figures["goal_mm"] < 15.0
    assert world.sim_ns < 0.8 * TASK.episode_s * NS_PER_S


def test_the_expert_needs_nothing_but_what_is_seen(world):
    begin(world, 0)
    used, fresh = PickPlaceExpert(), PickPlaceExpert()
    run(world, 1.0, lambda: used.goal(world, state(world)))
    assert (used.goal(world, state(world)) == fresh.goal(world, state(world))).all()


def test_the_expert_takes_up_again_a_block_that_is_taken_out_of_its_jaws(world):
    expert = PickPlaceExpert()
    begin(world, 1)
    run(world, 1.8, lambda: expert.goal(world, state(world)))
    assert world.verdict().max_reward >= 2
    put_block(world, [0.22, 0.0, REST_M])
    run(world, TASK.episode_s - 1.8, lambda: expert.goal(world, state(world)))
    assert world.verdict().is_success


def test_through_bus_and_emulated_servos_the_expert_succeeds_with_a_disturbed_arm():
    world = PickPlace(TASK, seed=0, episode_s=0.0)
    arm, expert = LockstepArm(seed=0, world=world), make_expert(TASK)
    rng = np.random.default_rng(0)
    arm.put(world.start(0))
    begin_ns = arm.clock.now_ns()
    world.reset(0, begin_ns)
    for k in range(round(TASK.episode_s * TASK.fps)):
        arm.wait_until(begin_ns + round(k * NS_PER_S / TASK.fps))
        position = arm.exchange(None).position
        arm.exchange(expert.goal(world, position) + expert.manner.disturbance * rng.standard_normal(6))
        if world.is_decided():
            break
    assert world.verdict().is_success
    assert expert.is_done(world, position) or k < 200


# ---- what cameras show ----


@pytest.mark.parametrize(
    ("camera", "hand_m"),
    [("front", [0.24, -0.03, 0.09]), ("wrist", [0.24, -0.03, 0.09]), ("top", [0.16, 0.1, 0.09])],
)
def test_every_camera_shows_the_block_and_the_goal(world, camera, hand_m):
    painter = make_painter(TASK)
    painter.open(camera, 128, 128)
    posture = grasp_posture(np.array(hand_m))
    posture[5] = 0.9
    world.physics.put(posture)
    world.data.qpos[world.model.joint("goal_x").qposadr[0] :][:2] = (0.27, 0.05)
    put_block(world, [0.25, -0.04, REST_M])
    picture = painter.draw(camera, 128, 128, world.message()).astype(int)
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    assert (red > green + blue + 40).sum() > 60
    assert ((green > red + 40) & (blue > red + 40)).sum() > 40
    assert picture.std() > 20


def test_a_camera_sees_the_block_where_it_is(world):
    painter = make_painter(TASK)
    painter.open("front", 64, 64)
    middles = []
    for y in (-0.08, 0.08):
        put_block(world, [0.27, y, REST_M])
        picture = painter.draw("front", 64, 64, world.message()).astype(int)
        is_red = picture[..., 0] > picture[..., 1] + picture[..., 2] + 40
        middles.append(np.nonzero(is_red)[1].mean())
    assert middles[1] - middles[0] > 15  # the camera looks at the arm: the arm's left is on the right

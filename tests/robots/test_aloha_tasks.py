"""gym-aloha's tasks as worlds: places, start pose, rewards, verdicts; compared with what gym-aloha itself did."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from edgevla.robots.profile import load_profile
from edgevla.robots.world.contract import SUCCESS, make_world
from edgevla.robots.world.physics import engine
from edgevla.robots.world.physics.aloha import (
    FINGER,
    RULES,
    AlohaJudge,
    insertion_reward,
    place,
    transfer_reward,
)
from edgevla.simulated import task_named
from edgevla.wire import decode, encode

pytest.importorskip("mujoco")

TRANSFER, INSERTION = "aloha/transfer_cube", "aloha/insertion"
FIXTURE = Path(__file__).parent / "fixtures" / "gym_aloha_transfer_cube.npz"
"""400 actions in our units (radians; grippers by motor angle) and a place, given to gym-aloha 0.1.5 with MuJoCo 3.8.1;
its rewards, and its positions after every 20th step."""
PROFILE = load_profile("aloha")
LEFT, RIGHT = FINGER["left"], FINGER["right"]
CUBE_ON_TABLE = ("red_box", "table")
PEG_ON_TABLE = ("red_peg", "table")
SOCKET_ON_TABLE = ("socket-1", "table")
BOTH_HELD = {("red_peg", RIGHT), ("socket-3", LEFT)}


def world_of(name, seed=0, episode_s=0.0):
    return make_world(task_named(name), seed, episode_s)


@pytest.mark.parametrize(("name", "low", "high"), [
    (TRANSFER, [[0.0, 0.4]], [[0.2, 0.6]]),
    (INSERTION, [[0.1, 0.4], [-0.2, 0.4]], [[0.2, 0.6], [-0.1, 0.6]]),
])  # fmt: skip
def test_things_lie_within_gym_alohas_ranges_and_fill_them(name, low, high):
    places = np.array([place(name, 5, episode) for episode in range(300)])
    assert (places >= low).all()
    assert (places <= high).all()
    assert places.min(axis=0) == pytest.approx(np.array(low), abs=0.01)
    assert places.max(axis=0) == pytest.approx(np.array(high), abs=0.01)


def test_an_episode_of_a_seed_is_always_the_same_and_another_one_is_another():
    assert np.array_equal(place(TRANSFER, 3, 7), place(TRANSFER, 3, 7))
    others = [place(TRANSFER, 3, 8), place(TRANSFER, 4, 7), place(INSERTION, 3, 7)[:1]]
    assert all(not np.allclose(place(TRANSFER, 3, 7), other) for other in others)
    world = world_of(INSERTION, 3)
    world.reset(7, 0)
    assert world.verdict().place == tuple(place(INSERTION, 3, 7).ravel())
    where = [thing.position_m[:2] for thing in world.message().objects]
    assert np.array(where) == pytest.approx(place(INSERTION, 3, 7), abs=1e-6)


def test_the_arm_begins_in_gym_alohas_pose():
    world = world_of(TRANSFER)
    units = world.start(0)
    world.physics.put(angles(units))
    finger = 0.02239
    expected = [0, -0.96, 1.16, 0, -0.3, 0, finger, -finger]
    assert world.data.qpos[:16] == pytest.approx(np.array(expected * 2), abs=1e-6)


def angles(units):
    """float64 (14,): shafts' angles of robot units as in `action`."""
    out, gripper = np.array(units, float), PROFILE.joints[6].gripper
    out[[6, 13]] = out[[6, 13]] * (gripper.open_rad - gripper.closed_rad) + gripper.closed_rad
    return out


def test_the_same_goals_have_the_same_rewards_and_positions_as_in_gym_aloha():
    gym = np.load(FIXTURE)
    world = world_of(TRANSFER)
    world.physics.put(angles(world.start(0)))
    cube = world.data.joint("red_box_joint")
    cube.qpos[:3] = (*gym["place"], 0.05)
    world.physics.refresh()
    full, free = np.ones(14), np.zeros(14, bool)
    rewards = []
    for k, action in enumerate(gym["actions"]):
        goal = angles(action)
        for _ in range(10):
            world.physics.step(goal, full, free)
        rewards.append(transfer_reward(world.touching()))
        if k % 20 == 0 and k < 200:  # afterwards the last digit has grown
            assert world.data.qpos == pytest.approx(gym["qpos"][k // 20], abs=1e-4)
    assert max(rewards) == 4
    assert np.mean(np.array(rewards) == gym["rewards"]) > 0.98
    assert rewards.index(4) == pytest.approx(list(gym["rewards"]).index(4), abs=2)


@pytest.mark.parametrize(("touching", "reward"), [
    (set(), 0), ({CUBE_ON_TABLE}, 0), ({("red_box", RIGHT), CUBE_ON_TABLE}, 1), ({("red_box", RIGHT)}, 2),
    ({("red_box", LEFT), CUBE_ON_TABLE}, 3), ({("red_box", LEFT)}, 4), ({("red_box", LEFT), ("red_box", RIGHT)}, 4),
])  # fmt: skip
def test_the_cube_s_reward_is_gym_alohas(touching, reward):
    assert transfer_reward(touching) == reward


@pytest.mark.parametrize(("touching", "reward"), [
    (set(), 0), ({("red_peg", RIGHT)}, 0), (BOTH_HELD | {PEG_ON_TABLE}, 1), (BOTH_HELD, 2),
    (BOTH_HELD | {SOCKET_ON_TABLE, ("red_peg", "socket-1")}, 1), ({("red_peg", "socket-1")}, 3),
    (BOTH_HELD | {("red_peg", "socket-2")}, 3), ({("red_peg", "pin"), PEG_ON_TABLE}, 4),
])  # fmt: skip
def test_the_peg_s_reward_is_gym_alohas(touching, reward):
    assert insertion_reward(touching) == reward


def judged(name, *seen):
    judge = AlohaJudge(task_named(name), RULES[name], np.zeros(2))
    for touching in seen:
        judge.see(touching)
    return judge


@pytest.mark.parametrize(("name", "seen", "outcome"), [
    (TRANSFER, [{CUBE_ON_TABLE}], "not reached"),
    (TRANSFER, [{("red_box", RIGHT), CUBE_ON_TABLE}, {CUBE_ON_TABLE}], "not grasped"),
    (TRANSFER, [{("red_box", RIGHT)}], "not handed over"),
    (TRANSFER, [{("red_box", RIGHT)}, {CUBE_ON_TABLE}], "dropped"),
    (TRANSFER, [{("red_box", RIGHT)}, {("red_box", LEFT)}], SUCCESS),
    (INSERTION, [{PEG_ON_TABLE, SOCKET_ON_TABLE}], "not reached"),
    (INSERTION, [BOTH_HELD | {PEG_ON_TABLE}], "not grasped"),
    (INSERTION, [BOTH_HELD], "not brought together"),
    (INSERTION, [BOTH_HELD, {("red_peg", RIGHT), SOCKET_ON_TABLE}], "dropped"),
    (INSERTION, [BOTH_HELD | {("red_peg", "socket-4")}], "not inserted"),
    (INSERTION, [BOTH_HELD | {("red_peg", "pin")}], SUCCESS),
])  # fmt: skip
def test_the_outcome_says_how_far_it_came(name, seen, outcome):
    assert judged(name, *seen).verdict().outcome == outcome


def test_an_episode_is_over_with_the_first_success_and_its_rewards_are_counted_until_then():
    lifted = {("red_box", RIGHT)}
    judge = judged(TRANSFER, *[lifted] * 9)
    assert not judge.is_over
    judge.see({("red_box", LEFT)})
    assert judge.is_over
    verdict = judge.verdict()
    assert (verdict.max_reward, verdict.sum_reward, verdict.is_success) == (4, 9 * 2 + 4, True)
    assert verdict.time_to_success_s == pytest.approx(0.2), "ten steps at 50 Hz"


def test_an_episode_has_400_steps_and_the_next_one_begins_by_itself_where_nobody_forbids_it():
    world = world_of(TRANSFER, 0, episode_s=None)
    still = np.zeros(14)
    for k in range(1, 4001):
        world.step(1_000_000_000 + k * 2_000_000, still)
        if k == 3999:
            assert world.episode == 0
            assert not world.is_decided()
    world.step(1_000_000_000 + 4001 * 2_000_000, still)
    assert world.episode == 1
    assert [v.outcome for v in world.verdicts] == ["not reached"]
    assert len(world._judge.rewards) == 0


def test_what_a_world_tells_goes_over_the_wire_and_holds_the_whole_scene():
    from edgevla.messages import Header, Message

    world = world_of(INSERTION)
    message = Message(Header(b"12345678", "emulator", 0, 0, 0), world.message())
    told = decode(encode(message), b"12345678").body
    assert told.qpos == pytest.approx(world.data.qpos, abs=1e-6)
    assert len(told.joint_rad) == 14
    assert told.gripper_m.shape == (6,)
    assert [thing.name for thing in told.objects] == ["peg", "socket"]


def test_the_scenes_are_what_gym_aloha_ships():
    folder = engine.ASSETS / "aloha"
    stated = {
        name: digest
        for digest, name in (
            line.split()
            for line in (folder / "README.md").read_text().splitlines()
            if line.startswith("    ")
        )
    }
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "README.md"
    }
    assert found == stated


def test_contacts_are_computed_with_the_original_meshes_and_pictures_with_fewer_faces():
    scene = engine.ASSETS / "aloha" / "bimanual_viperx_insertion.xml"
    assert engine.load(scene).mesh_facenum.sum() == 30296
    assert engine.load(scene, is_drawn=True).mesh_facenum.sum() < 9000

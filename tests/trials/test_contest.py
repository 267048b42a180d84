"""One episode in lock-step, looked at closely: what the policy sees and is told, where the arm begins, what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from deployment_kit import make_bundle

from edgevla.evaluation.seams import seams
from edgevla.robots.profile import load_profile
from edgevla.robots.trials.contest import ARRIVED_SHARE, STOPPED, Competitor, Played, one
from edgevla.simulated import TASKS
from edgevla.types import Observation


class Watched(Competitor):
    """Keeps all that its policy saw."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[Observation] = []
        infer = self.policy.infer

        def watch(seen: Observation, **more: Any) -> Any:
            self.seen.append(seen)
            return infer(seen, **more)

        self.policy.infer = watch  # type: ignore[method-assign]


def watched(bundle: Path, control: str) -> Watched:
    made = one(bundle, "follow_cube", control=control, make=Watched)
    assert isinstance(made, Watched)
    made.play(0)
    return made


def test_a_control_takes_away_what_it_says_and_nothing_else(bundle: Path, short: None) -> None:
    plain, black, blind = (watched(bundle, control).seen for control in ("none", "black", "zero-state"))
    assert plain[0].images["observation.images.front"].max() > 0
    assert black[0].images["observation.images.front"].max() == 0
    np.testing.assert_array_equal(black[0].state, plain[0].state)
    assert np.abs(plain[0].state).max() > 1
    assert {float(np.abs(seen.state).max()) for seen in blind} == {0.0}
    np.testing.assert_array_equal(
        blind[0].images["observation.images.front"], plain[0].images["observation.images.front"]
    )
    assert plain[0].task == TASKS["follow_cube"].instruction


def test_an_episode_begins_where_the_world_says_with_nothing_under_way(bundle: Path, short: None) -> None:
    contestant = watched(bundle, "none")
    played = contestant.play(3)
    assert contestant._world is not None
    start, width = contestant._world.start(3), [j.max - j.min for j in contestant.profile.joints]
    first = played.states[0]
    assert (np.abs(first.position - start) <= 2 * ARRIVED_SHARE * np.array(width)).all()
    assert first.tick == 0
    assert first.chunk_seq is None, "no chunk of before"
    assert played.scenes[0].episode == 3
    assert played.seconds == pytest.approx(0.8, abs=0.05)


def test_whoever_plays_first_an_episode_is_the_same(bundle: Path, short: None) -> None:
    alone, after = one(bundle, "follow_cube"), one(bundle, "follow_cube")
    after.play(0)
    positions = [np.array([s.position for s in arm.play(1).states]) for arm in (alone, after)]
    np.testing.assert_array_equal(*positions)


def test_an_arm_that_stops_itself_has_not_succeeded(bundle: Path, short: None) -> None:
    class Hurt(Competitor):
        def _begin(self, loop: Any, world: Any, episode: int) -> None:
            from edgevla.robots.emulator.faults import InjectedFault

            super()._begin(loop, world, episode)
            loop.arm.apply(InjectedFault("unplug"))

    played = one(bundle, "follow_cube", make=Hurt).play(0)
    assert played.stopped
    assert (played.verdict.outcome, played.verdict.is_success) == (STOPPED, False)
    assert played.seconds < 0.8


def test_two_arms_in_physics_begin_where_the_world_says_and_are_judged_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """14 joints, 50 Hz, things that fall; no episode leaves anything to the next."""
    pytest.importorskip("mujoco")
    task = "aloha/transfer_cube"
    monkeypatch.setitem(TASKS, task, replace(TASKS[task], episode_s=0.3))
    profile = load_profile("aloha")
    joints = {
        joint.name: ("rad", -1.5, 1.5) if joint.unit == "rad" else (joint.unit, 0.0, 1.0)
        for joint in profile.joints
    }
    home = [joint.home for joint in profile.joints]
    bundle = make_bundle(tmp_path / "aloha", cameras=("top",), joints=joints, target=home, fps=50.0, chunk=20)

    def play(*episodes: int) -> Played:
        contestant = one(bundle, task)
        played = [contestant.play(episode) for episode in episodes][-1]
        assert contestant._world is not None
        body = [not joint.is_gripper for joint in profile.joints]
        start = contestant._world.start(1)
        np.testing.assert_allclose(played.states[0].position[body], start[body], atol=0.03)
        return played

    played = play(1)
    assert len(played.verdict.place) == 2
    assert played.verdict.outcome == "not reached"
    assert played.counters["ticks_running"] == pytest.approx(15, abs=2)
    assert len(seams(played.states, [True] * 14)[0]) >= 1
    again = play(0, 1)
    np.testing.assert_array_equal(again.states[-1].position, played.states[-1].position)


def state(goal: float, chunk: int | None) -> Any:
    return SimpleNamespace(goal=np.array([goal, 50.0 if chunk else 0.0]), chunk_seq=chunk)


def test_a_jump_between_chunks_is_a_seam_and_its_echo_is_not_within() -> None:
    """A joint at one unit a tick, and a jump of 5 where chunk 2 takes over; the gripper snaps, and is left out."""
    states = [state(0, None), *(state(k, 1) for k in range(4)), *(state(k + 5, 2) for k in range(4, 8))]
    at_seams, within = seams(states, [True, False])
    assert at_seams == [5.0]
    assert set(within) == {0.0}
    assert seams(states[:2], [True, False]) == ([], [])

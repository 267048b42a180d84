"""The arithmetic of an evaluation, on numbers that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edgevla.dataset.layout import Episode
from edgevla.evaluation.figures import difference, figures
from edgevla.evaluation.plan import every_for, plan, some_of


def episode(number: int, length: int, start: int = 0) -> Episode:
    return Episode(number, length, start, start + length, ("reach",), {})


def test_frames_are_spread_evenly_and_chunks_can_be_chained() -> None:
    episodes = [episode(3, 30), episode(5, 20, 30)]
    frames = plan(episodes, 10, 5)
    assert [(f.episode, f.frame, f.row, f.end) for f in frames][:3] == [
        (3, 0, 0, 30),
        (3, 5, 5, 30),
        (3, 10, 10, 30),
    ]
    assert frames[-1] == plan(episodes, 10, 1)[-5]
    assert len({f.noise for f in frames}) == len(frames)


def test_a_frame_that_a_chain_needs_is_added() -> None:
    assert [f.frame for f in plan([episode(0, 30)], 4, 7)] == [0, 4, 7, 11, 14, 18, 21, 25, 28]


@pytest.mark.parametrize(("most", "every"), [(1000, 1), (50, 1), (49, 2), (10, 5), (6, 10), (4, 40), (1, 40)])
def test_the_fewest_frames_left_out(most: int, every: int) -> None:
    """Of 50 frames in two episodes, chunks of 10: every 1st, 2nd, 5th, 10th, then chains of two chunks."""
    assert every_for([episode(0, 30), episode(1, 20, 30)], 10, most) == every


def test_where_even_a_chain_of_each_episode_is_too_much_some_episodes_are_taken() -> None:
    assert [e.index for e in some_of([episode(i, 30) for i in range(10)], 4)] == [0, 2, 5, 7]
    assert [e.index for e in some_of([episode(3, 30)], 4)] == [3]


def test_errors_are_of_executed_actions_inside_the_episode() -> None:
    """Chunks of 4, of which 2 are executed; the last frame has one recorded action left."""
    actions = np.arange(10, dtype=float)[:, None] * [1.0, 10.0]
    frames = plan([episode(0, 10)], 2, 3)
    chunks = np.stack([actions[np.minimum(f.row + np.arange(4), 9)] for f in frames]).astype(np.float32)
    chunks[:, 0, 0] += 1  # first action of the first joint
    chunks[:, 3, 1] -= 50  # an action that is not executed
    found = figures(frames, chunks, actions, 2, np.array([9.0, 90.0]))
    n = sum(min(2, 10 - f.frame) for f in frames)
    assert found.n_actions == n
    assert found.mae == pytest.approx([len(frames) / n, 0])
    assert found.rms == pytest.approx([np.sqrt(len(frames) / n), 0])
    assert found.horizon[:, 0] == pytest.approx([1, 0, 0, 0])
    assert found.horizon[:, 1] == pytest.approx([0, 0, 0, 50])


def test_beyond_the_end_of_every_episode_nothing_is_known() -> None:
    frames = plan([episode(0, 2)], 4, 1)
    found = figures(frames, np.zeros((2, 4, 1), np.float32), np.ones((2, 1)), 4, np.ones(1))
    assert found.horizon[:2, 0] == pytest.approx([1, 1])
    assert np.isnan(found.horizon[2:]).all()
    assert found.seams.n == 0


def test_a_seam_is_a_jump_beside_the_recorded_step() -> None:
    actions = np.arange(12, dtype=float)[:, None] * 3
    frames = plan([episode(0, 6), episode(1, 6, 6)], 2, 2)
    chunks = np.stack([actions[np.minimum(f.row + np.arange(2), f.end - 1)] for f in frames])
    chunks[1] += 5  # only the chunk at frame 2 of episode 0 lies off: one seam into it, one out of it
    seams = figures(frames, chunks, actions, 2, np.array([33.0])).seams
    assert seams.n == 4  # never from one episode into the next
    assert seams.jump_max == pytest.approx([3 + 5])
    assert seams.jump_mean == pytest.approx([(8 + 2 + 3 + 3) / 4])
    assert seams.step_mean == pytest.approx([3])


def test_the_worst_frames_are_named_and_are_not_neighbours() -> None:
    actions = np.zeros((20, 2))
    frames = plan([episode(7, 20)], 4, 1)
    chunks = np.zeros((20, 4, 2), np.float32)
    chunks[5, 2, 1] = 30.0
    chunks[6, 1, 1] = 29.0
    chunks[15, 0, 0] = 2.0  # small, but so is that joint's range
    worst = figures(frames, chunks, actions, 4, np.array([4.0, 100.0])).worst
    assert [(w.episode, w.frame, w.action, w.joint) for w in worst[:2]] == [(7, 15, 0, 0), (7, 5, 2, 1)]
    assert (worst[1].predicted, worst[1].recorded, worst[1].share) == (30.0, 0.0, pytest.approx(0.3))


def test_a_joint_that_stands_still_has_an_error_but_no_share() -> None:
    found = figures(plan([episode(0, 4)], 2, 2), np.ones((2, 2, 1)), np.zeros((4, 1)), 2, np.zeros(1))
    assert found.mae == pytest.approx([1])
    assert found.worst == ()


def test_the_difference_of_two_policies_needs_no_truth() -> None:
    first, other = np.zeros((3, 4, 1)), np.zeros((3, 4, 1))
    other[1, 1] = 6
    other[1, 3] = 99  # not executed
    found = difference(first, other, 2)
    assert (found.mean, found.largest) == (pytest.approx([1]), pytest.approx([6]))

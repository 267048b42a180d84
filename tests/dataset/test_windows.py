"""Windows of rows: clamped to the episode, and the padding said (spec 7.2)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevla.dataset import Dataset, open_dataset

DELTAS = st.lists(st.integers(-200, 200), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def pusht_set() -> Dataset:
    return open_dataset(Path(__file__).parents[1] / "fixtures/datasets/pusht_v30")


@given(row=st.integers(0, 1915), deltas=DELTAS)
def test_a_window_stays_in_its_episode(pusht_set: Dataset, row: int, deltas: list[int]) -> None:
    rows, is_pad = pusht_set.window(row, deltas)
    episode = pusht_set.columns["episode_index"]
    for used, pad, delta in zip(rows, is_pad, deltas, strict=True):
        wanted = row + delta
        assert episode[used] == episode[row]
        inside = 0 <= wanted < 1916 and episode[wanted] == episode[row]
        assert pad == (not inside)
        if inside:
            assert used == wanted
        else:  # the episode's edge on that side is repeated
            neighbour = used - 1 if delta < 0 else used + 1
            assert not 0 <= neighbour < 1916 or episode[neighbour] != episode[row]


@given(row=st.integers(0, 1915), deltas=DELTAS)
def test_items_hold_the_windows_rows(pusht_set: Dataset, row: int, deltas: list[int]) -> None:
    item = pusht_set.item(row, {"action": deltas, "next.done": deltas}, cameras=[])
    rows, is_pad = pusht_set.window(row, deltas)
    np.testing.assert_array_equal(item["action"], pusht_set.columns["action"][rows])
    np.testing.assert_array_equal(item["next.done"], pusht_set.columns["next.done"][rows])
    np.testing.assert_array_equal(item["action_is_pad"], is_pad)
    assert item["action"].shape == (len(deltas), 2)
    assert item["observation.state"].shape == (2,)
    assert "observation.state_is_pad" not in item


@given(rows=st.lists(st.integers(0, 1915), min_size=1, max_size=50))
def test_bounds_of_many_rows_at_once(pusht_set: Dataset, rows: list[int]) -> None:
    first, end = pusht_set.episode_bounds(np.array(rows))
    for row, a, b in zip(rows, first, end, strict=True):
        episode = pusht_set.episode_of(row)
        assert (episode.from_index, episode.to_index) == (a, b)
        assert a <= row < b


def test_frames_of_a_window_repeat_at_the_edge(pusht_set: Dataset) -> None:
    item = pusht_set.item(0, {"observation.image": [-2, -1, 0, 1]})
    frames = item["observation.image"]
    assert item["observation.image_is_pad"].tolist() == [True, True, False, False]
    np.testing.assert_array_equal(frames[0], frames[2])
    np.testing.assert_array_equal(frames[3], pusht_set.frame("observation.image", 1))


def test_a_window_of_one_keeps_its_axis(pusht_set: Dataset) -> None:
    item = pusht_set.item(9, {"observation.image": [0], "observation.state": [0]})
    assert item["observation.image"].shape == (1, 96, 96, 3)
    assert item["observation.state"].shape == (1, 2)
    assert item["observation.state_is_pad"].tolist() == [False]

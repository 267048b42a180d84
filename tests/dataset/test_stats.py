"""Statistics: the merge formula, true quantiles, counted pictures, and what LeRobot got wrong."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import dataset_kit as kit
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevla.dataset import open_dataset
from edgevla.dataset import stats as statistics


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_merging_episodes_equals_computing_over_all(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(rng.uniform(-5, 5), 2, (n, 3)) for n in lengths]
    merged = statistics.merge([{"x": statistics.vector_stats(p)} for p in parts])["x"]
    whole = statistics.vector_stats(np.concatenate(parts))
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(merged[name], whole[name], atol=1e-12)


def test_merged_quantiles_are_weighted_means_and_true_ones_are_not(so101: Path) -> None:
    """Spec 6.3: on so101_v30 the merged q01 of a joint is off by degrees."""
    ds = open_dataset(so101)
    wrist_roll = 4
    true = np.quantile(ds.columns["action"][:, wrist_roll].astype(float), 0.01)
    assert ds.true_stats["action"]["q01"][wrist_roll] == pytest.approx(true)
    assert ds.stats["action"]["q01"][wrist_roll] > true + 1


def image_stats(frames: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    counter = statistics.ImageCounter()
    for frame in frames:
        counter.add(frame)
    return counter.stats()


def test_image_statistics_equal_numpys() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(20, 200, (5, 40, 60, 3), np.uint8)
    got = image_stats(frames)
    pixels = frames.reshape(-1, 3) / 255
    np.testing.assert_allclose(got["mean"].ravel(), pixels.mean(0))
    np.testing.assert_allclose(got["std"].ravel(), pixels.std(0))
    np.testing.assert_allclose(got["min"].ravel(), pixels.min(0))
    np.testing.assert_allclose(got["max"].ravel(), pixels.max(0))
    for name, q in statistics.QUANTILES.items():
        np.testing.assert_allclose(got[name].ravel(), np.quantile(pixels, q, axis=0), atol=1 / 255 + 1e-9)
    assert got["mean"].shape == (3, 1, 1)
    assert got["count"].tolist() == [5]


def test_large_frames_are_thinned_as_lerobot_does() -> None:
    frame = np.zeros((300, 450, 3), np.uint8)
    frame[::3, ::3] = 255  # longer side 450: every third pixel
    assert image_stats([frame])["mean"].ravel().tolist() == [1, 1, 1]


@pytest.mark.parametrize(("n", "count"), [(50, 50), (99, 99), (473, 101), (100_000, 5623)])
def test_sampled_frames(n: int, count: int) -> None:
    rows = statistics.sample_rows(n)
    assert len(rows) == count
    assert rows[0] == 0
    assert rows[-1] == n - 1


def test_the_wrong_image_std_is_noticed_and_replaced(so101: Path) -> None:
    ds = open_dataset(so101)
    camera = "observation.images.front"
    stored = statistics.read_stats(so101 / "meta/stats.json")[camera]["std"]
    assert stored.max() < 0.01
    repaired = ds.stats[camera]
    assert repaired["std"].min() > 0.1
    np.testing.assert_allclose(repaired["mean"], ds._opened.stats[camera]["mean"], atol=0.01)
    assert any(f.feature == camera and "std" in f.text for f in ds.findings)


def test_an_even_picture_keeps_its_small_std() -> None:
    grey = image_stats([np.full((8, 8, 3), 90, np.uint8)])
    assert not statistics.is_bad_image_std(grey)


@pytest.mark.parametrize("delete_rows", [False, True])
def test_missing_statistics_are_rebuilt(so101_copy: Path, delete_rows: bool) -> None:
    expected = open_dataset(so101_copy).stats
    (so101_copy / "meta/stats.json").unlink()
    if delete_rows:

        def drop(columns: dict) -> None:
            for name in [n for n in columns if n.startswith("stats/")]:
                del columns[name]

        kit.edit_parquet(so101_copy / "meta/episodes/chunk-000/file-000.parquet", drop)
    ds = open_dataset(so101_copy)
    for feature in ("action", "observation.state"):
        np.testing.assert_allclose(ds.stats[feature]["mean"], expected[feature]["mean"], rtol=1e-5)
        np.testing.assert_allclose(ds.stats[feature]["std"], expected[feature]["std"], rtol=1e-5)
    np.testing.assert_allclose(
        ds.stats["observation.images.wrist"]["std"], expected["observation.images.wrist"]["std"], atol=5e-3
    )
    assert any("stats.json is missing" in f.text for f in ds.findings)


def test_unreadable_statistics_are_rebuilt(so101_copy: Path) -> None:
    (so101_copy / "meta/stats.json").write_text('{"action": {"mean": ["a"')
    ds = open_dataset(so101_copy)
    assert ds.stats["action"]["mean"].shape == (6,)
    assert any("rebuilt" in f.text for f in ds.findings)

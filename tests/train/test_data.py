"""Training batches: what a policy gets, in which order, checked before the first step."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgevla.dataset import Dataset, open_dataset
from edgevla.errors import DatasetError, UsageError
from edgevla.train.augment import Augmentation
from edgevla.train.cache import FrameCache, make_cache
from edgevla.train.data import TrainingData, dataset_features, dataset_stats, epoch_order, sample_positions
from edgevla.train.fresh import policy_features
from edgevla.train.loader import Loader
from edgevla.train.policies.config import PolicyConfig, PolicyFeature

DATASETS = Path(__file__).parents[1] / "fixtures" / "datasets"
FRONT, WRIST = "observation.images.front", "observation.images.wrist"


@dataclass
class Config(PolicyConfig):
    """A policy with settable windows."""

    type = "test"
    chunk_size: int = 10
    history: list[int] | None = None
    drop: int = 0
    normalization_mapping: dict[str, str] = field(default_factory=dict)

    @property
    def chunk_length(self) -> int:
        return self.chunk_size

    @property
    def observation_indices(self) -> list[int] | None:
        return self.history

    @property
    def drop_n_last_frames(self) -> int:  # type: ignore[override]
        return self.drop


def config_for(dataset: Dataset, **settings: Any) -> Config:
    found = policy_features(dataset_features(dataset))
    return Config(
        input_features={k: f for k, f in found.items() if f.type != "ACTION"},
        output_features={k: f for k, f in found.items() if f.type == "ACTION"},
        **settings,
    )


@pytest.fixture(scope="module")
def so101() -> Dataset:
    return open_dataset(DATASETS / "so101_v30")


@pytest.fixture(scope="module")
def pusht() -> Dataset:
    return open_dataset(DATASETS / "pusht_v30")


# -- content --------------------------------------------------------------------------------------------------


def test_a_batch_has_the_shapes_of_the_contract(so101: Dataset) -> None:
    data = TrainingData(so101, config_for(so101))
    rows = np.array([472, 0, 117])
    batch = data.batch(rows)
    assert batch[FRONT].shape == (3, 480, 640, 3)
    assert batch[WRIST].shape == (3, 240, 320, 3)
    assert batch[FRONT].dtype == torch.uint8
    assert batch["observation.state"].shape == (3, 6)
    assert batch["action"].shape == (3, 10, 6)
    assert batch["action_is_pad"].sum(1).tolist() == [9, 0, 9]
    assert batch["task"] == [so101.task(r) for r in rows]
    for i, row in enumerate(rows.tolist()):
        item = so101.item(row, {"action": range(10)})
        for key in (FRONT, WRIST, "observation.state", "action", "action_is_pad"):
            np.testing.assert_array_equal(batch[key][i].numpy(), item[key])


def test_windows_of_observations(pusht: Dataset) -> None:
    data = TrainingData(pusht, config_for(pusht, history=[-1, 0]))
    rows = np.array([0, 5, 200])
    batch = data.batch(rows)
    assert batch["observation.image"].shape == (3, 2, 96, 96, 3)
    assert batch["observation.state"].shape == (3, 2, 2)
    assert batch["observation.state_is_pad"].tolist()[0] == [True, False]
    for i, row in enumerate(rows.tolist()):
        item = pusht.item(row, {"observation.image": [-1, 0], "observation.state": [-1, 0]})
        np.testing.assert_array_equal(batch["observation.image"][i].numpy(), item["observation.image"])
        np.testing.assert_array_equal(batch["observation.state"][i].numpy(), item["observation.state"])


def test_renamed_features(so101: Dataset) -> None:
    config = config_for(so101)
    features = dict(config.input_features)
    features["observation.images.base"] = features.pop(FRONT)
    config.input_features = features
    rename = {FRONT: "observation.images.base"}
    batch = TrainingData(so101, config, rename_map=rename).batch(np.array([7]))
    np.testing.assert_array_equal(batch["observation.images.base"][0].numpy(), so101.frame(FRONT, 7))
    assert FRONT not in batch
    assert "observation.images.base" in dataset_stats(so101, rename)
    assert "observation.images.base" in dataset_features(so101, rename)


def test_absent_cameras_are_said_in_the_networks_order(so101: Dataset) -> None:
    config = config_for(so101)
    features = {"observation.images.top": PolicyFeature("VISUAL", (3, 8, 8)), **config.input_features}
    config.input_features = features
    batch = TrainingData(so101, config, absent_cameras=["observation.images.top"]).batch(np.array([1, 2]))
    assert list(config.image_features) == ["observation.images.top", FRONT, WRIST]
    assert batch["camera_present"].tolist() == [[False, True, True]] * 2
    assert "observation.images.top" not in batch


def test_prompts_get_tasks_and_raw_states(so101: Dataset) -> None:
    seen: list[Any] = []

    def tokenize(tasks: list[str], states: np.ndarray | None) -> dict[str, np.ndarray]:
        seen.append((tasks, states))
        return {"tokens": np.ones((len(tasks), 4), np.int64), "token_mask": np.ones((len(tasks), 4), bool)}

    data = TrainingData(so101, config_for(so101, history=[0]), tokenize=tokenize)
    batch = data.batch(np.array([0, 120]))
    assert seen[0][0] == ["Put the red ball in the bin.", "Push the blue cube to the left."]
    np.testing.assert_array_equal(seen[0][1], so101.columns["observation.state"][[0, 120]])
    assert batch["tokens"].shape == (2, 4)
    assert batch["token_mask"].dtype == torch.bool


def test_statistics_have_true_quantiles(so101: Dataset) -> None:
    stats = dataset_stats(so101)
    expected = np.quantile(so101.columns["action"].astype(float), 0.99, axis=0)
    np.testing.assert_allclose(stats["action"]["q99"], expected)
    assert stats[FRONT]["std"].min() > 0.1


# -- checks before training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"observation.state": PolicyFeature("STATE", (7,))},
            r"'observation.state' of .* has shape \[6\]; .* \[7\]",
        ),
        (
            {"observation.images.top": PolicyFeature("VISUAL", (3, 8, 8))},
            "uses 'observation.images.top', which",
        ),
        ({FRONT: PolicyFeature("ENV", (3,))}, "as numbers"),
        (
            {"observation.environment_state": PolicyFeature("ENV", (3,))},
            "uses 'observation.environment_state'",
        ),
    ],
)
def test_features_that_disagree_with_the_policy(so101: Dataset, changes: dict, words: str) -> None:
    config = config_for(so101)
    config.input_features = {**config.input_features, **changes}
    with pytest.raises(DatasetError, match=words):
        TrainingData(so101, config)


def test_actions_of_another_size(so101: Dataset) -> None:
    config = config_for(so101)
    config.output_features = {"action": PolicyFeature("ACTION", (14,))}
    with pytest.raises(DatasetError, match=r"'action' of .* has shape \[6\].*\[14\]"):
        TrainingData(so101, config)


def test_a_rename_map_with_a_wrong_name(so101: Dataset) -> None:
    with pytest.raises(UsageError, match=r"'observation.images.fornt'"):
        TrainingData(so101, config_for(so101), rename_map={"observation.images.fornt": FRONT})


def _copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATASETS / "so101_v30", tmp_path / "set"))


def test_damage_stops_training_before_it_starts(tmp_path: Path) -> None:
    root = _copy(tmp_path)
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    columns = table.to_pydict()
    columns["action"][130][1] = float("nan")
    columns["action"][400][1] = float("nan")
    pq.write_table(pa.table(columns, schema=table.schema), path)
    ds = open_dataset(root)
    with pytest.raises(
        DatasetError, match=r"episode 1, feature 'action' element 1 .* is nan .*1 more; see `edgevla"
    ):
        TrainingData(ds, config_for(ds))
    fine = open_dataset(root, [0, 2])  # the other episodes are unharmed
    assert len(TrainingData(fine, config_for(fine))) == 118 + 120


def test_damage_in_what_is_not_used_does_no_harm(tmp_path: Path) -> None:
    root = _copy(tmp_path)
    ds = open_dataset(root)
    config = config_for(ds)
    (root / f"videos/{WRIST}/chunk-000/file-000.mp4").unlink()
    with pytest.raises(DatasetError, match=rf"camera '{WRIST}': .* is missing"):
        TrainingData(open_dataset(root), config)
    config.input_features = {k: f for k, f in config.input_features.items() if k != WRIST}
    assert WRIST not in TrainingData(open_dataset(root), config).batch(np.array([3]))


# -- order ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["so101", "pusht"])
def test_dropped_frames_are_those_lerobot_drops(name: str, request: pytest.FixtureRequest) -> None:
    truth = np.load(DATASETS / f"{name}_v30" / "truth.npz")
    ds = request.getfixturevalue(name)
    assert sample_positions(ds, 7).tolist() == truth["sampler_drop_last"].tolist()


def test_episodes_shorter_than_what_is_dropped(pusht: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    positions = sample_positions(pusht, 100)
    short = [e.index for e in pusht.episodes if e.length <= 100]
    assert short
    assert str(short) in caplog.text
    assert not set(pusht.columns["episode_index"][positions]) & set(short)
    with pytest.raises(DatasetError, match="no episode longer"):
        sample_positions(pusht, 500)


@given(n=st.integers(1, 500), seed=st.integers(0, 2**31), epoch=st.integers(0, 1000))
def test_an_epoch_is_a_permutation_and_a_pure_function(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed, epoch)
    assert sorted(order.tolist()) == list(range(n))
    torch.manual_seed(epoch)  # nothing global matters
    assert order.tolist() == epoch_order(n, seed, epoch).tolist()


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(100, s, e)) for s in (0, 1, 1000) for e in range(5)}
    assert len(orders) == 15


@pytest.mark.parametrize("batch_size", [8, 7, 64])
def test_every_sample_comes_once_per_epoch(pusht: Dataset, batch_size: int) -> None:
    data = TrainingData(pusht, config_for(pusht, drop=7))
    per_epoch = -(-len(data) // batch_size)
    for epoch in (0, 1):
        rows = [data.batch_rows(epoch * per_epoch + i, batch_size, 5) for i in range(per_epoch)]
        assert sorted(np.concatenate(rows).tolist()) == data.positions.tolist()
        assert len(rows[-1]) == len(data) - (per_epoch - 1) * batch_size  # the smaller last one is kept


def _key(batch: Any) -> bytes:
    return b"".join(v.numpy().tobytes() for v in batch.values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("n_threads", [0, 3])
def test_resuming_at_any_batch_gives_the_same_bits(pusht: Dataset, n_threads: int) -> None:
    few = open_dataset(DATASETS / "pusht_v30", [1, 4])
    data = TrainingData(few, config_for(few), augmentation=Augmentation())
    straight = [_key(b) for b in islice(Loader(data, 60, 3, n_threads=0).batches(), 9)]
    assert len(data) // 60 < 8  # more than one epoch
    for start in (0, 1, 5, 8):
        loader = Loader(data, 60, 3, n_threads=n_threads)
        assert [_key(b) for b in islice(loader.batches(start), 9 - start)] == straight[start:]
    assert len(set(straight)) == 9


def test_several_processes_share_an_epoch(pusht: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    data = TrainingData(pusht, config_for(pusht))
    monkeypatch.setattr(data, "batch", lambda rows, augment_seed: {"rows": rows, "seed": augment_seed})
    per_epoch = 120  # of 16 samples, the last one smaller
    made = [Loader(data, 16, 0, rank=r, n_ranks=3).batch(i) for r in range(3) for i in range(per_epoch // 3)]
    assert sorted(np.concatenate([b["rows"] for b in made]).tolist()) == list(range(len(pusht)))
    assert len({b["seed"] for b in made}) == 120  # no two processes augment alike


def test_evaluation_goes_through_everything_in_order(pusht: Dataset) -> None:
    few = open_dataset(DATASETS / "pusht_v30", [2])
    data = TrainingData(few, config_for(few), augmentation=Augmentation())
    batches = list(data.in_order(50))
    states = torch.cat([b["observation.state"] for b in batches])
    np.testing.assert_array_equal(states.numpy(), few.columns["observation.state"])
    frames = torch.cat([b["observation.image"] for b in batches])
    np.testing.assert_array_equal(frames.numpy(), few.frames("observation.image", np.arange(len(few))))


def test_an_error_in_a_worker_reaches_the_loop_and_threads_end(pusht: Dataset) -> None:
    data = TrainingData(pusht, config_for(pusht))
    loader = Loader(data, 4, 0, n_threads=2)
    before = threading.active_count()
    batches = loader.batches()
    next(batches)
    data.tokenize = lambda tasks, states: (_ for _ in ()).throw(DatasetError("worn out"))  # type: ignore[assignment]
    with pytest.raises(DatasetError, match="worn out"):
        list(islice(batches, 20))
    assert threading.active_count() == before
    with pytest.raises(UsageError, match="batch size 0"):
        Loader(data, 0, 0)


# -- cache ----------------------------------------------------------------------------------------------------


class Counting:
    """A dataset that counts the frames it decodes."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.decoded: Counter[tuple[str, int]] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def frames(self, camera: str, rows: Any) -> np.ndarray:
        self.decoded.update((camera, int(r)) for r in rows)
        return self._dataset.frames(camera, rows)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_each_frame_is_decoded_once(tmp_path: Path, kind: Any) -> None:
    ds = Counting(open_dataset(DATASETS / "pusht_v30", [3]))
    n = ds.n_frames
    cache = make_cache(ds, ds.cameras, kind, folder=tmp_path)  # type: ignore[arg-type]
    assert cache is not None
    data = TrainingData(ds, config_for(ds, history=[-1, 0]), cache=cache)  # type: ignore[arg-type]
    ds.decoded.clear()
    for number in range(2 * -(-n // 8)):
        data.batch(data.batch_rows(number, 8, 0))
    assert len(ds.decoded) == n
    assert max(ds.decoded.values()) == 1
    assert cache.n_cached == cache.n_frames == n
    frames = cache.frames("observation.image", np.arange(n))
    np.testing.assert_array_equal(frames, ds._dataset.frames("observation.image", np.arange(n)))
    frames[:] = 0  # a copy: what is cached is not harmed
    assert cache.frames("observation.image", [0]).any()


def test_a_disk_cache_is_found_again(tmp_path: Path) -> None:
    ds = open_dataset(DATASETS / "pusht_v30", [3])
    first = make_cache(ds, ds.cameras, "disk", folder=tmp_path)
    assert first is not None
    progress: list[tuple[int, int]] = []
    first.fill(lambda done, total: progress.append((done, total)))
    assert progress[-1] == (ds.n_frames, ds.n_frames)
    again = Counting(ds)
    second = make_cache(again, ds.cameras, "disk", folder=tmp_path)  # type: ignore[arg-type]
    assert second is not None
    frames = second.frames("observation.image", [5, 6])
    np.testing.assert_array_equal(frames, ds.frames("observation.image", [5, 6]))
    assert not again.decoded
    other = open_dataset(DATASETS / "pusht_v30", [4])
    third = make_cache(other, other.cameras, "disk", folder=tmp_path)
    assert third is not None
    assert third.n_cached == 0


def test_filling_in_the_background_while_reading(pusht: Dataset) -> None:
    cache = FrameCache(pusht, {"observation.image": (96, 96)}, None)
    cache.fill_in_background()
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = rng.integers(0, len(pusht), 4)
        np.testing.assert_array_equal(
            cache.frames("observation.image", rows), pusht.frames("observation.image", rows)
        )
    cache.close()
    assert cache.n_cached > 0


def test_budgets_decide(pusht: Dataset, tmp_path: Path) -> None:
    need = len(pusht) * 96 * 96 * 3
    small = make_cache(pusht, pusht.cameras, ram_budget=need - 1, folder=tmp_path)
    large = make_cache(pusht, pusht.cameras, ram_budget=need, folder=tmp_path)
    assert small is not None
    assert small.folder is not None
    assert large is not None
    assert large.folder is None
    with pytest.raises(UsageError, match="ram cache may take"):
        make_cache(pusht, pusht.cameras, "ram", ram_budget=1000, folder=tmp_path)
    assert make_cache(pusht, pusht.cameras, "none") is None
    assert make_cache(pusht, [], folder=tmp_path) is None

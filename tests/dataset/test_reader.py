"""Reading: equal to what LeRobot returns, whatever the files look like."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import cv2
import dataset_kit as kit
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgevla.dataset import Dataset, open_dataset
from edgevla.dataset.reader import delta_indices
from edgevla.errors import DatasetError, UsageError


def _assert_item_equals_truth(
    item: dict[str, Any], truth: Any, prefix: str, j: int, stride: int, ds: Dataset
) -> None:
    for key in (k.removeprefix(prefix) for k in truth.files if k.startswith(prefix)):
        if key not in item:
            continue
        expected = truth[prefix + key][j]
        if key in ds.cameras:
            got = np.moveaxis(item[key], -1, -3)[..., ::stride, ::stride]
            assert (
                np.abs(got.astype(int) - expected).max() <= 3
            )  # another colour converter may round otherwise
        elif key == "task":
            assert item[key] == str(expected)
        else:
            np.testing.assert_array_equal(item[key], expected, err_msg=key)
            assert np.asarray(item[key]).dtype == expected.dtype, key


@pytest.mark.parametrize("name", ["so101", "pusht"])
def test_items_equal_lerobots(name: str, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(name)
    truth = np.load(root / "truth.npz")
    meta = json.loads(str(truth["meta_json"]))
    ds = open_dataset(root)
    assert (ds.n_frames, ds.n_episodes) == (meta["num_frames"], meta["num_episodes"])
    assert [e.from_index for e in ds.episodes] == truth["episode_from"].tolist()
    assert [e.to_index for e in ds.episodes] == truth["episode_to"].tolist()
    deltas = delta_indices(meta["delta_timestamps"], ds.fps)
    for j, row in enumerate(truth["query_index"]):
        _assert_item_equals_truth(ds.item(int(row), deltas), truth, "", j, meta["image_stride"], ds)
    for key in (k for k in truth.files if k.startswith("full/")):
        _, camera, j = key.split("/")
        item = ds.item(int(truth["query_index"][int(j)]), deltas)
        assert np.abs(np.moveaxis(item[camera], -1, -3).astype(int) - truth[key]).max() <= 3


@pytest.mark.parametrize("name", ["so101", "pusht"])
def test_a_subset_of_episodes_equals_lerobots(name: str, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(name)
    truth = np.load(root / "truth.npz")
    meta = json.loads(str(truth["meta_json"]))
    episodes = truth["subset/episodes"].tolist()
    ds = open_dataset(root, episodes[::-1])  # the order of the list does not matter
    assert ds.n_frames == int(truth["subset/len"])
    assert [e.index for e in ds.episodes] == sorted(episodes)
    deltas = delta_indices(meta["delta_timestamps"], ds.fps)
    for j, position in enumerate(truth["subset/position"]):
        _assert_item_equals_truth(
            ds.item(int(position), deltas), truth, "subset/", j, meta["image_stride"], ds
        )


def test_every_frame_is_its_rows_own(so101: Path) -> None:
    ds = open_dataset(so101)
    for camera in ds.cameras:
        codes = [kit.read_code(f) for f in ds.frames(camera, np.arange(ds.n_frames))]
        rows = zip(ds.columns["episode_index"], ds.columns["frame_index"], strict=True)
        assert codes == [(int(e), int(f)) for e, f in rows]


def test_rows_come_in_the_order_asked_and_repeats_are_allowed(so101: Path) -> None:
    ds = open_dataset(so101)
    rows = [400, 3, 3, 130, 2, 400]
    frames = ds.frames("observation.images.wrist", rows)
    expected = [(int(ds.columns["episode_index"][r]), int(ds.columns["frame_index"][r])) for r in rows]
    assert [kit.read_code(f) for f in frames] == expected
    assert ds.frames("observation.images.wrist", []).shape == (0, 240, 320, 3)


def test_columns_are_contiguous_arrays_in_the_declared_type(pusht: Path) -> None:
    ds = open_dataset(pusht)
    assert ds.columns["observation.state"].shape == (1916, 2)
    assert ds.columns["next.done"].shape == (1916,)
    assert ds.columns["next.done"].dtype == bool
    assert all(c.flags.c_contiguous for c in ds.columns.values())


@pytest.mark.parametrize("v20", [False, True])
def test_v2_gives_the_same_items_as_v3(so101: Path, tmp_path: Path, v20: bool) -> None:
    root = tmp_path / "old"
    kit.convert_to_v21(so101, root, v20=v20)
    old, new = open_dataset(root), open_dataset(so101)
    assert old.info.version == ((2, 0) if v20 else (2, 1))
    assert old.tasks == new.tasks
    for name, column in new.columns.items():
        np.testing.assert_array_equal(old.columns[name], column)
        assert old.columns[name].dtype == column.dtype
    rows = [0, 117, 118, 243, 362, 363, 472]
    for camera in new.cameras:
        np.testing.assert_array_equal(old.frames(camera, rows), new.frames(camera, rows))
    np.testing.assert_allclose(old.stats["action"]["std"], new.stats["action"]["std"], rtol=1e-6)


def test_v21_has_quantiles_computed_from_the_rows(so101_v21: Path) -> None:
    ds = open_dataset(so101_v21)
    true = np.quantile(ds.columns["action"].astype(np.float64), 0.01, axis=0)
    np.testing.assert_allclose(ds.stats["action"]["q01"], true)
    assert any("lack q01" in f.text for f in ds.findings)


def test_tasks_are_looked_up_by_value_not_by_position(so101_copy: Path) -> None:
    expected = [open_dataset(so101_copy).task(r) for r in (0, 118)]
    kit.edit_parquet(so101_copy / "meta/tasks.parquet", lambda c: [v.reverse() for v in c.values()] and None)
    assert [open_dataset(so101_copy).task(r) for r in (0, 118)] == expected


def test_a_named_task_index_is_read(so101_copy: Path) -> None:
    path = so101_copy / "meta/tasks.parquet"
    table = pq.read_table(path)
    pq.write_table(table.rename_columns(["task_index", "task"]), path)
    assert open_dataset(so101_copy).task(0) == "Put the red ball in the bin."


def test_wrong_file_numbers_in_the_episode_table_do_no_harm(recorded: Path, copy_of: Any) -> None:
    root = copy_of(recorded)
    for file in sorted((root / "meta/episodes").rglob("*.parquet")):
        # the 0.4.x converter notes the file before the right one for the first episode of each file
        kit.edit_parquet(file, lambda c: c.update({"data/file_index": [0] * len(c["episode_index"])}))
        kit.edit_parquet(file, lambda c: c.update({"data/chunk_index": [0] * len(c["episode_index"])}))
    ds = open_dataset(root)
    assert ds.columns["observation.state"][7].tolist() == [0, 0, 51]
    assert kit.read_code(ds.frame(kit.CAMERA, 12)) == (2, 0)


def test_several_files_and_chunks_are_one_dataset(recorded: Path) -> None:
    files = sorted(p.relative_to(recorded).as_posix() for p in recorded.rglob("*.mp4"))
    assert len(files) > 2
    assert any("chunk-001" in f for f in files)
    ds = open_dataset(recorded)
    codes = [kit.read_code(f) for f in ds.frames(kit.CAMERA, np.arange(ds.n_frames))]
    assert codes == [(e, f) for e, n in enumerate([7, 5, 9, 6]) for f in range(n)]


def test_files_are_ordered_by_number_beyond_three_digits(recorded: Path, copy_of: Any) -> None:
    root = copy_of(recorded)
    moved = {"data/file_index": [1000]}
    shutil.move(root / "data/chunk-001/file-001.parquet", root / "data/chunk-001/file-1000.parquet")
    kit.edit_parquet(root / "meta/episodes/chunk-001/file-001.parquet", lambda c: c.update(moved))
    moved = {"data/file_index": [999]}
    shutil.move(root / "data/chunk-001/file-000.parquet", root / "data/chunk-001/file-999.parquet")
    kit.edit_parquet(root / "meta/episodes/chunk-001/file-000.parquet", lambda c: c.update(moved))
    ds = open_dataset(root)  # as text, file-1000 would come before file-999
    np.testing.assert_array_equal(ds.columns["index"], np.arange(27))
    assert not ds.findings


def test_rows_out_of_order_are_sorted(so101_copy: Path) -> None:
    before = open_dataset(so101_copy).columns["action"]
    path = so101_copy / "data/chunk-000/file-000.parquet"
    kit.edit_parquet(path, lambda c: [v.reverse() for v in c.values()] and None)
    ds = open_dataset(so101_copy)
    np.testing.assert_array_equal(ds.columns["action"], before)
    assert any("sorted" in f.text for f in ds.findings)


def test_other_types_than_declared_are_cast(so101_copy: Path) -> None:
    path = so101_copy / "data/chunk-000/file-000.parquet"
    before = open_dataset(so101_copy).columns
    pq.write_table(pa.table(pq.read_table(path).to_pydict()), path)  # doubles in variable lists
    after = open_dataset(so101_copy).columns
    for name, column in before.items():
        np.testing.assert_array_equal(after[name], column)
        assert after[name].dtype == column.dtype


def _add_columns(root: Path, columns: dict[str, Any], features: dict[str, Any]) -> None:
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    pq.write_table(table, path)
    kit.edit_json(root / "meta/info.json", lambda i: i["features"].update(features))


def test_strings_matrices_and_language_columns(pusht_copy: Path) -> None:
    n = 1916
    matrices = np.arange(n * 6, dtype=np.float64).reshape(n, 2, 3)
    columns = {
        "note": [f"row {i}" for i in range(n)],
        "grid": matrices.tolist(),
        "language_events": [[{"role": "user"}]] * n,
    }
    described = {
        "note": {"dtype": "string", "shape": [1], "names": None},
        "grid": {"dtype": "float32", "shape": [2, 3], "names": None},
        "language_events": {"dtype": "language", "shape": [1], "names": None},
    }
    _add_columns(pusht_copy, columns, described)
    item = open_dataset(pusht_copy).item(5, {"grid": [-1, 0]}, cameras=[])
    assert item["note"] == "row 5"
    np.testing.assert_array_equal(item["grid"], matrices[4:6].astype(np.float32))
    assert "language_events" not in item


@pytest.mark.parametrize("kind", ["png", "jpg", "grey", "rgba"])
def test_pictures_in_the_table(pusht_copy: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    small = [cv2.resize(rng.integers(0, 256, (4, 6, 3), np.uint8), (48, 32)) for _ in range(3)]
    suffix = ".jpg" if kind == "jpg" else ".png"

    def encoded(rgb: np.ndarray) -> bytes:
        picture = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        if kind == "grey":
            picture = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        if kind == "rgba":
            picture = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA)
        return cv2.imencode(suffix, picture, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()

    cells = [{"bytes": encoded(small[i % 3]), "path": None} for i in range(1916)]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    feature = {"dtype": "image", "shape": [32, 48, 3], "names": ["height", "width", "channel"]}
    _add_columns(
        pusht_copy, {"observation.images.top": pa.array(cells, struct)}, {"observation.images.top": feature}
    )
    ds = open_dataset(pusht_copy)
    frames = ds.frames("observation.images.top", [4, 1900, 4])
    expected = small[1]
    if kind == "grey":
        expected = cv2.cvtColor(cv2.cvtColor(small[1], cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    assert frames.shape == (3, 32, 48, 3)
    error = np.abs(frames[1].astype(int) - expected)
    assert error.mean() < 3 if kind == "jpg" else error.max() == 0
    assert ds.stats["observation.images.top"]["mean"].shape == (3, 1, 1)
    item = ds.item(0, {"observation.images.top": [-1, 0]}, cameras=["observation.images.top"])
    assert item["observation.images.top"].shape == (2, 32, 48, 3)
    assert item["observation.images.top_is_pad"].tolist() == [True, False]


def test_depth_streams_are_no_cameras(so101_copy: Path) -> None:
    def mark(info: dict[str, Any]) -> None:
        info["features"]["observation.images.wrist"]["info"]["is_depth_map"] = True

    kit.edit_json(so101_copy / "meta/info.json", mark)
    assert open_dataset(so101_copy).cameras == ["observation.images.front"]


def test_camera_shapes_are_read_in_either_order(so101_copy: Path) -> None:
    def turn(info: dict[str, Any]) -> None:
        info["features"]["observation.images.front"].update(
            shape=[3, 480, 640], names=["channels", "height", "width"]
        )

    kit.edit_json(so101_copy / "meta/info.json", turn)
    ds = open_dataset(so101_copy)
    assert ds.info.features["observation.images.front"].hwc == (480, 640, 3)
    assert ds.camera_size("observation.images.front") == (480, 640)


def test_dictionaries_of_names() -> None:
    from edgevla.dataset.layout import _names

    assert _names({"motors": ["a", "b"]}) == ("a", "b")
    assert _names({"y": 1, "x": 0}) == ("x", "y")
    assert _names(None) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codebase_version": "v4.1"}, "newer than what this EdgeVLA reads"),
        ({"codebase_version": "v1.6"}, "Convert it"),
        ({"storage_format": "lance"}, "lance"),
        ({"fps": 0}, "fps = 0"),
        ({"data_path": "data/{episode_index:06d}.parquet"}, "data_path = .* expected a path like"),
        (
            {"data_path": "../other/file-{file_index:03d}.parquet"},
            "data_path = .* leads out of the dataset's folder",
        ),
        ({"video_path": "/tmp/{video_key}/file-{file_index:03d}.mp4"}, "video_path = .* leads out of"),
        ({"video_path": 3}, "video_path = 3"),
        ({"chunks_size": "many"}, "chunks_size = 'many'"),
        ({"features": {}}, "no features"),
        ({"features": {"action": {"shape": [2]}}}, "'action' needs a dtype"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(so101_copy: Path, change: dict, words: str) -> None:
    kit.edit_json(so101_copy / "meta/info.json", lambda info: info.update(change))
    with pytest.raises(DatasetError, match=words):
        open_dataset(so101_copy)


def test_unknown_minor_version_and_unknown_keys_are_read(so101_copy: Path) -> None:
    kit.edit_json(
        so101_copy / "meta/info.json", lambda i: i.update(codebase_version="v3.4", tools=[{"x": 1}])
    )
    ds = open_dataset(so101_copy)
    assert ds.n_frames == 473
    assert any("v3.4" in f.text for f in ds.findings)


def test_a_version_that_is_none_is_told_from_the_files_with_a_warning(so101_copy: Path) -> None:
    kit.edit_json(so101_copy / "meta/info.json", lambda info: info.update(codebase_version="banana"))
    dataset = open_dataset(so101_copy)
    assert dataset.n_frames == 473
    assert any("'banana', which is none; read as v3.0" in f.text for f in dataset.findings)


def test_columns_of_an_unknown_kind_are_left_alone_but_not_those_a_policy_needs(so101_copy: Path) -> None:
    new = {"dtype": "pointcloud", "shape": [3], "names": None}
    kit.edit_json(so101_copy / "meta/info.json", lambda info: info["features"].update(lidar=new))
    dataset = open_dataset(so101_copy)
    assert "lidar" not in dataset.columns
    assert any("'pointcloud', which is not known" in f.text for f in dataset.findings)
    kit.edit_json(so101_copy / "meta/info.json", lambda info: info["features"].update(action=new))
    with pytest.raises(DatasetError, match="'pointcloud', which is not known"):
        open_dataset(so101_copy)


def test_a_row_without_a_time_has_no_frame(so101_copy: Path) -> None:
    kit.set_cell(so101_copy / "data/chunk-000/file-000.parquet", "timestamp", 3, float("nan"))
    dataset = open_dataset(so101_copy)
    dataset.frame("observation.images.wrist", 2)
    with pytest.raises(DatasetError, match="has no frame at nan"):
        dataset.frame("observation.images.wrist", 3)


def test_fractional_fps_stays_exact(so101_copy: Path) -> None:
    kit.edit_json(so101_copy / "meta/info.json", lambda i: i.update(fps=29.97))
    assert open_dataset(so101_copy).fps == 29.97


def test_a_local_path_never_asks_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("the network was asked"))
    for subject in (tmp_path / "none", str(tmp_path / "none"), "./some/folder", "one", "a/b/c"):
        with pytest.raises(DatasetError, match="no dataset folder"):
            open_dataset(subject)
    with pytest.raises(DatasetError, match=r"meta/info.json"):
        open_dataset(tmp_path)


def test_a_hub_id_with_a_local_root_needs_no_hub(so101: Path) -> None:
    ds = open_dataset("someone/so101", root=so101)
    assert ds.repo_id == "someone/so101"
    assert ds.n_episodes == 4


def test_wrong_requests_are_usage_errors(so101: Path) -> None:
    ds = open_dataset(so101)
    with pytest.raises(UsageError, match="no episode 9"):
        open_dataset(so101, [0, 9])
    with pytest.raises(UsageError, match="not a camera"):
        ds.frame("observation.images.top", 0)
    with pytest.raises(UsageError, match="outside"):
        ds.item(473)
    with pytest.raises(UsageError, match="windowed"):
        ds.item(0, {"task": [0]})
    with pytest.raises(UsageError, match="multiples"):
        delta_indices({"action": [0.01]}, 30)


def test_a_pickled_dataset_reads_on(so101: Path) -> None:
    ds = open_dataset(so101)
    ds.frame("observation.images.wrist", 5)
    again: Dataset = pickle.loads(pickle.dumps(ds))
    assert kit.read_code(again.frame("observation.images.wrist", 121)) == (1, 3)


def test_the_hash_follows_the_content(so101: Path, so101_copy: Path) -> None:
    assert open_dataset(so101).sha256 == open_dataset(so101_copy).sha256
    kit.set_cell(so101_copy / "data/chunk-000/file-000.parquet", "action", 3, 1.5, element=0)
    assert open_dataset(so101).sha256 != open_dataset(so101_copy).sha256

"""`edgevla eval` as a person uses it: real bundles, real recordings, no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgevla.bundle import load_bundle, write_manifest
from edgevla.dataset import facts_of, open_dataset
from edgevla.manifest_record import DatasetOrigin

Recorded = Callable[..., Path]
Eval = Callable[..., Any]
SPEEDS = np.array([0, 1, 2, 3, 4, 0], float)


def info_in(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "eval_info.json").read_text())
    return data


# -- what it finds ------------------------------------------------------------------------------------------


def test_errors_are_per_joint_in_robot_units_beside_an_arm_that_holds_still(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval, tmp_path: Path
) -> None:
    """The bundle repeats the state it sees (black pictures), the arm moves on: action j lies j steps behind."""
    code, out, _ = edgevla_eval(make_bundle("act"), "--dataset", recorded([30]), "--every", 1)
    assert code == 0
    info = info_in(tmp_path / "eval")
    (policy,) = info["policies"]
    behind = [j for f in range(30) for j in range(min(10, 30 - f))]
    mae = policy["aggregated"]["mae"]
    assert list(mae.values()) == pytest.approx(SPEEDS * np.mean(behind), rel=1e-4)
    assert policy["aggregated"]["rms"]["elbow_flex.pos"] == pytest.approx(
        2 * np.sqrt(np.mean(np.square(behind))), rel=1e-4
    )
    assert [h["mae"]["wrist_roll.pos"] for h in policy["horizon"]] == pytest.approx(
        [4.0 * j for j in range(10)]
    )
    assert info["baselines"][0]["aggregated"]["mae"] == mae  # so holding still is as good
    assert "NO BETTER THAN STANDING STILL" in out
    assert policy["aggregated"]["mae_percent"]["gripper.pos"] is None
    assert policy["seams"]["n"] == 20
    assert policy["seams"]["jump_mean"]["wrist_roll.pos"] == pytest.approx(40)
    assert policy["seams"]["step_mean"]["wrist_roll.pos"] == pytest.approx(4)
    worst = policy["worst_frames"][0]
    assert (worst["frame"], worst["action"]) == (0, 9)
    assert worst["recorded"] - worst["predicted"] == pytest.approx(9 * SPEEDS[JOINT[worst["joint"]]])
    for line in ("shoulder_lift", "deg", "hold", "mean action", "error by horizon", "seams", "worst frames"):
        assert line in out


JOINT = {f"{n}.pos": i for i, n in enumerate(
    ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
)}  # fmt: skip


def test_several_policies_see_the_same_frames_and_the_same_noise(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval, tmp_path: Path
) -> None:
    """Two copies of a policy that starts from noise do not differ; another one does, and by how much is said."""
    kinds = [make_bundle("act", "a"), make_bundle("act", "b"), make_bundle("flow", "c")]
    code, out, _ = edgevla_eval(*kinds, "--dataset", recorded(), "--every", 5)
    assert code == 0
    first, second, third = info_in(tmp_path / "eval")["policies"]
    assert "difference" not in first
    assert set(second["difference"]["max"].values()) == {0.0}
    assert second["difference"]["to"] == "a"
    assert third["aggregated"]["n_frames"] == first["aggregated"]["n_frames"] == 10
    assert "difference to a on the same frames" in out


def test_a_policy_that_looks_back_gets_the_frames_before_of_the_same_episode(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval, tmp_path: Path
) -> None:
    """It repeats the state of one frame ago; at an episode's beginning the first frame stands for its past."""
    code, _, _ = edgevla_eval(make_bundle("history"), "--dataset", recorded([3, 3]), "--every", 1)
    assert code == 0
    (policy,) = info_in(tmp_path / "eval")["policies"]
    # frame 0 sees itself, frames 1 and 2 the one before; over 3, 2 and 1 recorded actions
    behind = [0, 1, 2, 1, 2, 1]
    assert policy["aggregated"]["mae"]["wrist_roll.pos"] == pytest.approx(4 * np.mean(behind), rel=1e-4)


def test_the_same_frames_in_another_choice_of_episodes_get_the_same_noise(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval, tmp_path: Path
) -> None:
    dataset, bundle = recorded([20, 20, 20]), make_bundle("flow")
    assert edgevla_eval(bundle, "--dataset", dataset, "--every", 5)[0] == 0
    both = info_in(tmp_path / "eval")["policies"][0]["per_episode"]
    assert edgevla_eval(bundle, "--dataset", dataset, "--every", 5, "--episodes", "2")[0] == 0
    alone = info_in(tmp_path / "eval")["policies"][0]["per_episode"]
    assert [e["episode_ix"] for e in both] == [0, 1, 2]
    assert alone == both[2:]


def test_it_says_before_what_will_be_evaluated_and_takes_all_of_a_small_dataset(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval
) -> None:
    _, out, _ = edgevla_eval(make_bundle(), "--dataset", recorded(), "--episodes", "1")
    assert "1 policy on 20 of 20 frames (every frame) of 1 of 2 episodes" in out
    _, out, _ = edgevla_eval(make_bundle(name="other"), "--dataset", recorded(name="again"), "--frames", "12")
    assert "1 policy on 10 of 50 frames (every 5th) of 2 of 2 episodes" in out


def test_json_is_the_same_object_and_nothing_else(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval, tmp_path: Path
) -> None:
    code, out, err = edgevla_eval(make_bundle(), "--dataset", recorded(), "--every", 10, "--json")
    assert code == 0
    assert json.loads(out) == info_in(tmp_path / "eval")
    assert "1 policy on" in err


def test_pictures_are_drawn_of_the_worst_episodes(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    code, out, _ = edgevla_eval(make_bundle(), "--dataset", recorded([12, 30]), "--every", 5, "--pages", 1)
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "eval").iterdir()) == [
        "episode-001.png",
        "eval_info.json",
        "horizon.png",
    ]
    assert "the 1 worst of 2 episodes" in out


# -- held out or not ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trained", "evaluated", "standing"),
    [
        ("0-1", "2", "held out"),
        ("0-1", "0-1", "trained on"),
        ("0-1", "1-2", "partly trained on"),
        (None, "0-2", "unknown"),
    ],
)
def test_it_says_whether_the_episodes_were_trained_on(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval, tmp_path: Path,
    trained: str | None, evaluated: str, standing: str,
) -> None:  # fmt: skip
    root, bundle = recorded([12, 12, 12]), make_bundle()
    facts = facts_of(open_dataset(root, [0, 1]))
    assert facts.episodes == "0-1"
    m = load_bundle(bundle).manifest
    origin = DatasetOrigin("local", facts.sha256, 30.0, trained)
    write_manifest(bundle, replace(m, provenance=replace(m.provenance, dataset=origin)))
    _, out, _ = edgevla_eval(bundle, "--dataset", root, "--every", 10, "--episodes", evaluated)
    found = info_in(tmp_path / "eval")["policies"][0]["trained_on"]
    assert found["standing"] == standing
    assert ("TRAINED ON" in out) == (standing in ("trained on", "partly trained on"))


def test_data_that_changed_since_are_other_data(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval, tmp_path: Path
) -> None:
    root, bundle = recorded([12, 12]), make_bundle()
    m = load_bundle(bundle).manifest
    origin = DatasetOrigin("local", "1" * 64, 30.0, "0-1")
    write_manifest(bundle, replace(m, provenance=replace(m.provenance, dataset=origin)))
    edgevla_eval(bundle, "--dataset", root, "--every", 10)
    assert info_in(tmp_path / "eval")["policies"][0]["trained_on"]["standing"] == "other data"


# -- what it refuses ----------------------------------------------------------------------------------------


def edit(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    (path,) = root.glob("data/*/*.parquet")
    table = pq.read_table(path)
    columns = table.to_pydict()
    change(columns)
    pq.write_table(pa.table(columns, schema=table.schema), path)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "other joints": ({"names": [f"joint_{c}.pos" for c in "abcdef"]}, "holds other joints: joint_a"),
    "another order": (
        {"names": ["shoulder_lift.pos", "shoulder_pan.pos", "elbow_flex.pos", "wrist_flex.pos", "wrist_roll.pos",
                   "gripper.pos"]},
        "in another order",
    ),
    "another robot": ({"names": ["shoulder_pan.pos", "gripper.pos"]}, "the dataset is of another robot"),
    "other units": ({"units": "range100"}, "states that joint 'shoulder_pan.pos' is in range100"),
    "another rate": ({"fps": 10}, "acts at 30 Hz, .* was recorded at 10 Hz"),
    "another camera": ({"camera": "observation.images.top"}, "say where it gets its pictures: --camera front=top"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_dataset_that_says_nothing_about_the_policy_is_refused(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval, what: str, tmp_path: Path
) -> None:
    changes, sentence = REFUSED[what]
    code, _, err = edgevla_eval(make_bundle(), "--dataset", recorded([12], **changes))
    assert code == 1
    assert re.search(sentence, err), err
    assert not (tmp_path / "eval").exists()


def test_a_camera_is_joined_by_name_and_brought_to_the_policys_size(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval
) -> None:
    root = recorded([12], camera="observation.images.top", size=(48, 64))
    code, out, _ = edgevla_eval(make_bundle(), "--dataset", root, "--camera", "front=top")
    assert code == 0
    assert "was recorded at 64x48 and is resized to the 32x24" in out


def test_features_of_other_names_are_joined_as_said_or_as_the_bundle_remembers(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval
) -> None:
    from edgevla.dataset.reading import DatasetReading

    root, bundle = recorded([12]), make_bundle()
    for path in [root / "meta/info.json", *root.glob("meta/stats.json")]:
        path.write_text(path.read_text().replace('"observation.state"', '"qpos"'))
    (path,) = root.glob("data/*/*.parquet")
    table = pq.read_table(path)
    pq.write_table(
        table.rename_columns([n.replace("observation.state", "qpos") for n in table.column_names]), path
    )
    code, _, err = edgevla_eval(bundle, "--dataset", root)
    assert code == 1
    assert "observation.state" in err
    assert edgevla_eval(bundle, "--dataset", root, "--feature", "observation.state=qpos")[0] == 0
    m = load_bundle(bundle).manifest
    origin = DatasetOrigin("local", "1" * 64, 30.0, "0", DatasetReading({"observation.state": "qpos"}))
    write_manifest(bundle, replace(m, provenance=replace(m.provenance, dataset=origin)))
    assert edgevla_eval(bundle, "--dataset", root)[0] == 0


def test_a_number_that_is_none_is_named(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval
) -> None:
    root = recorded([12, 12])
    edit(root, lambda c: c["action"][15].__setitem__(2, float("nan")))
    code, _, err = edgevla_eval(make_bundle(), "--dataset", root)
    assert code == 1
    assert "'action' of joint 'elbow_flex.pos' is nan in episode 1, frame 3" in err
    assert edgevla_eval(make_bundle(name="b"), "--dataset", root, "--episodes", "0")[0] == 0


def test_a_video_that_is_gone_is_named_before_anything_runs(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval
) -> None:
    root = recorded([12])
    (video,) = root.rglob("*.mp4")
    video.unlink()
    code, _, err = edgevla_eval(make_bundle(), "--dataset", root)
    assert code == 1
    assert video.name in err
    assert "Traceback" not in err


def test_one_frame_is_enough_for_a_policy_without_history_and_too_little_for_one_with(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval
) -> None:
    root = recorded([1])
    code, out, _ = edgevla_eval(make_bundle(), "--dataset", root)
    assert code == 0
    assert "no seams" in out
    code, _, err = edgevla_eval(make_bundle("history", "h"), "--dataset", root)
    assert code == 1
    assert "looks back over 2 frames, episode 0" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--episodes", "7"], "names episodes outside 0 ... 1"),
        (["--episodes", "x"], "is not of the form 0,2-5"),
        (["--every", "2", "--frames", "9"], "give one of them"),
        (["--every", "0"], "from 1"),
        (["--camera", "front=nose"], "the dataset has no camera 'nose'"),
        (["--camera", "front"], "expected NAME=VALUE"),
        (["--device", "cpu"], "--device is for checkpoints"),
    ],
)
def test_wrong_options_are_wrong_usage(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval, words: list[str], sentence: str
) -> None:
    code, _, err = edgevla_eval(make_bundle(), "--dataset", recorded([12, 12]), *words)
    assert code == 2
    assert sentence in err


def test_without_a_dataset_and_with_a_policy_named_twice(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval
) -> None:
    bundle = make_bundle()
    code, _, err = edgevla_eval(bundle)
    assert code == 2
    assert "say on what, one of --dataset, --task" in err
    code, _, err = edgevla_eval(bundle, bundle, "--dataset", recorded([12]))
    assert code == 2
    assert "is named twice" in err


def test_a_place_that_holds_something_else_is_left_alone(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("precious")
    bundle, root = make_bundle(), recorded([12])
    code, _, err = edgevla_eval(bundle, "--dataset", root, "-o", tmp_path / "mine")
    assert code == 2
    assert "holds something else than an evaluation" in err
    code, _, err = edgevla_eval(bundle, "--dataset", root, "-o", "/proc/eval")
    assert code == 1
    assert "/proc/eval" in err


# -- ended early --------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_what_is_done_and_says_so(
    make_bundle: Callable[..., Path],
    recorded: Recorded,
    edgevla_eval: Eval,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import os
    import signal

    from edgevla.evaluation import replayed

    predict, calls = replayed.Seat.predict, []

    def pressed(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2 + 7:  # after the two that measure
            os.kill(os.getpid(), signal.SIGINT)
        return predict(self, *args)

    monkeypatch.setattr(replayed.Seat, "predict", pressed)
    code, out, _ = edgevla_eval(make_bundle(), "--dataset", recorded(), "--every", 1)
    assert code == 130
    assert "ended early (interrupted): 7 of 50 frames" in out
    info = info_in(tmp_path / "eval")
    assert (info["stopped"], info["n_frames"], info["n_frames_planned"]) == ("interrupted", 7, 50)


def test_a_policy_that_yields_no_number_is_named_with_its_frame_and_the_rest_is_kept(
    make_bundle: Callable[..., Path], recorded: Recorded, edgevla_eval: Eval, tmp_path: Path
) -> None:
    """At frame 9 the state overflows; the frames before are told."""
    root = recorded([12])
    edit(root, lambda c: c["observation.state"].__setitem__(9, [3e38] * 6))
    bundle = make_bundle()
    _doubled(bundle)
    code, out, err = edgevla_eval(bundle, "--dataset", root, "--every", 1)
    assert code == 1
    assert "episode 0, frame 9: the policy yielded actions that are not finite" in err
    assert info_in(tmp_path / "eval")["n_frames"] == 9
    assert "9 of 12 frames" in out


def _doubled(bundle: Path) -> None:
    """Makes the bundle's decode yield twice its input."""
    import onnx
    from onnx import helper

    from edgevla.bundle import list_files

    manifest = load_bundle(bundle).manifest
    path = bundle / "decode.onnx"
    model = onnx.load(path)
    node = helper.make_node("Add", [model.graph.input[0].name] * 2, [model.graph.output[0].name])
    del model.graph.node[:]
    model.graph.node.append(node)
    onnx.save(model, path)
    write_manifest(bundle, replace(manifest, files=list_files(bundle)))

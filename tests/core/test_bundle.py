"""A policy bundle is read as docs/formats.md#the-bundle says, or refused with one sentence that names the thing."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevla.bundle import load_bundle, sha256_of
from edgevla.dataset.reading import DatasetReading
from edgevla.descriptions import AboutCamera, AboutJoint, AboutRobot
from edgevla.errors import BundleError
from edgevla.manifest import Manifest

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]


def example(name: str = "act") -> dict[str, Any]:
    return json.loads((FIXTURES / f"manifest_{name}.json").read_text())


def edited(path: str, value: Any, name: str = "act") -> dict[str, Any]:
    """The example with one place changed; `path` is dotted with `/`, list indices are numbers."""
    data = example(name)
    *parents, last = path.split("/")
    place: Any = data
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return data


@pytest.mark.parametrize("name", ["act", "pi05"])
def test_the_documented_manifests_read_and_write_back_unchanged(name: str) -> None:
    data = example(name)
    assert Manifest.from_json(copy.deepcopy(data)).to_json() == data


def test_a_diffusion_schedule_keeps_its_spacing() -> None:
    data = example("pi05")
    data["schedule"] = {
        "kind": "timesteps",
        "n_train": 100,
        "spacing": "leading",
        "n_steps": 100,
        "n_steps_allowed": [1, 100],
    }
    assert Manifest.from_json(copy.deepcopy(data)).to_json()["schedule"] == data["schedule"]
    data["schedule"]["spacing"] = "trailing"
    with pytest.raises(BundleError, match="spacing is 'trailing'"):
        Manifest.from_json(data)


LOOK = {
    "brightness": [80.0, 110.0],
    "contrast": [30.0, 50.0],
    "thumbnail": "AAAA" * 48,
    "spread": "AAAA" * 16,
    "usual": 0.4,
    "n_pictures": 64,
}


def test_a_bundle_tells_how_its_cameras_looked_and_an_older_one_does_not() -> None:
    assert Manifest.from_json(example()).trained_camera_look is None
    told = edited("trained_camera_look", {"observation.images.front": LOOK})
    manifest = Manifest.from_json(told)
    assert manifest.trained_camera_look is not None
    assert manifest.trained_camera_look["observation.images.front"].brightness == (80.0, 110.0)
    assert manifest.to_json() == told


def test_a_bundle_tells_what_never_moved_and_an_older_one_does_not() -> None:
    assert (Manifest.from_json(example()).trained_still, Manifest.from_json(example()).still_joints) == (
        None,
        "trained",
    )
    told = edited("trained_still", {"observation.state": [None, None, None, None, None, 12.5]})
    manifest = Manifest.from_json({**told, "still_joints": "live"})
    assert manifest.trained_still == {"observation.state": (None, None, None, None, None, 12.5)}
    assert manifest.to_json() == {**told, "still_joints": "live"}


def test_a_bundle_tells_how_its_dataset_was_read() -> None:
    told = example()
    assert Manifest.from_json(told).provenance.dataset.reading == DatasetReading()  # type: ignore[union-attr]
    told["provenance"]["dataset"]["reading"] = {"names": {"action": "actions"}, "task_from": "subtask"}
    manifest = Manifest.from_json(told)
    assert manifest.provenance.dataset.reading == DatasetReading({"action": "actions"}, (), "subtask")  # type: ignore[union-attr]
    assert manifest.to_json() == told


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("trained_still", {"observation.state": [1.0]}, "trained_still of 'observation.state' does not fit"),
        ("trained_still", {"action": [None] * 6}, "trained_still of 'action' does not fit"),
        ("still_joints", "sometimes", "still_joints is 'sometimes'"),
        ("schema", 2, "schema 2, this EdgeVLA reads up to 1"),
        ("schema", 0, "schema 0 is unknown"),
        ("fpz", 30, "unknown key 'fpz'; did you mean 'fps'"),
        ("features/action/unitz", [], "did you mean 'units'"),
        ("fps", "30", "fps is '30'; expected a number"),
        ("chunk_size", 100.5, "chunk_size is 100.5; expected a whole number"),
        ("chunk_size", 50, "cannot work together"),
        ("graphs/encode/inputs/0/source", "frame:front", "unknown source 'frame:front'"),
        ("graphs/encode/inputs/0/source", "camera:observation.images.top", "features do not declare"),
        ("graphs/encode/inputs/2/source", "context:kv", "encode does not yield"),
        ("graphs/encode/inputs/2/source", "prompt:tokens", "no prompt recipe"),
        ("graphs/encode/inputs/2/name", "t", "reserved name"),
        ("graphs/encode/file", "../encode.onnx", "leaves the bundle"),
        ("graphs/encode/file", "other.onnx", "not listed in files"),
        ("files/0/path", "/etc/passwd", "leaves the bundle"),
        ("graphs/decode/outputs/0/shape", [1, 99, 6], "chunk_size and 'action' say"),
        ("features/observation.state/units", ["deg"] * 5, "they must agree"),
        ("features/action/names/1", "shoulder_pan.pos", "names shoulder_pan.pos more than once"),
        ("features/action/units/0", "degrees", "unknown unit 'degrees'; did you mean 'deg'"),
        ("features/observation.images.front/encoding", "bgr8", "expected 'rgb8'"),
        ("execution/allowed", ["sync", "rtc"], "act has no rtc"),
        ("execution/default", {"kind": "rtc"}, "not allowed"),
        ("trained_speed_p999/action", [1.0], "does not fit the feature"),
        ("trained_speed_p999/action/2", -1.0, "trained_speed_p999 of 'action' has the speed -1.0"),
        (
            "trained_range/observation.state/q01/1",
            400,
            "trained_range of 'observation.state' has a q01 above its q99",
        ),
        ("graphs/decode/outputs", [], "graph 'decode' yields nothing"),
        ("features/action/dtype", "float16", "'action' has dtype 'float16', expected 'float32'"),
        ("trained_camera_age_ms", {"action": {"p50": 1, "p99": 1, "max": 1}}, "no camera of the policy"),
        ("trained_camera_look", {"action": LOOK}, "no camera of the policy"),
        (
            "trained_camera_look",
            {"observation.images.front": {**LOOK, "spread": "AAAA"}},
            "look of 'observation.images.front' holds no thumbnail of 6 x 8 cells",
        ),
        ("trained_camera_look", {"observation.images.front": {**LOOK, "hue": 1}}, "unknown key 'hue'"),
    ],
)
def test_a_contradiction_is_refused_by_name(path: str, value: Any, sentence: str) -> None:
    with pytest.raises(BundleError, match=sentence):
        Manifest.from_json(edited(path, value))


def test_a_missing_key_is_named() -> None:
    data = example()
    del data["features"]["action"]["shape"]
    with pytest.raises(BundleError, match="'action' has shape"):
        Manifest.from_json(data)
    data = example()
    del data["provenance"]
    with pytest.raises(BundleError, match="lacks the key 'provenance'"):
        Manifest.from_json(data)


# -- on disk --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose files are text: enough for everything that is checked before a graph is loaded."""
    data = example()
    for entry in data["files"]:
        path = tmp_path / entry["path"]
        path.write_text(f"content of {path.name}")
        entry["bytes"], entry["sha256"] = path.stat().st_size, sha256_of(path)
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    return tmp_path


def test_a_sound_bundle_loads_from_its_folder_or_its_manifest(folder: Path) -> None:
    assert load_bundle(folder).manifest.policy == "act"
    assert load_bundle(folder / "manifest.json").sha256 == sha256_of(folder / "manifest.json")


def test_damage_is_refused(folder: Path) -> None:
    graph = folder / "encode.onnx"
    sound = graph.read_bytes()
    graph.write_bytes(sound[:-1] + b"X")
    with pytest.raises(BundleError, match=r"'encode.onnx' is damaged"):
        load_bundle(folder)
    load_bundle(folder, verify=False)
    graph.write_bytes(sound[:-1])
    with pytest.raises(BundleError, match=r"'encode.onnx' has \d+ bytes"):
        load_bundle(folder, verify=False)
    graph.unlink()
    with pytest.raises(BundleError, match=r"'encode.onnx' is missing"):
        load_bundle(folder)
    (folder / "manifest.json").write_text('{"schema": 1, "fps": NaN}')
    with pytest.raises(BundleError, match="not valid JSON"):
        load_bundle(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(BundleError, match="no policy bundle"):
        load_bundle(folder)
    with pytest.raises(BundleError, match="edgevla export"):
        load_bundle(folder / "nowhere")


# -- against a robot ------------------------------------------------------------------------------------------


def robot(unit: str = "deg", half: float = 90.0, **camera: Any) -> AboutRobot:
    joints = [AboutJoint(n, unit, -100.0, 100.0, 90.0, False, (-half, half), "mid_range") for n in NAMES[:5]]
    joints.append(AboutJoint("gripper", "percent", 0.0, 100.0, 200.0, True, None, None))
    front = replace(AboutCamera("front", "0", 480, 640, 30.0, False, "exact"), **camera)
    wrist = AboutCamera("wrist", "1", 240, 320, 30.0, False, "exact")
    return AboutRobot("robot", "so101", tuple(joints), (front, wrist), 100.0, (), ())


def with_joint(about: AboutRobot, i: int, **changes: Any) -> AboutRobot:
    joints = list(about.joints)
    joints[i] = replace(joints[i], **changes)
    return replace(about, joints=tuple(joints))


def test_the_same_units_pass_unchanged() -> None:
    fit = load(example()).fits(robot())
    assert fit.cameras == {"observation.images.front": "front", "observation.images.wrist": "wrist"}
    assert fit.state is not None
    assert fit.state.is_identity
    assert fit.action.is_identity


def test_degrees_of_the_policy_become_the_robots_range100_and_come_back() -> None:
    fit = load(example()).fits(robot("range100", half=110.0))
    degrees = np.array([[110.0, -110.0, 55.0, 0.0, 11.0, 42.0]], np.float32)
    there = fit.action.to_robot(degrees)
    np.testing.assert_allclose(there, [[100, -100, 50, 0, 10, 42]], rtol=1e-6)
    np.testing.assert_allclose(fit.action.to_policy(there), degrees, rtol=1e-6)
    np.testing.assert_allclose(
        fit.action.speeds_to_robot([110.0] * 5 + [300.0]), [100] * 5 + [300], rtol=1e-6
    )


def test_joints_are_matched_by_name_not_by_place() -> None:
    described = robot("rad")
    fit = load(example()).fits(replace(described, joints=described.joints[::-1]))
    degrees = np.array([180.0, 0, 0, 0, -90.0, 42.0], np.float32)
    np.testing.assert_allclose(
        fit.action.to_robot(degrees), [42, -np.pi / 2, 0, 0, 0, np.pi], rtol=1e-6, atol=1e-9
    )


def test_what_does_not_fit_is_named() -> None:
    bundle = load(example())
    joints = robot().joints
    with pytest.raises(BundleError, match="so101 lacks elbow_flex"):
        bundle.fits(replace(robot(), joints=joints[:2] + joints[3:]))
    with pytest.raises(BundleError, match=r"'shoulder_pan'.*calibrated range"):
        bundle.fits(with_joint(robot("range100"), 0, range_deg=None))
    with pytest.raises(BundleError, match=r"'shoulder_lift'.*'mid_range'"):
        bundle.fits(with_joint(robot(), 1, zero="urdf"))
    with pytest.raises(BundleError, match=r"delivers 1280x720.*--camera-size front=1280x720"):
        bundle.fits(robot(height=720, width=1280))
    assert "differs from training" in bundle.fits(robot(height=720, width=1280, fit="resize")).warnings[0]
    with pytest.raises(BundleError, match="camera 'wrist'"):
        bundle.fits(replace(robot(), cameras=robot().cameras[:1]))


def load(data: dict[str, Any]) -> Any:
    from edgevla.bundle import Bundle

    return Bundle(Path(), Manifest.from_json(data), "")

"""`edgevla export`: a checkpoint becomes a bundle whose meaning is stated, or nothing is written and it is said why."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevla.bundle import load_bundle
from edgevla.cli import main
from edgevla.descriptions import AboutRobot
from edgevla.errors import BundleError, UsageError
from edgevla.export import build, trace
from edgevla.export.build import export_checkpoint
from edgevla.export.options import ExportOptions
from edgevla.runner import BundlePolicy
from edgevla.types import CameraAge, Observation

SHARED = Path(__file__).parents[1] / "fixtures"
GOLDEN_ACT = SHARED / "goldens" / "act" / "checkpoint"
SO101 = SHARED / "datasets" / "so101_v30"
QUICK = {"n_samples": 2, "n_timed": 1}
SMALL = {"camera_sizes": {"front": (48, 64), "wrist": (48, 64)}}


@pytest.fixture(scope="module")
def bundle(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported as a person would: the run's folder, the dataset to compare on."""
    target = tmp_path_factory.mktemp("bundles") / "reach"
    arguments = ["export", str(run_folder), "-o", str(target), "--dataset", str(SO101), "--samples", "6"]
    assert main(arguments) == 0
    return target


def test_the_manifest_states_what_the_checkpoint_could_not(
    bundle: Path, robot: Callable[..., AboutRobot]
) -> None:
    m = load_bundle(bundle).manifest
    assert (m.name, m.policy, m.fps, m.chunk_size) == ("reach", "act", 30.0, 8)
    assert m.action.units == ("deg",) * 5 + ("percent",)
    assert m.action.names[0] == "shoulder_pan.pos"
    assert m.features["observation.images.wrist"].shape == (240, 320, 3)
    assert m.trained_range is not None
    assert m.trained_range["observation.state"].q99[0] > m.trained_range["observation.state"].q01[0]
    assert m.trained_speed_p999 is not None
    assert m.trained_speed_p999["action"][5] == pytest.approx(141.3, abs=0.1)
    assert m.trained_camera_age_ms == {"observation.images.front": CameraAge(12.0, 30.0, 41.0)}
    assert set(m.trained_camera_look or ()) == {"observation.images.front", "observation.images.wrist"}
    assert m.provenance.features_from == "checkpoint (edgevla.json)"
    assert m.provenance.dataset is not None
    assert len(m.provenance.dataset.sha256) == 64
    assert load_bundle(bundle).fits(robot()).action.is_identity


def test_it_was_compared_with_torch_on_real_frames_and_timed(bundle: Path) -> None:
    m = load_bundle(bundle).manifest
    assert m.parity is not None
    assert m.parity.passed
    assert m.parity.n_samples == 6
    assert "dataset frames" in m.parity.reference
    # One hundred-thousandth of the joint's range.
    assert m.parity.actions.tolerance_per_joint is not None
    assert max(m.parity.actions.tolerance_per_joint) < 2e-3
    assert m.latency is not None
    assert m.latency.eager_ms.p50 > 0
    page = (bundle / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert page.count("<td>yes</td>") == 6  # a tolerance that decides, joint by joint
    assert "http://" not in page
    assert 'src="http' not in page


def test_an_exported_chunk_is_what_torch_predicts_for_the_recorded_frame(
    run_folder: Path, bundle: Path
) -> None:
    import torch

    from edgevla.dataset import open_dataset
    from edgevla.train.checkpoint import load_policy

    dataset = open_dataset(SO101)
    images = {c: dataset.frame(c, 100) for c in dataset.cameras}
    state = dataset.columns["observation.state"][100]
    ours = BundlePolicy(load_bundle(bundle)).infer(Observation(state, images)).actions
    policy = load_policy(run_folder / "checkpoints/last")
    values = {f"camera:{c}": torch.from_numpy(i.copy())[None] for c, i in images.items()}
    theirs = policy.sample([{**values, "state": torch.from_numpy(state.copy())[None]}])[0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_a_bundle_may_be_moved_and_replaced(run_folder: Path, bundle: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(bundle, moved)
    assert load_bundle(moved).sha256 == load_bundle(bundle).sha256
    export_checkpoint(run_folder, moved, ExportOptions(name="second", **QUICK, **SMALL))
    assert load_bundle(moved).manifest.name == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["elsewhere"]


def test_a_place_that_holds_something_else_is_left_alone(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is no policy bundle"):
        export_checkpoint(run_folder, tmp_path, ExportOptions(**QUICK))
    assert (tmp_path / "precious.txt").read_text() == "mine"


# -- joint units --------------------------------------------------------------------------------------------


def test_joint_units_are_demanded_where_nothing_states_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "bundle"
    arguments = ["export", str(GOLDEN_ACT), "-o", str(target), "--robot", "so101", "--fps", "30"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "--joint-units degrees or --joint-units range100" in said
    assert main([*arguments[:-2], "--joint-units", "degrees"]) == 2
    assert "nothing says at which rate the policy was trained" in capsys.readouterr().err
    assert not target.exists()


def test_degrees_and_range100_move_the_arm_to_the_same_ticks(
    tmp_path: Path, robot: Callable[..., dict[str, Any]]
) -> None:
    """One policy, once trained on degrees and once on -100..100: the same arm, seen the same, goes the same way."""
    from edgevla.robots.calibration import Calibration, MotorCalibration
    from edgevla.robots.profile import load_profile
    from edgevla.robots.units import joint_units

    half = 100.0
    low, high = (round(2048 + s * half * 4095 / 360) for s in (-1, 1))
    half = (high - low) / 2 * 360 / 4095
    profile = load_profile("so101")
    motors = {m.name: MotorCalibration(m.id, 0, 0, low, high) for b in profile.buses for m in b.motors}
    to_ticks = joint_units(profile, Calibration(motors))
    ticks = {}
    for units, scale in (("degrees", 1.0), ("range100", 100.0 / half)):
        checkpoint = tmp_path / units
        _scaled_checkpoint(checkpoint, scale)
        target = tmp_path / f"bundle-{units}"
        options = ExportOptions(robot="so101", fps=30, joint_units=units, **QUICK)
        runs = BundlePolicy(export_checkpoint(checkpoint, target, options).bundle)
        described = robot("deg", half)
        small = tuple(replace(camera, height=64, width=96) for camera in described.cameras)
        fit = runs.bundle.fits(replace(described, cameras=small))
        assert fit.state is not None
        generator = np.random.default_rng(0)
        images = {n: generator.integers(0, 256, (64, 96, 3), dtype=np.uint8) for n in runs.manifest.cameras}
        state = fit.state.to_policy(np.array([-40, 30, -20, 10, -50, 1.2562411], np.float32))
        actions = fit.action.to_robot(runs.infer(Observation(state, images)).actions)
        ticks[units] = np.stack([to_ticks.ticks(a) for a in actions])
    assert np.ptp(ticks["degrees"], axis=0)[:5].max() > 20  # the chunk really moves
    # Truncation to whole ticks may fall either way for a value on the edge.
    assert np.abs(ticks["degrees"] - ticks["range100"]).max() <= 1


def _scaled_checkpoint(folder: Path, scale: float) -> None:
    """The recorded ACT as if its body joints had been recorded in degrees times `scale`."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(GOLDEN_ACT, folder)
    body = np.array([40 * scale] * 5 + [1], np.float32)  # the recorded statistics are of a few units
    for path in folder.glob("policy_*processor_step_*.safetensors"):
        stats = load_file(path)
        for key, value in stats.items():
            feature, _, name = key.rpartition(".")
            if feature in ("observation.state", "action") and name != "count":
                stats[key] = value * body
        save_file(stats, path)


def test_units_that_look_wrong_are_taken_with_a_warning(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    _scaled_checkpoint(checkpoint, 1.5)  # beyond 100
    options = ExportOptions(robot="so101", fps=30, joint_units="range100", **QUICK)
    said: list[str] = []
    done = export_checkpoint(checkpoint, tmp_path / "bundle", options, said.append)
    assert any("they look like degrees" in line for line in said)
    assert done.bundle.manifest.provenance.options["warnings"]


# -- cameras ------------------------------------------------------------------------------------------------


def test_cameras_are_bound_by_name_and_sized(
    run_folder: Path, tmp_path: Path, robot: Callable[..., AboutRobot]
) -> None:
    options = ExportOptions(cameras={"top": "front"}, camera_sizes={"top": (120, 160)}, **QUICK)
    m = export_checkpoint(run_folder, tmp_path / "bundle", options).bundle.manifest
    front = m.features["observation.images.front"]
    assert (front.camera_name, front.shape) == ("top", (120, 160, 3))
    described = robot()
    with pytest.raises(BundleError, match="camera 'top'"):
        load_bundle(tmp_path / "bundle").fits(described)
    top = replace(described.cameras[0], name="top", height=120, width=160)
    described = replace(described, cameras=(top, *described.cameras[1:]))
    assert load_bundle(tmp_path / "bundle").fits(described).cameras["observation.images.front"] == "top"


@pytest.mark.parametrize(
    ("cameras", "sizes", "sentence"),
    [
        ({"left": "side"}, {}, r"no camera 'left'"),
        ({"front": "top", "wrist": "top"}, {}, r"'top' would feed .*front.*wrist.*--camera wrist=CAMERA"),
        (
            {"wrist": "front"},
            {},
            r"both are cameras of the policy; .* say --camera observation.images.wrist=front",
        ),
        ({"front": "top", "observation.images.front": "side"}, {}, r"front' of the policy twice"),
        ({}, {"side": (10, 10)}, r"names 'side'; the cameras are"),
        (
            {},
            {"front": (10, 10), "observation.images.front": (20, 20)},
            r"--camera-size names one camera twice",
        ),
    ],
)
def test_a_binding_that_cannot_be_is_named(
    run_folder: Path, tmp_path: Path, cameras: dict, sizes: dict, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        export_checkpoint(run_folder, tmp_path / "bundle", ExportOptions(cameras=cameras, camera_sizes=sizes))


def test_act_cannot_do_without_a_camera_it_was_trained_with(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run_folder), "-o", str(tmp_path / "b"), "--camera", "front=none"]) == 1
    assert "observation.images.front" in capsys.readouterr().err


# -- options that cannot be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"fps": 50.0}, "--fps is 50, but the training data has 30"),
        ({"n_steps": 5}, "act has no denoise steps"),
        ({"task": "go"}, "act takes no language"),
        ({"precision": "int8"}, "calibrated on real frames; give --dataset"),
    ],
)
def test_an_option_without_effect_is_refused(
    run_folder: Path, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        export_checkpoint(run_folder, tmp_path / "bundle", ExportOptions(**QUICK, **options))
    assert not (tmp_path / "bundle").exists()


# -- written whole or not at all ------------------------------------------------------------------------------------


def test_graphs_that_compute_something_else_are_not_written(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = trace.trace

    def broken(policy: Any, name: str, spec: Any, **options: Any) -> Any:
        model = real(policy, name, spec, **options)
        if name == "decode":
            import onnx_ir as ir

            value = next(v for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT)
            value.const_value = ir.Tensor(value.const_value.numpy() * 1.01, name=value.name)
        return model

    monkeypatch.setattr(build.trace, "trace", broken)
    target = tmp_path / "bundle"
    sizes = ["--camera-size", "front=64x48", "--camera-size", "wrist=64x48"]
    arguments = ["export", str(run_folder), "-o", str(target), "--samples", "2", *sizes]
    assert main(arguments) == 1
    assert "does not compute what torch computes" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main([*arguments, "--allow-parity-failure", "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)["manifest"]
    assert manifest["parity"]["passed"] is False
    assert manifest["provenance"]["options"]["allow_parity_failure"] is True
    assert "--allow-parity-failure" in (target / "report.html").read_text()


def test_a_killed_export_leaves_nothing_at_its_place_and_the_next_one_tidies_up(
    run_folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "bundle"
    command = [sys.executable, "-m", "edgevla", "export", str(run_folder), "-o", str(target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("tracing"):
            break
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".bundle.export-*/*.onnx")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not target.exists()
    assert list(tmp_path.glob(".bundle.export-*"))
    export_checkpoint(run_folder, target, ExportOptions(**QUICK, **SMALL))
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_damaged_bundle_is_refused_by_inspect(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(bundle)]) == 0
    assert "sound: every file" in capsys.readouterr().out
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    graph = bytearray((broken / "encode.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (broken / "encode.onnx").write_bytes(graph)
    assert main(["inspect", str(broken), "--json"]) == 1
    assert "'encode.onnx' is damaged" in json.loads(capsys.readouterr().out)["problem"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fps": float("nan")}, "--fps is nan"),
        ({"fps": 0.0}, "--fps is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"n_steps": 0}, "--n-steps is 0"),
        ({"name": "../x"}, "is no name"),
        ({"name": " "}, "is no name"),
    ],
)
def test_options_that_cannot_be_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ExportOptions(**change)

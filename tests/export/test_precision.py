"""Smaller numbers: float16 and int8 bundles, judged by the tolerances of export/parity.py, each for its target."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edgevla.bundle import load_bundle
from edgevla.engines.table import TableGraph
from edgevla.errors import BundleError, ParityError, UsageError
from edgevla.export import parity, trt_check, verdict
from edgevla.export.build import Exported, export_checkpoint
from edgevla.export.options import ExportOptions
from edgevla.export.verdict import on_the_arm, rule
from edgevla.runner import BundlePolicy
from edgevla.train.checkpoint import load_policy, save_policy

SHARED = Path(__file__).parents[1] / "fixtures"
SMOLVLA = SHARED / "goldens" / "smolvla" / "checkpoint"
SO101 = str(SHARED / "datasets" / "so101_v30")
RAW = {"fps": 30.0, "joint_units": "raw", "n_samples": 4, "n_timed": 1}


def kinds(path: Path) -> set[int]:
    """Types of the weights in a graph."""
    return {i.data_type for i in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("policy", ["pi0", "xvla"])
def test_a_bfloat16_checkpoint_runs_on_a_cpu(policy: str, tmp_path: Path) -> None:
    """Its weights are widened before tracing: ONNX Runtime's CPU kernels know no bfloat16."""
    folder = Path(shutil.copytree(SHARED / "goldens" / policy / "checkpoint", tmp_path / "policy"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    save_policy(load_policy(folder), tmp_path / "bfloat16")
    done = export_checkpoint(tmp_path / "bfloat16", tmp_path / "bundle", ExportOptions(**RAW))  # type: ignore[arg-type]
    parity = done.bundle.manifest.parity
    assert parity is not None
    assert parity.passed
    assert set(done.bundle.manifest.target.precision.values()) == {"fp32"}


def test_fp16_stores_half_and_keeps_float32_at_the_door(tmp_path: Path) -> None:
    said: list[str] = []
    options = ExportOptions(precision="fp16", target="cuda", **RAW)  # type: ignore[arg-type]
    m = export_checkpoint(SMOLVLA, tmp_path / "bundle", options, said.append).bundle.manifest
    # Within a thousandth of each joint's range, or the export would have failed.
    assert m.parity is not None
    assert m.parity.passed
    assert any("cannot run cuda" in line for line in said)
    assert "cuda not available" in m.parity.reference
    assert m.target.precision == {"encode": "fp16", "time": "fp32", "denoise": "fp16", "decode": "fp32"}
    kv, mask = m.graphs["encode"].outputs
    assert (kv.dtype, mask.dtype) == ("float16", "bool")
    by_name = {i.name: i for i in m.graphs["denoise"].inputs}
    assert by_name["kv"].dtype == "float16"
    assert {by_name[n].dtype for n in ("x", "tau", "tau_next", "committed", "weights")} == {"float32"}
    assert m.graphs["denoise"].outputs[0].dtype == "float32"
    assert TensorProto.FLOAT16 in kinds(tmp_path / "bundle/encode.onnx")
    sizes = trt_check.check_bundle(tmp_path / "bundle")
    assert set(sizes) == {"encode", "denoise", "decode"}


def test_int8_of_a_resnet_without_frames_is_refused_before_anything(run_folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    options = ExportOptions(precision="int8", joint_units="degrees")
    with pytest.raises(UsageError, match="give --dataset"):
        export_checkpoint(run_folder, tmp_path / "bundle", options, said.append)
    assert not [text for text in said if text.startswith("tracing")]


def test_int8_of_a_transformer_is_dynamic_and_belongs_to_the_cpu(tmp_path: Path) -> None:
    # Random weights lose more than trained ones: what is tested is the file, and that the loss is stated.
    options = ExportOptions(precision="int8", allow_parity_failure=True, **RAW)  # type: ignore[arg-type]
    said: list[str] = []
    done = export_checkpoint(SMOLVLA, tmp_path / "bundle", options, said.append)
    m = done.bundle.manifest
    assert m.parity is not None
    assert m.parity.n_samples == 64
    assert "int8 is judged on at least 64 samples: 64 instead of 4" in said
    the_gate_that_counts_is_the_one_that_is_shown(done)
    assert m.parity.actions.min_cosine is not None
    assert m.parity.actions.min_cosine > 0.9
    assert m.parity.passed == (m.parity.actions.min_cosine >= 0.999)
    assert TensorProto.INT8 in kinds(tmp_path / "bundle/denoise.onnx")
    assert kinds(tmp_path / "bundle/decode.onnx") <= {TensorProto.FLOAT, TensorProto.INT64}
    with pytest.raises(BundleError, match="quantised for cpu and cannot run on cuda"):
        BundlePolicy(load_bundle(tmp_path / "bundle"), provider="cuda")


def the_gate_that_counts_is_the_one_that_is_shown(done: Exported) -> None:
    """The cosine decides, so no joint and no int8 graph has a tolerance; differences are in units and percent."""
    m = done.bundle.manifest
    assert m.parity is not None
    a = m.parity.actions
    assert a.tolerance_per_joint is None
    assert m.parity.stages["denoise"].tolerance is None
    assert m.parity.stages["decode"].tolerance is not None
    assert a.range_per_joint is not None
    page = (done.bundle.folder / "report.html").read_text()
    joints = page.partition("<th>joint</th>")[2].partition("</table>")[0]
    assert "tolerance" not in joints
    assert "within" not in joints
    assert f"{100 * a.max_abs_per_joint[0] / a.range_per_joint[0]:.2g} %" in joints
    assert "within tolerance" not in page
    assert html.escape(rule(m.parity)) in page
    assert "not judged by itself" in page
    assert f"{a.min_cosine:.5f} with torch's in the worst of 64 chunks; 0.999 is needed" in rule(m.parity)
    assert "% of its range" in on_the_arm(m)


def test_a_quantised_bundle_is_refused_by_its_rule_in_units_of_the_arm(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that no int8 passes, whatever the engine: refused, with the margin, the joints, and what to do."""
    for module in (parity, verdict):
        monkeypatch.setattr(module, "MIN_COSINE", 0.9999999)
    small = {"front": (48, 64), "wrist": (48, 64)}
    options = ExportOptions(dataset=SO101, precision="int8", n_samples=8, n_timed=1, camera_sizes=small)
    with pytest.raises(ParityError) as refused:
        export_checkpoint(run_folder, tmp_path / "bundle", options)
    sentence = str(refused.value)
    assert re.search(r"cosine -?0\.\d{5} .* 0\.9999999 is needed, \d\.\d{5} too little", sentence), sentence
    assert re.search(r"moves \w+ [\d.]+ (deg|percent) at most \([\d.]+ % of its range\)", sentence), sentence
    assert "edgevla eval CHECKPOINT BUNDLE" in sentence
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_int8_of_a_resnet_is_calibrated_for_its_target(run_folder: Path, tmp_path: Path, target: str) -> None:
    options = ExportOptions(
        dataset=SO101,
        precision="int8",
        target=target,
        n_samples=8,
        n_timed=1,
        allow_parity_failure=True,
        camera_sizes={"front": (48, 64), "wrist": (48, 64)},
    )
    m = export_checkpoint(run_folder, tmp_path / "bundle", options).bundle.manifest
    assert m.is_quantised
    assert m.parity is not None
    assert m.parity.actions.min_cosine is not None
    graph = onnx.load(tmp_path / "bundle/encode.onnx").graph
    operations = {n.op_type for n in graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operations
    if target == "tensorrt":
        trt_check.check_bundle(tmp_path / "bundle")


def test_a_tensorrt_bundle_carries_its_times_as_a_table(tmp_path: Path) -> None:
    options = ExportOptions(target="tensorrt", n_steps=3, **RAW)  # type: ignore[arg-type]
    m = export_checkpoint(SMOLVLA, tmp_path / "bundle", options).bundle.manifest
    assert m.graphs["time"].file == "time.npz"
    assert m.schedule is not None
    assert m.schedule.n_steps_allowed == (3, 3)
    table = TableGraph(tmp_path / "bundle/time.npz", m.graphs["time"])
    rows = table.run({"tau": np.array([m.schedule.taus()[1]])})
    assert rows["time_embedding"].shape == m.graphs["time"].outputs[0].shape
    with pytest.raises(BundleError, match=r"holds no row for time 0.5"):
        table.run({"tau": np.array([0.5], np.float32)})
    trt_check.check_bundle(tmp_path / "bundle")


def test_a_half_bundle_warms_up_although_blank_input_overflows_it(tmp_path: Path) -> None:
    """The recorded ACT divides a joint that never moved by 1e-8: a zero state is 1e8 there, beyond float16."""
    options = ExportOptions(precision="fp16", **RAW)  # type: ignore[arg-type]
    done = export_checkpoint(SHARED / "goldens/act/checkpoint", tmp_path / "bundle", options)
    runs = BundlePolicy(done.bundle)
    assert len(runs.warm_up(2)) == 2
    sample = done.comparison.samples[0]
    assert np.isfinite(runs.infer(sample.observation).actions).all()

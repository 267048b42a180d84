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
from edgevla.export import build, lowering, trt_check
from edgevla.export.build import Exported, export_checkpoint
from edgevla.export.gate import LIMITS, Tolerance, percent
from edgevla.export.options import ExportOptions
from edgevla.export.search import Choice, LoweringOutcome, SearchResult
from edgevla.export.verdict import kept_words, on_the_arm, rule
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


def test_int8_of_a_transformer_keeps_what_the_rule_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights lose more than trained ones, so something is kept; what and why is written down."""
    monkeypatch.setattr(lowering, "SEARCHED", 4)
    options = ExportOptions(precision="int8", **RAW)  # type: ignore[arg-type]
    said: list[str] = []
    done = export_checkpoint(SMOLVLA, tmp_path / "bundle", options, said.append)
    m = done.bundle.manifest
    assert m.parity is not None
    assert m.parity.passed
    assert m.parity.n_samples == 64
    assert "int8 is judged on at least 64 samples: 64 instead of 4" in said
    the_rule_that_counts_is_the_one_that_is_shown(done)
    assert TensorProto.INT8 in kinds(tmp_path / "bundle/encode.onnx") | kinds(
        tmp_path / "bundle/denoise.onnx"
    )
    assert kinds(tmp_path / "bundle/decode.onnx") <= {TensorProto.FLOAT, TensorProto.INT64}
    assert not (tmp_path / "bundle/lowering").exists()
    assert not [f for f in m.files if "float" in f.path or "lowering" in f.path]
    with pytest.raises(BundleError, match="quantised for cpu and cannot run on cuda"):
        BundlePolicy(load_bundle(tmp_path / "bundle"), provider="cuda")


def the_rule_that_counts_is_the_one_that_is_shown(done: Exported) -> None:
    """Every joint has both tolerances, a share of its range; the page says them, and what stayed float32."""
    m = done.bundle.manifest
    assert m.parity is not None
    assert m.lowered is not None
    a = m.parity.actions
    limits = LIMITS["int8"]
    assert a.min_cosine is None
    assert a.range_per_joint is not None
    assert a.tolerance_per_joint == pytest.approx([limits.most * w for w in a.range_per_joint], rel=1e-3)
    assert a.p99_tolerance_per_joint == pytest.approx([limits.usual * w for w in a.range_per_joint], rel=1e-3)
    page = (done.bundle.folder / "report.html").read_text()
    assert html.escape(rule(m)) in page
    assert html.escape(kept_words(m)) in page
    assert f"({percent(limits.usual)} is allowed" in rule(m)
    for kept in m.lowered.kept:
        assert kept.layer in page
    assert "% of its range" in on_the_arm(m)


def test_a_quantised_bundle_is_refused_early_by_its_rule_in_units_of_the_arm(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that no int8 passes, and a search that thinks it does: refused with the joints and what to do, after the
    first chunks instead of all 64."""
    monkeypatch.setitem(LIMITS, "int8", Tolerance(1e-7, 2e-7))
    monkeypatch.setattr(lowering.PrecisionLowering, "score", lambda self, kept: 0.0)
    small = {"front": (48, 64), "wrist": (48, 64)}
    options = ExportOptions(dataset=SO101, precision="int8", n_samples=8, n_timed=1, camera_sizes=small)
    said: list[str] = []
    with pytest.raises(ParityError) as refused:
        export_checkpoint(run_folder, tmp_path / "bundle", options, said.append)
    sentence = str(refused.value)
    assert re.search(r"joint \w+\.pos differs by [\d.e-]+, tolerance [\d.e-]+", sentence), sentence
    assert re.search(r"1e-05 % is allowed; \w+\), .* \(2e-05 %; \w+\); 1 samples", sentence), sentence
    assert re.search(r"moves \w+ [\d.]+ (deg|percent) at most \([\d.]+ % of its range\)", sentence), sentence
    assert "edgevla eval CHECKPOINT BUNDLE" in sentence
    assert not [line for line in said if "saved pipeline" in line or "latency" in line]
    assert not (tmp_path / "bundle").exists()


def test_a_policy_that_may_not_be_lowered_at_all_is_refused_by_its_layers(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, "int8", Tolerance(1e-9, 1e-9))
    small = {"front": (48, 64), "wrist": (48, 64)}
    options = ExportOptions(dataset=SO101, precision="int8", n_samples=8, n_timed=1, camera_sizes=small)
    with pytest.raises(
        ParityError, match=r"nothing of act can be int8 within the rule: encode/\S+ alone costs"
    ):
        export_checkpoint(run_folder, tmp_path / "bundle", options)
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_of_which_nothing_may_be_lowered_is_written_if_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowering.PrecisionLowering, "score", lambda self, choice: 2.0)
    monkeypatch.setattr(build, "QUANTISED_SAMPLES", 2)
    monkeypatch.setitem(LIMITS, "int4", Tolerance(1e-7, 2e-7))
    options = ExportOptions(precision="int4", n_steps=1, allow_parity_failure=True, **RAW)  # type: ignore[arg-type]
    said: list[str] = []
    m = export_checkpoint(SMOLVLA, tmp_path / "bundle", options, said.append).bundle.manifest
    assert m.parity is not None
    assert not m.parity.passed
    assert m.lowered is not None
    assert kept_words(m) == f"all {m.lowered.n_layers} layers are int4"
    assert any("all of it is int4, as --allow-parity-failure asks" in line for line in said)


def test_where_a_stricter_search_finds_nothing_the_first_bundle_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search's frames pass, others fail, and nothing passes with more room: it is written where that is allowed."""
    monkeypatch.setattr(lowering.PrecisionLowering, "score", lambda self, choice: 0.8)
    monkeypatch.setattr(build, "QUANTISED_SAMPLES", 2)
    monkeypatch.setitem(LIMITS, "int8", Tolerance(1e-7, 2e-7))
    options = ExportOptions(precision="int8", n_steps=1, allow_parity_failure=True, **RAW)  # type: ignore[arg-type]
    m = export_checkpoint(SMOLVLA, tmp_path / "bundle", options).bundle.manifest
    assert m.parity is not None
    assert not m.parity.passed
    assert "int8" in m.target.precision.values()


def test_a_search_that_ran_out_of_time_says_so_where_it_refuses() -> None:
    found = SearchResult(frozenset(), {}, {}, 3.0, in_time=False)
    outcome = LoweringOutcome(Choice(frozenset()), found, {}, in_time=False, is_nothing_lowered=True)
    assert lowering._costs(outcome) == "time ran out, and what was not measured may not be lowered"


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
    graph = onnx.load(tmp_path / "bundle/encode.onnx").graph
    operations = {n.op_type for n in graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operations
    # On a CPU products are scaled on the fly and normalisations lie in the convolutions; TensorRT takes neither.
    assert ("MatMulInteger" in operations) == (target == "cpu")
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

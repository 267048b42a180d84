"""bfloat16 bundles: what the emulation rounds, what TensorRT's builder says of the graphs, and where they do not run."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgevla.bundle import load_bundle
from edgevla.engines import load_graph
from edgevla.errors import BundleError, UsageError
from edgevla.export import lowering, trt_check
from edgevla.export.build import export_checkpoint
from edgevla.export.emulate import emulated
from edgevla.export.gate import LIMITS, Tolerance
from edgevla.export.half import FORMS, to_half
from edgevla.export.options import ExportOptions
from edgevla.export.trace import IR_VERSION, OPSET
from edgevla.graph import GraphSpec, TensorSpec
from edgevla.runner import BundlePolicy

SMOLVLA = Path(__file__).parents[1] / "fixtures" / "goldens" / "smolvla" / "checkpoint"
SIZE = 8


def rounded(values: np.ndarray) -> np.ndarray:
    wide: np.ndarray = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    return wide


def test_the_emulation_rounds_where_a_gpu_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A product, what is added to it, a sigmoid that stays float32, and a product again."""
    monkeypatch.setattr("edgevla.export.half.DOOR_ELEMENTS", 0)
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(s, dtype=np.float32) for s in ((SIZE, SIZE), SIZE, (SIZE, SIZE)))
    x = rng.standard_normal((3, SIZE), dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="first"),
        helper.make_node("Add", ["p", "b"], ["q"], name="bias"),
        helper.make_node("Sigmoid", ["q"], ["s"], name="sigmoid"),
        helper.make_node("MatMul", ["s", "c"], ["y"], name="second"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3, SIZE]) for n in ("x", "y")]
    weights = [numpy_helper.from_array(v, n) for n, v in (("a", a), ("b", b), ("c", c))]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], weights)
    inner = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    )
    model = ir.serde.deserialize_model(inner)
    to_half(model, [], [], form=FORMS["bf16"])
    ir.save(model, tmp_path / "brain.onnx")
    assert {i.data_type for i in onnx.load(tmp_path / "brain.onnx").graph.initializer} == {
        TensorProto.BFLOAT16
    }
    spec = GraphSpec((TensorSpec("x", "float32", (3, SIZE), "x"),), (TensorSpec("y", "float32", (3, SIZE)),))
    found = load_graph(emulated(tmp_path / "brain.onnx", tmp_path, "emulated"), spec).run({"x": x})["y"]
    q = rounded(rounded(rounded(x) @ rounded(a)) + rounded(b))
    expected = rounded(rounded(1 / (1 + np.exp(-q))) @ rounded(c))
    whole = (1 / (1 + np.exp(-(x @ a + b)))) @ c
    same = np.asarray(found) == expected  # but where another order of adding rounds the other way
    assert same.mean() > 0.9
    assert not np.allclose(found, whole, rtol=1e-4)
    assert np.array_equal(rounded(np.asarray(found)), found)


def test_a_bf16_bundle_is_judged_by_its_rounding_and_does_not_run_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that leaves room: with random weights little stays within 0.1 % of a joint's range."""
    monkeypatch.setattr(lowering, "SEARCHED", 1)
    monkeypatch.setitem(LIMITS, "bf16", Tolerance(0.05, 0.1))
    said: list[str] = []
    options = ExportOptions(
        fps=30.0, joint_units="raw", n_samples=2, precision="bf16", target="cuda", n_steps=2
    )
    done = export_checkpoint(SMOLVLA, tmp_path / "bundle", options, said.append)
    m = done.bundle.manifest
    assert m.target.precision == {"encode": "bf16", "time": "fp32", "denoise": "bf16", "decode": "fp32"}
    assert m.parity is not None
    assert m.parity.passed
    assert "bfloat16 emulated on cpu by rounding float32, cuda not available" in m.parity.reference
    assert max(m.parity.actions.max_abs_per_joint) > 1e-3, "it was rounded"
    assert (m.latency, done.speedup) == (None, None)
    assert "latency is not measured: an emulation says nothing of it" in said
    assert "Not measured" in (tmp_path / "bundle/report.html").read_text()
    for name in ("encode", "denoise"):
        assert {v.dtype for v in (*m.graphs[name].inputs, *m.graphs[name].outputs)} <= {
            "float32", "uint8", "int64", "bool"
        }  # fmt: skip
        kinds = {i.data_type for i in onnx.load(tmp_path / f"bundle/{name}.onnx").graph.initializer}
        assert TensorProto.BFLOAT16 in kinds
    assert set(trt_check.check_bundle(tmp_path / "bundle")) == {"encode", "denoise", "decode"}
    with pytest.raises(
        BundleError, match=r"is in bfloat16, which onnxruntime cannot run on a CPU; deploy it on cuda"
    ):
        BundlePolicy(load_bundle(tmp_path / "bundle"), provider="cpu")


def test_bf16_for_a_cpu_is_refused_before_anything() -> None:
    with pytest.raises(UsageError, match="CPU kernels know no bfloat16"):
        ExportOptions(precision="bf16")

"""4-bit bundles: what is packed is what the engine unpacks; and what a bundle of it says and refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgevla.bundle import load_bundle
from edgevla.cli import main
from edgevla.engines import EngineOptions, load_graph
from edgevla.errors import BundleError, UsageError
from edgevla.export import blocks, build, lowering, trace
from edgevla.export.blocks import BLOCK, Packer, is_packable, pack, pack_rows
from edgevla.export.build import export_checkpoint
from edgevla.export.options import ExportOptions
from edgevla.export.verdict import kept_words
from edgevla.graph import GraphSpec, TensorSpec
from edgevla.runner import BundlePolicy

SMOLVLA = Path(__file__).parents[1] / "fixtures" / "goldens" / "smolvla" / "checkpoint"
ROWS, WIDTH, HIDDEN, OUT = 5, 40, 50, 33
SPEC = GraphSpec(
    (TensorSpec("tokens", "int64", (1, ROWS), "prompt:tokens"),),
    (TensorSpec("y", "float32", (ROWS, OUT)),),
)
ENGINE_ROUNDING = 0.02
"""Of an engine that rounds what is multiplied to 8 bits, as a share of the result's spread."""


def unpacked(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, bits: int, k: int) -> np.ndarray:
    """What the operator's definition says: scale * (code - zero point), in float32 (N, K)."""
    if bits == 4:
        codes, zeros = (
            np.stack([a & 15, a >> 4], axis=-1).reshape(*a.shape[:-1], -1) for a in (codes, zeros)
        )
    n_blocks = scales.shape[1]
    values = (codes.astype(np.float32) - zeros[:, :n_blocks, None]) * scales[..., None]
    return values.reshape(len(values), -1)[:, :k]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("k", [BLOCK, 3 * BLOCK, 100])
def test_a_weight_is_off_by_at_most_a_step_and_zero_is_exact(bits: int, k: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((7, k), dtype=np.float32)
    matrix[:, ::5] = 0
    matrix[3] = 0
    matrix[4] = np.abs(matrix[4])  # all of one sign
    codes, scales, zeros = pack(matrix, bits)
    assert codes.shape == (7, -(-k // BLOCK), BLOCK * bits // 8)
    found = unpacked(codes, scales, zeros, bits, k)
    steps = np.repeat(scales, BLOCK, axis=1)[:, :k]
    assert np.all(np.abs(found - matrix) <= 1.0 * steps)  # half a step, and the zero point's own rounding
    assert np.mean(np.abs(found - matrix) <= 0.51 * steps) > 0.9
    assert np.all(found[matrix == 0] == 0)


def graph_of(folder: Path, has_data: bool) -> tuple[Path, dict[str, np.ndarray]]:
    """Embeddings, a MatMul and a Gemm with a bias; with its weights in a file of their own."""
    rng = np.random.default_rng(1)
    weights = {
        "table": rng.standard_normal((60, WIDTH), dtype=np.float32),
        "first": rng.standard_normal((WIDTH, HIDDEN), dtype=np.float32) / WIDTH**0.5,
        "second": rng.standard_normal((OUT, HIDDEN), dtype=np.float32) / HIDDEN**0.5,
        "bias": rng.standard_normal(OUT, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["x"], name="embed", axis=0),
        helper.make_node("MatMul", ["x", "first"], ["h"], name="product"),
        helper.make_node("Squeeze", ["h", "zero"], ["h2"], name="squeeze"),
        helper.make_node("Gemm", ["h2", "second", "bias"], ["y"], name="gemm", transB=1),
    ]
    initializers = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([0]), "zero"))
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, ROWS])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, OUT])
    graph = helper.make_graph(nodes, "small", [tokens], [y], initializers)
    opsets = [helper.make_opsetid("", trace.OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=trace.IR_VERSION)
    file = folder / "float.onnx"
    onnx.save(model, file, save_as_external_data=has_data, location="float.onnx.data", size_threshold=0)
    return file, weights


@pytest.mark.parametrize("bits", [{"product": 4, "gemm": 8, "embed": 4}, {"gemm": 4}])
@pytest.mark.parametrize("had_data", [False, True])
@pytest.mark.parametrize("has_data", [False, True])
@pytest.mark.parametrize("prepack", [False, True])
def test_the_engine_computes_with_what_was_packed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bits: Mapping[str, int],
    had_data: bool,
    has_data: bool,
    prepack: bool,
) -> None:
    """Weights in a file of their own before, and after: a large graph may become a small one."""
    monkeypatch.setattr(blocks, "TABLE_ELEMENTS", 100)
    monkeypatch.setattr(blocks, "MAPPED_BYTES", 0 if has_data else 1 << 30)
    source, weights = graph_of(tmp_path, had_data)
    assert [n.name for n in ir.load(source).graph if is_packable(n)] == ["embed", "product", "gemm"]
    packer = Packer(source)
    packer.write(tmp_path, "again", dict.fromkeys(bits, 8))  # what is remembered is not mixed up
    (tmp_path / "packed").mkdir()
    file, data = packer.write(tmp_path / "packed", "packed", bits)
    assert data == ("packed.onnx.data" if has_data else None)
    assert (tmp_path / "packed/packed.onnx.data").is_file() == has_data
    tokens = np.array([[3, 59, 0, 7, 3]])
    found = load_graph(tmp_path / "packed" / file, SPEC, options=EngineOptions(prepack=prepack)).run(
        {"tokens": tokens}
    )["y"]
    first, second, table = weights["first"].T, weights["second"], weights["table"]
    if "product" in bits:
        first = unpacked(*pack(first, bits["product"]), bits["product"], WIDTH)
    second = unpacked(*pack(second, bits["gemm"]), bits["gemm"], HIDDEN)
    if "embed" in bits:
        codes, scales = pack_rows(table)
        table = codes * scales
    expected = table[tokens[0]] @ first.T @ second.T + weights["bias"]
    assert np.abs(found - expected).max() < ENGINE_ROUNDING * expected.std()
    kinds = {
        i.name: i.data_type
        for i in onnx.load(tmp_path / "packed" / file, load_external_data=False).graph.initializer
    }
    assert kinds.pop("bias") == TensorProto.FLOAT
    assert "second" not in kinds
    assert ("first" in kinds) == ("product" not in bits)
    assert ("table" in kinds) == ("embed" not in bits)


def test_an_int4_bundle_says_what_it_is_and_where_it_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lowering, "SEARCHED", 1)
    monkeypatch.setattr(build, "QUANTISED_SAMPLES", 2)
    said: list[str] = []
    options = ExportOptions(fps=30.0, joint_units="raw", n_samples=1, n_timed=1, precision="int4", n_steps=2)
    done = export_checkpoint(SMOLVLA, tmp_path / "bundle", options, said.append)
    m = done.bundle.manifest
    assert m.parity is not None
    assert m.parity.passed
    assert m.parity.n_samples == 2
    assert "int4 is judged on at least 2 samples: 2 instead of 1" in said
    assert "int4" in m.target.precision.values()
    assert m.target.precision["decode"] == "fp32"
    assert m.lowered is not None
    assert {k.stored for k in m.lowered.kept} <= {"int8", "fp32"}
    operations = [
        n for g in ("encode", "denoise") for n in onnx.load(tmp_path / f"bundle/{g}.onnx").graph.node
    ]
    bits = {a.i for n in operations if n.op_type == "MatMulNBits" for a in n.attribute if a.name == "bits"}
    assert 4 in bits
    assert ("which take 8 bits" in kept_words(m)) == (8 in bits)
    assert kept_words(m) in (tmp_path / "bundle/report.html").read_text().replace("&#x27;", "'")
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "bundle")]) == 0
    assert f"precision     {kept_words(m)}" in capsys.readouterr().out
    with pytest.raises(
        BundleError, match="weights of 4 bits for cpu, which TensorRT cannot run; export it again"
    ):
        BundlePolicy(load_bundle(tmp_path / "bundle"), provider="tensorrt")


def test_int4_for_tensorrt_is_refused_before_anything() -> None:
    with pytest.raises(UsageError, match="TensorRT knows no MatMulNBits; use fp16, or --target cuda"):
        ExportOptions(precision="int4", target="tensorrt")

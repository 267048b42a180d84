"""Mixed precision keeps angles exact: a table of times or positions that loses precision is caught.

That the real graphs keep theirs in float32 is in test_policies.py, which has them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from edgevla.engines import load_graph
from edgevla.errors import ParityError
from edgevla.export import lowering
from edgevla.export.build import export_checkpoint
from edgevla.export.half import FORMS, HALF, Form, always_float, to_half
from edgevla.export.layers import layers_of
from edgevla.export.options import ExportOptions
from edgevla.export.trace import IR_VERSION, OPSET
from edgevla.graph import GraphSpec, TensorSpec

GOLDENS = Path(__file__).parents[1] / "fixtures" / "goldens"
LENGTH, WIDTH = 1000, 16
SPEC = GraphSpec(
    (
        TensorSpec("x", "float32", (LENGTH, WIDTH), "x"),
        TensorSpec("real", "float32", (LENGTH,), "prompt:mask"),
        TensorSpec("tau", "float32", (1,), "schedule:tau"),
    ),
    (TensorSpec("turned", "float32", (LENGTH, WIDTH)), TensorSpec("time", "float32", (1, WIDTH))),
)


class Angles(nn.Module):
    """A product turned by the positions of a thousand tokens (RoPE), and a flow time with angles up to 1500 rad."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(WIDTH, WIDTH) / 4)
        self.second = nn.Parameter(torch.randn(WIDTH, WIDTH) / 4)
        self.third = nn.Parameter(torch.eye(WIDTH))
        self.register_buffer("frequency", 1e4 ** (-torch.arange(WIDTH // 2) * 2 / WIDTH))
        self.register_buffer("period", torch.logspace(math.log10(4e-3), math.log10(4), WIDTH // 2))

    def forward(self, x: Tensor, real: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (x @ self.first @ self.second).chunk(
            2, dim=-1
        )  # the second product is half, first and last are not
        angle = (real.cumsum(0) - 1)[:, None] * self.frequency
        turned = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()]
        phase = 2 * math.pi / self.period * tau[:, None]
        return torch.cat(turned, dim=-1) @ self.third, torch.cat([phase.sin(), phase.cos()], dim=-1)


def round_angles(
    model: ir.Model,
    half_inputs: Sequence[str],
    half_outputs: Sequence[str],
    keep: Collection[str] = (),
    form: Form = FORMS["fp16"],
) -> None:
    """What a converter does that halves everything: sines of rounded angles."""
    to_half(model, half_inputs, half_outputs, keep, form)
    for node in list(model.graph):
        if node.op_type in ("Sin", "Cos"):
            value = node.inputs[0]
            assert value is not None
            assert value.dtype is not None
            for to in (HALF, value.dtype):
                cast = ir.node("Cast", [value], attributes={"to": to.value})
                value, shape = cast.outputs[0], value.shape
                value.name, value.dtype, value.shape = f"{node.name}_{to.name}", to, shape
                model.graph.insert_before(node, cast)
            node.replace_input_with(0, value)


def differences(folder: Path, rewrite: Callable[..., None]) -> tuple[float, float]:
    """How far the rotated values and the time's row of a rewritten graph are from torch's."""
    torch.manual_seed(0)
    module = Angles().eval()
    inputs = (torch.randn(LENGTH, WIDTH), torch.ones(LENGTH), torch.tensor([0.9]))
    names = [i.name for i in SPEC.inputs], [o.name for o in SPEC.outputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=names[0],
            output_names=names[1],
            verbose=False,
        )
    assert program is not None
    model = program.model
    rewrite(model, [], [])
    assert any(node.op_type == "MatMul" and node.outputs[0].dtype == HALF for node in model.graph)
    model.ir_version = IR_VERSION
    ir.save(model, folder / "graph.onnx")
    graph = load_graph(folder / "graph.onnx", SPEC)
    found = graph.run({name: value.numpy() for name, value in zip(names[0], inputs, strict=True)})
    with torch.no_grad():
        turned, time = module(*inputs)
    errors = [np.abs(np.asarray(found[n]) - e.numpy()).max() for n, e in (("turned", turned), ("time", time))]
    return float(errors[0]), float(errors[1])


def test_angles_of_positions_and_times_are_exact(tmp_path: Path) -> None:
    turned, time = differences(tmp_path, to_half)
    assert turned < 1e-2  # the product is half
    assert time < 1e-4  # 1500 rad in float32
    worse_turned, worse_time = differences(tmp_path, round_angles)
    assert worse_turned > 10 * turned
    assert worse_time > 0.1


def test_a_layer_is_what_becomes_half(tmp_path: Path) -> None:
    """The first and the last product never do: they are called neither lowered nor kept."""
    found: set[str] = set()

    def rewrite(model: ir.Model, half_inputs: Sequence[str], half_outputs: Sequence[str]) -> None:
        floats = always_float(model, half_inputs, half_outputs, FORMS["fp16"])
        layers = layers_of("denoise", model, lambda node: node.op_type == "MatMul", floats)
        found.update(name for layer in layers for name in layer.nodes)
        to_half(model, half_inputs, half_outputs)
        products = [node for node in model.graph if node.op_type == "MatMul"]
        assert {node.name for node in products if node.outputs[0].dtype == HALF} == found
        assert len(products) == 3

    differences(tmp_path, rewrite)
    assert len(found) == 1


def test_a_time_table_in_half_does_not_pass_as_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export's own comparison catches what a converter that knows no better would do to SmolVLA's times."""
    monkeypatch.setattr(lowering, "FLOAT_GRAPHS", ("decode",))
    monkeypatch.setattr(lowering, "to_half", round_angles)
    monkeypatch.setattr(
        lowering.PrecisionLowering, "score", lambda self, kept: 0.0
    )  # or the search would keep much else
    options = ExportOptions(fps=30, joint_units="raw", precision="fp16", n_samples=1, n_timed=1)
    with pytest.raises(ParityError, match="does not compute what torch computes: time differs"):
        export_checkpoint(GOLDENS / "smolvla" / "checkpoint", tmp_path / "bundle", options)
    assert not (tmp_path / "bundle").exists()

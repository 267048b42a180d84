"""Mixed precision: heavy operations in float16 or bfloat16 (half), what is delicate in float32, by what it is.

    heavy     MatMul, Gemm, Conv ...        weights stored half, inputs cast to half, output half
    neutral   Reshape, Add, Relu ...        half only when everything they read is half, tables not among it
    others    norms, softmax, sines, tables float32, their inputs cast back

    heavy, but float32 all the same:
    kept      layers that the search found to break the rule (export/search.py)
    exact     what leads to a sine, a cosine or a rounding: angles of time and positions, a picture's resize to
              whole grey levels (half moves some of them by a level)
    door      a small first product of an input, or last one before an output: x, state and pixels in, velocity out

So the residual stream, positions and time stay float32 (a plain conversion loses 9 % of the velocity to the time
table alone), and no list of a policy's node names is needed. x, tau, noise and actions are float32 at the door; of
the context only large tensors (rank 3 and up: keys and values, features) are half. What error is left comes from the
weights' own rounding, spread over all layers: benchmarks/results/half_parity.md. In bfloat16 the context is float32 too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
HEAVY = {"MatMul", "Gemm", "Conv", "ConvTranspose"}
NEUTRAL = {
    *("Add", "Sub", "Mul", "Neg", "Relu", "Gelu", "Mish", "Sigmoid", "Tanh", "Identity", "MaxPool", "Erf"),
    *(
        "Reshape",
        "Transpose",
        "Concat",
        "Slice",
        "Split",
        "Expand",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Tile",
    ),
}
BRAIN_NEUTRAL = frozenset(
    {"Add", "Sub", "Mul", "Relu", "Identity", "Reshape", "Transpose", "Concat", "Slice", "Split"}
    | {"Expand", "Squeeze", "Unsqueeze", "Flatten"}
)
"""Of bfloat16 what ONNX Runtime's CUDA provider has by its list of kernels; convolutions are not among it."""
EXACT = {"Sin", "Cos", "Round", "Floor", "Ceil"}
DOOR_ELEMENTS = 1 << 20
"""Products with more weights than this are half wherever they stand."""
TABLE_ELEMENTS = 1 << 20
"""Embedding tables above this are stored half; smaller ones (positions) stay float32."""


@dataclass(frozen=True)
class Form:
    """A type of two bytes. heavy, neutral: operations that take it."""

    type: ir.DataType
    numpy: Any
    heavy: frozenset[str]
    neutral: frozenset[str]


FORMS = {
    "fp16": Form(HALF, np.float16, frozenset(HEAVY), frozenset(NEUTRAL)),
    "bf16": Form(ir.DataType.BFLOAT16, ml_dtypes.bfloat16, frozenset({"MatMul", "Gemm"}), BRAIN_NEUTRAL),
}


def is_half_context(shape: Sequence[int], dtype: str) -> bool:
    """Whether a context tensor takes the bundle's precision: small vectors such as the raw state do not."""
    return dtype == "float32" and len(shape) > 2


def to_half(
    model: ir.Model,
    half_inputs: Sequence[str],
    half_outputs: Sequence[str],
    keep: Collection[str] = (),
    form: Form = FORMS["fp16"],
) -> None:
    """Rewrites a float32 model in place. half_inputs, half_outputs: graph values that become half. keep: names of
    nodes that stay float32 although they are heavy.
    """
    _Rewrite(model, keep, form).run(set(half_inputs), set(half_outputs))


def always_float(
    model: ir.Model, half_inputs: Collection[str], half_outputs: Collection[str], form: Form
) -> set[str]:
    """Names of the nodes that `to_half` leaves in float32 whatever is asked: what is exact, and the door."""
    return {
        str(node.name) for node in _Rewrite(model, (), form).never_half(set(half_inputs), set(half_outputs))
    }


class _Rewrite:
    def __init__(self, model: ir.Model, keep: Collection[str], form: Form) -> None:
        self.graph = model.graph
        self.form, self.half = form, form.type
        self._named = {node for node in model.graph if node.name in keep}
        self._casts: dict[tuple[int, ir.DataType], ir.Value] = {}
        self._constants: dict[int, ir.Value] = {}
        self._kept: set[ir.Node] = set()

    def run(self, half_inputs: set[str], half_outputs: set[str]) -> None:
        self._kept = self.never_half(half_inputs, half_outputs) | self._named
        for value in self.graph.inputs:
            if value.name in half_inputs:
                value.dtype = self.half
        for node in list(self.graph):
            if node in self._kept:
                self._keep_float(node)
            elif node.op_type == "Gather":
                self._gather(node)
            elif node.op_type in self.form.heavy or (
                node.op_type in self.form.neutral and self._reads_half_only(node)
            ):
                self._make_half(node)
            else:
                self._keep_float(node)
        self._fix_outputs(half_outputs)
        self._drop_unused()

    # -- what stays float32 whatever it is ----------------------------------------------------------------

    def never_half(self, half_inputs: set[str], half_outputs: set[str]) -> set[ir.Node]:
        return self._exact() | self._door(half_inputs, half_outputs)

    def _exact(self) -> set[ir.Node]:
        """Everything that leads to an angle or to a whole number."""
        found: set[ir.Node] = set()
        waiting = [node for node in self.graph if node.op_type in EXACT]
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting += _producers(node.inputs)
        return found

    def _door(self, half_inputs: set[str], half_outputs: set[str]) -> set[ir.Node]:
        """Small heavy nodes that no other heavy one separates from a float32 input or output."""
        door: set[ir.Node] = set()
        near = {value for value in self.graph.inputs if value.name not in half_inputs}
        fixed: set[ir.Value] = set()
        for node in self.graph:
            read = [v for v in node.inputs if v is not None and not v.is_initializer() and v not in fixed]
            if not read:
                fixed.update(node.outputs)
            elif all(value in near for value in read):
                if node.op_type not in self.form.heavy:
                    near.update(node.outputs)
                elif _is_small(node):
                    door.add(node)
        seen: set[ir.Node] = set()
        waiting = _producers(v for v in self.graph.outputs if v.name not in half_outputs)
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.op_type not in self.form.heavy:
                waiting += _producers(node.inputs)
            elif _is_small(node):
                door.add(node)
        return door

    # -- nodes --------------------------------------------------------------------------------------------

    def _reads_half_only(self, node: ir.Node) -> bool:
        read = [v for v in node.inputs if v is not None and not v.is_initializer()]
        floats = [v for v in read if v.dtype in (self.half, FLOAT)]
        constants = [v for v in node.inputs if v is not None and v.is_initializer() and v.dtype == FLOAT]
        if any(_is_table(v) for v in constants):
            return False
        return bool(floats) and all(v.dtype == self.half for v in floats) and all(map(self._fits, constants))

    def _make_half(self, node: ir.Node) -> None:
        for i, value in enumerate(node.inputs):
            if value is None or value.dtype != FLOAT:
                continue
            new = self._half_constant(value) if value.is_initializer() else self._cast(value, self.half, node)
            node.replace_input_with(i, new)
        for output in node.outputs:
            if output.dtype in (FLOAT, None):
                output.dtype = self.half

    def _keep_float(self, node: ir.Node) -> None:
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype == self.half and node.op_type != "Cast":
                node.replace_input_with(i, self._cast(value, FLOAT, node))

    def _gather(self, node: ir.Node) -> None:
        """A large table is stored half and its rows are widened; a half tensor is picked from as it is."""
        data = node.inputs[0]
        assert data is not None
        if (
            data.is_initializer()
            and data.dtype == FLOAT
            and _size(data) > TABLE_ELEMENTS
            and self._fits(data)
        ):
            node.replace_input_with(0, self._half_constant(data))
            node.outputs[0].dtype = self.half
            self._replace_uses(node.outputs[0], self._cast(node.outputs[0], FLOAT, node, after=True))
        elif data.dtype == self.half:
            node.outputs[0].dtype = self.half

    # -- values -------------------------------------------------------------------------------------------

    def _half_constant(self, value: ir.Value) -> ir.Value:
        if id(value) not in self._constants:
            assert value.const_value is not None
            name = f"{value.name}_half"
            array = value.const_value.numpy().astype(self.form.numpy)
            new = ir.Value(
                name=name,
                shape=value.shape,
                type=ir.TensorType(self.half),
                const_value=ir.Tensor(array, name=name),
            )
            self.graph.register_initializer(new)
            self._constants[id(value)] = new
        return self._constants[id(value)]

    def _cast(self, value: ir.Value, to: ir.DataType, node: ir.Node, after: bool = False) -> ir.Value:
        """One cast per value and type, placed where the value is made (before `node` when it is a graph input)."""
        key = (id(value), to)
        if key not in self._casts:
            cast = ir.node("Cast", [value], attributes={"to": to.value})
            out = cast.outputs[0]
            out.name = f"{value.name}_{'half' if to == self.half else 'float'}"
            out.dtype, out.shape = to, value.shape
            producer = value.producer()
            if after or producer is not None:
                self.graph.insert_after(producer or node, cast)
            else:
                self.graph.insert_before(self.graph[0], cast)
            self._casts[key] = out
        return self._casts[key]

    def _replace_uses(self, old: ir.Value, new: ir.Value) -> None:
        for use in list(old.uses()):
            if use.node is not new.producer():
                use.node.replace_input_with(use.idx, new)

    # -- the graph's ends -----------------------------------------------------------------------------------

    def _fix_outputs(self, half_outputs: set[str]) -> None:
        for i, value in enumerate(self.graph.outputs):
            wanted = self.half if value.name in half_outputs else FLOAT
            if value.dtype not in (self.half, FLOAT) or value.dtype == wanted:
                continue
            name = value.name
            value.name = f"{name}_inner"
            producer = value.producer()
            assert producer is not None
            cast = ir.node("Cast", [value], attributes={"to": wanted.value})
            out = cast.outputs[0]
            out.name, out.dtype, out.shape = name, wanted, value.shape
            self.graph.insert_after(producer, cast)
            self.graph.outputs[i] = out

    def _drop_unused(self) -> None:
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]

    def _fits(self, value: ir.Value) -> bool:
        """Whether a constant can be half at all: masks of -1e9 and the like cannot be float16."""
        if value.const_value is None:
            return False
        values = value.const_value.numpy().astype(np.float32)
        with np.errstate(over="ignore"):
            return bool(np.isfinite(values.astype(self.form.numpy).astype(np.float32)).all())


def _producers(values: Iterable[ir.Value | None]) -> list[ir.Node]:
    return [p for v in values if v is not None and (p := v.producer()) is not None]


def _is_small(node: ir.Node) -> bool:
    weights = [v for v in node.inputs if v is not None and v.is_initializer()]
    return bool(weights) and sum(map(_size, weights)) <= DOOR_ELEMENTS


def _size(value: ir.Value) -> int:
    return int(value.const_value.size) if value.const_value is not None else 0


def _is_table(value: ir.Value) -> bool:
    """Positions added, or turned by (RoPE that was computed once); a bias or a scale has one axis."""
    return value.shape is not None and sum(n != 1 for n in value.shape) > 1

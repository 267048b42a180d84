"""Mixed precision: heavy operations in float16, everything delicate in float32, by what an operation is.

    heavy     MatMul, Gemm, Conv ...        weights stored half, inputs cast to half, output half
    neutral   Reshape, Add, Relu ...        half only when everything they read is half
    others    norms, softmax, sines, tables float32, their inputs cast back

So the residual stream, positions and time stay float32 (a plain conversion loses 9 % of the velocity to the time
table alone), and no list of a policy's node names is needed. x, tau, noise and actions are float32 at the door; of
the context only large tensors (rank 3 and up: keys and values, features) are half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
TABLE_ELEMENTS = 1 << 20
"""Embedding tables above this are stored half; smaller ones (positions) stay float32."""
LARGEST = float(np.finfo(np.float16).max)


def is_half_context(shape: Sequence[int], dtype: str) -> bool:
    """Whether a context tensor takes the bundle's precision: small vectors such as the raw state do not."""
    return dtype == "float32" and len(shape) > 2


def to_half(model: ir.Model, half_inputs: Sequence[str], half_outputs: Sequence[str]) -> None:
    """Rewrites a float32 model in place. half_inputs, half_outputs: graph values that become float16."""
    _Rewrite(model).run(set(half_inputs), set(half_outputs))


class _Rewrite:
    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self._casts: dict[tuple[int, ir.DataType], ir.Value] = {}
        self._constants: dict[int, ir.Value] = {}

    def run(self, half_inputs: set[str], half_outputs: set[str]) -> None:
        for value in self.graph.inputs:
            if value.name in half_inputs:
                value.dtype = HALF
        for node in list(self.graph):
            if node.op_type == "Gather":
                self._gather(node)
            elif node.op_type in HEAVY or (node.op_type in NEUTRAL and self._reads_half_only(node)):
                self._make_half(node)
            else:
                self._keep_float(node)
        self._fix_outputs(half_outputs)
        self._drop_unused()

    # -- nodes --------------------------------------------------------------------------------------------

    def _reads_half_only(self, node: ir.Node) -> bool:
        read = [v for v in node.inputs if v is not None and not v.is_initializer()]
        floats = [v for v in read if v.dtype in (HALF, FLOAT)]
        constants = [v for v in node.inputs if v is not None and v.is_initializer() and v.dtype == FLOAT]
        return bool(floats) and all(v.dtype == HALF for v in floats) and all(map(_fits, constants))

    def _make_half(self, node: ir.Node) -> None:
        for i, value in enumerate(node.inputs):
            if value is None or value.dtype != FLOAT:
                continue
            new = self._half_constant(value) if value.is_initializer() else self._cast(value, HALF, node)
            node.replace_input_with(i, new)
        for output in node.outputs:
            if output.dtype in (FLOAT, None):
                output.dtype = HALF

    def _keep_float(self, node: ir.Node) -> None:
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype == HALF and node.op_type != "Cast":
                node.replace_input_with(i, self._cast(value, FLOAT, node))

    def _gather(self, node: ir.Node) -> None:
        """A large table is stored half and its rows are widened; a half tensor is picked from as it is."""
        data = node.inputs[0]
        assert data is not None
        if data.is_initializer() and data.dtype == FLOAT and _size(data) > TABLE_ELEMENTS and _fits(data):
            node.replace_input_with(0, self._half_constant(data))
            node.outputs[0].dtype = HALF
            self._replace_uses(node.outputs[0], self._cast(node.outputs[0], FLOAT, node, after=True))
        elif data.dtype == HALF:
            node.outputs[0].dtype = HALF

    # -- values -------------------------------------------------------------------------------------------

    def _half_constant(self, value: ir.Value) -> ir.Value:
        if id(value) not in self._constants:
            assert value.const_value is not None
            name = f"{value.name}_half"
            array = value.const_value.numpy().astype(np.float16)
            new = ir.Value(
                name=name,
                shape=value.shape,
                type=ir.TensorType(HALF),
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
            out.name = f"{value.name}_{'half' if to == HALF else 'float'}"
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
            wanted = HALF if value.name in half_outputs else FLOAT
            if value.dtype not in (HALF, FLOAT) or value.dtype == wanted:
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


def _size(value: ir.Value) -> int:
    return int(value.const_value.size) if value.const_value is not None else 0


def _fits(value: Any) -> bool:
    """Whether a constant can be half at all: masks of -1e9 and the like cannot."""
    return value.const_value is not None and bool(
        np.all(np.abs(value.const_value.numpy().astype(np.float32)) <= LARGEST)
    )

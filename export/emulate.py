"""What a bfloat16 graph computes, on a CPU that knows none: float32 with every bfloat16 value rounded as the GPU would.

A GPU multiplies bfloat16 exactly, adds in float32 and rounds the sum; so does the emulation, in another order of adding.
Constants are as rounded as they lie in the file. It says how large the rounding is, and nothing of a GPU's kernels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from . import trace

BRAIN, FLOAT = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def emulated(path: Path, folder: Path, name: str) -> Path:
    """Writes the float32 graph that stands for the one at `path`."""
    model = ir.load(path)
    for value in model.graph.initializers.values():
        if value.dtype == BRAIN:
            assert value.const_value is not None
            wide = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.tensor(wide, name=value.name)
            value.dtype = FLOAT
    for node in list(model.graph):
        for output in node.outputs:
            if output.dtype == BRAIN:
                _round(model.graph, node, output)
    file, _ = trace.save(model, folder, name)
    return folder / file


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Who reads the value reads it rounded, and wide again. A cast to bfloat16 has rounded it already."""
    narrow = value
    uses = list(value.uses())
    if node.op_type != "Cast":
        value.dtype = FLOAT
        narrow = _cast(graph, node, value, BRAIN, f"{value.name}_rounded")
    wide = _cast(graph, narrow.producer() or node, narrow, FLOAT, f"{value.name}_emulated")
    for use in uses:
        use.node.replace_input_with(use.idx, wide)


def _cast(graph: ir.Graph, after: ir.Node, value: ir.Value, to: ir.DataType, name: str) -> ir.Value:
    cast = ir.node("Cast", [value], attributes={"to": to.value})
    out = cast.outputs[0]
    out.name, out.dtype, out.shape = name, to, value.shape
    graph.insert_after(after, cast)
    return out

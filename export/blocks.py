"""Weights in blocks of 4 or 8 bits: what an int4 bundle is made of. Only weights are stored so; the rest is float32.

    MatMul, Gemm    weights (K, N) -> com.microsoft.MatMulNBits: 32 of a column share a scale and a zero point,
                    5.25 bits a weight (9.25 of 8)
    Gather          rows of a large table (embeddings) -> int8, a scale per row

An engine may round what is multiplied with them to 8 bits as well, 32 values at a time (accuracy level 4), which ONNX
Runtime's CPU kernels do: three times as fast for a few rows, and 0.5 % of error beside the 8 % of 4 bits. Since every
row has its own scales, robots that share an inference do not see each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from . import trace
from .half import TABLE_ELEMENTS

BLOCK = 32
LEAST_WEIGHTS = 1024
"""Products with fewer weights are not worth it."""
ACCURACY_LEVEL = 4
MAPPED_BYTES = 1 << 24
"""Graphs with more weights keep them in a file of their own: mapped, they are not held a second time."""
ROWS_AT_ONCE = 1 << 12
DOMAIN = "com.microsoft"

Blocks = tuple[np.ndarray, np.ndarray, np.ndarray]


def is_packable(node: ir.Node) -> bool:
    """Whether a node reads weights that can be stored in blocks."""
    if node.op_type == "Gather":
        table = node.inputs[0]
        return _is_matrix(table) and _axis(node) == 0 and _size(table) > TABLE_ELEMENTS
    if node.op_type == "Gemm":
        scaled = any(_number(node, name, 1.0) != 1.0 for name in ("alpha", "beta"))
        if scaled or _number(node, "transA", 0.0) != 0.0:
            return False
    elif node.op_type != "MatMul":
        return False
    return _is_matrix(node.inputs[1]) and _size(node.inputs[1]) >= LEAST_WEIGHTS


class Packer:
    """One float32 graph, ready to be written many times with other layers in other numbers of bits."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._packed: dict[str, Blocks] = {}
        self._tables: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def write(self, folder: Path, name: str, bits: Mapping[str, int]) -> tuple[str, str | None]:
        """bits: node name -> 4 or 8; others stay float32. A table takes 8 whatever is said. Returns names of files."""
        model = ir.load(self.path)
        model.opset_imports[DOMAIN] = 1
        for node in list(model.graph):
            if str(node.name) not in bits:
                continue
            if node.op_type == "Gather":
                self._pack_table(model.graph, node)
            else:
                self._pack_product(model.graph, node, bits[str(node.name)])
        trace.drop_unused(model)
        return trace.save(model, folder, name, MAPPED_BYTES)

    def _pack_product(self, graph: ir.Graph, node: ir.Node, bits: int) -> None:
        x, weights, *rest = node.inputs
        assert weights is not None
        assert weights.const_value is not None
        is_transposed = node.op_type == "Gemm" and _number(node, "transB", 0.0) != 0.0
        matrix = weights.const_value.numpy() if is_transposed else weights.const_value.numpy().T
        stem = f"{weights.name}_{'rows' if is_transposed else 'columns'}_{bits}bit"
        if stem not in self._packed:
            self._packed[stem] = pack(matrix, bits)
        codes, scales, zeros = self._packed[stem]
        n, k = matrix.shape
        attributes = {"K": k, "N": n, "bits": bits, "block_size": BLOCK, "accuracy_level": ACCURACY_LEVEL}
        parts = zip(("codes", "scales", "zeros"), (codes, scales, zeros), strict=True)
        read = [_constant(graph, f"{stem}_{part}", values) for part, values in parts]
        new = [ir.node("MatMulNBits", [x, *read], attributes, domain=DOMAIN, name=node.name)]
        if rest and rest[0] is not None:
            new.append(ir.node("Add", [new[0].outputs[0], rest[0]], name=f"{node.name}_bias"))
            new[0].outputs[0].name = f"{node.outputs[0].name}_product"
        _replace(graph, node, new)

    def _pack_table(self, graph: ir.Graph, node: ir.Node) -> None:
        table, rows = node.inputs[:2]
        assert table is not None
        assert rows is not None
        name = str(table.name)
        if name not in self._tables:
            assert table.const_value is not None
            self._tables[name] = pack_rows(table.const_value.numpy())
        codes, scales = (
            _constant(graph, f"{name}_{part}", values)
            for part, values in zip(("codes", "scales"), self._tables[name], strict=True)
        )
        picked = ir.node("Gather", [codes, rows], {"axis": 0}, name=node.name)
        wide = ir.node("Cast", [picked.outputs[0]], {"to": ir.DataType.FLOAT.value}, name=f"{node.name}_wide")
        scale = ir.node("Gather", [scales, rows], {"axis": 0}, name=f"{node.name}_scale")
        new = [
            picked,
            wide,
            scale,
            ir.node("Mul", [wide.outputs[0], scale.outputs[0]], name=f"{node.name}_mul"),
        ]
        for one in new[:-1]:
            one.outputs[0].name = f"{one.name}_out"
        _replace(graph, node, new)


def pack(matrix: np.ndarray, bits: int) -> Blocks:
    """(N, K) -> codes uint8 (N, blocks, BLOCK * bits / 8), the first of two in the low half; scales float32
    (N, blocks); zero points uint8 (N, bytes), packed alike. A weight is scale * (code - zero point).
    """
    pieces = [
        _pack(np.asarray(matrix[i : i + ROWS_AT_ONCE], np.float32), bits)
        for i in range(0, len(matrix), ROWS_AT_ONCE)
    ]
    codes, scales, zeros = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return codes, scales, zeros


def _pack(matrix: np.ndarray, bits: int) -> Blocks:
    n, k = matrix.shape
    n_blocks = -(-k // BLOCK)
    padded = np.zeros((n, n_blocks * BLOCK), np.float32)
    padded[:, :k] = matrix
    blocks = padded.reshape(n, n_blocks, BLOCK)
    largest = 2**bits - 1
    low = np.minimum(blocks.min(axis=-1), 0.0)  # 0 is exact: what a network pruned stays pruned
    scales = ((np.maximum(blocks.max(axis=-1), 0.0) - low) / largest).astype(np.float32)
    scales[scales == 0] = 1.0
    zeros = np.clip(np.round(-low / scales), 0, largest)
    codes = np.clip(np.round(blocks / scales[..., None]) + zeros[..., None], 0, largest)
    return _packed(codes.astype(np.uint8), bits), scales, _packed(zeros.astype(np.uint8), bits)


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Two codes of 4 bits in a byte."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    packed: np.ndarray = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return packed


def pack_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, D) -> int8 codes (rows, D), float32 scales (rows, 1)."""
    scales = np.maximum(np.abs(table).max(axis=1, keepdims=True), np.float32(1e-30)) / np.float32(127)
    return np.round(table / scales).astype(np.int8), scales.astype(np.float32)


def _replace(graph: ir.Graph, node: ir.Node, new: list[ir.Node]) -> None:
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, new[-1].outputs)


def _constant(graph: ir.Graph, name: str, values: np.ndarray) -> ir.Value:
    """Of that name, made where it is not there yet: several nodes may read one."""
    if name not in graph.initializers:
        tensor = ir.tensor(values, name=name)
        graph.register_initializer(
            ir.Value(
                name=name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        )
    return graph.initializers[name]


def _is_matrix(value: ir.Value | None) -> bool:
    return (
        value is not None
        and value.is_initializer()
        and value.const_value is not None
        and value.dtype == ir.DataType.FLOAT
        and len(value.const_value.shape) == 2
    )


def _size(value: ir.Value | None) -> int:
    return 0 if value is None or value.const_value is None else int(value.const_value.size)


def _axis(node: ir.Node) -> int:
    return int(_number(node, "axis", 0.0))


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)

"""What can be lowered by itself: the products of a float graph, gathered by the layer of the network that they are.

A node knows the modules it was traced in. A layer is their path down to its first number (`encoder.layers.3`,
`backbone.layer1.0`), so a block of a transformer is one, and both cameras' passes through a trunk are one. A part is a
branch of that tree: vision tower, language model, head.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"
CONTEXT = "context"
"""Of fp16: what stands between `encode` and `denoise`, which is no layer but is rounded like one."""
LEAST_PARTS = 4


@dataclass(frozen=True)
class GraphLayer:
    """graph, name: where it is. part: for people. nodes: names of its products. weights: how many values those read."""

    graph: str
    name: str
    part: str
    nodes: tuple[str, ...]
    weights: int

    def __str__(self) -> str:
        return f"{self.graph}/{self.name}"


def layers_of(
    graph: str, model: ir.Model, is_lowered: Callable[[ir.Node], bool], but: Collection[str] = ()
) -> list[GraphLayer]:
    """In the order of the graph. is_lowered: whether a precision can lower a node. but: nodes that it leaves."""
    nodes: dict[str, list[str]] = {}
    weights: Counter[str] = Counter()
    seen: set[str] = set()
    for node in model.graph:
        if not is_lowered(node) or node.name in but:
            continue
        name = _layer(node)
        nodes.setdefault(name, []).append(str(node.name))
        for value in node.inputs:
            if value is not None and value.is_initializer() and value.name not in seen:
                seen.add(str(value.name))
                weights[name] += value.const_value.size if value.const_value is not None else 0
    parts = _parts(list(nodes))
    return [GraphLayer(graph, n, f"{graph}/{parts[n]}", tuple(v), int(weights[n])) for n, v in nodes.items()]


def _layer(node: ir.Node) -> str:
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    modules = [s for s in scopes[:-1] if s.startswith("policy.")]
    if not modules:
        return "functions"
    names = modules[-1].split(".")[1:]
    first = next((i for i, n in enumerate(names) if n.isdigit()), len(names))
    last = next((i for i in range(first, len(names)) if not names[i].isdigit()), len(names))
    return ".".join(names[:last])


def _parts(layers: Sequence[str]) -> dict[str, str]:
    """GraphLayer -> part: the tree's first branches; where they are few, the largest branches once more."""
    part = {name: name.split(".")[0] for name in layers}
    while part and len(set(part.values())) < LEAST_PARTS:
        largest, _ = Counter(part.values()).most_common(1)[0]
        split = _branches([name for name, p in part.items() if p == largest], largest.count(".") + 1)
        if not split:
            break
        part |= split
    return part


def _branches(layers: Sequence[str], depth: int) -> dict[str, str]:
    """Where layers that agree in their first `depth` names next differ; empty: not before a number."""
    names = {layer: layer.split(".") for layer in layers}
    while True:
        nexts = {n[depth] if len(n) > depth else "" for n in names.values()}
        if "" in nexts or any(n.isdigit() for n in nexts):
            return {}
        depth += 1
        if len(nexts) > 1:
            return {layer: ".".join(n[:depth]) for layer, n in names.items()}

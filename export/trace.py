"""A policy's methods as ONNX graphs: one graph per method, static shapes, raw inputs (docs/formats.md#the-graphs).

Traced is `run_method`, the very call that training's sampler makes, so the graph cannot differ in what it is fed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgevla.errors import CheckpointError
from edgevla.graph import GraphSpec, TensorSpec, batched
from edgevla.train.policies.base import Policy, run_method

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET, IR_VERSION = 20, 10
LARGE_BYTES = 1 << 29
"""Graphs with more weights than this keep them in a file of their own, which the runtime maps."""

_TORCH = {
    "float32": torch.float32,
    "float16": torch.float16,
    "uint8": torch.uint8,
    "int64": torch.int64,
    "bool": torch.bool,
}


class Method(nn.Module):
    """One method of a policy with positional inputs and outputs in the order of its signature."""

    def __init__(self, policy: Policy, name: str, spec: GraphSpec) -> None:
        super().__init__()
        self.policy, self.name = policy, name
        self.sources = [i.source or "" for i in spec.inputs]
        self.outputs = [o.name for o in spec.outputs]

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        by_source = dict(zip(self.sources, values, strict=True))
        results = run_method(self.policy, self.name, by_source, self.outputs)
        return tuple(results[name] for name in self.outputs)


def example_input(spec: TensorSpec, seed: int = 0) -> Tensor:
    """A value that every graph accepts: random images and vectors, tokens 0, all present, times in the middle."""
    generator = torch.Generator().manual_seed(seed)
    dtype = _TORCH[spec.dtype]
    if dtype == torch.uint8:
        return torch.randint(0, 256, spec.shape, generator=generator, dtype=torch.uint8)
    if dtype == torch.bool:
        return torch.ones(spec.shape, dtype=torch.bool)
    if dtype == torch.int64:
        return torch.zeros(spec.shape, dtype=torch.int64)
    if spec.source in ("schedule:tau", "schedule:tau_next"):
        return torch.full(spec.shape, 0.5 if spec.source == "schedule:tau" else 0.4)
    return torch.randn(spec.shape, generator=generator).to(dtype)


def trace(
    policy: Policy,
    name: str,
    spec: GraphSpec,
    inputs: Mapping[str, Tensor] | None = None,
    max_batch: int = 1,
) -> ir.Model:
    """The ONNX model of one method. inputs: example values by input name; shapes are all that matters.

    max_batch: observations that one run takes; 1 leaves every shape static.

    Raises:
        CheckpointError: the method cannot be traced, or not for a batch; names policy and graph.
    """
    if any(i.name == "t" for i in spec.inputs):
        raise CheckpointError(
            f"{policy.policy_type}.{name} names an input 't', which the exporter's constants use"
        )
    method: nn.Module | torch.export.ExportedProgram = Method(policy, name, spec).eval()
    values: tuple[Tensor, ...] = ()
    if max_batch > 1:
        method = _for_batches(policy, name, spec, max_batch)
    else:
        values = tuple((inputs or {}).get(i.name, example_input(i, n)) for n, i in enumerate(spec.inputs))
    with torch.no_grad(), _quiet():
        try:
            program = torch.onnx.export(
                method,
                values,
                dynamo=True,
                opset_version=OPSET,
                input_names=[i.name for i in spec.inputs],
                output_names=[o.name for o in spec.outputs],
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause = str(error.__cause__ or error).strip().splitlines()
            raise CheckpointError(
                f"{policy.policy_type}.{name} cannot be traced to ONNX: {cause[0] if cause else error!r}"
            ) from error
    assert program is not None
    model = program.model
    model.ir_version = IR_VERSION
    model.graph.name = f"{policy.policy_type}_{name}"
    drop_unused(model)
    return model


def _for_batches(policy: Policy, name: str, spec: GraphSpec, max_batch: int) -> torch.export.ExportedProgram:
    """The method with a number of observations that is free from 1 to `max_batch`."""
    examples = [replace(i, shape=batched(i, 2)) for i in spec.inputs]
    values = tuple(example_input(i, n) for n, i in enumerate(examples))
    size = torch.export.Dim("batch", min=1, max=max_batch)
    shapes = {"values": tuple({i.batch_axis: size} for i in spec.inputs)}
    with torch.no_grad(), _quiet():
        try:
            return torch.export.export(
                Method(policy, name, spec).eval(), values, dynamic_shapes=shapes, strict=False
            )
        except Exception as error:  # whatever a policy's own code says of a number that is not known
            words = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{policy.policy_type}.{name} cannot be traced for 1 to {max_batch} observations: {words}; "
                "leave --max-batch out"
            ) from error


def with_batch_axes(spec: GraphSpec, axes: Mapping[str, int]) -> GraphSpec:
    """The signature with what is known of context tensors. axes: by the names of `encode`'s outputs."""

    def inside(i: TensorSpec) -> TensorSpec:
        kind, _, output = (i.source or "").partition(":")
        return replace(i, batch_axis=axes[output]) if kind == "context" and axes else i

    return replace(spec, inputs=tuple(map(inside, spec.inputs)))


def batch_axes(policy: Policy, name: str, model: ir.Model) -> dict[str, int]:
    """Output name -> where its observations lie, as the trace found it.

    Raises:
        CheckpointError: an output that is the same for every number of them.
    """
    axes = {}
    for output in model.graph.outputs:
        free = [k for k, d in enumerate(output.shape or ()) if not isinstance(d, int)]
        if len(free) != 1:
            raise CheckpointError(
                f"{policy.policy_type}.{name} yields '{output.name}' of shape {output.shape} for a batch; "
                "leave --max-batch out"
            )
        axes[str(output.name)] = free[0]
    return axes


def weight_bytes(model: ir.Model) -> int:
    """Of all constants of a graph."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def save(model: ir.Model, folder: Path, name: str, large_bytes: int | None = None) -> tuple[str, str | None]:
    """Writes `<name>.onnx`, with `<name>.onnx.data` beside it where weights are large; returns both names."""
    import onnx_ir as ir

    file = f"{name}.onnx"
    data = (
        f"{file}.data"
        if weight_bytes(model) > (LARGE_BYTES if large_bytes is None else large_bytes)
        else None
    )
    if data is None:  # what still lies in another graph's file would be left there
        ir.external_data.load_to_model(model)
    ir.save(model, folder / file, external_data=data)
    return file, data


def drop_unused(model: ir.Model) -> None:
    """Weights that this method does not use (the exporter lifts all of the module's)."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own chatter helps nobody who exports a policy."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels: list[tuple[Any, int]] = [(logger, logger.level) for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)

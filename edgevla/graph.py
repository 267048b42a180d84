"""What a graph takes and gives, and the closed vocabulary of where an input's value comes from.

Shared by torch policies, the exporter, the manifest and the runtime's sampler: all bind values to inputs by
*source*, never by name, so none of them knows a policy by name (docs/formats.md#where-an-inputs-value-comes-from).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgevla.errors import BundleError

EXACT_SOURCES = frozenset(
    {
        "camera_present",
        "state",
        "environment_state",
        "prompt:tokens",
        "prompt:mask",
        "rtc:committed",
        "rtc:weights",
        "rtc:max_guidance",
        "noise:initial",
        "noise:step",
        "x",
        "schedule:tau",
        "schedule:tau_next",
    }
)
PREFIX_SOURCES = ("camera:", "context:", "time:", "setting:")


def is_source(source: str) -> bool:
    """Whether `source` belongs to the closed vocabulary; a bundle with any other is refused."""
    return source in EXACT_SOURCES or any(
        source.startswith(p) and len(source) > len(p) for p in PREFIX_SOURCES
    )


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph.

    shape: of one observation, with a batch axis of 1.
    source: inputs only. history: outputs of `encode` only, number of moments that are stacked (Diffusion).
    batch_axis: said by bundles that take batches; all inputs but context tensors have it first.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str | None = None
    history: int | None = None
    batch_axis: int = 0


@dataclass(frozen=True)
class GraphSpec:
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def bind(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Input name -> value, looked up by source.

        Raises:
            BundleError: a source has no value; names the input and the source.
        """
        bound: dict[str, Any] = {}
        for spec in self.inputs:
            source = spec.source or ""
            if source not in values:
                raise BundleError(
                    f"graph input '{spec.name}' needs '{source}', which was not given; "
                    f"given: {', '.join(sorted(values)) or 'nothing'}"
                )
            bound[spec.name] = values[source]
        return bound


def batched(spec: TensorSpec, n: int) -> tuple[int, ...]:
    """The shape of n observations."""
    return (*spec.shape[: spec.batch_axis], n, *spec.shape[spec.batch_axis + 1 :])


class Graph(Protocol):
    """A callable graph: an ONNX session, or a torch policy's method.

    Arrays may live anywhere (numpy, torch, on a device); the sampler passes them on without looking inside.
    Float32 numpy arrays are always accepted as inputs.
    """

    spec: GraphSpec

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Input name -> array to output name -> array."""
        ...

    def stack(self, arrays: Sequence[Any]) -> Any:
        """Stacks outputs of several moments, oldest first, on a new axis 1: n x (B, ...) -> (B, n, ...)."""
        ...

"""What a manifest records of its own making, for people and reports: what the export measured, and where all is from.

No inference depends on it. What the keys mean: docs/formats.md#keys-of-the-manifest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from edgevla.dataset.reading import DatasetReading


@dataclass(frozen=True)
class Stage:
    """tolerance: None for a stage that is not judged by itself: of a quantised bundle the actions are."""

    max_abs: float
    tolerance: float | None
    per_step: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ActionParity:
    """Robot units, over all actions of all chunks. Each joint is judged by its largest difference (`tolerance`), and by
    what 99 of 100 actions stay within (`p99_tolerance`). range_per_joint: how far each joint goes in training.

    Bundles that were written before the rule counted joints have no p99; quantised ones had no tolerance either, and
    were judged by `min_cosine`, of the worst sample.
    """

    max_abs_per_joint: tuple[float, ...]
    tolerance_per_joint: tuple[float, ...] | None
    min_cosine: float | None = None
    mean_abs_per_joint: tuple[float, ...] | None = None
    range_per_joint: tuple[float, ...] | None = None
    p99_abs_per_joint: tuple[float, ...] | None = None
    p99_tolerance_per_joint: tuple[float, ...] | None = None


@dataclass(frozen=True)
class PipelineParity:
    """The graphs from raw frames to robot units against the checkpoint's own pipelines, run as LeRobot runs them, with
    the policy's network between them. compared_with: in words.
    """

    compared_with: str
    n_samples: int
    actions: ActionParity
    passed: bool


@dataclass(frozen=True)
class BatchParity:
    """Several observations in one inference against each of them alone, by the same graphs. size: of the largest."""

    size: int
    n_samples: int
    actions: ActionParity
    passed: bool


@dataclass(frozen=True)
class Parity:
    """passed: within tolerance. A bundle that failed exists only if `--allow-parity-failure` was given.

    pipeline: left out by exports that did not compare with the saved pipelines. batch: left out by bundles that take
    one observation at a time.
    """

    reference: str
    n_samples: int
    stages: dict[str, Stage]
    actions: ActionParity
    passed: bool
    pipeline: PipelineParity | None = None
    batch: BatchParity | None = None


@dataclass(frozen=True)
class KeptLayer:
    """A layer that is not lowered as far as a bundle's precision goes. layer: graph and place in the network. alone:
    what it costs when it alone is lowered, as a multiple of the rule's limit; null where time ran out before. stored:
    what its weights are instead; of int4 that may be 8 bits.
    """

    layer: str
    n_weights: int
    alone: float | None
    stored: Literal["fp32", "int8"] = "fp32"


@dataclass(frozen=True)
class Lowered:
    """What the search for a lower precision found, on `n_samples` frames. n_layers, n_weights: that could be lowered.

    kept: of them, what is not lowered as far. parts: what each part of the network costs when it alone is lowered, and
    everything: all of it, as multiples of the rule's limit. in_time: whether all was measured that there was to measure.
    """

    n_layers: int
    n_weights: int
    kept: tuple[KeptLayer, ...]
    parts: dict[str, float]
    everything: float
    n_samples: int
    in_time: bool


@dataclass(frozen=True)
class Percentiles:
    p50: float
    p99: float


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one run of each graph, and of the whole chunk in eager PyTorch, measured in one process."""

    machine: str
    encode_ms: Percentiles
    decode_ms: Percentiles
    eager_ms: Percentiles
    denoise_ms: Percentiles | None = None
    time_ms: Percentiles | None = None


@dataclass(frozen=True)
class Work:
    """Of one run of a graph. flops: 2 per multiplication with its addition, in products and convolutions. weights: how
    many it reads.
    """

    flops: int
    weights: int


@dataclass(frozen=True)
class CheckpointOrigin:
    path: str
    sha256: str
    layout: str


@dataclass(frozen=True)
class DatasetOrigin:
    """sha256: of the numbers that were trained on. episodes: theirs, as `0,2-5`; None: not known. reading: how the data
    were read.
    """

    repo_id: str
    sha256: str
    fps: float
    episodes: str | None = None
    reading: DatasetReading = field(default_factory=DatasetReading)


@dataclass(frozen=True)
class Provenance:
    """options: choices of the export that change what the bundle computes or how it was judged."""

    checkpoint: CheckpointOrigin
    dataset: DatasetOrigin | None
    features_from: str
    edgevla: str
    torch: str
    onnx: str
    onnxruntime: str
    exported_at: str
    options: dict[str, Any] = field(default_factory=dict)

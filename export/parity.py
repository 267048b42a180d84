"""Whether the exported graphs compute what torch computes, stage by stage and in the actions.

Both run through the runtime's own `BundlePolicy`; only the graphs differ. While torch runs, what enters and leaves
each of its graphs is recorded; each ONNX graph then gets the same input, so an error is found where it arises.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from edgevla.bundle import Bundle
from edgevla.engines import to_numpy
from edgevla.errors import EngineError
from edgevla.graph import Graph, GraphSpec
from edgevla.manifest_record import ActionParity, Latency, Parity, Percentiles, Stage
from edgevla.runner import BundlePolicy, InferenceResult
from edgevla.train.policies.base import Policy, TorchGraph

from .gate import LIMITS, is_lost, usual_error
from .options import QUANTISED
from .samples import PolicyInput, action_range

STAGE_SHARE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 2e-2}
"""Tolerance of a stage's outputs, as a share of their largest value."""
NO_NUMBER = 1e30
"""Stands for an error that is infinite or NaN, which JSON does not know."""


@dataclass
class Recorder:
    """A torch graph that remembers what went in and came out, on the host."""

    graph: TorchGraph
    calls: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spec: GraphSpec = self.graph.spec

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        outputs = {k: v.detach().cpu().numpy() for k, v in self.graph.run(inputs).items()}
        self.calls.append(({k: to_numpy(v) for k, v in inputs.items()}, outputs))
        return outputs

    def stack(self, arrays: Sequence[Any]) -> np.ndarray:
        return np.stack(list(arrays), axis=1)


@dataclass
class Comparison:
    """parity: for the manifest. reference, exported: float32 (n, T, A), robot units."""

    parity: Parity
    reference: np.ndarray
    exported: np.ndarray
    samples: list[PolicyInput]


def torch_policy(policy: Policy, bundle: Bundle) -> tuple[BundlePolicy, dict[str, Recorder]]:
    """The bundle's runner over torch's methods."""
    recorders = {str(n): Recorder(TorchGraph(policy, n, spec)) for n, spec in policy.graphs().items()}
    return BundlePolicy(bundle, graphs=dict(recorders)), recorders


def compare(
    policy: Policy,
    bundle: Bundle,
    exported: BundlePolicy,
    samples: Sequence[PolicyInput],
    origin: str,
    to_the_end: bool = True,
) -> Comparison:
    """Runs every sample through torch and through the bundle. origin: where the samples came from, for the reader.
    to_the_end: also when the rule is broken already.
    """
    precision = precision_of_bundle(bundle)
    width, limits = action_range(policy, bundle.manifest), LIMITS[precision]
    reference, recorders = torch_policy(policy, bundle)
    graphs = exported.graphs
    worst = {name: _Worst() for name in graphs}
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    errors: list[np.ndarray] = []
    for i, sample in enumerate(samples):
        for recorder in recorders.values():
            recorder.calls.clear()
        reference.reset()
        exported.reset()
        pairs.append((_infer(reference, sample, i).actions, _infer(exported, sample, i).actions))
        for name, recorder in recorders.items():
            for step, (inputs, outputs) in enumerate(recorder.calls):
                worst[name].add(step, outputs, graphs[name].run(_as_spec(inputs, graphs[name].spec)))
        errors.append(np.abs(np.subtract(*pairs[-1], dtype=np.float64)))
        if not to_the_end and is_lost(np.stack(errors), len(samples), width, limits):
            break
    ours, theirs = (np.stack(a) for a in zip(*pairs, strict=True))
    actions, agrees = action_parity(policy, bundle, ours, theirs)
    stages = {name: w.stage(name, precision, bundle) for name, w in worst.items() if w.largest}
    return Comparison(
        Parity(
            reference=f"torch {torch.__version__.partition('+')[0]}, {policy.device.type}, fp32; {origin}",
            n_samples=len(pairs),
            stages=stages,
            actions=actions,
            passed=agrees and all(map(_within, stages.values())),
        ),
        ours,
        theirs,
        list(samples[: len(pairs)]),
    )


def failures(parity: Parity, names: Sequence[str]) -> list[str]:
    """What is beyond its tolerance, one sentence each."""
    out = [
        f"{name} differs by {s.max_abs:.3g}, tolerance {s.tolerance or NO_NUMBER:.3g}"
        for name, s in parity.stages.items()
        if not _within(s)
    ]
    out += _action_failures(parity.actions, names, "")
    if parity.pipeline is not None and not parity.pipeline.passed:
        out += _action_failures(parity.pipeline.actions, names, f" from {parity.pipeline.compared_with}")
    if parity.batch is not None and not parity.batch.passed:
        other = f" between an inference of {parity.batch.size} and one alone"
        out += _action_failures(parity.batch.actions, names, other)
    return out


def _action_failures(a: ActionParity, names: Sequence[str], other: str) -> list[str]:
    usual = (a.p99_abs_per_joint, a.p99_tolerance_per_joint, "in 99 % of its actions, ")
    most = (a.max_abs_per_joint, a.tolerance_per_joint, "")
    return [
        f"joint {name} differs by {error:.3g}{other}, {kind}tolerance {tolerance:.3g}"
        for errors, tolerances, kind in (most, usual)
        for name, error, tolerance in zip(names, errors or (), tolerances or (), strict=False)
        if not error <= tolerance
    ]


def _infer(policy: BundlePolicy, sample: PolicyInput, seq: int) -> InferenceResult:
    return policy.infer(
        sample.observation, grid_index=sample.grid_index, past=sample.past, rtc=sample.rtc, chunk_seq=seq
    )


def _as_spec(inputs: Mapping[str, np.ndarray], spec: GraphSpec) -> dict[str, np.ndarray]:
    """Context tensors in the exported graph's precision."""
    return {i.name: inputs[i.name].astype(i.dtype, copy=False) for i in spec.inputs}


def precision_of_bundle(bundle: Bundle) -> str:
    """The coarsest of its graphs'."""
    found = set(bundle.manifest.target.precision.values())
    return next((p for p in ("int4", "int8", "bf16", "fp16") if p in found), "fp32")


@dataclass
class _Worst:
    """Largest difference per step of one graph, and the largest value, over all samples."""

    errors: dict[int, float] = field(default_factory=dict)
    largest: float = 0.0

    def add(self, step: int, ours: Mapping[str, np.ndarray], theirs: Mapping[str, Any]) -> None:
        for name, value in ours.items():
            if value.dtype.kind != "f":
                if not np.array_equal(value, to_numpy(theirs[name])):
                    self.errors[step] = float("inf")
                continue
            error = np.abs(value.astype(np.float64) - to_numpy(theirs[name]).astype(np.float64)).max()
            self.errors[step] = max(self.errors.get(step, 0.0), float(error))
            self.largest = max(self.largest, float(np.abs(value).max()))

    def stage(self, name: str, precision: str, bundle: Bundle) -> Stage:
        own = bundle.manifest.target.precision[name]
        share = STAGE_SHARE[precision if own in STAGE_SHARE and own != "fp32" else "fp32"]
        if name in ("decode", "time"):
            share = 1e-5
        errors = [min(e, NO_NUMBER) for _, e in sorted(self.errors.items())]
        per_step = tuple(errors) if name == "denoise" else None
        tolerance = None if own in QUANTISED else share * max(1.0, self.largest)
        return Stage(max(errors, default=0.0), tolerance, per_step)


def action_parity(
    policy: Policy, bundle: Bundle, ours: np.ndarray, theirs: np.ndarray, looser: float = 1.0
) -> tuple[ActionParity, bool]:
    """Chunks (n, T, A) held against each other by the rule, and whether they agree. looser: times the rule's limits."""
    limits = LIMITS[precision_of_bundle(bundle)]
    error = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    width = action_range(policy, bundle.manifest)
    most, usual = error.max(axis=(0, 1)), usual_error(error)
    allowed = looser * limits.most * width, looser * limits.usual * width
    actions = ActionParity(
        max_abs_per_joint=_floats(most),
        tolerance_per_joint=_floats(allowed[0]),
        mean_abs_per_joint=_floats(error.mean(axis=(0, 1))),
        range_per_joint=_floats(width),
        p99_abs_per_joint=_floats(usual),
        p99_tolerance_per_joint=_floats(allowed[1]),
    )
    return actions, bool((most <= allowed[0]).all() and (usual <= allowed[1]).all())


def _within(stage: Stage) -> bool:
    return stage.max_abs < NO_NUMBER if stage.tolerance is None else stage.max_abs <= stage.tolerance


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{v:.4g}") if np.isfinite(v) else NO_NUMBER for v in values)


# -- latency ------------------------------------------------------------------------------------------------


def measure(policy: Policy, bundle: Bundle, exported: BundlePolicy, sample: PolicyInput, n: int) -> Latency:
    """Each graph's run, and torch's whole chunk, in this process with the same number of threads.

    Eager and exported runs alternate, so that other load on the machine falls on both.
    """
    threads = exported.options.n_threads
    reference, recorders = torch_policy(policy, bundle)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    spent: dict[str, list[float]] = {name: [] for name in ("eager", *exported.graphs)}
    try:
        _infer(reference, sample, 0)
        inputs = {
            n: _as_spec(r.calls[0][0], exported.graphs[n].spec) for n, r in recorders.items() if r.calls
        }
        _infer(exported, sample, 0)
        for _ in range(n):
            reference.reset()
            spent["eager"].append(_timed(lambda: _infer(reference, sample, 0)))
            for name, values in inputs.items():
                graph: Graph = exported.graphs[name]
                spent[name].append(_timed(lambda g=graph, v=values: g.run(v)))  # type: ignore[misc]
            for recorder in recorders.values():
                recorder.calls.clear()
    finally:
        torch.set_num_threads(before)
    result = {f"{name}_ms": _percentiles(values) for name, values in spent.items() if values}
    if not {"encode_ms", "decode_ms"} <= set(result):
        raise EngineError("no graph ran while latency was measured")
    return Latency(machine=_machine(threads), **result)  # type: ignore[arg-type]


def _timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def _percentiles(values: Sequence[float]) -> Percentiles:
    p50, p99 = np.percentile(values, [50, 99])
    return Percentiles(round(float(p50), 3), round(float(p99), 3))


def _machine(threads: int) -> str:
    import platform

    from edgevla.engines import n_cores

    return f"{n_cores()} cores {platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"


def chunk_ms(latency: Latency, n_steps: int) -> float:
    """Median of one whole chunk by the exported graphs."""
    denoise = latency.denoise_ms.p50 if latency.denoise_ms is not None else 0.0
    return latency.encode_ms.p50 + n_steps * denoise + latency.decode_ms.p50

"""A policy as the runtime sees it: encode once, denoise over a schedule, decode (docs/formats.md#one-sampler).

    context = encode(observation)
    x       = context.pop("x", noise)                      # ACT's encode already yields the chunk
    for tau, tau_next in pairwise(schedule(n_steps)):
        x   = denoise(context, x, tau, tau_next, ...)      # one solver step, integrator and guidance inside
    actions = decode(x, ...)                               # (B, T, A) robot units

The same `Sampler` runs ONNX sessions on the robot and torch methods in training: there is no second one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from edgevla.errors import BundleError
from edgevla.graph import Graph


@dataclass(frozen=True)
class Schedule:
    """The list of times that a denoise loop walks.

    kind `linear`: start + (end - start) * i / n for i = 0 ... n (flow matching).
    kind `timesteps`: (n - 1 - i) * (n_train // n) for i = 0 ... n - 1, then -1 (DDPM, DDIM; `leading` spacing).
    n_steps_allowed: inclusive bounds of what a deployment may choose.
    """

    kind: Literal["linear", "timesteps"]
    n_steps: int
    n_steps_allowed: tuple[int, int] = (1, 100)
    start: float = 1.0
    end: float = 0.0
    n_train: int | None = None

    def taus(self, n_steps: int | None = None) -> np.ndarray:
        """float32 (n + 1,): computed in float64, rounded once at the end.

        Raises:
            BundleError: a number of steps outside `n_steps_allowed`.
        """
        n = self.n_steps if n_steps is None else n_steps
        low, high = self.n_steps_allowed
        if not low <= n <= high:
            raise BundleError(f"{n} denoise steps were asked for; this policy allows {low} to {high}")
        if self.kind == "linear":
            return (self.start + (self.end - self.start) * np.arange(n + 1) / n).astype(np.float32)
        if self.n_train is None:
            raise BundleError("a schedule of kind 'timesteps' needs n_train")
        stride = self.n_train // n
        return np.append((n - 1 - np.arange(n)) * stride, -1).astype(np.float32)


def initial_noise(shape: Sequence[int], seed: int, chunk_seq: int, draw: int = 0) -> np.ndarray:
    """float32 standard normal; PCG64 of (seed, chunk number), so any inference can be replayed from the log. draw: of
    several chunks that one inference draws; the first is the one it would draw alone."""
    generator = np.random.Generator(np.random.PCG64([seed, chunk_seq, *([0, draw] if draw else [])]))
    return generator.standard_normal(tuple(shape), dtype=np.float32)


class Sampler:
    """Runs the graphs of one policy. Values are handed over by source: `state`, `camera:<feature>`, ...

    graphs: `encode`, `decode`, and where the policy has them `denoise` and `time`.
    """

    def __init__(self, graphs: Mapping[str, Graph], schedule: Schedule | None) -> None:
        self.graphs = graphs
        self.schedule = schedule
        self._time_rows: dict[tuple[int, int], list[dict[str, Any]]] = {}

    @property
    def n_moments(self) -> int:
        """Observations that one inference stacks (Diffusion's n_obs_steps; 1 for all others)."""
        return max([o.history or 1 for o in self.graphs["encode"].spec.outputs], default=1)

    def encode(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Context of one moment, keyed by `encode`'s output names."""
        graph = self.graphs["encode"]
        return graph.run(graph.spec.bind(values))

    def merge(self, contexts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Stacks outputs that are history, oldest first; a missing past repeats the oldest. Others: newest."""
        graph = self.graphs["encode"]
        merged = dict(contexts[-1])
        for output in graph.spec.outputs:
            if output.history is not None:
                rows = [c[output.name] for c in contexts[-output.history :]]
                rows = [rows[0]] * (output.history - len(rows)) + rows
                merged[output.name] = graph.stack(rows)
        return merged

    def solve(
        self,
        context: Mapping[str, Any],
        values: Mapping[str, Any],
        *,
        noise: Any = None,
        n_steps: int | None = None,
        step_noise: Callable[[int], Any] | None = None,
        on_step: Callable[[int, Any], None] | None = None,
    ) -> Any:
        """Walks the schedule from `noise` (or from the context's own `x`) to the normalised chunk.

        values: what is constant over the inference, by source (`rtc:*`, `setting:*`, `state`).
        step_noise: step index -> fresh standard normal of x's shape, for policies that declare `noise:step`.
        on_step: sees (step index, x after it); parity tests look here.
        """
        bound = {**values, **{f"context:{name}": value for name, value in context.items()}}
        x = context.get("x", noise)
        if self.schedule is None or "denoise" not in self.graphs:
            return x
        graph = self.graphs["denoise"]
        batch = graph.spec.inputs[0].shape[0] if noise is None else noise.shape[0]
        taus = self.schedule.taus(n_steps)
        rows = self._rows(taus, batch)
        bound["noise:initial"] = noise
        for i, (tau, tau_next) in enumerate(pairwise(taus)):
            bound["x"] = x
            bound["schedule:tau"] = np.full(batch, tau, np.float32)
            bound["schedule:tau_next"] = np.full(batch, tau_next, np.float32)
            if rows:
                bound.update(rows[i])
            if step_noise is not None:
                bound["noise:step"] = step_noise(i)
            x = _only(graph.run(graph.spec.bind(bound)).values())
            if on_step is not None:
                on_step(i, x)
        return x

    def decode(self, x: Any, values: Mapping[str, Any]) -> Any:
        """Normalised chunk -> (B, T, A) robot units."""
        graph = self.graphs["decode"]
        return _only(graph.run(graph.spec.bind({**values, "x": x})).values())

    def sample(
        self, moments: Sequence[Mapping[str, Any]], values: Mapping[str, Any] | None = None, **solve: Any
    ) -> Any:
        """The whole policy: moments (oldest first), inference-level values -> (B, T, A) robot units."""
        values = {**moments[-1], **(values or {})}
        context = self.merge([self.encode(m) for m in moments])
        return self.decode(self.solve(context, values, **solve), values)

    def _rows(self, taus: np.ndarray, batch: int) -> list[dict[str, Any]]:
        """Outputs of the optional `time` graph for every step, computed once per step count and batch."""
        graph = self.graphs.get("time")
        if graph is None:
            return []
        key = len(taus) - 1, batch
        if key not in self._time_rows:
            self._time_rows[key] = [
                {
                    f"time:{k}": v
                    for k, v in graph.run(graph.spec.bind({"schedule:tau": _full(batch, t)})).items()
                }
                for t in taus[:-1]
            ]
        return self._time_rows[key]


def _full(batch: int, value: float) -> np.ndarray:
    return np.full(batch, value, np.float32)


def _only(values: Iterable[Any]) -> Any:
    (value,) = values
    return value

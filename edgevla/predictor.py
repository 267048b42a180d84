"""What a policy node asks for chunks, and what it is answered.

BundlePolicy     a bundle that infers in this process      runner.py
RemotePolicy     one that infers at a policy server        serve/remote.py
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edgevla.manifest import Manifest
from edgevla.types import ENVIRONMENT_STATE, STATE, Observation


@dataclass(frozen=True)
class RtcInputs:
    """Real-time chunking, policy units and order (docs/formats.md#real-time-chunking).

    committed: float32 (<= T, A), what will have been commanded from the observation's moment on.
    weights: float32 (T,). max_guidance: None takes the manifest's. select: above 1, so many chunks are drawn without
    guidance, and the one nearest to what is committed is kept.
    """

    committed: np.ndarray
    weights: np.ndarray
    max_guidance: float | None = None
    select: int = 1

    @property
    def n_drawn(self) -> int:
        """Chunks that there are to choose from: with nothing committed, one is as near as another."""
        return self.select if self.select > 1 and np.any(self.weights) else 1


@dataclass(frozen=True)
class Wanted:
    """Until when a chunk is of use: monotonic ns, and for how long from now on the arm still has actions."""

    deadline_ns: int
    buffered_ns: int = 0


@dataclass(frozen=True)
class InferenceResult:
    """actions: float32 (T, A), policy units and order; action 0 belongs to the observation's moment.

    timing_ns: `prompt`, `encode`, `denoise`, `decode`; from elsewhere also `wait`, `network`. With noise_seed and
    chunk_seq the inference can be replayed. news: sentences for people.
    """

    actions: np.ndarray
    timing_ns: dict[str, int]
    noise_seed: int
    chunk_seq: int
    n_steps: int
    is_guided: bool
    grid_index: int
    news: tuple[str, ...] = ()


class Predictor(Protocol):
    """What a policy node asks: a bundle here, or one elsewhere. One question at a time.

    sha256: of the manifest. n_moments: observations that one inference looks at. provider: for people. counters: of
    what went wrong, for the node's heartbeat.
    """

    manifest: Manifest
    sha256: str
    counters: Counter[str]

    @property
    def provider(self) -> str:
        """Who infers, for people."""
        ...

    @property
    def n_moments(self) -> int:
        """Observations that one inference looks at."""
        ...

    def missing_moments(self, grid_index: int) -> list[int]:
        """Past grid moments, oldest first, whose observations `infer` would like in `past`."""
        ...

    def reset(self) -> None:
        """Forgets the past: session start, reset, pause."""
        ...

    def warm_up(self, n: int) -> list[int]:
        """ns of each of n inferences on blank input."""
        ...

    def infer(
        self,
        observation: Observation,
        *,
        grid_index: int,
        past: Mapping[int, Observation],
        n_steps: int | None,
        rtc: RtcInputs | None,
        chunk_seq: int,
        wanted: Wanted,
    ) -> InferenceResult:
        """
        Raises:
            EdgeVLAError: there is no chunk; the robot asks again, and holds meanwhile.
        """
        ...


def described(manifest: Manifest) -> dict[str, Any]:
    """The manifest without `files`, as a policy node tells it."""
    return {k: v for k, v in manifest.to_json().items() if k != "files"}


def blank_observation(manifest: Manifest) -> Observation:
    """Black pictures and a usual state: one outside what was trained on could overflow float16."""
    images = {name: np.zeros(manifest.features[name].shape, np.uint8) for name in manifest.cameras}
    environment = manifest.features.get(ENVIRONMENT_STATE)
    return Observation(
        _usual_state(manifest),
        images,
        None if environment is None else np.zeros(environment.shape, np.float32),
        (manifest.prompt and manifest.prompt.default_task) or "warm up",
    )


def _usual_state(manifest: Manifest) -> np.ndarray:
    """The middle of what training saw."""
    state, known = manifest.state, (manifest.trained_range or {}).get(STATE)
    if known is not None:
        return ((np.array(known.q01) + np.array(known.q99)) / 2).astype(np.float32)
    return np.zeros(state.shape if state is not None else (0,), np.float32)

"""Observations to compare and calibrate with: real frames of the dataset, or synthetic ones that say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgevla.dataset.observations import moments_until, observations
from edgevla.manifest import Manifest
from edgevla.runner import RtcInputs
from edgevla.types import ACTION, ENVIRONMENT_STATE, STATE, Observation

if TYPE_CHECKING:
    from edgevla.dataset import Dataset
    from edgevla.train.policies.base import Policy


@dataclass(frozen=True)
class PolicyInput:
    """One observation with its past (by grid moment), and for policies that take it, guidance on every second one."""

    observation: Observation
    grid_index: int
    past: Mapping[int, Observation] = field(default_factory=dict)
    rtc: RtcInputs | None = None


def dataset_samples(
    dataset: Dataset, keys: Mapping[str, str], manifest: Manifest, n: int, n_moments: int
) -> list[PolicyInput]:
    """n rows spread evenly over the dataset. keys: policy camera -> dataset camera."""
    rows = np.unique(np.linspace(0, dataset.n_frames - 1, min(n, dataset.n_frames)).round().astype(int))
    samples = []
    for row in rows.tolist():
        moments = moments_until(dataset, row, n_moments)
        seen = observations(dataset, moments, manifest.features, keys)
        samples.append(PolicyInput(seen[row], row, {r: seen[r] for r in moments[:-1]}))
    return _guided(samples, manifest)


def synthetic_samples(
    policy: Policy, manifest: Manifest, n: int, n_moments: int, seed: int
) -> list[PolicyInput]:
    """Smooth random pictures and vectors within the training statistics, for checkpoints without their dataset."""
    generator = np.random.default_rng(seed)
    task = (manifest.prompt.default_task if manifest.prompt else "") or "put the red cube into the bowl"

    def observe() -> Observation:
        images = {name: _picture(generator, manifest.features[name].shape) for name in manifest.cameras}
        environment = manifest.features.get(ENVIRONMENT_STATE)
        state = manifest.features.get(STATE)
        return Observation(
            _vector(policy, STATE, 0 if state is None else state.shape[0], generator),
            images,
            None
            if environment is None
            else _vector(policy, policy.config.environment_state_key, environment.shape[0], generator),
            task,
        )

    samples = []
    for i in range(n):
        moment = i * 100
        past = {moment - k: observe() for k in range(n_moments - 1, 0, -1)}
        samples.append(PolicyInput(observe(), moment, past))
    return _guided(samples, manifest)


def _picture(generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    import cv2

    coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def _vector(policy: Policy, feature: str, n: int, generator: np.random.Generator) -> np.ndarray:
    stats = policy.processors.stats.get(feature, {})
    if "q01" in stats and "q99" in stats:
        low, high = stats["q01"], stats["q99"]
    elif "min" in stats and "max" in stats:
        low, high = stats["min"], stats["max"]
    elif "mean" in stats and "std" in stats:
        low, high = stats["mean"] - 2 * stats["std"], stats["mean"] + 2 * stats["std"]
    else:
        low, high = -np.ones(n), np.ones(n)
    low, high = (np.resize(np.asarray(v, np.float64).ravel(), n) for v in (low, high))
    return generator.uniform(low, high).astype(np.float32)


def _guided(samples: list[PolicyInput], manifest: Manifest) -> list[PolicyInput]:
    """Every second sample is guided towards its own state held still, with weights that fall linearly; of a trained
    policy it is the beginning, of every length in turn."""
    state = manifest.state
    if manifest.rtc is None or state is None:
        return samples
    n, width, longest = manifest.chunk_size, manifest.action.shape[0], manifest.rtc.max_delay
    weights = np.linspace(1, 0, n, dtype=np.float32)
    out = []
    for i, sample in enumerate(samples):
        if i % 2 and state.shape == (width,):
            if longest is not None:
                weights = (np.arange(n) < longest - i // 2 % longest).astype(np.float32)
            committed = np.tile(sample.observation.state, (n, 1))
            sample = PolicyInput(
                sample.observation, sample.grid_index, sample.past, RtcInputs(committed, weights)
            )
        out.append(sample)
    return out


def action_range(policy: Policy, manifest: Manifest) -> np.ndarray:
    """float64 (A,): how far each joint moved in training, robot units: what tolerances are a share of."""
    stats = policy.processors.stats.get(ACTION, {})
    n = manifest.action.shape[0]
    for low, high in (("min", "max"), ("q01", "q99")):
        if low in stats and high in stats and np.size(stats[low]) == n:
            width = np.asarray(stats[high], np.float64).ravel() - np.asarray(stats[low], np.float64).ravel()
            break
    else:
        std = np.asarray(stats["std"], np.float64).ravel() if "std" in stats else np.ones(n)
        width = 4 * np.resize(std, n)
    # A joint that never moved still gets the smallest range of those that did: its own would allow no rounding.
    moved = width[width > 1e-6 * max(1.0, float(width.max(initial=0.0)))]
    return np.maximum(width, moved.min() if moved.size else 1.0)

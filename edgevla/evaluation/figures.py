"""From predicted chunks and recorded actions to figures. Pure arithmetic; joints in the policy's order and units.

Errors are counted over the actions that `sync` executes, the first n_action_steps of each chunk, as far as the episode
goes; by horizon over the whole chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgevla.evaluation.plan import EvaluatedFrame

N_WORST = 10


@dataclass(frozen=True)
class Seams:
    """Where one chunk ends and the next begins: the jump between both, and the recorded step at the same frames.

    Arrays (A,), absolute values in joint units; NaN where n is 0.
    """

    n: int
    jump_mean: np.ndarray
    jump_max: np.ndarray
    step_mean: np.ndarray
    step_max: np.ndarray


@dataclass(frozen=True)
class Worst:
    """The largest error of a chunk. frame: of the observation. action: index in the chunk. share: of the range."""

    episode: int
    frame: int
    action: int
    joint: int
    predicted: float
    recorded: float
    share: float


@dataclass(frozen=True)
class Figures:
    """mae, rms: (A,). horizon: mean absolute error (T, A), NaN where no episode goes so far. by_episode: number ->
    (frames, mae (A,)). n_actions: so many were compared.
    """

    n_actions: int
    mae: np.ndarray
    rms: np.ndarray
    horizon: np.ndarray
    seams: Seams
    worst: tuple[Worst, ...]
    by_episode: dict[int, tuple[int, np.ndarray]]


@dataclass(frozen=True)
class Difference:
    """How far the chunks of two policies lie apart, (A,), over the actions that `sync` executes."""

    mean: np.ndarray
    largest: np.ndarray


def figures(
    frames: Sequence[EvaluatedFrame],
    chunks: np.ndarray,
    actions: np.ndarray,
    n_action_steps: int,
    width: np.ndarray,
) -> Figures:
    """chunks: (n, T, A), one per frame. actions: recorded (rows, A). width: range of each joint (A,), 0: it stands."""
    recorded, is_real = targets(frames, actions, chunks.shape[1])
    error = np.where(is_real[..., None], np.asarray(chunks, np.float64) - recorded, np.nan)
    executed = error[:, :n_action_steps]
    return Figures(
        n_actions=int(is_real[:, :n_action_steps].sum()),
        mae=_mean(np.abs(executed), (0, 1)),
        rms=np.sqrt(_mean(executed**2, (0, 1))),
        horizon=_mean(np.abs(error), (0,)),
        seams=_seams(frames, chunks, actions, n_action_steps),
        worst=_worst(frames, chunks, recorded, executed, width),
        by_episode=_by_episode(frames, executed),
    )


def difference(first: np.ndarray, other: np.ndarray, n_action_steps: int) -> Difference:
    """first, other: chunks (n, T, A) of the same frames; compared as far as both go."""
    n = min(first.shape[1], other.shape[1], n_action_steps)
    apart = np.abs(other[:, :n].astype(np.float64) - first[:, :n].astype(np.float64))
    return Difference(apart.mean((0, 1)), apart.max((0, 1)))


def targets(frames: Sequence[EvaluatedFrame], actions: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The recorded actions of each frame and the n - 1 after it (frames, n, A), and which lie in its episode."""
    rows = np.array([f.row for f in frames])[:, None] + np.arange(n)
    ends = np.array([f.end for f in frames])[:, None]
    return actions[np.minimum(rows, ends - 1)].astype(np.float64), rows < ends


def share(errors: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Errors (..., A) as shares of the joints' ranges; NaN for a joint that never moves."""
    return errors / np.where(width > 0, width, np.nan)


def mean_share(errors: np.ndarray, width: np.ndarray) -> np.ndarray:
    """The mean over joints of `share`, (...); joints that never move are left out."""
    moving = width > 0
    return _mean(share(errors, width)[..., moving], (-1,))


def _mean(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Mean without NaN; NaN where there is nothing else."""
    there = np.isfinite(values)
    n = there.sum(axes)
    return np.where(n > 0, np.where(there, values, 0).sum(axes) / np.maximum(n, 1), np.nan)


def _seams(
    frames: Sequence[EvaluatedFrame], chunks: np.ndarray, actions: np.ndarray, n_action_steps: int
) -> Seams:
    at = {(f.episode, f.frame): i for i, f in enumerate(frames)}
    pairs = [(i, at.get((f.episode, f.frame + n_action_steps))) for i, f in enumerate(frames)]
    found = [(i, j) for i, j in pairs if j is not None]
    if not found:
        nothing = np.full(chunks.shape[2], np.nan)
        return Seams(0, nothing, nothing, nothing, nothing)
    before, after = np.array(found).T
    jump = np.abs(chunks[after, 0].astype(np.float64) - chunks[before, n_action_steps - 1])
    rows = np.array([frames[j].row for j in after])
    step = np.abs(actions[rows].astype(np.float64) - actions[rows - 1])
    return Seams(len(found), jump.mean(0), jump.max(0), step.mean(0), step.max(0))


def _worst(
    frames: Sequence[EvaluatedFrame],
    chunks: np.ndarray,
    recorded: np.ndarray,
    error: np.ndarray,
    width: np.ndarray,
) -> tuple[Worst, ...]:
    """The chunks with the largest error as a share of range, one of each stretch of an episode: neighbours err alike."""
    shares = np.nan_to_num(share(np.abs(error), width), nan=-1.0)
    flat = shares.reshape(len(frames), -1)
    largest, place = flat.max(1), flat.argmax(1)
    found: list[Worst] = []
    for i in np.argsort(-largest, kind="stable"):
        frame = frames[i]
        is_new = all(
            w.episode != frame.episode or abs(w.frame - frame.frame) >= error.shape[1] for w in found
        )
        if largest[i] >= 0 and is_new:
            action, joint = divmod(int(place[i]), error.shape[2])
            pair = (float(chunks[i, action, joint]), float(recorded[i, action, joint]))
            found.append(Worst(frame.episode, frame.frame, action, joint, *pair, float(largest[i])))
        if len(found) == N_WORST:
            break
    return tuple(found)


def _by_episode(frames: Sequence[EvaluatedFrame], executed: np.ndarray) -> dict[int, tuple[int, np.ndarray]]:
    episodes = np.array([f.episode for f in frames])
    return {
        int(e): (int((episodes == e).sum()), _mean(np.abs(executed[episodes == e]), (0, 1)))
        for e in np.unique(episodes)
    }

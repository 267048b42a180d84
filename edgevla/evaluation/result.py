"""All that one evaluation found, before it is told as a table, as JSON, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgevla.evaluation.figures import Difference, Figures, difference, figures, mean_share
from edgevla.evaluation.overlap import Overlap
from edgevla.evaluation.plan import EvaluatedFrame
from edgevla.evaluation.replayed import Replay, actions_of, baselines, joint_ranges
from edgevla.evaluation.subjects import Subject

if TYPE_CHECKING:
    from edgevla.dataset.reader import Dataset


@dataclass(frozen=True)
class ResultRow:
    """One policy, or a baseline (subject None). chunks: (frames, T, A). difference: to the first policy; None: it is the
    first, or a baseline. chunk_ms: median of one inference with its prompt.
    """

    name: str
    chunks: np.ndarray
    n_action_steps: int
    figures: Figures
    subject: Subject | None = None
    overlap: Overlap | None = None
    difference: Difference | None = None
    chunk_ms: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """joints, units, width: of the actions, in the policy's order. actions: recorded (rows, A).

    every: of each episode's frames; n_planned: frames that were meant to be done. stopped: why it ended early.
    """

    dataset: Dataset
    joints: tuple[str, ...]
    units: tuple[str, ...]
    width: np.ndarray
    actions: np.ndarray
    frames: list[EvaluatedFrame]
    policies: list[ResultRow]
    baselines: list[ResultRow]
    every: int
    n_planned: int
    seed: int
    seconds: float
    stopped: str | None

    @property
    def entries(self) -> list[ResultRow]:
        """Policies, then baselines: the order of every table."""
        return [*self.policies, *self.baselines]

    @property
    def episodes(self) -> list[int]:
        """Numbers of the episodes of which a frame was done."""
        return sorted({f.episode for f in self.frames})

    def percent(self, errors: np.ndarray) -> np.ndarray:
        """The mean over joints of errors (..., A), as percent of the joints' ranges."""
        return 100 * mean_share(errors, self.width)


def evaluate(
    dataset: Dataset, done: Replay, overlaps: Sequence[Overlap], *, every: int, n_planned: int, seed: int
) -> Evaluation:
    """done: of at least one frame."""
    first = done.seats[0]
    sources, feature = first.sources, first.subject.manifest.action
    actions, width = actions_of(dataset, sources), joint_ranges(dataset, sources)
    policies: list[ResultRow] = []
    for seat, overlap in zip(done.seats, overlaps, strict=True):
        m, chunks = seat.subject.manifest, np.stack(seat.chunks)
        policies.append(
            ResultRow(
                seat.subject.name,
                chunks,
                m.n_action_steps,
                figures(done.frames, chunks, actions, m.n_action_steps, width),
                subject=seat.subject,
                overlap=overlap,
                difference=difference(policies[0].chunks, chunks, m.n_action_steps) if policies else None,
                chunk_ms=1e3 * float(np.median(seat.seconds)),
                seconds=sum(seat.seconds),
            )
        )
    n = first.subject.manifest.n_action_steps
    longest = max(p.chunks.shape[1] for p in policies)
    others = [
        ResultRow(name, chunks, n, figures(done.frames, chunks, actions, n, width))
        for name, chunks in baselines(dataset, done.frames, longest, sources).items()
    ]
    return Evaluation(
        dataset=dataset,
        joints=_unique(feature.names or tuple(map(str, range(feature.shape[0])))),
        units=tuple("" if u == "raw" else u for u in feature.units) or ("",) * feature.shape[0],
        width=width,
        actions=actions,
        frames=done.frames,
        policies=policies,
        baselines=others,
        every=every,
        n_planned=n_planned,
        seed=seed,
        seconds=done.seconds,
        stopped=done.stopped,
    )


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """What is no joint may be named twice; figures are kept by name."""
    return tuple(f"{n} {i}" if names.count(n) > 1 else n for i, n in enumerate(names))

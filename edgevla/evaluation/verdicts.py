"""The cells of one evaluation, as figures: shares with their intervals, what safety did, seams, delays, comparisons."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from edgevla.evaluation.episodes import Cell, Conditions, EpisodeJournal, EpisodeResult, names_of, slug_of
from edgevla.evaluation.statistics import Pairs, bootstrap, wilson

Interval = tuple[float, float]


@dataclass(frozen=True)
class Figure:
    """One number over many values. interval: 95 %, by drawing episodes; None: too few."""

    value: float
    interval: Interval | None


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values))


def _root_mean_square(values: np.ndarray) -> float:
    return math.sqrt(float(np.mean(np.square(values))))


def _p95(values: np.ndarray) -> float:
    return float(np.percentile(values, 95))


def _figure(groups: Sequence[Sequence[float]], of: Callable[[np.ndarray], float]) -> Figure | None:
    kept = [group for group in groups if len(group)]
    return Figure(of(np.concatenate(kept)), bootstrap(kept, of)) if kept else None


@dataclass(frozen=True)
class CellResult:
    """One cell. name, slug: for people, for files. episodes: in the order of their places. first: what it is compared
    with, None of the first itself."""

    cell: Cell
    name: str
    slug: str
    episodes: Sequence[EpisodeResult]
    first: CellResult | None = None

    @property
    def n(self) -> int:
        """Episodes."""
        return len(self.episodes)

    @property
    def n_success(self) -> int:
        """Episodes that succeeded."""
        return sum(e.success for e in self.episodes)

    @property
    def share(self) -> float:
        """Of successes, 0..1."""
        return self.n_success / self.n

    @property
    def interval(self) -> Interval:
        """Wilson's, 95 %."""
        return wilson(self.n_success, self.n)

    @property
    def outcomes(self) -> Counter[str]:
        """How often an episode ended in which way."""
        return Counter(e.outcome for e in self.episodes)

    @property
    def time_to_success_s(self) -> float | None:
        """Median of those that succeeded."""
        times = [e.time_to_success_s for e in self.episodes if e.time_to_success_s is not None]
        return float(np.median(times)) if times else None

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """What the task measures; what begins with `rms` as the root of the mean square, all else as the mean."""
        names = dict.fromkeys(name for e in self.episodes for name in e.figures)
        made = {}
        for name in names:
            of = _root_mean_square if name.startswith("rms") else _mean
            figure = _figure([[e.figures[name]] for e in self.episodes if name in e.figures], of)
            if figure is not None:
                made[name] = figure
        return made

    @property
    def clipped_share(self) -> float:
        """Of the ticks that a policy moved the arm."""
        return _ratio(sum(e.n_clipped for e in self.episodes), sum(e.n_ticks for e in self.episodes))

    @property
    def clipped(self) -> Counter[str]:
        """Ticks by reason and joint."""
        return sum((Counter(e.clipped) for e in self.episodes), Counter())

    @property
    def starved_share(self) -> float:
        """Share of ticks that had no action to carry out, 0..1."""
        return _ratio(sum(e.n_starved for e in self.episodes), sum(e.n_ticks for e in self.episodes))

    @property
    def n_inferences(self) -> float:
        """Per episode."""
        return sum(len(e.delays_ms) for e in self.episodes) / self.n

    @cached_property
    def seam_p95(self) -> Figure | None:
        """Jump between the last action of a chunk and the first of the next, 95th percentile."""
        return _figure([e.seams for e in self.episodes], _p95)

    @cached_property
    def within_p95(self) -> Figure | None:
        """Jump between neighbouring actions of one chunk, 95th percentile."""
        return _figure([e.within for e in self.episodes], _p95)

    @property
    def stopped(self) -> list[EpisodeResult]:
        """Those that the arm ended itself."""
        return [e for e in self.episodes if e.stopped]

    # -- against the first cell --------------------------------------------------------------------------------------

    @cached_property
    def pairs(self) -> Pairs | None:
        """Against the cell that it is compared with, on the places that both tried; None: none."""
        both = self._both()
        return Pairs.of([a.success for a, _ in both], [b.success for _, b in both]) if both else None

    @cached_property
    def differences(self) -> dict[str, Figure]:
        """Of the task's figures, this minus the first, place by place."""
        names = [name for name in self.figures if self.first is not None and name in self.first.figures]
        made = {}
        for name in names:
            found = [
                [b.figures[name] - a.figures[name]]
                for a, b in self._both()
                if name in a.figures and name in b.figures
            ]
            if figure := _figure(found, _mean):
                made[name] = figure
        return made

    def _both(self) -> list[tuple[EpisodeResult, EpisodeResult]]:
        """Episodes of the same place, of the first and of this."""
        if self.first is None:
            return []
        mine = {e.episode_ix: e for e in self.episodes}
        return [(e, mine[e.episode_ix]) for e in self.first.episodes if e.episode_ix in mine]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


@dataclass(frozen=True)
class Evaluated:
    """One evaluation, all of it. unit: of body joints. n_planned: episodes per cell. notes: sentences about cells.

    stopped: why it ended early. machine: where it was computed. command: as it was typed.
    """

    conditions: Conditions
    results: Sequence[CellResult]
    unit: str
    n_planned: int
    notes: Sequence[str]
    machine: dict[str, Any]
    command: str
    stopped: str | None = None


def results_of(cells: Sequence[Cell], journal: EpisodeJournal, n: int) -> list[CellResult]:
    """Of the first n places. Cells without an episode are left out."""
    results: list[CellResult] = []
    for cell, name in zip(cells, names_of(cells), strict=True):
        episodes = journal.of(cell, n)
        if episodes:
            first = results[0] if results else None
            results.append(CellResult(cell, name, slug_of(cell), episodes, first))
    return results

"""Which layers keep their precision, so that the rest can lose it: measured, by part and then by layer.

    everything lowered                passes? then nothing is kept
    each part lowered alone           parts in the order of what they cost; the worst are kept until the rest passes
    each layer of those parts alone   in the order of what it costs; of them as few are kept as will do (bisection)

4-bit weights are searched for twice: which layers bear 8 bits, and which of those bear 4.

What a subset costs is asked of `score`, which runs real frames. Time is bounded: layers that nobody came to measure
count as the worst, and are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .layers import CONTEXT, GraphLayer

Score = Callable[[frozenset[GraphLayer]], float]
"""Kept layers -> how far the joints are from float32's, as a multiple of the rule's limit: up to 1 is accepted."""
Say = Callable[[str], None]

EIGHT_BIT_SHARE = 0.7
"""How much of what is allowed the layers in 8 bits may take."""
SEARCH_S = 900.0
SAY_EVERY_S = 10.0


@dataclass(frozen=True)
class SearchResult:
    """kept: layers that are not lowered. parts, layers: what each costs when it alone is lowered, as far as it was
    measured, by name. everything: the score with nothing kept. in_time: whether all was measured.
    """

    kept: frozenset[GraphLayer]
    parts: dict[str, float]
    layers: dict[str, float]
    everything: float
    in_time: bool


@dataclass
class Search:
    layers: Sequence[GraphLayer]
    score: Score
    goal: float
    say: Say = lambda _: None
    limit_s: float = SEARCH_S
    clock: Callable[[], float] = time.monotonic
    _known: dict[frozenset[GraphLayer], float] = field(default_factory=dict)
    _parts: dict[str, float] = field(default_factory=dict)
    _alone: dict[str, float] = field(default_factory=dict)
    _in_time: bool = True

    def run(self) -> SearchResult:
        self._until = self.clock() + self.limit_s
        nothing: frozenset[GraphLayer] = frozenset()
        if self._score(nothing) <= self.goal:
            return self._found(nothing)
        self.say(f"all of it lowered is {_times(self._score(nothing))} the limit: measuring part by part")
        broken = self._broken_parts()
        return self._found(self._fewest(self._by_cost(broken)))

    def _broken_parts(self) -> list[GraphLayer]:
        """Layers of the parts that must not be lowered as a whole; the rest passes."""
        parts: dict[str, list[GraphLayer]] = {}
        for layer in self.layers:
            parts.setdefault(layer.part, []).append(layer)
        for name, own in parts.items():
            if self._has_time():
                self._parts[name] = self._score(frozenset(self.layers) - frozenset(own))
                self.say(f"{name} lowered alone: {_times(self._parts[name])} the limit")
        broken: list[GraphLayer] = []
        for name in _worst_first(parts, self._parts):
            broken += parts[name]
            if self._score(frozenset(broken)) <= self.goal:
                break
        return broken

    def _by_cost(self, layers: Sequence[GraphLayer]) -> list[GraphLayer]:
        said = self.clock()
        for i, layer in enumerate(layers):
            if not self._has_time():
                self.say(f"out of time: {len(layers) - i} layers that were not measured are kept")
                break
            self._alone[str(layer)] = self._score(frozenset(self.layers) - {layer})
            if self.clock() - said > SAY_EVERY_S:
                said = self.clock()
                self.say(f"layer {i + 1} of {len(layers)}: {layer} alone {_times(self._alone[str(layer)])}")
        by_name = {str(layer): layer for layer in layers}
        return [by_name[name] for name in _worst_first(by_name, self._alone)]

    def _fewest(self, ordered: Sequence[GraphLayer]) -> frozenset[GraphLayer]:
        """The first so many of them with which the rest passes; all of them do."""
        low, high = 0, len(ordered)  # fails with `low`, passes with `high`
        while high - low > 1 and self._has_time():
            middle = (low + high) // 2
            if self._score(frozenset(ordered[:middle])) <= self.goal:
                high = middle
            else:
                low = middle
        return frozenset(ordered[:high])

    def _has_time(self) -> bool:
        self._in_time = self._in_time and self.clock() < self._until
        return self._in_time

    def _score(self, kept: frozenset[GraphLayer]) -> float:
        if kept not in self._known:
            self._known[kept] = self.score(kept)
        return self._known[kept]

    def _found(self, kept: frozenset[GraphLayer]) -> SearchResult:
        return SearchResult(
            kept, dict(self._parts), dict(self._alone), self._score(frozenset()), self._in_time
        )


@dataclass(frozen=True)
class Choice:
    """What is not lowered as far as the precision goes. floats: layers that stay float32. eights: of int4, layers whose
    weights take 8 bits.
    """

    floats: frozenset[GraphLayer]
    eights: frozenset[GraphLayer] = frozenset()

    def of(self, graph: str) -> Choice:
        """What of it is in one graph."""
        floats, eights = (
            frozenset(layer for layer in layers if layer.graph in (graph, CONTEXT))
            for layers in (self.floats, self.eights)
        )
        return Choice(floats, eights)


@dataclass(frozen=True)
class LoweringOutcome:
    """found: the last search, at the bundle's own precision. alone: what layers that are not lowered as far cost alone,
    by name, at the precision that was searched for when they were left out.
    """

    choice: Choice
    found: SearchResult
    alone: dict[str, float]
    in_time: bool
    is_nothing_lowered: bool


class Choosing:
    """The search for one goal after another; what was measured is remembered. has_eights: int4."""

    def __init__(
        self, layers: Sequence[GraphLayer], score: Callable[[Choice], float], has_eights: bool, say: Say
    ) -> None:
        self.layers, self.score, self.has_eights, self.say = layers, score, has_eights, say
        every = frozenset(layers)
        self._coarse = Search(layers, lambda kept: score(Choice(kept, every - kept)), 1.0, say)
        self._fine: dict[frozenset[GraphLayer], Search] = {}

    def run(self, goal: float) -> LoweringOutcome:
        if not self.has_eights:
            return self._below(frozenset(), goal, None)
        self._coarse.goal = EIGHT_BIT_SHARE * goal
        coarse = self._coarse.run()
        if len(coarse.kept) == len(self.layers):
            return LoweringOutcome(Choice(coarse.kept), coarse, coarse.layers, coarse.in_time, True)
        return self._below(coarse.kept, goal, coarse)

    def _below(
        self, floats: frozenset[GraphLayer], goal: float, coarse: SearchResult | None
    ) -> LoweringOutcome:
        """Among layers that are not float32 already."""
        if floats not in self._fine:
            rest = [layer for layer in self.layers if layer not in floats]

            def score(kept: frozenset[GraphLayer]) -> float:
                return self.score(Choice(floats, kept) if self.has_eights else Choice(kept))

            self._fine[floats] = Search(rest, score, goal, self.say)
        search = self._fine[floats]
        search.goal = goal
        found = search.run()
        choice = Choice(floats, found.kept) if self.has_eights else Choice(found.kept)
        alone = {**(coarse.layers if coarse is not None else {}), **found.layers}
        in_time = found.in_time and (coarse is None or coarse.in_time)
        return LoweringOutcome(choice, found, alone, in_time, len(found.kept) == len(search.layers))


def _worst_first(names: Iterable[str], alone: dict[str, float]) -> list[str]:
    """What was not measured counts as the worst."""
    return sorted(names, key=lambda name: -alone.get(name, float("inf")))


def _times(score: float) -> str:
    return f"{score:.2g} times"

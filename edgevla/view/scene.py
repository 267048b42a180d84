"""A scene: what happened on one axis of time, wherever it is from. Figures, pictures, sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

UNIT_SIGNS = {"percent": "%", "range100": "-100..100", "unit": "0..1"}
"""How units are written beside an axis; others as they are called."""


class Pictures(Protocol):
    """Of one camera. times: float64 (n,), s, rising."""

    @property
    def times(self) -> np.ndarray: ...

    def at(self, rows: Sequence[int]) -> Iterator[np.ndarray]:
        """uint8 (H, W, 3) RGB of these of them, in order.

        Raises:
            DatasetError, UsageError: one is missing or damaged.
        """
        ...


@dataclass(frozen=True)
class TimeSeries:
    """Figures over time. times: float64 (n,), s. values: float64 (n, len(names)), NaN where there is none.

    units: one per name, as joints' units are called; empty where nobody said.
    """

    times: np.ndarray
    names: Sequence[str]
    values: np.ndarray
    units: Sequence[str]

    def column(self, name: str) -> np.ndarray | None:
        """float64 (n,); None: it has no such name."""
        return self.values[:, self.names.index(name)] if name in self.names else None


@dataclass(frozen=True)
class TimedSentence:
    """A sentence at a time (s). severity: as of an event."""

    time: float
    severity: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """How it ended. words: with who says so, where that is no person."""

    is_good: bool
    words: str


@dataclass(frozen=True)
class Scene:
    """name: short, for a file. title: in two lines, for a person. begun_ns: since 1970, at time 0; 0: not known.

    tables: what is measured or wanted -> its figures by joint; the first is drawn as what happened, the others over it.
    others: figures that are no joints'. outcome: None: nobody said. clock: what its time is called.
    """

    name: str
    title: str
    span: tuple[float, float]
    tables: Mapping[str, TimeSeries]
    cameras: Mapping[str, Pictures]
    begun_ns: int = 0
    outcome: Outcome | None = None
    others: Mapping[str, TimeSeries] = field(default_factory=dict)
    said: Sequence[TimedSentence] = ()
    clock: str = "time"

    @property
    def joints(self) -> list[str]:
        """Of all tables, in the order in which they name them."""
        return list(dict.fromkeys(name for table in self.tables.values() for name in table.names))

    def unit(self, joint: str) -> str:
        """As it is written for a person; empty where nobody said."""
        units = [t.units[t.names.index(joint)] for t in self.tables.values() if joint in t.names and t.units]
        named = next((unit for unit in units if unit), "")
        return UNIT_SIGNS.get(named, named)

"""Whether a policy was trained on the very episodes that it is evaluated on: errors there say little.

A bundle and our own checkpoints say which episodes of which data they were trained on, by number and by a hash of all
numbers in them. Only equal hashes say that two datasets are the same; a name does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgevla.dataset.chosen import episodes_text, parse_episodes
from edgevla.errors import EdgeVLAError
from edgevla.manifest_record import DatasetOrigin

if TYPE_CHECKING:
    from edgevla.dataset.reader import Dataset

Standing = Literal["held out", "trained on", "partly trained on", "other data", "unknown"]


@dataclass(frozen=True)
class Overlap:
    """standing: of the evaluated episodes. trained: those among them that the policy was trained on."""

    standing: Standing
    trained: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """Whether the policy has seen these episodes in training, in a sentence."""
        if self.standing == "held out":
            return "these episodes were not trained on: they are held out"
        if self.standing == "trained on":
            return "it was TRAINED ON these very episodes: errors here say little about anything new"
        if self.standing == "partly trained on":
            trained = episodes_text(self.trained)
            return (
                f"it was TRAINED ON episodes {trained} of these: errors there say little about anything new"
            )
        if self.standing == "other data":
            return "it was trained on other data than these, or these have changed since"
        return "nothing says whether it was trained on these episodes; errors on training episodes say little"


class Overlaps:
    """Judges every policy of one evaluation. dataset: as opened. n_all: episodes that there are. evaluated: numbers."""

    def __init__(self, dataset: Dataset, n_all: int, evaluated: Iterable[int]) -> None:
        self.dataset, self.n_all, self.evaluated = dataset, n_all, sorted(set(evaluated))
        self._hashes: dict[str, str | None] = {}

    def of(self, origin: DatasetOrigin | None) -> Overlap:
        """How the episodes stand to what a policy was trained on. origin: what its checkpoint says of that."""
        if origin is None or origin.episodes is None:
            return Overlap("unknown")
        if self._hash(origin.episodes) != origin.sha256:
            return Overlap("other data")
        trained = set(parse_episodes(origin.episodes, self.n_all))
        both = tuple(e for e in self.evaluated if e in trained)
        standing: Standing = (
            "held out"
            if not both
            else "trained on"
            if len(both) == len(self.evaluated)
            else "partly trained on"
        )
        return Overlap(standing, both)

    def _hash(self, text: str) -> str | None:
        """The hash of these episodes as they are now; None where there are none such."""
        from edgevla.dataset.reader import open_dataset

        if text not in self._hashes:
            try:
                numbers = parse_episodes(text, self.n_all)
                same = numbers == [e.index for e in self.dataset.episodes]
                opened = (
                    self.dataset
                    if same
                    else open_dataset(self.dataset.root, numbers, reading=self.dataset.reading)
                )
                self._hashes[text] = opened.sha256
            except EdgeVLAError:
                self._hashes[text] = None
        return self._hashes[text]

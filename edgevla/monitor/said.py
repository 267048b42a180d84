"""What was said: sentences with their clock time, and the part of them that a person looks at. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from edgevla.messages import Severity

KEPT = 1000
REPEATS = 4
"""Something that comes and goes says the same few sentences over and over: one line each, and a number."""


@dataclass(frozen=True)
class Sentence:
    """One sentence among the events. clock_s: seconds since 1970 at which it was said (last). n: how often it was said
    in a row, or alternating with a few others."""

    severity: Severity
    source: str
    text: str
    clock_s: float = 0.0
    n: int = 1

    def holds(self, words: str) -> bool:
        """Whether all the words are in it, in whatever case."""
        there = f"{self.source}: {self.text} {self.severity}".lower()
        return all(word in there for word in words.lower().split())


@dataclass
class Said:
    """All sentences, the oldest first, and how they are looked at.

    words: only sentences with these are shown. back: so many of the newest that would be shown are not: the view is
    scrolled back by them.
    """

    sentences: deque[Sentence] = field(default_factory=lambda: deque(maxlen=KEPT))
    words: str = ""
    back: int = 0

    def say(self, severity: Severity, source: str, text: str, clock_s: float = 0.0) -> None:
        said = Sentence(severity, source, text, clock_s)
        for before in list(self.sentences)[-REPEATS:]:
            if (before.source, before.text) == (source, text):
                self.sentences.remove(before)
                said = replace(said, n=before.n + 1)
                break
        else:
            if self.back and said.holds(self.words):  # what is being read stays where it is
                self.back += 1
        self.sentences.append(said)

    def __iter__(self) -> Iterator[Sentence]:
        return iter(self.sentences)

    def found(self) -> list[Sentence]:
        return [sentence for sentence in self.sentences if sentence.holds(self.words)]

    def look_for(self, words: str) -> None:
        self.words, self.back = words, 0

    def scroll(self, n: int) -> None:
        """n: towards the older ones."""
        self.back = min(max(0, self.back + n), max(0, len(self.found()) - 1))

"""How what is said fits a terminal: sentences are folded between words, tables are cut between columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

GAP = "  "


def folded(text: str, width: int | None) -> str:
    """Sentences on lines of at most this width; lines of a table stay as they are. None: nothing is folded."""
    if width is None:
        return text
    return "\n".join(_folded_line(line, width) for line in text.split("\n"))


def _folded_line(line: str, width: int) -> str:
    words = line.strip()
    if len(line) <= width or GAP in words or " " not in words:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        words,
        max(width, 20),
        initial_indent=indent,
        subsequent_indent=indent + GAP,
        break_long_words=False,
        break_on_hyphens=False,
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Lines. The first column is to the left and begins every part, where the width asks for several."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    made: list[str] = []
    for columns in _parts(widths, width):
        texts = [
            GAP.join(line[i].rjust(widths[i]) if i else line[i].ljust(widths[i]) for i in columns).rstrip()
            for line in lines
        ]
        made += [*([""] if made else []), texts[0], "-" * max(map(len, texts)), *texts[1:]]
    return made


def _parts(widths: Sequence[int], width: int | None) -> list[list[int]]:
    """Columns that stand side by side; every part begins with the first."""
    parts = [[0]]
    for i in range(1, len(widths)):
        taken = sum(widths[k] + len(GAP) for k in parts[-1]) + widths[i]
        if width is not None and taken > width and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(i)
    return parts

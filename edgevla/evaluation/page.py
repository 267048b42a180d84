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


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, n_left: int = 1
) -> list[list[str]]:
    """Parts of it, one where there is room, each of lines. The first n_left columns are to the left, figures to the
    right; the first column begins every part."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def cell(line: Sequence[str], i: int) -> str:
        return line[i].ljust(widths[i]) if i < n_left else line[i].rjust(widths[i])

    return [
        [GAP.join(cell(line, i) for i in part).rstrip() for line in lines] for part in _parts(widths, width)
    ]


def ruled(parts: Sequence[Sequence[str]]) -> list[str]:
    """Lines: a rule below every head, an empty line between parts."""
    made: list[str] = []
    for head, *rows in parts:
        made += [*([""] if made else []), head, "-" * max(map(len, (head, *rows))), *rows]
    return made


def indented(parts: Sequence[Sequence[str]]) -> list[str]:
    """Lines below a title: no rules, an empty line between parts."""
    return [
        line for k, part in enumerate(parts) for line in ([""] if k else []) + [GAP + row for row in part]
    ]


def _parts(widths: Sequence[int], width: int | None) -> list[list[int]]:
    """Columns that stand side by side; every part begins with the first."""
    parts = [[0]]
    for i in range(1, len(widths)):
        taken = sum(widths[k] + len(GAP) for k in parts[-1]) + widths[i]
        if width is not None and taken > width and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(i)
    return parts

"""Sentences on several rows, measured in cells: a wide character takes two."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from edgevla.monitor.panels.events import WRAPPED, wrapped


@pytest.mark.parametrize(
    "text", ["put the cube 把它放到盒子里 🚀 into the box", "把它放到盒子里把它放到盒子里"]
)
def test_nothing_of_a_sentence_of_wide_characters_is_lost(text: str) -> None:
    lines = wrapped(text, 11, 17)
    assert cell_len(lines[0]) <= 11
    assert all(cell_len(line) <= 17 for line in lines[1:])
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_what_needs_more_rows_ends_with_a_sign() -> None:
    lines = wrapped("把它 " * 100, 10, 20)
    assert len(lines) == WRAPPED
    assert lines[-1].endswith("…")
    assert all(cell_len(line) <= 20 for line in lines)


def test_a_place_of_one_cell_holds_something() -> None:
    assert wrapped("把ab", 1, 1)[-1]

"""Notes as tables: those of one type and the same keys share their keys, and equal neighbours compress to nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def as_tables(notes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A table per type and set of keys. rows: of which of the notes each row is; columns: key -> values."""
    tables: dict[tuple[str, ...], dict[str, Any]] = {}
    for k, note in enumerate(notes):
        keys = tuple(note)
        table = tables.setdefault(
            (str(note.get("type")), *keys), {"rows": [], "columns": {key: [] for key in keys}}
        )
        table["rows"].append(k)
        for key, values in table["columns"].items():
            values.append(note[key])
    return list(tables.values())


def as_notes(tables: Any) -> Iterator[dict[str, Any]]:
    """The inverse, in the order in which they were noted; nothing where the tables are damaged."""
    found = []
    try:
        for table in tables:
            for k, row in enumerate(table["rows"]):
                found.append((row, {key: values[k] for key, values in table["columns"].items()}))
        found.sort(key=lambda row: row[0])
    except (KeyError, TypeError, IndexError):
        return
    yield from (note for _, note in found)

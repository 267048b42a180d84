"""Reads a run's log: the flight log, or the JSON lines that came before it. Its folder is all that is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.errors import UsageError
from edgevla.flight.blocks import unpack
from edgevla.flight.notes import as_notes
from edgevla.flight.ticks import as_entries, unpack_ticks
from edgevla.flight.writer import FORMAT
from edgevla.messages import MODES

PARTS = ("run.1.flight", "run.flight")
OLD_PARTS = ("run.1.jsonl", "run.jsonl")


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (*PARTS, *OLD_PARTS))


def run_folder(path: Path) -> Path | None:
    """The run that is meant: its folder, a file in it, or a folder of runs, whose newest it is. None: no run."""
    if path.is_file() and path.name in (*PARTS, *OLD_PARTS):
        path = path.parent
    if path.is_file() and path.name == "latest":  # where links do not work
        path = path.parent / path.read_text().strip()
    for folder in (path, path / "latest"):
        if folder.is_dir() and is_run(folder):
            return folder.resolve()
    pointer = path / "latest"
    if pointer.is_file() and is_run(folder := path / pointer.read_text().strip()):
        return folder.resolve()
    return None


def entries(folder: Path) -> Iterator[dict[str, Any]]:
    """All that was noted, as the messages' fields with a `type`, part after part; within a block in order of time.

    Raises:
        UsageError: there is no log, nothing of it can be read, or it is of a newer format.
    """
    for content in _blocks(folder):
        if content.get("kind") == "header":
            yield {"type": "header", **content}
        elif content.get("kind") == "ticks":
            yield from _surely_entries(content)
        elif content.get("kind") == "notes":
            yield from as_notes(content.get("tables"))
    if not any((folder / name).is_file() for name in PARTS):
        for name in OLD_PARTS:
            yield from _lines(folder / name)


def _surely_entries(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        yield from as_entries(content)
    except (KeyError, TypeError, ValueError):
        return


def _blocks(folder: Path) -> Iterator[dict[str, Any]]:
    if not is_run(folder):
        raise UsageError(f"{folder} holds no run: neither run.flight nor run.jsonl; name a folder of --log")
    paths = [folder / name for name in PARTS if (folder / name).is_file()]
    is_empty = True
    for path in paths:
        for content in unpack(path.read_bytes()):
            if content.get("kind") == "header" and content.get("format") != FORMAT:
                raise UsageError(
                    f"{path} has the log format {content.get('format')}, this EdgeVLA reads {FORMAT}; read it with the "
                    f"EdgeVLA that wrote it ({content.get('edgevla')})"
                )
            is_empty = False
            yield content
    if paths and is_empty:
        raise UsageError(
            f"{folder}: nothing of its log can be read: it is damaged or empty (or the run begins just now); "
            "take it from a copy, or name another run"
        )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was killed
            if isinstance(entry, dict):
                yield entry


@dataclass
class Run:
    """A run's log in memory.

    ticks: column -> (n,) or (n, joints), by time; joints' values in `units`, NaN where there was none. mode: index into
    `MODES`. reasons: of each tick. begun_ns: monotonic, of the log's beginning; wall_ns: the clock's time then, 0 in
    old logs. notes: everything else by `type`, by time.
    """

    folder: Path
    ticks: dict[str, np.ndarray]
    reasons: list[str]
    notes: dict[str, list[dict[str, Any]]]
    about: dict[str, Any]
    joints: list[str]
    units: list[str]
    begun_ns: int
    wall_ns: int
    is_whole: bool
    is_old: bool
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def n_ticks(self) -> int:
        return len(self.ticks["tick"])

    def seconds(self, ns: Any) -> Any:
        """Run time of a monotonic moment."""
        return (np.asarray(ns, np.float64) - self.begun_ns) / 1e9


def load(folder: Path) -> Run:
    """
    Raises:
        UsageError: there is no log, nothing of it can be read, it is of a newer format, or of something else than a
            robot's run.
    """
    is_old = not any((folder / name).is_file() for name in PARTS)
    headers: list[dict[str, Any]] = []
    tables: list[dict[str, np.ndarray]] = []
    reasons: list[str] = []
    notes: dict[str, list[dict[str, Any]]] = {}
    about: dict[str, Any] = {}
    olds = [e for e in entries(folder)] if is_old else []
    for content in [] if is_old else _blocks(folder):
        if content.get("kind") == "header":
            headers.append(content)
            about.update(content.get("about") or {})
        elif content.get("kind") == "ticks":
            try:
                table = unpack_ticks(content)
                reasons += [content["texts"][k] for k in table["reason"]]
            except (KeyError, TypeError, ValueError, IndexError):
                continue
            tables.append(table)
        elif content.get("kind") == "notes":
            for entry in as_notes(content.get("tables")):
                notes.setdefault(entry.get("type", ""), []).append(entry)
    if is_old:
        table, reasons = _old_ticks([e for e in olds if e.get("type") == "state"])
        tables = [table]
        for entry in olds:
            if entry.get("type") != "state":
                notes.setdefault(entry.get("type", ""), []).append(entry)
        if not len(table["tick"]) and not notes.keys() & {"event", "servo_health"}:
            raise UsageError(f"{folder} is not a robot's run: its log has other lines (a policy server's?)")
    d = max((t["position"].shape[1] for t in tables), default=0)
    tables = [t for t in tables if t["position"].shape[1] == d]
    names = tables[0].keys() if tables else _old_ticks([])[0].keys()
    empty = _old_ticks([])[0]
    ticks = {k: np.concatenate([t[k] for t in tables]) if tables else empty[k] for k in names}
    joints = list(about.get("joints") or [f"number {k + 1}" for k in range(d)])[:d]
    units = list(about.get("units") or [""] * d)[:d]
    first = headers[0] if headers else {}
    begun = first.get("monotonic_ns")
    if begun is None:
        known = [*ticks["observed_ns"][:1].tolist(), *(e["observed_ns"] for e in notes.get("event", [])[:1])]
        begun = min(known, default=0)
    return Run(
        folder,
        ticks,
        reasons,
        notes,
        about,
        [name.removesuffix(".pos") for name in joints],
        units,
        int(begun),
        int(first.get("wall_ns", 0)),
        "summary" in notes,
        is_old,
        (notes.get("summary") or [{}])[-1],
    )


COLUMNS = ("tick", "deadline_ns", "late_ns", "t0_ns", "step_ns", "chunk_seq", "n_actions_left", "observed_ns")


def _old_ticks(states: list[dict[str, Any]]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Of a log in lines, which has grid moments and odd ticks only."""
    n, d = len(states), len(states[0]["position"]) if states else 0
    made: dict[str, np.ndarray] = {
        name: np.array([-1 if s.get(name) is None else s[name] for s in states], np.int64) for name in COLUMNS
    }
    made["mode"] = np.array([MODES.index(s["mode"]) for s in states], np.int64)
    made["action_index"] = np.array([s["action_index"] or 0 for s in states], float)
    for name in ("position", "wanted", "goal", "limited_by", "position_age_us"):
        rows = [
            [np.nan] * d if s[name] is None else [np.nan if v is None else v for v in s[name]] for s in states
        ]
        made[name] = np.array(rows, float).reshape(n, d)
    made["limited_by"] = made["limited_by"].astype(np.int64)
    return made, [s.get("reason", "") for s in states]

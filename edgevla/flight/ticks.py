"""The ticks of the control loop as columns, and back. What is kept of a tick, how exactly, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgevla.flight.blocks import as_floats, as_ints, pack_ints, unpack_ints
from edgevla.messages import MODES, Message, State

QUANTA = {"deg": 1e-3, "percent": 1e-3, "range100": 1e-3, "rad": 1e-5, "unit": 1e-5, "m": 1e-6}
"""Unit of a joint -> smallest difference that the log tells apart: far below a servo's own step."""
ANY_QUANTUM = 1e-4
"""Where the units are not known."""
SCALARS = (
    "tick",
    "deadline_ns",
    "late_ns",
    "t0_ns",
    "step_ns",
    "mode",
    "chunk_seq",
    "action_index",
    "n_actions_left",
    "reason",
    "task",
    "seq",
    "delay_ns",
)
"""Columns before the joints'. chunk_seq: -1 none; reason, task: index into the block's texts; delay_ns: observed after
the deadline."""
VECTORS = ("position", "wanted", "goal", "limited_by", "position_age_us")
TIME_NS, AGE_US, INDEX = 10_000, 100, 1e-3
"""To this lateness and delay are kept; ages; the index within a chunk."""


def pack_ticks(messages: Sequence[Message[State]], quanta: Sequence[float]) -> dict[str, Any]:
    """Ticks of one robot as the content of a block. quanta: one per joint."""
    states = [m.body for m in messages]
    n, d = len(states), len(states[0].position)
    texts: dict[str, int] = {}
    rows = np.zeros((n, len(SCALARS)), np.int64)
    for row, m, s in zip(rows, messages, states, strict=True):
        index = as_ints([s.action_index], INDEX)[0]
        row[:] = (
            s.tick,
            s.deadline_ns,
            s.late_ns // TIME_NS,
            s.t0_ns,
            s.step_ns,
            MODES.index(s.mode),
            -1 if s.chunk_seq is None else s.chunk_seq,
            index,
            s.n_actions_left,
            texts.setdefault(s.reason, len(texts)),
            texts.setdefault(s.task, len(texts)),
            m.seq,
            (m.observed_ns - s.deadline_ns) // TIME_NS,
        )
    nothing = np.full(d, np.nan, np.float32)
    quantum = np.asarray(quanta, np.float64)
    wanted = as_ints([nothing if s.wanted is None else s.wanted for s in states], quantum)
    columns = [
        rows,
        as_ints([s.position for s in states], quantum),
        wanted,
        as_ints([s.goal for s in states], quantum) - wanted,
        np.array([s.limited_by for s in states], np.int64),
        np.diff(
            np.array([s.position_age_us for s in states], np.int64) // AGE_US, prepend=np.int64(0), axis=1
        ),
    ]
    return {
        "kind": "ticks",
        "n": n,
        "joints": d,
        "quanta": [float(q) for q in quantum],
        "texts": list(texts),
        "columns": pack_ints(np.concatenate(columns, axis=1)),
    }


def unpack_ticks(content: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Column -> int64 or float64 (n,) or (n, joints); `reason`, `task`, `mode` as numbers with their `texts` beside.

    Raises:
        ValueError, KeyError, TypeError: the block is damaged.
    """
    n, d, quantum = int(content["n"]), int(content["joints"]), np.array(content["quanta"], float)
    made = unpack_ints(content["columns"], n, len(SCALARS) + len(VECTORS) * d)
    columns: dict[str, np.ndarray] = {name: made[:, k] for k, name in enumerate(SCALARS)}
    for k, name in enumerate(VECTORS):
        columns[name] = made[:, len(SCALARS) + k * d : len(SCALARS) + (k + 1) * d]
    columns["goal"] = as_floats(columns["goal"] + columns["wanted"], quantum)
    for name in ("position", "wanted"):
        columns[name] = as_floats(columns[name], quantum)
    columns["position_age_us"] = np.cumsum(columns["position_age_us"], axis=1) * AGE_US
    columns["late_ns"] = columns["late_ns"] * TIME_NS
    columns["observed_ns"] = columns["deadline_ns"] + columns.pop("delay_ns") * TIME_NS
    columns["action_index"] = as_floats(columns["action_index"], INDEX)
    return columns


def as_entries(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The ticks of a block one by one, as messages' fields; None where there was no number."""
    columns, texts = unpack_ticks(content), content["texts"]
    for k in range(int(content["n"])):
        entry: dict[str, Any] = {"type": "state", "source": "robot"}
        for name, column in columns.items():
            value = column[k]
            entry[name] = _plain(value)
        entry["mode"] = MODES[entry["mode"]]
        entry["reason"], entry["task"] = texts[entry["reason"]], texts[entry["task"]]
        entry["chunk_seq"] = None if entry["chunk_seq"] < 0 else entry["chunk_seq"]
        if all(v is None for v in entry["wanted"]):
            entry["wanted"] = None
        yield entry


def _plain(value: np.ndarray | np.generic) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value]
    plain = value.item()
    return plain if not isinstance(plain, float) else round(plain, 6) if np.isfinite(plain) else None

"""What was out of the ordinary in a run, found in its log: jumps, clips, waiting, late chunks, the bus, events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevla.flight.reader import Run
from edgevla.messages import MODES

LIMIT, RATE, STALE, FOLLOWING, SERVO = 2, 4, 16, 32, 64
"""Bits of `limited_by` (robots/safety.py)."""
CLIPPED_BY = {
    LIMIT: "the joint's limit",
    RATE: "the speed cap",
    FOLLOWING: "the following error's watch",
    SERVO: "the servo's own protection",
}
N_OF_A_KIND = 5
"""The worst of each kind that are told; the rest is counted."""
N_NUMBERED = 9
LEAST_JUMP = 0.25
"""Share of what the joint's top speed allows in one tick, below which a jump is none."""
MEASURED = 2.5
"""Times its top speed at which a measured joint moved faster than any motor."""
TOGETHER_S = 0.25
"""Clipped ticks closer than this are one."""
LATE_SHARE = 0.5
"""Of a period by which a tick comes late."""


@dataclass(frozen=True)
class RunFinding:
    """kind: `seam`, `jump` (within a chunk), `measured`, `clip`, `stale`, `unread`, `late_tick`, `late_chunk`, `bus`,
    `chunks`, `lost`, `event`. size: how bad, comparable within the kind. joint: its index, or None. fields: for words.
    """

    kind: str
    ns: int
    until_ns: int
    size: float
    joint: int | None
    fields: dict[str, Any]


def find(run: Run) -> list[RunFinding]:
    """By time; of each kind the worst."""
    kinds = (jumps, measured, clips, stale, unread, late_ticks, late_chunks, counted, events)
    found = [f for kind in kinds for f in kind(run)]
    return sorted(found, key=lambda f: f.ns)


def numbered(found: list[RunFinding]) -> list[tuple[int, RunFinding]]:
    """The largest jumps with their numbers, by time: as the picture and the words name them."""
    jumped = sorted((f for f in found if f.kind in ("seam", "jump", "measured")), key=lambda f: -f.size)
    return list(enumerate(sorted(jumped[:N_NUMBERED], key=lambda f: f.ns), 1))


def period_ns(run: Run) -> float:
    steps = np.diff(run.ticks["deadline_ns"])
    steps = steps[steps > 0]
    return float(np.median(steps)) if len(steps) else 1e9 / 120


def reach(run: Run) -> np.ndarray:
    """(joints,) What each joint's top speed allows in one tick; where no speed is known, a hundredth of its movement."""
    d, known = len(run.joints), run.about.get("max_velocity")
    if known is not None and len(known) == d:
        return np.array(known, float) * period_ns(run) / 1e9
    position = run.ticks["position"]
    seen = np.nanmax(position, axis=0) - np.nanmin(position, axis=0) if run.n_ticks else np.ones(d)
    return np.maximum(np.nan_to_num(seen, nan=1.0), 1e-3) / 100


# -- jumps --------------------------------------------------------------------------------------------------


def jumps(run: Run) -> list[RunFinding]:
    """Where what was wanted left its course in one tick: at seams, and within chunks."""
    t = run.ticks
    if run.n_ticks < 3 or run.is_old:
        return []  # an old log has grid moments only
    step = np.diff(t["wanted"], axis=0)
    follows = (np.diff(t["deadline_ns"]) < 1.5 * period_ns(run)) & (t["mode"][1:] == MODES.index("running"))
    before = np.vstack([np.full((1, step.shape[1]), np.nan), step[:-1]])
    before[1:][~follows[:-1]] = np.nan
    bend = np.where(follows[:, None], step - np.nan_to_num(before), np.nan)
    share = np.nan_to_num(np.abs(bend) / reach(run))
    joint, worst = share.argmax(axis=1), share.max(axis=1)
    is_seam = (t["chunk_seq"][1:] != t["chunk_seq"][:-1]) & (t["chunk_seq"][:-1] >= 0)
    # The tick after a jump bends back; it is no jump of its own.
    here, past = bend[np.arange(len(bend)), joint], np.roll(bend, 1, axis=0)[np.arange(len(bend)), joint]
    is_echo = (here * past < 0) & (np.abs(past) > np.abs(here) / 2)
    found = []
    for kind, where in (("seam", is_seam), ("jump", ~is_seam & ~is_echo)):
        rows = np.flatnonzero(where & (worst > LEAST_JUMP))
        for k in rows[np.argsort(-worst[rows], kind="stable")][:N_OF_A_KIND]:
            found.append(_jump(run, kind, int(k), int(joint[k]), float(worst[k]), step, len(rows)))
    return found


def _jump(run: Run, kind: str, k: int, joint: int, size: float, step: np.ndarray, n: int) -> RunFinding:
    t = run.ticks
    bits = int(t["limited_by"][k + 1, joint])
    sent = float(t["goal"][k + 1, joint] - t["goal"][k, joint])
    chunks = (int(t["chunk_seq"][k]), int(t["chunk_seq"][k + 1]))
    fields = {
        "by": float(step[k, joint]),
        "before": float(step[k - 1, joint]) if k else float("nan"),
        "sent": sent,
        "bits": bits,
        "chunks": chunks,
        "action": float(t["action_index"][k + 1]),
        "n": n,
        "skipped": float(t["action_index"][k + 1]),
    }
    ns = int(t["deadline_ns"][k + 1])
    return RunFinding(kind, ns, ns, size, joint, fields)


def measured(run: Run) -> list[RunFinding]:
    """Where a joint was read somewhere it cannot have gone: a push, a slipped gear, another zero, a wrong reading."""
    t, found = run.ticks, []
    if run.n_ticks < 2 or run.is_old:
        return []  # whose joints' top speeds are not known
    top = reach(run) / (period_ns(run) / 1e9)
    read_ns = t["observed_ns"][:, None] - t["position_age_us"] * 1000
    for j in range(len(run.joints)):
        position = t["position"][:, j]
        rows = np.flatnonzero(np.isfinite(position))
        rows = rows[np.concatenate([[True], np.diff(position[rows]) != 0])] if len(rows) else rows
        if len(rows) < 2:
            continue
        moved = np.diff(position[rows])
        spent = np.diff(read_ns[rows, j]) / 1e9
        # A joint at rest was still there one tick before it was read elsewhere.
        at_rest = np.diff(rows) > 1
        fresh = read_ns[rows[1:], j] - read_ns[rows[1:] - 1, j]
        spent = np.where(at_rest & (fresh > 0), np.minimum(spent, fresh / 1e9), spent)
        share = np.abs(moved) / (top[j] * np.maximum(spent, period_ns(run) / 1e9))
        for i in np.flatnonzero(share > MEASURED):
            k = int(rows[i + 1])
            goal = float(t["goal"][k, j] - t["goal"][k - 1, j])
            fields = {
                "by": float(moved[i]),
                "goal": 0.0 if np.isnan(goal) else goal,
                "to": float(position[k]),
                "spent_s": float(spent[i]),
            }
            found.append(
                RunFinding(
                    "measured", int(t["observed_ns"][k]), int(t["observed_ns"][k]), float(share[i]), j, fields
                )
            )
    return _worst(found)


# -- clips, waiting -----------------------------------------------------------------------------------------


def clips(run: Run) -> list[RunFinding]:
    """Per joint and limit, the longest times for which safety changed what was wanted."""
    t, found = run.ticks, []
    is_running = t["mode"] == MODES.index("running")
    for j in range(len(run.joints)):
        for bit in CLIPPED_BY:
            rows = np.flatnonzero(is_running & (t["limited_by"][:, j] & bit != 0))
            for first, last, n in _together(t["deadline_ns"], rows):
                gap = np.abs(t["wanted"][first : last + 1, j] - t["goal"][first : last + 1, j])
                most = float(np.nanmax(gap)) if np.isfinite(gap).any() else 0.0
                fields = {"bit": bit, "ticks": n, "gap": most}
                found.append(RunFinding("clip", *_span(t, first, last), float(n), j, fields))
    return _worst(found)


def stale(run: Run) -> list[RunFinding]:
    """The longest times at which the arm was past its last action."""
    t = run.ticks
    is_running = t["mode"] == MODES.index("running")
    rows = np.flatnonzero(is_running & (t["n_actions_left"] == 0) & (t["chunk_seq"] >= 0))
    found = []
    for first, last, n in _together(t["deadline_ns"], rows):
        # The last action itself takes a step; only what lies beyond it is waiting.
        if t["deadline_ns"][last] - t["deadline_ns"][first] > t["step_ns"][first]:
            fields = {"ticks": n, "chunk": int(t["chunk_seq"][first])}
            found.append(RunFinding("stale", *_span(t, first, last), float(n), None, fields))
    return _worst(found)


def unread(run: Run) -> list[RunFinding]:
    """The longest times at which joints were not heard, so that their goals were withheld."""
    t, found = run.ticks, []
    withheld = t["limited_by"] & STALE != 0
    for first, last, n in _together(t["deadline_ns"], np.flatnonzero(withheld.any(axis=1))):
        joints = np.flatnonzero(withheld[first : last + 1].any(axis=0)).tolist()
        age_ms = float(t["position_age_us"][first : last + 1].max() / 1000)
        fields = {"ticks": n, "joints": joints, "age_ms": age_ms}
        found.append(RunFinding("unread", *_span(t, first, last), float(n), None, fields))
    return _worst(found)


def late_ticks(run: Run) -> list[RunFinding]:
    t, period = run.ticks, period_ns(run)
    on = np.isin(t["mode"], [MODES.index("running"), MODES.index("holding")])
    rows = np.flatnonzero(on & (t["late_ns"] > LATE_SHARE * period))
    found = []
    for first, last, n in _together(t["deadline_ns"], rows):
        worst = float(t["late_ns"][first : last + 1].max() / 1e6)
        found.append(RunFinding("late_tick", *_span(t, first, last), worst, None, {"ms": worst, "ticks": n}))
    return _worst(found)


def late_chunks(run: Run) -> list[RunFinding]:
    """Chunks that came much later after their observation than most."""
    chunks = run.notes.get("chunk", [])
    spent = np.array([c["sent_ns"] - c["observed_ns"] for c in chunks], float) / 1e6
    if len(spent) < 3:
        return []
    usual, found = float(np.median(spent)), []
    for chunk, ms in zip(chunks, spent, strict=True):
        if ms > 3 * usual and ms > usual + 20:
            parts = {k: v / 1e6 for k, v in chunk["timing_ns"].items() if v > 0}
            fields = {"ms": float(ms), "usual": usual, "chunk": chunk["request_id"], "parts": parts}
            found.append(
                RunFinding(
                    "late_chunk", int(chunk["observed_ns"]), int(chunk["sent_ns"]), float(ms), None, fields
                )
            )
    return _worst(found)


# -- what was counted and said ------------------------------------------------------------------------------

COUNTED = {
    "bus_lost": "bus",
    "bus_corrupt": "bus",
    "chunks_late": "chunks",
    "chunks_unasked": "chunks",
    "infer_expired": "chunks",
    "inferences_failed": "chunks",
}


def counted(run: Run) -> list[RunFinding]:
    """When counters of losses rose most, between two heartbeats (a fifth of a second)."""
    past: dict[tuple[str, str], int] = {}
    found: dict[str, list[RunFinding]] = {}
    for note in run.notes.get("counters", []):
        for name, value in note["counters"].items():
            key = (note["source"], name)
            risen, past[key] = value - past.get(key, 0), value
            kind = "lost" if name.startswith(("lost_", "wire_", "unsent_")) else COUNTED.get(name)
            if kind is None or risen <= 0:
                continue
            ns = int(note["observed_ns"])
            fields = {"name": name, "source": note["source"], "risen": risen, "total": value}
            found.setdefault(name, []).append(RunFinding(kind, ns, ns, float(risen), None, fields))
    return [f for several in found.values() for f in sorted(several, key=lambda f: -f.size)[:3]]


def events(run: Run) -> Iterator[RunFinding]:
    """Each once in its own words; the same code again and again only the first time, with the number."""
    notes = run.notes.get("event", [])
    n: dict[tuple[str, str], int] = {}
    for note in notes:
        n[note["source"], note["code"]] = n.get((note["source"], note["code"]), 0) + 1
    told: set[tuple[str, str]] = set()
    for note in notes:
        key = (note["source"], note["code"])
        if key in told and n[key] > N_OF_A_KIND:
            continue
        told.add(key)
        fields = {**note, "again": n[key] - 1 if n[key] > N_OF_A_KIND else 0}
        yield RunFinding("event", int(note["observed_ns"]), int(note["observed_ns"]), 1.0, None, fields)


def _worst(found: list[RunFinding]) -> list[RunFinding]:
    kept = sorted(found, key=lambda f: -f.size)[:N_OF_A_KIND]
    for finding in kept:
        finding.fields.setdefault("n", len(found))
    return kept


def _together(deadline_ns: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(first, last, how many) of rows that follow each other closely."""
    if not len(rows):
        return
    cuts = np.flatnonzero(np.diff(deadline_ns[rows]) > TOGETHER_S * 1e9) + 1
    for group in np.split(rows, cuts):
        yield int(group[0]), int(group[-1]), len(group)


def _span(ticks: dict[str, np.ndarray], first: int, last: int) -> tuple[int, int]:
    return int(ticks["deadline_ns"][first]), int(ticks["deadline_ns"][last])

"""A run told in sentences, by time; and one moment of it."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np

from edgevla.errors import UsageError
from edgevla.flight.findings import CLIPPED_BY, RunFinding
from edgevla.flight.reader import Run
from edgevla.messages import MODES

UNITS = {"deg": " deg", "rad": " rad", "percent": " %", "range100": " of 100", "m": " m"}
NAMES = {
    "bus_lost": "answers of servos were lost",
    "bus_corrupt": "answers of servos were damaged",
    "chunks_late": "chunks came after all of their actions were past",
    "chunks_unasked": "chunks came for which nobody waited any more",
    "infer_expired": "requests were not answered in time",
    "inferences_failed": "inferences failed",
}
AROUND_S = 0.5


def stamp(run: Run, ns: float) -> str:
    """`00:12.345`, run time."""
    seconds = max(0.0, float(run.seconds(ns)))
    hours, rest = divmod(seconds, 3600)
    return (f"{hours:.0f}:" if hours else "") + f"{rest // 60:02.0f}:{rest % 60:06.3f}"


def clock(run: Run, ns: float) -> str:
    """`14:25:07`; empty where the log does not know."""
    if not run.wall_ns:
        return ""
    return time.strftime("%H:%M:%S", time.localtime((run.wall_ns + ns - run.begun_ns) / 1e9))


def amount(run: Run, joint: int, value: float) -> str:
    unit = run.units[joint]
    digits = 4 if unit in ("rad", "m", "unit") else 1 if abs(value) >= 1 else 2
    return f"{value:.{digits}f}{UNITS.get(unit, '')}"


def sentence(run: Run, f: RunFinding) -> str:
    """What happened, in words that begin with the time."""
    return f"{f'{clock(run, f.ns)}  ' if run.wall_ns else ''}{stamp(run, f.ns)}  {told(run, f)}"


def told(run: Run, f: RunFinding) -> str:
    return TOLD[f.kind](run, f, f.fields)


def _seam(run: Run, f: RunFinding, x: dict[str, Any]) -> str:
    assert f.joint is not None
    words = f"joint {run.joints[f.joint]} was told to move {amount(run, f.joint, x['by'])} in one tick"
    words += f" (the tick before {amount(run, f.joint, x['before'])})" if np.isfinite(x["before"]) else ""
    if f.kind == "seam":
        words += f": the seam between chunk {x['chunks'][0]} and {x['chunks'][1]}"
        words += f", which begins at its action {x['action']:.1f}" if x["action"] >= 1 else ""
    else:
        words += f": within chunk {x['chunks'][1]}, between its actions {int(x['action'])} and {int(x['action']) + 1}"
    held = [name for bit, name in CLIPPED_BY.items() if x["bits"] & bit]
    if held and np.isfinite(x["sent"]) and not run.about.get("is_shadow"):
        words += f"; {held[0]} let {amount(run, f.joint, x['sent'])} of it through"
    elif held:
        words += f"; {held[0]} held it back"
    return words


def _measured(run: Run, f: RunFinding, x: dict[str, Any]) -> str:
    assert f.joint is not None
    return (
        f"joint {run.joints[f.joint]} was measured {amount(run, f.joint, x['by'])} further within "
        f"{x['spent_s'] * 1000:.0f} ms, while its goal moved {amount(run, f.joint, x['goal'])}: not the policy; a push, "
        "the servo, its gear or its reading"
    )


def _clip(run: Run, f: RunFinding, x: dict[str, Any]) -> str:
    assert f.joint is not None
    joint, is_shadow = run.joints[f.joint], bool(run.about.get("is_shadow"))
    size = "" if is_shadow else f", by up to {amount(run, f.joint, x['gap'])}"
    return (
        f"{CLIPPED_BY[x['bit']]} {'would have ' * is_shadow}changed the goals of {joint} in {x['ticks']} "
        f"tick{'s' * (x['ticks'] != 1)} ({_spent(f)}){size}"
    )


def _stale(run: Run, f: RunFinding, x: dict[str, Any]) -> str:
    after = f" after chunk {x['chunk']}" if x["chunk"] >= 0 else ""
    then = "the policy wanted nothing" if run.about.get("is_shadow") else "the arm kept its last goal"
    return f"no fresh action{after}: {then} for {_spent(f)}"


def _unread(run: Run, f: RunFinding, x: dict[str, Any]) -> str:
    names = [run.joints[j] for j in x["joints"]]
    who = "any joint" if len(names) == len(run.joints) > 1 else ", ".join(names)
    ticks = "1 tick" if x["ticks"] == 1 else f"{x['ticks']} ticks"
    old = f", the last known one {x['age_ms']:.0f} ms old" if x["age_ms"] >= 1 else ""
    return f"no new position of {who} in {ticks}{old}: goals were withheld"


def _late_tick(run: Run, f: RunFinding, x: dict[str, Any]) -> str:
    several = (
        f"{x['ticks']} ticks of the control loop came late, up to" if x["ticks"] > 1 else "a tick came late,"
    )
    return f"{several} {x['ms']:.1f} ms"


def _late_chunk(run: Run, f: RunFinding, x: dict[str, Any]) -> str:
    part, ms = max(x["parts"].items(), key=lambda item: item[1], default=("", 0.0))
    most = f", of which {ms:.0f} ms were {part}" if ms else ""
    return (
        f"chunk {x['chunk']} came {x['ms']:.0f} ms after its observation (usually {x['usual']:.0f} ms){most}"
    )


def _counted(run: Run, f: RunFinding, x: dict[str, Any]) -> str:
    what = NAMES.get(x["name"], f"messages were lost or refused ({x['name']})")
    return f"within 0.2 s {x['risen']} {what}, heard by {x['source']}; {x['total']} so far"


def _event(run: Run, f: RunFinding, x: dict[str, Any]) -> str:
    again = f" ({x['again']} times more)" if x["again"] else ""
    mark = {"warning": "! ", "error": "!! ", "stop": "!! "}.get(x["severity"], "")
    return f"{mark}{x['source']}: {x['text']}{again}"


TOLD = {
    "seam": _seam,
    "jump": _seam,
    "measured": _measured,
    "clip": _clip,
    "stale": _stale,
    "unread": _unread,
    "late_tick": _late_tick,
    "late_chunk": _late_chunk,
    "bus": _counted,
    "chunks": _counted,
    "lost": _counted,
    "event": _event,
}


def _spent(f: RunFinding) -> str:
    seconds = (f.until_ns - f.ns) / 1e9
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1000:.0f} ms"


# -- the whole run ------------------------------------------------------------------------------------------


def heading(run: Run) -> list[str]:
    about, t = run.about, run.ticks
    # The log may have begun before; ticks and events tell how far it goes.
    last = max([run.begun_ns, *t["observed_ns"][-1:].tolist(), *_last(run, "event"), *_last(run, "chunk")])
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.wall_ns / 1e9)) if run.wall_ns else ""
    lines = [
        f"{run.folder}: {' '.join([about.get('robot', 'a robot'), when]).strip()}, {run.seconds(last):.1f} s"
    ]
    if about.get("bundle"):
        kind = (about.get("execution") or {}).get("kind", "")
        lines.append(f"  {about['bundle']} ({str(about.get('policy_sha256'))[:12]}), {kind}")
    lines.append(f"  {run.n_ticks} ticks, {len(run.notes.get('chunk', []))} chunks")
    if about.get("is_shadow"):
        by_whom = "a leader arm moved the arm" if about.get("is_led") else "nothing was sent to the arm"
        lines.append(f"  SHADOW: {by_whom}; what safety did is what it would have done to the policy's goals")
    if run.is_old:
        lines.append(
            "  a log in lines of an earlier EdgeVLA: policy steps only, so jumps within them are not seen"
        )
    elif not run.is_whole:
        lines.append("  the log has no end: the run was killed, or its disk was full")
    n_lost = sum(note["n"] for note in run.notes.get("lost_blocks", [])[-1:])
    if n_lost:
        lines.append(f"  {n_lost} parts of the log are missing: the disk was too slow")
    return lines


def _last(run: Run, kind: str) -> list[int]:
    return [int(note["observed_ns"]) for note in run.notes.get(kind, [])[-1:]]


def worst(run: Run, found: list[RunFinding]) -> str:
    """The one sentence for who asks why it twitched; empty where nothing jumped."""
    jumped = [f for f in found if f.kind in ("seam", "jump", "measured")]
    if not jumped:
        return ""
    # A measured leap is against a motor's top speed as a wanted one is: their sizes can be compared.
    f = max(jumped, key=lambda f: f.size)
    return f"at {stamp(run, f.ns)} {told(run, f)}"


# -- one moment ---------------------------------------------------------------------------------------------


def moment(run: Run, text: str) -> int:
    """Monotonic ns of `12.3`, `00:12.3`, `1:02:03`: run time.

    Raises:
        UsageError: no time, or one after the run's end.
    """
    if not re.fullmatch(r"(\d+:)?(\d+:)?\d+(\.\d*)?", text):
        raise UsageError(f"--at {text[:40]!a} is no time of the run; such as 00:12, 12.3 or 1:02:03")
    seconds = 0.0
    for part in text.split(":"):
        seconds = seconds * 60 + float(part)
    ns = run.begun_ns + round(seconds * 1e9)
    t = run.ticks["observed_ns"]
    if not len(t) or not t[0] - 2e9 <= ns <= t[-1] + 2e9:
        known = (
            f"it has ticks from {stamp(run, t[0])} to {stamp(run, t[-1])}" if len(t) else "it has no ticks"
        )
        raise UsageError(f"--at {text}: the log of this run knows nothing of that moment; {known}")
    return ns


def explain(run: Run, ns: int, found: list[RunFinding]) -> list[str]:
    """What the arm did at a moment, and what was out of the ordinary around it."""
    t = run.ticks
    k = int(np.abs(t["deadline_ns"] - ns).argmin())
    chunk = int(t["chunk_seq"][k])
    following = f", action {t['action_index'][k]:.1f} of chunk {chunk}" if chunk >= 0 else ""
    reason = f" ({run.reasons[k]})" if run.reasons[k] else ""
    lines = [
        f"{stamp(run, t['deadline_ns'][k])}: {MODES[int(t['mode'][k])]}{reason}, tick {t['tick'][k]}{following}"
    ]
    asked = next((c for c in reversed(run.notes.get("chunk", [])) if c["request_id"] == chunk), None)
    if asked is not None:
        lines.append(
            f"chunk {chunk} was asked for what was seen at {stamp(run, asked['observed_ns'])} (pictures "
            f"{asked['image_age_ns'] / 1e6:.0f} ms old), and came at {stamp(run, asked['sent_ns'])}"
        )
    columns = f"{'joint':<16}{'wanted':>10}{'sent':>10}{'measured':>10}"
    lines += ["", f"{columns}   largest step in a tick within {AROUND_S:g} s: wanted, measured"]
    near = np.abs(t["deadline_ns"] - ns) <= AROUND_S * 1e9
    for j, name in enumerate(run.joints):
        steps = [_largest_step(t[column][near, j]) for column in ("wanted", "position")]
        bits = [words for bit, words in CLIPPED_BY.items() if t["limited_by"][k, j] & bit]
        values = "".join(f"{_number(t[c][k, j]):>10}" for c in ("wanted", "goal", "position"))
        lines.append(
            f"{name[:15]:<16}{values}   {steps[0]}, {steps[1]} {run.units[j]}{'; ' + bits[0] if bits else ''}"
        )
    near_by = [f for f in found if f.ns - 2e9 <= ns <= f.until_ns + 2e9]
    lines += [
        "",
        "within two seconds of it" if near_by else "nothing out of the ordinary within two seconds of it",
    ]
    return lines + [f"  {sentence(run, f)}" for f in near_by]


def _largest_step(values: np.ndarray) -> str:
    steps = np.abs(np.diff(values))
    return _number(float(np.nanmax(steps))) if np.isfinite(steps).any() else "-"


def _number(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "-"

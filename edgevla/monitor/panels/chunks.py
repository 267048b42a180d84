"""The policy's chunks on a common time, and where the time of an inference goes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from edgevla.monitor.chunks import Seam, Track
from edgevla.monitor.model import MonitorModel
from edgevla.monitor.panels.marks import joined, rate, title
from edgevla.monitor.rates import Spread, percentiles
from edgevla.monitor.rows import OLD, Cell, Row, aged, clean, column, fitted
from edgevla.monitor.standing import Standing

SCALES_S = (0.5, 0.7, 1, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 15, 20, 30, 45, 60)
"""Lengths that the time of all rows may have."""
LEAST_MS = 0.05
NOTE, NAMED = 31, 46
"""Cells of the words beside the time: without the name of the joint that bends most, and with it."""
WIDE = 90
LATE = ("chunks_late", "chunks_overdue")
"""Counts of chunks of which nothing was used, because they came too late."""
STAGES: dict[str, Cell] = {
    "camera": ("█", "blue"),
    "assemble": ("▓", "magenta"),
    "prompt": ("░", "bright_magenta"),
    "network": ("▒", "yellow"),
    "wait": ("░", "white"),
    "encode": ("█", "green"),
    "denoise": ("▓", "cyan"),
    "decode": ("▒", "magenta"),
}
"""Where the time goes, in the order in which it passes, and how it is drawn: neighbours differ without colours, too."""


# -- the timeline ----------------------------------------------------------------------------------------------


def chunks(model: MonitorModel, standing: Standing, width: int, height: int, now_ns: int) -> list[Row]:
    """A row per chunk, the newest at the bottom: asked `╌`, skipped `░`, done `█`, to come `─`; now is at `│`."""
    if height == 1:
        rows = [_line(model, width)]
    else:
        tracks = list(model.timeline.tracks)[-(height - 1) :]
        rows = [_title(model, width), *_timeline(model, tracks, width, now_ns)]
        if not tracks:
            rows.append(((" no chunk yet", "dim italic"),))
    is_old = model.is_policy_old(now_ns) or not standing.is_live
    return [aged(row) for row in rows] if is_old else rows


def _title(model: MonitorModel, width: int) -> Row:
    robot, said = model.beat("robot"), []
    per_s = robot.per_s("chunks_taken")
    if per_s is not None:
        said.append((rate(per_s), ""))
    for words, names in (("late", LATE), ("unanswered", ("infer_expired",))):
        n = robot.grown(*names)
        said.append((f"{n} {words}", "bold red" if n else "dim"))
    skipped = robot.per_s("actions_skipped")
    if skipped is not None:
        said.append((f"skipped {rate(skipped)}", "dim"))
    return title("chunks", width, *queue(model), *((f"· {text}", style) for text, style in said))


def queue(model: MonitorModel, cells: int = 8) -> list[Cell]:
    """How much of the newest chunk is left to execute."""
    left = model.state.n_actions_left if model.state else 0
    size = max(1, model.queue_size)
    filled = round(min(1.0, left / size) * cells)
    style = "green" if left > size // 5 else "red"
    return [
        ("left", "dim"),
        (f"{left}/{model.queue_size}", style),
        ("█" * filled + "░" * (cells - filled), style),
    ]


def _line(model: MonitorModel, width: int) -> Row:
    """All of it in one row, where there is no room for more."""
    newest = next((t for t in reversed(model.timeline.tracks) if t.first_ns is not None), None)
    robot = model.beat("robot")
    late = robot.grown(*LATE, "infer_expired")
    parts: list[tuple[Cell, ...]] = [
        (("chunks", "bold"), (f" {rate(robot.per_s('chunks_taken') or 0)}", "")),
        tuple((f" {text}" if i else text, style) for i, (text, style) in enumerate(queue(model, 4))),
        ((f"late {late}", "bold red" if late else "dim"),),
    ]
    if newest is not None:
        parts.append(((f"skipped {newest.n_skipped}", ""),))
    if (seam := model.timeline.newest_seam) is not None:
        parts.append(((f"seam {_jump(model, seam)}", ""),))
    return ((" ", ""), *joined(parts, width - 1))


def _timeline(model: MonitorModel, tracks: Sequence[Track], width: int, now_ns: int) -> list[Row]:
    if not tracks:
        return []
    number = 7
    note = NAMED if width >= WIDE else NOTE if width >= 46 else 8
    cells = width - number - note - 1
    first = min(track.asked_ns for track in tracks)
    last = max(now_ns, *(track.ends_ns for track in tracks if not track.is_over), now_ns)
    span = next((s for s in SCALES_S if s * 1e9 >= last - first), SCALES_S[-1]) * 1e9
    cell_ns = span / cells
    begin = last - span
    rows = []
    for track in tracks:
        seam = track.seam is not None and f"seam {_jump(model, track.seam, is_named=width >= WIDE)}"
        arrived = f"{(track.arrived_ns - track.asked_ns) / 1e6:.0f} ms"
        words = f" {arrived:>7}"
        if track.is_late:
            words, style = f" {arrived:>7} too late", "bold red"
        else:
            words += f" skip {track.n_skipped:<2}" if track.n_skipped else " " * 8
            words += f" {seam}" if seam and note > 8 else ""
            style = ""
        bar = _bar(track, cells, begin, cell_ns, now_ns)
        rows.append(
            fitted(
                ((f"{'#' + str(track.seq):>{number - 1}} ", "dim"), *bar, (column(words, note), style)), width
            )
        )
    return rows


def _bar(track: Track, cells: int, begin: float, cell_ns: float, now_ns: int) -> list[Cell]:
    """One chunk's row of the time."""
    first = track.first_ns if track.first_ns is not None else track.arrived_ns
    done = track.last_ns if track.last_ns is not None else first
    skipped = first - track.n_skipped * track.step_ns
    made: list[Cell] = []
    for i in range(cells):
        at = begin + (i + 0.5) * cell_ns
        text, style = " ", ""
        if track.asked_ns - cell_ns / 2 <= at < track.arrived_ns:
            text, style = "╌", "bold red" if track.is_late else "yellow"
        elif track.n_skipped and max(skipped, track.arrived_ns) <= at < first:
            text, style = "░", "yellow"
        elif track.first_ns is not None and first <= at <= max(done, first + cell_ns):
            text, style = "█", "green"
        elif not track.is_over and track.first_ns is not None and done < at <= track.ends_ns:
            text, style = "─", "green"
        if text == " " and abs(at - now_ns) <= cell_ns / 2:
            text, style = "│", OLD
        if made and made[-1][1] == style:
            made[-1] = (made[-1][0] + text, style)
        else:
            made.append((text, style))
    return made


def _jump(model: MonitorModel, seam: Seam, *, is_named: bool = True) -> str:
    joints = model.joints
    if seam.joint >= len(joints):
        return f"{seam.jump:.2g}"
    joint = joints[seam.joint]
    unit = {"deg": "°", "percent": "%", "unit": ""}.get(joint.unit, f" {joint.unit}" if joint.unit else "")
    words = f"{seam.jump:.{1 if seam.jump >= 1 else 2 if seam.jump >= 0.1 or unit == '°' else 3}f}"
    return f"{words}{unit} {clean(joint.name)}" if is_named else f"{words}{unit}"


# -- latency ---------------------------------------------------------------------------------------------------


def latency(model: MonitorModel, standing: Standing, width: int, height: int, now_ns: int) -> list[Row]:
    """From the picture to the actions: one bar, its parts by name. Only what the chunks really say."""
    rows = _latency(model, width, height)
    is_old = model.is_policy_old(now_ns) or not standing.is_live
    return [aged(row) for row in rows] if is_old else rows


def _latency(model: MonitorModel, width: int, height: int) -> list[Row]:
    parts = stages(model)
    inference, age = percentiles(model.inference_ms), percentiles(model.image_age_ms)
    if not parts or inference is None:
        return [title("latency", width), ((" no inference yet", "dim italic"),)][:height]
    said = [(f"infer {spread(inference, 1)} ms", "")]
    if age is not None:
        said.append((f"· picture {spread(age, 0)} ms", "dim"))
    head = title("latency", width, *said)
    legend = _legend(parts, width)
    bar = _stacked(parts, width)
    return [head, bar, legend] if height >= 3 else [head, legend][:height]


def stages(model: MonitorModel) -> list[tuple[str, float]]:
    """Of the newest chunk, in the order in which they pass: (name, ms); what took next to no time is left out."""
    if not model.image_age_ms:
        return []
    spent = {"camera": model.image_age_ms[-1], **model.stage_ms}
    return [(name, spent[name]) for name in STAGES if spent.get(name, 0.0) >= LEAST_MS]


def _stacked(parts: Sequence[tuple[str, float]], width: int) -> Row:
    room, total = width - 2, sum(ms for _, ms in parts)
    cells: list[Cell] = [(" ", "")]
    passed, drawn = 0.0, 0
    for name, ms in parts:
        passed += ms
        until = round(passed / total * room)
        fill, colour = STAGES[name]
        cells.append((fill * (until - drawn), colour))
        drawn = until
    return tuple(cells)


def _legend(parts: Sequence[tuple[str, float]], width: int) -> Row:
    """The largest first to be left in, all in their order."""
    groups = {name: (STAGES[name], (f" {name} ", ""), (_ms(ms), "bold")) for name, ms in parts}
    kept = [name for name, _ in sorted(parts, key=lambda part: -part[1])]
    while kept and _length([groups[name] for name in kept]) > width - 1:
        kept.pop()
    return (*((" ", ""),), *joined([groups[name] for name in groups if name in kept], width - 1))


def _length(groups: Sequence[tuple[Cell, ...]]) -> int:
    return sum(cell_len(text) for group in groups for text, _ in group) + 2 * (len(groups) - 1)


def _ms(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 9.95 else f"{ms:.1f}"


def spread(p: Spread | None, digits: int) -> str:
    return f"p50 {p.p50:.{digits}f} p99 {p.p99:.{digits}f} max {p.worst:.{digits}f}" if p else "-"

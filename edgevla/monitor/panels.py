"""What each part of the screen says: functions from the model to rows. No sockets, no widgets, no decisions."""

from __future__ import annotations

import math

from rich.cells import cell_len

from edgevla.monitor.keys import TaskLine
from edgevla.monitor.model import JointRow, MonitorModel, Sentence, ServoRow
from edgevla.monitor.rates import NOTEWORTHY, Percentiles, percentiles
from edgevla.monitor.rows import OLD, Cell, Row, aged, clean, column, fitted, rule
from edgevla.monitor.standing import ALARM, Standing, duration

SEVERITY_STYLES = {"info": "dim", "warning": "yellow", "error": "bold red", "stop": ALARM}
BAR_CELLS = 14
AT_REST = ("ENDED", "RELEASED", "PARKED", "UNHELD")
"""Nobody is left to obey anything but an emergency stop."""
PICTURE_OLD_NS = 1_000_000_000
"""Thumbnails come five times a second."""
HEAD = "bold dim"


# -- header ----------------------------------------------------------------------------------------------------


def header(model: MonitorModel, standing: Standing, width: int) -> list[Row]:
    """Two lines: what runs, and how the arm stands."""
    first: list[Cell] = [
        (f" {clean(model.robot) or 'no robot yet'} ", "bold"),
        (f" {standing.word} ", standing.style),
    ]
    what = f"  {clean(model.bundle)}" + (f"  “{clean(model.task)}”" if model.task else "")
    alarm = standing.style if " on red" in standing.style else "yellow" if not standing.is_live else ""
    return [(*first, (what, "")), ((" ", ""), (column(clean(standing.sentence), width - 1), alarm))]


# -- joints ----------------------------------------------------------------------------------------------------


def joints(model: MonitorModel, standing: Standing, height: int, now_ns: int) -> list[Row]:
    """Goal against present, per joint; two columns without bars when the arm has more joints than lines."""
    shown = model.joints
    if not shown:
        return [(("waiting for the robot", "dim italic"),)]
    n_lines = max(1, height - 1)
    has_bar = len(shown) <= n_lines
    n_rows = len(shown) if has_bar else -(-len(shown) // 2)
    title = f"{'joint':<14}  present     goal range" if has_bar else f"{'joint':<9}    now   goal " * 2
    first = 14 if has_bar else 9
    rows: list[Row] = [
        ((title, HEAD),) if standing.is_live else old_title(title, first, model.state_ns, now_ns)
    ]
    for i in range(n_rows):
        cells: list[Cell] = []
        for joint in shown[i::n_rows]:
            cells += joint_cells(joint, has_bar=has_bar)
        rows.append(tuple(cells) if standing.is_live else aged(tuple(cells)))
    return rows


def joint_cells(joint: JointRow, *, has_bar: bool) -> list[Cell]:
    present = number(joint.present)
    goal = number(joint.goal)
    old, limited = "red" if joint.age_ms > 100 else "", "bold red" if joint.limited_by else ""
    if not has_bar:
        return [(f"{short_name(joint.name):<9}", ""), (present[1:], old), (goal[1:], limited), (" ", "")]
    return [
        (column(clean(joint.name), 14), ""),
        (" " + present, old),
        (" " + goal + " ", limited),
        *joint_bar(joint),
    ]


def joint_bar(joint: JointRow, cells: int = BAR_CELLS) -> list[Cell]:
    """The joint's range as a line: `●` present, `┃` goal (red when a limit changed it)."""

    def cell(value: float) -> int | None:
        if not math.isfinite(value) or joint.high <= joint.low:
            return None
        share = (value - joint.low) / (joint.high - joint.low)
        return min(cells - 1, max(0, round(share * (cells - 1))))

    marks = {
        cell(joint.goal): ("┃", "bold red" if joint.limited_by else "cyan"),
        cell(joint.present): ("●", "bold green"),
    }
    made: list[Cell] = []
    for i in range(cells):
        text, style = marks.get(i, ("─", "dim"))
        if made and made[-1][1] == style:
            made[-1] = (made[-1][0] + text, style)
        else:
            made.append((text, style))
    return made


def number(value: float) -> str:
    return f"{value:8.1f}" if math.isfinite(value) else "       -"


def short_name(name: str) -> str:
    """`left_forearm_roll` -> `l for_rol`: enough to tell joints apart in nine cells."""
    side, name = "", clean(name)
    if name.startswith(("left_", "right_")):
        side, name = f"{name[0]} ", name.split("_", 1)[1]
    words = name.split("_")
    return (side + (words[0][:7] if len(words) == 1 else "_".join(word[:3] for word in words[:2])))[:9]


# -- timing ----------------------------------------------------------------------------------------------------


def timing(model: MonitorModel, standing: Standing, width: int, now_ns: int) -> list[Row]:
    """The control loop, the policy, and the queue between them."""
    hz = model.clockwork.hz if standing.is_live else None
    late = percentiles(model.clockwork.late_ms)
    inference, age = percentiles(model.inference_ms), percentiles(model.image_age_ms)
    stages = "  ".join(f"{clean(name)} {ms:.0f}" for name, ms in model.stage_ms.items() if ms >= 0.5)
    tick = model.state.tick if model.state else 0
    late_style = "red" if late and late.p99 > 10 else ""
    loop: list[Row] = [
        ((f"loop      {f'{hz:.1f} Hz' if hz else '-'}  tick {tick}  missed {model.n_late_ticks}", ""),),
        ((f"late ms   {_spread(late, 2)}", late_style),),
    ]
    policy: list[Row] = [
        ((f"infer ms  {_spread(inference, 1)}", ""),),
        ((f"  of it   {stages or '-'}", "dim"),),
        ((f"image ms  {_spread(age, 0)}", ""),),
    ]
    queue: Row = (("queue     ", ""), *queue_bar(model))
    if not standing.is_live:
        loop, queue = [aged(row) for row in loop], aged(queue)
    if model.is_policy_old(now_ns) or not standing.is_live:
        policy = [aged(row) for row in policy]
    return [rule(width), *(fitted(row, width - 1) for row in (*loop, *policy, queue))]


def queue_bar(model: MonitorModel, cells: int = 12) -> list[Cell]:
    """How much of the newest chunk is left to execute."""
    left = model.state.n_actions_left if model.state else 0
    size = max(1, model.queue_size)
    filled = round(min(1.0, left / size) * cells)
    style = "green" if left > size // 5 else "red"
    return [("█" * filled, style), ("░" * (cells - filled), "dim"), (f" {left}/{model.queue_size}", "")]


def _spread(p: Percentiles | None, digits: int) -> str:
    return f"p50 {p.p50:.{digits}f}  p99 {p.p99:.{digits}f}  max {p.worst:.{digits}f}" if p else "-"


# -- servos ----------------------------------------------------------------------------------------------------


def servos(model: MonitorModel, width: int, height: int, now_ns: int) -> list[Row]:
    """Temperature, voltage, load, torque and trouble on the line, per servo."""
    is_wide = width >= 60
    title = f"{'servo':<13} °C    V load on retry/s" + (" damaged/s  late/s" if is_wide else "")
    shown = model.servos(now_ns)
    room = max(1, height - 2)
    if len(shown) > room:  # the worst first: what fits must be what matters
        shown = sorted(
            shown, key=lambda s: (not s.is_worrying, not s.trouble.is_noteworthy, -s.temperature_c)
        )
    rows = [servo_row(servo, is_wide=is_wide) for servo in shown[:room]]
    if shown and model.is_health_old(now_ns):
        return [rule(width), old_title(title, 13, model.health_ns, now_ns), *map(_aged_but_torque, rows)]
    return [_lines(model, width), ((title, HEAD),), *rows]


def servo_row(servo: ServoRow, *, is_wide: bool) -> Row:
    style = "bold red" if servo.is_worrying else ""
    on, on_style = {True: ("on ", ""), False: ("off", "yellow"), None: ("?  ", "bold red")}[
        servo.is_torque_on
    ]
    name = servo.name if len(servo.name) <= 13 else short_name(servo.name)
    trouble = [_rate(servo.trouble.retries, 7)]
    if is_wide:
        trouble += [_rate(servo.trouble.corrupt, 10), _rate(servo.trouble.stale, 8)]
    return (
        (column(clean(name), 13), style),
        (f" {_measured(servo.temperature_c, 2, 0)}", style),
        (f" {_measured(servo.voltage_v, 4, 1)}", ""),
        (f" {_measured(servo.load_percent, 3, 0)}%", style),
        (" " + on, on_style),
        *trouble,
    )


def _lines(model: MonitorModel, width: int) -> Row:
    """A rule with what all servos of a line suffer alike, which is its cable's or adapter's trouble."""
    said = [
        f"line {clean(bus)}: {trouble.retries:.0f} retries/s, {trouble.stale:.0f} late/s, of all its servos"
        for bus, trouble in model.shared_trouble().items()
        if trouble.is_noteworthy
    ]
    return (("── ", OLD), ("; ".join(said), "yellow"), (" ", ""), *rule(width)) if said else rule(width)


def _rate(per_s: float, width: int) -> Cell:
    text = f"{per_s:.1f}" if per_s >= 0.05 else "-"
    return (f"{text:>{width}}", "yellow" if per_s > NOTEWORTHY else "dim")


def _measured(value: float, width: int, digits: int) -> str:
    return f"{value:{width}.{digits}f}" if math.isfinite(value) else f"{'-':>{width}}"


def _aged_but_torque(row: Row) -> Row:
    """Grey, but for the `?` of a torque that nobody knows."""
    return tuple((text, style if text.strip() == "?" else OLD) for text, style in row)


def old_title(title: str, first: int, since_ns: int | None, now_ns: int) -> Row:
    """A table's title that says, in its first column of `first` cells, how old the table is."""
    age = "" if since_ns is None else f"{duration(now_ns - since_ns)} old"
    return ((column(age, first), "red"), (title[first:], HEAD))


# -- events, keys ----------------------------------------------------------------------------------------------


def events(model: MonitorModel, standing: Standing, width: int, height: int, now_ns: int) -> list[Row]:
    """The last events, newest at the bottom; silent nodes first, because silence is the worst news."""
    silent = model.silent(now_ns) if standing.is_live else {}
    rows: list[Row] = [
        ((f"{clean(source)} has been silent for {duration(age)}", "bold red"),)
        for source, age in silent.items()
    ]
    room = max(0, height - 1 - len(rows))
    said = list(model.events)[-room:] if room else []
    return [rule(width), *rows, *map(_event, said)]


def _event(line: Sentence) -> Row:
    often = f" ({line.n} times)" if line.n > 1 else ""
    return (
        (f"{clean(line.source)}: ", "dim"),
        (clean(line.text), SEVERITY_STYLES[line.severity]),
        (often, "dim"),
    )


def keys(model: MonitorModel, standing: Standing, width: int, *, is_typing: bool, leaves: str) -> Row:
    """What keys do now, the most important first; what does not fit is left out. leaves: what `q` does here."""
    emergency, leave = ("e", "EMERGENCY"), ("q", leaves)
    if is_typing:
        named = [("F12 ctrl+e", "EMERGENCY"), ("Enter", "sends"), ("Esc", "leaves"), ("up", "the last task")]
    elif standing.word in AT_REST:
        named = [emergency, leave]
    elif standing.is_live and model.mode == "emergency":
        named = [("e", "LETS GO"), ("ctrl+r", "clears the stop"), leave]
    else:
        pause = "resume" if standing.is_live and model.mode == "paused" else "pause"
        named = [emergency, ("space", pause), ("s", "stop"), ("t", "task"), leave, ("h", "home")]
    cells: list[Cell] = []
    for key, does in named:
        is_grave = does in ("EMERGENCY", "LETS GO")
        gap = [("  ", "")] if cells else []
        shown = [
            (f" {key} ", ALARM if is_grave else "bold reverse"),
            (f" {does}", "bold red" if is_grave else ""),
        ]
        if not cells or sum(cell_len(text) for text, _ in [*cells, *gap, *shown]) <= width:
            cells += gap + shown
    return tuple(cells)


def field(line: TaskLine, current: str, width: int) -> list[Row]:
    """The line that is being typed, with its cursor in view."""
    prompt = " task ❯ "
    room = max(8, width - cell_len(prompt) - 2)
    before, under, after = line.text[: line.cursor], line.text[line.cursor : line.cursor + 1] or " ", ""
    after = line.text[line.cursor + 1 :]
    while cell_len(before) > room - 2:
        before = before[max(1, len(before) - room + 2) :] if len(before) > room else before[1:]
    hint = f" (now: {clean(current)})" if current and not line.text else ""
    return [((prompt, "bold"), (before, ""), (under, "reverse"), (after, ""), (hint, "dim"))]


# -- cameras -----------------------------------------------------------------------------------------------------


def picture(model: MonitorModel, camera: str, now_ns: int) -> tuple[bytes | None, str, bool]:
    """Of one camera: the newest picture, what to say beside its name, and whether it is old."""
    newest = model.pictures.get(camera)
    if newest is None:
        return None, "no picture yet", False
    age = now_ns - newest.observed_ns
    return newest.jpeg, f"{duration(age)} old" if age > PICTURE_OLD_NS else "", age > PICTURE_OLD_NS

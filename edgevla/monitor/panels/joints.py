"""All joints of all arms: unit, present, goal, limits, a bar of the range and the last ten seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from edgevla.monitor.history import WIDTHS, History, spark_width, sparkline
from edgevla.monitor.model import JointRow, MonitorModel
from edgevla.monitor.panels.marks import HEAD, measured, old_title, short_name
from edgevla.monitor.rows import OLD, Cell, Row, aged, clean, column, fitted
from edgevla.monitor.standing import Standing

UNITS = {"deg": "°", "percent": "%", "range100": "", "rad": "", "m": ""}
"""What stands after a number; a unit of more letters stands in the title."""
SIDES = ("left", "right")
LATE_MS = 100
LEAST_ARM = 38
"""Columns that an arm needs beside another, and a joint's whole name beside its numbers."""
SUFFIXED_ALWAYS = ("percent",)
TIGHT = 34
"""Columns beside the names: fewer, and numbers are as short as they can be."""
WITH_LIMITS, LEAST_BAR = 92, 4
TALL = 3
"""Rows that a joint's last ten seconds take at most."""
NAME = 10
"""Least width of the names."""
FLAT = 0.04
"""Of the range: less than this is drawn as no motion."""


@dataclass(frozen=True)
class Arm:
    """label: `left`, `right`, or empty for the only arm."""

    label: str
    joints: Sequence[JointRow]


@dataclass(frozen=True)
class Columns:
    """Widths; 0: not shown. digits: after the point. unit: of all, where it does not stand after the numbers."""

    name: int
    number: int
    digits: int
    limit: int
    bar: int
    spark: int
    unit: str


def arms(joints: Sequence[JointRow]) -> list[Arm]:
    """By the side that begins their names; without the side in the names."""
    sides = [joint.name.partition("_")[0] for joint in joints]
    if not joints or not all(side in SIDES for side in sides):
        return [Arm("", joints)]
    return [
        Arm(side, [j for j, s in zip(joints, sides, strict=True) if s == side])
        for side in dict.fromkeys(sides)
    ]


def joints(model: MonitorModel, standing: Standing, width: int, height: int, now_ns: int) -> list[Row]:
    """Arms beside one another, or below; two columns of numbers where there is no room for more."""
    shown = arms(model.joints)
    if not model.joints:
        return [(("waiting for the robot", "dim italic"),)]
    if len(shown) > 1 and width >= len(shown) * LEAST_ARM:
        each = (width - len(shown) + 1) // len(shown)
        blocks = [_arm(model, arm, standing, each - 1, height, now_ns) for arm in shown]
        n = max(len(block) for block in blocks)
        rows = [_beside([block[i] if i < len(block) else () for block in blocks], each) for i in range(n)]
    elif sum(len(arm.joints) + 1 for arm in shown) <= height or len(shown) == 1:
        rows = [
            row for arm in shown for row in _arm(model, arm, standing, width, height // len(shown), now_ns)
        ]
    else:
        rows = []
    return rows if 0 < len(rows) <= max(1, height) else _numbers(model, standing, height, now_ns)


def _beside(rows: Sequence[Row], each: int) -> Row:
    made: list[Cell] = []
    for i, row in enumerate(rows):
        made += [*([("│", OLD)] if i else []), *fitted(row, each - 1 if i else each)]
    return tuple(made)


def _columns(joints: Sequence[JointRow], label: str, width: int) -> Columns:
    """Where it is tight, degrees are whole and their unit stands in the title."""
    name = max(NAME, *(len(_name(joint, label)) for joint in joints))
    is_small = max(joint.high - joint.low for joint in joints) < 20  # radians, metres
    is_tight = width - name < TIGHT
    digits = (2 if is_small else 1) if not is_tight or is_small else 0
    number = (6 if is_tight else 8) if is_small else (5 if is_tight else 8)
    name = min(name, max(NAME, width - 2 * number)) + (not is_tight)
    limit = 7 if width >= WITH_LIMITS else 0
    left = width - name - 2 * number - 2 * limit - 2
    spark = spark_width(max(WIDTHS[-1], left * 2 // 5)) if left >= LEAST_BAR + WIDTHS[-1] else 0
    bar = max(0, left - spark + (not spark))
    units = [unit for joint in joints if (unit := joint.unit) and (is_tight or not UNITS.get(unit))]
    words = [unit for unit in dict.fromkeys(units) if unit not in SUFFIXED_ALWAYS]
    return Columns(name, number, digits, limit, bar, spark, words[0] if words else "")


def _arm(
    model: MonitorModel, arm: Arm, standing: Standing, width: int, height: int, now_ns: int
) -> list[Row]:
    c = _columns(arm.joints, arm.label, width)
    first = (arm.label if c.unit else f"{arm.label} arm") if arm.label else "joint"
    first = column(f"{first} ({c.unit})" if c.unit else first, c.name)
    words = f"{first}{'present' if c.number > 7 else 'now':>{c.number}}{'goal':>{c.number}} "
    if c.limit:
        words += f"{'min':>{c.limit - 1}} "
    words += f"{'range' if c.bar > 4 else '':<{c.bar}}"
    words += f" {'max':<{c.limit - 1}}" if c.limit else ""
    words += f" {'10 s':<{c.spark}}" if c.spark else ""
    head: Row = ((words, HEAD),) if standing.is_live else old_title(words, c.name, model.state_ns, now_ns)
    tall = min(TALL, max(1, (height - 1) // max(1, len(arm.joints))))
    rows = [row for joint in arm.joints for row in _joint(joint, arm, c, tall, model.present, now_ns)]
    return [head, *(rows if standing.is_live else map(aged, rows))]


def _name(joint: JointRow, label: str) -> str:
    """Without the side, which stands above."""
    return clean(joint.name.removeprefix(f"{label}_") if label else joint.name)


def _joint(joint: JointRow, arm: Arm, c: Columns, tall: int, present: History, now_ns: int) -> list[Row]:
    """tall: rows of its last ten seconds; the numbers stand in the first one."""
    old, limited = "red" if joint.age_ms > LATE_MS else "", "bold red" if joint.limited_by else ""
    name = _name(joint, arm.label)
    unit = "" if joint.unit == c.unit else UNITS.get(joint.unit, "")
    cells: list[Cell] = [
        (column(name if len(name) <= c.name else short_name(name, c.name), c.name), ""),
        (_number(joint.present, unit, c), old),
        (_number(joint.goal, unit, c), limited),
        (" ", ""),
    ]
    if c.limit:
        cells.append((f"{measured(joint.low, c.limit - 1, c.digits)} ", "dim"))
    cells += joint_bar(joint, c.bar) if c.bar >= LEAST_BAR else [(" " * c.bar, "")]
    if c.limit:
        cells.append((f" {measured(joint.high, 0, c.digits):<{c.limit - 1}}", "dim"))
    if not c.spark:
        return [tuple(cells)]
    values = present.cells(joint.index, c.spark, now_ns)
    lines = sparkline(values, FLAT * (joint.high - joint.low), rows=tall)
    before = " " * sum(cell_len(text) for text, _ in cells)
    rest: list[Row] = [((before, ""), (" " + line, "cyan")) for line in lines[1:]]
    return [(*cells, (" " + lines[0], "cyan")), *rest]


def _number(value: float, unit: str, c: Columns) -> str:
    text = f"{round(value, c.digits) + 0.0:.{c.digits}f}{unit}" if math.isfinite(value) else "-"  # no -0.0
    return f"{text:>{c.number}}"


def joint_bar(joint: JointRow, cells: int) -> list[Cell]:
    """The joint's range as a line: `●` present, `┃` goal (red when a limit changed it)."""

    def cell(value: float) -> int | None:
        if not math.isfinite(value) or joint.high <= joint.low:
            return None
        share = (value - joint.low) / (joint.high - joint.low)
        return min(cells - 1, max(0, round(share * (cells - 1))))

    marks = {
        cell(joint.goal): ("┃", "bold red" if joint.limited_by else "cyan"),
        cell(joint.present): ("●", "bold red" if joint.limited_by else "bold green"),
    }
    made: list[Cell] = []
    for i in range(cells):
        text, style = marks.get(i, ("─", OLD))
        if made and made[-1][1] == style:
            made[-1] = (made[-1][0] + text, style)
        else:
            made.append((text, style))
    return made


def _numbers(model: MonitorModel, standing: Standing, height: int, now_ns: int) -> list[Row]:
    """Present and goal alone, in two columns."""
    shown = model.joints
    n_rows = -(-len(shown) // 2)
    words = f"{'joint':<9}    now   goal " * 2
    rows: list[Row] = [((words, HEAD),) if standing.is_live else old_title(words, 9, model.state_ns, now_ns)]
    for i in range(min(n_rows, max(1, height - 1))):
        cells: list[Cell] = []
        for joint in shown[i::n_rows]:
            old, limited = "red" if joint.age_ms > LATE_MS else "", "bold red" if joint.limited_by else ""
            digits = 1 if joint.high - joint.low > 20 else 2
            cells += [
                (f"{short_name(joint.name):<9}", ""),
                (measured(joint.present, 7, digits), old),
                (measured(joint.goal, 7, digits), limited),
                (" ", ""),
            ]
        rows.append(tuple(cells) if standing.is_live else aged(tuple(cells)))
    return rows

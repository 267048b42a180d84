"""The page of all deployments: a line each, and all that is known of the chosen one below."""

from __future__ import annotations

from collections.abc import Sequence

from edgevla.monitor.fleet import Deployed
from edgevla.monitor.panels.events import MARKS, STYLES, wrapped
from edgevla.monitor.panels.header import badge
from edgevla.monitor.panels.marks import HEAD, clock, title
from edgevla.monitor.rows import OLD, Cell, Row, aged, clean, column
from edgevla.monitor.standing import ALARM, duration

NAME, WORD, AGE, CLOCK, BUNDLE = 14, 17, 7, 9, 16
"""Cells of the columns; what was said has the rest."""
WITH_CLOCK, WITH_BUNDLE = 80, 100
"""From so many columns on."""
DETAIL, LEAST = 9, 14
"""Rows of the part about the chosen one, and of the screen from which on it is there."""
KEYS = (("up down", "choose"), ("Enter", "opens its cockpit"), ("q", "leave"))
NOTHING_ACTS = "no key here acts on a robot"
EMPTY = "no deployment runs; one that begins is shown at once"


def fleet(lines: Sequence[Deployed], chosen: int, width: int, height: int, now_ns: int) -> list[Row]:
    """All rows but the last one, which is the keys'."""
    n_running = sum(line.listener is not None for line in lines)
    rows: list[Row] = [
        title("robots on this machine", width, (f"{n_running} running", "bold" if n_running else "dim"))
    ]
    if not lines:
        return [*rows, ((f" {EMPTY}", "dim italic"),)]
    rows.append(_heads(width))
    room = max(1, height - len(rows) - (DETAIL if height >= LEAST else 0))
    first = max(0, min(chosen - room + 1, len(lines) - room)) if chosen >= room else 0
    rows += [
        _line(line, first + k, first + k == chosen, width, now_ns)
        for k, line in enumerate(lines[first : first + room])
    ]
    if height >= LEAST:
        rows += [()] * (height - DETAIL - len(rows))
        rows += _detail(lines[chosen], width, now_ns)
    return rows


def _heads(width: int) -> Row:
    words = " " * 5 + column("robot", NAME) + column("state", WORD) + column("heard", AGE)
    words += column("runs for", CLOCK) if width >= WITH_CLOCK else ""
    words += column("bundle", BUNDLE) if width >= WITH_BUNDLE else ""
    return ((words + "worst that it said here", HEAD),)


def _line(line: Deployed, number: int, is_chosen: bool, width: int, now_ns: int) -> Row:
    model, standing = line.model, line.model.standing(now_ns)
    ran_ns, worst = model.outside.ran_ns, line.worst
    age = "-" if model.state_ns is None else duration(now_ns - model.state_ns)
    key = f"{number + 1}" if number < 9 else " "
    cells: list[Cell] = [
        (f" {'❯' if is_chosen else ' '}{key} ", "bold" if is_chosen else "dim"),
        (" ", ""),
        (column(clean(model.robot), NAME - 1), "bold reverse" if is_chosen else "bold"),
        (" ", ""),
        (f" {column(standing.word, WORD - 3)} ", badge(standing)),
        (" ", ""),
        (column(age, AGE), "" if standing.is_live else "red"),
    ]
    if width >= WITH_CLOCK:
        cells.append((column(clock(ran_ns) if ran_ns is not None else "-", CLOCK), ""))
    if width >= WITH_BUNDLE:
        cells.append((column(clean(model.bundle), BUNDLE - 1) + " ", ""))
    if worst is not None:
        words = f"{MARKS[worst.severity]} {clean(worst.source)}: {clean(worst.text)}"
        cells.append((words, STYLES[worst.severity]))
    is_over = line.listener is None and standing.style != ALARM
    return aged(tuple(cells)) if is_over and not is_chosen else tuple(cells)


def _detail(line: Deployed, width: int, now_ns: int) -> list[Row]:
    """What has no room in a line."""
    model, standing = line.model, line.model.standing(now_ns)
    rows: list[Row] = [title(clean(model.robot), width, (standing.word, standing.style))]
    facts = [("", standing.sentence), ("task", f"“{model.task}”" if model.task else "")]
    facts += [("bundle", model.bundle), ("runs in", str(line.folder))]
    for what, words in facts:
        if words:
            rows.append(((f" {what:<8}" if what else " ", OLD), (clean(words), "")))
    if (worst := line.worst) is not None:
        text = f"{worst.source}: {clean(worst.text)}" + (f" ({worst.n} times)" if worst.n > 1 else "")
        lines = wrapped(text, max(8, width - 4), max(8, width - 4))
        rows += [((f" {MARKS[worst.severity] if k == 0 else ' '} {words}", STYLES[worst.severity]),)
                 for k, words in enumerate(lines)]  # fmt: skip
    return (rows + [()] * DETAIL)[:DETAIL]


def fleet_keys(notice: str, width: int) -> Row:
    """What keys do here; a notice takes their place for a while."""
    if notice:
        return ((f" {notice}", "bold yellow"),)
    cells: list[Cell] = []
    for key, does in KEYS:
        cells += [(f" {key} ", "bold reverse"), (f" {does}  ", "")]
    return (*cells, (NOTHING_ACTS, "dim"))

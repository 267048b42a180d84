"""The first two lines: how the arm stands, who says so and how long ago; and what runs."""

from __future__ import annotations

from rich.cells import cell_len

from edgevla.monitor.model import MonitorModel
from edgevla.monitor.panels.marks import clock, joined
from edgevla.monitor.rows import Cell, Row, clean, column
from edgevla.monitor.standing import Standing, duration

RED_SHARE = 0.02
"""Of the ticks that safety changed: more, and the arm does not do what the policy wants."""


def header(model: MonitorModel, standing: Standing, width: int, now_ns: int) -> list[Row]:
    """The state in one line that is always true; a sentence that is too long for it takes the second one."""
    first: list[Cell] = [
        (f" {clean(model.robot) or 'no robot yet'} ", "bold"),
        (f" {standing.word} ", badge(standing)),
    ]
    taken = sum(cell_len(text) for text, _ in first)
    sources = joined(_sources(model, now_ns), max(0, width - taken - 2))
    room = width - taken - sum(cell_len(text) for text, _ in sources) - 3
    sentence = clean(standing.sentence)
    alarm = standing.style if " on red" in standing.style else "" if standing.is_live else "yellow"
    fits = cell_len(sentence) <= room
    line = [*first, ("  ", ""), (column(sentence if fits else "", max(0, room)), alarm), *sources]
    if fits:
        return [tuple(line), (*((" ", ""),), *_facts(model, standing, width - 2))]
    return [tuple(line), ((" ", ""), (column(sentence, width - 1), alarm or "bold"))]


def badge(standing: Standing) -> str:
    """The word stands on its colour: seen from across the room, and in reverse where there are no colours."""
    return standing.style if " on " in standing.style else f"{standing.style} reverse"


def _sources(model: MonitorModel, now_ns: int) -> list[tuple[Cell, ...]]:
    """The clock first: what does not fit is left out from the end."""
    found: list[tuple[Cell, ...]] = []
    outside = model.outside
    if outside.ran_ns is not None:
        found.append(((clock(outside.ran_ns), "bold"),))
    if model.state_ns is not None:
        found.append(((f"robot {duration(now_ns - model.state_ns)} ago", "dim"),))
    if outside.guardian is not None:
        word = outside.guardian.state if outside.is_guardian_alive else "gone"
        found.append(((f"guardian {word}", "dim" if word == "watching" else "yellow"),))
    return found


def _facts(model: MonitorModel, standing: Standing, width: int) -> Row:
    robot = model.beat("robot")
    clipped = robot.share("ticks_clipped", "ticks_running")
    facts: list[tuple[Cell, ...]] = [
        ((clean(model.bundle), "bold"),) if model.bundle else (),
        ((clean(model.engine), ""),) if model.engine else (),
        ((clean(model.execution or model.outside.execution), ""),),
    ]
    if clipped is not None:
        style = "bold red" if clipped > RED_SHARE else "" if standing.is_live else "dim"
        facts.append(((f"clipped {clipped:.1%}", style),))
    facts = [fact for fact in facts if fact and fact[0][0]]
    row = joined(facts, width, gap=" · ")
    if not model.task:
        return row
    left = width - sum(cell_len(text) for text, _ in row) - 2
    task = f"“{clean(model.task)}”"
    return (*row, ("  ", ""), (column(task, left).rstrip() if cell_len(task) > left else task, "cyan"))

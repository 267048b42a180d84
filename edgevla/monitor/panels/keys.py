"""What keys do now, the line that is being typed, and the page that explains all of them."""

from __future__ import annotations

from rich.cells import cell_len

from edgevla.monitor.keys import TaskLine
from edgevla.monitor.model import MonitorModel
from edgevla.monitor.panels.marks import title
from edgevla.monitor.rows import Cell, Row, clean
from edgevla.monitor.standing import ALARM, Standing

AT_REST = ("ENDED", "RELEASED", "PARKED", "UNHELD")
"""Nobody is left to obey anything but an emergency stop."""
HELP = (
    ("the arm", (
        ("e", "emergency stop: the arm freezes; once more, after a pause, lets go"),
        ("F12 ctrl+e", "the same, also while you type"),
        ("ctrl+r", "clears the emergency stop; the arm is paused until it is resumed"),
        ("space", "pause; resume only what is paused"),
        ("l", "with `deploy --leader`: you take over; again: the policy goes on"),
        ("h  s", "home; s, stop: to rest, then released"),
        ("t", "type or paste a task: Enter sends, Escape leaves, up: the last one"),
    )),
    ("the view", (
        ("c  1 to 9", "one camera large; again, or Escape: all parts"),
        ("/", "search the events; Enter keeps what was found, Escape shows all"),
        ("up down", "scroll the events by one; PageUp, PageDown by ten; End: the newest"),
        ("?", "this page"),
        ("m", "saves this moment: what the policy saw and answered in the last 30 s"),
        ("ctrl+l", "draws the screen anew"),
        ("q  b", "leave; b: all robots. Only `deploy --monitor` ends with its monitor"),
        ("ctrl+c", "leaves; under `deploy --monitor`: to rest, emergency stop, let go"),
    )),
)  # fmt: skip
SIGNS = (
    ("joints", "● present, ┃ goal (red: safety changed it), the last ten seconds"),
    ("chunks", "╌ asked, ░ skipped, █ done, ─ to come, │ now; seam: the goals' bend"),
    ("servos", "worst first; on: torque, ?: nobody knows; rates are of the last 5 s"),
)


def keys(
    model: MonitorModel,
    standing: Standing,
    width: int,
    *,
    typing: str,
    leaves: str,
    is_close: bool,
    driver: str = "",
    has_fleet: bool = False,
) -> Row:
    """The most important first; what does not fit is left out. typing: `task`, `search` or empty. leaves: what `q` does
    here. is_close: whether Escape goes back to all parts. driver: what `l` does; empty: there is no leader arm.
    has_fleet: whether `b` goes back to all deployments.
    """
    emergency, leave = ("e", "EMERGENCY"), ("q", leaves)
    fleet = [("b", "all robots")] if has_fleet else []
    view = [("Esc", "back")] if is_close else [("c", "camera")] if model.cameras else []
    if typing == "task":
        named = [("F12 ctrl+e", "EMERGENCY"), ("Enter", "sends"), ("Esc", "leaves"), ("up", "the last task")]
    elif typing:
        named = [("F12 ctrl+e", "EMERGENCY"), ("Enter", "keeps"), ("Esc", "shows all")]
    elif standing.word in AT_REST:
        named = [emergency, leave, *fleet, ("/", "search"), ("?", "keys")]
    elif standing.is_live and model.mode == "emergency":
        named = [("e", "LETS GO"), ("ctrl+r", "clears the stop"), leave, ("?", "keys")]
    else:
        pause = "resume" if standing.is_live and model.mode == "paused" else "pause"
        named = [
            emergency,
            ("space", pause),
            *([("l", driver)] if driver else []),
            ("s", "stop"),
            ("?", "keys"),
        ]
        named += [("q", leaves), ("t", "task")]
        named += [*fleet, *view, ("h", "home"), ("m", "save moment"), ("/", "search")]
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


def field(line: TaskLine, typing: str, current: str, width: int) -> list[Row]:
    """The line that is being typed, with its cursor in view."""
    prompt = f" {typing} ❯ "
    room = max(8, width - cell_len(prompt) - 2)
    before, under = line.text[: line.cursor], line.text[line.cursor : line.cursor + 1] or " "
    after = line.text[line.cursor + 1 :]
    while cell_len(before) > room - 2:
        before = before[max(1, len(before) - room + 2) :] if len(before) > room else before[1:]
    hint = f" (now: {clean(current)})" if current and not line.text else ""
    return [((prompt, "bold"), (before, ""), (under, "reverse"), (after, ""), (hint, "dim"))]


def help_page(width: int) -> list[Row]:
    """All keys, and what the signs mean."""
    rows: list[Row] = []
    for words, named in HELP:
        rows.append(title(words, width))
        rows += [((f" {key:<11}", "bold"), (does, "")) for key, does in named]
    rows.append(title("the signs", width))
    rows += [((f" {what:<11}", "bold"), (means, "")) for what, means in SIGNS]
    return rows

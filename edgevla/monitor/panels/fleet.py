"""The page of all deployments: a line each, and all that is known of the chosen one below."""

from __future__ import annotations

from collections.abc import Sequence

from edgevla.monitor.elsewhere import Far
from edgevla.monitor.fleet import Deployed, Fleet
from edgevla.monitor.panels.elsewhere import far_facts, far_words, server_rows
from edgevla.monitor.panels.events import MARKS, STYLES, wrapped
from edgevla.monitor.panels.header import badge
from edgevla.monitor.panels.marks import HEAD, clock, title
from edgevla.monitor.rows import OLD, Cell, Row, aged, clean, column
from edgevla.monitor.standing import ALARM, Standing, duration

NAME, WORD, AGE, CLOCK, BUNDLE = 14, 17, 7, 9, 16
"""Cells of the columns; what was said has the rest."""
WITH_CLOCK, WITH_BUNDLE = 80, 100
"""From so many columns on."""
DETAIL, LEAST = 9, 14
"""Rows of the part about the chosen one, and of the screen from which on it is there."""
KEYS = (("up down", "choose"), ("Enter", "opens it"), ("q", "leave"))
NOTHING_ACTS = "no key here acts on a robot"
EMPTY = "no deployment runs; one that begins is shown at once"


def fleet(seen: Fleet, chosen: int, width: int, height: int, now_ns: int) -> list[Row]:
    """All rows but the last one, which is the keys'. chosen: of all lines."""
    n_running, lines = len(seen.running), seen.all_lines
    rows: list[Row] = [
        title("robots on this machine", width, (f"{n_running} running", "bold" if n_running else "dim"))
    ]
    if lines:
        rows.append(_heads(width))
    body = [_line(line, n, n == chosen, width, now_ns) for n, line in enumerate(seen.lines)]
    body = body or [((f" {EMPTY}", "dim italic"),)]
    at, n = chosen, len(seen.lines)
    for server in seen.servers:
        body += server_rows(server, width, now_ns)
        if n <= chosen < n + len(server.lines):
            at = len(body) + chosen - n
        body += [_line(line, n + k, n + k == chosen, width, now_ns) for k, line in enumerate(server.lines)]
        n += len(server.lines)
    has_detail = bool(lines) and height >= LEAST
    room = max(1, height - len(rows) - (DETAIL if has_detail else 0))
    is_cut = len(body) > room > 2
    room -= is_cut
    first = max(0, min(at - room + 1, len(body) - room)) if at >= room else 0
    rows += body[first : first + room]
    if is_cut:
        rows.append(((f" … {first} rows above, {len(body) - first - room} below", OLD),))
    if has_detail:
        rows += [()] * (height - DETAIL - len(rows))
        rows += _detail(lines[chosen], width, now_ns)
    return rows


def _heads(width: int) -> Row:
    words = " " * 5 + column("robot", NAME) + column("state", WORD) + column("heard", AGE)
    words += column("runs for", CLOCK) if width >= WITH_CLOCK else ""
    words += column("bundle", BUNDLE) if width >= WITH_BUNDLE else ""
    return ((words + "worst that it said here", HEAD),)


def _line(line: Deployed | Far, number: int, is_chosen: bool, width: int, now_ns: int) -> Row:
    if isinstance(line, Far):
        told = line.told
        standing, name, bundle = line.standing(now_ns), line.name, told.policy
        age_ns, said, is_over = line.asked_ns(now_ns), far_words(line, standing), line.has_left
        runs_for = clock(line.since_ns(told.joined_ms, now_ns))
    else:
        model = line.model
        standing, name, bundle = model.standing(now_ns), model.robot, model.bundle
        age_ns = None if model.state_ns is None else now_ns - model.state_ns
        said, ran_ns = _worst(line), model.outside.ran_ns
        runs_for = "-" if ran_ns is None else clock(ran_ns)
        is_over = line.listener is None and standing.style != ALARM
    key = f"{number + 1}" if number < 9 else " "
    age = "-" if age_ns is None else duration(age_ns)
    cells: list[Cell] = [
        (f" {'❯' if is_chosen else ' '}{key} ", "bold" if is_chosen else "dim"),
        (" ", ""),
        (column(clean(name), NAME - 1), "bold reverse" if is_chosen else "bold"),
        (" ", ""),
        (f" {column(standing.word, WORD - 3)} ", badge(standing)),
        (" ", ""),
        (column(age, AGE), "" if standing.is_live else "red"),
    ]
    if width >= WITH_CLOCK:
        cells.append((column(runs_for, CLOCK), ""))
    if width >= WITH_BUNDLE:
        cells.append((column(clean(bundle), BUNDLE - 1) + " ", ""))
    cells += said
    return aged(tuple(cells)) if is_over and not is_chosen else tuple(cells)


def _worst(line: Deployed) -> list[Cell]:
    if (worst := line.worst) is None:
        return []
    return [(f"{MARKS[worst.severity]} {clean(worst.source)}: {clean(worst.text)}", STYLES[worst.severity])]


def _detail(line: Deployed | Far, width: int, now_ns: int) -> list[Row]:
    """What has no room in a line."""
    if isinstance(line, Far):
        rows = _facts(line.name, line.standing(now_ns), far_facts(line), width)
    else:
        model, standing = line.model, line.model.standing(now_ns)
        facts = [("task", f"“{model.task}”" if model.task else ""), ("bundle", model.bundle)]
        rows = _facts(model.robot, standing, [*facts, ("runs in", str(line.folder))], width)
        if (worst := line.worst) is not None:
            text = f"{worst.source}: {clean(worst.text)}" + (f" ({worst.n} times)" if worst.n > 1 else "")
            lines = wrapped(text, max(8, width - 4), max(8, width - 4))
            rows += [((f" {MARKS[worst.severity] if k == 0 else ' '} {words}", STYLES[worst.severity]),)
                     for k, words in enumerate(lines)]  # fmt: skip
    return (rows + [()] * DETAIL)[:DETAIL]


def _facts(name: str, standing: Standing, facts: Sequence[tuple[str, str]], width: int) -> list[Row]:
    """Its name, how it stands, and what else there is to say."""
    rows: list[Row] = [title(clean(name), width, (standing.word, standing.style))]
    for what, words in [("", standing.sentence), *facts]:
        if words:
            rows.append(((f" {what:<8}" if what else " ", OLD), (clean(words), "")))
    return rows


def fleet_keys(notice: str, width: int) -> Row:
    """What keys do here; a notice takes their place for a while."""
    if notice:
        return ((f" {notice}", "bold yellow"),)
    cells: list[Cell] = []
    for key, does in KEYS:
        cells += [(f" {key} ", "bold reverse"), (f" {does}  ", "")]
    return (*cells, (NOTHING_ACTS, "dim"))

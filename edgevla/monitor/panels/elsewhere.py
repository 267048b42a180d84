"""What the page of all deployments says of robots on other machines, and of the policy servers that serve them."""

from __future__ import annotations

from edgevla.clock import NS_PER_MS
from edgevla.monitor.elsewhere import Elsewhere, Far, lost_words
from edgevla.monitor.panels.events import wrapped
from edgevla.monitor.panels.marks import rate, title
from edgevla.monitor.rows import OLD, Cell, Row, clean
from edgevla.monitor.standing import ALARM, Standing, duration

NOBODY = "it serves no robot now; one that joins is shown at once"
STEERED = "by its own machine alone: ssh -t HOST edgevla monitor"


def server_rows(server: Elsewhere, width: int, now_ns: int) -> list[Row]:
    """Above its robots: who tells of them, whether it does, and why not."""
    report = server.report
    name, lost = f"robots at {server.server}", lost_words(report, now_ns)
    if report.about is None and not report.why_not:
        return [title(name, width, ("asking", "dim"))]
    if lost:
        age = "" if report.about is None else f", told {duration(now_ns - report.told_ns)} ago"
        words = wrapped(f"policy server {clean(lost)}", max(8, width - 2), max(8, width - 2))
        return [title(name, width, (f"LOST{age}", ALARM)), *(((f" {line}", "yellow"),) for line in words)]
    n = sum(not line.has_left for line in server.lines)
    rows: list[Row] = [title(name, width, (f"{n} served", "bold" if n else "dim"))]
    return rows if server.lines else [*rows, ((f" {NOBODY}", "dim italic"),)]


def far_words(line: Far, standing: Standing) -> list[Cell]:
    """Behind the columns: how it is served; grey where that is not of now."""
    return [(" · ".join([clean(line.told.robot), *_figures(line)]), "" if standing.is_live else OLD)]


def far_facts(line: Far) -> list[tuple[str, str]]:
    """What has no room in the line: words, and what they are about."""
    told = line.told
    kind = (
        f"{told.robot}, {'with committed actions (rtc)' if told.is_guided else 'without committed actions'}"
    )
    return [
        ("task", f"“{told.task}”" if told.task else ""),
        ("robot", kind),
        ("policy", f"{told.policy}, at {line.server.endpoint}; a chunk lasts {_span(told.chunk_ms)}"),
        ("asks", " · ".join(_figures(line))),
        ("steered", STEERED),
    ]


def _figures(line: Far) -> list[str]:
    told = line.told
    if told.asked_ms is None:
        return []
    found = [] if told.per_s is None else [rate(told.per_s)]
    found.append(f"{_span(told.buffered_ms)} buffered")
    return found + ([] if told.answer_ms is None else [f"answered in {_span(told.answer_ms)}"])


def _span(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 1000 else duration(round(ms * NS_PER_MS))

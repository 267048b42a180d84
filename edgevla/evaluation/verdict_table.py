"""What was found on a task, for a terminal; and before it begins, what so many episodes can show."""

from __future__ import annotations

from collections.abc import Sequence

from edgevla.evaluation.page import ruled, table
from edgevla.evaluation.statistics import DISAGREEMENT, detectable_difference, half_width
from edgevla.evaluation.verdicts import CellResult, Evaluated, Figure

CLIPPED_TOO_OFTEN, STARVED_TOO_OFTEN = 0.02, 0.5


def what_it_shows(n: int, n_cells: int) -> list[str]:
    """Sentences: how exactly n episodes tell a share, and which difference between two cells they find."""
    points = [f"{100 * half_width(share, n):.0f}" for share in (0.5, 0.8, 0.95)]
    found = [
        f"{n} episode{'s tell' if n != 1 else ' tells'} a success share to about {points[0]} points either way where it "
        f"is near 50 %, {points[1]} near 80 %, {points[2]} near 95 %."
    ]
    if n_cells < 2:
        return found
    least = detectable_difference(n)
    if least is None:
        found.append("So few cannot tell two settings apart, whatever they do: at least 6 places are needed.")
    else:
        found.append(
            f"Of two settings on these places, a difference of {100 * least:.0f} points or more is found four times out "
            f"of five (they disagree on {100 * max(DISAGREEMENT, least):.0f} % of the places); a smaller one may stay "
            "hidden."
        )
    return found


def tables(e: Evaluated, width: int | None = None) -> list[str]:
    """width: of the terminal, where there is one."""
    rows = [_row(result, e) for result in e.results]
    heads = list(dict.fromkeys(head for row in rows for head in row))
    made = ruled(table(heads, [[row.get(head, "") for head in heads] for row in rows], width))
    made += _outcomes(e.results) + _compared(e.results) + _remarks(e)
    return made


def _row(r: CellResult, e: Evaluated) -> dict[str, str]:
    low, high = r.interval
    row = {
        "cell": r.name,
        "success": f"{r.n_success}/{r.n}",
        "share": f"{100 * r.share:.1f} %",
        "95 %": f"{100 * low:.0f} to {100 * high:.0f}",
        "to success": "-" if r.time_to_success_s is None else f"{r.time_to_success_s:.1f} s",
    }
    for name, figure in r.figures.items():
        head, value = _figure(name, figure)
        row[head] = value
    row["clipped"] = f"{100 * r.clipped_share:.1f} %"
    row[f"seam p95 ({e.unit})"] = "-" if r.seam_p95 is None else f"{r.seam_p95.value:.2g}"
    row["within"] = "-" if r.within_p95 is None else f"{r.within_p95.value:.2g}"
    row["chunks"] = f"{r.n_inferences:.0f}"
    return row


def _figure(name: str, figure: Figure) -> tuple[str, str]:
    """`share_in_tolerance` as percent, `rms_mm` in its unit."""
    if name.startswith("share_"):
        return name.removeprefix("share_").replace("_", " "), f"{100 * figure.value:.0f} %"
    return name.replace("_", " "), f"{figure.value:.3g}"


def _outcomes(results: Sequence[CellResult]) -> list[str]:
    failing = [(r, [(o, n) for o, n in r.outcomes.most_common() if o != "success"]) for r in results]
    lines = [f"  {r.name}: " + ", ".join(f"{n} {o}" for o, n in found) for r, found in failing if found]
    return ["", "failures:", *lines] if lines else []


def _compared(results: Sequence[CellResult]) -> list[str]:
    lines = []
    for r in results[1:]:
        if r.pairs is None:
            continue
        p = r.pairs
        low, high = p.interval
        lines.append(
            f"  {r.name}: {100 * p.difference:+.1f} points ({100 * low:+.0f} to {100 * high:+.0f}); only it succeeds at "
            f"{p.gained} of {p.n} places, only the first at {p.lost}; p = {_p(p.p)}"
        )
    if not lines:
        return []
    return ["", f"against {results[0].name}, place by place (McNemar, exact, two-sided):", *lines]


def _p(p: float) -> str:
    return f"{p:.1e}" if p < 0.001 else f"{p:.3f}"


def _remarks(e: Evaluated) -> list[str]:
    """What needs a person's eye."""
    lines = []
    if (least := min(r.n for r in e.results)) < e.n_planned:
        lines.append(f"ended early: {least} of {e.n_planned} episodes of every cell")
    for r in e.results:
        if r.clipped_share > CLIPPED_TOO_OFTEN:
            most = ", ".join(f"{name.replace('_', ' ', 1)} {n}" for name, n in r.clipped.most_common(3))
            lines.append(
                f"{r.name}: safety bent the goal at {100 * r.clipped_share:.1f} % of the ticks ({most})"
            )
        if r.starved_share > STARVED_TOO_OFTEN:
            lines.append(
                f"{r.name}: the arm had no action to execute at {100 * r.starved_share:.0f} % of the ticks; chunks came "
                "too late, or not at all"
            )
        if r.stopped:
            lines.append(
                f"{r.name}: the arm stopped itself in {len(r.stopped)} of {r.n}: {r.stopped[0].stopped}"
            )
    return ["", *lines] if lines else []


def expected(results: Sequence[CellResult], least: float) -> tuple[bool, list[str]]:
    """Whether every cell but the controls reaches a success share, and a sentence for each about how sure that is."""
    lines = []
    judged = [r for r in results if r.cell.control == "none"]
    for r in judged:
        low, high = r.interval
        share, between = f"{100 * r.share:.1f} %", f"({100 * low:.0f} to {100 * high:.0f} %)"
        if r.share >= least:
            sure = "the interval excludes less" if low >= least else "the interval does not exclude less"
            word = "reaches"
        else:
            sure = "the interval excludes it" if high < least else "the interval does not exclude it"
            word = "misses"
        lines.append(f"expected {100 * least:g} %: {r.name} {word} it with {share} {between}; {sure}")
    return all(r.share >= least for r in judged), lines

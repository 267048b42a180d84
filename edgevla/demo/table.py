"""The demo's last page: what was learnt, in a table a newcomer understands, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TITLES = {
    "follow_cube": "cube at rest",
    "follow_cube/conveyor": "cube on a conveyor, 8 cm/s",
}
EXECUTIONS = {
    "sync": "sync: finish a chunk, wait for the next",
    "async": "async: think while moving",
}


def closing_words(results: Mapping[str, Any]) -> str:
    """Table, what it means, where things are, and the way to a real arm."""
    parts = [_table(results), _meaning(results), _rollouts(results), _where(results), _next(results)]
    return "\n\n".join(part for part in parts if part)


def _table(results: Mapping[str, Any]) -> str:
    lines = [
        "Success = gripper within 2 cm of the point above the cube for the whole last half second.",
        "",
        f"{'what':<28}{'execution':<42}{'delay':>7}  {'success':>9}  {'95 % interval':<14}{'error':>9}",
    ]
    lines.append("-" * len(lines[-1]))
    for t in results["trials"]:
        low, high = (round(100 * share) for share in t["interval"])
        what, how = TITLES[t["task"]], EXECUTIONS.get(t["execution"], t["execution"])
        if t["control"] == "black":
            what = "control: black pictures"
        elif t["control"] == "misaligned":
            what = "control: misaligned chunks"
        count = f"{t['n_success']}/{t['n']}"
        lines.append(
            f"{what:<28}{how:<42}{t['delay_ms']:>4.0f} ms  {count:>9}  {f'{low} to {high} %':<14}{t['rms_mm']:>6.0f} mm"
        )
    return "\n".join(lines)


def _meaning(results: Mapping[str, Any]) -> str:
    if not results["size"]["learns"]:
        return "This was the smoke run: every step ran, nothing was learnt. The real one: edgevla demo"
    if results["passed"]:
        return (
            "A slow policy need not be a late one: with 200 ms of thinking, `sync` trails the moving cube;\n"
            "`async` starts each chunk at the action that is due and stays above it: same policy, same places."
        )
    return (
        "These figures fall short of what this demo usually reaches (at rest 95 %, moving at 200 ms 90 % with async,\n"
        "below 20 % with sync). Training varies with the seed: try --seed 1, and see the loss curves in runs/."
    )


def _rollouts(results: Mapping[str, Any]) -> str:
    lines = []
    for r in results["rollouts"]:
        s = r["summary"]
        late = s.get("lateness_ms") or {}
        late_p99 = late.get("p99") if isinstance(late, Mapping) else None
        timing = "" if late_p99 is None else f"; control loop late by {late_p99:.2f} ms (p99)"
        lines.append(
            f"  {TITLES[r['task']]}, {r['execution']}, {r['delay_ms']:.0f} ms: "
            f"{r['n_success']} of {r['n']} episodes{timing}"
        )
    return (
        "Through the real processes and the serial emulator, in real time:\n" + "\n".join(lines)
        if lines
        else ""
    )


def _where(results: Mapping[str, Any]) -> str:
    folder = results["folder"]
    seconds = results["seconds"]
    steps = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items() if name != "all")
    return (
        f"Took {seconds['all'] / 60:.1f} minutes ({steps}).\n"
        f"Look at: {folder}/evals/*/sheet.png (what the camera saw), {folder}/runs/*/loss.png,\n"
        f"{folder}/bundles/*/report.html"
    )


def _next(results: Mapping[str, Any]) -> str:
    folder = results["folder"]
    return "\n".join(
        [
            "Next:",
            f"  edgevla deploy {folder}/bundles/conveyor --robot so101 --sim --sim-task follow_cube/conveyor \\",
            "      --execution async --monitor              watch it live",
            "With a real SO101:",
            "  edgevla doctor --robot so101                 find the port, check the servos and their calibration",
            "  edgevla train --policy act --dataset ...     on your own LeRobot dataset of demonstrations",
            "  edgevla export runs/... --dataset ...        compile what was learnt",
            "  edgevla deploy bundles/... --robot so101 --camera front=0",
        ]
    )

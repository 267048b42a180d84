"""`edgevla inspect RUN`: what happened in words, the timeline as a picture, and one moment explained."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgevla.errors import MissingExtraError, UsageError
from edgevla.flight.findings import RunFinding, find, numbered
from edgevla.flight.frames import Glimpse, glimpses
from edgevla.flight.frames import told as told_glimpses
from edgevla.flight.moments import about, moments
from edgevla.flight.reader import Run, entries, load
from edgevla.flight.story import explain, heading, moment, sentence, told, worst


def inspect_run(args: argparse.Namespace, folder: Path) -> int:
    """
    Raises:
        UsageError: the log cannot be read, or knows nothing of the moment.
    """
    if args.lines:
        for entry in entries(folder):
            print(json.dumps(entry, separators=(",", ":")))
        return 0
    if args.replay_chunk is not None:
        return _replay(folder, args.replay_chunk, args.json)
    if args.save:
        print(save_now(folder))
        return 0
    run = load(folder)
    found = find(run)
    at_ns = None if args.at is None else moment(run, args.at)
    shown, damaged = ([], []) if at_ns is None else glimpses(run, at_ns)
    if args.json:
        print(json.dumps(_json(run, found), indent=1))
        return 1 if args.picture and not _draw(run, found, args.picture, at_ns, shown) else 0
    print("\n".join(heading(run)))
    if at_ns is not None:
        seen = [*told_glimpses(run, at_ns, shown), *(f"! {words}" for words in damaged)]
        print("\n" + "\n".join([*explain(run, at_ns, found), "", *seen]))
    else:
        print("\n" + "\n".join(_story(run, found)))
    picture = _draw(run, found, args.picture, at_ns, shown)
    if picture:
        print(f"\n{picture}")
    return 1 if args.picture and not picture else 0


def _replay(folder: Path, number: int, as_json: bool) -> int:
    from edgevla.flight.replay import describe, replay

    replayed = replay(folder, number)
    if as_json:
        told = {"chunk": number, "bundle": str(replayed.bundle), "engine": replayed.engine}
        print(
            json.dumps({**told, "is_equal": replayed.is_equal, "actions": replayed.again.tolist()}, indent=1)
        )
    else:
        print("\n".join(describe(replayed)))
    return 0 if replayed.is_equal else 1


def save_now(folder: Path) -> str:
    """Asks the policy node of the run that writes this folder.

    Raises:
        UsageError: the run has ended, or refuses. WireError: it does not answer.
    """
    import zmq

    from edgevla.flight.witness import run_folder_of
    from edgevla.session import deployments, endpoint, read_deployment
    from edgevla.wire import CommandClient

    run_dir = next((d for d in deployments() if run_folder_of(d) == folder), None)
    if run_dir is None:
        raise UsageError(f"no deployment of this user writes {folder} now: --save is for a run that goes on")
    session = bytes.fromhex(read_deployment(run_dir).session)
    ctx = zmq.Context()
    try:
        client = CommandClient(ctx, endpoint(run_dir, "policy", "commands"), session, "inspect")
        try:
            ack = client.request("save")
        finally:
            client.close()
    finally:
        ctx.destroy(linger=0)
    if not ack.is_accepted:
        raise UsageError(ack.reason)
    return ack.reason


def _saved(folder: Path) -> list[str]:
    """What can be inferred again."""
    places = moments(folder)
    if not places:
        return []
    notes, lines = [], []
    for place in places:
        try:
            notes.append(about(place))
            lines.append(f"  {place.relative_to(folder)}: {notes[-1].why}")
        except UsageError as error:  # the story of the run is no worse for it
            lines.append(f"  ! {error}")
    chunks = [entry["chunk"] for note in notes for entry in note.chunks]
    several = f"{len(places)} moment{'s' * (len(places) > 1)}"
    again = (
        [f"  chunks {min(chunks)} to {max(chunks)} can be inferred again: --replay-chunk N"] if chunks else []
    )
    return [
        "",
        f"saved for good: {several} with what the policy saw",
        *lines,
        *again,
    ]


def _story(run: Run, found: list[RunFinding]) -> list[str]:
    number = {id(f): f" [{n} in the picture]" for n, f in numbered(found)}
    lines = [sentence(run, f) + number.get(id(f), "") for f in found] or ["nothing was out of the ordinary"]
    left_out = {
        f.kind: f.fields["n"] for f in found if f.fields.get("n", 0) > sum(g.kind == f.kind for g in found)
    }
    if left_out:
        names = ", ".join(f"{n} {WORDS.get(kind, kind)}" for kind, n in left_out.items())
        lines += ["", f"The largest of each kind are told; in all there were {names}."]
    lines += _saved(run.folder)
    if summary := worst(run, found):
        lines += ["", f"The largest jump: {summary}.", "More about a moment: --at MM:SS"]
    return lines


WORDS = {
    "seam": "seams that jumped",
    "jump": "jumps within chunks",
    "measured": "leaps of measured joints",
    "clip": "times of clipping",
    "stale": "times without a fresh action",
    "unread": "times without a position",
    "late_tick": "times of late ticks",
    "late_chunk": "late chunks",
}


def _draw(
    run: Run, found: list[RunFinding], path: Path | None, at_ns: int | None, shown: Sequence[Glimpse]
) -> str:
    from edgevla.flight.picture import write_picture

    if not run.n_ticks:
        return ""
    name = "timeline.png" if at_ns is None else f"timeline-{run.seconds(at_ns):.1f}s.png"
    place = path or run.folder / name
    try:
        write_picture(run, found, place, at_ns, shown)
    except ModuleNotFoundError:
        return f"no picture: {MissingExtraError('eval', 'matplotlib')}"
    except (OSError, ValueError) as error:
        print(f"no picture: {place}: {error}; --picture PNG takes another place", file=sys.stderr)
        return ""
    return f"picture: {place}"


def _json(run: Run, found: list[RunFinding]) -> dict[str, Any]:
    return {
        "kind": "run",
        "path": str(run.folder),
        "about": run.about,
        "is_whole": run.is_whole,
        "begun_ns": run.begun_ns,
        "wall_ns": run.wall_ns,
        "n_ticks": run.n_ticks,
        "findings": [
            {
                "kind": f.kind,
                "at_s": round(float(run.seconds(f.ns)), 3),
                "until_s": round(float(run.seconds(f.until_ns)), 3),
                "joint": None if f.joint is None else run.joints[f.joint],
                "size": round(f.size, 4),
                "text": told(run, f),
            }
            for f in found
        ],
        "summary": run.summary,
    }

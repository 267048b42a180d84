"""Measure a bundle on this machine: time per graph, memory, and which execution that allows at which rate.

  edgevla bench bundles/act                     100 chunks, or as many as a minute holds
  edgevla bench bundles/pi0 --chunks 5 --json

No robot is needed, and none may run here meanwhile. The input is blank; its values cost no time. Ctrl-C ends it and
prints what was measured. What another board could do at best: edgevla inspect BUNDLE --device NAME.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevla.launch.options import whole

if TYPE_CHECKING:
    from edgevla.bench import Measured, MemoryUse
    from edgevla.manifest import Manifest
    from edgevla.runner import BundlePolicy

N_CHUNKS, LONGEST_S = 100, 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bundle", type=Path, help="folder made by edgevla export")
    add("--chunks", type=whole(1, 1_000_000), metavar="N",
        help=f"so many, however long they take; default: {N_CHUNKS}, or as many as {LONGEST_S:.0f} s hold")  # fmt: skip
    add("--provider", choices=("cpu", "cuda", "tensorrt"), help="default: what the bundle was exported for")
    add("--threads", type=whole(1, 1024), metavar="N", help="of the CPU engine; default: all cores but one")
    add("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    from edgevla.bench import measure, memory
    from edgevla.bundle import load_bundle
    from edgevla.engines import EngineOptions
    from edgevla.interruption import Interruption
    from edgevla.progress import ProgressLine
    from edgevla.runner import BundlePolicy

    _check_idle()
    before = memory()
    began = time.monotonic()
    bundle = load_bundle(args.bundle)
    options = EngineOptions(threads=args.threads or 0)
    policy = BundlePolicy(bundle, provider=args.provider, options=options)
    opened_s = time.monotonic() - began
    n = args.chunks or N_CHUNKS
    progress = ProgressLine(n, "chunks", out=sys.stderr if sys.stderr.isatty() else None)
    with Interruption() as interruption:
        try:
            found = measure(
                policy,
                n,
                longest_s=float("inf") if args.chunks else LONGEST_S,
                is_over=lambda: interruption.signal is not None,
                show=progress.show,
            )
        finally:
            progress.close()
    after = memory()
    bound = _bound(policy)
    data = _data(policy, found, before, after, opened_s, bound)
    print(json.dumps(data, indent=2) if args.json else "\n".join(_lines(args.bundle, policy, data)))
    return 0 if interruption.signal is None else 130


def _check_idle() -> None:
    """
    Raises:
        UsageError: a deployment runs here; it would be disturbed, and so would the figures.
    """
    from edgevla.errors import UsageError
    from edgevla.session import deployments, describe

    if running := deployments():
        raise UsageError(
            f"a deployment is running here ({describe(running[0])}), and a bench would take its cores; end it first"
        )


def _bound(policy: BundlePolicy) -> float | None:
    """ms of a chunk at best on this machine's CPU, by the planner; None: not known for this bundle or engine."""
    if policy.provider != "cpu" or policy.manifest.work is None:
        return None
    planner = importlib.import_module("edgevla.export.planner")
    subject = planner.subject_of(policy.manifest)
    plans = planner.plans(subject, planner.device(planner.THIS))
    ms: float = next(plan.chunk_ms for plan in plans if plan.precision == subject.stored)
    return ms


def _data(
    policy: BundlePolicy,
    found: Measured,
    before: MemoryUse,
    after: MemoryUse,
    opened_s: float,
    bound: float | None,
) -> dict[str, Any]:
    m = policy.manifest
    return {
        "policy": m.policy,
        "provider": policy.provider,
        "threads": policy.options.n_threads if policy.provider == "cpu" else None,
        "n": found.n,
        "opened_s": opened_s,
        "first_ms": found.first_ms,
        "chunk": asdict(found.chunk),
        "parts": {name: asdict(spent) for name, spent in found.parts.items()},
        "n_steps": m.schedule.n_steps if m.schedule is not None else 0,
        "memory": asdict(after) | {"resident_before": before.resident},
        "bound_ms": bound,
        "fps": m.fps,
        "chunk_size": m.chunk_size,
        "executions": _executions(m, found.chunk.p50_ms, found.chunk.p99_ms),
    }


def _executions(m: Manifest, p50_ms: float, p99_ms: float) -> dict[str, Any]:
    """By kind: whether the arm never waits at the bundle's rate, and up to which rate that is so; by p50 and p99."""
    from edgevla.execution import highest_hz, in_time

    longest = m.rtc.max_delay if m.rtc is not None else None
    kinds, size = m.execution.allowed, m.chunk_size
    usually = in_time(kinds, chunk_size=size, fps=m.fps, latency_ms=p50_ms, trained_delay=longest)
    nearly_always = in_time(kinds, chunk_size=size, fps=m.fps, latency_ms=p99_ms, trained_delay=longest)
    return {
        kind: {
            "in_time": kind in usually,
            "in_time_p99": kind in nearly_always,
            "highest_hz": highest_hz(kind, chunk_size=size, latency_ms=p50_ms, trained_delay=longest),
            "highest_hz_p99": highest_hz(kind, chunk_size=size, latency_ms=p99_ms, trained_delay=longest),
        }
        for kind in kinds
        if kind != "sync"
    }


# -- words -----------------------------------------------------------------------------------------------------


def _lines(folder: Path, policy: BundlePolicy, data: dict[str, Any]) -> Iterator[str]:
    threads = f", {data['threads']} thread{'s' * (data['threads'] != 1)}" if data["threads"] else ""
    yield (
        f"{folder}: {data['policy']} on {data['provider']}{threads}; opened in {data['opened_s']:.2f} s, "
        f"first chunk {data['first_ms']:.3g} ms"
    )
    yield f"{'ms, of ' + str(data['n']) + ' chunks':<24}{'p50':>9}{'p99':>9}{'max':>9}"
    rows = {name: spent for name, spent in data["parts"].items() if spent["max_ms"] >= 0.001}
    for name, spent in (rows | {"chunk": data["chunk"]}).items():
        steps = f" ({data['n_steps']} steps)" if name == "denoise" and data["n_steps"] else ""
        figures = "".join(f"{spent[key]:>9.3g}" for key in ("p50_ms", "p99_ms", "max_ms"))
        yield f"  {name + steps:<22}{figures}"
    yield _memory_words(data["memory"])
    yield _bound_words(policy, data)
    yield from _execution_words(policy.manifest, data)


def _memory_words(memory: dict[str, int | None]) -> str:
    peak, before, pss = memory["peak"], memory["resident_before"], memory["shared_out"]
    if peak is None or before is None:
        return "memory      not told by this system"
    more = f"; PSS {pss / 1e6:.0f} MB" if pss is not None else ""
    return f"memory      at most {peak / 1e6:.0f} MB resident, {before / 1e6:.0f} MB of it before the bundle{more}"


def _bound_words(policy: BundlePolicy, data: dict[str, Any]) -> str:
    if data["bound_ms"] is not None:
        words = importlib.import_module("edgevla.export.planner").share_words
        share = words(data["bound_ms"] / data["chunk"]["p50_ms"])
        return f"at best     {data['bound_ms']:.3g} ms per chunk on one core of this machine: {share}"
    if policy.provider != "cpu":
        return "at best     see `edgevla inspect BUNDLE --device NAME`: this machine's GPU is not measured"
    return "at best     not known: the bundle does not say how much arithmetic it is; export it again"


def _execution_words(m: Manifest, data: dict[str, Any]) -> Iterator[str]:
    from edgevla.execution.strategies import HIGHEST_HZ

    play_ms = 1e3 * m.n_action_steps / m.fps
    wait_ms = data["chunk"]["p50_ms"]
    yield (
        f"at {m.fps:g} Hz    sync: the arm waits {wait_ms:.3g} ms after every {play_ms:.0f} ms, "
        f"{wait_ms / (wait_ms + play_ms):.0%} of the time"
    )
    for kind, found in data["executions"].items():
        most, nearly = found["highest_hz"], found["highest_hz_p99"]
        rate = "at no rate" if most is None else f"up to {most} Hz{' or more' * (most == HIGHEST_HZ)}"
        late = (
            "" if nearly == most else f" (99 of 100 chunks: {'none' if nearly is None else f'{nearly} Hz'})"
        )
        waits = "never waits" if found["in_time"] else "waits between chunks"
        yield f"            {kind}: {waits}; in time {rate}{late}"

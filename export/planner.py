"""Whether a policy fits a computer, and how fast it can be there at best: a bound from bytes and arithmetic.

The roofline of Williams, Waterman and Patterson (2009), graph by graph: a run takes no less time than its products at
the device's peak, and no less than reading its weights once. What a device reaches of it is measured, not known from
here; `this` measures it on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgevla.bundle import Bundle
from edgevla.errors import UsageError
from edgevla.execution import in_time
from edgevla.extras import install_words
from edgevla.manifest import Manifest
from edgevla.manifest_record import Work
from edgevla.strict import nearest, read
from edgevla.toml import load_toml

DEVICES = Path(__file__).with_name("devices.toml")
THIS = "this"
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "int4": 21 / 32}
"""Of a weight; of int4 with the scale and the zero point of its block."""
COMPUTED_IN = {"cpu": {"int4": "int8"}, "gpu": {"int4": "fp16", "bf16": "fp16"}}
"""Whose peak counts for precisions that a device names no peak of."""
CPU_MEMORY_FACTOR, RUNTIME_BYTES = 2.0, 60 << 20
"""ONNX Runtime on a CPU packs weights a second time; measured for ACT, 139 MB file -> 359 MB of memory."""
SYSTEM_BYTES = 2e9
"""What the system, cameras and EdgeVLA's other processes keep of a device's memory."""
MEASURED_INT8, MEASURED_RUNS = 4, 5
"""int8 products per fp32 product of a CPU with dot-product instructions."""


@dataclass(frozen=True)
class Device:
    """memory: GB. bandwidth: GB/s. peak: precision -> 1e12 operations per second, dense."""

    title: str
    processor: Literal["cpu", "gpu"]
    memory: float
    bandwidth: float
    peak: dict[str, float]
    source: str


@dataclass(frozen=True)
class PlanSubject:
    """What is planned. work: by graph. n_steps: runs of `denoise` per chunk. stored: precision of a bundle's graphs,
    empty for a checkpoint. fps: None where nobody said.
    """

    work: Mapping[str, Work]
    n_steps: int
    chunk_size: int
    fps: float | None
    kinds: tuple[str, ...]
    stored: str = ""


@dataclass(frozen=True)
class PrecisionPlan:
    """In one precision. ms: by graph, all its runs of one chunk. works: executions that never wait for a chunk."""

    precision: str
    ms: dict[str, float]
    memory_bytes: float
    fits: bool
    works: tuple[str, ...]

    @property
    def chunk_ms(self) -> float:
        return sum(self.ms.values())


def device(name: str) -> Device:
    """
    Raises:
        UsageError: no such device; names the known ones.
    """
    if name == THIS:
        return this_machine()
    known = devices()
    if name not in known:
        raise UsageError(
            f"--device {name}: known are {', '.join(known)} and {THIS}{nearest(name, [*known, THIS])}"
        )
    return known[name]


def devices() -> dict[str, Device]:
    data = load_toml(DEVICES)
    return {name: read(Device, table, f"{DEVICES.name}, {name}") for name, table in data.items()}


def subject_of(manifest: Manifest) -> PlanSubject:
    """
    Raises:
        UsageError: the bundle was exported before work was counted.
    """
    if manifest.work is None:
        raise UsageError(f"bundle '{manifest.name}' does not say how much arithmetic it is; export it again")
    n_steps = manifest.schedule.n_steps if manifest.schedule is not None else 0
    stored = next((p for p in manifest.target.precision.values() if p != "fp32"), "fp32")
    kinds = manifest.execution.allowed
    return PlanSubject(manifest.work, n_steps, manifest.chunk_size, manifest.fps, kinds, stored)


def subject_of_checkpoint(folder: Path, base: str, fps: float | None) -> PlanSubject:
    """Needs torch.

    Raises:
        CheckpointError: it cannot be loaded. UsageError: torch is not here.
    """
    try:
        from edgevla.train.checkpoint import load_policy

        from .work import count
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--device counts a checkpoint's arithmetic with torch, and {error.name} is not installed: "
            f"{install_words('train')}, or ask about a bundle"
        ) from None
    policy = load_policy(folder, base=base)
    kinds = ("sync", "ensemble", "async", *(["rtc"] if policy.rtc_kind is not None else []))
    chunk = policy.graphs()["decode"].outputs[0].shape[1]
    n_steps = policy.schedule.n_steps if policy.schedule is not None else 0
    return PlanSubject(count(policy), n_steps, chunk, fps, kinds)


def plans(subject: PlanSubject, on: Device) -> list[PrecisionPlan]:
    return [_plan(subject, on, precision) for precision in BYTES if _peak(on, precision) is not None]


def _plan(subject: PlanSubject, on: Device, precision: str) -> PrecisionPlan:
    ms = {name: _bound_ms(work, on, precision) * _runs(subject, name) for name, work in subject.work.items()}
    n_bytes = sum(work.weights for work in subject.work.values()) * BYTES[precision]
    if on.processor == "cpu":  # which computes fp16 with widened weights
        n_bytes = int(n_bytes * (2 if precision == "fp16" else 1) * CPU_MEMORY_FACTOR)
    memory = n_bytes + RUNTIME_BYTES
    spent = sum(ms.values())
    works = (
        ()
        if subject.fps is None
        else in_time(subject.kinds, chunk_size=subject.chunk_size, fps=subject.fps, latency_ms=spent)
    )
    return PrecisionPlan(precision, ms, memory, memory + SYSTEM_BYTES <= on.memory * 1e9, works)


def _peak(on: Device, precision: str) -> float | None:
    return on.peak.get(COMPUTED_IN[on.processor].get(precision, precision))


def _runs(subject: PlanSubject, graph: str) -> int:
    return subject.n_steps if graph == "denoise" else 1


def _bound_ms(work: Work, on: Device, precision: str) -> float:
    peak = _peak(on, precision)
    assert peak is not None
    arithmetic = work.flops / (peak * 1e12)
    reading = work.weights * BYTES[precision] / (on.bandwidth * 1e9)
    return max(arithmetic, reading) * 1e3


# -- this machine --------------------------------------------------------------------------------------------------


def this_machine() -> Device:
    """Its CPU, one core: products of matrices and copying memory, as fast as NumPy does them here."""
    import os

    import numpy as np

    a = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    flops = 2 * 1024**3 / _least_s(lambda: a @ a)
    block = np.zeros(64 << 20, np.uint8)
    copied = 2 * block.nbytes / _least_s(block.copy)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    peak = flops / 1e12
    return Device(
        f"this machine's CPU ({os.cpu_count()} cores)",
        "cpu",
        memory / 1e9,
        copied / 1e9,
        {"fp32": peak, "fp16": peak, "int8": MEASURED_INT8 * peak},
        f"measured now with NumPy; int8 taken as {MEASURED_INT8} times fp32",
    )


def _least_s(call: Any) -> float:
    spent = []
    for _ in range(5):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return min(spent)


def measured_ms(bundle: Bundle) -> float:
    """Of one chunk, by the bundle's own engine on this machine; the median of a few."""
    from edgevla.bench import measure
    from edgevla.runner import BundlePolicy

    return measure(BundlePolicy(bundle), MEASURED_RUNS).chunk.p50_ms


# -- words -----------------------------------------------------------------------------------------------------------


def lines(
    subject: PlanSubject, on: Device, found: list[PrecisionPlan], measured: float | None = None
) -> Iterator[str]:
    peaks = ", ".join(f"{p} {on.peak[p]:.3g}" for p in BYTES if p in on.peak)
    yield f"device        {on.title}: {on.bandwidth:.0f} GB/s, 1e12 operations/s: {peaks}; {on.memory:.0f} GB"
    yield f"  from        {on.source}"
    parts = [
        f"{_times(subject, name)}{name} {work.flops / 1e9:.3g} Gflop, {work.weights / 1e6:.3g} M weights"
        for name, work in subject.work.items()
        if work.flops
    ]
    yield f"work          {'; '.join(parts)}"
    yield "no faster than (all products at the peak, weights read once a run; real runs take longer):"
    for plan in found:
        yield f"  {plan.precision:<12}{_words(plan, subject)}"
    if measured is not None:
        stored = next((p for p in found if p.precision == subject.stored), None)
        share = "" if stored is None else f": {share_words(stored.chunk_ms / measured)}"
        yield f"measured      {measured:.3g} ms per chunk here, as exported ({subject.stored}){share}"


def share_words(share: float) -> str:
    """share: the bound over what was measured."""
    if share <= 1:
        return f"{share:.0%} of what is possible"
    return (
        "faster than that, so this machine's peak was measured too low (other programs, or NumPy with fewer threads); "
        "measure again on an idle machine"
    )


def _times(subject: PlanSubject, graph: str) -> str:
    n = _runs(subject, graph)
    return f"{n} x " if n > 1 else ""


def _words(plan: PrecisionPlan, subject: PlanSubject) -> str:
    memory = f"about {plan.memory_bytes / 1e9:.2g} GB"
    if not plan.fits:
        return f"does not fit: {memory}, and the system needs {SYSTEM_BYTES / 1e9:.0f} GB beside it"
    said = f"{plan.chunk_ms:.3g} ms per chunk, {memory}"
    if subject.fps is None:
        return f"{said}; no control rate is stated, so executions are not judged"
    play_ms = 1e3 * subject.chunk_size / subject.fps
    if plan.works:
        return f"{said}; {', '.join(plan.works)} without waiting (a chunk plays {play_ms:.0f} ms)"
    return f"{said}; sync only, and the arm waits between chunks (one plays {play_ms:.0f} ms): see `edgevla serve`"


def as_data(on: Device, found: list[PrecisionPlan], measured: float | None = None) -> dict[str, Any]:
    """For --json."""
    rows = [
        {
            "precision": plan.precision,
            "chunk_ms_at_best": plan.chunk_ms,
            "graphs_ms": plan.ms,
            "memory_bytes": plan.memory_bytes,
            "fits": plan.fits,
            "executions": list(plan.works),
        }
        for plan in found
    ]
    return {"device": vars(on), "plans": rows, "measured_ms": measured}

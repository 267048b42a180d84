"""`edgevla inspect RUN --replay-chunk N`: the same inference again, from what was saved, compared bit by bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevla.errors import UsageError
from edgevla.flight.moments import About, Seen, find_chunk


@dataclass(frozen=True)
class Replayed:
    """again: float32 (T, A), policy units. engine: that ran it now."""

    about: About
    seen: Seen
    bundle: Path
    names: tuple[str, ...]
    units: tuple[str, ...]
    again: np.ndarray
    engine: str

    @property
    def is_equal(self) -> bool:
        """To the bit."""
        before = np.ascontiguousarray(self.seen.actions, np.float32)
        return before.shape == self.again.shape and before.tobytes() == self.again.tobytes()


def replay(folder: Path, number: int) -> Replayed:
    """
    Raises:
        UsageError: the chunk was not saved, or its bundle is not found. BundleError, EngineError: as `BundlePolicy`.
    """
    from edgevla.bundle import load_bundle
    from edgevla.engines import EngineOptions
    from edgevla.flight.witness import engine_version
    from edgevla.runner import BundlePolicy

    about, seen = find_chunk(folder, number)
    place = find_bundle(about)
    bundle = load_bundle(place)
    policy = BundlePolicy(
        bundle,
        provider=about.provider if about.provider in ("cpu", "cuda", "tensorrt") else None,
        seed=seen.seed,
        options=EngineOptions(threads=about.threads),
        allow_lost_cameras=True,
        select=1 if seen.rtc is None else seen.rtc.select,
    )
    result = policy.infer(
        seen.moments[seen.grid_index],
        grid_index=seen.grid_index,
        past={n: then for n, then in seen.moments.items() if n != seen.grid_index},
        n_steps=seen.n_steps,
        rtc=seen.rtc,
        chunk_seq=seen.chunk_seq,
        seed=seen.seed,
    )
    action = bundle.manifest.action
    again = np.ascontiguousarray(result.actions, np.float32)
    return Replayed(about, seen, place, action.names, action.units, again, engine_version())


def find_bundle(about: About) -> Path:
    """Where it was, else one with the same hash in the usual places.

    Raises:
        UsageError: it is not there.
    """
    for place in _places(about):
        manifest = place / "manifest.json"
        if manifest.is_file() and hashlib.sha256(manifest.read_bytes()).hexdigest() == about.sha256:
            return place
    raise UsageError(
        f"the bundle of this run ({about.sha256[:12]}, then at {about.bundle}) is not found there, nor in bundles/* "
        "and the like below here; go to where it lies, or copy it to bundles/"
    )


def _places(about: About) -> Iterator[Path]:
    from edgevla.launch.deploy_cli import BUNDLE_PLACES

    yield Path(about.bundle)
    for pattern in BUNDLE_PLACES:
        yield from sorted(Path().glob(pattern))


def describe(r: Replayed) -> list[str]:
    """What came of it."""
    one = r.seen
    camera_words = ", ".join(
        f"{name.rpartition('.')[2]} {image.shape[1]}x{image.shape[0]}"
        for name, image in one.moments[one.grid_index].images.items()
    )
    lines = [
        f"chunk {one.request_id}: {len(one.actions)} actions, grid moment {one.grid_index}, seed {one.seed}, noise "
        f"{one.chunk_seq}; saw {camera_words or 'no camera'}",
        f"saved because: {r.about.why}",
        f"bundle {r.bundle} ({r.about.sha256[:12]}), {r.about.provider}, {r.about.threads} threads",
    ]
    if r.is_equal:
        return [*lines, f"the same inference again is EQUAL TO THE BIT ({r.engine})"]
    engines = "" if r.engine == r.about.engine else f"; then it was {r.about.engine}, now it is {r.engine}"
    if r.again.shape != one.actions.shape:
        return [*lines, f"DIFFERENT: {one.actions.shape} actions then, {r.again.shape} now{engines}"]
    gap = np.abs(r.again - one.actions)
    worst = int(gap.max(axis=0).argmax())
    far = f"by up to {gap[:, worst].max():.3g} {r.units[worst] if r.units else ''} ({r.names[worst]})"
    return [*lines, f"DIFFERENT {far}{engines}"]

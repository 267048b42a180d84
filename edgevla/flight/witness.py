"""The policy node's part of the flight recorder: remembers every inference, saves when something happens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgevla.engines import EngineOptions
from edgevla.flight.moments import Memory, Saver, Seen
from edgevla.messages import Event, Message
from edgevla.predictor import InferenceResult, RtcInputs
from edgevla.types import Observation

LINK = "flight"
"""In a deployment's run directory: the folder that the run leaves."""


class Witness:
    """One policy node's. folder: of the run. bundle: where it lies, or who runs it. threads: of the engine, as asked.

    say: hears sentences, also on another thread; it keeps them until they can be told.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float,
        bundle: str,
        sha256: str,
        provider: str,
        threads: int,
        say: Callable[[str], None],
    ) -> None:
        about = {
            "bundle": bundle,
            "sha256": sha256,
            "provider": provider,
            "threads": EngineOptions(threads=threads).n_threads,
            "engine": engine_version(),
        }
        self._memory = Memory(seconds)
        self._saver = Saver(folder, about, self._memory, say)
        self._moments: dict[int, Observation] = {}

    def forget(self) -> None:
        """A new rollout: the past is another one's."""
        self._moments.clear()

    def see(
        self,
        request_id: int,
        grid: int,
        observed_ns: int,
        observation: Observation,
        past: Mapping[int, Observation],
        n_moments: int,
        n_steps: int | None,
        rtc: RtcInputs | None,
        result: InferenceResult,
    ) -> None:
        """What an inference was made from, and what came of it. n_moments: that it looks at."""
        known = {**self._moments, **past, grid: observation}
        self._moments = {n: known[n] for n in sorted(known) if grid - n_moments < n <= grid}
        seed, seq = result.noise_seed, result.chunk_seq
        self._memory.add(
            Seen(request_id, grid, observed_ns, dict(self._moments), n_steps, rtc, seed, seq, result.actions)
        )

    def hear(self, events: Sequence[Message[Event]], now_ns: int) -> None:
        """A fault saves what led to it."""
        for event in events:
            if event.body.severity in ("error", "stop"):
                self._saver.save(f"{event.source}: {event.body.text}", now_ns, is_fault=True)

    def save(self, why: str, now_ns: int) -> str:
        return self._saver.save(why, now_ns)

    def close(self) -> None:
        self._saver.close()


def run_folder_of(run_dir: Path) -> Path | None:
    """What the deployment of that run directory leaves behind; None where it keeps no log."""
    link = run_dir / LINK
    return link.resolve() if link.is_dir() else None


def engine_version() -> str:
    """Of the engine that is loaded: equal to the bit is promised on the same one only."""
    for name in ("onnxruntime", "tensorrt"):
        if name in sys.modules:
            return f"{name} {getattr(sys.modules[name], '__version__', '?')}"
    return "none"

"""What a policy saw and answered: kept for a minute in memory, saved for good when something happens, inferred again.

    RUN/saved/00012.345-fault/moment.json     why, which bundle and engine, one entry per chunk
                              31.npz          of chunk 31: pictures, state, committed actions, and the answer

A saved moment is written whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.errors import UsageError
from edgevla.launch.logfiles import SAVED
from edgevla.predictor import RtcInputs
from edgevla.types import Observation

KEPT_S = 60.0
SAVED_S = 30.0
BYTES_PER_S = 4_500_000
"""Of memory: a minute takes at most 270 MB; where there is more to keep, the oldest goes earlier."""
MOST_SAVED = 20
"""Moments of one run: an arm that fails again and again does not fill the disk."""
NOTE = "moment.json"
FORMAT = 1
NUMBERS = ("chunk", "grid_index", "observed_ns")
"""Of each inference, by which it is found."""


@dataclass(frozen=True)
class Seen:
    """One inference. moments: grid moment -> what was seen then, oldest first, the last is the chunk's own.

    actions: float32 (T, A), policy units, as they were inferred. seed, chunk_seq: of the noise.
    """

    request_id: int
    grid_index: int
    observed_ns: int
    moments: Mapping[int, Observation]
    n_steps: int | None
    rtc: RtcInputs | None
    seed: int
    chunk_seq: int
    actions: np.ndarray

    @property
    def n_bytes(self) -> int:
        seen = self.moments[self.grid_index]
        return sum(image.nbytes for image in seen.images.values()) + self.actions.nbytes + 1000


class Memory:
    """The newest inferences: at most so many seconds, and so many bytes. Fed by one thread, saved from by another."""

    def __init__(self, seconds: float = KEPT_S) -> None:
        self._kept_ns = round(seconds * 1e9)
        self._most_bytes = round(seconds * BYTES_PER_S)
        self._ring: deque[Seen] = deque()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def add(self, seen: Seen) -> None:
        with self._lock:
            self._ring.append(seen)
            self._n_bytes += seen.n_bytes
            while self._ring and (
                self._n_bytes > self._most_bytes
                or self._ring[0].observed_ns < seen.observed_ns - self._kept_ns
            ):
                self._n_bytes -= self._ring.popleft().n_bytes

    @property
    def n_bytes(self) -> int:
        return self._n_bytes

    def since(self, ns: int) -> list[Seen]:
        with self._lock:
            return [seen for seen in self._ring if seen.observed_ns >= ns]


@dataclass
class Saver:
    """Saves for good, in a thread that gives way to everything else.

    folder: of the run. about: which bundle and engine. say: hears what was saved, or why not, on that thread.
    """

    folder: Path
    about: Mapping[str, Any]
    memory: Memory
    say: Callable[[str], None]
    _n_saved: int = 0
    _fault_ns: int = -1 << 62
    _worker: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, "saving", initializer=_give_way)
    )

    def save(self, why: str, now_ns: int, is_fault: bool = False) -> str:
        """Begins to; what came of it in words. is_fault: what follows from a fault is not saved again."""
        if is_fault and now_ns - self._fault_ns < SAVED_S * 1e9 / 2:
            return "the fault before was saved"
        if self._n_saved >= MOST_SAVED:
            return f"{MOST_SAVED} moments of this run are saved; no more are"
        seen = self.memory.since(now_ns - round(SAVED_S * 1e9))
        if not seen:
            return "nothing was inferred in the last half minute"
        self._fault_ns = now_ns if is_fault else self._fault_ns
        self._n_saved += 1
        self._worker.submit(self._write, seen, why, now_ns)
        return f"the last {(now_ns - seen[0].observed_ns) / 1e9:.0f} s are being saved"

    def close(self) -> None:
        """Waits until all is written."""
        self._worker.shutdown(wait=True)

    def _write(self, seen: Sequence[Seen], why: str, now_ns: int) -> None:
        try:
            place = save(self.folder, seen, {**self.about, "why": why, "saved_ns": now_ns})
        except OSError as error:
            self.say(f"the moment could not be saved: {self.folder}: {error.strerror or error}")
            return
        self.say(f"the last {(now_ns - seen[0].observed_ns) / 1e9:.0f} s are saved for good: {place} ({why})")


def _give_way() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def save(folder: Path, seen: Sequence[Seen], about: Mapping[str, Any]) -> Path:
    """The folder of the saved moment.

    Raises:
        OSError: it cannot be written, or would take more than half of what is free.
    """
    free, needed = shutil.disk_usage(folder).free, sum(one.n_bytes for one in seen)
    if needed > free // 2:
        raise OSError(28, f"it takes up to {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free")
    number = sum(1 for _ in (folder / SAVED).glob("*")) if (folder / SAVED).exists() else 0
    place = folder / SAVED / f"moment-{number:02d}"
    part = folder / SAVED / f".{place.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    chunks = []
    for one in seen:
        _write_arrays(part / f"{one.request_id}.npz", _arrays(one))
        chunks.append(_entry(one))
    with (part / NOTE).open("w") as file:
        json.dump({"format": FORMAT, **about, "chunks": chunks}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    part.rename(place)
    return place


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """As numpy's own, but compressed lightly: a robot's processor has other things to do."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


def is_saving(folder: Path) -> bool:
    """Whether a moment of this run is being written."""
    return any((folder / SAVED).glob(".*.part"))


def _arrays(one: Seen) -> dict[str, np.ndarray]:
    arrays = {"actions": one.actions}
    if one.rtc is not None:
        arrays |= {"rtc/committed": one.rtc.committed, "rtc/weights": one.rtc.weights}
    for grid, seen in one.moments.items():
        arrays[f"{grid}/state"] = seen.state
        if seen.environment_state is not None:
            arrays[f"{grid}/environment_state"] = seen.environment_state
        arrays |= {f"{grid}/image/{name}": image for name, image in seen.images.items()}
    return arrays


def _entry(one: Seen) -> dict[str, Any]:
    return {
        "chunk": one.request_id,
        "grid_index": one.grid_index,
        "observed_ns": one.observed_ns,
        "moments": [[grid, seen.task] for grid, seen in one.moments.items()],
        "n_steps": one.n_steps,
        "max_guidance": None if one.rtc is None else one.rtc.max_guidance,
        "select": 1 if one.rtc is None else one.rtc.select,
        "seed": one.seed,
        "chunk_seq": one.chunk_seq,
    }


# -- reading ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class About:
    """bundle: where it was. sha256: of its manifest. threads: of the CPU engine. engine: its version."""

    format: int
    bundle: str
    sha256: str
    provider: str
    threads: int
    engine: str
    why: str
    saved_ns: int
    chunks: list[dict[str, Any]]


def moments(folder: Path) -> list[Path]:
    return sorted(path.parent for path in (folder / SAVED).glob(f"*/{NOTE}"))


def about(place: Path) -> About:
    """
    Raises:
        UsageError: the moment's note is damaged or of a newer format.
    """
    try:
        data = json.loads((place / NOTE).read_text())
        if data.get("format") != FORMAT:
            raise UsageError(
                f"{place / NOTE} has the format {data.get('format')}, this EdgeVLA reads {FORMAT}"
            )
        note = About(**{name: data[name] for name in About.__dataclass_fields__})
        if not note.chunks or any(not isinstance(e[key], int) for e in note.chunks for key in NUMBERS):
            raise ValueError("it lists no inferences")
        return note
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{place / NOTE} is damaged: {error}") from error


def find_chunk(folder: Path, number: int) -> tuple[About, Seen]:
    """A saved inference of a run.

    Raises:
        UsageError: nothing was saved, not this chunk, or its file is damaged.
    """
    known: set[int] = set()
    damaged: UsageError | None = None
    for place in moments(folder):
        try:
            note = about(place)
        except UsageError as error:  # another moment may have the chunk
            damaged = error
            continue
        for entry in note.chunks:
            known.add(entry["chunk"])
            if entry["chunk"] == number:
                return note, read_seen(place, entry)
    if damaged is not None:
        raise damaged
    if not known:
        raise UsageError(
            f"no observations of {folder} were saved for good: a fault saves the last {SAVED_S:g} s, and so does "
            "'edgevla inspect --save' while the run goes on"
        )
    raise UsageError(
        f"chunk {number} of {folder} is not among the saved ones: {min(known)} to {max(known)} ({len(known)} chunks)"
    )


def camera_names(place: Path, entry: Mapping[str, Any]) -> list[str]:
    """Of whom one of these inferences saw a picture, without reading it: features, as the policy calls them.

    Raises:
        UsageError: its file is missing or damaged.
    """
    path, above = place / f"{entry['chunk']}.npz", f"{entry['grid_index']}/image/"
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is damaged: {error}") from error
    return [name.removeprefix(above).removesuffix(".npy") for name in names if name.startswith(above)]


def read_seen(place: Path, entry: dict[str, Any]) -> Seen:
    """One of the inferences that a moment's note lists.

    Raises:
        UsageError: its file is missing or damaged.
    """
    path = place / f"{entry['chunk']}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        observed = {}
        for grid, task in entry["moments"]:
            images = {
                name.split("/", 2)[2]: array
                for name, array in arrays.items()
                if name.startswith(f"{grid}/image/")
            }
            environment = arrays.get(f"{grid}/environment_state")
            observed[int(grid)] = Observation(arrays[f"{grid}/state"], images, environment, task)
        rtc = None
        if "rtc/committed" in arrays:
            guidance, select = entry["max_guidance"], entry["select"]
            rtc = RtcInputs(arrays["rtc/committed"], arrays["rtc/weights"], guidance, select)
        return Seen(
            entry["chunk"],
            entry["grid_index"],
            entry["observed_ns"],
            observed,
            entry["n_steps"],
            rtc,
            entry["seed"],
            entry["chunk_seq"],
            arrays["actions"],
        )
    except Exception as error:  # a zip file can be damaged in many ways
        raise UsageError(f"{path} is damaged: {error}") from error

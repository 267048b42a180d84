"""Decoded frames kept as uint8: in RAM when they fit a budget, else in a file per camera under a cache folder.

Every frame is decoded once, by a background thread that goes through the dataset in order (the decoder's cheapest
way) or by whoever needs it first. The file outlives the run and is found again by the dataset's hash. Its room is
reserved before the first frame; without room there is no cache, and training goes on. Several processes of one job
share one cache on each machine.

Kept as stored, not as the policy prepares them: preparing takes 1.5 % of a step (the demo's ACT on one core: 1.2 of
85 ms), and prepared float32 frames would take four times the memory.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from edgevla.dataset.reader import Dataset
from edgevla.digests import cache_folder
from edgevla.errors import EdgeVLAError, UsageError

from .machine import ALONE, Machine
from .memory import available_ram
from .room import free_bytes, reserve

log = logging.getLogger(__name__)

Sizes = Mapping[str, tuple[int, int]]
"""Camera -> (H, W)."""
CacheKind = Literal["auto", "ram", "disk", "none"]
Progress = Callable[[int, int], None]
"""(frames done, frames in all); called from the filling thread."""
BLOCK = 32


@dataclass(frozen=True)
class Place:
    """Where decoded frames are kept. files: camera -> (its pixels, one flag a frame); empty: memory of this process."""

    kind: Literal["ram", "disk"]
    files: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def make_cache(
    dataset: Dataset,
    cameras: Sequence[str],
    kind: CacheKind = "auto",
    *,
    ram_budget: int | None = None,
    folder: Path | None = None,
    machine: Machine = ALONE,
) -> FrameCache | None:
    """The cache of this kind; `auto`: RAM within the budget (default: half of what is free), else disk within half
    of the free space, else none, which is said. machine: several processes of one job share one cache on it.

    Raises:
        UsageError: `ram` or `disk` was demanded and does not fit.
    """
    if kind == "none" or not cameras:
        return None
    sizes = {camera: dataset.camera_size(camera) for camera in cameras}
    held: list[int] = []

    def choose() -> Place | None:
        chosen = _chosen(dataset, sizes, kind, ram_budget, folder or cache_folder())
        if chosen == "ram":
            return _in_ram(dataset, sizes, held) if machine.n_here > 1 else Place("ram")
        return None if chosen is None else _on_disk(dataset, sizes, folder or cache_folder())

    place = machine.share(choose)
    if place is None:
        return None
    try:
        return FrameCache(dataset, sizes, place.files, held=held, fills=machine.is_first_here)
    except OSError as error:
        log.warning("the frame cache of this machine cannot be reached (%s): decoding every time", error)
        return None


def _chosen(
    dataset: Dataset, sizes: Sizes, kind: CacheKind, ram_budget: int | None, where: Path
) -> Literal["ram", "disk"] | None:
    need = sum(dataset.n_frames * h * w * 3 for h, w in sizes.values())
    budget = available_ram() // 2 if ram_budget is None else ram_budget
    disk = free_bytes(where) // 2
    fits = {"ram": need <= budget, "disk": need <= disk}
    if kind == "ram" or kind == "disk":
        if fits[kind]:
            return kind
        limit = budget if kind == "ram" else disk
        raise UsageError(
            f"the decoded frames of {dataset.root} take {need / 2**30:.1f} GiB; the {kind} cache may take "
            f"{limit / 2**30:.1f} GiB. Choose another cache, or fewer episodes."
        )
    for choice in ("ram", "disk"):
        if fits[choice]:
            return choice
    log.warning(
        "decoded frames take %.1f GiB and fit neither RAM nor disk: decoding every time", need / 2**30
    )
    return None


def _on_disk(dataset: Dataset, sizes: Sizes, where: Path) -> Place | None:
    """Files that have all their room; None, which is said, where the disk does not give it."""
    folder = where / f"frames-{dataset.sha256[:16]}"
    files = {c: (str(folder / f"{c}.u8"), str(folder / f"{c}.there")) for c in sizes}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for camera, (height, width) in sizes.items():
            pixels, flags = map(Path, files[camera])
            reserve(pixels, dataset.n_frames * height * width * 3)
            reserve(flags, dataset.n_frames)
    except OSError as error:
        log.warning("no frame cache in %s (%s): decoding every time", folder, error.strerror or error)
        return None
    return Place("disk", files)


def _in_ram(dataset: Dataset, sizes: Sizes, held: list[int]) -> Place:
    """Memory without a name, which goes when its last process does, however that ends. held: gets its handles."""
    files = {}
    for camera, (height, width) in sizes.items():
        paths = []
        for size in (dataset.n_frames * height * width * 3, dataset.n_frames):
            held.append(os.memfd_create("edgevla-frames"))
            os.ftruncate(held[-1], size)
            paths.append(f"/proc/{os.getpid()}/fd/{held[-1]}")
        files[camera] = (paths[0], paths[1])
    return Place("ram", files)


class FrameCache:
    """frames(camera, rows) like `Dataset.frames`, remembering. Safe for several threads and processes.

    sizes: camera -> (H, W). files: as `Place` has them, with their room. held: handles to close at the end.
    fills: whether this process goes through the dataset in the background, or another one does.
    """

    def __init__(
        self,
        dataset: Dataset,
        sizes: Sizes,
        files: Mapping[str, tuple[str, str]] | None = None,
        *,
        held: Sequence[int] = (),
        fills: bool = True,
    ) -> None:
        self.dataset, self.fills, self._held = dataset, fills, list(held)
        self.folder = Path(next(iter(files.values()))[0]).parent if files else None
        self._pixels: dict[str, np.ndarray] = {}
        self._is_there: dict[str, np.ndarray] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        n = dataset.n_frames
        for camera, (height, width) in sizes.items():
            shape = (n, height, width, 3)
            if files:
                pixels, flags = files[camera]
                self._pixels[camera] = np.memmap(pixels, np.uint8, "r+", shape=shape)
                self._is_there[camera] = np.memmap(flags, np.uint8, "r+", shape=(n,)).view(bool)
            else:
                self._pixels[camera] = np.empty(shape, np.uint8)
                self._is_there[camera] = np.zeros(n, bool)

    @property
    def n_bytes(self) -> int:
        """Of decoded frames that are held."""
        return sum(p.nbytes for p in self._pixels.values())

    @property
    def n_cached(self) -> int:
        """Frames held, over all cameras."""
        return int(sum(t.sum() for t in self._is_there.values()))

    @property
    def n_frames(self) -> int:
        """Frames that there are places for."""
        return sum(len(t) for t in self._is_there.values())

    def frames(self, camera: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, 3), a copy."""
        rows = np.asarray(rows, np.int64)
        self._ensure(camera, rows)
        return self._pixels[camera][rows]

    def _ensure(self, camera: str, rows: np.ndarray) -> None:
        is_there = self._is_there[camera]
        missing = np.unique(rows[~is_there[rows]])
        if len(missing):
            self._pixels[camera][missing] = self.dataset.frames(camera, missing)
            is_there[missing] = True  # after the pixels: another thread may look at any time

    def fill(self, progress: Progress | None = None) -> None:
        """Decodes all that is missing, in order; returns early when `close` is called."""
        total = self.n_frames
        for first in range(0, self.dataset.n_frames, BLOCK):
            rows = np.arange(first, min(first + BLOCK, self.dataset.n_frames))
            for camera in self._pixels:
                if self._stop.is_set():
                    return
                self._ensure(camera, rows)
            if progress:
                progress(min((first + BLOCK) * len(self._pixels), total), total)

    def fill_in_background(self, progress: Progress | None = None) -> None:
        """Starts `fill` in a thread of its own; training need not wait for it."""
        if self.fills and self._thread is None and self.n_cached < self.n_frames:
            self._thread = threading.Thread(target=self._fill_quietly, args=(progress,), daemon=True)
            self._thread.start()

    def _fill_quietly(self, progress: Progress | None) -> None:
        try:
            self.fill(progress)
        except EdgeVLAError as error:  # whoever asks for that frame meets the same error, with its row
            log.warning("filling the frame cache stopped: %s", error)

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        while self._held:
            os.close(self._held.pop())

"""Decoded frames kept as uint8: in RAM when they fit a budget, else in a file per camera under a cache folder.

Every frame is decoded once, by a background thread that goes through the dataset in order (the decoder's cheapest
way) or by whoever needs it first. The file outlives the run and is found again by the dataset's hash.

Kept as stored, not as the policy prepares them: preparing takes 1.5 % of a step (the demo's ACT on one core: 1.2 of
85 ms), and prepared float32 frames would take four times the memory.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from edgevla.dataset.reader import Dataset
from edgevla.errors import EdgeVLAError, UsageError

log = logging.getLogger(__name__)

CacheKind = Literal["auto", "ram", "disk", "none"]
Progress = Callable[[int, int], None]
"""(frames done, frames in all); called from the filling thread."""
BLOCK = 32


def default_folder() -> Path:
    """`$EDGEVLA_CACHE`, else `~/.cache/edgevla` (or under XDG_CACHE_HOME)."""
    if named := os.environ.get("EDGEVLA_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgevla"


def available_ram() -> int:
    """Bytes that can be taken without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def make_cache(
    dataset: Dataset,
    cameras: Sequence[str],
    kind: CacheKind = "auto",
    *,
    ram_budget: int | None = None,
    folder: Path | None = None,
) -> FrameCache | None:
    """The cache of this kind; `auto`: RAM within the budget (default: half of what is free), else disk within half
    of the free space, else none, which is said.

    Raises:
        UsageError: `ram` or `disk` was demanded and does not fit.
    """
    if kind == "none" or not cameras:
        return None
    sizes = {camera: dataset.camera_size(camera) for camera in cameras}
    need = sum(dataset.n_frames * h * w * 3 for h, w in sizes.values())
    budget = available_ram() // 2 if ram_budget is None else ram_budget
    where = folder or default_folder()
    where.mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(where).free // 2
    fits = {"ram": need <= budget, "disk": need <= disk}
    if kind != "auto" and not fits[kind]:
        limit = budget if kind == "ram" else disk
        raise UsageError(
            f"the decoded frames of {dataset.root} take {need / 2**30:.1f} GiB; the {kind} cache may take "
            f"{limit / 2**30:.1f} GiB. Choose another cache, or fewer episodes."
        )
    chosen = kind if kind != "auto" else next((k for k in ("ram", "disk") if fits[k]), None)
    if chosen is None:
        log.warning(
            "decoded frames take %.1f GiB and fit neither RAM nor disk: decoding every time", need / 2**30
        )
        return None
    return FrameCache(dataset, sizes, None if chosen == "ram" else where / f"frames-{dataset.sha256[:16]}")


class FrameCache:
    """frames(camera, rows) like `Dataset.frames`, remembering. Safe for several threads.

    sizes: camera -> (H, W). folder: where the files go; None: RAM.
    """

    def __init__(self, dataset: Dataset, sizes: dict[str, tuple[int, int]], folder: Path | None) -> None:
        self.dataset, self.folder = dataset, folder
        self._pixels: dict[str, np.ndarray] = {}
        self._is_there: dict[str, np.ndarray] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        n = dataset.n_frames
        for camera, (height, width) in sizes.items():
            shape = (n, height, width, 3)
            if folder is None:
                self._pixels[camera] = np.empty(shape, np.uint8)
                self._is_there[camera] = np.zeros(n, bool)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                self._pixels[camera] = _map_file(folder / f"{camera}.u8", shape)
                self._is_there[camera] = _map_file(folder / f"{camera}.there", (n,)).view(bool)

    @property
    def n_bytes(self) -> int:
        return sum(p.nbytes for p in self._pixels.values())

    @property
    def n_cached(self) -> int:
        """Frames held, over all cameras."""
        return int(sum(t.sum() for t in self._is_there.values()))

    @property
    def n_frames(self) -> int:
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
        if self._thread is None and self.n_cached < self.n_frames:
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


def _map_file(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A shared uint8 array backed by a (sparse) file; a file of another size is begun anew."""
    size = int(np.prod(shape))
    is_old = path.is_file() and path.stat().st_size == size
    return np.memmap(path, np.uint8, "r+" if is_old else "w+", shape=shape)

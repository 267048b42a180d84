"""Where TensorRT's engines lie, what they are called, which are kept, and who may build one.

    NAME-GRAPH-SETTINGS.engine    GRAPH: of all that an engine depends on; SETTINGS: of how it was built
    NAME-GRAPH.json               the settings that `edgevla build` last chose for this graph
    timing-MACHINE.cache          TensorRT's measurements of single kernels
    build.lock                    held alone by the process that builds, shared by a deployment that starts its arm
    build.waiting                 shared by builders that wait for another one
    build.json                    how far the build is; true only while the lock is held

The locks are the kernel's (flock): they end with their process, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgevla.digests import cache_folder, digests
from edgevla.errors import EngineError

RECIPE = 1
"""Counted up when the same settings build another engine than before."""
LOCK, WAITING, STATUS = "build.lock", "build.waiting", "build.json"
UNUSED_S = 30 * 86400.0
FREE_PART = 0.1


@dataclass(frozen=True)
class BuildSettings:
    """workspace_mb: memory that TensorRT may use for one layer while it builds and runs.
    tf32: multiply float32 with 10 bits of mantissa, faster and outside of what the export compared.
    """

    workspace_mb: int = 2048
    tf32: bool = False


@dataclass(frozen=True)
class BuildStatus:
    """A running build. index: of the graph among `n`, from 0. fraction: of all of it, 0 to 1. began_ns: monotonic."""

    pid: int
    bundle: str
    graph: str
    index: int
    n: int
    phase: str
    fraction: float
    began_ns: int


def engines_folder() -> Path:
    return cache_folder() / "engines"


class EngineFiles:
    """The engines of one TensorRT on one GPU.

    version: TensorRT's. device: `Cuda.describe`.
    """

    def __init__(self, version: str, device: Mapping[str, int | str]) -> None:
        self.folder = engines_folder()
        self._machine = {"tensorrt": version, **device}

    def find(
        self, onnx: Path, max_batch: int, settings: BuildSettings | None = None
    ) -> tuple[Path, BuildSettings]:
        """The engine's file, whether it is there or not, and its settings: None: as `edgevla build` last chose them.

        Raises:
            EngineError: there is no such graph.
        """
        graph = self._graph(onnx, max_batch)
        settings = settings or self._chosen(graph)
        return self.folder / f"{graph}-{_short(asdict(settings), 8)}.engine", settings

    def choose(self, onnx: Path, max_batch: int, settings: BuildSettings) -> None:
        """Remembers with which settings this graph's engines are built and found from here on."""
        content = json.dumps(asdict(settings)).encode()
        write_whole(self.folder / f"{self._graph(onnx, max_batch)}.json", content)

    @property
    def timing_cache(self) -> Path:
        return self.folder / f"timing-{_short(self._machine, 16)}.cache"

    def _chosen(self, graph: str) -> BuildSettings:
        path = self.folder / f"{graph}.json"
        with contextlib.suppress(OSError, ValueError, TypeError):
            return replace(BuildSettings(), **json.loads(path.read_text()))
        return BuildSettings()

    def _graph(self, onnx: Path, max_batch: int) -> str:
        """Its content is read once: what was read is remembered by the file's stamp (`edgevla.digests`)."""
        if not onnx.is_file():
            raise EngineError(f"the graph {onnx} does not exist; export the bundle again")
        weights = onnx.name + ".data"
        names = [onnx.name] + ([weights] if onnx.with_name(weights).is_file() else [])
        content = [digest for _, digest in digests(onnx.parent, names)]
        return f"{onnx.stem}-{_short([RECIPE, self._machine, max_batch, content], 20)}"


def _short(value: Any, length: int) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def write_whole(path: Path, content: Any) -> None:
    """Whole or not at all, also when the power fails. content: bytes, or what has a buffer."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(memoryview(content))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


# -- what is kept ----------------------------------------------------------------------------------------------


def touch(engine: Path) -> None:
    """Notes that it is in use."""
    with contextlib.suppress(OSError):
        os.utime(engine)


def sweep(folder: Path) -> None:
    """Removes what a killed builder left half written. Only for who holds the lock."""
    for part in [*folder.glob("*.part"), folder / STATUS]:
        part.unlink(missing_ok=True)


def prune(folder: Path, keep: Collection[Path]) -> list[Path]:
    """Removes engines that nothing opened for 30 days, and, while less than a tenth of the disk is free, those that
    were not used for longest; never those of `keep`. Returns what was removed."""
    last_used = {path: path.stat().st_mtime for path in folder.glob("*.engine") if path not in keep}
    removed = []
    for path in sorted(last_used, key=lambda p: last_used[p]):
        disk = shutil.disk_usage(folder)
        if time.time() - last_used[path] > UNUSED_S or disk.free < FREE_PART * disk.total:
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


# -- who builds ------------------------------------------------------------------------------------------------


def take(path: Path, is_shared: bool = False) -> int | None:
    """A lock's descriptor, to be closed by `os.close`; None where others hold it."""
    descriptor = _opened(path)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _await(path: Path, is_shared: bool = False) -> int:
    """As `take`, however long others hold it."""
    descriptor = _opened(path)
    fcntl.flock(descriptor, fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX)
    return descriptor


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits until nobody else builds, and lets nobody else meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = take(folder / LOCK)
    if lock is None:
        waiting = _await(folder / WAITING, is_shared=True)
        lock = _await(folder / LOCK)
        os.close(waiting)
    try:
        yield
    finally:
        os.close(lock)


def is_waited_for(folder: Path) -> bool:
    """Whether another command waits for the running build."""
    lock = take(folder / WAITING)
    if lock is None:
        return True
    os.close(lock)
    return False


def tidy(folder: Path) -> None:
    """After a builder's end: nothing half written stays, unless the next one has begun already."""
    if not folder.is_dir() or (lock := take(folder / LOCK)) is None:
        return
    sweep(folder)
    os.close(lock)


def write_status(folder: Path, status: BuildStatus) -> None:
    part = folder / (STATUS + ".part")
    with contextlib.suppress(OSError):
        part.write_text(json.dumps(asdict(status)))
        part.replace(folder / STATUS)


def read_status(folder: Path) -> BuildStatus | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return BuildStatus(**json.loads((folder / STATUS).read_text()))
    return None

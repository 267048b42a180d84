"""How the computer is that all this runs on: load, memory, clocks, temperature, throttling, from /proc and /sys.

What a machine does not tell is None: a container has no thermal zones, a desktop no devfreq, and only some boards count
their throttling. On a Jetson GPU and CPU share one memory; what the GPU took is missing from `memory_free`.
The places on a Jetson are read from NVIDIA's documentation, never yet from a Jetson.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

THROTTLE_COUNTS = (
    "sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count",  # x86
    "sys/class/hwmon/hwmon*/oc*_event_cnt",  # Jetson: over-current
)
GPUS = ("sys/class/devfreq/*gpu*", "sys/class/devfreq/*ga10b*", "sys/class/devfreq/*gv11b*")
GPU_LOADS = (
    "sys/devices/gpu.0/load",
    "sys/devices/platform/gpu.0/load",
    "sys/devices/platform/bus@0/*.gpu/load",
)
"""Per mille."""
SLOWING = ("cpufreq", "devfreq", "throttl")
"""In the type of a cooling device that works by slowing something; the others are fans."""
PLAUSIBLE_MC = range(1, 150_000)
"""A sensor that is switched off says nonsense."""


@dataclass(frozen=True)
class Board:
    """One look. None: not known. Bytes, MHz, °C.

    busy: share of all cores since the last look, gpu_busy: the GPU's own figure, both 0..1. hottest: (zone, °C) of the
    warmest. cpu_mhz: the fastest core now (idle ones rest); cpu_max_mhz: the most that any may, which a power mode
    lowers. is_throttled: now, or since the last look.
    """

    n_cores: int = 1
    load: float | None = None
    busy: float | None = None
    memory_used: int | None = None
    memory_free: int | None = None
    memory_total: int | None = None
    hottest: tuple[str, float] | None = None
    is_throttled: bool | None = None
    cpu_mhz: float | None = None
    cpu_max_mhz: float | None = None
    gpu_mhz: float | None = None
    gpu_busy: float | None = None


class BoardReader:
    """Finds the files once; `read` costs a few dozen small reads, and is meant for once a second.

    root: of the file system, for tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._zones = [(path / "temp", _name(path)) for path in _all(root, "sys/class/thermal/thermal_zone*")]
        self._coolers = [
            path / "cur_state" for path in _all(root, "sys/class/thermal/cooling_device*")
            if any(word in _text(path / "type").lower() for word in SLOWING)
        ]  # fmt: skip
        self._counts = _all(root, *THROTTLE_COUNTS)
        self._cpus = _all(root, "sys/devices/system/cpu/cpu*/cpufreq")
        self._gpus, self._gpu_loads = _all(root, *GPUS), _all(root, *GPU_LOADS)
        self._spent: tuple[int, int] | None = None
        self._n_throttled: int | None = None

    def read(self) -> Board:
        memory = self._memory()
        total, free = memory.get("MemTotal"), memory.get("MemAvailable")
        load = _text(self._root / "proc/loadavg").split()
        gpu_hz, gpu_load = self._most(self._gpus, "cur_freq"), self._most(self._gpu_loads)
        cpu_khz, may_khz = (self._most(self._cpus, f"scaling_{which}_freq") for which in ("cur", "max"))
        return Board(
            n_cores=os.cpu_count() or 1,
            load=_float(load[0]) if load else None,
            busy=self._busy(),
            memory_used=total - free if total is not None and free is not None else None,
            memory_free=free,
            memory_total=total,
            hottest=self._hottest(),
            is_throttled=self._throttled(),
            cpu_mhz=None if cpu_khz is None else cpu_khz / 1e3,
            cpu_max_mhz=None if may_khz is None else may_khz / 1e3,
            gpu_mhz=None if gpu_hz is None else gpu_hz / 1e6,
            gpu_busy=None if gpu_load is None else gpu_load / 1000,
        )

    @staticmethod
    def _most(folders: Sequence[Path], name: str = "") -> int | None:
        """The largest of a number that several folders have; None where none tells it."""
        numbers = [_number(folder / name) for folder in folders]
        return max((n for n in numbers if n is not None and n >= 0), default=None)

    def _busy(self) -> float | None:
        times = [int(word) for word in _text(self._root / "proc/stat").split()[1:9] if word.isdecimal()]
        if len(times) < 5:
            return None
        before, self._spent = self._spent, (sum(times), times[3] + times[4])  # idle, and waiting for a disk
        if before is None or self._spent[0] <= before[0]:
            return None
        return 1 - (self._spent[1] - before[1]) / (self._spent[0] - before[0])

    def _memory(self) -> dict[str, int]:
        pairs = itertools.pairwise(_text(self._root / "proc/meminfo").split())
        return {name[:-1]: 1024 * int(kb) for name, kb in pairs if name.startswith("Mem") and kb.isdecimal()}

    def _hottest(self) -> tuple[str, float] | None:
        found = [
            (n, name) for path, name in self._zones if (n := _number(path)) is not None and n in PLAUSIBLE_MC
        ]
        return (max(found)[1], max(found)[0] / 1000) if found else None

    def _throttled(self) -> bool | None:
        states = [n for path in self._coolers if (n := _number(path)) is not None]
        counts = [n for path in self._counts if (n := _number(path)) is not None]
        if not states and not counts:
            return None
        before, self._n_throttled = self._n_throttled, sum(counts)
        return any(states) or (before is not None and self._n_throttled > before)


def _all(root: Path, *patterns: str) -> list[Path]:
    return [path for pattern in patterns for path in sorted(root.glob(pattern))]


def _text(path: Path) -> str:
    """Empty where it cannot be read: a sensor may say EAGAIN or EIO while what it watches sleeps."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text()
    return ""


def _number(path: Path) -> int | None:
    with contextlib.suppress(ValueError):
        return int(_text(path))
    return None


def _float(word: str) -> float | None:
    with contextlib.suppress(ValueError):
        return float(word)
    return None


def _name(zone: Path) -> str:
    name = _text(zone / "type").strip() or zone.name
    return name.removesuffix("-thermal").removesuffix("_thermal")

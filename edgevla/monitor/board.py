"""How the computer is that all this runs on: load, memory, temperature, throttling, from /proc and /sys.

What a machine does not tell is not shown: a container has no thermal zones, and only some boards count their throttling.
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
PI_FLAGS = "sys/devices/platform/soc/soc:firmware/get_throttled"
PI_NOW = 0b0110
"""Frequency capped, throttled: now (the upper half is of any time since the boot)."""
HOT_C = 80.0


@dataclass(frozen=True)
class Board:
    """None: not known. busy: share of all cores since the last look. hottest: (name, °C) of the warmest zone."""

    n_cores: int = 1
    load: float | None = None
    busy: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    hottest: tuple[str, float] | None = None
    is_throttled: bool | None = None


class BoardReader:
    """root: of the file system, for tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._zones = sorted(root.glob("sys/class/thermal/thermal_zone*"))
        self._counts = [path for pattern in THROTTLE_COUNTS for path in sorted(root.glob(pattern))]
        self._spent: tuple[int, int] | None = None
        self._n_throttled: int | None = None

    def read(self) -> Board:
        memory = self._memory()
        total, free = memory.get("MemTotal"), memory.get("MemAvailable")
        load = self._words("proc/loadavg")
        return Board(
            n_cores=os.cpu_count() or 1,
            load=float(load[0]) if load else None,
            busy=self._busy(),
            memory_used=total - free if total and free is not None else None,
            memory_total=total,
            hottest=self._hottest(),
            is_throttled=self._throttled(),
        )

    def _words(self, path: str | Path) -> Sequence[str]:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return (self._root / path).read_text().split()
        return ()

    def _number(self, path: Path) -> int | None:
        with contextlib.suppress(ValueError, IndexError):
            return int(self._words(path)[0])
        return None

    def _busy(self) -> float | None:
        times = [int(word) for word in self._words("proc/stat")[1:9] if word.isdecimal()]
        if len(times) < 5:
            return None
        before, self._spent = self._spent, (sum(times), times[3] + times[4])  # idle, and waiting for a disk
        if before is None or self._spent[0] <= before[0]:
            return None
        return 1 - (self._spent[1] - before[1]) / (self._spent[0] - before[0])

    def _memory(self) -> dict[str, int]:
        """Bytes."""
        words = self._words("proc/meminfo")
        pairs = itertools.pairwise(words)
        return {name[:-1]: 1024 * int(kb) for name, kb in pairs if name.startswith("Mem") and kb.isdecimal()}

    def _hottest(self) -> tuple[str, float] | None:
        found = []
        for zone in self._zones:
            milli = self._number(zone / "temp")
            if milli is not None and 0 < milli < 150_000:  # a sensor that is switched off says nonsense
                name = " ".join(self._words(zone / "type")) or zone.name
                found.append((milli / 1000, name.removesuffix("-thermal").removesuffix("_thermal")))
        return (max(found)[1], max(found)[0]) if found else None

    def _throttled(self) -> bool | None:
        """Now, or since the last look."""
        if flags := self._words(PI_FLAGS):
            with contextlib.suppress(ValueError):
                return bool(int(flags[0], 16) & PI_NOW)
        counts = [n for path in self._counts if (n := self._number(path)) is not None]
        if not counts:
            return None
        before, self._n_throttled = self._n_throttled, sum(counts)
        return before is not None and self._n_throttled > before

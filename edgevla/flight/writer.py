"""Writes a run's flight log in a thread of its own: whoever feeds it never waits for a disk.

What is noted is gathered for two seconds and handed over; where the disk is so slow that blocks pile up, whole
blocks are left out, which is said once and stands in the log. A disk that is full, gone or read-only ends the log.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgevla import __version__
from edgevla.flight.blocks import pack
from edgevla.flight.notes import as_tables
from edgevla.flight.ticks import ANY_QUANTUM, QUANTA, pack_ticks
from edgevla.launch.logfiles import LogFiles, Warn
from edgevla.messages import Message, State

FORMAT = 1
NAME = "run.flight"
GATHERED_S = 2.0
"""What a supervisor loses that is killed; a warning is handed over at once."""
WAITING = 60
"""Blocks that may wait for a slow disk before some are left out: about a minute."""
CLOSED_S = 10.0
"""A disk that hangs at the end is not waited for any longer."""


class FlightWriter:
    """Notes of one run, from any thread. warn: hears on the caller's, within `note` or `close`.

    Raises:
        OSError: the folder cannot be made: known before anything starts.
    """

    def __init__(self, place: Path, session: bytes, warn: Warn) -> None:
        self._news: deque[str] = deque()
        self._warn = warn
        self._session = session
        self._about: dict[str, Any] = {}
        self._units: Sequence[str] = ()
        self._files = LogFiles(place, session, self._news.append, NAME, self._begin)
        self._notes: list[dict[str, Any]] = []
        self._ticks: list[Message[State]] = []
        self._handed_s = time.monotonic()
        self._queue: queue.Queue[Callable[[], bytes] | None] = queue.Queue(WAITING)
        self._n_lost = 0
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._write, name="flight log", daemon=True)
        self._thread.start()
        self._tell()

    @property
    def folder(self) -> Path:
        return self._files.folder

    @property
    def path(self) -> Path:
        return self._files.path

    def know(self, about: Mapping[str, Any]) -> None:
        """What every part of the log begins with. Its `units` of the joints say how exactly they are kept."""
        self._units = about.get("units", ())
        self._about = {**self._about, **about}
        self._hand_over(lambda: pack(self._header()))

    def note(self, entry: Mapping[str, Any]) -> None:
        """Anything that JSON can hold, with a `type`."""
        with self._lock:
            self._notes.append(dict(entry))
            self._turn(is_urgent=entry.get("severity", "info") != "info")

    def tick(self, message: Message[State]) -> None:
        with self._lock:
            self._ticks.append(message)
            self._turn()

    def close(self, summary: str) -> None:
        """The rest, and `summary.json` whole or not at all; on a disk that hangs, without."""
        if not self._thread.is_alive():
            return
        with self._lock:
            self._hand_notes()
            self._hand_ticks()
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=CLOSED_S)
        self._thread.join(CLOSED_S)
        if self._thread.is_alive():
            self._news.append(
                f"the disk of {self.folder} does not answer; the log's end and summary are lost"
            )
        else:
            self._files.close(summary)
        self._tell()

    # -- on the caller's thread -------------------------------------------------------------------------------

    def _turn(self, is_urgent: bool = False) -> None:
        now = time.monotonic()
        if is_urgent or now - self._handed_s >= GATHERED_S:
            self._handed_s = now
            self._hand_notes()
            self._hand_ticks()
            self._tell()

    def _hand_notes(self) -> None:
        notes, self._notes = self._notes, []
        if notes:
            self._hand_over(lambda: pack({"kind": "notes", "tables": as_tables(notes)}))

    def _hand_ticks(self) -> None:
        ticks, self._ticks = self._ticks, []
        if not ticks:
            return
        d = len(ticks[0].body.position)
        units = self._units if len(self._units) == d else [""] * d
        quanta = [QUANTA.get(unit, ANY_QUANTUM) for unit in units]
        self._hand_over(lambda: pack(pack_ticks(ticks, quanta)))

    def _hand_over(self, make: Callable[[], bytes]) -> None:
        try:
            self._queue.put_nowait(make)
        except queue.Full:
            if not self._n_lost:
                self._news.append(
                    f"the disk of {self.folder} is too slow: parts of the log are left out; the run goes on"
                )
            self._n_lost += 1
            return
        if self._n_lost:
            self._notes.append({"type": "lost_blocks", "observed_ns": time.monotonic_ns(), "n": self._n_lost})

    def _tell(self) -> None:
        while self._news:
            self._warn(self._news.popleft())

    # -- in the thread ----------------------------------------------------------------------------------------

    def _write(self) -> None:
        while (make := self._queue.get()) is not None:
            self._files.append(make())
            if self._queue.empty():
                self._files.flush()

    def _header(self) -> dict[str, Any]:
        return {
            "kind": "header",
            "format": FORMAT,
            "edgevla": __version__,
            "session": self._session.hex(),
            "wall_ns": time.time_ns(),
            "monotonic_ns": time.monotonic_ns(),
            "about": self._about,
        }

    def _begin(self) -> bytes:
        return pack(self._header())

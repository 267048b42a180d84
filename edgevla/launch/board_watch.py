"""The computer that a deployment runs on: into the log once a second, and a warning when it is throttled."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgevla.board import BoardReader
from edgevla.launch.runlog import RunLog

EVERY_S = 1.0


class BoardWatch:
    """say: as the supervisor's."""

    def __init__(self, log: RunLog, say: Callable[[str, str, str], None]) -> None:
        self._log, self._say = log, say
        self._reader = BoardReader()
        self._next_s = 0.0
        self._was_throttled = False

    def look(self) -> None:
        """That it is throttled is said once; how long is in the summary."""
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + EVERY_S
        board = self._reader.read()
        self._log.note_board(board)
        if board.is_throttled and not self._was_throttled:
            heat = f", {board.hottest[0]} at {board.hottest[1]:.0f} °C" if board.hottest else ""
            words = f"the machine is throttled{heat}: everything takes longer from here on"
            self._say("warning", "deploy", words)
            self._was_throttled = True

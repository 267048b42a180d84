"""Ctrl-C in work that can end in order: what is half done is finished, what is done is kept."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Interruption:
    """While open, the first SIGINT or SIGTERM is remembered instead of ending the process; the second does end it."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._remember)
            except ValueError:  # not in the main thread: whoever runs us handles signals
                break
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

"""Ctrl-C in work that can end in order: what is half done is finished, what is done is kept."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any


class Interruption:
    """While open, the first of some signals is remembered instead of ending the process; the second does end it.

    tell: is called with each, from the signal's handler.
    """

    def __init__(
        self,
        numbers: Collection[int] = (signal.SIGINT, signal.SIGTERM),
        tell: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._numbers, self._tell = numbers, tell
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in self._numbers:
            try:
                self._before[number] = signal.signal(number, self._remember)
            except ValueError:  # not in the main thread: whoever runs us handles signals
                break
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._tell(number)
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

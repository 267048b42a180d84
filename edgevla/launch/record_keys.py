"""The keys of a recording at a terminal, which has none, only bytes: an arrow key ends in a letter, a paste is a row of
them, a key that is held down a stream. `monitor/keys.py` has the rules; here a key is one of the session's letters."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Collection

from edgevla.monitor.keys import Intent, Keyboard

STRAY = "several keys at once, or one that is no letter: nothing was done"


class TypedKeys:
    """letters: those that mean something. say: is told of what came instead."""

    def __init__(
        self,
        fd: int,
        letters: Collection[str],
        say: Callable[[str], None],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._fd, self._say, self._clock = fd, say, clock
        self._has_ended = False
        self._keyboard = Keyboard(letters, clock, field_key="", stray_words=STRAY)

    def read(self, seconds: float) -> str | None:
        """The next letter that was pressed alone, as soon as that is certain; None: there is none yet.

        Past Python's buffer, in which keys that were typed while an episode was saved would wait for one more.
        """
        text = self._bytes(seconds).decode(errors="replace")
        found = None
        for act in [*self._typed(text), *self._keyboard.due()]:
            if act.kind == "command":
                found = act.text
            elif act.kind == "notice":
                self._say(f"! {act.text}")
        return found

    def _bytes(self, seconds: float) -> bytes:
        """What came; a terminal that has closed has no more keys."""
        if self._has_ended:
            time.sleep(seconds)
            return b""
        if not select.select([self._fd], [], [], seconds)[0]:
            return b""
        try:
            read = os.read(self._fd, 4096)
        except OSError:
            read = b""
        self._has_ended = not read
        return read

    def _typed(self, text: str) -> list[Intent]:
        """text: what came at once; of a key that is held down the same character several times."""
        if not text:
            return []
        if len(set(text)) > 1:
            return self._keyboard.paste(text, self._clock())
        return self._keyboard.key(text[0].lower(), text[0], self._clock())

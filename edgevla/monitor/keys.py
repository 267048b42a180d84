"""What typing means: commands, text, or neither. Pure: keys with their times in, `Intent`s out; no screen, no sockets.

    main    a key alone is a command; two keys open the field, for a task or for words to search
    field   from that key on everything is text, until Enter (and a moment of silence) or Escape
    stray   keys faster than fingers: text that was pasted where no text belongs. Nobody's, until there is silence

A terminal has no keys, only bytes: a paste over SSH is very fast typing, a key that is held down is a stream of
presses. So a command waits for a moment in which nothing else comes. An emergency press waits for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from edgevla.presses import Presses
from edgevla.words import LONGEST_TASK

LONE_NS = 60_000_000
"""Fingers are slower than this: what comes closer together is one paste."""
SETTLE_NS = 200_000_000
"""Enter is the end of the text when this long nothing follows; before, it was the line break of a paste."""
STRAY_NS = 300_000_000
"""Stray text ends with a silence this long; a slow line breaks a paste into pieces."""
MAX_TEXT = LONGEST_TASK
EMERGENCY = ("f12", "ctrl+e")
"""No text contains them: they work everywhere."""
EMERGENCY_ON_MAIN = ("e", "alt+e")  # Escape and `e` in a hurry arrive as the second
FIELD = "t"
INSISTING = 3
"""So many presses of the emergency key in a row are no text, wherever they come from."""
MODIFIED = ("alt+", "ctrl+", "super+", "hyper+", "meta+")
"""Keys with these write nothing, whatever character they carry."""
REPEAT_WORDS = "{} pressed again at once is the same press; for another one lift the key for a second"
FULL_WORDS = (
    f"the line is full: all beyond {MAX_TEXT} characters was left out; look at its end before Enter sends it"
)
STRAY_WORDS = "text came where none belongs: no key in it was obeyed; for a task press t first"


def is_emergency(name: str, character: str | None) -> bool:
    """Whether a key, as `Keyboard.key` has it, is an emergency press where no text is typed."""
    return name in (*EMERGENCY, *EMERGENCY_ON_MAIN) or (character or "").lower() in EMERGENCY_ON_MAIN


@dataclass(frozen=True)
class Intent:
    """What is to be done. text: the command's key, the task, the words to search, or the sentence of a notice."""

    kind: Literal["command", "emergency", "task", "search", "notice"]
    text: str = ""


class TaskLine:
    """One line of text that is being edited. suggestion: what the key `up` brings back. is_cut: there was no room."""

    def __init__(self, suggestion: str = "") -> None:
        self.text, self.cursor, self.suggestion = "", 0, suggestion
        self.is_cut = False

    def insert(self, text: str) -> None:
        """At the cursor. What breaks a line becomes a space, what cannot be shown is left out."""
        text = text.replace("\r\n", "\n")
        text = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in text)
        self.is_cut |= len(text) > MAX_TEXT - len(self.text)
        text = text[: MAX_TEXT - len(self.text)]
        self.text = self.text[: self.cursor] + text + self.text[self.cursor :]
        self.cursor += len(text)

    def edit(self, key: str) -> None:
        """A key that moves or deletes; any other changes nothing."""
        before, after = self.text[: self.cursor], self.text[self.cursor :]
        word = before.rstrip().rpartition(" ")[0]
        start_of_word = word + " " if word else ""
        self.text, self.cursor = {
            "left": (self.text, max(0, self.cursor - 1)),
            "right": (self.text, min(len(self.text), self.cursor + 1)),
            "home": (self.text, 0),
            "end": (self.text, len(self.text)),
            "backspace": (before[:-1] + after, max(0, self.cursor - 1)),
            "delete": (before + after[1:], self.cursor),
            "ctrl+u": (after, 0),
            "ctrl+w": (start_of_word + after, len(start_of_word)),
            "up": (self.suggestion, len(self.suggestion)),
        }.get(key, (self.text, self.cursor))


@dataclass(frozen=True)
class _Waiting:
    """A command's key. at_ns: when it was typed; heard_ns: when this program came to know, later if it was busy."""

    key: str
    at_ns: int
    heard_ns: int


class Keyboard:
    """commands: keys that mean something on the main screen, beside the field's and the emergency's.

    field: the line that is being typed; None on the main screen. suggestion: for the next one. field_key, search_key:
    open the field; empty: there is none. views: keys that only look: they act at once, and as often as they come.
    """

    def __init__(
        self,
        commands: Collection[str],
        clock: Callable[[], int] = time.monotonic_ns,
        field_key: str = FIELD,
        stray_words: str = STRAY_WORDS,
        search_key: str = "",
        views: Collection[str] = (),
    ) -> None:
        self._clock, self._field_key, self._stray_words = clock, field_key, stray_words
        self._search_key, self._views = search_key, frozenset(views)
        self.field: TaskLine | None = None
        self.is_searching = False
        self.suggestion = ""
        self._emergency = Presses()
        self._presses = {key: Presses() for key in commands}
        self._latest = ""
        self._last: tuple[str, int] = ("", -STRAY_NS)
        self._n_in_a_row = 0
        self._waiting: _Waiting | None = None
        self._enter_ns: int | None = None
        self._stray_until_ns = 0
        self._is_stray_text = False
        self._repeated: set[str] = set()

    def key(self, name: str, character: str | None, at_ns: int) -> list[Intent]:
        """A key that came at `at_ns`. name: as Textual calls it; character: what it would write, if anything."""
        if name in EMERGENCY:
            return self._press_emergency(at_ns)
        if not character or not character.isprintable() or name.startswith(MODIFIED):
            character = "\t" if name == "tab" else None
        key = character.lower() if character and not character.isspace() else name
        is_fast = at_ns - self._last[1] < LONE_NS and key != self._last[0]
        self._n_in_a_row = self._n_in_a_row + 1 if key == self._last[0] else 1
        self._last = (key, at_ns)
        acts = self._judge_waiting(key, at_ns)
        if self.field is not None:
            return acts + self._into_field(key, character, at_ns)
        return acts + self._on_main(key, at_ns, is_fast)

    def missed_emergency(self) -> list[Intent]:
        """A press from before this screen was there; while the key stays down, the same press goes on."""
        return self._press_emergency(0)

    def paste(self, text: str, at_ns: int) -> list[Intent]:
        """Text that the terminal itself calls pasted."""
        self._last, self._waiting = ("", at_ns), None
        if self.field is None:
            return [Intent("notice", self._stray_words)]
        return self._write(text)

    def due(self) -> list[Intent]:
        """What has waited long enough; to be asked LONE_NS and SETTLE_NS after every key."""
        now = self._clock()
        acts: list[Intent] = []
        if self._waiting is not None and now - self._waiting.heard_ns >= LONE_NS:
            acts.append(Intent("command", self._waiting.key))
            self._waiting = None
        if self._enter_ns is not None and now - self._enter_ns >= SETTLE_NS:
            text = self.field.text.strip() if self.field else ""
            if self.is_searching:
                acts.append(Intent("search", text))
            elif text:
                acts.append(Intent("task", text))
            self._close()
        return acts

    # -- the three states --------------------------------------------------------------------------------------

    def _on_main(self, key: str, at_ns: int, is_fast: bool) -> list[Intent]:
        is_stray = is_fast or at_ns < self._stray_until_ns
        is_first = at_ns >= self._stray_until_ns
        if not is_stray:
            self._is_stray_text = False
        if key in EMERGENCY_ON_MAIN and (not self._is_stray_text or self._n_in_a_row >= INSISTING):
            return self._press_emergency(at_ns)
        if is_stray:
            self._stray_until_ns = at_ns + STRAY_NS
            self._is_stray_text |= key == self._field_key or not self._field_key
            return [Intent("notice", self._stray_words)] if is_first else []
        if key == self._field_key:
            self.field = TaskLine(self.suggestion)
            return []
        if self._search_key and key == self._search_key:
            self.field, self.is_searching = TaskLine(), True
            return []
        return [Intent("command", key)] if key in self._views else self._wait(key, at_ns)

    def _into_field(self, key: str, character: str | None, at_ns: int) -> list[Intent]:
        assert self.field is not None
        if key in ("enter", "ctrl+j"):
            self._enter_ns = self._clock()
        elif key == "escape":
            was_searching = self.is_searching
            self._close()
            # What follows at once was meant for the field; a hand needs longer for the next key.
            self._stray_until_ns, self._is_stray_text = at_ns + LONE_NS, True
            return [Intent("search")] if was_searching else []
        elif key == "ctrl+c":
            return self._wait(key, at_ns)
        elif character:
            return self._write(character)
        else:
            self._enter_ns = None
            self.field.edit(key)
        return []

    def _write(self, text: str) -> list[Intent]:
        """Where the line is full that is said, once."""
        assert self.field is not None
        was_cut = self.field.is_cut
        if self._enter_ns is not None:  # it did not end the text, then
            self.field.insert(" ")
            self._enter_ns = None
        self.field.insert(text)
        return [Intent("notice", FULL_WORDS)] if self.field.is_cut and not was_cut else []

    def _close(self) -> None:
        self.field, self._enter_ns, self.is_searching = None, None, False

    # -- presses -----------------------------------------------------------------------------------------------

    def _judge_waiting(self, key: str, at_ns: int) -> list[Intent]:
        """The next key says of the one that waits whether it was alone."""
        waiting = self._waiting
        if waiting is None or (key == waiting.key and at_ns - waiting.at_ns < LONE_NS):
            return []
        self._waiting = None
        return [Intent("command", waiting.key)] if at_ns - waiting.at_ns >= LONE_NS else []

    def _wait(self, key: str, at_ns: int) -> list[Intent]:
        if key not in self._presses:
            return []
        if key != self._latest:  # a key that is held down repeats no longer once another one is pressed
            self._presses[key], self._latest = Presses(), key
        if self._presses[key].press(at_ns):
            self._repeated.discard(key)
            self._waiting = _Waiting(key, at_ns, self._clock())
            return []
        return self._repeat(key)

    def _press_emergency(self, at_ns: int) -> list[Intent]:
        self._waiting = None
        if self._emergency.press(at_ns):
            self._repeated.discard("emergency")
            return [Intent("emergency")]
        return self._repeat("emergency")

    def _repeat(self, key: str) -> list[Intent]:
        """Said once: whoever presses again on purpose must know why nothing happens."""
        if key in self._repeated:
            return []
        self._repeated.add(key)
        return [Intent("notice", REPEAT_WORDS.format(key))]

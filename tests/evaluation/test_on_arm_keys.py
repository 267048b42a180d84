"""Keys on an evaluation's terminal: one press has one meaning; a key held down and a paste have none of their own."""

import os

import pytest

from edgevla.evaluation.on_arm.flow import FlowEvent
from edgevla.evaluation.on_arm.keys import Keys, PipedInput, TypedInput

MS = 1_000_000


class Person:
    def __init__(self):
        self.now = 10**12
        self.typed = TypedInput(lambda: self.now)
        self.notices = []

    def types(self, *chunks, gap_ms=30):
        """Chunks of bytes, so far apart; the events that came of them and of the silence afterwards."""
        found = []
        for chunk in [*chunks, b"", b""]:
            for event, notice in self.typed.feed(chunk):
                found += [event] if event else []
                self.notices += [notice] if notice else []
            self.now += (gap_ms if chunk else 100) * MS
        return found

    def rests(self, seconds=1.0):
        self.now += round(seconds * 1e9)
        return self


@pytest.mark.parametrize(
    ("data", "event"),
    [
        (b"\n", FlowEvent.GO), (b"\r", FlowEvent.GO), (b" ", FlowEvent.HOLD), (b"s", FlowEvent.SUCCESS),
        (b"Y", FlowEvent.SUCCESS), (b"f", FlowEvent.FAILURE), (b"n", FlowEvent.FAILURE), (b"u", FlowEvent.UNDO),
        (b"r", FlowEvent.AGAIN), (b"q", FlowEvent.QUIT), (b"e", FlowEvent.STOP), (b"\x05", FlowEvent.STOP),
        (b"\x1b[24~", FlowEvent.STOP), (b"\x12", FlowEvent.CLEAR),
    ],
)  # fmt: skip
def test_a_key_alone_is_what_it_says(data, event):
    assert Person().types(data) == [event]


@pytest.mark.parametrize("key", [b"\n", b"s", b"u", b"q", b" ", b"e"])
def test_a_key_that_is_held_down_is_one_press(key):
    person = Person()
    held = [
        key,
        *[b""] * 4,
        *[key] * 40,
        key * 3,
        *[key] * 10,
    ]  # repeats after 0.4 s; once this process was stalled
    assert person.types(*held) == [{b"\n": FlowEvent.GO, b"s": FlowEvent.SUCCESS, b"u": FlowEvent.UNDO,
                                    b"q": FlowEvent.QUIT, b" ": FlowEvent.HOLD, b"e": FlowEvent.STOP}[key]]  # fmt: skip


def test_the_same_key_after_a_pause_is_another_press():
    person = Person()
    assert person.types(b"\n") == [FlowEvent.GO]
    assert person.rests().types(b"\n") == [FlowEvent.GO]


@pytest.mark.parametrize(
    "text", ["s\n", "yes\n", "q\nq\n", "sudo reboot\n", "\x1b[A", "success: see the note", "f s"]
)
def test_text_that_is_pasted_judges_nothing_and_moves_nothing(text):
    person = Person()
    assert person.types(text.encode()) == []
    assert person.notices


@pytest.mark.parametrize("text", ["yes\n", "sudo reboot\n", "set the cube down here\n"])
def test_nor_does_a_paste_that_a_slow_line_brings_letter_by_letter(text):
    person = Person()
    assert person.types(*[c.encode() for c in text], gap_ms=4) == []


def test_an_emergency_key_that_insists_is_heard_whatever_came_before():
    person = Person()
    assert FlowEvent.STOP in person.types(b"x", b"e", b"e", b"e", gap_ms=20)


def test_a_key_without_a_meaning_is_answered_with_the_keys_that_have_one():
    person = Person()
    assert person.types(b"x") == []
    assert "x means nothing here" in person.notices[0]
    assert person.types("ä".encode()) == []


def test_lines_of_a_pipe_are_keys_one_at_a_time_and_its_end_ends():
    lines = PipedInput()
    assert lines.feed(b"\ns\nsuc") == [(FlowEvent.GO, "")]
    assert lines.feed(b"") == [(FlowEvent.SUCCESS, "")]
    assert lines.feed(b"cess\n")[0][0] is None, "a word is no key"
    assert lines.feed(None) == [(FlowEvent.QUIT, "")]
    assert lines.feed(None) == []


def test_the_terminal_is_as_before_also_after_an_error():
    import pty
    import termios

    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    with os.fdopen(slave, "r") as stream:
        keys = Keys(stream)

        def fail():
            with keys.open():
                assert termios.tcgetattr(slave)[3] != before[3]
                os.write(master, b"s")
                keys.forget()
                assert keys.read() == [], "what was typed blind is nobody's"
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert termios.tcgetattr(slave) == before
    os.close(master)

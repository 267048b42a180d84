"""What typing means to `edgevla record`: letters alone. A terminal's bytes in, letters out."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator

import pytest

from edgevla.launch.record_keys import STRAY, TypedKeys
from edgevla.launch.record_session import KEYS

MS = 1_000_000


class Hand:
    """Types into a pipe, on a clock of its own."""

    def __init__(self) -> None:
        self.now_ns, self.said = 10**12, list[str]()
        self._read_fd, self._write_fd = os.pipe()
        self._keys = TypedKeys(self._read_fd, KEYS, self.said.append, lambda: self.now_ns)

    def type(self, text: str, *, ms_between: int | None = None) -> str:
        """The letters that were obeyed until a second later. ms_between: None: all at once."""
        obeyed = ""
        for piece in [text] if ms_between is None else text:
            os.write(self._write_fd, piece.encode())
            obeyed += self._keys.read(0) or ""
            for _ in range(0, ms_between or 0, 20):
                self.now_ns += 20 * MS
                obeyed += self._keys.read(0) or ""
        for _ in range(50):
            self.now_ns += 20 * MS
            obeyed += self._keys.read(0) or ""
        return obeyed

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)


@pytest.fixture
def hand() -> Iterator[Hand]:
    made = Hand()
    yield made
    made.close()


def test_a_letter_alone_is_obeyed(hand: Hand) -> None:
    assert [hand.type(letter) for letter in "rkdapnqR"] == list("rkdapnqr")
    assert hand.said == []


@pytest.mark.parametrize("ms_between", [None, 20])
@pytest.mark.parametrize(
    "key", ["\x1b[A", "\x1b[D", "\x1bOP", "\x1bOQ", "\x1b[1;5D"], ids=["up", "left", "F1", "F2", "ctrl+left"]
)
def test_a_key_that_is_no_letter_discards_no_episode(hand: Hand, key: str, ms_between: int | None) -> None:
    """The arrow up ends in an `A`, the arrow left in a `D`; LeRobot's recordings are steered with arrows."""
    assert hand.type(key, ms_between=ms_between) == ""
    assert hand.said == [f"! {STRAY}"]


@pytest.mark.parametrize("ms_between", [None, 20])
def test_a_text_that_was_pasted_is_obeyed_by_nobody(hand: Hand, ms_between: int | None) -> None:
    assert hand.type("put the red cup quickly down\n", ms_between=ms_between) == ""


def test_a_key_that_is_held_down_is_one_press(hand: Hand) -> None:
    assert hand.type("p" * 30, ms_between=40) == "p"
    assert "pressed again at once is the same press" in hand.said[0]


def test_different_letters_one_after_the_other_are_all_obeyed(hand: Hand) -> None:
    assert hand.type("rpk", ms_between=120) == "rpk"
    assert hand.type("r") == "r"


def test_a_terminal_that_has_closed_has_no_more_keys() -> None:
    master, terminal = pty.openpty()
    keys = TypedKeys(terminal, KEYS, lambda _: None)
    os.close(master)
    try:
        assert [keys.read(0), keys.read(0)] == [None, None]
    finally:
        os.close(terminal)

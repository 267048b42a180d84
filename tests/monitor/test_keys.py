"""What typing means, on a virtual clock: every order in which keys, pastes and a field that opens or closes can come."""

from __future__ import annotations

import pytest

from edgevla.monitor.keys import FULL_WORDS, MAX_TEXT, Intent, Keyboard, TaskLine
from edgevla.words import LONGEST_TASK

MS = 1_000_000
COMMANDS = ("space", "h", "s", "q", "ctrl+r", "ctrl+c")
NAMES = {
    " ": "space",
    "\r": "enter",
    "\n": "ctrl+j",
    "\x1b": "escape",
    "\t": "tab",
    "\x05": "ctrl+e",
    "\x12": "ctrl+r",
}


class Typist:
    """Types at a keyboard. done: what came of it."""

    def __init__(self) -> None:
        self.now_ns = 10_000 * MS
        self.keyboard = Keyboard(COMMANDS, lambda: self.now_ns)
        self.done: list[tuple[str, str]] = []
        self.notices: list[str] = []

    def wait(self, ms: float) -> Typist:
        """In small steps, as timers look."""
        for _ in range(round(ms / 5)):
            self.now_ns += 5 * MS
            self._note(self.keyboard.due())
        return self

    def key(self, name: str, character: str | None = None) -> Typist:
        self._note(self.keyboard.key(name, character, self.now_ns))
        return self

    def burst(self, text: str) -> Typist:
        """As a paste over SSH arrives: all within a millisecond."""
        for character in text:
            self.key(NAMES.get(character, character), character)
        return self

    def slowly(self, text: str, ms: float = 100) -> Typist:
        for character in text:
            self.burst(character).wait(ms)
        return self

    def paste(self, text: str) -> Typist:
        self._note(self.keyboard.paste(text, self.now_ns))
        return self

    def _note(self, acts: object) -> None:
        self.notices += [a.text for a in acts if a.kind == "notice"]  # type: ignore[attr-defined]
        self.done += [(a.kind, a.text) for a in acts if a.kind != "notice"]  # type: ignore[attr-defined]

    @property
    def text(self) -> str | None:
        return None if self.keyboard.field is None else self.keyboard.field.text


@pytest.fixture
def typist() -> Typist:
    return Typist()


def test_a_key_alone_is_a_command(typist: Typist) -> None:
    typist.burst(" ").wait(100)
    assert typist.done == [("command", "space")]


@pytest.mark.parametrize("gap_ms", [0, 5, 50, 100])
def test_a_text_after_t_is_text_however_soon_it_comes(typist: Typist, gap_ms: float) -> None:
    typist.burst("t").wait(gap_ms).burst("push the cube, see home").wait(500)
    assert typist.done == []
    assert typist.text == "push the cube, see home"
    typist.burst("\r").wait(300)
    assert typist.done == [("task", "push the cube, see home")]
    assert typist.text is None


def test_a_pasted_line_with_its_end_is_sent_once(typist: Typist) -> None:
    for end in ("\r", "\n", "\r\n", "\r\r"):
        other = Typist()
        other.burst(f"tpush the cube{end}").wait(500)
        assert other.done == [("task", "push the cube")], repr(end)


def test_of_a_paste_of_several_lines_no_letter_is_a_command(typist: Typist) -> None:
    typist.burst("tpush the cube\rhome, see\r\nstop e q\r").wait(500)
    assert typist.done == [("task", "push the cube home, see stop e q")]


def test_a_line_that_stutters_after_enter_is_still_the_same_text(typist: Typist) -> None:
    typist.burst("tpush\r").wait(100).burst("see home e").wait(100).burst("\r").wait(500)
    assert typist.done == [("task", "push see home e")]


def test_a_bracketed_paste_belongs_to_the_field_at_once(typist: Typist) -> None:
    typist.burst("t").paste("see the cube\nhome\r\n").burst("\r").wait(500)
    assert typist.done == [("task", "see the cube home")]


def test_what_follows_escape_at_once_is_nobodys(typist: Typist) -> None:
    typist.burst("tsee\x1bhse e").wait(500)
    assert typist.done == []
    assert typist.text is None
    typist.burst("e").wait(100)
    assert typist.done == [("emergency", "")], "and a key afterwards means what it means"


def test_a_hasty_hand_after_escape_is_obeyed(typist: Typist) -> None:
    typist.slowly("tsee").burst("\x1b").wait(80).burst("e")
    assert typist.done == [("emergency", "")]


def test_a_paste_on_the_main_screen_is_no_command(typist: Typist) -> None:
    typist.burst("push it, h s q \x12").wait(1000)
    typist.paste("home, see, stop").wait(1000)
    assert typist.done == []
    assert typist.text is None


def test_t_in_the_midst_of_stray_text_opens_nothing_and_frees_nothing(typist: Typist) -> None:
    typist.burst("sort the bolts, see\r").wait(1000)
    assert typist.done == []
    assert typist.text is None
    typist.burst(" tpush the cube").wait(1000)
    assert typist.done == []


def test_stray_text_in_pieces_stays_stray(typist: Typist) -> None:
    typist.burst("push").wait(150).burst(" ").wait(150).burst("h").wait(150).burst("s").wait(1000)
    assert typist.done == []


def test_an_emergency_press_is_obeyed_in_any_burst_of_keys(typist: Typist) -> None:
    typist.burst("hsqe")
    assert typist.done == [("emergency", "")]


def test_insisting_on_the_emergency_key_is_obeyed_in_the_midst_of_stray_text(typist: Typist) -> None:
    typist.burst("xt")
    for _ in range(3):
        typist.burst("e").wait(30)
    assert typist.done == [("emergency", "")]


@pytest.mark.parametrize("key", ["f12", "ctrl+e"])
@pytest.mark.parametrize("before", ["", "t", "tsee", "tsee\r", "tsee\x1b", "xyz", "xt"])
def test_the_emergency_keys_that_are_no_text_work_everywhere(typist: Typist, key: str, before: str) -> None:
    typist.burst(before).key(key)
    assert ("emergency", "") in typist.done


@pytest.mark.parametrize("key", ["e", "E", "alt+e"])
def test_an_emergency_press_waits_for_nothing(typist: Typist, key: str) -> None:
    typist.key(key, key if len(key) == 1 else None)
    assert typist.done == [("emergency", "")]


@pytest.mark.parametrize("delay_ms", [250, 500, 700])
def test_the_emergency_key_held_down_is_one_press_and_a_second_after_a_pause_another(
    typist: Typist, delay_ms: float
) -> None:
    typist.burst("e").wait(delay_ms)
    for _ in range(30):
        typist.burst("e").wait(35)
    assert typist.done == [("emergency", "")]
    typist.key("f12").wait(1000)
    assert len(typist.done) == 1, "the other emergency key within the stream is the same hand"
    typist.burst("e")
    assert len(typist.done) == 2


@pytest.mark.parametrize("key", [" ", "h", "s", "q", "\x12"])
def test_any_key_held_down_is_one_press(typist: Typist, key: str) -> None:
    typist.burst(key).wait(400)
    for _ in range(40):
        typist.burst(key).wait(35)
    typist.wait(200)
    assert len(typist.done) == 1
    typist.wait(800).burst(key).wait(100)
    assert len(typist.done) == 2


def test_whoever_presses_again_too_soon_is_told_so_once(typist: Typist) -> None:
    typist.burst("e").wait(500).burst("e").wait(500).burst("e").wait(100)
    assert typist.done == [("emergency", "")]
    assert len(typist.notices) == 1
    assert "lift the key for a second" in typist.notices[0]


def test_a_key_pressed_again_after_another_one_is_not_held_down(typist: Typist) -> None:
    typist.burst("h").wait(150).burst(" ").wait(150).burst("h").wait(150)
    assert typist.done == [("command", key) for key in ("h", "space", "h")]
    assert typist.notices == []


def test_a_letter_with_a_modifier_is_neither_text_nor_a_command(typist: Typist) -> None:
    typist.key("alt+h", "h").wait(500)
    assert typist.done == []
    typist.burst("t").key("alt+x", "x").burst("y")
    assert typist.text == "y"


def test_presses_that_a_line_held_back_are_one(typist: Typist) -> None:
    typist.burst("     ").wait(500)
    assert typist.done == [("command", "space")]


def test_no_letter_clears_a_stop(typist: Typist) -> None:
    typist.slowly("".join(chr(c) for c in range(33, 127) if chr(c) not in "tTeE"))
    typist.wait(500)
    assert ("command", "ctrl+r") not in typist.done
    typist.wait(1000).burst("\x12").wait(100)
    assert typist.done[-1] == ("command", "ctrl+r")


def test_capitals_are_the_same_keys(typist: Typist) -> None:
    typist.burst("H").wait(1000)
    assert typist.done == [("command", "h")]


def test_keys_that_waited_for_a_busy_screen_are_judged_by_when_they_were_typed(typist: Typist) -> None:
    typed_ns = typist.now_ns
    typist.now_ns += 3000 * MS
    for character, ms in (("h", 0), ("s", 500), ("x", 1500), (" ", 1510)):
        typist._note(typist.keyboard.key(NAMES.get(character, character), character, typed_ns + ms * MS))
    typist.wait(200)
    assert typist.done == [("command", "h"), ("command", "s")]


def test_an_empty_task_is_not_sent(typist: Typist) -> None:
    typist.burst("t  \r").wait(500)
    assert typist.done == []
    assert typist.text is None


def test_a_line_is_edited_in_its_middle() -> None:
    line = TaskLine("the last task")
    line.insert("push the cbe")
    for key in ("left", "left"):
        line.edit(key)
    line.insert("u")
    assert line.text == "push the cube"
    line.edit("end")
    line.edit("ctrl+w")
    assert (line.text, line.cursor) == ("push the ", 9)
    line.edit("home")
    line.edit("delete")
    assert line.text == "ush the "
    line.edit("ctrl+u")
    line.edit("end")
    line.edit("ctrl+u")
    assert line.text == ""
    line.edit("up")
    assert line.text == "the last task"


def test_a_pasted_novel_is_cut_and_control_characters_are_left_out() -> None:
    line = TaskLine()
    line.insert("a\x1b[31mb\x00c\td\r\ne")
    assert line.text == "a[31mbc d e"
    line.insert("x" * 10_000)
    assert len(line.text) == MAX_TEXT


@pytest.mark.parametrize("pastes", [True, False])
def test_what_finds_no_room_is_said_once_and_a_task_as_long_as_deploy_takes_fits(pastes: bool) -> None:
    typist = Typist()
    typist.slowly("t")
    write = typist.paste if pastes else typist.burst
    write("x" * LONGEST_TASK)
    assert typist.notices == []
    write("yz")
    assert typist.notices == [FULL_WORDS]
    typist.burst("\r").wait(300)
    assert typist.done == [("task", "x" * LONGEST_TASK)]


# -- looking ----------------------------------------------------------------------------------------------------------


def looking() -> Keyboard:
    return Keyboard(("space", "h", "s"), clock=lambda: 10**12, search_key="/", views=("?", "up", "c"))


def test_a_key_that_only_looks_acts_at_once_and_as_often_as_it_comes() -> None:
    keyboard = looking()
    for i in range(5):
        assert keyboard.key("up", None, i * 30_000_000) == [Intent("command", "up")]


def test_nothing_in_the_words_that_are_searched_is_a_command_but_the_emergency_keys() -> None:
    keyboard = looking()
    second = 10**9
    assert keyboard.key("slash", "/", second) == []
    for i, letter in enumerate("shec"):
        assert keyboard.key(letter, letter, (2 + i) * second) == []
    assert keyboard.is_searching
    assert keyboard.field is not None
    assert keyboard.field.text == "shec"
    assert keyboard.key("f12", None, 8 * second) == [Intent("emergency")]
    assert keyboard.key("escape", "\x1b", 9 * second) == [Intent("search")]
    assert not keyboard.is_searching


def test_a_looking_key_in_stray_text_is_not_obeyed_either() -> None:
    keyboard = looking()
    keyboard.key("x", "x", 10**9)
    assert [act.kind for act in keyboard.key("c", "c", 10**9 + 1_000_000)] == ["notice"]
    assert keyboard.key("question_mark", "?", 10**9 + 2_000_000) == []

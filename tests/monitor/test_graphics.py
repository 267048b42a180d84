"""Pictures by the terminal's own graphics: on terminals that answer as Kitty does, and on those that do not."""

import base64
import re
import time

import cv2
import monitor_kit
import numpy as np
import pytest
from monitor_kit import Robot, Watcher

from edgevla.cli import main
from edgevla.monitor.graphics import (
    FIRST_ID,
    HELD_S,
    NAMED_S,
    NUMERALS,
    PLACEHOLDER,
    Answers,
    is_capable,
    placeholders,
)

GRAPHICS = re.compile(rb"\x1b_G([^;\x1b]*)(?:;([^\x1b]*))?\x1b\\")
CUT = re.compile(rb"\x1b(_[^\x1b]*\x1b?|\[[^a-zA-Z]*)?\Z")
"""A sequence of which the end has not come yet."""
ASKED = {b"\x1b[>0q": "\x1bP>|{name}\x1b\\", b"\x1b[c": "\x1b[?62;c"}

SAID = (
    "\x1b]11;rgb:1e1e/2222/eeee\x1b\\",
    "\x1b]11;rgb:1e1e/2222/eeee\x07",
    "\x1b_Gi=16;ENOSPC:no room, else\x1b\\",
    "\x1bP1+r544e=hse\x1b\\",
)


class Kitty(Watcher):
    """A terminal that says its name, and keeps the pictures that it is sent.

    images: number -> uint8 (H, W, 3) BGR. deleted: numbers. pause_s: between two bytes of its answers.
    """

    def __init__(self, command, size=(120, 40), name="kitty(0.35.2)", pause_s=0.0, **environment):
        self._name, self._pause_s = name, pause_s
        self.images, self.deleted, self._parts, self._rest = {}, [], b"", b""
        self._keys = {}
        super().__init__(command, size, **environment)

    def heard(self, data):
        data, self._rest = self._rest + data, b""
        if (cut := CUT.search(data)) is not None:
            data, self._rest = data[: cut.start()], data[cut.start() :]
        for asked, answer in ASKED.items():
            for _ in range(data.count(asked)):
                for byte in answer.format(name=self._name).encode():
                    self.write(bytes([byte]))
                    time.sleep(self._pause_s)
        for keys, payload in GRAPHICS.findall(data):
            self._take(dict(pair.split("=") for pair in keys.decode().split(",")), payload)
        return GRAPHICS.sub(b"", data)

    def _take(self, keys, payload):
        if keys.get("a") == "d":
            self.deleted.append(int(keys["i"]))
            return
        self._keys = keys if "a" in keys else self._keys
        self._parts += payload
        if keys["m"] == "0":
            assert self._keys["U"] == "1"
            png = np.frombuffer(base64.b64decode(self._parts), np.uint8)
            self.images[int(self._keys["i"])] = cv2.imdecode(png, cv2.IMREAD_COLOR)
            self._parts = b""


@pytest.fixture
def seen():
    """`seen(robot, options..., terminal=Kitty)`: a monitor of it, once it shows figures."""
    made = []

    def start(robot, *options, terminal=Kitty, **settings):
        command = ["-m", "edgevla", "monitor", f"--run-dir={robot.folder}", *options]
        made.append(terminal(command, **settings))
        made[-1].wait_for("RUNNING", 40)
        return made[-1]

    yield start
    for watcher in made:
        watcher.close()


@pytest.fixture
def robot():
    made = Robot(cameras=["front", "wrist"])
    yield made
    made.close()


def first_cell(number):
    """As it is written: the colour is the picture's number."""
    return f"\x1b[38;5;{number}".encode(), f"{PLACEHOLDER}{NUMERALS[0]}{NUMERALS[0]}".encode()


def test_kitty_shows_pictures_in_cells_and_keeps_none_of_them(robot, seen):
    watcher = seen(robot)
    watcher.wait_until(lambda: PLACEHOLDER in watcher.screen, "no picture is named")
    numbers = {0, 1, 2, 3}  # two of each camera, which take turns
    watcher.wait_until(lambda: len(set(watcher.images)) >= 2, "a picture is missing")
    assert {number - FIRST_ID for number in watcher.images} <= numbers
    watcher.wait_until(lambda: "▀" not in watcher.screen, "half blocks are left")
    for number, image in watcher.images.items():
        assert image.shape == (120, 160, 3)
        assert np.abs(image.astype(int) - (0, 0, 255)).max() < 16
        colour, cell = first_cell(number)
        assert re.search(re.escape(colour) + rb"[;\d]*m" + re.escape(cell), watcher.raw)
    watcher.write("?")
    watcher.wait_until(lambda: PLACEHOLDER not in watcher.screen, "a picture is left on the page of keys")
    time.sleep(0.4)
    watcher.write("?")
    watcher.wait_until(lambda: PLACEHOLDER in watcher.screen, "the picture did not come back")
    watcher.images.clear()  # as a terminal does that is cleared; the scripted cameras show the same picture all the time
    time.sleep(0.4)  # keys that come closer together are text
    watcher.write("\x0c")
    watcher.wait_until(lambda: len(set(watcher.images)) >= 2, "ctrl+l did not send the pictures again")
    time.sleep(0.4)
    watcher.write("q")
    assert watcher.wait_for_end() == 0
    watcher.assert_sane()
    assert set(watcher.deleted) == set(watcher.images)
    assert watcher.raw.rfind(b"\x1b_G") < watcher.raw.rfind(b"\x1b[?1049l")
    assert robot.heard == []


@pytest.mark.parametrize("name", ["WezTerm 20240203", "kitty(0.26.5)", ""])
def test_another_terminal_gets_half_blocks_and_its_slow_answer_presses_no_key(robot, seen, name):
    watcher = seen(robot, name=name, pause_s=0.02)
    watcher.wait_for("▀")
    time.sleep(0.6)
    assert b"\x1b_G" not in watcher.raw
    assert robot.heard == []
    assert "text came where none belongs" not in watcher.screen
    watcher.write("h")
    robot.wait_for("home")


def test_a_terminal_that_never_answers_gets_half_blocks_at_once(robot, seen):
    watcher = seen(robot, terminal=Watcher, size=(120, 40))
    watcher.wait_for("▀")
    assert b"\x1b_G" not in watcher.raw
    watcher.write("q")
    assert watcher.wait_for_end() == 0
    watcher.assert_sane()


def test_what_is_wanted_is_not_asked_for(robot, seen, capsys, monkeypatch):
    blocks = seen(robot, "--pictures=blocks")
    blocks.wait_for("▀")
    forced = seen(robot, name="", EDGEVLA_PICTURES="kitty")
    forced.wait_until(lambda: forced.images, "no picture came")
    plain = seen(robot, "--pictures=kitty", NO_COLOR="1")
    plain.wait_for("fps")
    for watcher in (blocks, forced, plain):
        assert b"\x1b[>0q" not in watcher.raw
    assert b"\x1b_G" not in blocks.raw + plain.raw
    monkeypatch.setenv("EDGEVLA_PICTURES", "sixel")
    assert main(["monitor", f"--run-dir={robot.folder}"]) == 2
    assert "EDGEVLA_PICTURES=sixel: expected one of auto, blocks, kitty" in capsys.readouterr().err


def test_keys_go_through_between_answers_and_an_escape_that_is_none_is_only_late():
    answers = Answers()
    assert answers.feed("a\x1b", 0.0) == "a\x1b", "nobody was asked"
    answers.ask(1.0)
    assert answers.feed("x\x1bP>|kit", 1.0) == "x"
    assert answers.due(1.0 + HELD_S / 2) == ""
    assert answers.feed("ty(0.31.0)\x1b\\y\x1b", 1.05) == "y"
    assert answers.name == "kitty(0.31.0)"
    assert answers.due(1.05 + 2 * HELD_S) == "\x1b"
    assert answers.feed("\x1b[A\x1b[?2026;2$yz", 1.3) == "\x1b[A\x1b[?2026;2$yz"
    assert not answers.is_over.is_set()
    assert answers.feed("\x1b[?62;22c", 1.4) == ""
    assert answers.is_over.is_set()
    assert answers.feed("\x1b", 1.5) == "\x1b"


def test_an_answer_that_is_late_or_stalls_is_taken_out_whole():
    answers = Answers()
    answers.ask(0.0)
    assert answers.feed("\x1bP>|ghost", 20.0) == ""
    assert answers.due(20.0 + NAMED_S / 2) == "", "no hand types this: it may take its time"
    assert answers.feed("ty hse\x1b", 20.0 + NAMED_S / 2) == ""
    assert answers.feed("\\x\x1b[?6", 20.6) == "x"
    assert answers.feed("2;c", 20.6) == ""
    assert (answers.name, answers.is_over.is_set()) == ("ghostty hse", True)
    assert answers.feed("\x1bP>|ghost", 30.0) == ""
    assert answers.due(30.0 + NAMED_S) == "\x1bP>|ghost", "it never ended"


@pytest.mark.parametrize("said", SAID)
def test_no_string_of_a_terminal_is_keys_and_no_key_is_taken_for_one(said):
    for cut in range(2, len(said)):
        answers = Answers()
        assert answers.feed(f"a{said[:cut]}", 1.0) == "a"
        assert answers.feed(f"{said[cut:]}b", 1.05) == "b"
        assert answers.name == ""
    for key in ("\x1b[24~", "\x05", "\x1be", "\x1b"):  # whoever stops the arm waits for no string
        answers = Answers()
        assert answers.feed("\x1b]" + key, 1.0).endswith(key) or answers.due(1.0 + HELD_S).endswith(key)
    assert answers.feed("\x1b]e", 2.0) == ""
    assert answers.due(2.0 + HELD_S) == "\x1b]e"


def test_what_a_terminal_says_unasked_asks_nothing_of_a_robot(robot, seen):
    """A colour that another program asked for, an error of the graphics: both contain an `e`, which is a key."""
    watcher = seen(robot, "--pictures=kitty", terminal=Watcher)
    for said in SAID:
        watcher.write(said)
        time.sleep(0.1)
    watcher.write("h")
    robot.wait_for("home")
    assert robot.actions() == ["home"]
    assert "text came where none belongs" not in watcher.screen


def test_only_terminals_with_placeholders_are_taken():
    for name in ("kitty(0.28.0)", "kitty(1.0.0)", "ghostty 1.1.3"):
        assert is_capable(name)
    for name in ("kitty(0.27.1)", "tmux 3.4", "WezTerm 20240203", "Konsole 24.08", "foot(1.16)", ""):
        assert not is_capable(name)


def test_lines_of_a_picture_number_their_cells_and_are_as_wide_as_all_others():
    lines = placeholders(20, 3, 2, 10)
    assert [line.cell_length for line in lines] == [10, 10]
    assert lines[1].text == "".join(f"{PLACEHOLDER}{NUMERALS[1]}{NUMERALS[x]}" for x in range(3)) + " " * 7
    assert len(set(NUMERALS)) == 160


class Slow(Watcher):
    """A terminal behind a narrow line, once it has a rate. bytes_per_s: of that line."""

    bytes_per_s = 0

    def heard(self, data):
        if self.bytes_per_s:
            time.sleep(len(data) / self.bytes_per_s)
        return GRAPHICS.sub(b"", data)


@pytest.mark.realtime
def test_pictures_on_a_line_too_narrow_for_them_do_not_hold_back_an_emergency_stop(seen, monkeypatch):
    noise = np.random.default_rng(0)

    def picture(_):
        image = cv2.GaussianBlur(noise.integers(0, 256, (120, 160, 3), dtype=np.uint8), (9, 9), 0)
        return np.asarray(cv2.imencode(".jpg", image)[1]).reshape(-1)

    monkeypatch.setattr(monitor_kit, "jpeg", picture)
    robot = Robot(cameras=["front", "wrist", "left", "right"])
    try:
        watcher = seen(robot, "--pictures=kitty", terminal=Slow, size=(120, 40))
        watcher.bytes_per_s = 10_000
        time.sleep(5)  # all that the monitor may have written ahead is full
        watcher.write("e")
        robot.wait_for("emergency_stop", 1.5)
        watcher.bytes_per_s = 0
    finally:
        robot.close()

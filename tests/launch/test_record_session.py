"""What keys, the clock and the disk make of an open episode; the rows are real, the robot is not there."""

from __future__ import annotations

import argparse
import io
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import zmq

from edgevla.cli import main
from edgevla.clock import NS_PER_S
from edgevla.dataset import DatasetWriter, open_dataset
from edgevla.dataset.room import SPARE, episode_room
from edgevla.dataset.stated import read_stated
from edgevla.errors import DatasetError, WireError
from edgevla.launch import record_cli
from edgevla.launch.record_screen import RecordScreen, fitted
from edgevla.launch.record_session import RecordSession
from edgevla.messages import State
from edgevla.nodes.recorder import RecorderNode
from edgevla.nodes.recording import Recording

FPS = 10.0
MIB = 2**20


def state(k: int) -> State:
    two = np.full(2, k, np.float32)
    step = round(NS_PER_S / FPS)
    return State(
        tick=k, deadline_ns=k * step, late_ns=0, t0_ns=0, step_ns=step, mode="running", position=two,
        position_age_us=np.zeros(2, np.uint32), wanted=two, goal=two, limited_by=np.zeros(2, np.uint16), chunk_seq=0,
        action_index=0.0, n_actions_left=0, reason="",
    )  # fmt: skip


class Recorded:
    """A session over a recorder node without cameras. `lives`: how often its deployment is found alive."""

    def __init__(self, tmp_path: Path, ctx: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.root = tmp_path / "set"
        self.node = RecorderNode(ctx, tmp_path, b"s" * 8, self.root, [], "wave")
        vector = {"dtype": "float32", "shape": (2,), "names": ["a.pos", "b.pos"]}
        features = {"observation.state": vector, "action": vector}
        self.node.recording = Recording(DatasetWriter(self.root, fps=FPS, features=features), [])
        self.node._fps_of_grid = FPS
        args = argparse.Namespace(
            seconds=None, pause=2.0, episodes=None, task="wave", next_task=[], output=self.root
        )
        self.lives, self._shown = 1000, io.StringIO()
        self.session = RecordSession(
            self.node, args, RecordScreen(self._shown, has_bell=False), self._is_alive
        )
        self.node.heard = lambda text: self.session._screen.say(f"! {text}")

    def said(self) -> str:
        """Since it was asked last."""
        text = self._shown.getvalue()
        self._shown.truncate(0)
        return text

    def _is_alive(self) -> bool:
        self.lives -= 1
        return self.lives > 0

    def rows(self, n: int) -> None:
        assert self.node.recording is not None
        for k in range(n):
            self.node.recording.state(state(k))
        self.node.step(time.monotonic_ns())

    def run(self, *keys: str) -> None:
        typed = iter(keys)
        self.session.run(lambda _: next(typed, None))


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recorded]:
    ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = Recorded(tmp_path, ctx)
    yield made
    made.node.close()
    ctx.destroy(linger=0)


def test_k_after_q_keeps_and_ends_and_any_other_key_takes_the_question_back(recorded: Recorded) -> None:
    recorded.session._obey("record")
    recorded.rows(5)
    for word in ("quit", "pause", "quit"):
        recorded.session._obey(word)
    assert recorded.said().count("! episode 0 is open: q again discards it") == 2
    assert recorded.session.line().startswith("LEAVE? q discards, k keeps | PAUSED")
    recorded.run("k", "r")
    assert not recorded.session.is_recording, "it has ended: r came too late"
    assert open_dataset(recorded.root).episodes[0].length == 5
    assert read_stated(recorded.root).cut_off_episodes == []


def test_an_arm_that_ends_leaves_the_episode_that_was_open(recorded: Recorded) -> None:
    recorded.session._obey("record")
    recorded.rows(5)
    recorded.lives = 3
    recorded.run()
    assert "the deployment has ended" in (said := recorded.said())
    assert f"! episode 0 was open and is kept as it was: edgevla dataset {recorded.root} delete 0" in said
    assert read_stated(recorded.root).cut_off_episodes == [0]
    assert open_dataset(recorded.root).n_frames == 5


def test_an_episode_without_rows_ends_without_a_word(recorded: Recorded) -> None:
    recorded.session._obey("record")
    recorded.session.asked_by = "SIGTERM"
    recorded.run()
    assert "SIGTERM ended the recording" in (said := recorded.said())
    assert "!" not in said
    assert recorded.session.n_kept == 0


def test_whatever_asks_for_the_end_a_second_ctrl_c_freezes_the_arm_and_only_a_third_gives_up(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    now = iter([1.0, 1.01, 2.0, 4.0])
    led: Any = SimpleNamespace(ask_to_end=lambda again: asked.append(again))
    monkeypatch.setattr(record_cli.time, "monotonic_ns", lambda: round(next(now) * NS_PER_S))
    monkeypatch.setattr(record_cli, "ENDS", frozenset({signal.SIGHUP, signal.SIGINT}))
    before = [signal.signal(n, signal.default_int_handler) for n in (signal.SIGHUP, signal.SIGINT)]
    try:
        with record_cli._signals_heard(recorded.session, led):
            for number, said in [
                (signal.SIGHUP, [False]),
                (signal.SIGHUP, [False]),  # kernel and shell
                (signal.SIGINT, [False]),  # a wrapper's, of the same press
                (signal.SIGINT, [False, True]),
            ]:
                signal.raise_signal(number)
                assert asked == said
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in zip((signal.SIGHUP, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
    assert asked == [False, True, True]
    assert recorded.session.asked_by == "SIGHUP"


def test_no_episode_begins_without_room_and_little_room_is_said(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"bytes": SPARE // 2}
    monkeypatch.setattr("edgevla.dataset.room.free_bytes", lambda _: free["bytes"])
    recorded.session._obey("record")
    assert "! no room for an episode: 34 MB are free where" in recorded.said()
    assert not recorded.session.is_recording
    free["bytes"] = 2 * SPARE
    recorded.session._obey("record")
    recorded.rows(5)
    assert "are free where" not in recorded.said(), "there is room for a thousand"
    recorded.session._obey("discard")
    recorded.node.recording.longest = 400_000  # type: ignore[union-attr]
    recorded.session._obey("record")
    recorded.rows(5)
    assert "! 134 MB are free where" in (said := recorded.said())
    assert "room for about 1 episode" in said
    free["bytes"] = SPARE // 2
    recorded.lives = 3
    recorded.run()
    said = recorded.said()
    assert "! the disk is nearly full: the episode ends here" in said
    assert "! episode 0 was open and is kept as it was" in said
    assert open_dataset(recorded.root).n_frames == 5


def no_space(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_after_all_loses_the_open_episode_in_words(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded.session._obey("record")
    recorded.rows(5)
    recorded.session._obey("keep")
    recorded.session._obey("record")

    monkeypatch.setattr(recorded.node, "step", no_space)
    with pytest.raises(DatasetError, match=r"open episode is lost: .*No space left.*before are whole"):
        recorded.run()
    assert open_dataset(recorded.root).n_episodes == 1


def test_a_disk_that_is_full_at_once_is_said_in_the_same_words(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded.session._obey("record")
    recorded.rows(5)
    recorded.session._obey("keep")
    recorded.session._obey("record")
    recorded.rows(5)

    monkeypatch.setattr(recorded.node, "lacks_room", lambda: True)
    monkeypatch.setattr(recorded.node, "keep", no_space)
    with pytest.raises(DatasetError, match=r"open episode is lost: .*No space left.*before are whole"):
        recorded.run()
    assert open_dataset(recorded.root).n_episodes == 1


def test_the_clock_does_not_repeat_what_was_refused_all_the_time(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevla.dataset.room.free_bytes", lambda _: SPARE // 2)
    recorded.session.args.seconds, recorded.session.args.pause = 1.0, 0.0
    recorded.session._due_s, recorded.lives = time.monotonic(), 20
    recorded.run()
    assert recorded.said().count("! no room for an episode") == 1
    monkeypatch.setattr("edgevla.launch.record_session.REFUSED_S", 0.0)
    recorded.session._due_s, recorded.lives = time.monotonic(), 20
    recorded.run()
    assert recorded.said().count("! no room for an episode") == 0, "it is the same as before"
    assert recorded.session.line().startswith("refused, again in 0 s | 0 kept")
    recorded.session._obey("record")
    recorded.session._obey("record")
    assert recorded.said().count("! no room for an episode") == 2, "a key is answered each time"
    recorded.session._obey("keep")
    recorded.session._due_s, recorded.lives = time.monotonic(), 20
    recorded.run()
    assert recorded.said().count("! no room for an episode") == 0, "and the clock still has no news"


def test_count_state_and_driver_are_seen_on_a_narrow_terminal(recorded: Recorded) -> None:
    session, args = recorded.session, recorded.session.args
    args.episodes, args.seconds, session.n_kept, session.n_discarded = 50, 20.0, 12, 3
    session._takeover = cast("Any", object())
    session._obey("record")
    recorded.rows(12)
    assert session.line() == ("REC 0:01 of 0:20 | 12 rows | policy drives | 12/50 kept, 3 discarded | wave")
    assert session.line(39) == "REC 0:01 | policy drives | 12/50 kept"
    session._is_leaving = True
    assert session.line(39) == "LEAVE? q, k | REC 0:01 | 12/50 kept"
    assert session.line(70) == "LEAVE? q discards, k keeps | REC 0:01 | policy drives | 12/50 kept"
    session._is_leaving = False
    session._obey("discard")
    session._is_held = True
    assert session.line(39) == "held | policy drives | 12/50 kept"


def test_the_line_fits_the_terminal_in_whatever_script_the_task_is() -> None:
    assert fitted("REC 0:12 | cube", 8) == "REC 0:12"
    assert fitted("REC | 把立方体放进碗里", 11) == "REC | 把立", "two cells each"
    assert fitted("REC | 把", 8) == "REC | 把"


def test_the_room_of_an_episode_follows_from_those_that_are_there(tmp_path: Path) -> None:
    camera = {"dtype": "video", "shape": (48, 64, 3), "names": ["height", "width", "channels"]}
    noise = np.random.default_rng(0)
    with DatasetWriter(tmp_path, fps=FPS, features={"observation.images.front": camera}) as writer:
        guessed = episode_room(tmp_path, writer.features, 0)
        for _ in range(20):
            picture = noise.integers(0, 255, (48, 64, 3), np.uint8)
            writer.add_frame({"observation.images.front": picture}, "wave")
        writer.save_episode()
        seen = episode_room(tmp_path, writer.features, writer.n_frames)
    (video,) = tmp_path.rglob("*.mp4")
    size = video.stat().st_size
    assert seen.per_row > size / 20, "pure noise takes more than was guessed"
    assert seen.per_row > 2 * guessed.per_row
    assert seen.to_record(20) > SPARE + 3 * size, "its own, the copy, and what is copied with it"
    assert SPARE + 2 * size < seen.to_save(20) < seen.to_record(20)


def test_what_is_recorded_does_not_depend_on_whether_somebody_reads_what_is_said(recorded: Recorded) -> None:
    """`edgevla record ... | tee log`: Ctrl-C ends tee, too, and a terminal that closes takes no more words."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as nobody:
        recorded.session._screen = RecordScreen(nobody, has_bell=True)
        recorded.session._obey("record")
        recorded.rows(5)
        recorded.session.asked_by = "Ctrl-C"
        recorded.run()
    assert read_stated(recorded.root).cut_off_episodes == [0]
    assert open_dataset(recorded.root).n_frames == 5


def test_a_robot_that_does_not_answer_a_key_ends_no_episode(recorded: Recorded) -> None:
    def press(is_led: bool) -> str:
        raise WireError("robot did not answer 'lead' within 1 s")

    recorded.session._takeover = SimpleNamespace(press=press)  # type: ignore[assignment]
    recorded.session._obey("record")
    recorded.rows(5)
    recorded.run("t", "k")
    assert "! robot did not answer 'lead' within 1 s" in recorded.said()
    assert open_dataset(recorded.root).n_frames == 5


def test_the_check_names_the_episode_that_was_cut_off(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    for is_cut_off in (False, True):
        recorded.session._obey("record")
        recorded.rows(5)
        assert recorded.node.recording is not None
        recorded.node.keep(recorded.node.recording, is_cut_off)
    main(["dataset", str(recorded.root), "check"])
    assert "warning: episode 1: the recording was ended while it was open" in capsys.readouterr().out

"""A session of recording: one recorder node, driven by keys, or by the clock where episodes have a length.

resetting --r, or the countdown's end--> recording --k, or full--> kept
                                         |   \\--d, a-----------> discarded (a: and recorded anew)
                                         p: what happens until the next p is left out
With an episode open, q asks first. Whatever else ends the recording then keeps it, noted as cut off.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edgevla.arguments import SetTask
from edgevla.errors import DatasetError, EdgeVLAError, UsageError
from edgevla.launch.record_screen import LinePart, RecordScreen, clock, joined, left_out

if TYPE_CHECKING:
    from edgevla.launch.takeover import Takeover
    from edgevla.nodes.recorder import RecorderNode
    from edgevla.nodes.recording import Corrections, Recording

KEYS = {
    "r": "record",
    "k": "keep",
    "d": "discard",
    "a": "again",
    "p": "pause",
    "n": "next_task",
    "t": "takeover",
    "q": "quit",
}
KEYS_HELP = "keys: r record, k keep, d discard, a again, p pause, n next task, q quit"
TAKEOVER_HELP = "t: you take over with the leader arm, and again: the policy goes on"
COUNTED_S = 3
"""The last seconds of a countdown are heard."""
ROOM_S = 1.0
"""How often the room on the disk is looked at while an episode is open."""
REFUSED_S = 5.0
"""The clock tries again so much later to begin an episode that was refused."""
FOREVER = float("inf")


class RecordSession:
    """args: `task`, `next_task`, `episodes`, `seconds`, `pause` of `record`. n_there: episodes that count as kept.

    takeover: where a policy drives that a person may correct.
    """

    def __init__(
        self,
        node: RecorderNode,
        args: argparse.Namespace,
        screen: RecordScreen,
        is_alive: Callable[[], bool],
        n_there: int = 0,
        takeover: Takeover | None = None,
    ) -> None:
        self._takeover = takeover
        self.node, self.args, self._screen, self._is_alive = node, args, screen, is_alive
        self.n_kept, self.n_discarded, self._n_there = 0, 0, n_there
        # With --seconds the clock begins episodes; what fills them is rows, so that their length is exact.
        self._due_s = time.monotonic() + args.pause if args.seconds else FOREVER
        self._is_held = False
        self._n_rung = COUNTED_S + 1
        self._refusal = ""
        """Why no episode could be begun when it was tried last; empty: it could."""
        self._tasks = [args.task or "", *args.next_task]
        self._before: Mapping[str, int] = {}
        self._must_quit = self._is_leaving = False
        """_is_leaving: q was pressed while an episode was open, and what becomes of it is not said yet."""
        self.asked_by = ""
        """The signal that asked for the end; empty: none did."""
        self._room_due_s = 0.0

    @property
    def is_recording(self) -> bool:
        """Whether an episode is open and takes frames."""
        return self.node.recording is not None and self.node.recording.is_recording

    @property
    def _is_done(self) -> bool:
        return self.args.episodes is not None and self._n_there + self.n_kept >= self.args.episodes

    def run(self, read_key: Callable[[float], str | None]) -> None:
        """Until q, a signal, the wanted number of episodes, or the deployment's end."""
        self._screen.say(KEYS_HELP)
        if self._takeover is not None:
            self._screen.say(TAKEOVER_HELP)
        while not (self._must_quit or self.asked_by) and self._is_alive():
            key = read_key(0.02)
            if key is not None and key in KEYS:
                self._obey(KEYS[key])
            self._step()
            self._by_clock()
            if self._is_done:
                return
            self._screen.show(self.line(self._screen.n_cells))
        if self.asked_by:
            self._end_open(f"{self.asked_by} ended the recording")
        elif not self._must_quit:
            self._end_open("the deployment has ended")

    def _step(self) -> None:
        try:
            self.node.step(time.monotonic_ns())
        except (DatasetError, OSError) as error:
            if not self.is_recording:
                raise
            raise _lost(error) from error

    def _end_open(self, why: str) -> None:
        """Nobody said what becomes of the open episode: it is kept, for it cannot be had again."""
        self._screen.say(why)
        if not self.is_recording:
            return
        try:
            self._keep_cut_off()
        except DatasetError as error:
            self._screen.say(f"! {error}")

    def _keep_cut_off(self) -> None:
        try:
            self._end_episode("keep", is_cut_off=True)
        except UsageError:
            return  # it has no rows yet
        except (EdgeVLAError, OSError) as error:
            raise _lost(error) from error
        number = self.node.recording.writer.n_episodes - 1 if self.node.recording is not None else 0
        root = shlex.quote(str(self.args.output))
        self._screen.say(f"! episode {number} was open and is kept as it was: edgevla dataset {root} delete {number} "
            "removes it")  # fmt: skip

    # -- the clock ----------------------------------------------------------------------------------------

    def _by_clock(self) -> None:
        recording = self.node.recording
        if self.is_recording:
            if recording is not None and recording.is_full:
                self._obey("keep")
            elif time.monotonic() >= self._room_due_s:
                self._room_due_s = time.monotonic() + ROOM_S
                if self.node.lacks_room():
                    self._screen.say("! the disk is nearly full: the episode ends here")
                    self._keep_cut_off()
            return
        if self._is_held or self._due_s == FOREVER:
            return
        left_s = self._due_s - time.monotonic()
        if left_s <= 0:
            self._wait_anew()
            self._obey("record", is_by_clock=True)
            if not self.is_recording:  # refused, and why is said: not as often as the loop goes round
                self._due_s = max(self._due_s, time.monotonic() + REFUSED_S)
        elif left_s < self._n_rung - 1:
            self._n_rung -= 1
            self._screen.ring()

    def _wait_anew(self) -> None:
        """The scene is put back meanwhile."""
        if self.args.seconds:
            self._due_s, self._n_rung = time.monotonic() + self.args.pause, COUNTED_S + 1

    def line(self, n_cells: int = 1000) -> str:
        """The state in one line. Where it is longer than that many cells, what matters least is shortened first: state
        and count are seen on every terminal."""
        wanted = f"/{self.args.episodes}" if self.args.episodes is not None else ""
        kept = f"{self._n_there + self.n_kept}{wanted} kept"
        count = LinePart(f"{kept}, {self.n_discarded} discarded" if self.n_discarded else kept, kept)
        driver, leave, rows = LinePart("", ""), LinePart("", ""), LinePart("", "")
        if self._takeover is not None:
            driver = LinePart("YOU drive" if self.node.is_led else "policy drives", "")
        state, task = self._waiting(), LinePart(self._tasks[0] or "no task", "")
        recording = self.node.recording
        if self.is_recording and recording is not None:
            state, task = self._under_way(recording), LinePart(recording.label or "no task", "")
            gone = left_out(recording.counters, self._before)
            rows = LinePart(f"{recording.writer.n_open_frames} rows" + (f" ({gone})" if gone else ""), "")
            leave = LinePart("LEAVE? q discards, k keeps", "LEAVE? q, k") if self._is_leaving else leave
        return joined(
            [leave, state, rows, driver, count, task], [task, rows, count, state, leave, driver], n_cells
        )

    def _under_way(self, recording: Recording) -> LinePart:
        seconds = recording.writer.n_open_frames / (self.node.fps or 1.0)
        word = f"{'PAUSED' if recording.is_paused else 'REC'} {clock(seconds)}"
        return LinePart(f"{word} of {clock(self.args.seconds)}" if self.args.seconds else word, word)

    def _waiting(self) -> LinePart:
        if not self.args.seconds:
            return LinePart("reset: r records", "r records")
        if self._is_held:
            return LinePart("reset: held, p goes on", "held")
        seconds = f"{max(0.0, self._due_s - time.monotonic()):.0f} s"
        if self._refusal:
            return LinePart(f"refused, again in {seconds}", f"refused, {seconds}")
        return LinePart(f"reset: {seconds}", f"reset: {seconds}")

    # -- keys ---------------------------------------------------------------------------------------------

    def _obey(self, word: str, is_by_clock: bool = False) -> None:
        try:
            self._do(word)
        except UsageError as error:
            self._refuse(word, str(error), is_by_clock)
        except (EdgeVLAError, OSError) as error:
            if word == "keep":
                raise _lost(error) from error
            if isinstance(error, DatasetError | OSError):
                raise  # the dataset cannot be written: nothing more to do here
            self._refuse(word, str(error), is_by_clock)

    def _refuse(self, word: str, why: str, is_by_clock: bool) -> None:
        """A key is answered each time. The clock tries again and again, and the same answer is no news."""
        if why != self._refusal or not is_by_clock:
            self._screen.say(f"! {why}")
        if word in ("record", "again") and not self.is_recording:
            self._refusal = why

    def _do(self, word: str) -> None:
        was_leaving, self._is_leaving = self._is_leaving and self.is_recording, False
        if word == "quit":
            self._quit(was_leaving)
        elif word == "pause":
            self._pause()
        elif word == "next_task":
            self._next_task()
        elif word == "takeover":
            self._take_over()
        elif word in ("keep", "discard"):
            self._end_episode(word)
            self._must_quit = was_leaving
        else:
            if word == "again" and self.is_recording:
                self._end_episode("discard")
            self._screen.say(self.node.obey("record"))
            self._refusal = ""
            assert self.node.recording is not None
            self._before = Counter(self.node.recording.counters)
            self._screen.ring()

    def _quit(self, was_leaving: bool) -> None:
        """With an episode open only a second press: what is thrown away cannot be had again."""
        if not self.is_recording:
            self._must_quit = True
        elif was_leaving:
            self._end_episode("discard")
            self._must_quit = True
        else:
            self._is_leaving = True
            recording = self.node.recording
            number = recording.writer.n_episodes if recording is not None else 0
            raise UsageError(f"episode {number} is open: q again discards it and ends, k keeps it and ends")

    def _end_episode(self, word: str, is_cut_off: bool = False) -> None:
        recording, is_open = self.node.recording, self.is_recording
        if is_open and word == "keep":
            self._screen.say("saving the episode ...")
        if is_cut_off and recording is not None:
            text = self.node.keep(recording, is_cut_off=True)
        else:
            text = self.node.obey(word)
        if word == "keep" and recording is not None:
            n_rows = recording.counters["rows"] - self._before.get("rows", 0)
            gone = left_out(recording.counters, self._before)
            gone += f"; {recording.corrections}" if self._takeover is not None else ""
            text += f" ({n_rows} rows, {clock(n_rows / self.node.fps)}{'; ' if gone else ''}{gone.removeprefix('; ')})"
        self._screen.say(text)
        self.n_kept += word == "keep"
        self.n_discarded += word == "discard"
        self._wait_anew()
        self._screen.ring(2)

    def _pause(self) -> None:
        if self.is_recording or not self.args.seconds:
            self._screen.say(self.node.pause())
            return
        self._is_held = not self._is_held
        if not self._is_held:
            self._wait_anew()
        self._screen.say("the countdown is held; p goes on" if self._is_held else "the countdown goes on")

    def _take_over(self) -> None:
        if self._takeover is None:
            raise UsageError("nobody can take over: t is for a policy with a leader arm (--policy, --leader)")
        self._screen.say(self._takeover.press(self.node.is_led))

    def _next_task(self) -> None:
        if len(self._tasks) == 1:
            raise UsageError("there is no other task; name some with --next-task")
        tasks = [*self._tasks[1:], self._tasks[0]]
        text = self.node.obey("set_task", SetTask(tasks[0]))
        self._tasks = tasks
        self._screen.say(f"{text}, from the next episode on" if self.is_recording else text)

    @property
    def corrections(self) -> Corrections | None:
        """Of the kept episodes; None where nobody could take over."""
        recording = self.node.recording
        return None if self._takeover is None or recording is None else recording.kept_corrections

    def result(self) -> dict[str, Any]:
        """What `--json` prints at the end."""
        recording, by_hand = self.node.recording, self.corrections
        more = {} if by_hand is None else {"n_corrections": by_hand.n, "led_share": by_hand.share}
        return {
            **more,
            "output": str(self.args.output),
            "n_kept": self.n_kept,
            "n_discarded": self.n_discarded,
            "counters": {k: int(v) for k, v in (recording.counters if recording else {}).items()},
        }


def _lost(error: Exception) -> DatasetError:
    return DatasetError(
        f"the open episode is lost: {str(error).rstrip('.')}. Those that were kept before are whole. Check the room on "
        "the disk, then go on with the same command and --resume"
    )

"""The recorder: subscribes to a running robot and its cameras and writes a LeRobotDataset v3.0.

It records what a policy would have seen. A row is a grid moment (every R-th tick of the robot node): the state read
at that tick, the goal sent in it, and per camera the newest frame not later than it, whose age is recorded too. Rows
are made a little later than their moment, because frames travel; nothing here can slow the control loop.

    idle --record--> recording --keep--> saved       (the episode is on disk, whole)
                         \\------discard--> idle     (forgotten)

Run as `python -m edgevla.nodes.recorder --session HEX --output DIR --camera front [...]`; `edgevla record` does.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import zmq

from edgevla.arguments import Arguments, Record, SetTask
from edgevla.clock import NS_PER_S
from edgevla.descriptions import About, AboutCameraNode, AboutRecorder, AboutRobot
from edgevla.errors import DatasetError, EdgeVLAError, UsageError
from edgevla.look import Glance
from edgevla.messages import Frame, MessageBody, Severity, State
from edgevla.nodes.recording import FRAMES, STATES, Recording, Writer, kind_of
from edgevla.nodes.vitals import heartbeat, is_orphan, stop_when_asked
from edgevla.wire import CommandClient, CommandServer, Inbox, Publisher, Stream, endpoint, run_dir

if TYPE_CHECKING:
    from edgevla.dataset.room import EpisodeRoom

HEARTBEAT_NS = NS_PER_S // 5
NO_TASK = ", without a task: its rows carry an empty instruction (--task, or set one in the monitor)"
REMEMBERED = 16
"""Earlier episodes whose first pictures are looked at again."""
USUAL_S = 60.0
"""Length of an episode, as long as there is none and nobody says it."""
WARNED_EPISODES = 4
"""Where the disk takes no more than about so many, it is said."""
A = TypeVar("A", bound=About)


class RecorderNode:
    """Recording as a node: commands in, events and heartbeats out. `step` blocks only while an episode is saved.

    task: the label, for a robot that has no instruction of its own.
    has_leader: whether a person may take the policy's place (`deploy --leader`); every row then tells.
    cameras: names; sizes come from the camera node's own `describe`. output: a new folder, or a dataset to append to.
    """

    def __init__(
        self,
        ctx: zmq.Context,
        folder: Path | str,
        session: bytes,
        output: Path,
        cameras: Sequence[str],
        task: str,
        has_leader: bool = False,
    ) -> None:
        self.output, self.cameras, self.task = output, list(cameras), task
        self._has_leader = has_leader
        self.heard: Callable[[str], None] = lambda _: None
        """Told what happens to an episode while it is recorded."""
        self.episode_s: float | None = None
        """Length after which an episode takes no more rows; None: until it is kept or discarded."""
        self._fps_of_grid = 0.0
        self._ctx, self._folder, self._session = ctx, folder, session
        robot = endpoint(folder, "robot")
        eyes = [endpoint(folder, f"camera/{name}") for name in cameras]
        streams: dict[type[MessageBody], Stream] = {State: (robot, STATES)}
        if eyes:
            streams[Frame] = (eyes, FRAMES)
        self.inbox = Inbox(ctx, streams, session)
        self._publisher = Publisher(ctx, endpoint(folder, "recorder"), session, "recorder")
        self._server = CommandServer(ctx, endpoint(folder, "recorder", "commands"), session, "recorder")
        self._server.about = AboutRecorder("recorder", str(output), tuple(self.cameras))
        self.recording: Recording | None = None
        self._state: State | None = None
        self._room: EpisodeRoom | None = None
        self._heartbeat_ns = 0

    def step(self, now_ns: int) -> None:
        """
        Raises:
            EdgeVLAError: the dataset cannot be written; episodes already kept are safe.
        """
        for command in self._server.poll():
            try:
                command.answer(True, self.obey(command.action, command.arguments))
            except EdgeVLAError as error:
                command.answer(False, str(error))
        frames, states = self.inbox.drain(Frame), self.inbox.drain(State)
        self._state = states[-1].body if states else self._state
        if self.recording is not None:
            for frame in frames:
                self.recording.frame(frame)
            for state in states:
                self.recording.state(state.body)
            self.recording.settle(now_ns)
            self._tell(self.recording.news)
        if now_ns - self._heartbeat_ns >= HEARTBEAT_NS:
            self._heartbeat_ns = now_ns
            self._beat()

    def _tell(self, news: deque[tuple[Severity, str, str]]) -> None:
        while news:
            severity, code, text = news.popleft()
            self._publisher.event(severity, code, text)
            self.heard(text)

    def obey(self, action: str, arguments: Arguments | None = None) -> str:
        """One command; a sentence about what was done.

        Raises:
            UsageError, DatasetError, WireError: why it could not be done.
        """
        if action == "record":
            given = arguments.task if isinstance(arguments, Record) else None
            return self._record(self.task if given is None else given)
        if action not in ("keep", "discard", "set_task"):
            raise UsageError(
                f"the recorder knows no command '{action}'; it knows record, keep, discard, set_task"
            )
        if isinstance(arguments, SetTask):
            return self._set_task(arguments.task)
        if self.recording is None or not self.recording.is_recording:
            raise UsageError(f"there is no episode to {action}: none is being recorded")
        if action == "keep":
            return self.keep(self.recording)
        text = f"episode discarded ({self.recording.discard()} rows)"
        self._publisher.event("info", "episode_discard", text)
        return text

    def keep(self, recording: Recording, is_cut_off: bool = False) -> str:
        """The open episode of `recording` saved; a sentence. is_cut_off: it ends because the recording does.

        Raises:
            UsageError: it has no rows. DatasetError: it could not be saved, and is forgotten.
        """
        still = recording.still(self._fps_of_grid)
        text = f"episode {recording.keep(is_cut_off)} kept in {self.output}" + (
            f"; but {still}" if still else ""
        )
        self._publisher.event("info", "episode_keep", text)
        return text

    def pause(self) -> str:
        """Leaves out the rows from now on, or takes them again; a sentence.

        Raises:
            UsageError: nothing is being recorded.
        """
        if self.recording is None or not self.recording.is_recording:
            raise UsageError("there is no episode to pause: none is being recorded")
        self.recording.is_paused = not self.recording.is_paused
        if self.recording.is_paused:
            return f"paused at row {self.recording.writer.n_open_frames}: what happens now is left out"
        return "goes on"

    @property
    def is_led(self) -> bool:
        """Whether a person drives now, in the policy's place."""
        state = self._newest_state()
        return state is not None and state.is_led

    @property
    def fps(self) -> float:
        """Rows per second; 0 before the first episode."""
        return self._fps_of_grid

    def _set_task(self, task: str) -> str:
        own = self._robot_task()
        if own and own != task:
            raise UsageError(f"the robot's own task is '{own}', and every row carries it; change it there")
        self.task = task
        return f"the task is '{task}'"

    def _robot_task(self) -> str:
        """The instruction that the robot has now; empty: none."""
        state = self._newest_state()
        return state.task if state is not None else ""

    def _newest_state(self) -> State | None:
        newest = self.inbox.newest(State)
        return self._state if newest is None else newest.body

    def _record(self, label: str) -> str:
        if self.recording is not None and self.recording.is_recording:
            raise UsageError("an episode is already being recorded; keep or discard it first")
        state = self._newest_state()
        if state is not None and state.is_shadow and not state.is_led:
            raise UsageError("a shadow run sends nothing to the arm, so there are no actions to record")
        recording = self.prepare()
        self._find_room(recording)
        recording.begin(label)
        task = self._robot_task() or label
        text = f"recording episode {recording.writer.n_episodes}" + (f": {task}" if task else NO_TASK)
        self._publisher.event("info", "episode_begins", text)
        return text

    def _find_room(self, recording: Recording) -> None:
        """Before an episode begins: whether the disk takes it, and soon no more.

        Raises:
            UsageError: it does not.
        """
        from edgevla.dataset.room import episode_room, free_bytes, in_words

        writer = recording.writer
        self._room = episode_room(self.output, writer.features, writer.n_frames)
        usual = writer.n_frames / writer.n_episodes if writer.n_episodes else USUAL_S * self._fps_of_grid
        n_rows = recording.longest or round(usual)
        free, needed = free_bytes(self.output), self._room.to_record(n_rows)
        if free < needed:
            raise UsageError(
                f"no room for an episode: {in_words(free)} are free where {self.output} is, and one of "
                f"{n_rows / self._fps_of_grid:.0f} s may need {in_words(needed)}; make room, then press r again"
            )
        n_more = 1 + int((free - needed) / (n_rows * self._room.per_row))
        if n_more < WARNED_EPISODES:
            episodes = f"{n_more} episode{'s' * (n_more != 1)}"
            text = f"{in_words(free)} are free where {self.output} is: room for about {episodes}"
            recording.news.append(("warning", "disk", text))

    def lacks_room(self) -> bool:
        """Whether the open episode had better be saved now, while the disk still takes it."""
        from edgevla.dataset.room import free_bytes

        if self.recording is None or self._room is None:
            return False
        return free_bytes(self.output) < self._room.to_save(self.recording.writer.n_open_frames)

    def prepare(self) -> Recording:
        """The dataset opened, which takes a moment the first time.

        Raises:
            UsageError, DatasetError, WireError: as `obey`.
        """
        if self.recording is None:
            seen = self._seen_before()
            self.recording = Recording(self._open_writer(), self.cameras, seen, self._has_leader)
            if self.episode_s is not None:
                self.recording.longest = max(1, round(self.episode_s * self._fps_of_grid))
        return self.recording

    def check_output(self) -> None:
        """Whether this robot's episodes may join what is in `output` already: better known before the demonstration.

        Raises:
            DatasetError: they may not; names every difference. UsageError: robot or cameras do not answer yet.
        """
        from edgevla.dataset.append import check_recording

        check_recording(self.output, **self._kind())

    def _seen_before(self) -> dict[str, list[Glance]]:
        """Per camera: first pictures of episodes that are in `output` already."""
        from edgevla.dataset import open_dataset
        from edgevla.dataset.pictures import first_pictures

        try:
            dataset = open_dataset(self.output)
        except DatasetError:  # there is none yet, or the writer says what is wrong with it
            return {}
        _, seen = first_pictures(dataset, REMEMBERED)
        dataset.close()
        return {name: seen.get(f"observation.images.{name}", []) for name in self.cameras}

    def _open_writer(self) -> Writer:
        from edgevla.dataset.writer import DatasetWriter

        kind = self._kind()
        self._fps_of_grid = kind["fps"]
        return DatasetWriter(self.output, resume=True, **kind)

    def _kind(self) -> dict[str, Any]:
        """What all episodes of this robot have in common, as `DatasetWriter` takes it."""
        robot = self._describe("robot", AboutRobot)
        cameras = [self._describe(f"camera/{name}", AboutCameraNode) for name in self.cameras]
        return kind_of(robot, cameras, self._fps(), self._has_leader)

    def _describe(self, node: str, cls: type[A]) -> A:
        client = CommandClient(self._ctx, endpoint(self._folder, node, "commands"), self._session, "recorder")
        try:
            about = client.describe(cls)
        finally:
            client.close()
        if about is None:
            raise UsageError(f"{node} does not run, or is not ready yet; try again in a moment")
        return about

    def _fps(self) -> float:
        """Rate of the robot's grid, from its newest state."""
        deadline = time.monotonic() + 2
        while (state := self.inbox.newest(State)) is None:
            if time.monotonic() > deadline:
                raise UsageError("the robot publishes no state; start it with `edgevla deploy` first")
            time.sleep(0.01)
        if state.body.mode == "idle":  # its grid is that of the first policy or leader
            raise UsageError("the robot is not started yet; try again in a moment")
        return NS_PER_S / state.body.step_ns

    def _beat(self) -> None:
        recording = self.recording
        counters = {**(recording.counters if recording else {}), **self.inbox.counters}
        is_on = recording is not None and recording.is_recording
        self._publisher.send(heartbeat("running" if is_on else "ready", counters))

    def close(self) -> None:
        if self.recording is not None:
            self.recording.writer.close()
        self.inbox.stop()
        self._publisher.close()
        self._server.close()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgevla.nodes.recorder", description=__doc__)
    parser.add_argument("--session", required=True, help="hex of the deployment's session")
    parser.add_argument("--output", required=True, type=Path, help="folder of the dataset")
    parser.add_argument("--camera", action="append", default=[], help="name of a camera to record; repeat")
    parser.add_argument("--task", default="", help="instruction where the robot has none")
    args = parser.parse_args(argv)
    stopping = stop_when_asked()
    session, ctx = bytes.fromhex(args.session), zmq.Context()
    node = RecorderNode(ctx, run_dir(session), session, args.output, args.camera, args.task)
    try:
        while not stopping.is_set() and not is_orphan():
            node.inbox.wait(0.02)
            node.step(time.monotonic_ns())
        return 0
    except EdgeVLAError as error:
        print(f"edgevla recorder: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        node.close()
        ctx.destroy(linger=200)


if __name__ == "__main__":
    sys.exit(main())

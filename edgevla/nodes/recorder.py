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
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import zmq

from edgevla.arguments import Arguments, Record, SetTask
from edgevla.clock import NS_PER_MS, NS_PER_S
from edgevla.descriptions import About, AboutCamera, AboutCameraNode, AboutJoint, AboutRecorder, AboutRobot
from edgevla.errors import DatasetError, EdgeVLAError, UsageError
from edgevla.messages import Body, Frame, Message, State
from edgevla.nodes.assembler import frame_pixels
from edgevla.nodes.vitals import heartbeat, is_orphan, stop_when_asked
from edgevla.wire import CommandClient, CommandServer, Inbox, Publisher, Stream, endpoint, run_dir

PATIENCE_NS = 60 * NS_PER_MS
"""A row waits this long for frames that were taken before its moment and are still on their way."""
STALE_MS = 200.0
HEARTBEAT_NS = NS_PER_S // 5
FRAMES = 32
STATES = 256
A = TypeVar("A", bound=About)


class Writer(Protocol):
    """The part of `edgevla.dataset.writer.DatasetWriter` that recording needs."""

    n_episodes: int

    @property
    def n_open_frames(self) -> int: ...

    def add_frame(self, frame: Mapping[str, Any], task: str) -> None: ...

    def save_episode(self) -> int: ...

    def discard_episode(self) -> None: ...

    def close(self) -> None: ...


def features_of(
    joints: Sequence[AboutJoint], cameras: Sequence[AboutCamera | AboutCameraNode]
) -> dict[str, Any]:
    """Features as LeRobot names them, from the `describe` of robot and cameras."""
    from edgevla.dataset.layout import camera_age_key

    names = [joint.name for joint in joints]
    vector = {"dtype": "float32", "shape": (len(names),), "names": names}
    features: dict[str, Any] = {"observation.state": vector, "action": dict(vector)}
    for camera in cameras:
        key = f"observation.images.{camera.name}"
        shape = (camera.height, camera.width, 3)
        features[key] = {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]}
        features[camera_age_key(key)] = {"dtype": "float32", "shape": (1,), "names": None}
    return features


def joint_units_of(joints: Sequence[AboutJoint]) -> str | None:
    """`degrees` or `range100` of the body joints; None where it is something else (ALOHA's radians)."""
    units = {joint.unit for joint in joints if not joint.is_gripper}
    return {frozenset({"deg"}): "degrees", frozenset({"range100"}): "range100"}.get(frozenset(units))


class Recording:
    """Turns messages into rows. Knows no sockets: messages come in through `state` and `frame`."""

    def __init__(self, writer: Writer, cameras: Sequence[str]) -> None:
        from edgevla.dataset.layout import camera_age_key

        self.writer = writer
        self.keys = {name: f"observation.images.{name}" for name in cameras}
        self.age_keys = {name: camera_age_key(key) for name, key in self.keys.items()}
        self.frames: dict[str, deque[Message[Frame]]] = {name: deque(maxlen=FRAMES) for name in cameras}
        self.waiting: deque[State] = deque(maxlen=STATES)
        self.counters: Counter[str] = Counter()
        self.is_recording, self.task = False, ""
        self.longest: int | None = None
        """Rows after which the episode is full; None: no bound."""
        self._grid: tuple[int, int] | None = None

    def frame(self, message: Message[Frame]) -> None:
        if message.body.camera in self.frames:
            self.frames[message.body.camera].append(message)

    def state(self, state: State) -> None:
        """Keeps the states of grid moments while recording and while the arm is powered."""
        if self.is_recording and state.is_grid_moment and np.isfinite(state.goal).all():
            self.waiting.append(state)

    def begin(self, task: str) -> None:
        self.is_recording, self.task, self._grid = True, task, None
        self.waiting.clear()

    @property
    def is_full(self) -> bool:
        return self.longest is not None and self.writer.n_open_frames >= self.longest

    def settle(self, now_ns: int) -> None:
        """Writes the rows whose moment is long enough ago.

        Raises:
            DatasetError: a frame of another size than declared, or a writer that cannot go on.
        """
        while self.waiting and self.waiting[0].deadline_ns + PATIENCE_NS <= now_ns:
            self._row(self.waiting.popleft())

    def _row(self, state: State) -> None:
        if self.is_full:
            return
        moment = state.deadline_ns
        row: dict[str, Any] = {"observation.state": state.position, "action": state.goal}
        for name, key in self.keys.items():
            frame = next((f for f in reversed(self.frames[name]) if f.observed_ns <= moment), None)
            if frame is None:
                self.counters["rows_without_picture"] += 1
                return
            age_ms = (moment - frame.observed_ns) / NS_PER_MS
            self.counters["stale_pictures"] += age_ms > STALE_MS
            row[key] = frame_pixels(frame)
            row[self.age_keys[name]] = age_ms
        self._count_gap(state)
        self.writer.add_frame(row, self.task)
        self.counters["rows"] += 1

    def _count_gap(self, state: State) -> None:
        """Moments that no row was made of: the grid in the dataset has no holes, so they shorten time."""
        index = (state.deadline_ns - state.t0_ns) // state.step_ns
        if self._grid is not None and self._grid[0] == state.t0_ns:
            self.counters["missed_moments"] += max(0, index - self._grid[1] - 1)
        self._grid = (state.t0_ns, index)

    def keep(self) -> int:
        """Ends the episode and saves it; its number.

        Raises:
            UsageError: nothing was recorded. DatasetError: it could not be saved, and is forgotten.
        """
        self.is_recording = False
        try:
            while self.waiting:
                self._row(self.waiting.popleft())
            return self.writer.save_episode()
        except DatasetError:
            self.discard()
            raise

    def discard(self) -> int:
        """Ends the episode and forgets it; the number of rows that were forgotten."""
        self.is_recording = False
        self.waiting.clear()
        n_rows = self.writer.n_open_frames
        self.writer.discard_episode()
        return n_rows


class RecorderNode:
    """Recording as a node: commands in, events and heartbeats out. `step` blocks only while an episode is saved.

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
    ) -> None:
        self.output, self.cameras, self.task = output, list(cameras), task
        self.episode_s: float | None = None
        """Length after which an episode takes no more rows; None: until it is kept or discarded."""
        self._fps_of_grid = 0.0
        self._ctx, self._folder, self._session = ctx, folder, session
        robot = endpoint(folder, "robot")
        eyes = [endpoint(folder, f"camera/{name}") for name in cameras]
        streams: dict[type[Body], Stream] = {State: (robot, STATES)}
        if eyes:
            streams[Frame] = (eyes, FRAMES)
        self.inbox = Inbox(ctx, streams, session)
        self._publisher = Publisher(ctx, endpoint(folder, "recorder"), session, "recorder")
        self._server = CommandServer(ctx, endpoint(folder, "recorder", "commands"), session, "recorder")
        self._server.about = AboutRecorder("recorder", str(output), tuple(self.cameras))
        self.recording: Recording | None = None
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
        if self.recording is not None:
            for frame in frames:
                self.recording.frame(frame)
            for state in states:
                self.recording.state(state.body)
            self.recording.settle(now_ns)
        if now_ns - self._heartbeat_ns >= HEARTBEAT_NS:
            self._heartbeat_ns = now_ns
            self._beat()

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
            self.task = arguments.task
            return f"the task is '{self.task}'"
        if self.recording is None or not self.recording.is_recording:
            raise UsageError(f"there is no episode to {action}: none is being recorded")
        if action == "keep":
            number = self.recording.keep()
            text = f"episode {number} kept in {self.output}"
        else:
            text = f"episode discarded ({self.recording.discard()} rows)"
        self._publisher.event("info", f"episode_{action}", text)
        return text

    def _record(self, task: str) -> str:
        if self.recording is not None and self.recording.is_recording:
            raise UsageError("an episode is already being recorded; keep or discard it first")
        if self.recording is None:
            self.recording = Recording(self._open_writer(), self.cameras)
            if self.episode_s is not None:
                self.recording.longest = max(1, round(self.episode_s * self._fps_of_grid))
        self.recording.begin(task)
        text = f"recording episode {self.recording.writer.n_episodes}" + (f": {task}" if task else "")
        self._publisher.event("info", "episode_begins", text)
        return text

    def check_output(self) -> None:
        """Whether this robot's episodes may join what is in `output` already: better known before the demonstration.

        Raises:
            DatasetError: they may not; names every difference. UsageError: robot or cameras do not answer yet.
        """
        from edgevla.dataset.append import Kind, check_joining
        from edgevla.dataset.cells import feature_infos, with_bookkeeping

        kind = self._kind()
        features = feature_infos(with_bookkeeping(kind.pop("features")), self.output)
        check_joining(self.output, Kind(features=features, **kind))

    def _open_writer(self) -> Writer:
        from edgevla.dataset.writer import DatasetWriter

        kind = self._kind()
        self._fps_of_grid = kind["fps"]
        return DatasetWriter(self.output, resume=True, **kind)

    def _kind(self) -> dict[str, Any]:
        """What all episodes of this robot have in common, as `DatasetWriter` takes it."""
        robot = self._describe("robot", AboutRobot)
        cameras = [self._describe(f"camera/{name}", AboutCameraNode) for name in self.cameras]
        return {
            "fps": self._fps(),
            "features": features_of(robot.joints, cameras),
            "robot_type": robot.robot,
            "joint_units": joint_units_of(robot.joints),
            "also_called": robot.lerobot_types,
        }

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
        fps = NS_PER_S / state.body.step_ns
        return round(fps) if abs(fps - round(fps)) < 0.01 else fps

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
    parser.add_argument("--task", default="", help="instruction of the episodes")
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


__all__ = ["RecorderNode", "Recording", "features_of", "main"]

if __name__ == "__main__":
    sys.exit(main())

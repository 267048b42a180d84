"""From states and frames to the rows of an episode. Knows no sockets: messages come in, rows go to a writer.

Every row carries the instruction that the robot had at its moment, which may change within an episode; the label of the
recording is for robots that have none.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgevla.clock import NS_PER_MS
from edgevla.descriptions import AboutCamera, AboutCameraNode, AboutJoint, AboutRobot
from edgevla.errors import DatasetError
from edgevla.look import Glance, arrangement, glance, look_of, nothing
from edgevla.messages import Frame, Message, Severity, State
from edgevla.nodes.assembler import frame_pixels

if TYPE_CHECKING:
    from edgevla.cameras import CameraSettings
    from edgevla.dataset.layout import FeatureInfo
    from edgevla.dataset.stated import Repeated

PATIENCE_NS = 60 * NS_PER_MS
"""A row waits this long for frames that were taken before its moment and are still on their way."""
STALE_MS = 200.0
STILL_S = 1.0
"""A picture that repeats for so long is said when the episode is kept."""
LEAST_EPISODES = 3
"""So many first pictures tell how a camera usually looks."""
FRAMES = 32
STATES = 256


class Writer(Protocol):
    """The part of `edgevla.dataset.writer.DatasetWriter` that recording needs."""

    n_episodes: int
    n_frames: int
    features: dict[str, FeatureInfo]

    @property
    def n_open_frames(self) -> int:
        """Frames of the open episode."""
        ...

    @property
    def repeated(self) -> Mapping[str, Repeated]:
        """Per camera: pictures equal to the one before."""
        ...

    def add_frame(self, frame: Mapping[str, Any], task: str) -> None:
        """One row. frame: feature -> value; task: its instruction."""
        ...

    def save_episode(self, is_cut_off: bool = False) -> int:
        """Completes the open episode; its number. is_cut_off: noted with it."""
        ...

    def discard_episode(self) -> None:
        """Forgets the open episode."""
        ...

    def close(self) -> None: ...


def features_of(
    joints: Sequence[AboutJoint],
    cameras: Sequence[AboutCamera | AboutCameraNode | CameraSettings],
    has_leader: bool = False,
) -> dict[str, Any]:
    """Features as LeRobot names them, from what robot and cameras are.

    has_leader: whether a person may take the policy's place, which every row then tells.
    """
    from edgevla.dataset.layout import INTERVENTION, camera_age_key

    names = [joint.name for joint in joints]
    vector = {"dtype": "float32", "shape": (len(names),), "names": names}
    features: dict[str, Any] = {"observation.state": vector, "action": dict(vector)}
    for camera in cameras:
        key = f"observation.images.{camera.name}"
        shape = (camera.height, camera.width, 3)
        features[key] = {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]}
        features[camera_age_key(key)] = {"dtype": "float32", "shape": (1,), "names": None}
    if has_leader:
        features[INTERVENTION] = {"dtype": "bool", "shape": (1,), "names": None}
    return features


def kind_of(
    robot: AboutRobot,
    cameras: Sequence[AboutCamera | AboutCameraNode | CameraSettings],
    fps: float,
    has_leader: bool,
) -> dict[str, Any]:
    """What all episodes of this robot have in common, as `DatasetWriter` takes it. fps: of the robot's grid."""
    return {
        "fps": round(fps) if abs(fps - round(fps)) < 0.01 else fps,
        "features": features_of(robot.joints, cameras, has_leader),
        "robot_type": robot.robot,
        "joint_units": joint_units_of(robot.joints),
        "also_called": robot.lerobot_types,
    }


def joint_units_of(joints: Sequence[AboutJoint]) -> str | None:
    """`degrees` or `range100` of the body joints; None where it is something else (ALOHA's radians)."""
    units = {joint.unit for joint in joints if not joint.is_gripper}
    return {frozenset({"deg"}): "degrees", frozenset({"range100"}): "range100"}.get(frozenset(units))


@dataclass
class Corrections:
    """How much of some rows a person drove. n: how often the person took over."""

    n: int = 0
    n_led: int = 0
    n_rows: int = 0
    _was_led: bool = False

    def count(self, is_led: bool) -> None:
        """The next row."""
        self.n += is_led and not self._was_led
        self.n_led += is_led
        self.n_rows += 1
        self._was_led = is_led

    def add(self, other: Corrections) -> None:
        self.n, self.n_led, self.n_rows = (
            self.n + other.n,
            self.n_led + other.n_led,
            self.n_rows + other.n_rows,
        )

    @property
    def share(self) -> float:
        return self.n_led / self.n_rows if self.n_rows else 0.0

    def __str__(self) -> str:
        return f"{self.n} correction{'s' * (self.n != 1)}, {self.share:.0%} of the rows"


class Recording:
    """Turns messages into rows. Knows no sockets: messages come in through `state` and `frame`."""

    def __init__(
        self,
        writer: Writer,
        cameras: Sequence[str],
        seen: Mapping[str, Sequence[Glance]] | None = None,
        has_leader: bool = False,
    ) -> None:
        """seen: per camera the first pictures of earlier episodes, where they are known.

        has_leader: as `features_of`.
        """
        from edgevla.dataset.layout import INTERVENTION, camera_age_key

        self.writer = writer
        self.keys = {name: f"observation.images.{name}" for name in cameras}
        self.age_keys = {name: camera_age_key(key) for name, key in self.keys.items()}
        self.frames: dict[str, deque[Message[Frame]]] = {name: deque(maxlen=FRAMES) for name in cameras}
        self.waiting: deque[State] = deque(maxlen=STATES)
        self.counters: Counter[str] = Counter()
        self._mark = INTERVENTION if has_leader else None
        self.corrections, self.kept_corrections = Corrections(), Corrections()
        """Of the newest episode, and of all that were kept."""
        self.is_recording, self.label = False, ""
        self.is_paused = False
        """Moments are counted (`paused_rows`), and no rows are made of them."""
        self._n_paused = 0
        self.longest: int | None = None
        """Rows after which the episode is full; None: no bound."""
        self.news: deque[tuple[Severity, str, str]] = deque(maxlen=32)
        """(severity, code, sentence) of what a person should hear."""
        self._task: str | None = None
        self._unlabelled: set[str] = set()
        self._grid: tuple[int, int] | None = None
        self._seen = {name: list((seen or {}).get(name, ())) for name in cameras}
        self._first: dict[str, Glance] = {}

    def frame(self, message: Message[Frame]) -> None:
        """Takes a picture of one of its cameras; others are passed over."""
        if message.body.camera in self.frames:
            self.frames[message.body.camera].append(message)

    def state(self, state: State) -> None:
        """Keeps the states of grid moments while recording and while the arm is powered."""
        if not (self.is_recording and state.is_grid_moment and np.isfinite(state.goal).all()):
            return
        if self.is_paused:
            self.counters["paused_rows"] += 1
            self._n_paused += 1
        else:
            self.waiting.append(state)

    def begin(self, label: str) -> None:
        """label: instruction of the rows for which the robot has none."""
        self.is_recording, self.label, self._grid, self._task = True, label, None, None
        self.is_paused, self._n_paused = False, 0
        self._first = {}
        self.corrections = Corrections()
        self.waiting.clear()

    def rest(self) -> None:
        """No more rows; the episode waits for `keep` or `discard`."""
        self.is_recording = False

    @property
    def is_full(self) -> bool:
        """Whether the episode has the greatest length that was asked for."""
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
        if self.keys and not self._first:
            self._look_at({name: glance(row[key]) for name, key in self.keys.items()})
        if self._mark is not None:
            row[self._mark] = state.is_led
            self.corrections.count(state.is_led)
        self.writer.add_frame(row, self._task_of(state))
        self.counters["rows"] += 1

    def _task_of(self, state: State) -> str:
        """The robot's own instruction at this row, else the label; a contradiction, and a change, are said."""
        task = state.task or self.label
        if task != self._task:
            if self._task is not None:
                self.news.append(
                    ("info", "task", f"the task is '{task}' from row {self.writer.n_open_frames} on")
                )
            if task != self.label and self.label and task not in self._unlabelled:
                self._unlabelled.add(task)
                text = f"the robot's task is '{task}', and every row carries it; '{self.label}' is not used"
                self.news.append(("warning", "task_label", text))
            self._task = task
        return task

    def _look_at(self, first: dict[str, Glance]) -> None:
        """The first pictures of an episode: there the arm is where it always begins, so cameras can be told apart."""
        self._first = first
        for name, picture in first.items():
            if picture.is_blank:
                self.news.append(
                    ("warning", "camera_blank", nothing(name, picture.brightness, picture.contrast))
                )
        looks = {
            name: look_of(pictures)
            for name, pictures in self._seen.items()
            if len(pictures) >= LEAST_EPISODES
        }
        known = {name: look for name, look in looks.items() if look is not None}
        live = {name: picture for name, picture in first.items() if name in known and not picture.is_blank}
        moved = [a for a, b in arrangement(live, known).items() if a != b]
        if moved:
            text = f"the cameras {' and '.join(moved)} are exchanged against the earlier episodes"
            self.news.append(("warning", "cameras_exchanged", text))

    def still(self, fps: float) -> str:
        """What to say of pictures of the open episode that stood still for long; empty: nothing."""
        long = {
            name: self.writer.repeated[key].longest / fps
            for name, key in self.keys.items()
            if key in self.writer.repeated and self.writer.repeated[key].longest >= STILL_S * fps
        }
        said = [f"camera '{name}' showed one picture for {seconds:.1f} s" for name, seconds in long.items()]
        return "; ".join(said)

    def _count_gap(self, state: State) -> None:
        """Moments that no row was made of: the grid in the dataset has no holes, so they shorten time."""
        index = (state.deadline_ns - state.t0_ns) // state.step_ns
        if self._grid is not None and self._grid[0] == state.t0_ns:
            missing = index - self._grid[1] - 1
            self.counters["missed_moments"] += max(0, missing - self._n_paused)
            self._n_paused = 0 if missing > 0 else self._n_paused
        self._grid = (state.t0_ns, index)

    def keep(self, is_cut_off: bool = False) -> int:
        """Ends the episode and saves it; its number. is_cut_off: nobody meant it to end here.

        Raises:
            UsageError: nothing was recorded. DatasetError: it could not be saved, and is forgotten.
        """
        self.is_recording = False
        try:
            while self.waiting:
                self._row(self.waiting.popleft())
            n_repeated = sum(found.n for found in self.writer.repeated.values())
            number = self.writer.save_episode(is_cut_off)
        except DatasetError:
            self.discard()
            raise
        self.counters["repeated_pictures"] += n_repeated
        self.kept_corrections.add(self.corrections)
        for name, picture in self._first.items():
            self._seen[name].append(picture)
        return number

    def discard(self) -> int:
        """Ends the episode and forgets it; the number of rows that were forgotten."""
        self.is_recording = False
        self.waiting.clear()
        n_rows = self.writer.n_open_frames
        self.writer.discard_episode()
        return n_rows

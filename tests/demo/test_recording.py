"""What a recording says of its pictures, without sockets: exchanged, covered, standing still."""

import numpy as np
import pytest

from edgevla.dataset.stated import Repeated
from edgevla.errors import DatasetError
from edgevla.look import glance
from edgevla.messages import Frame, Header, Message, State
from edgevla.nodes.recording import Recording

STEP_NS = 33_333_333
SIZE = (48, 64)


class Store:
    """A writer that remembers rows."""

    n_episodes = 0

    def __init__(self) -> None:
        self.rows, self.repeated = [], {}

    @property
    def n_open_frames(self) -> int:
        return len(self.rows)

    def add_frame(self, frame, task) -> None:
        self.rows.append((frame, task))

    def save_episode(self, is_cut_off: bool = False) -> int:
        self.rows = []
        self.n_episodes += 1
        return self.n_episodes - 1

    def discard_episode(self) -> None:
        self.rows = []


def front(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    image = np.full((*SIZE, 3), 190, np.uint8)
    image[24:] = (120, 90, 60)
    x = int(random.integers(4, 50))
    image[30:38, x : x + 10] = (220, 30, 30)
    return image


def wrist(seed: int) -> np.ndarray:
    image = np.full((*SIZE, 3), 150, np.uint8)
    image[:, :18] = image[:, 46:] = (30, 30, 34)
    image[10:20, 24 + seed % 8 : 34 + seed % 8] = (230, 220, 90)
    return image


def black(_: int) -> np.ndarray:
    return np.full((*SIZE, 3), 3, np.uint8)


def at(tick: int, task: str = "") -> State:
    two, none = np.zeros(2, np.float32), np.zeros(2, np.uint32)
    return State(tick, tick * STEP_NS, 0, 0, STEP_NS, "running", two, none, None, two, none.astype(np.uint16), None,
                 0.0, 0, "", task)  # fmt: skip


def episode(recording: Recording, seed: int, **cameras) -> list[str]:
    """Three rows through these cameras, kept; what was said of them."""
    recording.begin("t")
    for tick in range(3):
        for name, show in cameras.items():
            header = Header(b"rec-test", f"camera/{name}", tick, tick * STEP_NS, tick * STEP_NS)
            recording.frame(Message(header, Frame(name, *SIZE, "rgb8", 0, 0), [show(10 * seed + tick)]))
        recording.state(at(tick))
        recording.settle((tick + 10) * STEP_NS)
    assert recording.writer.n_open_frames == 3
    recording.keep()
    said = [text for _, _, text in recording.news]
    recording.news.clear()
    return said


def test_cameras_that_were_exchanged_between_two_episodes_are_said_at_the_first_row():
    recording = Recording(Store(), ["front", "wrist"])
    for seed in range(4):
        assert episode(recording, seed, front=front, wrist=wrist) == []
    assert episode(recording, 5, front=wrist, wrist=front) == [
        "the cameras front and wrist are exchanged against the earlier episodes"
    ]
    assert episode(recording, 6, front=front, wrist=wrist) == []


def test_what_is_in_the_folder_already_counts_as_earlier():
    seen = {"front": [glance(front(i)) for i in range(4)], "wrist": [glance(wrist(i)) for i in range(4)]}
    recording = Recording(Store(), ["front", "wrist"], seen)
    assert "are exchanged" in episode(recording, 5, front=wrist, wrist=front)[0]


def test_a_covered_camera_is_said_at_the_first_row():
    recording = Recording(Store(), ["front", "wrist"])
    (said,) = episode(recording, 0, front=front, wrist=black)
    assert said.startswith("camera 'wrist' shows nothing: its pictures are black")


def test_a_picture_that_stood_still_is_said_when_the_episode_is_kept():
    store = Store()
    store.repeated = {"observation.images.front": Repeated(70, 64)}
    recording = Recording(store, ["front", "wrist"])
    assert recording.still(fps=30.0) == "camera 'front' showed one picture for 2.1 s"
    assert recording.still(fps=90.0) == ""
    recording.keep()
    assert recording.counters["repeated_pictures"] == 70


def test_an_episode_that_is_not_saved_is_no_memory():
    class Full(Store):
        def save_episode(self, is_cut_off: bool = False) -> int:
            raise DatasetError("no room")

    recording = Recording(Full(), ["front"])
    with pytest.raises(DatasetError, match="no room"):
        episode(recording, 0, front=front)
    assert recording.counters["repeated_pictures"] == 0

"""A camera that sends and shows nothing new: an event when it begins, one when it is over, none for a sleeping scene."""

import time

import cv2
import numpy as np
import pytest
import zmq

from edgevla.cameras import CameraSettings, Picture, open_source
from edgevla.cameras.watch import PictureWatch
from edgevla.clock import NS_PER_S
from edgevla.messages import Event
from edgevla.nodes.camera import CameraNode
from edgevla.wire import Inbox, endpoint

SESSION = b"cam-test"
PERIOD_NS = NS_PER_S // 30


def scene(i: int = 0) -> np.ndarray:
    """A table with something on it, and the noise of a sensor."""
    random = np.random.default_rng(i)
    image = np.full((48, 64, 3), 140, np.uint8)
    image[20:40, 10:30] = (200, 40, 30)
    return np.clip(image + random.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


class Film:
    """Pictures at 30 fps on a clock of its own; what the watch says of them."""

    def __init__(self) -> None:
        self.watch, self.now_ns, self.said = PictureWatch("front", "camera 'front' (/dev/video0)"), 0, []
        self._before = None

    def show(self, pictures) -> list[str]:
        """Codes said meanwhile."""
        n_before = len(self.said)
        for image in pictures:
            is_same = self._before is not None and np.array_equal(self._before, image)
            self._before = image
            self.said += self.watch.see(image, self.now_ns, is_same)
            self.now_ns += PERIOD_NS
        return [code for _, code, _ in self.said[n_before:]]


def moving(n):
    return (scene(i) for i in range(n))


def test_a_live_camera_before_a_still_scene_is_not_remarked_upon():
    assert Film().show(moving(150)) == []


def test_a_frozen_picture_is_said_after_a_second_and_once_and_its_end_as_well():
    film = Film()
    film.show(moving(10))
    assert film.show([scene(99)] * 30) == [], "not yet a second"
    assert film.show([scene(99)] * 300) == ["camera_frozen"]
    assert film.show(moving(30)) == ["camera_moves"]
    (severity, _, text), (_, _, over) = film.said
    assert severity == "warning"
    assert "camera 'front' (/dev/video0) has shown the same picture for 1 s, to the last bit" in text
    assert "shows new pictures again, after 11.0 s" in over


def test_a_stream_that_stands_still_every_few_seconds_is_not_said_every_time():
    film = Film()
    codes = []
    for i in range(8):  # 24 s: 2 s of one picture, 1 s of others
        codes += film.show([scene(i)] * 60) + film.show(moving(30))
    assert codes == ["camera_frozen", "camera_moves"] * 2


@pytest.mark.parametrize("noise", [0.0, 1.2])
def test_a_black_picture_is_said_as_such_and_not_as_frozen(noise):
    random = np.random.default_rng(0)
    black = (np.clip(random.normal(2, noise, (48, 64, 3)), 0, 255).astype(np.uint8) for _ in range(90))
    film = Film()
    assert film.show(black) == ["camera_blank"]
    assert "camera 'front' shows nothing: its pictures are black" in film.said[0][2]
    assert "Look for a cap" in film.said[0][2]
    assert film.show(moving(30)) == ["camera_sees"]


class Still:
    """A camera that gives one picture for ever."""

    about, is_at_end, n_rounds = "/dev/video9", False, 0

    def __init__(self, is_drawn: bool) -> None:
        self.settings, self.is_drawn = CameraSettings("front", "9", 64, 48, fps=100.0), is_drawn

    def open(self) -> None:
        pass

    def read(self) -> Picture:
        time.sleep(0.01)
        return Picture(scene(), time.monotonic_ns())

    def close(self) -> None:
        pass


def events_of(source, seconds: float) -> list:
    with zmq.Context() as ctx:
        node = CameraNode(ctx, "inproc", SESSION, [source])
        inbox = Inbox(ctx, {Event: (endpoint("inproc", "camera/front"), 64)}, SESSION)
        try:
            time.sleep(0.1)
            node.open()
            until = time.monotonic() + seconds
            while time.monotonic() < until and not inbox.newest(Event):
                node.wake.wait(0.02)
                node.wake.clear()
                node.step(time.monotonic_ns())
            return [m.body.code for m in inbox.drain(Event)]
        finally:
            inbox.stop()
            node.close()


def test_one_picture_for_ever_is_an_event_of_the_camera(tmp_path):
    assert events_of(Still(is_drawn=False), 15) == ["camera_frozen"]
    cv2.imwrite(str(tmp_path / "0.png"), scene())
    folder = open_source(CameraSettings("front", str(tmp_path), 64, 48, fps=50.0))
    assert events_of(folder, 0.8) == ["camera_again"]


def test_a_drawn_world_may_stand_still():
    """A simulated camera has no noise: its picture is the same whenever the arm rests."""
    assert events_of(Still(is_drawn=True), 1.6) == []

"""Cameras through the real thing: files, threads, ZeroMQ, JPEG."""

import subprocess
import sys
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import zmq

from edgevla.cameras import CameraSettings, Picture, open_source
from edgevla.cameras.pixels import decode_jpeg, encode_jpeg, fit
from edgevla.descriptions import AboutCameraNode
from edgevla.errors import CameraError
from edgevla.messages import Event, Frame, Heartbeat, Thumbnail
from edgevla.nodes.assembler import frame_pixels
from edgevla.nodes.camera import CameraNode
from edgevla.wire import CommandClient, Inbox, endpoint, new_session, run_dir

RED_CARD = (214, 30, 24)
SESSION = b"cam-test"


def card(height: int = 48, width: int = 64) -> np.ndarray:
    """A red card on grey, RGB."""
    image = np.full((height, width, 3), 120, np.uint8)
    image[height // 4 : -height // 4, width // 4 : -width // 4] = RED_CARD
    return image


@pytest.fixture
def folder(tmp_path):
    """Three pictures, as a photographer would leave them; the second equals the first."""
    pictures = [card(), card(), card()]
    pictures[2][:8] = 0
    for i, rgb in enumerate(pictures):
        cv2.imwrite(str(tmp_path / f"{i:03}.png"), rgb[..., ::-1])
    return tmp_path


@pytest.fixture
def ctx():
    with zmq.Context() as ctx:
        yield ctx


def run_node(node: CameraNode, done, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done() and time.monotonic() < deadline:
        node.wake.wait(0.02)
        node.wake.clear()
        node.step(time.monotonic_ns())
    assert done(), "the node did not get there in time"


class Flaky:
    """A device that is unplugged after some pictures, comes back at the third attempt, and shows something after
    the fourth."""

    def __init__(self, settings: CameraSettings, n_good: int = 5) -> None:
        self.settings, self.n_good, self.n_opened = settings, n_good, 0
        self.about, self.is_at_end, self.n_rounds, self.is_drawn = "/dev/video9", False, 0, False

    def open(self) -> None:
        self.n_opened += 1
        if self.n_opened in (2, 3):
            raise CameraError("camera 'front' is not there: /dev/video9 does not exist", camera="front")
        self.left = {1: self.n_good, 4: 0}.get(self.n_opened, 10**6)

    def read(self) -> Picture | None:
        time.sleep(0.01)
        self.left -= 1
        return Picture(card()[..., ::-1], time.monotonic_ns()) if self.left >= 0 else None

    def close(self) -> None:
        pass


@pytest.mark.parametrize("encoding", ["rgb8", "jpeg"])
def test_red_stays_red_through_node_and_wire(folder, ctx, encoding):
    settings = CameraSettings("front", str(folder), 64, 48, fps=100.0, encoding=encoding)
    address = endpoint("inproc", "camera/front")
    node = CameraNode(ctx, "inproc", SESSION, [open_source(settings)])
    inbox = Inbox(ctx, {Frame: (address, 8), Thumbnail: (address, 8), Heartbeat: (address, 8)}, SESSION)
    try:
        node.open()
        run_node(node, lambda: inbox.newest(Frame) and inbox.newest(Thumbnail) and inbox.newest(Heartbeat))
        frame = inbox.newest(Frame)
        image = frame_pixels(frame)
        assert image.shape == (48, 64, 3)
        assert np.abs(image[24, 32].astype(int) - RED_CARD).max() <= (0 if encoding == "rgb8" else 6)
        small = decode_jpeg(inbox.newest(Thumbnail).payloads[0])
        assert np.abs(small[24, 32].astype(int) - RED_CARD).max() <= 8
        # What another program sees in the JPEG is red as well: OpenCV hands out blue, green, red.
        assert cv2.imdecode(inbox.newest(Thumbnail).payloads[0], 1)[24, 32, 2] > 200
    finally:
        inbox.stop()
        node.close()


def test_identical_frames_are_counted_and_files_end(folder, ctx):
    settings = CameraSettings("front", str(folder), 64, 48, fps=200.0, loop=False)
    node = CameraNode(ctx, "inproc", SESSION, [open_source(settings)])
    inbox = Inbox(ctx, {Frame: (endpoint("inproc", "camera/front"), 8)}, SESSION)
    try:
        time.sleep(0.1)
        node.open()
        run_node(node, lambda: node.is_at_end)
        inbox.wait(1.0)
        time.sleep(0.1)
        assert [m.body.n_repeated for m in inbox.drain(Frame)] == [0, 1, 0]
    finally:
        inbox.stop()
        node.close()


def test_a_lost_camera_is_found_again_and_said(ctx):
    source = Flaky(CameraSettings("front", "9", 64, 48, fps=100.0))
    node = CameraNode(ctx, "inproc", SESSION, [source])
    inbox = Inbox(ctx, {Event: (endpoint("inproc", "camera/front"), 8)}, SESSION)
    try:
        node.open()
        run_node(node, lambda: source.n_opened == 5 and node.captures[0].counters["frames"] > 8, 20.0)
        events: list = []
        run_node(node, lambda: events.extend(inbox.drain(Event)) or len(events) == 2)
        assert [m.body.code for m in events] == ["camera_lost", "camera_back"]
        assert "/dev/video9) gives no more pictures; looking for it. Check its plug" in events[0].body.text
        assert node.captures[0].counters["reopened"] == 1
    finally:
        inbox.stop()
        node.close()


def test_a_folder_that_goes_away_is_a_camera_that_was_unplugged(folder, ctx):
    node = CameraNode(
        ctx, "inproc", SESSION, [open_source(CameraSettings("front", str(folder), 64, 48, fps=100.0))]
    )
    capture = node.captures[0]
    try:
        node.open()
        run_node(node, lambda: capture.counters["frames"] > 3)
        away = folder.rename(folder.with_name("away"))
        run_node(node, lambda: capture.is_lost)
        away.rename(folder)
        run_node(node, lambda: not capture.is_lost, 20.0)
        assert capture.failure is None
    finally:
        node.close()


def test_what_ends_one_of_two_captures_ends_the_node(ctx, folder):
    class Broken(Flaky):
        def read(self) -> Picture | None:
            raise RuntimeError("the driver is confused")

    broken = Broken(CameraSettings("front", "/dev/video9", 64, 48, fps=100.0))
    top = open_source(CameraSettings("top", str(folder), 64, 48, fps=100.0))
    node = CameraNode(ctx, "inproc", SESSION, [broken, top])
    try:
        node.open()
        with pytest.raises(RuntimeError, match="the driver is confused"):
            run_node(node, lambda: False, timeout_s=2)
    finally:
        node.close()


def test_another_size_than_declared_is_refused_unless_a_fit_is_declared(folder, ctx):
    settings = CameraSettings("front", str(folder), 32, 32, fps=100.0)
    node = CameraNode(ctx, "inproc", SESSION, [open_source(settings)])
    node.open()
    with pytest.raises(CameraError, match=r"gives 64x48 px, but 32x32 is declared.*crop"):
        run_node(node, lambda: False, 2.0)
    node.close()
    image = card()
    assert (fit(image, replace(settings, fit="crop")) == image[8:40, 16:48]).all()
    assert fit(image, replace(settings, fit="resize")).shape == (32, 32, 3)
    with pytest.raises(CameraError, match="cannot be cropped"):
        fit(image, replace(settings, fit="crop", width=100))


def test_video_file(tmp_path):
    path = tmp_path / "card.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30, (64, 48))
    for _ in range(3):
        writer.write(card()[..., ::-1])
    writer.release()
    source = open_source(CameraSettings("front", str(path), 64, 48, loop=False, paced=False))
    source.open()
    pictures = [source.read() for _ in range(4)]
    assert pictures[3] is None
    assert source.is_at_end
    assert np.abs(pictures[0].pixels[24, 32, ::-1].astype(int) - RED_CARD).max() < 12
    source.close()


def test_the_sentences_name_device_and_cure(tmp_path):
    def refused(**fields):
        with pytest.raises(CameraError) as caught:
            open_source(CameraSettings("front", **fields)).open()
        return str(caught.value)

    assert "/dev/video97 does not exist" in refused(source="97")
    assert "--camera front=" in refused(source="/dev/video97")
    assert "holds no images" in refused(source=str(tmp_path))
    assert "(no source) does not exist; give a device" in refused(source="")
    assert "gone.mp4 does not exist; give a device" in refused(source=str(tmp_path / "gone.mp4"))
    (tmp_path / "notes.txt").touch()
    assert "notes.txt is of no kind that can be read" in refused(source=str(tmp_path / "notes.txt"))
    assert "cannot be reached at http://127.0.0.1:9/" in refused(source="http://127.0.0.1:9/")
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    assert "cannot be opened" in refused(source=str(tmp_path / "bad.mp4"))


def test_settings_travel_as_strict_json():
    settings = CameraSettings("front", "0", 640, 480, 30.0, fit="crop", fourcc="MJPG", exposure=120.0)
    assert CameraSettings.from_json(settings.to_json()) == settings
    for text, word in (
        ('{"name": "a", "sauce": "0"}', "sauce"),
        ('{"name": "a", "source": 3}', "source"),
        ("[", "read"),
    ):
        with pytest.raises(CameraError, match=word):
            CameraSettings.from_json(text)


def test_jpeg_of_noise_is_not_a_picture():
    assert decode_jpeg(np.arange(100, dtype=np.uint8)) is None
    assert np.abs(decode_jpeg(encode_jpeg(card(), 95)).astype(int) - card()).max() < 60


def test_the_process_publishes_describes_and_stops(folder):
    session = new_session()
    where = run_dir(session)
    settings = CameraSettings("front", str(folder), 64, 48, fps=50.0)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "edgevla.nodes.camera",
            "--session",
            session.hex(),
            "--camera",
            settings.to_json(),
        ]
    )
    ctx = zmq.Context()
    inbox = Inbox(ctx, {Frame: (endpoint(where, "camera/front"), 4)}, session)
    client = CommandClient(ctx, endpoint(where, "camera/front", "commands"), session, "test")
    try:
        assert inbox.wait(15), "no frame came"
        about = client.describe(AboutCameraNode, 5)
        assert (about.node, about.name, about.width) == ("camera/front", "front", 64)
    finally:
        process.terminate()
        assert process.wait(5) == 0
        inbox.stop()
        client.close()
        ctx.destroy(linger=0)


def test_a_missing_camera_ends_the_process_with_one_sentence():
    settings = CameraSettings("wrist", "97")
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "edgevla.nodes.camera",
            "--session",
            new_session().hex(),
            "--camera",
            settings.to_json(),
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert result.returncode == 1
    assert "camera 'wrist' is not there: /dev/video97" in result.stderr
    assert "Traceback" not in result.stderr

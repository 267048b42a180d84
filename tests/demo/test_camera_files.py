"""Videos and image folders as cameras: what can be shown is shown, all else is a sentence that names file and cure."""

import subprocess
import sys
import threading
import time

import av
import cv2
import numpy as np
import pytest
import zmq

from edgevla.cameras import CameraSettings, Picture, open_source
from edgevla.errors import CameraError
from edgevla.messages import Event, Frame
from edgevla.nodes.camera import CameraNode
from edgevla.wire import CommandServer, Inbox, endpoint, new_session

SESSION = b"cam-test"


def picture(i: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Grey, a little lighter each time, with a blue half, RGB."""
    image = np.full((height, width, 3), 40 + 4 * i, np.uint8)
    image[:, width // 2 :] = (20, 30, 200)
    return image


def write_video(path, codec="libsvtav1", n=20, **options):
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(n):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def source_of(path, **fields):
    settings = CameraSettings("front", str(path), 64, 48, paced=False, **fields)
    source = open_source(settings)
    source.open()
    return source


def rgb(shown: Picture) -> np.ndarray:
    return (shown.pixels[..., ::-1] if shown.is_bgr else shown.pixels).astype(int)


def all_of(source) -> list[Picture]:
    shown = []
    while (next_one := source.read()) is not None:
        shown.append(next_one)
    return shown


@pytest.mark.parametrize("codec", ["libsvtav1", "libx264", "mpeg4"])
def test_every_picture_of_a_video_is_shown_in_its_colours(tmp_path, codec):
    """AV1 is what LeRobot records; OpenCV opens such a file and decodes nothing of it."""
    source = source_of(write_video(tmp_path / "front.mp4", codec), loop=False)
    shown = all_of(source)
    assert source.is_at_end
    assert len(shown) == 20
    for i, one in enumerate(shown):
        assert np.abs(rgb(one) - picture(i))[8:40, 8:24].max() < 12, f"picture {i}"
        assert np.abs(rgb(one) - picture(i))[8:40, 40:56].max() < 24, f"blue of picture {i}"
    source.close()


def test_an_av1_video_begins_again_at_its_end(tmp_path):
    source = source_of(write_video(tmp_path / "front.mp4", n=5))
    grey = [rgb(source.read())[24, 12, 0] for _ in range(12)]
    assert np.abs(np.array(grey) - [40 + 4 * (i % 5) for i in range(12)]).max() < 4
    assert source.n_rounds == 2


def test_without_pyav_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    path = write_video(tmp_path / "front.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "edgevla.dataset.video", raising=False)
    with pytest.raises(CameraError, match=r'PyAV is not installed.*pip install .*\[record\]"') as caught:
        source_of(path)
    assert str(path) in str(caught.value)


def empty(path):
    path.write_bytes(b"")
    return path


def text(path):
    path.write_text("this is no video")
    return path


def without_its_end(path):
    """An mp4 whose index stands in front, and whose second half never arrived."""
    write_video(path, movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def without_its_index(path):
    write_video(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def of_sound_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate, frame.pts = 48000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def of_no_picture(path):
    path.mkdir()
    (path / "0.png").write_bytes(b"")
    return path


def a_dataset(path):
    videos = path / "videos/observation.images.front/chunk-000"
    videos.mkdir(parents=True)
    write_video(videos / "file-000.mp4", n=2)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (empty, "front.mp4 is empty"),
        (text, "front.mp4 cannot be opened"),
        (without_its_end, "front.mp4 is damaged or cut short"),
        (without_its_index, "it is damaged or was cut short"),
        (of_sound_only, "holds no video stream"),
        (of_no_picture, "0.png is not a picture that OpenCV can read"),
        (a_dataset, "it is a dataset: name one of its videos, such as"),
    ],
)
def test_what_shows_nothing_ends_the_camera_with_a_sentence(tmp_path, make, words):
    path = make(tmp_path / "front.mp4")
    command = [sys.executable, "-m", "edgevla.nodes.camera", "--session", new_session().hex()]
    command += ["--camera", CameraSettings("front", str(path), 64, 48).to_json()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1, done.stderr
    assert words in done.stderr
    assert "camera 'front'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_video_that_breaks_off_says_so_where_it_does(tmp_path):
    """An AVI has no index in front: what is missing is seen when it should come."""
    path = tmp_path / "front.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30, (64, 48))
    for i in range(40):
        writer.write(np.ascontiguousarray(picture(i)[..., ::-1]))
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CameraError, match=r"front.avi is damaged or cut short: \d+ of 40 pictures"):
        all_of(source_of(path))


class Camera:
    """A device that gives these pictures, one after the other, and the last one for ever."""

    about, is_at_end, n_rounds, is_drawn = "/dev/video9", False, 0, False

    def __init__(self, settings, pictures) -> None:
        self.settings, self._pictures, self.n_opened = settings, pictures, 0

    def open(self) -> None:
        self.n_opened += 1

    def read(self) -> Picture:
        time.sleep(0.005)
        image = self._pictures.pop(0) if len(self._pictures) > 1 else self._pictures[0]
        return Picture(image, time.monotonic_ns())

    def close(self) -> None:
        pass


def heard(node, done, timeout_s=10.0):
    """Events of a camera node that runs until `done(events, frames)`, and its frames."""
    events, frames = [], []
    until = time.monotonic() + timeout_s
    inbox = Inbox(CTX, {k: (endpoint("inproc", "camera/front"), 256) for k in (Event, Frame)}, SESSION)
    try:
        time.sleep(0.1)
        node.open()
        while not done(events, frames) and time.monotonic() < until:
            node.wake.wait(0.02)
            node.wake.clear()
            node.step(time.monotonic_ns())
            events += [m.body for m in inbox.drain(Event)]
            frames += [m.body for m in inbox.drain(Frame)]
        assert done(events, frames), [e.text for e in events]
        return events, frames
    finally:
        inbox.stop()


CTX = zmq.Context()


def node_of(source) -> CameraNode:
    """The node before it may still be giving its address back."""
    until = time.monotonic() + 5
    while True:
        try:
            return CameraNode(CTX, "inproc", SESSION, [source])
        except zmq.ZMQError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def test_a_file_says_when_it_begins_again_and_when_it_ends(tmp_path):
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture(i)[..., ::-1])
    for loop, code, words in (
        (True, "camera_again", "begins again"),
        (False, "camera_ended", "its last picture"),
    ):
        settings = CameraSettings("front", str(tmp_path), 64, 48, fps=100.0, loop=loop)
        node = node_of(open_source(settings))
        try:
            events, _ = heard(node, lambda e, f: e and len(f) >= (20 if loop else 3))  # noqa: B023
            assert [e.code for e in events] == [code], "said once, however often it begins again"
            assert words in events[0].text
        finally:
            node.close()


def test_a_single_picture_of_another_size_is_left_out_and_said():
    good, other = picture(1), picture(2, 24, 32)
    node = node_of(
        Camera(
            CameraSettings("front", "9", 64, 48, fps=100.0),
            [good, other, np.zeros((0, 0, 3), np.uint8), good],
        )
    )
    try:
        events, frames = heard(node, lambda e, f: len(f) >= 20)
    finally:
        node.close()
    assert {(f.height, f.width) for f in frames} == {(48, 64)}
    assert events[0].code == "camera_odd"
    assert "gives 32x24 px, but 64x48 is declared" in events[0].text


def test_a_camera_that_changes_its_size_for_good_is_opened_again():
    """As after another program has set another format."""

    class Reset(Camera):
        def open(self) -> None:
            super().open()
            self._pictures = [picture(1)] if self.n_opened > 1 else [picture(1), picture(1, 24, 32)]

    camera = Reset(CameraSettings("front", "9", 64, 48, fps=50.0), [])
    node = node_of(camera)
    try:
        events, _ = heard(node, lambda e, f: len(f) >= 10)
    finally:
        node.close()
    assert camera.n_opened == 2
    assert [e.code for e in events] == ["camera_odd", "camera_lost", "camera_back"]
    assert "keeps giving pictures of another size" in events[1].text


def test_a_node_whose_address_is_half_taken_keeps_none_of_its_sockets():
    ctx = zmq.Context()
    other = CommandServer(ctx, endpoint("inproc", "camera/front", "commands"), SESSION, "other")
    settings = CameraSettings("front", "9", 64, 48)
    with pytest.raises(zmq.ZMQError):
        CameraNode(ctx, "inproc", SESSION, [Camera(settings, [picture(1)])])
    other.close()
    closing = threading.Thread(target=ctx.term, daemon=True)
    closing.start()
    closing.join(timeout=5)
    assert not closing.is_alive(), "a context ends only when each of its sockets is closed"

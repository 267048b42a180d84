"""Devices as a driver presents them: what a profile asks for arrives there, and every refusal names device and cure."""

import json
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import zmq

from edgevla import strict
from edgevla.cameras import CameraSettings, Picture, open_source, v4l2
from edgevla.descriptions import AboutCamera, AboutRobot
from edgevla.errors import CameraError, ConfigError
from edgevla.launch.deployment import DeployOptions, camera_settings
from edgevla.manifest import Manifest
from edgevla.messages import Frame
from edgevla.nodes.assembler import frame_pixels
from edgevla.nodes.camera import CameraNode
from edgevla.robots.describe import about_camera
from edgevla.robots.profile import PROFILES_DIR, load_profile
from edgevla.wire import Inbox, endpoint

RED_CARD = (214, 30, 24)


def card(height: int = 48, width: int = 64) -> np.ndarray:
    """A red card on grey, RGB."""
    image = np.full((height, width, 3), 120, np.uint8)
    image[height // 4 : -height // 4, width // 4 : -width // 4] = RED_CARD
    return image


class FakeDevice:
    """What a V4L2 driver does with settings: takes those it knows, answers with what it really has."""

    def __init__(self, takes=(), fourcc="YUYV") -> None:
        self.takes, self.was_set, self.is_open = takes, {}, True
        self.fourcc = cv2.VideoWriter.fourcc(*fourcc)

    def __call__(self, device, backend):
        return self

    def isOpened(self):
        return self.is_open

    def set(self, what, value):
        self.was_set[what] = value
        return what in self.takes

    def get(self, what):
        return self.fourcc if what == cv2.CAP_PROP_FOURCC else 0

    def read(self):
        return True, card()[..., ::-1]

    def release(self):
        self.is_open = False


def opened(monkeypatch, device, **fields):
    monkeypatch.setattr(cv2, "VideoCapture", device)
    source = open_source(CameraSettings("front", "/dev/null", 64, 48, **fields))
    source.open()
    return source


def test_exposure_is_locked_or_refused(monkeypatch):
    device = FakeDevice(takes=(cv2.CAP_PROP_AUTO_EXPOSURE, cv2.CAP_PROP_EXPOSURE))
    opened(monkeypatch, device, exposure=120.0)
    assert device.was_set[cv2.CAP_PROP_EXPOSURE] == 120.0
    assert device.was_set[cv2.CAP_PROP_AUTO_EXPOSURE] == 1.0, "V4L2's number for manual"
    device = FakeDevice()
    with pytest.raises(CameraError, match="does not let its exposure be set"):
        opened(monkeypatch, device, has_locked_exposure=True)
    assert not device.is_open, "a camera that is refused is not kept busy"


def test_another_pixel_format_than_declared_is_refused(monkeypatch):
    with pytest.raises(CameraError, match="gives YUYV, not MJPG as declared"):
        opened(monkeypatch, FakeDevice(), fourcc="MJPG")
    source = opened(monkeypatch, FakeDevice(fourcc="MJPG"), fourcc="MJPG")
    assert source.about == "/dev/null MJPG"
    assert source.read().pixels.shape == (48, 64, 3)


def test_a_busy_camera_says_how_to_find_who_has_it(monkeypatch):
    device = FakeDevice()
    device.is_open = False
    with pytest.raises(CameraError, match="fuser -v /dev/null"):
        opened(monkeypatch, device)


def speaks_v4l2(monkeypatch, device_caps):
    """/dev/null answers as a webcam's device with these capabilities would."""
    answer = v4l2.CAPABILITY.pack(b"uvcvideo", b"HD Webcam", b"usb-1", 0x060000, 0x84A00001, device_caps)
    monkeypatch.setattr(v4l2.fcntl, "ioctl", lambda file, request, buffer: answer)


def test_a_metadata_device_is_told_from_a_camera(monkeypatch):
    speaks_v4l2(monkeypatch, 0x04A00000)  # streaming, metadata: the second device of every USB camera
    with pytest.raises(
        CameraError, match="/dev/null gives no pictures, it only tells about those of 'HD Webcam'"
    ):
        opened(monkeypatch, FakeDevice())
    speaks_v4l2(monkeypatch, 0x04200001)
    assert opened(monkeypatch, FakeDevice()).about == "/dev/null YUYV"


def test_without_permission_the_device_s_own_group_is_named(monkeypatch):
    monkeypatch.setattr("edgevla.cameras.opencv.os.access", lambda *_: False)
    group = Path("/dev/null").group()
    with pytest.raises(CameraError, match=rf"no permission to use /dev/null.*usermod -aG {group} \$USER"):
        opened(monkeypatch, FakeDevice())


# -- from a profile to the device -------------------------------------------------------------------------------


def profile_with(tmp_path, *lines):
    """so101 with these lines in its camera's table."""
    text = (PROFILES_DIR / "so101.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace('name = "front"', "\n".join(['name = "front"', *lines]), 1))
    return path


def told(tmp_path, *lines):
    """What the robot tells of such a camera."""
    camera = about_camera(load_profile(profile_with(tmp_path, *lines)).cameras[0])
    return strict.read(AboutCamera, strict.write(camera), "the robot's describe of it")


def test_what_a_profile_says_of_a_camera_reaches_the_driver(tmp_path, monkeypatch):
    camera = told(
        tmp_path, 'fourcc = "MJPG"', "exposure = 120", "gain = 8", "white_balance = 4600", "rotation = 90"
    )
    settings = CameraSettings.of_profile(replace(camera, width=480, height=640), "/dev/null")
    device = FakeDevice(
        fourcc="MJPG",
        takes=(
            cv2.CAP_PROP_AUTO_EXPOSURE,
            cv2.CAP_PROP_EXPOSURE,
            cv2.CAP_PROP_GAIN,
            cv2.CAP_PROP_AUTO_WB,
            cv2.CAP_PROP_WB_TEMPERATURE,
        ),
    )
    monkeypatch.setattr(cv2, "VideoCapture", device)
    open_source(CameraSettings.from_json(settings.to_json())).open()
    asked = device.was_set
    assert asked[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*"MJPG")
    assert (asked[cv2.CAP_PROP_AUTO_EXPOSURE], asked[cv2.CAP_PROP_EXPOSURE]) == (1.0, 120.0)
    assert asked[cv2.CAP_PROP_GAIN] == 8.0
    assert (asked[cv2.CAP_PROP_AUTO_WB], asked[cv2.CAP_PROP_WB_TEMPERATURE]) == (0.0, 4600.0)
    size = asked[cv2.CAP_PROP_FRAME_WIDTH], asked[cv2.CAP_PROP_FRAME_HEIGHT]
    assert size == (640, 480), "480x640 is what the turned picture has"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('fourcc = "MJPEG"', r"\[\[camera\]\] 'front', key 'fourcc': 'MJPEG' is no pixel format"),
        ("rotation = 45", "key 'rotation': is 45; expected one of 0, 90, 180, 270"),
        ("exposure = -1", "key 'exposure': is -1; expected a number from 0"),
        ('gain = "auto"', "key 'gain': is 'auto'; expected a number"),
        ("whitebalance = 4600", "key 'whitebalance': is unknown; did you mean 'white_balance'"),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_file_table_and_key(tmp_path, line, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_profile(profile_with(tmp_path, line))


def test_two_cameras_of_one_name_and_names_that_make_no_socket_are_refused(tmp_path):
    text = (PROFILES_DIR / "so101_bimanual.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace('name = "right_wrist"', 'name = "left_wrist"'))
    with pytest.raises(ConfigError, match="two cameras are called 'left_wrist'"):
        load_profile(path)
    path.write_text(text.replace('name = "right_wrist"', 'name = "wrist/right"'))
    with pytest.raises(ConfigError, match="'wrist/right' must be of letters"):
        load_profile(path)


class Still:
    """A camera that gives one picture for ever."""

    about, is_at_end, n_rounds, is_drawn = "/dev/video9", False, 0, False

    def __init__(self, settings, image) -> None:
        self.settings, self._image = settings, image

    def open(self) -> None:
        pass

    def read(self) -> Picture:
        time.sleep(0.01)
        return Picture(self._image[..., ::-1], time.monotonic_ns())

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("rotation", "red_at"), [(0, "top left"), (90, "top right"), (180, "bottom right"), (270, "bottom left")]
)
def test_a_camera_mounted_turned_shows_upright_pictures(rotation, red_at):
    picture = np.full((48, 64, 3), 120, np.uint8)
    picture[:20, :20] = RED_CARD
    width, height = (48, 64) if rotation in (90, 270) else (64, 48)
    settings = CameraSettings("front", "9", width, height, fps=50.0, rotation=rotation)
    with zmq.Context() as ctx:
        node = CameraNode(ctx, "inproc", b"cam-test", [Still(settings, picture)])
        inbox = Inbox(ctx, {Frame: (endpoint("inproc", "camera/front"), 4)}, b"cam-test")
        try:
            node.open()
            until = time.monotonic() + 5
            while inbox.newest(Frame) is None and time.monotonic() < until:
                node.step(time.monotonic_ns())
                time.sleep(0.01)
            image = frame_pixels(inbox.newest(Frame))
        finally:
            inbox.stop()
            node.close()
    assert image.shape == (height, width, 3)
    row, column = (5 if "top" in red_at else -5), (5 if "left" in red_at else -5)
    assert image[row, column].tolist() == list(RED_CARD)


def test_a_file_in_the_place_of_a_turned_camera_is_shown_as_it_is(tmp_path):
    camera = replace(told(tmp_path, "rotation = 90"), width=480, height=640)
    assert CameraSettings.of_profile(camera, "/dev/video4").rotation == 90
    assert CameraSettings.of_profile(camera, "datasets/mine/front.mp4").rotation == 0
    assert CameraSettings.of_profile(camera, "sim").rotation == 0
    assert CameraSettings.of_profile(replace(camera, source="still/"), "still/").rotation == 90


def test_a_fitted_camera_is_asked_for_its_own_size_and_publishes_the_policy_s(tmp_path, make_bundle):
    """The bundle takes 32x24; the profile's camera gives 480x640 once it is turned."""
    manifest = Manifest.from_json(json.loads((make_bundle() / "manifest.json").read_text()))
    camera = told(tmp_path, "rotation = 270", 'fit = "resize"', "gain = 3")
    robot = AboutRobot("robot", "mine", (), (replace(camera, width=480, height=640),), 100.0, (), ())
    (settings,) = camera_settings(manifest, robot, DeployOptions("mine"))
    assert (settings.width, settings.height, settings.fps) == (32, 24, 30.0)
    assert settings.device_size == (640, 480)
    assert (settings.rotation, settings.gain, settings.fit) == (270, 3.0, "resize")

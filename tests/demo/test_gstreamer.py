"""Cameras through GStreamer: with `gst-launch-1.0` itself where it is installed, and with a stand-in everywhere."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest

from edgevla.cameras import CameraSettings, open_source
from edgevla.cameras.gstreamer import GStreamerCamera
from edgevla.errors import CameraError

real = pytest.mark.skipif(
    shutil.which("gst-launch-1.0") is None,
    reason="gst-launch-1.0 is not installed: apt-get install gstreamer1.0-tools gstreamer1.0-plugins-base",
)
STAND_IN = """#!{python}
# NOT GStreamer: writes the raw pictures that the end of the pipeline asks for, its first word being what to do.
import re, sys, time
what = sys.argv[2]
words = " ".join(sys.argv[2:])
assert words.endswith("! queue leaky=downstream max-size-buffers=1 ! fdsink fd=1 sync=false"), words
width, height = map(int, re.search(r"format=BGR,width=(\\d+),height=(\\d+)", words).groups())
if what == "broken":
    sys.exit("ERROR: from element /GstPipeline:pipeline0/broken: could not link")
row = bytes([1, 2, 3]) * width
row += b"x" * (-len(row) % 4)
for n in range(3 if what == "short" else 10**9):
    sys.stdout.buffer.write(row * height)
    sys.stdout.buffer.flush()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    program = tmp_path / "bin/gst-launch-1.0"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


def camera(pipeline, width=62, height=48, **more):
    source = open_source(CameraSettings("front", f"gst:{pipeline}", width, height, **more))
    assert isinstance(source, GStreamerCamera)
    return source


def test_pictures_are_whole_whatever_their_width(stand_in):
    """62 px are 186 bytes, of which GStreamer makes 188."""
    source = camera("steady sensor-id=0")
    source.open()
    try:
        for _ in range(3):
            picture = source.read()
            assert picture.is_bgr
            assert picture.pixels.shape == (48, 62, 3)
            assert np.all(picture.pixels == [1, 2, 3])
    finally:
        source.close()


def test_a_pipeline_that_ends_is_a_camera_that_was_lost_and_may_come_again(stand_in):
    source = camera("short")
    source.open()
    assert [source.read() is not None for _ in range(4)] == [True, True, True, False]
    source.close()
    source.open()
    assert source.read() is not None
    source.close()
    assert source.read() is None


def test_a_pipeline_that_is_wrong_says_so_in_gstreamer_s_words(stand_in):
    with pytest.raises(
        CameraError, match=r"gives no picture of 62x48: ERROR: from element .*could not link; try its"
    ):
        camera("broken").open()


def test_without_gstreamer_the_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CameraError, match=r"sudo apt install gstreamer1\.0-tools"):
        camera("videotestsrc").open()


def test_what_only_the_pipeline_can_set_is_refused():
    with pytest.raises(CameraError, match="which no exposure can be set for from outside"):
        camera("videotestsrc", exposure=100.0)


@real
@pytest.mark.parametrize(("width", "height"), [(64, 48), (62, 46)])
def test_gstreamer_itself_gives_the_colours_that_were_asked_for(width, height):
    source = camera("videotestsrc pattern=solid-color foreground-color=0xff102030", width, height)
    source.open()
    try:
        for _ in range(3):
            pixels = source.read().pixels
            assert pixels.shape == (height, width, 3)
            assert np.all(np.abs(pixels.astype(int) - [0x30, 0x20, 0x10]) <= 3), pixels[0, 0]
    finally:
        source.close()


@real
def test_another_size_than_the_pipeline_gives_is_refused():
    with pytest.raises(CameraError, match="gives no picture of 64x48"):
        camera("videotestsrc ! video/x-raw,width=32,height=32", 64, 48).open()


@real
def test_an_element_that_is_not_there_is_named():
    with pytest.raises(CameraError, match="no element"):
        camera("nosuchsrc").open()

"""Pictures of simulated physics, and what is said where they cannot be drawn."""

from __future__ import annotations

import sys
import threading
import types

import numpy as np
import pytest

from edgevla.errors import CameraError, MissingExtraError
from edgevla.robots.world.contract import make_painter, make_world
from edgevla.robots.world.physics import engine, gl
from edgevla.robots.world.physics import painter as physics_painter
from edgevla.simulated import task_named

NAME = "aloha/transfer_cube"


@pytest.fixture
def painter():
    """Of ALOHA's table; the test is skipped where nothing can be drawn (`make test` lists that)."""
    pytest.importorskip("mujoco")
    try:
        gl.find_platform()
    except CameraError as error:
        pytest.skip(str(error))
    return make_painter(task_named(NAME))


def world_at(episode=0, name=NAME):
    world = make_world(task_named(name), 1, 0)
    world.reset(episode, 0)
    return world


def red(image):
    """Rows and columns (n, 2) of the cube's pixels."""
    picture = image.astype(int)
    return np.argwhere((picture[..., 0] > 120) & (picture[..., 1] < 80))


def test_the_camera_above_sees_the_cube_where_it_lies(painter):
    painter.open("top", 320, 240)
    centres = []
    for x in (0.0, 0.2):
        world = world_at()
        world.data.joint("red_box_joint").qpos[:3] = (x, 0.5, 0.02)
        image = painter.draw("top", 320, 240, world.message())
        assert image.shape == (240, 320, 3)
        assert image.dtype == np.uint8
        assert image.flags["C_CONTIGUOUS"]
        assert len(red(image)) > 20
        centres.append(red(image).mean(axis=0))
    assert centres[0][1] == pytest.approx(160, abs=4), "x = 0 is the middle column"
    assert centres[1][1] > 190, "and the right arm's side is on the right"
    assert 110 < centres[0][0] < 170


def test_every_camera_of_the_task_draws_and_sizes_may_differ(painter):
    world = world_at().message()
    cameras = task_named(NAME).cameras
    for k, camera in enumerate(cameras):
        painter.open(camera, 64 + 16 * k, 48)
    pictures = [painter.draw(camera, 64 + 16 * k, 48, world) for k, camera in enumerate(cameras)]
    assert [p.shape[1] for p in pictures] == [64 + 16 * k for k in range(len(cameras))]
    assert all(p.std() > 5 for p in pictures)


def test_the_same_positions_give_the_same_picture_also_beside_another_scene(painter):
    world, other = world_at(), world_at(name="aloha/insertion")
    beside = make_painter(task_named("aloha/insertion"))
    for p in (painter, beside):
        p.open("angle", 160, 120)
    first = painter.draw("angle", 160, 120, world.message())
    pegs = beside.draw("angle", 160, 120, other.message())
    assert np.array_equal(painter.draw("angle", 160, 120, world.message()), first)
    assert np.array_equal(make_again(beside, other), pegs)
    assert not np.array_equal(first, pegs)


def make_again(painter, world):
    return painter.draw("angle", 160, 120, world.message())


def test_each_camera_may_draw_in_a_thread_of_its_own(painter):
    world, drawn = world_at().message(), {}
    for camera in ("top", "angle"):
        painter.open(camera, 160, 120)
    expected = {camera: painter.draw(camera, 160, 120, world) for camera in ("top", "angle")}

    def draw(camera):
        for _ in range(3):
            drawn[camera] = painter.draw(camera, 160, 120, world)

    threads = [threading.Thread(target=draw, args=(camera,)) for camera in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(np.array_equal(drawn[camera], expected[camera]) for camera in expected)


def test_the_robot_s_own_camera_names_stand_for_cameras_of_the_scene(painter):
    world = world_at().message()
    for real, drawn in (("cam_high", "top"), ("cam_left_wrist", "left_wrist")):
        painter.open(real, 96, 64)
        assert np.array_equal(painter.draw(real, 96, 64, world), painter.draw(drawn, 96, 64, world))


def test_a_camera_that_the_task_lacks_is_refused_by_name(painter):
    with pytest.raises(CameraError, match=r"has no camera 'topp'; it has top, angle, .*did you mean 'top'"):
        painter.open("topp", 64, 48)
    with pytest.raises(CameraError, match="drawn up to 2048 px wide and high, not 4096x48"):
        painter.open("top", 4096, 48)


def test_where_nothing_can_draw_the_packages_are_named(monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "_library", lambda names: None)
    monkeypatch.setattr(gl.sys, "platform", "linux")
    gl.find_platform.cache_clear()
    try:
        with pytest.raises(
            CameraError, match="apt-get install libegl1 libgl1-mesa-dri, or apt-get install libosmesa6"
        ):
            make_painter(task_named(NAME)).open("top", 64, 48)
    finally:
        gl.find_platform.cache_clear()


def test_a_context_that_cannot_be_used_is_said_with_what_to_do(painter, monkeypatch):
    """As with MUJOCO_GL=glfw and no screen: it is made, and fails where it is first used."""

    def fail():
        raise RuntimeError("no screen")

    monkeypatch.setattr(
        physics_painter,
        "make_context",
        lambda *_: types.SimpleNamespace(make_current=fail, free=lambda: None),
    )
    painter.open("top", 64, 48)
    with pytest.raises(CameraError, match=r"no screen.*set MUJOCO_GL to egl or osmesa"):
        painter.draw("top", 64, 48, world_at().message())


@pytest.mark.parametrize(("module", "says"), [
    (None, r'mujoco is not installed .*pip install .*\[sim\]"'),
    (types.SimpleNamespace(__version__="4.0.1"), r'>= 3.3, < 3.9 is not installed \(there is 4.0.1\).*\[sim\]"'),
    (types.SimpleNamespace(__version__="3.2.7"), r"there is 3.2.7"),
])  # fmt: skip
def test_a_missing_or_untried_mujoco_is_said_with_what_to_install(monkeypatch, module, says):
    monkeypatch.setitem(sys.modules, "mujoco", module)
    engine.mujoco.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match=says):
            make_world(task_named(NAME), 0)
    finally:
        monkeypatch.undo()
        engine.mujoco.cache_clear()

"""Before an arm moves: what the policy's first look at the cameras finds, how long it waits, and who says it."""

import contextlib
import json
import os
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import zmq
from deployment_kit import SO101

from edgevla import strict
from edgevla.descriptions import AboutCamera, AboutJoint, AboutPolicy, AboutRobot, write_robot
from edgevla.errors import WireError
from edgevla.look import glance, look_of
from edgevla.messages import Frame, Header, Message
from edgevla.nodes.first_look import PATIENCE_NS, FirstLook
from edgevla.robots.world.follow_cube.scene import SceneCamera
from edgevla.session import new_session, note_cameras_open, remove_run_dir, run_dir
from edgevla.wire import CommandClient, endpoint

MS = 1_000_000
SIZE = (160, 120)
CAMERAS = {"observation.images.front": "front", "observation.images.wrist": "wrist"}


def pictures(view, n, seed):
    random = np.random.default_rng(seed)
    scene = SceneCamera(view, *SIZE)
    for _ in range(n):
        pose = np.array([0.0, -0.6, 0.8, 0.6, 0.0, 0.3]) + random.normal(0, 0.2, 6)
        picture = scene.draw(pose, [np.array([0.2, random.uniform(-0.1, 0.1), 0.015])])
        yield np.clip(picture + random.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)


def trained():
    return {f: look_of([glance(p) for p in pictures(view, 16, seed=1)]) for f, view in CAMERAS.items()}


class Ring:
    """The inbox of a policy: the newest frame of each camera."""

    def __init__(self) -> None:
        self.frames = {}

    def show(self, camera, image, seq=7, n_repeated=0):
        header = Header(b"policynd", f"camera/{camera}", seq, 0, 0)
        self.frames[camera] = [
            Message(header, Frame(camera, SIZE[1], SIZE[0], "rgb8", 0, n_repeated), [image])
        ]

    def recent(self, cls, source):
        return self.frames.get(source.removeprefix("camera/"), [])


def shown(front, wrist):
    ring = Ring()
    ring.show("front", next(pictures(front, 1, seed=2)))
    ring.show("wrist", next(pictures(wrist, 1, seed=3)))
    return ring


def test_cameras_in_their_places_are_seen_at_once_and_nothing_is_said():
    assert FirstLook(shown("front", "wrist"), CAMERAS, trained()).step(0) == []


def test_exchanged_cameras_are_found():
    found = FirstLook(shown("wrist", "front"), CAMERAS, trained()).step(0)
    assert [o.camera for o in found] == ["front", "wrist"]
    assert "the cameras are exchanged" in found[0].text


def test_a_picture_that_does_not_change_is_given_the_second_in_which_its_camera_says_so():
    ring = shown("front", "wrist")
    look = FirstLook(ring, CAMERAS, trained())
    ring.show("wrist", ring.frames["wrist"][0].payloads[0], n_repeated=5)
    assert look.step(0) is None
    assert look.step(1100 * MS) is None
    assert look.step(1250 * MS) == []
    simulated = FirstLook(ring, CAMERAS, trained(), drawn=["wrist"])
    assert simulated.step(0) == [], "a drawn world may stand still"


def test_a_camera_s_very_first_picture_does_not_tell_that_it_moves():
    ring = shown("front", "wrist")
    look = FirstLook(ring, CAMERAS, trained())
    ring.show("front", ring.frames["front"][0].payloads[0], seq=0)
    assert look.step(0) is None


def test_a_camera_that_shows_nothing_yet_is_not_waited_for_for_ever():
    ring = shown("front", "wrist")
    del ring.frames["wrist"]
    look = FirstLook(ring, CAMERAS, trained())
    assert look.step(0) is None
    assert look.step(3000 * MS) == []


# -- through `edgevla deploy` -----------------------------------------------------------------------------------


def taught(bundle, **views):
    """The bundle says that its cameras looked so."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["trained_camera_look"] = {
        f"observation.images.{name}": strict.write(look_of([glance(p) for p in pictures(view, 16, seed=1)]))
        for name, view in views.items()
    }
    path.write_text(json.dumps(manifest))
    return bundle


def footage(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        cv2.imwrite(str(folder / f"{i:03}.png"), image[..., ::-1])
    return folder


def deploy(bundle, profile, *args):
    command = [
        sys.executable,
        "-m",
        "edgevla",
        "deploy",
        str(bundle),
        f"--robot={profile}",
        "--sim",
        "--duration=0.5",
    ]
    return subprocess.run(
        [*command, *args], capture_output=True, text=True, timeout=100, check=False, env=os.environ
    )


def profile_with_two(tmp_path):
    from edgevla.robots.profile import PROFILES_DIR

    path = tmp_path / "two.toml"
    camera = '[[camera]]\nname = "{}"\nsource = "0"\nwidth = 160\nheight = 120\nfps = 30\n'
    text = (PROFILES_DIR / "so101.toml").read_text()
    head, tail = text.split("[[camera]]", 1)
    path.write_text(head + camera.format("front") + camera.format("wrist") + tail[tail.index("[rates]") :])
    return path


@pytest.mark.realtime
@pytest.mark.timeout(240)
def test_exchanged_cameras_are_said_before_the_arm_is_powered(tmp_path, bundle_maker):
    bundle = taught(
        bundle_maker(tmp_path / "two", cameras=("front", "wrist"), size=(120, 160)),
        front="front",
        wrist="wrist",
    )
    front = footage(tmp_path / "front", pictures("front", 20, seed=4))
    wrist = footage(tmp_path / "wrist", pictures("wrist", 20, seed=5))
    profile = profile_with_two(tmp_path)
    done = deploy(bundle, profile, f"--camera=front={wrist}", f"--camera=wrist={front}")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "camera 'front' shows what 'wrist' showed in the training data: the cameras are exchanged" in said
    assert said.index("are exchanged") < said.index("running")
    done = deploy(bundle, profile, f"--camera=front={front}", f"--camera=wrist={wrist}")
    said = done.stdout + done.stderr
    assert "warning" not in said.replace("camera_age", ""), said


@pytest.mark.realtime
@pytest.mark.timeout(240)
def test_a_black_camera_is_refused_and_a_frozen_one_said_before_the_arm_is_powered(tmp_path, bundle_maker):
    bundle = taught(bundle_maker(tmp_path / "one", size=(120, 160)), front="front")
    profile = profile_with_two(tmp_path)
    black = footage(tmp_path / "black", [np.zeros((120, 160, 3), np.uint8)])
    done = deploy(bundle, profile, f"--camera=front={black}")
    assert done.returncode == 1, done.stdout
    assert "camera 'front' shows nothing: its pictures are black" in done.stderr
    assert "To start all the same: --allow-blind-cameras" in done.stderr
    assert "running" not in done.stdout
    done = deploy(bundle, profile, f"--camera=front={black}", "--allow-blind-cameras")
    assert done.returncode == 0, done.stderr
    still = footage(tmp_path / "still", pictures("front", 1, seed=6))
    done = deploy(bundle, profile, f"--camera=front={still}")
    said = done.stdout + done.stderr
    assert said.index("has shown the same picture for 1 s, to the last bit") < said.index("running"), said


def test_a_policy_that_is_loaded_before_the_cameras_are_open_waits_for_them(bundle, tmp_path):
    """Its look at cameras that are still silent would find nothing wrong with them."""
    session = new_session()
    folder = run_dir(session)
    joints = tuple(
        AboutJoint(name.removesuffix(".pos"), unit, low, high, 90.0, name == "gripper.pos", None, None)
        for name, (unit, low, high) in SO101.items()
    )
    camera = AboutCamera("front", "sim", 48, 64, 30.0, True, "exact")
    write_robot(AboutRobot("robot", "so101", joints, (camera,), 120.0, (), ()), folder / "robot.json")
    words = [f"--bundle={bundle}", f"--run-dir={folder}", f"--session={session.hex()}"]
    words += [f"--robot-json={folder / 'robot.json'}"]
    ctx = zmq.Context()
    client = CommandClient(ctx, endpoint(folder, "policy", "commands"), session, "supervisor")
    process = subprocess.Popen([sys.executable, "-m", "edgevla.nodes.policy", *words])

    def ask(timeout_s):
        with contextlib.suppress(WireError):
            return client.describe(AboutPolicy, timeout_s)

    try:
        until = time.monotonic() + 60
        while not (folder / "policy.commands").exists():
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.01)
        assert ask(PATIENCE_NS / 1e9 + 1) is None
        note_cameras_open(folder)
        while (about := ask(1)) is None:
            assert time.monotonic() < until
            assert process.poll() is None
        assert about.node == "policy"
    finally:
        process.kill()
        process.wait()
        client.close()
        ctx.term()
        remove_run_dir(folder)

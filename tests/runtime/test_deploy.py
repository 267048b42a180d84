"""`edgevla deploy` refuses in words, before anything moves: exit code, one sentence, no traceback."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from edgevla.cameras.base import FITS
from edgevla.robots.profile import PROFILES_DIR

pytestmark = pytest.mark.realtime


def deploy(*args, timeout_s=60):
    done = subprocess.run(
        [sys.executable, "-m", "edgevla", "deploy", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "", done.stdout


def edit(bundle, change):
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_damaged_file_of_the_bundle_is_named(bundle):
    data = bytearray((bundle / "encode.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "encode.onnx").write_bytes(data)
    code, words, _ = deploy(bundle, "--robot=so101", "--sim")
    assert code == 1
    assert "'encode.onnx' is damaged" in words


def test_a_missing_file_of_the_bundle_is_named(bundle):
    (bundle / "decode.onnx").unlink()
    code, words, _ = deploy(bundle, "--robot=so101", "--sim")
    assert code == 1
    assert "'decode.onnx' is missing" in words


def test_a_newer_bundle_asks_for_an_upgrade(bundle):
    edit(bundle, lambda m: m.update(schema=2))
    code, words, _ = deploy(bundle, "--robot=so101", "--sim")
    assert code == 1
    assert "upgrade EdgeVLA" in words


def test_a_port_that_does_not_exist(bundle):
    code, words, _ = deploy(bundle, "--robot=so101", "--port=/dev/ttyNOTHERE")
    assert code == 1
    assert "/dev/ttyNOTHERE does not exist" in words


def test_a_bus_that_the_robot_does_not_have(bundle):
    code, words, _ = deploy(bundle, "--robot=so101", "--port=left=/dev/ttyACM0")
    assert code == 2
    assert "so101 has no bus 'left'; it has arm" in words


def test_an_unknown_robot(bundle):
    code, words, _ = deploy(bundle, "--robot=so102", "--port=/dev/ttyX")
    assert code == 1
    assert "unknown robot 'so102'" in words


def test_a_camera_that_is_not_there(tmp_path, bundle_maker):
    bundle = bundle_maker(tmp_path / "vga", size=(480, 640))
    code, words, _ = deploy(bundle, "--robot=so101", "--sim", "--camera=front=/dev/video99")
    assert code == 1
    assert "video99" in words
    assert "front" in words


def test_a_camera_that_is_not_there_beside_one_that_is(tmp_path, bundle_maker):
    """The simulated camera is another process; its being ready says nothing about the other."""
    bundle = bundle_maker(tmp_path / "two", cameras=("front", "wrist"), size=(480, 640))
    code, words, shown = deploy(
        bundle, "--robot=so101", "--sim", "--camera=front=/dev/video99", "--duration=2"
    )
    assert code == 1
    assert "camera 'front' is not there: /dev/video99 does not exist" in words
    assert "running" not in shown, "the arm waits for every camera"


def test_a_camera_of_another_size(bundle):
    code, words, _ = deploy(bundle, "--robot=so101", "--sim", "--camera=front=/dev/video99")
    assert code == 1
    assert "640x480" in words
    assert "64x48" in words


@pytest.mark.parametrize("fit", FITS)
def test_a_profile_may_fit_another_size(tmp_path, bundle, fit):
    """Pictures of 640x480, as the profile says, for a policy that was trained on 64x48."""
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((480, 640, 3), 80 * i, np.uint8))
    profile = tmp_path / "mine.toml"
    text = (PROFILES_DIR / "so101.toml").read_text()
    profile.write_text(text.replace("height = 480\n", f'height = 480\nfit = "{fit}"\n'))
    options = (f"--robot={profile}", "--sim", f"--camera=front={tmp_path}", "--duration=2")
    code, words, shown = deploy(bundle, *options)
    if fit == "exact":
        assert code == 1
        assert 'fit = "crop" or "resize"' in words
    else:
        assert code == 0
        assert f'delivers 640x480; the profile\'s fit = "{fit}" makes it 64x48, which differs' in shown


def test_a_camera_that_the_policy_does_not_have(bundle):
    code, words, _ = deploy(bundle, "--robot=so101", "--sim", "--camera=side=0")
    assert code == 2
    assert "no such camera; it has front" in words


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--execution=rtc"], "cannot run 'rtc'"),
        (["--execution=async", "--decay=0.1"], "unknown key 'decay'; known: blend, every, select"),
        (["--port=/dev/ttyX"], "leave out --port"),
        (["--duration=-1"], "must be positive"),
        (["--duration=nan"], "must be positive"),
        (["--servo-hz=10", "--duration=1"], "slower than the policy's 30 Hz"),
    ],
)
def test_options_that_cannot_take_effect_are_errors(bundle, options, words):
    code, said, _ = deploy(bundle, "--robot=so101", "--sim", *options)
    assert code == 2
    assert words in said


def test_without_a_bundle_the_newest_is_taken_and_named(tmp_path, bundle_maker, monkeypatch):
    import os

    from edgevla.launch.deploy_cli import newest_bundle

    old, new = bundle_maker(tmp_path / "bundles" / "old"), bundle_maker(tmp_path / "bundles" / "new")
    os.utime(old / "manifest.json", (1, 1))
    assert newest_bundle(tmp_path) == new


def test_a_latency_that_async_cannot_bear_becomes_sync_loudly(bundle):
    code, _, shown = deploy(bundle, "--robot=so101", "--sim", "--inject-delay-ms=1200", "--duration=3")
    assert code == 0
    assert "'async' cannot work" in shown
    assert "execution sync" in shown


def test_the_summary_is_json_on_request(bundle):
    code, _, out = deploy(bundle, "--robot=so101", "--sim", "--duration=2", "--json")
    assert code == 0
    summary = json.loads(out)
    assert summary["robot"] == "so101"
    assert summary["execution"] == {"kind": "async"}
    assert summary["lateness_ms"]["p50"] >= 0

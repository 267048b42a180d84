"""What `edgevla record --leader` can know before the arm gets its torque, it says before: the arm stays as it is."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from deployment_kit import LivingArm, make_bundle

from edgevla.cli import main
from edgevla.dataset import DatasetWriter
from edgevla.dataset.whole import kept_still
from edgevla.nodes.vitals import ENDS, STOPS
from edgevla.robots.profile import load_profile

JOINTS = [joint.name for joint in load_profile("so101").joints]


@pytest.fixture(autouse=True)
def handlers_kept() -> Iterator[None]:
    """`record` takes the process's signals; here that is the test runner."""
    before = {number: signal.getsignal(number) for number in ENDS | STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def follower(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "follower").mkdir()
    arm = LivingArm(tmp_path / "follower", "so101")
    yield arm
    arm.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    cv2.imwrite(str(folder / "0.png"), noise)
    return folder


def a_dataset(
    root: Path, fps: float = 30, size: tuple[int, int] = (480, 640), units: str = "degrees"
) -> Path:
    """One episode of one row, of an SO101 and its camera `front`."""
    vector = {"dtype": "float32", "shape": [len(JOINTS)], "names": JOINTS}
    camera = {"dtype": "video", "shape": [*size, 3], "names": ["height", "width", "channels"]}
    age = {"dtype": "float32", "shape": [1], "names": None}
    features = {"observation.state": vector, "action": vector, "observation.images.front": camera}
    features["camera_age_ms.front"] = age
    with DatasetWriter(root, fps=fps, features=features, robot_type="so101", joint_units=units) as writer:
        row = {"observation.state": np.zeros(6), "action": np.zeros(6), "camera_age_ms.front": 1.0}
        writer.add_frame({**row, "observation.images.front": np.zeros((*size, 3), np.uint8)}, "wave")
        writer.save_episode()
    return root


@pytest.mark.realtime
@pytest.mark.timeout(180)
def test_what_the_dataset_would_not_take_is_refused_before_the_arm_has_its_torque(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, own_runtime: Path, follower: Any, pictures: Path
) -> None:
    root = a_dataset(tmp_path / "set", fps=10, size=(48, 64), units="range100")
    words = ["--leader=so101_leader", "--leader-port=/dev/null", "--robot=so101", *follower.options]
    assert main(["record", str(root), *words, f"--camera=front={pictures}"]) == 1
    said = capfd.readouterr().err
    for difference in (
        "its joints are in range100, those of this recording in degrees",
        "it has 10 fps, this recording 30",
        "its 'front' has 64x48 px, that of this recording 640x480",
    ):
        assert difference in said
    powered = [e for e in follower.trace() if e["dir"] == "arm" and any(s[2] for s in e["servos"].values())]
    assert powered == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--leader=so101", "--robot=so101", "--sim"], "--leader: so101 is a follower arm, not a leader"),
        (["--leader=so101_leader", "--robot=so101_leader", "--sim"], "--robot: so101_leader is a leader arm"),
        (["--leader=so101_leader", "--robot=aloha", "--sim"], "so101_leader cannot lead aloha"),
        (
            ["--leader=so101_leader", "--robot=so101", "--leader-port=/dev/null", "--port=LINK"],
            "is the line of the leader's bus 'arm' and of the follower's 'arm'",
        ),
    ],
)
@pytest.mark.parametrize("verb", ["teleop", "deploy"])
def test_two_arms_that_are_no_pair_are_refused_before_any_process_starts(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(
        "edgevla.launch.children.Child.start", lambda *_: pytest.fail("a process was started")
    )
    (tmp_path / "line").symlink_to("/dev/null")
    words = [word.replace("LINK", str(tmp_path / "line")) for word in words]
    if verb == "deploy":
        words = [str(make_bundle(tmp_path / "bundle", cameras=())), *words]
    assert main([verb, *words, "--log=none"]) in (1, 2)
    assert said in capsys.readouterr().err


def test_a_damaged_dataset_and_one_that_is_recorded_into_are_refused_before_an_arm_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevla.launch.led.Led.start", lambda _: pytest.fail("an arm was started"))
    root = a_dataset(tmp_path / "set")
    pair = ["--leader=so101_leader", "--robot=so101", "--sim"]
    with kept_still(root, is_changed=True):
        assert main(["record", str(root), *pair]) == 1
    assert "is being recorded into, or edited" in capsys.readouterr().err
    (table,) = root.glob("data/*/*.parquet")
    table.write_bytes(table.read_bytes()[:100])
    assert main(["record", str(root), *pair]) == 1
    assert table.name in capsys.readouterr().err

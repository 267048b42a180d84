"""What the documented commands find when a test runs them: small things in place of large ones, under the same names.

given(folder)         datasets, runs, bundles and a hub's cache, each made once
Arms                  emulated arms in place of those at /dev/ttyACM0, ...
shortened(words)      the same command, for seconds instead of hours
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgevla import DatasetWriter
from edgevla.cli import main
from edgevla.export.trace import trace
from edgevla.robots import calibration
from edgevla.robots.profile import load_profile
from edgevla.train.policies import policy_class
from edgevla.train.tiny import write_tiny_backbone

JOINTS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
N_EPISODES, N_FRAMES = 60, 12
DATASETS = {
    "datasets/cube": "front", "datasets/cube2": "front", "datasets/cube3": "front", "datasets/mine": "front",
    "datasets/so101": "front", "demo-runs/2026-11-24/datasets/rest": "front",
    "hub/datasets--lerobot--svla_so101_pickplace": "front", "hub/datasets--me--so101_pick": "front",
    "hub/datasets--me--so101_cubes": "front",
}  # fmt: skip
"""Where one lies, and the name of its camera. What lies in `hub` is found by its id."""
CALIBRATIONS = {
    "so101": "blue",
    "so101_leader": "red",
    "so101_bimanual": "pair",
    "so101_leader_bimanual": "pair",
}
BUNDLES = {"bundles/act-int8": "act", "bundles/smolvla": "flow", "bundles/pi0": "flow"}


# -- datasets -------------------------------------------------------------------------------------------------


def write_dataset(folder: Path, *cameras: str, n_episodes: int = N_EPISODES) -> Path:
    """An arm of six joints that goes a little to and fro, and pictures of one colour."""
    vector = {"dtype": "float32", "shape": (6,), "names": [f"{j}.pos" for j in JOINTS]}
    picture = {"dtype": "video", "shape": (64, 64, 3), "names": ["height", "width", "channels"]}
    features = {"action": vector, "observation.state": vector}
    features |= {f"observation.images.{camera}": picture for camera in cameras}
    with DatasetWriter(
        folder, fps=30, features=features, joint_units="degrees", robot_type="so101"
    ) as writer:
        for episode in range(n_episodes):
            for k in range(N_FRAMES):
                state = np.sin(np.arange(6) + 0.1 * k + episode).astype(np.float32)
                pictures = {name: np.full((64, 64, 3), 10 * k, np.uint8) for name in list(features)[2:]}
                writer.add_frame(
                    {"action": state + 0.1, "observation.state": state, **pictures}, "lift the cube"
                )
            writer.save_episode()
    return folder


# -- a hub that is this machine's cache ---------------------------------------------------------------------------


def into_hub(hub: Path, name: str, folder: Path, revision: str) -> None:
    """Puts a folder where the hub's client keeps what it has fetched. name: `models--me--act_cubes`."""
    snapshot = hub / name / "snapshots" / "0"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(folder, snapshot, symlinks=True)
    (hub / name / "refs").mkdir()
    (hub / name / "refs" / revision).write_text("0")


# -- training at a size of seconds --------------------------------------------------------------------------------


def tiny_words(policy: str | None) -> list[str]:
    """Two steps, and of a fresh policy what it declares itself to be a size for tests."""
    words = [
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--cache",
        "ram",
        "--no-tensorboard",
    ]
    if policy is None:
        return words
    cls = policy_class(policy)
    for key, value in cls.tiny.items():
        said = value if isinstance(value, str) else "none" if value is None else json.dumps(value)
        words += ["--set", f"{key}={said}"]
    return words + (["--trunk-width", "16"] if cls.Config().trunk is not None else [])


def train(policy: str, dataset: Path, run: Path, *more: str) -> Path:
    words = ["train", "--policy", policy, "--dataset", str(dataset), "--output", str(run)]
    assert main([*words, *tiny_words(policy), *more]) == 0
    return run / "checkpoints/last/pretrained_model"


def given(folder: Path, make_bundle: Callable[[Path, str], None]) -> None:
    """All that a page may begin with, below `folder`; what is in `hub` is a cache of the hub's client."""
    made = {"front": write_dataset(folder / "made/front", "front")}
    hub = folder / "hub"
    for place, camera in DATASETS.items():
        if place.startswith("hub/"):
            into_hub(hub, Path(place).name, made[camera], "v3.0")
        else:
            shutil.copytree(made[camera], folder / place)
    backbone = write_tiny_backbone(folder / "made/backbone", "smolvlm")
    two = write_dataset(folder / "made/two", "camera1", "camera3", n_episodes=1)
    base = train("smolvla", two, folder / "made/base", "--from", str(backbone))
    into_hub(hub, "models--me--smolvla_cubes", base, "main")
    three = write_dataset(folder / "made/three", "camera1", "camera2", "camera3", n_episodes=1)
    base = train("smolvla", three, folder / "made/base3", "--from", str(backbone))
    into_hub(hub, "models--lerobot--smolvla_base", base, "main")
    cubes = train("smolvla", made["front"], folder / "runs/smolvla", "--from", str(backbone))
    shutil.copytree(cubes, folder / "checkpoints/smolvla_cubes")
    train(
        "act",
        folder / "datasets/so101",
        folder / "runs/act",
        "--episodes",
        "0:40",
        "--joint-units",
        "degrees",
    )
    assert (
        main(["export", str(folder / "runs/act"), "-o", str(folder / "bundles/act"), "--samples", "2"]) == 0
    )
    shutil.copytree(folder / "runs/act", folder / "runs/act-1124-1800", symlinks=True)
    train("diffusion", folder / "datasets/so101", folder / "runs/diffusion")
    for place, kind in BUNDLES.items():
        make_bundle(folder / place, kind)
    shutil.rmtree(folder / "made")


# -- arms -----------------------------------------------------------------------------------------------------


class Arms:
    """Emulated arms behind pseudo-terminals, started when a command first wants one; a picture for their cameras."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self.pictures = folder / "pictures"
        self.pictures.mkdir()
        cv2.imwrite(str(self.pictures / "0.png"), np.full((480, 640, 3), 128, np.uint8))

    def profile(self, robot: str) -> str:
        """The robot's own, but for the source of its pictures, and their size, which is the policy's here."""
        path = self._folder / f"{robot}.toml"
        text = load_profile(robot).path.read_text()
        looks = f'source = "{self.pictures}"\nfit = "resize"'
        path.write_text(re.sub(r'^source = "\d"$', looks, text, flags=re.MULTILINE))
        return str(path)

    def port(self, robot: str) -> str:
        """A folder with one link per bus, as --port takes it."""
        if robot not in self._processes:
            link = self._folder / robot
            link.mkdir(parents=True)
            words = [sys.executable, "-m", "edgevla.robots.emulator.cli", robot, "--link", f"{link}/"]
            process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            for _ in load_profile(robot).buses:
                assert process.stdout.readline(), f"the emulated {robot} ended"
            self._processes[robot] = process
        return f"{self._folder / robot}"

    def close(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.communicate(timeout=60)


def calibrate(robots: Iterable[str]) -> None:
    """As the pages name the files that they write."""
    for robot in robots:
        profile, name = load_profile(robot), CALIBRATIONS[robot]
        calibration.write(profile, calibration.nominal(profile), name)


# -- export ----------------------------------------------------------------------------------------------------

_traced: dict[tuple[object, ...], Any] = {}


def traced_once(policy: Any, name: str, spec: Any, inputs: Any = None, max_batch: int = 1) -> Any:
    """In place of `export.trace.trace`, which is most of what a small export costs: equal networks are traced once."""
    import onnx_ir as ir

    weights = hashlib.sha256()
    for key, tensor in policy.state_dict().items():
        weights.update(key.encode() + tensor.detach().contiguous().numpy().tobytes())
    shape = (policy.policy_type, name, repr(spec), max_batch, weights.hexdigest())
    if shape not in _traced:
        _traced[shape] = ir.to_proto(trace(policy, name, spec, inputs, max_batch))
    return ir.from_proto(_traced[shape])


# -- commands ---------------------------------------------------------------------------------------------------

OPTIONS_OF_PORTS = {"--robot": "--port", "--leader": "--leader-port"}


def on_emulated_arms(words: list[str], arms: Arms) -> list[str]:
    """The arms and cameras that are named, replaced; with `--sim` there are none.

    Raises:
        AssertionError: an arm without --port whose port cannot be found, because another one is plugged in as well.
    """
    verb = words[0]
    if verb not in ("deploy", "teleop", "record", "replay", "doctor", "calibrate") or "--sim" in words:
        return words
    words = [re.sub(r"^(\w+)=(?:\d|/dev/video\d)$", rf"\1={arms.pictures}", word) for word in words]
    named = {option: value(words, option) for option in OPTIONS_OF_PORTS if option in words}
    for option, robot in named.items():
        place = OPTIONS_OF_PORTS[option]
        is_found = place in words or len(named) == 1 or all(bus.port for bus in load_profile(robot).buses)
        assert is_found, f"two arms, but no {place}"
        while place in words:
            words = without(words, place)
        words += [place, arms.port(robot)]
        if option == "--robot" and verb != "doctor":
            words[words.index(robot)] = arms.profile(robot)
    return words


def shortened(words: list[str]) -> list[str]:
    """As typed, but for an end within seconds; what is replaced is a number, a device, or what needs a terminal."""
    verb = words[0]
    words = [word.replace("cuda", "cpu") if word == "cuda" else word for word in words if word != "--monitor"]
    if verb == "train" and "--help" not in words:
        words = without(words, "--steps")
        if "--resume" in words:
            return [*words, "--steps", "3"]
        policy = (
            None if "--from" in words else value(words, "--policy")
        )  # else sizes are those of what it starts from
        return [*words, *tiny_words(policy)]
    if verb == "export":
        # After two steps of training int8 is no copy of anything.
        may_differ = (
            ["--allow-parity-failure"] if "int8" in words and "--allow-parity-failure" not in words else []
        )
        return [*without(words, "--samples"), "--samples", "2", *may_differ]
    if verb == "eval" and "--task" in words:
        return [*without(words, "--episodes"), "--episodes", "1", "--jobs", "1"]
    if verb == "record":
        for option in ("--episodes", "--seconds", "--pause"):
            words = without(words, option)
        return [*words, "--episodes", "1", "--seconds", "0.3", "--pause", "0"]
    return words


def value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def without(words: list[str], option: str) -> list[str]:
    if option not in words:
        return words
    at = words.index(option)
    return words[:at] + words[at + 2 :]

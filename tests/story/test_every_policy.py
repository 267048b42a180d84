"""Every policy trains, exports and runs on a simulated robot. Whether it reaches the cube takes minutes of training:
benchmarks/policies_closed_loop.py asks that.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zmq

from edgevla.arguments import SetTask
from edgevla.bundle import load_bundle
from edgevla.cli import main
from edgevla.dataset.writer import DatasetWriter
from edgevla.errors import WireError
from edgevla.flight.reader import entries
from edgevla.robots.profile import load_profile
from edgevla.robots.trials.contest import one
from edgevla.robots.trials.demonstrate import DemonstrationPlan, demonstrate
from edgevla.robots.trials.real_time import find_run
from edgevla.session import endpoint, read_deployment
from edgevla.simulated import TASKS
from edgevla.train.policies import POLICIES
from edgevla.train.tiny import write_tiny_backbone
from edgevla.types import Observation
from edgevla.wire import CommandClient

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves neighbours unimportable

from every_policy import BACKBONES, export_words, run_verb, train_words

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
FEW = ("--steps", "2", "--batch-size", "2")
OTHER_TASK = "leave the cube alone"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations, and one backbone of each kind."""
    root = tmp_path_factory.mktemp("every")
    demonstrate(root / "data", DemonstrationPlan("follow_cube", 2, n_steps=40))
    torch.manual_seed(0)
    for kind in set(BACKBONES.values()):
        write_tiny_backbone(root / kind, kind, width=32, depth=2)
    return root


def make_bundle(work: Path, policy: str) -> Path:
    """Trains and exports once per session; the bundle."""
    bundle = work / "bundles" / policy
    if not bundle.exists():
        backbone = work / BACKBONES[policy] if policy in BACKBONES else None
        run = work / "runs" / policy
        words = train_words(policy, work / "data", run, backbone, *FEW)
        run_verb(words)
        run_verb(export_words(policy, run, bundle))
    return bundle


@pytest.mark.parametrize("policy", POLICIES)
def test_it_trains_exports_and_drives_the_arm(policy: str, work: Path) -> None:
    """In lock-step: the real control loop, driver and packets on emulated servos."""
    bundle = make_bundle(work, policy)
    manifest = load_bundle(bundle).manifest
    assert manifest.parity is not None
    assert manifest.parity.passed
    if manifest.prompt is not None:
        assert manifest.prompt.default_task == TASKS["follow_cube"].instruction
    played = one(bundle, "follow_cube").play(0)
    states = played.states
    driven = [s for s in states if s.chunk_seq is not None]
    assert len({s.chunk_seq for s in driven}) >= 3, "hardly a chunk was executed"
    assert {s.mode for s in states} == {"running"}
    goals = np.array([s.goal for s in driven])
    assert np.isfinite(goals).all()
    assert np.ptp(goals, axis=0).max() > 0.1, "the arm was never told to move"
    assert np.isfinite(played.verdict.figures["rms_mm"])


def test_in_lock_step_a_history_is_what_was_seen_before(work: Path) -> None:
    """Diffusion stacks two observations: the second is the arm as it was one grid moment earlier."""
    arm = one(make_bundle(work, "diffusion"), "follow_cube")
    infer, asked = arm.policy.infer, []

    def spy(seen: Observation, **more: Any) -> Any:
        asked.append((seen, more["grid_index"], more["past"]))
        return infer(seen, **more)

    arm.policy.infer = spy  # type: ignore[method-assign]
    states = arm.play(0).states
    _, grid, past = asked[-1]
    assert grid > 0
    assert list(past) == [grid - 1]
    before = next(s for s in states if s.tick == grid - 1)  # the arm runs at the policy's rate
    np.testing.assert_allclose(past[grid - 1].state, before.position, atol=1e-4)
    now = next(s for s in states if s.tick == grid)
    np.testing.assert_allclose(asked[-1][0].state, now.position, atol=1e-4)


# -- through the real processes ---------------------------------------------------------------------------------


class Deployed:
    """A running `edgevla deploy --sim`."""

    def __init__(self, folder: Path, bundle: Path, robot: str, *more: str) -> None:
        self.log = folder / "log"
        words = ["deploy", str(bundle), "--robot", robot, "--sim", "--log", str(self.log), "--json", *more]
        self._errors = (folder / "stderr.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgevla", *words],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )

    def set_task(self, task: str) -> None:
        """Over the command socket, as the monitor does, once the arm runs."""
        folder = find_run(self.process.pid, lambda: self.process.poll() is None)
        session = read_deployment(folder).session_bytes
        ctx = zmq.Context()
        client = CommandClient(ctx, endpoint(folder, "robot", "commands"), session, "test")
        try:
            self._await("running")
            answer = client.request("set_task", SetTask(task), timeout_s=10)
            assert answer.is_accepted, answer.reason
        except WireError as error:
            pytest.fail(f"{error}\n{self.words()}")
        finally:
            client.close()
            ctx.destroy(linger=0)

    def _await(self, word: str) -> None:
        deadline = time.monotonic() + 90
        while f" {word} " not in self.words():
            assert self.process.poll() is None, self.words()
            assert time.monotonic() < deadline, self.words()
            time.sleep(0.1)

    def summary(self) -> dict[str, Any]:
        said, _ = self.process.communicate(timeout=150)
        assert self.process.returncode == 0, self.words()
        found: dict[str, Any] = json.loads(said)
        assert found["failure"] is None
        return found

    def chunks(self) -> list[dict[str, Any]]:
        return [line for line in entries(self.log / "latest") if line["type"] == "chunk"]

    def words(self) -> str:
        self._errors.flush()
        return Path(self._errors.name).read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        self._errors.close()


def count_inferences(folder: Path, bundle: Path, robot: str, *more: str) -> int:
    """Of a short run; a machine so busy that it had none or one gets a longer one."""
    found = 0
    for attempt, seconds in enumerate((3, 15, 45)):
        place = folder / f"attempt{attempt}"
        place.mkdir()
        deployed = Deployed(place, bundle, robot, "--duration", str(seconds), *more)
        try:
            found = deployed.summary()["inferences"]
        finally:
            deployed.close()
        if found >= 2:
            break
    return found


@pytest.mark.realtime
def test_the_task_can_be_changed_while_a_vla_runs(work: Path, tmp_path: Path) -> None:
    deployed = Deployed(
        tmp_path,
        make_bundle(work, "smolvla"),
        "so101",
        "--duration",
        "8",
        "--task",
        TASKS["follow_cube"].instruction,
    )
    try:
        deployed.set_task(OTHER_TASK)
        assert deployed.summary()["inferences"] >= 2
    finally:
        deployed.close()
    tasks = [chunk["task"] for chunk in deployed.chunks()]
    assert tasks[0] == TASKS["follow_cube"].instruction
    assert tasks[-1] == OTHER_TASK
    assert tasks == sorted(tasks, key=lambda task: task == OTHER_TASK)


@pytest.mark.realtime
@pytest.mark.parametrize(("policy", "share"), [("pi0", 0.6), ("groot", 0.3)])
def test_a_late_vla_is_guided_by_what_the_arm_is_about_to_do(
    policy: str, share: float, work: Path, tmp_path: Path
) -> None:
    """Hardly trained, so every chunk is another one: unguided the arm would jerk where chunks meet.

    share: of the unguided jerk. Pi0's is 0.01 to 0.06 where inference is quick, 0.4 where it is slow.
    """
    bend: dict[str, float] = {}
    for kind in ("async", "rtc"):
        folder = tmp_path / kind
        folder.mkdir()
        words = ["--execution", kind, "--inject-delay-ms", "150", "--duration", "10"]
        deployed = Deployed(folder, make_bundle(work, policy), "so101", *words)
        try:
            bend[kind] = deployed.summary()["seam_jump"]["p50"]
        finally:
            deployed.close()
        guided = [chunk["is_guided"] for chunk in deployed.chunks()]
        assert len(guided) >= 5
        assert all(guided) == (kind == "rtc")
    assert bend["rtc"] < share * bend["async"], bend


@pytest.mark.realtime
def test_a_policy_with_history_runs_in_its_own_process(work: Path, tmp_path: Path) -> None:
    assert count_inferences(tmp_path, make_bundle(work, "diffusion"), "so101") >= 2


# -- other robots -----------------------------------------------------------------------------------------------

ROBOTS = [
    (
        "xvla",
        "so101_bimanual",
        ["action_mode=so101_bimanual", "max_state_dim=20"],
        ["--joint-units", "degrees"],
    ),
    ("groot", "aloha", [], ["--joint-units", "radians"]),
]


def record_still_life(root: Path, robot: str) -> list[str]:
    """A few frames of a robot that sways about the middle of its joints; its cameras' names."""
    profile = load_profile(robot)
    names = [joint.name for joint in profile.joints]
    middle = np.array(
        [50.0 if j.unit == "percent" else 0.5 if j.unit == "unit" else 0.0 for j in profile.joints]
    )
    step = np.array([0.02 if j.unit in ("rad", "unit") else 1.0 for j in profile.joints])
    vector = {"dtype": "float32", "shape": (len(names),), "names": names}
    cameras = [camera.name for camera in profile.cameras]
    pictures = {
        f"observation.images.{c}": {"dtype": "image", "shape": (48, 64, 3), "names": None} for c in cameras
    }
    features = {"observation.state": vector, "action": dict(vector), **pictures}
    rng = np.random.default_rng(0)
    with DatasetWriter(root, fps=30, features=features, robot_type=robot) as writer:
        for k in range(20):
            sway = middle + step * np.sin(0.3 * k + np.arange(len(names)))
            row: dict[str, Any] = {
                "observation.state": sway.astype(np.float32),
                "action": sway.astype(np.float32),
            }
            row |= {name: rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for name in pictures}
            writer.add_frame(row, "sway")
        writer.save_episode()
    return cameras


def write_pictures(folder: Path) -> Path:
    import cv2

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):  # as colourful as what was recorded: a dark or plain picture would be refused
        coarse = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), cv2.resize(coarse, (640, 480)))
    return folder


@pytest.mark.realtime
@pytest.mark.parametrize(("policy", "robot", "settings", "units"), ROBOTS, ids=[r[1] for r in ROBOTS])
def test_a_policy_runs_on_another_robot(
    policy: str, robot: str, settings: list[str], units: list[str], work: Path, tmp_path: Path
) -> None:
    """Two arms, four buses or two, real processes; every camera is a folder of pictures."""
    cameras = record_still_life(tmp_path / "data", robot)
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    run_verb(train_words(policy, tmp_path / "data", run, work / BACKBONES[policy], *FEW, settings=settings))
    sizes = [word for camera in cameras for word in ("--camera-size", f"{camera}=640x480")]
    run_verb(export_words(policy, run, bundle, *units, *sizes))
    names = [joint.name for joint in load_profile(robot).joints]
    assert list(load_bundle(bundle).manifest.action.names) == names
    pictures = write_pictures(tmp_path / "pictures")
    sources = [word for camera in cameras for word in ("--camera", f"{camera}={pictures}")]
    assert count_inferences(tmp_path, bundle, robot, *sources) >= 2


# -- what cannot drive joints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ee6d", "agibot_ee6d"])
def test_end_effector_poses_are_refused(
    mode: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty pose channels look like any other vector: only the action space tells."""
    vector = {"dtype": "float32", "shape": (20,), "names": [f"pose{i}" for i in range(20)]}
    camera = {"dtype": "image", "shape": (48, 64, 3), "names": None}
    features = {"observation.state": vector, "action": dict(vector), "observation.images.front": camera}
    with DatasetWriter(tmp_path / "data", fps=30, features=features) as writer:
        for k in range(8):
            row = np.linspace(0, 1, 20, dtype=np.float32) * (k + 1) / 8
            picture = np.full((48, 64, 3), k, np.uint8)
            writer.add_frame(
                {"observation.state": row, "action": row, "observation.images.front": picture}, "reach"
            )
        writer.save_episode()
    settings = [f"action_mode={mode}", "max_state_dim=20"]
    run = tmp_path / "run"
    run_verb(train_words("xvla", tmp_path / "data", run, work / "florence", *FEW, settings=settings))
    capsys.readouterr()
    assert main([*export_words("xvla", run, tmp_path / "bundle"), "--joint-units", "degrees"]) == 2
    said = capsys.readouterr().err
    assert "end-effector poses" in said
    assert mode in said
    assert not (tmp_path / "bundle").exists()
    assert main(["inspect", str(run)]) == 1
    assert "refused: the actions are end-effector poses" in capsys.readouterr().out


# -- recipes ----------------------------------------------------------------------------------------------------


def trained_names(run: Path, start: dict[str, torch.Tensor]) -> set[str]:
    """Weights that a run changed."""
    from safetensors.torch import load_file

    now = load_file(str(run / "checkpoints/last/pretrained_model/model.safetensors"))
    assert now.keys() == start.keys()
    return {name for name, tensor in now.items() if not torch.equal(tensor, start[name])}


@pytest.mark.parametrize(
    ("recipe", "more", "expected", "untouched"),
    [
        ("xvla_soft_prompts", (), ["soft_prompt"], ["vlm.", "action_", "blocks"]),
        ("xvla_two_phase", (), ["soft_prompt", "action_"], ["vlm.", "blocks"]),
        ("xvla", (), ["soft_prompt", "action_", "blocks", "vlm."], []),
    ],
)
def test_a_recipe_trains_what_it_says(
    recipe: str, more: tuple[str, ...], expected: list[str], untouched: list[str], work: Path, tmp_path: Path
) -> None:
    """From one checkpoint. Two-phase begins with prompts and heads; its second phase starts after 1000 steps."""
    from safetensors.torch import load_file

    make_bundle(work, "xvla")
    checkpoint = work / "runs/xvla/checkpoints/last/pretrained_model"
    words = ["train", "--policy", "xvla", "--recipe", recipe, "--dataset", str(work / "data"), *FEW, *more]
    words += [
        "--from",
        str(checkpoint),
        "--output",
        str(tmp_path / "run"),
        "--device",
        "cpu",
        "--threads",
        "1",
    ]
    run_verb([*words, "--cache", "ram", "--save-freq", "0", "--no-tensorboard", "--lr", "1e-2"])
    changed = trained_names(tmp_path / "run", load_file(str(checkpoint / "model.safetensors")))
    for part in expected:
        assert any(part in name for name in changed), f"{part} did not learn"
    for part in untouched:
        assert not [name for name in changed if part in name]

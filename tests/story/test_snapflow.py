"""One denoise step out of several, by the verbs that a person types: train, the second phase, resume, export.

The teacher is also trained for future states, which the second phase keeps: one bundle is both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgevla.bundle import load_bundle
from edgevla.cli import main
from edgevla.errors import UsageError
from edgevla.launch.deployment import DeployOptions, chosen_execution
from edgevla.manifest import Manifest
from edgevla.robots.trials.demonstrate import DemonstrationPlan, demonstrate
from edgevla.runner import BundlePolicy
from edgevla.seam_methods import seam_words
from edgevla.train.checkpoint import load_policy
from edgevla.train.tiny import write_tiny_backbone
from edgevla.types import Observation

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves neighbours unimportable

from every_policy import BACKBONES, export_words, run_verb, train_words

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
POLICY, CHUNK, OFFSET = "smolvla", 8, 3
QUICK = ["--steps", "1", "--batch-size", "2", "--device", "cpu", "--threads", "1", "--cache", "ram"]
QUICK += ["--no-tensorboard"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations, a teacher, its student after a resumed second phase, and the student's bundle."""
    root = tmp_path_factory.mktemp("snapflow")
    demonstrate(root / "data", DemonstrationPlan("follow_cube", 1, n_steps=20))
    torch.manual_seed(0)
    write_tiny_backbone(root / "vlm", BACKBONES[POLICY], width=16, depth=2)
    settings = [f"chunk_size={CHUNK}", f"n_action_steps={CHUNK}", f"future_state_max_offset={OFFSET}"]
    words = train_words(POLICY, root / "data", root / "teacher", root / "vlm", settings=settings)
    run_verb([*words, "--steps", "1", "--batch-size", "2"])
    run_verb(phase(root, "teacher", "student"))
    run_verb(["train", "--resume", str(root / "student"), "--steps", "2"])
    run_verb([*export_words(POLICY, root / "student", root / "bundle"), "--samples", "4"])
    return root


def phase(root: Path, start: str, output: str) -> list[str]:
    words = ["train", "--from", str(root / start), "--recipe", "snapflow", "--dataset", str(root / "data")]
    return [*words, *QUICK, "--output", str(root / output)]


def test_the_bundle_runs_in_one_step_at_parity(work: Path) -> None:
    teacher, student = load_policy(work / "teacher"), load_policy(work / "student")
    assert teacher.schedule is not None
    assert student.schedule is not None
    assert (teacher.schedule.n_steps, student.schedule.n_steps) == (10, 1)
    m = load_bundle(work / "bundle").manifest
    assert m.schedule is not None
    assert (m.schedule.n_steps, m.schedule.n_steps_allowed) == (1, (1, 1))
    assert m.parity is not None
    assert m.parity.passed
    policy = BundlePolicy(load_bundle(work / "bundle"))
    ran = []
    denoise = policy.graphs["denoise"].run
    policy.graphs["denoise"].run = lambda inputs: ran.append(inputs) or denoise(inputs)  # type: ignore[method-assign]
    seen = Observation(
        np.zeros(6, np.float32), {n: np.zeros(m.features[n].shape, np.uint8) for n in m.cameras}, task="go"
    )
    assert np.isfinite(policy.infer(seen).actions).all()
    (step,) = ran
    assert (float(step["tau"][0]), float(step["tau_next"][0])) == (1.0, 0.0)


def test_what_it_was_trained_for_is_said_and_guidance_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(work / "student")]) == 0
    said = capsys.readouterr().out
    assert f"trained with  future_state_max_offset {OFFSET}, snapflow_weight 0.1 (edgevla-policy.json" in said
    m = load_bundle(work / "bundle").manifest
    assert (m.future_offset, m.execution.default, m.execution.allowed) == (
        OFFSET,
        {"kind": "async"},
        ("sync", "async"),
    )
    assert main(["inspect", str(work / "bundle")]) == 0
    said = capsys.readouterr().out
    assert (
        f"a new chunk begins where the arm will be when it comes, up to {OFFSET} steps ahead (delays to 100"
        in said
    )
    assert "future state (--execution async); not " in seam_words(m)
    with pytest.raises(UsageError, match="cannot run 'rtc'; it allows sync, async: its chunks begin where"):
        chosen_execution(m, DeployOptions("so101", execution={"kind": "rtc"}))


def test_a_bundle_of_one_step_says_what_it_lacks_for_rtc(work: Path) -> None:
    told = json.loads((work / "bundle/manifest.json").read_text())
    del told["future_offset"]
    words = seam_words(Manifest.from_json(told))
    assert "guided rtc (it corrects many small denoise steps" in words
    assert "trained rtc (train with --set rtc_training_max_delay=N)" in words


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--from", "student"], "denoises in one step already (snapflow_weight=0.1)"),
        (["--from", "student", "--set", "snapflow_weight=0"], "snapflow_weight=0 would not undo it"),
        (["--from", "teacher", "--lora", "2"], "LoRA's files hold factors alone"),
        (
            ["--policy", "act"],
            "sets snapflow_weight, which act does not have; it is for smolvla, pi0, pi05, xvla",
        ),
        (["--policy", "diffusion"], "sets snapflow_weight, which diffusion does not have"),
        (["--policy", "pi0", "--from", "teacher"], "holds a policy of type smolvla, but --policy says pi0"),
        (
            ["--policy", "smolvla", "--from", "vlm"],
            "a second phase, in which a trained policy distils itself",
        ),
        (["--policy", "smolvla"], "a second phase, in which a trained policy distils itself"),
        (["--recipe", "pi05_fast", "--from", "teacher"], "but the recipe is for pi05"),
        (["--from", "vlm"], "no checkpoint lies there that says its policy; correct it, or say --policy"),
    ],
)
def test_what_cannot_be_a_second_phase_is_one_sentence(
    words: list[str], says: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = [str(work / w) if w in ("student", "teacher", "vlm") else w for w in words]
    base = ["train", "--dataset", str(work / "data"), *QUICK, "--output", str(tmp_path / "run")]
    base += [] if "--recipe" in said else ["--recipe", "snapflow"]
    assert main([*base, *said]) in (1, 2)
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error

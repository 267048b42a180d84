"""A policy trained for committed actions, by the verbs that a person types, and by inference from its bundle."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgevla.bundle import load_bundle
from edgevla.cli import main
from edgevla.errors import BundleError
from edgevla.predictor import RtcInputs
from edgevla.robots.trials.demonstrate import DemonstrationPlan, demonstrate
from edgevla.runner import BundlePolicy
from edgevla.train.checkpoint import load_policy
from edgevla.train.tiny import write_tiny_backbone
from edgevla.types import Observation

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves neighbours unimportable

from every_policy import BACKBONES, export_words, run_verb, train_words

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
POLICY, LONGEST, CHUNK = "smolvla", 3, 8


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations, a backbone, a run that was resumed, and its bundle."""
    root = tmp_path_factory.mktemp("trained")
    demonstrate(root / "data", DemonstrationPlan("follow_cube", 1, n_steps=20))
    torch.manual_seed(0)
    write_tiny_backbone(root / "vlm", BACKBONES[POLICY], width=16, depth=2)
    settings = [f"rtc_training_max_delay={LONGEST}", f"chunk_size={CHUNK}", f"n_action_steps={CHUNK}"]
    words = train_words(
        POLICY,
        root / "data",
        root / "run",
        root / "vlm",
        "--steps",
        "1",
        "--batch-size",
        "2",
        settings=settings,
    )
    run_verb(words)
    run_verb(["train", "--resume", str(root / "run"), "--steps", "2"])
    run_verb([*export_words(POLICY, root / "run", root / "bundle"), "--samples", "4"])
    return root


def test_resume_keeps_it_and_the_bundle_says_it(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = load_policy(work / "run")
    assert policy.config.trained_delay == LONGEST
    config = (work / "run/checkpoints/last/pretrained_model/config.json").read_text()
    assert "rtc_training_max_delay" not in config, "LeRobot would refuse it"
    manifest = load_bundle(work / "bundle").manifest
    assert manifest.rtc is not None
    assert (manifest.rtc.mode, manifest.rtc.max_delay) == ("trained", LONGEST)
    assert manifest.parity is not None
    assert manifest.parity.passed
    assert main(["inspect", str(work / "run")]) == 0
    assert f"trained with  rtc_training_max_delay {LONGEST} (edgevla-policy.json" in capsys.readouterr().out
    assert main(["inspect", str(work / "bundle")]) == 0
    said = capsys.readouterr().out
    assert "trained: a new chunk goes on from up to 3 committed actions (delays to 100 ms)" in said


def test_lora_on_it_keeps_it_and_zero_switches_it_off(work: Path) -> None:
    words = ["--lora", "2", "--merge-lora", "--steps", "1", "--batch-size", "2", "--from", str(work / "run")]
    base = ["train", "--policy", POLICY, "--dataset", str(work / "data"), "--device", "cpu", "--threads", "1"]
    run_verb([*base, *words, "--output", str(work / "lora"), "--no-tensorboard"])
    for folder in ("lora", "lora/merged"):
        assert load_policy(work / folder).config.trained_delay == LONGEST
    off = ["--set", "rtc_training_max_delay=0", "--from", str(work / "lora/merged"), "--steps", "1"]
    run_verb([*base, *off, "--batch-size", "2", "--output", str(work / "off"), "--no-tensorboard"])
    assert load_policy(work / "off").rtc_kind == "guided"


def test_the_bundle_goes_on_from_what_is_committed_and_from_nothing_else(work: Path) -> None:
    policy = BundlePolicy(load_bundle(work / "bundle"))
    m = policy.manifest
    seen = Observation(
        np.zeros(6, np.float32), {n: np.zeros(m.features[n].shape, np.uint8) for n in m.cameras}, task="go"
    )
    rng = np.random.default_rng(0)
    plain = policy.infer(seen, chunk_seq=1).actions
    committed = plain + rng.normal(0, 0.5, plain.shape).astype(np.float32)
    weights = (np.arange(CHUNK) < 2).astype(np.float32)

    def infer(committed: np.ndarray, weights: np.ndarray) -> Any:
        return policy.infer(seen, chunk_seq=1, rtc=RtcInputs(committed, weights)).actions

    goes_on = infer(committed, weights)
    np.testing.assert_allclose(goes_on[:2], committed[:2], atol=1e-3)
    assert not np.array_equal(goes_on[2:], plain[2:])
    np.testing.assert_array_equal(infer(committed, weights * 0), plain)
    np.testing.assert_array_equal(infer(committed[:2], weights), goes_on, err_msg="the rest is not looked at")
    with pytest.raises(BundleError, match="not finite"):
        infer(committed * np.nan, weights)
    with pytest.raises(BundleError, match="trained for at most 3"):
        infer(committed, np.ones(CHUNK, np.float32))
    with pytest.raises(BundleError, match="1 for the first actions and 0 for the rest"):
        infer(committed, np.linspace(1, 0, CHUNK, dtype=np.float32))


def test_a_manifest_that_contradicts_itself_is_refused(work: Path, tmp_path: Path) -> None:
    path = work / "bundle/manifest.json"
    told = json.loads(path.read_text())
    for rtc, sentence in (({"max_delay": 8}, "from 1 to 7"), ({"mode": "guided"}, "only 'trained' has one")):
        (tmp_path / "manifest.json").write_text(json.dumps({**told, "rtc": {**told["rtc"], **rtc}}))
        with pytest.raises(BundleError, match=sentence):
            load_bundle(tmp_path)

"""Every policy is fine-tuned from its folder on another dataset by one command: its features, its statistics."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from edgevla.cli import main
from edgevla.dataset import DatasetWriter, open_dataset
from edgevla.train.checkpoint import load_policy
from edgevla.train.policies.vla import FlowVla
from edgevla.train.progress import read_metrics

SHARED = Path(__file__).parents[1] / "fixtures"

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:the prompt has about"),
]

HALF_PROMPTS = ("--set", "optimizer_soft_prompt_lr_scale=0.5")
CASES = {
    "act": [],
    "smolvla": ["--camera", "top=front"],
    "pi0": ["--camera", "base=front", "--camera", "left_wrist=wrist", "--camera", "right_wrist=none"],
    "pi05": ["--camera", "base=front", "--camera", "left_wrist=none", "--camera", "right_wrist=wrist"],
    "pi05_fast": ["--camera", "base=front", "--camera", "left_wrist=none", "--camera", "right_wrist=none"],
    "xvla": ["--camera", "image=front", "--camera", "image2=wrist", "--domain-id", "1", *HALF_PROMPTS],
    "groot": [],
}


@pytest.mark.parametrize("policy", CASES)
def test_one_command_fine_tunes_any_policy(policy: str, recorded: str, tmp_path: Path) -> None:
    golden = SHARED / "goldens" / policy.removesuffix("_fast") / "checkpoint"
    words = ["train", "--policy", policy, "--dataset", recorded, "--episodes", "0:1", "--from", str(golden)]
    words += ["--batch-size", "1", "--steps", "1", "--device", "cpu", "--threads", "1", "--cache", "none"]
    assert main([*words, *CASES[policy], "--no-tensorboard", "--output", str(tmp_path)]) == 0
    assert math.isfinite(read_metrics(tmp_path)[0]["loss"])

    tuned = load_policy(tmp_path / "checkpoints" / "last")
    assert tuned.config.action_dim == tuned.config.state_dim == 6
    stored = [s.state for s in (*tuned.processors.pre, *tuned.processors.post) if s.state]
    expected = open_dataset(recorded, [0]).true_stats["action"]["max"]
    for state in stored:
        np.testing.assert_allclose(state["action.max"], expected, rtol=1e-6)
    config = json.loads((tmp_path / "checkpoints/last/pretrained_model/config.json").read_text())
    assert config["pretrained_path"] == str(golden)
    if policy == "pi05_fast":
        assert (config["type"], config["num_inference_steps"]) == ("pi05", 5)
    if policy == "xvla":
        assert tuned.processors.step("xvla_add_domain_id").config["domain_id"] == 1  # type: ignore[union-attr]
        groups = json.loads(
            (tmp_path / "checkpoints/last/training_state/optimizer_param_groups.json").read_text()
        )
        rates = {g["name"]: g["initial_lr"] for g in groups}
        assert rates == pytest.approx({"vlm": 1e-5, "soft_prompts": 0.5e-4, "other": 1e-4})


def test_samples_of_several_domains_train_the_rows_of_their_own(
    recorded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`domain_feature_key` wins over the pipeline's domain 0; here every episode is a domain."""
    golden = SHARED / "goldens" / "xvla" / "checkpoint"
    words = ["train", "--policy", "xvla", "--dataset", recorded, "--from", str(golden)]
    words += ["--camera", "image=front", "--camera", "image2=wrist", "--batch-size", "4", "--device", "cpu"]
    words += ["--threads", "1", "--cache", "none", "--no-tensorboard", "--warmup", "1"]
    keyed = [*words, "--steps", "2", "--set", "domain_feature_key=episode_index"]
    assert main([*keyed, "--episodes", "1:2", "--output", str(tmp_path / "run")]) == 0
    start, tuned = (load_policy(folder) for folder in (golden, tmp_path / "run/checkpoints/last"))
    before, after = start.state_dict(), tuned.state_dict()
    changed = {
        row
        for name in before
        if "soft_prompt_hub" in name or "action_decoder" in name
        for row in range(len(before[name]))
        if not torch.equal(before[name][row], after[name][row])
    }
    assert changed == {1}
    assert tuned.config.to_json()["domain_feature_key"] == "episode_index"

    too_many = [*words, "--steps", "1", "--set", "domain_feature_key=frame_index"]
    assert main([*too_many, "--output", str(tmp_path / "other")]) == 1
    n = start.config.to_json()["num_domains"]
    assert (
        f"feature 'frame_index' of {recorded} is {n} in episode 0; the policy has domains 0 to {n - 1}"
        in capsys.readouterr().err
    )


def test_a_domain_that_the_policy_does_not_have_is_refused(
    recorded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start"
    shutil.copytree(SHARED / "goldens" / "xvla" / "checkpoint", start)
    words = ["train", "--policy", "xvla", "--dataset", recorded, "--from", str(start), "--steps", "1"]
    words += ["--camera", "image=front", "--camera", "image2=wrist", "--output", str(tmp_path / "run")]
    assert main([*words, "--domain-id", "99"]) == 2
    assert "--domain-id 99: the policy has domains 0 to 3" in capsys.readouterr().err
    pipeline = start / "policy_preprocessor.json"
    data = json.loads(pipeline.read_text())
    next(s for s in data["steps"] if s["registry_name"] == "xvla_add_domain_id")["config"]["domain_id"] = 4
    pipeline.chmod(0o644)
    pipeline.write_text(json.dumps(data))
    assert main(words) == 1
    assert "domain_id is 4; the policy has domains 0 to 3" in capsys.readouterr().err


@pytest.mark.parametrize("has_steps", [True, False], ids=["0.6", "0.4"])
def test_relative_actions_are_normalised_by_what_they_are(
    has_steps: bool, recorded: str, tmp_path: Path
) -> None:
    """Switched on at fine-tuning: names from the dataset, statistics of the distances from the state."""
    start, run = tmp_path / "start", tmp_path / "run"
    shutil.copytree(SHARED / "goldens" / "pi0" / "checkpoint", start)
    if not has_steps:  # pipelines of LeRobot 0.4
        for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
            data = json.loads((start / name).read_text())
            data["steps"] = [s for s in data["steps"] if "_actions_" not in s["registry_name"]]
            (start / name).chmod(0o644)
            (start / name).write_text(json.dumps(data))
    words = ["train", "--policy", "pi0", "--dataset", recorded, "--from", str(start), *CASES["pi0"]]
    words += ["--set", "use_relative_actions=true", "--set", 'relative_exclude_joints=["JOINT_5"]']
    words += ["--batch-size", "1", "--steps", "1", "--device", "cpu", "--threads", "1", "--cache", "none"]
    assert main([*words, "--no-tensorboard", "--output", str(run)]) == 0
    tuned = load_policy(run / "checkpoints" / "last")
    assert isinstance(tuned, FlowVla)
    assert tuned.relative is not None
    assert tuned.relative.tolist() == [1, 1, 1, 1, 1, 0]
    dataset = open_dataset(recorded)
    actions, states = (np.asarray(dataset.columns[k]) for k in ("action", "observation.state"))
    mask = np.array([1, 1, 1, 1, 1, 0], np.float32)
    far = [
        actions[j] - states[i] * mask
        for episode in dataset.episodes
        for i in range(episode.from_index, episode.to_index)
        for j in range(i, min(i + tuned.config.chunk_size, episode.to_index))
    ]
    for step in (*tuned.processors.pre, *tuned.processors.post):
        if step.state:
            np.testing.assert_allclose(step.state["action.mean"], np.mean(far, axis=0), rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(step.state["action.max"], np.max(far, axis=0), rtol=1e-5)


def test_a_camera_that_groot_saw_is_missed_by_an_export_until_it_is_fine_tuned_without(
    recorded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = SHARED / "goldens" / "groot" / "checkpoint"
    out = [
        "-o",
        str(tmp_path / "bundle"),
        "--camera",
        "wrist=none",
        "--joint-units",
        "degrees",
        "--fps",
        "30",
    ]
    assert main(["export", str(golden), *out]) == 1
    assert "'observation.images.wrist' and acts otherwise without it" in capsys.readouterr().err
    words = ["train", "--policy", "groot", "--dataset", recorded, "--from", str(golden)]
    words += [
        "--camera",
        "wrist=none",
        "--batch-size",
        "1",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--threads",
        "1",
    ]
    assert main([*words, "--cache", "none", "--no-tensorboard", "--output", str(tmp_path / "run")]) == 0
    tuned = tmp_path / "run/checkpoints/last"
    assert list(load_policy(tuned).config.image_features) == ["observation.images.front"]
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "2"]) == 0
    assert main(["export", str(tuned), "-o", str(tmp_path / "bundle")]) == 0


def test_a_policy_without_domains_refuses_one(
    recorded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = SHARED / "goldens" / "act" / "checkpoint"
    words = ["train", "--policy", "act", "--dataset", recorded, "--from", str(golden), "--domain-id", "1"]
    assert main([*words, "--output", str(tmp_path / "run"), "--device", "cpu"]) == 2
    assert "act has no domains" in capsys.readouterr().err


def test_another_policys_folder_is_refused(
    recorded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = SHARED / "goldens" / "pi0" / "checkpoint"
    words = ["train", "--policy", "act", "--dataset", recorded, "--from", str(golden), "--device", "cpu"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 2
    assert "holds a policy of type pi0" in capsys.readouterr().err


def test_a_setting_that_reshapes_a_trained_network_is_named(
    recorded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--policy", "xvla", "--dataset", recorded, *CASES["xvla"][:4], "--steps", "1"]
    words += ["--from", str(SHARED / "goldens" / "xvla" / "checkpoint"), "--output", str(tmp_path)]
    assert main([*words, "--set", "hidden_size=48"]) == 2
    said = capsys.readouterr().err
    assert "this run sets hidden_size" in said
    assert "(4, 320), expected (4, 480)" in said
    assert len(said.splitlines()[-1]) < 1000


@pytest.mark.parametrize("policy", ["act", "diffusion"])
def test_a_dataset_of_another_arm_is_named_where_the_weights_cannot_follow(
    policy: str, recorded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = SHARED / "goldens" / policy / "checkpoint"
    features = json.loads((start / "config.json").read_text())
    n_joints = features["output_features"]["action"]["shape"][0] - 1
    joints = {"dtype": "float32", "shape": (n_joints,), "names": [f"joint_{i}" for i in range(n_joints)]}
    cameras = {k: f["shape"] for k, f in features["input_features"].items() if f["type"] == "VISUAL"}
    image = {"dtype": "image", "names": ["height", "width", "channels"]}
    described = {"observation.state": joints, "action": joints}
    described |= {name: {**image, "shape": (h, w, c)} for name, (c, h, w) in cameras.items()}
    with DatasetWriter(tmp_path / "set", fps=10, features=described) as writer:
        for i in range(20):
            frame = {name: np.full((h, w, c), i, np.uint8) for name, (c, h, w) in cameras.items()}
            values = np.arange(i, i + n_joints, dtype=np.float32)
            writer.add_frame({**frame, "observation.state": values, "action": values}, task="wave")
        writer.save_episode()
    words = ["train", "--policy", policy, "--dataset", str(tmp_path / "set"), "--from", str(start)]
    assert main([*words, "--steps", "1", "--output", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / 'set'} is of another robot than the policy in {start}" in said
    assert f"'action' has shape [{n_joints}] and was trained with [{n_joints + 1}]" in said


def test_a_damaged_folder_is_not_blamed_on_the_recipe_s_settings(
    recorded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ACT's own recipe sets a field of its config."""
    start = tmp_path / "start"
    shutil.copytree(SHARED / "goldens" / "act" / "checkpoint", start)
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").chmod(0o644)
    (start / "config.json").write_text(json.dumps({**config, "dim_model": 48}))
    words = ["train", "--policy", "act", "--dataset", recorded, "--from", str(start), "--steps", "1"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert f"{start}/model.safetensors: action_head.weight is (6, 32), the config says (6, 48)" in said

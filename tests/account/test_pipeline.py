"""The interpreter of saved pipelines gives what LeRobot's own pipelines gave, wherever that was recorded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgevla.errors import CheckpointError
from edgevla.train.pipeline import TOKEN_MASK, TOKENS, SavedPipeline

GOLDENS = Path(__file__).parents[1] / "fixtures" / "goldens"
POLICIES = ["act", "diffusion", "smolvla", "pi0", "pi05", "xvla", "groot"]
WORDS = {
    "tokens": TOKENS,
    "token_mask": TOKEN_MASK,
    "eagle_attention_mask": "eagle_attention_mask",
}


def pipeline_of(policy: str) -> SavedPipeline:
    folder = GOLDENS / policy / "checkpoint"
    tokenizer = folder / "tokenizer"
    return SavedPipeline(folder, tokenizer if tokenizer.is_dir() else None)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_the_network_gets_is_what_lerobot_recorded(policy: str) -> None:
    cases = load_file(GOLDENS / policy / "cases.safetensors")
    task = (json.loads((GOLDENS / policy / "cases.json").read_text()).get("tasks") or [""])[0]
    start = "steps/00" if policy == "diffusion" else "infer"
    raw = {k.removeprefix(f"{start}/obs/"): v for k, v in cases.items() if k.startswith(f"{start}/obs/")}
    images = {k: v for k, v in raw.items() if v.ndim == 3}
    found = pipeline_of(policy).before(images, {k: v for k, v in raw.items() if v.ndim == 1}, task)
    recorded = {k.removeprefix(f"{start}/pre/"): v for k, v in cases.items() if k.startswith(f"{start}/pre/")}
    assert recorded
    for key, value in recorded.items():
        ours = found[WORDS.get(key, key)]
        assert ours.shape == value.shape, key
        if value.dtype.kind == "f":
            np.testing.assert_allclose(ours, value, rtol=1e-5, atol=2e-6, err_msg=key)
        else:
            np.testing.assert_array_equal(ours, value, err_msg=key)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_the_robot_gets_is_what_lerobot_recorded(policy: str) -> None:
    cases = load_file(GOLDENS / policy / "cases.safetensors")
    start = "query/00" if policy == "diffusion" else "infer"
    after = pipeline_of(policy).after(cases[f"{start}/chunk"])
    np.testing.assert_allclose(after, cases[f"{start}/chunk_robot"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_training_gets_is_what_lerobot_recorded(policy: str) -> None:
    cases = load_file(GOLDENS / policy / "cases.safetensors")
    pipeline = pipeline_of(policy)
    for i in range(len(cases["train/action"])):
        state = cases["train/obs/observation.state"][i]
        found = pipeline.before(
            {"observation.images.any": np.zeros((4, 4, 3), np.uint8)} if policy == "groot" else {},
            {"observation.state": state[-1] if state.ndim == 2 else state},
            "task",
            cases["train/action"][i : i + 1],
        )
        np.testing.assert_allclose(found["action"][0], cases["train/pre/action"][i], rtol=1e-5, atol=2e-6)


def test_a_step_that_it_does_not_know_is_named(tmp_path: Path) -> None:
    for name in ("policy_preprocessor", "policy_postprocessor"):
        (tmp_path / f"{name}.json").write_text('{"steps": [{"registry_name": "made_up"}]}')
    with pytest.raises(CheckpointError, match="'made_up'"):
        SavedPipeline(tmp_path)

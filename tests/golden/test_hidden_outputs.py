"""Outputs that fixtures of others record and none of ours does, against numpy; and what nobody understands is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_harness import DEFAULT, Adapter, Fixture, compare, find_fixtures, open_adapter
from safetensors.torch import save_file

from edgevla.train.checkpoint import load_policy, save_policy
from edgevla.train.fresh import fresh_config
from edgevla.train.policies import policy_class
from edgevla.train.policies.base import Policy
from edgevla.train.tiny import write_tiny_backbone

SIZE = 64
CAMERA = "observation.images.front"
TASK = "Pick up the cube."


def tiny(policy: str, folder: Path, n_state: int, n_action: int, **settings: Any) -> Policy:
    """Fresh, on a tiny backbone, with statistics that no axis shares with another."""
    cls = policy_class(policy)
    torch.manual_seed(0)
    backbone = write_tiny_backbone(folder / "backbone", cls.backbone_kind or "", width=32, depth=2)
    features = {
        CAMERA: {"dtype": "image", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": [n_state]},
        "action": {"dtype": "float32", "shape": [n_action]},
    }
    config = fresh_config(cls.Config, features, {**cls.tiny, **settings})
    stats = {n: moments(k) for n, k in (("observation.state", n_state), ("action", n_action))}
    return cls.from_backbone(backbone, config, cls.default_processors(config, stats))


def moments(n: int) -> dict[str, np.ndarray]:
    steps = np.arange(n, dtype=np.float32)
    return {"mean": 0.1 * steps, "std": 1 + 0.2 * steps, "min": -1 - steps, "max": 2 + steps}


def observed(n_state: int, rng: np.random.Generator, *batch: int) -> dict[str, torch.Tensor]:
    frames = rng.integers(0, 256, (*batch, SIZE, SIZE, 3), dtype=np.uint8)
    state = rng.uniform(0.1, 0.9, (*batch, n_state)).astype(np.float32)
    return {CAMERA: torch.from_numpy(frames), "observation.state": torch.from_numpy(state)}


def fixture_of(
    folder: Path,
    checkpoint: Policy | Path,
    inputs: Mapping[str, torch.Tensor],
    expected: Mapping[str, Any],
    **said: Any,
) -> Fixture:
    folder.mkdir(exist_ok=True)
    if isinstance(checkpoint, Path):
        shutil.copytree(checkpoint, folder / "checkpoint")
    else:
        save_policy(checkpoint, folder / "checkpoint")
    outputs = {k: torch.as_tensor(np.asarray(v)) for k, v in expected.items()}
    save_file({**inputs, **outputs}, folder / "cases.safetensors")
    meta = {"inputs": list(inputs), "expected": list(expected), "tasks": [TASK], **said}
    (folder / "cases.json").write_text(json.dumps(meta))
    (fixture,) = find_fixtures(folder)
    return fixture


def passes(fixture: Fixture, folder: Path) -> Adapter:
    adapter = open_adapter(fixture, folder)
    for key in fixture.expected:
        compare(key, adapter.compute(key), fixture.cases[key])
    assert adapter.unread() == []
    return adapter


def test_smolvla_for_aloha_as_the_network_sees_it(tmp_path: Path) -> None:
    """docs/policies.md#aloha-for-pi, on normalised values: joints flipped, a gripper's travel becomes an angle."""
    wide = {"max_state_dim": 16, "max_action_dim": 16, "adapt_to_pi_aloha": True}
    norms = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
    policy = tiny("smolvla", tmp_path, 14, 14, **wide, normalization_mapping=norms)
    rng = np.random.default_rng(0)
    seen, now = observed(14, rng, 2), observed(14, rng)
    action = rng.normal(size=(2, 30, 14)).astype(np.float32)
    inputs = {f"train/obs/{k}": v for k, v in seen.items()} | {f"infer/obs/{k}": v for k, v in now.items()}
    inputs |= {"train/action": torch.from_numpy(action), "train/action_is_pad": torch.zeros(2, 30).bool()}
    stats = moments(14)
    state = (seen["observation.state"].numpy() - stats["mean"]) / (stats["std"] + 1e-8)
    actions = (action - stats["mean"]) / (stats["std"] + 1e-8)
    for joint in (1, 2, 8, 9):
        state[..., joint] *= -1
        actions[..., joint] *= -1
    for joint in (6, 13):
        travel = state[..., joint] * (0.05800 - 0.01844) + 0.01844
        cosine = (0.022**2 + travel**2 - 0.036**2) / (2 * 0.022 * travel)
        state[..., joint] = (np.arcsin(np.clip(cosine, -1, 1)) - 0.4) / (1.5 - 0.4)
        actions[..., joint] = (actions[..., joint] * (1.4910 + 0.6213) - 0.6213 - 0.4) / 1.1
    padded = np.pad(state, ((0, 0), (0, 2)))
    expected = {"train/network_state": padded, "train/network_action": actions}
    passes(fixture_of(tmp_path / "fixture", policy, inputs, expected), tmp_path / "policy")


def test_poses_of_xvla_as_axis_and_angle(tmp_path: Path) -> None:
    """Rotations made by Rodrigues' formula from known axes and angles; the network's own output is recorded as it is."""
    policy = tiny("xvla", tmp_path, 20, 20, action_mode="ee6d", max_state_dim=20, max_action_dim=20)
    rng = np.random.default_rng(1)
    inputs = {f"infer/obs/{k}": v for k, v in observed(20, rng).items()}
    inputs["infer/noise"] = torch.from_numpy(rng.normal(size=(1, 30, 20)).astype(np.float32))
    fixture = fixture_of(tmp_path / "first", policy, inputs, {})
    robot = open_adapter(fixture, tmp_path / "one").compute("infer/chunk_robot")
    expected = {"infer/chunk_robot": robot.numpy(), "infer/axis_angle": pose_of(robot.numpy())}
    passes(fixture_of(tmp_path / "second", policy, inputs, expected), tmp_path / "two")


def pose_of(actions: np.ndarray) -> np.ndarray:
    """(..., 20) -> (..., 7): the angle from the trace, the axis from the eigenvector of the rotation that stays."""
    poses = np.empty((*actions.shape[:-1], 7), np.float32)
    for place in np.ndindex(actions.shape[:-1]):
        row = actions[place].astype(np.float64)
        first = row[3:6] / (np.linalg.norm(row[3:6]) + 1e-6)
        second = row[6:9] - first @ row[6:9] * first
        second /= np.linalg.norm(second) + 1e-6
        turn = np.stack([first, second, np.cross(first, second)], axis=1)
        angle = np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))
        odd = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
        axis = odd / np.linalg.norm(odd)
        poses[place] = [*row[:3], *(angle * axis), 1.0 if row[9] > 0.5 else -1.0]
    return poses


def test_diffusions_loss_over_valid_steps_in_evaluation(tmp_path: Path) -> None:
    source = find_fixtures(DEFAULT / "diffusion")[0]
    inputs = {k: source.cases[k] for k in source.meta["inputs"]}
    inputs["train/action_is_pad"] = inputs["train/action_is_pad"].clone()
    inputs["train/action_is_pad"][0, -3:] = True
    policy: Any = load_policy(source.checkpoint)
    given = {k.removeprefix("train/obs/"): v for k, v in inputs.items() if k.startswith("train/obs/")}
    low, high = (policy.processors.stats["action"][k] for k in ("min", "max"))
    data = 2 * (inputs["train/action"].numpy() - low) / (high - low) - 1
    noise, steps = inputs["train/noise"].numpy(), inputs["train/timesteps"]
    kept = source.cases["alphas_cumprod"].numpy()[steps.numpy()][:, None, None]
    noisy = torch.from_numpy(np.sqrt(kept) * data + np.sqrt(1 - kept) * noise).float()
    with torch.no_grad():
        predicted = policy.unet(noisy, steps, policy.condition(given)).numpy()
    target = noise if policy.config.prediction_type == "epsilon" else data
    valid = ~inputs["train/action_is_pad"].numpy()
    loss = np.float32(((predicted - target) ** 2)[valid].mean())
    said = {"n_queries": source.meta["n_queries"]}
    fixture = fixture_of(
        tmp_path / "fixture", source.checkpoint, inputs, {"train/loss_eval_valid": loss}, **said
    )
    adapter = passes(fixture, tmp_path / "policy")
    assert abs(float(adapter.compute("train/loss_eval")) - float(loss)) > 1e-4, "the padding changes nothing"


def test_a_gradient_that_is_zero_may_hold_rounding_noise_in_proportion_to_the_largest() -> None:
    recorded = torch.tensor([2000.0, 3e-4, 0.0, 1.0])
    other = torch.tensor([2000.0, 1e-4, 2e-4, 1.0])
    compare("train/grad_norms", other, recorded)
    compare("train_v06/grad_norms", other, recorded)
    with pytest.raises(AssertionError, match="off by"):
        compare("train/grad_norms", torch.tensor([2000.0, 3e-4, 0.0, 1.01]), recorded)
    with pytest.raises(AssertionError, match="off by"):
        compare("train/grad_norms", torch.tensor([2.0, 1e-4]), torch.tensor([2.0, 0.0]))


def test_what_the_adapter_does_not_understand_is_named(tmp_path: Path) -> None:
    source = find_fixtures(DEFAULT / "act")[0]
    inputs = {k: source.cases[k] for k in source.meta["inputs"]} | {"train/tempo": torch.zeros(1)}
    said = {"temperature": 0.5, "temporal_ensemble_coeff": 0.01}
    expected = {"infer/chunk": source.cases["infer/chunk"], "infer/mood": np.zeros(1)}
    fixture = fixture_of(tmp_path / "fixture", source.checkpoint, inputs, expected, **said)
    stored = {**fixture.cases, "infer/stranger": torch.zeros(1)}
    save_file(stored, fixture.folder / "cases.safetensors")
    (fixture,) = find_fixtures(fixture.folder)
    adapter = open_adapter(fixture, tmp_path / "policy")
    with pytest.raises(KeyError, match="infer/mood"):
        adapter.compute("infer/mood")
    adapter.compute("infer/chunk")
    assert adapter.unread() == ["cases.json: temperature", "infer/stranger", "train/tempo"]

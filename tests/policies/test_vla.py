"""What SmolVLA, Pi0 and Pi0.5 have in common, on tiny backbones: masks, prefix and step, guidance, folders, training."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from vla_kit import MakeVla, chunk_of, no_guidance, prompt_of, random_batch

from edgevla.errors import CheckpointError
from edgevla.train.checkpoint import load_policy, save_policy
from edgevla.train.nn import flow
from edgevla.train.nn.normalize import Normalizer
from edgevla.train.policies.vla import FlowVla

KINDS = ["smolvla", "pi0", "pi05"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def policy(kind: str, make_vla: MakeVla) -> FlowVla:
    return make_vla(kind)


# -- what counts and what does not ------------------------------------------------------------------------


def test_masked_camera_equals_absent_camera(policy: FlowVla) -> None:
    batch = random_batch(policy)
    masked = chunk_of(policy, batch, camera_present=torch.tensor([[True, False]] * 2))
    policy.set_cameras({}, absent=["observation.images.wrist"])
    without = {k: v for k, v in batch.items() if k != "observation.images.wrist"}
    absent = chunk_of(policy, without)
    torch.testing.assert_close(masked, absent, atol=2e-5, rtol=1e-4)
    policy.set_cameras({})
    assert (chunk_of(policy, batch) - absent).abs().max() > 1e-3, "the camera must matter at all"


def test_cameras_of_a_batch_by_sample(policy: FlowVla) -> None:
    """`camera_present` follows the config's cameras; a masked picture may show anything."""
    batch = {**random_batch(policy), "camera_present": torch.tensor([[True, True], [False, True]])}
    draws = policy.draw(batch, torch.Generator().manual_seed(3))
    loss = policy.loss(batch, draws)[0]
    black = batch["observation.images.top"].clone()
    black[1] = 0
    torch.testing.assert_close(policy.loss({**batch, "observation.images.top": black}, draws)[0], loss)
    black[0] = 0
    assert policy.loss({**batch, "observation.images.top": black}, draws)[0] != loss


def test_first_camera_masked_gives_no_nan(policy: FlowVla) -> None:
    batch = random_batch(policy)
    assert torch.isfinite(chunk_of(policy, batch, camera_present=torch.tensor([[False, True]] * 2))).all()
    assert torch.isfinite(chunk_of(policy, batch, camera_present=torch.tensor([[False, False]] * 2))).all()


def test_padding_length_of_the_prompt_changes_nothing(policy: FlowVla) -> None:
    batch = random_batch(policy)
    longer = {
        "prompt:tokens": torch.nn.functional.pad(batch["tokens"], (0, 11), value=3),
        "prompt:mask": torch.nn.functional.pad(batch["token_mask"], (0, 11)),
    }
    torch.testing.assert_close(
        chunk_of(policy, batch, **longer), chunk_of(policy, batch), atol=2e-5, rtol=1e-4
    )


def test_task_and_state_matter(policy: FlowVla) -> None:
    batch = random_batch(policy)
    base = chunk_of(policy, batch)
    other = prompt_of(policy, ["push the cube", "close it"], batch["observation.state"])
    changed = chunk_of(policy, {**batch, **other})
    assert (changed - base)[0].abs().max() > 1e-4
    torch.testing.assert_close(changed[1], base[1], atol=2e-5, rtol=1e-4)
    moved = {**batch, "observation.state": batch["observation.state"] + 1.5}
    moved |= prompt_of(policy, ["pick the cube", "close it"], moved["observation.state"])
    assert (chunk_of(policy, moved) - base).abs().max() > 1e-4


def test_batch_of_two_equals_two_alone(policy: FlowVla) -> None:
    batch = random_batch(policy)
    together = chunk_of(policy, batch)
    noise = torch.randn(2, *policy.sample_shape, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        for i in range(2):
            values = {**policy.inputs({k: v[i : i + 1] for k, v in batch.items()}), **no_guidance(policy, 1)}
            values["camera_present"] = torch.ones(1, 2, dtype=torch.bool)
            sampler = policy.sampler()
            alone = sampler.solve(sampler.encode(values), values, noise=noise[i : i + 1])
            torch.testing.assert_close(alone[0], together[i], atol=2e-5, rtol=1e-4)


def test_no_camera_at_all_is_an_error(policy: FlowVla) -> None:
    batch = {k: v for k, v in random_batch(policy).items() if "images" not in k}
    with pytest.raises(CheckpointError, match=r"observation\.images\.top"):
        policy.loss(batch, policy.draw(batch))


def test_a_window_of_one_is_the_same_as_none(policy: FlowVla) -> None:
    batch = random_batch(policy)
    windowed = {k: v[:, None] if k.startswith("observation") else v for k, v in batch.items()}
    draws = policy.draw(batch, torch.Generator().manual_seed(3))
    torch.testing.assert_close(policy.loss(windowed, draws)[0], policy.loss(batch, draws)[0])


# -- solver and guidance ----------------------------------------------------------------------------------


def step_values(policy: FlowVla) -> tuple[dict[str, Any], torch.Tensor, dict[str, torch.Tensor]]:
    batch = random_batch(policy)
    with torch.no_grad():
        context = policy.encode(policy.inputs(batch))
    return context, torch.randn(2, *policy.sample_shape), no_guidance(policy, 2)


@torch.no_grad()
def test_zero_weights_are_the_plain_step_bit_for_bit(policy: FlowVla) -> None:
    context, x, rtc = step_values(policy)
    rtc["rtc:committed"].normal_(std=30)
    for tau, tau_next in ((1.0, 0.9), (0.5, 0.4), (0.1, 0.0)):
        times = torch.full((2,), tau), torch.full((2,), tau_next)
        assert torch.equal(policy.denoise(context, x, *times, rtc), policy.denoise(context, x, *times, {}))


@torch.no_grad()
def test_full_weights_reach_the_committed_actions(policy: FlowVla) -> None:
    batch = random_batch(policy)
    committed = policy.decode(torch.randn(2, *policy.sample_shape), {"state": batch["observation.state"]})
    rtc = {**no_guidance(policy, 2), "rtc:committed": committed}
    plain = policy.decode(chunk_of(policy, batch, **rtc), {})
    rtc["rtc:weights"] = torch.ones(2, policy.config.chunk_size)
    guided = policy.decode(chunk_of(policy, batch, **rtc), {})
    assert (guided - committed).abs().mean() < 0.5 * (plain - committed).abs().mean()


@torch.no_grad()
def test_time_rows_given_or_computed_are_the_same(policy: FlowVla) -> None:
    context, x, _ = step_values(policy)
    tau = torch.full((2,), 0.3)
    rows = {f"time:{k}": v for k, v in policy.time(tau).items()}
    assert torch.equal(policy.predict(context, x, tau, rows), policy.predict(context, x, tau, {}))
    assert not torch.equal(policy.predict(context, x, tau, {}), policy.predict(context, x, tau + 0.1, {}))


@torch.no_grad()
def test_decode_is_undone_by_to_network(policy: FlowVla) -> None:
    x = torch.randn(2, *policy.sample_shape)
    x[..., policy.config.action_dim :] = 0
    back = policy.to_network(policy.decode(x, {}), None)
    torch.testing.assert_close(back, x, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_joint_that_never_moved_does_not_spoil_guidance(policy: FlowVla) -> None:
    """Its command differs from the only value it had by a limit or a rounding, which has no measure there."""
    dim, stats = 1, {k: np.ones(policy.config.action_dim, np.float32) for k in ("mean", "std", "q01", "q99")}
    stats["q01"], stats["std"] = stats["q01"] - 2, stats["std"].copy()
    stats["std"][dim], stats["q01"][dim] = 0, 1
    mode = policy.normalizers.forwards["action"].mode
    moved = Normalizer(mode, stats, 1e-8, feature="action", is_image=False)  # type: ignore[arg-type]
    policy.normalizers.forwards["action"] = moved
    command = torch.ones(2, policy.config.chunk_size, policy.config.action_dim)
    command[..., dim] += 0.01
    wanted = policy.to_network(command, None, is_command=True)
    assert wanted.abs().max() <= 1
    taught = policy.to_network(torch.ones_like(command), None)
    torch.testing.assert_close(wanted[..., dim], taught[..., dim])


def test_draws_follow_the_generator_and_the_time_law(policy: FlowVla) -> None:
    batch = random_batch(policy)
    one, two = (policy.draw(batch, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert one["noise"].shape == (2, *policy.sample_shape)
    times = policy.draw_time(20000, torch.Generator().manual_seed(0))
    assert float(times.min()) >= 0.001
    assert float(times.max()) <= 1.0
    assert float(times.mean()) == pytest.approx(0.6 * 0.999 + 0.001, abs=0.005)  # Beta(1.5, 1) has mean 0.6


# -- loss -------------------------------------------------------------------------------------------------


def test_loss_ignores_padded_dimensions_and_is_what_the_parts_say(policy: FlowVla) -> None:
    batch = random_batch(policy)
    draws = policy.draw(batch, torch.Generator().manual_seed(3))
    loss, parts = policy.loss(batch, draws)
    error = parts["elementwise_loss"][..., : policy.config.action_dim]
    assert error.shape[-1] < parts["elementwise_loss"].shape[-1]
    valid = (
        ~batch["action_is_pad"]
        if policy.policy_type == "smolvla"
        else torch.ones_like(batch["action_is_pad"])
    )
    expected = (error * valid[..., None]).sum() / (valid.sum() * error.shape[-1])
    torch.testing.assert_close(loss.detach(), expected)
    assert loss.requires_grad
    assert not parts["loss"].requires_grad


def test_padded_steps_count_in_pi_only(policy: FlowVla) -> None:
    batch = random_batch(policy)
    draws = policy.draw(batch, torch.Generator().manual_seed(3))
    flipped = {**batch, "action_is_pad": ~batch["action_is_pad"]}
    is_same = torch.equal(policy.loss(batch, draws)[0], policy.loss(flipped, draws)[0])
    assert is_same == (policy.policy_type != "smolvla")


def test_overfits_one_batch(kind: str, make_vla: MakeVla) -> None:
    """From a random backbone to a tenth of the first loss, with the noise and times of every step fixed."""
    policy = make_vla(kind, train_expert_only=False, freeze_vision_encoder=False).train()
    batch = random_batch(policy)
    draws = policy.draw(batch, torch.Generator().manual_seed(3))
    optimizer = torch.optim.AdamW(policy.optimizer_groups(), lr=2e-3)
    losses = []
    for _ in range(60):
        loss, _parts = policy.loss(batch, draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0], losses[::10]


def test_autocast_trains_in_bfloat16(policy: FlowVla) -> None:
    """Norms, softmax, positions and time stay float32 inside, so the loss stays close."""
    batch = random_batch(policy)
    draws = policy.draw(batch, torch.Generator().manual_seed(3))
    exact = policy.loss(batch, draws)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = policy.train().loss(batch, draws)[0]
    assert loss.dtype == torch.float32
    assert float((loss - exact).detach().abs() / exact.detach()) < 0.02
    loss.backward()
    assert all(p.grad.isfinite().all() for p in policy.parameters() if p.grad is not None)


def test_lora_trains_only_the_factors(policy: FlowVla) -> None:
    from edgevla.train.lora import add_lora

    targets = type(policy).lora_targets
    assert targets is not None
    before = chunk_of(policy, random_batch(policy))
    add_lora(policy, rank=2, alpha=4, targets=targets, base="base")
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in n for n in trained)
    batch = random_batch(policy)
    torch.testing.assert_close(chunk_of(policy, batch), before)
    policy.train().loss(batch, policy.draw(batch))[0].backward()
    assert all(p.grad is not None for n, p in policy.named_parameters() if "lora_B" in n)


def test_gradient_checkpointing_changes_no_gradient(kind: str, make_vla: MakeVla) -> None:
    gradients = []
    for on in (False, True):
        policy = make_vla(kind, train_expert_only=False, freeze_vision_encoder=False).train()
        policy.set_gradient_checkpointing(on)
        batch = random_batch(policy)
        policy.loss(batch, policy.draw(batch, torch.Generator().manual_seed(3)))[0].backward()
        gradients.append({n: p.grad for n, p in policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


# -- folders ----------------------------------------------------------------------------------------------


def test_saved_and_loaded_again(policy: FlowVla, tmp_path: Path) -> None:
    """A policy built on a backbone's folder becomes a checkpoint that needs nothing else."""
    folder = save_policy(policy, tmp_path / "policy")
    assert not list(folder.glob("*/*.safetensors")), "the backbone's own weights must not be copied"
    again = load_policy(folder)
    assert isinstance(again, FlowVla)
    assert again.config.to_json() == policy.config.to_json()
    batch = random_batch(policy)
    # Prompts come from the copied tokenizer.
    assert torch.equal(random_batch(again)["tokens"], batch["tokens"])
    assert torch.equal(chunk_of(again, batch), chunk_of(policy, batch))
    assert json.loads((folder / "config.json").read_text())["type"] == policy.policy_type


def test_config_round_trip_keeps_every_field(policy: FlowVla) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = type(policy.config).from_json(json.loads(json.dumps(policy.config.to_json())))
    assert again.to_json() == policy.config.to_json()


def test_backbone_of_another_size_is_an_error(
    policy: FlowVla, backbones: dict[str, Path], tmp_path: Path
) -> None:
    source = backbones[policy.policy_type]
    broken = tmp_path / "backbone"
    shutil.copytree(source, broken)
    weights = load_file(str(source / "model.safetensors"))
    name = next(n for n in weights if n.endswith("layers.0.mlp.up_proj.weight") and "vision" not in n)
    weights[name] = weights[name][:-1].contiguous()
    save_file(weights, str(broken / "model.safetensors"))
    with pytest.raises(CheckpointError, match="another model"):
        type(policy).from_backbone(broken, policy.config, policy.processors)  # type: ignore[attr-defined]


def test_checkpoint_without_backbone_folder_takes_sizes_from_the_weights(
    kind: str, make_vla: MakeVla, tmp_path: Path
) -> None:
    """As published checkpoints are: no vlm_config/. Head sizes are then the published ones, so ours must refuse."""
    folder = save_policy(make_vla(kind), tmp_path / "policy")
    for name in ("vlm_config", "expert_config"):
        shutil.rmtree(folder / name, ignore_errors=True)
    with pytest.raises(CheckpointError, match=r"heads of|does not fit"):
        load_policy(folder)


def test_renamed_cameras_of_a_checkpoint(policy: FlowVla) -> None:
    """A robot with one of two cameras: the graphs ask for that one alone."""
    policy.set_cameras({"observation.images.top": (120, 160)}, absent=["observation.images.wrist"])
    specs = policy.graphs()
    sources = {s.source: s.shape for s in specs["encode"].inputs}
    assert sources["camera:observation.images.top"] == (1, 120, 160, 3)
    assert "camera:observation.images.wrist" not in sources
    assert sources["camera_present"] == (1, 1)


def test_empty_cameras_are_never_asked_for(kind: str, make_vla: MakeVla) -> None:
    policy = make_vla(kind, empty_cameras=1)
    assert "observation.images.empty_camera_0" in policy.config.image_features
    assert policy.live_cameras == ["observation.images.top", "observation.images.wrist"]
    plain = make_vla(kind)
    batch = random_batch(policy)
    torch.testing.assert_close(chunk_of(policy, batch), chunk_of(plain, batch))


def test_bad_settings_are_one_sentence(kind: str, make_vla: MakeVla) -> None:
    for settings, words in (
        ({"n_action_steps": 9}, "n_action_steps is 9"),
        ({"max_action_dim": 4}, "max_action_dim = 4"),
    ):
        with pytest.raises(CheckpointError, match=words):
            make_vla(kind, **settings)


def test_published_defaults(kind: str) -> None:
    from edgevla.train.policies import policy_class

    config: Any = policy_class(kind).Config()
    data = config.to_json()
    assert data["type"] == kind
    assert data["chunk_size"] == 50
    assert config.action_indices == list(range(50))
    assert config.observation_indices == ([0] if kind == "smolvla" else None)
    assert data["tokenizer_max_length"] == (200 if kind == "pi05" else 48)
    assert data["normalization_mapping"]["STATE"] == ("QUANTILES" if kind == "pi05" else "MEAN_STD")


def test_lora_targets_name_real_modules(policy: FlowVla) -> None:
    targets = type(policy).lora_targets  # type: ignore[attr-defined]
    found = [n for n, m in policy.named_modules() if re.fullmatch(targets, n)]
    linears = {n for n, m in policy.named_modules() if isinstance(m, torch.nn.Linear)}
    assert set(found) <= linears
    assert "action_in_proj" in found
    assert "action_out_proj" in found
    assert sum(n.endswith("q_proj") for n in found) == policy.expert.dims.depth
    assert not any("vision" in n or "language_model" in n or "text_model" in n for n in found)


def test_time_embedding_is_float64_inside() -> None:
    tau = torch.tensor([0.001, 0.1, 0.7531, 1.0])
    got = flow.time_embedding(tau, 720, 4e-3, 4.0)
    fraction = np.linspace(0, 1, 360)
    angle = tau.numpy().astype(np.float64)[:, None] * 2 * np.pi / (4e-3 * 1000**fraction)
    expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-7)


def test_a_pipeline_s_setting_that_is_no_number_is_named(policy: FlowVla) -> None:
    step = policy.processors.step("tokenizer_processor")
    assert step is not None
    step.config["max_length"] = "many"
    with pytest.raises(CheckpointError, match="'tokenizer_processor' has max_length = 'many'"):
        policy.prompt_recipe()

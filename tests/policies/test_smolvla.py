"""SmolVLA's own: causal actions, alternating layers, the state block, freezing, special tokens, Aloha."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from vla_kit import MakeVla, chunk_of, random_batch

from edgevla.errors import CheckpointError
from edgevla.train.nn.image import resize_with_pad
from edgevla.train.policies import aloha
from edgevla.train.policies.smolvla import SmolVla, SmolVlaConfig, SmolVlaDims, expert_mlp


@torch.no_grad()
def test_actions_are_causal(make_vla: MakeVla) -> None:
    policy = make_vla("smolvla")
    context = policy.encode(policy.inputs(random_batch(policy)))
    x = torch.randn(2, *policy.sample_shape)
    changed = x.clone()
    changed[:, 5] += 1
    tau = torch.full((2,), 0.6)
    before, after = (policy.predict(context, v, tau, {}) for v in (x, changed))
    torch.testing.assert_close(after[:, :5], before[:, :5], atol=1e-6, rtol=0)
    assert ((after - before)[:, 5:].abs().amax((0, 2)) > 1e-5).all()


@torch.no_grad()
def test_state_is_seen_by_actions_but_not_by_the_prefix(make_vla: MakeVla) -> None:
    policy = make_vla("smolvla")
    inputs = policy.inputs(random_batch(policy))
    one = policy.encode(inputs)
    two = policy.encode({**inputs, "state": inputs["state"] + 1})
    # Padded tokens see everything, and nobody sees them.
    real = one["prefix_mask"][0].nonzero()[:-1, 0]
    assert torch.equal(one["kv"][:, :, 0][..., real, :], two["kv"][:, :, 0][..., real, :])
    assert not torch.equal(one["kv"][..., -1, :], two["kv"][..., -1, :])


@pytest.mark.parametrize(
    ("settings", "cross"),
    [
        ({}, [False, True, False, True]),
        ({"attention_mode": "self_attn"}, [False] * 4),
        ({"self_attn_every_n_layers": 0}, [True] * 4),
        ({"self_attn_every_n_layers": 3}, [False, True, True, False]),
    ],
)
@torch.no_grad()
def test_which_layers_only_look_at_the_prefix(make_vla: MakeVla, settings: dict, cross: list[bool]) -> None:
    policy = make_vla("smolvla", **settings)
    assert isinstance(policy, SmolVla)
    kv_width = policy.dims.text.kv_heads * policy.dims.text.head_dim
    widths = [layer.self_attn.k_proj.in_features for layer in policy.expert.layers]
    assert widths == [kv_width if c else policy.dims.expert.width for c in cross]
    assert torch.isfinite(chunk_of(policy, random_batch(policy))).all()


@torch.no_grad()
def test_cross_layers_have_their_keys_projected_in_encode(make_vla: MakeVla) -> None:
    policy = make_vla("smolvla")
    inputs = policy.inputs(random_batch(policy))
    plain = super(SmolVla, policy).encode(inputs)["kv"]
    projected = policy.encode(inputs)["kv"]
    assert torch.equal(plain[0::2], projected[0::2])
    keys = plain[1, 0].transpose(1, 2).flatten(2)
    expected = policy.expert.layer(1).self_attn.k_proj(keys)
    torch.testing.assert_close(projected[1, 0].transpose(1, 2).flatten(2), expected)


@torch.no_grad()
def test_prefix_length_pads_and_changes_nothing(make_vla: MakeVla) -> None:
    plain, padded = make_vla("smolvla"), make_vla("smolvla", prefix_length=70)
    batch = random_batch(plain)
    assert padded.encode(padded.inputs(batch))["kv"].shape[4] == 70
    assert padded.graphs()["encode"].outputs[0].shape[4] == 70
    torch.testing.assert_close(chunk_of(padded, batch), chunk_of(plain, batch), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_image_special_tokens_wrap_every_image(make_vla: MakeVla) -> None:
    plain, marked = make_vla("smolvla"), make_vla("smolvla", add_image_special_tokens=True, empty_cameras=1)
    batch = random_batch(marked)
    embeddings, real, _ = marked.embed_prefix(marked.inputs(batch))
    n = plain.encode(plain.inputs(batch))["kv"].shape[4]
    # Three marks around each of two images and around the empty one.
    assert embeddings.shape[1] == n + 9 == marked.graphs()["encode"].outputs[0].shape[4]
    fake = marked.language.embed(torch.tensor([3, 4]))
    torch.testing.assert_close(embeddings[0, :2], fake)
    present = torch.tensor([[False, True]] * 2)
    _, real, _ = marked.embed_prefix({**marked.inputs(batch), "camera_present": present})
    assert real[0, :2].all()
    assert not real[0, 2]
    assert (chunk_of(marked, batch) - chunk_of(plain, batch)).abs().max() > 1e-4


def test_what_is_frozen(make_vla: MakeVla) -> None:
    by_default = make_vla("smolvla")
    assert not any(p.requires_grad for p in by_default.vlm_with_expert.vlm.parameters())
    assert all(p.requires_grad for p in by_default.expert.parameters())
    assert not make_vla("smolvla", train_state_proj=False).state_proj.weight.requires_grad
    everything = make_vla("smolvla", train_expert_only=False, freeze_vision_encoder=True)
    trained = {n for n, p in everything.named_parameters() if p.requires_grad}
    root = "vlm_with_expert.vlm."
    assert not any(n.startswith((f"{root}lm_head", f"{root}model.vision_model")) for n in trained)
    assert not any(
        n.startswith((f"{root}model.text_model.norm", f"{root}model.text_model.layers.3")) for n in trained
    )
    assert f"{root}model.text_model.layers.2.mlp.up_proj.weight" in trained
    assert f"{root}model.connector.modality_projection.proj.weight" in trained


def test_published_size() -> None:
    from edgevla.train.policies.smolvla import PUBLISHED
    from edgevla.train.processors import Processors

    config = SmolVlaConfig.from_json(
        {"type": "smolvla", "output_features": {"action": {"type": "ACTION", "shape": [6]}}}
    )
    with torch.device("meta"):
        policy = SmolVla(config, Processors(), SmolVlaDims.of(config, PUBLISHED))
    names = policy.state_dict()
    assert len(names) == 500
    assert sum(v.numel() for v in names.values()) == 450_046_176
    assert sum(p.numel() for p in policy.parameters() if p.requires_grad) == 99_880_992
    assert expert_mlp(720) == 2048


def test_unequal_camera_sizes_without_resize(make_vla: MakeVla) -> None:
    sizes = {"observation.images.top": (64, 64), "observation.images.wrist": (32, 32)}
    policy = make_vla("smolvla", cameras=sizes, resize_imgs_with_padding=None)
    with torch.no_grad():
        kv = policy.encode(policy.inputs(random_batch(policy)))["kv"]
    assert kv.shape[4] == 16 + 4 + 16 + 1 == policy.graphs()["encode"].outputs[0].shape[4]


def test_resize_puts_the_picture_bottom_right() -> None:
    fitted = resize_with_pad(torch.ones(1, 3, 480, 640), 512, 512, place="bottom_right") * 2 - 1
    assert (fitted[:, :, 128:] == 1).all()
    assert (fitted[:, :, :128] == -1).all()


# -- Aloha ------------------------------------------------------------------------------------------------


def test_aloha_actions_round_trip_and_flips() -> None:
    actions = torch.randn(2, 5, 14)
    torch.testing.assert_close(aloha.actions_to_pi(aloha.actions_from_pi(actions)), actions)
    state = torch.zeros(1, 32)
    state[0, [0, 1, 8]] = torch.tensor([1.0, 2.0, 3.0])
    state[0, [6, 13]] = 0.5
    mapped = aloha.state_to_pi(state)[0]
    assert mapped[0] == 1
    assert mapped[1] == -2
    assert mapped[8] == -3
    assert mapped[20] == 0
    travel = 0.5 * (0.058 - 0.01844) + 0.01844
    angle = torch.asin(torch.tensor((0.022**2 + travel**2 - 0.036**2) / (2 * 0.022 * travel)))
    torch.testing.assert_close(mapped[6], (angle - 0.4) / 1.1)
    assert mapped[13] == mapped[6]


@torch.no_grad()
def test_aloha_switch_stands_between_normaliser_and_network(make_vla: MakeVla) -> None:
    policy = make_vla("smolvla", dim=14, adapt_to_pi_aloha=True)
    plain = make_vla("smolvla", dim=14)
    x = torch.randn(1, *policy.sample_shape)
    expected = plain.decode(aloha.actions_from_pi(x[..., :14]), {})
    torch.testing.assert_close(policy.decode(x, {}), expected)
    state = {"state": torch.randn(1, 14)}
    torch.testing.assert_close(policy.network_state(state), aloha.state_to_pi(plain.network_state(state)))
    with pytest.raises(CheckpointError, match="14-joint"):
        make_vla("smolvla", adapt_to_pi_aloha=True)


def test_settings_that_nobody_supports(make_vla: MakeVla) -> None:
    with pytest.raises(CheckpointError, match="use_delta_joint_actions_aloha"):
        make_vla("smolvla", use_delta_joint_actions_aloha=True)
    with pytest.raises(CheckpointError, match="num_expert_layers is 3, which does not divide the 4 text"):
        make_vla("smolvla", num_expert_layers=3)
    # Beside layer 2 the expert attends to itself, by projections that LeRobot made for the prefix.
    with pytest.raises(CheckpointError, match="expert layer 1 attends to the actions by projections"):
        make_vla("smolvla", num_expert_layers=2)


def test_load_vlm_weights_starts_a_fresh_policy_from_the_named_backbone(
    make_vla: MakeVla, backbones: dict[str, Path]
) -> None:
    given = make_vla("smolvla")
    config = dataclasses.replace(
        given.config, vlm_model_name=str(backbones["smolvla"]), load_vlm_weights=True
    )
    fresh = SmolVla.build(config, given.processors)
    weights = given.vlm_with_expert.vlm.state_dict()
    assert all(torch.equal(v, weights[n]) for n, v in fresh.vlm_with_expert.vlm.state_dict().items())
    random = SmolVla.build(dataclasses.replace(config, load_vlm_weights=False), given.processors)
    assert not torch.equal(random.language.embed_tokens.weight, given.language.embed_tokens.weight)
    with pytest.raises(CheckpointError, match="'no such folder'"):
        SmolVla.build(dataclasses.replace(config, vlm_model_name="no such folder"), given.processors)


def test_a_backbone_that_does_not_say_its_fold_has_its_librarys(
    make_vla: MakeVla, backbones: dict[str, Path], tmp_path: Path
) -> None:
    given = make_vla("smolvla")
    data = json.loads((backbones["smolvla"] / "config.json").read_text())
    del data["scale_factor"]
    (tmp_path / "config.json").write_text(json.dumps(data))
    config = dataclasses.replace(given.config, vlm_model_name=str(tmp_path))
    assert SmolVla.build(config, given.processors).dims.shuffle == 2

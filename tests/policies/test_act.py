"""ACT beyond the golden fixture: every switch of its config, and what must hold whatever the weights are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from edgevla.errors import CheckpointError, ConfigError
from edgevla.execution.ensemble import ensemble
from edgevla.train.checkpoint import load_policy, new_policy, save_policy
from edgevla.train.nn.attention import MultiheadAttention
from edgevla.train.nn.sinusoid import position_map, position_table
from edgevla.train.policies.act import Act, ActConfig, Encoder

TINY = {
    "dim_model": 16,
    "n_heads": 2,
    "dim_feedforward": 24,
    "n_encoder_layers": 2,
    "n_vae_encoder_layers": 1,
    "latent_dim": 4,
    "chunk_size": 5,
    "n_action_steps": 5,
    "dropout": 0.0,
    "pretrained_backbone_weights": None,
}
CAMERA, SECOND = "observation.images.front", "observation.images.wrist"
VECTOR = {"mean": np.array([1, 2, 3], np.float32), "std": np.array([2, 1, 0.5], np.float32)}


def make(
    cameras: dict[str, tuple[int, int]], *, state: bool = True, env: bool = False, **overrides: object
) -> Act:
    features: dict[str, dict] = {
        n: {"dtype": "video", "shape": (*size, 3), "names": ["height", "width", "channels"]}
        for n, size in cameras.items()
    }
    if state:
        features["observation.state"] = {"dtype": "float32", "shape": (3,)}
    if env:
        features["observation.environment_state"] = {"dtype": "float32", "shape": (2,)}
    features["action"] = {"dtype": "float32", "shape": (3,)}
    features["timestamp"] = {"dtype": "float32", "shape": (1,)}
    torch.manual_seed(0)
    stats = {"observation.state": VECTOR, "action": VECTOR}
    policy = new_policy("act", features, stats, {**TINY, **overrides}, say=lambda _: None)
    assert isinstance(policy, Act)
    return policy


def batch_for(policy: Act, n: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch: dict[str, torch.Tensor] = {}
    for name in policy.config.image_features:
        size = (n, *policy.camera_size(name), 3)
        batch[name] = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    for name, dim in (
        ("observation.state", policy.config.state_dim),
        (policy.config.environment_state_key, policy.config.environment_state_dim),
    ):
        if dim is not None:
            batch[name] = torch.randn(n, dim, generator=generator)
    batch["action"] = torch.randn(n, policy.config.chunk_size, 3, generator=generator)
    batch["action_is_pad"] = torch.zeros(n, policy.config.chunk_size, dtype=torch.bool)
    return batch


def sources(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {
        "observation.state": "state",
        "observation.environment_state": "environment_state",
        "observation.env": "environment_state",
    }
    return {names.get(k, f"camera:{k}"): v for k, v in batch.items() if not k.startswith("action")}


SWITCHES = {
    "plain": ({CAMERA: (32, 48)}, {}),
    "no VAE": ({CAMERA: (32, 48)}, {"use_vae": False}),
    "pre-norm": ({CAMERA: (32, 48)}, {"pre_norm": True}),
    "gelu": ({CAMERA: (32, 48)}, {"feedforward_activation": "gelu"}),
    "two decoder layers": ({CAMERA: (32, 48)}, {"n_decoder_layers": 2}),
    "cameras of two sizes": ({CAMERA: (32, 48), SECOND: (50, 70)}, {}),
    "environment state": ({CAMERA: (32, 48)}, {"env": True}),
    "no state": ({CAMERA: (32, 48)}, {"state": False}),
    "no camera": ({}, {"env": True}),
    "only environment state": ({}, {"env": True, "state": False}),
    "ensembling": ({CAMERA: (32, 48)}, {"temporal_ensemble_coeff": 0.01, "n_action_steps": 1}),
    "dilated bottlenecks": (
        {CAMERA: (32, 48)},
        {"vision_backbone": "resnet50", "replace_final_stride_with_dilation": 1},
    ),
}


def keys_of_spec(config: ActConfig) -> set[str]:
    """The names in LeRobot's checkpoints, written down independently of the modules (without the trunk's)."""

    def linear(name: str) -> set[str]:
        return {f"{name}.weight", f"{name}.bias"}

    def layer(name: str, attentions: list[str], n_norms: int) -> set[str]:
        found = linear(f"{name}.linear1") | linear(f"{name}.linear2")
        for a in attentions:
            found |= {f"{name}.{a}.in_proj_weight", f"{name}.{a}.in_proj_bias"} | linear(
                f"{name}.{a}.out_proj"
            )
        return found.union(*(linear(f"{name}.norm{i + 1}") for i in range(n_norms)))

    has_state, has_env = config.state_dim is not None, config.environment_state_dim is not None
    keys = {"encoder_1d_feature_pos_embed.weight", "decoder_pos_embed.weight"}
    keys |= linear("encoder_latent_input_proj") | linear("action_head") | linear("decoder.norm")
    for i in range(config.n_encoder_layers):
        keys |= layer(f"encoder.layers.{i}", ["self_attn"], 2)
    for i in range(config.n_decoder_layers):
        keys |= layer(f"decoder.layers.{i}", ["self_attn", "multihead_attn"], 3)
    if has_state:
        keys |= linear("encoder_robot_state_input_proj")
    if has_env:
        keys |= linear("encoder_env_state_input_proj")
    if config.image_features:
        keys |= linear("encoder_img_feat_input_proj")
    if config.use_vae:
        keys |= {"vae_encoder_cls_embed.weight", "vae_encoder_pos_enc"}
        keys |= linear("vae_encoder_action_input_proj") | linear("vae_encoder_latent_output_proj")
        if has_state:
            keys |= linear("vae_encoder_robot_state_input_proj")
        for i in range(config.n_vae_encoder_layers):
            keys |= layer(f"vae_encoder.layers.{i}", ["self_attn"], 2)
    if config.pre_norm:
        keys |= linear("encoder.norm") | (linear("vae_encoder.norm") if config.use_vae else set())
    return {f"model.{k}" for k in keys}


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_has_the_published_names_trains_and_survives_saving(switch, tmp_path):
    cameras, overrides = SWITCHES[switch]
    policy = make(cameras, **overrides)
    saved = policy.saved_weights()
    assert {k for k in saved if not k.startswith("model.backbone.")} == keys_of_spec(policy.config)
    assert any(k.startswith("model.backbone.") for k in saved) == bool(cameras)

    batch = batch_for(policy)
    draws = policy.draw(batch, torch.Generator().manual_seed(1))
    loss, parts = policy.loss(batch, draws)
    loss.backward()
    without = [n for n, p in policy.named_parameters() if p.grad is None]
    assert not without, f"no gradient reaches {without}"
    assert ("kld_loss" in parts) == policy.config.use_vae

    again = load_policy(save_policy(policy, tmp_path / "saved"))
    with torch.no_grad():
        x = policy.eval().encode(sources(batch))["x"]
        assert torch.equal(again.encode(sources(batch))["x"], x)
    assert x.shape == (2, policy.config.chunk_size, 3)
    assert policy.graphs()["encode"].outputs[0].shape == (1, policy.config.chunk_size, 3)
    assert again.config == dataclasses.replace(policy.config)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"temporal_ensemble_coeff": 0.01}, "n_action_steps must be 1"),
        ({"n_action_steps": 6}, "exceeds chunk_size"),
        ({"n_obs_steps": 2}, "must be 1"),
        ({"feedforward_activation": "glu"}, "use relu or gelu"),
        ({"n_heads": 0}, "n_heads is 0; it must be at least 1"),
        ({"dropout": 1.5}, "dropout 1.5"),
        ({"vision_backbone": "vit"}, "not a ResNet"),
        ({"vision_backbone": "resnet19"}, "unknown"),
        ({"replace_final_stride_with_dilation": 1}, "bottleneck"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides, words):
    with pytest.raises(CheckpointError, match=words):
        make({CAMERA: (32, 48)}, **overrides)


def test_no_camera_and_no_environment_state_is_refused():
    with pytest.raises(CheckpointError, match="at least one camera"):
        make({})


def test_a_mistyped_setting_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'chunk_size'"):
        make({CAMERA: (32, 48)}, chunk_sise=3)


def test_swapping_two_cameras_of_one_size_changes_nothing_but_rounding():
    policy = make({CAMERA: (32, 48), SECOND: (32, 48)}).eval()
    batch = batch_for(policy)
    swapped = {**batch, CAMERA: batch[SECOND], SECOND: batch[CAMERA]}
    changed = {**batch, SECOND: 255 - batch[SECOND]}
    with torch.no_grad():
        x, y, z = (policy.encode(sources(b))["x"] for b in (batch, swapped, changed))
    torch.testing.assert_close(x, y, atol=1e-5, rtol=0)
    assert (x - z).abs().max() > 1e-3


def test_acting_depends_neither_on_the_actions_nor_on_chance_but_training_does():
    policy = make({CAMERA: (32, 48)})
    batch = batch_for(policy)
    one, two = (policy.draw(batch, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert not torch.equal(policy.loss(batch, one)[0], policy.loss(batch, two)[0])
    other = {**batch, "action": batch["action"] + 1}
    with torch.no_grad():
        assert not torch.equal(policy.reconstruct(batch, one)[0], policy.reconstruct(other, one)[0])
        policy.eval()
        assert torch.equal(policy.reconstruct(batch, one)[0], policy.reconstruct(other, two)[0])


def test_padded_targets_neither_teach_nor_reach_the_latent():
    policy = make({CAMERA: (32, 48)})
    batch = batch_for(policy)
    batch["action_is_pad"][:, 3:] = True
    batch["action"].requires_grad_(True)
    draws = policy.draw(batch, torch.Generator().manual_seed(1))
    policy.loss(batch, draws)[0].backward()
    gradient = batch["action"].grad
    assert gradient is not None
    assert torch.equal(gradient[:, 3:], torch.zeros_like(gradient[:, 3:]))
    assert (gradient[:, :3] != 0).all()


def test_a_batch_of_padding_alone_has_loss_zero_not_nan():
    policy = make({CAMERA: (32, 48)}, use_vae=False)
    batch = batch_for(policy)
    batch["action_is_pad"][:] = True
    assert policy.loss(batch, {})[0].item() == 0.0


def test_l1_counts_valid_steps_only():
    policy = make({CAMERA: (32, 48)}, use_vae=False).eval()
    batch = batch_for(policy)
    batch["action_is_pad"][0, 2:] = True
    with torch.no_grad():
        target = (batch["action"] - torch.tensor([1.0, 2, 3])) / torch.tensor([2.0, 1, 0.5])
        error = (policy.encode(sources(batch))["x"] - target).abs()
        expected = torch.cat([error[0, :2], error[1]]).mean()
        torch.testing.assert_close(policy.loss(batch, {})[0], expected)


def test_the_ensembler_gives_the_worked_example():
    chunks = np.array([[1, 2, 3], [10, 20, 30], [100, 200, 300], [1, 2, 3]], np.float64)
    returned = []
    for now in range(4):
        anchors = [a for a in range(now + 1) if now - a < 3]
        returned.append(ensemble(np.array([chunks[a][now - a] for a in anchors]), anchors, 0.01))
    np.testing.assert_allclose(returned, [1.0, 5.98, 40.677021, 77.094612], atol=5e-3)


def test_ensembling_without_decay_is_the_plain_mean_and_its_sign_chooses_the_side():
    values = np.array([[1.0, -4.0], [2.0, 8.0], [6.0, 2.0]], np.float32)
    np.testing.assert_allclose(ensemble(values, [3, 4, 5], 0.0), [3, 2], rtol=1e-6)
    np.testing.assert_allclose(ensemble(values, [3, 4, 5], 80.0), values[0], rtol=1e-6)
    np.testing.assert_allclose(ensemble(values, [3, 4, 5], -80.0), values[2], rtol=1e-6)
    np.testing.assert_allclose(ensemble(values, [3, 4, 5], -1e4), values[2], rtol=1e-6)


def test_attention_is_torchs_multi_head_attention():
    torch.manual_seed(0)
    own, reference = MultiheadAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    own.load_state_dict(reference.state_dict())
    query, key, value = torch.randn(2, 4, 12), torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    is_valid = torch.tensor([[True] * 5, [True, True, False, True, False]])
    expected = reference(query, key, value, key_padding_mask=~is_valid)[0]
    torch.testing.assert_close(own(query, key, value, is_valid), expected)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_encoder_without_positions_is_torchs_transformer_encoder(pre_norm, activation):
    config = ActConfig(
        dim_model=12, n_heads=3, dim_feedforward=20, pre_norm=pre_norm, feedforward_activation=activation
    )
    own = Encoder(config, 2).eval()
    layer = nn.TransformerEncoderLayer(
        12, 3, 20, activation=activation, batch_first=True, norm_first=pre_norm
    )
    norm = nn.LayerNorm(12) if pre_norm else None
    reference = nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False).eval()
    reference.load_state_dict(own.state_dict())
    x = torch.randn(2, 6, 12)
    torch.testing.assert_close(own(x, torch.zeros(1, 6, 12)), reference(x))


def test_position_tables_have_the_published_values():
    table = position_table(3, 512)
    np.testing.assert_allclose(table[1, :4], [0.84147098, 0.54030231, 0.82185619, 0.56969501], atol=1e-7)
    pixels = position_map(2, 2, 512)
    np.testing.assert_allclose(pixels[:, 0], [0, 0, 0, 0], atol=1e-5)
    np.testing.assert_allclose(pixels[:, 1], [-1, -1, 1, 1], atol=1e-5)
    np.testing.assert_allclose(pixels[:, 257], [-1, 1, -1, 1], atol=1e-5)


def test_the_trunk_is_a_group_of_its_own():
    policy = make({CAMERA: (32, 48)}, optimizer_lr_backbone=3e-6)
    others, trunk = policy.optimizer_groups()
    assert trunk["lr"] == 3e-6
    assert {id(p) for p in trunk["params"]} == {id(p) for p in policy.backbone.parameters()}
    assert len(others["params"]) + len(trunk["params"]) == len(list(policy.parameters()))


def test_cameras_with_one_last_name_get_two_input_names():
    policy = make({"observation.images.front": (32, 48), "observation.left.front": (32, 48)})
    assert [s.name for s in policy.graphs()["encode"].inputs] == ["front", "front_2", "state"]


def test_the_published_size_is_the_published_size():
    """LeRobot 0.6's own network: A = S = 14, E = 7, one camera, defaults."""
    features = {
        "observation.images.top": {
            "dtype": "video",
            "shape": (64, 64, 3),
            "names": ["height", "width", "channel"],
        },
        "observation.state": {"dtype": "float32", "shape": (14,)},
        "observation.environment_state": {"dtype": "float32", "shape": (7,)},
        "action": {"dtype": "float32", "shape": (14,)},
    }
    policy = new_policy("act", features, {}, {"pretrained_backbone_weights": None}, say=lambda _: None)
    assert len(policy.saved_weights()) == 236
    assert sum(p.numel() for p in policy.parameters()) == 51_618_190

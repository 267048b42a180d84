"""Diffusion beyond the golden fixture: the schedule's published values, every switch, crops, and one encoder or many."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgevla.errors import CheckpointError
from edgevla.train.checkpoint import load_policy, new_policy, save_policy
from edgevla.train.nn.diffusion import NoiseSchedule, alphas_cumprod
from edgevla.train.nn.unet1d import ResidualBlock, SpatialSoftmax, StepEmbedding, Unet1d
from edgevla.train.policies.diffusion import Diffusion, DiffusionConfig

TINY = {
    "horizon": 8,
    "n_action_steps": 4,
    "down_dims": (16, 24),
    "n_groups": 4,
    "diffusion_step_embed_dim": 8,
    "spatial_softmax_num_keypoints": 3,
    "num_train_timesteps": 10,
    "pretrained_backbone_weights": None,
}
CAMERAS = ("observation.images.front", "observation.images.wrist")
STATS = {
    "observation.state": {"min": np.array([-1.0, 0, 2]), "max": np.array([1.0, 4, 3])},
    "action": {"min": np.array([-2.0, 0]), "max": np.array([2.0, 8])},
}


def features(cameras: tuple[str, ...], size: tuple[int, int], env: bool) -> dict:
    found: dict[str, dict] = {
        n: {"dtype": "video", "shape": (*size, 3), "names": ["height", "width", "channels"]} for n in cameras
    }
    found["observation.state"] = {"dtype": "float32", "shape": (3,)}
    if env:
        found["observation.environment_state"] = {"dtype": "float32", "shape": (2,)}
    return {**found, "action": {"dtype": "float32", "shape": (2,)}}


def make(
    cameras: tuple[str, ...] = CAMERAS,
    *,
    size: tuple[int, int] = (36, 50),
    env: bool = False,
    **overrides: object,
) -> Diffusion:
    torch.manual_seed(0)
    policy = new_policy(
        "diffusion", features(cameras, size, env), STATS, {**TINY, **overrides}, say=lambda _: None
    )
    assert isinstance(policy, Diffusion)
    return policy


def batch_for(policy: Diffusion, n: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    config, batch = policy.config, {}
    for name in config.image_features:
        shape = (n, config.n_obs_steps, *policy.camera_size(name), 3)
        batch[name] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    batch["observation.state"] = torch.randn(n, config.n_obs_steps, 3, generator=generator)
    if config.environment_state_dim is not None:
        batch["observation.environment_state"] = torch.randn(n, config.n_obs_steps, 2, generator=generator)
    batch["action"] = torch.randn(n, config.horizon, 2, generator=generator)
    batch["action_is_pad"] = torch.zeros(n, config.horizon, dtype=torch.bool)
    return batch


def moments(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The batch's observation steps by source, oldest first."""
    names = {"observation.state": "state", "observation.environment_state": "environment_state"}
    observed = {k: v for k, v in batch.items() if not k.startswith("action")}
    n_obs = observed["observation.state"].shape[1]
    return [{names.get(k, f"camera:{k}"): v[:, i] for k, v in observed.items()} for i in range(n_obs)]


SWITCHES = {
    "default, separate encoders": {},
    "group norm, one encoder": {"use_group_norm": True, "use_separate_rgb_encoder_per_camera": False},
    "batch norm, one encoder": {"use_separate_rgb_encoder_per_camera": False},
    "group norm, separate encoders": {"use_group_norm": True},
    "crop": {"crop_shape": (32, 40)},
    "centre crop in training": {"crop_shape": (32, 40), "crop_is_random": False},
    "resize": {"resize_shape": (33, 40)},
    "resize and crop": {"resize_shape": (40, 40), "crop_ratio": 0.85},
    "predicts data": {"prediction_type": "sample"},
    "DDIM": {"noise_scheduler_type": "DDIM", "num_inference_steps": 3},
    "no FiLM scale": {"use_film_scale_modulation": False},
    "environment state": {"env": True},
    "no camera": {"cameras": (), "env": True},
    "one observation": {"n_obs_steps": 1},
    "three observations": {"n_obs_steps": 3},
    "masked loss": {"do_mask_loss_for_padding": True},
    "unclipped": {"clip_sample": False, "beta_schedule": "scaled_linear"},
    "linear schedule": {"beta_schedule": "linear"},
    "checkpointed": {"gradient_checkpointing": True},
    "bottlenecks": {"vision_backbone": "resnet50"},
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_trains_survives_saving_and_samples(switch, tmp_path):
    cameras = CAMERAS if "encoder" in switch else CAMERAS[:1]
    policy = make(**{"cameras": cameras, **SWITCHES[switch]})
    batch = batch_for(policy)
    draws = policy.draw(batch, torch.Generator().manual_seed(1))
    policy.loss(batch, draws)[0].backward()
    without = [n for n, p in policy.named_parameters() if p.grad is None]
    assert not without, f"no gradient reaches {without}"

    again = load_policy(save_policy(policy, tmp_path / "saved"))
    assert again.config == policy.config
    policy.eval()
    noise = torch.randn(2, *policy.sample_shape)
    values = {"setting:stochastic": torch.full((2,), policy.settings["stochastic"]["default"])}
    chunk, same = (
        p.sample(moments(batch), values, noise=noise, step_noise=lambda _: noise.flip(1))
        for p in (policy, again)
    )
    assert torch.equal(chunk, same)
    assert chunk.shape == (2, policy.config.horizon - policy.config.n_obs_steps + 1, 2)
    with torch.no_grad():
        context = torch.stack([policy.encode(m)["features"] for m in moments(batch)], 1)
        torch.testing.assert_close(policy.condition(batch), context.flatten(1))


@pytest.mark.parametrize("norm", [True, False], ids=["groups", "batch"])
def test_a_narrow_trunk_is_found_again_in_the_weights(tmp_path, norm):
    settings = {**TINY, "use_group_norm": norm}
    policy = new_policy(
        "diffusion", features(CAMERAS, (36, 50), False), STATS, settings, trunk_width=16, say=lambda _: None
    )
    assert policy.state_dict()["rgb_encoder.1.backbone.0.weight"].shape[0] == 16
    again = load_policy(save_policy(policy, tmp_path / "saved"))
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, policy.state_dict()[name])


def test_a_trunk_too_narrow_for_groups_is_refused():
    with pytest.raises(CheckpointError, match="groups have 16 channels"):
        new_policy(
            "diffusion",
            features(CAMERAS, (36, 50), False),
            STATS,
            {**TINY, "use_group_norm": True},
            trunk_width=8,
            say=lambda _: None,
        )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"horizon": 10}, "multiple of 4"),
        ({"n_action_steps": 8}, "exceeds the 7 future steps"),
        ({"vision_backbone": "vit"}, "not a ResNet"),
        ({"noise_scheduler_type": "PNDM"}, "DDPM, DDIM"),
        ({"prediction_type": "v"}, "epsilon, sample"),
        ({"beta_schedule": "sigmoid"}, "squaredcos_cap_v2"),
        ({"use_group_norm": True, "pretrained_backbone_weights": "x"}, "set one of them off"),
        ({"crop_ratio": 0.0}, "outside"),
        ({"resize_shape": (0, 4)}, "resize_shape is .* at least 1"),
        ({"crop_shape": (4, -1)}, "crop_shape is .* at least 1"),
        ({"n_obs_steps": 0}, "n_obs_steps is 0"),
        ({"down_dims": (16, 26)}, "multiples of n_groups 4"),
        ({"down_dims": (12, 24)}, "the first also of 8"),
        ({"kernel_size": 4}, "must be odd"),
        ({"diffusion_step_embed_dim": 7}, "must be even"),
        ({"num_inference_steps": 11}, "exceeds num_train_timesteps 10"),
        ({"crop_shape": (40, 40)}, "does not fit"),
        ({"cameras": ()}, "at least one camera"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides, words):
    with pytest.raises(CheckpointError, match=words):
        make(**overrides)


def test_cameras_of_two_sizes_are_refused():
    shapes = features(CAMERAS, (36, 50), False)
    shapes[CAMERAS[0]]["shape"] = (36, 51, 3)
    with pytest.raises(CheckpointError, match="cameras of one size"):
        new_policy("diffusion", shapes, STATS, TINY, say=lambda _: None)


def test_a_live_camera_of_another_size_is_refused_unless_images_are_resized():
    with pytest.raises(CheckpointError, match="60x40 frames"):
        make().set_cameras({CAMERAS[0]: (40, 60)})
    policy = make(resize_shape=(36, 40)).eval()
    policy.set_cameras(dict.fromkeys(CAMERAS, (40, 60)))
    shape = policy.graphs()["encode"].inputs[0].shape
    assert shape == (1, 40, 60, 3)
    frame = torch.randint(0, 256, shape, dtype=torch.uint8)
    with torch.no_grad():
        encoded = policy.encode({f"camera:{c}": frame for c in CAMERAS} | {"state": torch.zeros(1, 3)})
    assert encoded["features"].shape == (1, policy.feature_dim)


# -- schedule ---------------------------------------------------------------------------------------------


def test_the_cosine_schedule_has_the_published_values():
    alphas = alphas_cumprod("squaredcos_cap_v2", 100, 1e-4, 0.02)
    np.testing.assert_allclose(alphas[[0, 50, 99]], [0.99936873, 0.47826457, 2.4285407e-7], rtol=2e-6)


@pytest.mark.parametrize(("kind", "first", "last"), [("linear", 1e-4, 0.02), ("scaled_linear", 1e-4, 0.02)])
def test_the_other_schedules_end_where_they_should(kind, first, last):
    alphas = alphas_cumprod(kind, 50, first, last).double()
    np.testing.assert_allclose(1 - alphas[0], first, rtol=1e-3)
    np.testing.assert_allclose(1 - alphas[-1] / alphas[-2], last, rtol=1e-3)


def test_the_schedule_walks_leading_timesteps_down_to_clean():
    policy = make(num_train_timesteps=100, num_inference_steps=10)
    assert policy.schedule.taus().tolist() == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0, -1]
    assert policy.schedule.taus(3).tolist() == [66, 33, 0, -1]


@pytest.mark.parametrize("predicts_noise", [True, False])
def test_ddim_with_the_exact_answer_recovers_the_clean_sample(predicts_noise):
    alphas = alphas_cumprod("squaredcos_cap_v2", 20, 0, 0)
    schedule = NoiseSchedule(alphas, predicts_noise=predicts_noise, clip=1.0)
    data, noise = torch.rand(2, 4, 3) * 2 - 1, torch.randn(2, 4, 3)
    zeros = torch.zeros(2)
    x = schedule.add_noise(data, noise, zeros + 18)
    for tau, tau_next in ((18, 9), (9, 0), (0, -1)):
        output = noise if predicts_noise else data
        x = schedule.step(x, output, zeros + tau, zeros + tau_next, noise, zeros)
    torch.testing.assert_close(x, data, atol=1e-5, rtol=1e-4)


def test_a_ddpm_step_is_the_posterior_of_the_forward_process():
    """Against Bayes' rule on two Gaussians, in float64."""
    alphas = alphas_cumprod("squaredcos_cap_v2", 20, 0, 0)
    schedule = NoiseSchedule(alphas, predicts_noise=False, clip=None)
    data, x, noise = (torch.randn(1, 4, 3) for _ in range(3))
    got = schedule.step(x, data, torch.tensor([12.0]), torch.tensor([10.0]), noise, torch.ones(1))
    a, b = float(alphas[12]), float(alphas[10])
    share = a / b
    # q(x_10 | x_12, data) is proportional to N(x_12; sqrt(share) x_10, 1 - share) N(x_10; sqrt(b) data, 1 - b)
    precision = share / (1 - share) + 1 / (1 - b)
    mean = (share**0.5 / (1 - share) * x.double() + b**0.5 / (1 - b) * data.double()) / precision
    torch.testing.assert_close(got.double(), mean + noise.double() / precision**0.5, atol=1e-5, rtol=1e-5)
    last = schedule.step(x, data, torch.zeros(1), -torch.ones(1), noise, torch.ones(1))
    torch.testing.assert_close(last, data)


def test_clipping_bounds_the_predicted_data():
    schedule = NoiseSchedule(alphas_cumprod("linear", 10, 1e-4, 0.02), predicts_noise=False, clip=0.5)
    x, output = torch.zeros(1, 2, 2), torch.full((1, 2, 2), 3.0)
    for stochastic in (0.0, 1.0):
        tau = torch.zeros(1)
        out = schedule.step(x, output, tau, tau - 1, x, torch.tensor([stochastic]))
        torch.testing.assert_close(out, torch.full((1, 2, 2), 0.5))


def test_padding_counts_unless_it_is_masked():
    for masks in (False, True):
        policy = make((), env=True, do_mask_loss_for_padding=masks)
        batch = batch_for(policy)
        draws = policy.draw(batch, torch.Generator().manual_seed(1))
        error = (
            policy._network()(policy.noisy(batch, draws)[1], draws["timesteps"], policy.condition(batch))
            - draws["noise"]
        ) ** 2
        batch["action_is_pad"][:, 5:] = True
        expected = error[:, :5].mean() if masks else error.mean()
        torch.testing.assert_close(policy.loss(batch, draws)[0], expected)
        batch["action_is_pad"][:] = True
        assert torch.isfinite(policy.loss(batch, draws)[0])


# -- network ----------------------------------------------------------------------------------------------


def test_step_embedding_and_spatial_softmax_have_the_published_values():
    expected = [
        0.14112,
        0.1387981,
        0.0064632588,
        0.00029999996,
        -0.98999250,
        0.99032068,
        0.99997914,
        0.99999994,
    ]
    np.testing.assert_allclose(StepEmbedding(8)(torch.tensor([3.0]))[0], expected, atol=1e-6)
    pool = SpatialSoftmax(1, 2, 3, 1)
    nn.init.ones_(pool.nets.weight)
    nn.init.zeros_(pool.nets.bias)
    points = pool(torch.arange(6.0).reshape(1, 1, 2, 3))
    np.testing.assert_allclose(points.detach()[0], [0.57521039, 0.90514827], atol=1e-6)


def test_a_film_scale_of_zero_wipes_the_first_convolution():
    block = ResidualBlock(4, 8, 5, 3, 4, has_scale=True)
    nn.init.zeros_(block.cond_encoder[1].weight)
    nn.init.zeros_(block.cond_encoder[1].bias)
    x, condition = torch.randn(1, 4, 6), torch.randn(1, 5)
    torch.testing.assert_close(
        block(x, condition), block.conv2(torch.zeros(1, 8, 6)) + block.residual_conv(x)
    )


def test_the_first_levels_skip_is_never_used():
    net = Unet1d(2, 3, (8, 16, 24), kernel=3, n_groups=4, step_width=8, has_scale=True)
    skips = []
    for block in net.up_modules:
        block[0].register_forward_hook(lambda _, inputs, __: skips.append(inputs[0].shape))
    out = net(torch.randn(1, 16, 2), torch.tensor([3.0]), torch.randn(1, 3))
    assert out.shape == (1, 16, 2)
    assert skips == [(1, 48, 4), (1, 32, 8)]


def test_gradient_checkpointing_changes_no_gradient():
    def gradients(uses: bool) -> list[torch.Tensor]:
        policy = make((), env=True, gradient_checkpointing=uses)
        batch = batch_for(policy)
        policy.loss(batch, policy.draw(batch, torch.Generator().manual_seed(1)))[0].backward()
        return [p.grad for p in policy.parameters() if p.grad is not None]

    plain, saved = gradients(False), gradients(True)
    assert len(plain) == len(saved) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain, saved, strict=True))


def test_a_compiled_unet_is_saved_and_loaded_under_lerobots_name(tmp_path):
    policy = make((), env=True, compile_model=True)
    folder = save_policy(policy, tmp_path / "policy")
    assert any(k.startswith("diffusion.unet._orig_mod.") for k in policy.saved_weights())
    again = load_policy(folder)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in policy.state_dict().items())


# -- images -----------------------------------------------------------------------------------------------


def test_resizing_is_torchs_antialiased_bilinear():
    policy = make(resize_shape=(33, 20))
    images = torch.randn(2, 3, 36, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = F.interpolate(images, size=(33, 20), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(policy._resized(images), expected, atol=1e-5, rtol=1e-5)


def test_the_crop_is_centred_when_acting_and_at_the_drawn_offset_in_training():
    policy = make(crop_shape=(33, 40))
    images = torch.arange(36 * 50.0).reshape(1, 1, 36, 50)
    # round(1.5) is 2: halves go to the even number, as torchvision's centre crop does.
    assert torch.equal(policy._cropped(images, None), images[..., 2:35, 5:45])
    assert torch.equal(policy._cropped(images, torch.tensor([0, 7])), images[..., 0:33, 7:47])


def test_separate_encoders_draw_a_crop_each_a_shared_one_a_single_crop():
    separate, shared = (
        make(crop_shape=(20, 20)),
        make(crop_shape=(20, 20), use_separate_rgb_encoder_per_camera=False),
    )
    assert separate.draw(batch_for(separate))["crop_offsets"].shape == (2, 2)
    assert shared.draw(batch_for(shared))["crop_offsets"].shape == (1, 2)
    assert "crop_offsets" not in make().draw(batch_for(make()))
    many = torch.cat([separate.draw(batch_for(separate))["crop_offsets"] for _ in range(300)])
    assert many.amin(0).tolist() == [0, 0]
    assert many.amax(0).tolist() == [16, 30]


def test_crop_follows_from_the_ratio_when_images_are_resized():
    assert DiffusionConfig(resize_shape=(100, 90), crop_ratio=0.95).crop == (95, 85)
    assert DiffusionConfig(resize_shape=(100, 90), crop_shape=(5, 5)).crop is None
    assert DiffusionConfig(crop_shape=(84, 84), crop_ratio=0.5).crop == (84, 84)


def test_batch_norm_learns_in_training_and_rests_when_acting():
    policy = make()
    bn = policy.rgb_encoder[0].backbone[1]
    batch = batch_for(policy)
    policy.eval().loss(batch, policy.draw(batch))
    assert int(bn.num_batches_tracked) == 0
    policy.train().loss(batch, policy.draw(batch))
    assert int(bn.num_batches_tracked) == 1


def test_trunks_start_from_torchvisions_weights(tmp_path):
    from edgevla.train.nn.resnet import ResNet, ResNetShape

    donor = ResNet(ResNetShape.named("resnet18"), nn.BatchNorm2d)
    torch.save(donor.state_dict(), tmp_path / "resnet18.pth")
    policy = new_policy(
        "diffusion",
        features(CAMERAS, (36, 50), False),
        STATS,
        TINY,
        backbone_weights=tmp_path / "resnet18.pth",
        say=lambda _: None,
    )
    image = torch.rand(1, 3, 36, 50)
    for encoder in policy.rgb_encoder:
        torch.testing.assert_close(encoder.backbone.eval()(image), donor.eval()(image))


def test_windows_reach_back_to_the_first_observation():
    config = DiffusionConfig(n_obs_steps=3, horizon=8, n_action_steps=4, down_dims=(8,))
    assert config.observation_indices == [-2, -1, 0]
    assert config.action_indices == [-2, -1, 0, 1, 2, 3, 4, 5]
    assert config.drop_n_last_frames == 7


def test_the_published_pusht_layout():
    """lerobot/diffusion_pusht on the hub: 213 tensors, 262,709,026 parameters."""
    shapes = {
        "observation.image": {
            "dtype": "video",
            "shape": (96, 96, 3),
            "names": ["height", "width", "channel"],
        },
        "observation.state": {"dtype": "float32", "shape": (2,)},
        "action": {"dtype": "float32", "shape": (2,)},
    }
    settings = {
        "horizon": 16,
        "n_action_steps": 8,
        "crop_shape": [84, 84],
        "use_group_norm": True,
        "use_separate_rgb_encoder_per_camera": False,
        "pretrained_backbone_weights": None,
    }
    with torch.device("meta"):
        policy = new_policy("diffusion", shapes, {}, settings, say=lambda _: None)
    assert len(policy.saved_weights()) == 213
    assert sum(p.numel() for p in policy.parameters()) == 262_709_026
    assert policy.rgb_encoder.pool.pos_grid.shape == (9, 2)

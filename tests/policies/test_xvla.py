"""X-VLA: what docs/policies.md#x-vla says, on the recorded tiny checkpoint and on hand-made numbers."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgevla.errors import CheckpointError
from edgevla.export.draft import draft_manifest
from edgevla.export.features import decide
from edgevla.export.options import ExportOptions
from edgevla.train.checkpoint import load_policy, save_policy
from edgevla.train.nn.florence import Florence, FlorenceDims, published_names
from edgevla.train.nn.rotation import rot6d_to_axis_angle
from edgevla.train.nn.soft_prompt import DomainLinear, SoftPromptedTransformer
from edgevla.train.policies.config import PolicyFeature
from edgevla.train.policies.xvla import XVla
from edgevla.train.policies.xvla_actions import ACTION_SPACES, ActionSpace, Term, action_space
from edgevla.train.policies.xvla_config import XVlaConfig
from edgevla.train.processors import Step

GOLDEN = Path(__file__).parents[1] / "fixtures" / "goldens" / "xvla" / "checkpoint"


@pytest.fixture
def policy() -> XVla:
    torch.manual_seed(0)
    loaded = load_policy(GOLDEN)
    assert isinstance(loaded, XVla)
    return loaded


def observation(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "camera:observation.images.image": torch.randint(
            0, 256, (1, 48, 64, 3), generator=generator, dtype=torch.uint8
        ),
        "camera:observation.images.image2": torch.randint(
            0, 256, (1, 64, 40, 3), generator=generator, dtype=torch.uint8
        ),
        "prompt:tokens": torch.randint(3, 40, (1, 16), generator=generator),
        "state": torch.randn(1, 7, generator=generator),
        "rtc:committed": torch.randn(1, 8, 6, generator=generator),
        "rtc:weights": torch.zeros(1, 8),
    }


def batch(n: int = 4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "observation.images.image": torch.randint(
            0, 256, (n, 48, 64, 3), generator=generator, dtype=torch.uint8
        ),
        "observation.images.image2": torch.randint(
            0, 256, (n, 64, 40, 3), generator=generator, dtype=torch.uint8
        ),
        "observation.state": torch.randn(n, 7, generator=generator),
        "action": torch.randn(n, 8, 6, generator=generator),
        "action_is_pad": torch.zeros(n, 8, dtype=torch.bool),
        "tokens": torch.randint(3, 40, (n, 16), generator=generator),
        "token_mask": torch.ones(n, 16, dtype=torch.bool),
    }


def test_florence_is_the_transformers_librarys() -> None:
    """The published encoder by another implementation: names mapped, one matrix transposed, the same numbers."""
    from transformers import Florence2Config, Florence2Model

    torch.manual_seed(0)
    vision = {
        "embed_dim": [8, 16, 16, 32],
        "num_heads": [1, 2, 2, 4],
        "num_groups": [1, 2, 2, 4],
        "depths": [1, 1, 2, 1],
        "window_size": 3,
        "projection_dim": 32,
        "max_position_embeddings": 20,
        "max_temporal_embeddings": 4,
    }
    text = {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_ffn_dim": 48,
        "encoder_attention_heads": 4,
        "vocab_size": 60,
    }
    library = {
        **text,
        "model_type": "bart",
        "decoder_layers": 1,
        "decoder_ffn_dim": 8,
        "decoder_attention_heads": 2,
    }
    theirs = Florence2Model(Florence2Config(vision_config=vision, text_config=library)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    geometry = {
        "patch_size": [7, 3, 3, 3],
        "patch_stride": [4, 2, 2, 2],
        "patch_padding": [3, 1, 1, 1],
        "patch_prenorm": [False, True, True, True],
    }
    config = {
        "vision_config": {**vision, **geometry},
        "text_config": {**text, "max_position_embeddings": 1024},
    }
    ours = Florence(FlorenceDims.from_json(config)).eval()
    weights = {k: v for k, v in theirs.state_dict().items() if ".decoder." not in k and ".shared." not in k}
    missing, unexpected = ours.load_state_dict(published_names(weights), strict=False)
    assert missing == ["language_model.final_logits_bias"]
    assert not unexpected
    images, tokens = torch.randn(2, 3, 64, 64), torch.randint(3, 60, (2, 7))
    with torch.no_grad():
        expected = theirs.get_image_features(images).pooler_output
        found = ours.image_features(images)
        torch.testing.assert_close(found, expected.reshape(found.shape), atol=1e-5, rtol=1e-4)
        embeddings = torch.cat([found, theirs.get_input_embeddings()(tokens)], dim=1)
        encoder = theirs.language_model.encoder
        both = encoder(
            inputs_embeds=embeddings, attention_mask=torch.ones(embeddings.shape[:2])
        ).last_hidden_state
        torch.testing.assert_close(ours.encode(found, tokens), both, atol=1e-5, rtol=1e-4)


def test_time_embedding_has_the_published_values() -> None:
    config = XVlaConfig(
        hidden_size=8, depth=1, num_heads=2, num_domains=2, len_soft_prompts=2, max_len_seq=16
    )
    row = SoftPromptedTransformer(config, 8, 20)._time(torch.tensor([0.5]))[0]
    expected = {0: 0.877583, 1: 0.930527, 15: 0.999978, 16: 0.479426, 17: 0.366223, 31: 0.006668}
    assert {i: round(float(row[i]), 6) for i in expected} == pytest.approx(expected, abs=2e-6)


def test_a_domains_matrix_is_stored_in_by_out() -> None:
    layer = DomainLinear(3, 4, 5)
    one_hot = torch.eye(4)[None]
    domain = torch.tensor([2])
    torch.testing.assert_close(
        layer(one_hot, domain)[0], layer.fc.weight[2].view(4, 5) + layer.bias.weight[2]
    )
    layer.bake(2)
    torch.testing.assert_close(
        layer(one_hot, domain)[0], layer.fc.weight[2].view(4, 5) + layer.bias.weight[2]
    )


def test_baking_a_domain_changes_no_number(policy: XVla) -> None:
    noise = torch.randn(1, *policy.sample_shape)
    before = policy.sample([observation()], noise=noise)
    policy.bake()
    torch.testing.assert_close(policy.sample([observation()], noise=noise), before)


def test_one_step_is_one_prediction_from_the_noise(policy: XVla) -> None:
    noise, values = torch.randn(1, *policy.sample_shape), observation()
    sampler = policy.sampler()
    context = sampler.encode(values)
    x = sampler.solve(context, values, noise=noise, n_steps=1)
    torch.testing.assert_close(x, policy.predict(context, noise, torch.ones(1), {}))


def test_the_text_padding_is_part_of_the_model(policy: XVla) -> None:
    """Padding is not masked: changing what stands in the padding changes the actions."""
    noise, one, other = torch.randn(1, *policy.sample_shape), observation(), observation()
    other["prompt:tokens"] = one["prompt:tokens"].clone()
    other["prompt:tokens"][0, -1] = 1
    assert not torch.allclose(policy.sample([one], noise=noise), policy.sample([other], noise=noise))


def test_rtc_inpaints_and_zero_weights_are_the_plain_step(policy: XVla) -> None:
    noise, values = torch.randn(1, *policy.sample_shape), observation()
    plain = policy.sample([{k: v for k, v in values.items()}], noise=noise)
    without = dict(values)
    context = policy.encode(values)
    extras = {"noise:initial": noise}
    step = policy.denoise(context, noise, torch.ones(1), torch.full((1,), 0.8), extras)
    rtc = {**extras, "rtc:committed": values["rtc:committed"], "rtc:weights": values["rtc:weights"]}
    assert torch.equal(step, policy.denoise(context, noise, torch.ones(1), torch.full((1,), 0.8), rtc))
    without["rtc:weights"] = torch.tensor([[1.0] * 3 + [0.0] * 5])
    guided = policy.sample([without], noise=noise)
    torch.testing.assert_close(guided[:, :3], values["rtc:committed"][:, :3], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(guided[:, 3:], plain[:, 3:])


def test_times_of_a_batch_are_spread_evenly(policy: XVla) -> None:
    times = policy.times(torch.tensor([0.9]), 4)
    expected = [(0.9 + i / 4) % (1 - 1e-5) for i in range(4)]
    assert times.tolist() == pytest.approx(expected, abs=1e-6)


def test_everything_with_vlm_in_its_name_learns_at_a_tenth(policy: XVla) -> None:
    groups = {group["name"]: group for group in policy.optimizer_groups()}
    lr = policy.config.optimizer_lr
    assert groups["vlm"]["lr"] == pytest.approx(0.1 * lr)
    slow = {id(p) for p in groups["vlm"]["params"]}
    assert id(policy.transformer.vlm_proj.weight) in slow  # type: ignore[arg-type]
    assert groups["other"]["lr"] == pytest.approx(lr)
    assert {id(p) for p in groups["soft_prompts"]["params"]} == {
        id(policy.transformer.soft_prompt_hub.weight)
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # predicted 0, target 1 on every channel: MSE 1, BCE log 2
        ("ee6d", {"position_loss": 1000.0, "rotate6D_loss": 20.0, "gripper_loss": math.log(2)}),
        ("agibot_ee6d", {"position_loss": 1000.0, "rotate6D_loss": 20.0, "gripper_loss": 10.0}),
        ("joint", {"joints_loss": 1.0, "gripper_loss": 0.1 * math.log(2)}),
        ("franka_joint7", {"joints_loss": 1.0}),
        (
            "so101_bimanual",
            {"joints_loss": 1.0, "gripper_loss": 1.0, "left_arm_loss": 1.0, "right_arm_loss": 1.0},
        ),
    ],
)
def test_loss_terms_of_an_action_space(name: str, expected: dict[str, float]) -> None:
    space = action_space(XVlaConfig(action_mode=name))
    predicted, target = torch.zeros(1, 1, space.width), torch.ones(1, 1, space.width)
    assert {k: float(v) for k, v in space.losses(predicted, target).items()} == pytest.approx(
        expected, rel=1e-5
    )


def six_joints(config: XVlaConfig) -> ActionSpace:
    """A user's own space on the recorded network of ten channels: five joints and a gripper."""
    parts = {"arm_loss": (Term(2.0, "mse", (0, 1, 2, 3, 4)),), "grip_loss": (Term(0.5, "bce", (5,)),)}
    return ActionSpace("six_joints", 10, 6, parts, is_joint=True, zeroed=(5,), squashed=(5,))


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, policy: XVla) -> XVla:
    """The recorded checkpoint with the user's space."""
    monkeypatch.setitem(ACTION_SPACES, "six_joints", six_joints)
    policy.config.action_mode = "six_joints"
    made = XVla(policy.config, policy.processors).eval()
    made.load_state_dict(policy.state_dict())
    return made


def test_the_losses_of_a_users_own_space(own: XVla) -> None:
    data = batch()
    draws = own.draw(data, torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss, parts = own.loss(data, draws)
        predicted, _, _ = own.training_prediction(data, draws)
        target = own.target(data["action"])
        arm = 2 * ((predicted - target)[..., :5] ** 2).mean()
        p, t = predicted[..., 5], target[..., 5]
        grip = 0.5 * (p.clamp(min=0) - p * t + torch.log1p(torch.exp(-p.abs()))).mean()
    torch.testing.assert_close(parts["arm_loss"], arm)
    torch.testing.assert_close(parts["grip_loss"], grip)
    torch.testing.assert_close(loss, arm + grip)


def test_what_stands_before_and_behind_the_network_in_a_users_own_space(own: XVla) -> None:
    """The gripper is hidden from the network in state and sample, and squashed on its way out."""
    one, other = observation(), observation()
    other["state"] = one["state"].clone()
    other["state"][0, 5] += 1
    noise = torch.randn(1, *own.sample_shape)
    louder = noise.clone()
    louder[..., 5] += 1
    with torch.no_grad():
        context = own.encode(one)
        assert torch.equal(context["proprio"], own.encode(other)["proprio"])
        x = own.predict(context, noise, torch.ones(1), {})
        assert torch.equal(x, own.predict(context, louder, torch.ones(1), {}))
        actions = own.decode(x, {})
    expected = torch.cat([x[..., :5], x[..., 5:6].sigmoid()], dim=-1)
    torch.testing.assert_close(own.normalizers("action", actions), expected, atol=1e-5, rtol=1e-5)


def test_a_size_that_cannot_be_is_refused() -> None:
    with pytest.raises(CheckpointError, match="xvla: num_denoising_steps is 0"):
        XVlaConfig.from_json({"num_denoising_steps": 0})


def test_a_space_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="did you mean 'joint'"):
        action_space(XVlaConfig(action_mode="joints"))
    with pytest.raises(CheckpointError, match="names channel 12, but has 0 to 9"):
        ActionSpace("wide", 10, 6, {"loss": (Term(1.0, "mse", (0, 12)),)}, is_joint=True)
    with pytest.raises(CheckpointError, match="12 real of 10 channels"):
        ActionSpace("narrow", 10, 12, {}, is_joint=True)
    monkeypatch.setitem(ACTION_SPACES, "nothing", lambda config: None)
    with pytest.raises(CheckpointError, match="made a NoneType"):
        action_space(XVlaConfig(action_mode="nothing"))


def test_squashed_channels_go_out_and_come_back() -> None:
    space = action_space(XVlaConfig(action_mode="so101_bimanual"))
    x = torch.randn(1, 3, 20)
    out = space.output(x)
    assert out.shape == (1, 3, 12)
    assert ((out[..., [5, 11]] > 0) & (out[..., [5, 11]] < 1)).all()
    torch.testing.assert_close(space.inverse_output(out), x[..., :12], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("angle", [0.0, 1e-4, 0.7, 3.0, math.pi])
def test_two_columns_of_a_rotation_become_its_axis_and_angle(angle: float) -> None:
    axis = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64), dim=0)
    k = torch.tensor(
        [[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]], dtype=torch.float64
    )
    rotation = torch.eye(3, dtype=torch.float64) + math.sin(angle) * k + (1 - math.cos(angle)) * (k @ k)
    action = torch.cat(
        [torch.tensor([1.0, 2.0, 3.0]).double(), rotation[:, 0], rotation[:, 1], torch.tensor([0.7])]
    )
    found = rot6d_to_axis_angle(action[None])[0]
    assert torch.isfinite(found).all()
    expected = axis * angle
    same = torch.allclose(found[3:6], expected, atol=1e-5)
    opposite = angle == math.pi and torch.allclose(found[3:6], -expected, atol=1e-5)
    assert same or opposite
    assert found[:3].tolist() == [1, 2, 3]
    assert found[6] == 1


def test_views_lie_at_the_bottom_right_on_the_mean_colour(policy: XVla) -> None:
    view = policy.view("observation.images.image", torch.full((1, 48, 64, 3), 255, dtype=torch.uint8))
    assert view.shape == (1, 3, 64, 64)
    assert (view[:, :, :16] == 0).all()
    assert (view[:, :, 16:] > 2).all()


def test_the_number_of_views_survives_saving(policy: XVla, tmp_path: Path) -> None:
    policy.config.empty_cameras = 1
    policy.config.validate()
    assert policy.config.n_views == 3
    policy.config_keys = None
    again = load_policy(save_policy(policy, tmp_path / "saved"))
    assert isinstance(again, XVla)
    assert again.config.n_views == 3
    assert again.live_cameras == policy.live_cameras


@pytest.mark.parametrize(("changes", "n_names"), [({"len_soft_prompts": 0}, -1), ({"dim_time": 15}, 0)])
def test_no_prompts_and_an_odd_time_width(policy: XVla, changes: dict[str, Any], n_names: int) -> None:
    """As the reference: without prompts there is no table of them; an odd time embedding ends in a zero."""
    config = dataclasses.replace(policy.config, **changes)
    other = XVla(config, policy.processors).eval()
    assert len(other.state_dict()) == len(policy.state_dict()) + n_names
    noise = torch.randn(1, *other.sample_shape)
    before = other.sample([observation()], noise=noise)
    other.bake()
    torch.testing.assert_close(other.sample([observation()], noise=noise), before)


def test_image_steps_are_done_in_the_pipelines_order(policy: XVla) -> None:
    """`xvla_image_scale` is undone by `xvla_image_to_float` behind it; `image_keys` are the only ones changed."""
    first, second = policy.live_cameras
    frames = observation()[f"camera:{first}"]
    plain = policy.view(first, frames)
    pre = policy.processors.pre
    at = [s.name for s in pre].index("xvla_image_to_float")
    pre.insert(at, Step("xvla_image_scale"))
    torch.testing.assert_close(policy.view(first, frames), plain)
    del pre[at]
    pre[at + 1].config["image_keys"] = [second]
    assert policy.view(first, frames).max() <= 1
    torch.testing.assert_close(policy.view(second, frames), plain)


@pytest.mark.parametrize("is_pose", [False, True])
def test_a_bundle_offers_rtc_where_its_graph_takes_it(policy: XVla, is_pose: bool) -> None:
    """Axis and angle do not say which two columns of the rotation were commanded."""
    twenty = {"action": PolicyFeature("ACTION", (20,))}
    config = dataclasses.replace(policy.config, action_mode="ee6d", output_features=twenty, max_state_dim=20)
    if is_pose:
        policy.processors.post.insert(1, Step("xvla_rotation_6d_to_axis_angle"))
    poses = XVla(config, policy.processors)
    options = ExportOptions(fps=30, joint_units="raw")
    manifest = draft_manifest(poses, GOLDEN, None, decide(poses, None, options, ""), options)
    assert (manifest.rtc is None) == ("rtc" not in manifest.execution.allowed) == is_pose
    assert manifest.execution.default["kind"] == ("sync" if is_pose else "rtc")


def test_text_of_no_fixed_length_has_no_graph(policy: XVla) -> None:
    step = policy.processors.step("tokenizer_processor")
    assert step is not None
    step.config["padding"] = "longest"
    lengths = {policy.prompt_builder().build([task]).tokens.shape[1] for task in ("go", "go there")}
    assert len(lengths) == 2
    with pytest.raises(CheckpointError, match="max_length"):
        policy.bake()


@pytest.mark.parametrize("name", ["gelu", "relu"])
def test_florence_reads_its_activation(policy: XVla, name: str) -> None:
    config = copy.deepcopy(policy.config.florence_config)
    config["text_config"]["activation_function"] = name
    layer = Florence(FlorenceDims.from_json(config)).language_model.model.encoder.layers[0]
    assert layer.activation is getattr(torch.nn.functional, name)
    config["text_config"]["activation_function"] = "tanh"
    with pytest.raises(CheckpointError, match="tanh"):
        Florence(FlorenceDims.from_json(config))


def test_it_overfits_one_batch(policy: XVla) -> None:
    data = batch()
    draws = policy.draw(data, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss, _ = policy.loss(data, draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]

"""Pi0's own: the state token, bidirectional actions, key repairs, dtypes, relative actions, published sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from vla_kit import MakeVla, chunk_of, no_guidance, random_batch

from edgevla.errors import CheckpointError, UsageError
from edgevla.export.features import decide
from edgevla.export.options import ExportOptions
from edgevla.train.checkpoint import load_policy, save_policy
from edgevla.train.nn.image import resize_with_pad
from edgevla.train.policies import aloha
from edgevla.train.policies.pi import SIGLIP, VARIANTS, PiDims
from edgevla.train.policies.pi0 import Pi0, Pi0Config
from edgevla.train.policies.pi05 import Pi05, Pi05Config
from edgevla.train.processors import Processors

ROOT = "model.paligemma_with_expert."


@torch.no_grad()
def test_actions_see_each_other_but_the_state_sees_none(make_vla: MakeVla) -> None:
    policy = make_vla("pi0")
    context = policy.encode(policy.inputs(random_batch(policy)))
    x = torch.randn(2, *policy.sample_shape)
    changed = x.clone()
    changed[:, 5] += 1
    tau = torch.full((2,), 0.6)
    before, after = (policy.predict(context, v, tau, {}) for v in (x, changed))
    assert ((after - before).abs().amax((0, 2)) > 1e-6).all(), "bidirectional: every action moves"
    suffixes = [
        policy.embed_suffix(v, context["state_padded"], policy.time(tau)["time_embedding"])
        for v in (x, changed)
    ]
    rope, bias = policy.after_prefix(context["prefix_mask"], [True, True] + [False] * 7)
    hidden = [policy.expert(s, rope, bias, context["kv"])[:, 0] for s in suffixes]
    assert torch.equal(*hidden)


@torch.no_grad()
def test_the_prefix_is_bidirectional_and_state_free(make_vla: MakeVla) -> None:
    policy = make_vla("pi0")
    inputs = policy.inputs(random_batch(policy))
    one, two = policy.encode(inputs), policy.encode({**inputs, "state": inputs["state"] + 1})
    assert torch.equal(one["kv"], two["kv"])
    assert not torch.equal(one["state_padded"], two["state_padded"])
    words = {**inputs, "prompt:tokens": inputs["prompt:tokens"].roll(1, 1)}
    changed = policy.encode(words)["kv"]
    assert not torch.equal(one["kv"][1, :, :, :, 0], changed[1, :, :, :, 0]), (
        "the first image token sees the words"
    )


def test_resize_keeps_the_picture_centred() -> None:
    fitted = resize_with_pad(torch.ones(1, 3, 480, 640), 224, 224, place="center", clamp=True) * 2 - 1
    torch.testing.assert_close(fitted[:, :, 28:196], torch.ones(1, 3, 168, 224))
    assert (fitted[:, :, :28] == -1).all()
    assert (fitted[:, :, 196:] == -1).all()
    odd = resize_with_pad(torch.ones(1, 3, 10, 9), 10, 10, place="center")
    assert (odd[..., 9] == 0).all()
    assert (odd[..., :9] == 1).all(), "the odd pixel of padding is on the right"


# -- names ------------------------------------------------------------------------------------------------


def rewritten(folder: Path, change: Any) -> Path:
    weights = change(load_file(str(folder / "model.safetensors")))
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def without(*names: str) -> Any:
    return lambda weights: {k: v for k, v in weights.items() if k not in names}


@pytest.fixture(params=["pi0", "pi05"])
def saved(request: pytest.FixtureRequest, make_vla: MakeVla, tmp_path: Path) -> tuple[Any, Path]:
    """Head and embedding of their own, as LeRobot writes them since 0.5."""
    policy = make_vla(str(request.param))
    torch.nn.init.normal_(policy.paligemma.lm_head.weight)
    return policy, save_policy(policy, tmp_path / "policy")


EMBEDDING = f"{ROOT}paligemma.model.language_model.embed_tokens.weight"
HEAD = f"{ROOT}paligemma.lm_head.weight"
EXPERT_HEAD = f"{ROOT}gemma_expert.lm_head.weight"


@pytest.mark.parametrize(
    "change",
    [
        without(EXPERT_HEAD),
        without(HEAD),
        lambda weights: {k.removeprefix("model."): v for k, v in weights.items()},
        lambda weights: {
            k.replace("action_time_mlp", "time_mlp").removeprefix("model."): v for k, v in weights.items()
        },
        lambda weights: {k.replace("model.time_mlp", "model.action_time_mlp"): v for k, v in weights.items()},
        lambda weights: {k: v.to(torch.bfloat16).float() if v.ndim == 1 else v for k, v in weights.items()},
    ],
    ids=["no-expert-head", "no-head", "unprefixed", "openpi-time", "pi0-time", "rounded-vectors"],
)
def test_known_variants_of_the_file_load(
    saved: tuple[Any, Path], change: Any, request: pytest.FixtureRequest
) -> None:
    policy, folder = saved
    again = load_policy(rewritten(folder, change))
    stored = len(load_file(folder / "model.safetensors"))
    assert len(again.saved_weights()) == stored, "saving gave names that the file had not"
    batch = random_batch(policy)
    tolerance = 0.1 if "rounded" in request.node.name else 0
    torch.testing.assert_close(chunk_of(again, batch), chunk_of(policy, batch), atol=tolerance, rtol=0)


def test_only_the_head_is_stored(saved: tuple[Any, Path]) -> None:
    """LeRobot 0.4 stores the tied matrix under the alphabetically first name."""
    policy, folder = saved
    batch = random_batch(policy)
    expected = chunk_of(policy, batch)

    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights[HEAD] = weights.pop(EMBEDDING)
        return weights

    again = load_policy(rewritten(folder, change))
    assert torch.equal(again.language.embed_tokens.weight, policy.language.embed_tokens.weight)
    assert torch.equal(chunk_of(again, batch), expected)


@pytest.mark.parametrize("kept", [EMBEDDING, HEAD])
def test_a_tied_embedding_is_saved_under_the_name_it_came_with(
    saved: tuple[Any, Path], tmp_path: Path, kept: str
) -> None:
    """Trained on, and read again: one matrix, one name."""
    policy, folder = saved
    other = {EMBEDDING: HEAD, HEAD: EMBEDDING}[kept]

    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights[kept] = weights.pop(EMBEDDING)
        return without(other)(weights)

    again = load_policy(rewritten(folder, change))
    with torch.no_grad():
        again.language.embed_tokens.weight += 1
    names = load_file(save_policy(again, tmp_path / "again") / "model.safetensors")
    assert kept in names
    assert other not in names
    assert names.keys() == load_file(folder / "model.safetensors").keys()
    third = load_policy(tmp_path / "again")
    assert torch.equal(third.language.embed_tokens.weight, policy.language.embed_tokens.weight + 1)


def test_the_embedding_wins_over_a_stale_head(saved: tuple[Any, Path]) -> None:
    policy, folder = saved
    again = load_policy(folder)
    assert not torch.equal(again.paligemma.lm_head.weight, again.language.embed_tokens.weight)
    assert torch.equal(again.language.embed_tokens.weight, policy.language.embed_tokens.weight)


def test_a_sibling_of_the_other_kind_is_refused(saved: tuple[Any, Path]) -> None:
    policy, folder = saved
    other = {"pi0": "pi05", "pi05": "pi0"}[policy.policy_type]
    text = (
        (folder / "config.json").read_text().replace(f'"type": "{policy.policy_type}"', f'"type": "{other}"')
    )
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="is none that EdgeVLA computes for"):
        load_policy(folder)


# -- dtypes, freezing, sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_bfloat16_keeps_its_islands(kind: str, make_vla: MakeVla) -> None:
    policy = make_vla(kind, dtype="bfloat16")
    kept = (
        "vision_tower",
        "multi_modal_projector",
        "input_layernorm",
        "post_attention_layernorm",
        "model.norm",
    )
    for name, parameter in policy.named_parameters():
        is_island = any(k in name for k in kept) or "paligemma_with_expert" not in name
        assert parameter.dtype == (torch.float32 if is_island else torch.bfloat16), name
    batch = random_batch(policy)
    context = policy.encode(policy.inputs(batch))
    assert [str(context[s.name].dtype) for s in policy.context_specs()] == [
        f"torch.{s.dtype}" for s in policy.context_specs()
    ]
    loss, _ = policy.train().loss(batch, policy.draw(batch))
    loss.backward()
    assert loss.dtype == torch.float32
    close, exact = chunk_of(policy.eval(), batch), chunk_of(make_vla(kind), batch)
    assert close.dtype == torch.float32
    assert 0 < float((close - exact).norm() / exact.norm()) < 0.15


def test_what_is_frozen(make_vla: MakeVla) -> None:
    everything = make_vla("pi0")
    assert all(p.requires_grad for p in everything.parameters())
    blind = make_vla("pi0", freeze_vision_encoder=True)
    frozen = {n for n, p in blind.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in blind.named_parameters() if "vision_tower" in n}
    expert = make_vla("pi0", train_expert_only=True)
    frozen = {n for n, p in expert.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in expert.named_parameters() if ".paligemma." in n}


def test_published_sizes() -> None:
    """docs/policies.md#pi0, #pi05: tensors, and parameters without the copy of the embedding."""
    features = {"output_features": {"action": {"type": "ACTION", "shape": [6]}}}
    for cls, config_cls, tensors, parameters in (
        (Pi0, Pi0Config, 778, 3_501_372_176),
        (Pi05, Pi05Config, 813, 3_616_757_520),
    ):
        config = config_cls.from_json({"type": config_cls.type, **features})
        dims = PiDims.of(SIGLIP, VARIANTS["gemma_2b"], VARIANTS["gemma_300m"], adaptive=cls.adaptive)
        with torch.device("meta"):
            policy = cls(config, Processors(), dims)
        weights = policy.state_dict()
        assert len(weights) == tensors
        head = weights["paligemma_with_expert.paligemma.lm_head.weight"]
        assert sum(w.numel() for w in weights.values()) - head.numel() == parameters
        text = policy.dims.text
        specs = policy.context_specs() if policy.live_cameras else ()
        assert (text.depth, text.kv_heads, text.head_dim) == (18, 1, 256)
        assert not specs or specs[0].shape[0] == 18


def test_unknown_variant_and_dtype_are_refused(make_vla: MakeVla) -> None:
    with pytest.raises(CheckpointError, match="gemma_9b"):
        make_vla("pi0", paligemma_variant="gemma_9b")
    with pytest.raises(CheckpointError, match="float16"):
        make_vla("pi0", dtype="float16")
    with pytest.raises(CheckpointError, match="squares"):
        make_vla("pi0", image_resolution=(64, 32))


def test_a_backbone_config_that_leaves_out_a_size_is_named() -> None:
    text = {k: v for k, v in VARIANTS["gemma_2b"].items() if k != "num_hidden_layers"}
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        PiDims.of(SIGLIP, text, VARIANTS["gemma_300m"], adaptive=False)


# -- relative actions -------------------------------------------------------------------------------------

NAMES = ["pan.pos", "lift.pos", "elbow.pos", "wrist.pos", "roll.pos", "Gripper.pos"]


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
@torch.no_grad()
def test_relative_actions(kind: str, make_vla: MakeVla) -> None:
    policy = make_vla(kind, use_relative_actions=True, action_feature_names=NAMES)
    plain = make_vla(kind)
    assert policy.relative.tolist() == [1, 1, 1, 1, 1, 0], "the gripper stays absolute, whatever its case"
    state = torch.randn(2, 6)
    x = torch.randn(2, *policy.sample_shape)
    relative = policy.decode(x, {"state": state})
    offset = torch.cat([state[:, :5], torch.zeros(2, 1)], dim=1)[:, None]
    torch.testing.assert_close(relative, plain.decode(x, {}) + offset)
    x[..., 6:] = 0
    torch.testing.assert_close(policy.to_network(relative, state), x, atol=1e-5, rtol=1e-4)
    graphs = policy.graphs()
    assert [s.source for s in graphs["decode"].inputs] == ["x", "state"]
    assert "context:raw_state" in [s.source for s in graphs["denoise"].inputs]


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
@torch.no_grad()
def test_guidance_of_relative_actions_is_relative_to_the_observation(kind: str, make_vla: MakeVla) -> None:
    policy = make_vla(kind, use_relative_actions=True, action_feature_names=NAMES)
    batch = random_batch(policy)
    state = {"state": batch["observation.state"]}
    committed = policy.decode(torch.randn(2, *policy.sample_shape), state)
    guided = {**no_guidance(policy, 2), "rtc:committed": committed, "rtc:weights": torch.ones(2, 8)}
    far = (policy.decode(chunk_of(policy, batch), state) - committed).abs().mean()
    near = (policy.decode(chunk_of(policy, batch, **guided), state) - committed).abs().mean()
    assert near < 0.5 * far


def test_relative_actions_survive_saving_and_both_names_of_the_step(
    make_vla: MakeVla, tmp_path: Path
) -> None:
    policy = make_vla("pi0", use_relative_actions=True, action_feature_names=NAMES)
    folder = save_policy(policy, tmp_path / "policy")
    path = folder / "policy_preprocessor.json"
    path.write_text(path.read_text().replace("relative_actions_processor", "delta_actions_processor"))
    again = load_policy(folder)
    assert again.is_relative
    assert torch.equal(again.relative, policy.relative)
    post = folder / "policy_postprocessor.json"
    post.write_text(post.read_text().replace('"enabled": true', '"enabled": false'))
    with pytest.raises(CheckpointError, match="would be driven as positions"):
        load_policy(folder)


# -- ALOHA ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_openpis_aloha_map_stands_outside_the_policy(make_vla: MakeVla) -> None:
    """The export's option: the same policy, with state, committed actions and actions mapped at the door."""
    plain, mapped = (make_vla("pi0", dim=14) for _ in range(2))
    options = ExportOptions(fps=50, joint_units="raw", adapt_to_pi_aloha=True)
    decide(mapped, None, options, "")
    generator = torch.Generator().manual_seed(0)
    state = torch.rand(1, 14, generator=generator)
    committed = torch.rand(1, plain.config.chunk_size, 14, generator=generator)
    batch = random_batch(plain, n=1)
    rtc = {"rtc:weights": torch.ones(1, plain.config.chunk_size)}
    seen = {"state": aloha.state_to_pi(state), "rtc:committed": aloha.actions_to_pi(committed)}
    expected = chunk_of(plain, batch, **rtc, **seen)
    found = chunk_of(mapped, batch, **rtc, state=state, **{"rtc:committed": committed})
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(mapped.decode(found, {}), aloha.actions_from_pi(plain.decode(expected, {})))
    assert not torch.allclose(chunk_of(plain, batch, **rtc, state=state), expected)


def test_the_aloha_map_is_for_fourteen_joints_in_radians_of_pi0(make_vla: MakeVla) -> None:
    options = ExportOptions(fps=50, joint_units="raw", adapt_to_pi_aloha=True)
    with pytest.raises(UsageError, match="14 joints"):
        decide(make_vla("pi0"), None, options, "")
    with pytest.raises(UsageError, match="pi05"):
        decide(make_vla("pi05"), None, options, "")

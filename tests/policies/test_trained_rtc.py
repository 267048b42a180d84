"""Training-time real-time chunking, against another reading of the method (arXiv 2512.05964) that is written out here.

That reading runs the same network in another way: nothing is masked inside it. A sample is one sequence of action
tokens, each with a time of its own, and the embedding of a time is computed for each token anew.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from vla_kit import MakeVla, no_guidance, random_batch

from edgevla.engines import load_graph
from edgevla.errors import CheckpointError
from edgevla.export.trace import save, trace
from edgevla.policy import Sampler
from edgevla.train.checkpoint import load_policy, save_policy
from edgevla.train.nn import commit
from edgevla.train.policies.base import Policy
from edgevla.train.policies.groot import Groot
from edgevla.train.policies.vla import FlowVla
from edgevla.train.policies.xvla import XVla

GOLDENS = Path(__file__).parents[1] / "fixtures" / "goldens"
KINDS = ["smolvla", "pi0", "pi05"]
LONGEST = 3
DELAYS = torch.tensor([0, 3])


def trained(make_vla: MakeVla, kind: str, **settings: Any) -> FlowVla:
    return make_vla(kind, rtc_training_max_delay=LONGEST, **settings)


def steps_of(policy: Policy, values: dict[str, Tensor], noise: Tensor) -> list[Tensor]:
    """x after every step."""
    seen: list[Tensor] = []
    sampler = policy.sampler()
    with torch.no_grad():
        context = sampler.merge([sampler.encode(values)])
        sampler.solve(context, values, noise=noise, on_step=lambda _, x: seen.append(x))
    return seen


def values_of(policy: FlowVla, batch: dict[str, Any], delays: Tensor) -> dict[str, Tensor]:
    n, length = len(delays), policy.config.chunk_size
    values = {"camera_present": torch.ones(n, len(policy.live_cameras), dtype=torch.bool)}
    values |= {**policy.inputs(batch), **no_guidance(policy, n)}
    values["rtc:committed"] = torch.randn(n, length, policy.config.action_dim)
    values["rtc:weights"] = (torch.arange(length) < delays[:, None]).float()
    return values


# -- the other reading ----------------------------------------------------------------------------------------


def sinusoids(times: Tensor, width: int, shortest: float, longest: float) -> Tensor:
    """Of every token's own time (B, T): sines, then cosines, in numpy's float64."""
    t = times.double().numpy()[..., None]
    periods = shortest * (longest / shortest) ** np.linspace(0, 1, width // 2)
    angle = 2 * math.pi * t / periods
    return torch.from_numpy(np.concatenate([np.sin(angle), np.cos(angle)], -1)).float()


def velocity_of_tokens(policy: FlowVla, context: dict[str, Tensor], x: Tensor, times: Tensor) -> Tensor:
    """The velocity where every action token has its own time (B, T)."""
    config, width = policy.config, policy.expert.dims.width
    embedded = sinusoids(times, width, config.min_period, config.max_period)
    if policy.policy_type == "pi05":
        return _adaptive(policy, context, x, embedded)
    rows = {"time_embedding": embedded}
    return policy.velocity(context, x, rows)


def _adaptive(policy: Any, context: dict[str, Tensor], x: Tensor, embedded: Tensor) -> Tensor:
    """Pi0.5's expert, layer by layer, with scale, shift and gate of every token."""
    condition = F.silu(policy.time_mlp_out(F.silu(policy.time_mlp_in(embedded))))
    rope, bias = policy.after_prefix(context["prefix_mask"], [True] + [False] * (x.shape[1] - 1))

    def norm(module: Any, h: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift, gate = module.dense(condition).chunk(3, dim=-1)
        unit = h / (h.square().mean(-1, keepdim=True) + module.eps).sqrt()
        return unit * (1 + scale) + shift, gate

    h = policy.action_in_proj(x)
    for i, layer in enumerate(policy.expert.layers):
        y, gate = norm(layer.input_layernorm, h)
        k, v = layer.self_attn.keys_values(y, rope)
        keys = torch.cat([context["kv"][i, 0], k], dim=2).repeat_interleave(
            layer.self_attn.heads // k.shape[1], 1
        )
        values = torch.cat([context["kv"][i, 1], v], dim=2).repeat_interleave(
            layer.self_attn.heads // k.shape[1], 1
        )
        q = layer.self_attn.queries(y, rope)
        scores = q @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
        h = h + gate * layer.self_attn.output(scores.softmax(-1) @ values)
        y, gate = norm(layer.post_attention_layernorm, h)
        h = h + gate * layer.mlp(y)
    return policy.action_out_proj(norm(policy.expert.norm, h)[0])


def normalised(policy: FlowVla, actions: Tensor) -> Tensor:
    """By the statistics' own numbers, in numpy; padded with zeros."""
    module: Any = policy.normalizers.forwards["action"]
    a, b = module.a.numpy(), module.b.numpy()
    y = actions.numpy()
    y = (y - a) / (b + 1e-8) if module.mode == "MEAN_STD" else 2 * (y - a) / (b - a) - 1
    return torch.from_numpy(
        np.pad(y, [(0, 0), (0, 0), (0, policy.config.max_action_dim - y.shape[-1])])
    ).float()


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_method(make_vla: MakeVla, kind: str) -> None:
    """Sample by sample: d clean actions at time 0, the rest mixed at the drawn time, the mean over the rest alone."""
    policy, n_real = trained(make_vla, kind), 6
    batch = random_batch(policy)
    draws = policy.draw(batch, torch.Generator().manual_seed(3)) | {"delay": DELAYS}
    with torch.no_grad():
        loss, parts = policy.loss(batch, draws)
        context = policy.encode(policy.inputs(batch))
        clean = normalised(policy, batch["action"])
        total, count, per_sample = 0.0, 0, []
        times = draws["time"][:, None].repeat(1, policy.config.chunk_size)
        x = clean.clone()
        for i, d in enumerate(DELAYS.tolist()):
            times[i, :d] = 0
            t = float(draws["time"][i])
            x[i, d:] = t * draws["noise"][i, d:] + (1 - t) * clean[i, d:]
        v = velocity_of_tokens(policy, context, x, times)
        for i, d in enumerate(DELAYS.tolist()):
            kept = [j for j in range(d, policy.config.chunk_size)]
            if kind == "smolvla":
                kept = [j for j in kept if not batch["action_is_pad"][i, j]]
            wrong = ((draws["noise"] - clean - v)[i, kept, :n_real] ** 2).numpy().astype(np.float64)
            total, count = total + wrong.sum(), count + wrong.size
            per_sample.append(wrong.mean())
    assert float(loss) == pytest.approx(total / count, rel=1e-4)
    np.testing.assert_allclose(parts["loss_per_sample"].numpy(), per_sample, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_that_of_the_method(make_vla: MakeVla, kind: str) -> None:
    policy = trained(make_vla, kind)
    batch = random_batch(policy)
    values = values_of(policy, batch, DELAYS)
    noise = torch.randn(2, *policy.sample_shape, generator=torch.Generator().manual_seed(7))
    ours = steps_of(policy, values, noise)
    clean = normalised(policy, values["rtc:committed"])
    with torch.no_grad():
        context = policy.encode(policy.inputs(batch))
        x = noise.clone()
        for step, (tau, then) in enumerate(pairwise(policy.schedule.taus().tolist())):
            times = torch.full(x.shape[:2], tau)
            for i, d in enumerate(DELAYS.tolist()):
                x[i, :d], times[i, :d] = clean[i, :d], 0
            x = x + (then - tau) * velocity_of_tokens(policy, context, x, times)
            for i, d in enumerate(DELAYS.tolist()):
                x[i, :d] = clean[i, :d]
            torch.testing.assert_close(ours[step], x, atol=2e-5, rtol=1e-4)
            assert torch.equal(ours[step][1, :3, 6:], torch.zeros(3, 2)), "padding of what is committed is 0"


# -- what it must hold to --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_delay_it_is_the_plain_policy_to_the_bit(make_vla: MakeVla, kind: str) -> None:
    policy, plain = trained(make_vla, kind), make_vla(kind)
    batch = random_batch(policy)
    values = values_of(policy, batch, torch.zeros(2))
    values["rtc:committed"] = values["rtc:committed"] * torch.inf
    noise = torch.randn(2, *policy.sample_shape, generator=torch.Generator().manual_seed(7))
    theirs = steps_of(plain, values | no_guidance(plain, 2), noise)
    for a, b in zip(steps_of(policy, values, noise), theirs, strict=True):
        assert torch.equal(a, b)
    draws = plain.draw(batch, torch.Generator().manual_seed(3))
    nothing = {**draws, "delay": torch.zeros(2, dtype=torch.int64)}
    torch.testing.assert_close(policy.loss(batch, nothing)[0], plain.loss(batch, draws)[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [*KINDS, "groot", "xvla"])
def test_committed_actions_teach_nothing(make_vla: MakeVla, kind: str) -> None:
    """Their noise is not seen, and their target is an input only."""
    policy = any_policy(make_vla, kind)
    batch = any_batch(policy)
    draws = policy.draw(batch, torch.Generator().manual_seed(3)) | {"delay": DELAYS}
    other = {**draws, "noise": draws["noise"].clone()}
    other["noise"][1, :3] += 5
    with torch.no_grad():
        torch.manual_seed(0)
        loss = policy.loss(batch, draws)[0]
        assert torch.equal(policy.loss(batch, other)[0], loss)
        other["noise"][1, 3:] += 5
        assert not torch.equal(policy.loss(batch, other)[0], loss)
        moved = {**batch, "action": batch["action"].clone()}
        moved["action"][1, 0] += 0.5
        assert not torch.equal(policy.loss(moved, draws)[0], loss), "what is committed is seen by the rest"


@pytest.mark.parametrize("kind", [*KINDS, "groot", "xvla"])
def test_delays_are_drawn_evenly_and_reproducibly(make_vla: MakeVla, kind: str) -> None:
    policy = any_policy(make_vla, kind)
    batch = {"action": torch.zeros(4000, policy.sample_shape[0], 6)}
    draws = policy.draw(batch, torch.Generator().manual_seed(1))
    counts = torch.bincount(draws["delay"], minlength=LONGEST + 1)
    assert len(counts) == LONGEST + 1
    assert (counts - 1000).abs().max() < 120
    again = policy.draw(batch, torch.Generator().manual_seed(1))
    assert torch.equal(again["delay"], draws["delay"])
    assert "delay" not in plain_policy(make_vla, kind).draw(batch)


@pytest.mark.parametrize("kind", [*KINDS, "groot", "xvla"])
def test_no_parameter_is_added(make_vla: MakeVla, kind: str) -> None:
    ours, theirs = any_policy(make_vla, kind).state_dict(), plain_policy(make_vla, kind).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_the_mean_of_what_counts() -> None:
    error = torch.tensor([[[1.0], [2.0], [6.0]], [[3.0], [100.0], [100.0]]])
    counted = torch.tensor([[True, True, True], [True, False, False]])
    assert float(commit.mean_of(error, counted)) == 3
    assert commit.mean_of(error, counted, (1, 2)).tolist() == [3, 3]
    assert commit.mean_of(error, counted, (0, 1)).tolist() == [3]
    assert float(commit.mean_of(error, counted & False)) == 0


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_relative_actions_are_committed_from_the_new_state(make_vla: MakeVla, kind: str) -> None:
    policy = trained(make_vla, kind, use_relative_actions=True, relative_exclude_joints=[])
    batch = random_batch(policy)
    values = values_of(policy, batch, torch.tensor([3, 3]))
    noise = torch.randn(2, *policy.sample_shape)
    last = steps_of(policy, values, noise)[-1]
    actions = policy.decode(last, {"state": values["state"]})
    torch.testing.assert_close(actions[:, :3], values["rtc:committed"][:, :3], atol=1e-4, rtol=1e-4)


# -- GR00T and X-VLA ------------------------------------------------------------------------------------------


def golden(kind: str, delay: int) -> Policy:
    """The recorded tiny checkpoint, as if trained with committed beginnings."""
    torch.manual_seed(0)
    return load_policy(GOLDENS / kind / "checkpoint", adapt=lambda c, _: _with_delay(c, delay))


def _with_delay(config: Any, delay: int) -> Any:
    config.rtc_training_max_delay = delay
    return config


def any_policy(make_vla: MakeVla, kind: str, delay: int = LONGEST) -> Policy:
    return make_vla(kind, rtc_training_max_delay=delay) if kind in KINDS else golden(kind, delay)


def plain_policy(make_vla: MakeVla, kind: str) -> Policy:
    return any_policy(make_vla, kind, 0)


def any_batch(policy: Policy, n: int = 2) -> dict[str, Any]:
    if isinstance(policy, FlowVla):
        return random_batch(policy, n)
    generator = torch.Generator().manual_seed(1)
    horizon, dim = policy.sample_shape[0], policy.config.action_dim
    batch: dict[str, Any] = {
        name: torch.randint(0, 256, (n, *policy.camera_size(name), 3), generator=generator, dtype=torch.uint8)
        for name in policy.live_cameras
    }
    batch["observation.state"] = torch.randn(n, policy.config.state_dim, generator=generator)
    batch["action"] = torch.randn(n, horizon, dim, generator=generator)
    prompt = policy.prompt_builder().build(["pick the cube", "close it"][:n])
    return {**batch, "tokens": torch.from_numpy(prompt.tokens), "token_mask": torch.from_numpy(prompt.mask)}


def observed(policy: Policy, batch: dict[str, Any], delays: Tensor) -> dict[str, Tensor]:
    n, horizon = len(delays), policy.sample_shape[0]
    return {
        **{f"camera:{name}": batch[name] for name in policy.live_cameras},
        "prompt:tokens": batch["tokens"],
        "prompt:mask": batch["token_mask"],
        "state": batch["observation.state"],
        "rtc:committed": torch.randn(n, horizon, policy.config.action_dim),
        "rtc:weights": (torch.arange(horizon) < delays[:, None]).float(),
        "rtc:max_guidance": torch.full((n,), 10.0),
    }


def groot_of_tokens(policy: Groot, context: dict[str, Tensor], x: Tensor, times: Tensor) -> Tensor:
    """GR00T's velocity where every action has its own time (B, T): its DiT written out, block by block."""
    head, horizon, n = policy.action_head, policy.sample_shape[0], len(x)
    buckets = torch.trunc(times * policy.arch.head["num_timestep_buckets"])
    others = torch.trunc(times.amin(1) * policy.arch.head["num_timestep_buckets"])

    def wave(step: Tensor, half: int, divisor: int) -> Tensor:
        return step[..., None] * torch.exp(torch.arange(half) * (-math.log(10000.0) / divisor))

    encoder, body = head.action_encoder, torch.full((n,), policy.embodiment)
    a = encoder.W1(x, body)
    angle = wave(buckets, encoder.width // 2, encoder.width // 2)
    mixed = torch.cat([a, angle.sin(), angle.cos()], dim=-1)
    actions = encoder.W3(F.silu(encoder.W2(mixed, body)), body)
    if head.position_embedding is not None:
        actions = actions + head.position_embedding.weight[:horizon]
    future = head.future_tokens.weight[None].expand(n, -1, -1)
    h = torch.cat([context["state_token"], future, actions], dim=1)
    steps = torch.cat([others[:, None].expand(n, h.shape[1] - horizon), buckets], dim=1)
    layers = head.model.timestep_encoder.timestep_embedder
    angle = wave(steps, 128, 127)
    time = F.silu(layers.linear_2(F.silu(layers.linear_1(torch.cat([angle.cos(), angle.sin()], -1)))))
    i_cross = 0
    for block in head.model.transformer_blocks:
        scale, shift = block.norm1.linear(time).chunk(2, dim=-1)
        normed = F.layer_norm(h, h.shape[-1:], eps=1e-5) * (1 + scale) + shift
        if block.is_cross:
            keys, values = context["cross_kv"][i_cross]
            i_cross += 1
        else:
            keys, values = block.attn1.keys_values(normed)
        q = block.attn1.to_q(normed).unflatten(-1, (block.attn1.heads, -1)).transpose(1, 2)
        scores = q @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if block.is_cross:
            scores = scores.masked_fill(~context["token_mask"][:, None, None, :], -1e30)
        h = h + block.attn1.to_out[0]((scores.softmax(-1) @ values).transpose(1, 2).flatten(2))
        h = h + block.ff(F.layer_norm(h, h.shape[-1:], eps=1e-5))
    shift, scale = head.model.proj_out_1(time).chunk(2, dim=-1)
    h = head.model.proj_out_2(F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift)
    return head.action_decoder(h[:, -horizon:], body)


@torch.no_grad()
def test_groot_steps_and_loss_are_those_of_the_method() -> None:
    """Time runs the other way: clean is 1. State and future tokens keep the step's time."""
    policy = golden("groot", LONGEST)
    assert isinstance(policy, Groot)
    batch = any_batch(policy)
    values = observed(policy, batch, DELAYS)
    noise = torch.randn(2, *policy.sample_shape, generator=torch.Generator().manual_seed(7))
    ours = steps_of(policy, values, noise)
    low, high = policy.action_range.low, policy.action_range.high
    dim, width = policy.config.action_dim, policy.sample_shape[1]

    def clean_of(actions: Tensor) -> Tensor:
        return F.pad(2 * (actions - low) / (high - low) - 1, (0, width - dim))

    clean, x = clean_of(values["rtc:committed"]), noise.clone()
    context = policy.encode(values)
    for step, (tau, then) in enumerate(pairwise(policy.schedule.taus().tolist())):
        times = torch.full(x.shape[:2], tau)
        for i, d in enumerate(DELAYS.tolist()):
            x[i, :d], times[i, :d] = clean[i, :d], 1
        x = x + (then - tau) * groot_of_tokens(policy, context, x, times)
        for i, d in enumerate(DELAYS.tolist()):
            x[i, :d] = clean[i, :d]
        torch.testing.assert_close(ours[step], x, atol=2e-5, rtol=1e-4)

    draws = policy.draw(batch, torch.Generator().manual_seed(3)) | {"delay": DELAYS}
    clean, t = clean_of(batch["action"]), draws["time"][:, None]
    is_first = torch.arange(x.shape[1]) < DELAYS[:, None]
    times = torch.where(is_first, 1.0, t)
    mixed = torch.where(
        is_first[..., None], clean, (1 - t[..., None]) * draws["noise"] + t[..., None] * clean
    )
    wrong = groot_of_tokens(policy, context, mixed, times) - (clean - draws["noise"])
    expected = (wrong[..., :dim][~is_first] ** 2).mean()
    torch.testing.assert_close(policy.loss(batch, draws)[0], expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_xvla_steps_and_loss_are_those_of_the_method() -> None:
    """It predicts the clean action and mixes the same noise in again; a committed action stays what it is."""
    policy = golden("xvla", LONGEST)
    assert isinstance(policy, XVla)
    net, dim = policy.transformer, policy.config.action_dim
    domain = torch.zeros(2, dtype=torch.int64) + policy.domain

    def predicted(context: dict[str, Tensor], x: Tensor, times: Tensor) -> Tensor:
        """Every action's own time through its rows of the action encoder."""
        half = net.dim_time // 2
        angle = times[..., None] * torch.exp(torch.arange(half) * (-math.log(100.0) / half))
        w, _ = net.action_encoder.weights(domain)
        fused = torch.cat([policy.space.hide(x), angle.cos(), angle.sin()], dim=-1)
        rows = torch.cat([w[:, : net.action_width], w[:, -net.dim_time :]], dim=1)
        h = fused @ rows + context["proprio"] + net.pos_emb[:, : x.shape[1]]
        h = torch.cat([h, context["tokens"], *net.prompts(domain)], dim=1)
        for block in net.blocks:
            h = block(h)
        return net.action_decoder(net.norm(h[:, : x.shape[1]]), domain)

    batch = any_batch(policy)
    values = observed(policy, batch, DELAYS)
    noise = torch.randn(2, *policy.sample_shape, generator=torch.Generator().manual_seed(7))
    ours = steps_of(policy, values, noise)
    clean, x, context = policy.target(values["rtc:committed"]), noise.clone(), policy.encode(values)
    leaves = F.pad(policy.space.inverse_output(clean[..., :dim]), (0, x.shape[-1] - dim))
    is_first = (torch.arange(x.shape[1]) < DELAYS[:, None])[..., None]
    for step, (tau, then) in enumerate(pairwise(policy.schedule.taus().tolist())):
        x = torch.where(is_first, clean, x)
        times = torch.where(is_first[..., 0], 0.0, tau)
        x = torch.where(is_first, leaves, then * noise + (1 - then) * predicted(context, x, times))
        torch.testing.assert_close(ours[step], x, atol=2e-5, rtol=1e-4)

    draws = policy.draw(batch, torch.Generator().manual_seed(3)) | {"delay": DELAYS}
    time, target = policy.times(draws["u"], 2)[:, None], policy.target(batch["action"])
    mixed = torch.where(is_first, target, time[..., None] * draws["noise"] + (1 - time[..., None]) * target)
    got = predicted(context, mixed, torch.where(is_first[..., 0], 0.0, time))
    rest = ~is_first[..., 0]
    expected = sum(policy.space.losses(got[rest][None], target[rest][None]).values())
    torch.testing.assert_close(policy.loss(batch, draws)[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["groot", "xvla"])
def test_without_a_delay_groot_and_xvla_are_themselves_to_the_bit(make_vla: MakeVla, kind: str) -> None:
    policy, plain = golden(kind, LONGEST), golden(kind, 0)
    values = observed(policy, any_batch(policy), torch.zeros(2))
    values["rtc:committed"] = torch.full_like(values["rtc:committed"], torch.inf)
    noise = torch.randn(2, *policy.sample_shape, generator=torch.Generator().manual_seed(7))
    calm = {**values, "rtc:committed": torch.zeros_like(values["rtc:committed"])}
    for a, b in zip(steps_of(policy, values, noise), steps_of(plain, calm, noise), strict=True):
        assert torch.equal(a, b)


# -- the exported graph ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pi05", "groot", "xvla"])
def test_the_exported_step_is_torchs(make_vla: MakeVla, kind: str, tmp_path: Path) -> None:
    """SmolVLA's goes through the export verb and its parity, in tests/story; Pi0 takes its time in the same way."""
    policy = any_policy(make_vla, kind)
    specs = policy.graphs()
    assert "rtc:max_guidance" not in [s.source for s in specs["denoise"].inputs]
    batch = any_batch(policy, 1)
    values = observed(policy, batch, torch.tensor([2]))
    values["camera_present"] = torch.ones(1, len(policy.live_cameras), dtype=torch.bool)
    noise = torch.randn(1, *policy.sample_shape, generator=torch.Generator().manual_seed(7))
    theirs = steps_of(policy, values, noise)
    sampler = policy.sampler()
    with torch.no_grad():
        context = {k: v.numpy() for k, v in sampler.merge([sampler.encode(values)]).items()}
    if hasattr(policy, "bake"):
        policy.bake()
    graphs = {}
    for name in {"time", "denoise"} & set(specs):
        save(trace(policy, name, specs[name]), tmp_path, name)
        graphs[name] = load_graph(tmp_path / f"{name}.onnx", specs[name])
    given = {k: v.numpy() for k, v in values.items()}
    exported, seen = Sampler({**graphs, "decode": None}, policy.schedule), []  # type: ignore[dict-item]
    exported.solve(context, given, noise=noise.numpy(), on_step=lambda _, x: seen.append(x))
    for step, (a, b) in enumerate(zip(seen, theirs, strict=True)):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-4, rtol=1e-4, err_msg=f"step {step}")
        assert np.array_equal(a[:, :2], seen[0][:, :2]), "what is committed stays as it is"
    free = {**given, "rtc:weights": np.zeros_like(given["rtc:weights"])}
    plain = exported.solve(context, free, noise=noise.numpy())
    wild = exported.solve(
        context, {**free, "rtc:committed": given["rtc:committed"] * np.inf}, noise=noise.numpy()
    )
    assert np.array_equal(plain, wild)


# -- settings and files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("delay", [-1, 8])
def test_a_delay_outside_the_chunk_is_refused(make_vla: MakeVla, kind: str, delay: int) -> None:
    with pytest.raises(
        CheckpointError, match=rf"rtc_training_max_delay is {delay}; it must be from 0 \(off\) to 7"
    ):
        make_vla(kind, rtc_training_max_delay=delay)


@pytest.mark.parametrize("kind", [*KINDS, "groot", "xvla"])
def test_saving_and_loading_keep_it(make_vla: MakeVla, kind: str, tmp_path: Path) -> None:
    policy = any_policy(make_vla, kind)
    folder = save_policy(policy, tmp_path / "saved")
    is_lerobots = "rtc_training_max_delay" in (folder / "config.json").read_text()
    assert is_lerobots == (kind == "pi05"), "LeRobot refuses keys that it does not know"
    assert (folder / "edgevla-policy.json").is_file() == (kind != "pi05")
    again = load_policy(folder)
    assert again.config.trained_delay == LONGEST
    assert again.rtc_kind == "trained"
    again.config.rtc_training_max_delay = 0
    folder = save_policy(again, folder)
    assert "rtc_training_max_delay" not in (folder / "config.json").read_text()
    assert not (folder / "edgevla-policy.json").exists()
    assert load_policy(folder).rtc_kind != "trained"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read"),
        ("[3]", "holds no settings"),
        ('{"rtc_training_max_delai": 3}', "no setting 'rtc_training_max_delai'; did you mean"),
        ('{"rtc_training_max_delay": "3"}', "is '3', expected int"),
        ('{"rtc_training_max_delay": 8}', "must be from 0"),
    ],
)
def test_a_damaged_file_of_ours_is_refused(
    make_vla: MakeVla, tmp_path: Path, text: str, sentence: str
) -> None:
    folder = save_policy(trained(make_vla, "smolvla"), tmp_path / "saved")
    (folder / "edgevla-policy.json").write_text(text)
    with pytest.raises(CheckpointError, match=sentence):
        load_policy(folder)


def test_the_key_in_anothers_config_is_refused(make_vla: MakeVla, tmp_path: Path) -> None:
    """LeRobot knows it for Pi0.5 alone: elsewhere it is some other program's, or a hand's."""
    folder = save_policy(make_vla("smolvla"), tmp_path / "saved")
    path = folder / "config.json"
    path.write_text(path.read_text().replace("{", '{"rtc_training_max_delay": 3,', 1))
    with pytest.raises(CheckpointError, match="the key 'rtc_training_max_delay' = 3 is unknown here"):
        load_policy(folder)

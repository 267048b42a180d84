"""SmolVLA whose expert has a layer beside every n-th text layer only: against both streams written out, as LeRobot walks
them in training, layer by layer of the text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vla_kit import MakeVla, chunk_of, random_batch

from edgevla.train.checkpoint import load_policy, save_policy
from edgevla.train.policies.smolvla import SmolVla

EVEN = {"num_expert_layers": 2, "expert_width_multiplier": 0.25}
"""Beside layers 0 and 2, where the expert attends to itself; its second layer, shaped for the prefix, fits by width."""
FEWER: list[dict[str, Any]] = [
    EVEN,
    {"num_expert_layers": 2, "self_attn_every_n_layers": 0},
    {"num_expert_layers": 2, "attention_mode": "self_attn"},
    {"num_expert_layers": 1},
    {"num_expert_layers": 2, "self_attn_every_n_layers": 4},
    {"num_expert_layers": 4},
]
KINDS = [[False, False], [True, True], [False, False], [False], [False, True], [False, True, False, True]]


def turned(x: Tensor, positions: Tensor) -> Tensor:
    """RoPE of (B, L, heads, D): complex numbers turned by position / 10000^(2i/D)."""
    half = x.shape[-1] // 2
    angles = positions[..., None] / 10000 ** (torch.arange(half) / half)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, :, None]
    return torch.cat([z.real, z.imag], dim=-1)


def attended(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """(B, Lq, H, D) over (B, Lk, Hkv, D), one head after the other; allowed: bool (B, Lq, Lk)."""
    group, heads = q.shape[2] // k.shape[2], []
    for h in range(q.shape[2]):
        scores = torch.einsum("bqd,bkd->bqk", q[:, :, h], k[:, :, h // group]) / math.sqrt(q.shape[-1])
        heads.append(scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v[:, :, h // group])
    return torch.cat(heads, dim=-1)


def normed(norm: Any, x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def after(layer: Any, x: Tensor, mixed: Tensor) -> Tensor:
    x = x + layer.self_attn.o_proj(mixed)
    y, mlp = normed(layer.post_attention_layernorm, x), layer.mlp
    return x + mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(y)) * mlp.up_proj(y))


def two_streams(policy: SmolVla, prefix: Tensor, suffix: Tensor, allowed: Tensor, real: Tensor) -> Tensor:
    """The suffix after the expert's norm. allowed: the block mask of all tokens; real: bool (B, P + T)."""
    n_prefix, every = prefix.shape[1], len(policy.language.layers) // len(policy.expert.layers)
    positions = real.cumsum(1) - 1
    ours = positions[:, n_prefix:]

    def heads(projection: Any, x: Tensor) -> Tensor:
        return projection(x).unflatten(-1, (-1, policy.dims.text.head_dim))

    for i, layer in enumerate(policy.language.layers):
        text: Any = layer
        expert: Any = policy.expert.layers[i // every] if i % every == 0 else None
        y = normed(text.input_layernorm, prefix)
        q, k, v = (heads(getattr(text.self_attn, f"{n}_proj"), y) for n in "qkv")
        q, k = turned(q, positions[:, :n_prefix]), turned(k, positions[:, :n_prefix])
        prefix = after(text, prefix, attended(q, k, v, allowed[:, :n_prefix, :n_prefix]))
        if expert is None:
            continue
        y = normed(expert.input_layernorm, suffix)
        q = heads(expert.self_attn.q_proj, y)
        n = policy.config.self_attn_every_n_layers
        if "cross" in policy.config.attention_mode and not (n > 0 and i % n == 0):
            k, v = heads(expert.self_attn.k_proj, k.flatten(2)), heads(expert.self_attn.v_proj, v.flatten(2))
            q, seen = turned(q, ours - ours.min(1, keepdim=True).values), allowed[:, n_prefix:, :n_prefix]
        else:
            k = torch.cat([k, turned(heads(expert.self_attn.k_proj, y), ours)], 1)
            v = torch.cat([v, heads(expert.self_attn.v_proj, y)], 1)
            q, seen = turned(q, ours), allowed[:, n_prefix:]
        suffix = after(expert, suffix, attended(q, k, v, seen))
    return normed(policy.expert.norm, suffix)


@pytest.mark.parametrize(("settings", "cross"), list(zip(FEWER, KINDS, strict=True)))
@torch.no_grad()
def test_it_computes_what_both_streams_give(make_vla: MakeVla, settings: dict, cross: list[bool]) -> None:
    policy = make_vla("smolvla", **settings)
    assert isinstance(policy, SmolVla)
    assert [policy.is_cross(i) for i in range(len(policy.expert.layers))] == cross
    inputs = policy.inputs(random_batch(policy))
    x, tau = torch.randn(2, *policy.sample_shape), torch.tensor([0.3, 0.9])
    prefix, real, starts = policy.embed_prefix(inputs)
    suffix = policy.embed_suffix(x, policy.time(tau)["time_embedding"])
    length = suffix.shape[1]
    blocks = torch.tensor([*starts, *[True] * length]).cumsum(0)
    real = torch.cat([real, torch.ones(2, length, dtype=torch.bool)], 1)
    allowed = (blocks[None, :] <= blocks[:, None])[None] & real[:, None] & real[:, :, None]
    allowed |= torch.eye(
        allowed.shape[1], dtype=torch.bool
    )  # rows of padding see something; nobody sees them
    expected = policy.action_out_proj(two_streams(policy, prefix, suffix, allowed, real))
    velocity = policy.predict(policy.encode(inputs), x, tau, {})
    torch.testing.assert_close(velocity, expected, atol=2e-5, rtol=1e-4)


def test_only_so_many_keys_leave_encode_and_what_is_shaped_for_the_prefix(make_vla: MakeVla) -> None:
    policy = make_vla("smolvla", num_expert_layers=2, self_attn_every_n_layers=4)
    assert policy.graphs()["encode"].outputs[0].shape[0] == 2
    assert [layer.self_attn.k_proj.in_features for layer in policy.expert.layers] == [48, 16]  # type: ignore[union-attr]


def test_what_feeds_no_expert_layer_is_frozen_as_lerobot_freezes_it(make_vla: MakeVla) -> None:
    policy = make_vla("smolvla", **EVEN, train_expert_only=False)
    layers = [any(p.requires_grad for p in layer.parameters()) for layer in policy.language.layers]
    assert layers == [True, True, False, False]


def test_it_trains_saves_loads_and_samples(make_vla: MakeVla, tmp_path: Path) -> None:
    policy = make_vla("smolvla", **EVEN)
    batch = random_batch(policy)
    loss, _ = policy.loss(batch, policy.draw(batch))
    loss.backward()
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained)
    again = load_policy(save_policy(policy, tmp_path / "saved"))
    assert len(again.expert.layers) == 2
    chunk = chunk_of(policy.eval(), batch)  # type: ignore[arg-type]
    assert torch.equal(chunk_of(again, batch), chunk)  # type: ignore[arg-type]

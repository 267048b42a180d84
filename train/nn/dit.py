"""GR00T's action head: a diffusion transformer with adaptive layer norms, and layers with one set of weights per body.

Names are those of the checkpoint (diffusers'). Even DiT blocks attend to the vision-language features only, odd blocks
to their own tokens. Two orders differ on purpose: a block's modulation is (scale, shift), the output's (shift, scale);
the time embedding is [cos, sin] over half - 1, the action's sinusoid [sin, cos] over half (docs/policies.md#gr00t-n15).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .commit import over_tokens, per_action
from .recompute import Recomputed
from .transformer import attend


def angles(step: Tensor, half: int, divisor: int) -> Tensor:
    """float32 (B, half): step * exp(-ln(10000) * i / divisor), in float32 at every precision of the network."""
    frequency = torch.exp(
        torch.arange(half, dtype=torch.float32, device=step.device) * (-math.log(10000.0) / divisor)
    )
    return step.to(torch.float32)[:, None] * frequency


# -- one set of weights per embodiment ------------------------------------------------------------------------


class PerEmbodimentLinear(nn.Module):
    """y = x @ W[e] + b[e], W stored (n, in, out). `bake(e)` fixes one embodiment, so a graph holds only its slice."""

    def __init__(self, n: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(n, n_in, n_out))
        self.b = nn.Parameter(torch.zeros(n, n_out))
        nn.init.normal_(self.W, std=0.02)
        self._baked: tuple[Tensor, Tensor] | None = None

    def bake(self, embodiment: int | None) -> None:
        """Only this embodiment from here on, so that no gather is traced; None: all again."""
        fixed = (
            None
            if embodiment is None
            else (self.W[embodiment].detach().clone(), self.b[embodiment].detach().clone())
        )
        self._baked = fixed

    def forward(self, x: Tensor, embodiment: Tensor) -> Tensor:
        """x: (B, L, in); embodiment: int64 (B,)."""
        if self._baked is not None:
            return x @ self._baked[0] + self._baked[1]
        return torch.bmm(x, self.W[embodiment]) + self.b[embodiment][:, None]


class PerEmbodimentMlp(nn.Module):
    """Two layers with a ReLU between."""

    def __init__(self, n: int, n_in: int, hidden: int, n_out: int) -> None:
        super().__init__()
        self.layer1 = PerEmbodimentLinear(n, n_in, hidden)
        self.layer2 = PerEmbodimentLinear(n, hidden, n_out)

    def forward(self, x: Tensor, embodiment: Tensor) -> Tensor:
        return self.layer2(F.relu(self.layer1(x, embodiment)), embodiment)


class ActionEncoder(nn.Module):
    """Noisy actions and their flow time -> tokens."""

    def __init__(self, n: int, action_dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.W1 = PerEmbodimentLinear(n, action_dim, width)
        self.W2 = PerEmbodimentLinear(n, 2 * width, width)
        self.W3 = PerEmbodimentLinear(n, width, width)

    def forward(
        self,
        x: Tensor,
        step: Tensor,
        embodiment: Tensor,
        clean: Tensor | None = None,
        is_clean: Tensor | None = None,
    ) -> Tensor:
        """x: (B, T, W); step: int64 (B,), the discretised time; clean: that of actions which is_clean marks."""
        a = self.W1(x, embodiment)
        other = None if clean is None else self._sinusoid(clean)
        time = over_tokens(per_action(self._sinusoid(step), other, is_clean)).to(a.dtype).expand_as(a)
        return self.W3(F.silu(self.W2(torch.cat([a, time], dim=-1), embodiment)), embodiment)

    def _sinusoid(self, step: Tensor) -> Tensor:
        angle = angles(step, self.width // 2, self.width // 2)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


# -- attention blocks -----------------------------------------------------------------------------------------


class CrossAttention(nn.Module):
    """Multi-head attention with biases; keys and values from `source` width."""

    def __init__(self, width: int, source: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, heads * head_dim)
        self.to_k = nn.Linear(source, heads * head_dim)
        self.to_v = nn.Linear(source, heads * head_dim)
        self.to_out = nn.ModuleList([nn.Linear(heads * head_dim, width), nn.Dropout(dropout)])

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, source) -> two of (B, heads, L, head_dim)."""
        return self._heads(self.to_k(source)), self._heads(self.to_v(source))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
        out = attend(self._heads(self.to_q(x)), keys, values, bias).transpose(1, 2).flatten(2)
        for layer in self.to_out:
            out = layer(out)
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _Gelu(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            _Gelu(width, 4 * width), nn.Dropout(dropout), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@dataclass(frozen=True)
class DiTDims:
    heads: int
    head_dim: int
    depth: int
    output: int
    cross: int
    dropout: float

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.heads * self.head_dim


class Times(NamedTuple):
    """Embedded times of a sequence: (B, width); clean: that of the tokens which is_clean, bool (B, L), marks."""

    now: Tensor
    clean: Tensor | None = None
    is_clean: Tensor | None = None

    def modulate(self, linear: nn.Module) -> Tensor:
        """One row for all tokens, or two chosen by the mask: (B, 1 or L, ...)."""
        clean = None if self.clean is None else linear(F.silu(self.clean))
        return over_tokens(per_action(linear(F.silu(self.now)), clean, self.is_clean))


class _AdaNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, time: Times) -> Tensor:
        scale, shift = time.modulate(self.linear).chunk(2, dim=-1)
        return F.layer_norm(x, x.shape[-1:], eps=1e-5) * (1 + scale) + shift


class DiTBlock(nn.Module):
    """One block; `is_cross` blocks attend to keys and values given from outside, the others to themselves."""

    def __init__(self, dims: DiTDims, is_cross: bool) -> None:
        super().__init__()
        self.is_cross = is_cross
        self.norm1 = _AdaNorm(dims.width)
        source = dims.cross if is_cross else dims.width
        self.attn1 = CrossAttention(dims.width, source, dims.heads, dims.head_dim, dims.dropout)
        self.ff = FeedForward(dims.width, dims.dropout)
        self.final = nn.Dropout(dims.dropout)

    def forward(
        self, x: Tensor, time: Times, kv: tuple[Tensor, Tensor] | None, bias: Tensor | None
    ) -> Tensor:
        normed = self.norm1(x, time)
        keys, values = kv if kv is not None else self.attn1.keys_values(normed)
        x = x + self.final(self.attn1(normed, keys, values, bias if self.is_cross else None))
        return x + self.ff(F.layer_norm(x, x.shape[-1:], eps=1e-5))


class _TimestepEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(256, width)
        self.linear_2 = nn.Linear(width, width)


class _TimestepEncoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = _TimestepEmbedder(width)

    def forward(self, step: Tensor) -> Tensor:
        layers = self.timestep_embedder
        angle = angles(step, 128, 127)
        features = torch.cat([angle.cos(), angle.sin()], dim=-1).to(layers.linear_1.weight.dtype)
        return layers.linear_2(F.silu(layers.linear_1(features)))


class DiT(Recomputed):
    """(B, L, width) tokens and cross keys/values -> (B, L, output)."""

    def __init__(self, dims: DiTDims, *, interleaves: bool) -> None:
        super().__init__()
        self.dims = dims
        self.timestep_encoder = _TimestepEncoder(dims.width)
        self.transformer_blocks = nn.ModuleList(
            DiTBlock(dims, is_cross=not (interleaves and i % 2 == 1)) for i in range(dims.depth)
        )
        self.proj_out_1 = nn.Linear(dims.width, 2 * dims.width)
        self.proj_out_2 = nn.Linear(dims.width, dims.output)

    def cross_keys_values(self, features: Tensor) -> Tensor:
        """(B, L, cross) -> (cross blocks, 2, B, heads, L, head_dim): constant over the denoise steps."""
        blocks: list[DiTBlock] = list(self.transformer_blocks)  # type: ignore[arg-type]
        rows = [torch.stack(block.attn1.keys_values(features)) for block in blocks if block.is_cross]
        return torch.stack(rows)

    def forward(
        self,
        x: Tensor,
        step: Tensor,
        cross_kv: Tensor,
        bias: Tensor | None,
        clean: Tensor | None = None,
        is_clean: Tensor | None = None,
        towards: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """step: int64 (B,); cross_kv as above; bias: float32 (B, 1, 1, L) for the cross blocks' keys; clean: the step of
        the tokens that is_clean, bool (B, L), marks; towards: (B, width) each, what is added to the embedded step and to
        the clean one."""
        now, other = self.timestep_encoder(step), None if clean is None else self.timestep_encoder(clean)
        if towards is not None:
            now = now + towards[0].to(now.dtype)
            other = None if other is None else other + towards[1].to(other.dtype)
        time = Times(now, other, is_clean)
        n_cross = 0
        for block in self.transformer_blocks:
            kv = None
            if block.is_cross:
                kv = (cross_kv[n_cross, 0].to(x.dtype), cross_kv[n_cross, 1].to(x.dtype))
                n_cross += 1
            x = self.call(block, x, time, kv, bias)
        shift, scale = time.modulate(self.proj_out_1).chunk(2, dim=-1)
        return self.proj_out_2(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)


class _SelfBlock(nn.Module):
    def __init__(self, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        width = heads * head_dim
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.attn1 = CrossAttention(width, width, heads, head_dim, dropout)
        self.norm3 = nn.LayerNorm(width, eps=1e-5)
        self.ff = FeedForward(width, dropout)
        self.final = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        normed = self.norm1(x)
        x = x + self.final(self.attn1(normed, *self.attn1.keys_values(normed), bias))
        return x + self.ff(self.norm3(x))


class SelfAttentionStack(nn.Module):
    """The blocks between the vision-language model and the DiT; no positions, no final norm."""

    def __init__(self, heads: int, head_dim: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(_SelfBlock(heads, head_dim, dropout) for _ in range(depth))

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        for block in self.transformer_blocks:
            x = block(x, bias)
        return x

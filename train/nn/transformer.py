"""One pre-norm decoder layer for the Gemma, SmolLM2 / Llama and Qwen3 families, and stacks of it.

The families differ in numbers and four switches, all in `TransformerDims`:

    RMSNorm weight      x * w (Llama, Qwen3)      x * (1 + w) (Gemma)       from a condition (AdaRMS, Pi0.5's expert)
    MLP activation      silu (Llama, Qwen3)       gelu_tanh (Gemma)
    q and k norms       Qwen3 only
    RoPE base           per family; half-split rotation in all

A stack works on embeddings, with an additive bias (masks.py), RoPE tables and, where a prefix was run before, its keys
and values as one plain tensor `kv` (layers, 2, B, kv heads, P, head dim), K after RoPE. The prefix of a policy never
sees its suffix, so "prefix, then suffix over kv" is training's joint pass as well as inference's cached one.

Module names are Hugging Face's, so weights load by name. Norms, RoPE and softmax compute in float32 at every
precision; every projection casts its input to its weight's dtype, so float32 islands among bf16 weights just work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevla.errors import CheckpointError

from .commit import over_tokens, per_action
from .recompute import Recomputed

Rope = tuple[Tensor, Tensor]
"""cos and sin, float32 (B, 1, L, head_dim / 2)."""


@dataclass(frozen=True)
class TransformerDims:
    """unit_offset: norms scale by 1 + w. adaptive: norms take scale, shift and gate from a condition of this width."""

    width: int
    depth: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float = 1e-6
    rope_base: float = 10000.0
    activation: Literal["silu", "gelu_tanh"] = "silu"
    unit_offset: bool = False
    qk_norm: bool = False
    adaptive: int | None = None

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], **changes: Any) -> TransformerDims:
        """From a Hugging Face text config (`gemma`, `llama`, `qwen3`); `changes` win.

        Raises:
            CheckpointError: a size that the config does not say.
        """
        check_said(config, "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
        family = config.get("model_type", "")
        heads = config["num_attention_heads"]
        rope = config.get("rope_parameters") or {}
        dims = cls(
            width=config["hidden_size"],
            depth=config["num_hidden_layers"],
            mlp=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            eps=config.get("rms_norm_eps", 1e-6),
            rope_base=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
            activation="gelu_tanh" if family.startswith("gemma") else "silu",
            unit_offset=family.startswith("gemma"),
            qk_norm=family.startswith("qwen3"),
        )
        return replace(dims, **changes)


def check_said(config: Mapping[str, Any], *names: str) -> None:
    """Raises CheckpointError for a size that a Hugging Face config leaves to its library."""
    missing = [name for name in names if config.get(name) is None]
    if missing:
        raise CheckpointError(
            f"a backbone's config.json (model_type '{config.get('model_type', '')}') does not say {', '.join(missing)}"
        )


def project(layer: nn.Linear, x: Tensor) -> Tensor:
    """Linear in the weight's dtype."""
    return layer(x.to(layer.weight.dtype))


# -- RoPE -----------------------------------------------------------------------------------------------------


def rope_tables(positions: Tensor, head_dim: int, base: float) -> Rope:
    """positions: int64 (B, L). Always float32: in half precision angles above 2048 rad / 2^10 lose whole turns."""
    half = torch.arange(head_dim // 2, device=positions.device, dtype=torch.float32)
    timescale = torch.pow(
        torch.tensor(base, dtype=torch.float32, device=positions.device), half * (2.0 / head_dim)
    )
    angle = (positions.to(torch.float32)[..., None] / timescale)[:, None]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """x: (B, heads, L, head_dim). Half-split: the first and second half of head_dim are the plane's two axes."""
    cos, sin = rope
    a, b = x.to(torch.float32).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


# -- norms ----------------------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    """x / rms(x) * w, or * (1 + w). Returns (normalised, gate): a plain norm has no gate."""

    def __init__(self, width: int, eps: float, *, unit_offset: bool = False) -> None:
        super().__init__()
        self.eps, self.unit_offset = eps, unit_offset
        start = torch.zeros if unit_offset else torch.ones
        self.weight = nn.Parameter(start(width, dtype=torch.float32))

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> tuple[Tensor, None]:
        weight = self.weight.to(torch.float32)
        return (_unit_rms(x, self.eps) * (1 + weight if self.unit_offset else weight)).to(x.dtype), None


class AdaRMSNorm(nn.Module):
    """x / rms(x) * (1 + scale) + shift, with a gate for the block's output; all three from a condition."""

    def __init__(self, width: int, eps: float, condition: int) -> None:
        super().__init__()
        self.eps = eps
        self.dense = nn.Linear(condition, 3 * width, dtype=torch.float32)
        nn.init.zeros_(self.dense.weight)

    def modulation(self, condition: Tensor) -> Tensor:
        """(B, C) -> (B, 3 * width): scale, shift, gate."""
        return project(self.dense, condition)

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """modulation: (B, 3 * width) for all tokens, or (B, L, 3 * width)."""
        assert modulation is not None
        scale, shift, gate = over_tokens(modulation).to(torch.float32).chunk(3, dim=-1)
        return (_unit_rms(x, self.eps) * (1 + scale) + shift).to(x.dtype), gate.to(x.dtype)


def _unit_rms(x: Tensor, eps: float) -> Tensor:
    x = x.to(torch.float32)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _norm(dims: TransformerDims) -> RMSNorm | AdaRMSNorm:
    if dims.adaptive is not None:
        return AdaRMSNorm(dims.width, dims.eps, dims.adaptive)
    return RMSNorm(dims.width, dims.eps, unit_offset=dims.unit_offset)


# -- attention ------------------------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Grouped-query attention. q: (B, H, Lq, D); k, v: (B, Hkv, Lk, D); bias: float32 (B, 1, Lq, Lk). Gives q's shape.

    The query heads that share a key head are laid along the query axis: no copies of keys, plain 4-D products.
    """
    n, heads, length, dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    group = heads // kv_heads
    scores = (q * dim**-0.5).reshape(n, kv_heads, group * length, dim) @ k.to(q.dtype).transpose(-1, -2)
    scores = scores.to(torch.float32)
    if bias is not None:
        scores = scores.reshape(n, kv_heads, group, length, keys) + bias[:, :, None]
        scores = scores.reshape(n, kv_heads, group * length, keys)
    weights = scores.softmax(-1).to(v.dtype)
    return (weights @ v).reshape(n, heads, length, dim)


class Attention(nn.Module):
    """The four projections (Hugging Face's names). kv_input: width of what k and v are made from; None: the stream's."""

    def __init__(self, dims: TransformerDims, kv_input: int | None = None) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = dims.heads, dims.kv_heads, dims.head_dim
        queries, keys = dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim
        self.q_proj = nn.Linear(dims.width, queries, bias=False)
        self.k_proj = nn.Linear(kv_input or dims.width, keys, bias=False)
        self.v_proj = nn.Linear(kv_input or dims.width, keys, bias=False)
        self.o_proj = nn.Linear(queries, dims.width, bias=False)
        self.q_norm = RMSNorm(dims.head_dim, dims.eps) if dims.qk_norm else None
        self.k_norm = RMSNorm(dims.head_dim, dims.eps) if dims.qk_norm else None

    def queries(self, x: Tensor, rope: Rope) -> Tensor:
        """(B, T, width) -> (B, heads, T, head_dim), rotated."""
        q = _heads(project(self.q_proj, x), self.heads)
        return rotate(self.q_norm(q)[0] if self.q_norm is not None else q, rope)

    def keys_values(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """(B, T, width) -> two of (B, kv_heads, T, head_dim), the keys rotated."""
        k, v = _heads(project(self.k_proj, x), self.kv_heads), _heads(project(self.v_proj, x), self.kv_heads)
        return rotate(self.k_norm(k)[0] if self.k_norm is not None else k, rope), v

    def output(self, attended: Tensor) -> Tensor:
        """(B, heads, L, head_dim) -> (B, L, width)."""
        return project(self.o_proj, attended.transpose(1, 2).flatten(2))


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


# -- layer and stack ------------------------------------------------------------------------------------------


class GatedMlp(nn.Module):
    def __init__(self, dims: TransformerDims) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dims.width, dims.mlp, bias=False)
        self.up_proj = nn.Linear(dims.width, dims.mlp, bias=False)
        self.down_proj = nn.Linear(dims.mlp, dims.width, bias=False)
        self.gelu = dims.activation == "gelu_tanh"

    def forward(self, x: Tensor) -> Tensor:
        gate = project(self.gate_proj, x)
        gate = F.gelu(gate, approximate="tanh") if self.gelu else F.silu(gate)
        return project(self.down_proj, gate * project(self.up_proj, x))


class Layer(nn.Module):
    """Attention and gated MLP, each behind a norm and a (gated) residual."""

    def __init__(self, dims: TransformerDims, kv_input: int | None = None) -> None:
        super().__init__()
        self.self_attn = Attention(dims, kv_input)
        self.mlp = GatedMlp(dims)
        self.input_layernorm = _norm(dims)
        self.post_attention_layernorm = _norm(dims)

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        bias: Tensor | None,
        past: Tensor | None = None,
        modulation: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, L, width); past: (2, B, Hkv, P, D). Gives the stream, and this layer's own keys and values.

        modulation: of the two norms, where they are adaptive.
        """
        first, second = modulation or (None, None)
        y, gate = self.input_layernorm(x, first)
        k, v = self.self_attn.keys_values(y, rope)
        keys, values = k, v
        if past is not None:
            keys = torch.cat([past[0].to(k.dtype), k], dim=2)
            values = torch.cat([past[1].to(v.dtype), v], dim=2)
        attended = attend(self.self_attn.queries(y, rope), keys, values, bias)
        x = self._add(x, self.self_attn.output(attended), gate)
        return self._mlp(x, second), k, v

    def cross(self, x: Tensor, rope: Rope, bias: Tensor | None, keys: Tensor, values: Tensor) -> Tensor:
        """The same layer with keys and values from elsewhere: x attends to them only, not to itself."""
        y, gate = self.input_layernorm(x)
        q = self.self_attn.queries(y, rope)
        attended = attend(q, keys.to(q.dtype), values.to(q.dtype), bias)
        return self._mlp(self._add(x, self.self_attn.output(attended), gate), None)

    def keys_values(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """Only what a last layer's followers need: no attention, no MLP."""
        return self.self_attn.keys_values(self.input_layernorm(x)[0], rope)

    def _mlp(self, x: Tensor, modulation: Tensor | None) -> Tensor:
        y, gate = self.post_attention_layernorm(x, modulation)
        return self._add(x, self.mlp(y), gate)

    @staticmethod
    def _add(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
        return x + (y if gate is None else gate * y).to(x.dtype)


class Transformer(Recomputed):
    """A stack with a final norm. kv_inputs: per layer, for stacks whose keys come from another stream."""

    def __init__(
        self,
        dims: TransformerDims,
        vocabulary: int | None = None,
        kv_inputs: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__()
        self.dims = dims
        self.embed_tokens = nn.Embedding(vocabulary, dims.width) if vocabulary else None
        if self.embed_tokens is not None:
            nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(dims, k) for k in kv_inputs or [None] * dims.depth)
        self.norm = _norm(dims)

    @property
    def dtype(self) -> torch.dtype:
        """What the stream is cast to before the first layer."""
        return self.layer(0).self_attn.q_proj.weight.dtype

    def layer(self, i: int) -> Layer:
        """The i-th layer, for stacks that walk two at once."""
        return self.layers[i]  # type: ignore[return-value]

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T) token numbers -> (B, T, width), not scaled."""
        assert self.embed_tokens is not None, "this stack has no vocabulary"
        return self.embed_tokens(tokens)

    def rope(self, positions: Tensor) -> Rope:
        """Rotation tables. positions: (B, T), counted from 0."""
        return rope_tables(positions, self.dims.head_dim, self.dims.rope_base)

    def keys_values(self, x: Tensor, rope: Rope, bias: Tensor | None, every: int = 1) -> Tensor:
        """Runs a prefix for its keys and values alone, those of every n-th layer: (layers / n, 2, B, Hkv, P, D)."""
        x = x.to(self.dtype)
        rows = []
        last = (len(self.layers) - 1) // every * every
        for i in range(last):
            x, k, v = self.call(self.layer(i), x, rope, bias)
            if i % every == 0:
                rows.append(torch.stack([k, v]))
        rows.append(torch.stack(self.layer(last).keys_values(x, rope)))
        return torch.stack(rows)

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        bias: Tensor | None,
        past: Tensor | None = None,
        modulation: Tensor | None = None,
        clean: Tensor | None = None,
        is_clean: Tensor | None = None,
    ) -> Tensor:
        """(B, L, width) -> the same, after the final norm.

        past: a prefix's kv. modulation: (B, 2 * layers + 1, 3 * width), as from `modulations`. clean: another one, for
        the tokens that is_clean, bool (B, L), marks.
        """

        def row(i: int) -> Tensor:
            assert modulation is not None
            return per_action(modulation[:, i], None if clean is None else clean[:, i], is_clean)

        x = x.to(self.dtype)
        for i, layer in enumerate(self.layers):
            rows = () if modulation is None else (row(2 * i), row(2 * i + 1))
            x, _, _ = self.call(layer, x, rope, bias, None if past is None else past[i], rows)
        return self.norm(x, None if modulation is None else row(-1))[0]

    def modulations(self, condition: Tensor) -> Tensor:
        """Scale, shift and gate of all adaptive norms: (B, C) -> (B, 2 * layers + 1, 3 * width), in running order."""
        layers = [self.layer(i) for i in range(len(self.layers))]
        norms = [n for layer in layers for n in (layer.input_layernorm, layer.post_attention_layernorm)]
        rows = [n.modulation(condition) for n in [*norms, self.norm] if isinstance(n, AdaRMSNorm)]
        return torch.stack(rows, dim=1)

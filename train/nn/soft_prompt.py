"""X-VLA's policy transformer: actions, conditioning tokens and a domain's soft prompts attend to each other.

Layers that belong to a domain keep one flattened matrix per domain; `bake` fixes one for export.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevla.errors import CheckpointError

from .recompute import Recomputed

if TYPE_CHECKING:
    from ..policies.xvla_config import XVlaConfig


class DomainLinear(nn.Module):
    """y = x @ W[d] + b[d]; each row of `fc` is a flattened (in, out) matrix."""

    def __init__(self, n_domains: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.n_in, self.n_out = n_in, n_out
        self.fc = nn.Embedding(n_domains, n_in * n_out)
        self.bias = nn.Embedding(n_domains, n_out)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.bias.weight)
        self._baked: tuple[Tensor, Tensor] | None = None

    def bake(self, domain: int) -> None:
        """Only this domain from here on, so that no gather is traced."""
        w, b = self.fc.weight[domain].detach(), self.bias.weight[domain].detach()
        self._baked = w.view(self.n_in, self.n_out).clone(), b.clone()

    def weights(self, domain: Tensor) -> tuple[Tensor, Tensor]:
        """W (B or 1, in, out) and b (B or 1, 1, out) for domain ids (B,)."""
        if self._baked is not None:
            return self._baked[0][None], self._baked[1][None, None]
        return self.fc(domain).view(-1, self.n_in, self.n_out), self.bias(domain)[:, None]

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        w, b = self.weights(domain)
        return x @ w + b


class SharedLinear(nn.Linear):
    """A plain projection with the domain-aware one's signature."""

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        p = self.dropout if self.training else 0.0
        return self.proj(F.scaled_dot_product_attention(q, k, v, dropout_p=p).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x), approximate="tanh"))))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _Attention(width, heads, dropout)
        self.mlp = _Mlp(width, hidden, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SoftPromptedTransformer(Recomputed):
    """The policy transformer. Its input is split so that what does not change between steps is computed once."""

    def __init__(self, config: XVlaConfig, vlm_width: int, action_width: int) -> None:
        super().__init__()
        width, self.n_prompts = config.hidden_size, config.len_soft_prompts
        self.dim_time, self.action_width = config.dim_time, action_width
        n_proprio = config.max_state_dim if config.use_proprio else 0
        self.blocks = nn.ModuleList(
            _Block(width, config.num_heads, int(width * config.mlp_ratio), dropout=0.1)
            for _ in range(config.depth)
        )
        if config.use_hetero_proj:
            self.vlm_proj: nn.Module = DomainLinear(config.num_domains, vlm_width, width)
            self.aux_visual_proj: nn.Module = DomainLinear(config.num_domains, vlm_width, width)
        else:
            self.vlm_proj, self.aux_visual_proj = (
                SharedLinear(vlm_width, width),
                SharedLinear(vlm_width, width),
            )
        self.pos_emb = nn.Parameter(torch.empty(1, config.max_len_seq, width))
        nn.init.normal_(self.pos_emb, std=0.02)
        self.norm = nn.LayerNorm(width)
        n_in = action_width + n_proprio + config.dim_time
        self.action_encoder = DomainLinear(config.num_domains, n_in, width)
        self.action_decoder = DomainLinear(config.num_domains, width, action_width)
        if self.n_prompts:
            self.soft_prompt_hub = nn.Embedding(config.num_domains, self.n_prompts * width)
            nn.init.normal_(self.soft_prompt_hub.weight, std=0.02)
        self._baked_prompts: Tensor | None = None

    def bake(self, domain: int) -> None:
        """Only this domain's prompts from here on."""
        if self.n_prompts:
            row = self.soft_prompt_hub.weight[domain].detach()
            self._baked_prompts = row.view(1, self.n_prompts, -1).clone()

    def prompts(self, domain: Tensor) -> list[Tensor]:
        """(B, prompts, width) of domain ids (B,); none where the network has no prompts."""
        if self._baked_prompts is not None:
            return [self._baked_prompts.expand(domain.shape[0], -1, -1)]
        if not self.n_prompts:
            return []
        return [self.soft_prompt_hub(domain).view(domain.shape[0], self.n_prompts, -1)]

    def condition(self, vlm: Tensor, aux: Tensor, domain: Tensor, horizon: int) -> Tensor:
        """Encoder output and the other views' tokens -> what every step attends to, positions added."""
        tokens = torch.cat([self.vlm_proj(vlm, domain), self.aux_visual_proj(aux, domain)], dim=1)
        end = horizon + tokens.shape[1]
        if end > self.pos_emb.shape[1]:
            raise CheckpointError(
                f"the sequence has {end} tokens, max_len_seq is {self.pos_emb.shape[1]}; use fewer views or less text"
            )
        return tokens + self.pos_emb[:, horizon:end]

    def encode_proprio(self, proprio: Tensor, domain: Tensor) -> Tensor:
        """(B, P) -> (B, 1, width): its rows of the action encoder, and the encoder's bias."""
        w, b = self.action_encoder.weights(domain)
        return proprio[:, None] @ w[:, self.action_width : self.action_width + proprio.shape[-1]] + b

    def forward(
        self,
        x: Tensor,
        proprio: Tensor,
        tau: Tensor,
        tokens: Tensor,
        domain: Tensor,
        is_clean: Tensor | None = None,
        towards: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """x: (B, T, W); proprio: (B, 1, width) as encoded; tau: (B,); tokens as conditioned. Gives (B, T, W).

        is_clean: bool (B, T), the actions whose time is 0. towards: (B, width) each, what is added to the encoded time
        and to that of clean actions.
        """
        horizon = x.shape[1]
        w, _ = self.action_encoder.weights(domain)
        now, clean = (self._encoded_time(t, x, w) for t in (tau, torch.zeros_like(tau)))
        if towards is not None:
            now, clean = (t + to.to(t.dtype)[:, None] for t, to in zip((now, clean), towards, strict=True))
        time = now if is_clean is None else torch.where(is_clean[..., None], clean, now)
        actions = x @ w[:, : self.action_width] + time + proprio + self.pos_emb[:, :horizon]
        h = torch.cat([actions, tokens.to(actions.dtype), *self.prompts(domain)], dim=1)
        for block in self.blocks:
            h = self.call(block, h)
        return self.action_decoder(self.norm(h[:, :horizon]), domain)

    def _encoded_time(self, tau: Tensor, like: Tensor, w: Tensor) -> Tensor:
        """(B,) -> (B, 1, width): the time through its rows of the action encoder."""
        return self._time(tau).to(like.dtype)[:, None] @ w[:, -self.dim_time :]

    def _time(self, tau: Tensor) -> Tensor:
        half = self.dim_time // 2
        index = torch.arange(half, dtype=torch.float32, device=tau.device)
        angle = tau.to(torch.float32)[:, None] * torch.exp(index * (-math.log(100.0) / half))
        # An odd width ends in a zero.
        return F.pad(torch.cat([angle.cos(), angle.sin()], dim=-1), (0, self.dim_time % 2))

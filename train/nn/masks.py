"""Who may attend to whom, as plain tensors: block masks, position ids, and the additive bias made from a mask.

A sequence is a row of tokens, each real or padding. Some tokens *start a block*: earlier tokens see neither them nor
what follows. Query i may attend key j iff block(j) <= block(i) and both are real (docs/policies.md#masks).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MASKED = -3.0e4
"""Bias of a forbidden key. Finite, so a row without any allowed key gives no NaN, and small enough for float16;
exp(MASKED + score) is exactly 0 in every precision for every score a network produces."""


def block_mask(real: Tensor, starts: Sequence[bool]) -> Tensor:
    """real: bool (B, L). starts: which tokens start a block, length L. Gives bool (B, L, L), query x key."""
    block = torch.tensor(starts, device=real.device, dtype=torch.int64).cumsum(0)
    sees = block[None, :] <= block[:, None]
    return sees[None] & real[:, None, :] & real[:, :, None]


def position_ids(real: Tensor) -> Tensor:
    """bool (B, L) -> int64 (B, L): index among the real tokens; padding repeats the index before it."""
    return real.to(torch.int64).cumsum(1) - 1


def count_real(real: Tensor) -> Tensor:
    """bool (B, L) -> int64 (B, 1): where the tokens that follow this prefix start."""
    return real.to(torch.int64).sum(1, keepdim=True)


def bias(allowed: Tensor) -> Tensor:
    """bool (B, Lq, Lk) -> float32 (B, 1, Lq, Lk): 0 where allowed, MASKED elsewhere; one for all heads."""
    return torch.where(allowed[:, None], 0.0, MASKED).to(torch.float32)

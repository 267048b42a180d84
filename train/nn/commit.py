"""Training-time real-time chunking (arXiv 2512.05964): chunks whose first actions are already decided.

    action    0 ........ d-1 | d ............ T-1
    x         committed      | noise and data mixed, as ever
    time      clean          | t
    loss      -              | mean over these alone

In training d is drawn per sample, at run time it is what `rtc:weights` marks. A policy gives the marked tokens the row
of the clean time; with nothing marked, every number is that of the plain network, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def draw_delay(n: int, longest: int, generator: torch.Generator | None = None) -> Tensor:
    """int64 (n,), uniform over 0 ... longest, both included. Drawn on the generator's device."""
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.randint(0, longest + 1, (n,), generator=generator, device=device)


def drawn(draws: Mapping[str, Tensor], length: int) -> Tensor | None:
    """bool (B, T): what the draws of a training step commit; None: the policy is not trained for it."""
    if "delay" not in draws:
        return None
    return torch.arange(length, device=draws["delay"].device) < draws["delay"][:, None]


def marked(extras: Mapping[str, Tensor]) -> Tensor | None:
    """bool (B, T): what `rtc:weights` of 0 and 1 mark; None where there are none."""
    weights = extras.get("rtc:weights")
    return None if weights is None else weights > 0.5


def put(x: Tensor, committed: Tensor, is_committed: Tensor) -> Tensor:
    """x (B, T, W) with the committed values in their places."""
    return torch.where(is_committed[..., None], committed, x)


def per_action(now: Tensor, clean: Tensor | None, is_committed: Tensor | None) -> Tensor:
    """What is made of the step's time (B, W), and of the clean time where an action is committed: (B, T, W).

    Where nothing can be committed it stays one row for all actions.
    """
    if clean is None or is_committed is None:
        return now
    return torch.where(is_committed[..., None], clean[:, None], now[:, None])


def over_tokens(row: Tensor) -> Tensor:
    """As from `per_action`, ready to meet (B, T, W)."""
    return row if row.ndim == 3 else row[:, None]


def mean_of(error: Tensor, counted: Tensor, dim: int | tuple[int, ...] = (0, 1, 2)) -> Tensor:
    """Mean of error (B, T, W) over `dim`, of the actions alone that count, bool (B, T); 0 where none does."""
    kept = counted[..., None].expand_as(error)
    return (error * kept).sum(dim) / kept.sum(dim).clamp(min=1)

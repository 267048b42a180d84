"""Trading time for memory: a layer's inside is computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def call(owner: nn.Module, layer: Callable[..., Any], *args: Any) -> Any:
    """`layer(*args)`; recomputed while `owner` trains with its `gradient_checkpointing` set."""
    if owner.gradient_checkpointing and owner.training and torch.is_grad_enabled():
        return checkpoint(layer, *args, use_reentrant=False)
    return layer(*args)

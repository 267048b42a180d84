"""Trading time for memory: a layer's inside is computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputed(nn.Module):
    """A stack that runs its layers through `call`, so that they can be recomputed."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False

    def call(self, layer: Callable[..., Any], *args: Any) -> Any:
        """`layer(*args)`; while training with `gradient_checkpointing` its inside is recomputed, not kept."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(layer, *args, use_reentrant=False)
        return layer(*args)

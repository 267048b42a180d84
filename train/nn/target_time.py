"""To what time a denoise step shall lead, told to a network that was made to know only at what time it is.

    e(t) + f(s)        t: the time of x        s: where the step ends; s = t asks for the velocity at t itself

f ends in zeros before its first training step, so the network is then what it was, bit for bit (arXiv 2604.05656).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TARGET = "target"
"""Key among a step's `extras`: the time (B,) that the step is asked to lead to; absent: that of x."""
N_FREQUENCIES = 32


class TargetTime(nn.Module):
    """Target time (B,), 1 = noise, to what is added to an embedded time: float32 (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(2 * N_FREQUENCIES, width, dtype=torch.float32)
        self.last = nn.Linear(width, width, dtype=torch.float32)
        self.start()

    def start(self) -> None:
        """Before any training: it adds zeros."""
        self.first.reset_parameters()
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, target: Tensor) -> Tensor:
        # Angles stay below 100, where float32 is exact to 1e-5.
        octave = torch.arange(N_FREQUENCIES, dtype=torch.float32, device=target.device) / (N_FREQUENCIES - 1)
        angle = target.to(torch.float32)[:, None] * torch.exp(octave * math.log(100.0))
        return self.last(F.silu(self.first(torch.cat([angle.sin(), angle.cos()], dim=-1))))

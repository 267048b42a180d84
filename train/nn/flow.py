"""Flow matching with time 1 = noise, 0 = data: path, target, time draws, time embedding, guidance, Euler step.

    x_t = t * noise + (1 - t) * data          u = noise - data          loss = (u - v)^2

Everything is elementwise; what the network sees and what the solver does is written here once
(docs/policies.md#flow-matching, #real-time-chunking).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def path(data: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and the target velocity. data, noise: (B, T, W); time: (B,)."""
    t = time[:, None, None]
    return t * noise + (1 - t) * data, noise - data


def draw_time(
    n: int,
    generator: torch.Generator | None = None,
    *,
    alpha: float = 1.5,
    beta: float = 1.0,
    scale: float = 0.999,
    offset: float = 0.001,
) -> Tensor:
    """float32 (n,): Beta(alpha, beta) * scale + offset, denser towards 1 (noise). Drawn on the generator's device."""
    device = generator.device if generator is not None else torch.device("cpu")
    if beta == 1.0:
        unit = torch.rand(n, generator=generator, device=device) ** (1 / alpha)
    else:
        a, b = (
            torch._standard_gamma(torch.full((n,), shape, device=device), generator=generator)
            for shape in (alpha, beta)
        )
        unit = a / (a + b)
    return unit * scale + offset


def shift_time(time: Tensor, shift: float) -> Tensor:
    """Times pushed towards 1 (noise), as in arXiv 2606.05737: 1/2 becomes shift / (shift + 1). 0: as they are."""
    return shift * time / (1 + (shift - 1) * time) if shift else time


def time_embedding(time: Tensor, width: int, min_period: float, max_period: float) -> Tensor:
    """(B,) -> float32 (B, width): sines, then cosines, of geometrically spaced periods.

    In float64: the shortest period turns 250 times over the path, where float32 is off by 9e-5.
    """
    half = width // 2
    fraction = torch.linspace(0.0, 1.0, half, dtype=torch.float64, device=time.device)
    # Tensors, because the exporter turns Python numbers into float32 constants, which is 3e-5 at the shortest period.
    shortest, ratio, turn = (
        torch.tensor(v, dtype=torch.float64, device=time.device)
        for v in (min_period, max_period / min_period, 2 * math.pi)
    )
    period = shortest * ratio**fraction
    angle = time.to(torch.float64)[:, None] * (turn / period)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(torch.float32)


def guide(
    x: Tensor, v: Tensor, tau: Tensor, committed: Tensor, weights: Tensor, max_guidance: Tensor
) -> Tensor:
    """Velocity pulled towards `committed` (B, T, W, normalised) by `weights` (B, T): real-time chunking.

    The error itself is the correction, it is not propagated through the network.
    With zero weights the result is v, bit for bit.
    """
    t = tau[:, None, None]
    clean = x - t * v
    error = (committed - clean) * weights[..., None]
    strength = (t * t + (1 - t) * (1 - t)) / (t * (1 - t))
    return v - torch.minimum(strength, max_guidance[:, None, None]) * error


def euler(x: Tensor, v: Tensor, tau: Tensor, tau_next: Tensor) -> Tensor:
    """One solver step. x, v: (B, T, D); tau, tau_next: (B,)."""
    return x + (tau_next - tau)[:, None, None] * v

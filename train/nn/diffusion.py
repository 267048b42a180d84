"""Diffusion over actions: the noise schedule, and one step of DDPM or DDIM (Ho et al. 2020, Song et al. 2021).

    x_k = sqrt(a_k) * data + sqrt(1 - a_k) * noise         a_k: cumulative product of alphas at timestep k

Coefficients are looked up by timestep in a float32 table, so one graph serves any number of steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgevla.errors import CheckpointError


def alphas_cumprod(kind: str, n: int, beta_start: float, beta_end: float) -> Tensor:
    """float32 (n,), as diffusers computes it.

    Raises:
        CheckpointError: unknown kind of schedule.
    """
    if kind == "squaredcos_cap_v2":

        def share(s: float) -> float:
            return math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = torch.tensor(
            [min(1 - share((i + 1) / n) / share(i / n), 0.999) for i in range(n)], dtype=torch.float32
        )
    elif kind == "linear":
        betas = torch.linspace(beta_start, beta_end, n, dtype=torch.float32)
    elif kind == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, n, dtype=torch.float32) ** 2
    else:
        raise CheckpointError(
            f"beta_schedule '{kind}' is unknown; known: squaredcos_cap_v2, linear, scaled_linear"
        )
    return torch.cumprod(1 - betas, 0)


class NoiseSchedule(nn.Module):
    """What the solver and the loss need of the schedule. Timesteps: 0 ... n - 1, and -1 for data without noise.

    predicts_noise: whether the network gives the noise (else the data). clip: bound of the predicted data, None: none.
    """

    table: Tensor

    def __init__(self, alphas: Tensor, *, predicts_noise: bool, clip: float | None) -> None:
        super().__init__()
        self.predicts_noise, self.clip = predicts_noise, clip
        # Entry k + 1 belongs to timestep k; entry 0 is timestep -1.
        self.register_buffer("table", torch.cat([torch.ones(1), alphas]), persistent=False)

    def alpha(self, timestep: Tensor) -> Tensor:
        """float32 (B, 1, 1) of timesteps (B,), whole numbers of any dtype."""
        return self.table[timestep.to(torch.int64) + 1][:, None, None]

    def add_noise(self, data: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """sqrt(alpha) x + sqrt(1 - alpha) noise (Ho et al. 2020, equation 4). timestep: (B,), whole numbers."""
        alpha = self.alpha(timestep)
        return alpha.sqrt() * data + (1 - alpha).sqrt() * noise

    def step(
        self,
        x: Tensor,
        output: Tensor,
        tau: Tensor,
        tau_next: Tensor,
        noise: Tensor,
        stochastic: Tensor,
    ) -> Tensor:
        """x at tau -> x at tau_next. output: the network's. stochastic (B,): 1 DDPM with `noise`, 0 DDIM without."""
        alpha, alpha_next = self.alpha(tau), self.alpha(tau_next)
        if self.predicts_noise:
            data = (x - (1 - alpha).sqrt() * output) / alpha.sqrt()
            direction = output
        else:
            data = output
            # From the data before clipping, as the reference does.
            direction = (x - alpha.sqrt() * output) / (1 - alpha).sqrt()
        if self.clip is not None:
            data = data.clamp(-self.clip, self.clip)
        ddim = alpha_next.sqrt() * data + (1 - alpha_next).sqrt() * direction

        step_alpha = alpha / alpha_next
        step_beta = 1 - step_alpha
        mean = (
            alpha_next.sqrt() * step_beta / (1 - alpha) * data
            + step_alpha.sqrt() * (1 - alpha_next) / (1 - alpha) * x
        )
        variance = ((1 - alpha_next) / (1 - alpha) * step_beta).clamp(min=1e-20)
        is_last = (tau <= 0)[:, None, None]
        ddpm = mean + torch.where(is_last, 0.0, variance.sqrt()) * noise
        return torch.where(stochastic[:, None, None] > 0.5, ddpm, ddim)

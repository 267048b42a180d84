"""The 1-D convolutional U-Net of Diffusion Policy (Chi et al. 2023) with LeRobot's weight names.

Over time, conditioned by FiLM on a vector of the diffusion step and the observation. No attention anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .recompute import Recomputed


class StepEmbedding(nn.Module):
    """Timestep (B,) -> (B, width): sines, then cosines, of frequencies 1 ... 1/10000; float32."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        frequencies = torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, timestep: Tensor) -> Tensor:
        angle = timestep.to(torch.float32)[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


FINAL_GROUPS = 8
"""Groups of the last block's norm, whatever the others have."""


class ConvBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, kernel: int, n_groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(n_in, n_out, kernel, padding=kernel // 2), nn.GroupNorm(n_groups, n_out), nn.Mish()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ResidualBlock(nn.Module):
    """Two convolutions, FiLM between them. With scale modulation h * s + b: the scale as it is, without `1 +`."""

    def __init__(
        self, n_in: int, n_out: int, n_condition: int, kernel: int, n_groups: int, *, has_scale: bool
    ) -> None:
        super().__init__()
        self.has_scale = has_scale
        self.conv1 = ConvBlock(n_in, n_out, kernel, n_groups)
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(n_condition, n_out * (2 if has_scale else 1)))
        self.conv2 = ConvBlock(n_out, n_out, kernel, n_groups)
        self.residual_conv = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, C, L), condition (B, n_condition)."""
        h = self.conv1(x)
        film = self.cond_encoder(condition)[:, :, None]
        if self.has_scale:
            scale, shift = film.chunk(2, dim=1)
            h = scale * h + shift
        else:
            h = h + film
        return self.conv2(h) + self.residual_conv(x)


class Unet1d(Recomputed):
    """x (B, T, A), timestep (B,), condition (B, n_condition) -> (B, T, A); T a multiple of 2^(levels - 1).

    gradient_checkpointing: in training, activations of the residual blocks are computed again instead of kept.
    """

    def __init__(
        self,
        n_actions: int,
        n_condition: int,
        widths: Sequence[int],
        *,
        kernel: int,
        n_groups: int,
        step_width: int,
        has_scale: bool,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        self.diffusion_step_encoder = nn.Sequential(
            StepEmbedding(step_width),
            nn.Linear(step_width, 4 * step_width),
            nn.Mish(),
            nn.Linear(4 * step_width, step_width),
        )

        def residual(n_in: int, n_out: int) -> ResidualBlock:
            return ResidualBlock(n_in, n_out, step_width + n_condition, kernel, n_groups, has_scale=has_scale)

        levels = list(zip([n_actions, *widths[:-1]], widths, strict=True))
        self.down_modules = nn.ModuleList()
        for i, (n_in, n_out) in enumerate(levels):
            is_last = i == len(levels) - 1
            shrink = nn.Identity() if is_last else nn.Conv1d(n_out, n_out, 3, stride=2, padding=1)
            self.down_modules.append(nn.ModuleList([residual(n_in, n_out), residual(n_out, n_out), shrink]))
        deepest = widths[-1]
        self.mid_modules = nn.ModuleList([residual(deepest, deepest), residual(deepest, deepest)])
        self.up_modules = nn.ModuleList()
        for n_out, n_in in reversed(levels[1:]):
            grow = nn.ConvTranspose1d(n_out, n_out, 4, stride=2, padding=1)
            self.up_modules.append(nn.ModuleList([residual(2 * n_in, n_out), residual(n_out, n_out), grow]))
        self.final_conv = nn.Sequential(
            ConvBlock(widths[0], widths[0], kernel, FINAL_GROUPS), nn.Conv1d(widths[0], n_actions, 1)
        )

    def forward(self, x: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        h = x.transpose(1, 2)
        condition = torch.cat([self.diffusion_step_encoder(timestep), condition], dim=-1)
        skips = []
        for level in self.down_modules:
            first, second, shrink = _parts(level)
            h = self._block(second, self._block(first, h, condition), condition)
            skips.append(h)
            h = shrink(h)
        for block in self.mid_modules:
            h = self._block(block, h, condition)
        for level in self.up_modules:
            first, second, grow = _parts(level)
            h = torch.cat([h, skips.pop()], dim=1)  # the first level's skip is never used
            h = grow(self._block(second, self._block(first, h, condition), condition))
        return self.final_conv(h).transpose(1, 2)

    def _block(self, block: nn.Module, h: Tensor, condition: Tensor) -> Tensor:
        return self.call(block, h, condition)


def _parts(level: nn.Module) -> list[nn.Module]:
    """Two residual blocks and what changes the length."""
    assert isinstance(level, nn.ModuleList)
    return list(level)


class SpatialSoftmax(nn.Module):
    """Feature map (B, C, h, w) -> expected (x, y) of K keypoints, (B, 2K), coordinates -1 ... 1 (Finn et al. 2016)."""

    pos_grid: Tensor

    def __init__(self, n_channels: int, height: int, width: int, n_keypoints: int) -> None:
        super().__init__()
        self.nets = nn.Conv2d(n_channels, n_keypoints, 1)
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, height, dtype=torch.float64),
            torch.linspace(-1, 1, width, dtype=torch.float64),
            indexing="ij",
        )
        self.register_buffer("pos_grid", torch.stack([x.flatten(), y.flatten()], dim=1).float())

    def forward(self, features: Tensor) -> Tensor:
        attention = F.softmax(self.nets(features).flatten(2), dim=-1)  # (B, K, h*w)
        return (attention @ self.pos_grid).flatten(1)

"""The oldest check of a training step: one batch, the same random draws every time, and the loss must vanish."""

from __future__ import annotations

import torch

from .config import OptimizerConfig
from .optim import build_optimizer, clip_gradients
from .policies.base import Batch, Policy


def overfit(policy: Policy, batch: Batch, *, steps: int, lr: float, seed: int = 0) -> list[float]:
    """Trains on one raw batch by Adam; the loss before every step and after the last, steps + 1 numbers.

    All groups of the policy's own optimizer learn at `lr`, so what it freezes stays frozen. Leaves it in train mode.
    """
    groups = [{**group, "lr": lr} for group in policy.optimizer_groups() if group["params"]]
    optimizer = build_optimizer(OptimizerConfig("adam", lr=lr, weight_decay=0.0), groups)
    parameters = [p for group in groups for p in group["params"]]
    generator = torch.Generator().manual_seed(seed)
    draws = policy.draw(batch, generator)
    policy.train()
    losses = []
    for step in range(steps + 1):
        torch.manual_seed(seed)  # dropout drops the same
        loss, _ = policy.loss(batch, draws)
        losses.append(loss.item())
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            clip_gradients(parameters, 10.0)
            optimizer.step()
    return losses

"""The oldest check of a training step: one batch, the same random draws every time, and the loss must vanish."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from edgevla.dataset import open_dataset
from edgevla.train.config import OptimizerConfig
from edgevla.train.data import TrainingData, dataset_features, dataset_stats
from edgevla.train.fresh import new_policy
from edgevla.train.optim import build_optimizer, clip_gradients
from edgevla.train.policies.base import Batch, Policy

PUSHT = Path(__file__).parents[1] / "fixtures" / "datasets" / "pusht_v30"


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


def test_act_learns_one_batch_by_heart() -> None:
    torch.manual_seed(0)
    dataset = open_dataset(PUSHT, [0, 1])
    sizes = {
        "dim_model": 32,
        "n_heads": 2,
        "dim_feedforward": 64,
        "n_encoder_layers": 1,
        "n_vae_encoder_layers": 1,
    }
    settings = {
        "chunk_size": 8,
        "n_action_steps": 8,
        "dropout": 0.0,
        "pretrained_backbone_weights": None,
        **sizes,
    }
    features, stats = dataset_features(dataset), dataset_stats(dataset)
    policy = new_policy("act", features, stats, settings, trunk_width=16, say=lambda _: None)
    data = TrainingData(dataset, policy.config)
    losses = overfit(policy, data.batch(np.array([3, 90])), steps=60, lr=3e-3)
    assert losses[-1] < 0.1 * losses[0], losses[:: len(losses) // 6]

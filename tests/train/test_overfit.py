"""A small ACT learns one real batch by heart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from edgevla.dataset import open_dataset
from edgevla.train.data import TrainingData, dataset_features, dataset_stats
from edgevla.train.fresh import new_policy
from edgevla.train.overfit import overfit

PUSHT = Path(__file__).parents[2].parent / "shared" / "datasets" / "pusht_v30"


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

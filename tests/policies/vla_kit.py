"""Tiny VLAs on tiny backbones, and batches that fit them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgevla.train.policies.vla import FlowVla

CAMERAS = {"observation.images.top": (48, 64), "observation.images.wrist": (60, 40)}
TINY: dict[str, dict[str, Any]] = {
    "smolvla": {"resize_imgs_with_padding": (64, 64), "tokenizer_max_length": 16, "num_steps": 5},
    "pi0": {"image_resolution": (64, 64), "tokenizer_max_length": 16, "num_inference_steps": 5},
    "pi05": {"image_resolution": (64, 64), "tokenizer_max_length": 64, "num_inference_steps": 5},
}
MakeVla = Callable[..., FlowVla]


def random_stats(dims: dict[str, int]) -> dict[str, dict[str, np.ndarray]]:
    """Statistics that no axis shares with another."""
    stats = {}
    for seed, (name, n) in enumerate(dims.items()):
        rng = np.random.default_rng(seed)
        mean, std = rng.normal(0, 2, n), rng.uniform(0.5, 2, n)
        named = {"mean": mean, "std": std, "min": mean - 3 * std, "max": mean + 3 * std}
        named |= {"q01": mean - 2 * std, "q99": mean + 2 * std}
        stats[name] = {k: v.astype(np.float32) for k, v in named.items()}
    return stats


def stir(policy: FlowVla) -> FlowVla:
    """Adaptive norms start at zero; with random ones a test sees them."""
    for name, parameter in policy.named_parameters():
        if ".dense." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return policy


def random_batch(policy: FlowVla, n: int = 2, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    config = policy.config
    batch: dict[str, Any] = {
        name: torch.randint(0, 256, (n, *policy.camera_size(name), 3), generator=generator, dtype=torch.uint8)
        for name in policy.live_cameras
    }
    dim = config.state_dim or 0
    batch["observation.state"] = torch.randn(n, dim, generator=generator)
    batch["action"] = torch.randn(n, config.chunk_size, config.action_dim, generator=generator)
    batch["action_is_pad"] = torch.zeros(n, config.chunk_size, dtype=torch.bool)
    batch["action_is_pad"][0, -3:] = True
    return {**batch, **prompt_of(policy, ["pick the cube", "close it"][:n], batch["observation.state"])}


def prompt_of(policy: FlowVla, tasks: list[str], state: Tensor) -> dict[str, Tensor]:
    prompt = policy.prompt_builder().build(tasks, state.numpy())
    return {"tokens": torch.from_numpy(prompt.tokens), "token_mask": torch.from_numpy(prompt.mask)}


@torch.no_grad()
def chunk_of(policy: FlowVla, batch: dict[str, Any], **changes: Any) -> Tensor:
    """The normalised chunk from fixed noise. changes: values by source that replace or add to the batch's."""
    sampler = policy.sampler()
    n = len(batch["observation.state"])
    values = {"camera_present": torch.ones(n, len(policy.live_cameras), dtype=torch.bool)}
    values |= {**policy.inputs(batch), **no_guidance(policy, n), **changes}
    noise = torch.randn(n, *policy.sample_shape, generator=torch.Generator().manual_seed(7))
    return sampler.solve(sampler.encode(values), values, noise=noise)


def no_guidance(policy: FlowVla, n: int) -> dict[str, Tensor]:
    length, dim = policy.config.chunk_size, policy.config.action_dim
    return {
        "rtc:committed": torch.zeros(n, length, dim),
        "rtc:weights": torch.zeros(n, length),
        "rtc:max_guidance": torch.full((n,), 10.0),
    }

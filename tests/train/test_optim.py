"""The published numbers: presets and schedules, against LeRobot's."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from edgevla.errors import ConfigError
from edgevla.train.config import Group, OptimizerConfig, SchedulerConfig, TrainConfig, recipe_names
from edgevla.train.optim import (
    build_optimizer,
    build_scheduler,
    clip_gradients,
    cosine,
    cosine_decay_with_warmup,
    freeze_all_but,
    grouped,
    two_phase,
)

PRESETS = {
    # type, lr, betas, eps, weight decay, gradient clip, schedule
    "act": ("adamw", 1e-5, (0.9, 0.999), 1e-8, 1e-4, 10, "none"),
    "diffusion": ("adam", 1e-4, (0.95, 0.999), 1e-8, 1e-6, 10, "cosine"),
    "smolvla": ("adamw", 1e-4, (0.9, 0.95), 1e-8, 1e-10, 10, "cosine_decay_with_warmup"),
    "pi0": ("adamw", 2.5e-5, (0.9, 0.95), 1e-8, 0.01, 1.0, "cosine_decay_with_warmup"),
    "pi05": ("adamw", 2.5e-5, (0.9, 0.95), 1e-8, 0.01, 1.0, "cosine_decay_with_warmup"),
    "pi05_fast": ("adamw", 2.5e-5, (0.9, 0.95), 1e-8, 0.01, 1.0, "cosine_decay_with_warmup"),
    "xvla": ("adamw", 1e-4, (0.9, 0.99), 1e-8, 0.0, 10, "cosine_decay_with_warmup"),
    "xvla_soft_prompts": ("adamw", 1e-4, (0.9, 0.99), 1e-8, 0.0, 10, "cosine_decay_with_warmup"),
    "xvla_two_phase": ("adamw", 1e-4, (0.9, 0.95), 1e-8, 0.0, 1.0, "two_phase"),
    "snapflow": ("adamw", 2.5e-5, (0.9, 0.95), 1e-8, 0.01, 1.0, "cosine_decay_with_warmup"),
    "groot": ("adamw", 1e-4, (0.95, 0.999), 1e-8, 1e-5, 10, "cosine_decay_with_warmup"),
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_recipe_holds_the_published_optimizer(name: str) -> None:
    config = TrainConfig.resolve(name, {})
    o = config.optimizer
    assert (o.type, o.lr, o.betas, o.eps, o.weight_decay, o.grad_clip_norm, config.scheduler.type) == PRESETS[
        name
    ]
    assert config.source, "a recipe names where its numbers are from"


def test_there_is_a_recipe_for_every_row_and_no_other() -> None:
    published = [
        n for n in recipe_names() if not TrainConfig.resolve(n, {}).source.startswith("edgevla demo")
    ]
    assert published == sorted(PRESETS)


@pytest.mark.parametrize(
    ("name", "warmup", "decay", "end"),
    [
        ("smolvla", 1000, 30000, 2.5e-6),
        ("pi0", 1000, 30000, 2.5e-6),
        ("pi05", 1000, 30000, 2.5e-6),
        ("xvla", 1000, 30000, 2.5e-6),
        ("groot", 500, 10000, 1e-5),
    ],
)
def test_cosine_presets(name: str, warmup: int, decay: int, end: float) -> None:
    scheduler = TrainConfig.resolve(name, {}).scheduler
    assert (scheduler.warmup_steps, scheduler.decay_steps, scheduler.decay_lr) == (warmup, decay, end)


@pytest.mark.parametrize(
    ("n_steps", "k", "lr"),
    [
        (100_000, 0, 2.497502e-08),
        (100_000, 500, 1.251249e-05),
        (100_000, 999, 2.497502e-05),
        (100_000, 1000, 2.493837e-05),
        (100_000, 15_000, 1.375e-05),
        (100_000, 30_000, 2.5e-06),
        (100_000, 90_000, 2.5e-06),
        (3000, 0, 2.475248e-07),
        (3000, 50, 1.262376e-05),
        (3000, 100, 2.493837e-05),
        (3000, 1500, 1.375e-05),
    ],
)
def test_cosine_decay_with_warmup_has_the_references_values(n_steps: int, k: int, lr: float) -> None:
    peak = 2.5e-5
    assert peak * cosine_decay_with_warmup(1000, 30_000, peak, 2.5e-6, n_steps)(k) == pytest.approx(
        lr, rel=2e-7
    )


def test_the_cosine_of_diffusers_starts_at_zero_and_ends_at_zero() -> None:
    at = cosine(500, 10_000)
    assert [at(0), at(250), at(500)] == [0.0, 0.5, 1.0]
    assert at(5250) == pytest.approx(0.5)
    assert at(10_000) == pytest.approx(0.0, abs=1e-12)
    assert cosine(0, 1)(0) == 1.0


def test_two_phases_rest_then_warm_up_then_decay() -> None:
    vlm = two_phase(1000, 2000, 0.1, 50_000, frozen_first=True)
    prompts = two_phase(1000, 2000, 0.1, 50_000, frozen_first=False)
    assert [vlm(0), vlm(999), vlm(1000), vlm(2000), vlm(3000)] == [0.0, 0.0, 0.0, 0.5, 1.0]
    assert [prompts(0), prompts(999), prompts(1000), prompts(3000)] == [1.0, 1.0, 0.0, 1.0]
    assert vlm(50_000) == prompts(50_000) == pytest.approx(0.1)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vlm = nn.Linear(2, 2)
        self.transformer = nn.ModuleDict(
            {
                "vlm_proj": nn.Linear(2, 2),
                "action_encoder": nn.Linear(2, 2),
                "soft_prompt_hub": nn.Embedding(3, 2),
            }
        )


def test_two_phase_groups_keep_the_core_still_at_first() -> None:
    config = TrainConfig.resolve("xvla_two_phase", {})
    optimizer = build_optimizer(config.optimizer, grouped(Named(), config.optimizer, config.groups))
    build_scheduler(config.scheduler, optimizer, peak_lr=1e-4, n_steps=50_000, groups=config.groups)
    rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
    assert rates == {
        "vlm": 0.0,
        "soft_prompts": pytest.approx(1e-5),
        "action_heads": 1e-4,
        "transformer_core": 0.0,
    }


def test_soft_prompts_alone() -> None:
    policy = Named()
    freeze_all_but(policy, TrainConfig.resolve("xvla_soft_prompts", {}).train_only)
    assert [n for n, p in policy.named_parameters() if p.requires_grad] == [
        "transformer.soft_prompt_hub.weight"
    ]


def test_a_parameter_without_a_group_is_named() -> None:
    with pytest.raises(ConfigError, match=r"vlm\.weight"):
        grouped(Named(), OptimizerConfig(), [Group("soft", "soft")])


def test_nothing_trainable_is_an_error() -> None:
    with pytest.raises(ConfigError, match="frozen"):
        build_optimizer(OptimizerConfig(), [{"params": []}])


def test_adam_couples_its_decay_and_adamw_does_not() -> None:
    """With a zero gradient AdamW shrinks the weight by lr * decay, Adam steps by about lr whatever the decay."""
    ends = {}
    for kind in ("adam", "adamw"):
        weight = nn.Parameter(torch.tensor([2.0]))
        optimizer = build_optimizer(OptimizerConfig(kind, lr=0.1, weight_decay=0.01), [{"params": [weight]}])  # type: ignore[arg-type]
        weight.grad = torch.zeros(1)
        optimizer.step()
        ends[kind] = weight.item()
    assert ends["adamw"] == pytest.approx(2.0 * (1 - 0.1 * 0.01), rel=1e-6)
    assert ends["adam"] == pytest.approx(2.0 - 0.1, rel=1e-4)


def test_clipping_scales_all_gradients_to_the_common_norm() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert float(clip_gradients([a, b], 0.0)) == 5.0  # only measured
    assert float(b.grad) == 4.0
    assert float(clip_gradients([a, b], 1.0)) == 5.0
    assert math.hypot(float(a.grad), float(b.grad)) == pytest.approx(1.0, rel=1e-5)


def test_the_schedulers_state_is_json() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer(OptimizerConfig(), [{"params": [weight]}])
    scheduler = build_scheduler(SchedulerConfig("cosine", warmup_steps=2), optimizer, peak_lr=1e-3, n_steps=9)
    assert scheduler is not None
    assert json.loads(json.dumps(scheduler.state_dict()))["base_lrs"] == [1e-3]

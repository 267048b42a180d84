"""Configuration that SmolVLA, Pi0 and Pi0.5 share, and what their pipelines say about relative actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from edgevla.errors import CheckpointError
from edgevla.types import ACTION, STATE

from ..processors import Processors, Step
from .config import PolicyConfig
from .flow_config import FlowConfig

RELATIVE = ("relative_actions_processor", "delta_actions_processor")
"""LeRobot's names of the step that subtracts the state from the actions: since 0.6, and in 0.5."""


@dataclass
class VlaConfig(FlowConfig):
    """Fields that these policies' configs have in common, with LeRobot's names.

    `compile_model` and `compile_mode` only travel along: graphs are compiled by the export.
    """

    normalization_mapping: dict[str, str] = field(
        default_factory=lambda: {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
    )
    chunk_size: int = 50
    n_action_steps: int = 50
    max_state_dim: int = 32
    max_action_dim: int = 32
    empty_cameras: int = 0
    tokenizer_max_length: int = 48
    min_period: float = 4e-3
    max_period: float = 4.0
    rtc_config: dict[str, Any] | None = None
    freeze_vision_encoder: bool = False
    train_expert_only: bool = False
    optimizer_lr: float = 2.5e-5
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 0.01
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 1000
    scheduler_decay_steps: int = 30000
    scheduler_decay_lr: float = 2.5e-6
    compile_model: bool = False
    compile_mode: str = "max-autotune"

    takes_any_state: ClassVar[bool] = True

    @property
    def chunk_length(self) -> int:
        return self.chunk_size

    @property
    def rtc_settings(self) -> Mapping[str, Any]:
        return self.rtc_config or {}

    @property
    def denoise_steps(self) -> int:
        """Solver steps where nobody asks for others."""
        raise NotImplementedError

    def validate(self) -> None:
        self.check_sizes(
            "chunk_size", "n_action_steps", "max_state_dim", "max_action_dim", "tokenizer_max_length"
        )
        self.check_flow()
        if self.min_period <= 0 or self.max_period <= 0:
            raise CheckpointError(
                f"{self.type}: min_period {self.min_period} and max_period {self.max_period} must be above 0"
            )
        if self.denoise_steps < 1:
            raise CheckpointError(f"{self.type}: {self.denoise_steps} denoise steps; at least 1 is needed")
        if self.n_action_steps > self.chunk_size:
            raise CheckpointError(
                f"n_action_steps is {self.n_action_steps}, but a chunk has only {self.chunk_size} actions"
            )
        for name, dim, limit in (
            ("state", self.state_dim, self.max_state_dim),
            ("action", self.action_dim if ACTION in self.output_features else None, self.max_action_dim),
        ):
            if dim is not None and dim > limit and (name == "action" or self.pads_state):
                raise CheckpointError(
                    f"{name} has {dim} values, the policy takes at most max_{name}_dim = {limit}"
                )

    pads_state: ClassVar[bool] = True
    """Whether the network takes the state padded to max_state_dim."""


def relative_mask(config: PolicyConfig, processors: Processors) -> Tensor | None:
    """float32 (A,): 1 where actions are relative to the state; None when the checkpoint's actions are absolute.

    A dimension is excluded when any of `exclude_joints` is part of its name, without regard to case; unknown names
    exclude nothing (docs/policies.md#relative-actions).
    """
    step = processors.step(*RELATIVE)
    after = processors.post_step("absolute_actions_processor")
    enabled = bool(step.config.get("enabled")) if step else False
    if step is not None and after is not None and bool(after.config.get("enabled")) != enabled:
        raise CheckpointError(
            f"the pre-processor's {step.name} is {'on' if enabled else 'off'}, the post-processor's "
            "absolute_actions_processor is not; they must agree"
        )
    if step is None or not enabled:
        return None
    n = config.action_dim
    if (config.state_dim or 0) < n:
        raise CheckpointError(
            f"relative actions need a state of at least {n} values, '{STATE}' has {config.state_dim or 0}"
        )
    names = list(step.config.get("action_names") or [])[:n]
    excluded = [str(e).lower() for e in step.config.get("exclude_joints") or []]
    keep = [not any(e in str(name).lower() for e in excluded) for name in names]
    return torch.tensor(keep + [True] * (n - len(keep)), dtype=torch.float32)


def set_relative(processors: Processors, settings: Mapping[str, Any]) -> None:
    """Makes the pair of steps say `settings`: `enabled`, `exclude_joints`, `action_names`; those not given stay.

    Pipelines of LeRobot 0.4 have no such steps and get them around the normaliser, as later ones have them.
    """
    for steps, names, place in (
        (processors.pre, RELATIVE, lambda i: i),
        (processors.post, ("absolute_actions_processor",), lambda i: i + 1),
    ):
        step = next((s for s in steps if s.name in names), None)
        if step is None:
            step = Step(names[0], {"enabled": False})
            at = next(i for i, s in enumerate(steps) if s.name.endswith("normalizer_processor"))
            steps.insert(place(at), step)
        taken = settings if names is RELATIVE else {k: v for k, v in settings.items() if k == "enabled"}
        step.config.update(taken)

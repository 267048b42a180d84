"""Pi0: the state is one continuous token before the actions; the time is mixed into every action token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevla.graph import TensorSpec

from ..nn.commit import over_tokens, per_action
from ..nn.transformer import project
from . import aloha
from .pi import PiConfig, PiPolicy
from .vla import TINY_NARROW


@dataclass
class Pi0Config(PiConfig):
    type: ClassVar[str] = "pi0"


class Pi0(PiPolicy):
    policy_type = "pi0"
    Config = Pi0Config
    newline_step = "pi0_new_line_processor"
    tiny: ClassVar[Mapping[str, Any]] = {
        **TINY_NARROW,
        "image_resolution": [64, 64],
        "tokenizer_max_length": 24,
    }
    adapts_to_aloha = False
    """openpi's checkpoints for ALOHA see its joints and grippers mapped, in robot units (aloha.py); LeRobot's config
    cannot say so, the export can. Training knows nothing of it."""

    def add_projections(self) -> None:
        width = self.dims.expert.width
        self.state_proj = nn.Linear(self.config.max_state_dim, width)
        self.action_time_mlp_in = nn.Linear(2 * width, width)
        self.action_time_mlp_out = nn.Linear(width, width)

    def adapt_to_aloha(self) -> None:
        self.adapts_to_aloha = True

    @classmethod
    def repair_key(cls, name: str) -> str | None:
        return name.replace("model.time_mlp_", "model.action_time_mlp_")

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inputs = self._mapped(inputs, "state", aloha.state_to_pi)
        return {**super().encode(inputs), "state_padded": self.network_state(inputs)}

    def denoise(
        self,
        context: Mapping[str, Tensor],
        x: Tensor,
        tau: Tensor,
        tau_next: Tensor,
        extras: Mapping[str, Tensor],
    ) -> Tensor:
        extras = self._mapped(extras, "rtc:committed", aloha.actions_to_pi)
        return super().denoise(context, x, tau, tau_next, extras)

    def decode(self, x: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        actions = super().decode(x, self._mapped(extras, "state", aloha.state_to_pi))
        return aloha.actions_from_pi(actions) if self.adapts_to_aloha else actions

    def _mapped(
        self, values: Mapping[str, Tensor], source: str, to_pi: Callable[[Tensor], Tensor]
    ) -> Mapping[str, Tensor]:
        if not self.adapts_to_aloha or source not in values:
            return values
        return {**values, source: to_pi(values[source])}

    def context_specs(self) -> tuple[TensorSpec, ...]:
        return (
            *super().context_specs(),
            TensorSpec("state_padded", "float32", (1, self.config.max_state_dim)),
        )

    def time_rows(self, embedded: Tensor) -> dict[str, Tensor]:
        return {"time_embedding": embedded}

    def embed_suffix(self, x: Tensor, state: Tensor, time_embedding: Tensor) -> Tensor:
        """[state, a_1 ... a_T]: (B, T + 1, width). time_embedding: (B, width), or (B, T, width)."""
        actions = project(self.action_in_proj, x)
        times = over_tokens(time_embedding).to(actions.dtype).expand_as(actions)
        fused = F.silu(project(self.action_time_mlp_in, torch.cat([actions, times], dim=-1)))
        fused = project(self.action_time_mlp_out, fused)
        return torch.cat([project(self.state_proj, state)[:, None], fused], dim=1)

    def velocity(
        self,
        context: Mapping[str, Tensor],
        x: Tensor,
        rows: Mapping[str, Tensor],
        is_committed: Tensor | None = None,
    ) -> Tensor:
        times = per_action(rows["time_embedding"], rows.get("clean_time_embedding"), is_committed)
        suffix = self.embed_suffix(x, context["state_padded"], times)
        # The state sees no action; actions see the state and each other.
        starts = [True, True] + [False] * (x.shape[1] - 1)
        return self.run_expert(context, suffix, starts)

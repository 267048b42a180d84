"""What every policy of flow matching shares: how it may learn to need one denoise step (SnapFlow, arXiv 2604.05656).

    half the batch    the flow-matching loss, as ever: the velocity at t                             target time t
    half the batch    from pure noise, one step:       x' = step(noise, 1 -> 0)                      target time 0
                      to where two half steps lead:    step(step(noise, 1 -> 1/2), 1/2 -> 0)         target time t

Two half steps of Euler are one with the mean of both velocities. They are the network's own, and no gradient goes
through them. Everything is said through `denoise`, so it holds for either direction of time, for X-VLA, which predicts
actions and no velocity, and for committed beginnings (`train/nn/commit.py`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgevla.graph import TensorSpec
from edgevla.policy import Schedule
from edgevla.types import ACTION

from ..nn import commit
from ..nn.target_time import TARGET, TargetTime
from .base import Batch, Policy
from .flow_config import FlowConfig

Losses = tuple[Tensor, dict[str, Tensor]]


class FlowPolicy(Policy):
    """Base of the policies that denoise by flow matching. Subclasses write `flow_loss` in place of `loss`."""

    config: FlowConfig
    own_modules: ClassVar[tuple[str, ...]] = ("target_time",)
    shared_draws: ClassVar[frozenset[str]] = frozenset()
    """Draws that are a batch's, not a sample's."""
    target_time: TargetTime | None

    def prepare_one_step(self, width: int, *backbone: nn.Module) -> None:
        """Adds the target time and freezes the backbone where the policy distils itself. width: of an embedded time."""
        self.target_time = TargetTime(width) if self.config.snapflow_weight else None
        for module in backbone if self.config.snapflow_weight else ():
            module.requires_grad_(False)

    def start_own_parts(self) -> None:
        if self.target_time is not None:
            self.target_time.start()

    # -- what a policy adds -------------------------------------------------------------------------------

    @property
    @abstractmethod
    def schedule(self) -> Schedule:
        """The times that `denoise` walks."""

    @abstractmethod
    def flow_loss(self, batch: Batch, draws: Mapping[str, Tensor]) -> Losses:
        """The loss of flow matching alone, and its parts by LeRobot's log names."""

    @abstractmethod
    def training_context(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of a raw batch: what `encode` gives, and what a step takes beside it, by source."""

    def distance(self, x: Tensor, aim: Tensor, counted: Tensor | None) -> Tensor:
        """How far two normalised chunks (B, T, W) are apart. counted: bool (B, T), the actions to look at; None: all."""
        error = (x - aim)[..., : self.config.action_dim].square()
        return error.mean() if counted is None else commit.mean_of(error, counted)

    # -- written once -------------------------------------------------------------------------------------

    def loss(self, batch: Batch, draws: Mapping[str, Tensor]) -> Losses:
        """`flow_loss`; of half the batch, beside the distance of one step from two on the other half, where the policy
        distils itself. Of an odd batch the middle sample is in both halves."""
        if self.target_time is None:
            return self.flow_loss(batch, draws)
        n = len(batch[ACTION])
        first, second = slice(0, (n + 1) // 2), slice(n // 2, n)
        taught, parts = self.flow_loss(_rows(batch, n, first), self._draws(draws, first))
        own = self.shortcut_loss(_rows(batch, n, second), self._draws(draws, second))
        loss = taught + self.config.snapflow_weight * own
        parts = {**parts, "flow_loss": taught.detach(), "shortcut_loss": own.detach()}
        return loss, {**parts, **({"loss": loss.detach()} if "loss" in parts else {})}

    def shortcut_loss(self, batch: Batch, draws: Mapping[str, Tensor]) -> Tensor:
        """How far one step from pure noise ends from where two half steps end."""
        noise, times = draws["noise"], self.schedule
        context, extras = self.training_context(batch)
        extras["noise:initial"] = noise
        committed = commit.drawn(draws, noise.shape[1])
        if committed is not None:
            extras["rtc:committed"] = _filled(batch[ACTION], noise.shape[1])
            extras["rtc:weights"] = committed.to(noise.dtype)

        def step(x: Tensor, start: float, end: float, target: float) -> Tensor:
            tau, tau_next, to = (x.new_full((len(x),), t) for t in (start, end, target))
            return self.denoise(context, x, tau, tau_next, {**extras, TARGET: to})

        start, end = times.start, times.end
        middle = (start + end) / 2
        with torch.no_grad():
            aim = step(step(noise, start, middle, start), middle, end, middle)
        return self.distance(step(noise, start, end, end), aim, None if committed is None else ~committed)

    def towards(self, target: Tensor) -> tuple[Tensor, Tensor] | None:
        """What target times (B,), 1 = noise, add to the embedded times of a step, and what the clean one adds to those
        of committed actions: (B, width) each; None: nothing is known of targets."""
        if self.target_time is None:
            return None
        return self.target_time(target), self.target_time(torch.zeros_like(target))

    def steps_of(self, usual: int) -> int:
        """Denoise steps where nobody asks for others: one, where it is trained for one."""
        return 1 if self.config.denoises_once else usual

    def steps_allowed(self, usual: tuple[int, int]) -> tuple[int, int]:
        """Bounds of what may be asked for: a network that was told where its step leads knows no other step."""
        return (1, 1) if self.config.snapflow_weight else usual

    @property
    def rtc_kind(self) -> str | None:
        """Guidance corrects many small steps; a single one from pure noise it would throw ten times too far."""
        kind = super().rtc_kind
        return None if kind == "guided" and self.config.denoises_once else kind

    def rtc_specs(self, horizon: int, dim: int) -> tuple[TensorSpec, ...]:
        """What a step takes of the commanded actions: nothing where there is no real-time chunking."""
        if self.rtc_kind is None:
            return ()
        limit = TensorSpec("max_guidance", "float32", (1,), "rtc:max_guidance")
        return (
            TensorSpec("committed", "float32", (1, horizon, dim), "rtc:committed"),
            TensorSpec("weights", "float32", (1, horizon), "rtc:weights"),
            *((limit,) if self.rtc_kind == "guided" else ()),
        )

    def _draws(self, draws: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
        return {k: v if k in self.shared_draws else v[rows] for k, v in draws.items()}


def _rows(batch: Batch, n: int, rows: slice) -> dict[str, Any]:
    """The same batch with these samples alone; n: how many it has."""
    return {k: v[rows] if isinstance(v, Tensor | list) and len(v) == n else v for k, v in batch.items()}


def _filled(actions: Tensor, length: int) -> Tensor:
    """(B, length, A): cut, or with the last one repeated."""
    actions = actions[:, :length]
    rest = length - actions.shape[1]
    return torch.cat([actions, actions[:, -1:].expand(-1, rest, -1)], dim=1) if rest else actions

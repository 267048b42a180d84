"""Settings that every policy of flow matching takes beside LeRobot's: training for late and for quick chunks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from edgevla.errors import CheckpointError

from .config import PolicyConfig


@dataclass
class FlowConfig(PolicyConfig):
    """rtc_training_max_delay: the longest beginning of a chunk that training commits (train/nn/commit.py); 0: none.
    one_step_time_shift: how far training times are pushed towards noise, for a policy that denoises in one step; 0: not.
    snapflow_weight: how much it counts that one step ends where two half steps do (train/policies/flow.py), for a policy
    that denoises in one step; 0: it is not trained for.
    """

    rtc_training_max_delay: int = 0
    one_step_time_shift: float = 0.0
    snapflow_weight: float = 0.0

    own_keys: ClassVar[frozenset[str]] = PolicyConfig.own_keys | {
        "rtc_training_max_delay", "one_step_time_shift", "snapflow_weight",
    }  # fmt: skip

    @property
    def trained_delay(self) -> int:
        return self.rtc_training_max_delay

    @property
    def has_own_parts(self) -> bool:
        return self.snapflow_weight > 0

    @property
    def denoises_once(self) -> bool:
        """Whether it is trained for a single denoise step, in whatever way."""
        return bool(self.one_step_time_shift or self.snapflow_weight)

    def check_flow(self) -> None:
        """Raises CheckpointError where nothing of a chunk would be left to learn, or no time to learn it at."""
        longest, shift = self.rtc_training_max_delay, self.one_step_time_shift
        weight = self.snapflow_weight
        self.check_future_state()
        if not 0 <= longest < self.chunk_length:
            raise CheckpointError(
                f"{self.type}: rtc_training_max_delay is {longest}; it must be from 0 (off) to {self.chunk_length - 1}, "
                "fewer than the actions of a chunk"
            )
        if shift and not (math.isfinite(shift) and 1 < shift <= 100):
            raise CheckpointError(
                f"{self.type}: one_step_time_shift is {shift:g}; it must be 0 (off), or above 1 and at most 100; "
                "3 to 4 are usual"
            )
        if weight and not (math.isfinite(weight) and 0 < weight <= 10):
            raise CheckpointError(
                f"{self.type}: snapflow_weight is {weight:g}; it must be 0 (off), or above 0 and at most 10; 0.1 is "
                "usual"
            )
        if weight and shift:
            raise CheckpointError(
                f"{self.type}: one_step_time_shift {shift:g} and snapflow_weight {weight:g} are two ways to one denoise "
                "step; choose one of them"
            )

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
    """

    rtc_training_max_delay: int = 0
    one_step_time_shift: float = 0.0

    own_keys: ClassVar[frozenset[str]] = frozenset({"rtc_training_max_delay", "one_step_time_shift"})

    @property
    def trained_delay(self) -> int:
        return self.rtc_training_max_delay

    def check_flow(self) -> None:
        """Raises CheckpointError where nothing of a chunk would be left to learn, or no time to learn it at."""
        longest, shift = self.rtc_training_max_delay, self.one_step_time_shift
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

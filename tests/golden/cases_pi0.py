"""Pi0: see golden_vla.py for what it shares with the other flow-matching VLAs."""

from __future__ import annotations

import torch
from golden_vla import VlaCases
from torch import Tensor


class Cases(VlaCases):
    def first_suffix(self) -> Tensor:
        state = self.policy.network_state(self.sources(self.observation("infer")))
        rows = self.policy.time(torch.ones(1))
        return self.policy.embed_suffix(self.cases["infer/noise"], state, rows["time_embedding"])  # type: ignore[operator]

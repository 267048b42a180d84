"""Pi0.5: see golden_vla.py for what it shares with the other flow-matching VLAs."""

from __future__ import annotations

from golden_vla import VlaCases
from torch import Tensor


class Cases(VlaCases):
    def first_suffix(self) -> Tensor:
        return self.policy.embed_suffix(self.cases["infer/noise"])  # type: ignore[operator]

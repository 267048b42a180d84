"""SmolVLA: see golden_vla.py for what it shares with Pi0 and Pi0.5."""

from __future__ import annotations

from typing import Any

import torch
from golden_harness import computes
from golden_vla import VlaCases
from torch import Tensor


class Cases(VlaCases):
    @computes("*/network_state", "*/network_action")
    @torch.no_grad()
    def as_the_network_sees_them(self) -> dict[str, Any]:
        """Normalised and, with `adapt_to_pi_aloha`, in Pi0's convention; recorded before or after the padding."""
        policy, results = self.policy, {}
        for key in self.fixture.expected:
            prefix, _, name = key.rpartition("/")
            if name == "network_state":
                state = policy.network_state({"state": self.observation(prefix)["observation.state"]})
                results[key] = self._cut(state, key)
            elif name == "network_action":
                state = self.observation(prefix).get("observation.state")
                results[key] = self._cut(policy.to_network(self.cases[f"{prefix}/action"], state), key)
        return results

    def _cut(self, value: Tensor, key: str) -> Tensor:
        width = self.fixture.cases[key].shape[-1]
        assert not value[..., width:].any(), f"{key}: what is recorded leaves out more than padding"
        return value[..., :width]

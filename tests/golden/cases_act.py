"""ACT: the trunk's feature map, the latent distribution and the reconstruction, beside what all policies share."""

from __future__ import annotations

from typing import Any

import torch
from golden_harness import Adapter, computes


class Cases(Adapter):
    @computes("infer/backbone_feature")
    @torch.no_grad()
    def backbone_feature(self) -> dict[str, Any]:
        first_camera = self.policy.images(self.observation("infer"))[0]
        return {"infer/backbone_feature": self.policy.backbone(first_camera)}

    @computes("train/prediction", "train/latent_mu", "train/latent_log_var")
    @torch.no_grad()
    def reconstruction(self) -> dict[str, Any]:
        values = self.trainable().reconstruct(self.batch(), self.draws())
        names = ("prediction", "latent_mu", "latent_log_var")
        return {f"train/{name}": value for name, value in zip(names, values, strict=True)}

"""X-VLA: views, encoder outputs, predictions of clean actions, and the re-noised samples."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from golden_harness import Adapter, Fixture, computes
from torch import Tensor

from edgevla.prompt import PromptBuilder
from edgevla.train.nn.rotation import rot6d_to_axis_angle


class Cases(Adapter):
    def __init__(self, fixture: Fixture, folder: Path) -> None:
        super().__init__(fixture, folder)
        # The tied embedding has one name here, the one under which it is stored.
        tied = ("language_model.model.shared.", "language_model.model.encoder.embed_tokens.")
        if "grad_names" in self.meta:
            self.meta["grad_names"] = [name.replace(*tied) for name in self.meta["grad_names"]]

    def prompt(self, tasks: list[str], observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        n = next(iter(observation.values())).shape[0]
        builder = PromptBuilder.from_recipe(self.policy.prompt_recipe(), self.folder)
        prompt = builder.build((tasks * n)[:n])
        return {
            "prompt:tokens": torch.from_numpy(prompt.tokens),
            "prompt:mask": torch.from_numpy(prompt.mask),
        }

    def chunk(self, x: Tensor) -> Tensor:
        return self.policy.space.output(x)

    @computes(
        "infer/pre/tokens", "infer/pre/token_mask", "batch/tokens", "batch/token_mask", "infer/pre/domain_id"
    )
    def tokens(self) -> dict[str, Any]:
        one = self.prompt(self.tasks[:1], self.observation("infer"))
        two = self.prompt(self.tasks, self.observation("train"))
        return {
            "infer/pre/tokens": one["prompt:tokens"],
            "infer/pre/token_mask": one["prompt:mask"],
            "batch/tokens": two["prompt:tokens"],
            "batch/token_mask": two["prompt:mask"],
            "infer/pre/domain_id": self.policy.domains(1),
        }

    @computes("infer/network_*", "infer/image_features_*", "infer/aux_visual_features", "infer/vlm_features")
    @torch.no_grad()
    def encoded(self) -> dict[str, Any]:
        policy, observation = self.policy, self.observation("infer")
        views = policy.views(observation)
        n_views = max(policy.config.n_views, len(views))
        absent = [torch.zeros_like(views[0])] * (n_views - len(views))
        tokens = self.prompt(self.tasks[:1], observation)["prompt:tokens"]
        vlm, aux = policy.features(views, tokens)
        results = {
            "infer/network_images": torch.stack([*views, *absent], dim=1),
            "infer/network_image_mask": (torch.arange(n_views) < len(views))[None],
            "infer/network_proprio": policy.proprio(observation["observation.state"], 1),
            "infer/vlm_features": vlm,
            "infer/aux_visual_features": aux,
        }
        for i, view in enumerate(views):
            results[f"infer/image_features_{i:02d}"] = policy.vlm.image_features(view)
        return results

    @computes("infer/axis_angle")
    def axis_angle(self) -> dict[str, Any]:
        """The pose as the post-processor's step makes it of actions, whether the pipeline lists the step or not."""
        robot = self.compute("infer/chunk_robot")
        return {"infer/axis_angle": robot if robot.shape[-1] == 7 else rot6d_to_axis_angle(robot)}

    @computes("infer/times", "infer/x0", "infer/x_t")
    @torch.no_grad()
    def steps(self) -> dict[str, Any]:
        policy, sampler = self.policy, self.policy.sampler()
        values = self.sources(self.observation("infer"))
        context, noise = sampler.encode(values), self.cases["infer/noise"]
        taus = torch.from_numpy(policy.schedule.taus()[:-1])
        xs = [noise]
        sampler.solve(context, values, noise=noise, on_step=lambda _, x: xs.append(x))
        clean = [policy.predict(context, x, t[None], {}) for x, t in zip(xs[:-1], taus, strict=True)]
        entering = [policy.space.hide(x) for x in xs[:-1]]
        return {"infer/times": taus, "infer/x0": torch.stack(clean), "infer/x_t": torch.stack(entering)}

    @computes("batch/chunk")
    @torch.no_grad()
    def mixed_domains(self) -> dict[str, Any]:
        """Several domains in one batch, beyond what a bundle (one domain) can do."""
        policy = self.policy
        observation = self.observation("train")
        tokens = self.prompt(self.tasks, observation)["prompt:tokens"]
        n = len(tokens)
        domain = self.cases.get("batch/domain_id", policy.domains(n))
        context = policy.context(
            policy.views(observation), tokens, observation.get("observation.state"), domain
        )
        x = noise = self.cases["batch/noise"]
        taus = policy.schedule.taus()
        extras = {"noise:initial": noise, "setting:domain_id": domain}
        for tau, tau_next in pairwise(taus):
            x = policy.denoise(context, x, torch.full((n,), tau), torch.full((n,), tau_next), extras)
        return {"batch/chunk": self.chunk(x)}

    @computes("train/prediction", "train/x_t", "train/time")
    @torch.no_grad()
    def training_steps(self) -> dict[str, Any]:
        predicted, x_t, time = self.trainable().training_prediction(self.batch(), self.draws())
        return {"train/prediction": predicted, "train/x_t": x_t, "train/time": time}

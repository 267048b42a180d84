"""Diffusion: the schedule, whole denoising runs step by step, the conditioning vector, crops of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from golden_harness import Adapter, computes
from torch import Tensor

from edgevla.train.policies.base import Policy


class Cases(Adapter):
    def chunk(self, x: Tensor) -> Tensor:
        """What is kept of the horizon: from the newest observation on, as many steps as are executed."""
        start = self.policy.config.n_obs_steps - 1
        return x[:, start : start + self.policy.config.n_action_steps]

    def step_noise(self, query: str) -> Callable[[int], Tensor]:
        """Recorded draws of DDPM; its last step, and DDIM, add none."""
        recorded = self.cases.get(f"{query}/variance_noise")
        like = self.cases[f"{query}/noise"]
        n = 0 if recorded is None else len(recorded)
        return lambda i: recorded[i] if recorded is not None and i < n else torch.zeros_like(like)

    def optimizer(self, policy: Policy, lr_scale: float) -> torch.optim.Optimizer:
        config = policy.config
        return torch.optim.Adam(
            policy.optimizer_groups(),
            lr=config.optimizer_lr * lr_scale,
            betas=tuple(config.optimizer_betas),
            eps=config.optimizer_eps,
            weight_decay=config.optimizer_weight_decay,
        )

    @computes("alphas_cumprod", "timesteps")
    def schedule(self) -> dict[str, Any]:
        taus = torch.from_numpy(self.policy.schedule.taus())
        return {
            "alphas_cumprod": self.policy.noise_schedule.table[1:],
            "timesteps": taus[:-1].to(torch.int64),
        }

    @computes("query/*")
    @torch.no_grad()
    def queries(self) -> dict[str, Any]:
        """Each run from the observations up to the step at which the queue was empty."""
        policy, sampler = self.policy, self.policy.sampler()
        results: dict[str, Any] = {}
        for i in range(self.meta["n_queries"]):
            query, now = f"query/{i:02d}", i * policy.config.n_action_steps
            first = max(0, now - policy.config.n_obs_steps + 1)
            moments = [self.sources(self.observation(f"steps/{s:02d}")) for s in range(first, now + 1)]
            context = sampler.merge([sampler.encode(m) for m in moments])
            noise, xs = self.cases[f"{query}/noise"], []
            x = sampler.solve(
                context,
                moments[-1],
                noise=noise,
                step_noise=self.step_noise(query),
                on_step=lambda _, x, xs=xs: xs.append(x),
            )
            robot = sampler.decode(x, moments[-1])[:, : policy.config.n_action_steps]
            tau = torch.from_numpy(policy.schedule.taus()[:1])
            results |= {
                f"{query}/chunk": self.chunk(x),
                f"{query}/chunk_robot": robot,
                f"{query}/x": torch.stack(xs),
                f"{query}/global_cond": context["features"].flatten(1),
                f"{query}/model_output_first": policy.predict(context, noise, tau, {}),
            }
        return results

    @computes("train/loss_valid", "train/loss_eval_valid")
    @torch.no_grad()
    def over_valid_steps(self) -> dict[str, Any]:
        """Whether the config masks padded steps or not."""
        policy = self.trainable()
        policy.config.do_mask_loss_for_padding = True
        batch, draws = self.batch(), self.draws()
        evaluated = policy.eval().loss(batch, draws)[0]
        trained = policy.train().loss(batch, draws)[0]
        return {"train/loss_valid": trained, "train/loss_eval_valid": evaluated}

    @computes("train/noisy_action")
    @torch.no_grad()
    def noisy_action(self) -> dict[str, Any]:
        return {"train/noisy_action": self.policy.noisy(self.batch(), self.draws())[1]}

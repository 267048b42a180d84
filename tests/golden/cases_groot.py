"""GR00T N1.5: its packed inputs, the backbone's and the head's intermediate tensors.

The recorded pixels are fed where what follows is compared: the reference resizes bytes, and a library's rounding may
differ by one grey level (that comparison has a tolerance of its own).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from golden_harness import Adapter, computes
from torch import Tensor

from edgevla.prompt import PromptBuilder
from edgevla.train.policies.base import Policy

ONE_LEVEL = 2 / 255


class Cases(Adapter):
    def load(self) -> Policy:
        policy = super().load()
        policy.n_text_tokens = 256  # type: ignore[assignment]  # the tiny vocabularies have a token per letter
        if "infer/pre/eagle_pixel_values" in self.cases:
            policy.pixels = _Recorded(self, policy)  # type: ignore[method-assign,assignment]
        return policy

    def prompt(self, tasks: list[str], observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reference gives the first task of a batch to all of it (docs/policies.md#gr00t-n15)."""
        n = next(iter(observation.values())).shape[0]
        builder = PromptBuilder.from_recipe(self.policy.prompt_recipe() or {}, self.folder)
        prompt = builder.build(tasks[:1] * n)
        return {
            "prompt:tokens": torch.from_numpy(prompt.tokens),
            "prompt:mask": torch.from_numpy(prompt.mask),
        }

    def observed(self) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        observation = self.observation("infer")
        prompt = self.prompt(self.tasks[:1], observation)
        real = prompt["prompt:mask"]
        pixels = [self.policy.pixels(observation[c]) for c in self.policy.live_cameras]
        return pixels, prompt["prompt:tokens"], real, observation["observation.state"]

    @computes(
        "infer/pre/*",
        "infer/image_tokens",
        "infer/backbone_features",
        "infer/vl_features",
        "infer/state_token",
    )
    @torch.no_grad()
    def intermediate(self) -> dict[str, Any]:
        policy = self.policy
        pixels, tokens, real, state = self.observed()
        n_real = int(real.sum())
        features = policy.features(pixels, tokens, real)
        packed = policy.packed_state(state)
        eagle = policy.backbone.eagle_model
        return {
            "infer/pre/eagle_pixel_values": self.resized("infer"),
            "infer/pre/eagle_input_ids": tokens[:, :n_real],
            "infer/pre/eagle_attention_mask": real[:, :n_real].to(torch.int64),
            "infer/pre/embodiment_id": torch.tensor([policy.embodiment]),
            "infer/pre/state": packed,
            "infer/pre/state_mask": torch.arange(packed.shape[-1])[None, None] < state.shape[-1],
            "infer/image_tokens": torch.cat([eagle.image_tokens(image) for image in pixels]),
            "infer/backbone_features": features[:, :n_real],
            "infer/vl_features": policy.action_head.refine(features, real)[:, :n_real],
            "infer/state_token": policy.action_head.state_encoder(packed, torch.tensor([policy.embodiment])),
        }

    @computes("infer/timesteps")
    def buckets(self) -> dict[str, Any]:
        taus = torch.from_numpy(self.policy.schedule.taus()[:-1])
        n_buckets = self.policy.arch.head["num_timestep_buckets"]
        return {"infer/timesteps": torch.trunc(taus * n_buckets).to(torch.int64)}

    @computes("batch/eagle_pixel_values", "batch/state")
    def packed_batch(self) -> dict[str, Any]:
        state = self.policy.packed_state(self.observation("train")["observation.state"])
        return {"batch/eagle_pixel_values": self.resized("batch"), "batch/state": state}

    def resized(self, prefix: str) -> Tensor:
        """Our own pixels, which must be the recorded ones to within a grey level; then the recorded ones."""
        source = self.observation("infer" if prefix == "infer" else "train")
        resize = getattr(self.policy.pixels, "original", self.policy.pixels)
        images = [resize(source[camera]) for camera in self.policy.live_cameras]
        own = torch.stack(images, dim=1).flatten(0, 1)  # sample-major
        key = "infer/pre/eagle_pixel_values" if prefix == "infer" else "batch/eagle_pixel_values"
        worst = float((own - self.cases[key]).abs().max())
        assert worst <= ONE_LEVEL + 1e-6, f"{key}: off by {worst * 127.5:.2f} grey levels"
        return self.cases[key]

    @computes("train/pre/action", "train/pre/action_mask", "train/pre/state", "train/prediction")
    def packed_training(self) -> dict[str, Any]:
        policy = self.policy
        action = policy.packed_action(self.cases["train/action"])
        real = torch.arange(action.shape[-1]) < policy.config.action_dim
        with torch.no_grad():
            predicted, _ = self.trainable().velocities(self.batch(), self.draws())
        return {
            "train/pre/action": action,
            "train/pre/action_mask": real.expand_as(action).clone(),
            "train/pre/state": policy.packed_state(self.observation("train")["observation.state"]),
            "train/prediction": predicted,
        }

    def queued_rows(self, n: int) -> tuple[Tensor, Tensor]:
        """LeRobot's queue keeps the last `n_action_steps` of a chunk (docs/policies.md#gr00t-n15); ours the first."""
        horizon = self.policy.sample_shape[0]
        n_queue = min(horizon, int(self.policy.config.n_action_steps))
        sampler, rows, robot_rows = self.policy.sampler(), [], []
        for i in range(n):
            query, position = divmod(i, n_queue)
            if position == 0:
                values = self.sources(self.observation(f"steps/{i:02d}"))
                x = sampler.solve(
                    sampler.encode(values), values, noise=self.cases[f"query/{query:02d}/noise"]
                )
            rows.append(self.chunk(x)[0, horizon - n_queue + position])
            robot_rows.append(sampler.decode(x, values)[0, horizon - n_queue + position])
        return torch.stack(rows), torch.stack(robot_rows)


class _Recorded:
    """`Groot.pixels`, answering with the recorded pixels for the frames that have them."""

    def __init__(self, cases: Cases, policy: Any) -> None:
        self.original = policy.pixels
        self.known: list[tuple[Tensor, Tensor]] = []
        for prefix, key in (("infer", "infer/pre/eagle_pixel_values"), ("train", "batch/eagle_pixel_values")):
            if key not in cases.cases:
                continue
            recorded = cases.cases[key].unflatten(0, (-1, len(policy.live_cameras)))  # (B, V, 3, h, w)
            frames = cases.observation(prefix, policy)
            self.known += [(frames[c], recorded[:, i]) for i, c in enumerate(policy.live_cameras)]

    def __call__(self, frames: Tensor) -> Tensor:
        for known, pixels in self.known:
            if known.shape == frames.shape and torch.equal(known, frames):
                return pixels
        return self.original(frames)

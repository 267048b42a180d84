"""Adapter of the flow-matching VLAs: prompts, prefix, suffix, masked cameras, guided chunks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest import mock

import torch
from golden_harness import Adapter, computes
from torch import Tensor

from edgevla.execution.rtc import rtc_weights
from edgevla.train.policies.vla import FlowVla


class VlaCases(Adapter):
    policy: FlowVla

    def prompt(self, tasks: list[str], observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        builder = self.policy.prompt_builder()
        states = observation["observation.state"].numpy()
        built = builder.build(tasks, states)
        return {"prompt:tokens": torch.from_numpy(built.tokens), "prompt:mask": torch.from_numpy(built.mask)}

    def chunk(self, x: Tensor) -> Tensor:
        """LeRobot's chunk is after the Aloha map, where that is on."""
        return self.policy.restore_actions(super().chunk(x))

    def normalized(self, feature: str, value: Tensor) -> Tensor:
        """Relative actions are made relative before they are normalised."""
        if feature == "action" and self.policy.is_relative:
            value = value - self.policy.relative_offset(self.observation("train")["observation.state"])
        return super().normalized(feature, value)

    # -- prompts ------------------------------------------------------------------------------------------

    @computes("*tokens", "*token_mask")
    def tokens(self) -> dict[str, Any]:
        """As recorded: `longest` padding is a cut of ours, which always pads to the maximum."""
        results = {}
        for prefix, source in (("infer/pre", "infer"), ("batch", "train")):
            if f"{prefix}/tokens" not in self.cases:
                continue
            observation = self.observation(source)
            prompt = self.prompt(self.tasks_of(observation), observation)
            length = self.cases[f"{prefix}/tokens"].shape[1]
            assert not prompt["prompt:mask"][:, length:].any()
            results[f"{prefix}/tokens"] = prompt["prompt:tokens"][:, :length]
            results[f"{prefix}/token_mask"] = prompt["prompt:mask"][:, :length]
        return results

    # -- prefix and suffix --------------------------------------------------------------------------------

    @computes("infer/network_image/*", "infer/network_image_mask/*", "infer/image_embedding_00")
    @torch.no_grad()
    def images(self) -> dict[str, Any]:
        """Absent cameras, which LeRobot feeds as -1 with their mask off, are left out of our network."""
        inputs = self.sources(self.observation("infer"))
        images = self.policy.network_images(inputs)
        results: dict[str, Any] = {"infer/image_embedding_00": self.policy.see(images[0])}
        recorded = sorted(k for k in self.cases if k.startswith("infer/network_image/"))
        for i, key in enumerate(recorded):
            is_live = i < len(images)
            results[key] = images[i] if is_live else torch.full_like(images[0], -1.0)
            results[key.replace("image/", "image_mask/")] = torch.tensor([is_live])
        return results

    @computes("infer/prefix_embeddings", "infer/prefix_pad_mask", "infer/prefix_att_mask")
    @torch.no_grad()
    def prefix(self) -> dict[str, Any]:
        """Our real tokens laid on the recorded places of real tokens; the places in between are the record's padding."""
        inputs = self.sources(self.observation("infer"))
        embeddings, real, starts = self.policy.embed_prefix(inputs)
        recorded = self.cases["infer/prefix_embeddings"].clone()
        is_real = self.cases["infer/prefix_pad_mask"]
        mask, blocks = is_real.clone(), self.cases["infer/prefix_att_mask"].clone()
        places, ours = is_real[0].nonzero()[:, 0], real[0].nonzero()[:, 0]
        if len(places) != len(ours):
            return {"infer/prefix_embeddings": embeddings, "infer/prefix_pad_mask": real}
        recorded[:, places] = embeddings[:, ours]
        blocks[:, places] = torch.tensor(starts)[ours][None]
        return {
            "infer/prefix_embeddings": recorded,
            "infer/prefix_pad_mask": mask,
            "infer/prefix_att_mask": blocks,
        }

    @computes("infer/suffix_embeddings_first")
    @torch.no_grad()
    def suffix(self) -> dict[str, Any]:
        return {"infer/suffix_embeddings_first": self.first_suffix()}

    def first_suffix(self) -> Tensor:
        rows = self.policy.time(torch.ones(1))
        return self.policy.embed_suffix(self.cases["infer/noise"], *rows.values())  # type: ignore[operator]

    # -- chunks -------------------------------------------------------------------------------------------

    @computes("batch/chunk_camera_masked")
    @torch.no_grad()
    def masked_camera(self) -> dict[str, Any]:
        sampler = self.policy.sampler()
        observation = self.observation("train")
        values = self.sources(observation, self.tasks_of(observation))
        values["camera_present"][1, 0] = False
        x = sampler.solve(sampler.encode(values), values, noise=self.cases["batch/noise"])
        return {"batch/chunk_camera_masked": self.chunk(x)}

    @computes("rtc/*")
    @torch.no_grad()
    def guided(self) -> dict[str, Any]:
        """The left-over chunk goes in as recorded, normalised: through robot units and back its rounding would grow
        by mean / std, and a dimension without range would be lost. tests/policies has the way through robot units."""
        sampler, results = self.policy.sampler(), {}
        values = self.sources(self.observation("infer"))
        context = sampler.encode(values)
        for i, case in enumerate(self.meta["rtc"]):
            left_over = self.cases[f"rtc/{i:02d}/prev_chunk_left_over"]
            n, horizon = len(left_over), self.policy.config.chunk_size
            padded = torch.zeros(1, *self.policy.sample_shape)
            padded[:, :n, : left_over.shape[1]] = left_over
            weights = rtc_weights(
                case["schedule"].lower(), case["inference_delay"], case["execution_horizon"], n, horizon
            )
            rtc = {
                "rtc:committed": padded,
                "rtc:weights": torch.as_tensor(weights, dtype=torch.float32)[None],
                "rtc:max_guidance": torch.tensor([case["max_guidance_weight"]], dtype=torch.float32),
            }
            with mock.patch.object(self.policy, "to_network", lambda committed, *_, **__: committed):
                x = sampler.solve(context, {**values, **rtc}, noise=self.cases["infer/noise"])
            results[f"rtc/{i:02d}/chunk"] = self.chunk(x)
            results[f"rtc/{i:02d}/prefix_weights"] = rtc["rtc:weights"][0]
        return results

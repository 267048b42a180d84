"""GR00T N1.5: Eagle 2.5 (SigLIP and the first Qwen3 layers) read the scene, a diffusion transformer writes the chunk.

    frames, prompt -> SigLIP -> Qwen3 -> norm, self-attention -> keys and values of the DiT's cross blocks    once
    state, x, tau  -> [state | future tokens | actions] -> DiT -> velocity                                  per step

Time runs from noise to data here: tau 0 is noise, 1 is data, velocity = action - noise. Actions are min-max
normalised by the pack step's statistics, whatever `normalization_mapping` says. Cameras go in alphabetical order of
their keys. The network's sizes are not in config.json: they come from `groot_config/` and `vlm_config/` beside it,
else they are the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from edgevla.errors import CheckpointError
from edgevla.graph import GraphSpec, TensorSpec
from edgevla.policy import Schedule
from edgevla.prompt import groot_template
from edgevla.types import ACTION, STATE

from ..backbone import backbone_weights, copy_weights, pad_id, read_json, sub_config
from ..nn import commit, masks
from ..nn.dit import PerEmbodimentLinear
from ..nn.eagle import ActionHead, Backbone, Unused
from ..nn.flow import draw_time, euler, guide, shift_time
from ..nn.resize import byte_resize_matrix, resize_bytes
from ..nn.target_time import TARGET
from ..processors import Processors, Stats, Step, flatten_stats, unflatten_stats
from .base import Batch, Untouched
from .config import PolicyConfig
from .flow import FlowPolicy
from .groot_config import Architecture, GrootConfig

PACK, UNPACK = "groot_pack_inputs_v3", "groot_action_unpack_unnormalize_v1"
EMBODIMENTS = {
    "new_embodiment": 31,
    "oxe_droid": 17,
    "agibot_genie1": 26,
    "gr1": 24,
    "so100": 2,
    "unitree_g1": 3,
}
N_TEXT_TOKENS = 64
"""Room for the instruction in exported prompts; a longer one is refused with its length (docs/policies.md#gr00t-n15)."""


class MinMax(nn.Module):
    """Dataset min..max to -1..1; a constant dimension becomes 0 and comes back as its constant."""

    low: Tensor | None
    high: Tensor | None

    def __init__(self, stats: dict[str, np.ndarray] | None, width: int) -> None:
        super().__init__()
        low = high = None
        if stats and "min" in stats and "max" in stats:
            low, high = (_fit(stats[name], width, fill) for name, fill in (("min", 0.0), ("max", 1.0)))
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.low is None or self.high is None:
            return x
        width = self.high - self.low
        flat = width == 0
        y = 2 * (x - self.low) / torch.where(flat, torch.ones_like(width), width) - 1
        return torch.where(flat, torch.zeros_like(y), y)

    def inverse(self, y: Tensor) -> Tensor:
        """-1..1 back to the dataset's units, same shape."""
        if self.low is None or self.high is None:
            return y
        return (y + 1) / 2 * (self.high - self.low) + self.low


def _fit(values: np.ndarray, width: int, fill: float) -> Tensor:
    """Statistics cut or filled to the data's width."""
    row = np.full(width, fill, np.float32)
    n = min(width, np.size(values))
    row[:n] = np.asarray(values, np.float32).reshape(-1)[:n]
    return torch.from_numpy(row)


class Groot(FlowPolicy):
    policy_type: ClassVar[str] = "groot"
    Config: ClassVar[type[PolicyConfig]] = GrootConfig
    Prefix: ClassVar[str] = "_groot_model."
    needs_every_camera: ClassVar[bool] = True
    rtc_mode: ClassVar[str | None] = "guided"
    published_backbone = "nvidia/GR00T-N1.5-3B"
    backbone_kind = "eagle"
    unfrozen: ClassVar[Mapping[str, Any]] = {"tune_llm": True, "tune_visual": True}
    tiny: ClassVar[Mapping[str, Any]] = {**unfrozen, "use_bf16": False}
    lora_targets: ClassVar[str | None] = r"action_head\.model\..*\.(to_q|to_v)"

    config: GrootConfig

    def __init__(self, config: GrootConfig, processors: Processors, arch: Architecture) -> None:
        super().__init__(config, processors)
        self.arch = arch
        if (config.max_state_dim, config.max_action_dim) != (
            arch.head["max_state_dim"],
            arch.head["action_dim"],
        ):
            raise CheckpointError(
                f"config.json says max_state_dim {config.max_state_dim}, max_action_dim {config.max_action_dim}; the "
                f"network takes {arch.head['max_state_dim']} and {arch.head['action_dim']}"
            )
        self.backbone = Backbone(arch)
        self.action_head = ActionHead(arch.head)
        pack, unpack = processors.step(PACK), processors.post_step(UNPACK)
        self.state_range = MinMax(_stats(pack, STATE), config.state_dim or 0)
        self.action_range = MinMax(_stats(pack, ACTION), config.action_dim)
        self.action_range_out = MinMax(_stats(unpack, ACTION), config.action_dim)
        settings = pack.config if pack is not None else {}
        mapping = settings.get("embodiment_mapping") or EMBODIMENTS
        self.embodiment = int(mapping.get(settings.get("embodiment_tag", config.embodiment_tag), 0))
        self.prepare_one_step(self.action_head.model.dims.width)
        self._freeze()
        self.set_cameras({name: self.camera_size(name) for name in config.image_features})
        self.n_text_tokens = N_TEXT_TOKENS

    @classmethod
    def build(
        cls, config: PolicyConfig, processors: Processors, shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> Groot:
        assert isinstance(config, GrootConfig)
        head = sub_config(processors, "groot_config", config.base_model_path)
        vlm = sub_config(processors, "vlm_config", config.tokenizer_assets_repo)
        policy = cls(config, processors, Architecture.read(head, vlm))
        policy._keep_unused(shapes or {})
        return policy

    def _keep_unused(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Places for weights that the file holds and nothing uses: SigLIP's pooling head, an untied output head."""
        eagle = self.backbone.eagle_model
        for owner, root in (
            (eagle.vision_model.vision_model, "backbone.eagle_model.vision_model.vision_model.head."),
            (eagle.language_model, "backbone.eagle_model.language_model.lm_head."),
        ):
            found = {k.removeprefix(root): s for k, s in shapes.items() if k.startswith(root)}
            if found:
                owner.add_module(root.split(".")[-2], Unused(found))
        self._freeze()

    @classmethod
    def from_backbone(cls, folder: str | Path, config: PolicyConfig, processors: Processors) -> Groot:
        """A fresh policy on the published base model's folder (config.json, sharded weights, no prefix).

        The folder may hold `vlm_config/` and `tokenizer/`, as LeRobot's assets repository has them.
        """
        folder = Path(folder)
        weights = cls.repair_keys(backbone_weights(folder), config)
        own = {name.removeprefix(cls.Prefix): tensor for name, tensor in weights.items()}
        processors.folder = None
        vlm = folder / "vlm_config/config.json"
        arch = Architecture.read(read_json(folder / "config.json"), read_json(vlm) if vlm.is_file() else None)
        assert isinstance(config, GrootConfig)
        policy = cls(config, processors, arch)
        policy._keep_unused({name: tuple(w.shape) for name, w in own.items()})
        copy_weights(policy, own, str(folder))
        policy.extra_folders = {"groot_config": folder}
        for name in ("vlm_config", "tokenizer"):
            if (folder / name).is_dir():
                policy.extra_folders[name] = folder / name
        return policy

    @classmethod
    def repair_keys(cls, weights: dict[str, Tensor], config: PolicyConfig) -> dict[str, Tensor]:
        """A tied file holds the embedding under the head's name only; the published base has no prefix."""
        if not any(name.startswith(cls.Prefix) for name in weights):
            weights = {cls.Prefix + name: tensor for name, tensor in weights.items()}
        language = f"{cls.Prefix}backbone.eagle_model.language_model."
        embedding, head = f"{language}model.embed_tokens.weight", f"{language}lm_head.weight"
        if embedding not in weights and head in weights:
            weights = {**weights, embedding: weights[head]}
            del weights[head]
        return weights

    def saved_weights(self) -> dict[str, Tensor]:
        """Tied weights stand under the head's name, as the reference writes them."""
        weights = super().saved_weights()
        language = f"{self.Prefix}backbone.eagle_model.language_model."
        if f"{language}lm_head.weight" not in weights:
            weights[f"{language}lm_head.weight"] = weights.pop(f"{language}model.embed_tokens.weight")
        return weights

    @classmethod
    def default_processors(cls, config: PolicyConfig, stats: Stats) -> Processors:
        assert isinstance(config, GrootConfig)
        state = flatten_stats(stats)
        pack = {
            "state_horizon": 1,
            "action_horizon": config.chunk_length,
            "max_state_dim": config.max_state_dim,
            "max_action_dim": config.max_action_dim,
            "language_key": "task",
            "formalize_language": False,
            "embodiment_tag": config.embodiment_tag,
            "embodiment_mapping": EMBODIMENTS,
            "normalize_min_max": True,
        }
        return Processors(
            pre=[
                Step("rename_observations_processor", {"rename_map": {}}),
                Step("to_batch_processor"),
                Step(PACK, pack, state),
                Step("groot_eagle_encode_v3"),
                Step("groot_eagle_collate_v3"),
                Step("device_processor", {"device": "cpu", "float_dtype": None}),
            ],
            post=[
                Step(UNPACK, {"env_action_dim": config.action_dim, "normalize_min_max": True}, state),
                Step("device_processor", {"device": "cpu", "float_dtype": None}),
            ],
        )

    # -- what is tuned ------------------------------------------------------------------------------------

    def _frozen(self) -> list[nn.Module]:
        """Modules that the config keeps as they are; they also stay in eval mode, so their dropout is off."""
        config, eagle, head = self.config, self.backbone.eagle_model, self.action_head
        frozen: list[nn.Module] = []
        if not config.tune_llm:
            frozen.append(eagle.language_model)
        if not config.tune_visual:
            frozen += [eagle.vision_model, eagle.mlp1]
        if not config.tune_projector:
            frozen += [head.state_encoder, head.action_encoder, head.action_decoder]
            frozen += [head.position_embedding] if head.position_embedding is not None else []
        if not config.tune_diffusion_model:
            frozen.append(head.model)
        if config.snapflow_weight:
            frozen.append(self.backbone)
        return frozen

    def _freeze(self) -> None:
        for module in self._frozen():
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Groot:
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    # -- inputs -------------------------------------------------------------------------------------------

    @property
    def live_cameras(self) -> list[str]:
        return sorted(super().live_cameras)

    def set_cameras(self, sizes: Mapping[str, tuple[int, int]], absent: Sequence[str] = ()) -> None:
        """An absent camera is left out of the prompt, as LeRobot does; one must remain."""
        super().set_cameras(sizes, absent)
        if absent and not self.live_cameras:
            raise CheckpointError("GR00T cannot do without any camera; bind at least one: --camera NAME=NAME")
        for height, width in sizes.values():
            for n in (height, width):
                matrix = byte_resize_matrix(n, self.arch.vision.image).to(self.device)
                self.register_buffer(f"_resize_{n}", matrix, persistent=False)

    def pixels(self, frames: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> (B, 3, h, w) in -1..1: stretched bicubically, antialiased, to whole grey levels."""
        rows, columns = (self._resize_matrix(n) for n in frames.shape[1:3])
        levels = resize_bytes(frames.float().permute(0, 3, 1, 2), rows, columns)
        return (levels - 127.5) / 127.5

    def _resize_matrix(self, n: int) -> Tensor:
        known = getattr(self, f"_resize_{n}", None)
        return known if known is not None else byte_resize_matrix(n, self.arch.vision.image).to(self.device)

    def padded(self, x: Tensor, width: int) -> Tensor:
        """Zeros on the right up to the network's width."""
        return nn.functional.pad(x, (0, width - x.shape[-1]))

    def prompt_recipe(self) -> dict[str, Any]:
        """Eagle's chat with the image placeholders written out; the instruction as the repr of a one-element list."""
        pack = self.processors.step(PACK)
        clean = ["lower_no_punctuation"] if pack and pack.config.get("formalize_language") else []
        template = groot_template(len(self.live_cameras), self.arch.tokens_per_image)
        return {
            "recipe": "groot",
            "template": template,
            "clean_task": [*clean, "list_repr"],
            "state": None,
            "tokenizer": {
                "file": "tokenizer/tokenizer.json",
                "n_tokens": self._n_fixed_tokens(template) + self.n_text_tokens,
                "padding": "max_length",
                "padding_side": "right",
                "add_bos": False,
                "pad_id": pad_id(self.tokenizer_folder()),
                "truncation": False,
            },
            "default_task": "Perform the task.",
        }

    def _n_fixed_tokens(self, template: str) -> int:
        from tokenizers import Tokenizer

        path = self.tokenizer_folder() / "tokenizer.json"
        return len(
            Tokenizer.from_file(str(path))
            .encode(template.replace("{task}", ""), add_special_tokens=False)
            .ids
        )

    @property
    def tokenizer_name(self) -> str:
        return self.config.tokenizer_assets_repo

    # -- network ------------------------------------------------------------------------------------------

    def features(self, pixels: Sequence[Tensor], tokens: Tensor, real: Tensor) -> Tensor:
        """What the backbone hands to the action head: (B, L, width)."""
        return self.backbone(pixels, tokens, real)

    def context(
        self, pixels: Sequence[Tensor], tokens: Tensor, real: Tensor, state: Tensor
    ) -> dict[str, Tensor]:
        """All that stays the same over the denoise steps. state: raw (B, S)."""
        head = self.action_head
        refined = head.refine(self.features(pixels, tokens, real), real)
        return {
            "cross_kv": head.model.cross_keys_values(refined),
            "token_mask": real,
            "state_token": head.state_encoder(self.packed_state(state), self._embodiments(state)),
        }

    def packed_state(self, state: Tensor) -> Tensor:
        """Raw (B, S) -> normalised and padded (B, 1, max_state_dim)."""
        return self.padded(self.state_range(state), self.config.max_state_dim)[:, None]

    def packed_action(self, action: Tensor) -> Tensor:
        """Raw (B, T, A) -> normalised, the last step repeated up to the horizon, padded: (B, horizon, W)."""
        horizon, width = self.sample_shape
        action = self.action_range(action)[:, :horizon]
        if action.shape[1] < horizon:
            last = action[:, -1:].expand(-1, horizon - action.shape[1], -1)
            action = torch.cat([action, last], dim=1)
        return self.padded(action, width)

    def _embodiments(self, like: Tensor) -> Tensor:
        return torch.full((like.shape[0],), self.embodiment, dtype=torch.int64, device=like.device)

    def predict(
        self, context: Mapping[str, Tensor], x: Tensor, tau: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """Velocity (B, T, W) at flow time tau (B,), 0 = noise."""
        head, horizon = self.action_head, self.sample_shape[0]
        step = torch.trunc(tau * self.arch.head["num_timestep_buckets"]).to(torch.int64)
        embodiment = self._embodiments(x)
        weights = head.model.proj_out_1.weight
        clean, is_committed = None, commit.marked(extras) if self.config.trained_delay else None
        if is_committed is not None:
            clean = torch.full_like(step, self.arch.head["num_timestep_buckets"])
        actions = head.action_encoder(x.to(weights.dtype), step, embodiment, clean, is_committed)
        if head.position_embedding is not None:
            actions = actions + head.position_embedding.weight[:horizon]
        future = head.future_tokens.weight[None].expand(x.shape[0], -1, -1)
        sequence = torch.cat([context["state_token"].to(actions.dtype), future, actions], dim=1)
        bias = masks.bias(context["token_mask"][:, None, :])
        is_clean = None
        if is_committed is not None:  # state and future tokens keep the step's time
            is_clean = nn.functional.pad(is_committed, (sequence.shape[1] - horizon, 0))
        towards = self.towards(1 - extras.get(TARGET, tau))  # time runs the other way here
        hidden = head.model(sequence, step, context["cross_kv"], bias, clean, is_clean, towards)
        return head.action_decoder(hidden[:, -horizon:], embodiment).to(torch.float32)

    # -- training -----------------------------------------------------------------------------------------

    def draw(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        action = batch[ACTION]
        n, head = action.shape[0], self.arch.head
        device = generator.device if generator is not None else action.device
        noise = torch.randn((n, *self.sample_shape), generator=generator, device=device)
        a, b = float(head["noise_beta_alpha"]), float(head["noise_beta_beta"])
        beta = draw_time(n, generator, alpha=a, beta=b, scale=1.0, offset=0.0).to(device)
        time = (head["noise_s"] - beta) / head["noise_s"]
        time = (
            1 - shift_time(1 - time, self.config.one_step_time_shift)
            if self.config.one_step_time_shift
            else time
        )
        draws = {"noise": noise, "time": time, **self.draw_delay(n, generator)}
        return {name: draw.to(action.device) for name, draw in draws.items()}

    def flow_loss(self, batch: Batch, draws: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared velocity error over the real dimensions; steps past the episode's end count, as in LeRobot,
        committed ones do not."""
        predicted, target = self.velocities(batch, draws)
        error = (predicted - target)[..., : self.config.action_dim] ** 2
        committed = commit.drawn(draws, error.shape[1])
        return error.mean() if committed is None else commit.mean_of(error, ~committed), {}

    def training_context(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        pixels = [self.pixels(batch[name]) for name in self.live_cameras]
        return self.context(pixels, batch["tokens"], batch["token_mask"], batch[STATE]), {}

    def velocities(self, batch: Batch, draws: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Predicted and target velocity, (B, T, W) each."""
        context, _ = self.training_context(batch)
        noise, time, action = draws["noise"], draws["time"], self.packed_action(batch[ACTION])
        t = time[:, None, None]
        x, extras = (1 - t) * noise + t * action, {}
        committed = commit.drawn(draws, x.shape[1])
        if committed is not None:
            x, extras = commit.put(x, action, committed), {"rtc:weights": committed.to(x.dtype)}
        return self.predict(context, x, time, extras), action - noise

    # -- graphs -------------------------------------------------------------------------------------------

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pixels = [self.pixels(inputs[f"camera:{name}"]) for name in self.live_cameras]
        return self.context(pixels, inputs["prompt:tokens"], inputs["prompt:mask"], inputs["state"])

    def denoise(
        self,
        context: Mapping[str, Tensor],
        x: Tensor,
        tau: Tensor,
        tau_next: Tensor,
        extras: Mapping[str, Tensor],
    ) -> Tensor:
        extras = {TARGET: tau_next, **extras}
        if "rtc:weights" in extras and self.config.trained_delay:
            committed = self.padded(self.committed(extras["rtc:committed"]), x.shape[-1])
            is_committed = extras["rtc:weights"] > 0.5
            x = commit.put(x, committed, is_committed)
            velocity = self.predict(context, x, tau, extras)
            return commit.put(euler(x, velocity, tau, tau_next), committed, is_committed)
        velocity = self.predict(context, x, tau, extras)
        if "rtc:weights" in extras:
            committed = self.padded(self.committed(extras["rtc:committed"]), x.shape[-1])
            # The guidance is written for time 1 = noise: the same formula with both directions reversed.
            reverse = guide(
                x, -velocity, 1 - tau, committed, extras["rtc:weights"], extras["rtc:max_guidance"]
            )
            velocity = -reverse
        return euler(x, velocity, tau, tau_next)

    def committed(self, actions: Tensor) -> Tensor:
        """Robot units -> normalised, by the inverse of `decode`."""
        return self.action_range_out(actions)

    def decode(self, x: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        return self.action_range_out.inverse(x[..., : self.config.action_dim])

    @property
    def baked_numbers(self) -> dict[str, int]:
        return {"embodiment_id": self.embodiment}

    @property
    def behind_pipeline(self) -> dict[str, Any]:
        """Pictures arrive as the vision tower takes them, times 255."""
        ranges = {name: Untouched() for name in ("state_range", "action_range", "action_range_out")}
        return {**ranges, "pixels": lambda frames: frames.permute(0, 3, 1, 2) / 255}

    @property
    def schedule(self) -> Schedule:
        n = self.steps_of(int(self.arch.head["num_inference_timesteps"]))
        return Schedule("linear", n, self.steps_allowed((1, 100)), start=0.0, end=1.0)

    @property
    def sample_shape(self) -> tuple[int, int]:
        return int(self.arch.head["action_horizon"]), int(self.arch.head["action_dim"])

    def bake(self) -> None:
        """Fixes the embodiment's weights in place of the tables of all bodies; called before tracing."""
        for module in self.modules():
            if isinstance(module, PerEmbodimentLinear):
                module.bake(self.embodiment)

    def graphs(self) -> dict[str, GraphSpec]:
        config, dims = self.config, self.action_head.model.dims
        horizon, width = self.sample_shape
        length = self.prompt_recipe()["tokenizer"]["n_tokens"]
        n_cross = sum(1 for block in self.action_head.model.transformer_blocks if block.is_cross)  # type: ignore[misc]
        context = (
            TensorSpec("cross_kv", "float32", (n_cross, 2, 1, dims.heads, length, dims.head_dim)),
            TensorSpec("token_mask", "bool", (1, length)),
            TensorSpec("state_token", "float32", (1, 1, dims.width)),
        )
        encode = (
            *self.camera_specs(),
            TensorSpec("tokens", "int64", (1, length), "prompt:tokens"),
            TensorSpec("prompt_mask", "bool", (1, length), "prompt:mask"),
            TensorSpec("state", "float32", (1, config.state_dim or 0), "state"),
        )
        x = TensorSpec("x", "float32", (1, horizon, width), "x")
        denoise = (
            x,
            TensorSpec("tau", "float32", (1,), "schedule:tau"),
            TensorSpec("tau_next", "float32", (1,), "schedule:tau_next"),
            *(TensorSpec(s.name, s.dtype, s.shape, f"context:{s.name}") for s in context),
            *self.rtc_specs(horizon, config.action_dim),
        )
        actions = TensorSpec("actions", "float32", (1, horizon, config.action_dim))
        return {
            "encode": GraphSpec(encode, context),
            "denoise": GraphSpec(denoise, (TensorSpec("x_next", "float32", x.shape),)),
            "decode": GraphSpec((x,), (actions,)),
        }


def _stats(step: Step | None, feature: str) -> dict[str, np.ndarray] | None:
    """Statistics of a feature in a pack or unpack step; None when it does not normalise."""
    if step is None or not step.state or not step.config.get("normalize_min_max", True):
        return None
    return unflatten_stats(step.state).get(feature)

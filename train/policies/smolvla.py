"""SmolVLA: the first half of SmolVLM2 as a prefix, and a thinner expert that walks the same layers, or every n-th one.

Even layers of the expert attend to the prefix's keys and values and, causally, to the actions themselves; odd layers
attend to the prefix only, whose keys and values pass through the expert's own projections first. Since those are the
same at every step, `encode` applies them. RoPE has base 10000 throughout, whatever the backbone was trained with.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevla.errors import CheckpointError

from ..backbone import (
    Shapes,
    backbone_folder,
    backbone_weights,
    copy_weights,
    merged,
    sub_config,
    text_config_of,
    token_id,
    vision_config_of,
)
from ..nn import commit
from ..nn.commit import over_tokens, per_action
from ..nn.image import resize_with_pad
from ..nn.masks import bias
from ..nn.siglip import VisionDims, VisionTower, pixel_shuffle
from ..nn.transformer import Transformer, TransformerDims, project
from ..processors import Processors, Step
from . import aloha
from .base import Batch
from .config import PolicyConfig, PolicyFeature
from .vla import TINY_NARROW, FlowVla, freeze
from .vla_config import VlaConfig

VLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
PUBLISHED: dict[str, Any] = {
    "scale_factor": 4,
    "text_config": {
        "model_type": "llama",
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "vocab_size": 49280,
    },
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 16,
        "image_size": 512,
        "layer_norm_eps": 1e-6,
    },
}
"""SmolVLM2-500M in Hugging Face's terms."""

ROPE_BASE = 10000.0


@dataclass
class SmolVlaConfig(VlaConfig):
    """LeRobot's fields. resize_imgs_with_padding is (width, height)."""

    type: ClassVar[str] = "smolvla"

    resize_imgs_with_padding: tuple[int, int] | None = (512, 512)
    adapt_to_pi_aloha: bool = False
    use_delta_joint_actions_aloha: bool = False
    num_steps: int = 10
    use_cache: bool = True
    freeze_vision_encoder: bool = True
    train_expert_only: bool = True
    train_state_proj: bool = True
    optimizer_lr: float = 1e-4
    optimizer_weight_decay: float = 1e-10
    optimizer_grad_clip_norm: float = 10
    vlm_model_name: str = VLM
    load_vlm_weights: bool = False
    add_image_special_tokens: bool = False
    attention_mode: str = "cross_attn"
    prefix_length: int = -1
    pad_language_to: str = "longest"
    num_expert_layers: int = -1
    num_vlm_layers: int = 16
    self_attn_every_n_layers: int = 2
    expert_width_multiplier: float = 0.75

    @classmethod
    def fetches_backbone(cls, settings: Mapping[str, Any]) -> bool:
        return bool(settings.get("load_vlm_weights", cls.load_vlm_weights))

    @property
    def denoise_steps(self) -> int:
        return self.num_steps

    @property
    def observation_indices(self) -> list[int]:
        return [0]

    def validate(self) -> None:
        for i in range(self.empty_cameras):
            name = f"observation.images.empty_camera_{i}"
            self.input_features.setdefault(name, PolicyFeature("VISUAL", (3, 480, 640)))
        super().validate()
        self.check_sizes("resize_imgs_with_padding")
        if self.use_delta_joint_actions_aloha:
            raise CheckpointError("smolvla: use_delta_joint_actions_aloha exists in no version of LeRobot")
        if self.adapt_to_pi_aloha and (
            self.state_dim or 14,
            (self.output_features and self.action_dim) or 14,
        ) != (14, 14):
            raise CheckpointError(
                "smolvla: adapt_to_pi_aloha needs the 14-joint layout of ALOHA in state and action"
            )

    def is_cross(self, layer: int) -> bool:
        """Whether the expert attends to the prefix only beside this layer of the language model."""
        n = self.self_attn_every_n_layers
        return "cross" in self.attention_mode and not (n > 0 and layer % n == 0)


@dataclass(frozen=True)
class SmolVlaDims:
    vision: VisionDims
    text: TransformerDims
    expert: TransformerDims
    vocabulary: int
    shuffle: int

    @classmethod
    def of(cls, config: SmolVlaConfig, vlm: Mapping[str, Any]) -> SmolVlaDims:
        """Sizes from the backbone's config and how much of it the policy uses."""
        text = TransformerDims.from_hf(vlm["text_config"], rope_base=ROPE_BASE)
        depth = min(text.depth, config.num_vlm_layers) if config.num_vlm_layers > 0 else text.depth
        n_expert = config.num_expert_layers if config.num_expert_layers > 0 else depth
        if depth % n_expert:
            raise CheckpointError(
                f"smolvla: num_expert_layers is {n_expert}, which does not divide the {depth} text layers"
            )
        text = dataclasses.replace(text, depth=depth)
        width = int(text.width * config.expert_width_multiplier)
        expert = dataclasses.replace(text, width=width, mlp=expert_mlp(width), depth=n_expert)
        _check_projections(config, text, expert)
        return cls(
            VisionDims.from_hf(vlm["vision_config"]),
            text,
            expert,
            vlm["text_config"]["vocab_size"],
            vlm["scale_factor"],
        )


def _check_projections(config: SmolVlaConfig, text: TransformerDims, expert: TransformerDims) -> None:
    """LeRobot shapes an expert layer's k_proj and v_proj by the expert's own count of layers, and runs it by the text's.

    Raises:
        CheckpointError: a layer that attends to itself would get projections for the prefix, of another width.
    """
    every, kv_width = text.depth // expert.depth, text.kv_heads * text.head_dim
    odd = [i for i in range(expert.depth) if config.is_cross(i) and not config.is_cross(i * every)]
    if odd and kv_width != expert.width:
        raise CheckpointError(
            f"smolvla: with num_expert_layers {expert.depth} of {text.depth} and self_attn_every_n_layers "
            f"{config.self_attn_every_n_layers}, expert layer {odd[0]} attends to the actions by projections made for "
            f"the prefix ({kv_width} wide, the expert {expert.width}), which LeRobot cannot run either"
        )


def expert_mlp(width: int) -> int:
    """Llama's rule: two thirds of four widths, rounded up to a multiple of 256."""
    hidden = int(4 * int(2 * width / 3))
    return 256 * -(-hidden // 256)


class _Projection(nn.Module):
    def __init__(self, dims: SmolVlaDims) -> None:
        super().__init__()
        self.proj = nn.Linear(dims.vision.width * dims.shuffle**2, dims.text.width, bias=False)


class _Connector(nn.Module):
    def __init__(self, dims: SmolVlaDims) -> None:
        super().__init__()
        self.modality_projection = _Projection(dims)


class _VlmModel(nn.Module):
    def __init__(self, dims: SmolVlaDims) -> None:
        super().__init__()
        self.vision_model = VisionTower(dims.vision, spread=True)
        self.connector = _Connector(dims)
        self.text_model = Transformer(dims.text, dims.vocabulary)


class _Vlm(nn.Module):
    """SmolVLM2 under Hugging Face's names. `lm_head` is in every checkpoint and never used."""

    def __init__(self, dims: SmolVlaDims) -> None:
        super().__init__()
        self.model = _VlmModel(dims)
        self.lm_head = nn.Linear(dims.text.width, dims.vocabulary, bias=False)


def new_vlm(dims: SmolVlaDims) -> nn.Module:
    """The backbone alone, random."""
    return _Vlm(dims)


class _VlmWithExpert(nn.Module):
    def __init__(self, dims: SmolVlaDims, config: SmolVlaConfig) -> None:
        super().__init__()
        kv_width = dims.text.kv_heads * dims.text.head_dim
        kv_inputs = [kv_width if config.is_cross(i) else None for i in range(dims.expert.depth)]
        self.vlm = _Vlm(dims)
        self.lm_expert = Transformer(dims.expert, kv_inputs=kv_inputs)


class SmolVla(FlowVla):
    policy_type = "smolvla"
    Config = SmolVlaConfig
    config: SmolVlaConfig
    published_backbone = VLM
    backbone_kind = "smolvlm"
    unfrozen: ClassVar[Mapping[str, Any]] = {"train_expert_only": False, "freeze_vision_encoder": False}
    tiny: ClassVar[Mapping[str, Any]] = {
        **TINY_NARROW,
        "resize_imgs_with_padding": [64, 64],
        "tokenizer_max_length": 24,
        **unfrozen,
    }
    newline_step = "smolvla_new_line_processor"
    lora_targets: ClassVar[str | None] = (
        r".*lm_expert\..*\.(q|v)_proj|state_proj|action_(in|out)_proj|action_time_mlp_(in|out)"
    )

    def __init__(self, config: SmolVlaConfig, processors: Processors, dims: SmolVlaDims) -> None:
        super().__init__(config, processors)
        self.dims = dims
        text, expert = dims.text, dims.expert
        self.vlm_with_expert = _VlmWithExpert(dims, config)
        self.state_proj = nn.Linear(config.max_state_dim, text.width)
        self.action_in_proj = nn.Linear(config.max_action_dim, expert.width)
        self.action_out_proj = nn.Linear(expert.width, config.max_action_dim)
        self.action_time_mlp_in = nn.Linear(2 * expert.width, expert.width)
        self.action_time_mlp_out = nn.Linear(expert.width, expert.width)
        self._freeze()
        self.prepare_one_step(expert.width, self.vlm_with_expert.vlm)

    @classmethod
    def build(cls, config: PolicyConfig, processors: Processors, shapes: Shapes | None = None) -> SmolVla:
        assert isinstance(config, SmolVlaConfig)
        if shapes is None and config.load_vlm_weights:
            return cls.from_backbone(backbone_folder(config.vlm_model_name), config, processors)
        return cls._build(config, processors, shapes, Path(config.vlm_model_name))

    @classmethod
    def _build(
        cls, config: SmolVlaConfig, processors: Processors, shapes: Shapes | None, backbone: Path
    ) -> SmolVla:
        """backbone: a folder whose config.json describes the VLM, for checkpoints that have none of their own."""
        found = sub_config(processors, "vlm_config", backbone)
        # A file leaves out what its library takes by default: a factor of 2.
        vlm: dict[str, Any] = dict(PUBLISHED) if found is None else {"scale_factor": 2, **found}
        for part in ("text_config", "vision_config"):
            vlm[part] = merged(PUBLISHED[part], (found or {}).get(part))
        if found is None and shapes is not None:
            vlm = _from_shapes(shapes, vlm)
        policy = cls(config, processors, SmolVlaDims.of(config, vlm))
        if backbone.is_dir():
            policy.extra_folders = {"vlm_config": backbone, "tokenizer": backbone}
        return policy

    @classmethod
    def from_backbone(cls, folder: str | Path, config: PolicyConfig, processors: Processors) -> SmolVla:
        """A fresh policy on SmolVLM2's own folder (config.json, weights, tokenizer); the expert is random."""
        assert isinstance(config, SmolVlaConfig)
        folder = Path(folder)
        policy = cls._build(config, processors, None, folder)
        weights = {_backbone_name(k): w for k, w in backbone_weights(folder).items()}
        embedding = "model.text_model.embed_tokens.weight"
        if embedding in weights:
            weights.setdefault("lm_head.weight", weights[embedding])
        copy_weights(policy.vlm_with_expert.vlm, weights, str(folder))
        return policy

    @classmethod
    def tokenizer_step(cls, config: VlaConfig) -> Step:
        assert isinstance(config, SmolVlaConfig)
        step = super().tokenizer_step(config)
        step.config.update(padding=config.pad_language_to, tokenizer_name=config.vlm_model_name)
        return step

    def _freeze(self) -> None:
        """What LeRobot 0.6 keeps fixed."""
        config, vlm = self.config, self.vlm_with_expert.vlm
        if config.freeze_vision_encoder:
            freeze(vlm.model.vision_model)
        if config.train_expert_only:
            freeze(vlm)
        else:
            freeze(vlm.lm_head, self.language.norm, self.language.layers[-1])
            if self.expert_every > 1:
                freeze(self.language.layers[-2])
        self.state_proj.requires_grad_(config.train_state_proj)

    @functools.cached_property
    def image_marks(self) -> tuple[list[int], list[int]] | None:
        """Token ids before and after each image; None where images stand bare."""
        if not self.config.add_image_special_tokens:
            return None
        folder = self.tokenizer_folder()
        fake = token_id(folder, "<fake_token_around_image>")
        return [fake, token_id(folder, "<global-img>")], [fake]

    # -- network ------------------------------------------------------------------------------------------

    @property
    def language(self) -> Transformer:
        return self.vlm_with_expert.vlm.model.text_model

    @property
    def expert(self) -> Transformer:
        return self.vlm_with_expert.lm_expert

    @property
    def expert_every(self) -> int:
        return self.dims.text.depth // self.dims.expert.depth

    def is_cross(self, i: int) -> bool:
        """Whether the expert's i-th layer attends to the prefix only."""
        return self.config.is_cross(i * self.expert_every)

    def fit_image(self, image: Tensor) -> Tensor:
        if self.config.resize_imgs_with_padding is not None:
            width, height = self.config.resize_imgs_with_padding
            image = resize_with_pad(image, height, width, place="bottom_right")
        return image * 2 - 1

    def see(self, images: Tensor) -> Tensor:
        model, patch = self.vlm_with_expert.vlm.model, self.dims.vision.patch
        rows, columns = images.shape[2] // patch, images.shape[3] // patch
        folded = pixel_shuffle(model.vision_model(images), rows, columns, self.dims.shuffle)
        return project(model.connector.modality_projection.proj, folded)

    def embed_prefix(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, list[bool]]:
        scale = self.dims.text.width**0.5
        parts: list[tuple[Tensor, Tensor]] = []
        images = zip(*self.image_tokens(inputs), strict=True)
        for tokens, real in images:
            parts += self._marked([(tokens * scale, real)], real)
        for _ in range(self._n_empty(len(self.cameras_in(inputs)))):
            parts += self._marked([], inputs["prompt:mask"])
        words = self.language.embed(inputs["prompt:tokens"]) * scale
        state = project(self.state_proj, self.network_state(inputs))[:, None]
        parts += [(words, inputs["prompt:mask"]), (state, torch.ones_like(inputs["prompt:mask"][:, :1]))]
        embeddings = torch.cat([e.to(torch.float32) for e, _ in parts], dim=1)
        real = torch.cat([r for _, r in parts], dim=1)
        n = real.shape[1]
        n_pad = max(0, self.config.prefix_length - n)
        starts = [False] * (n - 1) + [True] + [False] * n_pad
        return F.pad(embeddings, (0, 0, 0, n_pad)), F.pad(real, (0, n_pad)), starts

    def _marked(self, image: list[tuple[Tensor, Tensor]], like: Tensor) -> list[tuple[Tensor, Tensor]]:
        """An image between its special tokens, which count as real even where the camera is masked, as in LeRobot."""
        if self.image_marks is None:
            return image
        before, after = (
            (self._words(ids, like), torch.ones_like(like[:, :1]).expand(-1, len(ids)))
            for ids in self.image_marks
        )
        return [before, *image, after]

    def _words(self, ids: list[int], like: Tensor) -> Tensor:
        words = self.language.embed(torch.tensor(ids, device=like.device))
        return words[None].expand(like.shape[0], -1, -1)

    def _n_empty(self, n_present: int) -> int:
        """Missing cameras that still leave their special tokens behind: LeRobot's first `empty_cameras` missing ones."""
        if self.image_marks is None:
            return 0
        return min(self.config.empty_cameras, len(self.config.image_features) - n_present)

    def prefix_tokens(self, cameras: Sequence[str], n_tokens: int) -> int:
        step = self.dims.vision.patch * self.dims.shuffle
        marks = 0 if self.image_marks is None else 3
        n = self._n_empty(len(cameras)) * marks + n_tokens + 1
        for camera in cameras:
            height, width = self.camera_size(camera)
            width, height = self.config.resize_imgs_with_padding or (width, height)
            n += (height // step) * (width // step) + marks
        return max(n, self.config.prefix_length)

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        context = super().encode(inputs)
        kv = context["kv"].unbind(0)
        context["kv"] = torch.stack([self._for_expert(i, pair) for i, pair in enumerate(kv)])
        return context

    def _for_expert(self, i: int, pair: Tensor) -> Tensor:
        """A layer's keys and values (2, B, Hkv, P, D) as the expert's layer takes them."""
        if not self.is_cross(i):
            return pair
        attention = self.expert.layer(i).self_attn
        flat = pair.transpose(2, 3).flatten(3)
        projected = (project(p, x) for p, x in zip((attention.k_proj, attention.v_proj), flat, strict=True))
        return torch.stack([x.unflatten(-1, (attention.kv_heads, -1)).transpose(1, 2) for x in projected]).to(
            pair.dtype
        )

    def time_rows(self, embedded: Tensor) -> dict[str, Tensor]:
        return {"time_embedding": embedded}

    def embed_suffix(self, x: Tensor, time_embedding: Tensor) -> Tensor:
        """time_embedding: (B, width), or (B, T, width)."""
        actions = project(self.action_in_proj, x)
        times = over_tokens(time_embedding).to(actions.dtype).expand_as(actions)
        fused = F.silu(project(self.action_time_mlp_in, torch.cat([actions, times], dim=-1)))
        return project(self.action_time_mlp_out, fused)

    def velocity(
        self,
        context: Mapping[str, Tensor],
        x: Tensor,
        rows: Mapping[str, Tensor],
        is_committed: Tensor | None = None,
    ) -> Tensor:
        kv, real = context["kv"], context["prefix_mask"]
        n, length = x.shape[:2]
        after_prefix = self.after_prefix(real, [True] * length)
        order = torch.arange(length, device=x.device)[None]
        restarted = self.expert.rope(order), bias(real[:, None].expand(n, length, real.shape[1]))
        times = per_action(rows["time_embedding"], rows.get("clean_time_embedding"), is_committed)
        h = self.embed_suffix(x, times).to(self.expert.dtype)
        for i in range(self.dims.expert.depth):
            layer = self.expert.layer(i)
            if self.is_cross(i):
                h = self.expert.call(layer.cross, h, *restarted, kv[i, 0], kv[i, 1])
            else:
                h = self.expert.call(layer, h, *after_prefix, kv[i])[0]
        return self.action_out_proj(self.expert.norm(h)[0].to(self.action_out_proj.weight.dtype))

    # -- loss and conventions -----------------------------------------------------------------------------

    def flow_loss(self, batch: Batch, draws: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared velocity error over the real action dimensions of steps inside the episode, not committed."""
        error = self.squared_error(batch, draws)
        parts = {"elementwise_loss": error, "losses_after_forward": error.mean()}
        error = error[..., : self.config.action_dim]
        valid = torch.ones(error.shape[:2], dtype=torch.bool, device=error.device)
        if "action_is_pad" in batch:
            valid = ~batch["action_is_pad"]
        committed = commit.drawn(draws, error.shape[1])
        valid = valid if committed is None else valid & ~committed
        masked = error * valid[..., None]
        parts["losses_after_in_ep_bound"] = parts["losses_after_rm_padding"] = masked.mean()
        n = error.shape[-1]
        loss = masked.sum() / (valid.sum() * n).clamp(min=1)
        parts["loss_per_sample"] = masked.sum((1, 2)) / (valid.sum(1) * n).clamp(min=1)
        return loss, {**{k: v.detach() for k, v in parts.items()}, "loss": loss.detach()}

    def network_state(self, inputs: Mapping[str, Tensor]) -> Tensor:
        state = super().network_state(inputs)
        return aloha.state_to_pi(state) if self.config.adapt_to_pi_aloha else state

    def adapt_actions(self, actions: Tensor) -> Tensor:
        return aloha.actions_to_pi(actions) if self.config.adapt_to_pi_aloha else actions

    def restore_actions(self, actions: Tensor) -> Tensor:
        return aloha.actions_from_pi(actions) if self.config.adapt_to_pi_aloha else actions


def _from_shapes(shapes: Shapes, published: Mapping[str, Any]) -> dict[str, Any]:
    root = "vlm_with_expert.vlm.model."
    text = text_config_of(shapes, f"{root}text_model.", published["text_config"])
    vision = vision_config_of(shapes, f"{root}vision_model.", published["vision_config"])
    proj = shapes.get(f"{root}connector.modality_projection.proj.weight")
    shuffle = round((proj[1] / vision["hidden_size"]) ** 0.5) if proj else published["scale_factor"]
    return {"scale_factor": shuffle, "text_config": text, "vision_config": vision}


def _backbone_name(name: str) -> str:
    """A name in SmolVLM2's own file -> ours within `vlm`."""
    return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"

"""What Pi0 and Pi0.5 share: PaliGemma as the prefix, a Gemma expert over its keys and values (docs/policies.md#pi0).

    prefix  [camera 1 (256 tokens), ..., language]         all see each other
    suffix  Pi0: [state, actions ...]   Pi0.5: [actions ...]         actions see prefix, state and each other

Pi0 mixes the time into the action tokens; Pi0.5 modulates every norm of the
expert by it, and has the state in its prompt.
"""

from __future__ import annotations

import contextlib
import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgevla.errors import CheckpointError
from edgevla.types import ACTION, STATE

from ..backbone import (
    Shapes,
    backbone_weights,
    copy_weights,
    merged,
    sub_config,
    text_config_of,
    vision_config_of,
)
from ..nn import commit, flow
from ..nn.image import resize_with_pad
from ..nn.siglip import VisionDims, VisionTower
from ..nn.transformer import Transformer, TransformerDims, project
from ..processors import Processors, Stats, Step
from .base import Batch
from .config import PolicyConfig, PolicyFeature
from .vla import FlowVla, freeze
from .vla_config import VlaConfig, set_relative

EMBEDDING = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
HEAD = "paligemma_with_expert.paligemma.lm_head.weight"
"""One matrix in PaliGemma; apart since LeRobot 0.5, where an older file may hold it under either name."""
TWINS = {EMBEDDING: HEAD, HEAD: EMBEDDING}
EXPERT_HEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"
VOCABULARY = 257152
"""Rows of the embedding in LeRobot's files; PaliGemma's own has 64 unused rows more."""

_GEMMA = {
    "model_type": "gemma",
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "gemma_300m": {**_GEMMA, "hidden_size": 1024, "intermediate_size": 4096},
    "gemma_2b": {**_GEMMA, "hidden_size": 2048, "intermediate_size": 16384},
}
"""LeRobot's names for stack sizes, in Hugging Face's terms."""

SIGLIP: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "layer_norm_eps": 1e-6,
}


@dataclass
class PiConfig(VlaConfig):
    """LeRobot's fields that Pi0 and Pi0.5 have in common."""

    paligemma_variant: str = "gemma_2b"
    action_expert_variant: str = "gemma_300m"
    dtype: str = "float32"
    num_inference_steps: int = 10
    time_sampling_beta_alpha: float = 1.5
    time_sampling_beta_beta: float = 1.0
    time_sampling_scale: float = 0.999
    time_sampling_offset: float = 0.001
    use_relative_actions: bool = False
    relative_exclude_joints: list[str] = dataclasses.field(default_factory=lambda: ["gripper"])
    action_feature_names: list[str] | None = None
    image_resolution: tuple[int, int] = (224, 224)
    gradient_checkpointing: bool = False

    newer_keys: ClassVar[frozenset[str]] = PolicyConfig.newer_keys | {
        "use_relative_actions", "relative_exclude_joints", "action_feature_names",
    }  # fmt: skip

    relative_fields: ClassVar[Mapping[str, str]] = {
        "use_relative_actions": "enabled",
        "relative_exclude_joints": "exclude_joints",
    }

    @classmethod
    def with_names(cls, settings: Mapping[str, Any], action_names: Sequence[str]) -> dict[str, Any]:
        """By their names joints are left out of relative actions; they are the dataset's unless they were said."""
        if not settings.get("use_relative_actions") or settings.get("action_feature_names"):
            return dict(settings)
        return {**settings, "action_feature_names": list(action_names)}

    @property
    def trains_in_bf16(self) -> bool:
        return self.dtype == "bfloat16"

    def in_float32(self) -> PiConfig:
        return dataclasses.replace(self, dtype="float32")

    @property
    def denoise_steps(self) -> int:
        return self.num_inference_steps

    def validate(self) -> None:
        for i in range(self.empty_cameras):
            name = f"observation.images.empty_camera_{i}"
            self.input_features.setdefault(name, PolicyFeature("VISUAL", (3, 224, 224)))
        self.input_features.setdefault(STATE, PolicyFeature("STATE", (self.max_state_dim,)))
        self.output_features.setdefault(ACTION, PolicyFeature("ACTION", (self.max_action_dim,)))
        super().validate()
        if len(set(self.image_resolution)) != 1:
            raise CheckpointError(
                f"{self.type}: image_resolution is {list(self.image_resolution)}; PaliGemma sees squares only"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise CheckpointError(f"{self.type}: dtype is '{self.dtype}'; expected float32 or bfloat16")
        for name in ("paligemma_variant", "action_expert_variant"):
            if getattr(self, name) not in VARIANTS:
                raise CheckpointError(
                    f"{self.type}: {name} is '{getattr(self, name)}'; expected {' or '.join(VARIANTS)}"
                )


@dataclass(frozen=True)
class PiDims:
    """expert_vocabulary: rows of the expert's unused head; 0: it has none. tied: the one of `EMBEDDING` and `HEAD` under
    which a file holds both; None: it holds each.
    """

    vision: VisionDims
    text: TransformerDims
    expert: TransformerDims
    vocabulary: int
    expert_vocabulary: int
    tied: str | None = None

    @classmethod
    def of(
        cls, vision: Mapping[str, Any], text: Mapping[str, Any], expert: Mapping[str, Any], *, adaptive: bool
    ) -> PiDims:
        """Out of three configs as transformers writes them."""
        stack = TransformerDims.from_hf(text)
        second = TransformerDims.from_hf(expert)
        for name in ("depth", "heads", "kv_heads", "head_dim"):
            if getattr(stack, name) != getattr(second, name):
                raise CheckpointError(
                    f"the language model's {name} is {getattr(stack, name)}, the action expert's "
                    f"{getattr(second, name)}; they attend together and must agree"
                )
        second = dataclasses.replace(second, adaptive=second.width if adaptive else None)
        sizes = (min(c.get("vocab_size", VOCABULARY), VOCABULARY) for c in (text, expert))
        return cls(VisionDims.from_hf(vision), stack, second, *sizes)


class _VisionTower(nn.Module):
    def __init__(self, dims: PiDims) -> None:
        super().__init__()
        self.vision_model = VisionTower(dims.vision)


class _Projector(nn.Module):
    def __init__(self, dims: PiDims) -> None:
        super().__init__()
        self.linear = nn.Linear(dims.vision.width, dims.text.width)


class _PaliGemmaModel(nn.Module):
    """Vision stays float32 whatever the dtype of the language model, as in LeRobot since 0.5."""

    def __init__(self, dims: PiDims, dtype: torch.dtype) -> None:
        super().__init__()
        self.vision_tower = _VisionTower(dims)
        self.multi_modal_projector = _Projector(dims)
        with _default_dtype(dtype):
            self.language_model = Transformer(dims.text, dims.vocabulary)


class _PaliGemma(nn.Module):
    """Under Hugging Face's names. `lm_head` is never used; the embedding itself where a file holds but one of them."""

    def __init__(self, dims: PiDims, dtype: torch.dtype, *, is_tied: bool = False) -> None:
        super().__init__()
        self.model = _PaliGemmaModel(dims, dtype)
        self.lm_head = nn.Linear(dims.text.width, dims.vocabulary, bias=False, dtype=dtype)
        embedding = self.model.language_model.embed_tokens
        if is_tied and embedding is not None:
            self.lm_head.weight = embedding.weight


def new_paligemma(dims: PiDims) -> nn.Module:
    """The backbone alone, float32, random."""
    return _PaliGemma(dims, torch.float32)


class _Expert(nn.Module):
    """The action expert; its `lm_head`, which a file may lack, is never used either."""

    def __init__(self, dims: PiDims, dtype: torch.dtype) -> None:
        super().__init__()
        with _default_dtype(dtype):
            self.model = Transformer(dims.expert)
        if dims.expert_vocabulary:
            self.lm_head = nn.Linear(dims.expert.width, dims.expert_vocabulary, bias=False, dtype=dtype)


class _PaliGemmaWithExpert(nn.Module):
    def __init__(self, dims: PiDims, dtype: torch.dtype) -> None:
        super().__init__()
        self.paligemma = _PaliGemma(dims, dtype, is_tied=dims.tied is not None)
        self.gemma_expert = _Expert(dims, dtype)


class PiPolicy(FlowVla):
    """Subclasses: the projections of suffix and time, and `embed_suffix`."""

    config: PiConfig
    published_backbone = "google/paligemma-3b-pt-224"
    backbone_kind = "paligemma"
    adaptive: ClassVar[bool] = False
    lora_targets: ClassVar[str | None] = (
        r".*gemma_expert\..*\.(q|v)_proj|state_proj|action_(in|out)_proj|(action_)?time_mlp_(in|out)"
    )

    def __init__(self, config: PiConfig, processors: Processors, dims: PiDims) -> None:
        super().__init__(config, processors)
        self.dims = dims
        self.paligemma_with_expert = _PaliGemmaWithExpert(dims, getattr(torch, config.dtype))
        self.action_in_proj = nn.Linear(config.max_action_dim, dims.expert.width)
        self.action_out_proj = nn.Linear(dims.expert.width, config.max_action_dim)
        self.add_projections()
        if config.freeze_vision_encoder:
            freeze(self.paligemma.model.vision_tower)
        if config.train_expert_only:
            freeze(self.paligemma)
        self.prepare_one_step(dims.expert.width, self.paligemma)
        self.set_gradient_checkpointing(config.gradient_checkpointing)

    @abstractmethod
    def add_projections(self) -> None:
        """The layers that only this policy has."""

    @classmethod
    def build(cls, config: PolicyConfig, processors: Processors, shapes: Shapes | None = None) -> PiPolicy:
        return cls._build(config, processors, shapes, None)

    @classmethod
    def _build(
        cls, config: PolicyConfig, processors: Processors, shapes: Shapes | None, backbone: Path | None
    ) -> PiPolicy:
        """backbone: a folder whose config.json describes PaliGemma, for checkpoints that have none of their own."""
        assert isinstance(config, PiConfig)
        expert_folder = backbone / "expert_config" if backbone is not None else None
        vlm = sub_config(processors, "vlm_config", backbone)
        expert_config = sub_config(processors, "expert_config", expert_folder)
        text = merged(VARIANTS[config.paligemma_variant], (vlm or {}).get("text_config"))
        vision = merged(SIGLIP, (vlm or {}).get("vision_config"))
        vision["image_size"] = config.image_resolution[0]
        expert = merged(VARIANTS[config.action_expert_variant], expert_config)
        root, tied = "paligemma_with_expert.", None
        if shapes is not None:
            tied = next((n for n, twin in TWINS.items() if n in shapes and twin not in shapes), None)
            shapes = {**shapes, EMBEDDING: shapes[tied]} if tied else shapes
        if shapes is not None and vlm is None:
            text = text_config_of(shapes, f"{root}paligemma.model.language_model.", text)
            vision = vision_config_of(shapes, f"{root}paligemma.model.vision_tower.vision_model.", vision)
        if shapes is not None and expert_config is None:
            expert = text_config_of(shapes, f"{root}gemma_expert.model.", expert)
        dims = PiDims.of(vision, text, expert, adaptive=cls.adaptive)
        if shapes is not None:
            rows = shapes.get(EXPERT_HEAD, (0,))[0]
            dims = dataclasses.replace(dims, tied=tied, expert_vocabulary=rows)
        return cls(config, processors, dims)

    @classmethod
    def from_backbone(cls, folder: str | Path, config: PolicyConfig, processors: Processors) -> PiPolicy:
        """A fresh policy on PaliGemma's own folder (config.json, weights, tokenizer); the expert is random.

        An `expert_config/` in the folder gives the expert's size, else the config's variant does.
        """
        assert isinstance(config, PiConfig)
        folder = Path(folder)
        policy = cls._build(config, processors, None, folder)
        weights = {_backbone_name(k): w for k, w in backbone_weights(folder).items()}
        embedding = "model.language_model.embed_tokens.weight"
        for name in (embedding, "lm_head.weight"):
            if name in weights:
                weights[embedding] = weights["lm_head.weight"] = weights[name][: policy.dims.vocabulary]
                break
        copy_weights(policy.paligemma, weights, str(folder))
        policy.extra_folders = {"tokenizer": folder, "vlm_config": folder}
        if (folder / "expert_config").is_dir():
            policy.extra_folders["expert_config"] = folder / "expert_config"
        return policy

    @classmethod
    def repair_keys(cls, weights: dict[str, Tensor], config: PolicyConfig) -> dict[str, Tensor]:
        """Names without `model.`; what they are in the sibling."""
        repaired = {}
        for name, tensor in weights.items():
            name = name if name.startswith("model.") else f"model.{name}"
            kept = cls.repair_key(name)
            if kept is not None:
                repaired[kept] = tensor
        return repaired

    def saved_weights(self) -> dict[str, Tensor]:
        """One matrix is stored once, under the name that it came with."""
        weights = super().saved_weights()
        if self.dims.tied is not None:
            del weights[self.Prefix + TWINS[self.dims.tied]]
        return weights

    @classmethod
    @abstractmethod
    def repair_key(cls, name: str) -> str | None:
        """A prefixed name of this policy or of its sibling -> ours; None: not used here."""

    # -- network ------------------------------------------------------------------------------------------

    @property
    def paligemma(self) -> _PaliGemma:
        return self.paligemma_with_expert.paligemma

    @property
    def language(self) -> Transformer:
        return self.paligemma.model.language_model

    @property
    def expert(self) -> Transformer:
        return self.paligemma_with_expert.gemma_expert.model

    def fit_image(self, image: Tensor) -> Tensor:
        height, width = self.config.image_resolution
        return resize_with_pad(image, height, width, place="center", clamp=True) * 2 - 1

    def see(self, images: Tensor) -> Tensor:
        model = self.paligemma.model
        return project(model.multi_modal_projector.linear, model.vision_tower.vision_model(images))

    def embed_prefix(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, list[bool]]:
        """Image tokens come as the projector gives them, words scaled; LeRobot's versions all net to this."""
        tokens, real = self.image_tokens(inputs)
        words = self.language.embed(inputs["prompt:tokens"]).to(torch.float32) * self.dims.text.width**0.5
        embeddings = torch.cat([*(t.to(torch.float32) for t in tokens), words], dim=1)
        return embeddings, torch.cat([*real, inputs["prompt:mask"]], dim=1), [False] * embeddings.shape[1]

    def prefix_tokens(self, cameras: Sequence[str], n_tokens: int) -> int:
        height, width = self.config.image_resolution
        patch = self.dims.vision.patch
        return len(cameras) * (height // patch) * (width // patch) + n_tokens

    def draw_time(self, n: int, generator: torch.Generator | None) -> Tensor:
        c = self.config
        return flow.draw_time(
            n,
            generator,
            alpha=c.time_sampling_beta_alpha,
            beta=c.time_sampling_beta_beta,
            scale=c.time_sampling_scale,
            offset=c.time_sampling_offset,
        )

    def run_expert(
        self,
        context: Mapping[str, Tensor],
        suffix: Tensor,
        starts: list[bool],
        *modulation: Tensor | None,
    ) -> Tensor:
        """Suffix embeddings -> velocity of the actions, the last T of them. modulation: as the expert takes it."""
        rope, bias = self.after_prefix(context["prefix_mask"], starts)
        out = self.expert(suffix, rope, bias, context["kv"], *modulation)
        return self.action_out_proj(out[:, -self.config.chunk_size :].to(self.action_out_proj.weight.dtype))

    # -- loss and pipelines -------------------------------------------------------------------------------

    def flow_loss(self, batch: Batch, draws: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared velocity error over the real action dimensions; padded steps count, as in LeRobot, committed
        ones do not."""
        error = self.squared_error(batch, draws)
        real = error[..., : self.config.action_dim]
        committed = commit.drawn(draws, real.shape[1])

        def mean(*dim: int) -> Tensor:
            return real.mean(dim) if committed is None else commit.mean_of(real, ~committed, dim)

        loss = mean(0, 1, 2)
        parts = {"elementwise_loss": error, "loss_per_dim": mean(0, 1), "loss_per_sample": mean(1, 2)}
        return loss, {**{k: v.detach() for k, v in parts.items()}, "loss": loss.detach()}

    @classmethod
    def default_processors(cls, config: PolicyConfig, stats: Stats) -> Processors:
        """The pair of steps for relative actions only where they are switched on: LeRobot 0.4 knows neither, 0.5 and
        0.6 name one of them differently, and all read pipelines without.
        """
        assert isinstance(config, PiConfig)
        processors = super().default_processors(config, stats)
        processors.pre = cls.ordered_steps(processors.pre)
        if config.use_relative_actions:
            excluded, names = list(config.relative_exclude_joints), config.action_feature_names
            set_relative(processors, {"enabled": True, "exclude_joints": excluded, "action_names": names})
        return processors

    @classmethod
    def ordered_steps(cls, steps: list[Step]) -> list[Step]:
        """The pre-processor's steps in this policy's order."""
        return steps


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Parameters made within have this dtype (norms stay float32): nothing is made twice and converted."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _backbone_name(name: str) -> str:
    """A name in PaliGemma's own file, old or new layout -> ours within `paligemma`."""
    for old, new in (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model.language_model."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name

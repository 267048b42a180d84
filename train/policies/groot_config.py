"""GR00T N1.5's settings: LeRobot's config fields, and the network's sizes, which no config.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgevla.errors import CheckpointError
from edgevla.types import ACTION, STATE

from ..nn.siglip import VisionDims
from ..nn.transformer import TransformerDims
from .config import PolicyFeature
from .flow_config import FlowConfig

PUBLISHED_HEAD: dict[str, Any] = {
    "action_dim": 32,
    "action_horizon": 16,
    "max_state_dim": 64,
    "hidden_size": 1024,
    "input_embedding_dim": 1536,
    "backbone_embedding_dim": 2048,
    "add_pos_embed": True,
    "max_seq_len": 1024,
    "max_num_embodiments": 32,
    "num_target_vision_tokens": 32,
    "use_vlln": True,
    "noise_beta_alpha": 1.5,
    "noise_beta_beta": 1.0,
    "noise_s": 0.999,
    "num_timestep_buckets": 1000,
    "num_inference_timesteps": 4,
    "diffusion_model_cfg": {
        "num_layers": 16,
        "num_attention_heads": 32,
        "attention_head_dim": 48,
        "output_dim": 1024,
        "cross_attention_dim": 2048,
        "dropout": 0.2,
        "interleave_self_attention": True,
    },
    "vl_self_attention_cfg": {
        "num_layers": 4,
        "num_attention_heads": 32,
        "attention_head_dim": 64,
        "dropout": 0.2,
    },
}
PUBLISHED_VLM: dict[str, Any] = {
    "image_token_index": 151669,
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 224,
        "layer_norm_eps": 1e-6,
    },
    "text_config": {
        "model_type": "qwen3",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "vocab_size": 151680,
    },
}
ONLY: dict[str, Any] = {
    "select_layer": -1,
    "use_pixel_shuffle": False,
    "mlp_connector_layers": 1,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm",
    "positional_embeddings": None,
    "attention_bias": True,
}
"""Switches of Eagle's and the action head's configs that change the network, at the only value that is built here."""


@dataclass
class GrootConfig(FlowConfig):
    """LeRobot's fields (0.4, 0.5); many are parsed, kept and unused, as there."""

    type: ClassVar[str] = "groot"
    takes_any_state: ClassVar[bool] = True

    chunk_size: int = 16
    n_action_steps: int = 16
    max_state_dim: int = 64
    max_action_dim: int = 32
    normalization_mapping: dict[str, str] = field(
        default_factory=lambda: {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
    )
    image_size: tuple[int, int] = (224, 224)
    base_model_path: str = "nvidia/GR00T-N1.5-3B"
    tokenizer_assets_repo: str = "lerobot/eagle2hg-processor-groot-n1p5"
    embodiment_tag: str = "new_embodiment"
    tune_llm: bool = False
    tune_visual: bool = False
    tune_projector: bool = True
    tune_diffusion_model: bool = True
    lora_rank: int = 0
    lora_alpha: int = 16
    lora_dropout: float = 0.1
    lora_full_model: bool = False
    optimizer_lr: float = 1e-4
    optimizer_betas: tuple[float, float] = (0.95, 0.999)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 1e-5
    warmup_ratio: float = 0.05
    use_bf16: bool = True
    video_backend: str = "decord"
    balance_dataset_weights: bool = True
    balance_trajectory_weights: bool = True
    dataset_paths: list[str] | None = None
    output_dir: str = "./tmp/gr00t"
    save_steps: int = 1000
    max_steps: int = 10000
    batch_size: int = 32
    dataloader_num_workers: int = 8
    report_to: str = "wandb"
    resume: bool = False

    def validate(self) -> None:
        self.check_sizes("chunk_size", "n_action_steps", "max_state_dim", "max_action_dim")
        if self.input_features and not self.image_features:
            raise CheckpointError("GR00T needs at least one camera among its input features")
        self.check_flow()
        if self.n_action_steps > self.chunk_size:
            raise CheckpointError(
                f"n_action_steps {self.n_action_steps} exceeds chunk_size {self.chunk_size}"
            )
        self.input_features.setdefault(STATE, PolicyFeature("STATE", (self.max_state_dim,)))
        self.output_features.setdefault(ACTION, PolicyFeature("ACTION", (self.max_action_dim,)))
        for what, size, limit in (
            ("state", self.state_dim or 0, self.max_state_dim),
            ("action", self.action_dim, self.max_action_dim),
        ):
            if size > limit:
                raise CheckpointError(f"the {what} has {size} values; this GR00T takes at most {limit}")

    @property
    def chunk_length(self) -> int:
        return min(self.chunk_size, 16)

    @property
    def trains_in_bf16(self) -> bool:
        return self.use_bf16


@dataclass(frozen=True)
class Architecture:
    """The network's sizes, as the published model's own config files name them.

    project: width of a projection behind the language model; None: there is none.
    """

    head: dict[str, Any]
    vision: VisionDims
    text: TransformerDims
    vocabulary: int
    image_token: int
    project: int | None = None

    @classmethod
    def read(cls, model: Mapping[str, Any] | None, vlm: Mapping[str, Any] | None) -> Architecture:
        """model: the base model's config.json. vlm: Eagle's. None: as published.

        Raises:
            CheckpointError: a switch that makes another network of it.
        """
        vlm = vlm or PUBLISHED_VLM
        backbone = (model or {}).get("backbone_cfg") or {}
        head = {**PUBLISHED_HEAD, **((model or {}).get("action_head_cfg") or {})}
        for part in (vlm, head["diffusion_model_cfg"], head["vl_self_attention_cfg"]):
            for name, value in ONLY.items():
                if part.get(name, value) != value:
                    raise CheckpointError(
                        f"GR00T with {name} {part[name]!r} is not supported, only {value!r}"
                    )
        image = vlm.get("force_image_size") or vlm["vision_config"]["image_size"]
        vision = dict(vlm["vision_config"], image_size=image)
        return cls(
            head=head,
            vision=VisionDims.from_hf(vision),
            text=TransformerDims.from_hf(
                {"model_type": "qwen3", **vlm["text_config"]}, depth=backbone.get("select_layer", 12)
            ),
            vocabulary=vlm["text_config"]["vocab_size"],
            image_token=vlm["image_token_index"],
            project=backbone.get("project_to_dim"),
        )

    @property
    def tokens_per_image(self) -> int:
        """One per patch."""
        return self.vision.grid**2

"""X-VLA's settings: LeRobot's config fields, 0.4 to 0.6."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgevla.errors import CheckpointError

from ..processors import Processors
from .config import Features, PolicyFeature
from .flow_config import FlowConfig
from .xvla_actions import ROT6D_STEP, action_space

EMPTY = "observation.images.empty_camera_"


@dataclass
class XVlaConfig(FlowConfig):
    """LeRobot's fields, 0.4 to 0.6."""

    type: ClassVar[str] = "xvla"
    takes_any_state: ClassVar[bool] = True

    chunk_size: int = 32
    n_action_steps: int = 32
    dtype: str = "float32"
    normalization_mapping: dict[str, str] = field(
        default_factory=lambda: {"VISUAL": "IDENTITY", "STATE": "IDENTITY", "ACTION": "IDENTITY"}
    )
    florence_config: dict[str, Any] = field(default_factory=dict)
    tokenizer_name: str = "facebook/bart-large"
    tokenizer_max_length: int = 64
    tokenizer_padding_side: str = "right"
    pad_language_to: str = "max_length"
    hidden_size: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_domains: int = 30
    len_soft_prompts: int = 32
    dim_time: int = 32
    max_len_seq: int = 512
    use_hetero_proj: bool = False
    action_mode: str = "ee6d"
    num_denoising_steps: int = 10
    use_proprio: bool = True
    max_state_dim: int = 32
    max_action_dim: int = 20
    domain_feature_key: str | None = None
    resize_imgs_with_padding: tuple[int, int] | None = None
    num_image_views: int | None = None
    empty_cameras: int = 0
    freeze_vision_encoder: bool = False
    freeze_language_encoder: bool = False
    train_policy_transformer: bool = True
    train_soft_prompts: bool = True
    optimizer_lr: float = 1e-4
    optimizer_betas: tuple[float, float] = (0.9, 0.99)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 0.0
    optimizer_grad_clip_norm: float = 10.0
    optimizer_soft_prompt_lr_scale: float = 1.0
    optimizer_soft_prompt_warmup_lr_scale: float | None = None
    scheduler_warmup_steps: int = 1000
    scheduler_decay_steps: int = 30000
    scheduler_decay_lr: float = 2.5e-6

    def validate(self) -> None:
        self.check_sizes("chunk_size", "n_action_steps", "num_denoising_steps", "num_heads", "hidden_size")
        self.check_sizes("tokenizer_max_length", "num_domains", "max_state_dim", "resize_imgs_with_padding")
        self.check_flow()
        if self.n_action_steps > self.chunk_size:
            raise CheckpointError(
                f"n_action_steps {self.n_action_steps} exceeds chunk_size {self.chunk_size}"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise CheckpointError(f"dtype '{self.dtype}' is unknown; X-VLA runs in float32 or bfloat16")
        if not self.input_features:
            return
        if not self.image_features:
            raise CheckpointError("X-VLA needs at least one camera among its input features")
        if self.use_proprio and self.state_dim is None:
            raise CheckpointError(
                "X-VLA with use_proprio needs observation.state; set use_proprio=false without it"
            )
        height, width = self.resize_imgs_with_padding or (480, 640)
        for i in range(self.empty_cameras):
            self.input_features.setdefault(f"{EMPTY}{i}", PolicyFeature("VISUAL", (3, height, width)))

    @property
    def chunk_length(self) -> int:
        return self.chunk_size

    @property
    def reads_state(self) -> bool:
        return self.use_proprio and super().reads_state

    @property
    def trains_in_bf16(self) -> bool:
        return self.dtype == "bfloat16"

    def in_float32(self) -> XVlaConfig:
        return dataclasses.replace(self, dtype="float32")

    @property
    def n_domains(self) -> int:
        return self.num_domains

    def pose_space(self, processors: Processors) -> str | None:
        """An action space of poses, or the step that turns a rotation's two columns into its axis and angle."""
        if not action_space(self).is_joint:
            return self.action_mode
        return ROT6D_STEP if processors.post_step(ROT6D_STEP) is not None else None

    @property
    def real_cameras(self) -> Features:
        """Cameras without the placeholders, which LeRobot stores among the features and counts again."""
        return {k: f for k, f in self.image_features.items() if not k.startswith(EMPTY)}

    @property
    def labels(self) -> dict[str, int]:
        """The sample's own domain, where `domain_feature_key` names one: it wins over the pipeline's."""
        return {self.domain_feature_key: self.num_domains} if self.domain_feature_key else {}

    @property
    def n_views(self) -> int:
        """Pictures that the network takes, absent ones among them."""
        return max(self.num_image_views or 0, len(self.real_cameras) + self.empty_cameras)

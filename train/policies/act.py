"""ACT: action chunking with transformers (Zhao et al. 2023), as LeRobot computes it.

A DETR-style transformer regresses a whole chunk of actions in one pass from camera features and state. In training
a conditional VAE also sees the actions and yields a latent style; when acting the latent is zero, so `encode`
already is the whole policy and there is no denoise step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevla.errors import CheckpointError
from edgevla.graph import GraphSpec, TensorSpec
from edgevla.types import ACTION, STATE

from ..nn.attention import MultiheadAttention
from ..nn.normalize import Normalizers
from ..nn.resnet import FrozenBatchNorm, ResNet, ResNetShape, feature_map_size
from ..nn.sinusoid import position_map, position_table
from ..processors import Processors
from .base import TINY_CHUNK, Batch, Policy
from .config import PolicyConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


@dataclass
class ActConfig(PolicyConfig):
    """LeRobot's fields; the defaults are those of 0.6."""

    type: ClassVar[str] = "act"

    chunk_size: int = 100
    n_action_steps: int = 100
    normalization_mapping: dict[str, str] = field(
        default_factory=lambda: {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
    )
    vision_backbone: str = "resnet18"
    pretrained_backbone_weights: str | None = "ResNet18_Weights.IMAGENET1K_V1"
    replace_final_stride_with_dilation: bool | int = False
    pre_norm: bool = False
    dim_model: int = 512
    n_heads: int = 8
    dim_feedforward: int = 3200
    feedforward_activation: str = "relu"
    n_encoder_layers: int = 4
    n_decoder_layers: int = 1
    use_vae: bool = True
    latent_dim: int = 32
    n_vae_encoder_layers: int = 4
    temporal_ensemble_coeff: float | None = None
    dropout: float = 0.1
    kl_weight: float = 10.0
    optimizer_lr: float = 1e-5
    optimizer_weight_decay: float = 1e-4
    optimizer_lr_backbone: float = 1e-5

    @property
    def chunk_length(self) -> int:
        return self.chunk_size

    @property
    def trunk(self) -> tuple[str, str | None]:
        return self.vision_backbone, self.pretrained_backbone_weights

    @property
    def ensemble_decay(self) -> float | None:
        return self.temporal_ensemble_coeff

    def validate(self) -> None:
        self.check_sizes(
            "chunk_size", "n_action_steps", "dim_model", "n_heads", "dim_feedforward", "latent_dim"
        )
        self.check_future_state()
        if not 0 <= self.dropout <= 1:
            raise CheckpointError(f"dropout {self.dropout} is outside [0, 1]")
        if not self.vision_backbone.startswith("resnet"):
            raise CheckpointError(
                f"vision_backbone '{self.vision_backbone}' is not a ResNet; ACT needs resnet18 ... resnet152"
            )
        if self.temporal_ensemble_coeff is not None and self.n_action_steps != 1:
            raise CheckpointError(
                f"temporal_ensemble_coeff is set, but n_action_steps is {self.n_action_steps}; ensembling queries the "
                "network at every step, so n_action_steps must be 1"
            )
        if self.n_action_steps > self.chunk_size:
            raise CheckpointError(
                f"n_action_steps {self.n_action_steps} exceeds chunk_size {self.chunk_size}; it must not"
            )
        if self.n_obs_steps != 1:
            raise CheckpointError(
                f"n_obs_steps is {self.n_obs_steps}; ACT sees one observation, so it must be 1"
            )
        if self.feedforward_activation not in ACTIVATIONS:
            raise CheckpointError(
                f"feedforward_activation '{self.feedforward_activation}' cannot be computed; use relu or gelu"
            )
        if self.dim_model % self.n_heads:
            raise CheckpointError(f"dim_model {self.dim_model} is not a multiple of n_heads {self.n_heads}")
        if self.input_features and not self.image_features and self.environment_state_dim is None:
            raise CheckpointError(
                "ACT needs at least one camera or an environment state among its input features"
            )


class Act(Policy):
    policy_type: ClassVar[str] = "act"
    Config: ClassVar[type[PolicyConfig]] = ActConfig
    Prefix: ClassVar[str] = "model."
    tiny: ClassVar[Mapping[str, Any]] = {
        **TINY_CHUNK,
        "dim_model": 64,
        "n_heads": 4,
        "dim_feedforward": 128,
        "n_encoder_layers": 1,
        "pretrained_backbone_weights": None,
        "use_vae": False,
        "dropout": 0.0,
    }

    config: ActConfig

    def __init__(self, config: ActConfig, processors: Processors, trunk: ResNetShape | None = None) -> None:
        super().__init__(config, processors)
        self.normalizers = Normalizers(config, processors)
        dim, n_state, n_env = config.dim_model, config.state_dim, config.environment_state_dim
        if config.use_vae:
            self.vae_encoder = Encoder(config, config.n_vae_encoder_layers)
            self.vae_encoder_cls_embed = nn.Embedding(1, dim)
            if n_state is not None:
                self.vae_encoder_robot_state_input_proj = nn.Linear(n_state, dim)
            self.vae_encoder_action_input_proj = nn.Linear(config.action_dim, dim)
            self.vae_encoder_latent_output_proj = nn.Linear(dim, 2 * config.latent_dim)
            n_tokens = 1 + (n_state is not None) + config.chunk_size
            self.vae_encoder_pos_enc: Tensor
            self.register_buffer("vae_encoder_pos_enc", position_table(n_tokens, dim)[None])
        if config.image_features:
            self.backbone = ResNet(
                trunk or ResNetShape.named(config.vision_backbone),
                FrozenBatchNorm,
                dilate_last=bool(config.replace_final_stride_with_dilation),
            )
            self.encoder_img_feat_input_proj = nn.Conv2d(self.backbone.shape.channels, dim, 1)
        self.encoder = Encoder(config, config.n_encoder_layers)
        self.decoder = Decoder(config)
        if n_state is not None:
            self.encoder_robot_state_input_proj = nn.Linear(n_state, dim)
        if n_env is not None:
            self.encoder_env_state_input_proj = nn.Linear(n_env, dim)
        self.encoder_latent_input_proj = nn.Linear(config.latent_dim, dim)
        n_vectors = 1 + (n_state is not None) + (n_env is not None)
        self.encoder_1d_feature_pos_embed = nn.Embedding(n_vectors, dim)
        self.decoder_pos_embed = nn.Embedding(config.chunk_size, dim)
        self.action_head = nn.Linear(dim, config.action_dim)
        for parameter in [*self.encoder.parameters(), *self.decoder.parameters()]:
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.set_cameras({name: self.camera_size(name) for name in config.image_features})

    @classmethod
    def build(
        cls, config: PolicyConfig, processors: Processors, shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> Act:
        assert isinstance(config, ActConfig)
        if shapes is None or not config.image_features:
            return cls(config, processors)
        trunk = {k.removeprefix("backbone."): s for k, s in shapes.items() if k.startswith("backbone.")}
        return cls(config, processors, ResNetShape.of_weights(trunk))

    @classmethod
    def trunk_shapes(cls, config: PolicyConfig, width: int) -> dict[str, tuple[int, ...]]:
        assert isinstance(config, ActConfig)
        trunk = ResNet(ResNetShape.named(config.vision_backbone, width), FrozenBatchNorm)
        return {f"backbone.{name}": tuple(w.shape) for name, w in trunk.state_dict().items()}

    def trunks(self) -> list[nn.Module]:
        return [self.backbone] if self.config.image_features else []

    # -- network ------------------------------------------------------------------------------------------

    def images(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Normalised cameras (B, 3, H, W) in the network's order; `inputs` holds uint8 (B, H, W, 3) by feature."""
        # Cast first, permute second: TensorRT has no transpose of bytes.
        frames = {name: inputs[name].float() / 255 for name in self.config.image_features}
        return [self.normalizers(name, frame.permute(0, 3, 1, 2)) for name, frame in frames.items()]

    def vectors(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Normalised state (B, S) and environment state (B, E), None where the policy has none."""
        config, env_key = self.config, self.config.environment_state_key
        state = self.normalizers(STATE, inputs[STATE]) if config.state_dim is not None else None
        has_env = config.environment_state_dim is not None
        return state, self.normalizers(env_key, inputs[env_key]) if has_env else None

    def network(
        self, images: list[Tensor], state: Tensor | None, environment: Tensor | None, latent: Tensor | None
    ) -> Tensor:
        """Normalised inputs -> normalised chunk (B, T, A). latent: (B, Z), None for zero."""
        vectors = [self._latent_token(latent, images, state, environment)]  # (B, D) each
        if state is not None:
            vectors.append(self.encoder_robot_state_input_proj(state))
        if environment is not None:
            vectors.append(self.encoder_env_state_input_proj(environment))
        tokens, positions = [torch.stack(vectors, 1)], [self.encoder_1d_feature_pos_embed.weight]
        for image in images:
            features = self.encoder_img_feat_input_proj(self.backbone(image))  # (B, D, h, w)
            tokens.append(features.flatten(2).transpose(1, 2))  # (B, h*w, D)
            positions.append(self._positions(features))
        position = torch.cat(positions, 0)[None]  # (1, L, D)
        memory = self.encoder(torch.cat(tokens, 1), position)
        queries = self.decoder_pos_embed.weight[None]  # (1, T, D)
        return self.action_head(self.decoder(memory, position, queries))

    def _latent_token(self, latent: Tensor | None, images: list[Tensor], *vectors: Tensor | None) -> Tensor:
        if latent is not None:
            return self.encoder_latent_input_proj(latent)
        # A zero latent leaves the bias; its batch size is that of whichever input there is.
        some = next(v for v in (*images, *vectors) if v is not None)
        return self.encoder_latent_input_proj.bias[None].expand(some.shape[0], -1)

    def _positions(self, features: Tensor) -> Tensor:
        """(h * w, D) of a feature map: prepared by `set_cameras`, made on the spot for a size nobody announced."""
        height, width = features.shape[-2:]
        table = getattr(self, f"_pixels_{height}x{width}", None)
        if table is None:
            table = position_map(height, width, self.config.dim_model)
        return table.to(features)

    def set_cameras(self, sizes: Mapping[str, tuple[int, int]], absent: Any = ()) -> None:
        if absent:
            raise CheckpointError(
                f"ACT was trained with camera '{absent[0]}' and cannot do without it; bind it to a live camera"
            )
        super().set_cameras(sizes)
        for height, width in sizes.values():
            h, w = feature_map_size(
                height, width, dilate_last=bool(self.config.replace_final_stride_with_dilation)
            )
            table = position_map(h, w, self.config.dim_model).to(self.device)
            self.register_buffer(f"_pixels_{h}x{w}", table, persistent=False)

    def latent_distribution(
        self, state: Tensor | None, action: Tensor, is_pad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The VAE encoder: normalised state and chunk -> mean and log variance of the latent, (B, Z) each."""
        batch = action.shape[0]
        tokens = [self.vae_encoder_cls_embed.weight[None].expand(batch, -1, -1)]
        if state is not None:
            tokens.append(self.vae_encoder_robot_state_input_proj(state)[:, None])
        tokens.append(self.vae_encoder_action_input_proj(action))
        always = torch.ones(batch, len(tokens) - 1, dtype=torch.bool, device=action.device)
        is_valid = torch.cat([always, ~is_pad], 1)
        encoded = self.vae_encoder(torch.cat(tokens, 1), self.vae_encoder_pos_enc, is_valid)
        mean, log_variance = self.vae_encoder_latent_output_proj(encoded[:, 0]).chunk(2, dim=-1)
        return mean, log_variance

    # -- training -----------------------------------------------------------------------------------------

    def draw(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        if not self.config.use_vae:
            return {}
        action = batch[ACTION]
        shape = (action.shape[0], self.config.latent_dim)
        device = generator.device if generator is not None else action.device
        return {"latent_eps": torch.randn(shape, generator=generator, device=device).to(action.device)}

    def reconstruct(
        self, batch: Batch, draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Predicted normalised chunk, and mean and log variance of the latent (None in eval mode or without VAE)."""
        state, environment = self.vectors(batch)
        mean = log_variance = latent = None
        if self.config.use_vae and self.training:
            action = self.normalizers(ACTION, batch[ACTION])
            mean, log_variance = self.latent_distribution(state, action, batch["action_is_pad"])
            latent = mean + (log_variance / 2).exp() * draws["latent_eps"]
        elif self.training:
            # Zeros through the projection: its weight then has a gradient (zero), which data-parallel training needs.
            latent = batch[ACTION].new_zeros(batch[ACTION].shape[0], self.config.latent_dim)
        return self.network(self.images(batch), state, environment, latent), mean, log_variance

    def loss(self, batch: Batch, draws: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """L1 over the steps that are not padding, plus `kl_weight` times the KL divergence to a standard normal."""
        predicted, mean, log_variance = self.reconstruct(batch, draws)
        error = (self.normalizers(ACTION, batch[ACTION]) - predicted).abs()  # (B, T, A)
        is_valid = ~batch["action_is_pad"]
        n_valid = (is_valid.sum() * error.shape[-1]).clamp(min=1)
        loss = l1 = (error * is_valid[..., None]).sum() / n_valid
        parts = {"l1_loss": l1}
        if mean is not None and log_variance is not None:
            kld = (-0.5 * (1 + log_variance - mean**2 - log_variance.exp())).sum(-1).mean()
            parts["kld_loss"] = kld
            loss = l1 + self.config.kl_weight * kld
        return loss, parts

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The trunk is a group of its own with its own learning rate."""
        trunk = [p for n, p in self.named_parameters() if n.startswith("backbone.") and p.requires_grad]
        others = [p for n, p in self.named_parameters() if not n.startswith("backbone.") and p.requires_grad]
        return [{"params": others}, {"params": trunk, "lr": self.config.optimizer_lr_backbone}]

    # -- graphs -------------------------------------------------------------------------------------------

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        by_feature = self.by_feature(inputs)
        state, environment = self.vectors(by_feature)
        return {"x": self.network(self.images(by_feature), state, environment, None)}

    def decode(self, x: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        return self.normalizers.inverse(ACTION, x)

    def graphs(self) -> dict[str, GraphSpec]:
        config = self.config
        inputs = (*self.camera_specs(), *self.vector_specs())
        chunk = (1, config.chunk_size, config.action_dim)
        x, actions = TensorSpec("x", "float32", chunk), TensorSpec("actions", "float32", chunk)
        return {
            "encode": GraphSpec(inputs, (x,)),
            "decode": GraphSpec((TensorSpec("x", "float32", chunk, "x"),), (actions,)),
        }


class ActLayer(nn.Module):
    """What encoder and decoder layers share: the feed-forward block, dropout, and where the norms stand."""

    norm1: nn.Module
    norm2: nn.Module
    norm3: nn.Module

    def __init__(self, config: ActConfig, n_norms: int) -> None:
        super().__init__()
        dim = config.dim_model
        self.linear1, self.linear2 = (
            nn.Linear(dim, config.dim_feedforward),
            nn.Linear(config.dim_feedforward, dim),
        )
        self.activation = ACTIVATIONS[config.feedforward_activation]
        self.dropout = nn.Dropout(config.dropout)
        self.is_pre_norm = config.pre_norm
        for i in range(1, n_norms + 1):
            setattr(self, f"norm{i}", nn.LayerNorm(dim))

    def residual(self, x: Tensor, norm: nn.Module, block: Callable[[Tensor], Tensor]) -> Tensor:
        """x plus the block's output; normalised before the block (pre-norm) or after the sum (post-norm)."""
        if self.is_pre_norm:
            return x + self.dropout(block(norm(x)))
        return norm(x + self.dropout(block(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        """(..., dim_model) -> the same, before the residual."""
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class EncoderLayer(ActLayer):
    def __init__(self, config: ActConfig) -> None:
        super().__init__(config, 2)
        self.self_attn = MultiheadAttention(config.dim_model, config.n_heads, config.dropout)

    def forward(self, x: Tensor, position: Tensor, is_valid: Tensor | None) -> Tensor:
        # Positions enter queries and keys, never the values.
        x = self.residual(x, self.norm1, lambda y: self.self_attn(y + position, y + position, y, is_valid))
        return self.residual(x, self.norm2, self.feed_forward)


class Encoder(nn.Module):
    def __init__(self, config: ActConfig, n_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(n_layers))
        self.norm = nn.LayerNorm(config.dim_model) if config.pre_norm else nn.Identity()

    def forward(self, x: Tensor, position: Tensor, is_valid: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, position, is_valid)
        return self.norm(x)


class DecoderLayer(ActLayer):
    def __init__(self, config: ActConfig) -> None:
        super().__init__(config, 3)
        self.self_attn = MultiheadAttention(config.dim_model, config.n_heads, config.dropout)
        self.multihead_attn = MultiheadAttention(config.dim_model, config.n_heads, config.dropout)

    def forward(self, x: Tensor, memory: Tensor, position: Tensor, queries: Tensor) -> Tensor:
        x = self.residual(x, self.norm1, lambda y: self.self_attn(y + queries, y + queries, y))
        x = self.residual(
            x, self.norm2, lambda y: self.multihead_attn(y + queries, memory + position, memory)
        )
        return self.residual(x, self.norm3, self.feed_forward)


class Decoder(nn.Module):
    """Starts from zeros; `queries` (1, T, D) are the learned positions of the chunk's steps."""

    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_decoder_layers))
        self.norm = nn.LayerNorm(config.dim_model)

    def forward(self, memory: Tensor, position: Tensor, queries: Tensor) -> Tensor:
        x = torch.zeros_like(queries).expand(memory.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, memory, position, queries)
        return self.norm(x)

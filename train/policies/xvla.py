"""X-VLA: Florence-2 reads the scene, a soft-prompted transformer predicts the clean actions.

    frames, text -> DaViT, BART encoder -> projected tokens, positions added        once per observation
    x_t, proprio, tau -> [actions | tokens | the domain's soft prompts] -> a_hat    per step, all tokens anew

The network predicts the action itself, not a velocity. A step re-mixes the *same* initial noise with the newest
prediction, x_next = tau' * noise + (1 - tau') * a_hat; tau 1 is noise, and the last tau' is 0. Text padding is not
masked: its length is part of the model. Absent views stay in the sequence as zero features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevla.errors import CheckpointError
from edgevla.graph import GraphSpec, TensorSpec
from edgevla.policy import Schedule
from edgevla.types import ACTION, STATE

from ..backbone import backbone_weights, copy_weights, pad_id, read_json
from ..nn.florence import Florence, FlorenceDims, is_newer_layout, published_names
from ..nn.image import resize_with_pad
from ..nn.normalize import Normalizers
from ..processors import Processors, Stats, Step, flatten_stats
from .base import Batch, Policy
from .config import Features, PolicyConfig, PolicyFeature
from .xvla_actions import action_space, rot6d_to_axis_angle

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EMPTY = "observation.images.empty_camera_"
ROT6D_STEP = "xvla_rotation_6d_to_axis_angle"


@dataclass
class XVlaConfig(PolicyConfig):
    """LeRobot's fields, 0.4 to 0.6."""

    type: ClassVar[str] = "xvla"

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
    def real_cameras(self) -> Features:
        """Cameras without the placeholders, which LeRobot stores among the features and counts again (xvla.md X10)."""
        return {k: f for k, f in self.image_features.items() if not k.startswith(EMPTY)}

    @property
    def n_views(self) -> int:
        return max(self.num_image_views or 0, len(self.real_cameras) + self.empty_cameras)


class DomainLinear(nn.Module):
    """y = x @ W[d] + b[d]; each row of `fc` is a flattened (in, out) matrix."""

    def __init__(self, n_domains: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.n_in, self.n_out = n_in, n_out
        self.fc = nn.Embedding(n_domains, n_in * n_out)
        self.bias = nn.Embedding(n_domains, n_out)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.bias.weight)
        self._baked: tuple[Tensor, Tensor] | None = None

    def bake(self, domain: int) -> None:
        w, b = self.fc.weight[domain].detach(), self.bias.weight[domain].detach()
        self._baked = w.view(self.n_in, self.n_out).clone(), b.clone()

    def weights(self, domain: Tensor) -> tuple[Tensor, Tensor]:
        """W (B or 1, in, out) and b (B or 1, 1, out) for domain ids (B,)."""
        if self._baked is not None:
            return self._baked[0][None], self._baked[1][None, None]
        return self.fc(domain).view(-1, self.n_in, self.n_out), self.bias(domain)[:, None]

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        w, b = self.weights(domain)
        return x @ w + b


class SharedLinear(nn.Linear):
    """A plain projection with the domain-aware one's signature."""

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        p = self.dropout if self.training else 0.0
        return self.proj(F.scaled_dot_product_attention(q, k, v, dropout_p=p).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x), approximate="tanh"))))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _Attention(width, heads, dropout)
        self.mlp = _Mlp(width, hidden, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SoftPromptedTransformer(nn.Module):
    """The policy transformer. Its input is split so that what does not change between steps is computed once."""

    def __init__(self, config: XVlaConfig, vlm_width: int, action_width: int) -> None:
        super().__init__()
        width, self.n_prompts = config.hidden_size, config.len_soft_prompts
        self.dim_time, self.action_width = config.dim_time, action_width
        n_proprio = config.max_state_dim if config.use_proprio else 0
        self.blocks = nn.ModuleList(
            _Block(width, config.num_heads, int(width * config.mlp_ratio), dropout=0.1)
            for _ in range(config.depth)
        )
        if config.use_hetero_proj:
            self.vlm_proj: nn.Module = DomainLinear(config.num_domains, vlm_width, width)
            self.aux_visual_proj: nn.Module = DomainLinear(config.num_domains, vlm_width, width)
        else:
            self.vlm_proj, self.aux_visual_proj = (
                SharedLinear(vlm_width, width),
                SharedLinear(vlm_width, width),
            )
        self.pos_emb = nn.Parameter(torch.empty(1, config.max_len_seq, width))
        nn.init.normal_(self.pos_emb, std=0.02)
        self.norm = nn.LayerNorm(width)
        n_in = action_width + n_proprio + config.dim_time
        self.action_encoder = DomainLinear(config.num_domains, n_in, width)
        self.action_decoder = DomainLinear(config.num_domains, width, action_width)
        self.soft_prompt_hub = nn.Embedding(config.num_domains, self.n_prompts * width)
        nn.init.normal_(self.soft_prompt_hub.weight, std=0.02)
        self._baked_prompts: Tensor | None = None

    def bake(self, domain: int) -> None:
        self._baked_prompts = self.soft_prompt_hub.weight[domain].detach().view(1, self.n_prompts, -1).clone()

    def condition(self, vlm: Tensor, aux: Tensor, domain: Tensor, horizon: int) -> Tensor:
        """Encoder output and the other views' tokens -> what every step attends to, positions added."""
        tokens = torch.cat([self.vlm_proj(vlm, domain), self.aux_visual_proj(aux, domain)], dim=1)
        end = horizon + tokens.shape[1]
        if end > self.pos_emb.shape[1]:
            raise CheckpointError(
                f"the sequence has {end} tokens, max_len_seq is {self.pos_emb.shape[1]}; use fewer views or less text"
            )
        return tokens + self.pos_emb[:, horizon:end]

    def encode_proprio(self, proprio: Tensor, domain: Tensor) -> Tensor:
        """(B, P) -> (B, 1, width): its rows of the action encoder, and the encoder's bias."""
        w, b = self.action_encoder.weights(domain)
        return proprio[:, None] @ w[:, self.action_width : self.action_width + proprio.shape[-1]] + b

    def forward(self, x: Tensor, proprio: Tensor, tau: Tensor, tokens: Tensor, domain: Tensor) -> Tensor:
        """x: (B, T, W); proprio: (B, 1, width) as encoded; tau: (B,); tokens as conditioned. Gives (B, T, W)."""
        horizon = x.shape[1]
        w, _ = self.action_encoder.weights(domain)
        time = self._time(tau).to(x.dtype)[:, None]
        actions = (
            x @ w[:, : self.action_width]
            + time @ w[:, -self.dim_time :]
            + proprio
            + self.pos_emb[:, :horizon]
        )
        prompts = self._baked_prompts
        if prompts is None:
            prompts = self.soft_prompt_hub(domain).view(domain.shape[0], self.n_prompts, -1)
        prompts = prompts.expand(x.shape[0], -1, -1)
        h = torch.cat([actions, tokens.to(actions.dtype), prompts], dim=1)
        for block in self.blocks:
            h = block(h)
        return self.action_decoder(self.norm(h[:, :horizon]), domain)

    def _time(self, tau: Tensor) -> Tensor:
        half = self.dim_time // 2
        index = torch.arange(half, dtype=torch.float32, device=tau.device)
        angle = tau.to(torch.float32)[:, None] * torch.exp(index * (-math.log(100.0) / half))
        return torch.cat([angle.cos(), angle.sin()], dim=-1)


class XVla(Policy):
    policy_type: ClassVar[str] = "xvla"
    Config: ClassVar[type[PolicyConfig]] = XVlaConfig
    Prefix: ClassVar[str] = "model."
    rtc_mode: ClassVar[str | None] = "inpaint"
    lora_targets: ClassVar[str | None] = r"transformer\.blocks\..*\.(qkv|proj|fc1|fc2)"

    config: XVlaConfig

    def __init__(self, config: XVlaConfig, processors: Processors) -> None:
        super().__init__(config, processors)
        self.space = action_space(config)
        if self.space.width != 20 and config.action_mode in ("franka_joint7", "so101_bimanual"):
            raise CheckpointError(f"action_mode '{config.action_mode}' needs a network of 20 channels")
        dims = FlorenceDims.from_json(config.florence_config)
        self.vlm = Florence(dims)
        self.transformer = SoftPromptedTransformer(config, dims.width, self.space.width)
        self.normalizers = Normalizers(config, processors)
        step = processors.step("xvla_add_domain_id")
        self.domain = int(step.config.get("domain_id", 0)) if step is not None else 0
        for name, values in (("_mean", IMAGENET_MEAN), ("_std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self._freeze()
        if config.dtype == "bfloat16":
            self.vlm.to(torch.bfloat16)
            self.transformer.to(torch.bfloat16)

    @classmethod
    def from_backbone(cls, folder: str | Path, config: PolicyConfig, processors: Processors) -> XVla:
        """A fresh policy transformer on a Florence-2 folder of the transformers library (either layout)."""
        assert isinstance(config, XVlaConfig)
        folder = Path(folder)
        config.florence_config = config.florence_config or read_json(folder / "config.json")
        found = {name.removeprefix("model."): w for name, w in backbone_weights(folder).items()}
        weights = cls.repair_keys({f"{cls.Prefix}vlm.{name}": w for name, w in found.items()}, config)
        policy = cls(config, processors)
        copy_weights(
            policy.vlm, {n.removeprefix(f"{cls.Prefix}vlm."): w for n, w in weights.items()}, str(folder)
        )
        policy.extra_folders = {"tokenizer": folder}
        return policy

    @classmethod
    def repair_keys(cls, weights: dict[str, Tensor], config: PolicyConfig) -> dict[str, Tensor]:
        """The layout of LeRobot 0.6 under the older names, which every version reads; the tied embedding under one."""
        prefix = f"{cls.Prefix}vlm."
        vlm = {k.removeprefix(prefix): t for k, t in weights.items() if k.startswith(prefix)}
        others = {k: t for k, t in weights.items() if not k.startswith(prefix)}
        if is_newer_layout(list(vlm)):
            vlm = published_names(vlm)
        table, alias = (
            "language_model.model.encoder.embed_tokens.weight",
            "language_model.model.shared.weight",
        )
        shared = vlm.pop(alias, None)
        if shared is not None:
            vlm.setdefault(table, shared)
        bias = "language_model.final_logits_bias"
        if bias not in vlm and table in vlm:
            vlm[bias] = torch.zeros(1, vlm[table].shape[0])
        return {**others, **{prefix + k: t for k, t in vlm.items()}}

    @classmethod
    def default_processors(cls, config: PolicyConfig, stats: Stats) -> Processors:
        assert isinstance(config, XVlaConfig)
        tokenizer = {
            "max_length": config.tokenizer_max_length,
            "task_key": "task",
            "padding_side": config.tokenizer_padding_side,
            "padding": config.pad_language_to,
            "truncation": True,
            "tokenizer_name": config.tokenizer_name,
        }

        def normaliser(features: Features) -> dict[str, Any]:
            listed = {k: {"type": f.type, "shape": list(f.shape)} for k, f in features.items()}
            return {"eps": 1e-8, "features": listed, "norm_map": dict(config.normalization_mapping)}

        everything = {**config.input_features, **config.output_features}
        return Processors(
            pre=[
                Step("rename_observations_processor", {"rename_map": {}}),
                Step("to_batch_processor"),
                Step("tokenizer_processor", tokenizer),
                Step("xvla_image_to_float", {"image_keys": None, "validate_range": True}),
                Step("xvla_imagenet_normalize", {"image_keys": None}),
                Step("xvla_add_domain_id", {"domain_id": 0}),
                Step("device_processor", {"device": "cpu", "float_dtype": None}),
                Step("normalizer_processor", normaliser(everything), flatten_stats(stats)),
            ],
            post=[
                Step("unnormalizer_processor", normaliser(config.output_features), flatten_stats(stats)),
                Step("device_processor", {"device": "cpu", "float_dtype": None}),
            ],
        )

    def _freeze(self) -> None:
        config = self.config
        if config.freeze_vision_encoder:
            self.vlm.vision_tower.requires_grad_(False)
        if config.freeze_language_encoder:
            self.vlm.language_model.requires_grad_(False)
        for name, parameter in self.transformer.named_parameters():
            is_prompt = "soft_prompt" in name
            if (is_prompt and not config.train_soft_prompts) or (
                not is_prompt and not config.train_policy_transformer
            ):
                parameter.requires_grad_(False)

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """A tenth for all that has `vlm` in its name (vlm_proj too, as in the reference); prompts at their scale."""
        config = self.config
        scale = config.optimizer_soft_prompt_warmup_lr_scale
        scale = config.optimizer_soft_prompt_lr_scale if scale is None else scale
        groups: dict[str, list[nn.Parameter]] = {"vlm": [], "soft_prompts": [], "other": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                kind = "vlm" if "vlm" in name else "soft_prompts" if "soft_prompt" in name else "other"
                groups[kind].append(parameter)
        lr, decay = config.optimizer_lr, config.optimizer_weight_decay
        settings = {"vlm": (0.1 * lr, 0.1 * decay), "soft_prompts": (scale * lr, decay), "other": (lr, decay)}
        return [
            {"params": params, "lr": settings[kind][0], "weight_decay": settings[kind][1], "name": kind}
            for kind, params in groups.items()
            if params
        ]

    # -- inputs -------------------------------------------------------------------------------------------

    @property
    def live_cameras(self) -> list[str]:
        return [name for name in super().live_cameras if not name.startswith(EMPTY)]

    def view(self, feature: str, frames: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> a view as the vision tower takes it, by the steps that the pipeline lists."""
        x = frames.float().permute(0, 3, 1, 2) / 255
        for step in self.processors.pre:
            if step.name == "xvla_imagenet_normalize":
                x = (x - self._mean) / self._std
            elif step.name == "xvla_image_scale":
                x = x * 255
            elif step.name == "normalizer_processor":
                x = self.normalizers(feature, x)
        size = self.config.resize_imgs_with_padding
        return resize_with_pad(x, size[0], size[1], place="bottom_right") if size is not None else x

    def views(self, images: Mapping[str, Tensor]) -> list[Tensor]:
        return [self.view(name, images[name]) for name in self.live_cameras]

    def proprio(self, state: Tensor | None, batch: int) -> Tensor:
        """Raw (B, S) -> (B, max_state_dim), normalised, padded, grippers hidden; zero wide without proprioception."""
        if not self.config.use_proprio or state is None:
            return torch.zeros(batch, 0, device=self.device)
        x = self.normalizers(STATE, state)[..., : self.config.max_state_dim]
        return self.space.hide(F.pad(x, (0, self.config.max_state_dim - x.shape[-1])))

    def domains(self, batch: int, given: Tensor | None = None) -> Tensor:
        if given is not None:
            return given.reshape(batch, -1)[:, 0].to(torch.int64)
        return torch.full((batch,), self.domain, dtype=torch.int64, device=self.device)

    def prompt_recipe(self) -> dict[str, Any]:
        step = self.processors.step("tokenizer_processor")
        settings = step.config if step is not None else {}
        return {
            "recipe": "xvla",
            "template": "{task}",
            "clean_task": [],
            "state": None,
            "tokenizer": {
                "file": "tokenizer/tokenizer.json",
                "n_tokens": int(settings.get("max_length", self.config.tokenizer_max_length)),
                "padding": "max_length",
                "padding_side": settings.get("padding_side", "right"),
                "add_bos": True,
                "pad_id": pad_id(self.tokenizer_folder()),
                "truncation": True,
            },
            "default_task": None,
        }

    @property
    def tokenizer_name(self) -> str:
        return super().tokenizer_name or self.config.tokenizer_name

    # -- network ------------------------------------------------------------------------------------------

    def features(self, views: Sequence[Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder output over [first view | text] (B, n + L, C), and the other views' tokens (B, (V - 1) n, C)."""
        dtype = self.vlm.image_projection.dtype
        seen = [self.vlm.image_features(view.to(dtype)) for view in views]
        absent = [torch.zeros_like(seen[0])] * (max(self.config.n_views, len(seen)) - len(seen))
        others = [*seen[1:], *absent]
        aux = torch.cat(others, dim=1) if others else seen[0][:, :0]
        return self.vlm.encode(seen[0], tokens), aux

    def context(
        self, views: Sequence[Tensor], tokens: Tensor, state: Tensor | None, domain: Tensor
    ) -> dict[str, Tensor]:
        vlm, aux = self.features(views, tokens)
        proprio = self.proprio(state, tokens.shape[0]).to(vlm.dtype)
        return {
            "tokens": self.transformer.condition(vlm, aux, domain, self.config.chunk_size),
            "proprio": self.transformer.encode_proprio(proprio, domain),
        }

    def predict(
        self, context: Mapping[str, Tensor], x: Tensor, tau: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """Clean actions (B, T, W), before the action space's output map."""
        domain = self.domains(x.shape[0], extras.get("setting:domain_id"))
        hidden = self.space.hide(x).to(context["tokens"].dtype)
        return self.transformer(hidden, context["proprio"], tau, context["tokens"], domain).to(torch.float32)

    # -- training -----------------------------------------------------------------------------------------

    def draw(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        action = batch[ACTION]
        device = generator.device if generator is not None else action.device
        noise = torch.randn((action.shape[0], *self.sample_shape), generator=generator, device=device)
        u = torch.rand(1, generator=generator, device=device)
        return {"noise": noise.to(action.device), "u": u.to(action.device)}

    def times(self, u: Tensor, batch: int) -> Tensor:
        """One uniform draw (1,) spread evenly over the batch."""
        return (u + torch.arange(batch, device=u.device) / batch) % (1 - 1e-5)

    def target(self, action: Tensor) -> Tensor:
        """Raw (B, T, A) -> normalised, cut or zero-padded to the chunk and the network's width."""
        horizon, width = self.sample_shape
        x = self.normalizers(ACTION, action)[:, :horizon, :width]
        return F.pad(x, (0, width - x.shape[-1], 0, horizon - x.shape[1]))

    def loss(self, batch: Batch, draws: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the action space's terms; steps past the episode's end count like the others, as in LeRobot."""
        predicted, _, _ = self.training_prediction(batch, draws)
        parts = self.space.losses(predicted, self.target(batch[ACTION]))
        return torch.stack(list(parts.values())).sum(), parts

    def training_prediction(self, batch: Batch, draws: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted clean actions, the noisy actions that entered, and the times."""
        target, n = self.target(batch[ACTION]), batch[ACTION].shape[0]
        time = self.times(draws["u"], n)
        t = time[:, None, None]
        x_t = t * draws["noise"] + (1 - t) * target
        domain = self.domains(n, batch.get("domain_id"))
        context = self.context(self.views(batch), batch["tokens"], batch.get(STATE), domain)
        return self.predict(context, x_t, time, {"setting:domain_id": domain}), self.space.hide(x_t), time

    # -- graphs -------------------------------------------------------------------------------------------

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tokens = inputs["prompt:tokens"]
        images = {name: inputs[f"camera:{name}"] for name in self.live_cameras}
        domain = self.domains(tokens.shape[0], inputs.get("setting:domain_id"))
        return self.context(self.views(images), tokens, inputs.get("state"), domain)

    def denoise(
        self,
        context: Mapping[str, Tensor],
        x: Tensor,
        tau: Tensor,
        tau_next: Tensor,
        extras: Mapping[str, Tensor],
    ) -> Tensor:
        predicted = self.predict(context, x, tau, extras)
        if "rtc:weights" in extras:
            predicted = self._inpainted(predicted, extras["rtc:committed"], extras["rtc:weights"])
        t = tau_next[:, None, None]
        return t * extras["noise:initial"] + (1 - t) * predicted

    def _inpainted(self, predicted: Tensor, committed: Tensor, weights: Tensor) -> Tensor:
        """Committed actions (B, T, real), robot units, take the place of the prediction by weight (B, T)."""
        wanted = self.space.inverse_output(self.normalizers(ACTION, committed))
        real = predicted[..., : self.space.real]
        real = real + weights[..., None] * (wanted - real)
        return torch.cat([real, predicted[..., self.space.real :]], dim=-1)

    def decode(self, x: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        actions = self.normalizers.inverse(ACTION, self.space.output(x))
        return rot6d_to_axis_angle(actions) if self._is_pose_output else actions

    @property
    def _is_pose_output(self) -> bool:
        return self.processors.post_step(ROT6D_STEP) is not None

    @property
    def schedule(self) -> Schedule:
        return Schedule("linear", self.config.num_denoising_steps)

    @property
    def sample_shape(self) -> tuple[int, int]:
        return self.config.chunk_size, self.space.width

    def bake(self) -> None:
        """One domain's matrices and prompts in place of the tables of all domains."""
        for module in self.modules():
            if isinstance(module, DomainLinear | SoftPromptedTransformer):
                module.bake(self.domain)

    def n_context_tokens(self) -> int:
        """Image tokens of all views and the text's."""
        size = self.config.resize_imgs_with_padding or self.camera_size(self.live_cameras[0])
        height, width = size
        vision = FlorenceDims.from_json(self.config.florence_config).vision
        for kernel, stride, padding in zip(
            vision["patch_size"], vision["patch_stride"], vision["patch_padding"], strict=True
        ):
            height = (height + 2 * padding - kernel) // stride + 1
            width = (width + 2 * padding - kernel) // stride + 1
        n_views = max(self.config.n_views, len(self.live_cameras))
        return n_views * (1 + height * width) + int(self.prompt_recipe()["tokenizer"]["n_tokens"])

    def graphs(self) -> dict[str, GraphSpec]:
        config, (horizon, width) = self.config, self.sample_shape
        n_tokens = int(self.prompt_recipe()["tokenizer"]["n_tokens"])
        state: tuple[TensorSpec, ...] = ()
        if config.use_proprio:
            state = (TensorSpec("state", "float32", (1, config.state_dim or 0), "state"),)
        dtype = config.dtype
        context = (
            TensorSpec("tokens", dtype, (1, self.n_context_tokens(), config.hidden_size)),
            TensorSpec("proprio", dtype, (1, 1, config.hidden_size)),
        )
        encode = (*self.camera_specs(), TensorSpec("text", "int64", (1, n_tokens), "prompt:tokens"), *state)
        x = TensorSpec("x", "float32", (1, horizon, width), "x")
        rtc: tuple[TensorSpec, ...] = ()
        if not self._is_pose_output:
            rtc = (
                TensorSpec("committed", "float32", (1, horizon, self.space.real), "rtc:committed"),
                TensorSpec("weights", "float32", (1, horizon), "rtc:weights"),
            )
        denoise = (
            x,
            TensorSpec("tau", "float32", (1,), "schedule:tau"),
            TensorSpec("tau_next", "float32", (1,), "schedule:tau_next"),
            TensorSpec("noise", "float32", x.shape, "noise:initial"),
            *(TensorSpec(s.name, s.dtype, s.shape, f"context:{s.name}") for s in context),
            *rtc,
        )
        n_out = 7 if self._is_pose_output else self.space.real
        actions = TensorSpec("actions", "float32", (1, horizon, n_out))
        return {
            "encode": GraphSpec(encode, context),
            "denoise": GraphSpec(denoise, (TensorSpec("x_next", "float32", x.shape),)),
            "decode": GraphSpec((x,), (actions,)),
        }

"""Diffusion Policy (Chi et al. 2023), as LeRobot computes it.

A 1-D U-Net removes noise from a trajectory of actions, conditioned on the features of the last observations. It was
trained on `horizon` steps that begin in the past, with the first observation; `decode` cuts what is past. One graph
does DDPM and DDIM with any number of steps; which is a setting of the deployment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevla.errors import CheckpointError
from edgevla.graph import GraphSpec, TensorSpec
from edgevla.policy import Schedule
from edgevla.types import ACTION, STATE

from ..nn.diffusion import NoiseSchedule, alphas_cumprod
from ..nn.normalize import Normalizers
from ..nn.resize import resize, resize_matrix
from ..nn.resnet import ResNet, ResNetShape, feature_map_size, group_norm
from ..nn.unet1d import FINAL_GROUPS, SpatialSoftmax, Unet1d
from ..processors import Processors
from .base import Batch, Policy
from .config import PolicyConfig

Size = tuple[int, int]
TRUNK_NAMES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""LeRobot keeps the trunk as a plain sequence: index -> torchvision's name."""


@dataclass
class DiffusionConfig(PolicyConfig):
    """LeRobot's fields; the defaults are those of 0.6, which differ from 0.5's (horizon, norm, encoders, weights)."""

    type: ClassVar[str] = "diffusion"

    n_obs_steps: int = 2
    horizon: int = 64
    n_action_steps: int = 32
    normalization_mapping: dict[str, str] = field(
        default_factory=lambda: {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"}
    )
    drop_n_last_frames: int = 7  # type: ignore[misc]  # elsewhere a constant of the class
    vision_backbone: str = "resnet18"
    resize_shape: tuple[int, int] | None = None
    crop_ratio: float = 1.0
    crop_shape: tuple[int, int] | None = None
    crop_is_random: bool = True
    pretrained_backbone_weights: str | None = "ResNet18_Weights.IMAGENET1K_V1"
    use_group_norm: bool = False
    spatial_softmax_num_keypoints: int = 32
    use_separate_rgb_encoder_per_camera: bool = True
    down_dims: tuple[int, ...] = (512, 1024, 2048)
    kernel_size: int = 5
    n_groups: int = 8
    diffusion_step_embed_dim: int = 128
    use_film_scale_modulation: bool = True
    gradient_checkpointing: bool = False
    noise_scheduler_type: str = "DDPM"
    num_train_timesteps: int = 100
    beta_schedule: str = "squaredcos_cap_v2"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    prediction_type: str = "epsilon"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    num_inference_steps: int | None = None
    compile_model: bool = False
    compile_mode: str = "reduce-overhead"
    do_mask_loss_for_padding: bool = False
    optimizer_lr: float = 1e-4
    optimizer_betas: tuple[float, float] = (0.95, 0.999)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 1e-6
    scheduler_name: str = "cosine"
    scheduler_warmup_steps: int = 500

    newer_keys: ClassVar[frozenset[str]] = PolicyConfig.newer_keys | {"gradient_checkpointing"}

    @property
    def observation_indices(self) -> list[int]:
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_indices(self) -> list[int]:
        return list(range(1 - self.n_obs_steps, self.horizon - self.n_obs_steps + 1))

    @property
    def chunk_length(self) -> int:
        return self.horizon

    @property
    def trunk(self) -> tuple[str, str | None]:
        return self.vision_backbone, self.pretrained_backbone_weights

    @property
    def crop(self) -> Size | None:
        """(H, W) of the crop in force: derived from the ratio when images are resized, else `crop_shape`."""
        if self.resize_shape is not None:
            if self.crop_ratio == 1.0:
                return None
            height, width = self.resize_shape
            return int(height * self.crop_ratio), int(width * self.crop_ratio)
        return (self.crop_shape[0], self.crop_shape[1]) if self.crop_shape is not None else None

    def validate(self) -> None:
        self.check_sizes("n_obs_steps", "horizon", "n_action_steps", "down_dims", "kernel_size", "n_groups")
        self.check_sizes("spatial_softmax_num_keypoints", "num_train_timesteps", "num_inference_steps")
        self.check_sizes("resize_shape", "crop_shape")
        self.check_future_state()
        self._validate_unet()
        divisor = 2 ** len(self.down_dims)
        if self.horizon % divisor:
            raise CheckpointError(
                f"horizon {self.horizon} is not a multiple of {divisor} = 2^{len(self.down_dims)} (levels in down_dims)"
            )
        future = self.horizon - self.n_obs_steps + 1
        if self.n_action_steps > future:
            raise CheckpointError(
                f"n_action_steps {self.n_action_steps} exceeds the {future} future steps of horizon {self.horizon} "
                f"with {self.n_obs_steps} observation steps"
            )
        if not self.vision_backbone.startswith("resnet"):
            raise CheckpointError(f"vision_backbone '{self.vision_backbone}' is not a ResNet")
        for name, known in (
            ("noise_scheduler_type", ("DDPM", "DDIM")),
            ("prediction_type", ("epsilon", "sample")),
        ):
            if getattr(self, name) not in known:
                raise CheckpointError(f"{name} '{getattr(self, name)}' is unknown; known: {', '.join(known)}")
        if self.use_group_norm and self.pretrained_backbone_weights is not None:
            raise CheckpointError(
                "use_group_norm replaces the batch norm that pretrained_backbone_weights were trained with; "
                "set one of them off"
            )
        if not 0 < self.crop_ratio <= 1:
            raise CheckpointError(f"crop_ratio {self.crop_ratio} is outside (0, 1]")
        if self.input_features:
            self._validate_features()

    def _validate_unet(self) -> None:
        odd = [d for d in self.down_dims if d % self.n_groups]
        if not self.down_dims or odd or self.down_dims[0] % FINAL_GROUPS:
            raise CheckpointError(
                f"down_dims {self.down_dims} must be multiples of n_groups {self.n_groups}, the first also of "
                f"{FINAL_GROUPS}"
            )
        if self.kernel_size % 2 == 0:
            raise CheckpointError(f"kernel_size {self.kernel_size} must be odd")
        if self.diffusion_step_embed_dim < 4 or self.diffusion_step_embed_dim % 2:
            raise CheckpointError(
                f"diffusion_step_embed_dim {self.diffusion_step_embed_dim} must be even and at least 4"
            )
        if (self.num_inference_steps or 1) > self.num_train_timesteps:
            raise CheckpointError(
                f"num_inference_steps {self.num_inference_steps} exceeds num_train_timesteps {self.num_train_timesteps}"
            )

    def _validate_features(self) -> None:
        if self.state_dim is None:
            raise CheckpointError(f"Diffusion needs '{STATE}' among its input features")
        if not self.image_features and self.environment_state_dim is None:
            raise CheckpointError("Diffusion needs at least one camera or an environment state")
        shapes = {f.shape for f in self.image_features.values()}
        if len(shapes) > 1:
            listed = ", ".join(f"{k} {f.shape}" for k, f in self.image_features.items())
            raise CheckpointError(f"Diffusion needs cameras of one size; these differ: {listed}")
        for name, feature in self.image_features.items():
            crop, size = self.crop, self.resize_shape or feature.shape[1:]
            if crop is not None and (crop[0] > size[0] or crop[1] > size[1]):
                raise CheckpointError(
                    f"crop {crop} does not fit into images {tuple(size)} of camera '{name}'"
                )


class RgbEncoder(nn.Module):
    """Cropped images (B, 3, h, w) -> 2K numbers: trunk, spatial softmax, linear, ReLU."""

    def __init__(self, config: DiffusionConfig, size: Size, shape: ResNetShape) -> None:
        super().__init__()
        trunk = ResNet(shape, group_norm if config.use_group_norm else nn.BatchNorm2d)
        self.backbone = nn.Sequential(*trunk.parts())
        n_keypoints = config.spatial_softmax_num_keypoints
        self.pool = SpatialSoftmax(shape.channels, *feature_map_size(*size), n_keypoints)
        self.out = nn.Linear(2 * n_keypoints, 2 * n_keypoints)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.out(self.pool(self.backbone(images))))


class Diffusion(Policy):
    policy_type: ClassVar[str] = "diffusion"
    Config: ClassVar[type[PolicyConfig]] = DiffusionConfig
    Prefix: ClassVar[str] = "diffusion."
    # Errors of the noise hardly tell of the observation, but in the few steps of much noise; errors of the sample do.
    tiny: ClassVar[Mapping[str, Any]] = {
        "n_obs_steps": 2,
        "horizon": 32,
        "n_action_steps": 15,
        "down_dims": [32, 64],
        "num_train_timesteps": 50,
        "diffusion_step_embed_dim": 32,
        "spatial_softmax_num_keypoints": 16,
        "num_inference_steps": 10,
        "pretrained_backbone_weights": None,
        "use_group_norm": True,
        "noise_scheduler_type": "DDIM",
        "prediction_type": "sample",
    }

    config: DiffusionConfig

    def __init__(
        self, config: DiffusionConfig, processors: Processors, trunk: ResNetShape | None = None
    ) -> None:
        super().__init__(config, processors)
        self.normalizers = Normalizers(config, processors)
        cameras = list(config.image_features)
        if cameras:
            height, width = config.crop or config.resize_shape or self.camera_size(cameras[0])
            shape = trunk or ResNetShape.named(config.vision_backbone)
            n_encoders = len(cameras) if config.use_separate_rgb_encoder_per_camera else 1
            encoders = [RgbEncoder(config, (height, width), shape) for _ in range(n_encoders)]
            separate = config.use_separate_rgb_encoder_per_camera
            self.rgb_encoder = nn.ModuleList(encoders) if separate else encoders[0]
        self.unet = Unet1d(
            config.action_dim,
            self.feature_dim * config.n_obs_steps,
            config.down_dims,
            kernel=config.kernel_size,
            n_groups=config.n_groups,
            step_width=config.diffusion_step_embed_dim,
            has_scale=config.use_film_scale_modulation,
            gradient_checkpointing=config.gradient_checkpointing,
        )
        alphas = alphas_cumprod(
            config.beta_schedule, config.num_train_timesteps, config.beta_start, config.beta_end
        )
        self.noise_schedule = NoiseSchedule(
            alphas,
            predicts_noise=config.prediction_type == "epsilon",
            clip=config.clip_sample_range if config.clip_sample else None,
        )
        self._compiled: list[Any] = []
        self.set_cameras({name: self.camera_size(name) for name in cameras})

    # -- loading ------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls, config: PolicyConfig, processors: Processors, shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> Diffusion:
        assert isinstance(config, DiffusionConfig)
        if shapes is None or not config.image_features:
            return cls(config, processors)
        start = "rgb_encoder.0." if config.use_separate_rgb_encoder_per_camera else "rgb_encoder."
        trunk = {}
        for name, shape in shapes.items():
            index, _, rest = name.removeprefix(f"{start}backbone.").partition(".")
            if name.startswith(f"{start}backbone.") and index in TRUNK_NAMES:
                trunk[f"{TRUNK_NAMES[index]}.{rest}"] = shape
        return cls(config, processors, ResNetShape.of_weights(trunk))

    @classmethod
    def trunk_shapes(cls, config: PolicyConfig, width: int) -> dict[str, tuple[int, ...]]:
        assert isinstance(config, DiffusionConfig)
        if config.use_group_norm and width % 16:
            raise CheckpointError(
                f"--trunk-width {width} does not go with use_group_norm, whose groups have 16 channels"
            )
        norm = group_norm if config.use_group_norm else nn.BatchNorm2d
        trunk = ResNet(ResNetShape.named(config.vision_backbone, width), norm)
        start = "rgb_encoder.0." if config.use_separate_rgb_encoder_per_camera else "rgb_encoder."
        numbers = {name: number for number, name in TRUNK_NAMES.items()}
        shapes = {}
        for name, weight in trunk.state_dict().items():
            part, _, rest = name.partition(".")
            shapes[f"{start}backbone.{numbers[part]}.{rest}"] = tuple(weight.shape)
        return shapes

    @classmethod
    def repair_keys(cls, weights: dict[str, Tensor], config: PolicyConfig) -> dict[str, Tensor]:
        """A compiled U-Net was saved under another name."""
        return {k.replace("diffusion.unet._orig_mod.", "diffusion.unet."): v for k, v in weights.items()}

    def saved_weights(self) -> dict[str, Tensor]:
        weights = super().saved_weights()
        if not self.config.compile_model:
            return weights
        return {k.replace("diffusion.unet.", "diffusion.unet._orig_mod."): v for k, v in weights.items()}

    def trunks(self) -> list[nn.Module]:
        views = []
        for encoder in self._encoders():
            named = zip(TRUNK_NAMES.items(), (0, 1, 4, 5, 6, 7), strict=True)
            views.append(nn.ModuleDict({name: encoder.backbone[i] for (_, name), i in named}))
        return list(views)

    # -- observation --------------------------------------------------------------------------------------

    @property
    def feature_dim(self) -> int:
        """Numbers per observation step: state, 2K per camera, environment state."""
        config = self.config
        n_keypoints = config.spatial_softmax_num_keypoints * len(config.image_features)
        return (config.state_dim or 0) + 2 * n_keypoints + (config.environment_state_dim or 0)

    def set_cameras(self, sizes: Mapping[str, Size], absent: Any = ()) -> None:
        if absent:
            raise CheckpointError(
                f"Diffusion was trained with camera '{absent[0]}' and cannot do without it; bind it to a live camera"
            )
        target = self.config.resize_shape
        for name, (height, width) in sizes.items():
            trained = tuple(self.config.input_features[name].shape[1:])
            if target is None and (height, width) != trained:
                raise CheckpointError(
                    f"camera '{name}' gives {width}x{height} frames, but this policy was trained at "
                    f"{trained[1]}x{trained[0]} and does not resize"
                )
            if target is not None:
                for n_in, n_out in ((height, target[0]), (width, target[1])):
                    # Cloned: the cache's tensor must not move with the module.
                    matrix = resize_matrix(n_in, n_out).clone().to(self.device)
                    self.register_buffer(f"_resize_{n_in}_{n_out}", matrix, persistent=False)
        super().set_cameras(sizes)

    def images(self, name: str, frames: Tensor) -> Tensor:
        """uint8 (..., H, W, 3) -> normalised float (..., 3, H, W), not yet resized."""
        return self.normalizers(name, (frames.float() / 255).movedim(-1, -3))

    def features(self, inputs: Mapping[str, Tensor], crop_offsets: Tensor | None = None) -> Tensor:
        """Raw observations by feature, (M, ...) each -> (M, feature_dim). crop_offsets: see `draw`; None: centre."""
        config = self.config
        parts = [self.normalizers(STATE, inputs[STATE])]
        if config.image_features:
            images = [self._resized(self.images(n, inputs[n])) for n in config.image_features]
            parts.append(self._keypoints(images, crop_offsets))
        if config.environment_state_dim is not None:
            key = config.environment_state_key
            parts.append(self.normalizers(key, inputs[key]))
        return torch.cat(parts, dim=-1)

    def _keypoints(self, images: list[Tensor], crop_offsets: Tensor | None) -> Tensor:
        """One call of an encoder has one crop: all cameras of a shared encoder, each camera of separate ones."""
        encoders = self._encoders()
        if self.config.use_separate_rgb_encoder_per_camera:
            offsets = [None] * len(images) if crop_offsets is None else list(crop_offsets)
            each = zip(encoders, images, offsets, strict=True)
            return torch.cat([encode(self._cropped(image, at)) for encode, image, at in each], dim=-1)
        stacked = torch.stack(images, 1)  # (M, N, 3, H, W)
        offset = None if crop_offsets is None else crop_offsets[0]
        keypoints = encoders[0](self._cropped(stacked.flatten(0, 1), offset))
        return keypoints.unflatten(0, stacked.shape[:2]).flatten(1)

    def _encoders(self) -> list[Any]:
        if not self.config.image_features:
            return []
        return list(self.rgb_encoder) if isinstance(self.rgb_encoder, nn.ModuleList) else [self.rgb_encoder]

    def _resized(self, images: Tensor) -> Tensor:
        target = self.config.resize_shape
        if target is None:
            return images
        matrices = []
        for n_in, n_out in zip(images.shape[-2:], target, strict=True):
            matrix = getattr(self, f"_resize_{n_in}_{n_out}", None)
            matrices.append(resize_matrix(n_in, n_out).to(images) if matrix is None else matrix)
        return resize(images, *matrices)

    def _cropped(self, images: Tensor, offset: Tensor | None) -> Tensor:
        crop = self.config.crop
        if crop is None:
            return images
        height, width = images.shape[-2:]
        if offset is None:
            top, left = round((height - crop[0]) / 2), round((width - crop[1]) / 2)
        else:
            top, left = (int(n) for n in offset)
        return images[..., top : top + crop[0], left : left + crop[1]]

    # -- training -----------------------------------------------------------------------------------------

    def draw(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """`noise`, `timesteps`, and `crop_offsets` (encoder calls, 2): top and left, where training crops at random."""
        config, action = self.config, batch[ACTION]
        device = generator.device if generator is not None else action.device
        shape = (action.shape[0],)
        noise = torch.randn(action.shape, generator=generator, device=device)
        steps = torch.randint(0, config.num_train_timesteps, shape, generator=generator, device=device)
        draws = {"noise": noise.to(action.device), "timesteps": steps.to(action.device)}
        crop = config.crop
        if crop is not None and config.crop_is_random and config.image_features:
            height, width = config.resize_shape or self.camera_size(next(iter(config.image_features)))
            n_calls = len(self._encoders())
            room = (height - crop[0] + 1, width - crop[1] + 1)
            rows = [torch.randint(0, n, (n_calls,), generator=generator, device=device) for n in room]
            # Kept on the host: offsets are slices, and a slice must not wait for a device.
            draws["crop_offsets"] = torch.stack(rows, 1).cpu()
        return draws

    def condition(self, batch: Batch, crop_offsets: Tensor | None = None) -> Tensor:
        """Features of a windowed batch, time-major: (B, n_obs * feature_dim)."""
        n_obs, n_batch = self.config.n_obs_steps, batch[STATE].shape[0]
        flat = {}
        for name, feature in self.config.input_features.items():
            if name in batch:
                value, rank = batch[name], 3 if feature.type == "VISUAL" else 1
                if value.ndim == rank + 1:
                    value = value.unsqueeze(1)  # a window of one step comes without its axis
                flat[name] = value.flatten(0, 1)
        return self.features(flat, crop_offsets).reshape(n_batch, n_obs * self.feature_dim)

    def noisy(self, batch: Batch, draws: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Normalised trajectory (B, horizon, A), and the same with noise added: what the U-Net sees."""
        data = self.normalizers(ACTION, batch[ACTION])
        return data, self.noise_schedule.add_noise(data, draws["noise"], draws["timesteps"])

    def loss(self, batch: Batch, draws: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the predicted noise (or data); padded steps count unless the config masks them."""
        config = self.config
        offsets = draws.get("crop_offsets") if self.training and config.crop_is_random else None
        condition = self.condition(batch, offsets)
        data, noisy = self.noisy(batch, draws)
        predicted = self._network()(noisy, draws["timesteps"], condition)
        target = draws["noise"] if config.prediction_type == "epsilon" else data
        error = (predicted - target) ** 2
        if not config.do_mask_loss_for_padding:
            return error.mean(), {}
        is_valid = ~batch["action_is_pad"]
        n_valid = (is_valid.sum() * error.shape[-1]).clamp(min=1)
        return (error * is_valid[..., None]).sum() / n_valid, {}

    def _network(self) -> Any:
        """The U-Net, compiled in training where the config asks for it."""
        if not (self.config.compile_model and self.training):
            return self.unet
        if not self._compiled:  # in a list, so that it is no sub-module with weights of its own
            self._compiled.append(torch.compile(self.unet, mode=self.config.compile_mode))
        return self._compiled[0]

    # -- graphs -------------------------------------------------------------------------------------------

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"features": self.features(self.by_feature(inputs))}

    def predict(
        self, context: Mapping[str, Tensor], x: Tensor, tau: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        return self.unet(x, tau, context["features"].flatten(1))

    def denoise(
        self,
        context: Mapping[str, Tensor],
        x: Tensor,
        tau: Tensor,
        tau_next: Tensor,
        extras: Mapping[str, Tensor],
    ) -> Tensor:
        output = self.predict(context, x, tau, extras)
        noise, stochastic = extras["noise:step"], extras["setting:stochastic"]
        return self.noise_schedule.step(x, output, tau, tau_next, noise, stochastic)

    def decode(self, x: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        return self.normalizers.inverse(ACTION, x[:, self.config.n_obs_steps - 1 :])

    @property
    def schedule(self) -> Schedule:
        n_train = self.config.num_train_timesteps
        n_steps = self.config.num_inference_steps or n_train
        return Schedule("timesteps", n_steps, n_steps_allowed=(1, n_train), n_train=n_train)

    @property
    def sample_shape(self) -> tuple[int, int]:
        return self.config.horizon, self.config.action_dim

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        default = 1.0 if self.config.noise_scheduler_type == "DDPM" else 0.0
        return {"stochastic": {"dtype": "float32", "default": default, "values": [0.0, 1.0]}}

    def graphs(self) -> dict[str, GraphSpec]:
        config = self.config
        inputs = (*self.camera_specs(), *self.vector_specs())
        n_obs, width = config.n_obs_steps, self.feature_dim
        sample = (1, *self.sample_shape)
        future = (1, config.horizon - n_obs + 1, config.action_dim)
        denoise = (
            TensorSpec("x", "float32", sample, "x"),
            TensorSpec("tau", "float32", (1,), "schedule:tau"),
            TensorSpec("tau_next", "float32", (1,), "schedule:tau_next"),
            TensorSpec("features", "float32", (1, n_obs, width), "context:features"),
            TensorSpec("step_noise", "float32", sample, "noise:step"),
            TensorSpec("stochastic", "float32", (1,), "setting:stochastic"),
        )
        features = TensorSpec("features", "float32", (1, width), history=n_obs)
        return {
            "encode": GraphSpec(inputs, (features,)),
            "denoise": GraphSpec(denoise, (TensorSpec("x_next", "float32", sample),)),
            "decode": GraphSpec(
                (TensorSpec("x", "float32", sample, "x"),), (TensorSpec("actions", "float32", future),)
            ),
        }

"""X-VLA: Florence-2 reads the scene, a soft-prompted transformer predicts the clean actions.

    frames, text -> DaViT, BART encoder -> projected tokens, positions added        once per observation
    x_t, proprio, tau -> [actions | tokens | the domain's soft prompts] -> a_hat    per step, all tokens anew

The network predicts the action itself, not a velocity. A step re-mixes the *same* initial noise with the newest
prediction, x_next = tau' * noise + (1 - tau') * a_hat; tau 1 is noise, and the last tau' is 0. Text padding is not
masked: its length is part of the model. Absent views stay in the sequence as zero features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevla.dataset.stats import IMAGENET
from edgevla.errors import CheckpointError, UsageError
from edgevla.graph import GraphSpec, TensorSpec
from edgevla.policy import Schedule
from edgevla.types import ACTION, STATE

from ..backbone import backbone_weights, copy_weights, pad_id, read_json
from ..nn import commit
from ..nn.florence import Florence, FlorenceDims, is_newer_layout, published_names
from ..nn.flow import shift_time
from ..nn.image import resize_with_pad
from ..nn.normalize import Normalizers
from ..nn.rotation import rot6d_to_axis_angle
from ..nn.soft_prompt import DomainLinear, SoftPromptedTransformer
from ..nn.target_time import TARGET
from ..processors import Processors, Stats, Step, flatten_stats
from .base import TINY_CHUNK, TINY_NORMS, Batch
from .config import Features, PolicyConfig
from .flow import FlowPolicy
from .xvla_actions import ROT6D_STEP, action_space
from .xvla_config import EMPTY, XVlaConfig

DOMAIN_STEP = "xvla_add_domain_id"


class XVla(FlowPolicy):
    policy_type: ClassVar[str] = "xvla"
    Config: ClassVar[type[PolicyConfig]] = XVlaConfig
    Prefix: ClassVar[str] = "model."
    rtc_mode: ClassVar[str | None] = "inpaint"
    shared_draws: ClassVar[frozenset[str]] = frozenset({"u"})
    published_backbone = "microsoft/Florence-2-large"
    backbone_kind = "florence"
    lerobot_optimizer = "xvla-adamw"
    tiny: ClassVar[Mapping[str, Any]] = {
        **TINY_CHUNK,
        "max_state_dim": 8,
        "max_action_dim": 8,
        "hidden_size": 64,
        "depth": 3,
        "num_heads": 4,
        "num_domains": 2,
        "len_soft_prompts": 4,
        "normalization_mapping": TINY_NORMS,
        "tokenizer_max_length": 24,
        "resize_imgs_with_padding": [64, 64],
        "action_mode": "auto",
    }
    lora_targets: ClassVar[str | None] = r"transformer\.blocks\..*\.(qkv|proj|fc1|fc2)"

    config: XVlaConfig
    _mean: Tensor
    _std: Tensor

    def __init__(self, config: XVlaConfig, processors: Processors) -> None:
        super().__init__(config, processors)
        self.space = action_space(config)
        dims = FlorenceDims.from_json(config.florence_config)
        self.vlm = Florence(dims)
        self.transformer = SoftPromptedTransformer(config, dims.width, self.space.width)
        self.normalizers = Normalizers(config, processors)
        step = processors.step(DOMAIN_STEP)
        self.domain = int(step.number("domain_id", 0)) if step is not None else 0
        if config.trained_delay and self._is_pose_output:
            raise CheckpointError(
                f"rtc_training_max_delay is {config.trained_delay}, but this X-VLA's actions leave {ROT6D_STEP} as axis "
                "and angle, which cannot be committed; set rtc_training_max_delay=0"
            )
        if not 0 <= self.domain < config.num_domains:
            raise CheckpointError(
                f"policy_preprocessor.json: domain_id is {self.domain}; "
                f"the policy has domains 0 to {config.num_domains - 1} (num_domains in config.json)"
            )
        for name, values in IMAGENET.items():
            self.register_buffer(f"_{name}", torch.tensor(values).view(3, 1, 1), persistent=False)
        self._freeze()
        self.prepare_one_step(config.hidden_size, self.vlm)
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
                Step(DOMAIN_STEP, {"domain_id": 0}),
                Step("device_processor", {"device": "cpu", "float_dtype": None}),
                Step("normalizer_processor", normaliser(everything), flatten_stats(stats)),
            ],
            post=[
                Step("unnormalizer_processor", normaliser(config.output_features), flatten_stats(stats)),
                Step("device_processor", {"device": "cpu", "float_dtype": None}),
            ],
        )

    @classmethod
    def choose_domain(cls, config: PolicyConfig, processors: Processors, domain: int) -> None:
        step = processors.step(DOMAIN_STEP)
        if step is None or not 0 <= domain < config.n_domains:
            raise UsageError(f"--domain-id {domain}: the policy has domains 0 to {config.n_domains - 1}")
        step.config["domain_id"] = domain

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
        x, is_scaled = frames.float().permute(0, 3, 1, 2) / 255, False
        for step in self.processors.pre:
            keys = step.config.get("image_keys")
            if keys is not None and feature not in keys:
                continue
            if step.name == "xvla_imagenet_normalize":
                x = (x - self._mean) / self._std
            elif step.name == "xvla_image_scale":
                x, is_scaled = x * 255, True
            elif step.name == "xvla_image_to_float" and is_scaled:
                x, is_scaled = x / 255, False
            elif step.name == "normalizer_processor":
                x = self.normalizers(feature, x)
        size = self.config.resize_imgs_with_padding
        return resize_with_pad(x, size[0], size[1], place="bottom_right") if size is not None else x

    def views(self, images: Mapping[str, Tensor]) -> list[Tensor]:
        """Pictures as the network sees them, in its order of cameras."""
        return [self.view(name, images[name]) for name in self.live_cameras]

    def proprio(self, state: Tensor | None, batch: int) -> Tensor:
        """Raw (B, S) -> (B, max_state_dim), normalised, padded, grippers hidden; zero wide without proprioception."""
        if not self.config.use_proprio or state is None:
            return torch.zeros(batch, 0, device=self.device)
        x = self.normalizers(STATE, state)[..., : self.config.max_state_dim]
        return self.space.hide(F.pad(x, (0, self.config.max_state_dim - x.shape[-1])))

    def domains(self, batch: int, given: Tensor | None = None) -> Tensor:
        """(B,) whose prompts and heads are used. given: per sample, where the dataset says."""
        if given is not None:
            return given.reshape(batch, -1)[:, 0].to(torch.int64)
        return torch.full((batch,), self.domain, dtype=torch.int64, device=self.device)

    def prompt_recipe(self) -> dict[str, Any]:
        step = self.processors.step("tokenizer_processor")
        settings = step.config if step is not None else {}
        length = self.config.tokenizer_max_length
        return {
            "recipe": "xvla",
            "template": "{task}",
            "clean_task": [],
            "state": None,
            "tokenizer": {
                "file": "tokenizer/tokenizer.json",
                "n_tokens": int(step.number("max_length", length)) if step is not None else length,
                "padding": self._padding,
                "padding_side": settings.get("padding_side", "right"),
                "add_bos": True,
                "pad_id": pad_id(self.tokenizer_folder()),
                "truncation": True,
            },
            "default_task": None,
        }

    @property
    def _padding(self) -> str:
        step = self.processors.step("tokenizer_processor")
        return str((step.config if step is not None else {}).get("padding", self.config.pad_language_to))

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
        """All that the steps need, computed once per observation."""
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
        is_committed = commit.marked(extras) if self.config.trained_delay else None
        towards = self.towards(extras.get(TARGET, tau))
        tokens, proprio = context["tokens"], context["proprio"]
        return self.transformer(hidden, proprio, tau, tokens, domain, is_committed, towards).float()

    # -- training -----------------------------------------------------------------------------------------

    def draw(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        action = batch[ACTION]
        device = generator.device if generator is not None else action.device
        noise = torch.randn((action.shape[0], *self.sample_shape), generator=generator, device=device)
        u = torch.rand(1, generator=generator, device=device)
        draws = {"noise": noise, "u": u, **self.draw_delay(action.shape[0], generator)}
        return {name: draw.to(action.device) for name, draw in draws.items()}

    def times(self, u: Tensor, batch: int) -> Tensor:
        """One uniform draw (1,) spread evenly over the batch, and shifted where it is trained for one step."""
        even = (u + torch.arange(batch, device=u.device) / batch) % (1 - 1e-5)
        return shift_time(even, self.config.one_step_time_shift)

    def target(self, action: Tensor) -> Tensor:
        """Raw (B, T, A) -> normalised, cut or zero-padded to the chunk and the network's width."""
        horizon, width = self.sample_shape
        x = self.normalizers(ACTION, action)[:, :horizon, :width]
        return F.pad(x, (0, width - x.shape[-1], 0, horizon - x.shape[1]))

    def flow_loss(self, batch: Batch, draws: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the action space's terms; steps past the episode's end count like the others, as in LeRobot, committed
        ones do not."""
        predicted, _, _ = self.training_prediction(batch, draws)
        target, committed = self.target(batch[ACTION]), commit.drawn(draws, predicted.shape[1])
        if committed is not None:  # each term is a mean, so what it does not see does not count
            predicted, target = predicted[~committed][None], target[~committed][None]
        parts = self.space.losses(predicted, target)
        return torch.stack(list(parts.values())).sum(), parts

    def training_prediction(self, batch: Batch, draws: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted clean actions, the noisy actions that entered, and the times."""
        target, n = self.target(batch[ACTION]), batch[ACTION].shape[0]
        time = self.times(draws["u"], n)
        t = time[:, None, None]
        x_t = t * draws["noise"] + (1 - t) * target
        committed, extras = commit.drawn(draws, x_t.shape[1]), {}
        if committed is not None:
            x_t, extras = commit.put(x_t, target, committed), {"rtc:weights": committed.to(x_t.dtype)}
        context, chosen = self.training_context(batch)
        return self.predict(context, x_t, time, {**extras, **chosen}), self.space.hide(x_t), time

    def training_context(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        given = batch.get(self.config.domain_feature_key or "", batch.get("domain_id"))
        domain = self.domains(batch[ACTION].shape[0], given)
        context = self.context(self.views(batch), batch["tokens"], batch.get(STATE), domain)
        return context, {"setting:domain_id": domain}

    def distance(self, x: Tensor, aim: Tensor, counted: Tensor | None) -> Tensor:
        """As its action space scores what is taught."""
        x, aim = (x, aim) if counted is None else (x[counted][None], aim[counted][None])
        return torch.stack(list(self.space.losses(x, self.space.as_taught(aim)).values())).sum()

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
        t = tau_next[:, None, None]
        extras = {TARGET: tau_next, **extras}
        if "rtc:weights" in extras and self.config.trained_delay:
            # Gripper channels enter as they were taught and leave as logits.
            taught = self.normalizers.command(ACTION, extras["rtc:committed"])
            entering, leaving = (
                F.pad(c, (0, x.shape[-1] - c.shape[-1])) for c in (taught, self.space.inverse_output(taught))
            )
            is_committed = extras["rtc:weights"] > 0.5
            predicted = self.predict(context, commit.put(x, entering, is_committed), tau, extras)
            step = t * extras["noise:initial"] + (1 - t) * predicted
            return commit.put(step, leaving, is_committed)
        predicted = self.predict(context, x, tau, extras)
        if "rtc:weights" in extras:
            predicted = self._inpainted(predicted, extras["rtc:committed"], extras["rtc:weights"])
        return t * extras["noise:initial"] + (1 - t) * predicted

    def _inpainted(self, predicted: Tensor, committed: Tensor, weights: Tensor) -> Tensor:
        """Committed actions (B, T, real), robot units, take the place of the prediction by weight (B, T)."""
        wanted = self.space.inverse_output(self.normalizers.command(ACTION, committed))
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
    def baked_numbers(self) -> dict[str, int]:
        return {"domain_id": self.domain}

    @property
    def behind_pipeline(self) -> dict[str, Any]:
        """The steps that are folded into `view` are the pipeline's; the text's length stays."""
        language = [step for step in self.processors.pre if step.name == "tokenizer_processor"]
        bare = Processors(language, [], self.processors.folder)
        return {**super().behind_pipeline, "processors": bare}

    @property
    def schedule(self) -> Schedule:
        n = self.steps_of(self.config.num_denoising_steps)
        return Schedule("linear", n, self.steps_allowed((1, 100)))

    @property
    def sample_shape(self) -> tuple[int, int]:
        return self.config.chunk_size, self.space.width

    def bake(self) -> None:
        """One domain's matrices and prompts in place of the tables of all domains.

        Raises:
            CheckpointError: the text's length differs from prompt to prompt, and is seen by the network.
        """
        if self._padding != "max_length":
            raise CheckpointError(
                f"this X-VLA pads its text by '{self._padding}', so the length of a prompt changes what it does and no "
                "graph of one size is it; train it with pad_language_to=max_length"
            )
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
        dtype = str(self.transformer.pos_emb.dtype).removeprefix("torch.")
        context = (
            TensorSpec("tokens", dtype, (1, self.n_context_tokens(), config.hidden_size)),
            TensorSpec("proprio", dtype, (1, 1, config.hidden_size)),
        )
        encode = (*self.camera_specs(), TensorSpec("text", "int64", (1, n_tokens), "prompt:tokens"), *state)
        x = TensorSpec("x", "float32", (1, horizon, width), "x")
        rtc = () if self._is_pose_output else self.rtc_specs(horizon, self.space.real)
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

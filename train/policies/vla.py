"""What SmolVLA, Pi0 and Pi0.5 share: a prefix run once for its keys and values, an expert that denoises over them.

    prefix   = [camera tokens ..., language, (state)]           encode:  kv of every layer, mask of real tokens
    velocity = expert(x_t, t | kv)                              predict
    x'       = x + (tau_next - tau) * guided(velocity)          denoise: real-time chunking, then Euler
    actions  = unnormalise(cut(x)) (+ state)                    decode

The prefix never sees the suffix, so training runs the same two halves as inference: loss = encode, predict, compare.
A policy adds its configuration, its network, and how it embeds prefix and suffix.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgevla.errors import CheckpointError
from edgevla.graph import GraphSpec, TensorSpec
from edgevla.policy import Schedule
from edgevla.types import ACTION, STATE

from ..backbone import pad_id
from ..nn import commit, flow
from ..nn.image import to_float
from ..nn.masks import bias, block_mask, count_real, position_ids
from ..nn.normalize import Normalizers
from ..nn.target_time import TARGET
from ..nn.transformer import Rope, Transformer
from ..processors import Processors, Stats, Step, normalizing_processors
from .base import TINY_CHUNK, TINY_NORMS, Batch
from .config import PolicyConfig
from .flow import FlowPolicy
from .vla_config import VlaConfig, relative_mask

TINY_NARROW: dict[str, Any] = {
    **TINY_CHUNK,
    "max_state_dim": 8,
    "max_action_dim": 8,
    "normalization_mapping": TINY_NORMS,
}


class FlowVla(FlowPolicy):
    """Base of the flow-matching VLAs. Subclasses build `self.expert` and `self.language`, and embed."""

    config: VlaConfig
    rtc_mode: ClassVar[str | None] = "guided"
    takes_state: ClassVar[bool] = True
    """Whether the network sees the state as numbers."""
    newline_step: ClassVar[str | None] = None
    template: ClassVar[str] = "{task}"
    clean_task: ClassVar[tuple[str, ...]] = ("ensure_newline",)
    """The prompt as LeRobot builds it, and what is done to the task first (edgevla/prompt.py)."""

    def __init__(self, config: VlaConfig, processors: Processors) -> None:
        super().__init__(config, processors)
        self.normalizers = Normalizers(config, processors)
        mask = self.relative_mask(config, processors)
        self.is_relative = mask is not None
        self.relative: Tensor | None
        self.register_buffer("relative", mask, persistent=False)

    # -- what a policy adds -------------------------------------------------------------------------------

    @property
    @abstractmethod
    def language(self) -> Transformer:
        """The stack that the prefix runs through."""

    @property
    @abstractmethod
    def expert(self) -> Transformer:
        """The stack that the actions run through."""

    @abstractmethod
    def fit_image(self, image: Tensor) -> Tensor:
        """float (B, 3, h, w) in 0..1 -> the vision tower's input (B, 3, H, W) in -1..1."""

    @abstractmethod
    def see(self, images: Tensor) -> Tensor:
        """Vision tower and projection: (n, 3, H, W) -> (n, tokens, width), not scaled."""

    @abstractmethod
    def embed_prefix(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, list[bool]]:
        """Prefix embeddings (B, P, width), which are real bool (B, P), which start a block."""

    @abstractmethod
    def prefix_tokens(self, cameras: Sequence[str], n_tokens: int) -> int:
        """P for these cameras and this many prompt tokens."""

    @abstractmethod
    def time_rows(self, embedded: Tensor) -> dict[str, Tensor]:
        """Everything that depends on the time alone, by name: float32 (B, ...). embedded: the time, (B, width)."""

    @abstractmethod
    def velocity(
        self,
        context: Mapping[str, Tensor],
        x: Tensor,
        rows: Mapping[str, Tensor],
        is_committed: Tensor | None = None,
    ) -> Tensor:
        """The expert alone. rows: as from `time`. is_committed: bool (B, T), actions that take the clean rows."""

    @property
    def expert_every(self) -> int:
        """The expert has a layer beside every n-th one of the language model; plain: beside each."""
        return 1

    def adapt_actions(self, actions: Tensor) -> Tensor:
        """Normalised actions -> the network's own convention; identity but for SmolVLA's Aloha switch."""
        return actions

    def restore_actions(self, actions: Tensor) -> Tensor:
        """What a checkpoint's own convention of joints becomes again, (B, T, A)."""
        return actions

    # -- training -----------------------------------------------------------------------------------------

    def draw(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        n, device = len(batch[ACTION]), batch[ACTION].device
        source = generator.device if generator is not None else torch.device("cpu")
        shape = (n, self.config.chunk_size, self.config.max_action_dim)
        noise = torch.randn(shape, generator=generator, device=source)
        time = flow.shift_time(self.draw_time(n, generator), self.config.one_step_time_shift)
        draws = {"noise": noise, "time": time, **self.draw_delay(n, generator)}
        return {name: draw.to(device) for name, draw in draws.items()}

    def draw_time(self, n: int, generator: torch.Generator | None) -> Tensor:
        """(n,) times to train at."""
        return flow.draw_time(n, generator)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """A raw batch by the graphs' sources. Cameras that the batch lacks are left out."""
        inputs: dict[str, Tensor] = {}
        columns = []
        for i, feature in enumerate(self.config.image_features):
            if feature in batch and feature not in self.absent_cameras:
                frames = batch[feature]
                inputs[f"camera:{feature}"] = frames[:, -1] if frames.ndim == 5 else frames
                columns.append(i)
        if "camera_present" in batch:
            inputs["camera_present"] = batch["camera_present"][:, columns]
        if STATE in batch:
            state = batch[STATE]
            inputs["state"] = state[:, -1] if state.ndim == 3 else state
        inputs["prompt:tokens"], inputs["prompt:mask"] = batch["tokens"], batch["token_mask"]
        return inputs

    def training_context(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self.encode(self.inputs(batch)), {}

    def squared_error(self, batch: Batch, draws: Mapping[str, Tensor]) -> Tensor:
        """(B, T, W): (target velocity - predicted)^2, padded action dimensions included, committed actions too."""
        inputs, time = self.inputs(batch), draws["time"]
        actions = self.to_network(batch[ACTION], inputs.get("state"))
        x, target = flow.path(actions, draws["noise"], time)
        extras = {}
        committed = commit.drawn(draws, x.shape[1])
        if committed is not None:
            x, extras = commit.put(x, actions, committed), {"rtc:weights": committed.to(x.dtype)}
        return (target - self.predict(self.encode(inputs), x, time, extras)).square()

    # -- the three methods --------------------------------------------------------------------------------

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        embeddings, real, starts = self.embed_prefix(inputs)
        rope = self.language.rope(position_ids(real))
        kv = self.language.keys_values(
            embeddings, rope, bias(block_mask(real, starts)), every=self.expert_every
        )
        context = {"kv": kv, "prefix_mask": real}
        if self.is_relative:
            context["raw_state"] = inputs["state"]
        return context

    def predict(
        self, context: Mapping[str, Tensor], x: Tensor, tau: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        rows = {k.removeprefix("time:"): v for k, v in extras.items() if k.startswith("time:")}
        is_committed = commit.marked(extras) if self.config.trained_delay else None
        rows = rows or self._time_rows(tau, extras.get(TARGET, tau))
        return self.velocity(context, x, rows, is_committed).to(torch.float32)

    def time(self, tau: Tensor) -> dict[str, Tensor]:
        """`time_rows`; where actions may be committed also those of the clean time, 0, as `clean_<name>`. A policy that
        knows of targets has one step, to the clean time."""
        return self._time_rows(tau, torch.zeros_like(tau))

    def _time_rows(self, tau: Tensor, target: Tensor) -> dict[str, Tensor]:
        rows = self.time_rows(self.time_embedding(tau, target))
        if not self.config.trained_delay:
            return rows
        zero = torch.zeros_like(tau)
        clean = self.time_rows(self.time_embedding(zero, zero))
        return {**rows, **{f"clean_{name}": row for name, row in clean.items()}}

    def time_embedding(self, tau: Tensor, target: Tensor) -> Tensor:
        """float32 (B, width of the expert). target: where the step leads, for a policy that knows of it."""
        c = self.config
        embedded = flow.time_embedding(tau, self.expert.dims.width, c.min_period, c.max_period)
        return embedded if self.target_time is None else embedded + self.target_time(target)

    def denoise(
        self,
        context: Mapping[str, Tensor],
        x: Tensor,
        tau: Tensor,
        tau_next: Tensor,
        extras: Mapping[str, Tensor],
    ) -> Tensor:
        extras = {TARGET: tau_next, **extras}
        if "rtc:weights" not in extras:
            return flow.euler(x, self.predict(context, x, tau, extras), tau, tau_next)
        committed = self.to_network(extras["rtc:committed"], context.get("raw_state"), is_command=True)
        if self.config.trained_delay:
            is_committed = extras["rtc:weights"] > 0.5
            x = commit.put(x, committed, is_committed)
            v = self.predict(context, x, tau, extras)
            return commit.put(flow.euler(x, v, tau, tau_next), committed, is_committed)
        v = self.predict(context, x, tau, extras)
        v = flow.guide(x, v, tau, committed, extras["rtc:weights"], extras["rtc:max_guidance"])
        return flow.euler(x, v, tau, tau_next)

    def decode(self, x: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        actions = self.restore_actions(x[..., : self.config.action_dim])
        actions = self.normalizers.inverse(ACTION, actions)
        return actions + self.relative_offset(extras["state"]) if self.is_relative else actions

    def to_network(self, actions: Tensor, state: Tensor | None, *, is_command: bool = False) -> Tensor:
        """Robot units (B, T, A) -> normalised and padded (B, T, W): the inverse of `decode`. state: raw (B, S).

        is_command: what the robot was given, not what it was taught (`Normalizer.command`).
        """
        if self.is_relative:
            if state is None:
                raise CheckpointError(f"{self.policy_type} with relative actions needs '{STATE}'")
            actions = actions - self.relative_offset(state)
        normalize = self.normalizers.command if is_command else self.normalizers
        actions = self.adapt_actions(normalize(ACTION, actions))
        return pad_last(actions, self.config.max_action_dim)

    def relative_offset(self, state: Tensor) -> Tensor:
        """What a relative action is relative to: the state on the masked dimensions, (B, 1, A)."""
        assert self.relative is not None
        return (state[:, : self.config.action_dim] * self.relative)[:, None]

    # -- prefix parts -------------------------------------------------------------------------------------

    def cameras_in(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """Features of the cameras that `inputs` holds, in the network's order.

        Raises:
            CheckpointError: none at all.
        """
        found = [name for name in self.config.image_features if f"camera:{name}" in inputs]
        if not found:
            raise CheckpointError(
                f"{self.policy_type} needs at least one of its cameras: {', '.join(self.config.image_features)}"
            )
        return found

    def network_images(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """One (B, 3, H, W) in -1..1 per camera in `inputs`, as they enter the vision tower."""
        images = []
        for name in self.cameras_in(inputs):
            image = self.normalizers(name, to_float(inputs[f"camera:{name}"]))
            images.append(self.fit_image(image))
        return images

    def image_tokens(self, inputs: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per camera: tokens (B, K, width) and which are real (B, K). Images of one size share a pass."""
        images = self.network_images(inputs)
        batch, n_cameras = images[0].shape[0], len(images)
        if len({image.shape[1:] for image in images}) == 1:
            seen = self.see(torch.stack(images, dim=1).flatten(0, 1))
            tokens = list(seen.unflatten(0, (batch, n_cameras)).unbind(1))
        else:
            tokens = [self.see(image) for image in images]
        present = inputs.get("camera_present")
        if present is None:
            present = torch.ones(batch, n_cameras, dtype=torch.bool, device=images[0].device)
        return tokens, [present[:, i, None].expand(batch, t.shape[1]) for i, t in enumerate(tokens)]

    def network_state(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Normalised and padded, (B, max_state_dim)."""
        if "state" not in inputs:
            raise CheckpointError(f"{self.policy_type} needs '{STATE}'")
        return pad_last(self.normalizers(STATE, inputs["state"]), self.config.max_state_dim)

    def after_prefix(self, real: Tensor, starts: list[bool]) -> tuple[Rope, Tensor]:
        """RoPE and bias of a suffix behind a prefix. real: (B, P); starts: which suffix tokens start a block."""
        n, n_prefix = real.shape
        ones = torch.ones(n, len(starts), dtype=torch.bool, device=real.device)
        sees_prefix = real[:, None].expand(n, len(starts), n_prefix)
        positions = count_real(real) + torch.arange(len(starts), device=real.device)[None]
        allowed = torch.cat([sees_prefix, block_mask(ones, starts)], dim=2)
        return self.expert.rope(positions), bias(allowed)

    @property
    def behind_pipeline(self) -> dict[str, Any]:
        return {**super().behind_pipeline, "is_relative": False}

    # -- signatures ---------------------------------------------------------------------------------------

    def context_specs(self) -> tuple[TensorSpec, ...]:
        """What `encode` hands to every step."""
        dims, config = self.expert.dims, self.config
        n = self.prefix_tokens(self.live_cameras, self.n_prompt_tokens)
        dtype = str(self.language.dtype).removeprefix("torch.")
        specs = [
            TensorSpec("kv", dtype, (dims.depth, 2, 1, dims.kv_heads, n, dims.head_dim)),
            TensorSpec("prefix_mask", "bool", (1, n)),
        ]
        if self.is_relative:
            specs.append(TensorSpec("raw_state", "float32", (1, config.state_dim or 0)))
        return tuple(specs)

    def graphs(self) -> dict[str, GraphSpec]:
        config, n_tokens = self.config, self.n_prompt_tokens
        cameras = self.camera_specs()
        state = TensorSpec("state", "float32", (1, config.state_dim or 0), "state")
        encode = [
            *cameras,
            TensorSpec("camera_present", "bool", (1, len(cameras)), "camera_present"),
            TensorSpec("tokens", "int64", (1, n_tokens), "prompt:tokens"),
            TensorSpec("token_mask", "bool", (1, n_tokens), "prompt:mask"),
            *([state] if self.takes_state or self.is_relative else []),
        ]
        context = self.context_specs()
        with torch.no_grad():
            rows = self.time(torch.ones(1, device=self.device))
        times = tuple(TensorSpec(k, "float32", tuple(v.shape)) for k, v in rows.items())
        x = TensorSpec("x", "float32", (1, config.chunk_size, config.max_action_dim), "x")
        tau = TensorSpec("tau", "float32", (1,), "schedule:tau")
        denoise = [
            x,
            tau,
            TensorSpec("tau_next", "float32", (1,), "schedule:tau_next"),
            *(dataclasses.replace(s, source=f"context:{s.name}") for s in context),
            *(dataclasses.replace(s, source=f"time:{s.name}") for s in times),
            *self.rtc_specs(config.chunk_size, config.action_dim),
        ]
        actions = TensorSpec("actions", "float32", (1, config.chunk_size, config.action_dim))
        return {
            "encode": GraphSpec(tuple(encode), context),
            "time": GraphSpec((tau,), times),
            "denoise": GraphSpec(tuple(denoise), (TensorSpec("x_next", "float32", x.shape),)),
            "decode": GraphSpec((x, state) if self.is_relative else (x,), (actions,)),
        }

    @property
    def schedule(self) -> Schedule:
        n = self.steps_of(self.config.denoise_steps)
        return Schedule("linear", n, n_steps_allowed=self.steps_allowed((1, max(100, n))))

    @property
    def sample_shape(self) -> tuple[int, int]:
        return self.config.chunk_size, self.config.max_action_dim

    @property
    def live_cameras(self) -> list[str]:
        """LeRobot's `empty_camera_<i>` stand for cameras that nobody has."""
        return [c for c in super().live_cameras if "observation.images.empty_camera_" not in c]

    # -- language -----------------------------------------------------------------------------------------

    @property
    def n_prompt_tokens(self) -> int:
        """Tokens that a prompt is padded to."""
        step = self.processors.step("tokenizer_processor")
        length = self.config.tokenizer_max_length
        return int(step.number("max_length", length)) if step else length

    @property
    def tokenizer_name(self) -> str:
        return super().tokenizer_name or self.published_backbone or ""

    def prompt_recipe(self) -> dict[str, Any]:
        step = self.processors.step("tokenizer_processor")
        settings = step.config if step else {}
        return {
            "recipe": self.policy_type,
            "template": self.template,
            "clean_task": list(self.clean_task),
            "state": self.prompt_state(),
            "tokenizer": {
                "file": "tokenizer/tokenizer.json",
                "n_tokens": self.n_prompt_tokens,
                "padding": "max_length",
                "padding_side": settings.get("padding_side", "right"),
                "add_bos": True,
                "pad_id": pad_id(self.tokenizer_folder()),
                "truncation": bool(settings.get("truncation", True)),
            },
            "default_task": None,
        }

    def prompt_state(self) -> dict[str, Any] | None:
        """How the state is written into the prompt; None where it is not."""
        return None

    @classmethod
    def default_processors(cls, config: PolicyConfig, stats: Stats) -> Processors:
        """rename, to_batch, newline, tokenizer, device, normalizer; and back."""
        assert isinstance(config, VlaConfig)
        processors = normalizing_processors(config, stats)
        rename, to_batch, device, normalizer = processors.pre
        processors.pre = [rename, to_batch, *cls.language_steps(config), device, normalizer]
        return processors

    @classmethod
    def language_steps(cls, config: VlaConfig) -> list[Step]:
        """The steps of a saved pipeline that make tokens of a task."""
        newline = [Step(cls.newline_step)] if cls.newline_step else []
        return [*newline, cls.tokenizer_step(config)]

    @classmethod
    def tokenizer_step(cls, config: VlaConfig) -> Step:
        """The tokenizing one of them."""
        settings = {
            "max_length": config.tokenizer_max_length,
            "task_key": "task",
            "padding_side": "right",
            "padding": "max_length",
            "truncation": True,
            "tokenizer_name": cls.published_backbone,
        }
        return Step("tokenizer_processor", settings)

    @classmethod
    def relative_mask(cls, config: PolicyConfig, processors: Processors) -> Tensor | None:
        return relative_mask(config, processors)


def pad_last(x: Tensor, width: int) -> Tensor:
    """Zeros on the right of the last axis."""
    return nn.functional.pad(x, (0, width - x.shape[-1]))


def freeze(*modules: nn.Module) -> None:
    """No gradients from here on."""
    for module in modules:
        module.requires_grad_(False)

"""What every policy is: a loss, and three graphs (`encode`, `denoise`, `decode`) that one sampler walks.

A policy file tells its whole story: configuration with LeRobot's field names, network, loss, the three methods.
Written once, here: sampling (edgevla.policy.Sampler over the torch methods), the hooks by which checkpoints are
loaded and saved, and the signature from which the exporter traces.

Everything is raw at the door: images uint8 (B, H, W, 3) RGB, state and actions in robot units. Normalisation,
resizing and padding happen inside, so what was trained is what is exported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from edgevla.errors import CheckpointError, UsageError
from edgevla.graph import GraphSpec, TensorSpec
from edgevla.policy import Sampler, Schedule
from edgevla.prompt import PromptBuilder
from edgevla.types import STATE

from ..backbone import tokenizer_folder
from ..nn import commit
from ..nn.recompute import Recomputed
from ..processors import Processors, Stats, normalizing_processors
from .config import PolicyConfig

Batch = Mapping[str, Any]
"""Raw training batch, batch first. Keys:

    <camera feature>         uint8 (B, H, W, 3); with an observation window (B, n_obs, H, W, 3)
    observation.state        float32 (B, S), robot units; with a window (B, n_obs, S)
    observation.environment_state  the same
    action                   float32 (B, T, A), robot units;   action_is_pad  bool (B, T)
    tokens, token_mask       int64, bool (B, L): policies with a prompt recipe
    camera_present           bool (B, N), optional: cameras in the order of `config.image_features`
    <label of the config>    whole numbers (B,) or (B, 1), where the dataset has it
    domain_id                int64 (B,), optional, X-VLA only: else the domain of the pipeline
"""

TINY_CHUNK: dict[str, Any] = {"chunk_size": 30, "n_action_steps": 15}
TINY_NORMS = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MIN_MAX"}
"""Parts of `Policy.tiny`. Demonstrations of the tests only shake the wrist's roll: by its deviation, that noise would be
as loud as what is to be learned."""


class Policy(nn.Module, ABC):
    """Base of all policies. Subclasses set `policy_type` and `Config` and write the methods marked abstract."""

    policy_type: ClassVar[str]
    Config: ClassVar[type[PolicyConfig]]
    Prefix: ClassVar[str] = "model."
    """Prefix of this policy's keys in LeRobot's `model.safetensors`."""
    needs_every_camera: ClassVar[bool] = False
    """Whether an export refuses a robot that lacks a camera of the config: the network runs, but acts otherwise."""
    published_backbone: ClassVar[str | None] = None
    """Hub id of the vision-language model that it is built on, which `from_backbone` takes; plain: there is none."""
    backbone_kind: ClassVar[str | None] = None
    """Which of the tiny models in train/tiny.py stands for it."""
    unfrozen: ClassVar[Mapping[str, Any]] = {}
    """Fields of the config that leave nothing of the backbone frozen, for a run that starts from nothing."""
    lora_targets: ClassVar[str | None] = None
    """Layers that usually get LoRA factors, as a pattern over our module names; plain: the user must name them."""
    lerobot_optimizer: ClassVar[str | None] = None
    """LeRobot's name of an optimizer that it has for this policy alone; plain: AdamW and the like by their own names."""
    tiny: ClassVar[Mapping[str, Any]] = {}
    """Fields of the config (`--set`) for a policy that trains on a laptop in minutes, on a tiny backbone
    (train/tiny.py) where it has one: for tests and benchmarks."""

    def __init__(self, config: PolicyConfig, processors: Processors) -> None:
        super().__init__()
        self.config = config
        self.processors = processors
        self.camera_sizes: dict[str, tuple[int, int]] = {}
        """Feature name -> (H, W) as the camera delivers, set by `set_cameras` before export; empty: config's shapes."""
        self.absent_cameras: frozenset[str] = frozenset()
        self.config_keys: tuple[str, ...] | None = None
        """Keys of the `config.json` that this policy came from: saving writes the same set. None: a fresh policy."""
        self.config_extras: dict[str, Any] = {}
        """What that file said under keys of other LeRobot versions that change nothing here."""
        self.is_adapted = False
        """Whether LoRA factors stand beside its weights (train/lora.py)."""
        self.extra_folders: dict[str, Path] = {}
        """Sub-folder name -> folder that `save_policy` copies beside the weights (`tokenizer`, `vlm_config`, ...).
        Those of `processors.folder`, where the checkpoint was read, are copied anyway."""

    # -- the policy's story -------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, batch: Batch, draws: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss of a raw batch, and its parts by LeRobot's log names. Randomness comes in `draws`."""

    @abstractmethod
    def draw(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The random numbers that one `loss` needs (`noise`, `time`, `latent_eps`, ...), on the batch's device."""

    @abstractmethod
    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Context of one moment. `inputs` is keyed by source (docs/formats.md): `camera:<feature>`, `state`, ..."""

    def predict(
        self, context: Mapping[str, Tensor], x: Tensor, tau: Tensor, extras: Mapping[str, Tensor]
    ) -> Tensor:
        """The network alone at time `tau` (B,): velocity, epsilon or action, normalised, shape of x."""
        raise TypeError(f"{self.policy_type} has no denoise step")

    def time(self, tau: Tensor) -> dict[str, Tensor]:
        """What depends on the time alone, by name, for policies with a `time` graph: (B,) -> float32 (B, ...)."""
        raise TypeError(f"{self.policy_type} has no time graph")

    def denoise(
        self,
        context: Mapping[str, Tensor],
        x: Tensor,
        tau: Tensor,
        tau_next: Tensor,
        extras: Mapping[str, Tensor],
    ) -> Tensor:
        """One solver step, integrator and guidance inside. `extras` is keyed by source (`noise:step`, `rtc:*`, ...)."""
        raise TypeError(f"{self.policy_type} has no denoise step")

    @abstractmethod
    def decode(self, x: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        """Normalised chunk -> (B, T, A) robot units, from the observation's moment on. `extras`: `state` if declared."""

    @abstractmethod
    def graphs(self) -> dict[str, GraphSpec]:
        """Signature of `encode`, `denoise` (absent for ACT), `decode`, and `time` where the policy has it; batch 1."""

    @property
    def schedule(self) -> Schedule | None:
        """The times that `denoise` walks; None: the policy does not denoise."""
        return None

    @property
    def sample_shape(self) -> tuple[int, int] | None:
        """(T, W) of the running sample x; None where `encode` yields it."""
        return None

    rtc_mode: ClassVar[str | None] = None
    """`guided`, `inpaint` or None (docs/formats.md#real-time-chunking): what it does untrained."""

    @property
    def rtc_kind(self) -> str | None:
        """`rtc_mode`, or `trained` where training has shown it committed beginnings (train/nn/commit.py); None also for
        one of future states, whose chunks begin behind all that is committed."""
        if self.config.future_state_max_offset:
            return None
        return "trained" if self.config.trained_delay else self.rtc_mode

    def draw_delay(self, n: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        """`delay`, int64 (n,), of a policy that is trained for committed beginnings; nothing for others."""
        longest = self.config.trained_delay
        return {"delay": commit.draw_delay(n, longest, generator)} if longest else {}

    @property
    def pose_space(self) -> str | None:
        """What makes the actions end-effector poses, which no joint bus can follow; None where they are joints."""
        return self.config.pose_space(self.processors)

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The manifest's `settings` block: name -> {dtype, default, values}."""
        return {}

    def prompt_recipe(self) -> dict[str, Any] | None:
        """The manifest's `prompt` block, or None for policies without language."""
        return None

    @property
    def tokenizer_name(self) -> str:
        """Hub id or folder of the tokenizer, where the checkpoint brings none."""
        step = self.processors.step("tokenizer_processor")
        return str((step.config.get("tokenizer_name") if step else None) or "")

    def tokenizer_folder(self) -> Path:
        """Where this policy's tokenizer.json lies on this machine.

        Raises:
            CheckpointError: it is nowhere.
        """
        return tokenizer_folder(self.processors, self.extra_folders, self.tokenizer_name)

    def prompt_builder(self) -> PromptBuilder:
        """The host half of this policy: tasks (and states) to tokens. Only for policies with a recipe."""
        recipe = self.prompt_recipe()
        assert recipe is not None
        recipe["tokenizer"]["file"] = "tokenizer.json"
        return PromptBuilder.from_recipe(recipe, self.tokenizer_folder())

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the published preset, trainable parameters only."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    # -- loading and saving (train/checkpoint.py) ---------------------------------------------------------

    @classmethod
    def build(
        cls, config: PolicyConfig, processors: Processors, shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> Policy:
        """The module before its weights arrive. `shapes`: those of the checkpoint's weights (our names, after
        `repair_keys`), for sizes that no config holds; None for a fresh policy."""
        return cls(config, processors)

    @classmethod
    def from_backbone(cls, folder: str | Path, config: PolicyConfig, processors: Processors) -> Policy:
        """A fresh policy on its backbone's own folder (config.json, weights, tokenizer); the rest is random.

        Raises:
            CheckpointError: the folder is another model's. UsageError: this policy has no backbone.
        """
        raise UsageError(
            f"{folder} is a backbone, not a LeRobot policy; a policy of type '{cls.policy_type}' cannot start from one"
        )

    @classmethod
    def trunk_shapes(cls, config: PolicyConfig, width: int) -> dict[str, tuple[int, ...]]:
        """Shapes for `build` that give a fresh policy a narrower vision trunk: `width` channels in its stem.

        Raises:
            CheckpointError: this policy has no trunk of its own.
        """
        raise CheckpointError(f"the vision trunk of {cls.policy_type} has one width; leave out --trunk-width")

    @classmethod
    def repair_keys(cls, weights: dict[str, Tensor], config: PolicyConfig) -> dict[str, Tensor]:
        """LeRobot's names as found in the file -> LeRobot's names as this class knows them: drops what is known to
        be unused, renames what older versions called otherwise. Whatever is then missing or left over is an error."""
        return weights

    own_modules: ClassVar[tuple[str, ...]] = ()
    """Parts of the network, by name, that no LeRobot knows: their weights are kept in a file of our own."""

    def saved_weights(self) -> dict[str, Tensor]:
        """What `model.safetensors` holds, by LeRobot's names: `Prefix` + our names."""
        own = self.own_weights()
        return {self.Prefix + name: tensor for name, tensor in self.state_dict().items() if name not in own}

    def own_weights(self) -> dict[str, Tensor]:
        """By our names, what is kept in a file of our own beside it (train/own_weights.py)."""
        return {n: t for n, t in self.state_dict().items() if n.partition(".")[0] in self.own_modules}

    def start_own_parts(self) -> None:
        """Fills those as they are before any training, where a trained policy gets them."""

    def trunks(self) -> list[nn.Module]:
        """Vision trunks with torchvision's names, which a fresh policy may start from ImageNet weights."""
        return []

    @classmethod
    def default_processors(cls, config: PolicyConfig, stats: Stats) -> Processors:
        """LeRobot's pipelines for a fresh policy (docs/pipelines.md): rename, batch, device, normalise; and back."""
        return normalizing_processors(config, stats)

    @property
    def behind_pipeline(self) -> dict[str, Any]:
        """Attribute -> what takes its place while LeRobot's pipelines are run outside, so that `encode` takes what the
        pre-processor gives (a camera as float (B, H, W, 3) times 255) and `decode` gives what the post-processor takes.
        The exporter's certificate asks for it. A policy whose normalisation has other names says which."""
        return {"normalizers": Untouched()}

    @property
    def baked_numbers(self) -> dict[str, int]:
        """What `bake` keeps of tables, by LeRobot's key in a batch: a domain, a body."""
        return {}

    @classmethod
    def relative_mask(cls, config: PolicyConfig, processors: Processors) -> Tensor | None:
        """float32 (A,): 1 where actions are relative to the state; None where all are absolute, as they plainly are."""
        return None

    @classmethod
    def choose_domain(cls, config: PolicyConfig, processors: Processors, domain: int) -> None:
        """Makes the pipelines say which of `config.n_domains` this robot is.

        Raises:
            UsageError: there is no such domain, or there are none.
        """
        raise UsageError(f"--domain-id chooses among a policy's domains; {cls.policy_type} has no domains")

    def adapt_to_aloha(self) -> None:
        """Switches openpi's map of ALOHA's joints on, which no checkpoint says.

        Raises:
            UsageError: a policy without such a map.
        """
        raise UsageError(
            f"--adapt-to-pi-aloha is for openpi's Pi0; a {self.policy_type} policy has no such map"
        )

    # -- written once -------------------------------------------------------------------------------------

    def set_gradient_checkpointing(self, on: bool) -> bool:
        """Less memory, a third slower: layers are computed again in the backward pass. False: no part of it can."""
        parts = [module for module in self.modules() if isinstance(module, Recomputed)]
        for module in parts:
            module.gradient_checkpointing = on
        return bool(parts)

    def set_cameras(self, sizes: Mapping[str, tuple[int, int]], absent: Sequence[str] = ()) -> None:
        """Fixes the live camera sizes (H, W) that the graphs take, and which listed cameras the robot lacks."""
        self.camera_sizes = dict(sizes)
        self.absent_cameras = frozenset(absent)

    def bake(self) -> None:
        """Folds what is constant for one deployment into the weights (an embodiment's slice of its tables). The
        exporter calls it once, before tracing; the policy is not trained afterwards."""

    def camera_size(self, feature: str) -> tuple[int, int]:
        """(H, W) of a camera's raw frames: as set for export, else the shape in the config."""
        return self.camera_sizes.get(feature) or tuple(self.config.input_features[feature].shape[1:])  # type: ignore[return-value]

    @property
    def live_cameras(self) -> list[str]:
        """Cameras the robot has, in the network's order."""
        return [name for name in self.config.image_features if name not in self.absent_cameras]

    def camera_specs(self) -> tuple[TensorSpec, ...]:
        """One graph input per live camera, in network order, named by the last part of its feature, made unique."""
        specs: list[TensorSpec] = []
        taken = {"x", "t", "state", "environment_state"}
        for feature in self.live_cameras:
            stem = name = feature.rpartition(".")[2]
            number = 2
            while name in taken:
                name, number = f"{stem}_{number}", number + 1
            taken.add(name)
            specs.append(TensorSpec(name, "uint8", (1, *self.camera_size(feature), 3), f"camera:{feature}"))
        return tuple(specs)

    def vector_specs(self) -> tuple[TensorSpec, ...]:
        """One graph input each for the state and the environment's state, where the policy takes them."""
        widths = {"state": self.config.state_dim, "environment_state": self.config.environment_state_dim}
        return tuple(TensorSpec(k, "float32", (1, n), k) for k, n in widths.items() if n is not None)

    def by_feature(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `encode` takes by source, by feature name as in a training batch."""
        features = {"state": STATE, "environment_state": self.config.environment_state_key}
        return {features.get(s, s.removeprefix("camera:")): value for s, value in inputs.items()}

    def sampler(self) -> Sampler:
        """The runtime's own sampler over this module's torch methods."""
        return Sampler(
            {name: TorchGraph(self, name, spec) for name, spec in self.graphs().items()}, self.schedule
        )

    @torch.no_grad()
    def sample(
        self, moments: Sequence[Mapping[str, Any]], values: Mapping[str, Any] | None = None, **solve: Any
    ) -> Tensor:
        """(B, T, A) robot units from observations by source, oldest first. See `edgevla.policy.Sampler.sample`."""
        return self.sampler().sample(moments, values, **solve)

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device


class Untouched(nn.Module):
    """Stands where a normaliser stood, and leaves everything as it is: `x`, or a feature's name and x."""

    def forward(self, *given: Any) -> Any:
        return given[-1]

    command = inverse = forward


class TorchGraph:
    """One of a policy's methods in the shape of an exported graph: input name -> tensor in, the same out."""

    def __init__(self, policy: Policy, name: str, spec: GraphSpec) -> None:
        self.policy, self.name, self.spec = policy, name, spec
        self._source = {s.name: s.source or "" for s in spec.inputs}

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        values = {self._source[name]: self._tensor(value) for name, value in inputs.items()}
        return run_method(self.policy, self.name, values, [o.name for o in self.spec.outputs])

    def stack(self, arrays: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(arrays), dim=1)

    def _tensor(self, value: Any) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
        return tensor.to(self.policy.device)


def run_method(
    policy: Policy, name: str, values: Mapping[str, Tensor], output_names: Sequence[str]
) -> dict[str, Tensor]:
    """Calls `encode`, `denoise`, `decode` or `time` with values by source. The exporter traces exactly this."""
    if name == "encode":
        context = policy.encode(values)
        return {output: context[output] for output in output_names}
    if name == "time":
        rows = policy.time(values["schedule:tau"])
        return {output: rows[output] for output in output_names}
    extras = {source: v for source, v in values.items() if not source.startswith("context:")}
    if name == "decode":
        return {output_names[0]: policy.decode(extras.pop("x"), extras)}
    context = {
        source.removeprefix("context:"): v for source, v in values.items() if source.startswith("context:")
    }
    x, tau, tau_next = (extras.pop(s) for s in ("x", "schedule:tau", "schedule:tau_next"))
    return {output_names[0]: policy.denoise(context, x, tau, tau_next, extras)}

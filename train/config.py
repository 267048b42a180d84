"""What one training run does: dataclass defaults, then a recipe (TOML), then the command line; frozen after that.

A recipe is a published preset as data (`recipes/*.toml`, each names its source). The result is written beside
every checkpoint as `edgevla-train.toml` and loads back equal; what LeRobot wants to know about a run is written
as its `train_config.json`. Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgevla.dataset.chosen import parse_episodes
from edgevla.errors import ConfigError, UsageError
from edgevla.strict import Mismatch, nearest, read
from edgevla.toml import load_toml
from edgevla.vocabulary import TaskFrom

OWN_CONFIG = "edgevla-train.toml"
RECIPES = Path(__file__).parent / "recipes"
NEXT_SENTENCE = re.compile(r"(?<!et al)\. ")


@dataclass(frozen=True)
class OptimizerConfig:
    """Weight decay is decoupled for adamw and added to the gradient for adam. grad_clip_norm 0 only measures."""

    type: Literal["adam", "adamw"] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    grad_clip_norm: float = 10.0


@dataclass(frozen=True)
class SchedulerConfig:
    """How every group's learning rate moves. Formulas: docs/policies.md#learning-rates, #x-vla (`two_phase`).

    decay_lr: rate at the end of `cosine_decay_with_warmup`, for a group at the optimizer's `lr`.
    freeze_steps, final_ratio: `two_phase` only; rate zero for groups `frozen_first`, share of the peak at the end.
    """

    type: Literal["none", "cosine_decay_with_warmup", "cosine", "two_phase"] = "none"
    warmup_steps: int = 0
    decay_steps: int = 30_000
    decay_lr: float = 0.0
    freeze_steps: int = 0
    final_ratio: float = 1.0


@dataclass(frozen=True)
class Group:
    """Parameters whose lower-case name contains `match` (the first matching group has them), with their own rates."""

    name: str
    match: str
    lr_scale: float = 1.0
    weight_decay_scale: float = 1.0
    frozen_first: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run's outcome or its files.

    dataset: folder or hub id.  start: checkpoint folder or hub id to fine-tune from, or a backbone's; empty: a fresh
    policy.  from_scratch: its backbone, too, starts from random weights.
    base: where the policy lies that an adapter in `start`, or in the run itself, belongs to; empty: where that says.
    episodes: `0:40`, `3,5,8:12`; empty: all.  eval_episodes: the same form, or one number N for the last N.
    backbone_weights: torchvision ResNet file for a fresh vision trunk; empty: looked for in the usual caches.
    trunk_width: channels in a fresh vision trunk's stem (ACT, Diffusion); 0: the published 64.
    cameras: name -> name or `none`, as given on the command line (`train/cameras.py` resolves them).
    workers: threads that prepare batches.  cache: where decoded frames are kept.
    features, without, task_from: how the dataset is read (`edgevla.dataset.reading`).
    domain_id: which of X-VLA's soft prompts and heads learn; None: the checkpoint's.
    settings: fields of the policy's own config.json.  accumulate: batches per optimizer step.
    train_only: parameters whose lower-case name does not contain this are frozen; empty: the policy decides.
    precision: `auto` follows the policy's config (`dtype`, `use_bf16`, `use_amp`).
    """

    policy: str = "act"
    recipe: str = ""
    source: str = ""
    dataset: str = ""
    root: str = ""
    start: str = ""
    base: str = ""
    from_scratch: bool = False
    backbone_weights: str = ""
    trunk_width: int = 0
    output: str = ""
    episodes: str = ""
    eval_episodes: str = ""
    steps: int = 100_000
    batch_size: int = 8
    accumulate: int = 1
    seed: int = 1000
    device: str = ""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int = 0
    workers: int = 2
    cache: Literal["auto", "ram", "disk", "none"] = "auto"
    log_freq: int = 10
    save_freq: int = 20_000
    eval_freq: int = 0
    tensorboard: bool = True
    image_transforms: bool = False
    imagenet_stats: bool = True
    joint_units: str = ""
    domain_id: int | None = None
    gradient_checkpointing: bool = False
    lora: int = 0
    lora_alpha: int = 0
    lora_targets: str = ""
    merge_lora: bool = False
    train_only: str = ""
    cameras: dict[str, str] = field(default_factory=dict)
    features: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    task_from: TaskFrom | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    groups: tuple[Group, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_freq", "workers"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        optimizer, scheduler = self.optimizer, self.scheduler
        for part, names in (
            (self, ("threads", "save_freq", "eval_freq", "lora", "lora_alpha", "trunk_width")),
            (optimizer, ("weight_decay", "grad_clip_norm", "eps")),
            (scheduler, ("warmup_steps", "decay_steps", "decay_lr", "freeze_steps", "final_ratio")),
        ):
            for name in names:
                if not (math.isfinite(value := getattr(part, name)) and value >= 0):
                    raise UsageError(f"{name} is {value}; it must be 0 or more")
        if not 0 <= self.seed < 1 << 32:
            raise UsageError(f"seed is {self.seed}; it must be 0 or more, and below 2^32")
        if not (math.isfinite(self.optimizer.lr) and self.optimizer.lr > 0):
            raise UsageError(f"the learning rate is {self.optimizer.lr}; it must be positive")
        for is_given, option in ((self.merge_lora, "--merge-lora"), (self.lora_alpha, "--lora-alpha")):
            if is_given and not self.lora:
                raise UsageError(f"{option} was given without --lora; say the rank, such as --lora 16")

    # -- reading ------------------------------------------------------------------------------------------

    @classmethod
    def resolve(cls, recipe: str, overrides: Mapping[str, Any]) -> TrainConfig:
        """Defaults < recipe (a name in `recipes/` or a TOML file) < overrides (nested, as in the TOML).

        A learning rate in `overrides` scales all rates of the recipe by the same factor, so that the groups
        and the schedule keep their proportions.
        """
        data = read_recipe(recipe)
        merged = _merge(data, overrides)
        merged["recipe"] = recipe
        config = _typed(merged, recipe)
        lr = overrides.get("optimizer", {}).get("lr")
        preset = data.get("optimizer", {}).get("lr", OptimizerConfig.lr)
        return config if lr is None else _scale_rates(config, lr / preset, overrides)

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """Reads what `save` wrote."""
        return _typed(_read_toml(path), str(path))

    def save(self, path: Path) -> None:
        """As TOML; `load` gives an equal one."""
        path.write_text(to_toml(dataclasses.asdict(self)))


def recipe_names() -> list[str]:
    """The published presets that come along."""
    return sorted(p.stem for p in RECIPES.glob("*.toml"))


def recipe_lines() -> list[str]:
    """Every preset that comes along in a line: its name, its policy, and the first sentence of its file."""
    lines = []
    for name in recipe_names():
        text = (RECIPES / f"{name}.toml").read_text()
        comments = " ".join(line[2:] for line in text.splitlines() if line.startswith("# "))
        first = re.split(NEXT_SENTENCE, comments)[0].rstrip(".")
        lines.append(f"  {name:<18} {read_recipe(name).get('policy', 'any'):<10} {first}")
    return ["preset             of         what", *lines]


def read_recipe(name: str) -> dict[str, Any]:
    """The recipe of this name, or of this TOML file.

    Raises:
        UsageError: neither; names the nearest recipe.
    """
    path = RECIPES / f"{name}.toml"
    if not path.is_file():
        path = Path(name)
        if not path.is_file():
            known = recipe_names()
            raise UsageError(f"there is no recipe '{name}' (known: {', '.join(known)}){nearest(name, known)}")
    return _read_toml(path)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return load_toml(path)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return merged


def _scale_rates(config: TrainConfig, factor: float, overrides: Mapping[str, Any]) -> TrainConfig:
    """Rates that the recipe states absolutely, beside the optimizer's own."""
    scheduler, settings = config.scheduler, dict(config.settings)
    if "decay_lr" not in overrides.get("scheduler", {}):
        scheduler = dataclasses.replace(scheduler, decay_lr=scheduler.decay_lr * factor)
    for name in settings:
        if name.startswith("optimizer_lr_") and name not in overrides.get("settings", {}):
            settings[name] *= factor
    return dataclasses.replace(config, scheduler=scheduler, settings=settings)


def _typed(data: Mapping[str, Any], where: str) -> TrainConfig:
    """Every key known, every value of its field's type."""
    try:
        return read(TrainConfig, data, f"{where}:", words=True)
    except Mismatch as error:
        raise ConfigError(str(error)) from None


# -- writing ----------------------------------------------------------------------------------------------


def to_toml(data: Mapping[str, Any]) -> str:
    """TOML of plain nested values: scalars first, then tables, then arrays of tables. None is written as "none"."""
    lines: list[str] = []
    tables = {k: v for k, v in data.items() if isinstance(v, Mapping)}
    arrays = {k: v for k, v in data.items() if _is_table_array(v)}
    for key, value in data.items():
        if key not in tables and key not in arrays:
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, table in tables.items():
        lines += ["", f"[{_key(key)}]"] + [f"{_key(k)} = {_value(v)}" for k, v in table.items()]
    for key, rows in arrays.items():
        for row in rows:
            lines += ["", f"[[{_key(key)}]]"] + [f"{_key(k)} = {_value(v)}" for k, v in row.items()]
    return "\n".join(lines) + "\n"


def _is_table_array(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and isinstance(value[0], Mapping)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _text(key)


def _value(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, float):
        text = repr(value)  # the shortest text that reads back equal
        if math.isfinite(value) and not any(c in text for c in ".e"):
            text += ".0"
        return text
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _text(value: str) -> str:
    """A basic string: JSON's, without surrogate pairs, and with the one control character that JSON lets pass."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def split_episodes(config: TrainConfig, n_episodes: int) -> tuple[list[int], list[int]]:
    """Episodes to train on and, disjoint from them, to evaluate on."""
    chosen = parse_episodes(config.episodes, n_episodes) if config.episodes else list(range(n_episodes))
    if not config.eval_episodes:
        return chosen, []
    if config.eval_episodes.isdigit():
        n = int(config.eval_episodes)
        if not 0 < n < len(chosen):
            raise UsageError(f"--eval-episodes {n} of {len(chosen)} episodes leaves none to train on")
        return chosen[:-n], chosen[-n:]
    held_out = parse_episodes(config.eval_episodes, n_episodes, what="--eval-episodes")
    rest = [e for e in chosen if e not in held_out]
    if not rest:
        raise UsageError("--eval-episodes holds out every episode; none is left to train on")
    return rest, held_out

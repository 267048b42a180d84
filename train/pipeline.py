"""LeRobot's pipelines, run as LeRobot runs them: step by step, in numpy, from the saved files alone.

This is the other side of the exporter's certificate, so it shares no arithmetic with the policies: what they fold into
their graphs is written here once more, from the definition of each step (docs/pipelines.md, docs/policies.md). A step
that it does not know is an error. Frames come as a camera gives them; LeRobot divides them by 255 before the first step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.errors import CheckpointError
from edgevla.types import ACTION, STATE

from .pipeline_eagle import encode as eagle_encode
from .processors import POST, PRE

TOKENS, TOKEN_MASK = "observation.language.tokens", "observation.language.attention_mask"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PAIRS = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}


@dataclass
class Passing:
    """What passes from step to step. values: observations, and what steps add to them, by LeRobot's keys."""

    values: dict[str, Any]
    task: str
    action: np.ndarray | None = None


@dataclass
class SavedStep:
    name: str
    settings: dict[str, Any]
    stats: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


class SavedPipeline:
    """Both pipelines of a folder. Not a function: the post-processor's relative actions need the last raw state."""

    def __init__(self, folder: Path, tokenizer: Path | None = None) -> None:
        """tokenizer: the folder with its tokenizer.json; None: a policy without language.

        Raises:
            CheckpointError: a pipeline that cannot be read, or a step that is unknown here.
        """
        self.folder, self.tokenizer = folder, tokenizer
        self.pre, self.post = (_read(folder, name) for name in (PRE, POST))
        for step in (*self.pre, *self.post):
            if step.name not in STEPS:
                raise CheckpointError(f"the step '{step.name}' of {folder} cannot be run here")
        self._state: np.ndarray | None = None

    def before(
        self,
        images: Mapping[str, np.ndarray],
        vectors: Mapping[str, np.ndarray],
        task: str = "",
        action: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Raw frames uint8 (H, W, 3) and vectors (n,) by the data's own names -> what the policy takes, batch of one."""
        values: dict[str, Any] = {
            name: np.transpose(frame, (2, 0, 1)).astype(np.float32) / np.float32(255)
            for name, frame in images.items()
        }
        values |= {name: np.asarray(vector, np.float32) for name, vector in vectors.items()}
        passing = Passing(values, task, None if action is None else np.asarray(action, np.float32))
        for step in self.pre:
            STEPS[step.name](self, step, passing)
        if passing.action is not None:
            passing.values[ACTION] = passing.action
        return passing.values

    def after(self, chunk: np.ndarray) -> np.ndarray:
        """What the policy gives (1, T, A) -> robot units (1, T, A)."""
        passing = Passing({}, "", np.asarray(chunk, np.float32))
        for step in self.post:
            STEPS[step.name](self, step, passing)
        assert passing.action is not None
        return passing.action

    def describe(self) -> str:
        """In words, for the bundle."""
        return f"the saved pipeline ({len(self.pre)} steps before the network, {len(self.post)} after it)"

    # -- what steps remember ------------------------------------------------------------------------------

    def keep_state(self, state: np.ndarray | None) -> None:
        """The state that relative actions are measured from; None leaves the last one."""
        self._state = state if state is not None else self._state

    def kept_offset(self, width: int) -> np.ndarray:
        """The last raw state where actions are relative, 0 elsewhere: (1, 1, width)."""
        step = next(
            s for s in self.pre if s.name in ("relative_actions_processor", "delta_actions_processor")
        )
        if self._state is None:
            raise CheckpointError("relative actions need a state, and there was none")
        return (self._state[:, :width] * _relative_mask(step.settings, width))[:, None]


def _read(folder: Path, name: str) -> list[SavedStep]:
    from safetensors.numpy import load_file

    try:
        entries = json.loads((folder / f"{name}.json").read_text())["steps"]
        steps = []
        for entry in entries:
            step = SavedStep(entry["registry_name"], dict(entry.get("config") or {}))
            if entry.get("state_file"):
                for key, value in load_file(folder / entry["state_file"]).items():
                    feature, _, statistic = key.rpartition(".")
                    step.stats.setdefault(feature, {})[statistic] = value.astype(np.float32)
            steps.append(step)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{folder / name}.json cannot be run ({error!r})") from error
    return steps


# -- steps: (pipeline, step, what passes) -> what passes is changed -----------------------------------------------


def _nothing(pipeline: SavedPipeline, step: SavedStep, passing: Passing) -> None:
    """What is moved to another device stays what it is."""


def _rename(pipeline: SavedPipeline, step: SavedStep, passing: Passing) -> None:
    names = step.settings.get("rename_map") or {}
    passing.values = {names.get(key, key): value for key, value in passing.values.items()}


def _to_batch(pipeline: SavedPipeline, step: SavedStep, passing: Passing) -> None:
    for key, value in passing.values.items():
        rank = 3 if key == "observation.image" or key.startswith("observation.images.") else 1
        if isinstance(value, np.ndarray) and value.ndim == rank:
            passing.values[key] = value[None]
    if passing.action is not None and passing.action.ndim == 1:
        passing.action = passing.action[None]


def _normalize(pipeline: SavedPipeline, step: SavedStep, passing: Passing) -> None:
    chosen = step.settings.get("normalize_observation_keys")
    for key, feature in (step.settings.get("features") or {}).items():
        if feature["type"] != "ACTION" and key in passing.values and (chosen is None or key in chosen):
            passing.values[key] = _scaled(step, key, feature["type"], passing.values[key], inverse=False)
    if passing.action is not None:
        passing.action = _scaled(step, ACTION, "ACTION", passing.action, inverse=False)


def _unnormalize(pipeline: SavedPipeline, step: SavedStep, passing: Passing) -> None:
    assert passing.action is not None
    passing.action = _scaled(step, ACTION, "ACTION", passing.action, inverse=True)


def _scaled(step: SavedStep, key: str, kind: str, x: np.ndarray, *, inverse: bool) -> np.ndarray:
    mode = step.settings["norm_map"].get(kind, "IDENTITY")
    stats = step.stats.get(key)
    if mode == "IDENTITY" or stats is None:
        return x
    first, second = (stats[name] for name in PAIRS[mode])
    if kind == "VISUAL" and first.ndim == 1:
        first, second = first[:, None, None], second[:, None, None]
    eps = np.float32(step.settings.get("eps", 1e-8))
    if mode == "MEAN_STD":
        return x * second + first if inverse else (x - first) / (second + eps)
    span = np.where(second == first, eps, second - first)
    if inverse:
        return (x + np.float32(1)) / np.float32(2) * span + first
    return np.float32(2) * (x - first) / span - np.float32(1)


def _relative(pipeline: SavedPipeline, step: SavedStep, passing: Passing) -> None:
    state = passing.values.get(STATE)
    pipeline.keep_state(state)
    if step.settings.get("enabled") and passing.action is not None and state is not None:
        mask = _relative_mask(step.settings, passing.action.shape[-1])
        passing.action = passing.action - (state[:, : len(mask)] * mask)[:, None]


def _absolute(pipeline: SavedPipeline, step: SavedStep, passing: Passing) -> None:
    assert passing.action is not None
    if step.settings.get("enabled"):
        passing.action = passing.action + pipeline.kept_offset(passing.action.shape[-1])


def _relative_mask(settings: Mapping[str, Any], width: int) -> np.ndarray:
    excluded = [str(name).lower() for name in settings.get("exclude_joints") or [] if name]
    names = [str(name).lower() for name in settings.get("action_names") or []][:width]
    is_relative = [not any(e in name for e in excluded) for name in names]
    return np.array(is_relative + [True] * (width - len(is_relative)), np.float32)


def _newline(pipeline: SavedPipeline, step: SavedStep, passing: Passing) -> None:
    passing.task += "" if passing.task.endswith("\n") else "\n"


def _prepare_state(pipeline: SavedPipeline, step: SavedStep, passing: Passing) -> None:
    """Pi0.5's prompt: the task, and the normalised state in 256 bins."""
    state = passing.values[STATE][0]
    wanted = step.settings.get("max_state_dim")
    if wanted is not None:
        state = np.pad(state, (0, max(0, wanted - len(state))))
    edges = np.linspace(-1, 1, 257)[:-1]
    bins = [int((edges <= float(value)).sum()) - 1 for value in state]
    task = passing.task.strip().replace("_", " ").replace("\n", " ")
    passing.task = f"Task: {task}, State: {' '.join(str(b) for b in bins)};\nAction: "


def _tokenize(pipeline: SavedPipeline, step: SavedStep, passing: Passing) -> None:
    settings = step.settings
    tokenizer, pad = open_tokenizer(pipeline.tokenizer)
    length = int(settings.get("max_length", 512))
    if settings.get("truncation", True):
        tokenizer.enable_truncation(length)
    ids = list(tokenizer.encode(passing.task).ids)
    n_pad = max(0, length - len(ids)) if settings.get("padding", "max_length") == "max_length" else 0
    real = [True] * len(ids)
    if settings.get("padding_side", "right") == "right":
        ids, real = ids + [pad] * n_pad, real + [False] * n_pad
    else:
        ids, real = [pad] * n_pad + ids, [False] * n_pad + real
    passing.values[TOKENS] = np.array([ids], np.int64)
    passing.values[TOKEN_MASK] = np.array([real], np.bool_)


def open_tokenizer(folder: Path | None) -> tuple[Any, int]:
    """A tokenizer without habits of its own, and the number of its padding token."""
    from tokenizers import Tokenizer

    if folder is None:
        raise CheckpointError("the pipeline takes a tokenizer, and the policy has none")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    said = folder / "tokenizer_config.json"
    pad = json.loads(said.read_text()).get("pad_token") if said.is_file() else None
    word = pad.get("content") if isinstance(pad, dict) else pad
    number = tokenizer.token_to_id(word) if word is not None else 0
    return tokenizer, int(number or 0)


# -- X-VLA ----------------------------------------------------------------------------------------------------


def _images(step: SavedStep, passing: Passing) -> Sequence[str]:
    wanted = step.settings.get("image_keys")
    return [
        k for k in passing.values if k.startswith("observation.images") and (wanted is None or k in wanted)
    ]


def _image_to_float(pipeline: SavedPipeline, step: SavedStep, passing: Passing) -> None:
    for key in _images(step, passing):
        frame = passing.values[key].astype(np.float32)
        passing.values[key] = frame if frame.max() <= 1.0 else frame / np.float32(255)


def _imagenet(pipeline: SavedPipeline, step: SavedStep, passing: Passing) -> None:
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    for key in _images(step, passing):
        frame = passing.values[key]
        if frame.min() < 0 or frame.max() > 1:
            raise CheckpointError(
                f"'{step.name}' of {pipeline.folder} gets '{key}' outside 0 to 1, which LeRobot refuses"
            )
        passing.values[key] = (frame - mean) / std


def _image_scale(pipeline: SavedPipeline, step: SavedStep, passing: Passing) -> None:
    for key in _images(step, passing):
        passing.values[key] = passing.values[key] * np.float32(255)


def _domain(pipeline: SavedPipeline, step: SavedStep, passing: Passing) -> None:
    passing.values["domain_id"] = np.array([int(step.settings.get("domain_id", 0))], np.int64)


# -- GR00T N1.5 -----------------------------------------------------------------------------------------------


def _pack(pipeline: SavedPipeline, step: SavedStep, passing: Passing) -> None:
    """Cameras in the order of their names as bytes; state and action by their ranges, padded; the body's number."""
    settings, values = step.settings, passing.values
    cameras = sorted(k for k in values if k.startswith("observation.images")) or ["observation.image"]
    frames = [np.clip(values.pop(key), 0, 1) * np.float32(255) for key in cameras if key in values]
    values["video"] = [frame[0].astype(np.uint8) for frame in frames]  # (3, H, W) each
    task = passing.task or "Perform the task."
    if settings.get("formalize_language"):
        task = "".join(c for c in task.lower() if c.isalnum() or c.isspace())
    passing.task = task
    if STATE in values:
        state = _ranged(step, STATE, values.pop(STATE))
        values["state"], values["state_mask"] = _padded(state[:, None], settings.get("max_state_dim", 64))
    if passing.action is not None:
        action = _ranged(step, ACTION, passing.action)
        n = settings.get("action_horizon", 16)
        action = np.concatenate(
            [action, np.repeat(action[:, -1:], max(0, n - action.shape[1]), axis=1)], axis=1
        )
        passing.action, values["action_mask"] = _padded(action[:, :n], settings.get("max_action_dim", 32))
    number = (settings.get("embodiment_mapping") or {}).get(settings.get("embodiment_tag"), 0)
    values["embodiment_id"] = np.array([number], np.int64)


def _ranged(step: SavedStep, key: str, x: np.ndarray) -> np.ndarray:
    stats = step.stats.get(key)
    if not step.settings.get("normalize_min_max", True) or stats is None:
        return x
    low, high = _fitted(stats, x.shape[-1])
    span = high - low
    y = np.float32(2) * (x - low) / np.where(span == 0, np.float32(1), span) - np.float32(1)
    return np.where(span == 0, np.float32(0), y)


def _fitted(stats: Mapping[str, np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and maximum, cut or filled up to the data's width."""
    low, high = np.zeros(n, np.float32), np.ones(n, np.float32)
    for row, name in ((low, "min"), (high, "max")):
        given = stats[name].reshape(-1)[:n]
        row[: len(given)] = given
    return low, high


def _padded(x: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    x = x[..., :width]
    n_pad = width - x.shape[-1]
    mask = np.concatenate([np.ones(x.shape, np.bool_), np.zeros((*x.shape[:-1], n_pad), np.bool_)], axis=-1)
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, n_pad)]), mask


def _eagle(pipeline: SavedPipeline, step: SavedStep, passing: Passing) -> None:
    tokenizer, _ = open_tokenizer(pipeline.tokenizer)
    passing.values |= eagle_encode(pipeline.folder, tokenizer, passing.values.pop("video"), passing.task)


def _unpack(pipeline: SavedPipeline, step: SavedStep, passing: Passing) -> None:
    """Every action of the chunk, where LeRobot's step keeps the last of those it is given: it is given one at a time."""
    assert passing.action is not None
    n, stats = step.settings.get("env_action_dim", 0), step.stats.get(ACTION)
    action = passing.action[..., :n] if n else passing.action
    if step.settings.get("normalize_min_max", True) and stats is not None:
        low, high = _fitted(stats, action.shape[-1])
        action = (action + np.float32(1)) / np.float32(2) * (high - low) + low
    passing.action = action


STEPS: dict[str, Callable[[SavedPipeline, SavedStep, Passing], None]] = {
    "rename_observations_processor": _rename,
    "to_batch_processor": _to_batch,
    "device_processor": _nothing,
    "normalizer_processor": _normalize,
    "unnormalizer_processor": _unnormalize,
    "relative_actions_processor": _relative,
    "delta_actions_processor": _relative,
    "absolute_actions_processor": _absolute,
    "smolvla_new_line_processor": _newline,
    "pi0_new_line_processor": _newline,
    "pi05_prepare_state_tokenizer_processor_step": _prepare_state,
    "tokenizer_processor": _tokenize,
    "xvla_image_to_float": _image_to_float,
    "xvla_imagenet_normalize": _imagenet,
    "xvla_image_scale": _image_scale,
    "xvla_add_domain_id": _domain,
    "groot_pack_inputs_v3": _pack,
    "groot_eagle_encode_v3": _eagle,
    "groot_eagle_collate_v3": _nothing,
    "groot_action_unpack_unnormalize_v1": _unpack,
}
"""LeRobot's registry names. X-VLA's rotation step is not among them: such actions are poses, which are not exported."""

"""LeRobot's processor pipelines on disk: two lists of named steps beside a checkpoint (docs/pipelines.md).

A pipeline is kept as it was read, step by step, so that saving gives back what was loaded; policies ask it for
what they need (statistics, prompt settings, domain id, ...). Nothing is computed here: the arithmetic of every
step lives in the policy or its `nn` parts, where the exporter sees it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevla.errors import CheckpointError

if TYPE_CHECKING:
    from .policies.config import Features, PolicyConfig

Stats = dict[str, dict[str, np.ndarray]]
"""Feature name -> statistic (`mean`, `std`, `min`, `max`, `q01`, `q10`, `q50`, `q90`, `q99`) -> float32 array."""

PRE, POST = "policy_preprocessor", "policy_postprocessor"
NORMALIZERS = ("normalizer_processor", "groot_pack_inputs_v3")
UNNORMALIZERS = ("unnormalizer_processor", "groot_action_unpack_unnormalize_v1")
"""Steps whose tensors are a dataset's statistics."""
SETTINGS: dict[str, Any] = {
    "eps": float,
    "norm_map": dict[str, str],
    "features": dict[str, dict[str, Any]],
    "normalize_observation_keys": list[str],
    "rename_map": dict[str, str],
    "enabled": bool,
    "exclude_joints": list[str],
    "action_names": list[str],
    "image_keys": list[str],
    "domain_id": int,
    "tokenizer_name": str,
    "max_length": int,
    "padding": str,
    "max_state_dim": int,
    "embodiment_tag": str,
    "embodiment_mapping": dict[str, int],
    "formalize_language": bool,
    "normalize_min_max": bool,
}
"""The settings of steps that are read here, and what each is; null says as much as leaving it out."""


@dataclass
class Step:
    """One processor: LeRobot's registry name (or class path), its constructor arguments, its tensors if it has any."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    state: dict[str, np.ndarray] | None = None
    artifacts: dict[str, str] | None = None
    is_class: bool = False

    def number(self, key: str, default: float | None = None) -> float:
        """A setting that is a number. Raises CheckpointError, naming it, when something else stands there."""
        value = self.config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CheckpointError(
                f"the pipeline's step '{self.name}' has {key} = {value!r}, which is no number; correct it in {PRE}.json"
            )
        return value


@dataclass
class Processors:
    """Pre- and post-processing of one checkpoint. `folder` is where relative files (tokenizer) are looked up."""

    pre: list[Step] = field(default_factory=list)
    post: list[Step] = field(default_factory=list)
    folder: Path | None = None

    def step(self, *names: str) -> Step | None:
        """First pre-processing step with one of these registry names (old and new spellings), or None."""
        return next((s for s in self.pre if s.name in names), None)

    def post_step(self, *names: str) -> Step | None:
        """The first step behind the policy with one of these names."""
        return next((s for s in self.post if s.name in names), None)

    @property
    def stats(self) -> Stats:
        """Statistics of the normaliser (else of the unnormaliser); empty when the checkpoint has none."""
        for step in (self.step(*NORMALIZERS), self.post_step(*UNNORMALIZERS)):
            if step is not None and step.state:
                return unflatten_stats(step.state)
        return {}

    @property
    def eps(self) -> float:
        """Of the normalizer: what keeps it from dividing by zero."""
        step = self.step("normalizer_processor")
        return float(step.number("eps", 1e-8)) if step else 1e-8

    @property
    def norm_map(self) -> dict[str, str] | None:
        """Feature type -> mode as the pipeline says (it wins over config.json), or None without a normaliser."""
        step = self.step("normalizer_processor")
        modes = step.config.get("norm_map") if step else None
        return None if modes is None else dict(modes)

    @property
    def rename_map(self) -> dict[str, str]:
        """Dataset key -> policy key, applied to observations first."""
        step = self.step("rename_observations_processor")
        return dict(step.config.get("rename_map") or {}) if step else {}

    # -- on disk ------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, folder: Path) -> Processors:
        """Reads both pipelines; missing files give empty pipelines (checkpoints before LeRobot 0.4).

        Raises:
            CheckpointError: unreadable JSON, a setting of another kind, a state file that is damaged or missing.
        """
        return cls(_read(folder, PRE), _read(folder, POST), folder)

    def save(self, folder: Path) -> None:
        """The two JSON files and their statistics, in LeRobot's layout."""
        for name, steps in ((PRE, self.pre), (POST, self.post)):
            _write(folder, name, steps)


def normalizing_processors(config: PolicyConfig, stats: Stats) -> Processors:
    """The pipelines of ACT and Diffusion, which the others extend: rename, to_batch, device, normalizer; and back."""

    def features(named: Features) -> dict[str, Any]:
        return {k: {"type": f.type, "shape": list(f.shape)} for k, f in named.items()}

    device = config.device or "cpu"
    norm_map = dict(config.normalization_mapping)
    state = flatten_stats(
        {f: {s: np.asarray(v, np.float32) for s, v in by.items()} for f, by in stats.items()}
    )
    normalizer = {
        "eps": 1e-8,
        "features": features({**config.input_features, **config.output_features}),
        "norm_map": norm_map,
    }
    unnormalizer = {"eps": 1e-8, "features": features(config.output_features), "norm_map": norm_map}
    return Processors(
        pre=[
            Step("rename_observations_processor", {"rename_map": {}}),
            Step("to_batch_processor"),
            Step("device_processor", {"device": device, "float_dtype": None}),
            Step("normalizer_processor", normalizer, state or None),
        ],
        post=[
            Step("unnormalizer_processor", unnormalizer, dict(state) or None),
            Step("device_processor", {"device": "cpu", "float_dtype": None}),
        ],
    )


def unflatten_stats(state: dict[str, np.ndarray]) -> Stats:
    """`<feature>.<stat>` -> nested; split at the last dot, because feature names hold dots."""
    stats: Stats = {}
    for key, value in state.items():
        feature, _, stat = key.rpartition(".")
        stats.setdefault(feature, {})[stat] = np.asarray(value)
    return stats


def flatten_stats(stats: Stats) -> dict[str, np.ndarray]:
    """`feature.stat` -> array, as LeRobot's safetensors name them."""
    return {f"{feature}.{stat}": np.asarray(v) for feature, by in stats.items() for stat, v in by.items()}


def _read(folder: Path, name: str) -> list[Step]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / f"{name}.json"
    if not path.is_file():
        return []
    try:
        data = json.loads(path.read_text())
        entries = data.get("steps", [])
        if not all(isinstance(e.get("config") or {}, dict) for e in entries):
            raise TypeError("a step's config is no object")
    except (ValueError, AttributeError, TypeError, OSError) as error:
        raise CheckpointError(f"{path} is no pipeline ({error}); fetch the checkpoint again") from error
    steps = []
    for entry in entries:
        _check_settings(entry, path)
        state = None
        if entry.get("state_file"):
            state_path = folder / str(entry["state_file"])
            if not state_path.is_file():
                raise CheckpointError(
                    f"{path} names {entry['state_file']}, which {folder} lacks; fetch it again"
                )
            try:
                state = load_file(state_path)
            except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
                raise CheckpointError(f"{state_path} is damaged ({error}); fetch it again") from error
        is_class = "registry_name" not in entry
        steps.append(
            Step(
                name=entry.get("registry_name") or entry.get("class", ""),
                config=dict(entry.get("config") or {}),
                state=state,
                artifacts=entry.get("artifacts"),
                is_class=is_class,
            )
        )
    return steps


def _check_settings(entry: dict[str, Any], path: Path) -> None:
    """Raises CheckpointError: a setting of `SETTINGS` is of another kind."""
    from .policies.config import typed

    for key, value in (entry.get("config") or {}).items():
        if key not in SETTINGS or value is None:
            continue
        try:
            typed(value, SETTINGS[key])
        except TypeError as error:
            kind = SETTINGS[key]
            raise CheckpointError(
                f"{path}: step '{entry.get('registry_name') or entry.get('class')}' has {key} = {value!r}, "
                f"expected {kind.__name__ if isinstance(kind, type) else kind}; correct it or fetch it again"
            ) from error


def _write(folder: Path, name: str, steps: list[Step]) -> None:
    from safetensors.numpy import save_file

    entries = []
    for i, step in enumerate(steps):
        entry: dict[str, Any] = {
            "class" if step.is_class else "registry_name": step.name,
            "config": step.config,
        }
        if step.state is not None:
            entry["state_file"] = f"{name}_step_{i}_{step.name.rpartition('.')[2]}.safetensors"
            save_file(
                {k: np.ascontiguousarray(v) for k, v in step.state.items()}, folder / entry["state_file"]
            )
        if step.artifacts:
            entry["artifacts"] = step.artifacts
        entries.append(entry)
    (folder / f"{name}.json").write_text(json.dumps({"name": name, "steps": entries}, indent=2))

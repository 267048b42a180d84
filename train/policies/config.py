"""Policy configurations with LeRobot's field names, and the rules that turn features into inputs.

A checkpoint's `config.json` decides everything; defaults serve training from scratch. Reading is tolerant (an
unknown key is a warning), writing is strict (LeRobot refuses unknown keys).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from edgevla.errors import CheckpointError
from edgevla.types import ACTION, ENVIRONMENT_STATE, STATE

if TYPE_CHECKING:
    from ..processors import Processors


@dataclass(frozen=True)
class PolicyFeature:
    """type: STATE, VISUAL, ENV, ACTION, REWARD or LANGUAGE. shape: channel first (3, H, W) for VISUAL."""

    type: str
    shape: tuple[int, ...]


MOST_LAYERS = 1000

Features = dict[str, PolicyFeature]


@dataclass
class PolicyConfig:
    """Fields that every policy's `config.json` has. Subclasses add theirs with LeRobot's names and defaults, and say
    under "what differs between policies" wherein they are not plain.

    n_action_steps: actions of a chunk that are executed before the next one is asked for.
    future_state_max_offset: training shows states of up to so many steps later, and the chunk that follows from there
    (train/data.py); 0: the present one alone.
    """

    type: ClassVar[str] = ""

    n_obs_steps: int = 1
    n_action_steps: int = 1
    input_features: Features = field(default_factory=dict)
    output_features: Features = field(default_factory=dict)
    normalization_mapping: dict[str, str] = field(default_factory=dict)
    device: str | None = None
    use_amp: bool = False
    use_peft: bool = False
    push_to_hub: bool = False
    repo_id: str | None = None
    private: bool | None = None
    tags: list[str] | None = None
    license: str | None = None
    pretrained_path: str | None = None
    pretrained_revision: str | None = None
    future_state_max_offset: int = 0

    # -- features -----------------------------------------------------------------------------------------

    @property
    def image_features(self) -> Features:
        """VISUAL inputs in the order of `input_features`, which fixes the cameras' order in the network."""
        return {k: f for k, f in self.input_features.items() if f.type == "VISUAL"}

    @property
    def state_dim(self) -> int | None:
        """Measured joints; None: the policy takes none."""
        feature = self.input_features.get(STATE)
        return _length(STATE, feature) if feature is not None and feature.type == "STATE" else None

    @property
    def environment_state_dim(self) -> int | None:
        """Numbers of the environment's state; None: none are taken."""
        feature = next((f for f in self.input_features.values() if f.type == "ENV"), None)
        return _length(self.environment_state_key, feature) if feature is not None else None

    @property
    def environment_state_key(self) -> str:
        """The feature that holds the environment's state."""
        return next((k for k, f in self.input_features.items() if f.type == "ENV"), ENVIRONMENT_STATE)

    @property
    def action_dim(self) -> int:
        """Numbers of one action."""
        feature = self.output_features.get(ACTION)
        if feature is None:
            raise CheckpointError("the policy's config.json names no output feature 'action'")
        return _length(ACTION, feature)

    # -- what differs between policies --------------------------------------------------------------------

    @property
    def observation_indices(self) -> list[int] | None:
        """Frames relative to the current one that `observation.*` keys are windowed over; None: no time axis."""
        return None

    @property
    def action_indices(self) -> list[int]:
        """Rows of a training chunk, relative to the observation's."""
        return list(range(self.chunk_length))

    @property
    def chunk_length(self) -> int:
        """Length of the predicted action window in training (`chunk_size`, Diffusion: `horizon`). Every policy has
        one."""
        raise NotImplementedError(f"{type(self).__name__} does not say how long its chunks are")

    @property
    def trains_in_bf16(self) -> bool:
        """Whether training at precision `auto` runs under bfloat16 autocast."""
        return self.use_amp

    def in_float32(self) -> PolicyConfig:
        """The same with float32 weights, for an export: ONNX Runtime's CPU knows no bfloat16. Plain: they are."""
        return self

    @property
    def trunk(self) -> tuple[str, str | None] | None:
        """The ResNet that sees for a fresh policy, and torchvision's name of its weights; plain: there is none."""
        return None

    @property
    def n_domains(self) -> int:
        """Bodies or data sets with weights of their own in the network, one of which a robot is; plain: none (0)."""
        return 0

    @property
    def labels(self) -> dict[str, int]:
        """Whole numbers of the dataset that condition the policy, where the dataset has them: feature -> count."""
        return {}

    drop_n_last_frames: ClassVar[int] = 0

    takes_any_state: ClassVar[bool] = False
    """Whether trained weights go on with a state of another width (padded to the widest, or written into the prompt)."""

    @classmethod
    def fetches_backbone(cls, settings: Mapping[str, Any]) -> bool:
        """Whether these settings of a fresh policy name trained weights for its backbone; plain: they cannot."""
        return False

    relative_fields: ClassVar[Mapping[str, str]] = {}
    """Fields about actions relative to the state -> settings of the pipelines' step that does it; plain: none."""

    @classmethod
    def with_names(cls, settings: Mapping[str, Any], action_names: Sequence[str]) -> dict[str, Any]:
        """A run's settings of this config, with those that are the dataset's action names; plain: none is."""
        return dict(settings)

    @property
    def ensemble_decay(self) -> float | None:
        """How fast older chunks fade where this policy is made to average them; plain: it is not (None)."""
        return None

    @property
    def rtc_settings(self) -> Mapping[str, Any]:
        """LeRobot's `rtc_config`: `execution_horizon`, `max_guidance_weight`, ...; plain: none are written down."""
        return {}

    @property
    def has_own_parts(self) -> bool:
        """Whether its network has parts that no LeRobot knows (`Policy.own_modules`); plain: it has none."""
        return False

    @property
    def trained_delay(self) -> int:
        """Longest committed beginning of a chunk that it is trained for, in actions; plain: none (0)."""
        return 0

    def pose_space(self, processors: Processors) -> str | None:
        """What makes the actions end-effector poses, which no joint bus can follow; plain: they are joints (None)."""
        return None

    def validate(self) -> None:
        """Raises CheckpointError on settings that cannot work together. Called after reading and by training."""

    @property
    def reads_state(self) -> bool:
        """Whether it is told where the joints are."""
        return self.state_dim is not None

    def check_future_state(self) -> None:
        """Raises CheckpointError where a future state is none, or comes together with what contradicts it."""
        offset, length = self.future_state_max_offset, self.chunk_length
        if not 0 <= offset < length:
            raise CheckpointError(
                f"{self.type}: future_state_max_offset is {offset}; it must be from 0 (off) to {length - 1}, fewer than "
                "the actions of a chunk"
            )
        if not offset:
            return
        if self.input_features and not self.reads_state:
            raise CheckpointError(
                f"{self.type}: future_state_max_offset is {offset}, but this policy is told no state; set it to 0"
            )
        if len(self.observation_indices or [0]) > 1:
            raise CheckpointError(
                f"{self.type}: future_state_max_offset is {offset}, but this policy looks at several moments, of which "
                "only the present one has a future; set it to 0, or n_obs_steps=1"
            )
        for other, given in (
            ("rtc_training_max_delay", self.trained_delay),
            ("temporal_ensemble_coeff", self.ensemble_decay),
        ):
            if given:
                raise CheckpointError(
                    f"{self.type}: future_state_max_offset {offset} and {other} {given:g} do not go together: a chunk "
                    "of a future state begins where the one before leads to, with nothing of it to go on from or to "
                    "average; choose one of them"
                )

    def check_sizes(self, *names: str) -> None:
        """Raises CheckpointError where one of these fields is below 1; None means that it does not apply."""
        for name in names:
            value = getattr(self, name)
            if any(n is not None and n < 1 for n in (value if isinstance(value, tuple) else (value,))):
                raise CheckpointError(f"{self.type}: {name} is {value}; it must be at least 1")

    # -- config.json --------------------------------------------------------------------------------------

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PolicyConfig:
        """Reads LeRobot's flat JSON. Missing keys, and null where a field knows no null, take the defaults here.

        Raises:
            CheckpointError: a key that nobody reads and no list names; a value of another type than its field's;
                settings that cannot work together.
        """
        from ..account_config import account_of_keys

        fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in cls.own_keys}
        for entry in account_of_keys(cls.type, data, fields):
            if entry.verdict == "refused":
                raise CheckpointError(entry.becomes)
        features = ("input_features", "output_features")
        hints = typing.get_type_hints(cls)
        values: dict[str, Any] = {}
        for key in (k for k in data if k in fields and k not in features):
            try:
                values[key] = typed(data[key], hints[key])
            except TypeError as error:
                if data[key] is not None:
                    raise CheckpointError(
                        f"config.json ({cls.type}): '{key}' is {data[key]!r}, expected {fields[key].type}"
                    ) from error
        values |= {key: features_of(data, key) for key in features}
        _check_depths(cls.type, data)
        config = cls(**values)
        config.validate()
        return config

    newer_keys: ClassVar[frozenset[str]] = frozenset({"pretrained_revision"})
    """Fields that an older LeRobot refuses: written only where the loaded config had them or they say something."""

    own_keys: ClassVar[frozenset[str]] = frozenset({"future_state_max_offset"})
    """Fields that no LeRobot knows for this policy: they are kept in a file of our own (`train/own_keys.py`)."""

    def to_json(self) -> dict[str, Any]:
        """The flat JSON that LeRobot reads back; only LeRobot's own keys."""
        data: dict[str, Any] = {"type": self.type}
        for f in dataclasses.fields(self):
            if f.name in self.own_keys:
                continue
            value = getattr(self, f.name)
            if f.name in ("input_features", "output_features"):
                value = {k: {"type": v.type, "shape": list(v.shape)} for k, v in value.items()}
            data[f.name] = list(value) if isinstance(value, tuple) else value
        return data


def _check_depths(policy: str, data: Mapping[str, Any], within: str = "") -> None:
    """Raises CheckpointError where a number of layers is none that a network has: building it would never end."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            _check_depths(policy, value, f"{within}{key}.")
        elif key.endswith("layers") and isinstance(value, int) and value > MOST_LAYERS:
            raise CheckpointError(
                f"config.json ({policy}): '{within}{key}' is {value}; no more than {MOST_LAYERS} are built"
            )


def features_of(data: Mapping[str, Any], key: str) -> Features:
    """`input_features` or `output_features` of a config.json. Raises CheckpointError where one is not of that form."""
    found = data.get(key) or {}
    if not isinstance(found, dict):
        raise CheckpointError(f"config.json: {key} is {found!r}, expected a table of features by name")
    return {name: _feature(name, f) for name, f in found.items()}


def _feature(name: str, data: Any) -> PolicyFeature:
    try:
        feature = PolicyFeature(typed(data["type"], str), typed(data["shape"], tuple[int, ...]))
    except (TypeError, LookupError) as error:
        raise CheckpointError(
            f"config.json: feature '{name}' is {data!r}, expected its type and shape, such as "
            '{"type": "STATE", "shape": [6]}'
        ) from error
    if feature.type == "VISUAL" and (len(feature.shape) != 3 or min(feature.shape) < 1):
        raise CheckpointError(
            f"camera '{name}' has shape {list(feature.shape)}; expected [channels, height, width]"
        )
    return feature


def _length(name: str, feature: PolicyFeature) -> int:
    if len(feature.shape) != 1 or feature.shape[0] < 1:
        raise CheckpointError(f"'{name}' has shape {list(feature.shape)}; policies take one row of numbers")
    return feature.shape[0]


def typed(value: Any, hint: Any) -> Any:
    """A JSON value as an annotated type: lists become tuples, 8.0 becomes 8 where whole numbers are expected.

    Raises:
        TypeError: it is of another type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if origin in (typing.Union, types.UnionType):
        for kind in args:
            with contextlib.suppress(TypeError):
                return typed(value, kind)
    elif origin is dict and isinstance(value, dict):
        return {k: typed(v, args[1]) for k, v in value.items()}
    elif origin in (list, tuple) and isinstance(value, (list, tuple)):
        kinds = args if origin is tuple and args[-1] is not Ellipsis else args[:1] * len(value)
        if len(kinds) == len(value):
            return origin(typed(v, kind) for v, kind in zip(value, kinds, strict=True))
    elif hint is int and is_number and value == int(value):
        return int(value)
    elif (hint is float and is_number) or hint is Any or (hint in (bool, str) and isinstance(value, hint)):
        return value
    elif value is None and hint is types.NoneType:
        return None
    raise TypeError(f"{value!r} is no {getattr(hint, '__name__', hint)}")

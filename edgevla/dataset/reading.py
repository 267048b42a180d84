"""How a dataset is to be read: features under the names that policies use, some left out, which text is the task.

A person says it (`--feature observation.state=state`, `--without NAME`, `--task-from subtask`), a checkpoint remembers
it in its facts, and `open_dataset` applies it before anything else: who holds the dataset sees the policy's names only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from edgevla.dataset.layout import BOOKKEEPING, USED, FeatureInfo, Info
from edgevla.errors import UsageError
from edgevla.kinds import nearest
from edgevla.types import ACTION, STATE
from edgevla.vocabulary import TaskFrom

SUBTASK_COLUMNS = ("subtask_index", "subtask", "language_persistent")
"""Where a subtask may stand, the plainest first; `subtask_index` counts in `meta/subtasks.parquet`."""
_LIKE = {STATE: r"state|qpos|proprio|joint|pos(ition)?s?$", ACTION: r"action|command|target"}


@dataclass(frozen=True)
class DatasetReading:
    """names: the policy's name -> the dataset's. without: features left out, by either name.
    task_from: what the instruction of a frame is; None: nobody said, so the task."""

    names: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    task_from: TaskFrom | None = None

    def over(self, remembered: DatasetReading, info: Info) -> DatasetReading:
        """This, and what of a remembered reading fits the dataset and was not said otherwise."""
        taken = {*self.names.values()}
        names = {
            name: source
            for name, source in remembered.names.items()
            if source in info.features and name not in self.names and source not in taken
        }
        known = {*info.features, *names, *self.names}
        without = tuple(n for n in remembered.without if n in known and n not in self.without)
        has_subtasks = any(name in info.features for name in SUBTASK_COLUMNS)
        task_from = self.task_from or (remembered.task_from if has_subtasks else None)
        return DatasetReading({**names, **self.names}, (*without, *self.without), task_from)

    def applied(self, info: Info) -> Info:
        """The description under the policy's names; each feature knows its own column (`FeatureInfo.source`).

        Raises:
            UsageError: a name that is not there, stands twice, or is no feature of that kind.
        """
        features = self._renamed(info)
        for name in self.without:
            key = name if name in features else next((n for n, s in self.names.items() if s == name), None)
            if key is None:
                raise UsageError(
                    f"--without {name}: the dataset has no such feature; it has {_listed(info)}{nearest(name, features)}"
                )
            if key == ACTION or key in BOOKKEEPING:
                raise UsageError(f"--without {name}: nothing can be learnt without it; leave the option out")
            features.pop(key, None)
        return replace(info, features=features)

    def _renamed(self, info: Info) -> dict[str, FeatureInfo]:
        back: dict[str, str] = {}
        for name, source in self.names.items():
            _check_pair(name, source, info)
            if source in back:
                raise UsageError(
                    f"--feature gives '{source}' to {back[source]} and to {name}; it can be one of them"
                )
            back[source] = name
        return {
            back.get(key, key): replace(feature, name=back.get(key, key), source=key)
            for key, feature in info.features.items()
            if key in back or key not in self.names
        }


def _check_pair(name: str, source: str, info: Info) -> None:
    said = f"--feature {name}={source}"
    feature = info.features.get(source)
    if feature is None:
        is_turned = name in info.features and (source in USED or source.startswith("observation."))
        turned = f"; the policy's name comes first: --feature {source}={name}" if is_turned else ""
        raise UsageError(
            f"{said}: the dataset has no feature '{source}'; it has {_listed(info)}"
            f"{turned or nearest(source, info.features)}"
        )
    is_camera = name not in USED and name.startswith("observation.image")
    if name not in (*USED, *BOOKKEEPING, *SUBTASK_COLUMNS) and not is_camera:
        raise UsageError(
            f"{said}: no policy uses '{name}'; names that are used are observation.state, action, "
            "observation.environment_state and observation.images.NAME"
        )
    if is_camera and feature.is_depth:
        raise UsageError(f"{said}: '{source}' {feature.why_depth}; no policy here takes that as a camera")
    if is_camera != feature.is_camera and name in (*USED, name if is_camera else ""):
        kind = "a camera" if is_camera else "a row of numbers"
        raise UsageError(f"{said}: '{source}' is {feature.dtype} {list(feature.shape)}, not {kind}")


def _listed(info: Info) -> str:
    return ", ".join(describe(f) for f in info.features.values() if f.name not in BOOKKEEPING)


def describe(feature: FeatureInfo) -> str:
    """A feature in words for a person: name, kind, shape."""
    kind = "depth" if feature.is_depth else "camera" if feature.is_camera else feature.dtype
    return f"{feature.name} ({kind} {list(feature.shape)})"


def lookalikes(name: str, features: Mapping[str, FeatureInfo]) -> list[str]:
    """Features of numbers that may well be the state, or the action, under another name."""
    return [
        key
        for key, feature in features.items()
        if feature.is_numeric
        and key not in (*BOOKKEEPING, *USED)
        and not key.startswith(("next.", "camera_age_ms."))
        and re.search(_LIKE[name], key.rpartition(".")[2].lower())
        and (len(feature.shape) == 1 and feature.shape != (1,))
        and (name == ACTION or not re.search(_LIKE[ACTION], key.lower()))
    ]


def how_to_name(name: str, info: Info, taken: Iterable[str] = ()) -> str:
    """For the end of a sentence that misses a feature: what the dataset has, and what to type."""
    free = {
        k: f for k, f in info.features.items() if k not in taken and k not in (*BOOKKEEPING, ACTION, STATE)
    }
    if name in _LIKE:
        alike = lookalikes(name, free) or [k for k, f in free.items() if f.is_numeric]
    else:
        alike = [k for k, f in free.items() if f.is_camera]
    example = alike[0] if alike else "NAME"
    return f"it has {_listed(info)}; say which one it is: --feature {name}={example}"

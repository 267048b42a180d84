"""Settings of a policy that no LeRobot knows, in a file of our own beside `config.json`: LeRobot refuses unknown keys.

The file is there only where one of them says something. LeRobot loads such a folder and knows nothing of it.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from edgevla.errors import CheckpointError
from edgevla.strict import nearest

from .policies.config import PolicyConfig, typed

OWN_KEYS = "edgevla-policy.json"
C = TypeVar("C", bound=PolicyConfig)


def write_own_keys(config: PolicyConfig, folder: Path) -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    said = {k: getattr(config, k) for k in sorted(config.own_keys) if getattr(config, k) != defaults[k]}
    if said:
        (folder / OWN_KEYS).write_text(json.dumps(said, indent=2) + "\n")


def read_own_keys(folder: Path) -> dict[str, Any]:
    """What the folder's file says, unchecked; empty where there is none.

    Raises:
        CheckpointError: an unreadable file.
    """
    path = folder / OWN_KEYS
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy the checkpoint again") from error
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{path} holds no settings; copy the checkpoint again")
    return dict(data)


def with_own_keys(config: C, folder: Path) -> C:
    """`config` with what the folder's file says, checked again.

    Raises:
        CheckpointError: an unreadable file, a key that this policy does not have, a value of another form.
    """
    path = folder / OWN_KEYS
    data = read_own_keys(folder)
    if not data:
        return config
    made = dataclasses.replace(config, **{key: _value(config, key, data[key], path) for key in data})
    made.validate()
    return made


def _value(config: PolicyConfig, key: str, value: Any, path: Path) -> Any:
    if key not in config.own_keys:
        raise CheckpointError(f"{path}: {config.type} has no setting '{key}'{nearest(key, config.own_keys)}")
    hint = typing.get_type_hints(type(config))[key]
    try:
        return typed(value, hint)
    except TypeError as error:
        raise CheckpointError(
            f"{path}: '{key}' is {value!r}, expected {getattr(hint, '__name__', hint)}"
        ) from error

"""One account of what a checkpoint says: every key, step, setting, tensor, feature, statistic, and what becomes of it.

`inspect`, `train --from` and `export` ask `account_of` and stop at what it refuses, each by name: what nobody reads must
not vanish and be certified all the same. What changes nothing is on a list with its reason (here and in `steps.py`).
Where torch is missing the account says what can be said without: all but the config's own keys and the weights' names.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevla.errors import CheckpointError
from edgevla.types import ACTION

from .account_config import account_of_config
from .account_pipelines import account_of_pipelines, refused
from .account_statistics import account_of_statistics, used_features
from .adapters import is_adapter
from .entries import Entry
from .policies.config import features_of
from .processors import Processors, Stats
from .steps import MODES, features_in
from .weight_files import (
    ADAPTER,
    PREFIXES,
    own_weight_files,
    read_weights_header,
    unread_weights,
    values_not_finite,
    weight_files,
)

KINDS = ("VISUAL", "STATE", "ENV", "ACTION", "REWARD", "LANGUAGE")
PLAIN_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "BOOL")
"""Of weights, and of buffers that count or mask."""


@dataclass(frozen=True)
class Account:
    """folder: of the policy. entries: in the order of the files."""

    folder: Path
    policy: str
    entries: tuple[Entry, ...]

    @property
    def problems(self) -> list[str]:
        """A sentence each: why this checkpoint is refused."""
        return [e.becomes for e in self.entries if e.verdict == "refused"]

    @property
    def notes(self) -> list[str]:
        """What is read as LeRobot reads it, and what a person should know."""
        return [e.becomes for e in self.entries if e.verdict == "noted"]

    def require(self, *, for_training: bool = False) -> Account:
        """Itself. for_training: statistics come from the dataset, so the checkpoint may lack them.

        Raises:
            CheckpointError: something is refused; names the first three.
        """
        found = [
            e.becomes for e in self.entries if e.verdict == "refused" and (e.in_training or not for_training)
        ]
        if found:
            more = f"; and {len(found) - 3} more, which edgevla inspect lists" if len(found) > 3 else ""
            raise CheckpointError(f"{self.folder}: {'; '.join(found[:3])}{more}")
        return self


def account_of(folder: str | Path, *, with_weights: bool = True) -> Account:
    """The account of a policy folder. with_weights: their names and values too, which reads every byte of them.

    Raises:
        CheckpointError: a file that cannot be read at all.
    """
    folder = Path(folder)
    config = read_raw_config(folder)
    entries = list(account_of_config(config))
    try:
        entries += account_of_features(config)
        entries += _rest(folder, config, entries, with_weights=with_weights)
    except CheckpointError as error:
        entries.append(Entry("files", "", str(error), "refused"))
    return Account(folder, str(config["type"]), tuple(entries))


def _rest(folder: Path, config: Mapping[str, Any], before: list[Entry], *, with_weights: bool) -> list[Entry]:
    """Pipelines, statistics, and the weights where no more than statistics are refused.

    Raises:
        CheckpointError: an unreadable file.
    """
    header: Mapping[str, Any] = {}
    if with_weights or not (folder / "policy_preprocessor.json").is_file():
        header = {} if is_adapter(folder) else read_weights_header(folder)[0]
    is_legacy = any(name.startswith(PREFIXES) for name in header)
    processors = Processors.load(folder)
    entries = list(account_of_pipelines(folder, config, is_legacy=is_legacy))
    legacy = _legacy_statistics(folder, config) if is_legacy and not processors.pre else None
    if legacy is not None or processors.pre:
        entries += account_of_statistics(config, processors, legacy)
    if with_weights and not any(e.verdict == "refused" and e.in_training for e in (*before, *entries)):
        entries += account_of_weights(folder, header)
    return entries


def read_raw_config(folder: Path) -> dict[str, Any]:
    """config.json as it is. Raises CheckpointError: unreadable, or without a policy type."""
    path = folder / "config.json"
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); fetch the checkpoint again") from error
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        raise CheckpointError(f"{path} names no policy 'type', so it is not a LeRobot policy config")
    return data


# -- features -------------------------------------------------------------------------------------------------


def account_of_features(config: Mapping[str, Any]) -> Iterator[Entry]:
    """Raises CheckpointError: a feature that is not of a feature's form."""
    for key in ("input_features", "output_features"):
        features_of(config, key)
    used = used_features(config)
    yield from _of_mapping(config.get("normalization_mapping"))
    for key in ("input_features", "output_features"):
        for name, feature in features_in(config, key).items():
            kind, shape = feature.get("type"), feature.get("shape")
            for stranger in sorted(set(feature) - {"type", "shape"}):
                said = (
                    f"config.json: feature '{name}' says {stranger} = {feature[stranger]!r}, which is unknown"
                )
                yield refused(key, f"{name}.{stranger}", said)
            if kind not in KINDS:
                yield refused(
                    key,
                    name,
                    f"config.json: feature '{name}' has the type {kind!r}, which LeRobot does not have",
                )
            elif name in used and kind == "VISUAL" and isinstance(shape, list) and shape[:1] != [3]:
                yield refused(
                    key,
                    name,
                    f"config.json: camera '{name}' has {shape[0] if shape else 'no'} channels; RGB cameras are taken, "
                    "no depth",
                )
            elif name in used:
                yield Entry(key, name, "taken" if key == "input_features" else "given", "used")
            else:
                said = (
                    "stands for a camera that nobody has"
                    if "empty_camera_" in name
                    else "no input of this policy, in LeRobot either"
                )
                quiet = "empty_camera_" in name or (key == "output_features" and name == ACTION)
                yield Entry(key, name, f"'{name}': {said}", "no effect" if quiet else "noted")


def _of_mapping(mapping: Any) -> Iterator[Entry]:
    for kind, mode in mapping.items() if isinstance(mapping, Mapping) else ():
        if kind not in KINDS or str(mode) not in MODES:
            said = f"config.json: normalization_mapping says {kind} = {mode!r}, which LeRobot does not have"
            yield refused("normalization_mapping", str(kind), said)


# -- weights --------------------------------------------------------------------------------------------------


def account_of_weights(folder: Path, header: Mapping[str, Any]) -> Iterator[Entry]:
    """What becomes of each tensor, by the header of the weight file alone."""
    if not header:
        for name in values_not_finite([folder / ADAPTER])[:1]:
            yield refused(
                "weights", name, f"the factors in {folder} hold values that are not finite, in {name}"
            )
        yield Entry("weights", ADAPTER, "factors, added to their base's weights", "used")
        return
    packed = [name for name, weight in header.items() if weight.dtype not in PLAIN_DTYPES]
    if packed:
        yield refused(
            "weights",
            packed[0],
            f"the weights in {folder} are quantised ({packed[0]} is {header[packed[0]].dtype}), and nothing here knows "
            "their scales; save the policy in float32 or bfloat16",
        )
        return
    try:
        from .skeleton import parameters
    except ModuleNotFoundError:
        yield Entry("weights", "names", "whether they are the network's is known where torch is", "unknown")
    else:
        try:
            parameters(folder)
        except CheckpointError as error:
            yield Entry("weights", "names", str(error), "refused")
            return
    files = [*weight_files(folder), *own_weight_files(folder)]
    odd = values_not_finite(files, PREFIXES)
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        yield refused(
            "weights",
            odd[0],
            f"the weights in {folder} hold values that are not finite, in {odd[0]}{more}: training diverged, or the "
            "file is damaged",
        )
    yield Entry("weights", "tensors", f"{len(header)}, all of the network's", "used")
    for name in unread_weights(folder, files):
        said = f"{name} beside the weights is not read"
        if "ema" in name.lower():
            said += ": if it is the run's average (EMA), LeRobot drives with it only where it is model.safetensors"
        yield Entry("files", name, said, "noted")


def _legacy_statistics(folder: Path, config: Mapping[str, Any]) -> Stats | None:
    """Statistics among the weights; None without torch."""
    try:
        from safetensors import safe_open

        from .legacy import split_legacy
        from .policies.config import PolicyConfig
    except ModuleNotFoundError:
        return None
    tensors: dict[str, Any] = {}
    for file in weight_files(folder):
        with safe_open(str(file), framework="pt") as stream:
            tensors |= {k: stream.get_tensor(k) for k in stream.keys() if k.startswith(PREFIXES)}  # noqa: SIM118  not a mapping
    plain = dataclasses.replace(
        PolicyConfig(),
        input_features=features_of(config, "input_features"),
        output_features=features_of(config, "output_features"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # loading says it
        return split_legacy(tensors, plain)[1]

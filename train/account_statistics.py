"""The statistics' part of the account: what is normalised by a mode must have the numbers that the mode needs.

LeRobot leaves a feature without statistics as it is, in silence; an arm then moves 0.9 degrees where 45 were meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edgevla.types import ACTION, STATE

from .account_pipelines import modes_of, refused
from .entries import Entry
from .processors import POST, PRE, Processors, Stats, Step, unflatten_stats
from .steps import MODES, PACK, PLAIN, STATISTICS, UNPACK, features_in, pipelines_of

EMPTY_CAMERA = "observation.images.empty_camera_"
ROUNDING = 1e-3
"""Of a value: so far histograms and sums in float32 may put the ends of a range that is none."""
LOWER_OF = {"max": ("min", "max"), "q99": ("q01", "q99"), "q90": ("q10", "q90")}
"""The end of a range -> its ends."""


def used_features(config: Mapping[str, Any]) -> dict[str, Any]:
    """Features of config.json that the policy's network takes or gives, by name, as they are written there."""
    takes_environment = pipelines_of(str(config.get("type"))) is PLAIN
    used: dict[str, Any] = {}
    for name, feature in features_in(config, "input_features").items():
        kind = feature.get("type")
        is_used = {
            "VISUAL": not name.startswith(EMPTY_CAMERA),
            "STATE": name == STATE and config.get("use_proprio", True),
            "ENV": takes_environment and not any(f["type"] == "ENV" for f in used.values()),
        }.get(str(kind), False)
        if is_used:
            used[name] = feature
    output = features_in(config, "output_features").get(ACTION)
    return used if output is None else {**used, ACTION: output}


def account_of_statistics(
    config: Mapping[str, Any], processors: Processors, legacy: Stats | None
) -> Iterator[Entry]:
    """legacy: statistics found among the weights; None: the pipelines hold them."""
    if legacy is not None:
        yield from _of_modes("the weights", used_features(config), modes_of(config), legacy)
        return
    pack, unpack = processors.step(PACK.name), processors.post_step(UNPACK.name)
    if pack is not None or unpack is not None:
        yield from _of_groot(config, pack, unpack)
        return
    normalizer, unnormalizer = (
        processors.step("normalizer_processor"),
        processors.post_step("unnormalizer_processor"),
    )
    used = used_features(config)
    if normalizer is not None:
        yield from _of_step(f"{PRE}.json", normalizer, used, config)
    if unnormalizer is not None:
        yield from _of_step(
            f"{POST}.json", unnormalizer, {k: f for k, f in used.items() if k == ACTION}, config
        )
    if normalizer is not None and unnormalizer is not None:
        yield from _of_both(normalizer, unnormalizer)


def _of_step(file: str, step: Step, used: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Entry]:
    modes = step.config.get("norm_map") or modes_of(config)
    listed = step.config.get("features") or features_in(config)
    chosen = step.config.get("normalize_observation_keys")
    own = modes_of(config)
    differing = [t for t in modes if modes[t] != own.get(t, "IDENTITY")] if own else []
    for kind in differing if "norm_map" in step.config else []:
        other = own.get(kind, "IDENTITY")
        said = f"{kind}: {step.name} says {modes[kind]}, config.json {other}; the pipeline decides, as in LeRobot"
        yield Entry(file, f"norm_map.{kind}", said, "noted")
    normalised = {}
    for name, feature in used.items():
        mode = modes.get(str(feature.get("type")), "IDENTITY")
        if name == ACTION or mode == "IDENTITY" or name in listed:
            if name == ACTION or chosen is None or name in chosen:
                normalised[name] = feature
            continue
        yield refused(
            file,
            name,
            f"{file}: '{step.name}' does not list '{name}', so LeRobot would not normalise it although "
            f"{feature.get('type')} is {mode}",
            in_training=False,
        )
    stats = unflatten_stats(step.state) if step.state else {}
    yield from _of_modes(f"{file}, step '{step.name}'", normalised, modes, stats)
    yield from _tensors(file, step, stats)


def _of_modes(where: str, used: Mapping[str, Any], modes: Mapping[str, str], stats: Stats) -> Iterator[Entry]:
    for name, feature in used.items():
        kind = str(feature.get("type"))
        mode = modes.get(kind, "IDENTITY")
        found = stats.get(name)
        if mode == "IDENTITY" or mode not in MODES:
            continue
        if not found:
            yield refused(
                where,
                name,
                f"'{name}' is normalised by {mode}, and {where} has no statistics of it{_others(name, stats)}: it would "
                "pass as it is",
                in_training=False,
            )
            continue
        for statistic in MODES[mode]:
            why = _unusable(found.get(statistic), feature) or _impossible(statistic, found)
            if why is not None:
                said = f"'{name}' is normalised by {mode}, and its '{statistic}' in {where} {why}"
                yield refused(where, f"{name}.{statistic}", said, in_training=False)
            else:
                yield Entry(where, f"{name}.{statistic}", f"honoured ({mode})", "used")


def _others(name: str, stats: Stats) -> str:
    """A base that was trained on several datasets at once has theirs, each under the dataset's name."""
    others = [repr(other) for other in stats if other.endswith((f".{name}", f"_{name}"))]
    if not others:
        return ""
    return f", only {', '.join(others)}, other datasets' (edgevla train --from takes those of yours)"


def _unusable(values: np.ndarray | None, feature: Mapping[str, Any]) -> str | None:
    if values is None:
        return "is not there"
    shape = tuple(feature.get("shape") or ())
    sizes = [shape[:1], (shape[0], 1, 1), shape] if feature.get("type") == "VISUAL" and shape else [shape]
    if values.shape not in sizes:
        return f"has shape {list(values.shape)}, where {list(sizes[0])} is expected"
    if not np.isfinite(np.asarray(values, np.float64)).all():
        return "holds values that are not finite"
    return None


def _impossible(statistic: str, found: Mapping[str, np.ndarray]) -> str | None:
    """What no data have: a network would be fed its inputs mirrored, or multiplied by a hundred million."""
    values = found[statistic]
    noise = ROUNDING * (1 + np.abs(values))
    low, high = (found.get(k) for k in LOWER_OF.get(statistic, ("min", "max")))
    spread = high - low if low is not None and high is not None and low.shape == high.shape else None
    if statistic == "std" and (values < 0).any():
        return "is negative"
    if statistic == "std" and spread is not None and spread.shape == values.shape:
        return (
            "is 0 where the minimum and the maximum differ"
            if ((values == 0) & (spread > noise)).any()
            else None
        )
    if statistic in LOWER_OF and spread is not None and (spread < -noise).any():
        return f"is below its '{LOWER_OF[statistic][0]}'"
    return None


def _of_groot(config: Mapping[str, Any], pack: Step | None, unpack: Step | None) -> Iterator[Entry]:
    """GR00T normalises by minimum and maximum whatever normalization_mapping says."""
    used = {k: f for k, f in used_features(config).items() if k in (STATE, ACTION)}
    modes = {"STATE": "MIN_MAX", "ACTION": "MIN_MAX"}
    for file, step, features in (
        (f"{PRE}.json", pack, used),
        (f"{POST}.json", unpack, {k: f for k, f in used.items() if k == ACTION}),
    ):
        if step is not None:
            stats = unflatten_stats(step.state) if step.state else {}
            yield from _of_modes(f"{file}, step '{step.name}'", features, modes, stats)
            yield from _tensors(file, step, stats)
    if pack is not None and unpack is not None:
        yield from _of_both(pack, unpack)


def _tensors(file: str, step: Step, stats: Stats) -> Iterator[Entry]:
    """All else in the step's file: statistics of other features and of other kinds are LeRobot's habit."""
    for name, found in stats.items():
        for statistic in found:
            if not name or statistic not in STATISTICS:
                full = f"{name}.{statistic}" if name else statistic
                yield refused(
                    file,
                    full,
                    f"{file}: '{step.name}' has the tensor '{full}', which is no statistic of LeRobot's",
                )


def _of_both(pre: Step, post: Step) -> Iterator[Entry]:
    before, after = (unflatten_stats(s.state).get(ACTION, {}) if s.state else {} for s in (pre, post))
    for name in sorted(set(before) & set(after)):
        if before[name].shape != after[name].shape or not np.array_equal(
            before[name], after[name], equal_nan=True
        ):
            yield Entry(
                "statistics",
                f"{ACTION}.{name}",
                f"the action's '{name}' differs between the two pipelines; each is taken where it stands, as "
                "LeRobot does: what the network gives is scaled by the post-processor's",
                "noted",
            )

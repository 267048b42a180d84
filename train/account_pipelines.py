"""The pipelines' part of the account: every step, setting and tensor of both files, against `train/steps.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgevla.errors import CheckpointError
from edgevla.strict import nearest

from .entries import Entry
from .processors import POST, PRE
from .steps import (
    ABSOLUTE,
    ELSEWHERE,
    N17_STEPS,
    RELATIVE,
    Pipelines,
    StepRule,
    pipelines_of,
    rule_of,
)

N17 = (
    "this is GR00T N1.7, whose network and pipeline are others than N1.5's; EdgeVLA reads N1.5: take an N1.5 "
    "checkpoint, which LeRobot writes up to 0.5"
)
_FILE_KEYS = ("name", "steps")
_STEP_KEYS = ("registry_name", "class", "config", "state_file", "artifacts")


def account_of_pipelines(folder: Path, config: Mapping[str, Any], *, is_legacy: bool) -> Iterator[Entry]:
    """config: config.json as it is. is_legacy: normalisation is kept among the weights (LeRobot before 0.4)."""
    row = pipelines_of(str(config.get("type")))
    files = {name: raw_pipeline(folder, name) for name in (PRE, POST)}
    lacking = [f"{name}.json" for name, data in files.items() if data is None]
    if lacking:
        yield from _without_files(lacking, row, config, is_legacy=is_legacy)
        if len(lacking) == 2:
            return
    found: list[str] = []
    for name, rules in ((PRE, row.pre), (POST, row.post)):
        data = files[name]
        if data is None:
            continue
        yield from _file_keys(name, data)
        steps = data["steps"]
        for i, step in enumerate(steps):
            yield from _step(folder, f"{name}.json", i, step, rules, row, config)
        names = [canonical(rules, str(s.get("registry_name"))) for s in steps]
        found += names
        yield from _repeats(name, names, rules)
        yield from _order(name, names, row)
    if not lacking:
        for needed in row.needs:
            if needed not in found and not _is_idle(needed, config):
                where = PRE if rule_of(row.pre, needed) else POST
                yield refused(
                    f"{where}.json", needed, f"{where}.json lacks the step '{needed}', {_use(row, needed)}"
                )
    yield from _pairing(files)


def refused(where: str, name: str, why: str, **more: Any) -> Entry:
    """A line of the account that ends a load. why: what is said, without "refused"."""
    return Entry(where, name, f"{why}; refused", "refused", **more)


def canonical(rules: tuple[StepRule, ...], name: str) -> str:
    """The name by which the rules know a step; unknown ones keep theirs."""
    rule = rule_of(rules, name)
    return rule.name if rule is not None else name


def raw_pipeline(folder: Path, name: str) -> dict[str, Any] | None:
    """A pipeline's JSON; None where there is no such file. Raises CheckpointError: it is no pipeline."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text())
        steps = data.get("steps", [])
        if not all(isinstance(s.get("config") or {}, dict) for s in steps):
            raise TypeError("a step's config is no object")
    except (ValueError, AttributeError, TypeError, OSError) as error:
        raise CheckpointError(f"{path} is no pipeline ({error}); fetch the checkpoint again") from error
    return {**data, "steps": steps}


# -- what is missing ------------------------------------------------------------------------------------------


def _without_files(
    lacking: list[str], row: Pipelines, config: Mapping[str, Any], *, is_legacy: bool
) -> Iterator[Entry]:
    files = " and ".join(lacking)
    if is_legacy and len(lacking) == 2:
        yield Entry(
            "pipelines", files, "not there: written before LeRobot 0.4, statistics are weights", "used"
        )
    elif len(lacking) == 2 and row.had_none:
        modes = {t: m for t, m in modes_of(config).items() if m != "IDENTITY"}
        if not modes:
            yield Entry("pipelines", files, "not there, and nothing is normalised", "used")
            return
        said = ", ".join(f"{t} {m}" for t, m in modes.items())
        yield refused(
            "pipelines",
            files,
            f"the folder lacks {files} with the statistics, and config.json normalises {said}: what the network "
            "takes and gives would be driven as it is",
            in_training=False,
        )
    else:
        yield refused(
            "pipelines", files, f"the folder lacks {files}, which says what the network takes and gives"
        )


def modes_of(config: Mapping[str, Any]) -> dict[str, str]:
    """`normalization_mapping` of a config; empty where there is none."""
    found = config.get("normalization_mapping")
    return dict(found) if isinstance(found, Mapping) else {}


def _is_idle(needed: str, config: Mapping[str, Any]) -> bool:
    """A normaliser of nothing may be left out."""
    return needed in ("normalizer_processor", "unnormalizer_processor") and set(
        modes_of(config).values()
    ) <= {"IDENTITY"}


def _use(row: Pipelines, needed: str) -> str:
    rule = rule_of(row.pre, needed) or rule_of(row.post, needed)
    assert rule is not None
    if needed.endswith("normalizer_processor"):
        return "without which nothing is normalised there"
    return f"which the policy cannot do without ({rule.becomes})"


# -- one step -------------------------------------------------------------------------------------------------


def _file_keys(name: str, data: Mapping[str, Any]) -> Iterator[Entry]:
    for key in data:
        if key not in _FILE_KEYS:
            yield refused(
                f"{name}.json",
                key,
                f"{name}.json has the key '{key}', which is unknown{nearest(key, _FILE_KEYS)}",
            )
    said = data.get("name", name)
    if said in (PRE, POST) and said != name:
        yield refused(
            f"{name}.json", "name", f"{name}.json says that it is the {said}: the files are exchanged"
        )


def _step(
    folder: Path,
    file: str,
    i: int,
    step: Mapping[str, Any],
    rules: tuple[StepRule, ...],
    row: Pipelines,
    config: Mapping[str, Any],
) -> Iterator[Entry]:
    name, where = step.get("registry_name"), f"{file} step {i}"
    if "class" in step or not isinstance(name, str):
        given = step.get("class", name)
        yield refused(
            where,
            str(given),
            f"{file}: step {i} is the class {given!r} instead of a name of LeRobot's registry, and is not run here",
        )
        return
    rule = rule_of(rules, name)
    if rule is None:
        yield refused(where, name, _unknown(file, i, name, rules, row, str(config.get("type"))))
        return
    yield Entry(where, name, rule.becomes, "no effect" if "changes nothing" in rule.becomes else "used")
    for key in step:
        if key not in _STEP_KEYS:
            yield refused(
                where,
                f"{name}.{key}",
                f"{file}: step {i} '{name}' has {key} = {step[key]!r} beside its settings, which is unknown",
            )
    yield from _settings(file, i, name, rule, step.get("config") or {}, config)
    yield from _tensors(file, i, name, rule, step)
    yield from _artifacts(folder, file, name, step.get("artifacts") or {})


def _unknown(file: str, i: int, name: str, rules: tuple[StepRule, ...], row: Pipelines, policy: str) -> str:
    if name.startswith(N17_STEPS):
        return f"{file} has the step '{name}': {N17}"
    others = row.post if rules is row.pre else row.pre
    if rule_of(others, name) is not None:
        return f"{file}: step {i} '{name}' belongs to the other pipeline"
    if name in RELATIVE.names + ABSOLUTE.names:
        return f"{file}: step {i} '{name}' makes actions relative to the state, which is not computed for {policy}"
    known = [n for rule in rules for n in rule.names]
    said = f", which {ELSEWHERE[name]}," if name in ELSEWHERE else ""
    return f"{file}: step {i} '{name}'{said} is none that EdgeVLA computes for {policy}{nearest(name, known)}"


def _settings(
    file: str, i: int, name: str, rule: StepRule, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> Iterator[Entry]:
    for key, value in settings.items():
        setting, where = rule.settings.get(key), f"{file} step {i}"
        if setting is None:
            why = f"{file}: step {i} '{name}' has the setting {key} = {value!r}, which is unknown"
            yield refused(where, f"{name}.{key}", why + nearest(key, rule.settings))
            continue
        why_not = setting.refuse(value, config)
        if why_not is not None:
            yield refused(
                where, f"{name}.{key}", f"{file}: step {i} '{name}' has {key} = {_short(value)}: {why_not}"
            )
        else:
            is_idle = setting.becomes.startswith("changes nothing")
            yield Entry(where, f"{name}.{key}", setting.becomes, "no effect" if is_idle else "used")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _tensors(file: str, i: int, name: str, rule: StepRule, step: Mapping[str, Any]) -> Iterator[Entry]:
    state = step.get("state_file")
    if state and not rule.has_state:
        yield refused(
            f"{file} step {i}",
            f"{name}.state_file",
            f"{file}: step {i} '{name}' has tensors ({state}), which LeRobot's has not",
        )


def _artifacts(folder: Path, file: str, name: str, artifacts: Mapping[str, Any]) -> Iterator[Entry]:
    for key, place in artifacts.items():
        if (name, key) != ("tokenizer_processor", "tokenizer_name"):
            yield refused(
                file,
                f"{name}.artifacts",
                f"{file}: step '{name}' has the artifact {key} = {place!r}, which is unknown",
            )
        elif not (folder / str(place) / "tokenizer.json").is_file():
            yield refused(
                file,
                f"{name}.artifacts",
                f"{file}: step '{name}' has its tokenizer in '{place}', where no tokenizer.json lies",
            )


# -- steps among each other -----------------------------------------------------------------------------------


def _repeats(file: str, names: list[str], rules: tuple[StepRule, ...]) -> Iterator[Entry]:
    for name in dict.fromkeys(names):
        rule = rule_of(rules, name)
        if rule is not None and names.count(name) > 1 and not rule.may_repeat:
            yield refused(
                f"{file}.json",
                name,
                f"{file}.json has the step '{name}' {names.count(name)} times; one is computed",
            )


def _order(file: str, names: list[str], row: Pipelines) -> Iterator[Entry]:
    for chain in row.orders:
        there = [name for name in names if name in chain]
        wanted = sorted(there, key=chain.index)
        if there != wanted:
            pair = next((a, b) for a, b in zip(there, wanted, strict=True) if a != b)
            yield refused(
                f"{file}.json",
                pair[0],
                f"{file}.json has '{pair[0]}' before '{pair[1]}'; LeRobot's order is the other",
            )


def _pairing(files: Mapping[str, Mapping[str, Any] | None]) -> Iterator[Entry]:
    """Relative actions need both halves, and what is normalised by one mode cannot be un-normalised by another."""
    relative, absolute = (_config(files[f], rule) for f, rule in ((PRE, RELATIVE), (POST, ABSOLUTE)))
    is_relative, is_absolute = (bool(c is not None and c.get("enabled")) for c in (relative, absolute))
    if is_relative != is_absolute:
        on, off = (RELATIVE, ABSOLUTE) if is_relative else (ABSOLUTE, RELATIVE)
        state = "off" if (relative if off is RELATIVE else absolute) is not None else "not there"
        yield refused(
            "pipelines",
            on.name,
            f"'{on.name}' is on and '{off.name}' is {state}; offsets would be driven as positions, or the reverse",
        )
    modes = []
    for file, name in ((PRE, "normalizer_processor"), (POST, "unnormalizer_processor")):
        data = files[file]
        settings = (
            next((s.get("config") or {} for s in data["steps"] if s.get("registry_name") == name), None)
            if data
            else None
        )
        if settings is not None and isinstance(settings.get("norm_map"), Mapping):
            modes.append(settings["norm_map"].get("ACTION", "IDENTITY"))
    if len(set(modes)) > 1:
        yield refused(
            "pipelines",
            "norm_map",
            f"the action is normalised by {modes[0]} in the pre-processor and un-normalised by {modes[1]} "
            "in the post-processor",
        )


def _config(data: Mapping[str, Any] | None, rule: StepRule) -> Mapping[str, Any] | None:
    steps = data["steps"] if data is not None else []
    return next((s.get("config") or {} for s in steps if s.get("registry_name") in rule.names), None)

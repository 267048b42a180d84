"""What a person should know before the first step: what no robot measures, what stands still, what is not used."""

from __future__ import annotations

from collections.abc import Iterator

from edgevla.dataset.facts import DatasetFacts
from edgevla.dataset.layout import BOOKKEEPING
from edgevla.dataset.reader import Dataset
from edgevla.dataset.still import still_sentences, still_values
from edgevla.types import STATE

from .data import TrainingData
from .policies.base import Policy


def notes(policy: Policy, data: TrainingData, facts: DatasetFacts) -> Iterator[str]:
    """Sentences, most of them on few datasets."""
    yield from _reading(data.dataset)
    if policy.config.environment_state_dim is not None:
        key = policy.config.environment_state_key
        yield (
            f"The policy takes '{key}' ({policy.config.environment_state_dim} values), which no robot here can measure: "
            f"edgevla deploy will refuse it. To do without: --without {key}"
        )
    state = facts.features.get(STATE)
    if state is not None and policy.config.state_dim is not None:
        still = still_values(policy.processors.stats.get(STATE, {}), state.units)
        for sentence in still_sentences(still, state.names, state.units):
            yield f"WARNING: {sentence}"
    unused = _unused(data)
    if unused:
        yield f"Not used by the policy: {', '.join(unused)}."


def _reading(dataset: Dataset) -> Iterator[str]:
    reading = dataset.reading
    if reading.names:
        pairs = ", ".join(f"{source} as {name}" for name, source in reading.names.items())
        yield f"Read under other names: {pairs}."
    if reading.without:
        yield f"Left out: {', '.join(reading.without)}."
    if reading.task_from == "subtask":
        yield f"The instruction of a frame is its subtask; there are {len(dataset.tasks)} of them."


def _unused(data: TrainingData) -> list[str]:
    """Observations and actions of the dataset that are no input and no label; cameras with them."""
    used = {*data.sources, *BOOKKEEPING}
    return [
        name
        for name, feature in data.dataset.info.features.items()
        if name not in used and (feature.is_picture or name.startswith(("observation", "action")))
    ]

"""The task of a bundle: the dataset's where it has one; of several, none is chosen for the user, and all are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgevla.bundle import load_bundle
from edgevla.dataset import facts_of, open_dataset
from edgevla.dataset.facts import DatasetFacts
from edgevla.errors import UsageError
from edgevla.export.describe import describe_bundle
from edgevla.export.draft import _prompt

SO101 = Path(__file__).parents[1] / "fixtures" / "datasets" / "so101_v30"


@pytest.fixture(scope="module")
def facts() -> DatasetFacts:
    """Two tasks."""
    return facts_of(open_dataset(SO101), "degrees")


@pytest.fixture
def policy(make_bundle: Callable[..., Path]) -> Callable[..., Any]:
    """`policy(usual)`: something that takes language, with a sentence of its own for want of a better one."""
    recipe = load_bundle(make_bundle("flow")).manifest.to_json()["prompt"]

    def make(usual: str | None = None) -> Any:
        return SimpleNamespace(policy_type="smolvla", prompt_recipe=lambda: {**recipe, "default_task": usual})

    return make


def test_the_only_task_of_the_data_is_asked_for_when_nobody_says(
    policy: Callable[..., Any], facts: DatasetFacts
) -> None:
    prompt = _prompt(policy(), None, replace(facts, tasks=["pick", ""]))
    assert prompt is not None
    assert (prompt.default_task, prompt.trained_tasks) == ("pick", ())
    prompt = _prompt(policy(), "place", replace(facts, tasks=["pick"]))
    assert prompt is not None
    assert prompt.default_task == "place", "the user has the last word"
    prompt = _prompt(policy("Perform the task."), None, None)
    assert prompt is not None
    assert prompt.default_task == "Perform the task."


@pytest.mark.parametrize("usual", [None, "Perform the task."])
def test_of_several_tasks_none_is_chosen_and_all_are_named(
    policy: Callable[..., Any], facts: DatasetFacts, usual: str | None
) -> None:
    prompt = _prompt(policy(usual), None, facts)
    assert prompt is not None
    assert prompt.default_task is None
    assert prompt.trained_tasks == tuple(facts.tasks)
    assert len(prompt.trained_tasks) == 2


def test_inspect_names_the_tasks_of_a_bundle_without_a_default(make_bundle: Callable[..., Path]) -> None:
    recipe = load_bundle(make_bundle("flow")).manifest.to_json()["prompt"]
    several = {**recipe, "default_task": None, "trained_tasks": ["pick the cube", "place the cube"]}
    lines = "\n".join(describe_bundle(make_bundle("flow", "several", prompt=several))[0])
    assert "default task none: deploy with --task" in lines
    assert "trained on    'pick the cube'\ntrained on    'place the cube'" in lines


def test_a_policy_without_language_takes_no_task(facts: DatasetFacts) -> None:
    act: Any = SimpleNamespace(policy_type="act", prompt_recipe=lambda: None)
    assert _prompt(act, None, facts) is None
    with pytest.raises(UsageError, match="act takes no language"):
        _prompt(act, "pick", facts)

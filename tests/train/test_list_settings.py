"""`edgevla train --policy X --list-settings`: every field that may be set, with what it is and does."""

from __future__ import annotations

import dataclasses

import pytest

from edgevla.cli import main
from edgevla.train.account_config import NO_EFFECT
from edgevla.train.config import recipe_names
from edgevla.train.policies import POLICIES, config_class, policy_names
from edgevla.train.settings import FROM_THE_DATASET, MEANINGS, lines, said
from edgevla.train.start import OPTIONS


@pytest.mark.parametrize("policy", policy_names())
def test_the_list_has_every_field_with_its_words(policy: str) -> None:
    text = "\n".join(lines(policy))
    fields = {f.name for f in dataclasses.fields(config_class(policy))}
    shown = [name for name in MEANINGS if name in fields]
    assert all(f"\n  {name} " in text for name in shown)
    assert all(name in text for name in fields - {*OPTIONS, *NO_EFFECT, *FROM_THE_DATASET})
    assert len(shown) >= 8


def test_presets_are_listed_and_the_one_for_small_machines_is_in_the_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "--list-recipes"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[1:]] == recipe_names()
    (small,) = [line for line in listed if "act_small" in line]
    assert "for small pictures and two CPU cores" in small
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "act_small for small machines" in " ".join(capsys.readouterr().out.split())


def test_defaults_are_those_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--policy", "pi05_fast", "--list-settings"]) == 0
    out = capsys.readouterr().out
    assert "--lr                           2.5e-05" in out
    steps = next(line for line in out.splitlines() if "num_inference_steps" in line)
    assert steps.split()[1] == "5"


def test_no_words_are_of_a_field_that_is_gone() -> None:
    fields = {f.name for name in POLICIES for f in dataclasses.fields(config_class(name))}
    assert set(MEANINGS) <= fields


def test_values_are_shown_as_they_are_typed() -> None:
    assert [said(v) for v in (None, True, 3, 1e-5, (2, 4), "relu")] == [
        "none",
        "true",
        "3",
        "1e-05",
        "[2, 4]",
        "relu",
    ]


def test_it_wants_to_know_of_which_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--list-settings"]) == 2
    assert "Say --policy NAME" in capsys.readouterr().err

"""Defaults < recipe < command line, frozen, written beside the run, and loaded back equal."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevla.errors import ConfigError, UsageError
from edgevla.strict import Mismatch, read
from edgevla.toml import tomllib
from edgevla.train.config import (
    TrainConfig,
    recipe_names,
    split_episodes,
    to_toml,
)


@pytest.mark.parametrize("recipe", recipe_names())
def test_what_is_written_loads_back_equal(recipe: str, tmp_path: Path) -> None:
    config = TrainConfig.resolve(
        recipe,
        {
            "dataset": 'odd "name" \\ \n\t',
            "cameras": {"observation.images.front": "front", "wrist": "none"},
            "settings": {
                "dropout": 0.1,
                "n": 3,
                "on": False,
                "shape": [1, 2],
                "deep": {"a.b": 1e-30},
                "none": None,
            },
        },
    )
    config.save(tmp_path / "c.toml")
    expected = dataclasses.replace(config, settings={**config.settings, "none": "none"})  # TOML has no null
    assert TrainConfig.load(tmp_path / "c.toml") == expected


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5),
        st.one_of(st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False), st.text()),
        max_size=4,
    )
)
def test_any_table_survives_toml(table: dict) -> None:
    assert tomllib.loads(to_toml({"t": table})) == {"t": table}


def test_the_command_line_wins_over_the_recipe_and_that_over_the_defaults() -> None:
    config = TrainConfig.resolve("act", {"batch_size": 32, "optimizer": {"weight_decay": 0.5}})
    assert (config.batch_size, config.steps, config.accumulate) == (32, 100_000, 1)
    assert (config.optimizer.weight_decay, config.optimizer.lr) == (0.5, 1e-5)


def test_the_learning_rate_carries_its_companions_along() -> None:
    act = TrainConfig.resolve("act", {"optimizer": {"lr": 1e-4}})
    assert act.settings["optimizer_lr_backbone"] == pytest.approx(1e-4)
    kept = TrainConfig.resolve(
        "act", {"optimizer": {"lr": 1e-4}, "settings": {"optimizer_lr_backbone": 1e-5}}
    )
    assert kept.settings["optimizer_lr_backbone"] == 1e-5
    assert TrainConfig.resolve("smolvla", {"optimizer": {"lr": 1e-3}}).scheduler.decay_lr == pytest.approx(
        2.5e-5
    )


def test_pi05_fast_is_pi05_in_five_steps() -> None:
    config = TrainConfig.resolve("pi05_fast", {})
    assert (config.policy, config.settings) == ("pi05", {"num_inference_steps": 5})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stepps = 3", "unknown key 'stepps'; did you mean 'steps'"),
        ("[optimizer]\nbeta = [0.9, 0.9]", "did you mean 'betas'"),
        ("steps = 'many'", "mine.toml: steps is 'many'; expected a whole number"),
        ("steps = 1.5", "steps is 1.5; expected a whole number"),
        ("steps = true", "expected a whole number"),
        ("[optimizer]\ntype = 'sgd'", "optimizer.type is 'sgd'; expected one of adam, adamw"),
        ("[optimizer]\nbetas = [0.9]", "expected 2"),
        ("[optimizer]\nweight_decay = nan", "weight_decay is nan; expected a finite number"),
        ("steps = ", "not valid TOML"),
    ],
)
def test_a_wrong_recipe_says_where_and_what(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says.replace("[", r"\[")) as error:
        TrainConfig.resolve(str(path), {})
    assert "mine.toml" in str(error.value)


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'diffusion'"):
        TrainConfig.resolve("difusion", {})


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"batch_size": -1}, {"optimizer": {"lr": 0.0}}, {"merge_lora": True}]
)
def test_values_that_cannot_be_are_refused(change: dict) -> None:
    with pytest.raises(UsageError):
        TrainConfig.resolve("act", change)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("3", int, 3),
        ("1e5", int, 100_000),
        (1e5, int, 100_000),
        ("1e-4", float, 1e-4),
        (2, float, 2.0),
        ("True", bool, True),
        ("none", float | None, None),
        ("0.5", float | None, 0.5),
        ("[1, 2]", tuple[int, int], (1, 2)),
        ('{"STATE": "MIN_MAX"}', dict[str, str], {"STATE": "MIN_MAX"}),
        ("none", str, "none"),
    ],
)
def test_words_become_typed_values(value: object, hint: object, expected: object) -> None:
    got = read(hint, value, "x", words=True)
    assert (got, type(got)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("value", "hint"), [("x", int), ("1.5", int), ("yes", bool), ("[1", list[int]), (1, str)]
)
def test_words_of_another_type_are_refused(value: object, hint: object) -> None:
    with pytest.raises(Mismatch, match=r"x is .*; expected"):
        read(hint, value, "x", words=True)


def test_held_out_episodes_are_never_trained_on() -> None:
    base = TrainConfig()
    assert split_episodes(base, 4) == ([0, 1, 2, 3], [])
    assert split_episodes(dataclasses.replace(base, eval_episodes="1"), 4) == ([0, 1, 2], [3])
    assert split_episodes(dataclasses.replace(base, eval_episodes="0:2", episodes="1:4"), 4) == (
        [2, 3],
        [0, 1],
    )
    for bad in ("4", "0:4"):
        with pytest.raises(UsageError):
            split_episodes(dataclasses.replace(base, eval_episodes=bad), 4)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"seed": -5}, "seed is -5"),
        ({"threads": -1}, "threads is -1"),
        ({"workers": 0}, "workers is 0; it must be at least 1"),
        ({"save_freq": -3}, "save_freq is -3"),
        ({"lora_alpha": 4}, "--lora-alpha was given without --lora"),
        ({"optimizer": {"weight_decay": -1.0}}, "weight_decay is -1"),
        ({"scheduler": {"warmup_steps": -3}}, "warmup_steps is -3"),
    ],
)
def test_numbers_that_cannot_be_are_refused(overrides, words):
    with pytest.raises(UsageError, match=words):
        TrainConfig.resolve("act", overrides)

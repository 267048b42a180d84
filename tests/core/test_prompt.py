"""Prompts are token for token those of the reference: checked against the recorded cases of every language policy."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevla.errors import BundleError
from edgevla.prompt import CLEANERS, GROOT_TEMPLATE, PromptBuilder, discretise, groot_template

GOLDENS = Path(__file__).parents[1] / "fixtures" / "goldens"
PUBLISHED: dict[str, tuple[str, tuple[str, ...]]] = {
    "smolvla": ("{task}", ("ensure_newline",)),
    "pi0": ("{task}", ("ensure_newline",)),
    "pi05": ("Task: {task}, State: {state};\nAction: ", ("strip", "underscore_to_space", "newline_to_space")),
    "xvla": ("{task}", ()),
    "groot": (GROOT_TEMPLATE, ("list_repr",)),
}
"""Recipe -> template and what is done to the task first, as LeRobot builds each policy's prompt."""
TASK = "Pick up the red cube and place it in the bowl."


def tensors(policy: str, *keys: str, file: str = "cases.safetensors") -> list[np.ndarray]:
    """Reads a few tensors without the safetensors package, which the robot does not have."""
    raw = (GOLDENS / policy / file).read_bytes()
    n = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + n])
    kinds = {"F32": np.float32, "I64": np.int64, "BOOL": np.bool_}
    out = []
    for key in keys:
        entry = header[key]
        start, end = (8 + n + o for o in entry["data_offsets"])
        out.append(np.frombuffer(raw[start:end], kinds[entry["dtype"]]).reshape(entry["shape"]))
    return out


def recipe(
    name: str, n_tokens: int, *, add_bos: bool = True, pad_id: int = 0, **changes: Any
) -> dict[str, Any]:
    template, cleaning = PUBLISHED[name]
    tokenizer = {
        "file": "tokenizer/tokenizer.json",
        "n_tokens": n_tokens,
        "padding": "max_length",
        "padding_side": changes.pop("padding_side", "right"),
        "add_bos": add_bos,
        "pad_id": pad_id,
        "truncation": changes.pop("truncation", True),
    }
    return {
        "recipe": name,
        "template": template,
        "clean_task": list(cleaning),
        "state": None,
        "tokenizer": tokenizer,
        "default_task": None,
        **changes,
    }


def builder(policy: str, *arguments: Any, **changes: Any) -> PromptBuilder:
    return PromptBuilder.from_recipe(recipe(policy, *arguments, **changes), GOLDENS / policy / "checkpoint")


def pi05_state() -> dict[str, Any]:
    a, b = tensors(
        "pi05",
        "observation.state.q01",
        "observation.state.q99",
        file=next((GOLDENS / "pi05/checkpoint").glob("*preprocessor*normalizer*.safetensors"))
        .relative_to(GOLDENS / "pi05")
        .as_posix(),
    )
    return {"mode": "QUANTILES", "eps": 1e-8, "a": a.tolist(), "b": b.tolist(), "n_bins": 256, "pad_to": None}


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("smolvla", {"add_bos": False, "pad_id": 2}),
        ("pi0", {}),
        ("xvla", {"pad_id": 1}),
    ],
)
def test_tasks_become_the_references_tokens(policy: str, options: dict[str, Any]) -> None:
    want_tokens, want_mask = tensors(policy, "batch/tokens", "batch/token_mask")
    tasks = json.loads((GOLDENS / policy / "cases.json").read_text())["tasks"]
    is_cut = pytest.warns(UserWarning, match="was cut") if policy == "xvla" else contextlib.nullcontext()
    with is_cut:
        prompt = builder(policy, want_tokens.shape[1], **options).build(tasks)
    np.testing.assert_array_equal(prompt.tokens, want_tokens)
    np.testing.assert_array_equal(prompt.mask, want_mask)
    assert prompt.tokens.dtype == np.int64


def test_pi05_writes_the_state_as_the_reference_does() -> None:
    cases = json.loads((GOLDENS / "pi05/cases.json").read_text())
    tokens, mask, batch_tokens, state, states = tensors(
        "pi05",
        "infer/pre/tokens",
        "infer/pre/token_mask",
        "batch/tokens",
        "infer/obs/observation.state",
        "train/obs/observation.state",
    )
    build = builder("pi05", 64, state=pi05_state())
    assert [build.text(cases["tasks"][0], state)] == cases["prompts"][:1]
    assert [build.text(t, s) for t, s in zip(cases["tasks"], states, strict=True)] == cases["prompts"][1:]
    one = build.build(cases["tasks"][:1], state[None])
    np.testing.assert_array_equal(one.tokens, tokens)
    np.testing.assert_array_equal(one.mask, mask)
    np.testing.assert_array_equal(build.build(cases["tasks"], states).tokens, batch_tokens)
    with pytest.raises(BundleError, match="hold the state"):
        build.build(["x"])


def test_groot_chat_prompt_is_the_references() -> None:
    cases = json.loads((GOLDENS / "groot/cases.json").read_text())
    (want,) = tensors("groot", "infer/pre/eagle_input_ids")
    template = groot_template(n_cameras=2, tokens_per_image=4)
    exact = builder("groot", want.shape[1], add_bos=False, truncation=False, template=template)
    assert exact.text(cases["tasks"][0]) == cases["prompt"]
    np.testing.assert_array_equal(exact.build(cases["tasks"]).tokens, want)
    with pytest.raises(BundleError, match=r"has \d+ tokens, the policy takes 93"):
        exact.build([cases["tasks"][0] * 2])
    wide = builder("groot", 99, add_bos=False, truncation=False, template=template, padding_side="left")
    prompt = wide.build(cases["tasks"])
    assert prompt.mask[0].tolist() == [False] * 6 + [True] * 93
    np.testing.assert_array_equal(prompt.tokens[:, 6:], want)


def test_a_long_prompt_is_cut_with_a_warning_and_keeps_its_first_token() -> None:
    short = builder("pi0", 5)
    with pytest.warns(UserWarning, match="was cut to 5"):
        prompt = short.build([TASK])
    assert prompt.tokens.shape == (1, 5)
    assert prompt.tokens[0, 0] == 2  # the tokenizer's BOS


@pytest.mark.parametrize(
    ("x", "number"),
    [
        (-1.5, -1),
        (-1, 0),
        (-0.004, 127),
        (0, 128),
        (0.003, 128),
        (0.0079, 129),
        (0.99, 254),
        (0.9922, 255),
        (1.7, 255),
    ],
)
def test_bins_at_their_edges(x: float, number: int) -> None:
    assert discretise(np.array([x]), 256) == [number]


def test_a_state_of_checkpoints_before_lerobot_05_is_padded_first() -> None:
    state = {"mode": "IDENTITY", "eps": 1e-8, "a": [], "b": [], "n_bins": 256, "pad_to": 4}
    text = builder("pi05", 64, state=state).text("go_\n", np.array([-2.0, 0.5]))
    assert text == "Task: go , State: -1 192 128 128;\nAction: "


def test_formal_language_keeps_letters_digits_and_spaces() -> None:
    assert CLEANERS["lower_no_punctuation"]("Pick_up, the 'RED' cube 2!") == "pickup the red cube 2"


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_to_the_longest_of_a_batch(side: str) -> None:
    fixed = builder("xvla", 30, pad_id=1, padding_side=side)
    asked = recipe("xvla", 30, pad_id=1, padding_side=side)
    asked["tokenizer"]["padding"] = "longest"
    longest = PromptBuilder.from_recipe(asked, GOLDENS / "xvla" / "checkpoint")
    tasks = ["go", "Close the drawer."]
    whole, cut = fixed.build(tasks), longest.build(tasks)
    n = int(whole.mask.sum(axis=1).max())
    real = slice(n) if side == "right" else slice(30 - n, None)
    assert cut.mask.sum(axis=1).max() == cut.mask.shape[1] == n < 30
    np.testing.assert_array_equal(cut.tokens, whole.tokens[:, real])
    assert longest.build(tasks[:1]).mask.all()


def test_a_task_is_text_not_a_template() -> None:
    state = {"mode": "IDENTITY", "eps": 1e-8, "a": [], "b": [], "n_bins": 256, "pad_to": None}
    assert "put {state} away" in builder("pi05", 64, state=state).text("put {state} away", np.zeros(1))


def test_what_the_recipe_says_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"'stripp', which is unknown; did you mean 'strip'"):
        builder("pi0", 8, clean_task=["stripp"])
    with pytest.raises(BundleError, match=r"tokenizer.json is missing"):
        PromptBuilder.from_recipe(recipe("pi0", 8), tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"is damaged"):
        PromptBuilder.from_recipe(recipe("pi0", 8), tmp_path)

"""Values that cannot be, texts that are none: one sentence with what is allowed, exit code 2, before anything starts."""

import json
import sys

import pytest

from edgevla.arguments import SetTask, arguments_from
from edgevla.bundle import load_bundle
from edgevla.cli import main
from edgevla.errors import UsageError
from edgevla.execution import execution_from
from edgevla.execution.strategies import check_chunk
from edgevla.extras import install_words
from edgevla.launch import children
from edgevla.launch.deployment import DeployOptions, check_fitting
from edgevla.launch.options import Number, whole
from edgevla.launch.sources import PolicySource
from edgevla.words import check_task, check_text

NOT_TEXT = {
    "no UTF-8": "pick\udcff up",
    "a lone surrogate": "pick \ud83d up",
    "a bell": "pick\x07 up",
    "an escape": "\x1b[2Jpick up",
    "a line": "pick\nup",
    "a null": "pick\0up",
    "100 kB": "pick up " * 12_800,
}
SIM = ["--robot=so101", "--sim"]


@pytest.fixture
def verbs(tmp_path, bundle, monkeypatch):
    """Verb -> how it is said; none of them may start a process."""

    def never(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(children.Child, "start", never)
    return {
        "deploy": ["deploy", str(bundle), *SIM],
        "teleop": ["teleop", "--leader=so101_leader", *SIM],
        "replay": ["replay", str(tmp_path / "dataset"), *SIM],
        "record": ["record", str(tmp_path / "dataset")],
        "monitor": ["monitor"],
        "service": ["service", "install", f"--unit-dir={tmp_path}", "act", str(bundle), *SIM],
    }


def refused(capsys, words, code=2):
    """The one sentence."""
    assert main(words) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


NUMBERS = [
    ("deploy", "--duration", "positive and at most"),
    ("deploy", "--n-action-steps", "from 1 to 100000"),
    ("deploy", "--every", "from 1 to 100000"),
    ("deploy", "--decay", "from -100 to 100"),
    ("deploy", "--guidance-end", "from 0 to 100000"),
    ("deploy", "--max-guidance", "from 0 to 1000000"),
    ("deploy", "--n-steps", "from 1 to 1000"),
    ("deploy", "--threads", "from 1 to 1024"),
    ("deploy", "--seed", "from 0 to 4294967295"),
    ("deploy", "--servo-hz", "above 0 and at most 1000"),
    ("deploy", "--inject-delay-ms", "from 0 to 60000"),
    ("service", "--threads", "from 1 to 1024"),
    ("teleop", "--duration", "positive and at most"),
    ("teleop", "--fps", "above 0 and at most"),
    ("replay", "--episode", "from 0 to 1000000000"),
    ("record", "--episodes", "from 1 to 1000000"),
    ("record", "--seconds", "positive and at most"),
    ("record", "--pause", "from 0 to"),
]


@pytest.mark.parametrize(("verb", "option", "allowed"), NUMBERS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1e9", "1e18", "ten", "", "1.5.2"])
def test_a_number_that_cannot_be_is_refused_with_its_range(verbs, capsys, verb, option, allowed, value):
    said = refused(capsys, [*verbs[verb], f"{option}={value}"])
    assert f"""{option} {value or "''"} must be """ in said
    assert allowed in said


@pytest.mark.parametrize(
    ("verb", "option", "value"),
    [
        ("deploy", "--threads", "0"),
        ("deploy", "--threads", "-1"),
        ("deploy", "--threads", "1.5"),
        ("deploy", "--duration", "0"),
        ("deploy", "--servo-hz", "0"),
        ("deploy", "--n-steps", "0"),
        ("deploy", "--n-action-steps", "0"),
        ("deploy", "--every", "0"),
        ("record", "--episodes", "0"),
        ("record", "--seconds", "0"),
        ("replay", "--episode", "-1"),
        ("teleop", "--fps", "0"),
    ],
)
def test_nothing_and_less_is_refused_where_something_is_needed(verbs, capsys, verb, option, value):
    assert f"{option} {value} must be " in refused(capsys, [*verbs[verb], f"{option}={value}"])


def test_a_range_is_said_as_it_is():
    assert whole(1, 8).range == "a whole number from 1 to 8"
    assert Number(0, 1000, above=True).range == "above 0 and at most 1000"
    assert whole(1, 8)("8") == 8
    assert Number(0, 1)("1e-3") == 0.001


@pytest.mark.parametrize("execution", ["sync", "ensemble", "async"])
def test_more_than_a_chunk_holds_is_refused(bundle, execution):
    """The hand-made bundle's chunks have 30 actions."""
    option = "n_action_steps" if execution == "sync" else "every"
    wanted = {"kind": execution, option: 99}
    words = f"--{option.replace('_', '-')} 99 must be at most 30, the actions of this policy's chunks"
    with pytest.raises(UsageError, match=words):
        PolicySource(bundle, DeployOptions("so101", execution=wanted))
    assert PolicySource(bundle, DeployOptions("so101", execution={**wanted, option: 30})).execution


def test_guidance_ends_within_the_chunk():
    check_chunk(execution_from({"kind": "rtc", "guidance_end": 30}), 30, 30)
    with pytest.raises(UsageError, match="--guidance-end 31 must be at most 30"):
        check_chunk(execution_from({"kind": "rtc", "guidance_end": 31}), 30, 30)


def test_denoise_steps_belong_to_policies_that_have_some(make_bundle):
    with pytest.raises(UsageError, match="has no denoise steps"):
        check_fitting(load_bundle(make_bundle("act")).manifest, DeployOptions("so101", n_steps=3))
    flow = load_bundle(make_bundle("flow", "flow")).manifest
    check_fitting(flow, DeployOptions("so101", n_steps=100))
    with pytest.raises(UsageError, match="--n-steps 101 must be from 1 to 100"):
        check_fitting(flow, DeployOptions("so101", n_steps=101))


# -- texts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["deploy", "teleop", "record", "service"])
@pytest.mark.parametrize("text", NOT_TEXT.values(), ids=NOT_TEXT)
def test_a_task_that_is_no_text_is_refused(verbs, capsys, verb, text):
    said = refused(capsys, [*verbs[verb], f"--task={text}"])
    assert "--task h" in said
    assert len(said) < 300


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        ("deploy", "--calibration"),
        ("deploy", "--log"),
        ("deploy", "--camera"),
        ("teleop", "--leader-port"),
        ("replay", "--port"),
        ("record", "--camera"),
        ("record", "--run-dir"),
        ("monitor", "--run-dir"),
    ],
)
@pytest.mark.parametrize("text", ["bad\udcff", "ring\x07", "x" * 100_000])
def test_no_option_takes_what_is_no_text(verbs, capsys, verb, option, text):
    assert f"{option} h" in refused(capsys, [*verbs[verb], f"{option}={text}"])


@pytest.mark.parametrize("text", ["", "  ", "pick\x07 up", "pick\nup", "x" * 2000])
def test_a_task_that_comes_over_a_socket_is_judged_like_one_that_is_typed(text):
    """The monitor's, or a program's: the asked node answers with the sentence."""
    with pytest.raises(UsageError, match="the task "):
        arguments_from("set_task", {"task": text})
    assert arguments_from("set_task", {"task": " wave "}) == SetTask("wave")


def test_an_empty_task_is_refused_rather_than_guessed(verbs, capsys):
    for empty in ("", "   "):
        assert "--task is empty" in refused(capsys, [*verbs["deploy"], f"--task={empty}"])


def test_a_task_in_any_language_is_taken_without_the_blanks_around_it():
    assert (
        check_task("  Würfel in die Schüssel 把方块放进碗里 🧊 ")
        == "Würfel in die Schüssel 把方块放进碗里 🧊"
    )
    assert check_text("C:\\odd but fine;$(x)", "--log")


# -- a policy that reads text ----------------------------------------------------------------------------------


def without_default(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["prompt"]["default_task"] = None
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_policy_that_reads_text_is_not_started_without_a_task(make_bundle, verbs, capsys):
    folder = without_default(make_bundle("flow", "flow"))
    said = refused(capsys, ["deploy", str(folder), *SIM])
    assert "neither the command line nor the bundle says it; add --task '" in said
    PolicySource(folder, DeployOptions("so101", task="go left"))


def test_the_bundle_s_own_task_is_enough(make_bundle):
    folder = make_bundle("flow")
    assert load_bundle(folder).manifest.prompt.default_task, "else this test says nothing"
    assert PolicySource(folder, DeployOptions("so101")).bundle == str(folder)


def test_a_policy_that_reads_text_wants_its_extra_before_anything_is_started(
    make_bundle, verbs, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # as where it is not installed
    said = refused(capsys, ["deploy", str(make_bundle("flow", "flow")), *SIM], code=1)
    assert install_words("language") in said
    assert PolicySource(make_bundle("act", "act"), DeployOptions("so101")).execution


# -- the parser ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--durtion=3"], "unrecognized arguments: --durtion=3; did you mean '--duration'?"),
        (["--execution=fast"], "--execution: invalid choice: 'fast'"),
        (["--robot"], "--robot: expected one argument"),
    ],
)
def test_whatever_is_wrong_with_the_options_is_one_sentence(verbs, capsys, words, sentence):
    said = refused(capsys, [*verbs["deploy"], *words])
    assert sentence in said
    assert "edgevla deploy --help" in said

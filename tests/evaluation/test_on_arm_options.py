"""What `edgevla eval --robot` is asked is judged before a process is started; policies keep their names hidden."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(
    0, str(Path(__file__).parents[1] / "runtime")
)  # importlib mode leaves neighbours unimportable

from deployment_kit import make_bundle

from edgevla.cameras import CameraSettings
from edgevla.cli import main
from edgevla.errors import DatasetError, UsageError
from edgevla.evaluation.on_arm.contestants import HIDDEN, Contestants, Quiet, _joined, without
from edgevla.evaluation.on_arm.journal import CommonSetting, Contestant, Journal
from edgevla.evaluation.on_arm.measures import Measures
from edgevla.evaluation.on_arm.options import EXECUTIONS
from edgevla.evaluation.on_arm.result import Tally, note_success, write_info
from edgevla.evaluation.on_arm.rollouts import check_rollouts
from edgevla.evaluation.on_arm.rounds import Rounds
from edgevla.evaluation.on_arm.verb import named, output_of
from edgevla.execution.strategies import KINDS
from edgevla.launch.deployment import DeployOptions

OPTIONS = DeployOptions("so101", is_sim=True)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles")
    return {
        "a": make_bundle(root / "a", cameras=()),
        "b": make_bundle(root / "b", cameras=(), gain=0.1),
        "fast": make_bundle(root / "fast", cameras=(), fps=50.0),
        "namesake": make_bundle(root / "other/a", cameras=(), gain=0.2),
    }


def refused(capsys, *words):
    assert main(["eval", *map(str, words)]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--robot", "so101", "--dataset", "d"), "say on what"),
        (("--robot", "so101", "--pages", "3"), "--pages is for --dataset"),
        (("--robot", "so101", "--delay-ms", "100"), "--delay-ms is for --task"),
        (("--task", "follow_cube", "--port", "/dev/ttyACM0"), "--port is for --robot"),
        (("--robot", "so101", "--episodes", "0-3"), "--episodes 0-3 must be a whole number"),
        (("--robot", "so101", "--seconds", "0"), "--seconds 0 must be positive"),
        (
            ("--robot", "so101", "--execution", "sync,async,rtc"),
            "3 policies and settings: a person can compare 2",
        ),
        (("--robot", "so101", "--execution", "quick"), "'quick' must be one of"),
        (("--robot", "so101", "--blend", "0,5,10"), "3 policies and settings: a person can compare 2"),
        (
            ("--robot", "so101", "--sim", "--execution", "ensemble", "--blend", "10"),
            "--blend 10 has no effect on 'ensemble'",
        ),
        (("--robot", "so101", "--sim", "--port", "/dev/ttyACM0"), "--sim makes its own arm"),
        (("--robot", "so101", "--sim-task", "follow_cube"), "--sim-task needs --sim"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(capsys, bundles, words, sentence):
    assert sentence in refused(capsys, bundles["a"], *words)


def test_policies_that_cannot_share_an_evaluation_are_refused_before_anything_starts(
    capsys, bundles, tmp_path
):
    sim = ("--robot", "so101", "--sim", "-o", tmp_path / "out")
    assert "at 30 and 50 Hz" in refused(capsys, bundles["a"], bundles["fast"], *sim)
    assert "is named twice" in refused(capsys, bundles["a"], bundles["a"], *sim)
    assert "can compare 2" in refused(capsys, bundles["a"], bundles["b"], bundles["fast"], *sim)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    assert "holds something else than an evaluation" in refused(capsys, bundles["a"], *sim)


def test_a_camera_in_two_sizes_is_no_camera_of_both():
    small = CameraSettings("front", "sim", 64, 48, 30.0)
    assert _joined(small, replace(small, fps=50.0)).fps == 50.0
    with pytest.raises(UsageError, match="64x48 and 96x96"):
        _joined(small, replace(small, width=96, height=96))


def test_of_two_policies_nothing_that_is_said_tells_which_it_is(bundles):
    both = Contestants([str(bundles["a"]), str(bundles["b"])], [OPTIONS, OPTIONS], 0)
    assert (both.name, both.bundle, both.about) == (HIDDEN, None, {})
    said = []

    class Run:
        folder = Path()

        def say(self, *words):
            said.append(words)

    quiet = Quiet(Run(), OPTIONS, both.hidden)
    quiet.say("info", "deploy", "policy ready on cpu: 12.3 ms per inference")
    quiet.say("warning", "deploy", f"{bundles['a']} is slow; export it again")
    assert said == [("warning", "deploy", "the policy is slow; export it again")]
    assert without(f"{bundles['b']} and {bundles['a']}", both.hidden) == "the policy and the policy"


def test_of_one_policy_everything_is_said(bundles):
    one = Contestants([str(bundles["a"])], [OPTIONS], 0)
    assert (one.name, one.bundle, one.hidden) == (str(bundles["a"]), str(bundles["a"]), [])


def test_names_tell_policies_apart_and_the_same_command_finds_its_folder(bundles):
    def names(*chosen):
        folders, options = zip(*chosen, strict=True)
        return named(Contestants([str(f) for f in folders], options, 0))

    sync = replace(OPTIONS, execution={"kind": "sync"})
    assert [p.name for p in names((bundles["a"], OPTIONS), (bundles["b"], OPTIONS))] == ["a", "b"]
    assert [p.name for p in names((bundles["a"], OPTIONS), (bundles["a"], sync))] == ["a async", "a sync"]
    mixed = replace(OPTIONS, execution={"blend": 10})
    assert [p.name for p in names((bundles["a"], OPTIONS), (bundles["a"], mixed))] == [
        "a async",
        "a async blend 10",
    ]
    other = names((bundles["a"], OPTIONS), (bundles["namesake"], OPTIONS))
    assert [p.name for p in other] == [str(bundles["a"]), str(bundles["namesake"])]
    pair = names((bundles["a"], OPTIONS), (bundles["b"], OPTIONS))
    assert output_of(None, "mine/so101.toml", pair) == Path("evals/so101-a-vs-b")


def test_help_needs_neither_numpy_nor_an_engine():
    heavy = ["numpy", "zmq", "onnxruntime", "pyarrow", "cv2", "textual", "matplotlib"]
    program = (
        f"import sys, edgevla.evaluation.on_arm.options; print([m for m in {heavy} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_execution_that_there_is_can_be_compared():
    assert set(EXECUTIONS) == set(KINDS)


# -- what is written ------------------------------------------------------------------------------------------------


def test_the_result_pairs_the_rounds_and_says_which_rollout_is_which(tmp_path):
    policies = (
        Contestant("a", "bundles/a", "0" * 64, "sync"),
        Contestant("b", "bundles/b", "1" * 64, "sync"),
    )
    setting = CommonSetting(policies, "so101", "go", 20.0, False, None, None, order_seed=3)
    journal, rounds = Journal(tmp_path, setting), Rounds(8, 2, 3)
    for turn in rounds.turns()[:13]:  # a fails in rounds 0 to 4, b succeeds; the last round is half done
        success = turn.policy == 1 or turn.round > 4
        verdict = journal.judge(
            (turn.round, turn.place), success, 4.0, "now", {"n_ticks": 100, "n_clipped": 2}
        )
        journal.keep_rollout(verdict.verdict, verdict.verdict)
    judged = Tally(journal, rounds)
    info = write_info(judged, judged.evaluated("ended by the person"), tmp_path)
    assert json.loads((tmp_path / "eval_info.json").read_text()) == info
    assert (info["kind"], info["n_episodes_planned"], info["stopped"]) == ("robot", 8, "ended by the person")
    first, second = info["cells"]
    assert {first["aggregated"]["n_success"], second["aggregated"]["n_success"]} <= {1, 2, 6, 7}
    against = second["vs_first"]
    assert (against["n"], against["only_first"], against["only_this"]) == (6, 0, 5)
    assert against["mcnemar_p"] == pytest.approx(2 / 2**5)
    by_round = {
        (e["episode_ix"], e["place_in_round"]): e["rollout"] for c in info["cells"] for e in c["per_episode"]
    }
    assert by_round == {(t.round, t.place): k for k, t in enumerate(rounds.turns()[:13])}
    assert first["clipped"]["share"] == pytest.approx(0.02)
    journal.close()


def test_the_dataset_is_told_what_was_judged_and_what_was_taken_back(tmp_path):
    setting = CommonSetting((Contestant("a", "a", "0" * 64, "sync"),), "so101", "go", 20.0, False, None, None)
    journal = Journal(tmp_path / "out", setting)
    dataset = tmp_path / "out/rollouts"
    (dataset / "meta").mkdir(parents=True)
    (dataset / "meta/info.json").write_text("{}")
    (dataset / "meta/edgevla.json").write_text('{"joint_units": "degrees", "of_a_newer_version": 1}')
    for number, success in enumerate((True, False, True)):
        journal.judge((number, 0), success, 4.0, "now", {})
        journal.keep_rollout(number, number + 1)
    journal.take_back()
    note_success(journal, dataset)
    said = json.loads((dataset / "meta/edgevla.json").read_text())
    assert said == {"joint_units": "degrees", "of_a_newer_version": 1, "success": [None, True, False, None]}
    journal.close()


def test_rollouts_that_are_gone_are_not_mixed_up_with_new_ones(tmp_path):
    check_rollouts(tmp_path / "rollouts", {})
    with pytest.raises(DatasetError, match="holds 0 of the 3 rollouts"):
        check_rollouts(tmp_path / "rollouts", {0: 0, 1: 2})
    (tmp_path / "rollouts/meta").mkdir(parents=True)
    (tmp_path / "rollouts/meta/info.json").write_text('{"total_episodes": 3}')
    check_rollouts(tmp_path / "rollouts", {0: 0, 1: 2})


def test_figures_are_those_of_the_episode_and_not_of_the_run():
    before = {"ticks_clipped": 7, "clipped_speed_elbow": 7, "ticks_starved": 1}
    measures = Measures(before, [True, False], "deg")
    assert measures.figures({**before, "ticks_clipped": 9, "clipped_speed_elbow": 8, "clipped_limit_wrist": 1}) == {
        "n_ticks": 0, "n_starved": 0, "n_clipped": 2, "clipped": {"speed_elbow": 1, "limit_wrist": 1}, "chunk_ms": [],
        "seams": [], "within": [], "unit": "deg",
    }  # fmt: skip


def test_how_the_goals_moved_is_kept_in_a_line_that_can_be_read():
    measures = Measures({}, [True, False], "deg")
    for tick in range(
        2000
    ):  # a chunk has twenty ticks, and the body's joint jumps by two degrees where it ends
        goal = np.array([2.0 * (tick // 20), 50.0 * (tick % 2)], np.float32)
        measures.state(SimpleNamespace(mode="running", goal=goal, chunk_seq=tick // 20))
    figures = measures.figures({})
    assert figures["n_ticks"] == 2000
    assert set(figures["seams"]) == {2.0}
    assert set(figures["within"]) == {0.0}
    assert len(figures["within"]) == 100

"""The order of the policies, and the file that keeps what a person has judged."""

import json
import resource
from dataclasses import replace

import pytest

from edgevla.errors import DatasetError, UsageError
from edgevla.evaluation.on_arm.journal import CommonSetting, Contestant, Journal
from edgevla.evaluation.on_arm.rounds import Rounds

SETTING = CommonSetting(
    policies=(Contestant("a", "bundles/a", "0" * 64, "sync"), Contestant("b", "bundles/b", "1" * 64, "sync")),
    robot="so101", task="put the cube into the bowl", seconds=20.0, is_sim=False, n_steps=None, servo_hz=None,
    order_seed=7, edgevla="1",
)  # fmt: skip


@pytest.fixture
def journal(tmp_path):
    made = []

    def open_again(**changes):
        for old in made:
            old.close()
        made.clear()
        made.append(Journal(tmp_path / "out", replace(SETTING, **changes)))
        return made[0]

    yield open_again
    for old in made:
        old.close()


def judge(journal, turn, success=True):
    return journal.judge(turn, success, 3.5, "2026-11-30T12:00:00", {"n_ticks": 100})


# -- the order ---------------------------------------------------------------------------------------------------


def test_every_round_gives_both_policies_a_turn_and_each_is_first_as_often_as_the_other():
    for seed in range(20):
        for n in range(1, 12):
            orders = [Rounds(n, 2, seed).order(r) for r in range(n)]
            assert all(sorted(order) == [0, 1] for order in orders)
            firsts = [order[0] for order in orders]
            assert abs(firsts.count(0) - firsts.count(1)) <= 1


def test_the_order_is_drawn_anew_for_every_seed_and_more_rounds_begin_like_fewer():
    firsts = {tuple(Rounds(8, 2, seed).order(r)[0] for r in range(8)) for seed in range(60)}
    assert len(firsts) == 16, "every draw of four pairs"
    assert Rounds(20, 2, 3).turns()[:10] == Rounds(5, 2, 3).turns()


def test_one_policy_has_every_turn():
    assert [(t.round, t.place, t.policy) for t in Rounds(3, 1, 0).turns()] == [
        (0, 0, 0),
        (1, 0, 0),
        (2, 0, 0),
    ]


# -- the file ------------------------------------------------------------------------------------------------------


def test_what_was_judged_is_there_again_and_the_hidden_order_stays(journal):
    first = journal()
    judge(first, (0, 0))
    judge(first, (0, 1), success=False)
    first.keep_rollout(0, 0)
    again = journal(order_seed=99, edgevla="2")
    assert {turn: v.success for turn, v in again.verdicts.items()} == {(0, 0): True, (0, 1): False}
    assert again.setting.order_seed == 7
    assert again.rollouts == {0: 0}
    assert judge(again, (1, 0)).verdict == 2


def test_a_verdict_is_on_the_disk_before_anything_else_happens_and_names_no_policy(journal, tmp_path):
    judge(journal(), (0, 0))
    _, line = (tmp_path / "out/episodes.jsonl").read_text().splitlines()
    assert json.loads(line)["success"] is True
    assert "policy" not in line
    assert "bundles" not in line


def test_the_last_verdict_may_be_another_one_or_none_also_in_a_later_session(journal):
    judge(journal(), (0, 0))
    judge(journal(), (0, 1))
    assert journal().correct(False).success is False
    assert [v.success for v in journal().verdicts.values()] == [True, False]
    assert journal().take_back().verdict == 1
    again = journal()
    assert list(again.verdicts) == [(0, 0)]
    assert again.last.verdict == 0
    assert judge(again, (0, 1)).verdict == 2, "a number is never used twice"


def test_a_line_that_a_power_cut_has_torn_is_cut_off(journal, tmp_path):
    judge(journal(), (0, 0))
    path = tmp_path / "out/episodes.jsonl"
    with path.open("a") as file:
        file.write('{"verdict":1,"round":0,"pla')
    judge(journal(), (0, 1))
    assert list(journal().verdicts) == [(0, 0), (0, 1)]
    for line in path.read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize(
    "line", ["{}}", '{"verdict": 1}', '{"taken_back": 9}', '{"correction": 9, "success": true}', "[]"]
)
def test_a_damaged_line_is_named_and_nothing_is_thrown_away(journal, tmp_path, line):
    judge(journal(), (0, 0))
    path = tmp_path / "out/episodes.jsonl"
    with path.open("a") as file:
        file.write(line + "\n")
    before = path.read_text()
    with pytest.raises(DatasetError, match="line 3, is damaged"):
        journal()
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policies": SETTING.policies[::-1]}, "a \\(sync, 00000000\\) and b"),
        ({"robot": "aloha"}, "robot 'so101', and now it is robot 'aloha'"),
        ({"seconds": 30.0}, "--seconds 20.0, and now it is --seconds 30.0"),
        ({"task": "push it"}, "task 'put the cube"),
        ({"servo_hz": 60.0}, "--servo-hz not given"),
    ],
)
def test_an_evaluation_of_something_else_is_refused_with_both_values(journal, changes, words):
    journal()
    with pytest.raises(UsageError, match=words):
        journal(**changes)


def test_two_at_once_do_not_write_into_one_folder(journal, tmp_path):
    journal()
    with pytest.raises(UsageError, match="another evaluation writes"):
        Journal(tmp_path / "out", SETTING)


def test_on_a_full_disk_a_verdict_is_whole_or_was_not_given(journal, tmp_path):
    first = journal()
    judge(first, (0, 0))
    path = tmp_path / "out/episodes.jsonl"
    size = path.stat().st_size
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            judge(first, (0, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.filename == str(path)
    assert list(first.verdicts) == [(0, 0)]
    judge(first, (0, 1), success=False)
    assert [v.success for v in journal().verdicts.values()] == [True, False]

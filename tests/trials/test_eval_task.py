"""`edgevla eval --task` as a person uses it: real bundles, the real control loop on emulated servos, a virtual clock."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployment_kit import make_bundle

from edgevla.evaluation.episodes import UNSEEN
from edgevla.robots.world.follow_cube.places import place

Evaluate = Callable[..., Any]
Info = Callable[[Path], dict[str, Any]]
LEROBOT = {
    "avg_sum_reward",
    "avg_max_reward",
    "pc_success",
    "eval_s",
    "eval_ep_s",
    "n_success",
    "pc_success_ci95",
}


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The episodes of the journal; a torn last line is none."""
    found = []
    for line in (folder / "episodes.jsonl").read_text().splitlines()[1:]:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def same(episode: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on the machine."""
    return {k: v for k, v in episode.items() if k not in ("eval_s", "infer_ms", "video")}


def by_place(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    return {(e["cell"], e["episode_ix"]): same(e) for e in lines_of(folder)}


# -- what it finds ------------------------------------------------------------------------------------------------


def test_every_setting_meets_the_same_places_and_the_first_cell_stands_at_the_top_in_lerobots_words(
    bundle: Path, other: Path, evaluate: Evaluate, info_in: Info, tmp_path: Path, short: None
) -> None:
    code, out, _ = evaluate(
        bundle, other, "--execution", "sync,async", "--delay-ms", "0,100", "--episodes", 2
    )
    assert code == 0
    info = info_in(tmp_path / "eval")
    cells = info["cells"]
    assert [c["name"] for c in cells][:3] == ["reach sync 0 ms", "reach sync 100 ms", "reach async 0 ms"]
    assert len(cells) == 8
    for cell in cells:
        assert [e["episode_ix"] for e in cell["per_episode"]] == [0, 1]
        assert [e["place"] for e in cell["per_episode"]] == [
            pytest.approx(place("follow_cube", UNSEEN, n)[:2], rel=1e-5) for n in (0, 1)
        ]
        assert set(cell["aggregated"]) >= LEROBOT
    assert info["per_episode"] == cells[0]["per_episode"]
    assert info["aggregated"] == cells[0]["aggregated"]
    assert info["video_paths"] == []
    assert set(info["per_episode"][0]) >= {"episode_ix", "sum_reward", "max_reward", "success", "seed"}
    assert cells[1]["delay_ms_measured"]["p50"] == 100
    assert cells[4]["vs_first"]["to"] == "reach sync 0 ms"
    for words in ("reach sync 100 ms", "seam p95 (deg)", "against reach sync 0 ms, place by place", "0/2"):
        assert words in out, words


def test_a_blend_is_a_setting_of_its_own_and_smoother_where_chunks_meet(
    bundle: Path, evaluate: Evaluate, info_in: Info, tmp_path: Path, short: None
) -> None:
    words = ("--execution", "async", "--delay-ms", 200, "--episodes", 2)
    code, out, _ = evaluate(bundle, *words, "--blend", "0,10")
    assert code == 0
    plain, mixed = info_in(tmp_path / "eval")["cells"]
    assert [(c["name"], c["execution"], c["blend"]) for c in (plain, mixed)] == [
        ("async", "async", 0),
        ("async blend 10", "async", 10),
    ]
    assert mixed["seams"]["p95"]["value"] < plain["seams"]["p95"]["value"]
    assert mixed["vs_first"]["to"] == "async"
    assert "async blend 10" in out
    assert evaluate(bundle, *words)[0] == 0  # goes on from what is there, under the name it always had
    assert "/async/200/none" in lines_of(tmp_path / "eval")[0]["cell"]


def test_it_says_before_what_so_many_episodes_can_show(bundle: Path, evaluate: Evaluate, short: None) -> None:
    _, out, _ = evaluate(bundle, "--episodes", 2)
    assert "2 episodes tell a success share to about" in out
    assert "difference" not in out
    _, out, _ = evaluate(bundle, "--episodes", 3, "--execution", "sync,async")
    assert "So few cannot tell two settings apart" in out


def test_json_is_what_was_written_and_nothing_else(
    bundle: Path, evaluate: Evaluate, info_in: Info, tmp_path: Path, short: None
) -> None:
    code, out, err = evaluate(bundle, "--json")
    assert code == 0
    assert json.loads(out) == info_in(tmp_path / "eval")
    assert "1 cell x 2 episodes" in err


def test_pictures_videos_and_a_sheet(
    bundle: Path, evaluate: Evaluate, info_in: Info, tmp_path: Path, short: None
) -> None:
    pytest.importorskip("matplotlib")
    av = pytest.importorskip("av")
    code, out, _ = evaluate(bundle, "--videos", "failures", "--delay-ms", "0,100")
    assert code == 0
    folder = tmp_path / "eval"
    for name in ("success.png", "sheet.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG"), name
        assert name in out
    info = info_in(folder)
    failed = [e for c in info["cells"] for e in c["per_episode"] if not e["success"]]
    assert sorted(str(p.relative_to(folder)) for p in folder.glob("videos/*")) == sorted(
        e["video"] for e in failed
    )
    assert re.fullmatch(r"videos/reach-[0-9a-f]{6}-async-0ms-ep000-not-reached\.mp4", info["video_paths"][0])
    with av.open(str(folder / failed[0]["video"])) as video:
        n_frames = sum(1 for _ in video.decode(video=0))
    assert n_frames == pytest.approx(30 * 0.8, abs=2), "a frame per policy step"


@pytest.mark.parametrize(("least", "code", "words"), [(0, 0, "reaches it"), (1, 1, "misses it")])
def test_an_expectation_sets_the_exit_code_and_says_how_sure_it_is(
    bundle: Path, evaluate: Evaluate, short: None, least: float, code: int, words: str
) -> None:
    found, out, _ = evaluate(bundle, "--expect", least)
    assert found == code
    assert words in out
    assert "the interval" in out


def test_an_expectation_of_nothing_but_controls_is_wrong_usage(
    bundle: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    code, _, err = evaluate(bundle, "--control", "black,expert", "--expect", 0.9)
    assert code == 2
    assert "--control none" in err
    assert not (tmp_path / "eval").exists()


def test_two_bundles_of_one_name_keep_their_pictures_apart_in_one_folder(
    evaluate: Evaluate, short: None, tmp_path: Path
) -> None:
    """A bundle that was exported again to the same place, for example."""
    for where, gain in (("a", 0.15), ("b", 0.05)):
        code, _, _ = evaluate(make_bundle(tmp_path / where / "act", gain=gain), "--episodes", 1)
        assert code == 0
    assert len({path.read_bytes() for path in tmp_path.glob("eval/strips/*.png")}) == 2


def test_the_expert_is_what_cannot_be_done_better_and_no_part_of_what_is_expected(
    bundle: Path, evaluate: Evaluate, info_in: Info, tmp_path: Path
) -> None:
    words = ["--control", "none,black,expert", "--execution", "sync,async", "--episodes", 1]
    code, out, _ = evaluate(bundle, *words, "--expect", 0.5)
    assert code == 1
    cells = {c["name"]: c for c in info_in(tmp_path / "eval")["cells"]}
    assert len(cells) == 2 * 2 + 1
    assert cells["expert"]["aggregated"]["n_success"] == 1
    assert cells["expert"]["clipped"]["share"] < 0.02
    assert "expert reaches" not in out
    assert "black misses" not in out


# -- a policy elsewhere -----------------------------------------------------------------------------------------------


@pytest.fixture
def served(bundle: Path) -> Iterator[str]:
    """Address of a policy server that runs `bundle`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    command = [
        sys.executable,
        "-m",
        "edgevla",
        "serve",
        f"reach={bundle}",
        "--bind",
        address,
        "--threads",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "policy reach" in process.stdout.readline()
        assert "listening" in process.stdout.readline()
        yield f"{address}/reach"
        process.kill()


def test_what_a_policy_server_runs_is_evaluated_as_a_bundle_and_to_the_same_end(
    served: str, bundle: Path, evaluate: Evaluate, info_in: Info, tmp_path: Path, short: None
) -> None:
    words = ["--execution", "sync,async", "--delay-ms", "0,100"]
    assert evaluate(served, *words, "-o", tmp_path / "there")[0] == 0
    assert evaluate(bundle, *words, "-o", tmp_path / "here")[0] == 0
    there, here = (
        [
            [{**e, "eval_s": 0, "infer_ms": 0} for e in c["per_episode"]]
            for c in info_in(tmp_path / name)["cells"]
        ]
        for name in ("there", "here")
    )
    assert there == here
    code, _, err = evaluate(served, bundle)
    assert code == 2
    assert f"{bundle} and {served} are the same bundle" in err


def test_nobody_at_an_address_is_said_before_anything_is_written(evaluate: Evaluate, tmp_path: Path) -> None:
    code, _, err = evaluate("tcp://127.0.0.1:1/reach")
    assert code == 1
    assert "no policy server answers at tcp://127.0.0.1:1/reach" in err
    assert not (tmp_path / "eval").exists()


# -- chance -----------------------------------------------------------------------------------------------------------


def test_results_do_not_depend_on_how_many_play_nor_on_an_interruption(
    bundle: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    """Killed in the midst of it and left with half a line, the same command ends with the same episodes."""
    words = [bundle, "--episodes", 3, "--delay-ms", "0,100", "--jitter-ms", 80, "--drop", 0.1]
    assert evaluate(*words, "-o", tmp_path / "one")[0] == 0
    whole = by_place(tmp_path / "one")
    assert len(whole) == 6
    folder = tmp_path / "two"
    command = [
        sys.executable,
        "-m",
        "edgevla",
        "eval",
        *map(str, words),
        "--task",
        "follow_cube",
        "-o",
        str(folder),
    ]
    process = subprocess.Popen(
        [*command, "--jobs", "1"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 240
    while not (folder / "episodes.jsonl").exists() or len(lines_of(folder)) < 2:
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    n_before = len(lines_of(folder))
    with (folder / "episodes.jsonl").open("a") as file:
        file.write('{"cell": "torn')
    code, out, _ = evaluate(*words, "-o", folder, "--jobs", 2)
    assert code == 0
    assert re.search(rf"{n_before} of 6 episodes are there already", out)
    assert by_place(folder) == whole


def test_what_is_drawn_by_chance_is_the_same_for_every_setting(
    bundle: Path, evaluate: Evaluate, tmp_path: Path, short: None
) -> None:
    assert evaluate(bundle, "--execution", "ensemble,async", "--jitter-ms", 200)[0] == 0
    episodes = lines_of(tmp_path / "eval")
    first, second = ([e for e in episodes if f"/{kind}/" in e["cell"]] for kind in ("ensemble", "async"))
    for one, two in zip(first, second, strict=True):
        n = min(len(one["delays_ms"]), len(two["delays_ms"]))
        assert n >= 5
        assert one["delays_ms"][:n] == two["delays_ms"][:n], "request by request"
    assert len({ms for e in episodes for ms in e["delays_ms"]}) > 2, "jittered"


def test_where_no_chunk_ever_comes_the_arm_stays(
    bundle: Path, evaluate: Evaluate, info_in: Info, tmp_path: Path, short: None
) -> None:
    code, out, _ = evaluate(bundle, "--drop", 1, "--episodes", 1)
    assert code == 0
    assert "had no action to execute at 100 % of the ticks" in out
    assert "1 cell x 1 episode in" in out
    assert "1 episode tells" in out
    (cell,) = info_in(tmp_path / "eval")["cells"]
    assert cell["delay_ms_measured"] == {"n": 0, "p50": None, "p95": None, "max": None, "n_lost": 1}
    assert cell["seams"]["n"] == 0
    assert not cell["per_episode"][0]["success"]


def test_a_delay_that_is_no_whole_tick_is_rounded_and_said(
    bundle: Path, evaluate: Evaluate, short: None
) -> None:
    _, out, _ = evaluate(bundle, "--delay-ms", 110)
    assert "110 ms are no whole ticks of 33.33 ms: 3 ticks are injected, 100 ms" in out
    _, out, _ = evaluate(bundle, "--delay-ms", 100, "--servo-hz", 60)
    assert "whole ticks" not in out


def test_what_cannot_work_with_a_delay_is_said(bundle: Path, evaluate: Evaluate, short: None) -> None:
    _, out, _ = evaluate(bundle, "--execution", "async", "--delay-ms", 2000, "--episodes", 1)
    assert "'async' cannot work" in out


# -- going on ---------------------------------------------------------------------------------------------------------


def test_more_episodes_and_more_settings_go_on_from_what_is_there(
    bundle: Path, evaluate: Evaluate, info_in: Info, tmp_path: Path, short: None
) -> None:
    assert evaluate(bundle, "--episodes", 1, "--execution", "sync")[0] == 0
    (first,) = lines_of(tmp_path / "eval")
    code, out, _ = evaluate(bundle, "--episodes", 2, "--execution", "sync,async")
    assert code == 0
    assert "1 of 4 episodes are there already" in out
    assert lines_of(tmp_path / "eval")[0] == first
    assert [c["aggregated"]["n_episodes"] for c in info_in(tmp_path / "eval")["cells"]] == [2, 2]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--seed", 3], "was begun with seed 0, now it is 3"),
        (["--servo-hz", 60], "was begun with servo-hz none, now it is 60"),
        (["--jitter-ms", 5], "was begun with jitter-ms 0.0, now it is 5"),
        (["--drop", 0.5], "was begun with drop 0.0, now it is 0.5"),
        (["--task", "follow_cube/jump"], "was begun with task follow_cube, now it is follow_cube/jump"),
    ],
)
def test_other_conditions_in_the_same_folder_are_refused_by_name(
    bundle: Path, evaluate: Evaluate, tmp_path: Path, short: None, words: list[Any], sentence: str
) -> None:
    assert evaluate(bundle, "--episodes", 1)[0] == 0
    before = (tmp_path / "eval/episodes.jsonl").read_text()
    code, _, err = evaluate(bundle, "--episodes", 1, *words)
    assert code == 2
    assert sentence in err
    assert (tmp_path / "eval/episodes.jsonl").read_text() == before


def test_another_version_of_what_computes_is_refused(
    bundle: Path, evaluate: Evaluate, tmp_path: Path, short: None
) -> None:
    assert evaluate(bundle, "--episodes", 1)[0] == 0
    path = tmp_path / "eval/episodes.jsonl"
    text = path.read_text()
    path.write_text(text.replace(f'"numpy":"{np.__version__}"', '"numpy":"1.0"'))
    assert path.read_text() != text
    code, _, err = evaluate(bundle, "--episodes", 1)
    assert code == 2
    assert f"was begun with the version of numpy 1.0, now it is {np.__version__}" in err


def test_ctrl_c_keeps_what_is_done(
    bundle: Path,
    evaluate: Evaluate,
    info_in: Info,
    tmp_path: Path,
    short: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from edgevla.evaluation.episodes import EpisodeJournal

    add = EpisodeJournal.add

    def pressed(self: EpisodeJournal, episode: Any) -> None:
        add(self, episode)
        if len(self.done) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(EpisodeJournal, "add", pressed)
    code, out, _ = evaluate(bundle, "--episodes", 5, "--expect", 0)
    assert code == 130
    assert "ended early (interrupted)" in out
    info = info_in(tmp_path / "eval")
    assert (info["stopped"], info["aggregated"]["n_episodes"], info["n_episodes_planned"]) == (
        "interrupted",
        2,
        5,
    )


def test_who_stops_listening_does_not_stop_the_evaluation(
    bundle: Path, info_in: Info, tmp_path: Path
) -> None:
    """`edgevla eval ... --expect 0.5 | head -1`: hours of work, and its exit code."""
    folder = tmp_path / "eval"
    words = [str(bundle), "--task", "follow_cube", "--episodes", "2", "--jobs", "1", "--expect", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgevla", "eval", *words, "-o", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert "1 cell" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(300) == 1, "it never succeeds"
    assert info_in(folder)["aggregated"]["n_episodes"] == 2


def test_a_folder_that_holds_something_else_is_left_alone(
    bundle: Path, evaluate: Evaluate, tmp_path: Path, short: None
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("precious")
    code, _, err = evaluate(bundle, "-o", tmp_path / "mine")
    assert code == 2
    assert "holds something else" in err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


# -- what it refuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--dataset", "x"], "say on what, one of --dataset, --task"),
        (["--every", 3], "--every is for --dataset, and would have no effect with --task"),
        (["--pages", 3], "--pages is for --dataset"),
        (["--joint-units", "degrees"], "--joint-units is for --dataset"),
        (["--feature", "a=b"], "--feature is for --dataset"),
        (["--task", "follow_cub"], "; did you mean 'follow_cube'?"),
        (
            ["--execution", "asinc"],
            "'asinc' must be one of sync, ensemble, async, rtc; did you mean 'async'?",
        ),
        (["--execution", "rtc"], "cannot run 'rtc'; it allows sync, ensemble, async"),
        (["--execution", "sync,sync"], "sync"),
        (["--execution", "ensemble", "--blend", "0,10"], "--blend 10 has no effect on 'ensemble'"),
        (["--execution", "async", "--blend", "10,10"], "--blend 10 is given twice"),
        (["--execution", "async", "--blend", "-1"], "-1 must be a whole number from 0"),
        (["--delay-ms", "0,soon"], "soon must be from 0"),
        (["--control", "white"], "'white' must be one of none, black, zero-state, misaligned, expert"),
        (["--episodes", "0-3"], "--episodes 0-3 must be a whole number from 1"),
        (["--expect", "85"], "must be from 0 to 1"),
        (["--n-steps", 4], "has no denoise steps"),
        (["--servo-hz", 10], "slower than the policy's 30 Hz"),
        (["--camera", "nose=front"], "the policy has no such camera"),
        (["--camera", "front=nose"], "say which it gets: --camera front="),
        (["--real-time", "--jitter-ms", 3], "--jitter-ms is for lock-step"),
        (["--real-time", "--control", "black"], "--control is for lock-step"),
        (["--real-time", "--jobs", 2], "--jobs is for lock-step"),
    ],
)
def test_wrong_options_are_wrong_usage(
    bundle: Path, evaluate: Evaluate, tmp_path: Path, words: list[Any], sentence: str
) -> None:
    code, _, err = evaluate(bundle, *words)
    assert code == 2
    assert sentence in err
    assert not (tmp_path / "eval").exists()


def test_an_option_of_a_task_has_no_effect_on_a_dataset(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgevla.cli import main

    assert main(["eval", str(bundle), "--dataset", str(tmp_path), "--delay-ms", "0"]) == 2
    assert "--delay-ms is for --task, and would have no effect with --dataset" in capsys.readouterr().err


def test_one_bundle_twice_is_refused_also_by_another_path(
    bundle: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    (tmp_path / "again").symlink_to(bundle)
    code, _, err = evaluate(bundle, tmp_path / "again")
    assert code == 2
    assert "are the same bundle; name every bundle once" in err


def test_a_bundle_of_another_robot_or_of_other_cameras_is_refused_before_anything_moves(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    arm = make_bundle(tmp_path / "arm", joints={f"joint_{c}.pos": ("deg", -90.0, 90.0) for c in "abcdef"})
    code, _, err = evaluate(arm)
    assert code == 1
    assert "joint_a" in err
    code, _, err = evaluate(make_bundle(tmp_path / "eyes", cameras=("nose",)))
    assert code == 2
    assert "looks through 'nose', the task follow_cube shows front, top, wrist" in err
    assert not (tmp_path / "eval").exists()


def test_help_says_in_groups_what_belongs_to_what(capsys: pytest.CaptureFixture[str]) -> None:
    from edgevla.cli import main

    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    said = capsys.readouterr().out
    for words in (
        "on what (exactly one)",
        "only with --dataset",
        "only with --task",
        "--real-time",
        "--expect SHARE",
    ):
        assert words in said

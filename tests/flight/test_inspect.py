"""`edgevla inspect RUN`: a twitch is found and told with its cause, in a made-up log and in a real run."""

import json

import numpy as np
import pytest
from log_kit import PERIOD, T0, UNITS, tick, write_log

from edgevla.cli import main
from edgevla.flight.findings import find
from edgevla.flight.reader import load
from edgevla.flight.story import explain, moment, told

JOINTS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
ABOUT = {
    "units": UNITS,
    "joints": [f"{j}.pos" for j in JOINTS],
    "max_velocity": [180.0] * 5 + [300.0],
    "robot": "so101",
}


def smooth(n):
    return np.full(6, 10 * np.sin(n / 60), np.float32)


def made(tmp_path, change=lambda n, fields: None, n=600, notes=(), **about):
    """A quiet run of five seconds, a chunk per 30 ticks, with what `change` does to a tick's fields."""
    ticks = []
    for k in range(n):
        fields = {"wanted": smooth(k), "goal": smooth(k), "position": smooth(k - 2)}
        change(k, fields)
        ticks.append(tick(k, **fields))
    return write_log(tmp_path, ticks, notes, {**ABOUT, **about})


def sentences(folder):
    run = load(folder)
    return [(f.kind, told(run, f)) for f in find(run)]


def test_a_quiet_run_has_nothing_to_tell(tmp_path):
    assert sentences(made(tmp_path)) == []


def test_a_jump_at_a_seam_is_told_with_joint_degrees_and_chunks(tmp_path):
    def twitch(n, fields):
        if n >= 360:
            fields["wanted"] = fields["goal"] = smooth(n) + np.eye(6, dtype=np.float32)[2] * 14.2

    ((kind, text),) = sentences(made(tmp_path, twitch))
    assert kind == "seam"
    assert text.startswith("joint elbow_flex was told to move 14.")
    assert "in one tick" in text
    assert "the seam between chunk 11 and 12" in text


def test_a_jump_within_a_chunk_is_the_policy_s_own(tmp_path):
    def twitch(n, fields):
        if n >= 371:
            fields["wanted"] = smooth(n) - 20
            fields["goal"] = smooth(n - 1)
            fields["limited_by"] = np.full(6, 4, np.uint16)

    found = dict(sentences(made(tmp_path, twitch, n=373)))
    assert "within chunk 12, between its actions 2 and 3" in found["jump"]
    assert "the speed cap let 0.00 deg" in found["jump"]
    assert "the speed cap changed the goals of" in found["clip"]


def test_a_joint_that_was_pushed_is_not_blamed_on_the_policy(tmp_path):
    def push(n, fields):
        if n >= 400:
            fields["position"] = smooth(n - 2) + np.eye(6, dtype=np.float32)[1] * 40

    ((kind, text),) = sentences(made(tmp_path, push))
    assert kind == "measured"
    assert "joint shoulder_lift was measured 4" in text
    assert "not the policy" in text


def test_waiting_and_joints_that_are_not_heard_are_told_apart(tmp_path):
    def odd(n, fields):
        if 100 <= n < 160:
            fields["n_actions_left"] = 0
        if 300 <= n < 310:
            fields["limited_by"] = np.eye(6, dtype=np.uint16)[4] * 16

    found = dict(sentences(made(tmp_path, odd)))
    assert found["stale"] == "no fresh action after chunk 3: the arm kept its last goal for 0.5 s"
    assert found["unread"].startswith("no new position of wrist_roll in 10 ticks")


def test_events_and_counters_are_told_and_repetition_is_counted(tmp_path):
    event = {
        "type": "event",
        "source": "robot",
        "severity": "warning",
        "code": "x",
        "text": "something",
        "fields": {},
    }
    notes = [{**event, "observed_ns": T0 + n * 10**8} for n in range(20)]
    notes += [
        {"type": "counters", "source": "robot", "observed_ns": T0 + n, "counters": {"chunks_late": n}}
        for n in (1, 4)
    ]
    found = sentences(made(tmp_path, notes=notes))
    assert [text for kind, text in found if kind == "event"] == ["! robot: something (19 times more)"]
    assert (
        "chunks",
        "within 0.2 s 3 chunks came after all of their actions were past, heard by robot; 4 so far",
    ) in found


def test_a_moment_is_explained(tmp_path):
    run = load(made(tmp_path))
    at = f"{float(run.seconds(T0 + 300 * PERIOD)):.3f}"
    words = "\n".join(explain(run, moment(run, at), find(run)))
    assert "running, tick 300, action 0.0 of chunk 10" in words
    assert "elbow_flex" in words


@pytest.mark.parametrize(
    ("text", "reason"), [("soon", "is no time of the run"), ("99:00:00", "knows nothing of that")]
)
def test_a_moment_that_is_none_is_refused(tmp_path, capsys, text, reason):
    assert main(["inspect", str(made(tmp_path)), "--at", text]) == 2
    assert reason in capsys.readouterr().err


def test_options_of_runs_are_refused_elsewhere(tmp_path, capsys):
    assert main(["inspect", str(tmp_path), "--at", "1"]) == 2
    assert "--at is for runs" in capsys.readouterr().err


def test_what_a_run_does_not_answer_is_refused_not_passed_over(tmp_path, capsys):
    folder = str(made(tmp_path))
    for words in (["--device", "rpi5"], ["--contact-sheet", "x.png"], ["--base", "x"], ["--feature", "a=b"]):
        assert main(["inspect", folder, *words]) == 2
        assert f"{words[0]} is not for runs" in capsys.readouterr().err
    assert main(["inspect", folder, "--at", "0:01", "--replay-chunk", "3"]) == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\x00" * 4096, b"EVB1 and no more"])
def test_a_log_of_which_nothing_is_left_is_not_called_quiet(tmp_path, capsys, content):
    folder = made(tmp_path)
    (folder / "run.flight").write_bytes(content)
    for words in ([], ["--lines"], ["--json"]):
        assert main(["inspect", str(folder), *words]) == 2
        assert "nothing of its log can be read" in capsys.readouterr().err


def test_a_picture_that_was_asked_for_and_cannot_be_written_is_a_failure(tmp_path, capsys):
    folder = str(made(tmp_path))
    assert main(["inspect", folder, "--picture", str(tmp_path / "no/such/x.png")]) == 1
    assert "takes another place" in capsys.readouterr().err
    assert main(["inspect", folder, "--json", "--picture", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_the_lines_are_json_for_other_programs(tmp_path, capsys):
    assert main(["inspect", str(made(tmp_path, n=10)), "--lines"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(line["type"] == "state" for line in lines) == 10


def test_the_picture_is_written_beside_the_log(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder = made(tmp_path)
    assert main(["inspect", str(folder)]) == 0
    assert (folder / "timeline.png").read_bytes().startswith(b"\x89PNG")
    assert "nothing was out of the ordinary" in capsys.readouterr().out


def test_what_the_guardian_said_is_told(tmp_path):
    from edgevla.flight.writer import FlightWriter
    from edgevla.launch.runlog import RunLog

    log = RunLog(FlightWriter(tmp_path, b"\1" * 8, pytest.fail))
    log.hear("log", "robot", "guardian: held, parked and released")
    log.close({})
    assert sentences(log.files.folder) == [("event", "robot: guardian: held, parked and released")]

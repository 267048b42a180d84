"""`edgevla view`: episodes and runs as pictures, MCAP and Rerun files, with what was really recorded in them."""

import base64
import json
import sys

import cv2
import numpy as np
import pytest
from log_kit import PERIOD, T0, UNITS, tick, write_log
from small_sets import TOP, make

from edgevla.cli import main
from edgevla.dataset.reader import open_dataset
from edgevla.extras import install_words
from edgevla.flight.moments import Seen, save
from edgevla.flight.reader import load
from edgevla.types import Observation
from edgevla.view.of_dataset import scene
from edgevla.view.of_run import whole

FRONT = "observation.images.front"
NOTE = {
    "bundle": "b",
    "sha256": "0",
    "provider": "cpu",
    "threads": 1,
    "engine": "e",
    "why": "robot: elbow jumped",
}


def camera_axes(figure):
    return [axis for axis in figure.axes if axis.get_images()]


def joint_axes(figure):
    return [axis for axis in figure.axes if axis.get_ylabel() == "" and axis.get_lines() and axis.axison]


def made_run(tmp_path, moments=1):
    """Three seconds; a warning after one; ten observations of one camera before the end."""
    event = {"type": "event", "source": "robot", "severity": "warning", "code": "x", "text": "hot"}
    folder = write_log(
        tmp_path,
        [
            tick(n, wanted=np.full(6, n, np.float32), mode="running" if n < 350 else "stopped")
            for n in range(360)
        ],
        [{**event, "fields": {}, "observed_ns": T0 + 10**9}],
        {"units": UNITS, "joints": [f"j{k}.pos" for k in range(6)], "robot": "so101"},
    )
    for _ in range(moments):
        save(folder, [seen(chunk) for chunk in range(1, 11)], {**NOTE, "saved_ns": T0 + 330 * PERIOD})
    return folder


def seen(chunk):
    picture = np.full((24, 32, 3), 20 * chunk, np.uint8)
    observation = Observation(np.zeros(6, np.float32), {FRONT: picture}, task="go")
    at_ns = T0 + 30 * chunk * PERIOD
    return Seen(chunk, chunk, at_ns, {chunk: observation}, None, None, 0, 0, np.zeros((10, 6), np.float32))


# -- pictures of episodes -----------------------------------------------------------------------------------


def test_a_picture_shows_the_frames_and_figures_of_its_episode(tmp_path):
    pytest.importorskip("matplotlib")
    from edgevla.view.sheet import draw

    dataset = open_dataset(make(tmp_path / "cube", lengths=(6, 20)))
    figure, problems = draw(scene(dataset, dataset.episodes[1]))
    assert problems == []
    (frames,) = camera_axes(figure)
    drawn = [np.asarray(image.get_array()) for image in frames.get_images()]
    rows = [1, 4, 6, 9, 11, 14, 16, 19]  # the middles of eighths of two seconds at ten rows per second
    assert len(drawn) == 8
    assert all((a == b).all() for a, b in zip(drawn, dataset.frames(TOP, 6 + np.array(rows)), strict=True))
    joints = joint_axes(figure)
    assert len(joints) == 3
    for j, axis in enumerate(joints):
        state, action = axis.get_lines()[-2:]
        assert np.allclose(state.get_ydata(), dataset.columns["observation.state"][6:, j])
        assert np.allclose(action.get_ydata(), dataset.columns["action"][6:, j])
    words = {text.get_text() for axis in joints for text in axis.texts}
    assert words == {"shoulder\n(deg)", "elbow\n(deg)", "gripper\n(%)"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["state", "action"]
    said = [text.get_text() for text in figure.texts]
    assert said == ["cube, episode 1: “task 1”", "2.0 s, 20 rows at 10 per s"]
    dataset.close()


def test_the_outcome_is_told_where_somebody_said_it(tmp_path):
    root = make(tmp_path / "cube")
    (root / "meta/edgevla.json").write_text(json.dumps({"joint_units": "degrees", "success": [None, False]}))
    dataset = open_dataset(root)
    first, second = (scene(dataset, episode).outcome for episode in dataset.episodes)
    assert first is None
    assert (second.is_good, second.words) == (False, "failure")
    feature = {"next.success": {"dtype": "bool", "shape": (1,), "names": None}}

    def row(episode, frame):
        return {"next.success": np.array([episode == 1 and frame == 4])}

    column = open_dataset(make(tmp_path / "sphere", features=feature, row=row))
    words = [scene(column, episode).outcome.words for episode in column.episodes]
    assert words == ["next.success: never", "next.success: yes"]


def test_the_first_episodes_are_drawn_and_which_others_there_are_is_said(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    root = make(tmp_path / "cube", lengths=(3,) * 6)
    monkeypatch.chdir(tmp_path)
    assert main(["view", str(root)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("the first 4 of 6 episodes; others with --episode 0-5\n")
    names = [f"episode-00{n}.png" for n in range(4)]
    assert sorted(path.name for path in (tmp_path / "views/cube").iterdir()) == names
    assert main(["view", str(root), "--episode", "4-5", "-o", "some"]) == 0
    assert [path.name[8:11] for path in sorted((tmp_path / "some").iterdir())] == ["004", "005"]
    assert main(["view", str(root), "--episode", "9"]) == 2
    assert "--episode '9' names episodes outside 0 ... 5" in capsys.readouterr().err


def test_a_camera_that_cannot_be_decoded_is_said_and_the_rest_is_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    root = make(tmp_path / "cube", dtype="video", size=(64, 64))
    (video,) = root.glob("videos/**/*.mp4")
    video.write_bytes(video.read_bytes()[:300])
    assert main(["view", str(root), "-o", str(tmp_path / "out")]) == 1
    heard = capsys.readouterr()
    assert video.name in heard.err
    assert "Traceback" not in heard.err
    assert (tmp_path / "out/episode-000.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["view", str(make(tmp_path / "cube")), "-o", str(tmp_path / "out")]) == 1
    assert install_words("eval") in capsys.readouterr().err


# -- pictures of runs ---------------------------------------------------------------------------------------


def test_of_a_run_timeline_and_saved_moments_are_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder = made_run(tmp_path / "runs", moments=2)
    (folder / "saved/moment-01/moment.json").write_text("{")
    assert main(["view", str(tmp_path / "runs"), "-o", str(tmp_path / "out")]) == 1
    names = ["moment-00.png", "timeline.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert "moment-01/moment.json is damaged" in capsys.readouterr().err


def test_a_run_without_saved_pictures_says_how_they_come_about(tmp_path, capsys):
    event = {"type": "event", "source": "robot", "severity": "info", "code": "x", "text": "hello"}
    folder = write_log(tmp_path, notes=[{**event, "fields": {}, "observed_ns": T0}])
    assert main(["view", str(folder), "-o", str(tmp_path / "out")]) == 0
    assert "no pictures of cameras: what the policy saw then was not saved" in capsys.readouterr().out


def test_what_is_for_datasets_is_refused_for_a_run(tmp_path, capsys):
    folder = made_run(tmp_path / "runs", moments=0)
    for words in (["--episode", "0"], ["--feature", "a=b"], ["--task-from", "task"]):
        assert main(["view", str(folder), *words]) == 2
        assert f"{words[0]} is for datasets" in capsys.readouterr().err


def test_a_run_has_its_figures_pictures_and_sentences(tmp_path):
    run = load(made_run(tmp_path))
    one, damaged = whole(run)
    assert damaged == []
    assert list(one.tables) == ["measured", "sent", "wanted"]
    wanted = one.tables["wanted"].column("j2")
    assert wanted[:350].tolist() == list(range(350))
    assert np.isnan(wanted[350:]).all()
    assert [said.text for said in one.said] == ["mode: running", "robot: hot", "mode: stopped"]
    (front,) = one.cameras.values()
    assert np.allclose(np.diff(front.times), 30 * PERIOD / 1e9)
    assert [int(image[0, 0, 0]) for image in front.at([0, 9])] == [20, 200]


def test_a_camera_that_was_lost_for_a_while_has_the_pictures_that_there_are(tmp_path):
    wrist = "observation.images.wrist"
    picture = np.full((24, 32, 3), 7, np.uint8)
    observations = [seen(chunk) for chunk in (1, 2, 3)]
    del observations[0].moments[1].images[FRONT]
    observations[1].moments[2].images[wrist] = picture
    folder = made_run(tmp_path, moments=0)
    save(folder, observations, {**NOTE, "saved_ns": T0 + 330 * PERIOD})
    one, damaged = whole(load(folder))
    assert damaged == []
    found = {name: [int(p[0, 0, 0]) for p in c.at(range(len(c.times)))] for name, c in one.cameras.items()}
    assert found == {"front": [40, 60], "wrist": [7]}


# -- files for other programs -------------------------------------------------------------------------------


def test_an_mcap_file_is_read_by_its_own_reader(tmp_path, capsys):
    pytest.importorskip("mcap")
    from mcap.reader import make_reader

    folder = made_run(tmp_path / "runs")
    path = tmp_path / "new/run.mcap"
    assert main(["view", str(folder), "--mcap", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    run, topics = load(folder), {}
    with path.open("rb") as file:
        for schema, channel, message in make_reader(file).iter_messages():
            assert channel.message_encoding == "json"
            topics.setdefault((channel.topic, schema.name), []).append(
                (message.log_time, json.loads(message.data))
            )
    assert {key: len(messages) for key, messages in topics.items()} == {
        ("/measured", "edgevla.measured"): 360,
        ("/sent", "edgevla.sent"): 360,
        ("/wanted", "edgevla.wanted"): 360,
        ("/loop", "edgevla.loop"): 360,
        ("/cameras/front", "foxglove.CompressedImage"): 10,
        ("/events", "foxglove.Log"): 3,
    }
    ns, figures = topics["/wanted", "edgevla.wanted"][120]
    assert figures == {f"j{k}": 120.0 for k in range(6)}
    assert abs(ns - (run.wall_ns + T0 + 120 * PERIOD - run.begun_ns)) < 1000
    assert topics["/wanted", "edgevla.wanted"][-1][1] == {}, "what is not known is left out"
    ns, image = topics["/cameras/front", "foxglove.CompressedImage"][4]
    assert image["timestamp"] == {"sec": ns // 10**9, "nsec": ns % 10**9}
    data = np.frombuffer(base64.b64decode(image["data"]), np.uint8)
    assert np.abs(cv2.imdecode(data, cv2.IMREAD_COLOR).astype(int) - 100).max() <= 3
    assert [(log["level"], log["message"]) for _, log in topics["/events", "foxglove.Log"]] == [
        (2, "mode: running"),
        (3, "robot: hot"),
        (2, "mode: stopped"),
    ]


def test_episodes_follow_each_other_in_an_mcap_file(tmp_path):
    pytest.importorskip("mcap")
    from mcap.reader import make_reader

    path = tmp_path / "cube.mcap"
    assert main(["view", str(make(tmp_path / "cube")), "--mcap", str(path)]) == 0
    with path.open("rb") as file:
        reader = make_reader(file)
        found = [(channel.topic, message.log_time) for _, channel, message in reader.iter_messages()]
        about = {metadata.name: metadata.metadata for metadata in reader.iter_metadata()}
    first, second = ([t for topic, t in found if topic == f"/episode-00{n}/state"] for n in (0, 1))
    assert (len(first), len(second)) == (6, 5)
    assert second[0] - first[0] == 1_600_000_000, "six rows at ten per second, and a second between"
    assert about["episode-001"]["shoulder"] == "deg"


@pytest.mark.parametrize(("option", "module"), [("--mcap", "mcap"), ("--rerun", "rerun")])
def test_a_missing_extra_is_named_and_an_older_file_stays(tmp_path, monkeypatch, capsys, option, module):
    for name in (module, "mcap.writer"):
        monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / "x"
    path.write_text("mine")
    assert main(["view", str(make(tmp_path / "cube")), option, str(path)]) == 1
    assert install_words(module) in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_a_file_that_cannot_be_written_to_the_end_leaves_the_older_one(tmp_path):
    from edgevla.view.written import written

    path = tmp_path / "run.mcap"
    path.write_text("older")

    def half():
        with written(path) as part:
            part.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        half()
    assert [p.name for p in tmp_path.iterdir()] == ["run.mcap"]
    assert path.read_text() == "older"

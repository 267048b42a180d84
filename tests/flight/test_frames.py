"""`edgevla inspect RUN --at T`: the pictures that the policy saw stand beside the timeline, to the bit."""

import numpy as np
import pytest
from log_kit import PERIOD, T0, UNITS, tick, write_log

from edgevla.cli import main
from edgevla.flight.findings import find
from edgevla.flight.frames import glimpses
from edgevla.flight.moments import Seen, save
from edgevla.flight.reader import load
from edgevla.types import Observation

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
NOTE = {
    "bundle": "b",
    "sha256": "0",
    "provider": "cpu",
    "threads": 1,
    "engine": "e",
    "why": "w",
    "saved_ns": 1,
}


def picture(n, size=(24, 32)):
    return np.random.default_rng(n).integers(0, 256, (*size, 3), np.uint8)


def seen(chunk, cameras=(FRONT, WRIST)):
    """Of a chunk that is executed from tick 30 * chunk on, seen twelve ticks before."""
    images = {camera: picture(10 * chunk + k) for k, camera in enumerate(cameras)}
    observation = Observation(np.zeros(6, np.float32), images, task="put the cube into the bowl")
    actions = np.zeros((10, 6), np.float32)
    return Seen(
        chunk, chunk, T0 + (30 * chunk - 12) * PERIOD, {chunk: observation}, None, None, 0, 0, actions
    )


def made(tmp_path, chunks=range(6, 9), **options):
    folder = write_log(
        tmp_path,
        [tick(n) for n in range(360)],
        about={"units": UNITS, "joints": [f"j{k}.pos" for k in range(6)], "robot": "so101"},
    )
    if chunks:
        save(folder, [seen(chunk, **options) for chunk in chunks], NOTE)
    return folder


def at(run, n):
    return f"{float(run.seconds(T0 + n * PERIOD)):.3f}"


@pytest.mark.parametrize(("n", "chunks"), [(215, [7]), (234, [7, 8]), (268, [8]), (265 + 30, [8])])
def test_what_is_executed_and_what_was_seen_last_are_shown(tmp_path, n, chunks):
    run = load(made(tmp_path))
    shown, damaged = glimpses(run, T0 + n * PERIOD)
    assert damaged == []
    assert [glimpse.seen.request_id for glimpse in shown] == chunks
    assert shown[0].images[WRIST].tobytes() == picture(10 * chunks[0] + 1).tobytes()


def test_the_picture_has_the_frames_to_the_bit_beside_the_timeline(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from edgevla.flight.picture import draw

    folder = made(tmp_path)
    run, ns = load(folder), T0 + 234 * PERIOD
    figure = draw(run, find(run), ns, glimpses(run, ns)[0])
    drawn = [np.asarray(image.get_array()) for axis in figure.axes for image in axis.get_images()]
    expected = [picture(n) for n in (70, 80, 71, 81)]
    assert len(drawn) == 4
    assert all((a == b).all() for a, b in zip(drawn, expected, strict=True))
    assert main(["inspect", str(folder), "--at", at(run, 234), "--picture", str(tmp_path / "x.png")]) == 0
    said = capsys.readouterr().out
    assert "A in the picture is what the policy saw at" in said
    assert "0.30 s before, for chunk 7: its actions are executed here" in said
    assert "for chunk 8: the newest picture before this moment" in said
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chunks": ()}, "what the policy saw then was not saved: a fault saves"),
        ({"cameras": ()}, "the policy looks through no camera"),
    ],
)
def test_without_frames_it_is_said_why_and_the_timeline_is_drawn(tmp_path, capsys, options, words):
    folder = made(tmp_path, **options)
    run = load(folder)
    assert main(["inspect", str(folder), "--at", at(run, 215), "--picture", str(tmp_path / "x.png")]) == 0
    assert words in capsys.readouterr().out


def test_a_damaged_frame_is_said_and_the_other_is_shown(tmp_path, capsys):
    folder = made(tmp_path)
    (folder / "saved/moment-00/7.npz").write_bytes(b"PK rubbish")
    run = load(folder)
    shown, (damaged,) = glimpses(run, T0 + 234 * PERIOD)
    assert [(glimpse.letter, glimpse.seen.request_id) for glimpse in shown] == [("A", 8)]
    assert "7.npz is damaged" in damaged
    assert main(["inspect", str(folder), "--at", at(run, 234), "--picture", str(tmp_path / "x.png")]) == 0
    assert "! " + damaged in capsys.readouterr().out

"""What the policy saw: bounded in memory, saved whole or not at all, and inferred again to the bit."""

import json
import shutil
import time

import numpy as np
import pytest
from log_kit import tick, write_log

from edgevla.bundle import load_bundle
from edgevla.cli import main
from edgevla.engines import EngineOptions
from edgevla.errors import UsageError
from edgevla.flight.moments import Memory, Seen, about, find_chunk, save
from edgevla.flight.witness import Witness
from edgevla.predictor import RtcInputs
from edgevla.runner import BundlePolicy
from edgevla.types import Observation

FRONT = "observation.images.front"


def seen(n, second=0.0, size=(24, 32)):
    rng = np.random.default_rng(n)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    observation = Observation(rng.normal(size=6).astype(np.float32), {FRONT: image}, task="go")
    actions = rng.normal(size=(10, 6)).astype(np.float32)
    return Seen(n, n, round(second * 1e9), {n: observation}, None, None, 7, n, actions)


def test_memory_is_bounded_in_seconds_and_in_bytes():
    memory = Memory(60)
    for n in range(200):
        memory.add(seen(n, n))
    assert [one.request_id for one in memory.since(0)] == list(range(139, 200))
    short = Memory(1.0)
    for n in range(100):
        short.add(seen(n, n / 100, (480, 640)))
    assert short.n_bytes <= 4_500_000
    assert short.since(0)[-1].request_id == 99


def test_what_was_saved_comes_back_to_the_bit(tmp_path):
    rtc = RtcInputs(np.ones((10, 6), np.float32), np.linspace(0, 1, 10, dtype=np.float32), 5.0, 4)
    one = Seen(**{**vars(seen(3)), "rtc": rtc, "n_steps": 4})
    note = {
        "bundle": "b",
        "sha256": "0",
        "provider": "cpu",
        "threads": 1,
        "engine": "e",
        "why": "w",
        "saved_ns": 1,
    }
    place = save(tmp_path, [seen(2), one], note)
    assert [p.name for p in (tmp_path / "saved").iterdir()] == [place.name], "whole, and nothing beside it"
    about, again = find_chunk(tmp_path, 3)
    assert about.why == "w"
    assert (again.n_steps, again.seed, again.chunk_seq, again.rtc.max_guidance) == (4, 7, 3, 5.0)
    assert again.rtc.select == 4
    assert again.actions.tobytes() == one.actions.tobytes()
    assert again.moments[3].images[FRONT].tobytes() == one.moments[3].images[FRONT].tobytes()
    assert again.moments[3].task == "go"
    with pytest.raises(UsageError, match=r"chunk 9 of .* is not among the saved ones: 2 to 3 \(2 chunks\)"):
        find_chunk(tmp_path, 9)
    (place / "3.npz").write_bytes(b"PK rubbish")
    with pytest.raises(UsageError, match=r"3\.npz is damaged"):
        find_chunk(tmp_path, 3)


def test_a_damaged_moment_hides_neither_the_others_nor_the_run(tmp_path, capsys):
    folder = write_log(tmp_path, [tick(0), tick(1)])
    note = {
        "bundle": "b",
        "sha256": "s",
        "provider": "cpu",
        "threads": 1,
        "engine": "e",
        "why": "w",
        "saved_ns": 1,
    }
    place = save(folder, [seen(2)], note)
    save(folder, [seen(2), seen(3)], note)
    (place / "moment.json").write_text('{"for')
    assert find_chunk(folder, 2)[1].request_id == 2
    with pytest.raises(UsageError, match=r"moment-00/moment\.json is damaged"):
        find_chunk(folder, 9)
    assert main(["inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "moment-00/moment.json is damaged" in said
    assert "chunks 2 to 3 can be inferred again" in said


@pytest.mark.parametrize("chunks", [[], [{}], [{"chunk": 2}], "23", None, [{"chunk": 2, "observed_ns": "x"}]])
def test_a_note_that_lists_no_inferences_is_damaged(tmp_path, chunks):
    note = {
        "bundle": "b",
        "sha256": "s",
        "provider": "cpu",
        "threads": 1,
        "engine": "e",
        "why": "w",
        "saved_ns": 1,
    }
    place = save(tmp_path, [seen(2)], note)
    data = json.loads((place / "moment.json").read_text())
    (place / "moment.json").write_text(json.dumps({**data, "chunks": chunks}))
    with pytest.raises(UsageError, match=r"moment\.json is damaged"):
        about(place)


def test_a_run_without_saved_moments_says_how_one_comes_about(tmp_path):
    with pytest.raises(UsageError, match="a fault saves the last 30 s"):
        find_chunk(tmp_path, 3)


def test_a_disk_without_room_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OSError, match="it takes up to"):
        save(tmp_path, [seen(1)], {})
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("kind", ["act", "flow", "history"])
def test_a_chunk_is_inferred_again_equal_to_the_bit(tmp_path, make_bundle, capsys, kind, monkeypatch):
    """As the policy node does, over several grid moments; then from the folder alone, with the bundle moved away."""
    bundle = load_bundle(make_bundle(kind))
    policy = BundlePolicy(bundle, seed=5, options=EngineOptions(threads=1))
    run = tmp_path / "2026-11-30-120000-0123abcd"
    run.mkdir()
    (run / "run.flight").write_bytes(b"")
    told = []
    witness = Witness(run, 60.0, str(bundle.folder), bundle.sha256, "cpu", 1, told.append)
    rng = np.random.default_rng(0)
    for n in range(6):
        size = (
            bundle.manifest.features[bundle.manifest.cameras[0]].shape
            if bundle.manifest.cameras
            else (24, 32, 3)
        )
        images = {name: rng.integers(0, 256, size, np.uint8) for name in bundle.manifest.cameras}
        observation = Observation(rng.normal(size=6).astype(np.float32), images, task="push")
        rtc = (
            RtcInputs(rng.normal(size=(10, 6)).astype(np.float32), np.ones(10, np.float32))
            if policy.has_rtc
            else None
        )
        result = policy.infer(observation, grid_index=n, rtc=rtc, chunk_seq=40 + n)
        witness.see(40 + n, n, time.monotonic_ns(), observation, {}, policy.n_moments, None, rtc, result)
    assert "are being saved" in witness.save("a test", time.monotonic_ns())
    witness.close()
    assert "saved for good" in told[0]
    (tmp_path / "bundles").mkdir()
    bundle.folder.rename(tmp_path / "bundles" / "moved")
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(run), "--replay-chunk", "44"]) == 0
    assert "EQUAL TO THE BIT" in capsys.readouterr().out


def test_another_answer_is_called_different(tmp_path, make_bundle, capsys):
    bundle = load_bundle(make_bundle("act"))
    one = seen(3)
    (tmp_path / "run.flight").write_bytes(b"")
    note = {
        "bundle": str(bundle.folder),
        "sha256": bundle.sha256,
        "provider": "cpu",
        "threads": 1,
        "engine": "other 1",
    }
    save(tmp_path, [one], {**note, "why": "w", "saved_ns": 1})
    assert main(["inspect", str(tmp_path), "--replay-chunk", "3"]) == 1
    out = capsys.readouterr().out
    assert "DIFFERENT by up to" in out
    assert "then it was other 1" in out


def test_a_bundle_that_is_not_found_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.flight").write_bytes(b"")
    note = {
        "bundle": "/gone",
        "sha256": "ab" * 32,
        "provider": "cpu",
        "threads": 1,
        "engine": "e",
        "why": "w",
    }
    save(tmp_path, [seen(3)], {**note, "saved_ns": 1})
    assert main(["inspect", str(tmp_path), "--replay-chunk", "3"]) == 2
    assert "the bundle of this run (abababababab, then at /gone) is not found" in capsys.readouterr().err
    assert json.loads((tmp_path / "saved/moment-00/moment.json").read_text())["why"] == "w"
    assert [p.name for p in (tmp_path / "saved").iterdir()] == ["moment-00"]

"""The flight log: what goes in comes out, whatever is cut off; and it never holds up whoever feeds it."""

import json
import os
import signal
import threading
import time

import numpy as np
import pytest
from deployment_kit import Deployment, make_bundle, write_fast_profile
from hypothesis import given
from hypothesis import strategies as st
from log_kit import T0, tick, write_log

from edgevla.errors import UsageError
from edgevla.flight import writer
from edgevla.flight.blocks import pack, pack_ints, unpack, unpack_ints
from edgevla.flight.reader import entries, load
from edgevla.flight.ticks import pack_ticks
from edgevla.flight.writer import FlightWriter

ints = st.integers(-(2**62), 2**62)


@given(st.lists(st.lists(ints, min_size=3, max_size=3), min_size=1, max_size=30))
def test_whole_numbers_come_back_whatever_they_are(rows):
    columns = np.array(rows, np.int64)
    assert (unpack_ints(pack_ints(columns), len(rows), 3) == columns).all()


def test_ticks_come_back_within_the_quantum_and_times_to_the_nanosecond(tmp_path):
    rng = np.random.default_rng(0)
    wanted = rng.uniform(-90, 90, (50, 6)).astype(np.float32)
    ticks = [tick(n, wanted[n], reason="why" if n > 20 else "") for n in range(50)]
    ticks[7] = tick(7, mode="holding", chunk_seq=None)
    object.__setattr__(ticks[7].body, "wanted", None)
    goal = np.full(6, np.nan, np.float32)
    ticks[8] = tick(8, wanted[8], goal=goal, limited_by=np.array([4, 0, 0, 2, 0, 0], np.uint16))
    found = [e for e in entries(write_log(tmp_path, ticks)) if e["type"] == "state"]
    assert [e["tick"] for e in found] == list(range(50))
    assert [e["deadline_ns"] for e in found] == [m.body.deadline_ns for m in ticks]
    np.testing.assert_allclose(found[9]["wanted"], wanted[9], atol=0.0006)
    np.testing.assert_allclose(found[9]["goal"], 0, atol=0.0006)
    assert found[7]["wanted"] is None
    assert (found[7]["mode"], found[7]["chunk_seq"]) == ("holding", None)
    assert found[8]["goal"] == [None] * 6
    assert found[8]["limited_by"] == [4, 0, 0, 2, 0, 0]
    assert [e["reason"] for e in found[20:22]] == ["", "why"]


def test_notes_of_several_kinds_keep_their_order(tmp_path):
    notes = [
        {"type": "event", "n": k} if k % 3 else {"type": "chunk", "n": k, "more": [k]} for k in range(20)
    ]
    assert [e for e in entries(write_log(tmp_path, notes=notes)) if e["type"] in ("event", "chunk")] == notes


def test_a_log_that_is_cut_anywhere_is_readable_up_to_its_last_whole_block(tmp_path):
    data = b"".join(pack({"kind": "notes", "n": n, "tables": []}) for n in range(10))
    ends = [len(data) // 10 * (n + 1) for n in range(10)]
    assert len(data) == ends[-1], "blocks of one size, or the test counts wrong"
    for cut in range(len(data)):
        whole = sum(end <= cut for end in ends)
        assert [c["n"] for c in unpack(data[:cut])] == list(range(whole))


def test_damage_in_the_middle_costs_its_block_only():
    parts = [pack({"kind": "notes", "n": n, "tables": []}) for n in range(5)]
    for at in range(len(parts[2])):
        hurt = bytearray(parts[2])
        hurt[at] ^= 0x41
        found = [c["n"] for c in unpack(b"".join([*parts[:2], bytes(hurt), *parts[3:]]))]
        assert found == [0, 1, 3, 4]


def test_a_disk_that_hangs_holds_nobody_up_and_is_said_once(tmp_path, monkeypatch):
    gone, said = threading.Event(), []
    log = FlightWriter(tmp_path, b"\1" * 8, said.append)
    monkeypatch.setattr(writer, "CLOSED_S", 0.2)
    monkeypatch.setattr(log._files, "append", lambda data: gone.wait(60))
    began = time.monotonic()
    for n in range(3 * writer.WAITING):
        log.note({"type": "event", "severity": "warning", "n": n})
    log.close("{}")
    assert time.monotonic() - began < 20
    gone.set()
    assert sum("too slow" in words for words in said) == 1
    assert sum("does not answer" in words for words in said) == 1
    log._thread.join(30)


def test_a_full_disk_is_said_once_and_what_was_written_stays_readable(tmp_path):
    said = []
    log = FlightWriter(tmp_path, b"\1" * 8, said.append)
    log.note({"type": "event", "severity": "warning", "n": 1})
    while len(list(entries(log.folder))) < 2:
        time.sleep(0.01)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._files._fd)
    os.close(full)
    for n in range(5):
        log.note({"type": "event", "severity": "warning", "n": n})
    log.close("{}")
    assert len(said) == 1
    assert "the log ends here" in said[0]
    assert [e["n"] for e in entries(log.folder) if e["type"] == "event"] == [1]


def test_a_newer_format_is_refused_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "FORMAT", 99)
    folder = write_log(tmp_path)
    with pytest.raises(UsageError, match="has the log format 99, this EdgeVLA reads 1"):
        list(entries(folder))


def test_an_old_log_in_lines_is_read(tmp_path):
    run = tmp_path / "old"
    run.mkdir()
    state = {"type": "state", **{k: v for k, v in vars(tick(3).body).items()}, "observed_ns": T0}
    line = json.dumps({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in state.items()})
    event = json.dumps({"type": "event", "observed_ns": T0, "severity": "info", "code": "x", "text": "y"})
    (run / "run.jsonl").write_text(f"{line}\n{event}\n{line[:40]}")
    found = load(run)
    assert (found.n_ticks, found.is_old, len(found.notes["event"])) == (1, True, 1)


def test_a_policy_servers_log_is_no_run_of_a_robot(tmp_path):
    (tmp_path / "run.jsonl").write_text('{"type": "request", "at": 1}\n')
    with pytest.raises(UsageError, match="not a robot's run"):
        load(tmp_path)


def test_an_hour_of_six_joints_at_120_hz_takes_less_than_10_mb():
    """A hard case: every joint always moves, and chunks follow each other ten times a second."""
    rng, n = np.random.default_rng(1), 240
    time_s = np.arange(n) / 120
    phase = rng.uniform(0, 6, 6)
    smooth = (30 * np.sin(2 * time_s[:, None] + phase)).astype(np.float32)
    measured = np.round(smooth / 0.088) * 0.088 + rng.integers(-1, 2, (n, 6)) * 0.088
    ages = rng.integers(800, 1600, (n, 1)).astype(np.uint32)
    ticks = [
        tick(k, smooth[k], goal=smooth[k], position=measured[k].astype(np.float32),
             late_ns=int(rng.integers(0, 400_000)), position_age_us=np.repeat(ages[k], 6))
        for k in range(n)
    ]  # fmt: skip
    n_bytes = len(pack(pack_ticks(ticks, [1e-3] * 6)))
    assert n_bytes * 1800 < 7.5e6, "what else is noted takes the rest"


@pytest.mark.realtime
def test_the_log_of_a_deployment_that_was_killed_is_readable_to_the_last_seconds(tmp_path):
    """Every process dies at once, as when the battery is pulled out."""
    bundle = make_bundle(tmp_path / "bundle", turning=0.05)
    run = Deployment(tmp_path, bundle, write_fast_profile(tmp_path / "fast.toml"))
    try:
        run.wait_for("robot        running", 120)
        time.sleep(4)
        killed_ns = time.monotonic_ns()
        for process in run._mine():
            process.send_signal(signal.SIGKILL)
        run.process.wait(20)
        found = load(run.log_path)
        assert not found.is_whole
        assert killed_ns - found.ticks["observed_ns"][-1] < 4e9
        assert found.joints[0] == "shoulder_pan"
        assert (np.diff(found.ticks["seq"]) == 1).all(), "no tick that was told is missing"
    finally:
        run.close()

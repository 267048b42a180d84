"""A run's log: a folder of its own, never more than fits, and an end that the run does not notice."""

import errno
import json
import os
import resource
import shutil
from pathlib import Path

import pytest

from edgevla.launch import logfiles
from edgevla.launch.logfiles import LogFiles, prune

LINE = json.dumps({"type": "state", "position": [0.0] * 20})
N = 2000
YEAR = 2000 + 100
"""Of runs that are not too old whenever this is run."""


class Log:
    """Log files under `place`, and what they warned of."""

    def __init__(self, place, session=b"\x01\x02\x03\x04\x05\x06\x07\x08"):
        self.warnings = []
        self.files = LogFiles(place, session, self.warnings.append)

    def write(self, n=N):
        for _ in range(n):
            self.files.write(LINE)
        self.files.flush()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def small_disk():
    """No file may grow beyond 20 kB: what the kernel says is an OSError, as with a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_every_run_has_a_folder_of_its_own_and_the_newest_is_linked(tmp_path):
    first = Log(tmp_path / "log")
    first.write()
    first.files.close("{}")
    second = Log(tmp_path / "log", os.urandom(8))
    second.write(1)
    second.files.close('{"failure": "second"}')
    assert len(lines(first.files.path)) == N, "nothing of an earlier run is overwritten"
    assert (first.files.folder / "summary.json").read_text() == "{}\n"
    latest = tmp_path / "log" / "latest"
    assert latest.resolve() == second.files.folder
    assert lines(latest / "run.jsonl") == [json.loads(LINE)]
    assert not latest.readlink().is_absolute(), "a folder that is moved or copied takes its link along"
    assert first.warnings == second.warnings == []


def test_where_links_do_not_work_a_file_has_the_name(tmp_path, monkeypatch):
    def never(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", never)
    log = Log(tmp_path)
    assert (tmp_path / "latest").read_text().strip() == log.files.folder.name


def test_what_a_person_calls_latest_stays(tmp_path):
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "notes.txt").write_text("mine")
    Log(tmp_path).write(1)
    assert (tmp_path / "latest" / "notes.txt").read_text() == "mine"


def test_a_full_disk_ends_the_log_with_one_warning_and_whole_lines(tmp_path, small_disk):
    log = Log(tmp_path)
    for _ in range(3):
        log.write()
    log.files.close("x" * 10_000)
    assert len(log.warnings) == 1
    assert "the log ends here" in log.warnings[0]
    assert "File too large; the run goes on without it" in log.warnings[0]
    assert str(log.files.folder) in log.warnings[0]
    assert all(entry["type"] == "state" for entry in lines(log.files.path)), "no line is cut"
    assert not (log.files.folder / "summary.json").exists()


def test_a_disk_that_is_full_when_the_run_ends(tmp_path, small_disk):
    log = Log(tmp_path)
    log.write(10)
    log.files.close("x" * 30_000)
    assert len(log.warnings) == 1
    assert len(lines(log.files.path)) == 10
    assert sorted(p.name for p in log.files.folder.iterdir()) == ["run.jsonl"], "no half of a summary"


def test_a_device_that_takes_nothing_ends_the_log_with_one_warning(tmp_path):
    """As a card that was pulled out: every write fails."""
    log = Log(tmp_path)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log.files._fd)
    os.close(full)
    for _ in range(3):
        log.write()
    log.files.close("{}")
    assert len(log.warnings) == 1
    assert "No space left on device" in log.warnings[0]


def test_a_folder_that_is_deleted_meanwhile_ends_the_log_with_one_warning(tmp_path):
    """Linux would go on writing into a file that nobody will ever read."""
    log = Log(tmp_path / "log")
    log.write(10)
    shutil.rmtree(tmp_path / "log")
    for _ in range(3):
        log.write()
    log.files.close("{}")
    assert len(log.warnings) == 1
    assert "it was removed" in log.warnings[0]


def test_a_folder_that_cannot_be_made_is_said_before_anything_starts(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        Log(tmp_path / "file" / "log")


def test_lines_are_on_the_disk_within_a_second(tmp_path, monkeypatch):
    """A supervisor that is killed loses a second, not the reason."""
    now = [100.0]
    monkeypatch.setattr(logfiles.time, "monotonic", lambda: now[0])
    log = Log(tmp_path)
    log.files.write(LINE)
    assert log.files.path.read_bytes() == b""
    now[0] += 1.0
    log.files.write(LINE)
    assert len(lines(log.files.path)) == 2


def test_a_run_of_days_keeps_its_newest_lines_and_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setattr(logfiles, "PART_BYTES", 100_000)
    log = Log(tmp_path)
    for n in range(20_000):
        log.files.write(json.dumps({"n": n}))
        if n % 1000 == 0:
            log.files.flush()
    log.files.close("{}")
    kept = [*lines(log.files.folder / "run.1.jsonl"), *lines(log.files.path)]
    numbers = [entry["n"] for entry in kept]
    assert numbers == list(range(numbers[0], 20_000)), "without a gap up to the last one"
    assert numbers[0] > 0
    size = sum(path.stat().st_size for path in log.files.folder.iterdir())
    assert size <= 2 * (100_000 + logfiles.FLUSH_BYTES) + 3
    assert len(log.warnings) == 1
    assert "its oldest part is dropped" in log.warnings[0]


def old_run(place, day, n_bytes):
    run = place / f"{YEAR}-01-{day:02d}-120000-0123abcd"
    run.mkdir(parents=True)
    (run / "run.jsonl").write_bytes(b"x" * n_bytes)
    return run


def test_old_runs_are_removed_by_size_the_oldest_first_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(logfiles, "KEPT_BYTES", 2500)
    runs = [old_run(tmp_path, day, 1000) for day in (3, 1, 2)]
    theirs = tmp_path / "notes"
    theirs.mkdir()
    (theirs / "big").write_bytes(b"x" * 10_000)
    log = Log(tmp_path)
    assert [run.exists() for run in runs] == [True, False, True]
    assert theirs.exists(), "only runs are removed"
    assert log.files.folder.exists()
    assert log.warnings == [f"1 old run in {tmp_path} removed, to keep it below 2.5e-06 GB and 90 days"]


def test_runs_of_long_ago_are_removed_but_never_what_was_saved_for_good(tmp_path, monkeypatch):
    old = tmp_path / "2001-01-01-120000-0123abcd"
    kept = tmp_path / "2001-01-02-120000-0123abcd"
    for run in (old, kept):
        run.mkdir()
        (run / "run.flight").write_bytes(b"x" * 1000)
    (kept / "saved").mkdir()
    monkeypatch.setattr(logfiles, "KEPT_BYTES", 500)
    log = Log(tmp_path)
    assert not old.exists()
    assert kept.exists(), "a saved moment stays, and does not count"
    assert log.warnings == [f"1 old run in {tmp_path} removed, to keep it below 5e-07 GB and 90 days"]


def test_the_newest_run_stays_whatever_its_size(tmp_path):
    newest = old_run(tmp_path, 9, 10_000)
    older = old_run(tmp_path, 8, 10)
    assert prune(tmp_path, newest.name, 100) == 1
    assert newest.exists()
    assert not older.exists()


def test_a_run_that_somebody_still_writes_stays(tmp_path):
    """Two robots that log into one folder."""
    busy = Log(tmp_path, b"\x00" * 8)
    busy.write()
    other = old_run(tmp_path, 9, 10)
    assert prune(tmp_path, other.name, 100) == 0
    busy.files.close("{}")
    assert prune(tmp_path, other.name, 100) == 1

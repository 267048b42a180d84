"""A run's folder belongs to one training: whoever comes second is told so, or gets a folder of its own."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgevla.checkpoints import CHECKPOINTS
from edgevla.errors import UsageError
from edgevla.train import claim
from edgevla.train.claim import CLAIM, claimed, claimed_anew

SAME_SECOND = """
import sys
from pathlib import Path
from edgevla.train import claim

claim.default_folder = lambda policy: Path("runs/act-1130-120000")
with claim.claimed_anew("", "act") as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def start(code: str, where: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.Popen(command, cwd=where, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    running = [start(SAME_SECOND, tmp_path) for _ in range(4)]
    folders = [p.stdout.readline().strip() for p in running if p.stdout is not None]
    for process in running:
        process.communicate()
    names = ["runs/act-1130-120000", *(f"runs/act-1130-120000-{n}" for n in (2, 3, 4))]
    assert sorted(folders) == names
    assert list((tmp_path / "runs").iterdir()) == [], "nothing came about in them"


def test_a_folder_that_somebody_trains_in_is_refused_until_he_ends(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with claimed_anew(str(run), "act"):
        (run / "metrics.jsonl").write_text("")
        for again in (claimed_anew(str(run), "act"), claimed(run)):
            with pytest.raises(UsageError, match=rf"process {os.getpid()} on .* such as {run}-2"), again:
                pass
        assert (run / CLAIM).exists()
    assert [p.name for p in run.iterdir()] == ["metrics.jsonl"]
    with claimed_anew(str(run), "act"):  # it saved nothing, so it may begin again
        pass
    (run / CHECKPOINTS).mkdir()
    with pytest.raises(UsageError, match="holds a run already"), claimed_anew(str(run), "act"):
        pass


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_process_that_was_killed_has_no_claim(
    tmp_path: Path, has_locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    code = "import sys; from edgevla.train import claim; from pathlib import Path\n"
    if not has_locks:
        code += "import fcntl\ndef no(*_): raise OSError(37, 'No locks available')\nfcntl.flock = no\n"
        monkeypatch.setattr(fcntl, "flock", no_locks)
    code += f"with claim.claimed(Path({str(tmp_path)!r})):\n  print('mine', flush=True); sys.stdin.read()"
    other = start(code, tmp_path)
    assert other.stdout is not None
    assert other.stdout.readline() == "mine\n"
    with pytest.raises(UsageError, match=f"process {other.pid} on"), claimed(tmp_path):
        pass
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert (tmp_path / CLAIM).exists()
    with claimed(tmp_path):
        pass
    assert not (tmp_path / CLAIM).exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UsageError, match="is a file"), claimed_anew(str(tmp_path / "run"), "act"):
        pass


def test_the_name_says_policy_and_time() -> None:
    assert claim.default_folder("act").parts[0] == "runs"
    assert claim.default_folder("act").name.startswith("act-")

"""Deployments are found wherever their environment put them, by the command that has another environment."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edgevla import session
from edgevla.errors import UsageError, WireError
from edgevla.launch.attach import ask
from edgevla.session import (
    Deployment,
    announce,
    began,
    deployments,
    find_deployment,
    guardian_socket,
    new_session,
    run_dir,
    write_deployment,
)

DEAD = 2**22 + 1
"""No process has this number: it is above the kernel's largest."""
TOLD = ("XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY", "TMPDIR", "EDGEVLA_RUNTIME_DIR")


@pytest.fixture
def place(monkeypatch):
    """A short folder, and an environment that says nothing of where deployments are."""
    folder = Path(tempfile.mkdtemp(prefix="ev", dir="/tmp"))
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(pid=None, task=""):
    """What a supervisor writes first."""
    made = new_session()
    folder = run_dir(made)
    pid = os.getpid() if pid is None else pid
    write_deployment(folder, Deployment(made.hex(), pid, "so101", "bundles/act", ["robot"], task, began(pid)))
    announce(folder)
    return folder


@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "TMPDIR", "RUNTIME_DIRECTORY"])
def test_a_deployment_is_found_by_who_has_another_environment(place, monkeypatch, variable):
    """As a unit, cron and a login differ: set where it started and not where one looks, and the other way about."""
    (place / "own").mkdir(mode=0o700)
    without = start()
    monkeypatch.setenv(variable, str(place / "own"))
    tempfile.tempdir = None
    with_it = start()
    assert with_it.is_relative_to(place), "where the environment says"
    assert without.parent == Path(f"/tmp/edgevla-{os.getuid()}")
    try:
        assert {without, with_it} <= set(deployments())
        monkeypatch.delenv(variable)
        tempfile.tempdir = None
        assert {without, with_it} <= set(deployments())
    finally:
        session.remove_run_dir(without)
        session.remove_run_dir(with_it)
    assert with_it not in deployments()
    assert not (Path(f"/tmp/edgevla-{os.getuid()}") / with_it.name).is_symlink()


def test_a_login_finds_what_a_login_started_even_without_its_environment(place, monkeypatch):
    """/run/user/UID is looked at; a cron job of the same user has no XDG_RUNTIME_DIR."""
    roots = session.runtime_roots
    usual = Path(f"/run/user/{os.getuid()}/edgevla")
    monkeypatch.setattr(session, "_is_private", lambda root: root == usual or root.is_dir())
    assert usual.resolve() in roots()


def test_services_of_this_machine_are_found(place, monkeypatch):
    monkeypatch.setattr(session, "SERVICES", place)
    unit = place / "act"
    unit.mkdir(mode=0o700)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(unit))  # as systemd tells the service
    folder = start()
    assert folder.parent == unit
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    assert folder in deployments()


def test_a_runtime_directory_that_others_may_enter_is_not_used(place, monkeypatch):
    (place / "open").mkdir(mode=0o755)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(place / "open"))
    folder = start()
    assert not folder.is_relative_to(place)
    shutil.rmtree(folder)


def test_the_override_is_the_only_place(place, monkeypatch):
    elsewhere = start()
    monkeypatch.setenv("EDGEVLA_RUNTIME_DIR", str(place / "mine"))
    with pytest.raises(UsageError, match="no deployment is running; start one with: edgevla deploy"):
        find_deployment()
    here = start()
    assert find_deployment() == here
    shutil.rmtree(elsewhere)


def test_a_link_to_a_deployment_that_has_gone_is_removed(place, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    folder = start()
    link = Path(f"/tmp/edgevla-{os.getuid()}") / folder.name
    assert link.is_symlink()
    shutil.rmtree(folder)
    deployments()
    assert not link.is_symlink()


def test_what_a_killed_supervisor_left_behind_is_removed_when_seen(own_runtime):
    left, running = start(DEAD), start()
    (left / "robot.pub").write_text("")
    assert find_deployment() == running
    assert not left.exists()


def test_a_number_that_another_process_has_by_now_is_no_supervisor(own_runtime):
    """Numbers are used again; what counts is the process that began when the note says."""
    made = new_session()
    folder = run_dir(made)
    write_deployment(
        folder, Deployment(made.hex(), os.getpid(), "so101", None, [], "", began(os.getpid()) - 1)
    )
    assert deployments() == []
    assert not folder.exists()


def test_a_zombie_is_no_supervisor(own_runtime):
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    start_of_child = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    made = new_session()
    note = Deployment(made.hex(), child.pid, "so101", None, [], "", int(start_of_child))
    write_deployment(run_dir(made), note)
    assert deployments() == []
    child.wait()


def test_while_a_guardian_lives_nothing_is_removed(own_runtime):
    """The supervisor was killed, the arm is being parked: a monitor may still attach and let go."""
    folder = start(DEAD)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as guardian:
        guardian.bind(str(guardian_socket(folder)))
        guardian.setblocking(False)
        assert find_deployment() == folder
        with pytest.raises(BlockingIOError):
            guardian.recv(64)  # looking is no emergency stop
    assert deployments() == []
    assert not folder.exists()


def test_a_folder_that_is_no_run_directory_is_never_removed(own_runtime):
    theirs = own_runtime / "thesis"
    theirs.mkdir()
    write_deployment(theirs, Deployment("ab" * 8, DEAD, "so101", None, []))
    assert deployments() == []
    assert theirs.exists()


def test_of_several_none_is_guessed(own_runtime):
    first, second = start(task="pick up the cube"), start()
    with pytest.raises(UsageError) as refused:
        find_deployment()
    words = str(refused.value)
    assert words.startswith("2 deployments are running; say which one:")
    assert f"--run-dir {first}   so101, act, “pick up the cube”, since " in words
    assert f"--run-dir {second}   so101, act, since " in words
    assert find_deployment(first) == first


def test_a_named_one_must_be_there(own_runtime, tmp_path):
    gone = start(DEAD)
    with pytest.raises(UsageError, match="has ended"):
        find_deployment(gone)
    with pytest.raises(WireError, match="there is no deployment in"):
        find_deployment(tmp_path)


def test_a_person_is_asked_which_one(own_runtime):
    two = [start(), start(task="wave")]
    questions = []

    def answer(text):
        return lambda question: questions.append(question) or text

    assert ask(two, answer("2\n")) == two[1]
    assert "  2  so101, act, “wave”, since " in questions[0]
    assert str(two[1]) in questions[0]
    for wrong in ("3\n", "0\n", "\n", "two\n"):
        with pytest.raises(UsageError, match="none of 1 to 2"):
            ask(two, answer(wrong))


def test_of_two_deployments_record_takes_the_one_that_is_named(own_runtime, tmp_path):
    """As the monitor, which asks at its terminal (tests/monitor)."""
    first, second = start(), start()
    words = ["record", str(tmp_path / "dataset")]

    def said(*more):
        done = subprocess.run(
            [sys.executable, "-m", "edgevla", *words, *more],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    code, text = said()
    assert code == 2
    assert f"--run-dir {first}" in text
    assert f"--run-dir {second}" in text
    code, text = said(f"--run-dir={tmp_path}")
    assert code == 1
    assert "there is no deployment in" in text

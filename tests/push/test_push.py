"""`edgevla push` against a real sshd: what is copied, what a cut leaves, what goes back, and what is refused."""

import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgevla.bundle import list_files, load_bundle, write_manifest
from edgevla.cli import main
from edgevla.errors import RemoteError
from edgevla.push import there
from edgevla.push.line import failure_words
from edgevla.push.push_cli import check_machine
from edgevla.session import Deployment, began, write_deployment

COPY = ("robot", "--copy-only")


@pytest.fixture
def push(capsys, robot):
    """The report of a push, or with `code` its refusal."""

    def call(*words, ssh=None, code=0, python=sys.executable):
        options = ["--json", f"--ssh={ssh or robot.ssh()}", f"--python={python}"]
        told = main(["push", *map(str, words), *options])
        out, err = capsys.readouterr()
        assert told == code, (out, err)
        return json.loads(out) if code == 0 else err

    return call


def change(bundle, text, decode=None):
    """A note more, and perhaps another graph; all other files stay as they are."""
    manifest = load_bundle(bundle, verify=False).manifest
    (bundle / "notes.txt").write_text(text)
    if decode is not None:
        (bundle / "decode.onnx").write_bytes(decode)
    write_manifest(bundle, replace(manifest, files=list_files(bundle)))


def the_same(here, there_folder):
    names = {p.relative_to(here).as_posix() for p in here.rglob("*") if p.is_file()}
    return names == {
        p.relative_to(there_folder).as_posix() for p in there_folder.rglob("*") if p.is_file()
    } and all((here / n).read_bytes() == (there_folder / n).read_bytes() for n in names)


# -- what is copied -------------------------------------------------------------------------------------------


def test_a_second_push_copies_nothing_but_what_changed_and_one_word_goes_back(push, robot, bundle):
    first = push(bundle, *COPY)
    mine = robot.folder / "edgevla/bundles/act"
    assert the_same(bundle, mine)
    n_bytes = sum(p.stat().st_size for p in bundle.iterdir())
    assert (first["copied"]["sent_bytes"], first["copied"]["there_bytes"]) == (n_bytes, 0)

    again = push(bundle, *COPY)
    assert (again["copied"]["n_sent"], again["copied"]["sent_bytes"]) == (0, 0)
    assert again["current"]["before"] is None, "pushing the same again is no new version"

    change(bundle, "second")
    second = push(bundle, *COPY)
    assert second["copied"]["n_sent"] == 2, "the note, and the manifest that names it"
    assert second["copied"]["sent_bytes"] == 6 + (bundle / "manifest.json").stat().st_size
    assert second["current"]["before"] == first["current"]["version"]
    assert the_same(bundle, mine)

    back = push("--rollback", "robot")
    assert back["current"]["version"] == first["current"]["version"]
    assert not (mine / "notes.txt").exists()
    assert load_bundle(mine)
    forth = push("--rollback", "robot")
    assert forth["current"]["version"] == second["current"]["version"]


def test_a_file_that_was_damaged_there_is_sent_again(push, robot, bundle):
    push(bundle, *COPY)
    copy = robot.folder / "edgevla/bundles/act/extra.bin"
    with copy.open("r+b") as file:
        file.write(b"damage")
    report = push(bundle, *COPY)
    assert report["copied"]["n_sent"] == 1
    assert the_same(bundle, robot.folder / "edgevla/bundles/act")


def test_old_versions_leave_but_for_the_one_before(push, robot, bundle):
    for text in ("one", "two", "three"):
        change(bundle, text)
        push(bundle, *COPY)
    own = robot.folder / "edgevla/.push"
    assert len(list((own / "versions").iterdir())) == 2
    used = {p.stat().st_ino for p in (own / "versions").rglob("*") if p.is_file()}
    wheels = [p for p in (own / "store").iterdir() if p.stat().st_ino not in used]
    assert len(wheels) == 1, "nothing but the wheel is kept beside them"


# -- a cut ----------------------------------------------------------------------------------------------------


class CutLine:
    """Passes one connection on to sshd, and closes both ends once `is_time` says so, at most 1 MB being on its way."""

    def __init__(self, to_port, is_time):
        self._to, self._is_time = to_port, is_time
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._pass_on)
        self._thread.start()

    def _pass_on(self):
        client, _ = self._listening.accept()
        with client, socket.create_connection(("127.0.0.1", self._to)) as server:
            back = threading.Thread(target=self._copy, args=(server, client, 1 << 40))
            back.start()
            self._copy(client, server, 1 << 20)
            while not self._is_time():
                time.sleep(0.01)
            for end in (client, server):
                end.shutdown(socket.SHUT_RDWR)
            back.join()

    @staticmethod
    def _copy(source, target, n_left):
        try:
            while n_left > 0 and (data := source.recv(min(65536, n_left))):
                target.sendall(data)
                n_left -= len(data)
        except OSError:
            pass  # the other end was closed

    def close(self):
        self._thread.join()
        self._listening.close()


def test_a_push_that_was_cut_goes_on_where_it_was(push, robot, bundle, grow):
    push(bundle, *COPY)  # the wheel is there from now on
    grow(bundle, seed=1)
    store = robot.folder / "edgevla/.push/store"
    line = CutLine(robot.port, lambda: any(p.stat().st_size for p in store.glob("*.part")))
    said = push(bundle, *COPY, ssh=robot.ssh(port=line.port), code=1)
    line.close()
    assert "push again: it goes on where it was" in said
    mine = robot.folder / "edgevla/bundles/act"
    assert load_bundle(mine), "the version before stays current, and whole"
    with (robot.folder / "edgevla/.push/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held until the program there has seen the cut
    (part,) = store.glob("*.part")
    arrived = part.stat().st_size
    assert 0 < arrived <= 1 << 20
    report = push(bundle, *COPY)
    assert report["copied"]["sent_bytes"] == 3_000_000 - arrived + (bundle / "manifest.json").stat().st_size
    assert the_same(bundle, mine)


def test_two_pushes_at_once_are_one_too_many(push, robot, bundle, monkeypatch):
    push(bundle, *COPY)
    with (robot.folder / "edgevla/.push/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = push(bundle, *COPY, code=1)
    assert "another push into" in said


# -- the runtime ----------------------------------------------------------------------------------------------


def test_the_runtime_is_installed_measured_and_used(push, robot, bundle, capsys, tmp_path):
    """Into an environment of its own, from our wheel and without an index; numpy and the like are those of this machine
    (PYTHONPATH)."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "other-1.0-py3-none-any.whl").write_bytes(b"brought, and not asked for")
    report = push(bundle, "robot", f"--wheels={wheels}")
    assert report["runtime"]["is_new"]
    assert (robot.folder / "edgevla/venv/wheels/other-1.0-py3-none-any.whl").is_file()
    assert report["runtime"]["engine"] == "cpu"
    bench = report["bench"]
    assert bench["provider"] == "cpu"
    assert 0 < bench["p50_ms"] <= bench["max_ms"]
    edgevla = Path(report["current"]["edgevla"])
    assert edgevla.resolve().is_relative_to(robot.folder.resolve() / "edgevla/.push/runtimes")
    site = ":".join(p for p in sys.path if "site-packages" in p)
    code = "import edgevla.robots.guardian as g; print(g.__file__)"
    done = subprocess.run(
        [edgevla.with_name("python"), "-c", code], env={"PYTHONPATH": site}, cwd="/",
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(str(robot.folder / "edgevla")), "the wheel, not this tree"

    change(bundle, "second")
    assert main(["push", str(bundle), "robot", f"--ssh={robot.ssh()}", f"--python={sys.executable}"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"bench: act on cpu, opened in [\d.]+ s; an inference takes", told)
    assert "runtime: 0.1.0 [cpu], as it was" in told

    # A bundle that does not run there does not take the place of one that does.
    change(bundle, "third", decode=b"no graph")
    said = push(bundle, "robot", code=1)
    assert "the bundle does not run there" in said
    assert "decode.onnx" in said
    assert (robot.folder / "edgevla/bundles/act/notes.txt").read_text() == "second"


def test_a_later_runtime_is_kept_and_engines_add_up(tmp_path):
    """A robot that also runs a bundle for the CPU keeps ONNX Runtime when one for TensorRT comes."""
    place = there.RobotFolder(str(tmp_path / "to"))
    plan = place.plan_runtime("0.1.0", "cpu", "a" * 64)
    assert (plan["is_new"], plan["is_kept"]) == (True, False)
    (place.runtimes / plan["key"]).mkdir()
    (place.runtimes / plan["key"] / there.READY).write_text("0.1.0")
    (place.versions / "act-1").mkdir()
    place.switch("act", "act-1", plan["key"], plan["engine"])
    jetson = place.plan_runtime("0.1.0", "jetson", "a" * 64)
    assert (jetson["key"], jetson["is_new"]) == (plan["key"], False)
    assert place.plan_runtime("0.1.0", "cpu", "b" * 64)["is_new"], "the same version of other files"
    assert place.plan_runtime("0.1.1", "gpu", "a" * 64)["engine"] == "gpu"
    assert place.plan_runtime("0.1.1", "jetson,language", "a" * 64)["engine"] == "cpu,language"
    assert place.plan_runtime("0.0.9", "gpu", "b" * 64)["is_kept"]
    place.switch("act", "act-1", plan["key"], "cpu,language")
    assert place.plan_runtime("0.1.0", "gpu", "a" * 64)["engine"] == "gpu,language"
    place.close()


def test_a_first_runtime_for_the_same_bundle_does_not_take_the_place_of_the_version_before(tmp_path):
    """Copied alone twice, then pushed whole: one word still goes back to the first bundle."""
    place = there.RobotFolder(str(tmp_path / "to"))
    for version in ("act-1", "act-2"):
        (place.versions / version).mkdir()
        place.switch("act", version, None, None)
    (place.runtimes / "run").mkdir()
    assert place.switch("act", "act-2", "run", "cpu")["before"] == "act-1"
    assert (place.versions / "act-1").is_dir()
    assert place.rollback()["version"] == "act-1"
    assert place.state["runtime"] == "run", "there was none before"
    place.close()


def test_going_back_takes_the_engine_along(tmp_path):
    place = there.RobotFolder(str(tmp_path / "to"))
    for n, engine in enumerate(("cpu", "gpu")):
        (place.versions / f"act-{n}").mkdir()
        (place.runtimes / engine).mkdir()
        place.switch("act", f"act-{n}", engine, engine)
    place.rollback()
    assert place.plan_runtime("0.1.0", "cpu", "a" * 64)["engine"] == "cpu", "what was undone adds nothing"
    place.rollback()
    assert place.plan_runtime("0.1.0", "cpu", "a" * 64)["engine"] == "gpu"
    place.close()


def test_a_folder_without_wheels_is_refused(push, robot, bundle, tmp_path):
    empty = tmp_path / "wheels"
    empty.mkdir()
    assert "there is no wheel" in push(bundle, "robot", f"--wheels={empty}", code=2)


# -- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["-oProxyCommand=touch${IFS}x", "me@-x", "", "a b", "a;b", "$(x)", "-l", "a\nb"]
)
def test_a_hostile_name_never_reaches_ssh(capsys, bundle, tmp_path, host):
    trap = tmp_path / "ssh"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    trap.chmod(0o755)
    assert main(["push", f"--ssh={trap}", "--", str(bundle), host]) == 2
    assert "is no USER@HOST" in capsys.readouterr().err
    assert not (tmp_path / "called").exists()


def test_whom_ssh_does_not_know_or_who_does_not_know_us(push, robot, bundle):
    said = push(bundle, *COPY, ssh=robot.ssh(known="nobody_known"), code=1)
    assert "robot: ssh does not know its key" in said
    assert "ssh's keys do not open it" in push(bundle, *COPY, ssh=robot.ssh(key="stranger"), code=1)


def test_nobody_listens_and_no_such_machine(push, robot, bundle, free_port):
    assert "no ssh server listens there" in push(bundle, *COPY, ssh=robot.ssh(port=free_port), code=1)
    said = push(bundle, "nowhere.invalid", "--copy-only", code=1)
    assert "no machine of this name is known here" in said
    assert "a port belongs into ~/.ssh/config" in said
    assert "cannot be run here" in push(bundle, *COPY, ssh="/no/such/ssh", code=1)


def test_no_python_or_an_old_one(push, robot, bundle, tmp_path):
    assert "it has no '/no/python'" in push(bundle, *COPY, python="/no/python", code=1)
    old = tmp_path / "old"  # a Python that believes to be JetPack 5's
    old.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c "
        "'import sys; sys.version_info = (3, 8, 10); exec(sys.argv[3])' \"$@\"\n"
    )
    old.chmod(0o755)
    said = push(bundle, *COPY, python=old, code=1)
    assert "is Python 3.8, 3.10 or later is needed (a Jetson has it from JetPack 6 on)" in said


@pytest.mark.parametrize(("system", "machine"), [("Linux", "armv7l"), ("Darwin", "arm64")])
def test_a_machine_that_the_runtime_is_not_made_for(system, machine):
    with pytest.raises(RemoteError, match=f"it is a {system} on {machine}"):
        check_machine({"system": system, "machine": machine}, "robot")


def test_a_login_shell_that_chatters_is_listened_past(push, robot, bundle, tmp_path):
    noisy = tmp_path / "noisy"
    noisy.write_text(f'#!/bin/sh\necho "Welcome {{}}"\necho hint >&2\nexec {sys.executable} "$@"\n')
    noisy.chmod(0o755)
    assert push(bundle, *COPY, python=noisy)["copied"]["n_sent"] == 4


def test_a_login_shell_that_ends_is_no_cut_line(push, robot, bundle, tmp_path):
    closed = tmp_path / "closed"
    closed.write_text('#!/bin/sh\necho "This account is not available."\nexit 1\n')
    closed.chmod(0o755)
    said = push(bundle, *COPY, python=closed, code=1)
    assert "ended before our program began (This account is not available.); mend it" in said
    assert "goes on where it was" not in said


def test_a_login_shell_that_waits_is_said(push, robot, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("edgevla.push.line.SILENT_S", 0.1)
    told = tmp_path / "told"
    monkeypatch.setattr("edgevla.push.line.tell", lambda words, out: told.write_text(words))
    waits = tmp_path / "waits"
    waits.write_text(f'#!/bin/sh\nuntil [ -s {told} ]; do sleep 0.05; done\nexec {sys.executable} "$@"\n')
    waits.chmod(0o755)
    assert push(bundle, *COPY, python=waits)["copied"]["n_sent"] == 4
    assert "nothing heard for 0.1 s: ssh waits for you, or the login shell there" in told.read_text()


def test_where_nothing_may_be_written(push, robot, bundle, tmp_path):
    taken = robot.folder / "edgevla/bundles"
    taken.parent.mkdir(parents=True)
    taken.write_text("a file")
    assert "look after that folder there" in push(bundle, *COPY, code=1)
    own = tmp_path / "to/bundles/act"
    own.mkdir(parents=True)
    (own / "mine").write_text("the user's own")
    said = push(bundle, *COPY, f"--to={tmp_path}/to", code=1)
    assert "is not of edgevla's making" in said
    assert (own / "mine").read_text() == "the user's own"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_no_permission(push, robot, bundle):
    assert "this user may not write there" in push(bundle, *COPY, "--to=/edgevla", code=1)


def test_a_full_disk_is_said_before_anything_is_sent(monkeypatch, tmp_path):
    class Usage:
        free = 70 << 20

    monkeypatch.setattr(there.shutil, "disk_usage", lambda _: Usage)
    place = there.RobotFolder(str(tmp_path / "to"))
    assert place.have([("a" * 64, 1 << 20)]) == {"a" * 64: 0}
    with pytest.raises(there.PushRefusal, match="has room for 70 MB, 164 MB are needed"):
        place.have([("a" * 64, 100 << 20)])
    place.close()


def test_no_python3_venv(monkeypatch, tmp_path):
    place = there.RobotFolder(str(tmp_path / "to"))
    debian = "The virtual environment was not created successfully because ensurepip is not available."
    monkeypatch.setattr(there, "run", lambda *_: (1, debian))
    with pytest.raises(there.PushRefusal, match="sudo apt install python3-venv"):
        place.make_runtime("key", "0.1.0", "cpu", [], False)
    place.close()


def test_a_robot_that_moves_is_left_alone(push, sshd, robot, bundle):
    folder = sshd[0] / "run/0123456789abcdef"
    folder.mkdir()
    me = os.getpid()
    write_deployment(
        folder, Deployment("0123456789abcdef", me, "so101", "bundles/act", supervisor_since=began(me))
    )
    try:
        for words in ((bundle, *COPY), ("--rollback", "robot")):
            said = push(*words, code=1)
            assert "a deployment is running there (so101, act, since" in said
    finally:
        (folder / "deployment.json").unlink()
        folder.rmdir()
    assert not (robot.folder / "edgevla/bundles/act").exists()


def test_nothing_to_go_back_to(push, robot, bundle):
    assert "there is no version before the present one" in push("--rollback", "robot", code=1)
    push(bundle, *COPY)
    assert "there is no version before the present one" in push("--rollback", "robot", code=1)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["robot"], "say one bundle and where it goes"),
        (["--rollback", "a", "robot"], "--rollback takes USER@HOST alone"),
        (["--rollback", "--copy-only", "robot"], "--rollback copies nothing; leave out --copy-only"),
        (["--copy-only", "--wheels", "x", "a", "robot"], "--wheels is for the runtime"),
    ],
)
def test_words_that_cannot_be_meant(capsys, words, sentence):
    assert main(["push", *words]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "said", "sentence"),
    [
        (255, "ssh: connect to host x port 22: Connection timed out", "is it switched on"),
        (255, "client_loop: send disconnect: Broken pipe", "the line was cut (client_loop"),
        (
            255,
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "another one than",
        ),
        (127, "bash: line 1: python3: command not found", "it has no 'python3'; sudo apt install python3"),
        (1, "", "the line was cut; push again"),
    ],
)
def test_what_ssh_says_in_other_words(code, said, sentence):
    assert sentence in failure_words(code, said, "python3")

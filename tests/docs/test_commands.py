"""Every command of the pages is run, page by page, in a folder with small stand-ins for what it names.

Finite verbs run in this process. What would move an arm is taken up to torque: bundle, engine, line, servos and
cameras are opened; moving is what `tests/runtime` and `tests/launch` are about. `serve` and `emulate` go on until their
page ends. A command that differs from one that ran in the names of its folders alone is not run again: they must be
there, and what it would make is copied. What is not run says why in the page (`blocks.py`).
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, TextIO

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves neighbours unimportable

from blocks import PAGES, REASONS, ROOT, commands, stray
from standins import (
    CALIBRATIONS,
    Arms,
    calibrate,
    given,
    on_emulated_arms,
    shortened,
    traced_once,
    value,
    without,
)

from edgevla.cli import main
from edgevla.serve import paired

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
STAYS = {"serve": "listening at", "emulate": "/", "teleop": "running"}
"""Verbs that end when they are told to, and what they have said when they are there."""
NUMBERS = ("5599", "8000", "9599")
"""TCP ports of the pages, each replaced by a free one."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def supplies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What every page begins with; among it a run of two seconds, and machines that are paired."""
    root = tmp_path_factory.mktemp("docs")
    spec = importlib.util.spec_from_file_location("bundles_by_hand", ROOT / "tests/conftest.py")
    assert spec is not None
    assert spec.loader is not None
    by_hand = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(by_hand)

    def make_bundle(folder: Path, kind: str) -> None:
        folder.mkdir(parents=True)
        by_hand._BUILDERS[kind](folder, {})

    with home(root):
        given(root / "given", make_bundle)
        make_bundle(root / "by-hand", "act")
        a_run(root / "by-hand")
        shutil.move(root / "home/.local/state", root / "state")
        paired.keep("robots", "kitchen", "0" * 40)
        yield root


def a_run(bundle: Path) -> None:
    """A deployment of 13 s and 32 chunks, as the page about runs names them, which keeps what the policy saw."""
    command = [sys.executable, "-m", "edgevla", "deploy", str(bundle), "--robot", "so101", "--sim"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        assert any("running" in line for line in process.stdout)
        runs, until = str(Path("~/.local/state/edgevla/runs").expanduser()), time.monotonic() + 120
        time.sleep(13)  # what is recorded is time itself
        while main(["inspect", runs, "--save"]) != 0 or main(["inspect", runs, "--replay-chunk", "31"]) != 0:
            assert time.monotonic() < until
            time.sleep(2)
    finally:
        process.terminate()
        process.communicate(timeout=60)


@contextlib.contextmanager
def home(root: Path) -> Iterator[None]:
    """A home of its own, a hub that is only what was fetched, arms that are not switched on."""
    import huggingface_hub.constants as hub

    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "EDGEVLA_HOME"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(root / "home"))
        patch.setenv("HF_LEROBOT_CALIBRATION", str(root / "calibration"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("EDGEVLA_RUNTIME_DIR", tempfile.mkdtemp(prefix="edgevla-"))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setattr(hub, "HF_HUB_CACHE", str(root / "given/hub"))
        patch.setattr(hub, "HF_HUB_OFFLINE", True)
        patch.setattr("edgevla.export.trace.trace", traced_once)
        (root / "home/.config/fish/completions").mkdir(parents=True, exist_ok=True)
        yield


def up_to_torque(supervisor: Any, watcher: object = None) -> dict[str, Any]:
    """In place of `launch.foreground.carry_out`."""
    try:
        supervisor.prepare()
    finally:
        summary: dict[str, Any] = supervisor.end()
    return summary


@pytest.fixture(scope="module")
def arms(supplies: Path) -> Iterator[Arms]:
    made = Arms(supplies / "arms")
    yield made
    made.close()


class Reader:
    """Somebody who types a page's commands, one after the other, in one folder."""

    known: ClassVar[dict[tuple[str, ...], Path | None]] = {}
    """Commands that some page has shown already, and a copy of what they made."""

    def __init__(self, supplies: Path, folder: Path, arms: Arms) -> None:
        self.supplies, self.folder, self.arms = supplies, folder, arms
        self._staying: dict[str, subprocess.Popen[str]] = {}
        self._ports = {number: str(free_port()) for number in NUMBERS}

    def type(self, text: str) -> int:
        """The exit code."""
        text = text.replace("/tmp/", f"{self.folder}/").removeprefix("sudo ")
        for number, free in self._ports.items():
            text = re.sub(rf"\b{number}\b", free, text)
        name, *words = shlex.split(text)
        if name == "edgevla" and not re.search(r"[>&|]|\$\(", text):
            return self._run([word for written in words for word in expanded(written)])
        if "trials.demonstrate" in text:
            text = re.sub(r"--episodes \d+", "--episodes 1", text).replace(" datasets/", " demonstrated/")
        tools = f'edgevla() {{ {sys.executable} -m edgevla "$@"; }}; python() {{ {sys.executable} "$@"; }}; '
        return subprocess.run(["bash", "-ec", tools + text], timeout=300, check=False).returncode

    def _run(self, words: list[str]) -> int:
        verb = words[0] if words else ""
        if verb == "record" and "--leader" not in words:
            self._start(
                "teleop", *["--leader", "so101_leader", "--robot", "so101", "--sim", "--camera", "front=none"]
            )
        words = on_emulated_arms(shortened(words), self.arms) if words else []
        self._make_room(words)
        if verb == "serve" and "--bind" not in words:
            scheme, port = ("ws", "8000") if "openpi" in words else ("tcp", "5599")
            words += ["--bind", f"{scheme}://127.0.0.1:{self._ports[port]}"]
        if verb == "service":
            words[1:1] = ["--unit-dir", str(self.folder)]
        if verb in ("serve", "emulate"):
            self._start(*words)
            return 0
        if self._is_known(words):
            return 0
        try:
            code = main(words)
        except SystemExit as end:  # --help
            code = int(end.code or 0)
        if (
            verb == "record" and code == 0
        ):  # it was short; the page goes on with all that would have been recorded
            shutil.rmtree(words[1])
            shutil.copytree(self.supplies / "given/datasets/cube", words[1])
        if code == 0:
            self._remember(words)
        return code

    def _is_known(self, words: list[str]) -> bool:
        """Whether one like it has run; then what that made lies where this one would have made it."""
        if (shape := shape_of(words)) not in self.known:
            return False
        missing = [
            word
            for word in words
            if FOLDER.match(word) and word != made_by(words) and not Path(word).exists()
        ]
        if (kept := self.known[shape]) is not None:
            shutil.copytree(kept, str(made_by(words)), symlinks=True)
        return not missing

    def _remember(self, words: list[str]) -> None:
        kept = None
        if (made := made_by(words)) is not None:
            kept = self.supplies / f"made{len(self.known)}"
            shutil.copytree(made, kept, symlinks=True)
        self.known[shape_of(words)] = kept

    def _make_room(self, words: list[str]) -> None:
        """What the command makes is not there yet."""
        if (place := made_by(words)) is not None:
            shutil.rmtree(place, ignore_errors=True)

    def _start(self, *words: str) -> None:
        """In a process of its own; returns when it is there."""
        verb = words[0]
        if verb in self._staying and verb != "emulate":
            if verb == "teleop":
                return
            self._end(self._staying.pop(verb))
        command = [sys.executable, "-m", "edgevla", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._staying[" ".join(words) if verb == "emulate" else verb] = process
        assert process.stdout is not None
        said = ""
        while STAYS[verb] not in said:
            line = process.stdout.readline()
            said += line
            assert line, f"`edgevla {shlex.join(words)}` ended: {said}"

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        process.terminate()
        process.communicate(timeout=60)

    def leave(self) -> None:
        for process in self._staying.values():
            self._end(process)


FOLDER = re.compile(r"(runs|bundles|datasets|checkpoints)/")


def made_by(words: list[str]) -> str | None:
    """The folder that a command makes."""
    if words[:1] == ["record"]:
        return words[1]
    return next((value(words, option) for option in ("-o", "--output") if option in words), None)


def shape_of(words: list[str]) -> tuple[str, ...]:
    """What tells commands apart: all but the names of folders, and how many episodes."""
    plain = [FOLDER.match(word).group() if FOLDER.match(word) else word for word in words]  # type: ignore[union-attr]
    for option in ("--episodes", "--eval-episodes", "--episode"):
        plain = without(plain, option)
    is_edit = words[:1] == ["dataset"]  # which changes what it is given
    return tuple(words) if is_edit else tuple(plain)


def expanded(word: str) -> list[str]:
    """As a shell would."""
    word = str(Path(word).expanduser()) if word.startswith("~") else word
    return sorted(glob.glob(word)) or [word]  # noqa: PTH207  absolute or not


@pytest.fixture(scope="module")
def nobody() -> Iterator[TextIO]:
    with Path(os.devnull).open() as stream:
        yield stream


WITH_COMMANDS = [page for page in PAGES if any(c.reason is None for c in commands(page))]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_every_command_of_the_page_runs(
    page: Path, supplies: Path, arms: Arms, nobody: TextIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", no_picture)
    for module in ("edgevla.launch.deploy_cli", "edgevla.launch.replay_cli", "edgevla.robots.teleop"):
        monkeypatch.setattr(f"{module}.carry_out", up_to_torque)
    pair = page.name == "aloha.md"
    shutil.rmtree(supplies / "home/.local/state", ignore_errors=True)
    shutil.copytree(supplies / "state", supplies / "home/.local/state", symlinks=True)
    shutil.rmtree(supplies / "calibration", ignore_errors=True)
    calibrate(robot for robot in CALIBRATIONS if robot.endswith("bimanual") == pair)
    shutil.copytree(supplies / "given", tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if page.name == "openpi.md":
        (tmp_path / "map.toml").write_text(first_map(page))
    reader = Reader(supplies, tmp_path, arms)
    failed = []
    monkeypatch.setattr(sys, "stdin", nobody)  # pytest's own has no file descriptor
    try:
        for command in commands(page):
            if command.reason is None:
                print(f"\n$ {command.text}")
                code = reader.type(command.text)
                failed += (
                    [] if code == 0 else [f"{page.name}:{command.line} ended with {code}: {command.text}"]
                )
    finally:
        reader.leave()
    assert failed == []


def no_picture(_: object, place: Any, **__: object) -> None:
    """Drawing is most of what a short evaluation costs."""
    if not hasattr(place, "write"):
        Path(place).touch()


def first_map(page: Path) -> str:
    found = re.search(r"\n\n((?:    .+\n)+)", page.read_text())
    assert found is not None
    return found[1].replace("\n    ", "\n").strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_stand_where_a_test_meets_them(page: Path) -> None:
    assert stray(page) == []
    assert {c.reason for c in commands(page)} <= {None, *REASONS}

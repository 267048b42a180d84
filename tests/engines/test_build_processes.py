"""`edgevla build` and `deploy` as processes: one build at a time, joined by the next, ended or left by rule."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from edgevla.engines.engine_files import LOCK, BuildStatus, is_waited_for, read_status, take
from edgevla.session import deployments, read_preparing

MakeBundle = Callable[..., Path]
Command = Callable[..., "subprocess.Popen[str]"]
PATIENCE_S = 120.0


def until(what: str, is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.01)


def building(cache: Path, graph: str) -> BuildStatus:
    """The running build, once it has come to this graph."""
    found: list[BuildStatus] = []

    def is_there() -> bool:
        status = read_status(cache)
        if status is not None and status.graph == graph:
            found.append(status)
        return bool(found)

    until(f"{graph} is being built", is_there)
    return found[0]


def is_free(cache: Path) -> bool:
    lock = take(cache / LOCK)
    if lock is not None:
        os.close(lock)
    return lock is not None


def line_with(process: subprocess.Popen[str], words: str) -> str:
    """The next line on stderr with these words."""
    assert process.stderr is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        while selector.select(PATIENCE_S):
            line = process.stderr.readline()
            if words in line or not line:
                return line
    raise AssertionError(f"not within {PATIENCE_S:g} s: a line with '{words}'")


def ends_well(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    return out


def is_tidy(cache: Path) -> bool:
    return not list(cache.glob("*.part"))


# -- ten moments ------------------------------------------------------------------------------------------------

MOMENTS = [
    (who, name, graph)
    for graph in ("encode", "decode")
    for who, name in (
        ("asker", "SIGINT"),
        ("asker", "SIGTERM"),
        ("asker", "SIGKILL"),
        ("builder", "SIGTERM"),
        ("builder", "SIGKILL"),
    )
]


@pytest.mark.parametrize(("who", "name", "graph"), MOMENTS, ids=["-".join(m) for m in MOMENTS])
def test_after_an_interruption_the_next_command_succeeds(
    make_bundle: MakeBundle, cache: Path, command: Command, tmp_path: Path, who: str, name: str, graph: str
) -> None:
    gate, folder = tmp_path / "gate", make_bundle("act")
    first = command("build", folder, STANDIN_GATE=f"{graph}={gate}")
    status = building(cache, graph)
    os.kill(first.pid if who == "asker" else status.pid, getattr(signal, name))
    _, err = first.communicate(timeout=PATIENCE_S)
    goes_on = (who, name) == ("asker", "SIGKILL")
    if goes_on:
        assert psutil.pid_exists(status.pid)
        second = command("build", folder)
        assert f"waiting for bundle: building {graph}" in line_with(second, "waiting")
        gate.touch()
    else:
        assert first.returncode == (130 if who == "asker" else 1)
        assert ("interrupted" if who == "asker" else "was killed" if name == "SIGKILL" else name) in err
        assert is_free(cache)
        assert is_tidy(cache)
        second = command("build", folder)
    words = ends_well(second)
    was_there = {"encode", "decode"} if goes_on else {"encode"} if graph == "decode" else set()
    assert {line.split()[0] for line in words.splitlines() if "was there" in line} == was_there
    assert len(list(cache.glob("*.engine"))) == 2
    assert is_tidy(cache)
    assert is_free(cache)


def test_a_second_command_joins_the_build_and_keeps_it_when_the_first_is_interrupted(
    make_bundle: MakeBundle, cache: Path, command: Command, tmp_path: Path
) -> None:
    gate, folder = tmp_path / "gate", make_bundle("act")
    first = command("build", folder, STANDIN_GATE=f"encode={gate}")
    status = building(cache, "encode")
    second = command("build", folder)
    line_with(second, "waiting for bundle: building encode (1 of 2)")
    until("the second's builder waits", lambda: is_waited_for(cache))
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 130
    assert f"building goes on (process {status.pid})" in err
    gate.touch()
    assert ends_well(second).count("was there") == 2


# -- deploy -----------------------------------------------------------------------------------------------------


@pytest.mark.realtime
def test_deploy_builds_before_anything_of_the_arm_begins(
    cache: Path, standin: Path, command: Command, tmp_path: Path
) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
    try:
        from deployment_kit import make_bundle
    finally:
        sys.path.pop(0)
    folder = make_bundle(tmp_path / "bundle")
    words = ("deploy", folder, "--robot", "so101", "--sim", "--provider", "tensorrt", "--duration", "0.5")
    gate = tmp_path / "gate"
    first = command(*words, STANDIN_GATE=f"encode={gate}")
    building(cache, "encode")
    assert {p.cmdline()[2] for p in psutil.Process(first.pid).children()} == {"edgevla.engines.trt_build"}
    first.send_signal(signal.SIGINT)
    out, _ = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 130
    assert "stopped before the arm was switched on" in out
    assert is_free(cache)
    second = command(*words, STANDIN_GATE=f"encode={gate}")
    assert second.stdout is not None
    said = second.stdout.readline()
    while "building encode (1 of 2)" not in said:
        line = second.stdout.readline()
        assert line, said
        said += line
    (run,) = deployments()
    until("a monitor could show it", lambda: "building encode (1 of 2)" in read_preparing(run))
    gate.touch()
    out, err = second.communicate(timeout=PATIENCE_S)
    out = said + out
    assert out.index("building encode (1 of 2)") < out.index("robot so101 answers"), out + err
    assert (
        out.index("robot so101 answers") < out.index("policy ready on tensorrt") < out.index("torque is off")
    )

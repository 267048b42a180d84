"""`edgevla bench`: what is measured, what it is judged by, and what an end in the middle leaves."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevla import bench
from edgevla.bundle import load_bundle
from edgevla.cli import main
from edgevla.execution import highest_hz, in_time
from edgevla.execution.strategies import HIGHEST_HZ
from edgevla.runner import BundlePolicy

MakeBundle = Callable[..., Path]
KINDS = ("sync", "ensemble", "async")


def test_every_part_and_the_whole_are_measured(
    make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_bundle("flow")
    assert main(["bench", str(folder), "--chunks", "7", "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["provider"], found["threads"], found["n_steps"]) == (7, "cpu", 1, 4)
    assert set(found["parts"]) == {"prompt", "encode", "denoise", "decode"}
    for spent in (found["chunk"], found["parts"]["denoise"]):
        assert 0 < spent["p50_ms"] <= spent["p99_ms"] <= spent["max_ms"]
    assert sum(part["p50_ms"] for part in found["parts"].values()) <= found["chunk"]["max_ms"]
    assert found["memory"]["peak"] >= found["memory"]["resident"] > 1e6
    assert found["bound_ms"] is None, "this bundle does not say how much arithmetic it is"
    assert set(found["executions"]) == set(load_bundle(folder).manifest.execution.allowed) - {"sync"}


def test_what_a_person_reads(make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(make_bundle("act")), "--chunks", "3"]) == 0
    said = capsys.readouterr()
    assert re.search(r"of 3 chunks +p50 +p99 +max\n(  \w+ .*\n)*  chunk( +[\d.]+){3}\n", said.out)
    assert re.search(r"memory +at most \d+ MB resident, \d+ MB of it before the bundle; PSS \d+ MB", said.out)
    assert "sync: the arm waits" in said.out
    assert re.search(r"async: never waits; in time up to \d+ Hz", said.out)
    assert said.err == ""


def test_the_rate_is_the_highest_one_that_the_rule_allows() -> None:
    for latency_ms in (3.0, 40.0, 170.0):
        best = highest_hz("async", chunk_size=50, latency_ms=latency_ms)
        assert best is not None
        assert in_time(KINDS, chunk_size=50, fps=best, latency_ms=latency_ms) == ("ensemble", "async")
        if best < HIGHEST_HZ:
            assert "async" not in in_time(KINDS, chunk_size=50, fps=best + 1, latency_ms=latency_ms)
    assert highest_hz("async", chunk_size=50, latency_ms=60_000) is None
    assert highest_hz("sync", chunk_size=50, latency_ms=1) is None
    assert highest_hz("rtc", chunk_size=50, latency_ms=100, trained_delay=3) == 30, "3 steps in 100 ms"


def test_a_slow_bundle_is_measured_for_a_while_only(make_bundle: MakeBundle) -> None:
    policy = BundlePolicy(load_bundle(make_bundle("history")))
    done: list[int] = []
    assert bench.measure(policy, 10**6, longest_s=0.0, show=done.append).n == 1
    assert bench.measure(policy, 10**6, is_over=lambda: len(done) == 5, show=done.append).n == 4
    assert policy.missing_moments(1) == [0], "nothing is remembered of a bench"


def test_a_system_that_tells_no_memory(tmp_path: Path) -> None:
    assert bench.memory(tmp_path) == bench.MemoryUse(None, None, None)


def test_ctrl_c_prints_what_was_measured(make_bundle: MakeBundle) -> None:
    words = [
        sys.executable,
        "-m",
        "edgevla",
        "bench",
        str(make_bundle("act")),
        "--chunks",
        "1000000",
        "--json",
    ]
    ours, theirs = pty.openpty()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=theirs) as child:
        os.close(theirs)
        shown = b""
        while b" of 1000000 chunks" not in shown:
            shown += os.read(ours, 4096)
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=60)
    os.close(ours)
    assert child.returncode == 130
    assert 0 < json.loads(out)["n"] < 1_000_000


def test_a_bench_beside_a_deployment_is_refused(
    make_bundle: MakeBundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("edgevla.session.deployments", lambda: [tmp_path / "run"])
    monkeypatch.setattr("edgevla.session.describe", lambda folder: "so101, act")
    assert main(["bench", str(make_bundle("act"))]) == 2
    assert "a deployment is running here (so101, act)" in capsys.readouterr().err

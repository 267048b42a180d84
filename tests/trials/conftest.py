"""Bundles that reach, and the verb as a person calls it on a simulated task."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgevla.simulated import TASKS

sys.path.insert(
    0, str(Path(__file__).parents[1] / "runtime")
)  # importlib mode leaves neighbours unimportable

from deployment_kit import make_bundle

SHORT_S = 0.8


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an SO101 that goes to one pose, whatever the camera shows."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "reach")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, slower."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "slow", gain=0.05)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes of `follow_cube` that are over soon; in this process only."""
    monkeypatch.setitem(TASKS, "follow_cube", replace(TASKS["follow_cube"], episode_s=SHORT_S))


@pytest.fixture
def evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`evaluate(*words) -> (exit code, stdout, stderr)`; `follow_cube`, one worker, written to `tmp_path / "eval"`."""
    from edgevla.cli import main

    def call(*words: object) -> tuple[int, str, str]:
        given = [str(word) for word in words]
        for option, value in (("-o", str(tmp_path / "eval")), ("--task", "follow_cube"), ("--episodes", "2")):
            given += [] if option in given else [option, value]
        given += [] if {"--jobs", "--real-time"} & set(given) else ["--jobs", "1"]
        capsys.readouterr()
        code = main(["eval", *given])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def info_in() -> Callable[[Path], dict[str, Any]]:
    def read(folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / "eval_info.json").read_text())
        return found

    return read

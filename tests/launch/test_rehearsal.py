"""`deploy --dry-run`: real processes, real pictures, no port of the arm's, nothing that moves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgevla.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def arm(tmp_path: Path) -> list[str]:
    """Options that name an SO101 with a camera of 32x24 that looks at a folder of noise."""
    profile = (ROOT / "robots/so101.toml").read_text()
    profile = profile.replace("width = 640", "width = 32").replace("height = 480", "height = 24")
    (tmp_path / "mine.toml").write_text(profile)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), np.uint8)
    for i, picture in enumerate(noise):
        cv2.imwrite(str(pictures / f"{i}.png"), picture)
    return ["--robot", str(tmp_path / "mine.toml"), "--camera", f"front={pictures}"]


def deploy(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "edgevla", "deploy", *map(str, argv), "--dry-run"]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)


def test_it_says_what_would_be_done_and_opens_no_port(
    make_bundle: Callable[..., Path], arm: list[str], tmp_path: Path
) -> None:
    """The port is a file that no servo answers on: opening it as one would fail."""
    port = tmp_path / "port"
    port.touch()
    done = deploy(make_bundle("act"), *arm, "--port", port, "--task", "reach", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["robot"], plan["execution"], plan["fps"]) == ("so101", "sync n_action_steps=10", 30.0)
    assert plan["cameras"] == {"front": f"{tmp_path / 'pictures'} 32x24"}
    assert plan["latency_ms"] > 0
    assert "running" not in done.stderr, "no torque, so nothing runs"


def test_what_would_not_begin_ends_as_it_would(
    make_bundle: Callable[..., Path], arm: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A camera that is not there: found before torque, with the sentence and the code of a real start."""
    words = ["deploy", str(make_bundle("act")), *arm[:2], "--camera", "front=/nowhere", "--dry-run"]
    assert main(words) == 1
    assert "/nowhere does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words", "code"),
    [
        (["--log", "logs"], "--dry-run runs nothing; leave out --log", 2),
        (["--duration", "3"], "leave out --duration", 2),
        (["--port", "/dev/nowhere"], "--port /dev/nowhere: there is no such port", 1),
    ],
)
def test_what_has_no_effect_or_is_not_there_is_refused(
    more: list[str],
    words: str,
    code: int,
    make_bundle: Callable[..., Path],
    arm: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["deploy", str(make_bundle("act")), *arm, *more, "--dry-run"]) == code
    assert words in capsys.readouterr().err

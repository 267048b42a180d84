"""Every file of `examples/` does what it says, as it is typed; and the page's lines are those of a program that runs.

`own_policy.py` goes through every verb in `tests/story/test_new_policy.py`.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
COVERED = {
    "infer.py", "own_camera.py", "own_arm.py", "own_arm.toml", "own_policy.py", "own_task.py",
    "predicted_vs_recorded.ipynb",
}  # fmt: skip


def example(name: str, *argv: str | Path) -> str:
    """What the program prints, run in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, argv)],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_has_its_test_here_and_says_what_it_shows() -> None:
    assert {p.name for p in EXAMPLES.iterdir() if p.is_file()} == COVERED
    docs = [ast.get_docstring(ast.parse(p.read_text())) or "" for p in EXAMPLES.glob("*.py")]
    assert all(f"python examples/{p.name}" in doc for p, doc in zip(EXAMPLES.glob("*.py"), docs, strict=True))


def test_infer(make_bundle: Callable[..., Path]) -> None:
    assert example("infer.py", make_bundle("act")).startswith("(10, 6) [0. 0. 0.")


def test_the_lines_on_the_page_run_as_they_stand(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    page = (ROOT / "docs/python.md").read_text()
    block = re.search(r"\n\n((?:    .*\n|\n)+)", page[page.index("## Infer in ten lines") :])
    assert block is not None
    (tmp_path / "bundles").mkdir()
    make_bundle("act", name="bundles/act")
    monkeypatch.chdir(tmp_path)
    exec(re.sub(r"^    ", "", block[1], flags=re.MULTILINE), {})
    assert capsys.readouterr().out.startswith("(10, 6)")


def test_own_camera() -> None:
    lines = example("own_camera.py").splitlines()
    assert lines == [f"(24, 32, 3), the bar is in column {n}" for n in range(3)]


def test_own_arm() -> None:
    *joints, went = example("own_arm.py", EXAMPLES / "own_arm.toml").splitlines()
    assert [line.split()[0] for line in joints] == ["base.pos", "elbow.pos", "gripper.pos"]
    found = re.fullmatch(r"base.pos went from 0 to (\d+\.\d)", went)
    assert found is not None
    assert 19 <= float(found[1]) <= 21


def test_own_task(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="demonstrations need the extra record")
    said = ast.literal_eval(example("own_task.py", tmp_path / "data").splitlines()[-1])
    assert (said["n_episodes"], said["n_frames"], said["failures"]) == (2, 120, {})


# -- the notebook ---------------------------------------------------------------------------------------------


def code_cells(path: Path) -> Iterator[str]:
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            yield "".join(cell["source"])


def test_the_notebook_draws_chunks_over_what_was_recorded(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Its cells one after the other, without Jupyter; the hand-made bundle answers each state with that state."""
    pytest.importorskip("av")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    from edgevla import DatasetWriter

    names = [f"joint{i}.pos" for i in range(6)]
    vector = {"dtype": "float32", "shape": (6,), "names": names}
    camera = {"dtype": "video", "shape": (24, 32, 3), "names": ["height", "width", "channels"]}
    features = {"action": vector, "observation.state": vector, "observation.images.front": camera}
    with DatasetWriter(tmp_path / "data", fps=30, features=features) as writer:
        for k in range(20):
            state = np.full(6, k, np.float32)
            picture = np.zeros((24, 32, 3), np.uint8)
            row = {"action": state + 0.5, "observation.state": state, "observation.images.front": picture}
            writer.add_frame(row, "reach")
        writer.save_episode()

    first, *rest = code_cells(EXAMPLES / "predicted_vs_recorded.ipynb")
    space: dict[str, Any] = {}
    exec(first, space)
    space.update(BUNDLE=str(make_bundle("act")), DATASET=str(tmp_path / "data"))
    for cell in rest:
        exec(cell, space)
    assert sorted(space["chunks"]) == [0, 10]
    assert len(space["axes"][0, 0].lines) == 3, "the recording and two chunks"
    assert space["error"] == pytest.approx([0.5] * 6, abs=0.05)
    assert "shoulder_pan.pos" in capsys.readouterr().out
    pyplot.close("all")

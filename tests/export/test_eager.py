"""A checkpoint in torch beside its bundles, in one evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgevla.cli import main

SO101 = str(Path(__file__).parents[1] / "fixtures" / "datasets" / "so101_v30")


def test_a_checkpoint_stands_beside_its_bundle(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same frames, prompts and noise: what remains is rounding. And both know what they were trained on."""
    bundle, output = str(tmp_path / "bundle"), tmp_path / "eval"
    assert main(["export", str(run_folder), "-o", bundle, "--dataset", SO101, "--samples", "2"]) == 0
    words = ["--dataset", SO101, "--episodes", "0", "--frames", "5", "--pages", "0", "-o", str(output)]
    assert main(["eval", str(run_folder), bundle, *words]) == 0
    torch, fp32 = json.loads((output / "eval_info.json").read_text())["policies"]
    assert (torch["name"], torch["kind"], fp32["name"], fp32["kind"]) == (
        "torch",
        "checkpoint",
        "fp32",
        "bundle",
    )
    assert max(fp32["difference"]["max_percent"].values()) < 1e-3
    assert max(fp32["difference"]["max"].values()) > 0
    assert fp32["aggregated"]["mae"] == pytest.approx(torch["aggregated"]["mae"], rel=1e-3)
    assert torch["trained_on"]["standing"] == fp32["trained_on"]["standing"] == "trained on"
    assert "TRAINED ON these very episodes" in capsys.readouterr().out


def test_a_checkpoint_that_states_no_units_counts_as_recorded_and_a_stranger_is_refused(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = tmp_path / "strange"
    shutil.copytree(run_folder / "checkpoints/last/pretrained_model", strange)
    (strange / "edgevla.json").unlink()
    words = [
        "--dataset",
        SO101,
        "--episodes",
        "0",
        "--frames",
        "1",
        "--pages",
        "0",
        "-o",
        str(tmp_path / "eval"),
    ]
    assert main(["eval", str(strange), *words]) == 0
    out = capsys.readouterr().out
    assert "nothing states its joints' units: they count as recorded" in out
    assert "nothing says whether it was trained on these episodes" in out
    assert main(["eval", str(tmp_path / "nowhere"), *words]) == 1
    assert "does not exist" in capsys.readouterr().err

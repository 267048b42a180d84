"""Weights of many gigabytes: what loading maps it gives back."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from edgevla.train import checkpoint
from edgevla.train.memory import release_pages

PI0 = Path(__file__).parents[1] / "fixtures" / "goldens" / "pi0" / "checkpoint"


def mapped_bytes() -> int:
    """Of files, in this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_that_were_copied_are_given_back(tmp_path: Path) -> None:
    size = 64 << 20
    save_file({"w": torch.arange(size // 2, dtype=torch.int16)}, str(tmp_path / "w.safetensors"))
    with safe_open(str(tmp_path / "w.safetensors"), framework="pt") as file:
        tensor = file.get_tensor("w")
    before = mapped_bytes()
    total = int(tensor.sum())
    assert mapped_bytes() - before > 0.9 * size
    release_pages(tensor)
    assert mapped_bytes() - before < 0.1 * size
    assert int(tensor.sum()) == total


def test_a_big_file_of_half_the_width_is_widened_weight_by_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 weights under a float32 config, tied ones among them, loaded as a file of many gigabytes is."""
    folder = Path(shutil.copytree(PI0, tmp_path / "policy"))
    path = folder / "model.safetensors"
    weights = {name: w.to(torch.bfloat16) for name, w in load_file(str(path)).items()}
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    save_file(weights, str(path), metadata=metadata)
    monkeypatch.setattr(checkpoint, "MAPPED_BYTES", 0)
    loaded = checkpoint.load_policy(folder).saved_weights()
    for name, weight in weights.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], weight.float()), name

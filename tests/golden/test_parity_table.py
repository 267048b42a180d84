"""The table of errors says what the tests say: a fixture that agrees, and one with a wrong number in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from golden_harness import DEFAULT
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).parent / "parity_table.py"


def test_a_wrong_number_is_named_and_the_table_is_written_all_the_same(tmp_path: Path) -> None:
    for name in ("good", "wrong"):
        shutil.copytree(DEFAULT / "act", tmp_path / "goldens" / name)
    path = tmp_path / "goldens/wrong/cases.safetensors"
    cases = load_file(str(path))
    cases["train/loss_valid"] += 0.01
    save_file(cases, str(path))
    table = tmp_path / "table.md"
    words = [sys.executable, str(SCRIPT), "--goldens", str(tmp_path / "goldens"), "--output", str(table)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert "FAILED wrong: train/loss_valid: off by 0.01" in done.stdout
    rows = {line.split(" | ")[0].strip("| "): line for line in table.read_text().splitlines()}
    n = done.stdout.count("FAILED")
    assert n == 1
    assert "23 of 23" in rows["good"]
    assert "22 of 23" in rows["wrong"]
    assert "vae_encoder" in rows["good"]

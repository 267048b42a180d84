"""The golden tests run on fixtures of others: here one whose config has a key that nobody knows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from golden_harness import DEFAULT


def test_a_fixture_whose_config_has_an_unknown_key_is_refused_by_its_name(tmp_path: Path) -> None:
    fixture = tmp_path / "act"
    shutil.copytree(DEFAULT / "act", fixture)
    path = fixture / "checkpoint/config.json"
    path.chmod(0o644)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"a_key_of_tomorrow": 1}))
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_golden.py"]
    words += ["--goldens", str(fixture), "-k", "test_output"]
    done = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    assert "the key 'a_key_of_tomorrow' = 1 is unknown here" in done.stdout

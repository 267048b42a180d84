"""Logs made by hand (`log_kit.py`), and of real deployments (`tests/runtime`)."""

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "runtime")]  # importlib mode leaves neighbours unimportable


@pytest.fixture
def own_runtime(monkeypatch):
    """Only this test's deployments are there (short, for sockets)."""
    folder = tempfile.mkdtemp(prefix="ev-", dir="/tmp")
    monkeypatch.setenv("EDGEVLA_RUNTIME_DIR", folder)
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)

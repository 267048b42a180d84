"""Logs made by hand (`log_kit.py`), and of real deployments (`tests/runtime`)."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "runtime")]  # importlib mode leaves neighbours unimportable

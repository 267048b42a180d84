"""Datasets as `tests/dataset` makes them, logs of runs as `tests/flight` does."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [
    str(TESTS / "dataset"),
    str(TESTS / "flight"),
]  # importlib mode leaves neighbours unimportable

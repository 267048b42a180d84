"""Fixtures around the sample datasets of `tests/fixtures`, and small datasets made on the fly."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves neighbours unimportable

import dataset_kit

SHARED = Path(__file__).parents[1] / "fixtures" / "datasets"


@pytest.fixture(scope="session")
def so101() -> Path:
    return SHARED / "so101_v30"


@pytest.fixture(scope="session")
def pusht() -> Path:
    return SHARED / "pusht_v30"


@pytest.fixture
def so101_copy(so101: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(so101, tmp_path / "so101", ignore=shutil.ignore_patterns("truth.npz")))


@pytest.fixture
def pusht_copy(pusht: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pusht, tmp_path / "pusht", ignore=shutil.ignore_patterns("truth.npz")))


@pytest.fixture(scope="session")
def so101_v21(so101: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """so101_v30 rewritten as v2.1: a file per episode, variable lists, jsonl, no quantiles."""
    root = tmp_path_factory.mktemp("v21") / "so101"
    dataset_kit.convert_to_v21(so101, root)
    return root


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four short episodes with machine-readable frames, written by our writer into several files and chunks."""
    root = tmp_path_factory.mktemp("recorded") / "set"
    dataset_kit.record(root, [7, 5, 9, 6], video_mb=0.0045, data_mb=0.002, chunks_size=2)
    return root


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda source: Path(shutil.copytree(source, tmp_path / f"copy-of-{source.name}"))

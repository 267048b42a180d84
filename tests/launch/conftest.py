"""Real deployments for the tests of those who start and watch; what they are made of is in `tests/runtime`."""

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(
    0, str(Path(__file__).parents[1] / "runtime")
)  # importlib mode leaves neighbours unimportable

from deployment_kit import Deployment, make_bundle, write_fast_profile


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def fast_profile(tmp_path):
    return write_fast_profile(tmp_path / "so101_fast.toml")


@pytest.fixture
def own_runtime(monkeypatch):
    """Only this test's deployments are there (short, for sockets)."""
    folder = tempfile.mkdtemp(prefix="ev-", dir="/tmp")
    monkeypatch.setenv("EDGEVLA_RUNTIME_DIR", folder)
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def deploy(tmp_path, bundle, fast_profile, own_runtime):
    """`deploy(*options)` starts one; it ends with the test."""
    made = []

    def start(*more, bundle=bundle, profile=fast_profile, **how):
        folder = tmp_path / f"run{len(made)}"
        folder.mkdir()
        made.append(Deployment(folder, bundle, profile, *more, **how))
        return made[-1]

    yield start
    for deployment in made:
        deployment.close()

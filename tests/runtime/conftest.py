"""Fixtures of real deployments; what they are made of is in `deployment_kit.py`."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves neighbours unimportable

from deployment_kit import Deployment, make_bundle, write_fast_profile


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def bundle_maker():
    return make_bundle


@pytest.fixture
def fast_profile(tmp_path):
    return write_fast_profile(tmp_path / "so101_fast.toml")


@pytest.fixture
def deploy(tmp_path, bundle, fast_profile):
    """`deploy(*options)` starts one; it ends with the test."""
    made = []

    def start(*more, bundle=bundle, profile=fast_profile, in_terminal=False):
        made.append(Deployment(tmp_path, bundle, profile, *more, in_terminal=in_terminal))
        return made[-1]

    yield start
    for deployment in made:
        deployment.close()

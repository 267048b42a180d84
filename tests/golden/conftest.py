"""Golden parity: `pytest tests/golden --goldens DIR` runs on any folder of fixtures.

DIR is one fixture (a folder with cases.safetensors, cases.json and checkpoint*/) or holds several; default: the
goldens in `tests/fixtures`. The policy is what the checkpoint's config.json says. Every recorded output
key is one test (`test_output[<fixture>-<key>]`); a key that no code computes fails, as does a fixture of a policy
that does not exist. Adapters: `cases_<policy>.py`, see golden_harness.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves neighbours unimportable

from golden_harness import DEFAULT, Adapter, Fixture, find_fixtures, open_adapter


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--goldens", type=Path, default=DEFAULT, help="one golden fixture, or a folder of them")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fixture" not in metafunc.fixturenames:
        return
    root = metafunc.config.getoption("--goldens", default=DEFAULT)
    fixtures = find_fixtures(root) if root.is_dir() else []
    if not fixtures:
        # One failing test, not zero passing ones.
        arguments = [(None, None)] if "key" in metafunc.fixturenames else [None]
        names = "fixture, key" if "key" in metafunc.fixturenames else "fixture"
        metafunc.parametrize(names, arguments, ids=[f"no-fixture-in-{root}"])
    elif "key" in metafunc.fixturenames:
        pairs = [(f, k) for f in fixtures for k in f.expected]
        metafunc.parametrize("fixture, key", pairs, ids=[f"{f.name}-{k}" for f, k in pairs])
    else:
        metafunc.parametrize("fixture", fixtures, ids=[f.name for f in fixtures])


_ADAPTERS: dict[str, Adapter | BaseException] = {}


@pytest.fixture
def adapter(fixture: Fixture | None, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """The fixture's policy behind its adapter, loaded once per session."""
    if fixture is None:
        pytest.fail("no golden fixture found (folders with cases.safetensors); say where with --goldens DIR")
    if fixture.name not in _ADAPTERS:
        try:
            _ADAPTERS[fixture.name] = open_adapter(fixture, tmp_path_factory.mktemp("checkpoint") / "policy")
        except BaseException as error:
            _ADAPTERS[fixture.name] = error
    found = _ADAPTERS[fixture.name]
    if isinstance(found, BaseException):
        raise found
    return found

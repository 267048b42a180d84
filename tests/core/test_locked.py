"""The versions that `make test` and `make demo` install: all that is named has one, within the ranges for users."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edgevla.toml import tomllib

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
OF_THE_MAKEFILE = {"torch"}
"""Chosen by its variable TORCH."""


def asked(extra: str) -> list[Requirement]:
    """What an extra needs by itself, with the extras that it names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = []
    for text in project["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == "edgevla":
            found += [each for name in sorted(requirement.extras) for each in asked(name)]
        else:
            found.append(requirement)
    return found + [Requirement(text) for text in project["dependencies"]]


def locked(python: str) -> dict[str, str]:
    text = (ROOT / f".ci/constraints-{python}.txt").read_text()
    return {
        canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.M)
    }


@pytest.mark.parametrize("python", PYTHONS)
def test_every_package_of_the_tests_has_its_version_within_the_range_for_users(python: str) -> None:
    versions = locked(python)
    place = {"python_version": python, "platform_system": "Linux"}
    wanted = [
        r
        for extra in ("dev", "dev-runtime")
        for r in asked(extra)
        if not r.marker or r.marker.evaluate(place)
    ]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        if name not in OF_THE_MAKEFILE:
            assert name in versions, f"{name} has no version for Python {python}: make lock"
            assert requirement.specifier.contains(versions[name]), (
                f"{requirement}, not {versions[name]}: make lock"
            )


def test_torch_is_the_makefiles() -> None:
    assert {name for python in PYTHONS for name in locked(python)} & {"torch", "triton"} == set()
    recipe = (ROOT / "Makefile").read_text()
    assert len(re.findall(r"\.ci/install --locked \$\(VENV(?:_TEST)?\)", recipe)) == 4
    assert "sh .ci/install --locked .venv-runtime-$*" in recipe

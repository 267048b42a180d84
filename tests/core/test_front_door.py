"""What stands before the code: workflows, issue forms, versions, and a README that can be typed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import edgevla

ROOT = Path(__file__).parents[2]
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def yaml(path: Path) -> dict[str, Any]:
    """Comes with transformers; the runtime reads no YAML."""
    read: dict[str, Any] = pytest.importorskip("yaml").safe_load(path.read_text())
    return read


def test_the_workflow_runs_what_ci_runs_and_builds_the_wheel() -> None:
    jobs = yaml(ROOT / ".github/workflows/ci.yml")["jobs"]
    runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert runs == {"test": [".ci/run"], "wheel": ["make wheel"]}
    assert "\nwheel:\n" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.name)
def test_an_issue_form_is_one(path: Path) -> None:
    form = yaml(path)
    assert {"name", "description", "body"} <= set(form)
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in fields}) == len(fields)
    assert all(part["attributes"]["label"] for part in fields)


def test_a_bug_comes_with_doctor_summary_and_run_folder() -> None:
    ids = {part.get("id") for part in yaml(ROOT / ".github/ISSUE_TEMPLATE/bug.yml")["body"]}
    assert {"doctor", "summary", "folder"} <= ids


def test_the_version_is_one() -> None:
    found = {
        "pyproject.toml": r'^version = "(.+)"$',
        "CITATION.cff": r"^version: (.+)$",
        "README.md": r"edgevla-([0-9.]+)-py3-none-any\.whl",
    }
    for name, pattern in found.items():
        versions = set(re.findall(pattern, (ROOT / name).read_text(), flags=re.MULTILINE))
        assert versions == {edgevla.__version__}, name


def test_nothing_in_the_readme_is_left_to_be_filled_in() -> None:
    """A command with dots fails when it is typed."""
    blocks = re.findall(r"^(edgevla .*?)(?:\s#.*)?$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert len(blocks) > 10
    assert [line for line in blocks if "..." in line] == []

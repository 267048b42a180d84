"""A checkpoint is found by any name that a person may give it, with and without links."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgevla.checkpoints import (
    LAST,
    find_checkpoint,
    last_of,
    point_last,
    policy_folder,
    run_name,
    step_of,
)
from edgevla.errors import UsageError


def complete(folder: Path, step: int = 1) -> Path:
    (folder / "pretrained_model").mkdir(parents=True)
    (folder / "pretrained_model" / "config.json").write_text('{"type": "act"}')
    (folder / "training_state").mkdir()
    (folder / "training_state" / "training_step.json").write_text(f'{{"step": {step}}}')
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (3, 20):
        complete(tmp_path / "run" / "checkpoints" / f"{step:06d}", step)
    return tmp_path / "run"


def no_links(*_: Any, **__: Any) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


NAMES = ["", "checkpoints", "checkpoints/last", "checkpoints/last/pretrained_model"]


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_last_leads_to_the_checkpoint_it_names(
    run: Path, name: str, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older one: a run that was taken up again from there."""
    if not has_links:
        monkeypatch.setattr(Path, "symlink_to", no_links)
    point_last(run / "checkpoints", "000003")
    assert (run / "checkpoints" / LAST).is_symlink() is has_links
    assert find_checkpoint(run / name) == run / "checkpoints/000003"
    found = policy_folder(run / name)
    assert found is not None
    assert found.resolve() == run / "checkpoints/000003/pretrained_model"


@pytest.mark.parametrize("name", [*NAMES, "checkpoints/000020", "checkpoints/000020/pretrained_model"])
@pytest.mark.parametrize("last", [None, "000099", "nonsense \x00", "../../etc"])
def test_without_a_last_that_leads_anywhere_the_newest_counts(run: Path, name: str, last: str | None) -> None:
    if last is not None:
        (run / "checkpoints" / LAST).write_text(last)
    assert find_checkpoint(run / name) == run / "checkpoints/000020"
    assert policy_folder(run / name) == run / "checkpoints/000020/pretrained_model"


def test_a_link_takes_the_place_of_a_file_and_the_other_way_round(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that moves between file systems."""
    home = run / "checkpoints"
    for has_links, name in ((False, "000003"), (True, "000020"), (False, "000003")):
        with monkeypatch.context() as patch:
            if not has_links:
                patch.setattr(Path, "symlink_to", no_links)
            point_last(home, name)
        assert find_checkpoint(run).name == name
    assert sorted(p.name for p in home.iterdir()) == ["000003", "000020", LAST]


def test_a_copy_that_followed_the_link_is_read_by_its_step(run: Path) -> None:
    """`cp -rL`, a download, an archive: `last` is a folder then."""
    shutil.copytree(run / "checkpoints/000020", run / "checkpoints" / LAST)
    assert step_of(find_checkpoint(run)) == 20
    assert last_of(run / "checkpoints") == run / "checkpoints" / LAST
    point_last(run / "checkpoints", "000003")
    assert find_checkpoint(run).name == "000003"


def test_one_checkpoint_alone_is_a_policy_and_a_policy_folder_is_itself(run: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(run / "checkpoints/000020", tmp_path / "best")
    assert policy_folder(alone) == alone / "pretrained_model"
    assert policy_folder(alone / "pretrained_model") == alone / "pretrained_model"
    assert policy_folder(tmp_path) is None
    with pytest.raises(UsageError, match="no checkpoint to resume from"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/reach/checkpoints/000010/pretrained_model", "reach"),
        ("runs/reach/checkpoints/last", "reach"),
        ("runs/reach/", "reach"),
        ("lerobot/smolvla_base", "smolvla_base"),
        ("/c/hub/models--lerobot--act_aloha/snapshots/0123abc", "act_aloha"),
        ("/work/reach/../reach", "reach"),
        ("/", "policy"),
    ],
)
def test_a_policy_is_called_like_its_run(path: str, name: str) -> None:
    assert run_name(path) == name


def test_a_run_seen_from_inside_is_called_like_its_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    assert run_name("checkpoints/last") == run_name(".") == "run"

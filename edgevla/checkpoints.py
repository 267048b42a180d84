"""Where a checkpoint lies, for every verb that takes one: a run, one of its checkpoints, a policy folder. A hub
id is fetched by `train/checkpoint.py`.

    RUN/checkpoints/<step>/pretrained_model/   the policy folder: config.json, weights, pipelines
    RUN/checkpoints/<step>/training_state/     what training needs to go on
    RUN/checkpoints/last                       the newest complete one: a link to it, as LeRobot has it; on a file
                                               system without links a file that holds its name
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgevla.errors import UsageError

CONFIG = "config.json"
CHECKPOINTS, LAST = "checkpoints", "last"
PRETRAINED, TRAINING = "pretrained_model", "training_state"
STEP_FILE = "training_step.json"


# -- from what a person says to a folder ----------------------------------------------------------------------


def policy_folder(path: Path) -> Path | None:
    """The folder of the policy that `path` means: itself, or that of the checkpoint it leads to; None: there is none."""
    if (path / CONFIG).is_file():
        return path
    return next((c / PRETRAINED for c in _meant(path) if (c / PRETRAINED / CONFIG).is_file()), None)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint to resume from that `path` means: a run, its `checkpoints`, `last`, one of them, or the
    `pretrained_model` in it. Its real path, so that its name is its step's.

    Raises:
        UsageError: there is none; says what to give.
    """
    found = next((c for c in _meant(path.expanduser()) if is_complete(c)), None)
    if found is None:
        raise UsageError(f"{path} holds no checkpoint to resume from; give a run's folder, such as runs/act")
    return found.resolve()


def is_complete(checkpoint: Path) -> bool:
    """Whether training can go on from it."""
    return (checkpoint / PRETRAINED).is_dir() and (checkpoint / TRAINING / STEP_FILE).is_file()


def run_of(checkpoint: Path) -> Path:
    """The training run that a checkpoint (RUN/checkpoints/STEP) belongs to."""
    return checkpoint.parent.parent


def run_name(path: str | Path) -> str:
    """What a person would call the policy at `path`: the run's, the folder's or the repository's name."""
    for parts in (Path(path).parts, Path(path).expanduser().resolve().parts):
        cached = [part for part in parts if part.startswith("models--")]
        if cached:  # the hub's cache: models--OWNER--NAME/snapshots/HASH
            return cached[-1].rpartition("--")[2]
        ours = (PRETRAINED, CHECKPOINTS, LAST, "checkpoint")
        named = [p for p in parts if p.strip("./~") and p not in ours and not p.isdigit()]
        if named:
            return named[-1]
    return "policy"


def _meant(path: Path) -> Iterator[Path]:
    """The checkpoints that `path` may mean, the likeliest first."""
    path = path.absolute()
    if path.name == PRETRAINED:
        path = path.parent
    if path.name == LAST:
        yield from _in_order(path.parent)
    elif (path / PRETRAINED).is_dir():
        yield path
    else:
        for home in (path / CHECKPOINTS, path):
            yield from _in_order(home)


def _in_order(home: Path) -> Iterator[Path]:
    """`last` before the others, and those by number."""
    last = last_of(home)
    if last is not None:
        yield last
    yield from sorted(home.glob("[0-9]*"), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The finished steps that its name, else its training state, tells; -1: neither does."""
    if checkpoint.name.isdigit():
        return int(checkpoint.name)
    try:
        return int(json.loads((checkpoint / TRAINING / STEP_FILE).read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


# -- the newest one --------------------------------------------------------------------------------------------


def last_of(home: Path) -> Path | None:
    """The checkpoint that `last` in a run's `checkpoints` leads to; None: there is no `last`, or it leads nowhere."""
    last = home / LAST
    if last.is_dir():
        return last
    try:
        name = last.read_text().strip()
    except (OSError, ValueError):
        return None
    return home / name if name and "/" not in name and (home / name).is_dir() else None


def point_last(home: Path, name: str) -> None:
    """Makes `last` lead to the checkpoint of this name, at once for whoever reads it."""
    last, hidden = home / LAST, home / f".{LAST}-{os.getpid()}"
    hidden.unlink(missing_ok=True)
    try:
        hidden.symlink_to(name)
    except OSError:  # FAT, and many a network share, has no links
        hidden.write_text(name + "\n")
    if last.is_dir() and not last.is_symlink():
        shutil.rmtree(last)  # the copy that a copy of the run made of it
    hidden.replace(last)

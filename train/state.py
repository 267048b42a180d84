"""A run on disk: LeRobot's directory layout, written whole or not at all, and read back to the bit.

Where its parts lie, `edgevla/checkpoints.py` says. A checkpoint is written into a hidden folder beside its place,
flushed to disk, and renamed: whatever dies, and whenever, `last` leads to a complete checkpoint.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgevla.checkpoints import CHECKPOINTS, STEP_FILE, point_last
from edgevla.errors import CheckpointError

_HIDDEN = ".writing-"
_OLD = ".old-"


# -- folders ----------------------------------------------------------------------------------------------


def step_name(step: int, n_steps: int) -> str:
    """Zero-padded, wide enough for the whole run, at least six digits."""
    return f"{step:0{max(6, len(str(n_steps)))}d}"


@contextmanager
def new_checkpoint(run: Path, step: int, n_steps: int) -> Iterator[Path]:
    """A hidden folder to fill; on leaving without an exception it becomes `checkpoints/<step>` and `last`."""
    home = run / CHECKPOINTS
    home.mkdir(parents=True, exist_ok=True)
    target = home / step_name(step, n_steps)
    hidden = home / f"{_HIDDEN}{target.name}-{os.getpid()}"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir()
    try:
        yield hidden
        flush(hidden)
        replace_folder(hidden, target)
        point_last(home, target.name)
        _flush_folder(home)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def replace_folder(source: Path, target: Path) -> None:
    """Renames `source` to `target`; what stood there goes away only after the new one is in its place."""
    old = target.with_name(_OLD + target.name)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    source.rename(target)
    _flush_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """A file that is never seen half written."""
    hidden = path.with_name(f".{path.name}-{os.getpid()}")
    hidden.write_text(text)
    hidden.replace(path)


def tidy(run: Path) -> None:
    """Clears what a killed run left behind: half-written folders go, a folder that was being replaced comes back."""
    home = run / CHECKPOINTS
    for leftover in home.glob(f"{_HIDDEN}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for old in home.glob(f"{_OLD}*"):
        target = home / old.name.removeprefix(_OLD)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)


def flush(folder: Path) -> None:
    """Everything below `folder` to the disk, so that a rename never outruns what it names."""
    for root, _, files in os.walk(folder):
        for name in files:
            with (Path(root) / name).open("rb") as file:
                os.fsync(file.fileno())
        _flush_folder(Path(root))


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
            errno.EBADF,
        ):  # some file systems flush no folders
            raise
    finally:
        os.close(handle)


# -- training state ---------------------------------------------------------------------------------------


def save_training_state(
    folder: Path,
    step: int,
    optimizer: torch.optim.Optimizer,
    scheduler: Any | None,
    batch_size: int,
    n_processes: int = 1,
) -> None:
    """LeRobot's five files into `folder` (created)."""
    from safetensors.torch import save_file

    folder.mkdir()
    step_file = {"step": step, "num_processes": n_processes, "batch_size": batch_size}
    (folder / STEP_FILE).write_text(json.dumps(step_file))
    state = optimizer.state_dict()
    flat = {
        f"state/{i}/{name}": _tensor(value).contiguous()
        for i, by_name in state["state"].items()
        for name, value in by_name.items()
    }
    save_file(flat, folder / "optimizer_state.safetensors")
    # How we compute the step is not part of the state; LeRobot expects its own (unset) value there.
    groups = [{**group, "fused": None} for group in state["param_groups"]]
    (folder / "optimizer_param_groups.json").write_text(json.dumps(groups, indent=4))
    if scheduler is not None:
        (folder / "scheduler_state.json").write_text(json.dumps(scheduler.state_dict(), indent=4))
    save_file(rng_state(), folder / "rng_state.safetensors")


def load_training_state(
    folder: Path, optimizer: torch.optim.Optimizer, scheduler: Any | None, device: torch.device
) -> int:
    """Restores what `save_training_state` wrote, random generators last; returns the number of finished steps.

    Raises:
        CheckpointError: a file is missing or damaged, or the optimizer has other parameters than the file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        step = int(json.loads((folder / STEP_FILE).read_text())["step"])
        groups = json.loads((folder / "optimizer_param_groups.json").read_text())
        flat = load_file(folder / "optimizer_state.safetensors", device=str(device))
        generators = load_file(folder / "rng_state.safetensors")
        if scheduler is not None:
            scheduler_state = json.loads((folder / "scheduler_state.json").read_text())
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} is damaged ({error}); resume from an older checkpoint of the run"
        ) from error
    for group, own in zip(groups, optimizer.param_groups, strict=False):
        group.update(betas=tuple(group["betas"]), fused=own["fused"])
    state = _nested(flat, [p for group in optimizer.param_groups for p in group["params"]])
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except ValueError as error:
        raise CheckpointError(
            f"{folder} belongs to an optimizer over other parameters ({error}); "
            "start a new run from its weights with --from"
        ) from error
    if scheduler is not None:
        scheduler.load_state_dict(scheduler_state)
    restore_rng(generators)
    return step


def _nested(flat: Mapping[str, Tensor], parameters: list[Tensor]) -> dict[int, dict[str, Tensor]]:
    """Moments in the memory layout of their parameters, which fused kernels take for granted."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        _, index, name = key.split("/")
        i = int(index)
        if i < len(parameters) and value.shape == parameters[i].shape:
            value = torch.empty_like(parameters[i], dtype=value.dtype).copy_(value)
        state.setdefault(i, {})[name] = value
    return state


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value)


# -- random generators ------------------------------------------------------------------------------------


def seed_everything(seed: int) -> None:
    """Python's, NumPy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the global generator is what checkpoints of LeRobot hold
    torch.manual_seed(seed)


def rng_state() -> dict[str, Tensor]:
    """All global generators under LeRobot's names."""
    version, words, _ = random.getstate()
    _, values, index, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    state = {
        "py_rng_version": torch.tensor([version]),
        "py_rng_state": torch.tensor(words, dtype=torch.int64),
        "np_rng_state_values": torch.tensor(np.asarray(values).astype(np.int64)),
        "np_rng_state_index": torch.tensor([index]),
        "np_rng_has_gauss": torch.tensor([has_gauss]),
        "np_rng_cached_gaussian": torch.tensor([gauss], dtype=torch.float32),
        "torch_rng_state": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["torch_cuda_rng_state"] = torch.cuda.get_rng_state()
    return state


def restore_rng(state: Mapping[str, Tensor]) -> None:
    """All generators as they were when `state` was saved."""
    random.setstate((int(state["py_rng_version"]), tuple(state["py_rng_state"].tolist()), None))
    has_gauss, gauss = state.get("np_rng_has_gauss"), state.get("np_rng_cached_gaussian")
    np.random.set_state(  # noqa: NPY002
        (
            "MT19937",
            state["np_rng_state_values"].numpy().astype(np.uint32),
            int(state["np_rng_state_index"]),
            0 if has_gauss is None else int(has_gauss),
            0.0 if gauss is None else float(gauss),
        )
    )
    torch.set_rng_state(state["torch_rng_state"])
    if torch.cuda.is_available() and "torch_cuda_rng_state" in state:
        torch.cuda.set_rng_state(state["torch_cuda_rng_state"])

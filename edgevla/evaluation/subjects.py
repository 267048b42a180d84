"""What is evaluated: bundles, and checkpoints that still compute in torch, both behind the runtime's own runner."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgevla.bundle import is_bundle, load_bundle
from edgevla.errors import EngineError, MissingExtraError, UsageError
from edgevla.manifest import Manifest
from edgevla.runner import BundlePolicy
from edgevla.serve.transport import is_served

if TYPE_CHECKING:
    from edgevla.dataset.reader import Dataset

Say = Callable[[str], None]


@dataclass(frozen=True)
class Opening:
    """How checkpoints are opened. cameras: as `--camera` says. joint_units: where nothing states them.

    device: of torch; None: a GPU if there is one. seed: of the noise, for all.
    """

    seed: int = 0
    cameras: Mapping[str, str] = field(default_factory=dict)
    joint_units: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Subject:
    """name: unique among those of one evaluation. path: as the person gave it."""

    name: str
    path: str
    kind: Literal["bundle", "checkpoint"]
    runner: BundlePolicy

    @property
    def manifest(self) -> Manifest:
        return self.runner.manifest

    @property
    def precision(self) -> str:
        """Of its graphs, in words: `fp32`, `int8`, `torch`."""
        return _precision(self.manifest)

    @property
    def text(self) -> str:
        """`int8: bundles/act-int8 (act 'reach', a bundle for cpu)`."""
        m = self.manifest
        what = f"a bundle for {m.target.provider}" if self.kind == "bundle" else "a checkpoint, in torch"
        return f"{self.name}: {self.path} ({m.policy} '{m.name}', {what})"


def open_subjects(paths: Sequence[str], dataset: Dataset, opening: Opening, say: Say) -> list[Subject]:
    """
    Raises:
        UsageError: a policy is named twice. BundleError, CheckpointError, EngineError: it cannot be opened.
        ModuleNotFoundError: a checkpoint, where torch is not installed.
    """
    if far := next((p for p in paths if is_served(p)), None):
        raise UsageError(
            f"{far}: a policy server is evaluated in a task or on an arm; on a dataset name its bundle"
        )
    given = [str(Path(p).expanduser().resolve()) if Path(p).exists() else p for p in paths]
    twice = next((p for p, full in zip(paths, given, strict=True) if given.count(full) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is named twice; name every policy once")
    kinds = ["bundle" if is_bundle(Path(p)) or _says_bundle(p) else "checkpoint" for p in given]
    if opening.device is not None and "checkpoint" not in kinds:
        raise UsageError("--device is for checkpoints, which torch computes; a bundle runs on its own target")
    opened = [
        (path, kind, _open_bundle(path, opening) if kind == "bundle" else _open_checkpoint(path, dataset, opening, say))
        for path, kind in zip(paths, kinds, strict=True)
    ]  # fmt: skip
    names = _names([(p, "torch" if k == "checkpoint" else _precision(r.manifest), r) for p, k, r in opened])
    return [
        Subject(name, path, "bundle" if kind == "bundle" else "checkpoint", runner)
        for name, (path, kind, runner) in zip(names, opened, strict=True)
    ]


def _says_bundle(path: str) -> bool:
    return Path(path).name == "manifest.json"


def _open_bundle(path: str, opening: Opening) -> BundlePolicy:
    bundle = load_bundle(Path(path).expanduser())
    try:
        return BundlePolicy(bundle, seed=opening.seed)
    except (EngineError, MissingExtraError) as error:
        provider = bundle.manifest.target.provider
        raise EngineError(f"{path} is made for {provider} and cannot run here: {error}") from error


def _open_checkpoint(path: str, dataset: Dataset, opening: Opening, say: Say) -> BundlePolicy:
    """Checkpoints belong to the export subpackage, which the runtime names only here."""
    say(f"loading {path}")
    runner: BundlePolicy = importlib.import_module("edgevla.export.eager").eager_policy(
        path, dataset, opening
    )
    return runner


def _precision(manifest: Manifest) -> str:
    """The lowest of its graphs'."""
    found = set(manifest.target.precision.values())
    return next((p for p in ("int4", "int8", "fp16", "bf16") if p in found), "fp32")


def _names(opened: Sequence[tuple[str, str, BundlePolicy]]) -> list[str]:
    """The shortest kind of name that tells all of them apart."""
    folders = [Path(p).resolve().name or p for p, _, _ in opened]
    kinds = [
        [precision for _, precision, _ in opened],
        folders,
        [f"{r.manifest.name} {precision}" for _, precision, r in opened],
        [path for path, _, _ in opened],
    ]
    return next(names for names in kinds if len(set(names)) == len(names))

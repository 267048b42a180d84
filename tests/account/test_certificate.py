"""A bundle is certified against the saved pipeline itself: the graphs follow what it says, or nothing is written.

The other side of the comparison shares no arithmetic with the policies, so an error in theirs is found here alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from account_kit import GOLDENS, POLICIES, POST, PRE, checkpoint, edit, edit_statistics, edit_step

from edgevla.bundle import load_bundle
from edgevla.errors import ParityError
from edgevla.export.build import Exported, export_checkpoint
from edgevla.export.describe import describe_bundle
from edgevla.export.options import ExportOptions
from edgevla.manifest import Manifest
from edgevla.train.nn.normalize import Normalizer

OPTIONS = ExportOptions(fps=30, joint_units="raw", n_samples=3, n_timed=1)


def export(folder: Path, target: Path) -> Exported:
    return export_checkpoint(folder, target, OPTIONS)


def certified(done: Exported) -> bool:
    parity = done.bundle.manifest.parity
    assert parity is not None
    assert parity.pipeline is not None
    return parity.pipeline.passed


@pytest.fixture(scope="module")
def as_it_was(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The recorded ACT."""
    return export(GOLDENS / "act" / "checkpoint", tmp_path_factory.mktemp("act") / "bundle")


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "act"])
def test_every_policys_graphs_do_what_its_saved_pipeline_does(policy: str, tmp_path: Path) -> None:
    assert certified(export(GOLDENS / policy / "checkpoint", tmp_path / "bundle"))


def test_the_bundle_says_what_it_was_held_against(as_it_was: Exported) -> None:
    assert certified(as_it_was)
    folder = as_it_was.bundle.folder
    said = "the saved pipeline (4 steps before the network, 2 after it) and torch's network; synthetic inputs"
    assert load_bundle(folder).manifest.parity.pipeline.compared_with == said  # type: ignore[union-attr]
    lines, data, code = describe_bundle(folder)
    assert code == 0
    assert f"does what {said} do, on 3 samples" in "\n".join(lines)
    assert data["manifest"]["parity"]["pipeline"]["passed"] is True
    assert "the saved pipeline (4 steps" in (folder / "report.html").read_text()


def test_a_bundle_of_an_earlier_export_loads_and_says_that_it_was_not_compared(as_it_was: Exported) -> None:
    data = json.loads((as_it_was.bundle.folder / "manifest.json").read_text())
    del data["parity"]["pipeline"]
    manifest = Manifest.from_json(data)
    assert manifest.parity is not None
    assert manifest.parity.pipeline is None
    assert manifest.to_json() == data


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit_step(folder, PRE, "normalizer_processor", eps=0.3),
        lambda folder: edit_statistics(
            folder, PRE, "normalizer_processor", lambda t: t["observation.state.mean"].__iadd__(3)
        ),
        lambda folder: edit_statistics(
            folder, POST, "unnormalizer_processor", lambda t: t["action.std"].__imul__(2)
        ),
        lambda folder: edit_step(
            folder,
            PRE,
            "normalizer_processor",
            norm_map={"STATE": "MIN_MAX", "VISUAL": "MEAN_STD", "ACTION": "MEAN_STD"},
        ),
        lambda folder: edit_step(folder, PRE, "normalizer_processor", normalize_observation_keys=[]),
    ],
    ids=["eps", "a mean", "a deviation", "a mode", "what is normalised"],
)
def test_what_the_pipeline_says_the_graphs_follow(
    change: Callable[[Path], None], as_it_was: Exported, tmp_path: Path
) -> None:
    folder = checkpoint("act", tmp_path)
    change(folder)
    done = export(folder, tmp_path / "bundle")
    assert certified(done)
    # And it does say something else.
    assert np.abs(done.comparison.exported - as_it_was.comparison.exported).max() > 1e-3


def test_relative_actions_are_certified(tmp_path: Path) -> None:
    folder = checkpoint("pi0", tmp_path)
    edit_step(
        folder,
        PRE,
        "delta_actions_processor",
        enabled=True,
        action_names=["a", "b", "c", "d", "e", "gripper"],
    )
    edit_step(folder, POST, "absolute_actions_processor", enabled=True)
    assert certified(export(folder, tmp_path / "bundle"))


def test_another_token_length_and_another_domain_are_certified(tmp_path: Path) -> None:
    folder = checkpoint("xvla", tmp_path)
    edit_step(folder, PRE, "tokenizer_processor", max_length=12)
    edit_step(folder, PRE, "xvla_add_domain_id", domain_id=1)
    edit(folder, PRE, lambda d: d["steps"].pop(4))  # a pipeline without ImageNet's statistics
    assert certified(export(folder, tmp_path / "bundle"))


def test_cameras_that_the_pipeline_renames_are_certified(tmp_path: Path) -> None:
    folder = checkpoint("act", tmp_path)
    swapped = {
        "observation.images.front": "observation.images.wrist",
        "observation.images.wrist": "observation.images.front",
    }
    edit_step(folder, PRE, "rename_observations_processor", rename_map=swapped)
    assert certified(export(folder, tmp_path / "bundle"))


def test_an_error_of_our_own_normalisation_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch and graphs agree, since both have it; only the saved pipeline tells."""
    right = Normalizer.inverse
    monkeypatch.setattr(Normalizer, "inverse", lambda self, y: right(self, y) * 1.01)
    with pytest.raises(ParityError, match=r"differs by .* from the saved pipeline"):
        export(GOLDENS / "act" / "checkpoint", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()

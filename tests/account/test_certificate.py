"""A bundle is certified against the saved pipeline itself: the graphs follow what it says, or nothing is written.

The other side of the comparison shares no arithmetic with the policies, so an error in theirs is found here alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from account_kit import GOLDENS, POLICIES, POST, PRE, checkpoint, edit, edit_statistics, edit_step

from edgevla.bundle import Bundle, load_bundle
from edgevla.errors import ParityError
from edgevla.export.build import Exported, copy_tokenizer, export_checkpoint, in_float32
from edgevla.export.certificate import certify
from edgevla.export.describe import describe_bundle
from edgevla.export.draft import draft_manifest
from edgevla.export.features import decide
from edgevla.export.options import ExportOptions
from edgevla.export.parity import torch_policy
from edgevla.export.samples import synthetic_samples
from edgevla.manifest import Manifest
from edgevla.manifest_record import PipelineParity
from edgevla.train.checkpoint import load_policy
from edgevla.train.nn.normalize import Normalizer

OPTIONS = ExportOptions(fps=30, joint_units="raw", n_samples=2, n_timed=1)


@dataclass(frozen=True)
class Held:
    """A checkpoint held against its pipelines. actions: (n, T, A) of the graphs, on the same samples every time."""

    parity: PipelineParity
    actions: np.ndarray


def hold(folder: Path, scratch: Path) -> Held:
    """As an export does, with torch's methods in the place of traced graphs, which `parity.py` compares with them."""
    policy = load_policy(folder, adapt=in_float32)
    meaning = decide(policy, None, OPTIONS, "")
    manifest = draft_manifest(policy, folder, None, meaning, OPTIONS)
    policy.bake()
    scratch.mkdir(exist_ok=True)
    copy_tokenizer(policy, manifest, scratch)
    runner, _ = torch_policy(policy, Bundle(scratch, manifest, ""))
    like = load_policy(GOLDENS / policy.policy_type / "checkpoint")  # samples are drawn from its statistics
    samples = synthetic_samples(like, manifest, OPTIONS.n_samples, manifest.n_obs_steps, 0)
    parity = certify(policy, folder, runner, samples, "synthetic inputs", meaning.dataset_keys)
    chunks = []
    for i, sample in enumerate(samples):
        runner.reset()
        inferred = runner.infer(
            sample.observation, grid_index=sample.grid_index, past=sample.past, chunk_seq=i
        )
        chunks.append(inferred.actions)
    return Held(parity, np.stack(chunks))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_does_what_its_saved_pipeline_does(policy: str, tmp_path: Path) -> None:
    held = hold(GOLDENS / policy / "checkpoint", tmp_path)
    assert held.parity.passed
    assert np.ptp(held.actions, axis=0).max() > 0  # it does not ignore what it sees


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
def test_what_the_pipeline_says_the_graphs_follow(change: Callable[[Path], None], tmp_path: Path) -> None:
    folder = checkpoint("act", tmp_path)
    change(folder)
    held = hold(folder, tmp_path / "scratch")
    assert held.parity.passed
    before = hold(GOLDENS / "act" / "checkpoint", tmp_path / "before")
    assert np.abs(held.actions - before.actions).max() > 1e-3  # and it does say something else


@pytest.mark.parametrize("policy", ["pi0", "smolvla"])
def test_relative_actions_are_certified(policy: str, tmp_path: Path) -> None:
    folder = checkpoint(policy, tmp_path)
    names = ["a", "b", "c", "d", "e", "gripper"]
    relative = {"enabled": True, "exclude_joints": ["gripper"], "action_names": names}
    for file, at, name, settings in (
        (PRE, 5, "relative_actions_processor", relative),
        (POST, 1, "absolute_actions_processor", {"enabled": True}),
    ):
        old = ("delta_actions_processor", name)
        step = {"registry_name": name, "config": settings}
        edit(
            folder,
            file,
            lambda d, old=old, at=at, step=step: d.update(
                steps=[
                    *(kept := [s for s in d["steps"] if s["registry_name"] not in old])[:at],
                    step,
                    *kept[at:],
                ]
            ),
        )
    held = hold(folder, tmp_path / "scratch")
    assert held.parity.passed
    before = hold(GOLDENS / policy / "checkpoint", tmp_path / "before")
    difference = np.abs(held.actions - before.actions).max(axis=(0, 1))
    assert (difference[:5] > 1e-2).all()
    assert difference[5] < 1e-5  # the gripper is left out


def test_another_text_length_and_another_domain_are_certified(tmp_path: Path) -> None:
    folder = checkpoint("xvla", tmp_path)
    edit_step(folder, PRE, "tokenizer_processor", max_length=20)
    edit_step(folder, PRE, "xvla_add_domain_id", domain_id=1)
    edit(folder, PRE, lambda d: d["steps"].pop(4))  # a pipeline without ImageNet's statistics
    assert hold(folder, tmp_path / "scratch").parity.passed


def test_a_padded_prompt_and_another_mode_are_certified(tmp_path: Path) -> None:
    folder = checkpoint("pi05", tmp_path)
    edit_step(folder, PRE, "pi05_prepare_state_tokenizer_processor_step", max_state_dim=8)
    for file, name in ((PRE, "normalizer_processor"), (POST, "unnormalizer_processor")):
        edit_step(folder, file, name, norm_map={"STATE": "MIN_MAX", "ACTION": "MEAN_STD"}, eps=1e-3)
    assert hold(folder, tmp_path / "scratch").parity.passed


def test_another_body_and_range_are_certified(tmp_path: Path) -> None:
    folder = checkpoint("groot", tmp_path)
    edit_step(folder, PRE, "groot_pack_inputs_v3", embodiment_tag="gr1", formalize_language=True)
    edit_statistics(folder, PRE, "groot_pack_inputs_v3", lambda t: t["observation.state.max"].__iadd__(2))
    assert hold(folder, tmp_path / "scratch").parity.passed


def test_cameras_that_the_pipeline_renames_are_certified(tmp_path: Path) -> None:
    folder = checkpoint("act", tmp_path)
    front, wrist = "observation.images.front", "observation.images.wrist"
    edit_step(folder, PRE, "rename_observations_processor", rename_map={front: wrist, wrist: front})
    assert hold(folder, tmp_path / "scratch").parity.passed


def test_an_error_of_our_own_normalisation_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch and graphs agree, since both have it; only the saved pipeline tells."""
    right = Normalizer.inverse
    monkeypatch.setattr(Normalizer, "inverse", lambda self, y: right(self, y) * 1.01)
    assert not hold(GOLDENS / "act" / "checkpoint", tmp_path).parity.passed


# -- in a bundle ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The recorded ACT."""
    return export_checkpoint(
        GOLDENS / "act" / "checkpoint", tmp_path_factory.mktemp("act") / "bundle", OPTIONS
    )


def test_the_bundle_says_what_it_was_held_against(exported: Exported) -> None:
    folder = exported.bundle.folder
    parity = load_bundle(folder).manifest.parity
    assert parity is not None
    assert parity.pipeline is not None
    assert parity.pipeline.passed
    said = (
        "the saved pipeline (4 steps before the network, 2 after it) and torch's network (synthetic inputs)"
    )
    assert parity.pipeline.compared_with == said
    lines, data, code = describe_bundle(folder)
    assert code == 0
    assert f"does what {said} do, on 2 samples" in "\n".join(lines)
    assert data["manifest"]["parity"]["pipeline"]["passed"] is True
    assert "the saved pipeline (4 steps" in (folder / "report.html").read_text()


def test_a_bundle_of_an_earlier_export_loads_and_says_that_it_was_not_compared(exported: Exported) -> None:
    data = json.loads((exported.bundle.folder / "manifest.json").read_text())
    del data["parity"]["pipeline"]
    manifest = Manifest.from_json(data)
    assert manifest.parity is not None
    assert manifest.parity.pipeline is None
    assert manifest.to_json() == data


def test_an_export_that_differs_from_the_saved_pipeline_is_not_written(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Normalizer.inverse
    monkeypatch.setattr(Normalizer, "inverse", lambda self, y: right(self, y) * 1.01)
    with pytest.raises(ParityError, match=r"differs by .* from the saved pipeline"):
        export_checkpoint(GOLDENS / "act" / "checkpoint", tmp_path / "bundle", OPTIONS)
    assert not (tmp_path / "bundle").exists()

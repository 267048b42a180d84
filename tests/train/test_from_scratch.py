"""A policy on a backbone starts from trained weights, or is told to start from nothing; then nothing stays frozen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edgevla.cli import main
from edgevla.dataset.reader import open_dataset
from edgevla.errors import UsageError
from edgevla.train.config import TrainConfig
from edgevla.train.policies import POLICIES, policy_class
from edgevla.train.start import own_settings, start_policy
from edgevla.train.tiny import write_tiny_backbone

ON_A_BACKBONE = [name for name in POLICIES if policy_class(name).published_backbone is not None]


def config_of(policy: str, dataset: str, **more: Any) -> TrainConfig:
    settings = {k: v for k, v in policy_class(policy).tiny.items() if k not in policy_class(policy).unfrozen}
    config = TrainConfig.resolve(policy, {"dataset": dataset, **more})
    return dataclasses.replace(config, settings={**settings, **config.settings})


def test_the_policies_on_a_backbone_are_those_we_know() -> None:
    assert ON_A_BACKBONE == ["smolvla", "pi0", "pi05", "xvla", "groot"]


@pytest.mark.parametrize("policy", ON_A_BACKBONE)
def test_without_a_word_it_is_refused_and_both_ways_are_said(
    policy: str, recorded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--policy", policy, "--dataset", recorded, "--output", str(tmp_path / "run")]
    assert main([*words, "--steps", "1", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert f"{policy} is built on a trained backbone, and none was named" in said
    assert str(policy_class(policy).published_backbone) in said
    assert "--from-scratch trains all of it" in said


@pytest.mark.parametrize("policy", ["smolvla", "groot"])
def test_from_scratch_trains_the_backbone_too(policy: str, recorded: str, tmp_path: Path) -> None:
    """These two freeze their backbone by default; its sizes come from a local folder, of which no weight is read."""
    kind = str(policy_class(policy).backbone_kind)
    folder = write_tiny_backbone(tmp_path / kind, kind, width=32, depth=2)
    (folder / "model.safetensors").unlink()
    places = {
        "smolvla": {"vlm_model_name": str(folder)},
        "groot": {"base_model_path": str(folder), "tokenizer_assets_repo": str(folder / "vlm_config")},
    }
    config = config_of(policy, recorded, from_scratch=True)
    config = dataclasses.replace(config, settings={**config.settings, **places[policy]})
    said: list[str] = []
    policy_made, _ = start_policy(config, open_dataset(recorded), said.append)
    assert said == ["Nothing is pretrained: the backbone, too, starts from random weights and is trained."]
    frozen = {n for n, p in policy_made.named_parameters() if not p.requires_grad}
    root = "vlm_with_expert.vlm."
    unused = (f"{root}lm_head", f"{root}model.text_model.norm", f"{root}model.text_model.layers.1.")
    assert all(name.startswith(unused) for name in frozen), "only what feeds nothing may stay as it is"


def test_a_setting_that_freezes_is_kept(recorded: str, tmp_path: Path) -> None:
    folder = write_tiny_backbone(tmp_path / "vlm", "smolvlm", width=32, depth=2)
    config = config_of("smolvla", recorded, from_scratch=True)
    more = own_settings(policy_class("smolvla").Config, {"freeze_vision_encoder": "true"})
    settings = {**config.settings, **more, "vlm_model_name": str(folder)}
    policy, _ = start_policy(
        dataclasses.replace(config, settings=settings), open_dataset(recorded), lambda _: None
    )
    assert not any(p.requires_grad for n, p in policy.named_parameters() if "vision_model" in n)


def test_settings_that_name_trained_weights_are_enough(recorded: str, tmp_path: Path) -> None:
    """LeRobot's way: load_vlm_weights, from the folder or hub id in vlm_model_name."""
    folder = write_tiny_backbone(tmp_path / "vlm", "smolvlm", width=32, depth=2)
    config = config_of("smolvla", recorded)
    settings = {**config.settings, "vlm_model_name": str(folder), "load_vlm_weights": True}
    start_policy(dataclasses.replace(config, settings=settings), open_dataset(recorded), lambda _: None)


@pytest.mark.parametrize(
    ("policy", "start", "said"),
    [("act", "", "act has no backbone to start without"), ("smolvla", "runs/one", "contradict each other")],
)
def test_from_scratch_where_it_makes_no_sense_is_refused(
    policy: str, start: str, said: str, recorded: str
) -> None:
    config = config_of(policy, recorded, from_scratch=True, start=start)
    with pytest.raises(UsageError, match=said):
        start_policy(config, open_dataset(recorded), lambda _: None)

"""LoRA on a small SmolVLA: only factors learn, they come back, they merge, and peft itself reads the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from edgevla.cli import main
from edgevla.errors import CheckpointError, UsageError
from edgevla.train import lora
from edgevla.train.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from edgevla.train.checkpoint import load_policy, save_policy
from edgevla.train.policies.base import Policy

SHARED = Path(__file__).parents[1] / "fixtures"
BASE = SHARED / "goldens" / "smolvla" / "checkpoint"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def batch(policy: Policy) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made: dict[str, torch.Tensor] = {
        name: torch.randint(0, 256, (2, *f.shape[1:], 3), dtype=torch.uint8)
        for name, f in policy.config.image_features.items()
    }
    n = policy.prompt_recipe()["tokenizer"]["n_tokens"]  # type: ignore[index]
    return {
        **made,
        "observation.state": torch.randn(2, 6),
        "action": torch.randn(2, policy.config.chunk_length, 6),
        "action_is_pad": torch.zeros(2, policy.config.chunk_length, dtype=torch.bool),
        "tokens": torch.ones(2, n, dtype=torch.int64),
        "token_mask": torch.ones(2, n, dtype=torch.bool),
    }


def loss_of(policy: Policy) -> torch.Tensor:
    inputs = batch(policy)
    return policy.loss(inputs, policy.draw(inputs, torch.Generator().manual_seed(1)))[0]


@pytest.fixture
def adapted() -> Policy:
    policy = load_policy(BASE)
    targets = policy.lora_targets  # type: ignore[attr-defined]
    lora.add_lora(policy, rank=4, alpha=8, targets=targets, base=str(BASE))
    return policy


def shake(policy: Policy) -> None:
    """Factors as training would leave them: the second one is no longer zero."""
    torch.manual_seed(2)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)


def test_only_factors_learn_and_every_one_is_reached(adapted: Policy) -> None:
    before = loss_of(load_policy(BASE)).item()
    assert loss_of(adapted).item() == before, "new factors change nothing"
    trainable = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in n for n in trainable)
    loss_of(adapted).backward()
    deaf = [n for n, p in adapted.named_parameters() if "lora_B" in n and not p.grad.abs().sum() > 0]  # type: ignore[union-attr]
    assert deaf == [], "a layer that is used by its weight alone would never hear its factors"


def test_factors_are_saved_in_pefts_layout_and_come_back(adapted: Policy, tmp_path: Path) -> None:
    from safetensors import safe_open

    shake(adapted)
    expected = loss_of(adapted).item()
    folder = save_policy(adapted, tmp_path / "adapter")
    assert not (folder / "model.safetensors").exists()
    with safe_open(str(folder / ADAPTER_WEIGHTS), "pt") as file:
        names = list(file.keys())
    assert all(
        n.startswith("base_model.model.model.") and n.endswith((".lora_A.weight", ".lora_B.weight"))
        for n in names
    )
    description = json.loads((folder / ADAPTER_CONFIG).read_text())
    assert (description["r"], description["lora_alpha"], description["base_model_name_or_path"]) == (
        4,
        8,
        str(BASE),
    )
    assert json.loads((folder / "config.json").read_text())["use_peft"] is True
    apart, merged = load_policy(folder, merge_adapter=False), load_policy(folder)
    assert loss_of(apart).item() == pytest.approx(expected, rel=1e-6)
    assert loss_of(merged).item() == pytest.approx(expected, rel=1e-5)
    assert merged.state_dict().keys() == load_policy(BASE).state_dict().keys()
    assert [n for n, p in merged.named_parameters() if p.requires_grad] == [
        n for n, p in load_policy(BASE).named_parameters() if p.requires_grad
    ]


def test_peft_itself_reads_the_files_under_lerobots_names(adapted: Policy, tmp_path: Path) -> None:
    """LeRobot wraps its policy, whose network is called `model`, in a PeftModel; so does this test."""
    peft = pytest.importorskip("peft")
    shake(adapted)
    expected = loss_of(adapted).item()
    folder = save_policy(adapted, tmp_path / "adapter")

    class LeRobots(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = load_policy(BASE)

    outer = LeRobots()
    peft.PeftModel.from_pretrained(outer, str(folder))
    assert loss_of(outer.model).item() == pytest.approx(expected, rel=1e-6)


def test_an_adapter_that_peft_wrote_for_a_wrapped_policy_loads(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    class LeRobots(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = load_policy(BASE)

    outer = LeRobots()
    config = peft.LoraConfig(r=2, target_modules=r"model\.vlm_with_expert\.lm_expert\..*\.(q|v)_proj")
    wrapped = peft.get_peft_model(outer, config)
    shake(wrapped)
    expected = loss_of(outer.model).item()
    folder = save_policy(load_policy(BASE), tmp_path / "adapter")
    (folder / "model.safetensors").unlink()
    wrapped.peft_config["default"].base_model_name_or_path = str(BASE)
    wrapped.save_pretrained(str(folder))
    assert loss_of(load_policy(folder)).item() == pytest.approx(expected, rel=1e-5)


def wrapped_by_peft(folder: Path, **settings: Any) -> float:
    """An adapter as LeRobot leaves it: peft wraps the policy, whose network is called `model`. Its loss."""
    peft = pytest.importorskip("peft")

    class LeRobots(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = load_policy(BASE)

    outer = LeRobots()
    targets = r"model\.vlm_with_expert\.lm_expert\..*\.(q|v)_proj"
    wrapped = peft.get_peft_model(
        outer, peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets, **settings)
    )
    shake(wrapped)
    for name, parameter in wrapped.named_parameters():
        if "modules_to_save" in name:
            parameter.data.add_(0.1)
    expected = loss_of(outer.model).item()
    save_policy(load_policy(BASE), folder)
    (folder / "model.safetensors").unlink()
    wrapped.peft_config["default"].base_model_name_or_path = str(BASE)
    wrapped.save_pretrained(str(folder))
    return expected


@pytest.mark.parametrize(
    "settings",
    [
        {"rank_pattern": {r"layers\.0\.self_attn\.q_proj": 3}, "alpha_pattern": {"v_proj": 16}},
        {"rank_pattern": {r"model\.vlm_with_expert\.lm_expert\.layers\.1\.self_attn\.v_proj": 1}},
        {"modules_to_save": ["state_proj", "action_out_proj"], "use_rslora": True},
        {"use_dora": True},
    ],
    ids=["ranks and scales by layer", "by LeRobot's full name", "whole modules", "DoRA"],
)
def test_whatever_peft_can_say_of_factors_is_read(settings: dict[str, Any], tmp_path: Path) -> None:
    expected = wrapped_by_peft(tmp_path / "adapter", **settings)
    assert expected != pytest.approx(loss_of(load_policy(BASE)).item(), rel=1e-3)
    merged, apart = load_policy(tmp_path / "adapter"), load_policy(tmp_path / "adapter", merge_adapter=False)
    assert loss_of(merged).item() == pytest.approx(expected, rel=1e-4)
    assert loss_of(apart).item() == pytest.approx(expected, rel=1e-5)


def test_factors_on_factors_are_added_in_their_order(adapted: Policy, tmp_path: Path) -> None:
    shake(adapted)
    first = save_policy(adapted, tmp_path / "first")
    policy = load_policy(first)
    lora.add_lora(policy, rank=2, alpha=2, targets=policy.lora_targets, base=str(first))  # type: ignore[attr-defined]
    shake(policy)
    expected = loss_of(policy).item()
    second = save_policy(policy, tmp_path / "second")
    assert loss_of(load_policy(second)).item() == pytest.approx(expected, rel=1e-5)


def test_a_base_that_moved_is_named_again_and_another_one_is_refused(
    adapted: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(BASE, tmp_path / "moved"))
    adapter = save_policy(adapted, tmp_path / "adapter")
    said = json.loads((adapter / ADAPTER_CONFIG).read_text())
    said["base_model_name_or_path"] = str(tmp_path / "away")
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(said))
    assert main(["inspect", str(adapter)]) == 1
    assert f"belongs to the policy {tmp_path / 'away'}, which is not there" in capsys.readouterr().err
    assert main(["inspect", str(adapter), "--base", str(moved)]) == 0
    out = capsys.readouterr().out
    assert f"adapter       LORA of rank 4, added to {moved}" in out
    assert load_policy(adapter, base=str(moved)).config.type == "smolvla"
    other = load_policy(BASE)
    next(iter(other.parameters())).data.add_(1)
    save_policy(other, tmp_path / "other")
    with pytest.raises(CheckpointError, match="are not those that the factors in"):
        load_policy(adapter, base=str(tmp_path / "other"))
    with pytest.raises(UsageError, match="has weights of its own"):
        load_policy(moved, base=str(BASE))


def test_targets_that_match_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="matches the LoRA targets"):
        lora.add_lora(load_policy(BASE), rank=2, alpha=2, targets="nothing", base=str(BASE))


def test_damaged_and_foreign_adapters_are_refused(adapted: Policy, tmp_path: Path) -> None:
    folder = save_policy(adapted, tmp_path / "adapter")
    description = json.loads((folder / ADAPTER_CONFIG).read_text())
    for change, says in (
        ({"base_model_name_or_path": None}, "does not say which policy"),
        ({"modules_to_save": ["state_proj"]}, "brings 'state_proj' whole, and its file lacks it"),
        ({"peft_type": "IA3"}, "of type IA3; only LORA is read"),
        ({"init_lora_weights": "pissa"}, "changes the base's own weights; merge it with peft first"),
        ({"r": 8}, None),
        (
            {"base_model_name_or_path": "/no/such"},
            "/no/such, which is not there any more; say .* --base PATH",
        ),
        ({"base_model_name_or_path": str(folder)}, "in a circle"),
    ):
        (folder / ADAPTER_CONFIG).write_text(json.dumps({**description, **change}))
        if says is None:  # each layer's rank is that of its factors
            load_policy(folder)
            continue
        with pytest.raises(CheckpointError, match=says):
            load_policy(folder)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(description))
    (folder / ADAPTER_WEIGHTS).write_bytes(b"xx")
    with pytest.raises(CheckpointError, match="damaged"):
        load_policy(folder)


def test_the_command_line_trains_resumes_and_merges(
    recorded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--policy", "smolvla", "--dataset", recorded, "--episodes", "0:1", "--from", str(BASE)]
    words += [
        "--camera",
        "top=front",
        "--batch-size",
        "2",
        "--lora",
        "2",
        "--merge-lora",
        "--device",
        "cpu",
        "--lr",
        "1e-2",
    ]
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    words += ["--cache", "none", "--save-freq", "1", "--no-tensorboard"]
    assert main([*words, "--output", str(straight), "--steps", "2"]) == 0
    assert f"edgevla export {straight / 'merged'}" in capsys.readouterr().out
    assert main([*words, "--output", str(parts), "--steps", "2"]) == 0
    (parts / "checkpoints" / "last").unlink()
    (parts / "checkpoints" / "last").symlink_to("000001")
    assert main(["train", "--resume", str(parts)]) == 0
    file = Path("checkpoints/last/pretrained_model") / ADAPTER_WEIGHTS
    assert (straight / file).read_bytes() == (parts / file).read_bytes()
    merged, loaded = load_policy(straight / "merged"), load_policy(straight / "checkpoints" / "last")
    assert all(torch.equal(a, b) for a, b in zip(merged.parameters(), loaded.parameters(), strict=True))
    assert not torch.equal(
        merged.state_dict()["state_proj.weight"], load_policy(BASE).state_dict()["state_proj.weight"]
    )


def test_lora_needs_a_trained_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pusht = str(SHARED / "datasets" / "pusht_v30")
    words = ["train", "--policy", "act", "--dataset", pusht, "--lora", "2", "--output", str(tmp_path / "run")]
    assert (
        main(
            [*words, "--set", "pretrained_backbone_weights=none", "--set", "dim_model=16", "--device", "cpu"]
        )
        == 2
    )
    assert "--from" in capsys.readouterr().err

"""LoRA on a small SmolVLA: only factors learn, they come back, they merge, and peft itself reads the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from edgevla.cli import main
from edgevla.errors import CheckpointError, UsageError
from edgevla.train import lora
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
    with safe_open(str(folder / lora.ADAPTER_WEIGHTS), "pt") as file:
        names = list(file.keys())
    assert all(
        n.startswith("base_model.model.model.") and n.endswith((".lora_A.weight", ".lora_B.weight"))
        for n in names
    )
    description = json.loads((folder / lora.ADAPTER_CONFIG).read_text())
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


def test_targets_that_match_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="matches the LoRA targets"):
        lora.add_lora(load_policy(BASE), rank=2, alpha=2, targets="nothing", base=str(BASE))


def test_damaged_and_foreign_adapters_are_refused(adapted: Policy, tmp_path: Path) -> None:
    folder = save_policy(adapted, tmp_path / "adapter")
    description = json.loads((folder / lora.ADAPTER_CONFIG).read_text())
    for change, says in (
        ({"base_model_name_or_path": None}, "does not say which policy"),
        ({"modules_to_save": ["state_proj"]}, "merge it with peft first"),
        ({"base_model_name_or_path": "/no/such"}, "/no/such"),
    ):
        (folder / lora.ADAPTER_CONFIG).write_text(json.dumps({**description, **change}))
        with pytest.raises(CheckpointError, match=says):
            load_policy(folder)
    (folder / lora.ADAPTER_CONFIG).write_text(json.dumps(description))
    (folder / lora.ADAPTER_WEIGHTS).write_bytes(b"xx")
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
    file = Path("checkpoints/last/pretrained_model") / lora.ADAPTER_WEIGHTS
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

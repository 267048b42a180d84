"""Every policy at a size that trains in minutes, through the same verbs that a person types."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgevla.cli import main
from edgevla.simulated import TASKS
from edgevla.train.policies import policy_class
from edgevla.train.tiny import backbone_kinds

BACKBONES = backbone_kinds()


def settings_of(policy: str, *more: str) -> list[str]:
    """`--set` words of what the policy declares as tiny; `more` win."""
    declared = {key: said(value) for key, value in policy_class(policy).tiny.items()}
    chosen = declared | dict(setting.split("=", 1) for setting in more)
    return [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]


def said(value: Any) -> str:
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


def options_of(policy: str) -> list[str]:
    return ["--trunk-width", "16"] if policy_class(policy).Config().trunk is not None else []


def train_words(
    policy: str, dataset: Path, run: Path, backbone: Path | None, *more: str, settings: Sequence[str] = ()
) -> list[str]:
    """`edgevla train` for a tiny policy on the CPU. more: further options."""
    words = ["train", "--policy", policy, "--dataset", str(dataset), "--output", str(run), "--device", "cpu"]
    words += ["--threads", "1", "--cache", "ram", "--save-freq", "0", "--no-tensorboard"]
    words += ["--from", str(backbone)] if backbone is not None else []
    return [*words, *options_of(policy), *settings_of(policy, *settings), *more]


def export_words(policy: str, run: Path, bundle: Path, *more: str) -> list[str]:
    """`edgevla export`; the demonstrations' instruction is what is done where nothing else is asked for."""
    words = ["export", str(run / "checkpoints/last"), "-o", str(bundle), "--samples", "2"]
    words += ["--task", TASKS["follow_cube"].instruction] if policy in BACKBONES else []
    return [*words, *more]


def run_verb(words: Sequence[str]) -> None:
    """In this process; a verb that fails is an error with its words."""
    code = main(list(words))
    if code != 0:
        raise RuntimeError(f"edgevla {' '.join(words)} ended with code {code}")


def last_loss(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float([line["loss"] for line in lines if "loss" in line][-1])

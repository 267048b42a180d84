"""All seven policies at a size that trains in minutes, through the same verbs that a person types."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from edgevla.cli import main
from edgevla.robots.trials.demonstrate import INSTRUCTION
from edgevla.train.tiny import BACKBONES

CHUNK = ["chunk_size=30", "n_action_steps=15"]
NARROW = [*CHUNK, "max_state_dim=8", "max_action_dim=8"]
SCALED = 'normalization_mapping={"VISUAL":"IDENTITY","STATE":"MEAN_STD","ACTION":"MIN_MAX"}'
"""Demonstrations only shake the wrist's roll: by its deviation, that noise would be as loud as what is to be learned."""
XVLA = [*CHUNK, "hidden_size=64", "depth=3", "num_heads=4", "num_domains=2", "len_soft_prompts=4", SCALED]
XVLA += ["tokenizer_max_length=24", "resize_imgs_with_padding=[64,64]"]
DIFFUSION = [
    "n_obs_steps=2",
    "horizon=32",
    "n_action_steps=15",
    "down_dims=[32,64]",
    "num_train_timesteps=50",
]
DIFFUSION += ["diffusion_step_embed_dim=32", "spatial_softmax_num_keypoints=16", "num_inference_steps=10"]
DIFFUSION += ["pretrained_backbone_weights=none", "use_group_norm=true", "noise_scheduler_type=DDIM"]
DIFFUSION += ["prediction_type=sample"]
"""Errors of the noise hardly tell of the observation, but in the few steps of much noise: 1500 steps did not suffice."""
ACT = [
    "dim_model=64",
    "n_heads=4",
    "dim_feedforward=128",
    "n_encoder_layers=1",
    "pretrained_backbone_weights=none",
]

SETTINGS: dict[str, list[str]] = {
    "act": [*CHUNK, *ACT, "use_vae=false", "dropout=0.0"],
    "diffusion": DIFFUSION,
    "smolvla": [
        *NARROW,
        SCALED,
        "resize_imgs_with_padding=[64,64]",
        "tokenizer_max_length=24",
        "train_expert_only=false",
        "freeze_vision_encoder=false",
    ],
    "pi0": [*NARROW, SCALED, "image_resolution=[64,64]", "tokenizer_max_length=24"],
    "pi05": [*NARROW, "image_resolution=[64,64]", "tokenizer_max_length=100"],
    "xvla": [*XVLA, "action_mode=auto", "max_action_dim=8", "max_state_dim=8"],
    "groot": ["tune_llm=true", "tune_visual=true", "use_bf16=false"],
}
"""`--set` of each policy: random backbones must learn, and a cell of the network is small."""
OPTIONS: dict[str, list[str]] = {p: ["--trunk-width", "16"] for p in ("act", "diffusion")}


def settings_of(policy: str, *more: str) -> list[str]:
    """`--set` words; `more` win."""
    chosen = dict(setting.split("=", 1) for setting in [*SETTINGS[policy], *more])
    return [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]


def train_words(
    policy: str, dataset: Path, run: Path, backbone: Path | None, *more: str, settings: Sequence[str] = ()
) -> list[str]:
    """`edgevla train` for a tiny policy on the CPU. more: further options."""
    words = ["train", "--policy", policy, "--dataset", str(dataset), "--output", str(run), "--device", "cpu"]
    words += ["--threads", "1", "--cache", "ram", "--save-freq", "0", "--no-tensorboard"]
    words += ["--from", str(backbone)] if backbone is not None else []
    return [*words, *OPTIONS.get(policy, []), *settings_of(policy, *settings), *more]


def export_words(policy: str, run: Path, bundle: Path, *more: str) -> list[str]:
    """`edgevla export`; the demonstrations' instruction is what is done where nothing else is asked for."""
    words = ["export", str(run / "checkpoints/last"), "-o", str(bundle), "--samples", "2"]
    words += ["--task", INSTRUCTION["rest"]] if policy in BACKBONES else []
    return [*words, *more]


def run_verb(words: Sequence[str]) -> None:
    """In this process; a verb that fails is an error with its words."""
    code = main(list(words))
    if code != 0:
        raise RuntimeError(f"edgevla {' '.join(words)} ended with code {code}")


def last_loss(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float([line["loss"] for line in lines if "loss" in line][-1])

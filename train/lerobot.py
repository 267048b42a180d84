"""`train_config.json`: what LeRobot wants to know about a run, with keys that 0.4 to 0.6 all accept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .config import TrainConfig
from .policies.base import Policy

TRAIN_CONFIG = "train_config.json"


def train_config(config: TrainConfig, policy: Policy, run: Path) -> dict[str, Any]:
    """The run as LeRobot's TrainPipelineConfig. Its strict parser refuses unknown keys, so there are none of ours."""
    is_folder = Path(config.dataset).is_dir()
    return {
        "dataset": {
            "repo_id": Path(config.dataset).name if is_folder else config.dataset,
            "root": config.dataset if is_folder else config.root or None,
            "use_imagenet_stats": config.imagenet_stats,
            "image_transforms": {"enable": config.image_transforms},
        },
        "policy": policy.config.to_json(),
        "output_dir": str(run),
        "job_name": config.policy,
        "resume": False,
        "seed": config.seed,
        "num_workers": config.workers,
        "batch_size": config.batch_size,
        "steps": config.steps,
        "log_freq": config.log_freq,
        "save_checkpoint": True,
        "save_freq": config.save_freq,
        "use_policy_training_preset": True,
        "optimizer": _optimizer(config, policy.lerobot_optimizer),
        "scheduler": _scheduler(config),
        "rename_map": policy.processors.rename_map,
    }


def _optimizer(config: TrainConfig, named: str | None) -> dict[str, Any]:
    o = config.optimizer
    return {
        "type": named or o.type,
        "lr": o.lr,
        "betas": list(o.betas),
        "eps": o.eps,
        "weight_decay": o.weight_decay,
        "grad_clip_norm": o.grad_clip_norm,
    }


def _scheduler(config: TrainConfig) -> dict[str, Any] | None:
    s = config.scheduler
    if s.type == "cosine":
        return {"type": "diffuser", "name": "cosine", "num_warmup_steps": s.warmup_steps}
    if s.type == "cosine_decay_with_warmup":
        return {
            "type": s.type,
            "num_warmup_steps": s.warmup_steps,
            "num_decay_steps": s.decay_steps,
            "peak_lr": config.optimizer.lr,
            "decay_lr": s.decay_lr,
        }
    return None

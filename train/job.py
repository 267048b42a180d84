"""Everything that a run needs, put together from its configuration and checked before the first step."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgevla.checkpoints import PRETRAINED, TRAINING, run_of
from edgevla.dataset.facts import FACTS, DatasetFacts, camera_looks, facts_of, read_facts
from edgevla.dataset.reader import Dataset, episode_numbers, open_dataset
from edgevla.dataset.reading import DatasetReading
from edgevla.errors import CheckpointError, DatasetError, UsageError
from edgevla.vocabulary import matches

from . import lerobot, lora
from .adapters import is_adapter
from .augment import Augmentation
from .cache import FrameCache, make_cache
from .cameras import Cameras, for_policy
from .checkpoint import checkpoint_folder, load_policy, save_policy
from .config import OWN_CONFIG, TrainConfig, split_episodes
from .data import TrainingData, check_names, check_sizes_of, own_rename
from .loader import Loader
from .loop import Job
from .optim import build_optimizer, build_scheduler, freeze_all_but, grouped
from .policies.base import Batch, Policy
from .progress import TrainingLog
from .start import Say, start_facts, start_policy, tokenizer_of
from .state import load_training_state, seed_everything, tidy
from .worker import Worker, choose_device, start_worker


@dataclass
class Prepared:
    """A job and what belongs to it: `close` ends its threads. done: steps that earlier processes finished."""

    job: Job
    facts: DatasetFacts
    done: int
    caches: list[FrameCache]
    data: TrainingData

    def save_merged(self) -> Path:
        """The policy with its LoRA factors merged in, as a folder of its own; the job cannot go on after it."""
        lora.merge(self.job.policy)
        return save_policy(self.job.policy, self.job.run / "merged", self.facts)

    def close(self) -> None:
        self.job.log.close()
        for cache in self.caches:
            cache.close()


def prepare(config: TrainConfig, run: Path, say: Say, checkpoint: Path | None = None) -> Prepared:
    """checkpoint: to resume from; its `edgevla-train.toml` is where `config` came from.

    Raises:
        EdgeVLAError: whatever cannot work, in one sentence, before any step is made.
    """
    device = choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    datasets = _open(config, checkpoint)
    dataset = datasets[0]
    check_names(dataset)
    facts = dataclasses.replace(
        facts_of(dataset, config.joint_units or None), camera_looks=camera_looks(dataset)
    )
    seed_everything(config.seed)
    if checkpoint is None:
        policy, cameras = start_policy(config, dataset, say)
    else:
        policy, cameras = _resumed(checkpoint, dataset, facts, config.base)
    policy.set_cameras(
        {c: policy.camera_size(c) for c in policy.config.image_features if c not in cameras.absent},
        cameras.absent,
    )
    worker = start_worker(device, bf16=wants_bf16(config, policy))
    seed_everything(config.seed + worker.rank)  # the same weights everywhere, other draws on every process
    policy.to(worker.device)
    _switch(config, policy)
    loader, held_out, caches = _data(config, datasets, policy, cameras, worker)
    optimizer = build_optimizer(config.optimizer, _groups(config, policy))
    scheduler = build_scheduler(
        config.scheduler,
        optimizer,
        peak_lr=config.optimizer.lr,
        n_steps=config.steps,
        groups=config.groups,
    )
    done = 0
    if checkpoint is not None:
        done = load_training_state(checkpoint / TRAINING, optimizer, scheduler, worker.device)
        if worker.n_ranks > 1:  # the file holds one process' generators; the others must not draw the same
            seed_everything(config.seed + worker.rank + worker.n_ranks * done)
        if worker.rank == 0:
            tidy(run_of(checkpoint))
    log = TrainingLog(
        run,
        n_steps=config.steps,
        log_freq=config.log_freq,
        done=done,
        tensorboard=config.tensorboard,
        out=sys.stderr if worker.rank == 0 else None,
        writes=worker.rank == 0,
    )

    def write_policy(folder: Path) -> None:
        save_policy(policy, folder, facts)
        config.save(folder / OWN_CONFIG)
        text = json.dumps(lerobot.train_config(config, policy, run), indent=4)
        (folder / lerobot.TRAIN_CONFIG).write_text(text)

    job = Job(policy, optimizer, scheduler, config, worker, run, loader.batches, write_policy, log, held_out)
    return Prepared(job, facts, done, caches, loader.data)


def wants_bf16(config: TrainConfig, policy: Policy) -> bool:
    """Whether the forward pass runs under bf16 autocast."""
    if config.precision != "auto":
        return config.precision == "bf16"
    return policy.config.trains_in_bf16


def _open(config: TrainConfig, checkpoint: Path | None) -> list[Dataset]:
    """The training episodes, and the held-out ones if there are any; of others' files nothing need be there."""
    root = config.root or None
    trained = read_facts(checkpoint / PRETRAINED) if checkpoint is not None else start_facts(config)
    how: dict[str, Any] = {
        "root": root,
        "reading": DatasetReading(config.features, config.without, config.task_from),
    }
    if trained is not None:
        how["remembered"] = trained.reading
    if not (config.episodes or config.eval_episodes):
        return [open_dataset(config.dataset, **how)]
    numbers = episode_numbers(config.dataset, root)
    chosen, held_out = split_episodes(config, max(numbers, default=-1) + 1)
    if chosen == numbers:
        return [open_dataset(config.dataset, **how)]
    parts = [[n for n in part if n in set(numbers)] for part in (chosen, held_out) if part]
    return [open_dataset(config.dataset, part, **how) for part in parts]


def _resumed(checkpoint: Path, dataset: Dataset, facts: DatasetFacts, base: str) -> tuple[Policy, Cameras]:
    folder = checkpoint / PRETRAINED
    before = read_facts(folder)
    if before is None:
        raise CheckpointError(
            f"{folder} lacks {FACTS}; a run of EdgeVLA can resume only what it wrote itself"
        )
    if before.sha256 != facts.sha256:
        raise DatasetError(
            f"{dataset.root} is not the dataset that the run began with ({before.n_episodes} episodes, "
            f"{before.n_frames} frames then; {facts.n_episodes}, {facts.n_frames} now). To train on changed data, "
            f"start a new run from the weights: --from {folder}"
        )
    config = TrainConfig.load(folder / OWN_CONFIG)
    policy = load_policy(folder, merge_adapter=False, base=base if is_adapter(folder) else "")
    rename = own_rename(dataset, policy.processors.rename_map)
    named = list(policy.config.image_features)
    # For a fresh policy its cameras are named already, and one that was done without may be the policy's no more.
    said = config.cameras if config.start else {}
    wanted = {name: source for name, source in said.items() if source != "none" or matches(name, named)}
    cameras = for_policy(wanted, dataset.cameras, named, rename)
    return policy.train(), dataclasses.replace(cameras, rename=rename)


def _switch(config: TrainConfig, policy: Policy) -> None:
    """Training switches that are not among the policy's weights."""
    if config.lora and not policy.is_adapted:
        _add_lora(config, policy)
    if config.train_only:
        freeze_all_but(policy, config.train_only)
    if config.gradient_checkpointing and not policy.set_gradient_checkpointing(True):
        raise UsageError(f"{config.policy} has no gradient checkpointing; leave the option out")


def _add_lora(config: TrainConfig, policy: Policy) -> None:
    if policy.config.has_own_parts:
        raise UsageError(
            "LoRA's files hold factors alone, and a policy with snapflow_weight has a part beside them that learns, "
            "too; leave --lora out"
        )
    targets = config.lora_targets or policy.lora_targets
    if not targets:
        raise UsageError(f"{config.policy} has no usual LoRA layers; name them with --lora-targets REGEX")
    base = str(checkpoint_folder(config.start).resolve()) if Path(config.start).exists() else config.start
    alpha = config.lora_alpha or config.lora
    lora.add_lora(policy, rank=config.lora, alpha=alpha, targets=targets, base=base)


def _groups(config: TrainConfig, policy: Policy) -> list[dict[str, Any]]:
    return grouped(policy, config.optimizer, config.groups) if config.groups else policy.optimizer_groups()


def _data(
    config: TrainConfig, datasets: list[Dataset], policy: Policy, cameras: Cameras, worker: Worker
) -> tuple[Loader, Any, list[FrameCache]]:
    tokenize = tokenizer_of(policy)
    caches: list[FrameCache] = []

    def data_of(dataset: Dataset, augmentation: Augmentation | None) -> TrainingData:
        used = [c for c in dataset.cameras if c not in cameras.unused]
        cache = make_cache(dataset, used, config.cache, machine=worker)
        if cache is not None:
            cache.fill_in_background()
            caches.append(cache)
        return TrainingData(
            dataset,
            policy.config,
            rename_map=cameras.rename,
            tokenize=tokenize,
            absent_cameras=cameras.absent,
            augmentation=augmentation,
            cache=cache,
        )

    live = [c for c in datasets[0].cameras if c not in cameras.unused]
    check_sizes_of(datasets[0], live, datasets[1] if len(datasets) > 1 else None)
    training = data_of(datasets[0], Augmentation() if config.image_transforms else None)
    loader = Loader(
        training,
        config.batch_size,
        config.seed,
        rank=worker.rank,
        n_ranks=worker.n_ranks,
        n_threads=config.workers,
        pin_memory=worker.device.type == "cuda",
    )
    if len(datasets) == 1:
        return loader, None, caches
    evaluation = data_of(datasets[1], None)

    def held_out() -> Iterable[Batch]:
        return evaluation.in_order(config.batch_size)

    return loader, held_out, caches

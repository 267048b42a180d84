"""A policy small enough to train in a test, with everything that makes resuming hard: dropout, noise, batch norm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from edgevla.graph import GraphSpec
from edgevla.train.checkpoint import save_policy
from edgevla.train.config import OptimizerConfig, SchedulerConfig, TrainConfig
from edgevla.train.loop import Job
from edgevla.train.optim import build_optimizer, build_scheduler
from edgevla.train.policies.base import Batch, Policy
from edgevla.train.policies.config import PolicyConfig, PolicyFeature
from edgevla.train.processors import Processors
from edgevla.train.progress import TrainingLog
from edgevla.train.state import seed_everything
from edgevla.train.worker import Worker, start_worker


@dataclass
class ToyConfig(PolicyConfig):
    type: ClassVar[str] = "toy"
    chunk_size: int = 4
    dropout: float = 0.2
    noise: float = 0.1
    output_features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {"action": PolicyFeature("ACTION", (3,))}
    )


class Toy(Policy):
    policy_type = "toy"
    Config = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config, Processors())
        self.first = nn.Linear(5, 16)
        self.norm = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(config.dropout)
        self.last = nn.Linear(16, 12)

    def loss(self, batch: Batch, draws: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch["observation.state"] + self.config.noise * draws["noise"]  # type: ignore[attr-defined]
        predicted = self.last(self.dropout(self.norm(self.first(x)).relu())).view(-1, 4, 3)
        l1 = (predicted - batch["action"]).abs().mean()
        return l1, {"l1_loss": l1}

    def draw(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        return {"noise": torch.randn(batch["observation.state"].shape, generator=generator)}

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"x": inputs["state"]}

    def decode(self, x: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        return x

    def graphs(self) -> dict[str, GraphSpec]:
        return {}


class ToyData:
    """Batch number i is a pure function of (seed, i), as in the real loader."""

    def __init__(self, batch_size: int = 8, seed: int = 0, poison: int | None = None) -> None:
        self.batch_size, self.seed, self.poison = batch_size, seed, poison

    def batch(self, i: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1000 * self.seed + i)
        state = torch.randn(self.batch_size, 5, generator=generator)
        action = state[:, None, :3] * torch.linspace(1, 2, 4)[None, :, None]
        if i == self.poison:
            action = action * float("nan")
        return {"observation.state": state, "action": action}

    def __call__(self, start: int) -> Iterator[dict[str, Any]]:
        i = start
        while True:
            yield self.batch(i)
            i += 1


def toy_config(**changes: Any) -> TrainConfig:
    config = TrainConfig(
        policy="toy",
        dataset="toy",
        steps=20,
        save_freq=10,
        log_freq=5,
        optimizer=OptimizerConfig("adamw", lr=1e-2),
        scheduler=SchedulerConfig("cosine_decay_with_warmup", warmup_steps=5, decay_steps=20, decay_lr=1e-3),
    )
    return replace(config, **changes)


def toy_job(
    run: Path,
    config: TrainConfig | None = None,
    *,
    data: ToyData | None = None,
    policy: Toy | None = None,
    done: int = 0,
    worker: Worker | None = None,
    **settings: Any,
) -> Job:
    config = config or toy_config()
    worker = worker or start_worker(torch.device("cpu"), bf16=config.precision == "bf16")
    if policy is None:
        seed_everything(config.seed)
        policy = Toy(ToyConfig(**settings))
    optimizer = build_optimizer(config.optimizer, policy.optimizer_groups())
    scheduler = build_scheduler(
        config.scheduler, optimizer, peak_lr=config.optimizer.lr, n_steps=config.steps
    )
    log = TrainingLog(run, n_steps=config.steps, log_freq=config.log_freq, done=done, out=None)
    toy = policy

    def write(folder: Path) -> None:
        save_policy(toy, folder)

    return Job(policy, optimizer, scheduler, config, worker, run, data or ToyData(), write, log)


@pytest.fixture
def toy() -> SimpleNamespace:
    """The names above, for tests to use: pytest's importlib mode lets no test import from here."""
    return SimpleNamespace(Toy=Toy, Config=ToyConfig, Data=ToyData, config=toy_config, job=toy_job)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of two small cameras and six joints: two episodes of 20 frames, pictures in the table."""
    import numpy as np

    from edgevla.dataset import DatasetWriter

    joints = {"dtype": "float32", "shape": (6,), "names": [f"joint_{i}.pos" for i in range(6)]}
    camera = {"dtype": "image", "shape": (48, 64, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": joints, "action": joints}
    features |= {f"observation.images.{name}": camera for name in ("front", "wrist")}
    root = tmp_path_factory.mktemp("recorded") / "set"
    random = np.random.default_rng(0)
    with DatasetWriter(root, fps=10, features=features, joint_units="degrees") as writer:
        for episode in range(2):
            for i in range(20):
                state = (30 * np.sin(0.2 * i + np.arange(6)) + 5 * episode).astype(np.float32)
                frame: dict[str, Any] = {"observation.state": state, "action": state + 1}
                for name in ("front", "wrist"):
                    frame[f"observation.images.{name}"] = random.integers(0, 256, (48, 64, 3), np.uint8)
                writer.add_frame(frame, task="pick it up")
            writer.save_episode()
    return str(root)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)

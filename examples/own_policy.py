"""A policy of your own: one hidden layer from the joints to a chunk. All that there is of it stands here.

    python examples/own_policy.py datasets/so101 runs/toy
    edgevla deploy runs/toy/bundle --robot so101 --sim

It is named in the table of policies and trained, compared and exported by the verbs that know none by name. In the
repository the row stands in `train/policies/__init__.py` and the recipe in `train/recipes/`. Blind to its cameras, it is
good for nothing but to be read.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgevla.cli import main as edgevla
from edgevla.graph import GraphSpec, TensorSpec
from edgevla.train.nn.normalize import Normalizers
from edgevla.train.policies import POLICIES, Places
from edgevla.train.policies.base import Batch, Policy
from edgevla.train.policies.config import PolicyConfig
from edgevla.train.processors import Processors
from edgevla.types import ACTION, STATE

RECIPE = """
policy = "toy"
source = "nobody"
batch_size = 4
[optimizer]
type = "adamw"
lr = 1e-3
"""


@dataclass
class ToyConfig(PolicyConfig):
    type: ClassVar[str] = "toy"

    chunk_size: int = 12
    n_action_steps: int = 6
    hidden: int = 32
    normalization_mapping: dict[str, str] = field(
        default_factory=lambda: {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
    )

    @property
    def chunk_length(self) -> int:
        return self.chunk_size


class Toy(Policy):
    policy_type = "toy"
    Config = ToyConfig
    tiny: ClassVar[Mapping[str, Any]] = {"hidden": 8}

    config: ToyConfig

    def __init__(self, config: ToyConfig, processors: Processors) -> None:
        super().__init__(config, processors)
        self.normalizers = Normalizers(config, processors)
        self.first = nn.Linear(config.state_dim or 0, config.hidden)
        self.last = nn.Linear(config.hidden, config.chunk_size * config.action_dim)

    def network(self, state: Tensor) -> Tensor:
        """(B, D) robot units -> (B, T, D) normalised."""
        hidden = torch.tanh(self.first(self.normalizers(STATE, state)))
        return self.last(hidden).unflatten(-1, (self.config.chunk_size, self.config.action_dim))

    def draw(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        return {}

    def loss(self, batch: Batch, draws: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        error = (self.network(batch[STATE]) - self.normalizers(ACTION, batch[ACTION])).abs()
        return error[~batch["action_is_pad"]].mean(), {}

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"x": self.network(inputs["state"])}

    def decode(self, x: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        return self.normalizers.inverse(ACTION, x)

    def graphs(self) -> dict[str, GraphSpec]:
        chunk = (1, self.config.chunk_size, self.config.action_dim)
        x, actions = TensorSpec("x", "float32", chunk), TensorSpec("actions", "float32", chunk)
        return {
            "encode": GraphSpec((*self.camera_specs(), *self.vector_specs()), (x,)),
            "decode": GraphSpec((TensorSpec("x", "float32", chunk, "x"),), (actions,)),
        }


def main(dataset: str, run: str, *options: str) -> int:
    """Trains on a LeRobot dataset and exports beside it. options: further ones of `edgevla train`."""
    sys.path.insert(0, str(Path(__file__).parent))
    POLICIES["toy"] = Places("own_policy:Toy", "own_policy:ToyConfig")
    recipe = Path(run).with_suffix(".toml")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(RECIPE)
    words = ["--policy", "toy", "--recipe", str(recipe), "--dataset", dataset, "--output", run, *options]
    return edgevla(["train", *words]) or edgevla(["export", f"{run}/checkpoints/last", "-o", f"{run}/bundle"])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

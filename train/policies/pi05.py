"""Pi0.5: as Pi0, with the state written into the prompt, and the time in every norm of the expert (AdaRMS).

Pi0.5-Fast is the same policy with 5 denoise steps.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from edgevla.types import STATE

from ..nn.normalize import Normalizer
from ..nn.transformer import project
from ..processors import Step
from .base import TINY_CHUNK
from .pi import PiConfig, PiPolicy
from .vla_config import RELATIVE

N_BINS = 256
PREPARE_STATE = "pi05_prepare_state_tokenizer_processor_step"
_PLAIN_NORM = re.compile(r"model\.paligemma_with_expert\.gemma_expert\.model\..*norm\.weight")
_LOG = logging.getLogger(__name__)


@dataclass
class Pi05Config(PiConfig):
    type: ClassVar[str] = "pi05"
    pads_state: ClassVar[bool] = False

    own_keys: ClassVar[frozenset[str]] = PiConfig.own_keys - {"rtc_training_max_delay"}

    tokenizer_max_length: int = 200
    normalization_mapping: dict[str, str] = field(
        default_factory=lambda: {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"}
    )

    def to_json(self) -> dict[str, Any]:
        """`rtc_training_max_delay` is LeRobot's own key here since 0.7, and only where it says something: older ones
        refuse it."""
        data = super().to_json()
        if not self.rtc_training_max_delay:
            del data["rtc_training_max_delay"]
        return data


class Pi05(PiPolicy):
    policy_type = "pi05"
    Config = Pi05Config
    takes_state = False
    template = "Task: {task}, State: {state};\nAction: "
    clean_task = ("strip", "underscore_to_space", "newline_to_space")
    tiny: ClassVar[Mapping[str, Any]] = {
        **TINY_CHUNK,
        "max_state_dim": 8,
        "max_action_dim": 8,
        "image_resolution": [64, 64],
        "tokenizer_max_length": 100,
    }
    adaptive = True

    def add_projections(self) -> None:
        width = self.dims.expert.width
        self.time_mlp_in = nn.Linear(width, width)
        self.time_mlp_out = nn.Linear(width, width)

    @classmethod
    def repair_key(cls, name: str) -> str | None:
        if name.startswith("model.state_proj.") or _PLAIN_NORM.fullmatch(name):
            return None
        return name.replace("model.action_time_mlp_", "model.time_mlp_")

    def time_rows(self, embedded: Tensor) -> dict[str, Tensor]:
        """Scale, shift and gate of all norms of the expert: (B, 2 * layers + 1, 3 * width)."""
        hidden = F.silu(project(self.time_mlp_in, embedded))
        return {"modulation": self.expert.modulations(F.silu(project(self.time_mlp_out, hidden)))}

    def embed_suffix(self, x: Tensor) -> Tensor:
        return project(self.action_in_proj, x)

    def velocity(
        self,
        context: Mapping[str, Tensor],
        x: Tensor,
        rows: Mapping[str, Tensor],
        is_committed: Tensor | None = None,
    ) -> Tensor:
        starts = [True] + [False] * (x.shape[1] - 1)
        modulation = rows["modulation"], rows.get("clean_modulation"), is_committed
        return self.run_expert(context, self.embed_suffix(x), starts, *modulation)

    # -- prompt -------------------------------------------------------------------------------------------

    @property
    def pads_prompt_state(self) -> bool:
        """Whether the prompt also holds the zeros up to max_state_dim, as LeRobot 0.4 wrote it.

        Checkpoints do not say which version fine-tuned them: a `max_state_dim` among the prepare-state step's settings
        asks for it (LeRobot accepts it there).
        """
        step = self.processors.step(PREPARE_STATE)
        return step is not None and "max_state_dim" in step.config

    def prompt_state(self) -> dict[str, Any]:
        step = self.processors.step(PREPARE_STATE)
        if self.processors.step(*RELATIVE) is None and not self.pads_prompt_state:
            _LOG.info(
                "this pi05 checkpoint has LeRobot 0.4's pipeline; if 0.4 also trained it, set max_state_dim in its %s",
                PREPARE_STATE,
            )
        normalizer = self.normalizers.forwards[STATE.replace(".", "__")]
        assert isinstance(normalizer, Normalizer)
        a, b = ([] if t is None else t.tolist() for t in (normalizer.a, normalizer.b))
        return {
            "mode": normalizer.mode,
            "eps": normalizer.eps,
            "a": a,
            "b": b,
            "n_bins": N_BINS,
            "pad_to": int(step.number("max_state_dim")) if step and self.pads_prompt_state else None,
        }

    @classmethod
    def ordered_steps(cls, steps: list[Step]) -> list[Step]:
        """The normaliser comes before the prompt, which holds its result."""
        rename, to_batch, tokenizer, device, normalizer = steps
        return [rename, to_batch, normalizer, Step(PREPARE_STATE), tokenizer, device]

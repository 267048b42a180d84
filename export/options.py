"""What one export is asked to do: dataclass defaults, then the command line; frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from edgevla.errors import UsageError

if TYPE_CHECKING:
    from edgevla.dataset.reading import DatasetReading

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
QUANTISED = ("int8", "int4")
"""Judged on more frames, by the actions alone: a stage has no tolerance of its own."""
MOST_BATCH = 64
"""As many as a policy server has robots (edgevla/serve/server.py)."""
TARGETS = ("cpu", "cuda", "tensorrt")
JOINT_UNITS = ("degrees", "range100", "radians", "raw")


@dataclass(frozen=True)
class ExportOptions:
    """base: where the policy lies that an adapter belongs to; empty: where the adapter says.
    dataset: for samples, and for features where the checkpoint has none. robot, fps: instead of a dataset.

    cameras: policy camera -> robot camera or `none`, as said. camera_sizes: camera -> (H, W).
    joint_units: `degrees`, `range100`, `radians`, or `raw` for what is no joint at all.
    adapt_to_pi_aloha: the policy is openpi's Pi0 for ALOHA, which sees its joints and grippers mapped.
    reading: how the dataset is read, where the checkpoint does not know it.
    still_joints: what the policy is told of joints that never moved in training: their value then, or what is measured.
    max_batch: observations that one inference of the bundle may take.
    allow_parity_failure: write the bundle although it computes something else; the report repeats it.
    """

    base: str = ""
    dataset: str | None = None
    robot: str | None = None
    fps: float | None = None
    joint_units: str | None = None
    cameras: Mapping[str, str] = field(default_factory=dict)
    camera_sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    precision: str = "fp32"
    target: str = "cpu"
    n_steps: int | None = None
    max_batch: int = 1
    task: str | None = None
    name: str | None = None
    n_samples: int = 32
    n_timed: int = 20
    seed: int = 0
    adapt_to_pi_aloha: bool = False
    allow_parity_failure: bool = False
    reading: DatasetReading = field(default_factory=lambda: _as_it_is())
    still_joints: Literal["trained", "live"] = "trained"

    def __post_init__(self) -> None:
        if self.precision == "int8" and self.target == "cuda":
            raise UsageError(
                "int8 for cuda is not supported: onnxruntime's CUDA kernels gain nothing; use fp16"
            )
        if self.precision == "bf16" and self.target == "cpu":
            raise UsageError(
                "bf16 for cpu is not supported: onnxruntime's CPU kernels know no bfloat16; use fp32, or --target cuda"
            )
        if self.precision == "int4" and self.target == "tensorrt":
            raise UsageError(
                "int4 for tensorrt is not supported: TensorRT knows no MatMulNBits; use fp16, or --target cuda"
            )
        for option, value in (("--samples", self.n_samples), ("--n-steps", self.n_steps)):
            if value is not None and value < 1:
                raise UsageError(f"{option} is {value}; it must be at least 1")
        if not 1 <= self.max_batch <= MOST_BATCH:
            raise UsageError(f"--max-batch is {self.max_batch}; it must be from 1 to {MOST_BATCH}")
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise UsageError(f"--fps is {self.fps:g}; it must be positive")
        if self.seed < 0:
            raise UsageError(f"--seed is {self.seed}; it must be 0 or more")
        if self.name is not None and (not self.name.strip() or "/" in self.name):
            raise UsageError(
                f"--name '{self.name}' is no name; give one without '/', where it is to be: -o DIR"
            )


def _as_it_is() -> DatasetReading:
    from edgevla.dataset.reading import DatasetReading  # brings numpy, which a verb's help does without

    return DatasetReading()

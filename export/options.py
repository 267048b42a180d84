"""What one export is asked to do: dataclass defaults, then the command line; frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgevla.errors import UsageError

PRECISIONS = ("fp32", "fp16", "int8")
TARGETS = ("cpu", "cuda", "tensorrt")
JOINT_UNITS = ("degrees", "range100", "radians", "raw")


@dataclass(frozen=True)
class ExportOptions:
    """dataset: for samples, and for features where the checkpoint has none. robot, fps: instead of a dataset.

    cameras: robot camera -> policy feature, or policy feature -> `none`. camera_sizes: camera -> (H, W).
    joint_units: `degrees`, `range100`, `radians`, or `raw` for what is no joint at all.
    adapt_to_pi_aloha: the policy is openpi's Pi0 for ALOHA, which sees its joints and grippers mapped.
    allow_parity_failure: write the bundle although it computes something else; the report repeats it.
    """

    dataset: str | None = None
    robot: str | None = None
    fps: float | None = None
    joint_units: str | None = None
    cameras: Mapping[str, str] = field(default_factory=dict)
    camera_sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    precision: str = "fp32"
    target: str = "cpu"
    n_steps: int | None = None
    task: str | None = None
    name: str | None = None
    n_samples: int = 32
    n_timed: int = 20
    seed: int = 0
    adapt_to_pi_aloha: bool = False
    allow_parity_failure: bool = False

    def __post_init__(self) -> None:
        if self.precision == "int8" and self.target == "cuda":
            raise UsageError(
                "int8 for cuda is not supported: onnxruntime's CUDA kernels gain nothing; use fp16"
            )
        if self.n_samples < 1:
            raise UsageError("--samples must be at least 1")

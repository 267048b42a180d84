"""The `time` graph as a table: its outputs for every time of one schedule, computed at export.

TensorRT has no float64, which the time embedding needs (docs/policies.md#flow-matching), and a Jetson may have no
onnxruntime to run it; the rows for a bundle's step count are few, so it carries them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.errors import BundleError
from edgevla.graph import GraphSpec

TAU = "tau"


class TableGraph:
    """tau -> rows. The file holds `tau` float32 (n,) and one array (n, ...) per output."""

    def __init__(self, path: Path, spec: GraphSpec) -> None:
        self.spec = spec
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            self._index = {float(tau): i for i, tau in enumerate(arrays[TAU])}
            self._rows = {o.name: arrays[o.name] for o in spec.outputs}
        except (OSError, ValueError, KeyError) as error:
            raise BundleError(
                f"the table of times {path} is damaged ({error}); export the bundle again"
            ) from error

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        (tau,) = inputs.values()
        i = self._index.get(float(tau[0]))
        if i is None:
            raise BundleError(
                f"the bundle holds no row for time {float(tau[0])}; it was exported for one step count"
            )
        return {name: np.repeat(rows[i][None], len(tau), axis=0) for name, rows in self._rows.items()}

    def stack(self, arrays: Sequence[Any]) -> np.ndarray:
        return np.stack(list(arrays), axis=1)


def write_table(path: Path, taus: np.ndarray, rows: Sequence[Mapping[str, np.ndarray]]) -> None:
    """rows: one per tau, each array with a batch axis of 1."""
    arrays: dict[str, Any] = {name: np.stack([row[name][0] for row in rows]) for name in rows[0]}
    np.savez(path, **{TAU: np.asarray(taus, np.float32), **arrays})  # type: ignore[arg-type]

"""A shadow run in figures: what the policy would have commanded, against what was done by other hands: where they
carried the arm, or the goals by which a leader arm moved it (which the arm itself trails)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgevla.messages import State

MOST_KEPT = 100_000
"""Rows; where there are more, every second one is left out, again and again."""


class Shadow:
    """Takes every state; those of grid moments at which the policy wanted something count."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self._stride, self._n = 1, 0

    def take(self, state: State) -> None:
        if not state.is_shadow or state.wanted is None or not state.is_grid_moment:
            return
        self._n += 1
        if self._n % self._stride:
            return
        done = np.where(np.isfinite(state.goal), state.goal, state.position)
        self._rows.append((state.wanted - done).astype(np.float32))
        if len(self._rows) >= MOST_KEPT:
            self._rows, self._stride = self._rows[::2], 2 * self._stride

    def figures(
        self, joints: Sequence[str], units: Sequence[str]
    ) -> dict[str, dict[str, float | str]] | None:
        """By joint: root mean square and 95th percentile of the difference, in `unit`; None: nothing was wanted."""
        if not self._rows:
            return None
        away = np.abs(np.array(self._rows, np.float64))
        rms, p95 = np.sqrt((away**2).mean(axis=0)), np.percentile(away, 95, axis=0)
        return {
            name: {"rms": round(float(rms[k]), 3), "p95": round(float(p95[k]), 3), "unit": units[k]}
            for k, name in enumerate(joints)
        }


def words(figures: Mapping[str, Mapping[str, float | str]]) -> list[str]:
    """Lines for a person."""
    lines = [f"  {'wanted - done':<16} rms, p95:"]
    for name, found in figures.items():
        joint = name.removesuffix(".pos")
        lines.append(f"    {joint:<14} {found['rms']:>8.2f} {found['p95']:>8.2f} {found['unit']}")
    return lines

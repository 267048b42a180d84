"""Elements of the state that never move in the training data, and what they are there.

Normalised, such an element is a difference divided by almost nothing: a thousandth of a degree off at run time, and the
policy sees a value that it never saw. So they are named, and the robot gives the policy the training value instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

LEAST_MOTION = {"deg": 0.1, "range100": 0.1, "percent": 0.1, "rad": 0.002}
"""Range of a joint that only its encoder's last step moves (a servo of 4096 steps: 0.09 degrees)."""
LEAST_RELATIVE = 1e-6
"""Of anything else: the rounding of float32."""


def still_values(stats: Mapping[str, np.ndarray], units: Sequence[str] = ()) -> list[float | None]:
    """Per element its value in the data where it never moves, None where it does; empty where statistics do not tell.

    stats: `min` and `max`, else `mean` and `std`, of one feature. units: one per element, or unknown.
    """
    if "min" in stats and "max" in stats:
        low, high = (np.asarray(stats[k], np.float64).ravel() for k in ("min", "max"))
    elif "mean" in stats and "std" in stats:
        mean, std = (np.asarray(stats[k], np.float64).ravel() for k in ("mean", "std"))
        low, high = mean - std, mean + std
    else:
        return []
    middle = np.asarray(stats["mean"], np.float64).ravel() if "mean" in stats else (low + high) / 2
    if not low.shape == high.shape == middle.shape:
        return []
    least = LEAST_RELATIVE * np.maximum(1.0, np.abs(middle))
    if len(units) == len(low):
        least = np.maximum(least, [LEAST_MOTION.get(unit, 0.0) for unit in units])
    is_still = high - low <= least
    exact = np.where(low == high, low, middle)
    return [float(value) if still else None for value, still in zip(exact, is_still, strict=True)]


def still_sentences(
    values: Sequence[float | None], names: Sequence[str], units: Sequence[str] = ()
) -> list[str]:
    """One sentence on all elements that never move, or none."""
    named = names if len(names) == len(values) else [f"element {i}" for i in range(len(values))]
    of = units if len(units) == len(values) else [""] * len(values)
    found = [
        f"{name} ({value:.6g}{' ' + unit if unit else ''})"
        for name, value, unit in zip(named, values, of, strict=True)
        if value is not None
    ]
    if not found:
        return []
    one = len(found) == 1
    return [
        f"{', '.join(found)} of the state never move{'s' * one} in the training data: to the policy the slightest other "
        f"value is one that it never saw, so the robot will tell it {'this' if one else 'these'} instead of what it "
        "measures (edgevla export --still-joints live: what it measures)"
    ]

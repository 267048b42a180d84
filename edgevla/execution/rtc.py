"""Real-time chunking (Black et al. 2025): how strongly each action of a new chunk is held to what was committed.

    weight  1 |=========\\
              |          \\
            0 |___________\\____________________
              0        start  end              T     start = min(d, h), end = h = min(guidance_end, rest)

The guidance itself is inside the `denoise` graph; the robot only says what is committed, and these weights.
"""

from __future__ import annotations

import numpy as np

from edgevla.errors import UsageError


def rtc_weights(kind: str, delay: int, guidance_end: int, rest: int, chunk_size: int) -> np.ndarray:
    """float32 (chunk_size,). Source: LeRobot's prefix weights (src/lerobot/policies/rtc).

    kind: `zeros`, `ones`, `linear`, `exp`. delay: inference delay in steps. guidance_end: where guidance ends.
    rest: steps of the old chunk from the observation's moment on; 0 gives zeros, the plain step.
    """
    weights = np.zeros(chunk_size, np.float32)
    end = min(guidance_end, rest, chunk_size)
    start = min(delay, end)
    if end <= 0:
        return weights
    if kind == "zeros":
        weights[:start] = 1
    elif kind == "ones":
        weights[:end] = 1
    elif kind in ("linear", "exp"):
        weights[:start] = 1
        ramp = np.linspace(1, 0, end - start + 2)[1:-1]
        weights[start:end] = ramp if kind == "linear" else ramp * np.expm1(ramp) / np.expm1(1)
    else:
        raise UsageError(f"RTC weights '{kind}' are unknown; choose zeros, ones, linear or exp")
    return weights

"""`python -m edgevla.push.bench BUNDLE`: opens a bundle on this machine and measures it. Its last line is for `push`."""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path

from edgevla import bench
from edgevla.bundle import load_bundle
from edgevla.errors import EdgeVLAError
from edgevla.push.there import BENCH
from edgevla.runner import BundlePolicy

LONGEST_S = 10.0
N_RUNS = 20


def measure(folder: Path) -> dict[str, object]:
    """Times of opening (engines that are missing are built in it) and of inferences on blank pictures.

    Raises:
        EdgeVLAError: the bundle is damaged, or no engine here runs it.
    """
    began = time.monotonic()
    bundle = load_bundle(folder)
    policy = BundlePolicy(bundle)
    opened_s = time.monotonic() - began
    found = bench.measure(policy, N_RUNS, longest_s=LONGEST_S)
    m = bundle.manifest
    return {
        "policy": m.policy,
        "provider": policy.provider,
        "python": platform.python_version(),
        "opened_s": round(opened_s, 2),
        "first_ms": round(found.first_ms, 2),
        "p50_ms": round(found.chunk.p50_ms, 2),
        "max_ms": round(found.chunk.max_ms, 2),
        "n": found.n,
        "chunk_ms": round(1000 * m.chunk_size / m.fps, 1),
    }


def main(argv: list[str]) -> int:
    try:
        found = measure(Path(argv[0]))
    except EdgeVLAError as error:
        print(f"error: {error}")
        return 1
    print(BENCH + json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Does the robot's half do on 64-bit ARM what it does here? Chunks of every policy, `inspect`, and a short deployment.

Two steps; the second wants no torch, and is run by another machine's Python (`make test-arm` has one, emulated):

    .venv-test/bin/python benchmarks/arm_runs.py write WORK       # exports every policy's recorded checkpoint, runs it
    build/arm64/venv/bin/python benchmarks/arm_runs.py read WORK  # runs them again, and compares

`read` prints a line per thing and ends with 1 when one failed: chunks further than 1e-5 of a joint's range from
`write`'s, a bundle that is not sound, a simulated arm that was not driven. The arm is a slow one: an emulated computer
keeps 20 Hz.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.bundle import load_bundle
from edgevla.predictor import RtcInputs, blank_observation
from edgevla.robots.profile import PROFILES_DIR
from edgevla.runner import BundlePolicy
from edgevla.types import Observation

ROOT = Path(__file__).parents[1]
SHARE = 1e-5
"""Of a joint's range: what may lie between two processors. An export's tolerance against torch is the same."""

SLOW = {
    "servo_hz": 20,
    "record_hz": 10,
    "stale_hold_ms": 1000,
    "stale_hold_ticks": 20,
    "stale_fail_ms": 20000,
    "lease_ms": 2000,
}
"""An SO-101 that waits for a computer as slow as an emulated one, which shares its cores with the emulated servos."""

PATIENT = """
import sys
from edgevla.cli import main
from edgevla.launch import supervisor
supervisor.ROBOT_READY_S = supervisor.CAMERAS_READY_S = supervisor.EMULATOR_READY_S = 300.0
sys.exit(main(sys.argv[1:]))
"""
"""`edgevla`, which waits longer for its processes: emulated ones take seconds to begin, on a busy machine a minute."""


# -- here ---------------------------------------------------------------------------------------------------------


def write(work: Path) -> int:
    from edgevla.export.build import export_checkpoint
    from edgevla.export.options import ExportOptions
    from edgevla.train.policies import POLICIES

    options = ExportOptions(fps=30, joint_units="raw", n_samples=2, n_timed=1)
    for name in POLICIES:
        bundle = work / "bundles" / name
        if not bundle.exists():
            export_checkpoint(ROOT / "tests/fixtures/goldens" / name / "checkpoint", bundle, options)
    np.savez(work / "chunks.npz", **{name: chunks(work / "bundles" / name) for name in POLICIES})
    if not (work / "arm").exists():
        sys.path.insert(0, str(ROOT / "tests" / "runtime"))
        from deployment_kit import make_bundle

        make_bundle(work / "arm", fps=10.0)
    (work / "slow.toml").write_text(slow_profile())
    return 0


def slow_profile() -> str:
    lines = (PROFILES_DIR / "so101.toml").read_text().splitlines()
    for key, value in SLOW.items():
        (at,) = (i for i, line in enumerate(lines) if line.startswith(f"{key} ="))
        lines[at] = f"{key} = {value}"
    return "\n".join(lines) + "\n"


# -- on both ------------------------------------------------------------------------------------------------------


def chunks(folder: Path) -> np.ndarray:
    """Float32 (n, T, A): of noisy pictures and states, plain, then guided where the policy can be."""
    policy = BundlePolicy(load_bundle(folder), seed=1)
    rng = np.random.default_rng(0)
    seen = [drawn(policy, rng) for _ in range(3)]
    guided = [None, guidance(policy, rng)] if policy.has_rtc else [None]
    found = []
    for rtc in guided:
        policy.reset()
        for at, observation in enumerate(seen):
            past: Mapping[int, Observation] = {n: observation for n in policy.missing_moments(at)}
            found.append(policy.infer(observation, grid_index=at, past=past, rtc=rtc, chunk_seq=at).actions)
    return np.stack(found)


def drawn(policy: BundlePolicy, rng: np.random.Generator) -> Observation:
    blank = blank_observation(policy.manifest)
    images = {name: rng.integers(0, 256, image.shape, np.uint8) for name, image in blank.images.items()}
    state = blank.state + rng.uniform(-1, 1, blank.state.shape).astype(np.float32)
    return Observation(state, images, blank.environment_state, blank.task)


def guidance(policy: BundlePolicy, rng: np.random.Generator) -> RtcInputs:
    m = policy.manifest
    committed = rng.uniform(-1, 1, (m.chunk_size, *m.action.shape)).astype(np.float32)
    return RtcInputs(committed, np.linspace(1, 0, m.chunk_size, dtype=np.float32))


# -- there --------------------------------------------------------------------------------------------------------


def read(work: Path) -> int:
    print(f"Python {platform.python_version()} on {platform.machine()}")
    recorded = np.load(work / "chunks.npz")
    tasks: list[tuple[str, Any]] = [
        (f"{n}: chunks", lambda n=n: compared(work, n, recorded[n])) for n in recorded
    ]
    tasks += [(f"{name}: inspect", lambda name=name: inspected(work / "bundles" / name)) for name in recorded]
    tasks.append(("deploy --sim", lambda: driven(work)))
    n_failed = 0
    for title, task in tasks:
        try:
            print(f"ok      {title}: {task()}", flush=True)
        except Exception as error:
            n_failed += 1
            print(f"FAILED  {title}: {error}", flush=True)
    print(f"{len(tasks) - n_failed} passed, {n_failed} failed")
    return int(n_failed > 0)


def compared(work: Path, name: str, theirs: np.ndarray) -> str:
    folder = work / "bundles" / name
    actions = load_bundle(folder).manifest.parity.actions
    off = np.abs(chunks(folder) - theirs).max(axis=(0, 1)) / np.asarray(actions.range_per_joint)
    if not off.max() <= SHARE:  # NaN is neither
        raise ValueError(f"{off.max():.1e} of a joint's range away, more than {SHARE:g}")
    return f"{len(theirs)} within {off.max():.1e} of a joint's range"


def edgevla(*words: object) -> str:
    command = [sys.executable, "-c", PATIENT, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode != 0:
        raise ValueError(f"edgevla {words[0]} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout


def inspected(bundle: Path) -> str:
    return edgevla("inspect", bundle).strip().splitlines()[-1]


def driven(work: Path) -> str:
    """Once more where it failed, as tests are: on a shared machine a neighbour may have taken the core."""
    try:
        return deployed(work)
    except ValueError as error:
        print(f"RERUN   deploy --sim: {error}", flush=True)
        return deployed(work)


def deployed(work: Path) -> str:
    words = ("deploy", work / "arm", "--robot", work / "slow.toml", "--sim", "--duration", "4", "--json")
    summary = json.loads(edgevla(*words, "--log", work / "log"))
    if summary["inferences"] < 2 or summary["failure"] is not None:
        raise ValueError(f"{summary['inferences']} inferences, failure: {summary['failure']}")
    return f"{summary['inferences']} inferences"


if __name__ == "__main__":
    verb, folder = sys.argv[1], Path(sys.argv[2])
    sys.exit(write(folder) if verb == "write" else read(folder))

"""Speed on the CPU against LeRobot 0.4.4's eager policies, at published sizes, one thread, by turns in one run.

    python benchmarks/lerobot_speed.py WORK --lerobot PYTHON [--policies act,diffusion,smolvla] [--rounds 12]

Weights are random, LeRobot loads the very checkpoint that `edgevla export` is given, and its parameters are counted.
Both sides stay loaded on the same core; each round is a chunk of LeRobot's, one of fp32 and one of int8. LeRobot's
side is its network alone (`lerobot_infers.py`), ours all of `BundlePolicy.infer`, from pixels and text to robot units.
WORK keeps checkpoints and bundles: what is there is not made again. PYTHON: of an environment with
`lerobot[smolvla]==0.4.4`. Not part of the tests. Results: benchmarks/results/lerobot_speed.md.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from result_kit import conditions

RESULTS = Path(__file__).parent / "results" / "lerobot_speed.md"
POLICIES = ("act", "diffusion", "smolvla", "xvla")
PRECISIONS = ("fp32", "int8")
SIZES = {"diffusion": (96, 96)}
OTHER: dict[str, dict[str, Any]] = {
    "diffusion": {"noise_scheduler_type": "DDIM", "num_inference_steps": 10},
}
WHAT = {
    "act": "ACT, 2 x 480x640, chunk 100",
    "diffusion": "Diffusion, 2 x 96x96, two moments, DDIM 10",
    "smolvla": "SmolVLA, 2 x 480x640, 10 steps",
    "xvla": "X-VLA, 2 x 480x640, 10 steps",
}
ROUNDS, FPS = 12, 30
TASK = "pick up the cube"
HEAD = """# Against LeRobot 0.4.4 on a CPU

{conditions}
One thread, all on one core, by turns: medians of {rounds} chunks, and the ratio to LeRobot of the same round, median,
least and most. Random weights at published dimensions. Errors: `edgevla export`'s own, of the joint where they are
most, as a share of its range.

| policy | parameters | LeRobot, ms | fp32, ms | ratio | int8, ms | ratio | int8: 99 % within | stays float32 | peak MB |
| --- | ---: | ---: | ---: | --- | ---: | --- | ---: | --- | --- |
"""


class Side:
    """A process that infers a chunk for each line."""

    def __init__(self, command: list[str]) -> None:
        self._command = " ".join(command)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.n_parameters = int(self._said())

    def chunk_ms(self) -> float:
        self._ask("go\n")
        return float(self._said())

    def end(self) -> float:
        """The most memory that it held, MB."""
        self._ask("\n")
        peak = float(self._said())
        self.process.wait()
        return peak

    def _ask(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def _said(self) -> str:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"it has ended; run it by hand to see why: {self._command}")
        return line


def serve(bundle: Path) -> None:
    """Our side: as `lerobot_infers.py` speaks."""
    from edgevla.bundle import load_bundle
    from edgevla.engines import EngineOptions
    from edgevla.predictor import blank_observation
    from edgevla.runner import BundlePolicy
    from edgevla.types import Observation

    policy = BundlePolicy(load_bundle(bundle), options=EngineOptions(threads=1))
    blank, rng = blank_observation(policy.manifest), np.random.default_rng(0)
    images = {k: rng.integers(0, 256, x.shape, dtype=np.uint8) for k, x in blank.images.items()}
    seen = Observation(state=blank.state, images=images, task=TASK)

    def infer(grid: int) -> None:
        past = dict.fromkeys(policy.missing_moments(grid), seen)
        policy.infer(seen, grid_index=grid, past=past, chunk_seq=0)

    infer(0)
    print(0, flush=True)
    grid = 0
    while sys.stdin.readline().strip():
        grid += policy.manifest.chunk_size
        began = time.perf_counter()
        infer(grid)
        print(1e3 * (time.perf_counter() - began), flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, flush=True)


def write_frames(folder: Path, size: tuple[int, int]) -> None:
    """What int8 is calibrated on: three seconds of coloured noise that drifts, and a state that wanders."""
    import cv2
    from real_sizes import CAMERAS

    from edgevla.dataset.writer import DatasetWriter

    names = [f"{name}.pos" for name in "abcdef"]
    features: dict[str, dict[str, Any]] = {
        name: {"dtype": "video", "shape": (*size, 3), "names": ["height", "width", "channels"]}
        for name in CAMERAS
    }
    for name in ("observation.state", "action"):
        features[name] = {"dtype": "float32", "shape": (6,), "names": names}
    rng = np.random.default_rng(0)
    height, width = size
    with DatasetWriter(folder, fps=FPS, features=features) as writer:
        for _ in range(3):
            scenes = [
                cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (width + 4 * FPS, height))
                for _ in CAMERAS
            ]
            state = rng.normal(size=6)
            for i in range(FPS):
                state = state + rng.normal(size=6) / 10
                seen = {name: x[:, 4 * i : 4 * i + width] for name, x in zip(CAMERAS, scenes, strict=True)}
                row = {"observation.state": state.astype(np.float32), "action": state.astype(np.float32)}
                writer.add_frame({**seen, **row}, TASK)
            writer.save_episode()


def bundles(kind: str, work: Path) -> dict[str, Path]:
    """By precision; made where they are not there yet."""
    import real_sizes

    folder, frames = work / kind / "policy", work / kind / "frames"
    size = SIZES.get(kind, real_sizes.SIZE)
    if not (folder / "model.safetensors").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        real_sizes.build(kind, folder, "float32", OTHER.get(kind), size)
    if not frames.exists():
        write_frames(frames, size)
    made = {precision: work / kind / precision for precision in PRECISIONS}
    for precision, bundle in made.items():
        if not (bundle / "manifest.json").exists():
            words = ["export", str(folder), "-o", str(bundle), "--precision", precision]
            words += ["--dataset", str(frames), "--joint-units", "raw"]
            # Random weights are larger than trained ones; float32 then differs by 1.5 of 100,000 where 1 is allowed.
            words += ["--allow-parity-failure"] if precision == "fp32" else []
            subprocess.run([sys.executable, "-m", "edgevla", *words], check=True)
    return made


def row(kind: str, args: argparse.Namespace) -> str:
    from edgevla.bundle import load_bundle
    from edgevla.export.verdict import kept_words

    made = bundles(kind, args.work)
    theirs = [
        args.lerobot,
        str(Path(__file__).with_name("lerobot_infers.py")),
        str(args.work / kind / "policy"),
    ]
    sides = [Side(theirs)]
    sides += [Side([sys.executable, __file__, str(bundle), "--serve"]) for bundle in made.values()]
    laps = np.array([[side.chunk_ms() for side in sides] for _ in range(args.rounds)])
    peaks = [side.end() for side in sides]
    manifest = load_bundle(made["int8"], verify=False).manifest
    assert manifest.parity is not None
    actions = manifest.parity.actions
    assert actions.p99_abs_per_joint is not None
    assert actions.range_per_joint is not None
    off = max(a / r for a, r in zip(actions.p99_abs_per_joint, actions.range_per_joint, strict=True))
    ratios = laps[:, :1] / laps
    middle = np.median(laps, axis=0)
    cells = [WHAT[kind], f"{sides[0].n_parameters / 1e6:.0f} M", f"{middle[0]:.0f}"]
    for i in (1, 2):
        low, high = ratios[:, i].min(), ratios[:, i].max()
        cells += [f"{middle[i]:.0f}", f"**{np.median(ratios[:, i]):.2f}** ({low:.2f} to {high:.2f})"]
    kept = kept_words(manifest) if manifest.lowered is not None else "-"
    cells += [f"{100 * off:.2g} %", kept, ", ".join(f"{peak:.0f}" for peak in peaks)]
    return "| " + " | ".join(cells) + " |\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--lerobot", metavar="PYTHON")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.work)
        return 0
    if args.lerobot is None:
        parser.error("--lerobot PYTHON: of an environment with lerobot[smolvla]==0.4.4")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # what is started inherits it
    rows = ""
    for kind in args.policies.split(","):
        rows += (line := row(kind, args))
        print(line, end="", flush=True)
    told = conditions(__file__, args.rounds < ROUNDS).replace(str(args.work), "WORK")
    RESULTS.write_text(HEAD.format(conditions=told, rounds=args.rounds) + rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

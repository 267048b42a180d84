"""CPU time of one training item, part by part, beside LeRobot's figures. Not a test: run it on a quiet machine.

    python benchmarks/dataset_items.py [DATASET]          default: tests/fixtures/datasets/so101_v30

LeRobot 0.4.4 takes 7.0 ms for an item of so101_v30 (480x640 + 240x320 AV1, chunk of 50, one thread, torchcodec; its
PyAV backend 12.7 ms), on another machine of the same class: compare orders of magnitude, not digits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from edgevla.dataset import Dataset, open_dataset
from edgevla.train.augment import Augmentation
from edgevla.train.cache import FrameCache
from edgevla.train.data import TrainingData, dataset_features
from edgevla.train.fresh import fresh_config
from edgevla.train.loader import Loader
from edgevla.train.policies import policy_class

DEFAULT = Path(__file__).parents[1] / "tests/fixtures/datasets/so101_v30"


def ms_each(work: Callable[[], object], n: int) -> tuple[float, float]:
    """(CPU, wall) ms for each of n things that `work` does; best of three."""
    best = (np.inf, np.inf)
    for _ in range(3):
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        spent = (time.process_time() - cpu, time.perf_counter() - wall)
        best = min(best, (spent[0] / n * 1e3, spent[1] / n * 1e3))
    return best


def say(what: str, spent: tuple[float, float], note: str = "") -> None:
    print(f"{what:<44}{spent[0]:>9.3f}{spent[1]:>9.3f}  {note}")


def frames(dataset: Dataset, n: int) -> None:
    rows = np.random.default_rng(0).integers(0, dataset.n_frames, n)
    for camera in dataset.cameras:
        height, width = dataset.camera_size(camera)
        name = f"frame {width}x{height}"

        def one_by_one(camera: str = camera) -> None:
            for row in rows:
                dataset.frame(camera, int(row))

        say(f"{name}, random", ms_each(one_by_one, n))
        blocks = np.arange(dataset.n_frames)[: 16 * (dataset.n_frames // 16)].reshape(-1, 16)

        def in_order(camera: str = camera, blocks: np.ndarray = blocks) -> None:
            for block in blocks:
                dataset.frames(camera, block)

        say(f"{name}, in order", ms_each(in_order, blocks.size))


def items(dataset: Dataset, batch_size: int, n_batches: int) -> None:
    config = fresh_config(
        policy_class("act").Config, dataset_features(dataset), {"chunk_size": 50, "n_action_steps": 50}
    )
    cache = FrameCache(dataset, {c: dataset.camera_size(c) for c in dataset.cameras}, None)
    cases = {
        "item, decoded each time": TrainingData(dataset, config),
        "item, frames cached": TrainingData(dataset, config, cache=cache),
        "item, cached and augmented": TrainingData(dataset, config, cache=cache, augmentation=Augmentation()),
    }
    cache.fill()
    for name, data in cases.items():
        for n_threads in (0, 2):
            loader = Loader(data, batch_size, 0, n_threads=n_threads)

            def run(loader: Loader = loader) -> None:
                batches = loader.batches()
                for _ in range(n_batches):
                    next(batches)
                batches.close()  # type: ignore[attr-defined]

            say(
                f"{name}, {n_threads} threads",
                ms_each(run, n_batches * batch_size),
                "LeRobot: 7.0 (one thread)",
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", nargs="?", default=str(DEFAULT))
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'ms each (best of 3)':<44}{'CPU':>9}{'wall':>9}")
    say("opening", ms_each(lambda: open_dataset(args.dataset), 1))
    dataset = open_dataset(args.dataset)
    frames(dataset, 100)
    items(dataset, args.batch_size, 15)


if __name__ == "__main__":
    main()

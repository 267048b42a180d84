"""A bundle answers one observation: what `edgevla deploy` asks of it, without robot, bus or processes.

    python examples/infer.py bundles/act

Blank pictures and joints at zero are an observation that no camera gave; put yours in their place.
"""

from __future__ import annotations

import sys

import numpy as np

from edgevla import BundlePolicy, Observation, load_bundle


def main(folder: str) -> None:
    policy = BundlePolicy(load_bundle(folder))
    features = policy.manifest.features

    state = np.zeros(
        features["observation.state"].shape, np.float32
    )  # joints as the manifest names them, in its units
    images = {
        name: np.zeros(features[name].shape, np.uint8) for name in policy.manifest.cameras
    }  # (H, W, 3) RGB
    chunk = policy.infer(Observation(state, images, task="reach for the cube"))
    print(chunk.actions.shape, chunk.actions[0])  # (T, A) robot units; action 0 belongs to this very moment


if __name__ == "__main__":
    main(sys.argv[1])

"""Several observations in one inference: each gets what it gets alone, and what is wrong with one touches no other."""

import numpy as np
import pytest

from edgevla.bundle import load_bundle
from edgevla.errors import BundleError
from edgevla.runner import Asked, BundlePolicy, RtcInputs
from edgevla.types import Observation

FRONT = "observation.images.front"
FOUR = {"min": 1, "max": 4}


def observation(seed, task=""):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (24, 32, 3), np.uint8)
    return Observation(rng.normal(0, 20, 6).astype(np.float32), {FRONT: image}, task=task)


def alone(policy, one, **options):
    policy.reset()
    return policy.infer(
        one.observation, grid_index=one.grid_index, past=one.past, rtc=one.rtc, chunk_seq=one.chunk_seq,
        seed=one.seed, **options,
    )  # fmt: skip


def check(policy, asked, **options):
    together = policy.infer_batch(asked, **options)
    for one, result in zip(asked, together, strict=True):
        single = alone(policy, one, **options)
        np.testing.assert_allclose(result.actions, single.actions, atol=1e-4)
        said = ("noise_seed", "chunk_seq", "n_steps", "is_guided", "grid_index")
        assert [getattr(result, s) for s in said] == [getattr(single, s) for s in said]
        assert set(result.timing_ns) == set(single.timing_ns)
    chunks = [result.actions for result in together]
    assert all(np.abs(a - b).max() > 0.1 for i, a in enumerate(chunks) for b in chunks[:i])


def test_own_observation_noise_task_and_guidance(make_bundle):
    policy = BundlePolicy(load_bundle(make_bundle("flow", batch=FOUR)))
    committed = np.full((10, 6), 50, np.float32)
    rtc = RtcInputs(committed, np.linspace(1, 0, 10, dtype=np.float32))
    asked = [
        Asked(observation(0, "go left"), 7, seed=1),
        Asked(observation(1, "go right"), 7, seed=2, rtc=rtc, grid_index=5),
        Asked(observation(0), 8),
    ]
    check(policy, asked)
    check(policy, asked[:2], n_steps=2)


def test_own_past(make_bundle):
    policy = BundlePolicy(load_bundle(make_bundle("history", batch=FOUR)))
    seen = [observation(i) for i in range(5)]
    asked = [
        Asked(seen[0], 0),
        Asked(seen[1], 1, 9, past={8: seen[2]}),
        Asked(seen[3], 2, 3, past={0: seen[4]}),
    ]
    check(policy, asked, settings={"stochastic": 0.0})


def test_what_is_wrong_with_one_stands_in_its_place(make_bundle):
    policy = BundlePolicy(load_bundle(make_bundle("flow", batch=FOUR)))
    sound, infinite = observation(0), np.full((10, 6), np.inf, np.float32)
    lost = Observation(sound.state, {}, task="go left")
    rtc = RtcInputs(infinite, np.ones(10, np.float32))
    asked = [Asked(lost, 0), Asked(sound, 1), Asked(sound, 2, rtc=rtc), Asked(observation(3), 3)]
    results = policy.infer_batch(asked)
    assert isinstance(results[0], BundleError)
    assert "is lost" in str(results[0])
    assert isinstance(results[2], BundleError)
    assert "not finite" in str(results[2])
    for i in (1, 3):
        np.testing.assert_allclose(results[i].actions, alone(policy, asked[i]).actions, atol=1e-4)
    assert isinstance(policy.infer_batch(asked[:1])[0], BundleError)
    with pytest.raises(BundleError, match="0 denoise steps"):
        policy.infer_batch(asked[1:2], n_steps=0)


def test_more_than_the_bundle_takes(make_bundle):
    policy = BundlePolicy(load_bundle(make_bundle("flow")))
    with pytest.raises(BundleError, match=r"2 observations for one inference .* --max-batch 2"):
        policy.infer_batch([Asked(observation(0), 0)] * 2)

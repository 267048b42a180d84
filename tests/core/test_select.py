"""One of several chunks for one observation: drawn together, chosen by what the arm is about to do, always the same."""

import numpy as np
import pytest

from edgevla.bundle import load_bundle
from edgevla.errors import BundleError, UsageError
from edgevla.execution import Async, Executor, execution_from
from edgevla.execution.select import nearest
from edgevla.launch.deployment import DeployOptions, chosen_execution, kinds_allowed
from edgevla.manifest import Manifest
from edgevla.robots.trials.closed_loop import ClosedLoop
from edgevla.runner import Asked, BundlePolicy, RtcInputs
from edgevla.seam_methods import seam_words
from edgevla.types import ActionChunk, Observation

FOUR = {"min": 1, "max": 4}
T, A = 10, 6


def observation():
    image = np.zeros((24, 32, 3), np.uint8)
    return Observation(np.full(A, 5.0, np.float32), {"observation.images.front": image}, task="go left")


def choice(target, select=4, weights=None):
    committed = np.full((T, A), target, np.float32)
    return RtcInputs(committed, np.ones(T, np.float32) if weights is None else weights, None, select)


def opened(folder, **options):
    return BundlePolicy(load_bundle(folder), **options)


def counted(policy):
    """Runs of each graph, and how many chunks each took."""
    runs = []
    for name, graph in policy.graphs.items():
        inner = graph.run
        graph.run = lambda inputs, inner=inner, name=name: (
            runs.append((name, len(next(iter(inputs.values()))))) or inner(inputs)
        )
    return runs


def test_chunks_are_drawn_together_from_one_look(make_bundle):
    policy = opened(make_bundle("flow", batch=FOUR))
    runs = counted(policy)
    policy.infer(observation(), rtc=choice(5.0), chunk_seq=3)
    assert runs == [("encode", 1)] + [("denoise", 4)] * 4 + [("decode", 4)]


@pytest.mark.parametrize("target", [-20.0, 5.0, 20.0])
def test_the_nearest_of_them_is_kept(make_bundle, target):
    """By the hand-made bundle's own arithmetic: three quarters of the way to the goal are left after each of 4 steps."""
    policy = opened(make_bundle("flow", batch=FOUR))
    draws = [
        np.random.Generator(np.random.PCG64(words)) for words in ([9, 3], *([9, 3, 0, k] for k in (1, 2, 3)))
    ]
    noise = np.stack([g.standard_normal((T, A), dtype=np.float32) for g in draws])
    chunks = 5.0 + 0.75**4 * (noise - 5.0)
    best = np.argmin(((chunks - target) ** 2).sum(axis=(1, 2)))
    kept = policy.infer(observation(), rtc=choice(target), chunk_seq=3, seed=9)
    np.testing.assert_allclose(kept.actions, chunks[best], atol=1e-4)
    assert not kept.is_guided


def test_it_is_the_same_every_time_and_another_with_another_seed(make_bundle):
    policy = opened(make_bundle("history", batch=FOUR))
    first, again, other = (
        policy.infer(observation(), rtc=choice(7.0), chunk_seq=2, seed=seed).actions for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    flow = opened(make_bundle("flow", "flow", batch=FOUR))
    first, again, other = (
        flow.infer(observation(), rtc=choice(7.0), chunk_seq=2, seed=seed).actions for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_with_nothing_committed_it_is_the_chunk_that_would_have_been_drawn_alone(make_bundle):
    policy = opened(make_bundle("flow", batch=FOUR))
    none = choice(0.0, weights=np.zeros(T, np.float32))
    runs = counted(policy)
    chosen = policy.infer(observation(), rtc=none, chunk_seq=3)
    assert ("denoise", 1) in runs
    np.testing.assert_array_equal(chosen.actions, policy.infer(observation(), chunk_seq=3).actions)


def test_the_warm_up_draws_as_many_as_the_rollout_will(make_bundle):
    policy = opened(make_bundle("flow", batch=FOUR), select=4)
    runs = counted(policy)
    policy.warm_up(2)
    assert runs.count(("denoise", 4)) == 8


def test_what_cannot_draw_several_says_what_to_export(make_bundle):
    single = make_bundle("flow")
    with pytest.raises(BundleError, match="cannot select one of 8 chunks: export it with --max-batch 8"):
        opened(single, select=8)
    with pytest.raises(BundleError, match="--max-batch 8"):
        opened(single).infer(observation(), rtc=choice(0.0))
    act = make_bundle("act", "act")
    with pytest.raises(BundleError, match="act draws no noise"):
        opened(act, select=8)
    shared = opened(make_bundle("flow", "four", batch=FOUR))
    (answer,) = shared.infer_batch([Asked(observation(), 0, rtc=choice(0.0))])
    assert "draws one chunk for each" in str(answer)


@pytest.mark.parametrize(
    ("kind", "batch", "given", "words"),
    [
        ("flow", 1, {"kind": "async", "select": 8}, "--select 8: .*export it with --max-batch 8"),
        ("flow", 4, {"kind": "async", "select": 8}, "export it with --max-batch 8"),
        ("act", 4, {"kind": "async", "select": 8}, "act draws no noise"),
        ("flow", 4, {"kind": "rtc", "select": 4}, "--select 4 has no effect on 'rtc': its chunks are guided"),
        ("flow", 4, {"kind": "sync", "select": 4}, "no effect on 'sync'.*choose --execution async"),
        ("flow", 4, {"kind": "ensemble", "select": 4}, "no effect on 'ensemble'"),
    ],
)
def test_a_deployment_is_told_before_anything_starts(make_bundle, kind, batch, given, words):
    manifest = load_bundle(make_bundle(kind)).manifest
    manifest = Manifest.from_json({**manifest.to_json(), "batch": {"min": 1, "max": batch}})
    with pytest.raises(UsageError, match=words):
        chosen_execution(manifest, DeployOptions("so101", execution=given))


def test_a_single_denoise_step_is_not_guided(make_bundle):
    m = load_bundle(make_bundle("flow")).manifest
    assert m.rtc.mode == "guided"
    rtc = {"kind": "rtc"}
    assert chosen_execution(m, DeployOptions("so101", execution=rtc, n_steps=2)).__class__.__name__ == "Rtc"
    with pytest.raises(UsageError, match="a single one it would throw too far; choose --execution async"):
        chosen_execution(m, DeployOptions("so101", execution=rtc, n_steps=1))
    assert "rtc" not in kinds_allowed(m, DeployOptions("so101", n_steps=1))


def test_guidance_fades_as_the_checkpoint_said_unless_a_person_says_otherwise(make_bundle):
    m = load_bundle(make_bundle("flow")).manifest
    m = Manifest.from_json({**m.to_json(), "rtc": {**m.to_json()["rtc"], "weights": "exp"}})
    asked = [{"kind": "rtc"}, {"kind": "rtc", "every": 3}, {"kind": "rtc", "weights": "ones"}]
    found = [chosen_execution(m, DeployOptions("so101", execution=execution)) for execution in asked]
    assert [execution.weights for execution in found] == ["exp", "exp", "ones"]


def test_a_fade_that_nobody_knows_is_refused_with_the_bundle(make_bundle):
    told = load_bundle(make_bundle("flow")).manifest.to_json()
    with pytest.raises(BundleError, match=r"weights.*'cubic'.*linear"):
        Manifest.from_json({**told, "rtc": {**told["rtc"], "weights": "cubic"}})


def test_one_line_says_what_a_bundle_can_do_at_seams_and_what_it_lacks(make_bundle):
    act = seam_words(load_bundle(make_bundle("act")).manifest)
    assert act.startswith("blend (--blend N); not select (act draws no noise")
    flow = load_bundle(make_bundle("flow", "flow", batch=FOUR)).manifest
    assert (
        "select (--execution async --select N), guided rtc (--execution rtc); not trained rtc"
        in seam_words(flow)
    )
    assert "not select (a policy server makes one chunk per request" in seam_words(flow, is_served=True)
    assert "\n" not in act + seam_words(flow)


# -- what is near -----------------------------------------------------------------------------------------------------


def test_rows_count_by_their_weights_and_joints_by_the_time_that_their_error_takes():
    drawn = np.zeros((2, 3, 2), np.float32)
    drawn[0, 0, 0], drawn[1, 2, 0] = 1.0, 5.0
    committed = np.zeros((3, 2), np.float32)
    assert nearest(drawn, committed, np.array([1, 0.5, 0]), None) == 1  # its error is where nothing counts
    assert nearest(drawn, committed, np.array([1, 1, 1]), None) == 0
    drawn = np.zeros((2, 3, 2), np.float32)
    drawn[0, :, 0], drawn[1, :, 1] = 5.0, 10.0
    assert nearest(drawn, committed, np.ones(3), None) == 0
    assert nearest(drawn, committed, np.ones(3), [10.0, 100.0]) == 1
    assert nearest(drawn, committed, np.ones(3), [0.0, 0.0]) in (0, 1)


def test_a_chunk_that_is_not_finite_is_never_the_nearest():
    drawn = np.stack([np.full((3, 2), np.nan), np.full((3, 2), 50.0)])
    assert nearest(drawn, np.zeros((3, 2)), np.ones(3), None) == 1
    assert nearest(drawn[:1], np.zeros((3, 2)), np.ones(3), None) == 0  # the runner refuses it


# -- asked for by the robot -------------------------------------------------------------------------------------------


def test_the_robot_tells_what_it_is_committed_to_and_weights_all_that_is_left_of_it():
    executor = Executor(
        Async(every=1, select=8), ticks_per_step=1, chunk_size=T, n_action_steps=T, n_joints=2, fps=30.0
    )
    assert not executor.committed(0, None)[1].any()
    executor.asked(1, 0)
    executor.receive(ActionChunk(np.ones((T, 2), np.float32), 0, 1), 1, 2, None)
    committed, weights, _ = executor.committed(4, None)
    np.testing.assert_array_equal(committed[:, 0], [1] * 6 + [0] * 4)
    np.testing.assert_array_equal(weights[:2], 1)  # the delay
    assert (np.diff(weights[1:6]) < 0).all()
    assert weights[5] > 0
    assert not weights[6:].any()
    assert execution_from({"kind": "async", "select": 8}) == Async(select=8)


def test_through_the_control_loop_a_policy_of_two_minds_stays_with_one():
    """Left or right by chance: alone it swings, with the nearest of 8 it goes one way."""
    rng = np.random.default_rng(0)

    def policy(seen, rtc=None):
        n = 1 if rtc is None else rtc[3]
        drawn = np.stack([np.full((30, 6), 15.0 + side, np.float32) for side in rng.choice([-1, 1], n)])
        return drawn[0] if rtc is None else drawn[nearest(drawn, *rtc[:2], None)]

    def reversals(execution):
        loop = ClosedLoop(policy, chunk_size=30, execution=execution, delay_ticks=8)
        loop.start()
        wanted = [state.wanted[0] for state in loop.run(1.5) if state.wanted is not None]
        with pytest.raises(UsageError, match="draws 1 per inference at most"):
            loop.command("set_execution", Async(select=2))
        return int((np.diff(wanted) != 0).sum())

    assert reversals(Async(every=1)) > 3
    assert reversals(Async(every=1, select=8)) == 0

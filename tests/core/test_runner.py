"""A bundle infers through real ONNX Runtime sessions, on graphs whose actions can be worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgevla.bundle import load_bundle
from edgevla.engines import EngineOptions, load_graph
from edgevla.errors import BundleError, EngineError, MissingExtraError
from edgevla.predictor import RtcInputs, described
from edgevla.runner import BundlePolicy
from edgevla.types import Observation

STATE = np.array([1, -2, 3, -4, 5, 60], np.float32)
MakeBundle = Callable[..., Path]


def observation(state: np.ndarray = STATE, light: int = 255, task: str = "") -> Observation:
    return Observation(state, {"observation.images.front": np.full((24, 32, 3), light, np.uint8)}, task=task)


def policy(folder: Path, **options: object) -> BundlePolicy:
    return BundlePolicy(load_bundle(folder), **options)  # type: ignore[arg-type]


def test_act_yields_its_chunk_from_encode(make_bundle: MakeBundle) -> None:
    result = policy(make_bundle("act")).infer(observation(light=51), grid_index=7)
    np.testing.assert_allclose(result.actions, STATE + 0.2 * np.arange(10)[:, None], rtol=1e-6)
    assert result.actions.dtype == np.float32
    assert result.grid_index == 7
    assert set(result.timing_ns) == {"prompt", "encode", "denoise", "decode"}
    assert result.n_steps == 0


def test_a_joint_that_never_moved_in_training_is_told_its_value_then(make_bundle: MakeBundle) -> None:
    """Live it reads a little off, which a policy would see as never before; the others are told as they are."""
    still = {"observation.state": [None, None, None, None, None, 60.0]}
    off = STATE + np.array([0, 0, 0, 0, 0, 0.001], np.float32)
    told = policy(make_bundle("act", trained_still=still)).infer(observation(off, light=0))
    np.testing.assert_array_equal(told.actions[0], STATE)
    live = policy(make_bundle("act", "live", trained_still=still, still_joints="live"))
    np.testing.assert_array_equal(live.infer(observation(off, light=0)).actions[0], off)
    plain = policy(make_bundle("act", "plain"))
    np.testing.assert_array_equal(plain.infer(observation(off, light=0)).actions[0], off)


def test_the_past_is_told_so_too(make_bundle: MakeBundle) -> None:
    still = {"observation.state": [1.0, None, None, None, None, None]}
    history = policy(make_bundle("history", trained_still=still))
    past = {6: observation(STATE + 2)}
    actions = history.infer(observation(), grid_index=7, past=past).actions[0]
    np.testing.assert_allclose(actions, [1.0, *(STATE + 2)[1:]], rtol=1e-6)


def test_a_state_that_is_not_finite_is_refused_even_where_it_never_moved(make_bundle: MakeBundle) -> None:
    still = {"observation.state": [None, None, None, None, None, 60.0]}
    lost = STATE + np.array([0, 0, 0, 0, 0, np.nan], np.float32)
    with pytest.raises(BundleError, match="not finite"):
        policy(make_bundle("act", trained_still=still)).infer(observation(lost))


def test_a_flow_policy_walks_its_schedule_from_seeded_noise(make_bundle: MakeBundle) -> None:
    folder = make_bundle("flow")
    one = policy(folder, seed=3)
    np.testing.assert_allclose(
        one.infer(observation(), n_steps=1).actions, np.tile(STATE, (10, 1)), atol=1e-5
    )
    four = [one.infer(observation(), chunk_seq=5).actions for _ in range(2)]
    np.testing.assert_array_equal(four[0], four[1])
    assert np.abs(one.infer(observation(), chunk_seq=6).actions - four[0]).max() > 0.01
    np.testing.assert_array_equal(policy(folder, seed=3).infer(observation(), chunk_seq=5).actions, four[0])
    with pytest.raises(BundleError, match="101 denoise steps"):
        one.infer(observation(), n_steps=101)


def test_rtc_pulls_towards_what_was_committed_and_zero_weights_are_the_plain_step(
    make_bundle: MakeBundle,
) -> None:
    runs = policy(make_bundle("flow"))
    plain = runs.infer(observation(), chunk_seq=0)
    committed = np.full((4, 6), 9.0, np.float32)  # the old chunk's rest may be shorter than a chunk
    zero = runs.infer(observation(), chunk_seq=0, rtc=RtcInputs(committed, np.zeros(10, np.float32)))
    np.testing.assert_array_equal(zero.actions, plain.actions)
    weights = np.array([1, 1, 0, 0] + [1] * 6, np.float32)
    guided = runs.infer(observation(), n_steps=1, rtc=RtcInputs(committed, weights))
    np.testing.assert_allclose(guided.actions[:2], 9, atol=1e-5)
    np.testing.assert_allclose(guided.actions[2:], np.tile(STATE, (8, 1)), atol=1e-5)
    assert guided.is_guided
    assert not plain.is_guided


def test_a_policy_without_rtc_says_so(make_bundle: MakeBundle) -> None:
    with pytest.raises(BundleError, match="act has no real-time chunking"):
        policy(make_bundle("act")).infer(observation(), rtc=RtcInputs(np.zeros((10, 6)), np.zeros(10)))


def test_history_is_kept_by_grid_moment(make_bundle: MakeBundle) -> None:
    runs = policy(make_bundle("history"))
    states = [STATE + 10 * n for n in range(20)]

    def oldest_used(n: int, **options: object) -> float:
        return float(runs.infer(observation(states[n]), grid_index=n, **options).actions[0, 0] - STATE[0])  # type: ignore[arg-type]

    assert oldest_used(0) == 0  # no past yet: the oldest is repeated
    assert oldest_used(1) == 0
    assert runs.missing_moments(2) == []
    assert oldest_used(2) == 10
    assert runs.missing_moments(7) == [6]
    assert oldest_used(7) == 70  # a gap longer than the history starts over
    assert oldest_used(10, past={9: observation(states[9])}) == 90  # the node's ring fills the hole
    runs.reset()
    assert oldest_used(11) == 110


def test_settings_are_checked(make_bundle: MakeBundle) -> None:
    runs = policy(make_bundle("history"))
    runs.infer(observation(), settings={"stochastic": 0.0})
    with pytest.raises(BundleError, match=r"no setting 'stochastik'; did you mean 'stochastic'"):
        runs.infer(observation(), settings={"stochastik": 0.0})
    with pytest.raises(BundleError, match=r"is 0.5, allowed: 0.0, 1.0"):
        runs.infer(observation(), settings={"stochastic": 0.5})


def test_input_that_does_not_fit_is_named(make_bundle: MakeBundle) -> None:
    runs = policy(make_bundle("act"))
    with pytest.raises(BundleError, match=r"observation.state must have the shape \(6,\), got \(5,\)"):
        runs.infer(observation(STATE[:5]))
    with pytest.raises(BundleError, match="not finite"):
        runs.infer(observation(STATE * np.nan))
    with pytest.raises(BundleError, match=r"gave uint8 \(24, 31, 3\)"):
        runs.infer(Observation(STATE, {"observation.images.front": np.zeros((24, 31, 3), np.uint8)}))
    with pytest.raises(BundleError, match=r"camera 'observation.images.front' is lost and act cannot"):
        runs.infer(Observation(STATE))


def test_a_lost_camera_is_told_to_the_graph_only_where_allowed(make_bundle: MakeBundle) -> None:
    folder = make_bundle("flow")
    with pytest.raises(BundleError, match="--allow-lost-cameras"):
        policy(folder).infer(Observation(STATE))
    lost = policy(folder, allow_lost_cameras=True).infer(Observation(STATE), n_steps=1)
    np.testing.assert_allclose(lost.actions[0], STATE, atol=1e-5)


def test_a_language_policy_takes_the_default_task_or_demands_one(make_bundle: MakeBundle) -> None:
    folder = make_bundle("flow")
    policy(folder).infer(observation())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["prompt"]["default_task"] = None
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="needs a task"):
        policy(folder).infer(observation())


def test_warm_up_runs_and_forgets(make_bundle: MakeBundle) -> None:
    runs = policy(make_bundle("history"))
    assert len(runs.warm_up(3)) == 3
    assert runs.missing_moments(3) == [2]
    assert "files" not in described(runs.manifest)


# -- engines ----------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_an_error(make_bundle: MakeBundle) -> None:
    folder = make_bundle("act")
    with pytest.raises(EngineError, match=r"no cuda provider|cuda was asked for"):
        policy(folder, provider="cuda")
    with pytest.raises((EngineError, MissingExtraError), match=r"tensorrt|CUDA"):
        policy(folder, provider="tensorrt")
    with pytest.raises(EngineError, match=r"'cdua' is unknown; did you mean 'cuda'"):
        policy(folder, provider="cdua")


def test_the_silent_step_down_to_the_cpu_is_noticed(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, settings, providers: real(path, settings, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(EngineError, match=r"runs encode.onnx on CPUExecutionProvider"):
        policy(make_bundle("act"), provider="cuda")


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(make_bundle: MakeBundle) -> None:
    folder = make_bundle("act")
    m = load_bundle(folder).manifest
    with pytest.raises(BundleError, match=r"decode.onnx has the inputs x; the manifest says"):
        load_graph(folder / "decode.onnx", m.graphs["encode"])
    (folder / "decode.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"cannot open .*decode.onnx"):
        load_graph(folder / "decode.onnx", m.graphs["decode"])


def test_quantised_files_belong_to_their_target(make_bundle: MakeBundle) -> None:
    folder = make_bundle("act")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["target"]["precision"]["encode"] = "int8"
    manifest["target"]["provider"] = "cuda"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="quantised for cuda and cannot run on cpu"):
        policy(folder, provider="cpu")


def test_weights_may_stay_mapped(make_bundle: MakeBundle) -> None:
    folder = make_bundle("act")
    options = EngineOptions(threads=1, prepack=False)
    np.testing.assert_array_equal(
        policy(folder, options=options).infer(observation()).actions,
        policy(folder).infer(observation()).actions,
    )
    assert options.n_threads == 1
    assert EngineOptions().n_threads >= 1

"""Every graph of the golden checkpoints: traced, compared with torch at every denoise step, halved.

That TensorRT takes them is tested with every policy's, in tests/export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgevla.engines import load_graph
from edgevla.export.half import is_half_context, to_half
from edgevla.export.trace import save, trace
from edgevla.graph import Graph
from edgevla.policy import Sampler, initial_noise
from edgevla.train.checkpoint import load_policy
from edgevla.train.policies.vla import FlowVla

GOLDENS = Path(__file__).parents[1] / "fixtures" / "goldens"
KINDS = ["smolvla", "pi0", "pi05"]


class Exported:
    """A golden checkpoint with its graphs in a folder."""

    def __init__(self, kind: str, folder: Path) -> None:
        policy = load_policy(GOLDENS / kind / "checkpoint")
        assert isinstance(policy, FlowVla)
        if kind != "smolvla":
            policy.set_cameras({}, absent=["observation.images.right_wrist"])
        self.policy, self.folder, self.specs = policy, folder, policy.graphs()
        for name, spec in self.specs.items():
            save(trace(policy, name, spec), folder, name)

    def sampler(self) -> Sampler:
        graphs: dict[str, Graph] = {
            n: load_graph(self.folder / f"{n}.onnx", s) for n, s in self.specs.items()
        }
        return Sampler(graphs, self.policy.schedule)

    def values(self, seed: int, *, guided: bool) -> dict[str, np.ndarray]:
        """One random observation by source; the prompt is partly padding."""
        rng = np.random.default_rng(seed)
        values: dict[str, np.ndarray] = {}
        for spec in self.specs["encode"].inputs:
            source = spec.source or ""
            if spec.dtype == "uint8":
                values[source] = rng.integers(0, 256, spec.shape, dtype=np.uint8)
            elif spec.dtype == "bool":
                values[source] = np.ones(spec.shape, np.bool_)
            elif spec.dtype == "int64":
                values[source] = rng.integers(0, 300, spec.shape)
            else:
                values[source] = rng.standard_normal(spec.shape, dtype=np.float32)
        values["prompt:mask"][:, 15:] = False
        config = self.policy.config
        length, dim = config.chunk_size, config.action_dim
        noise = torch.from_numpy(rng.standard_normal((1, *self.policy.sample_shape), dtype=np.float32))
        committed = self.policy.decode(noise, {}).numpy()
        weights = np.linspace(1, 0, length, dtype=np.float32) if guided else np.zeros(length, np.float32)
        assert committed.shape == (1, length, dim)
        rtc = {
            "rtc:committed": committed,
            "rtc:weights": weights[None],
            "rtc:max_guidance": np.array([10.0], np.float32),
        }
        return {**values, **rtc}


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(request.param, tmp_path_factory.mktemp(f"graphs-{request.param}"))


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
def test_every_step_equals_torch(exported: Exported, guided: bool) -> None:
    values = exported.values(1, guided=guided)
    noise = initial_noise((1, *exported.policy.sample_shape), seed=3, chunk_seq=0)
    ours: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    with torch.no_grad():
        expected = exported.policy.sample(
            [values], noise=torch.from_numpy(noise), on_step=lambda _, x: theirs.append(x.numpy())
        )
    actions = exported.sampler().sample([values], noise=noise, on_step=lambda _, x: ours.append(x))
    assert len(ours) == exported.policy.config.denoise_steps
    # Guidance takes the velocity's rounding up to eleven times.
    atol = 1e-3 if guided else 1e-4
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4, err_msg=f"step {step}")
    np.testing.assert_allclose(actions, expected.numpy(), atol=atol, rtol=1e-4)


def test_zero_weights_in_the_graph_ignore_what_is_committed(exported: Exported) -> None:
    sampler, values = exported.sampler(), exported.values(2, guided=False)
    noise = initial_noise((1, *exported.policy.sample_shape), seed=3, chunk_seq=0)
    context = sampler.encode(values)
    plain = sampler.solve(context, values, noise=noise)
    other = sampler.solve(context, {**values, "rtc:committed": values["rtc:committed"] * 50 + 9}, noise=noise)
    assert np.array_equal(plain, other)


def test_a_masked_camera_in_the_graph_may_show_anything(exported: Exported) -> None:
    sampler, values = exported.sampler(), exported.values(4, guided=False)
    values["camera_present"][0, 1] = False
    camera = [s for s in values if s.startswith("camera:")][1]
    noise = initial_noise((1, *exported.policy.sample_shape), seed=3, chunk_seq=0)
    black = sampler.sample([{**values, camera: np.zeros_like(values[camera])}], noise=noise)
    assert np.array_equal(sampler.sample([values], noise=noise), black)


@pytest.mark.parametrize("n_steps", [1, 10])
def test_step_count_is_free(exported: Exported, n_steps: int) -> None:
    values = exported.values(5, guided=False)
    noise = initial_noise((1, *exported.policy.sample_shape), seed=3, chunk_seq=0)
    got = exported.sampler().sample([values], noise=noise, n_steps=n_steps)
    with torch.no_grad():
        expected = exported.policy.sample([values], noise=torch.from_numpy(noise), n_steps=n_steps)
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-4, rtol=1e-4)


def test_half_graphs_stay_close(exported: Exported, tmp_path: Path) -> None:
    """Half weights, float32 where it is delicate: within half a percent of the actions' spread over a whole chunk."""
    graphs: dict[str, Graph] = {}
    for name, spec in exported.specs.items():
        model = ir.load(exported.folder / f"{name}.onnx")
        context = {s.name for s in exported.specs["encode"].outputs if is_half_context(s.shape, s.dtype)}
        if name in ("encode", "denoise"):
            inputs = [i.name for i in spec.inputs if (i.source or "").removeprefix("context:") in context]
            to_half(model, inputs, [o.name for o in spec.outputs if o.name in context])
            spec = half_spec(spec, set(context))
        save(model, tmp_path, name)
        graphs[name] = load_graph(tmp_path / f"{name}.onnx", spec)
    values = exported.values(6, guided=False)
    noise = initial_noise((1, *exported.policy.sample_shape), seed=3, chunk_seq=0)
    half = Sampler(graphs, exported.policy.schedule).sample([values], noise=noise)
    full = exported.sampler().sample([values], noise=noise)
    spread = full.std(axis=1, keepdims=True)
    assert float(np.abs((half - full) / spread).max()) < 0.05
    assert float(np.sqrt(np.mean(((half - full) / spread) ** 2))) < 0.005


def half_spec(spec: Any, names: set[str]) -> Any:
    import dataclasses

    def change(tensors: Any) -> Any:
        return tuple(dataclasses.replace(t, dtype="float16") if t.name in names else t for t in tensors)

    return dataclasses.replace(spec, inputs=change(spec.inputs), outputs=change(spec.outputs))

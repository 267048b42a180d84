"""Every policy that exists exports from its published layout: graphs equal torch at every step, several observations
in one inference are each as alone, TensorRT takes them.

Checkpoints are the recorded ones (tiny, random weights, real layout). A policy joins this list by existing. All bundles
here take batches; those of tests/story take none.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgevla.bundle import load_bundle
from edgevla.export import trt_check
from edgevla.export.batches import compare_batches
from edgevla.export.build import Exported, export_checkpoint
from edgevla.export.half import HALF, HEAVY, to_half
from edgevla.export.options import ExportOptions
from edgevla.runner import BundlePolicy
from edgevla.train.checkpoint import load_policy
from edgevla.train.policies import POLICIES

MOST = 3
GOLDENS = Path(__file__).parents[1] / "fixtures" / "goldens"


@pytest.fixture(scope="module", params=POLICIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The bundle of one recorded checkpoint; parity is checked by the export itself."""
    checkpoint = GOLDENS / request.param / "checkpoint"
    options = ExportOptions(fps=30, joint_units="raw", n_samples=4, n_timed=2, max_batch=MOST)
    return export_checkpoint(checkpoint, tmp_path_factory.mktemp(request.param) / "bundle", options)


def test_the_graphs_compute_what_torch_computes(exported: Exported) -> None:
    parity = exported.bundle.manifest.parity
    assert parity is not None
    assert parity.passed
    schedule = exported.bundle.manifest.schedule
    if schedule is not None:
        per_step = parity.stages["denoise"].per_step
        assert per_step is not None
        assert len(per_step) == schedule.n_steps
    # Chunks that ignored what they see would agree too.
    assert np.ptp(exported.comparison.exported, axis=0).max() > 0


def test_several_observations_in_one_inference_are_each_as_alone(exported: Exported) -> None:
    """The export's own word for it, and that it can be wrong: with its noise taken from another, a chunk is another."""
    batch = exported.bundle.manifest.parity.batch  # type: ignore[union-attr]
    assert batch is not None
    assert (batch.size, batch.passed) == (MOST, True)
    assert exported.bundle.manifest.batch.max == MOST
    alone = np.roll(exported.comparison.exported, 1, axis=0)
    policy = load_policy(GOLDENS / exported.bundle.manifest.policy / "checkpoint")
    runner = BundlePolicy(load_bundle(exported.bundle.folder))
    assert not compare_batches(policy, runner, exported.comparison.samples, alone).passed


def test_the_bundle_says_what_it_is(exported: Exported) -> None:
    manifest = load_bundle(exported.bundle.folder).manifest
    config = json.loads((GOLDENS / manifest.policy / "checkpoint/config.json").read_text())
    assert manifest.policy == config["type"]
    cameras = [n for n, f in config["input_features"].items() if f["type"] == "VISUAL"]
    assert set(cameras) <= set(manifest.features)
    assert manifest.latency is not None
    assert (exported.bundle.folder / "report.html").is_file()
    assert (manifest.prompt is not None) == (manifest.policy in ("smolvla", "pi0", "pi05", "xvla", "groot"))


def test_the_bundle_runs_from_its_folder_alone(exported: Exported) -> None:
    """What deploy does: load, warm up, infer; the same seed gives the same chunk."""
    runs = BundlePolicy(load_bundle(exported.bundle.folder), seed=1)
    assert len(runs.warm_up(1)) == 1
    sample = exported.comparison.samples[0]
    chunks = [
        runs.infer(sample.observation, grid_index=sample.grid_index, past=sample.past, chunk_seq=0).actions
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*chunks)
    assert chunks[0].shape == (runs.manifest.chunk_size, *runs.manifest.action.shape)


def test_half_precision_keeps_angles_whole_numbers_and_tables(exported: Exported) -> None:
    """Times and positions up to their sines, a resize up to its grey levels, tables that are not picked from."""
    n_heavy = n_half = 0
    for name in set(exported.bundle.manifest.graphs) & {"encode", "denoise"}:
        model = ir.load(exported.bundle.path(f"{name}.onnx"))
        to_half(model, [], [])
        waiting = {n for n in model.graph if n.op_type in ("Sin", "Cos", "Round", "Floor", "Ceil")}
        exact: set[ir.Node] = set()
        while waiting:
            node = waiting.pop()
            exact.add(node)
            assert HALF not in {v.dtype for v in (*node.inputs, *node.outputs) if v is not None}, node.name
            producers = {p for v in node.inputs if v is not None and (p := v.producer()) is not None}
            waiting |= producers - exact
        for value in model.graph.initializers.values():
            if value.dtype == HALF and value.shape is not None and sum(n != 1 for n in value.shape) > 1:
                assert {use.node.op_type for use in value.uses()} <= {*HEAVY, "Gather"}, value.name
        heavy = [n for n in model.graph if n.op_type in HEAVY]
        n_heavy += len(heavy)
        n_half += sum(n.outputs[0].dtype == HALF for n in heavy)
    assert n_half > n_heavy / 2


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensorrt_builds_every_graph(exported: Exported) -> None:
    sizes = trt_check.check_bundle(exported.bundle.folder)
    assert set(sizes) == set(exported.bundle.manifest.graphs) - {"time"}

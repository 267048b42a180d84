"""A checkpoint becomes a bundle: features decided, graphs traced, lowered, compared with torch, timed, described; then,
and only then, moved to its place in one step. A killed export leaves nothing there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgevla.bundle import Bundle, is_bundle, list_files, load_bundle, write_manifest
from edgevla.dataset.facts import read_facts
from edgevla.dataset.reading import DatasetReading
from edgevla.engines import load_graph
from edgevla.errors import EngineError, MissingExtraError, ParityError, UsageError
from edgevla.graph import Graph, GraphSpec
from edgevla.manifest import (
    GraphFile,
    Manifest,
)
from edgevla.manifest_record import Latency
from edgevla.runner import BundlePolicy
from edgevla.session import is_alive
from edgevla.train.account import account_of
from edgevla.train.checkpoint import checkpoint_folder, load_policy
from edgevla.train.policies.base import Policy
from edgevla.train.policies.config import PolicyConfig
from edgevla.train.processors import Processors
from edgevla.train.state import replace_folder

from . import trace
from .batches import compare_batches
from .certificate import certify
from .draft import draft_manifest
from .emulate import emulated
from .features import Meaning, decide
from .lowering import GOALS, PrecisionLowering, is_static
from .options import QUANTISED, ExportOptions
from .parity import Comparison, chunk_ms, compare, measure
from .samples import PolicyInput, dataset_samples, synthetic_samples
from .search import SEARCH_S

if TYPE_CHECKING:
    from edgevla.dataset import Dataset
    from edgevla.dataset.facts import DatasetFacts

EMULATED = "bfloat16 emulated on cpu by rounding float32"
QUANTISED_SAMPLES = 64
"""Frames on which a quantised bundle is judged, at least."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """bundle: at its final place. comparison, meaning: for those who print. speedup: eager median / exported median;
    None: not measured.
    """

    bundle: Bundle
    comparison: Comparison
    meaning: Meaning
    speedup: float | None


def export_checkpoint(
    path: str | Path, target: Path, options: ExportOptions, say: Say = lambda _: None
) -> Exported:
    """Exports any LeRobot checkpoint (a run, its `checkpoints/last`, a policy folder, or a hub id).

    Raises:
        UsageError: something must be said (joint units, fps, cameras) or cannot be. CheckpointError: bad checkpoint.
        ParityError: the graphs do not compute what torch computes; nothing is written.
    """
    check_target(target)
    folder = checkpoint_folder(path)
    say(f"loading {folder}")
    for note in account_of(folder).require().notes:
        say(f"note: {note}")
    policy = load_policy(folder, adapt=in_float32, base=options.base)
    return export_policy(policy, folder, target, options, say)


def in_float32(config: PolicyConfig, processors: Processors) -> PolicyConfig:
    """For `load_policy`: a bfloat16 checkpoint is widened. Nothing is lost, and ONNX Runtime's CPU knows no bfloat16."""
    return config.in_float32()


def export_policy(
    policy: Policy, folder: Path, target: Path, options: ExportOptions, say: Say = lambda _: None
) -> Exported:
    """As `export_checkpoint`, of a policy that was loaded from `folder`, in float32."""
    check_target(target)
    if is_static(policy, options) and options.dataset is None:
        raise UsageError("int8 of this policy is calibrated on real frames; give --dataset PATH")
    if options.max_batch > 1 and options.precision == "int8" and not is_static(policy, options):
        raise UsageError(
            f"int8 of {policy.policy_type} for {options.target} is scaled by all that one inference sees, so robots "
            "that share it would move each other's arms; leave --max-batch out, or take --precision fp32"
        )
    trained = read_facts(folder)
    dataset = _open(options, trained)
    facts, origin = _facts(trained, dataset, options)
    meaning = decide(policy, facts, options, origin)
    for feature, camera in meaning.bindings.items():
        say(f"camera {camera} -> {feature}" if camera != "none" else f"no camera for {feature}")
    for warning in meaning.warnings:
        say(f"warning: {warning}")
    with _scratch(target) as scratch:
        say("tracing " + ", ".join(policy.graphs()))
        manifest = draft_manifest(policy, folder, facts, meaning, options)
        if manifest.prompt is not None and manifest.prompt.default_task is None:
            say(
                f"no default task{_tasks(manifest.prompt.trained_tasks)}; choose one with --task, here or at deploy"
            )
        manifest = _write_graphs(policy, manifest, scratch, options)
        copy_tokenizer(policy, manifest, scratch)
        manifest = replace(manifest, files=list_files(scratch))
        bundle = write_manifest(scratch, manifest)
        samples, where = _samples(policy, dataset, meaning, manifest, options, say)
        bundle, runner, comparison, where = _compared(policy, bundle, samples, where, options, say)
        _judge(replace(bundle.manifest, parity=comparison.parity), options)
        comparison = _certified(comparison, policy, folder, runner, meaning, where, options, say)
        if options.max_batch > 1:
            comparison = _batched(comparison, policy, runner, say)
        _judge(replace(bundle.manifest, parity=comparison.parity), options)
        latency = _latency(policy, bundle, runner, comparison, options, say)
        manifest = replace(bundle.manifest, parity=comparison.parity, latency=latency)
        steps = manifest.schedule.n_steps if manifest.schedule is not None else 0
        speedup = None if latency is None else latency.eager_ms.p50 / max(chunk_ms(latency, steps), 1e-9)
        from .report import write_report

        write_report(scratch / "report.html", manifest, comparison, meaning, speedup)
        write_manifest(scratch, replace(manifest, files=list_files(scratch)))
        load_bundle(scratch)
        del runner
        scratch.chmod(0o755)
        replace_folder(scratch, target)
    return Exported(load_bundle(target, verify=False), comparison, meaning, speedup)


def _compared(
    policy: Policy,
    bundle: Bundle,
    samples: Sequence[PolicyInput],
    where: str,
    options: ExportOptions,
    say: Say,
) -> tuple[Bundle, BundlePolicy, Comparison, str]:
    """The bundle in its precision, as a runner, held against torch. A precision that passes on the frames of the search
    and fails on the rest is searched for once more, with more room.
    """
    if options.precision == "fp32":
        return bundle, *_against_torch(policy, bundle, samples, where, options, say)
    say(f"finding out what may be {options.precision} (up to {SEARCH_S / 60:.0f} minutes)")
    with contextlib.closing(PrecisionLowering(policy, bundle, samples, options, say)) as lowering:
        for i, goal in enumerate(GOALS):
            outcome = lowering.find(goal)
            if i > 0 and outcome.is_nothing_lowered:
                break  # no room is left: what was found before is judged, by what it does
            bundle = lowering.write(lowering.require(outcome))
            runner, comparison, told = _against_torch(policy, bundle, samples, where, options, say)
            if comparison.parity.passed or not outcome.in_time or outcome.is_nothing_lowered:
                break
    return bundle, runner, comparison, told


def _against_torch(
    policy: Policy,
    bundle: Bundle,
    samples: Sequence[PolicyInput],
    where: str,
    options: ExportOptions,
    say: Say,
) -> tuple[BundlePolicy, Comparison, str]:
    runner, where = _runner(bundle, where, say)
    say(f"comparing with torch on {len(samples)} samples ({where})")
    to_the_end = options.allow_parity_failure
    return runner, compare(policy, bundle, runner, samples, where, to_the_end), where


def _certified(
    comparison: Comparison,
    policy: Policy,
    folder: Path,
    runner: BundlePolicy,
    meaning: Meaning,
    where: str,
    options: ExportOptions,
    say: Say,
) -> Comparison:
    """The comparison with what the graphs do against the checkpoint's own pipelines."""
    if options.adapt_to_pi_aloha:
        say("not compared with the saved pipeline, which does not hold the maps of --adapt-to-pi-aloha")
        return comparison
    samples = comparison.samples
    say(f"comparing with the saved pipeline, step by step, on {len(samples)} samples ({where})")
    pipeline = certify(policy, folder, runner, samples, where, meaning.dataset_keys)
    passed = comparison.parity.passed and pipeline.passed
    return replace(comparison, parity=replace(comparison.parity, pipeline=pipeline, passed=passed))


def _latency(
    policy: Policy,
    bundle: Bundle,
    runner: BundlePolicy,
    comparison: Comparison,
    options: ExportOptions,
    say: Say,
) -> Latency | None:
    if EMULATED in comparison.parity.reference:
        say("latency is not measured: an emulation says nothing of it")
        return None
    say("measuring latency")
    return measure(policy, bundle, runner, comparison.samples[0], options.n_timed)


def _batched(comparison: Comparison, policy: Policy, runner: BundlePolicy, say: Say) -> Comparison:
    """The comparison with what several observations in one inference do against each alone."""
    say(f"comparing up to {runner.manifest.batch.max} observations in one inference with each alone")
    batch = compare_batches(policy, runner, comparison.samples, comparison.exported)
    passed = comparison.parity.passed and batch.passed
    return replace(comparison, parity=replace(comparison.parity, batch=batch, passed=passed))


def _runner(bundle: Bundle, where: str, say: Say) -> tuple[BundlePolicy, str]:
    """The bundle on its target if this machine has it, else its graphs on the CPU, which is said."""
    provider = bundle.manifest.target.provider
    try:
        return BundlePolicy(bundle), where
    except (EngineError, MissingExtraError) as error:
        if provider == "cpu":
            raise
        if is_emulated := "bf16" in bundle.manifest.target.precision.values():
            say(
                f"this machine cannot run {provider} ({error}); comparing with its rounding emulated on the CPU"
            )
        else:
            say(f"this machine cannot run {provider} ({error}); comparing and timing on its CPU instead")
    graphs = {n: _on_the_cpu(bundle, n) for n in bundle.manifest.graphs}
    how = EMULATED if is_emulated else "graphs run on cpu"
    return BundlePolicy(bundle, graphs=graphs), f"{where}; {how}, {provider} not available"


def _on_the_cpu(bundle: Bundle, name: str) -> Graph:
    graph = bundle.manifest.graphs[name]
    path = bundle.path(graph.file)
    if bundle.manifest.target.precision[name] != "bf16":
        return load_graph(path, graph, provider="cpu")
    with tempfile.TemporaryDirectory(dir=bundle.folder) as folder:
        return load_graph(emulated(path, Path(folder), name), graph, provider="cpu")


def _tasks(trained: Sequence[str]) -> str:
    named = "; ".join(trained[:5]) + ("; ..." if len(trained) > 5 else "")
    return f": the training data has several ({named})" if trained else ""


# -- where things come from -----------------------------------------------------------------------------------


def _open(options: ExportOptions, trained: DatasetFacts | None) -> Dataset | None:
    """The dataset, read as the checkpoint's own was unless it is said otherwise."""
    if options.dataset is None:
        if options.reading != DatasetReading():
            raise UsageError("--feature, --without and --task-from say how a --dataset is read; give one")
        return None
    from edgevla.dataset import open_dataset

    remembered = trained.reading if trained is not None else DatasetReading()
    return open_dataset(options.dataset, reading=options.reading, remembered=remembered)


def _facts(
    facts: DatasetFacts | None, dataset: Dataset | None, options: ExportOptions
) -> tuple[DatasetFacts | None, str]:
    """The checkpoint's own, else the dataset's; how cameras look is taken from the dataset where it is given."""
    origin = "checkpoint (edgevla.json)"
    if dataset is None:
        return facts, origin if facts is not None else ""
    from edgevla.dataset.facts import camera_looks, facts_of

    if facts is None:
        said = options.joint_units if options.joint_units in ("degrees", "range100") else None
        # What a stranger's checkpoint was trained on nobody says.
        facts, origin = replace(facts_of(dataset, said), episodes=None), "dataset"
    return replace(facts, camera_looks=camera_looks(dataset)), origin


def _samples(
    policy: Policy,
    dataset: Dataset | None,
    meaning: Meaning,
    manifest: Manifest,
    options: ExportOptions,
    say: Say,
) -> tuple[list[PolicyInput], str]:
    n = options.n_samples
    if options.precision in QUANTISED and n < QUANTISED_SAMPLES:
        say(
            f"{options.precision} is judged on at least {QUANTISED_SAMPLES} samples: {QUANTISED_SAMPLES} instead of {n}"
        )
        n = QUANTISED_SAMPLES
    if dataset is None:
        return synthetic_samples(policy, manifest, n, manifest.n_obs_steps, options.seed), "synthetic inputs"
    lacking = [
        k for c, k in meaning.dataset_keys.items() if c in manifest.cameras and k not in dataset.cameras
    ]
    if lacking:
        raise UsageError(
            f"the dataset has no camera '{lacking[0]}'; it has {', '.join(dataset.cameras) or 'none'}; "
            "bind the policy's cameras with --camera"
        )
    return dataset_samples(dataset, meaning.dataset_keys, manifest, n, manifest.n_obs_steps), "dataset frames"


# -- the bundle's parts -----------------------------------------------------------------------------------------


def _write_graphs(policy: Policy, manifest: Manifest, scratch: Path, options: ExportOptions) -> Manifest:
    policy.bake()
    graphs = dict(manifest.graphs)
    axes: dict[str, int] = {}
    for name, graph in policy.graphs().items():
        if name == "time" and options.target == "tensorrt":
            graphs[name] = _time_table(policy, manifest, graph, scratch)
            continue
        graph = trace.with_batch_axes(graph, axes)
        model = trace.trace(policy, name, graph, max_batch=options.max_batch)
        if options.max_batch > 1:
            found = trace.batch_axes(policy, name, model)
            graph = replace(graph, outputs=tuple(replace(o, batch_axis=found[o.name]) for o in graph.outputs))
            axes |= found if name == "encode" else {}
        file, data = trace.save(model, scratch, name)
        graphs[name] = replace(graphs[name], inputs=graph.inputs, outputs=graph.outputs, file=file, data=data)
        del model
    return replace(manifest, graphs=graphs)


def _time_table(policy: Policy, manifest: Manifest, graph: GraphSpec, scratch: Path) -> GraphFile:
    """TensorRT knows no float64: the rows of the time graph for the bundle's step count, as a table."""
    from edgevla.engines.table import write_table
    from edgevla.train.policies.base import TorchGraph

    assert manifest.schedule is not None
    taus = manifest.schedule.taus()[:-1]
    torch_graph = TorchGraph(policy, "time", graph)
    (tau,) = graph.inputs
    rows = [
        {k: v.detach().numpy() for k, v in torch_graph.run({tau.name: np.full(1, t, np.float32)}).items()}
        for t in taus
    ]
    write_table(scratch / "time.npz", taus, rows)
    return GraphFile(graph.inputs, graph.outputs, file="time.npz")


def copy_tokenizer(policy: Policy, manifest: Manifest, scratch: Path) -> None:
    """The policy's tokenizer to where the manifest says it lies."""
    if manifest.prompt is None:
        return
    source = policy.tokenizer_folder() / "tokenizer.json"
    place = scratch / manifest.prompt.tokenizer.file
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)


def _judge(manifest: Manifest, options: ExportOptions) -> None:
    from .verdict import refusal

    assert manifest.parity is not None
    if not manifest.parity.passed and not options.allow_parity_failure:
        raise ParityError(refusal(manifest, options.precision != "fp32"))


# -- written whole or not at all ----------------------------------------------------------------------------


def check_target(target: Path) -> None:
    """Raises UsageError when `target` is something else than nothing, an empty folder or a bundle."""
    if target.exists() and not is_bundle(target) and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(f"{target} exists and is no policy bundle; choose another place with -o")


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A hidden folder beside the target; what killed exports left there goes first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.export-"
    for old in target.parent.glob(f"{prefix}*"):
        pid = old.name.removeprefix(prefix).partition("-")[0]
        if pid.isdigit() and not is_alive(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

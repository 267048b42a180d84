"""A bundle of float32 graphs becomes one of a lower precision, as far as the rule of `gate.py` allows.

`PrecisionLowering` measures on frames what each layer costs (`search.py`) and writes the graphs. Frames run through the
graphs on this machine's CPU, lowered and float32 ones by turns, with the same noise; torch is not needed, and that the
float32 graphs are torch's is for `parity.py` to say.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgevla.bundle import Bundle, list_files, write_manifest
from edgevla.engines import load_graph, to_numpy
from edgevla.errors import ParityError
from edgevla.graph import Graph
from edgevla.manifest import GraphFile, Manifest
from edgevla.manifest_record import KeptLayer, Lowered
from edgevla.runner import BundlePolicy
from edgevla.train.policies.base import Policy

from . import trace
from .blocks import Packer, is_packable
from .draft import FLOAT_GRAPHS
from .emulate import emulated
from .gate import LIMITS, worst_share
from .half import FORMS, always_float, is_half_context, to_half
from .layers import CONTEXT, GraphLayer, layers_of
from .options import ExportOptions
from .parity import NO_NUMBER
from .quantize import Quantizer
from .samples import PolicyInput, action_range
from .search import Choice, Choosing, LoweringOutcome, Say

SEARCHED = 16
"""Frames that the search measures on; the rule is then asked of all."""
GOALS = (1.0, 0.7, 0.4)
"""Multiples of the limit that the search aims at, one after the other where other frames then differ more."""
CALLS_PER_SAMPLE = 4
"""Runs of a graph that calibration sees, per frame: of many denoise steps some of each time."""


@dataclass
class _Recorded:
    """A float32 graph that remembers what went in."""

    graph: Graph
    calls: list[dict[str, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spec = self.graph.spec

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.calls.append({k: to_numpy(v) for k, v in inputs.items()})
        return dict(self.graph.run(inputs))

    def stack(self, arrays: Sequence[Any]) -> Any:
        return self.graph.stack(arrays)


class PrecisionLowering:
    """bundle: float32, whose graphs will be replaced. Working files lie in a folder of it until `close`."""

    def __init__(
        self, policy: Policy, bundle: Bundle, samples: Sequence[PolicyInput], options: ExportOptions, say: Say
    ) -> None:
        self.bundle, self.options, self.say = bundle, options, say
        self.limits = LIMITS[options.precision]
        self.width = action_range(policy, bundle.manifest)
        self.folder = bundle.folder / "lowering"
        self.folder.mkdir()
        self.names = [n for n in bundle.manifest.graphs if n not in FLOAT_GRAPHS]
        self._floats = {n: self._open(self._keep(n), g) for n, g in bundle.manifest.graphs.items()}
        self.layers = self._layers(lowers(policy, options))
        places = np.unique(np.linspace(0, len(samples) - 1, min(SEARCHED, len(samples))).round().astype(int))
        self.samples = [(int(i), samples[i]) for i in places]
        if options.precision == "int4":  # guidance would hold chunks together that it lets drift apart
            self.samples = [(i, replace(sample, rtc=None)) for i, sample in self.samples]
        self._quantizers: dict[str, Quantizer] = {}
        if options.precision == "int8":
            is_calibrated = is_static(policy, options)
            calls = self._calls(samples) if is_calibrated else {}
            self._quantizers = {
                n: Quantizer(
                    self._float(n), self.folder, options.target, calls.get(n, ()), options.max_batch > 1
                )
                for n in self.names
            }
        self._packers = {n: Packer(self._float(n)) for n in self.names} if options.precision == "int4" else {}
        self.reference = self._chunks(self._floats, bundle.manifest)
        self._candidates: dict[str, tuple[Choice, Graph, GraphFile]] = {}
        self.search = Choosing(self.layers, self.score, options.precision == "int4", say)

    def find(self, goal: float) -> LoweringOutcome:
        return self.search.run(goal)

    def require(self, outcome: LoweringOutcome) -> LoweringOutcome:
        """The outcome if something is lowered; all of it lowered where a bundle that breaks the rule is asked for.

        Raises:
            ParityError: no layer may be lowered.
        """
        if not outcome.is_nothing_lowered:
            return outcome
        m, precision = self.bundle.manifest, self.options.precision
        if not self.layers:
            raise ParityError(
                f"nothing of {m.policy} can be {precision}: what it has are small products at inputs and outputs, which "
                "stay float32. Nothing was written; --precision fp32 loses nothing"
            )
        refused = f"nothing of {m.policy} can be {precision} within the rule: {_costs(outcome)}"
        if not self.options.allow_parity_failure:
            raise ParityError(
                f"{refused}. Nothing was written; --precision fp32 loses nothing, and --allow-parity-failure writes it "
                f"all in {precision}"
            )
        self.say(f"{refused}; all of it is {precision}, as --allow-parity-failure asks")
        everything = Choice(frozenset())
        found = replace(outcome.found, kept=frozenset(), everything=self.score(everything))
        return replace(outcome, choice=everything, found=found, is_nothing_lowered=False)

    def write(self, outcome: LoweringOutcome) -> Bundle:
        """The bundle with its graphs lowered but for what was found to be kept."""
        m = self.bundle.manifest
        graphs, precision = dict(m.graphs), dict(m.target.precision)
        for name in self.names:
            kept = outcome.choice.of(name)
            for file in (f"{name}.onnx", f"{name}.onnx.data"):
                (self.bundle.folder / file).unlink(missing_ok=True)
            graphs[name] = self._write(name, kept, self.bundle.folder)
            precision[name] = self._precision(name, kept)
        m = replace(
            m, graphs=graphs, target=replace(m.target, precision=precision), lowered=self._record(outcome)
        )
        files = tuple(
            f for f in list_files(self.bundle.folder) if not f.path.startswith(f"{self.folder.name}/")
        )
        return write_manifest(self.bundle.folder, replace(m, files=files))

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- what a choice costs ----------------------------------------------------------------------------------

    def score(self, choice: Choice) -> float:
        """How far the joints are from float32's with this choice, as a multiple of the limit."""
        graphs, entries = dict(self._floats), dict(self.bundle.manifest.graphs)
        for name in self.names:
            own = choice.of(name)
            if self._precision(name, own) != "fp32":
                graphs[name], entries[name] = self._candidate(name, own)
        chunks = self._chunks(graphs, replace(self.bundle.manifest, graphs=entries))
        return worst_share(np.abs(chunks.astype(np.float64) - self.reference), self.width, self.limits)

    def _candidate(self, name: str, kept: Choice) -> tuple[Graph, GraphFile]:
        """The last one of each graph stays open: a search changes one graph at a time."""
        known = self._candidates.get(name)
        if known is None or known[0] != kept:
            self._candidates.pop(name, None)
            entry = self._write(name, kept, self.folder)
            path = self.folder / str(entry.file)
            if self.options.precision == "bf16":
                path = emulated(path, self.folder, f"{name}.emulated")
            graph = self._open(path, entry)
            self._candidates[name] = (kept, graph, entry)
        return self._candidates[name][1:]

    def _chunks(self, graphs: Mapping[str, Graph], manifest: Manifest) -> np.ndarray:
        """float32 (n, T, A) of the search's frames."""
        runner = BundlePolicy(replace(self.bundle, manifest=manifest), graphs=graphs)
        return np.stack([_infer(runner, s, i) for i, s in self.samples])

    # -- files ------------------------------------------------------------------------------------------------

    def _write(self, name: str, kept: Choice, folder: Path) -> GraphFile:
        entry = self.bundle.manifest.graphs[name]
        keep = {node for layer in kept.floats for node in layer.nodes}
        if self.options.precision in FORMS:
            return self._write_half(name, entry, keep, folder)
        file = folder / f"{name}.onnx"
        if self._precision(name, kept) == "fp32":
            source, data = self._float(name), None
            shutil.copyfile(source, file)
            if entry.data is not None:
                data = f"{file.name}.data"
                shutil.copyfile(source.with_name(data), folder / data)
            return replace(entry, file=file.name, data=data)
        if self._packers:
            written, data = self._packers[name].write(folder, name, self._bits(name, kept))
            return replace(entry, file=written, data=data)
        self._quantizers[name].write(file, keep)
        has_data = (folder / f"{file.name}.data").is_file()
        return replace(entry, file=file.name, data=f"{file.name}.data" if has_data else None)

    def _write_half(self, name: str, entry: GraphFile, keep: set[str], folder: Path) -> GraphFile:
        inputs, outputs = self._half_ends(name, set() if CONTEXT in keep else self._context())
        model = ir.load(self._float(name))
        to_half(model, inputs, outputs, keep, FORMS[self.options.precision])
        file, data = trace.save(model, folder, name)
        return replace(
            entry,
            file=file,
            data=data,
            inputs=tuple(replace(i, dtype="float16") if i.name in inputs else i for i in entry.inputs),
            outputs=tuple(replace(o, dtype="float16") if o.name in outputs else o for o in entry.outputs),
        )

    def _half_ends(self, name: str, half: set[str]) -> tuple[list[str], list[str]]:
        """Inputs and outputs of a graph that are half. half: names of the context that is."""
        entry = self.bundle.manifest.graphs[name]
        inputs = [i.name for i in entry.inputs if (i.source or "").removeprefix("context:") in half]
        return inputs, [o.name for o in entry.outputs if name == "encode" and o.name in half]

    def _context(self) -> set[str]:
        if self.options.precision == "bf16":  # numpy knows no bfloat16, and a context may come to the host
            return set()
        outputs = self.bundle.manifest.graphs["encode"].outputs
        return {o.name for o in outputs if o.name != "x" and is_half_context(o.shape, o.dtype)}

    def _keep(self, name: str) -> Path:
        """A float32 graph to where it will stay when its file in the bundle is another."""
        graph = self.bundle.manifest.graphs[name]
        if name not in self.names:
            return self.bundle.path(graph.file)
        (self.folder / "float").mkdir(exist_ok=True)
        for file in (graph.file, graph.data):
            if file is not None:
                shutil.move(self.bundle.path(file), self.folder / "float" / file)
        return self._float(name)

    def _float(self, name: str) -> Path:
        return self.folder / "float" / f"{name}.onnx"

    def _open(self, path: Path, entry: GraphFile) -> Graph:
        return load_graph(path, entry, provider="cpu")

    # -- layers, calibration, and what is told -----------------------------------------------------------------

    def _layers(self, is_lowered: Callable[[ir.Node], bool]) -> list[GraphLayer]:
        """A context is rounded on both of its sides or not at all, so its layer is one of every graph."""
        layers: list[GraphLayer] = []
        for name in self.names:
            model = ir.load(self._float(name))
            layers += layers_of(name, model, is_lowered, self._always_float(name, model))
        if self.options.precision == "fp16" and self._context():
            layers.append(GraphLayer(CONTEXT, CONTEXT, CONTEXT, (CONTEXT,), 0))
        return layers

    def _always_float(self, name: str, model: ir.Model) -> set[str]:
        """Nodes that would be called lowered and are not."""
        form = FORMS.get(self.options.precision)
        return set() if form is None else always_float(model, *self._half_ends(name, self._context()), form)

    def _precision(self, name: str, kept: Choice) -> str:
        """The lowest of a graph's layers."""
        lowered = [
            layer for layer in self.layers if layer.graph in (name, CONTEXT) and layer not in kept.floats
        ]
        if not lowered:
            return "fp32"
        return "int8" if kept.eights.issuperset(lowered) else self.options.precision

    def _bits(self, name: str, kept: Choice) -> dict[str, int]:
        """Of the nodes of an int4 graph."""
        own = (layer for layer in self.layers if layer.graph == name and layer not in kept.floats)
        return {node: 8 if layer in kept.eights else 4 for layer in own for node in layer.nodes}

    def _calls(self, samples: Sequence[PolicyInput]) -> dict[str, list[dict[str, np.ndarray]]]:
        """Inputs of each graph over all frames, and of its runs on one frame as many as are enough, in turn."""
        recorded = {n: _Recorded(g) for n, g in self._floats.items()}
        runner = BundlePolicy(self.bundle, graphs=recorded)
        found: dict[str, list[dict[str, np.ndarray]]] = {n: [] for n in recorded}
        for i, sample in enumerate(samples):
            _infer(runner, sample, i)
            for name, graph in recorded.items():
                stride = max(1, len(graph.calls) // CALLS_PER_SAMPLE)
                found[name] += graph.calls[i % stride :: stride]
                graph.calls.clear()
        return found

    def _record(self, outcome: LoweringOutcome) -> Lowered:
        found, choice = outcome.found, outcome.choice
        kept = [layer for layer in self.layers if layer in choice.floats | choice.eights]
        return Lowered(
            n_layers=len(self.layers),
            n_weights=sum(layer.weights for layer in self.layers),
            kept=tuple(
                KeptLayer(
                    str(k),
                    k.weights,
                    _finite(outcome.alone[str(k)]) if str(k) in outcome.alone else None,
                    "fp32" if k in choice.floats else "int8",
                )
                for k in kept
            ),
            parts={name: _finite(score) for name, score in found.parts.items()},
            everything=_finite(found.everything),
            n_samples=len(self.samples),
            in_time=outcome.in_time,
        )


def is_static(policy: Policy, options: ExportOptions) -> bool:
    """Whether something of it is quantised by ranges, which frames must show."""
    return options.precision == "int8" and (bool(policy.trunks()) or options.target == "tensorrt")


def lowers(policy: Policy, options: ExportOptions) -> Callable[[ir.Node], bool]:
    """Whether the precision lowers a node."""
    if options.precision == "int4":
        return is_packable
    form = FORMS.get(options.precision)
    products = {"MatMul", "Gemm"} if form is None else set(form.heavy)
    if is_static(policy, options):
        products.add("Conv")
    return lambda node: node.op_type in products


def _infer(runner: BundlePolicy, sample: PolicyInput, seq: int) -> np.ndarray:
    runner.reset()
    return runner.infer(
        sample.observation, grid_index=sample.grid_index, past=sample.past, rtc=sample.rtc, chunk_seq=seq
    ).actions


def _costs(outcome: LoweringOutcome) -> str:
    """The worst of what broke the rule, or that nobody came to measure it."""
    alone = outcome.found.layers or outcome.found.parts
    worst = sorted(alone, key=lambda name: -alone[name])[:3]
    said = [f"{name} alone costs {alone[name]:.2g} times the limit" for name in worst]
    if not outcome.in_time:
        said.append("time ran out, and what was not measured may not be lowered")
    return "; ".join(said)


def _finite(score: float) -> float:
    """Four digits; JSON knows no infinity."""
    return float(f"{min(score, NO_NUMBER):.4g}")

"""The process that builds a bundle's TensorRT engines: `python -m edgevla.engines.trt_build BUNDLE`.

A process of its own, because building takes gigabytes that must not stay with whoever wants the engines. It has a
session of its own: Ctrl-C in a terminal and a terminal that closes do not reach it; SIGTERM ends it at once. Whoever
asked watches it (`ahead.py`). One at a time per cache; another one waits, and then finds the engines made. An engine is
in the cache whole or not at all, so whatever ends this process leaves nothing that must be repaired.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgevla.bundle import Bundle, load_bundle
from edgevla.engines.engine_files import (
    BuildSettings,
    BuildStatus,
    EngineFiles,
    alone,
    engines_folder,
    prune,
    sweep,
    write_status,
    write_whole,
)
from edgevla.engines.tensorrt import import_tensorrt, make_logger, reason_of, tensor_found
from edgevla.errors import EdgeVLAError, EngineError, UsageError
from edgevla.graph import GraphSpec
from edgevla.session import describe, guarded_deployments
from edgevla.strict import read

SAID = "trt_build: "
"""Before the sentence on stderr that says why it failed, between whatever TensorRT prints."""
STATUS_S = 0.2


@dataclass(frozen=True)
class EngineBuild:
    """One engine to build. size: bytes of the graph, by which its share of the work is guessed."""

    name: str
    onnx: Path
    spec: GraphSpec
    engine: Path
    settings: BuildSettings

    @property
    def size(self) -> int:
        weights = self.onnx.with_name(self.onnx.name + ".data")
        return sum(path.stat().st_size for path in (self.onnx, weights) if path.is_file())


def graphs_of(bundle: Bundle) -> dict[str, Path]:
    """Name -> ONNX file of what TensorRT runs: `time` runs on the CPU, in float64, a table needs no engine."""
    return {
        name: bundle.path(graph.file)
        for name, graph in bundle.manifest.graphs.items()
        if name != "time" and not graph.file.endswith(".npz")
    }


def jobs_of(bundle: Bundle, files: EngineFiles, settings: BuildSettings | None) -> list[EngineBuild]:
    """One per engine, whether it is there or not. settings: None: as `edgevla build` last chose."""
    jobs = []
    for name, onnx in graphs_of(bundle).items():
        engine, chosen = files.find(onnx, bundle.manifest.batch.max, settings)
        jobs.append(EngineBuild(name, onnx, bundle.manifest.graphs[name], engine, chosen))
    return jobs


def build_bundle(bundle: Bundle, settings: BuildSettings | None, device_id: int = 0) -> list[dict[str, Any]]:
    """Builds the engines that are not there; for each engine its graph, file, bytes and seconds (0: it was there).

    Raises:
        EngineError: no TensorRT or GPU, or TensorRT refuses a graph; with its reason. BundleError: a graph is not what
            the manifest says. UsageError: an arm may have its torque on.
    """
    from edgevla.engines.cudart import Cuda

    trt = import_tensorrt()
    files = EngineFiles(trt.__version__, Cuda(device_id).describe())
    jobs, most, spent = jobs_of(bundle, files, settings), bundle.manifest.batch.max, {}
    if settings is not None or _missing(jobs):
        with alone(files.folder):
            sweep(files.folder)
            missing = _missing(jobs)
            if missing:
                _check_no_torque()
                prune(files.folder, [job.engine for job in jobs])
            progress = Progress(files.folder, bundle.folder, missing)
            for job in missing:
                began = time.monotonic()
                progress.enter(job)
                _build(trt, job, most, files.timing_cache, progress)
                spent[job.name] = time.monotonic() - began
            for job in jobs if settings is not None else ():  # now that they are there
                files.choose(job.onnx, most, job.settings)
            sweep(files.folder)
    return [
        {"graph": j.name, "file": str(j.engine), "bytes": j.engine.stat().st_size, "s": spent.get(j.name, 0)}
        for j in jobs
    ]


def _missing(jobs: Sequence[EngineBuild]) -> list[EngineBuild]:
    return [job for job in jobs if not job.engine.is_file()]


def _check_no_torque() -> None:
    """A build takes the memory, the cores and the GPU that a moving arm depends on.

    Raises:
        UsageError: a deployment of this user may hold an arm.
    """
    for folder in guarded_deployments():
        raise UsageError(
            f"a deployment here may hold an arm ({describe(folder)}), and no engine is built meanwhile; end it first"
        )


def _build(trt: Any, job: EngineBuild, max_batch: int, timing_cache: Path, progress: Progress) -> None:
    timing = None
    with contextlib.suppress(OSError):
        timing = timing_cache.read_bytes()

    def configure(trt: Any, config: Any) -> None:
        workspace = job.settings.workspace_mb << 20
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        if not job.settings.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        _give_timings(config, timing)
        if hasattr(trt, "IProgressMonitor"):
            config.progress_monitor = progress.monitor(trt)

    engine, config = build_serialized(trt, job.onnx, job.spec, configure, max_batch)
    progress.say_phase("writing the engine")
    write_whole(job.engine, engine)
    if (measured := config.get_timing_cache()) is not None:
        write_whole(timing_cache, measured.serialize())


def _give_timings(config: Any, timing: bytes | None) -> None:
    """What was measured before; a damaged memory of it is begun anew."""
    for content in (timing, b"") if timing else (b"",):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def build_serialized(
    trt: Any, onnx: Path, spec: GraphSpec, configure: Callable[[Any, Any], None], max_batch: int = 1
) -> tuple[Any, Any]:
    """Parses, checks and builds one graph: the engine, as a buffer, and the configuration that made it.

    trt: the module: tensorrt, or TensorRT-RTX's bindings (no GPU needed). configure: is given it and the configuration.
    Precision follows the graph's own types (strongly typed), so an fp16 bundle runs in fp16 and nothing else does.

    Raises:
        EngineError: TensorRT refuses it, with its reason. BundleError: the graph is not what `spec` says.
    """
    from edgevla.engines.signature import check_signature

    log = make_logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        errors = "; ".join(str(parser.get_error(i)).strip() for i in range(parser.num_errors))
        raise EngineError(f"TensorRT cannot parse {onnx.name}: {errors}{reason_of(log)}")
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    found = [{t.name: tensor_found(t.dtype, t.shape) for t in tensors} for tensors in (inputs, outputs)]
    check_signature(onnx.name, spec, *found)
    config = builder.create_builder_config()
    if max_batch > 1:
        config.add_optimization_profile(_profile(builder, inputs, max_batch))
    configure(trt, config)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineError(f"TensorRT parsed {onnx.name} but cannot build it{reason_of(log)}")
    return serialized, config


def _profile(builder: Any, inputs: Sequence[Any], max_batch: int) -> Any:
    """1 to `max_batch` observations, fastest with the most of them."""
    profile = builder.create_optimization_profile()
    for place in inputs:
        least, most = ([n if d < 0 else d for d in place.shape] for n in (1, max_batch))
        profile.set_shape(place.name, least, most, most)
    return profile


# -- how far it is ---------------------------------------------------------------------------------------------


class Phases:
    """TensorRT's phases, each within another, as one fraction. Called from any of its threads."""

    def __init__(self) -> None:
        self._open: list[tuple[str, int, int]] = []  # name, steps, steps done; from the outermost
        self._lock = threading.Lock()
        self.fraction = 0.0

    def start(self, name: str, parent: str | None, n_steps: int) -> None:
        with self._lock:
            names = [opened for opened, _, _ in self._open]
            depth = names.index(parent) + 1 if parent in names else 0
            self._open = [*self._open[:depth], (name, max(1, n_steps), 0)]

    def step(self, name: str, step: int) -> None:
        with self._lock:
            self._open = [(n, all_, step + 1 if n == name else done) for n, all_, done in self._open]
            self._measure()

    def finish(self, name: str) -> None:
        with self._lock:
            names = [opened for opened, _, _ in self._open]
            if name in names:
                self._open = self._open[: names.index(name)]

    @property
    def name(self) -> str:
        with self._lock:
            return self._open[-1][0] if self._open else ""

    def _measure(self) -> None:
        """It never goes back: phases that follow one another at the outermost level begin at 0 again."""
        fraction, part = 0.0, 1.0
        for _, n_steps, done in self._open:
            part /= n_steps
            fraction += part * min(done, n_steps)
        self.fraction = max(self.fraction, min(1.0, fraction))


class Progress:
    """Writes the build's status for those who wait. jobs: all that are built, in order."""

    def __init__(self, folder: Path, bundle: Path, jobs: Sequence[EngineBuild]) -> None:
        self._folder, self._jobs = folder, jobs
        self._status = BuildStatus(
            os.getpid(), str(bundle), "", 0, len(jobs), "starting", 0.0, time.monotonic_ns()
        )
        self._phases = Phases()
        self._written = 0.0

    def enter(self, job: EngineBuild) -> None:
        self._phases = Phases()
        self._status = replace(self._status, graph=job.name, index=self._jobs.index(job))
        self.say_phase("reading the graph")

    def say_phase(self, phase: str) -> None:
        sizes = [max(1, job.size) for job in self._jobs]
        i = self._status.index
        fraction = (sum(sizes[:i]) + sizes[i] * self._phases.fraction) / sum(sizes)
        self._status = replace(self._status, phase=phase, fraction=fraction)
        self._written = time.monotonic()
        write_status(self._folder, self._status)

    def monitor(self, trt: Any) -> Any:
        """For the builder's configuration. It must live as long as that does."""
        phases, seldom = self._phases, self._seldom

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                phases.start(phase_name, parent_phase, num_steps)
                seldom()

            def step_complete(self, phase_name: str, step: int) -> bool:
                phases.step(phase_name, step)
                seldom()
                return True

            def phase_finish(self, phase_name: str) -> None:
                phases.finish(phase_name)

        self._monitor = Monitor()
        return self._monitor

    def _seldom(self) -> None:
        if time.monotonic() - self._written >= STATUS_S:
            self.say_phase(self._phases.name)


# -- the process -----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgevla.engines.trt_build", description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--settings", help="as JSON; default: as last chosen")
    parser.add_argument("--device-id", type=int, default=0)
    args = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _die_before_others()
    settings = None if args.settings is None else read(BuildSettings, json.loads(args.settings))
    try:
        print(json.dumps(build_bundle(load_bundle(args.bundle, verify=False), settings, args.device_id)))
    except EdgeVLAError as error:
        return _failed(str(error), error.exit_code)
    except MemoryError:
        return _failed("memory ran out while the engines were built", 1)
    except OSError as error:
        return _failed(f"{error}; check the room on the disk and the owner of {engines_folder()}", 1)
    except Exception as error:
        traceback.print_exc()
        return _failed(f"building stopped with {type(error).__name__}: {error}", 1)
    return 0


def _failed(sentence: str, code: int) -> int:
    print(f"\n{SAID}{' '.join(sentence.split())}", file=sys.stderr, flush=True)
    return code


def _die_before_others() -> None:
    """Where memory runs out the kernel shall choose this process, not one that somebody looks at."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("600")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

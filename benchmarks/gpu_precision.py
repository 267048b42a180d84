"""What a lower precision brings on a GPU and what it costs: published sizes, each precision, by the engines here.

    python benchmarks/gpu_precision.py WORK                               # SmolVLA, X-VLA, GR00T, Pi0 on cuda, tensorrt
    python benchmarks/gpu_precision.py WORK --policy smolvla --engine cuda --precision fp32,fp16 --samples 4
    python benchmarks/gpu_precision.py WORK --size tiny --engine cpu      # the recorded goldens, to try the script
    python benchmarks/gpu_precision.py WORK --size middle --engine cpu --policy smolvla

Each policy is built with random weights at its published dimensions (real_sizes.py), exported by `edgevla export` for
each engine in each precision, with its search and its gate, and run by `edgevla bench` in a process of its own. A cell
that cannot be (an engine that is not here, a precision that an engine does not take, a refusal by the gate) says why.
Random weights lose more than trained ones: the errors say how far the search went, not how a trained policy drives.

WORK keeps checkpoints, bundles and rows: what is there is not made again, so a run that was ended goes on. --samples: on
fewer frames than `edgevla export` judges by, for a look; the page then says so. On the CPU, and of sizes that are not
the published ones, say with --output where the page goes. Results: benchmarks/results/gpu_precision.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent))
import real_sizes  # noqa: E402
from result_kit import conditions  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "gpu_precision.md"
GOLDENS = ROOT / "tests" / "fixtures" / "goldens"
POLICIES = ("smolvla", "xvla", "groot", "pi0", "pi05")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
SIZES = ("published", "middle", "tiny")
MIDDLE: dict[str, dict[str, Any]] = {"smolvla": {"num_vlm_layers": 4, "resize_imgs_with_padding": (128, 128)}}
"""In what a middle size differs from the published one: for machines without a GPU."""
STORED = {"pi0": "bfloat16", "pi05": "bfloat16"}
"""Of checkpoints as they are published; others are float32."""
WEIGHTS = {
    "published": "random, at published dimensions",
    "middle": f"random, at published dimensions but for {MIDDLE}",
    "tiny": "the goldens', random, of a few thousand values",
}
POLL_S = 0.1
HEAD = """# Precisions by engine

{conditions}
{machine}.

Weights are {weights}. Times are of a whole chunk on blank input (`edgevla bench`, {chunks} chunks after warming up);
memory is the process's peak and, on a GPU, the most that the device held above what it held before. Errors are
`edgevla export`'s own, against torch in float32 on the CPU, as a share of a joint's range; where the graphs ran for that
is said when it was not the engine.

| policy | engine | precision | MB of graphs | p50 ms | p99 ms | peak MB | GPU MB | 99 % within | all within | lowered |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |
"""


def checkpoint(kind: str, work: Path, size: str) -> Path:
    """The policy's folder, built where it is not there yet."""
    if size == "tiny":
        return GOLDENS / kind / "checkpoint"
    folder = work / kind / "policy"
    if not (folder / "model.safetensors").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        dtype = STORED.get(kind, "float32")
        other = MIDDLE[kind] if size == "middle" else {}
        call = f"real_sizes.build({kind!r}, pathlib.Path({str(folder.resolve())!r}), {dtype!r}, {other!r})"
        script = f"import pathlib, real_sizes; {call}"
        subprocess.run([sys.executable, "-c", script], cwd=Path(real_sizes.__file__).parent, check=True)
    return folder


def export(folder: Path, target: Path, engine: str, precision: str, samples: int | None) -> None:
    """In this process, which is one of its own. samples: instead of as many as the gate wants."""
    from edgevla.errors import EdgeVLAError
    from edgevla.export import build, lowering
    from edgevla.export.options import ExportOptions

    n = 32 if samples is None else samples
    if samples is not None:
        build.QUANTISED_SAMPLES = lowering.SEARCHED = samples
    try:
        options = ExportOptions(
            fps=30, joint_units="raw", precision=precision, target=engine, n_samples=n, n_timed=1
        )
        build.export_checkpoint(folder, target, options, lambda text: print(f"    {text}", flush=True))
    except EdgeVLAError as error:
        raise SystemExit(f"{error}") from None


def row(kind: str, engine: str, precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One line of the table; `reason` instead of figures where there are none."""
    bundle = arguments.work / kind / f"{engine}-{precision}"
    found: dict[str, Any] = {"policy": kind, "engine": engine, "precision": precision}
    if not (bundle / "manifest.json").is_file():
        folder = checkpoint(kind, arguments.work, arguments.size)
        words = [str(folder), str(bundle), engine, precision, str(arguments.samples or 0)]
        made = subprocess.run(
            [sys.executable, __file__, str(arguments.work), "--export", *words],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if made.returncode != 0:
            return found | {"reason": _last_line(made.stderr)}
    with gpu_memory() as used:
        command = [sys.executable, "-m", "edgevla", "bench", str(bundle), "--json", "--provider", engine]
        ran = subprocess.run(
            [*command, "--chunks", str(arguments.chunks)], cwd=ROOT, capture_output=True, text=True
        )
    errors = _errors(bundle)
    if ran.returncode != 0:
        return found | errors | {"reason": _last_line(ran.stderr)}
    data = json.loads(ran.stdout)
    return found | errors | {
        "p50_ms": data["chunk"]["p50_ms"],
        "p99_ms": data["chunk"]["p99_ms"],
        "peak_mb": (data["memory"]["peak"] or 0) / 1e6,
        "gpu_mb": used[1] - used[0] if engine != "cpu" and used else None,
    }  # fmt: skip


def _errors(bundle: Path) -> dict[str, Any]:
    from edgevla.bundle import load_bundle
    from edgevla.export.verdict import kept_words

    m = load_bundle(bundle, verify=False).manifest
    assert m.parity is not None
    a = m.parity.actions
    assert a.range_per_joint is not None
    assert a.p99_abs_per_joint is not None
    graphs = {file for g in m.graphs.values() for file in (g.file, g.data)}
    where = m.parity.reference.partition("; graphs run on ")[2]
    return {
        "graph_mb": sum(f.bytes for f in m.files if f.path in graphs) / 1e6,
        "usual": max(e / w for e, w in zip(a.p99_abs_per_joint, a.range_per_joint, strict=True)),
        "most": max(e / w for e, w in zip(a.max_abs_per_joint, a.range_per_joint, strict=True)),
        "n_samples": m.parity.n_samples,
        "lowered": kept_words(m) + (f" (errors: graphs ran on {where})" if where else ""),
    }


@contextmanager
def gpu_memory() -> Iterator[list[float]]:
    """[MB that the device held before, the most it held meanwhile]; empty without nvidia-smi. Nobody else may use it."""
    first = _gpu_mb()
    used = [] if first is None else [first, first]
    over = threading.Event()

    def watch() -> None:
        while used and not over.wait(POLL_S):
            used[1] = max(used[1], _gpu_mb() or 0.0)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield used
    finally:
        over.set()
        thread.join()


def _gpu_mb() -> float | None:
    said = _nvidia_smi("memory.used")
    return None if said is None else float(said) * 1.048576


def _nvidia_smi(what: str) -> str | None:
    """Of the first device."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].partition(";")[0] if lines else "it failed without a word"


def page(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    import onnxruntime

    gpu = _nvidia_smi("name,driver_version") or "no GPU"
    head = HEAD.format(
        conditions=conditions(__file__, arguments.samples is not None),
        machine=f"GPU: {gpu}; onnxruntime {onnxruntime.__version__}",
        weights=WEIGHTS[arguments.size],
        chunks=arguments.chunks,
    )
    return head + "".join(f"| {' | '.join(_cells(one))} |\n" for one in rows)


def _cells(one: dict[str, Any]) -> Iterator[str]:
    yield from (one["policy"], one["engine"], one["precision"])
    for key, form in (
        ("graph_mb", ".3g"),
        ("p50_ms", ".3g"),
        ("p99_ms", ".3g"),
        ("peak_mb", ".0f"),
        ("gpu_mb", ".0f"),
    ):
        yield "" if one.get(key) is None else format(one[key], form)
    for key in ("usual", "most"):
        yield "" if key not in one else f"{100 * one[key]:.2g} %"
    said = [one.get("lowered", ""), f"**{one['reason']}**" if "reason" in one else ""]
    if "n_samples" in one:
        said.append(f"{one['n_samples']} samples")
    yield "; ".join(word for word in said if word).replace("|", "/")


def chosen(text: str, known: tuple[str, ...]) -> list[str]:
    names = text.split(",")
    strange = [name for name in names if name not in known]
    if strange:
        raise argparse.ArgumentTypeError(f"'{strange[0]}' is none of {', '.join(known)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, metavar="WORK", help="folder for checkpoints and bundles")
    known = ("cuda", "tensorrt", "cpu")
    parser.add_argument("--policy", type=lambda t: chosen(t, POLICIES), default=list(POLICIES[:4]))
    parser.add_argument("--engine", type=lambda t: chosen(t, known), default=["cuda", "tensorrt"])
    parser.add_argument("--precision", type=lambda t: chosen(t, PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--chunks", type=int, default=50, help="that are timed (default 50)")
    parser.add_argument("--samples", type=int, help="frames that are compared; default: what the gate wants")
    parser.add_argument("--size", choices=SIZES, default=SIZES[0], help="tiny: the goldens")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="default: benchmarks/results/gpu_precision.md"
    )
    parser.add_argument("--export", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.export:
        folder, target, engine, precision, samples = arguments.export
        export(Path(folder), Path(target), engine, precision, int(samples) or None)
        return
    if arguments.size == "middle" and not set(arguments.policy) <= set(MIDDLE):
        parser.error(f"--size middle is for --policy {','.join(MIDDLE)}")
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind in arguments.policy:
        for engine in arguments.engine:
            for precision in arguments.precision:
                print(f"{kind} on {engine} in {precision}", flush=True)
                rows.append(row(kind, engine, precision, arguments))
                print(f"  {json.dumps(rows[-1])}", flush=True)
                arguments.output.write_text(page(rows, arguments))


if __name__ == "__main__":
    main()

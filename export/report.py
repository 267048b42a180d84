"""`report.html`: what was exported, whether it computes what torch computes, and how fast; one file, no network."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgevla.manifest import Latency, Manifest, Percentiles

from .certified import certificate_words
from .features import Meaning
from .parity import Comparison, chunk_ms
from .verdict import rule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #ddd; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.good { color: #176b2c; } .bad { color: #b00020; font-weight: 600; }
img { max-width: 100%; }
"""


def write_report(
    path: Path, manifest: Manifest, comparison: Comparison, meaning: Meaning, speedup: float
) -> None:
    """The page for people; what programs need is in the manifest."""
    m = manifest
    judged = html.escape(rule(m))
    verdict = (
        f'<p class="good">The exported graphs compute what torch computes: {judged}.</p>'
        if comparison.parity.passed
        else f'<p class="bad">The exported graphs do not compute what torch computes: {judged}. '
        "This bundle was written because of --allow-parity-failure.</p>"
    )
    warnings = "".join(f'<p class="bad">{html.escape(w)}</p>' for w in meaning.warnings)
    body = [
        f"<h1>{html.escape(m.name)} <small>({m.policy})</small></h1>",
        verdict,
        f"<p>From raw frames to robot units it {html.escape(certificate_words(comparison.parity))}.</p>",
        warnings,
        _facts(m),
        "<h2>Actions: torch and exported</h2>",
        f'<img alt="predicted chunk of the worst sample" src="data:image/png;base64,{_chunk_picture(m, comparison)}">',
        f'<img alt="error per joint" src="data:image/png;base64,{_error_picture(m, comparison)}">',
        _joint_table(m, comparison),
        "<h2>Stage by stage</h2>",
        _stage_table(comparison),
        "<h2>Latency</h2>",
        _latency_table(m, speedup),
        "<h2>Cameras</h2>",
        _table(["robot's camera", "policy's feature", "size"], _camera_rows(m, meaning)),
        "<h2>Provenance</h2>",
        _table(["what", "value"], _provenance_rows(m)),
    ]
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(m.name)}</title><style>{STYLE}</style>"
    path.write_text(page + "\n".join(body) + "</html>\n")


def worst_sample(comparison: Comparison) -> int:
    """Index of the sample whose actions differ most, as a share of the joints' ranges."""
    width = np.maximum(comparison.parity.actions.range_per_joint or 1.0, 1e-12)
    return int((np.abs(comparison.reference - comparison.exported) / width).max(axis=(1, 2)).argmax())


def _facts(m: Manifest) -> str:
    precision = ", ".join(f"{n} {p}" for n, p in m.target.precision.items())
    schedule = "none" if m.schedule is None else f"{m.schedule.n_steps} denoise steps ({m.schedule.kind})"
    size = sum(f.bytes for f in m.files)
    rows = [
        ["target", f"{m.target.engine}, {m.target.provider}"],
        ["precision", precision],
        ["rate, chunk", f"{m.fps:g} Hz, {m.chunk_size} actions, {m.n_action_steps} executed by sync"],
        ["schedule", schedule],
        ["execution", f"{m.execution.default['kind']} (allowed: {', '.join(m.execution.allowed)})"],
        ["size", f"{size / 1e6:.1f} MB"],
    ]
    if m.batch.max > 1:
        rows.append(["observations in one inference", f"1 to {m.batch.max}, each as alone"])
    if m.prompt is not None:
        rows.append(["task when none is named", m.prompt.default_task or "none: deploy with --task"])
        rows += [["trained on", text] for text in m.prompt.trained_tasks]
    return _table(["", ""], rows)


def _joint_table(m: Manifest, comparison: Comparison) -> str:
    """Differences in robot units and as shares of range; a tolerance only where one decides."""
    a = comparison.parity.actions
    n = len(a.max_abs_per_joint)
    means, ranges = (v or (np.nan,) * n for v in (a.mean_abs_per_joint, a.range_per_joint))
    head = ["joint", "unit", "mean difference", "largest", "of its range"]
    rows = [
        [name, unit, f"{mean:.3g}", f"{largest:.3g}", f"{100 * largest / width:.2g} %"]
        for name, unit, mean, largest, width in zip(
            m.action.names, m.action.units, means, a.max_abs_per_joint, ranges, strict=True
        )
    ]
    words = ""
    reference = html.escape(comparison.parity.reference)
    return (
        f"<p>{comparison.parity.n_samples} samples; reference: {reference}. {words}</p>{_table(head, rows)}"
    )


def _stage_table(comparison: Comparison) -> str:
    rows = [
        [
            name,
            f"{s.max_abs:.3g}",
            "not judged by itself" if s.tolerance is None else f"{s.tolerance:.3g}",
            " ".join(f"{e:.1e}" for e in s.per_step or ()),
        ]
        for name, s in comparison.parity.stages.items()
    ]
    return _table(["graph", "largest difference", "tolerance", "per denoise step"], rows)


def _latency_table(m: Manifest, speedup: float) -> str:
    latency = m.latency
    if latency is None:
        return "<p>Not measured.</p>"
    rows = [[name, f"{p.p50:.2f}", f"{p.p99:.2f}"] for name, p in latency_rows(latency)]
    steps = m.schedule.n_steps if m.schedule is not None else 0
    rows.append(["one chunk, exported", f"{chunk_ms(latency, steps):.2f}", ""])
    note = f"<p>{html.escape(latency.machine)}. Exported is {speedup:.2f} times as fast as eager PyTorch.</p>"
    return _table(["", "median ms", "p99 ms"], rows) + note


def latency_rows(latency: Latency) -> list[tuple[str, Percentiles]]:
    """(what, percentiles) of every graph that was measured, then eager PyTorch."""
    graphs = [(n, getattr(latency, f"{n}_ms")) for n in ("encode", "time", "denoise", "decode")]
    return [*((n, p) for n, p in graphs if p is not None), ("one chunk, eager PyTorch", latency.eager_ms)]


def _camera_rows(m: Manifest, meaning: Meaning) -> list[list[str]]:
    rows = []
    for feature, camera in meaning.bindings.items():
        shape = m.features[feature].shape
        rows.append([camera, feature, f"{shape[1]}x{shape[0]}" if camera != "none" else "absent"])
    return rows


def _provenance_rows(m: Manifest) -> list[list[str]]:
    p = m.provenance
    rows = [
        ["checkpoint", f"{p.checkpoint.path} ({p.checkpoint.layout}), sha256 {p.checkpoint.sha256[:16]}"],
        ["dataset", "none" if p.dataset is None else f"{p.dataset.repo_id}, sha256 {p.dataset.sha256[:16]}"],
        ["features from", p.features_from],
        ["versions", f"edgevla {p.edgevla}, torch {p.torch}, onnx {p.onnx}, onnxruntime {p.onnxruntime}"],
        ["exported at", p.exported_at],
    ]
    return rows + [[f"option {k}", str(v)] for k, v in p.options.items()]


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    out = [f"<table><tr>{cells}</tr>" if any(head) else "<table>"]
    for row in rows:
        out.append("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>")
    return "".join(out) + "</table>"


# -- pictures -----------------------------------------------------------------------------------------------


def _chunk_picture(m: Manifest, comparison: Comparison) -> str:
    """Per joint: the chunk of the sample that differs most, torch as a line, exported as dots on it."""
    from matplotlib.figure import Figure

    i = worst_sample(comparison)
    n = len(m.action.names)
    columns = min(n, 3)
    rows = -(-n // columns)
    figure = Figure(figsize=(10, 2.2 * rows + 0.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, sharex=True)).ravel()
    seconds = np.arange(m.chunk_size) / m.fps
    for joint, axis in enumerate(axes):
        if joint >= n:
            axis.set_visible(False)
            continue
        axis.plot(seconds, comparison.reference[i, :, joint], color="#1f77b4", lw=2, label="torch")
        axis.plot(seconds, comparison.exported[i, :, joint], "o", color="#d62728", ms=2.5, label="exported")
        axis.set_title(f"{m.action.names[joint]} ({m.action.units[joint]})", fontsize=9)
        axis.tick_params(labelsize=8)
    axes[0].legend(fontsize=8)
    figure.supxlabel(f"seconds after the observation (the sample that differs most, number {i})", fontsize=9)
    return _png(figure)


def _error_picture(m: Manifest, comparison: Comparison) -> str:
    """Per joint: how the largest difference of every sample spreads, with the tolerance as a mark where one decides."""
    from matplotlib.figure import Figure

    error = np.maximum(np.abs(comparison.reference - comparison.exported).max(axis=1), 1e-12)  # (n, A)
    figure = Figure(figsize=(10, 3), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(m.action.names))
    for place in places:
        axis.plot(np.full(len(error), place), error[:, place], "o", color="#1f77b4", alpha=0.4, ms=4)
    tolerance = comparison.parity.actions.tolerance_per_joint
    if tolerance is not None:
        axis.plot(places, tolerance, "_", color="#d62728", ms=28, mew=2, label="tolerance")
        axis.legend(fontsize=8, markerscale=0.4)
    axis.set_yscale("log")
    axis.set_xticks(places, m.action.names, fontsize=8, rotation=20 if len(places) > 4 else 0)
    axis.set_ylabel("difference, robot units", fontsize=9)
    axis.set_title("largest difference between torch and exported, each sample a dot", fontsize=9)
    return _png(figure)


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()

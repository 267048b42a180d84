"""`report.html`: whether the bundle is the policy, what its precision costs the arm, and how fast it is; one file, no
network. The answer first, one picture under it, then the numbers; what is for the curious is folded.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgevla.errors import UsageError
from edgevla.joint_units import joint_name
from edgevla.manifest import Manifest
from edgevla.manifest_record import Latency, Percentiles

from .certified import certificate_words
from .features import Meaning
from .parity import Comparison, chunk_ms
from .planner import plans, subject_of, this_machine
from .report_pictures import chunk_picture, horizon_picture, worst_sample
from .verdict import kept_words, meaning_words, precision_words, reach_mm, rule

STYLE = """
body { font: 15px/1.55 system-ui, sans-serif; max-width: 66rem; margin: 2.2rem auto; padding: 0 1.2rem; color: #1f2933; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
.sub { color: #7b8794; margin: .1rem 0 1rem; }
.verdict { border-left: 5px solid; padding: .5rem .9rem; border-radius: 3px; }
.good { border-color: #2f855a; background: #f0faf4; } .bad { border-color: #b00020; background: #fdf1f2; }
table { border-collapse: collapse; margin: .4rem 0 .8rem; }
th { font-weight: 600; color: #52606d; font-size: .85rem; vertical-align: bottom; }
th, td { text-align: left; padding: .22rem 1.1rem .22rem 0; border-bottom: 1px solid #e4e7eb; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.scale { display: inline-block; width: 9rem; margin-right: 6rem; background: #e9edf2; border-radius: 2px;
  line-height: .6rem; }
.bar { display: inline-block; height: .6rem; background: #2b6cb0; border-radius: 2px; } .over { background: #c2410c; }
.note { color: #52606d; font-size: .9rem; } .no { color: #b00020; font-weight: 600; }
img { max-width: 100%; display: block; margin: .8rem 0; }
summary { cursor: pointer; font-weight: 600; margin-top: 1.6rem; }
"""
BAR_REM = 9.0
"""As long as the rule's limit: the width of `.scale`."""
MOST_TIMES = 1.6
"""A longer bar is cut."""


def write_report(
    path: Path, manifest: Manifest, comparison: Comparison, meaning: Meaning, speedup: float | None
) -> None:
    """The page for people; what programs need is in the manifest."""
    m = manifest
    page = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(m.name)}</title>",
        f"<style>{STYLE}</style>",
        f"<h1>{html.escape(m.name)}</h1><p class=sub>{html.escape(_subtitle(m))}</p>",
        _verdict(m, comparison),
        *(f'<p class="verdict bad">{html.escape(w)}</p>' for w in meaning.warnings),
        _image("difference to torch, per joint and horizon", horizon_picture(m, comparison)),
        "<h2>What it means for the arm</h2>",
        _joints(m),
        *(["<h2>What the precision costs, and where</h2>", _lowered(m)] if m.lowered is not None else []),
        "<h2>How fast</h2>",
        _latency(m, speedup),
        "<details><summary>The chunk that differs most, graph by graph, settings, cameras, provenance</summary>",
        f"<p class=note>Sample {worst_sample(comparison)} of those below.</p>",
        _image("predicted chunk of the worst sample", chunk_picture(m, comparison)),
        f"<p class=note>Reference: {html.escape(comparison.parity.reference)}.</p>",
        _stages(comparison),
        _facts(m),
        _table(["robot's camera", "policy's feature", "size"], _camera_rows(m, meaning)),
        _table(["what", "value"], _provenance_rows(m)),
        "</details></html>",
    ]
    path.write_text("\n".join(page) + "\n")


# -- the answer -------------------------------------------------------------------------------------------------


def _subtitle(m: Manifest) -> str:
    size = sum(f.bytes for f in m.files) / 1e6
    return f"{m.policy}, {precision_words(m)}, for {m.target.provider}; {size:.1f} MB"


def _verdict(m: Manifest, comparison: Comparison) -> str:
    certificate = html.escape(certificate_words(comparison.parity))
    judged = html.escape(rule(m))
    if comparison.parity.passed:
        said = f"<b>It computes what the policy computes.</b> {judged}."
    else:
        said = (
            "<b>It does not compute what the policy computes</b>, and was written because of --allow-parity-failure. "
            f"{judged}."
        )
    kind = "good" if comparison.parity.passed else "bad"
    return f'<p class="verdict {kind}">{said}<br>From raw frames to robot units it {certificate}.</p>'


def _joints(m: Manifest) -> str:
    """Differences in robot units, beside what the rule allows."""
    assert m.parity is not None
    a = m.parity.actions
    head = [
        "joint",
        "unit",
        "mean",
        "99 of 100",
        "allowed",
        "largest",
        "allowed",
        "of its range",
        "at 30 cm",
        "within",
    ]
    rows = []
    for j, (name, unit) in enumerate(zip(m.action.names, m.action.units, strict=True)):
        usual, usual_may = (a.p99_abs_per_joint or ())[j], (a.p99_tolerance_per_joint or ())[j]
        most, most_may = a.max_abs_per_joint[j], (a.tolerance_per_joint or ())[j]
        mm = reach_mm(usual, unit)
        rows.append(
            [
                joint_name(name),
                unit,
                *(f"{v:.2g}" for v in ((a.mean_abs_per_joint or ())[j], usual, usual_may, most, most_may)),
                f"{100 * most / (a.range_per_joint or ())[j]:.2g} %",
                "" if mm is None else f"{mm:.2g} mm",
                "yes" if usual <= usual_may and most <= most_may else "NO",
            ]
        )
    numbers = [*range(2, 9)]
    reach = "At 30 cm: how far 99 of 100 actions move what is 30 cm from the joint. "
    if not any(row[8] for row in rows):  # no joint is an angle
        head, rows, numbers, reach = [*head[:8], head[9]], [[*r[:8], r[9]] for r in rows], numbers[:-1], ""
    note = (
        f"{m.parity.n_samples} observations, all {m.chunk_size} actions of each chunk. {reach}What a difference does "
        "beside the policy's own errors, only driving shows: "
        "<code>edgevla eval BUNDLE --task</code>, or <code>edgevla eval CHECKPOINT BUNDLE --dataset D</code>."
    )
    said = html.escape(meaning_words(m))
    return f"<p>{said}</p>{_table(head, rows, numbers)}<p class=note>{note}</p>"


def _lowered(m: Manifest) -> str:
    """What each part costs when it alone is lowered; and every layer that was kept."""
    found = m.lowered
    assert found is not None
    parts = [[name, _bar(score), f"{score:.2g}"] for name, score in found.parts.items()]
    parts.append(["everything", _bar(found.everything), f"{found.everything:.2g}"])
    head = ["lowered alone", "", "of the limit"]
    out = f"<p>Precision: {html.escape(kept_words(m))}.</p>{_table(head, parts, numbers=[2], markup=[1])}"
    if found.kept:
        rows = [
            [k.layer, k.stored, f"{k.n_weights:,}", "not measured" if k.alone is None else f"{k.alone:.2g}"]
            for k in found.kept
        ]
        head = ["layer", "is", "weights", "alone, of the limit"]
        summary = "All that is not lowered as far"
        out += f"<details><summary>{summary}</summary>{_table(head, rows, numbers=[2, 3])}</details>"
    note = (
        f"Measured on {found.n_samples} frames, others may cost more; the grey bar is what the rule allows."
    )
    return f"{out}<p class=note>{note}</p>"


def _bar(score: float) -> str:
    kind = "bar over" if score > 1 else "bar"
    width = BAR_REM * min(score, MOST_TIMES)
    return f'<span class=scale><span class="{kind}" style="width:{width:.2f}rem"></span></span>'


# -- speed -------------------------------------------------------------------------------------------------------


def _latency(m: Manifest, speedup: float | None) -> str:
    """Measured beside the least time that this machine's arithmetic and memory allow."""
    latency = m.latency
    if latency is None or speedup is None:
        why = "the export's machine cannot run this bundle; one that can measures it with <code>edgevla bench</code>"
        return f"<p class=note>Not measured: {why}.</p>"
    steps = m.schedule.n_steps if m.schedule is not None else 0
    bounds = dict(_bounds(m))
    rows = [
        [name, f"{p.p50:.2f}", f"{p.p99:.2f}", f"{bounds[name]:.2f}" if name in bounds else ""]
        for name, p in latency_rows(latency)
    ]
    chunk = chunk_ms(latency, steps)
    least = bounds.get("chunk")
    rows.insert(-1, ["one chunk, exported", f"{chunk:.2f}", "", "" if least is None else f"{least:.2f}"])
    play = 1e3 * m.n_action_steps / m.fps
    note = (
        f"{html.escape(latency.machine)}; {speedup:.2f} times as fast as eager PyTorch. The {m.n_action_steps} actions "
        f"that sync executes of a chunk play {play:.0f} ms, so it computes {_share(chunk / play)} of that time"
    )
    if least is not None:
        note += (
            f"; {min(least / chunk, 1):.0%} of what this machine could do at best (products at the peak measured now, "
            "weights read once; other boards: <code>edgevla inspect BUNDLE --device</code>)"
        )
    return (
        _table(["", "median ms", "p99 ms", "at best ms"], rows, numbers=range(1, 4))
        + f"<p class=note>{note}.</p>"
    )


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "less than 1 %"


def _bounds(m: Manifest) -> Iterator[tuple[str, float]]:
    """Per run of a graph, and of a chunk, in the bundle's precision; nothing where it is not known."""
    try:
        subject = subject_of(m)
    except UsageError:
        return
    plan = next((p for p in plans(subject, this_machine()) if p.precision == subject.stored), None)
    if plan is None:
        return
    for name, ms in plan.ms.items():
        yield name, ms / (subject.n_steps if name == "denoise" else 1)
    yield "chunk", plan.chunk_ms


def latency_rows(latency: Latency) -> list[tuple[str, Percentiles]]:
    """(what, percentiles) of every graph that was measured, then eager PyTorch."""
    graphs = [(n, getattr(latency, f"{n}_ms")) for n in ("encode", "time", "denoise", "decode")]
    return [*((n, p) for n, p in graphs if p is not None), ("one chunk, eager PyTorch", latency.eager_ms)]


# -- for the curious ---------------------------------------------------------------------------------------------


def _stages(comparison: Comparison) -> str:
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


def _facts(m: Manifest) -> str:
    schedule = "none" if m.schedule is None else f"{m.schedule.n_steps} denoise steps ({m.schedule.kind})"
    rows = [
        ["target", f"{m.target.engine}, {m.target.provider}"],
        ["precision", ", ".join(f"{n} {p}" for n, p in m.target.precision.items())],
        ["rate, chunk", f"{m.fps:g} Hz, {m.chunk_size} actions, {m.n_action_steps} executed by sync"],
        ["schedule", schedule],
        ["execution", f"{m.execution.default['kind']} (allowed: {', '.join(m.execution.allowed)})"],
    ]
    if m.batch.max > 1:
        rows.append(["observations in one inference", f"1 to {m.batch.max}, each as alone"])
    if m.prompt is not None:
        rows.append(["task when none is named", m.prompt.default_task or "none: deploy with --task"])
        rows += [["trained on", text] for text in m.prompt.trained_tasks]
    return _table(["", ""], rows)


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


# -- markup ------------------------------------------------------------------------------------------------------


def _image(words: str, png: str) -> str:
    return f'<img alt="{words}" src="data:image/png;base64,{png}">'


def _table(
    head: list[str],
    rows: list[list[str]],
    numbers: Sequence[int] = (),
    markup: Sequence[int] = (),
) -> str:
    """numbers: columns that are set to the right. markup: columns that are HTML already."""

    def cell(tag: str, column: int, text: str) -> str:
        kind = " class=n" if column in numbers else ' class="no"' if text == "NO" else ""
        return f"<{tag}{kind}>{text if column in markup else html.escape(text)}</{tag}>"

    def row(tag: str, cells: list[str]) -> str:
        return "<tr>" + "".join(cell(tag, i, c) for i, c in enumerate(cells)) + "</tr>"

    above = row("th", head) if any(head) else ""
    return "<table>" + above + "".join(row("td", r) for r in rows) + "</table>"

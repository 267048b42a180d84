"""`edgevla inspect --device`: arithmetic counted against other counters, bounds by hand, and what a person reads."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgevla.bundle import Bundle, load_bundle, write_manifest
from edgevla.cli import main
from edgevla.export import draft, planner
from edgevla.export.build import export_checkpoint
from edgevla.export.options import ExportOptions
from edgevla.export.trace import Method, example_input
from edgevla.export.work import count
from edgevla.manifest_record import Work
from edgevla.train.checkpoint import load_policy

GOLDENS = Path(__file__).parents[1] / "fixtures" / "goldens"
SMALL = planner.Device("Small", "cpu", 8.0, 10.0, {"fp32": 0.1, "fp16": 0.1, "int8": 0.4}, "a test")


@pytest.fixture(scope="module")
def bundle(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    target = tmp_path_factory.mktemp("planned") / "reach"
    return export_checkpoint(run_folder, target, ExportOptions(n_samples=2, n_timed=1)).bundle


def subject(encode: Work, fps: float | None = 30.0, chunk_size: int = 50) -> planner.PlanSubject:
    work = {"encode": encode, "denoise": Work(10**9, 10**6), "decode": Work(0, 0)}
    return planner.PlanSubject(work, 10, chunk_size, fps, ("sync", "ensemble", "async", "rtc"))


@pytest.mark.parametrize("policy", ["diffusion", "smolvla", "pi0", "pi05", "groot", "xvla"])
def test_arithmetic_is_what_torch_s_own_counter_counts(policy: str) -> None:
    """Attention as plain products, since that counter knows no attention of a CPU."""
    loaded = load_policy(GOLDENS / policy / "checkpoint")
    found = count(loaded)
    for name, work in found.items():
        spec = loaded.graphs()[name]
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            Method(loaded, name, spec)(*(example_input(i) for i in spec.inputs))
        assert work.flops == counter.get_total_flops(), name
        assert 0 <= work.weights <= sum(p.numel() for p in loaded.parameters())
    assert found["denoise"].flops > 0
    assert "time" not in found


def test_arithmetic_is_what_the_exported_graph_holds(bundle: Bundle) -> None:
    """ACT, whose attention torch's counter stumbles over: products and convolutions of the ONNX file, by hand."""
    assert bundle.manifest.work is not None
    model = onnx.shape_inference.infer_shapes(onnx.load(bundle.path("encode.onnx")), data_prop=True)
    infos = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in infos}
    shapes |= {i.name: list(i.dims) for i in model.graph.initializer}
    flops = 0
    for node in model.graph.node:
        a, b = (*node.input, "", "")[:2]
        size = int(np.prod(shapes.get(node.output[0], [0])))
        if node.op_type == "Conv":
            flops += 2 * size * int(np.prod(shapes[b][1:]))
        elif node.op_type in ("MatMul", "Gemm"):
            turned = any(x.name == "transA" and x.i for x in node.attribute)
            flops += 2 * size * shapes[a][0 if turned else -1]
    assert bundle.manifest.work["encode"].flops == pytest.approx(flops, rel=0.01)


def test_a_policy_that_looks_at_values_is_exported_without_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(GOLDENS / "diffusion/checkpoint")
    decode = type(policy).decode

    def looks(self: Any, x: torch.Tensor, extras: Any) -> torch.Tensor:
        return decode(self, x * 2 if x.sum().item() > 1e9 else x, extras)

    monkeypatch.setattr(type(policy), "decode", looks)
    assert draft._work(policy) is None
    monkeypatch.undo()
    assert draft._work(policy) == count(policy)


def test_the_bound_is_the_larger_of_arithmetic_and_reading() -> None:
    busy, heavy = Work(10**11, 10**6), Work(10**9, 10**9)
    assert planner.plans(subject(busy), SMALL)[0].ms["encode"] == pytest.approx(1000.0)
    assert planner.plans(subject(heavy), SMALL)[0].ms["encode"] == pytest.approx(400.0)
    fp32, fp16, int8, int4 = planner.plans(subject(heavy), SMALL)
    assert fp32.ms["denoise"] == pytest.approx(100.0), "ten runs"
    assert int8.ms["encode"] == pytest.approx(100.0)
    assert int4.ms["encode"] == pytest.approx(65.6, rel=1e-3), "5.25 bits are read of each weight"
    assert (fp32.fits, fp16.fits, int8.fits, int4.fits) == (False, False, True, True), (
        "fp16 is widened on a CPU"
    )


def test_what_comes_too_late_is_said() -> None:
    long = subject(Work(10**11, 10**6), chunk_size=16)
    late = planner.plans(long, SMALL)
    assert [plan.works for plan in late] == [()] * 4
    said = list(planner.lines(long, SMALL, late))
    assert "sync only, and the arm waits between chunks (one plays 533 ms)" in said[4]
    assert planner.plans(subject(Work(10**9, 10**6)), SMALL)[0].works == ("ensemble", "async", "rtc")
    unknown = subject(Work(10**9, 10**6), fps=None)
    assert "no control rate" in list(planner.lines(unknown, SMALL, planner.plans(unknown, SMALL)))[4]


def test_what_runs_faster_than_the_bound_says_that_the_peak_was_measured_too_low() -> None:
    small = replace(subject(Work(10**9, 10**6)), stored="fp32")
    found = planner.plans(small, SMALL)
    bound = next(plan.chunk_ms for plan in found if plan.precision == small.stored)
    *_, slower = planner.lines(small, SMALL, found, bound * 2)
    *_, faster = planner.lines(small, SMALL, found, bound / 2)
    assert slower.endswith("50% of what is possible")
    assert "peak was measured too low" in faster


def test_every_device_says_where_its_figures_are_from() -> None:
    for name, device in planner.devices().items():
        assert len(device.source) > 20, name
        assert set(device.peak) == {"fp32", "fp16", "int8"}
        assert 1 < device.memory < 1000
        assert 1 < device.bandwidth < 5000


def test_a_bundle_on_a_board_and_on_this_machine(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle.folder), "--device", "orin-nano"]) == 0
    said = capsys.readouterr().out
    assert "Jetson Orin Nano 8 GB: 68 GB/s" in said
    assert "without waiting" in said
    assert main(["inspect", str(bundle.folder), "--device", "this", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["planned"]
    assert planned["measured_ms"] > 0
    assert [row["precision"] for row in planned["plans"]] == ["fp32", "fp16", "int8", "int4"]


def test_a_bench_is_held_against_the_bound(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(bundle.folder), "--chunks", "4"]) == 0
    assert re.search(r"at best +[\d.e-]+ ms per chunk on one core of this machine: ", capsys.readouterr().out)
    assert main(["bench", str(bundle.folder), "--chunks", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bound_ms"] > 0


def test_a_checkpoint_on_a_board(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run_folder), "--device", "rpi5"]) == 0
    assert "Raspberry Pi 5" in capsys.readouterr().out


def test_what_cannot_be_planned_is_one_sentence(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(bundle.folder), "--device", "orin-nanno"]) == 2
    assert "did you mean 'orin-nano'?" in capsys.readouterr().err
    dataset = Path(__file__).parents[1] / "fixtures/datasets/so101_v30"
    assert main(["inspect", str(dataset), "--device", "thor"]) == 2
    assert "for checkpoints and bundles" in capsys.readouterr().err
    old = tmp_path / "old"
    old.mkdir()
    for file in bundle.folder.iterdir():
        (old / file.name).write_bytes(file.read_bytes())
    write_manifest(old, dataclasses.replace(load_bundle(old).manifest, work=None))
    assert main(["inspect", str(old), "--device", "thor"]) == 2
    assert "export it again" in capsys.readouterr().err

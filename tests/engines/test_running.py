"""Engines that run, by a stand-in for TensorRT and CUDA on the CPU: names, shapes, types, lifetimes, order of calls.

Nothing here says anything about a GPU's numbers or speed.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevla.bundle import load_bundle
from edgevla.engines import EngineOptions
from edgevla.engines.cudart import Cuda
from edgevla.engines.tensorrt import TensorRtGraph, import_tensorrt
from edgevla.engines.trt_build import build_bundle
from edgevla.errors import BundleError, EngineError
from edgevla.graph import GraphSpec
from edgevla.predictor import blank_observation
from edgevla.runner import Asked, BundlePolicy

MakeBundle = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("standin")


@pytest.fixture
def cudart(standin: Path) -> ctypes.CDLL:
    """The stand-in's own counters."""
    return ctypes.CDLL(str(standin / "nvidia/cuda_runtime/lib/libcudart.so.12"))


def built(folder: Path) -> Path:
    build_bundle(load_bundle(folder), None)
    return folder


def chunks(folder: Path, provider: str) -> list[np.ndarray]:
    policy = BundlePolicy(load_bundle(folder), provider=provider, options=EngineOptions(threads=1))
    seen = blank_observation(policy.manifest)
    moving = [replace(seen, state=seen.state + i) for i in range(3)]
    found = [policy.infer(o, grid_index=i, seed=i).actions for i, o in enumerate(moving)]
    if policy.manifest.batch.max > 1:
        together = policy.infer_batch([Asked(o, i, seed=i) for i, o in enumerate(moving[:2])])
        found += [one.actions for one in together]  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("kind", ["act", "flow", "history"])
def test_chunks_are_those_of_onnxruntime_to_the_bit(make_bundle: MakeBundle, kind: str) -> None:
    batch: dict[str, Any] = {} if kind == "act" else {"batch": {"min": 1, "max": 2}}
    folder = built(make_bundle(kind, **batch))
    for ours, theirs in zip(chunks(folder, "tensorrt"), chunks(folder, "cpu"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def encode(folder: Path, **options: Any) -> TensorRtGraph:
    return TensorRtGraph(
        folder / "encode.onnx", load_bundle(folder).manifest.graphs["encode"], EngineOptions(**options)
    )


def changed(spec: GraphSpec, what: str, **changes: Any) -> GraphSpec:
    tensors = getattr(spec, what)
    return replace(spec, **{what: (*tensors[:-1], replace(tensors[-1], **changes))})


@pytest.mark.parametrize(
    ("what", "change", "sentence"),
    [
        (
            "inputs",
            {"dtype": "int32"},
            r"input 'state' of the engine of encode.onnx is float32 \[1, 6\]; the man",
        ),
        (
            "inputs",
            {"shape": (1, 7)},
            r"input 'state' .* is float32 \[1, 6\]; the manifest says float32 \[1, 7\]",
        ),
        (
            "inputs",
            {"name": "pose"},
            r"the engine of encode.onnx has the inputs front, state; the manifest says",
        ),
        (
            "outputs",
            {"dtype": "float16"},
            r"output 'x' of the engine of encode.onnx is float32 .* says float16",
        ),
        ("outputs", {"shape": (1, 9, 6)}, r"output 'x' .* is float32 \[1, 10, 6\]"),
    ],
)
def test_an_engine_that_is_not_what_the_manifest_says_is_refused_before_a_buffer_is_made(
    make_bundle: MakeBundle, cudart: ctypes.CDLL, what: str, change: dict[str, Any], sentence: str
) -> None:
    folder = built(make_bundle("act"))
    spec = changed(load_bundle(folder).manifest.graphs["encode"], what, **change)
    made = cudart.standin_made()
    with pytest.raises(BundleError, match=sentence):
        TensorRtGraph(folder / "encode.onnx", spec, EngineOptions())
    assert cudart.standin_made() == made


def test_an_engine_for_fewer_observations_than_the_bundle_takes_is_refused(make_bundle: MakeBundle) -> None:
    folder = built(make_bundle("flow", batch={"min": 1, "max": 2}))
    graph = TensorRtGraph(
        folder / "encode.onnx", load_bundle(folder).manifest.graphs["encode"], EngineOptions(max_batch=2)
    )
    graph._most = 3
    with pytest.raises(BundleError, match=r"takes .* up to \[2, .*the manifest says \[3, "):
        graph._check_profile()


def test_nothing_is_allocated_after_the_first_run_and_everything_is_freed(
    make_bundle: MakeBundle, cudart: ctypes.CDLL
) -> None:
    folder = built(make_bundle("act"))
    live = cudart.standin_live()
    policy = BundlePolicy(load_bundle(folder), provider="tensorrt")
    policy.warm_up(2)
    made = cudart.standin_made()
    policy.warm_up(5)
    assert cudart.standin_made() == made
    del policy
    assert cudart.standin_live() == live


def test_what_a_run_gives_is_not_overwritten_by_the_next(make_bundle: MakeBundle) -> None:
    graph = encode(built(make_bundle("act")), keep_on_device=True)
    front = np.zeros((1, 24, 32, 3), np.uint8)
    first = graph.run({"front": front, "state": np.full((1, 6), 1, np.float32)})["x"]
    second = graph.run({"front": front, "state": np.full((1, 6), 2, np.float32)})["x"]
    assert first.numpy()[0, 0, 0] == 1
    assert second.numpy()[0, 0, 0] == 2
    assert graph.stack([first, second]).shape == (1, 2, 10, 6)


def test_an_input_of_another_shape_is_refused(make_bundle: MakeBundle) -> None:
    graph = encode(built(make_bundle("act")))
    with pytest.raises(EngineError, match=r"input 'state' of encode.onnx has shape \(1, 7\), not \(1, 6\)"):
        graph.run({"front": np.zeros((1, 24, 32, 3), np.uint8), "state": np.zeros((1, 7), np.float32)})


def test_every_thread_uses_the_chosen_device(cudart: ctypes.CDLL) -> None:
    cuda, seen = Cuda(1), []

    def run() -> None:
        before = cudart.standin_device()
        cuda.use()
        seen.append((before, cudart.standin_device()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(0, 1)]


def test_a_device_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(EngineError, match="CUDA's cudaSetDevice failed: invalid device ordinal"):
        Cuda(7)


def test_a_machine_without_cuda_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevla.engines.cudart.candidates", lambda: iter(["libnowhere.so"]))
    with pytest.raises(
        EngineError, match=r"CUDA's runtime library is not there .*apt install nvidia-jetpack"
    ):
        Cuda()


def test_a_graph_without_an_engine_says_how_to_build_it(make_bundle: MakeBundle) -> None:
    folder = make_bundle("act")
    with pytest.raises(EngineError, match=f"no TensorRT engine .*: edgevla build {folder}"):
        encode(folder)


def test_an_engine_that_cannot_be_read_is_named_with_tensorrts_reason(
    make_bundle: MakeBundle, cache: Path
) -> None:
    folder = built(make_bundle("act"))
    (file,) = cache.glob("encode-*.engine")
    file.write_bytes(b"not an engine")
    with pytest.raises(EngineError, match=rf"cannot read {file} \(magic tag does not match\)"):
        encode(folder)


# -- TensorRT itself --------------------------------------------------------------------------------------------


def in_place_of_tensorrt(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tensorrt.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("__version__ = '8.6.2'", r"TensorRT 8.6.2 is too old: EdgeVLA needs 10 or later, which JetPack 6.1"),
        (
            "raise ImportError('libnvinfer.so.10: cannot open')",
            r"cannot be loaded \(libnvinfer.so.10: cannot",
        ),
        ("raise OSError('wrong ELF class')", r"cannot be loaded \(wrong ELF class\)"),
        ("raise RuntimeError('numpy 1 needed')", r"cannot be loaded \(numpy 1 needed\)"),
        (
            "import tensorrt_bindings_that_lack",
            r"cannot be loaded: No module named 'tensorrt_bindings_that_lack'",
        ),
        ("", r"cannot be loaded \(module 'tensorrt' has no attribute '__version__'\)"),
    ],
)
def test_a_tensorrt_that_cannot_be_used_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, sentence: str
) -> None:
    in_place_of_tensorrt(tmp_path, code, monkeypatch)
    with pytest.raises(EngineError, match=sentence):
        import_tensorrt()


def test_no_tensorrt_names_the_environment_that_sees_jetpacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "standin" not in p])
    with pytest.raises(EngineError, match=r"has no tensorrt\. On a Jetson .*--system-site-packages"):
        import_tensorrt()


def test_doctor_loads_tensorrt_and_says_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgevla.robots.tools.doctor import environment

    def tensorrt() -> tuple[str, str]:
        return next((c.level, c.text) for c in environment() if c.what == "tensorrt")

    assert tensorrt() == ("ok", "10.3.0 on stand-in 0, compute capability 75.76, driver 12060")
    monkeypatch.setattr("edgevla.engines.cudart.candidates", lambda: iter(["libnowhere.so"]))
    level, text = tensorrt()
    assert level == "fail"
    assert "CUDA's runtime library is not there" in text


def test_a_jetson_is_not_told_to_install_what_pip_has_not(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevla.engines.onnx.has_gpu_wheel", lambda: False)
    with pytest.raises(
        EngineError, match="no GPU wheel for this Python on 64-bit ARM; on a Jetson use --provider ten"
    ):
        BundlePolicy(load_bundle(make_bundle("act")), provider="cuda")

"""What an engine is called, when it is built anew, what is kept; and real builds by TensorRT-RTX."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgevla.bundle import load_bundle
from edgevla.engines import ahead
from edgevla.engines.ahead import NotWaited, Seldom, build_ahead, described, nobody_builds
from edgevla.engines.engine_files import (
    LOCK,
    UNUSED_S,
    BuildSettings,
    BuildStatus,
    EngineFiles,
    alone,
    prune,
    take,
    tidy,
    write_status,
)
from edgevla.engines.trt_build import Phases, build_bundle, build_serialized
from edgevla.errors import BundleError, EngineError, UsageError
from edgevla.session import Deployment, began, guardian_socket, new_session, run_dir, write_deployment

MakeBundle = Callable[..., Path]
DEVICE: dict[str, int | str] = {
    "name": "Orin",
    "major": 8,
    "minor": 7,
    "n_multiprocessors": 16,
    "driver": 12060,
}


# -- names ------------------------------------------------------------------------------------------------------


def test_all_that_changes_an_engine_changes_its_name(cache: Path, make_bundle: MakeBundle) -> None:
    onnx = make_bundle("act") / "encode.onnx"
    names = [
        EngineFiles("10.3.0", DEVICE).find(onnx, 1),
        EngineFiles("10.4.0", DEVICE).find(onnx, 1),
        *(EngineFiles("10.3.0", {**DEVICE, key: 1}).find(onnx, 1) for key in DEVICE),
        EngineFiles("10.3.0", DEVICE).find(onnx, 2),
        EngineFiles("10.3.0", DEVICE).find(onnx, 1, BuildSettings(workspace_mb=512)),
        EngineFiles("10.3.0", DEVICE).find(onnx, 1, BuildSettings(tf32=True)),
    ]
    onnx.with_name("encode.onnx.data").write_bytes(b"weights")
    names.append(EngineFiles("10.3.0", DEVICE).find(onnx, 1))
    onnx.with_name("encode.onnx.data").write_bytes(b"Weights")
    names.append(EngineFiles("10.3.0", DEVICE).find(onnx, 1))
    assert len({path for path, _ in names}) == len(names) == 12


def test_weights_are_read_once(cache: Path, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = make_bundle("act") / "encode.onnx"
    monkeypatch.setattr("edgevla.digests.SETTLED_NS", -1)
    first = EngineFiles("10.3.0", DEVICE).find(onnx, 1)
    monkeypatch.setattr("hashlib.blake2b", None)  # whoever reads it again fails
    assert EngineFiles("10.3.0", DEVICE).find(onnx, 1) == first


@pytest.mark.usefixtures("standin")
def test_settings_are_remembered_once_their_engines_are_there(
    make_bundle: MakeBundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(make_bundle("act"))
    build_bundle(bundle, None)
    monkeypatch.setenv("STANDIN_REFUSES", "no kernel fits")
    with pytest.raises(EngineError, match=r"parsed encode.onnx but cannot build it \(no kernel fits\)"):
        build_bundle(bundle, BuildSettings(workspace_mb=512))
    assert all(one["s"] == 0 for one in build_bundle(bundle, None))
    monkeypatch.delenv("STANDIN_REFUSES")
    small = build_bundle(bundle, BuildSettings(workspace_mb=512))
    assert all(one["s"] > 0 for one in small)
    assert [one["file"] for one in build_bundle(bundle, None)] == [one["file"] for one in small]
    about = json.loads(Path(small[0]["file"]).read_bytes().splitlines()[1])
    assert about == {"profiles": [], "cleared": ["TF32"], "pools": {"WORKSPACE": 512 << 20}}


@pytest.mark.usefixtures("standin")
def test_tf32_is_on_only_where_asked(make_bundle: MakeBundle) -> None:
    (one, _) = build_bundle(load_bundle(make_bundle("act")), BuildSettings(tf32=True))
    assert json.loads(Path(one["file"]).read_bytes().splitlines()[1])["cleared"] == []


@pytest.mark.usefixtures("standin")
def test_timings_are_kept_and_a_damaged_memory_of_them_is_begun_anew(
    make_bundle: MakeBundle, cache: Path
) -> None:
    bundle = load_bundle(make_bundle("act"))
    build_bundle(bundle, None)
    (timings,) = cache.glob("timing-*")
    assert timings.read_bytes() == b"measured measured "
    timings.write_bytes(b"damaged")
    build_bundle(bundle, BuildSettings(workspace_mb=64))
    assert timings.read_bytes() == b"measured measured "


# -- what is kept -----------------------------------------------------------------------------------------------


def engine(folder: Path, name: str, unused_s: float) -> Path:
    path = folder / f"{name}.engine"
    path.write_bytes(b"x")
    os.utime(path, (time.time() - unused_s, time.time() - unused_s))
    return path


Usage = namedtuple("Usage", "total used free")


def test_engines_unused_for_a_month_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 50, 50))
    old, kept = engine(tmp_path, "old", UNUSED_S + 60), engine(tmp_path, "kept", UNUSED_S + 60)
    engine(tmp_path, "new", UNUSED_S - 60)
    assert prune(tmp_path, [kept]) == [old]
    assert {p.stem for p in tmp_path.iterdir()} == {"new", "kept"}


def test_on_a_full_disk_those_unused_for_longest_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in enumerate("cba"):
        engine(tmp_path, name, 60.0 * age)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 0, 12 - 2 * len(list(tmp_path.iterdir()))))
    assert [p.stem for p in prune(tmp_path, [])] == ["a", "b"]


def test_what_a_killed_builder_left_half_written_goes(tmp_path: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    part = cache / "encode-1-2.engine.part"
    part.write_bytes(b"half")
    with alone(cache):
        tidy(cache)
        assert part.exists(), "it may be the running builder's"
    tidy(cache)
    assert not part.exists()


# -- with torque on, never --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("standin")
def test_no_engine_is_built_while_a_guardian_may_hold_an_arm(make_bundle: MakeBundle) -> None:
    bundle, session = load_bundle(make_bundle("act")), new_session()
    folder, pid = run_dir(session), os.getpid()
    write_deployment(folder, Deployment(session.hex(), pid, "so101", None, [], "", began(pid)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as guardian:
        guardian.bind(str(guardian_socket(folder)))
        with pytest.raises(UsageError, match=r"may hold an arm \(so101, since .*\), and no engine is built"):
            build_bundle(bundle, None)
    build_bundle(bundle, None)  # its guardian has gone


def test_an_arm_waits_for_the_end_of_a_build(cache: Path) -> None:
    cache.mkdir(parents=True)
    told: list[str] = []
    build = take(cache / LOCK)
    assert build is not None
    write_status(cache, BuildStatus(1, "b", "encode", 0, 1, "timing", 0.5, time.monotonic_ns()))
    with pytest.raises(NotWaited), nobody_builds(told.append, lambda: bool(told)):
        raise AssertionError("the arm was started")
    assert told[0].startswith("waiting until the arm may start: building encode (1 of 1): timing, 50 %")
    threading.Timer(0.05, os.close, [build]).start()
    with nobody_builds(told.append, lambda: False):
        assert take(cache / LOCK) is None, "a build may begin beside the arm's start"


# -- how far it is ----------------------------------------------------------------------------------------------


def test_phases_within_phases_are_one_fraction_that_never_goes_back() -> None:
    phases, seen = Phases(), []
    phases.start("engine", None, 4)
    phases.step("engine", 0)
    phases.start("tactics", "engine", 2)
    for step in range(2):
        phases.step("tactics", step)
        seen.append(phases.fraction)
    assert phases.name == "tactics"
    phases.finish("tactics")
    phases.step("engine", 1)
    phases.start("another", None, 10)
    phases.step("another", 0)
    assert [*seen, phases.fraction] == [0.375, 0.5, 0.5]


def test_a_build_is_described_with_the_time_that_is_left() -> None:
    began_ns = time.monotonic_ns() - 30_000_000_000
    status = BuildStatus(1, "b", "encode", 0, 3, "Timing tactics", 0.25, began_ns)
    assert described(status) == "building encode (1 of 3): Timing tactics, 25 %, about 1 min 30 s left"
    assert described(replace(status, fraction=0.0)) == "building encode (1 of 3): Timing tactics, 0 %"


def test_lines_that_stay_are_few() -> None:
    told: list[str] = []
    seldom = Seldom(told.append, every_s=60)
    for graph in ("a (1 of 2)", "b (2 of 2)"):
        for percent in range(3):
            seldom(f"building {graph}: {percent} %")
    assert told == ["building a (1 of 2): 0 %", "building b (2 of 2): 0 %"]


# -- how it ends ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "STANDIN_REFUSES",
            "no kernel fits",
            r"^TensorRT parsed encode.onnx but cannot build it \(no kernel fits\)$",
        ),
        (
            "STANDIN_DIES",
            str(int(signal.SIGKILL)),
            r"was killed, most likely because memory ran out; .*--workspace",
        ),
        ("STANDIN_DIES", str(int(signal.SIGABRT)), r"ended with SIGABRT"),
        ("STANDIN_VERSION", "8.6.2", r"^TensorRT 8.6.2 is too old"),
    ],
)
def test_why_a_build_failed_reaches_who_asked(
    make_bundle: MakeBundle,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    sentence: str,
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(EngineError, match=sentence):
        build_ahead(load_bundle(make_bundle("act")), lambda _: None)
    assert not list(cache.glob("*.part"))
    assert not list(cache.glob("*.engine"))


@pytest.mark.usefixtures("standin")
def test_a_build_that_does_not_get_on_is_given_up(
    make_bundle: MakeBundle, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_GATE", f"encode={tmp_path / 'gate'}")
    monkeypatch.setattr(ahead, "STALLED_S", 0.3)
    with pytest.raises(EngineError, match=r"has not got on for 0 s, at '.*edgevla build .*--workspace 512"):
        build_ahead(load_bundle(make_bundle("act")), lambda _: None)
    assert take(cache / LOCK) is not None, "the builder was ended"


# -- TensorRT-RTX, for real -------------------------------------------------------------------------------------


def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is in the extra dev")


def for_a_named_gpu(trt: Any, config: Any) -> None:
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    config.clear_flag(trt.BuilderFlag.TF32)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 64 << 20)


def test_tensorrt_itself_is_compared_with_the_manifest_before_it_builds(make_bundle: MakeBundle) -> None:
    trt, folder = rtx(), make_bundle("act")
    spec = load_bundle(folder).manifest.graphs["encode"]
    made, _ = build_serialized(trt, folder / "encode.onnx", spec, for_a_named_gpu)
    assert made.nbytes > 1000
    wrong = replace(spec, inputs=(spec.inputs[0], replace(spec.inputs[1], shape=(1, 7))))
    with pytest.raises(BundleError, match=r"input 'state' of encode.onnx is float32 \[1, 6\]; the manifest"):
        build_serialized(trt, folder / "encode.onnx", wrong, for_a_named_gpu)


def test_tensorrts_own_words_are_told(make_bundle: MakeBundle) -> None:
    trt, folder = rtx(), make_bundle("act")
    spec = load_bundle(folder).manifest.graphs["encode"]
    (folder / "encode.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"TensorRT cannot parse encode.onnx: .*[Pp]ars"):
        build_serialized(trt, folder / "encode.onnx", spec, for_a_named_gpu)


@pytest.mark.usefixtures("standin")
def test_a_real_build_tells_its_phases(
    make_bundle: MakeBundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx()
    monkeypatch.setenv("STANDIN_RTX", "1")
    monkeypatch.setattr("edgevla.engines.trt_build.STATUS_S", 0.0)
    phases: list[str] = []
    monkeypatch.setattr("edgevla.engines.trt_build.write_status", lambda _, s: phases.append(s.phase))
    build_bundle(load_bundle(make_bundle("act")), None)
    assert {"reading the graph", "Building engine", "writing the engine"} <= set(phases)

"""Fixtures that several areas share. Torch-free: these tests also run where torch is not installed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

# A busy machine is no failure: examples have no deadline of 0.2 s.
hypothesis_settings.register_profile("edgevla", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("edgevla")

# A runner in the background of a shell ignores Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

JOINTS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
T, A, H, W = 10, 6, 24, 32


@pytest.fixture(autouse=True, scope="session")
def no_run_at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs that say no --log leave their folder with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.delenv("STATE_DIRECTORY", raising=False)
        yield


@pytest.fixture(autouse=True)
def no_priority() -> Iterator[None]:
    """A video encoder that root runs leaves its process before all others, also in the next test."""
    yield
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """`make_bundle(kind, name="bundle", **manifest keys) -> folder`: a real bundle of a few nodes whose actions can
    be worked out by hand. T = 10 actions of 6 joints, camera `front` 24x32.

    act      actions[j] = state + j * mean(image) / 255            (encode yields x; no loop)
    flow     x_next = x + (tau_next - tau) * (x - goal), goal = state plus a guidance towards `committed`;
             with linear 1 -> 0 and one step the chunk is the goal itself. Takes tokens, camera_present, rtc.
    history  n_obs_steps 2: actions[j] = oldest state + 0 * noise    (a schedule of timesteps, fresh noise per step)

    `batch={"min": 1, "max": N}` makes flow and history take N observations at a time.
    """

    def make(kind: str = "act", name: str = "bundle", **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        _BUILDERS[kind](folder, changes)
        if "batch" in changes:
            _open_for_batches(folder)
        return folder

    return make


def _graph(
    folder: Path, name: str, nodes: list[Any], inputs: list[tuple], outputs: list[tuple], constants: dict
) -> dict:
    """Saves one ONNX file; returns the manifest's entry. inputs: (name, dtype, shape, source)."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kinds = {
        "float32": TensorProto.FLOAT,
        "uint8": TensorProto.UINT8,
        "int64": TensorProto.INT64,
        "bool": TensorProto.BOOL,
    }
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(n, kinds[d], s) for n, d, s, _ in inputs],
        [helper.make_tensor_value_info(o[0], kinds[o[1]], o[2]) for o in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / f"{name}.onnx"))
    keys = ("name", "dtype", "shape", "source")
    return {
        "file": f"{name}.onnx",
        "inputs": [dict(zip(keys, i, strict=True)) for i in inputs],
        "outputs": [dict(zip(("name", "dtype", "shape", "history"), o, strict=False)) for o in outputs],
    }


def _open_for_batches(folder: Path) -> None:
    """Leaves the first axis of all inputs and outputs free."""
    from dataclasses import replace

    import onnx

    from edgevla.bundle import list_files, load_bundle, write_manifest

    manifest = load_bundle(folder).manifest
    for graph in manifest.graphs.values():
        model = onnx.load(folder / graph.file)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.save(model, folder / graph.file)
    write_manifest(folder, replace(manifest, files=list_files(folder)))


def _node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, inputs.split(), [output], **attributes)


CAMERA = ("front", "uint8", [1, H, W, 3], "camera:observation.images.front")
STATE = ("state", "float32", [1, A], "state")
X = ("x", "float32", [1, T, A], "x")
TAUS = [("tau", "float32", [1], "schedule:tau"), ("tau_next", "float32", [1], "schedule:tau_next")]


def _act(folder: Path, changes: dict) -> None:
    import numpy as np

    nodes = [
        _node("Cast", "front", "pixels", to=1),
        _node("ReduceMean", "pixels", "mean", keepdims=0),
        _node("Mul", "mean scale", "light"),
        _node("Mul", "ramp light", "slope"),
        _node("Unsqueeze", "state axis", "row"),
        _node("Add", "slope row", "x"),
    ]
    ramp = np.arange(T, dtype=np.float32).reshape(1, T, 1)
    constants = {"scale": np.float32(1 / 255), "ramp": ramp, "axis": np.array([1])}
    graphs = {
        "encode": _graph(folder, "encode", nodes, [CAMERA, STATE], [X[:3]], constants),
        "decode": _decode(folder),
    }
    _manifest(folder, "act", graphs, ["sync", "ensemble", "async"], changes)


def _decode(folder: Path) -> dict:
    return _graph(folder, "decode", [_node("Identity", "x", "actions")], [X], [("actions", *X[1:3])], {})


def _flow(folder: Path, changes: dict) -> None:
    more = {
        "prompt": _prompt(folder),
        "sample": {"dtype": "float32", "shape": [1, T, A], "action_dim": A},
        "schedule": {"kind": "linear", "start": 1.0, "end": 0.0, "n_steps": 4, "n_steps_allowed": [1, 100]},
        "rtc": {"mode": "guided", "weights": "linear", "guidance_end": 5, "max_guidance": 10.0},
    }
    graphs = {"encode": _flow_encode(folder), "denoise": _flow_denoise(folder), "decode": _decode(folder)}
    _manifest(folder, "smolvla", graphs, ["sync", "ensemble", "async", "rtc"], {**more, **changes})


FLOW_GOAL = ("goal", "float32", [1, 1, A])


def _flow_encode(folder: Path) -> dict:
    import numpy as np

    nodes = [
        # Unused values still pass through, so that the signature is real.
        _node("Cast", "front", "pixels", to=1),
        _node("ReduceMax", "pixels", "light", keepdims=0),
        _node("Cast", "tokens", "words", to=1),
        _node("ReduceMax", "words", "word", keepdims=0),
        _node("Cast", "token_mask", "masked", to=1),
        _node("ReduceMax", "masked", "any_token", keepdims=0),
        _node("Cast", "camera_present", "there", to=1),
        _node("ReduceMin", "there", "all_there", keepdims=0),
        _node("Mul", "light all_there", "seen"),
        _node("Mul", "word any_token", "said"),
        _node("Add", "seen said", "extra"),
        _node("Mul", "extra zero", "nothing"),
        _node("Unsqueeze", "state axis", "row"),
        _node("Add", "row nothing", "goal"),
    ]
    inputs = [
        CAMERA,
        ("camera_present", "bool", [1, 1], "camera_present"),
        ("tokens", "int64", [1, 8], "prompt:tokens"),
        ("token_mask", "bool", [1, 8], "prompt:mask"),
        STATE,
    ]
    constants = {"zero": np.float32(0), "axis": np.array([1])}
    return _graph(folder, "encode", nodes, inputs, [FLOW_GOAL], constants)


def _flow_denoise(folder: Path) -> dict:
    import numpy as np

    nodes = [
        _node("Sub", "committed goal", "error"),
        _node("Unsqueeze", "weights last", "share"),
        _node("Mul", "error share", "pull"),
        _node("Unsqueeze", "max_guidance inner", "limit"),
        _node("Mul", "limit zero", "no_limit"),
        _node("Add", "goal pull", "guided"),
        _node("Sub", "x guided", "velocity"),
        _node("Sub", "tau_next tau", "time"),
        _node("Unsqueeze", "time inner", "dt"),
        _node("Mul", "velocity dt", "step"),
        _node("Add", "x step", "moved"),
        _node("Add", "moved no_limit", "x_next"),
    ]
    rtc = [
        ("committed", "float32", [1, T, A], "rtc:committed"),
        ("weights", "float32", [1, T], "rtc:weights"),
        ("max_guidance", "float32", [1], "rtc:max_guidance"),
    ]
    inputs = [X, *TAUS, (*FLOW_GOAL, "context:goal"), *rtc]
    constants = {"zero": np.float32(0), "last": np.array([-1]), "inner": np.array([1, 2])}
    return _graph(folder, "denoise", nodes, inputs, [("x_next", *X[1:3])], constants)


def _prompt(folder: Path) -> dict:
    """Writes a tokenizer of five words; the manifest's prompt block."""
    import json

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "go", "left", "right"])}
    tokenizer = {
        "version": "1.0",
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/tokenizer.json").write_text(json.dumps(tokenizer))
    return {
        "recipe": "smolvla",
        "template": "{task}",
        "clean_task": ["ensure_newline"],
        "state": None,
        "tokenizer": {
            "file": "tokenizer/tokenizer.json",
            "n_tokens": 8,
            "padding": "max_length",
            "padding_side": "right",
            "add_bos": False,
            "pad_id": 0,
        },
        "default_task": "go left",
    }


def _history(folder: Path, changes: dict) -> None:
    import numpy as np

    noise = ("noise", "float32", [1, T, A], "noise:step")
    features = ("features", "float32", [1, A])
    stacked = ("features", "float32", [1, 2, A], "context:features")
    encode = [
        _node("Cast", "front", "pixels", to=1),
        _node("ReduceMax", "pixels", "light", keepdims=0),
        _node("Mul", "light zero", "nothing"),
        _node("Add", "state nothing", "features"),
    ]
    denoise = [
        _node("Gather", "features first", "oldest", axis=1),
        _node("Add", "tau tau_next", "times"),
        _node("Add", "times stochastic", "chosen"),
        _node("Mul", "chosen zero", "none"),
        _node("Unsqueeze", "none inner", "no_time"),
        _node("Mul", "x zero", "no_x"),
        _node("Mul", "noise zero", "no_noise"),
        _node("Sum", "oldest no_time no_x no_noise", "x_next"),
    ]
    graphs = {
        "encode": _graph(
            folder, "encode", encode, [CAMERA, STATE], [(*features, 2)], {"zero": np.float32(0)}
        ),
        "denoise": _graph(
            folder,
            "denoise",
            denoise,
            [X, *TAUS, stacked, noise, ("stochastic", "float32", [1], "setting:stochastic")],
            [("x_next", *X[1:3])],
            {"zero": np.float32(0), "first": np.array([0]), "inner": np.array([1, 2])},
        ),
        "decode": _decode(folder),
    }
    more = {
        "n_obs_steps": 2,
        "sample": {"dtype": "float32", "shape": [1, T, A], "action_dim": A},
        "schedule": {
            "kind": "timesteps",
            "n_train": 100,
            "spacing": "leading",
            "n_steps": 5,
            "n_steps_allowed": [1, 100],
        },
        "settings": {"stochastic": {"dtype": "float32", "default": 1.0, "values": [0.0, 1.0]}},
    }
    _manifest(folder, "diffusion", graphs, ["sync", "async"], {**more, **changes})


_BUILDERS = {"act": _act, "flow": _flow, "history": _history}


def _manifest(folder: Path, policy: str, graphs: dict, allowed: list[str], changes: dict) -> None:
    from edgevla.bundle import list_files, write_manifest
    from edgevla.manifest import Manifest
    from edgevla.strict import write

    vector = {
        "dtype": "float32",
        "shape": [A],
        "names": [f"{j}.pos" for j in JOINTS],
        "units": ["deg"] * 5 + ["percent"],
        "zero": "mid_range",
    }
    data = {
        "schema": 1,
        "policy": policy,
        "name": "hand-made",
        "fps": 30.0,
        "chunk_size": T,
        "n_action_steps": T,
        "n_obs_steps": 1,
        "batch": {"min": 1, "max": 1},
        "features": {
            "observation.images.front": {
                "kind": "camera",
                "dtype": "uint8",
                "shape": [H, W, 3],
                "encoding": "rgb8",
            },
            "observation.state": {"kind": "state", **vector},
            "action": {"kind": "action", **vector},
        },
        "trained_range": {"observation.state": {"q01": [-90.0] * 5 + [0.0], "q99": [90.0] * 5 + [100.0]}},
        "trained_speed_p999": {"action": [200.0] * A},
        "prompt": None,
        "sample": None,
        "schedule": None,
        "settings": {},
        "rtc": None,
        "graphs": graphs,
        "execution": {
            "default": {"kind": "sync", "n_action_steps": T},
            "allowed": allowed,
            "ensemble_decay": 0.01,
        },
        "target": {
            "engine": "onnxruntime",
            "provider": "cpu",
            "opset": 20,
            "ir_version": 10,
            "precision": dict.fromkeys(graphs, "fp32"),
        },
        "parity": None,
        "latency": None,
        "provenance": {
            "checkpoint": {"path": "hand-made", "sha256": "0" * 64, "layout": "none"},
            "dataset": None,
            "features_from": "tests/conftest.py",
            "edgevla": "0",
            "torch": "none",
            "onnx": "none",
            "onnxruntime": "none",
            "exported_at": "2026-01-01T00:00:00Z",
        },
        "files": write(list_files(folder)),
        **changes,
    }
    write_manifest(folder, Manifest.from_json(data))

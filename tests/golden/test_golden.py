"""Parity with the recorded reference: every recorded key, and what a checkpoint must survive."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from golden_harness import Adapter, Fixture, compare
from safetensors.torch import load_file, save_file

from edgevla.errors import CheckpointError
from edgevla.train.checkpoint import load_policy, save_policy
from edgevla.train.nn.eagle import Unused
from edgevla.train.policies.base import TorchGraph

# Tasks that are longer than the fixture's text are cut, as in the reference.
pytestmark = pytest.mark.filterwarnings("ignore:the prompt has about")


def test_output(adapter: Adapter, fixture: Fixture, key: str) -> None:
    try:
        computed = adapter.compute(key)
    except KeyError as error:
        if error.args == (key,):
            pytest.fail(f"nothing computes '{key}': add a @computes method to cases_{fixture.policy_type}.py")
        raise
    compare(key, computed, fixture.cases[key], is_bfloat16=fixture.is_bfloat16)


def test_nothing_that_is_recorded_passes_unread(adapter: Adapter, fixture: Fixture) -> None:
    for key in fixture.expected:
        with contextlib.suppress(Exception):  # `test_output` says so
            adapter.compute(key)
    unread = adapter.unread()
    assert not unread, f"{fixture.name}: nothing reads {', '.join(unread)}"


def test_weight_names_shapes_and_what_is_trainable(adapter: Adapter, fixture: Fixture) -> None:
    policy = adapter.policy
    keys = fixture.folder / "keys.txt"
    if not keys.is_file():
        pytest.skip(f"{fixture.name} has no keys.txt")
    rows = [line.split("\t") for line in keys.read_text().splitlines()[1:]]
    expected = {name: (shape, dtype) for name, shape, dtype, flags in rows if "-" not in flags}
    saved = policy.saved_weights()
    assert {
        k: (str(list(v.shape)), str(v.dtype).removeprefix("torch.")) for k, v in saved.items()
    } == expected
    # Tied parameters have one name here and may be stored under another.
    trained = {p.data_ptr() for p in policy.parameters() if p.requires_grad and p.numel()}
    trainable = {name for name, tensor in saved.items() if tensor.data_ptr() in trained}
    assert trainable == {name for name, *_, flags in rows if "T" in flags and "-" not in flags}


def test_saving_and_loading_changes_no_bit(adapter: Adapter, fixture: Fixture, tmp_path: Path) -> None:
    folder = save_policy(adapter.policy, tmp_path / "saved")
    again = load_policy(folder)
    before, after = adapter.policy.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    constants = dict(adapter.policy.named_buffers())
    assert all(torch.equal(b, constants[n]) for n, b in again.named_buffers())
    # LeRobot refuses unknown keys: the config has the loaded one's keys and values.
    loaded = json.loads((adapter.folder / "config.json").read_text())
    assert json.loads((folder / "config.json").read_text()) == loaded
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        assert json.loads((folder / name).read_text()) == json.loads((adapter.folder / name).read_text())
    for path in adapter.folder.rglob("*"):
        copied = folder / path.relative_to(adapter.folder)
        assert copied.exists(), f"{copied.name} is missing from the saved folder"
        if path.suffix == ".safetensors" and path.name != "model.safetensors":
            tensors, saved = load_file(str(path)), load_file(str(copied))
            assert tensors.keys() == saved.keys()
            assert all(torch.equal(tensors[k], saved[k]) for k in tensors)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_are_listed(
    adapter: Adapter, fixture: Fixture, tmp_path: Path, damage: str
) -> None:
    folder = fixture.write_checkpoint(tmp_path / "damaged")
    weights = load_file(str(folder / "model.safetensors"))
    unused = tuple(n for n, m in adapter.policy.named_modules() if isinstance(m, Unused))
    named = [(n, p) for n, p in adapter.policy.named_parameters() if not n.startswith(unused)]
    used = {adapter.policy.Prefix + n for n, p in named if p.ndim == 2}
    name = sorted(used & set(weights))[-1]
    if damage == "missing":
        del weights[name]
    elif damage == "unexpected":
        name = adapter.policy.Prefix + "stranger.weight"
        weights[name] = torch.zeros(2)
    else:
        weights[name] = torch.zeros(weights[name].shape[0] + 1, weights[name].shape[1])
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_policy(folder)


def test_declared_graphs_are_what_the_methods_compute(adapter: Adapter, fixture: Fixture) -> None:
    """Shapes and dtypes in `graphs()` (the exporter believes them), on one observation."""
    policy = adapter.policy
    if ((policy.prompt_recipe() or {}).get("tokenizer") or {}).get("padding") == "longest":
        pytest.skip("the length of its text is not fixed, so it has no graphs")
    graphs = {name: TorchGraph(policy, name, spec) for name, spec in policy.graphs().items()}
    prefix = "infer" if any(k.startswith("infer/obs/") for k in fixture.cases) else "steps/00"
    values = adapter.sources(adapter.observation(prefix))
    sample = policy.sample_shape
    if sample is not None:
        noise = torch.zeros(1, *sample)
        values |= {"x": noise, "noise:initial": noise, "noise:step": noise}
    values |= {"schedule:tau": torch.full((1,), 0.5), "schedule:tau_next": torch.full((1,), 0.4)}
    if policy.schedule is not None:
        tau, tau_next = (torch.from_numpy(policy.schedule.taus()[i : i + 1]) for i in (0, 1))
        values |= {"schedule:tau": tau, "schedule:tau_next": tau_next}
    for name in ("encode", "time", "denoise", "decode"):
        if name not in graphs:
            continue
        spec = graphs[name].spec
        with torch.no_grad():
            bound = spec.bind(values)
            outputs = graphs[name].run(bound)
        for tensor in spec.inputs:
            if not (tensor.source or "").startswith(("context:", "time:")):
                assert tuple(bound[tensor.name].shape) == tensor.shape, tensor.name
        for tensor in spec.outputs:
            assert tuple(outputs[tensor.name].shape) == tensor.shape, tensor.name
            assert str(outputs[tensor.name].dtype) == f"torch.{tensor.dtype}", tensor.name
        if name == "encode":
            stacks = {o.name: o.history for o in spec.outputs}
            for output, value in outputs.items():
                n = stacks[output]
                values[f"context:{output}"] = value if n is None else torch.stack([value] * n, 1)
            values.setdefault("x", outputs.get("x"))
        elif name == "time":
            values |= {f"time:{k}": v for k, v in outputs.items()}

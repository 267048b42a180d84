"""A second phase that learns one denoise step from two (SnapFlow, arXiv 2604.05656), against another reading of it.

That reading is in velocities, as the paper has it, and knows nothing of `denoise`: the target is the mean of those at
pure noise and at the half-step point. Time 1 is noise in it, whatever the policy's own direction is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from vla_kit import MakeVla, random_batch

from edgevla.engines import load_graph
from edgevla.errors import BundleError, CheckpointError
from edgevla.export.trace import save, trace
from edgevla.train.checkpoint import load_policy, save_policy
from edgevla.train.policies.flow import FlowPolicy
from edgevla.train.policies.vla import FlowVla
from edgevla.train.policies.xvla_actions import ActionSpace, Term

GOLDENS = Path(__file__).parents[1] / "fixtures" / "goldens"
KINDS = ["smolvla", "pi0", "pi05", "groot", "xvla"]
WEIGHT = 0.1
FindTeacher = Callable[[str], Path]
Velocity = Callable[[Tensor, float, float], Tensor]


@pytest.fixture
def teacher(make_vla: MakeVla, tmp_path: Path) -> FindTeacher:
    """The folder of a plain policy of any kind."""

    def find(kind: str) -> Path:
        if kind in ("groot", "xvla"):
            return GOLDENS / kind / "checkpoint"
        return save_policy(make_vla(kind), tmp_path / "teacher")

    return find


def student(folder: Path, *, delay: int = 0) -> FlowPolicy:
    """The policy of a folder as a second phase begins with it."""

    def adapt(config: Any, _: Any) -> Any:
        config.snapflow_weight, config.rtc_training_max_delay = WEIGHT, delay
        return config

    torch.manual_seed(5)
    policy = load_policy(folder, adapt=adapt)
    assert isinstance(policy, FlowPolicy)
    return policy


def taught(policy: FlowPolicy) -> FlowPolicy:
    """As if some steps were made: the target time says something."""
    assert policy.target_time is not None
    generator = torch.Generator().manual_seed(6)
    for parameter in policy.target_time.last.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return policy


def a_batch(policy: FlowPolicy, n: int = 4) -> dict[str, Any]:
    if isinstance(policy, FlowVla):
        halves = [random_batch(policy, 2, seed) for seed in range((n + 1) // 2)]
        return {k: torch.cat([h[k] for h in halves])[:n] for k in halves[0]}
    generator = torch.Generator().manual_seed(1)
    batch: dict[str, Any] = {
        name: torch.randint(0, 256, (n, *policy.camera_size(name), 3), generator=generator, dtype=torch.uint8)
        for name in policy.live_cameras
    }
    assert policy.sample_shape is not None
    batch["observation.state"] = torch.randn(n, policy.config.state_dim or 0, generator=generator)
    batch["action"] = torch.randn(n, policy.sample_shape[0], policy.config.action_dim, generator=generator)
    prompt = policy.prompt_builder().build(["pick the cube"] * n)
    return {**batch, "tokens": torch.from_numpy(prompt.tokens), "token_mask": torch.from_numpy(prompt.mask)}


def half_of(batch: dict[str, Any], rows: slice) -> dict[str, Any]:
    return {k: v[rows] for k, v in batch.items()}


def draws_of(policy: FlowPolicy, batch: dict[str, Any]) -> dict[str, Tensor]:
    return policy.draw(batch, torch.Generator().manual_seed(3))


# -- the other reading ----------------------------------------------------------------------------------------


def velocity_of(policy: FlowPolicy, batch: dict[str, Any]) -> Velocity:
    """v(x, t, target) with noise - action as its direction, from what each network predicts."""
    context, chosen = policy.training_context(batch)
    kind = policy.policy_type

    def at(x: Tensor, t: float, target: float) -> Tensor:
        own = [1 - t, 1 - target] if kind == "groot" else [t, target]
        tau, to = (torch.full((len(x),), v) for v in own)
        predicted = policy.predict(context, x, tau, {**chosen, "target": to})
        if kind == "groot":
            return -predicted
        return (x - predicted) / t if kind == "xvla" else predicted

    return at


def reading_of_the_shortcut(policy: FlowPolicy, batch: dict[str, Any], noise: Tensor) -> Tensor:
    v = velocity_of(policy, batch)
    with torch.no_grad():
        first = v(noise, 1.0, 1.0)
        mean = (first + v(noise - 0.5 * first, 0.5, 0.5)) / 2
    student_says = v(noise, 1.0, 0.0)
    if policy.policy_type == "xvla":  # its own terms, of the actions that velocities stand for
        space = policy.space  # type: ignore[attr-defined]
        return sum(space.losses(noise - student_says, space.as_taught(noise - mean)).values())
    return ((student_says - mean)[..., : policy.config.action_dim] ** 2).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_the_method(teacher: FindTeacher, kind: str) -> None:
    policy = taught(student(teacher(kind)))
    batch = a_batch(policy)
    draws = draws_of(policy, batch)
    loss, parts = policy.loss(batch, draws)
    loss.backward()
    assert policy.target_time is not None
    watched = [policy.target_time.last.weight, next(p for p in policy.parameters() if p.grad is not None)]
    got = [p.grad.clone() for p in watched if p.grad is not None]

    policy.zero_grad()
    first = {k: v if k == "u" else v[:2] for k, v in draws.items()}
    plain, _ = policy.flow_loss(half_of(batch, slice(0, 2)), first)
    shortcut = reading_of_the_shortcut(policy, half_of(batch, slice(2, 4)), draws["noise"][2:])
    (plain + WEIGHT * shortcut).backward()
    torch.testing.assert_close(loss, plain + WEIGHT * shortcut, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts["shortcut_loss"], shortcut.detach(), rtol=1e-4, atol=1e-6)
    for grad, parameter in zip(got, watched, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-3, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["smolvla", "pi0"])
def test_the_target_is_added_to_the_embedded_time(teacher: FindTeacher, kind: str) -> None:
    policy = taught(student(teacher(kind)))
    assert isinstance(policy, FlowVla)
    net, target = policy.target_time, torch.tensor([0.0, 0.7])
    assert net is not None
    angle = target[:, None] * 100.0 ** (torch.arange(32) / 31)
    hidden = F.silu(torch.cat([angle.sin(), angle.cos()], -1) @ net.first.weight.T + net.first.bias)
    added = hidden @ net.last.weight.T + net.last.bias
    tau, c = torch.tensor([1.0, 0.7]), policy.config
    width = policy.expert.dims.width
    periods = c.min_period * (c.max_period / c.min_period) ** torch.linspace(0, 1, width // 2).double()
    wave = 2 * math.pi * tau.double()[:, None] / periods
    embedded = torch.cat([wave.sin(), wave.cos()], -1).float()
    torch.testing.assert_close(policy.time_embedding(tau, target), embedded + added, atol=1e-4, rtol=1e-4)


def test_logits_teach_as_what_they_stand_for() -> None:
    parts = {"arm": (Term(1.0, "mse", (0,)),), "gripper": (Term(1.0, "bce", (1,)),)}
    space = ActionSpace("mine", 3, 2, parts, is_joint=True, squashed=(1,))
    x = torch.tensor([[[2.0, 0.0, 5.0]]])
    assert space.as_taught(x).tolist() == [[[2.0, 0.5, 5.0]]]
    logit = torch.tensor([[[2.0, 0.3, 5.0]]], requires_grad=True)
    sum(space.losses(logit, space.as_taught(logit.detach())).values()).backward()
    assert logit.grad is not None
    assert logit.grad.abs().max() < 1e-6, "a chunk that agrees with its target is left alone"


# -- what it begins as, and what stays ------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_before_its_first_step_it_is_its_teacher_to_the_bit(teacher: FindTeacher, kind: str) -> None:
    folder = teacher(kind)
    before, after = load_policy(folder), student(folder)
    assert isinstance(before, FlowPolicy)
    for policy in (before, after):  # torch convolves frozen weights by another kernel
        policy.requires_grad_(False)
    batch = a_batch(before, 2)
    draws = draws_of(before, batch)
    assert torch.equal(before.flow_loss(batch, draws)[0], after.flow_loss(batch, draws)[0])
    chunks = []
    for policy in (before, after):
        context, extras = policy.training_context(batch)
        taus = policy.schedule.taus(1)
        x, (tau, tau_next) = draws["noise"], (torch.full((2,), float(t)) for t in taus)
        chunks.append(policy.denoise(context, x, tau, tau_next, {**extras, "noise:initial": x}))
    assert torch.equal(*chunks)


@pytest.mark.parametrize("kind", KINDS)
def test_the_backbone_stays_and_the_rest_learns(teacher: FindTeacher, kind: str) -> None:
    """bit for bit, in training mode; the target time, too, leaves its zeros."""
    policy = student(teacher(kind)).train()
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-3)
    batch = a_batch(policy, 3)
    policy.loss(batch, draws_of(policy, batch))[0].backward()
    optimizer.step()
    backbone = {"smolvla": "vlm_with_expert.vlm.", "groot": "backbone.", "xvla": "vlm."}
    root = backbone.get(kind, "paligemma_with_expert.paligemma.")
    moved = {n for n, p in policy.named_parameters() if not torch.equal(p, before[n])}
    assert any(n.startswith(root) for n in before)
    assert not any(n.startswith(root) for n in moved)
    assert "target_time.last.weight" in moved
    assert {n for n in moved if not n.startswith("target_time")}, "the action expert learns"


@pytest.mark.parametrize("n", [1, 2, 3])
def test_any_batch_has_both_halves(teacher: FindTeacher, n: int) -> None:
    policy = student(teacher("smolvla"))
    batch = a_batch(policy, n)
    loss, parts = policy.loss(batch, draws_of(policy, batch))
    assert torch.isfinite(loss)
    assert parts["loss"] == loss == parts["flow_loss"] + WEIGHT * parts["shortcut_loss"]


@pytest.mark.parametrize("kind", ["pi05", "groot"])
def test_committed_beginnings_are_neither_changed_nor_counted(teacher: FindTeacher, kind: str) -> None:
    policy = taught(student(teacher(kind), delay=3))
    batch = a_batch(policy, 2)
    draws = draws_of(policy, batch) | {"delay": torch.tensor([2, 2])}
    with torch.no_grad():
        loss = policy.shortcut_loss(batch, draws)
        other = {**draws, "noise": draws["noise"].clone()}
        other["noise"][:, :2] += 3
        assert torch.equal(policy.shortcut_loss(batch, other), loss), "where it began does not matter"
        moved = {**batch, "action": batch["action"].clone()}
        moved["action"][:, :2] += 1
        assert not torch.equal(policy.shortcut_loss(moved, draws), loss), "what is committed does"
    assert policy.rtc_kind == "trained"


# -- files ----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_lerobots_files_are_as_ever_and_ours_bring_it_back(
    teacher: FindTeacher, kind: str, tmp_path: Path
) -> None:
    plain = save_policy(load_policy(teacher(kind)), tmp_path / "plain")
    policy = taught(student(plain))
    folder = save_policy(policy, tmp_path / "saved")
    names = []
    for one in (plain, folder):
        with safe_open(str(one / "model.safetensors"), framework="pt") as file:
            names.append(sorted(file.keys()))
    assert names[0] == names[1]
    assert "snapflow" not in (folder / "config.json").read_text()
    assert json.loads((folder / "edgevla-policy.json").read_text()) == {"snapflow_weight": WEIGHT}
    assert all(name.startswith("target_time.") for name in load_file(folder / "edgevla-policy.safetensors"))
    again = load_policy(folder)
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert again.schedule is not None
    assert again.schedule.n_steps == 1
    with pytest.raises(BundleError, match="allows 1 to 1"):
        again.schedule.taus(2)


def test_a_part_of_it_that_is_missing_is_refused(teacher: FindTeacher, tmp_path: Path) -> None:
    folder = save_policy(student(teacher("smolvla")), tmp_path / "saved")
    weights, said = folder / "edgevla-policy.safetensors", folder / "edgevla-policy.json"
    kept = load_file(weights)
    save_file({k: v for k, v in kept.items() if "first" not in k}, weights)
    with pytest.raises(CheckpointError, match=r"missing: .*target_time\.first"):
        load_policy(folder)
    weights.write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="target_time and cannot be read"):
        load_policy(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="target_time and cannot be read"):
        load_policy(folder)
    save_file(kept, weights)
    said.unlink()
    with pytest.raises(CheckpointError, match=r"edgevla-policy\.json, which is missing"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"snapflow_weight": -0.1}, "snapflow_weight is -0.1; it must be 0"),
        ({"snapflow_weight": float("nan")}, "snapflow_weight is nan"),
        ({"snapflow_weight": 0.1, "one_step_time_shift": 3.0}, "two ways to one denoise step"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(
    make_vla: MakeVla, settings: dict[str, float], says: str
) -> None:
    with pytest.raises(CheckpointError, match=says):
        make_vla("smolvla", **settings)


# -- the exported step ----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_one_step_takes_no_guidance(teacher: FindTeacher, kind: str) -> None:
    """X-VLA's prediction is the chunk itself, into which committed actions are put."""
    policy = student(teacher(kind))
    taken = {i.source for i in policy.graphs()["denoise"].inputs if (i.source or "").startswith("rtc:")}
    assert (policy.rtc_kind, taken) == (
        ("inpaint", {"rtc:committed", "rtc:weights"}) if kind == "xvla" else (None, set())
    )


@torch.no_grad()
@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_the_exported_time_is_that_of_the_one_step(teacher: FindTeacher, kind: str, tmp_path: Path) -> None:
    """SmolVLA's goes through the export verb, in tests/story."""
    policy = taught(student(teacher(kind)))
    assert isinstance(policy, FlowVla)
    spec = policy.graphs()["time"]
    save(trace(policy, "time", spec), tmp_path, "time")
    tau = torch.ones(1)
    rows = load_graph(tmp_path / "time.onnx", spec).run(spec.bind({"schedule:tau": tau.numpy()}))
    expected = policy.time_rows(policy.time_embedding(tau, torch.zeros(1)))
    assert rows.keys() == expected.keys()
    for name, row in expected.items():
        torch.testing.assert_close(torch.from_numpy(rows[name]), row, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["groot", "xvla"])
def test_the_exported_step_is_torchs(teacher: FindTeacher, kind: str, tmp_path: Path) -> None:
    policy = taught(student(teacher(kind)))
    policy.bake()
    spec = policy.graphs()["denoise"]
    save(trace(policy, "denoise", spec), tmp_path, "denoise")
    generator = torch.Generator().manual_seed(2)
    by_source: dict[str, Any] = {}
    for i in spec.inputs:
        made = torch.randn(i.shape, generator=generator) if i.dtype.startswith("float") else None
        by_source[i.source or ""] = torch.ones(i.shape, dtype=torch.bool) if made is None else made
    start, end = (torch.full((1,), float(t)) for t in policy.schedule.taus())
    by_source |= {"schedule:tau": start, "schedule:tau_next": end}
    values = {s: v.numpy() for s, v in by_source.items()}
    (got,) = load_graph(tmp_path / "denoise.onnx", spec).run(spec.bind(values)).values()
    context = {s.removeprefix("context:"): v for s, v in by_source.items() if s.startswith("context:")}
    extras = {s: v for s, v in by_source.items() if not s.startswith(("context:", "schedule:")) and s != "x"}
    expected = policy.denoise(context, by_source["x"], start, end, extras)
    torch.testing.assert_close(torch.from_numpy(got), expected, atol=1e-4, rtol=1e-3)

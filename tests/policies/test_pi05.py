"""Pi0.5's own: adaptive norms, the state in the prompt, five steps."""

from __future__ import annotations

import pytest
import torch
from vla_kit import MakeVla, chunk_of, random_batch

from edgevla.errors import CheckpointError
from edgevla.train.policies import policy_class
from edgevla.train.policies.pi05 import PREPARE_STATE, Pi05Config


def test_prompt_holds_the_normalised_state(make_vla: MakeVla) -> None:
    policy = make_vla("pi05")
    normalizer = policy.normalizers.forwards["observation__state"]
    low, high = normalizer.a, normalizer.b
    state = torch.stack([low, (low + high) / 2, high + 1, low - 1]).numpy()
    builder = policy.prompt_builder()
    texts = [builder.text("pick_the  cube\n", row) for row in state]
    assert texts[0] == "Task: pick the  cube, State: 0 0 0 0 0 0;\nAction: "
    assert "State: 255 255 255 255 255 255;" in texts[2]
    assert "State: -1 -1 -1 -1 -1 -1;" in texts[3]
    bins = [int(b) for b in texts[1].split("State: ")[1].split(";")[0].split()]
    assert all(b in (127, 128) for b in bins)


def test_switch_of_lerobot_04_pads_the_state(make_vla: MakeVla) -> None:
    policy = make_vla("pi05")
    policy.processors.step(PREPARE_STATE).config["max_state_dim"] = 10
    text = policy.prompt_builder().text("go", torch.zeros(6).numpy())
    state = text.split("State: ")[1].split(";")[0].split()
    assert len(state) == 10
    assert state[6:] == ["128"] * 4


@torch.no_grad()
def test_the_state_is_no_input_of_the_network(make_vla: MakeVla) -> None:
    policy = make_vla("pi05")
    assert "state" not in [s.source for s in policy.graphs()["encode"].inputs]
    batch = random_batch(policy)
    moved = {**batch, "observation.state": batch["observation.state"] + 3}
    assert torch.equal(chunk_of(policy, moved), chunk_of(policy, batch))


@torch.no_grad()
def test_zero_gates_pass_the_suffix_through_to_the_final_norm(make_vla: MakeVla) -> None:
    policy = make_vla("pi05")
    context = policy.encode(policy.inputs(random_batch(policy)))
    x = torch.randn(2, *policy.sample_shape)
    width = policy.dims.expert.width
    rows = policy.time(torch.full((2,), 0.4))["modulation"].clone()
    rows[:, :-1, 2 * width :] = 0
    suffix = policy.embed_suffix(x)
    expected = policy.action_out_proj(policy.expert.norm(suffix, rows[:, -1])[0])
    torch.testing.assert_close(policy.velocity(context, x, {"modulation": rows}), expected)


@torch.no_grad()
def test_modulation_is_split_into_scale_shift_gate(make_vla: MakeVla) -> None:
    policy = make_vla("pi05")
    norm, width = policy.expert.layer(0).input_layernorm, policy.dims.expert.width
    x, row = torch.randn(1, 3, width), torch.randn(1, 3 * width)
    scale, shift, gate = row.split(width, dim=1)
    got, got_gate = norm(x, row)
    unit = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(got, unit * (1 + scale) + shift)
    assert torch.equal(got_gate, gate[:, None])


def test_adaptive_norms_start_without_the_condition(make_vla: MakeVla) -> None:
    from edgevla.train.nn.transformer import AdaRMSNorm

    norm = AdaRMSNorm(8, 1e-6, 8)
    assert (norm.dense.weight == 0).all()


@torch.no_grad()
def test_step_counts_share_their_first_velocity(make_vla: MakeVla) -> None:
    policy = make_vla("pi05")
    batch = random_batch(policy)
    firsts = []
    for n in (5, 10):
        taus = policy.schedule.taus(n)
        assert len(taus) == n + 1
        context = policy.encode(policy.inputs(batch))
        x = torch.ones(2, *policy.sample_shape)
        step = policy.denoise(
            context, x, torch.full((2,), float(taus[0])), torch.full((2,), float(taus[1])), {}
        )
        firsts.append((step - x) / float(taus[1] - taus[0]))
    torch.testing.assert_close(*firsts, atol=1e-5, rtol=1e-4)
    assert policy.schedule.taus(5).tolist() == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])


def test_pi05_fast_is_the_same_policy() -> None:
    assert policy_class("pi05_fast") is policy_class("pi05")


def test_memory_of_the_development_version_is_refused() -> None:
    data = {
        "type": "pi05",
        "output_features": {"action": {"type": "ACTION", "shape": [6]}},
        "memory_frames": 6,
    }
    assert Pi05Config.from_json({**data, "use_visual_memory": False}).chunk_size == 50
    with pytest.raises(CheckpointError, match="use_visual_memory"):
        Pi05Config.from_json({**data, "use_visual_memory": True})


def test_state_is_normalised_before_the_prompt_is_built(make_vla: MakeVla) -> None:
    names = [s.name for s in make_vla("pi05").processors.pre]
    assert (
        names.index("normalizer_processor") < names.index(PREPARE_STATE) < names.index("tokenizer_processor")
    )

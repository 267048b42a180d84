"""The shared blocks against their definitions: masks, RoPE, attention, norms, tower, flow, guidance."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevla.export.half import to_half
from edgevla.train.nn import flow, masks
from edgevla.train.nn.siglip import VisionDims, VisionTower, pixel_shuffle
from edgevla.train.nn.transformer import (
    Layer,
    RMSNorm,
    Transformer,
    TransformerDims,
    attend,
    rope_tables,
    rotate,
)

DIMS = TransformerDims(width=32, depth=3, mlp=48, heads=6, kv_heads=2, head_dim=8)


# -- masks ------------------------------------------------------------------------------------------------


def test_pi0_example_of_the_specification() -> None:
    """2 image and 3 language tokens, the last padded, a state and 3 actions (docs/policies.md#masks)."""
    real = torch.tensor([[True] * 4 + [False] + [True] * 4])
    starts = [False] * 5 + [True, True, False, False]
    assert masks.position_ids(real).tolist() == [[0, 1, 2, 3, 3, 4, 5, 6, 7]]
    sees = masks.block_mask(real, starts)[0]
    prefix = [True] * 4 + [False] * 5
    assert sees[0].tolist() == sees[3].tolist() == prefix
    assert not sees[4].any()
    assert sees[5].tolist() == [*prefix[:5], True, False, False, False]
    assert all(sees[i].tolist() == prefix[:5] + [True] * 4 for i in (6, 7, 8))


def test_smolvla_example_of_the_specification() -> None:
    real = torch.ones(1, 9, dtype=torch.bool)
    sees = masks.block_mask(real, [False] * 5 + [True] * 4)[0]
    assert sees[:5].sum(1).tolist() == [5] * 5
    assert sees[5:].sum(1).tolist() == [6, 7, 8, 9]


def test_masked_bias_is_exact_and_fits_half() -> None:
    bias = masks.bias(torch.tensor([[[True, False]]]))
    assert bias.to(torch.float16).isfinite().all()
    weights = (torch.tensor([[-50.0, 900.0]]) + bias[0, 0]).softmax(-1)
    assert weights.tolist() == [[1.0, 0.0]]
    nothing = masks.bias(torch.zeros(1, 1, 4, dtype=torch.bool)).softmax(-1)
    assert nothing.isfinite().all()


# -- attention --------------------------------------------------------------------------------------------


def test_grouped_attention_is_attention_with_repeated_keys() -> None:
    q, k, v = torch.randn(2, 6, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    allowed = torch.rand(2, 5, 7) > 0.3
    allowed[..., 0] = True
    got = attend(q, k, v, masks.bias(allowed))
    wide = (x.repeat_interleave(3, dim=1) for x in (k, v))
    expected = F.scaled_dot_product_attention(q, *wide, attn_mask=allowed[:, None])
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_rope_turns_pairs_of_the_two_halves() -> None:
    positions = torch.tensor([[0, 3, 700]])
    cos, sin = rope_tables(positions, 8, 10000.0)
    angle = np.array([0, 3, 700.0])[:, None] / 10000 ** (np.arange(4) / 4)
    np.testing.assert_allclose(cos[0, 0].numpy(), np.cos(angle), atol=1e-4)
    x = torch.randn(1, 1, 3, 8)
    turned = rotate(x, (cos, sin))
    plane = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(3, 4), torch.tensor(angle).float())
    torch.testing.assert_close(turned, torch.cat([plane.real, plane.imag], -1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_norm_variants() -> None:
    x = torch.randn(3, 32) * 5
    unit = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    gemma, llama = RMSNorm(32, 1e-6, unit_offset=True), RMSNorm(32, 1e-6)
    torch.testing.assert_close(gemma(x)[0], unit)
    torch.testing.assert_close(llama(x)[0], unit)
    with torch.no_grad():
        for norm in (gemma, llama):
            norm.weight.fill_(0.5)
    torch.testing.assert_close(gemma(x)[0], unit * 1.5)
    torch.testing.assert_close(llama(x)[0], unit * 0.5)
    assert gemma.half().weight.dtype == torch.float16
    assert gemma(x.half() * 1000)[0].isfinite().all(), "float32 inside: squares of halves overflow"


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"unit_offset": True, "activation": "gelu_tanh"}])
@torch.no_grad()
def test_prefix_then_suffix_is_the_joint_pass(changes: dict) -> None:
    """One stack over [prefix, suffix] at once, against kv of the prefix and the suffix over it."""
    torch.manual_seed(0)
    dims = TransformerDims(**{**DIMS.__dict__, **changes})
    stack = Transformer(dims)
    x = torch.randn(2, 9, dims.width)
    real = torch.ones(2, 9, dtype=torch.bool)
    real[1, 3] = False
    starts = [False] * 5 + [True, True, False, False]
    rope = stack.rope(masks.position_ids(real))
    joint = stack(x, rope, masks.bias(masks.block_mask(real, starts)))[:, 5:]

    prefix = masks.bias(masks.block_mask(real[:, :5], starts[:5]))
    kv = stack.keys_values(x[:, :5], tuple(t[:, :, :5] for t in rope), prefix)
    assert kv.shape == (3, 2, 2, 2, 5, 8)
    suffix = masks.bias(masks.block_mask(real, starts)[:, 5:])
    split = stack(x[:, 5:], tuple(t[:, :, 5:] for t in rope), suffix, past=kv)
    torch.testing.assert_close(split, joint, atol=1e-5, rtol=1e-4)


def test_families_from_hugging_face_configs() -> None:
    base = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 4}
    gemma = TransformerDims.from_hf({**base, "model_type": "gemma", "head_dim": 16, "num_key_value_heads": 1})
    assert (gemma.unit_offset, gemma.activation, gemma.head_dim, gemma.kv_heads) == (True, "gelu_tanh", 16, 1)
    qwen = TransformerDims.from_hf({**base, "model_type": "qwen3", "rope_parameters": {"rope_theta": 1e6}})
    assert (qwen.qk_norm, qwen.rope_base, qwen.activation) == (True, 1e6, "silu")
    names = {n for n, _ in Layer(qwen).named_parameters()}
    assert {"self_attn.q_norm.weight", "self_attn.k_norm.weight"} <= names
    llama = TransformerDims.from_hf({**base, "model_type": "llama", "rope_theta": 5e4})
    assert (llama.unit_offset, llama.qk_norm, llama.rope_base, llama.head_dim) == (False, False, 5e4, 8)


# -- vision -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_tower_against_torch_modules() -> None:
    torch.manual_seed(0)
    tower = VisionTower(VisionDims(width=16, depth=1, mlp=24, heads=2, patch=4, image=8))
    images = torch.randn(2, 3, 8, 8)
    block, embeddings = tower.encoder.layers[0], tower.embeddings
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(2, 4, 48)
    conv = embeddings.patch_embedding
    x = patches @ conv.weight.reshape(16, 48).T + conv.bias + embeddings.position_embedding.weight
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    parts = [getattr(block.self_attn, f"{n}_proj") for n in "qkv"]
    attention.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
    attention.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
    attention.out_proj.load_state_dict(block.self_attn.out_proj.state_dict())
    y = block.layer_norm1(x)
    x = x + attention(y, y, y, need_weights=False)[0]
    x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.layer_norm2(x)), approximate="tanh"))
    torch.testing.assert_close(tower(images), tower.post_layernorm(x), atol=1e-5, rtol=1e-4)


def test_pixel_shuffle_order() -> None:
    rows, columns, width, f = 4, 6, 3, 2
    x = torch.arange(rows * columns * width).reshape(1, rows * columns, width).float()
    folded = pixel_shuffle(x, rows, columns, f)
    assert folded.shape == (1, 6, 12)
    for big_row, big_column, r, c in ((0, 0, 0, 0), (1, 2, 1, 0), (0, 1, 1, 1)):
        token = folded[0, big_row * 3 + big_column].reshape(f * f, width)[r * f + c]
        patch = x[0, (big_row * f + r) * columns + big_column * f + c]
        assert torch.equal(token, patch)


# -- flow -------------------------------------------------------------------------------------------------


def test_time_embedding_values_of_the_specification() -> None:
    rows = flow.time_embedding(torch.tensor([0.5, 1.0]), 8, 4e-3, 4.0)
    half = math.sqrt(0.5)
    expected = torch.tensor([[0, 0, 1, half, 1, -1, 0, half], [0, 0, 0, 1, 1, 1, -1, 0.0]])
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=0)


def test_guidance_strength_of_the_specification() -> None:
    taus = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.1, 0.0])
    x = torch.zeros(8, 1, 1)
    committed, weights = torch.ones(8, 1, 1), torch.ones(8, 1)
    v = flow.guide(x, torch.zeros(8, 1, 1), taus, committed, weights, torch.full((8,), 10.0))
    strengths = [10, 9.111111, 4.25, 2.761905, 2.166667, 2, 9.111111, 10]
    torch.testing.assert_close(-v.flatten(), torch.tensor(strengths), atol=1e-4, rtol=0)


def test_path_and_euler_meet() -> None:
    data, noise, time = torch.randn(3, 4, 2), torch.randn(3, 4, 2), torch.rand(3)
    x, u = flow.path(data, noise, time)
    torch.testing.assert_close(flow.euler(x, u, time, torch.zeros(3)), data, atol=1e-6, rtol=0)
    torch.testing.assert_close(flow.euler(x, u, time, torch.ones(3)), noise, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("alpha", "beta"), [(1.5, 1.0), (2.0, 3.0)])
def test_time_law(alpha: float, beta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    t = flow.draw_time(40000, generator, alpha=alpha, beta=beta, scale=1.0, offset=0.0)
    mean = alpha / (alpha + beta)
    assert float(t.mean()) == pytest.approx(mean, abs=0.01)
    assert float(t.var()) == pytest.approx(mean * (1 - mean) / (alpha + beta + 1), abs=0.005)


# -- half precision ---------------------------------------------------------------------------------------


class Tables(nn.Module):
    """What depends on time and position alone, as graphs compute it."""

    def forward(self, tau: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        cos, _ = rope_tables(masks.position_ids(real), 64, 10000.0)
        return flow.time_embedding(tau, 720, 4e-3, 4.0), cos


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_tables_keep_their_precision_in_half_graphs() -> None:
    """Sines of up to 1600 rad: in float16 they would be noise, in float32 the time is off by 9e-5."""
    tau, real = torch.tensor([0.7531]), torch.ones(1, 1000, dtype=torch.bool)
    program = torch.onnx.export(Tables().eval(), (tau, real), dynamo=True, opset_version=20, verbose=False)
    assert program is not None
    model = program.model
    model.ir_version = 10
    to_half(model, [], [])
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    inputs = {i.name: v.numpy() for i, v in zip(session.get_inputs(), (tau, real), strict=True)}
    embedding, cos = session.run(None, inputs)
    fraction = np.linspace(0, 1, 360)
    angle = np.float64(np.float32(0.7531)) * 2 * np.pi / (4e-3 * 1000**fraction)
    np.testing.assert_allclose(embedding[0], np.concatenate([np.sin(angle), np.cos(angle)]), atol=1e-6)
    exact = np.cos(np.arange(1000)[:, None] / 10000 ** (np.arange(32) / 32))
    np.testing.assert_allclose(cos[0, 0], exact, atol=2e-4)


def test_rope_of_a_half_network_is_float32() -> None:
    stack = Transformer(DIMS).half()
    cos, _ = stack.rope(torch.tensor([[900, 901]]))
    assert cos.dtype == torch.float32
    assert float((cos[0, 0, 0, 0] - math.cos(900)).abs()) < 1e-4

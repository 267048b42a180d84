"""ResNet trunks against transformers' independent implementation, and sizes read from weights."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from edgevla.errors import CheckpointError
from edgevla.train.nn.resnet import FrozenBatchNorm, ResNet, ResNetShape, feature_map_size, group_norm


def rename(name: str, is_bottleneck: bool) -> str:
    """transformers' name of a weight -> torchvision's."""
    parts = name.split(".")
    leaf = parts[-1]
    if parts[0] == "embedder":
        return f"conv1.{leaf}" if parts[2] == "convolution" else f"bn1.{leaf}"
    _, _, stage, _, block, kind = parts[:6]
    start = f"layer{int(stage) + 1}.{block}"
    if kind == "shortcut":
        return f"{start}.downsample.{0 if parts[6] == 'convolution' else 1}.{leaf}"
    number = int(parts[6]) + 1
    return f"{start}.{'conv' if parts[7] == 'convolution' else 'bn'}{number}.{leaf}"


@pytest.mark.parametrize("is_bottleneck", [False, True])
def test_feature_maps_equal_transformers(is_bottleneck):
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    widths, factor = (8, 8, 12, 16), 4 if is_bottleneck else 1
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[w * factor for w in widths],
        depths=[2, 1, 2, 1],
        layer_type="bottleneck" if is_bottleneck else "basic",
    )
    reference = ResNetModel(config).eval()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.2), (module.running_var, 0.5), (module.weight, 0.5)):
                tensor.data.uniform_(low, low + 1)
    weights = {rename(k, is_bottleneck): v for k, v in reference.state_dict().items()}
    shape = ResNetShape.of_weights({k: tuple(v.shape) for k, v in weights.items()})
    assert shape == ResNetShape(
        8, tuple((w, w * factor, n) for w, n in zip(widths, (2, 1, 2, 1), strict=True)), is_bottleneck
    )
    image = torch.rand(2, 3, 50, 70)
    expected = reference(image).last_hidden_state

    trained = ResNet(shape, nn.BatchNorm2d).eval()
    trained.load_state_dict(weights)
    torch.testing.assert_close(trained(image), expected)
    frozen = ResNet(shape, FrozenBatchNorm).train()
    frozen.load_state_dict({k: v for k, v in weights.items() if "num_batches" not in k})
    torch.testing.assert_close(frozen(image), expected, atol=1e-5, rtol=1e-5)
    assert expected.shape[-2:] == feature_map_size(50, 70)
    assert not any(isinstance(m, FrozenBatchNorm) and list(m.parameters()) for m in frozen.modules())


def test_a_dilated_last_stage_keeps_the_map_twice_as_large_and_the_weights_the_same():
    shape = ResNetShape(8, ((4, 16, 1), (4, 16, 1), (4, 16, 1), (8, 32, 2)), True)
    plain, dilated = ResNet(shape, FrozenBatchNorm), ResNet(shape, FrozenBatchNorm, dilate_last=True)
    dilated.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 64, 96)
    assert plain(image).shape[-2:] == (2, 3)
    assert dilated(image).shape[-2:] == (4, 6) == feature_map_size(64, 96, dilate_last=True)
    assert [b.conv2.dilation for b in dilated.layer4] == [(1, 1), (2, 2)]
    with pytest.raises(CheckpointError, match="bottleneck"):
        ResNet(ResNetShape.named("resnet18"), FrozenBatchNorm, dilate_last=True)


def test_group_norm_has_one_group_per_sixteen_channels():
    trunk = ResNet(ResNetShape(16, ((16, 16, 1), (16, 16, 1), (32, 32, 1), (48, 48, 1)), False), group_norm)
    groups = {m.num_channels: m.num_groups for m in trunk.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {16: 1, 32: 2, 48: 3}


@pytest.mark.parametrize(("name", "n_parameters"), [("resnet18", 11_176_512), ("resnet50", 23_508_032)])
def test_named_trunks_have_torchvisions_size_without_the_classifier(name, n_parameters):
    with torch.device("meta"):
        trunk = ResNet(ResNetShape.named(name), nn.BatchNorm2d)
    assert sum(p.numel() for p in trunk.parameters()) == n_parameters


NARROW = """
import torch
from torch import nn
from edgevla.train.nn.resnet import ResNet, ResNetShape
torch.set_num_threads(2)
trunk = ResNet(ResNetShape.named("resnet18", 4), nn.BatchNorm2d)
for _ in range(2):
    trunk(torch.rand(3, 96, 128, 3).permute(0, 3, 1, 2)).sum().backward()
"""


def test_a_narrow_trunk_learns_from_interleaved_frames():
    """In a process of its own: where it fails it takes the process along."""
    done = subprocess.run([sys.executable, "-c", NARROW], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

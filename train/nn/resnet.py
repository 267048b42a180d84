"""ResNet trunks with torchvision's weight names; torchvision itself has no wheel that fits every torch.

The sizes of a fresh trunk come from its name (`resnet18` ... `resnet152`), those of a checkpoint from its weights,
so that narrow trunks load as well. Without average pool and classifier: a trunk gives its last feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgevla.errors import CheckpointError

Norm = Callable[[int], nn.Module]
"""Number of channels -> normalisation layer."""

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}


@dataclass(frozen=True)
class ResNetShape:
    """Sizes of a trunk. stages: per stage (inner width, output width, number of blocks); a bottleneck has both."""

    stem: int
    stages: tuple[tuple[int, int, int], ...]
    is_bottleneck: bool

    @classmethod
    def named(cls, name: str, stem: int = 64) -> ResNetShape:
        """The published sizes; another `stem` than 64 scales every width with it.

        Raises:
            CheckpointError: a name that is not a torchvision ResNet.
        """
        if name not in DEPTHS:
            raise CheckpointError(f"vision_backbone '{name}' is unknown; known: {', '.join(DEPTHS)}")
        deep = name not in ("resnet18", "resnet34")
        widths = tuple(stem * 2**i for i in range(4))
        stages = tuple((w, w * 4 if deep else w, n) for w, n in zip(widths, DEPTHS[name], strict=True))
        return cls(stem, stages, deep)

    @classmethod
    def of_weights(cls, shapes: Mapping[str, tuple[int, ...]]) -> ResNetShape:
        """From torchvision's names and shapes (`conv1.weight`, `layer1.0.conv1.weight`, ...)."""
        try:
            stages = []
            for stage in range(1, 5):
                blocks = {k.split(".")[1] for k in shapes if k.startswith(f"layer{stage}.")}
                first = f"layer{stage}.0"
                last = "conv3" if f"{first}.conv3.weight" in shapes else "conv2"
                width, out = shapes[f"{first}.conv1.weight"][0], shapes[f"{first}.{last}.weight"][0]
                stages.append((width, out, len(blocks)))
            return cls(shapes["conv1.weight"][0], tuple(stages), "layer1.0.conv3.weight" in shapes)
        except KeyError as error:
            raise CheckpointError(f"the vision trunk's weights lack '{error.args[0]}'") from error

    @property
    def channels(self) -> int:
        """Channels of the last feature map."""
        return self.stages[-1][1]


class FrozenBatchNorm(nn.Module):
    """Batch norm whose four tensors are buffers: y = x * s + (b - mean * s), s = w / sqrt(var + eps)."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        bias = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)


def group_norm(channels: int) -> nn.Module:
    """Diffusion's replacement of batch norm: one group per 16 channels."""
    return nn.GroupNorm(channels // 16, channels)


class ResNetBlock(nn.Module):
    """Basic block (two 3x3) or bottleneck (1x1, 3x3, 1x1); the second convolution of a bottleneck carries the stride."""

    def __init__(
        self, n_in: int, width: int, n_out: int, stride: int, dilation: int, is_bottleneck: bool, norm: Norm
    ) -> None:
        super().__init__()
        self.is_bottleneck = is_bottleneck
        # Of interleaved frames (the fastest, and how cameras give them) with fewer than 16 channels, torch's backward
        # of a strided 1x1 convolution writes where it must not and the process dies (2.13, CPU, two threads).
        self.is_narrow = n_in < 16
        if is_bottleneck:
            self.conv1 = nn.Conv2d(n_in, width, 1, bias=False)
            self.conv2 = _conv3x3(width, width, stride, dilation)
            self.conv3 = nn.Conv2d(width, n_out, 1, bias=False)
            self.bn3 = norm(n_out)
        else:
            self.conv1 = _conv3x3(n_in, width, stride, 1)
            self.conv2 = _conv3x3(width, n_out, 1, 1)
        self.bn1, self.bn2 = norm(width), norm(width if is_bottleneck else n_out)
        self.relu = nn.ReLU()
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), norm(n_out))

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x.contiguous() if self.is_narrow else x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        if self.is_bottleneck:
            x = self.bn3(self.conv3(self.relu(x)))
        return self.relu(x + skip)


class ResNet(nn.Module):
    """Image (B, 3, H, W) -> last feature map (B, channels, ceil(H / 32), ceil(W / 32)), or / 16 when dilated.

    dilate_last: the last stage dilates instead of striding (bottlenecks only, as in torchvision).
    """

    def __init__(self, shape: ResNetShape, norm: Norm, *, dilate_last: bool = False) -> None:
        super().__init__()
        if dilate_last and not shape.is_bottleneck:
            raise CheckpointError(
                "replace_final_stride_with_dilation needs a bottleneck trunk (resnet50 or deeper)"
            )
        self.shape, self.dilate_last = shape, dilate_last
        self.conv1 = nn.Conv2d(3, shape.stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(shape.stem)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        n_in = shape.stem
        for i, (width, n_out, n_blocks) in enumerate(shape.stages):
            is_dilated = dilate_last and i == 3
            stride = 1 if i == 0 or is_dilated else 2
            # As torchvision: the first block of a dilated stage keeps the dilation of the stage before it.
            blocks = [ResNetBlock(n_in, width, n_out, stride, 1, shape.is_bottleneck, norm)]
            dilation = 2 if is_dilated else 1
            blocks += [
                ResNetBlock(n_out, width, n_out, 1, dilation, shape.is_bottleneck, norm)
                for _ in range(1, n_blocks)
            ]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
            n_in = n_out
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def parts(self) -> list[nn.Module]:
        """The trunk as a sequence: 0 conv1, 1 bn1, 2 relu, 3 maxpool, 4-7 stages (Diffusion names them so)."""
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        return [getattr(self, name) for name in names]

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts():
            x = part(x)
        return x


def feature_map_size(height: int, width: int, *, dilate_last: bool = False) -> tuple[int, int]:
    """(h, w) of the last feature map of an image: every halving rounds up."""
    for _ in range(4 if dilate_last else 5):
        height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
    return height, width


def _conv3x3(n_in: int, n_out: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, stride, padding=dilation, dilation=dilation, bias=False)

"""One vision tower for SigLIP (PaliGemma, Eagle) and SmolVLM: patches, learned positions, pre-norm blocks.

No class token, no pooling head. Module names are Hugging Face's. Positions are a plain table: nothing is interpolated,
so the tower traces to constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevla.errors import CheckpointError

from .recompute import Recomputed
from .transformer import check_said


@dataclass(frozen=True)
class VisionDims:
    """image: side in pixels of the position table's grid."""

    width: int
    depth: int
    mlp: int
    heads: int
    patch: int
    image: int
    eps: float = 1e-6

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> VisionDims:
        """Out of the `vision_config` of transformers."""
        sizes = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
        check_said(config, *sizes, "patch_size", "image_size")
        return cls(
            width=config["hidden_size"],
            depth=config["num_hidden_layers"],
            mlp=config["intermediate_size"],
            heads=config["num_attention_heads"],
            patch=config["patch_size"],
            image=config["image_size"],
            eps=config.get("layer_norm_eps", 1e-6),
        )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image // self.patch


class _Embeddings(nn.Module):
    def __init__(self, dims: VisionDims, spread: bool) -> None:
        super().__init__()
        self.dims, self.spread = dims, spread
        self.patch_embedding = nn.Conv2d(3, dims.width, dims.patch, stride=dims.patch)
        self.position_embedding = nn.Embedding(dims.grid**2, dims.width)
        nn.init.normal_(self.position_embedding.weight, std=dims.width**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embedding(images.to(self.patch_embedding.weight.dtype))
        rows, columns = patches.shape[2:]
        ids = self._ids(rows, columns)
        x = patches.flatten(2).transpose(1, 2)
        if ids is None:
            return x + self.position_embedding.weight
        return x + self.position_embedding(torch.tensor(ids, device=x.device))

    def _ids(self, rows: int, columns: int) -> list[int] | None:
        """Row of the position table for each patch; None: all of them in order."""
        grid = self.dims.grid
        if rows == columns == grid:
            return None
        if not self.spread or rows > grid or columns > grid:
            raise CheckpointError(
                f"images of {rows}x{columns} patches were given to a vision tower for {grid}x{grid} "
                f"({self.dims.image} px); set the policy's image resolution to {self.dims.image}"
            )
        return [(i * grid // rows) * grid + j * grid // columns for i in range(rows) for j in range(columns)]


class _SelfAttention(nn.Module):
    def __init__(self, dims: VisionDims) -> None:
        super().__init__()
        self.heads = dims.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(dims.width, dims.width) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, dims: VisionDims) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dims.width, dims.mlp)
        self.fc2 = nn.Linear(dims.mlp, dims.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class _Block(nn.Module):
    def __init__(self, dims: VisionDims) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(dims.width, eps=dims.eps)
        self.self_attn = _SelfAttention(dims)
        self.layer_norm2 = nn.LayerNorm(dims.width, eps=dims.eps)
        self.mlp = _Mlp(dims)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Encoder(nn.Module):
    def __init__(self, dims: VisionDims) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Block(dims) for _ in range(dims.depth))


class VisionTower(Recomputed):
    """images (B, 3, H, W) -> patch features (B, patches, width), row-major, after the post norm.

    spread: smaller images take positions spread over the whole table (SmolVLM); else their size must fit exactly.
    """

    def __init__(self, dims: VisionDims, *, spread: bool = False) -> None:
        super().__init__()
        self.dims = dims
        self.embeddings = _Embeddings(dims, spread)
        self.encoder = _Encoder(dims)
        self.post_layernorm = nn.LayerNorm(dims.width, eps=dims.eps)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embeddings(images)
        for block in self.encoder.layers:
            x = self.call(block, x)
        return self.post_layernorm(x)


def pixel_shuffle(x: Tensor, rows: int, columns: int, factor: int) -> Tensor:
    """Folds factor x factor neighbours into channels: (B, rows * columns, C) -> (B, rows * columns / f^2, C * f^2).

    Token (I, J) holds at channel (r * f + c) * C + ch what patch (f * I + r, f * J + c) has at ch.

    Raises:
        CheckpointError: rows or columns are no multiple of the factor.
    """
    if rows % factor or columns % factor:
        raise CheckpointError(
            f"images of {rows}x{columns} patches do not fold {factor}x{factor}; give images of another size"
        )
    n, _, width = x.shape
    x = x.reshape(n, rows // factor, factor, columns // factor, factor, width).transpose(2, 3)
    return x.reshape(n, (rows // factor) * (columns // factor), factor * factor * width)

"""Florence-2's encoder half: DaViT, the image projector, and BART's text encoder.

Names are those of the published checkpoints (LeRobot up to 0.5); `NEWER_NAMES` maps the transformers library's layout
onto them. Everything has fixed sizes and no masks, so it traces to plain products. Source: arXiv 2311.06242.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevla.errors import CheckpointError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
"""Of BART's MLP, by Hugging Face's names."""

PUBLISHED: dict[str, Any] = {
    "projection_dim": 1024,
    "vision_config": {
        "drop_path_rate": 0.1,
        "patch_size": [7, 3, 3, 3],
        "patch_stride": [4, 2, 2, 2],
        "patch_padding": [3, 1, 1, 1],
        "patch_prenorm": [False, True, True, True],
        "dim_embed": [256, 512, 1024, 2048],
        "num_heads": [8, 16, 32, 64],
        "num_groups": [8, 16, 32, 64],
        "depths": [1, 1, 9, 1],
        "window_size": 12,
        "projection_dim": 1024,
        "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": 100},
        "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": 50},
        "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
    },
    "text_config": {
        "vocab_size": 51289,
        "d_model": 1024,
        "encoder_layers": 12,
        "encoder_ffn_dim": 4096,
        "encoder_attention_heads": 16,
        "max_position_embeddings": 4096,
        "dropout": 0.1,
    },
}

NEWER_NAMES: tuple[tuple[str, str], ...] = (
    (r"^(vision_tower\.convs\.\d+)\.conv\.", r"\1.proj."),
    (r"\.(conv[12])\.(weight|bias)$", r".\1.fn.dw.\2"),
    (r"\.(spatial_block)\.norm1\.", r".\1.window_attn.norm."),
    (r"\.(channel_block)\.norm1\.", r".\1.channel_attn.norm."),
    (r"\.(window_attn|channel_attn)\.(qkv|proj)\.", r".\1.fn.\2."),
    (r"\.norm2\.", r".ffn.norm."),
    (r"\.ffn\.(fc[12])\.", r".ffn.fn.net.\1."),
    (r"^multi_modal_projector\.image_projection\.weight$", r"image_projection"),
    (r"^multi_modal_projector\.image_proj_norm\.", r"image_proj_norm."),
    (r"^multi_modal_projector\.image_position_embed\.", r"image_pos_embed."),
    (r"^multi_modal_projector\.visual_temporal_embed\.", r"visual_temporal_embed."),
    (r"^language_model\.(?!model\.|final_logits_bias)", r"language_model.model."),
)
"""Pattern in the newer layout -> published name, applied in order to names without a prefix."""


def is_newer_layout(names: list[str]) -> bool:
    """Whether weights are named as transformers does since it has Florence-2 itself."""
    return any(name.startswith("multi_modal_projector.") for name in names)


def published_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the newer layout under the published names; the image projection is transposed on the way."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        for pattern, replacement in NEWER_NAMES:
            # The text encoder has no convolutions and keeps its own norms' names.
            if name.startswith("language_model.") and not pattern.startswith("^language"):
                continue
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor.T.contiguous() if name == "image_projection" else tensor
    return renamed


class DropPath(nn.Dropout):
    """Leaves out a residual branch for whole samples while training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        keep = torch.rand(shape, device=x.device, dtype=x.dtype) >= self.p
        return x * keep / (1 - self.p)


# -- DaViT ----------------------------------------------------------------------------------------------------
# Blocks pass (tokens (B, N, D), height, width): the convolutions see a map, the attentions a sequence.


class _Depthwise(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        image = x.transpose(1, 2).unflatten(2, (height, width))
        return self.dw(image).flatten(2).transpose(1, 2)


class _WindowAttention(nn.Module):
    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        batch, _, channels = x.shape
        w = self.window
        rows, columns = -(-height // w), -(-width // w)
        image = x.unflatten(1, (height, width))
        image = F.pad(image, (0, 0, 0, columns * w - width, 0, rows * w - height))  # padding takes part
        windows = image.reshape(batch, rows, w, columns, w, channels).transpose(2, 3)
        windows = windows.reshape(batch * rows * columns, w * w, channels)
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out = self.proj(out).reshape(batch, rows, columns, w, w, channels).transpose(2, 3)
        return out.reshape(batch, rows * w, columns * w, channels)[:, :height, :width].flatten(1, 2)


class _ChannelAttention(nn.Module):
    """Attention between the channels of a group; tokens are what is summed over."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.groups, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = ((q * (height * width) ** -0.5).transpose(-1, -2) @ k).softmax(-1)
        out = (scores @ v.transpose(-1, -2)).transpose(-1, -2)
        return self.proj(out.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        return self.net["fc2"](F.gelu(self.net["fc1"](x)))


class _Residual(nn.Module):
    """x + fn(norm(x)); without a norm where the published block has none."""

    def __init__(self, fn: nn.Module, width: int | None, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if width is not None else None
        self.fn = fn
        self.drop = DropPath(drop_path)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        return x + self.drop(self.fn(x if self.norm is None else self.norm(x), height, width))


class _Block(nn.Module):
    def __init__(self, width: int, name: str, attention: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.conv1 = _Residual(_Depthwise(width), None)
        self.add_module(name, _Residual(attention, width, drop_path))
        self.conv2 = _Residual(_Depthwise(width), None)
        self.ffn = _Residual(_Mlp(width), width, drop_path)
        self.parts = ("conv1", name, "conv2", "ffn")

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        for part in self.parts:
            x = self._modules[part](x, height, width)  # type: ignore[misc]
        return x


class _Embed(nn.Module):
    def __init__(
        self, n_in: int, n_out: int, kernel: int, stride: int, padding: int, *, prenorm: bool
    ) -> None:
        super().__init__()
        self.prenorm = prenorm
        self.proj = nn.Conv2d(n_in, n_out, kernel, stride, padding)
        self.norm = nn.LayerNorm(n_in if prenorm else n_out)

    def forward(self, image: Tensor) -> tuple[Tensor, int, int]:
        """(B, C, H, W) -> tokens (B, h * w, D), h, w."""
        if self.prenorm:
            image = self.norm(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        image = self.proj(image)
        height, width = image.shape[2:]
        tokens = image.flatten(2).transpose(1, 2)
        return (tokens if self.prenorm else self.norm(tokens)), height, width


class DaViT(nn.Module):
    """Images (B, 3, H, W) -> (tokens (B, h * w, D), h, w)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        widths, depths = config["dim_embed"], config["depths"]
        n_halves = 2 * sum(depths)
        rate = float(config.get("drop_path_rate", 0.0))
        drops = [rate * i / max(1, n_halves - 1) for i in range(n_halves)]
        self.convs = nn.ModuleList()
        self.blocks = nn.ModuleList()
        half = 0
        for s, width in enumerate(widths):
            geometry = (config[k][s] for k in ("patch_size", "patch_stride", "patch_padding"))
            before = 3 if s == 0 else widths[s - 1]
            self.convs.append(_Embed(before, width, *geometry, prenorm=config["patch_prenorm"][s]))
            stage = nn.ModuleList()
            for _ in range(depths[s]):
                window = _WindowAttention(width, config["num_heads"][s], config["window_size"])
                channel = _ChannelAttention(width, config["num_groups"][s])
                pair = {
                    "spatial_block": _Block(width, "window_attn", window, drops[half]),
                    "channel_block": _Block(width, "channel_attn", channel, drops[half + 1]),
                }
                stage.append(nn.ModuleDict(pair))
                half += 2
            self.blocks.append(stage)

    def forward(self, images: Tensor) -> tuple[Tensor, int, int]:
        height = width = 0
        for embed, stage in zip(self.convs, self.blocks, strict=True):
            x, height, width = embed(images)
            for pair in stage:  # type: ignore[attr-defined]
                x = pair["channel_block"](pair["spatial_block"](x, height, width), height, width)
            images = x.transpose(1, 2).unflatten(2, (height, width))
        return x, height, width


# -- projector ------------------------------------------------------------------------------------------------


class _PositionTable(nn.Module):
    """Column half first, then row half."""

    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        self.row_embeddings = nn.Embedding(n, width // 2)
        self.column_embeddings = nn.Embedding(n, width - width // 2)

    def forward(self, height: int, width: int) -> Tensor:
        columns = self.column_embeddings.weight[:width][None].expand(height, -1, -1)
        rows = self.row_embeddings.weight[:height][:, None].expand(-1, width, -1)
        return torch.cat([columns, rows], dim=-1).flatten(0, 1)


class _TemporalTable(nn.Module):
    """Cosine table; one frame uses its first row, which is 0, 1, 0, 1, ..., not zero."""

    pos_idx_to_embed: Tensor

    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        frequency = torch.exp(torch.arange(0, width, 2) * (-torch.log(torch.tensor(10000.0)) / width))
        angle = torch.arange(n)[:, None] * frequency
        self.register_buffer("pos_idx_to_embed", torch.stack([angle.sin(), angle.cos()], -1).flatten(1))


# -- text encoder ---------------------------------------------------------------------------------------------


class _TextAttention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _TextLayer(nn.Module):
    """Post-norm, as BART."""

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float, activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.self_attn = _TextAttention(width, heads, dropout)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(x + self.drop(self.self_attn(x)))
        return self.final_layer_norm(x + self.drop(self.fc2(self.activation(self.fc1(x)))))


class _TextEncoder(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, dropout = config["d_model"], float(config.get("dropout", 0.1))
        activation = ACTIVATIONS.get(config.get("activation_function", "gelu"))
        if activation is None:
            raise CheckpointError(
                f"Florence-2 with activation_function '{config['activation_function']}' is not supported, "
                f"only {', '.join(ACTIVATIONS)}"
            )
        self.scale = width**0.5 if config.get("scale_embedding") else 1.0
        # The padding's row takes part in the sum and is never trained, as in BART.
        self.embed_tokens = nn.Embedding(
            config["vocab_size"], width, padding_idx=config.get("pad_token_id", 1)
        )
        self.embed_positions = nn.Embedding(
            config["max_position_embeddings"] + 2, width
        )  # BART's offset of two
        self.layers = nn.ModuleList(
            _TextLayer(
                width, config["encoder_attention_heads"], config["encoder_ffn_dim"], dropout, activation
            )
            for _ in range(config["encoder_layers"])
        )
        self.layernorm_embedding = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, embeddings: Tensor) -> Tensor:
        positions = self.embed_positions.weight[2 : 2 + embeddings.shape[1]]
        x = self.drop(self.layernorm_embedding(embeddings + positions))
        for layer in self.layers:
            x = layer(x)
        return x


class _TextModel(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.encoder = _TextEncoder(config)


class _Language(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = _TextModel(config)
        # Stored by the published checkpoints, belongs to the decoder that nobody builds.
        self.register_buffer("final_logits_bias", torch.zeros(1, config["vocab_size"]))


@dataclass(frozen=True)
class FlorenceDims:
    width: int
    vision: dict[str, Any]
    text: dict[str, Any]

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> FlorenceDims:
        """From a checkpoint's `florence_config`, in the original or in the transformers library's spelling."""
        config = config or PUBLISHED
        vision = dict(config["vision_config"])
        if "embed_dim" in vision:
            vision["dim_embed"] = vision.pop("embed_dim")
            vision["image_pos_embed"] = {"max_pos_embeddings": vision.pop("max_position_embeddings", 50)}
            vision["visual_temporal_embedding"] = {
                "max_temporal_embeddings": vision.pop("max_temporal_embeddings", 100)
            }
        return cls(int(vision.get("projection_dim", 1024)), vision, dict(config["text_config"]))


class Florence(nn.Module):
    """`image_features` per view, `encode` for the first view with the text."""

    def __init__(self, dims: FlorenceDims) -> None:
        super().__init__()
        channels = dims.vision["dim_embed"][-1]
        # Unsaid in the original spelling; the transformers library's default is 50.
        positions = (dims.vision.get("image_pos_embed") or {}).get("max_pos_embeddings", 1000)
        frames = (dims.vision.get("visual_temporal_embedding") or {}).get("max_temporal_embeddings", 100)
        self.image_projection = nn.Parameter(torch.empty(channels, dims.width))
        nn.init.trunc_normal_(self.image_projection, std=0.02)
        self.vision_tower = DaViT(dims.vision)
        self.image_proj_norm = nn.LayerNorm(dims.width)
        self.image_pos_embed = _PositionTable(positions, channels)
        self.visual_temporal_embed = _TemporalTable(frames, channels)
        self.language_model = _Language(dims.text)

    def image_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1 + h * w, width): the mean token, then one per place."""
        tokens, height, width = self.vision_tower(images)
        tokens = tokens + self.image_pos_embed(height, width) + self.visual_temporal_embed.pos_idx_to_embed[0]
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
        return self.image_proj_norm(tokens @ self.image_projection)

    def encode(self, image: Tensor, tokens: Tensor) -> Tensor:
        """First view's features (B, n, width) and token ids (B, L) -> (B, n + L, width). Padding is not masked."""
        encoder = self.language_model.model.encoder
        text = encoder.embed_tokens(tokens) * encoder.scale
        return encoder(torch.cat([image, text], dim=1))

"""GR00T's two halves under the names of its checkpoint: Eagle 2.5 (SigLIP, connector, Qwen3) and the action head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import masks
from .dit import ActionEncoder, DiT, DiTDims, PerEmbodimentMlp, SelfAttentionStack
from .siglip import VisionDims, VisionTower
from .transformer import Transformer, TransformerDims

if TYPE_CHECKING:
    from ..policies.groot_config import Architecture


class _Vision(nn.Module):
    """SigLIP under the name it has in the checkpoint; `head` is stored there and never used."""

    def __init__(self, dims: VisionDims) -> None:
        super().__init__()
        self.vision_model = VisionTower(dims)


class _Language(nn.Module):
    def __init__(self, dims: TransformerDims, vocabulary: int) -> None:
        super().__init__()
        self.model = Transformer(dims, vocabulary)


class _Eagle(nn.Module):
    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.image_token = arch.image_token
        self.vision_model = _Vision(arch.vision)
        self.language_model = _Language(arch.text, arch.vocabulary)
        self.mlp1 = nn.Sequential(nn.Linear(arch.vision.width, arch.text.width))

    def image_tokens(self, images: Tensor) -> Tensor:
        """(N, 3, h, w) -> (N, tokens per image, width)."""
        return self.mlp1(self.vision_model.vision_model(images))

    def forward(self, images: Sequence[Tensor], tokens: Tensor, real: Tensor) -> Tensor:
        """images: one (B, tokens per image, width) per camera; tokens, real: (B, L). Gives (B, L, width)."""
        model = self.language_model.model
        assert model.embed_tokens is not None
        text = model.embed_tokens(tokens)
        pixels = torch.cat(list(images), dim=1).to(text.dtype)
        is_image = tokens == self.image_token
        # The k-th image token of a row takes the k-th image feature.
        order = (is_image.to(torch.int32).cumsum(1) - 1).clamp(0, pixels.shape[1] - 1).to(torch.int64)
        placed = pixels.gather(1, order[..., None].expand_as(text))
        x = torch.where(is_image[..., None], placed, text)
        length = tokens.shape[1]
        positions = torch.arange(length, device=tokens.device)[None]
        causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        return model(x, model.rope(positions), masks.bias(causal[None] & real[:, None, :]))


class Backbone(nn.Module):
    """Eagle, and a projection of what it yields where the architecture has one (the published model has none)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.eagle_model = _Eagle(arch)
        self.eagle_linear = nn.Linear(arch.text.width, arch.project) if arch.project else nn.Identity()

    def forward(self, images: Sequence[Tensor], tokens: Tensor, real: Tensor) -> Tensor:
        """Per camera (N, 3, h, w); tokens, real: (B, L). Gives what the action head takes, (B, L, width)."""
        seen = [self.eagle_model.image_tokens(image) for image in images]
        return self.eagle_linear(self.eagle_model(seen, tokens, real))


class ActionHead(nn.Module):
    def __init__(self, head: dict[str, Any]) -> None:
        super().__init__()
        dit, vl = head["diffusion_model_cfg"], head["vl_self_attention_cfg"]
        n, width, hidden = head["max_num_embodiments"], head["input_embedding_dim"], head["hidden_size"]
        dims = DiTDims(
            heads=dit["num_attention_heads"],
            head_dim=dit["attention_head_dim"],
            depth=dit["num_layers"],
            output=dit["output_dim"],
            cross=dit["cross_attention_dim"],
            dropout=dit["dropout"],
        )
        self.model = DiT(dims, interleaves=dit.get("interleave_self_attention", True))
        self.state_encoder = PerEmbodimentMlp(n, head["max_state_dim"], hidden, width)
        self.action_encoder = ActionEncoder(n, head["action_dim"], width)
        self.action_decoder = PerEmbodimentMlp(n, dit["output_dim"], hidden, head["action_dim"])
        self.future_tokens = nn.Embedding(head["num_target_vision_tokens"], width)
        self.vlln: nn.LayerNorm | None = None
        self.position_embedding: nn.Embedding | None = None
        if head["use_vlln"]:
            self.vlln = nn.LayerNorm(head["backbone_embedding_dim"], eps=1e-5)
            self.vl_self_attention = SelfAttentionStack(
                vl["num_attention_heads"], vl["attention_head_dim"], vl["num_layers"], vl["dropout"]
            )
        if head["add_pos_embed"]:
            self.position_embedding = nn.Embedding(head["max_seq_len"], width)

    def refine(self, features: Tensor, real: Tensor) -> Tensor:
        """What the DiT cross-attends to, from the backbone's output. real: bool (B, L)."""
        if self.vlln is None:
            return features
        return self.vl_self_attention(self.vlln(features), masks.bias(real[:, None, :]))


class Unused(nn.Module):
    """Weights that the published file holds and no computation touches; kept so that LeRobot loads what we save."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            owner: nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]  # type: ignore[assignment]
            owner.register_parameter(leaf, nn.Parameter(torch.empty(shape)))

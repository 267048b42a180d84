"""Backbones of a size that trains on a laptop in seconds: configs in Hugging Face's layout and a byte tokenizer.

They have no pretrained weights: a policy built on one shows that everything works, not what it could do. Used by
tests and by the demo; a real policy starts from the published folder of SmolVLM2, PaliGemma, Florence-2 or GR00T.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .policies import POLICIES, policy_class

if TYPE_CHECKING:
    from torch import Tensor

IMAGE, PATCH = 64, 8
"""Side of the tiny vision towers' images and patches, in pixels. The demo's cube fills a patch: of larger ones a random
tower does not learn to find it."""


def backbone_kinds() -> dict[str, str]:
    """Policy -> kind of the tiny backbone that it starts from, for the policies that have one."""
    kinds = {name: policy_class(name).backbone_kind for name in POLICIES}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def write_tiny_backbone(
    folder: Path, kind: str, *, width: int = 64, depth: int = 4, kv_heads: int = 1
) -> Path:
    """A backbone folder with random weights: config.json, model.safetensors, tokenizer files. Returns it.

    PaliGemma's also has `expert_config/`, since LeRobot's config can only name published expert sizes. GR00T's is the
    whole base model, with `vlm_config/` and `tokenizer/` beside it. kv_heads: sets of keys and
    values for the language model's 4 heads (1, 2 or 4); Florence-2's heads have their own.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if kind == "eagle":
        weights = _write_groot_base(folder, width, depth, kv_heads)
    else:
        vocabulary = _write_tokenizer(folder, kind)
        config = _CONFIGS[kind](width, depth, vocabulary, kv_heads)
        _write_json(folder / "config.json", config)
        if kind == "paligemma":
            expert = {**config["text_config"], "hidden_size": width, "intermediate_size": 2 * width}
            _write_json(folder / "expert_config/config.json", expert)
        weights = _random_weights(kind, config)
    weights = {name: _start(name, w) for name, w in weights.items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def _start(name: str, weight: Tensor) -> Tensor:
    """The weight that a tiny model learns from, where the published start is made for a wide one.

    Positions in a vision tower are as large as its patches' features, not 1 / sqrt(width): a tiny tower then needs
    hundreds of steps to tell where something is, else thousands, for as long as the arm's state explains most of a
    demonstration. GR00T's layers per body, (bodies, in, out), keep the size of what passes: the published 0.02 is
    made for 1536 inputs, and three such layers of 64 would drown actions and state in their positions.
    """
    if "vision" in name and "position_embedding." in name:
        return weight.new_empty(weight.shape).normal_()
    if name.endswith(".W"):
        return weight.new_empty(weight.shape).normal_(std=weight.shape[1] ** -0.5)
    return weight


def _write_json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2))


# -- tokenizers -----------------------------------------------------------------------------------------------

SPECIAL = ("<pad>", "<eos>", "<bos>", "<fake_token_around_image>", "<global-img>", "<image>")
BART = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
EAGLE = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
CHAT = (
    "system",
    "user",
    "assistant",
    "You are a helpful assistant.",
    "<image 1>",
    "<image 2>",
    "<image 3>",
    "<image 4>",
)
"""What GR00T's template always says, a token each: as bytes it would be more than the picture and the task."""


def _write_tokenizer(folder: Path, kind: str) -> int:
    if kind == "florence":
        names = {"bos": "<s>", "eos": "</s>"}
        return write_byte_tokenizer(folder, adds_bos=True, adds_eos=True, special=BART, **names)
    return write_byte_tokenizer(folder, adds_bos=kind == "paligemma")


def write_byte_tokenizer(
    folder: Path,
    *,
    adds_bos: bool,
    adds_eos: bool = False,
    special: tuple[str, ...] = SPECIAL,
    bos: str = "<bos>",
    eos: str = "<eos>",
    pad: str = "<pad>",
) -> int:
    """A tokenizer.json whose tokens are the `special` ones, with the first ids, and single bytes; its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(list(special))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    around = [*([bos] if adds_bos else []), "$A", *([eos] if adds_eos else [])]
    if len(around) > 1:
        ids = [(token, vocabulary[token]) for token in around if token != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(single=" ".join(around), special_tokens=ids)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": pad, "eos_token": eos}
    settings |= {"bos_token": bos} if adds_bos else {}
    _write_json(folder / "tokenizer_config.json", settings)
    return len(vocabulary)


# -- configs --------------------------------------------------------------------------------------------------


def _text(width: int, depth: int, vocabulary: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    heads = {"num_attention_heads": 4, "num_key_value_heads": kv_heads, "head_dim": 16}
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": depth}
    return {**sizes, **heads, "vocab_size": vocabulary, **more}


def _vision(width: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": PATCH,
        "image_size": IMAGE,
        "layer_norm_eps": 1e-6,
    }


def _smolvlm(width: int, depth: int, vocabulary: int, kv_heads: int) -> dict[str, Any]:
    return {
        "model_type": "smolvlm",
        "scale_factor": 2,
        "text_config": _text(width, depth, vocabulary, kv_heads, model_type="llama", rms_norm_eps=1e-5),
        "vision_config": _vision(width // 2),
    }


def _paligemma(width: int, depth: int, vocabulary: int, kv_heads: int) -> dict[str, Any]:
    return {
        "model_type": "paligemma",
        "text_config": _text(width, depth, vocabulary, kv_heads, model_type="gemma", rms_norm_eps=1e-6),
        "vision_config": _vision(width // 2),
    }


def _florence(width: int, depth: int, vocabulary: int, kv_heads: int) -> dict[str, Any]:
    """A 64-pixel picture becomes 4 x 4 places and their mean."""
    quarter = width // 4
    vision = {
        "model_type": "davit",
        "drop_path_rate": 0.0,
        "patch_size": [7, 3, 3, 3],
        "patch_stride": [4, 2, 2, 1],
        "patch_padding": [3, 1, 1, 1],
        "patch_prenorm": [False, True, True, True],
        "dim_embed": [quarter, 2 * quarter, 3 * quarter, width],
        "num_heads": [1, 2, 3, 4],
        "num_groups": [1, 2, 3, 4],
        "depths": [1, 1, 1, 1],
        "window_size": 4,
        "projection_dim": width,
        "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": 4},
        "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": 8},
        "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
    }
    text = {
        "model_type": "florence2_language",
        "vocab_size": vocabulary,
        "d_model": width,
        "encoder_layers": max(1, depth // 2),
        "encoder_ffn_dim": 2 * width,
        "encoder_attention_heads": 4,
        "max_position_embeddings": 256,
        "dropout": 0.0,
        "bos_token_id": BART.index("<s>"),
        "eos_token_id": BART.index("</s>"),
        "pad_token_id": BART.index("<pad>"),
    }
    return {
        "model_type": "florence2",
        "projection_dim": width,
        "vocab_size": vocabulary,
        "pad_token_id": BART.index("<pad>"),
        "vision_config": vision,
        "text_config": text,
    }


_CONFIGS = {"smolvlm": _smolvlm, "paligemma": _paligemma, "florence": _florence}


def _groot_head(width: int, depth: int) -> dict[str, Any]:
    """Published widths of state and action, so that every robot fits; everything else small."""
    heads = {"num_attention_heads": 4, "attention_head_dim": width // 4, "dropout": 0.0}
    return {
        "action_horizon": 16,
        "hidden_size": width,
        "input_embedding_dim": width,
        "backbone_embedding_dim": width,
        "max_seq_len": 64,
        "num_target_vision_tokens": 4,
        "diffusion_model_cfg": {
            **heads,
            "num_layers": depth,
            "output_dim": width,
            "cross_attention_dim": width,
            "interleave_self_attention": True,
        },
        "vl_self_attention_cfg": {**heads, "num_layers": 1},
    }


def _write_groot_base(folder: Path, width: int, depth: int, kv_heads: int) -> dict[str, Tensor]:
    """config.json, vlm_config/, tokenizer/ as the base model and its assets repository have them; the weights."""
    from .nn.eagle import ActionHead, Backbone
    from .policies.groot_config import Architecture

    vocabulary = write_byte_tokenizer(
        folder / "tokenizer", adds_bos=False, special=(*EAGLE, *CHAT), eos="<|im_end|>", pad="<|endoftext|>"
    )
    vlm = {
        "model_type": "eagle_2_5_vl",
        "force_image_size": IMAGE,
        "image_token_index": EAGLE.index("<IMG_CONTEXT>"),
        "text_config": _text(
            width, depth, vocabulary, kv_heads, model_type="qwen3", rms_norm_eps=1e-6, rope_theta=1e6
        ),
        "vision_config": _vision(width // 2),
    }
    config = {
        "model_type": "gr00t_n1_5",
        "backbone_cfg": {"select_layer": max(1, depth // 2)},
        "action_head_cfg": _groot_head(width, depth),
    }
    _write_json(folder / "vlm_config/config.json", vlm)
    _write_json(folder / "config.json", config)
    arch = Architecture.read(config, vlm)
    parts = {"backbone": Backbone(arch), "action_head": ActionHead(arch.head)}
    return {f"{part}.{name}": w for part, module in parts.items() for name, w in module.state_dict().items()}


def _random_weights(kind: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """Under the backbone's own names, made by the policy's own modules."""
    if kind == "smolvlm":
        from .policies.smolvla import SmolVlaConfig, SmolVlaDims, new_vlm

        return dict(new_vlm(SmolVlaDims.of(SmolVlaConfig(num_vlm_layers=-1), config)).state_dict())
    if kind == "florence":
        from .nn.florence import Florence, FlorenceDims

        return dict(Florence(FlorenceDims.from_json(config)).state_dict())
    from .policies.pi import PiDims, new_paligemma

    text = config["text_config"]
    return dict(new_paligemma(PiDims.of(config["vision_config"], text, text, adaptive=False)).state_dict())

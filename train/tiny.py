"""Backbones of a size that trains on a laptop in seconds: configs in Hugging Face's layout and a byte tokenizer.

They have no pretrained weights: a policy built on one shows that everything works, not what it could do. Used by
tests and by the demo; a real policy starts from SmolVLM2's or PaliGemma's own folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

IMAGE = 64
"""Side of the tiny vision towers' images, in pixels."""


def write_tiny_backbone(
    folder: Path, kind: Literal["smolvlm", "paligemma"], *, width: int = 64, depth: int = 4
) -> Path:
    """A backbone folder with random weights: config.json, model.safetensors, tokenizer files. Returns it.

    PaliGemma's also has `expert_config/`, since LeRobot's config can only name published expert sizes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_byte_tokenizer(folder, adds_bos=kind == "paligemma")
    config = _smolvlm(width, depth, vocabulary) if kind == "smolvlm" else _paligemma(width, depth, vocabulary)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if kind == "paligemma":
        expert = {**config["text_config"], "hidden_size": width, "intermediate_size": 2 * width}
        (folder / "expert_config").mkdir(exist_ok=True)
        (folder / "expert_config" / "config.json").write_text(json.dumps(expert, indent=2))
    _write_weights(folder, kind)
    return folder


def write_byte_tokenizer(folder: Path, *, adds_bos: bool) -> int:
    """A tokenizer.json whose tokens are single bytes, with the special tokens of SmolVLM2 and PaliGemma; its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["<pad>", "<eos>", "<bos>", "<fake_token_around_image>", "<global-img>", "<image>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_bos:
        bos = ("<bos>", vocabulary["<bos>"])
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<eos>"}
    settings |= {"bos_token": "<bos>"} if adds_bos else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return len(vocabulary)


def _text(width: int, depth: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16}
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": depth}
    return {**sizes, **heads, "vocab_size": vocabulary, **more}


def _vision(width: int, patch: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": patch,
        "image_size": IMAGE,
        "layer_norm_eps": 1e-6,
    }


def _smolvlm(width: int, depth: int, vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "smolvlm",
        "scale_factor": 2,
        "text_config": _text(width, depth, vocabulary, model_type="llama", rms_norm_eps=1e-5),
        "vision_config": _vision(width // 2, 8),
    }


def _paligemma(width: int, depth: int, vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "paligemma",
        "text_config": _text(width, depth, vocabulary, model_type="gemma", rms_norm_eps=1e-6),
        "vision_config": _vision(width // 2, 16),
    }


def _write_weights(folder: Path, kind: str) -> None:
    """Random weights under the backbone's own names, made by the policy's own modules."""
    from safetensors.torch import save_file

    from .policies.pi import PiDims, new_paligemma
    from .policies.smolvla import SmolVlaConfig, SmolVlaDims, new_vlm

    config = json.loads((folder / "config.json").read_text())
    if kind == "smolvlm":
        vlm = new_vlm(SmolVlaDims.of(SmolVlaConfig(num_vlm_layers=-1), config))
    else:
        text = config["text_config"]
        vlm = new_paligemma(PiDims.of(config["vision_config"], text, text, adaptive=False))
    save_file(dict(vlm.state_dict()), str(folder / "model.safetensors"), metadata={"format": "pt"})

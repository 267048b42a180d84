"""What checkpoints of each policy may say beyond the plain: pipeline steps, other versions' keys, unread weights.

Three tables by policy type. A policy that is in none has LeRobot's plain pipelines (`steps.PLAIN`), its own fields
and nothing else. Nothing here imports torch, so that a robot can inspect a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..steps import (
    ABSOLUTE,
    BOTH,
    DEVICE,
    DOMAIN,
    EAGLE_COLLATE,
    EAGLE_ENCODE,
    IMAGE_SCALE,
    IMAGENET,
    NEWLINE,
    NORMALIZER,
    PACK,
    PLAIN,
    PREPARE_STATE,
    RELATIVE,
    RENAME,
    ROT6D,
    TO_BATCH,
    TO_FLOAT,
    UNNORMALIZER,
    UNPACK,
    Pipelines,
    tokenizer,
)

_LANGUAGE = Pipelines(
    (RENAME, TO_BATCH, NEWLINE, tokenizer(cuts=True), DEVICE, RELATIVE, NORMALIZER),
    (UNNORMALIZER, ABSOLUTE, DEVICE),
    needs=(*BOTH, NEWLINE.name, "tokenizer_processor"),
    orders=(
        (RENAME.name, RELATIVE.name, NORMALIZER.name),
        (NEWLINE.name, "tokenizer_processor"),
        (UNNORMALIZER.name, ABSOLUTE.name),
    ),
    had_none=True,
)
PIPELINES: dict[str, Pipelines] = {
    "act": PLAIN,
    "diffusion": PLAIN,
    "smolvla": _LANGUAGE,
    "pi0": _LANGUAGE,
    "pi05": Pipelines(
        (RENAME, TO_BATCH, RELATIVE, NORMALIZER, PREPARE_STATE, tokenizer(cuts=True), DEVICE),
        (UNNORMALIZER, ABSOLUTE, DEVICE),
        needs=(*BOTH, PREPARE_STATE.name, "tokenizer_processor"),
        orders=(
            (RENAME.name, RELATIVE.name, NORMALIZER.name, PREPARE_STATE.name, "tokenizer_processor"),
            (UNNORMALIZER.name, ABSOLUTE.name),
        ),
    ),
    "xvla": Pipelines(
        (
            RENAME,
            TO_BATCH,
            tokenizer(cuts=False),
            IMAGE_SCALE,
            TO_FLOAT,
            IMAGENET,
            DOMAIN,
            DEVICE,
            NORMALIZER,
        ),
        (UNNORMALIZER, ROT6D, DEVICE),
        needs=("tokenizer_processor",),
        orders=(
            (RENAME.name, NORMALIZER.name),
            (RENAME.name, IMAGE_SCALE.name, TO_FLOAT.name, IMAGENET.name),
            (UNNORMALIZER.name, ROT6D.name),
        ),
    ),
    "groot": Pipelines(
        (RENAME, TO_BATCH, PACK, EAGLE_ENCODE, EAGLE_COLLATE, DEVICE),
        (UNPACK, DEVICE),
        needs=(PACK.name, EAGLE_ENCODE.name, EAGLE_COLLATE.name, UNPACK.name),
        orders=((RENAME.name, PACK.name, EAGLE_ENCODE.name, EAGLE_COLLATE.name),),
    ),
}
"""Policy type -> its row; others have `PLAIN`."""


@dataclass(frozen=True)
class OtherKey:
    """A key of another LeRobot version. becomes: why it changes nothing. allows: the values of which that is true."""

    becomes: str
    allows: Callable[[Any], bool] = lambda value: True


def _is_off(value: Any) -> bool:
    return value in (None, False)


_MEMORY = "of the memory, which is off"
OTHER_KEYS: dict[str, dict[str, OtherKey]] = {
    "pi05": {
        "use_visual_memory": OtherKey("off", _is_off),
        "use_proprioceptive_memory": OtherKey("off", _is_off),
        "memory_frames": OtherKey(_MEMORY),
        "memory_stride": OtherKey(_MEMORY),
        "memory_temporal_attention_every": OtherKey(_MEMORY),
    },
    "smolvla": {
        "fine_tune_vision_encoder": OtherKey("how LeRobot trains"),
        "vision_encoder_lr_multiplier": OtherKey("how LeRobot trains"),
    },
}
"""Policy -> keys that are no fields here, which LeRobot 0.4 to 0.7 writes."""

DROPPED: dict[str, tuple[tuple[str, str], ...]] = {
    "pi05": (
        (r"model\.state_proj\..*", "Pi0.5 writes its state into the prompt"),
        (
            r"model\.paligemma_with_expert\.gemma_expert\.model\..*norm\.weight",
            "its norms are made from the time",
        ),
    ),
    "xvla": (
        (r"model\.vlm\.language_model\.(model\.)?shared\.weight", "the same as the encoder's embedding"),
        (r"model\.vlm\.multi_modal_projector\.image_projection\.weight", "read, and turned on the way"),
    ),
    "groot": ((r".*language_model\.lm_head\.weight", "tied: the same as the embedding"),),
}
"""Policy -> (pattern of weights that may be left unread, why)."""

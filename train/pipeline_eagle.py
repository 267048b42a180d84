"""What GR00T N1.5's Eagle steps do with pictures and text, in numpy: for `pipeline.py`.

Pictures are stretched as bytes, bicubically and antialiased, the way torchvision resizes bytes: columns before rows,
weights in whole numbers, each pass rounded. One tile per picture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

PUBLISHED_SIZE, PUBLISHED_PATCH = 224, 14


def encode(folder: Path, tokenizer: Any, frames: Sequence[np.ndarray], task: str) -> dict[str, np.ndarray]:
    """frames: uint8 (3, H, W) in the cameras' order -> LeRobot's `eagle_*` keys, batch of one."""
    size, patch = _sizes(folder)
    n_tokens = (size // patch) ** 2
    images = "".join(f"<image {i}><img>{'<IMG_CONTEXT>' * n_tokens}</img>" for i in range(1, len(frames) + 1))
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{images}{[task]!s}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pixels = [(resized(f, size).astype(np.float32) - np.float32(127.5)) / np.float32(127.5) for f in frames]
    return {
        "eagle_input_ids": np.array([ids], np.int64),
        "eagle_attention_mask": np.ones((1, len(ids)), np.int64),
        "eagle_pixel_values": np.stack(pixels),
    }


def _sizes(folder: Path) -> tuple[int, int]:
    """Side of a picture and of its patches: of the checkpoint's own Eagle config, else as published."""
    path = folder / "vlm_config" / "config.json"
    said = json.loads(path.read_text()) if path.is_file() else {}
    vision = said.get("vision_config", {})
    size = said.get("force_image_size") or vision.get("image_size", PUBLISHED_SIZE)
    return int(size), int(vision.get("patch_size", PUBLISHED_PATCH))


def resized(frame: np.ndarray, size: int) -> np.ndarray:
    """uint8 (3, H, W) -> uint8 (3, size, size)."""
    wide = _along_last(frame, size)
    return np.swapaxes(_along_last(np.swapaxes(wide, 1, 2), size), 1, 2)


def _along_last(frame: np.ndarray, n_out: int) -> np.ndarray:
    if frame.shape[-1] == n_out:
        return frame
    weights, precision = _weights(frame.shape[-1], n_out)
    sums = frame.astype(np.int64) @ weights.T + (1 << (precision - 1))
    return np.clip(sums >> precision, 0, 255).astype(np.uint8)


def _weights(n_in: int, n_out: int) -> tuple[np.ndarray, int]:
    """Whole numbers (n_out, n_in) and the power of two that they are parts of: the finest at which all fit 16 bits."""
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    rows = np.zeros((n_out, n_in))
    for i in range(n_out):
        middle = scale * (i + 0.5)
        first, end = max(int(middle - 2 * stretch + 0.5), 0), min(int(middle + 2 * stretch + 0.5), n_in)
        row = np.array([_cubic((j - middle + 0.5) / stretch) for j in range(first, end)])
        rows[i, first:end] = row / row.sum()
    precision = 0
    while precision < 22 and int(0.5 + rows.max() * (1 << (precision + 1))) < (1 << 15):
        precision += 1
    whole = np.trunc(np.abs(rows) * (1 << precision) + 0.5) * np.sign(rows)
    return whole.astype(np.int64), precision


def _cubic(x: float) -> float:
    """Keys' kernel with a = -1/2."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0

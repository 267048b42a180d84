"""Camera frames as they come -> what a vision tower takes: float, resized with their proportions kept, padded."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def to_float(frames: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in 0..1. Cast first: TensorRT refuses to transpose bytes."""
    return (frames.to(torch.float32) / 255).permute(0, 3, 1, 2)


def resize_with_pad(
    images: Tensor, height: int, width: int, *, place: Literal["center", "bottom_right"], clamp: bool = False
) -> Tensor:
    """Bilinear, not antialiased, onto a black height x width canvas. images: (B, 3, h, w).

    place: where the picture lies on the canvas; centred, an odd pixel of padding goes to the bottom or right.
    clamp: to 0..1 after resizing. Images that already have the size pass unchanged.
    """
    h, w = images.shape[2:]
    if (h, w) == (height, width):
        return images
    ratio = max(w / width, h / height)
    new_h, new_w = int(h / ratio), int(w / ratio)
    images = F.interpolate(images, size=(new_h, new_w), mode="bilinear", align_corners=False)
    if clamp:
        images = images.clamp(0.0, 1.0)
    rows, columns = height - new_h, width - new_w
    top, left = (rows // 2, columns // 2) if place == "center" else (rows, columns)
    return F.pad(images, (left, columns - left, top, rows - top), value=0.0)

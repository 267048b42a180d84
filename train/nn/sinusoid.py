"""Fixed sinusoidal position tables, float32, built once in float64."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def position_table(n: int, dim: int) -> Tensor:
    """(n, dim): angle p / 10000^(2 floor(j / 2) / dim), sine on even j, cosine on odd j (Vaswani et al. 2017)."""
    angle = np.arange(n)[:, None] / np.power(10000.0, 2 * (np.arange(dim) // 2) / dim)
    table = np.where(np.arange(dim) % 2 == 0, np.sin(angle), np.cos(angle))
    return torch.from_numpy(table.astype(np.float32))


def position_map(height: int, width: int, dim: int) -> Tensor:
    """(height * width, dim), row-major pixels: DETR's 2-D table, [rows (dim / 2), columns (dim / 2)].

    Positions count from 1 and are scaled to 2 pi; sines and cosines alternate.
    """
    half = dim // 2
    inverse = 10000.0 ** (2 * (np.arange(half) // 2) / half)
    is_sine = np.arange(half) % 2 == 0

    def waves(n: int) -> np.ndarray:
        angle = np.arange(1, n + 1)[:, None] / (n + 1e-6) * 2 * math.pi / inverse
        return np.where(is_sine, np.sin(angle), np.cos(angle))

    rows = np.broadcast_to(waves(height)[:, None, :], (height, width, half))
    columns = np.broadcast_to(waves(width)[None, :, :], (height, width, half))
    table = np.concatenate([rows, columns], axis=-1).reshape(height * width, dim)
    return torch.from_numpy(table.astype(np.float32))

"""Resizing to a fixed size as two constant matrices: rows @ image @ columns^T.

Every separable filter (bilinear, bicubic, antialiased or not) is linear in the pixels, so for fixed sizes it is a
matrix per axis. Every inference engine has matrix products; none agrees on antialiased resizes.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

WHOLE = 2.0**15
"""Sums of bytes times multiples of 1 / WHOLE fit float32's 24 bits: 8 for a byte, 1 for weights that add up to more."""


@functools.lru_cache(maxsize=64)
def resize_matrix(
    n_in: int,
    n_out: int,
    mode: str = "bilinear",
    antialias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(n_out, n_in): what `F.interpolate(..., align_corners=False)` of that dtype does along one axis."""
    with torch.no_grad():
        identity = torch.eye(n_in, dtype=dtype)[None, None]  # one column per input pixel
        return F.interpolate(
            identity, size=(n_out, n_in), mode=mode, align_corners=False, antialias=antialias
        )[0, 0].contiguous()


def resize(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """images: float (..., H, W); rows: (h, H); columns: (w, W). Gives (..., h, w)."""
    return rows.to(images.dtype) @ (images @ columns.to(images.dtype).T)


@functools.lru_cache(maxsize=64)
def byte_resize_matrix(n_in: int, n_out: int, mode: str = "bicubic") -> Tensor:
    """float32 (n_out, n_in) with the weights that resizing of bytes uses: computed in float64, rounded to the finest
    2^-p at which all fit int16."""
    weights = resize_matrix(n_in, n_out, mode, dtype=torch.float64)
    precision = 0
    while precision < 22 and int(0.5 + float(weights.max()) * 2 ** (precision + 1)) < 2**15:
        precision += 1
    scale = 2.0**precision
    rounded = torch.copysign((weights.abs() * scale + 0.5).floor(), weights) / scale
    return rounded.float()


def resize_bytes(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Whole grey levels in float (..., H, W) -> the same (..., h, w), as a byte image is resized: columns first, each
    pass rounded half up and clamped.

    Exact, whatever order an engine adds in: the weights are finer than float32 can sum, so their coarse and their fine
    part are summed apart, and the whole grey levels leave the sum before the fine part enters it.
    """
    for matrix, is_column in ((columns, True), (rows, False)):
        coarse = (matrix * WHOLE).round() / WHOLE
        large, small = (images @ part.T if is_column else part @ images for part in (coarse, matrix - coarse))
        whole = (large + 0.5).floor()
        images = (whole + (large + 0.5 - whole + small).floor()).clamp(0, 255)
    return images

"""Rotations in the forms that policies speak."""

from __future__ import annotations

import torch
from torch import Tensor


def rot6d_to_axis_angle(actions: Tensor) -> Tensor:
    """(..., >= 10) position, two columns of R, gripper -> (..., 7) position, axis-angle, gripper as +1 or -1.

    The quaternion comes in closed form from the largest of its four squared components (Shepperd), w >= 0.
    """
    position, a1, a2 = actions[..., 0:3], actions[..., 3:6], actions[..., 6:9]
    b1 = a1 / (a1.norm(dim=-1, keepdim=True) + 1e-6)
    rest = a2 - (b1 * a2).sum(-1, keepdim=True) * b1
    b2 = rest / (rest.norm(dim=-1, keepdim=True) + 1e-6)
    b3 = torch.stack(
        [
            b1[..., 1] * b2[..., 2] - b1[..., 2] * b2[..., 1],
            b1[..., 2] * b2[..., 0] - b1[..., 0] * b2[..., 2],
            b1[..., 0] * b2[..., 1] - b1[..., 1] * b2[..., 0],
        ],
        dim=-1,
    )
    (m00, m10, m20), (m01, m11, m21), (m02, m12, m22) = (b.unbind(-1) for b in (b1, b2, b3))
    # Rows: 4 * q_k * q for each component k = w, x, y, z; the row of the largest q_k is the stable one.
    rows = torch.stack(
        [
            torch.stack([1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01], -1),
            torch.stack([m21 - m12, 1 + m00 - m11 - m22, m01 + m10, m02 + m20], -1),
            torch.stack([m02 - m20, m01 + m10, 1 - m00 + m11 - m22, m12 + m21], -1),
            torch.stack([m10 - m01, m02 + m20, m12 + m21, 1 - m00 - m11 + m22], -1),
        ],
        dim=-2,
    )
    q, largest = rows[..., 0, :], rows[..., 0, 0:1]
    for k in range(1, 4):
        candidate = rows[..., k, k : k + 1]
        q, largest = torch.where(candidate > largest, rows[..., k, :], q), torch.maximum(candidate, largest)
    q = q / q.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    q = torch.where(q[..., :1] < 0, -q, q)
    w, v = q[..., :1], q[..., 1:]
    sine = v.norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan(sine / w.clamp(min=1e-12))  # w >= 0
    axis_angle = torch.where(sine > 1e-8, angle * v / sine.clamp(min=1e-8), torch.zeros_like(v))
    gripper = torch.where(actions[..., 9:10] > 0.5, 1.0, -1.0).to(actions.dtype)
    return torch.cat([position, axis_angle, gripper], dim=-1)

"""X-VLA's action spaces: what a channel means, how it is scored, what stands before and behind the network.

A space is data: channels that hold a gripper, loss terms as (weight, kind, channels), channels zeroed at the input and
squashed at the output. A user's own is one more entry: `ACTION_SPACES["mine"] = lambda config: ActionSpace(...)`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from edgevla.errors import CheckpointError

if TYPE_CHECKING:
    from .xvla_config import XVlaConfig


@dataclass(frozen=True)
class Term:
    """weight * (mean of `kind` over batch, time and `channels`)."""

    weight: float
    kind: Literal["mse", "bce"]
    channels: tuple[int, ...]

    def __call__(self, predicted: Tensor, target: Tensor) -> Tensor:
        p, t = predicted[..., list(self.channels)], target[..., list(self.channels)]
        loss = F.mse_loss(p, t) if self.kind == "mse" else F.binary_cross_entropy_with_logits(p, t)
        return self.weight * loss


@dataclass(frozen=True)
class ActionSpace:
    """width: the network's. real: what leaves it. zeroed: channels hidden from the network, in proprio and x alike.
    squashed: output channels that are logits. is_joint: whether the real channels are joints that a bus can drive."""

    name: str
    width: int
    real: int
    parts: Mapping[str, tuple[Term, ...]]
    zeroed: tuple[int, ...] = ()
    squashed: tuple[int, ...] = ()
    is_joint: bool = True

    def losses(self, predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Terms by their log names; the training loss is their sum. predicted, target: (B, T, width)."""
        return {
            name: torch.stack([term(predicted, target) for term in terms]).sum()
            for name, terms in self.parts.items()
        }

    def hide(self, x: Tensor) -> Tensor:
        """Zero on the hidden channels of proprio (B, P) or of actions (B, T, width)."""
        if not self.zeroed:
            return x
        keep = [0.0 if i in self.zeroed else 1.0 for i in range(x.shape[-1])]
        return x * torch.tensor(keep, dtype=x.dtype, device=x.device)

    def output(self, x: Tensor) -> Tensor:
        """Network output -> normalised actions (B, T, real)."""
        if self.squashed:
            x = torch.where(self._is_squashed(x), x.sigmoid(), x)
        return x[..., : self.real]

    def inverse_output(self, actions: Tensor) -> Tensor:
        """Normalised actions (B, T, real) -> what the network would have to say, on the real channels."""
        if not self.squashed:
            return actions
        logits = torch.logit(actions.clamp(1e-4, 1 - 1e-4))
        return torch.where(self._is_squashed(actions), logits, actions)

    def _is_squashed(self, x: Tensor) -> Tensor:
        return torch.tensor([i in self.squashed for i in range(x.shape[-1])], device=x.device)


def _span(a: int, b: int) -> tuple[int, ...]:
    return tuple(range(a, b))


def _poses(gripper: tuple[Term, ...], squashed: tuple[int, ...], name: str) -> ActionSpace:
    parts = {
        "position_loss": (Term(500.0, "mse", _span(0, 3)), Term(500.0, "mse", _span(10, 13))),
        "rotate6D_loss": (Term(10.0, "mse", _span(3, 9)), Term(10.0, "mse", _span(13, 19))),
        "gripper_loss": gripper,
    }
    return ActionSpace(name, 20, 20, parts, zeroed=squashed, squashed=squashed, is_joint=False)


def _ee6d(config: XVlaConfig) -> ActionSpace:
    return _poses((Term(0.5, "bce", (9,)), Term(0.5, "bce", (19,))), (9, 19), "ee6d")


def _agibot_ee6d(config: XVlaConfig) -> ActionSpace:
    return _poses((Term(10.0, "mse", (9, 19)),), (), "agibot_ee6d")


def _joint(config: XVlaConfig) -> ActionSpace:
    arms = tuple(i for i in range(14) if i not in (6, 13))
    parts = {
        "joints_loss": (Term(1.0, "mse", arms),),
        "gripper_loss": (Term(0.05, "bce", (6,)), Term(0.05, "bce", (13,))),
    }
    return ActionSpace("joint", 14, 14, parts, zeroed=(6, 13), squashed=(6, 13))


def _franka(config: XVlaConfig) -> ActionSpace:
    return ActionSpace("franka_joint7", 20, 7, {"joints_loss": (Term(1.0, "mse", _span(0, 7)),)})


def _so101_bimanual(config: XVlaConfig) -> ActionSpace:
    """The reference's terms overlap (grippers count three times), and are plain errors though the output is squashed."""
    parts = {
        "joints_loss": (Term(1.0, "mse", _span(0, 12)),),
        "gripper_loss": (Term(1.0, "mse", (5, 11)),),
        "left_arm_loss": (Term(1.0, "mse", _span(0, 6)),),
        "right_arm_loss": (Term(1.0, "mse", _span(6, 12)),),
    }
    return ActionSpace("so101_bimanual", 20, 12, parts, zeroed=(5, 11), squashed=(5, 11))


def _auto(config: XVlaConfig) -> ActionSpace:
    real = config.action_dim
    parts = {"joints_loss": (Term(1.0, "mse", _span(0, real)),)}
    return ActionSpace("auto", max(config.max_action_dim, real), real, parts)


ACTION_SPACES: dict[str, Callable[[XVlaConfig], ActionSpace]] = {
    "auto": _auto,
    "ee6d": _ee6d,
    "joint": _joint,
    "agibot_ee6d": _agibot_ee6d,
    "franka_joint7": _franka,
    "so101_bimanual": _so101_bimanual,
}


def action_space(config: XVlaConfig) -> ActionSpace:
    """
    Raises:
        CheckpointError: an `action_mode` that nobody registered; suggests the nearest.
    """
    make = ACTION_SPACES.get(config.action_mode.lower())
    if make is None:
        near = difflib.get_close_matches(config.action_mode, ACTION_SPACES, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise CheckpointError(
            f"action_mode '{config.action_mode}' is unknown{hint} Known: {', '.join(ACTION_SPACES)}"
        )
    return make(config)


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

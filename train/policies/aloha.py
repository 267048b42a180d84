"""Between ALOHA's 14 joint values and the convention Pi0 was trained in (`adapt_to_pi_aloha`).

Which maps, and who applies them where: docs/policies.md#aloha-for-pi.

Two arms of six joints and a gripper. Some joints are flipped; grippers change from linear travel to an angle. LeRobot's
SmolVLA applies these maps to normalised values, between normaliser and network; openpi's Pi0 to radians, outside both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_FLIPPED, _GRIPPERS = (1, 2, 8, 9), (6, 13)


def state_to_pi(state: Tensor) -> Tensor:
    """(..., >= 14); what lies behind the 14 joints passes unchanged."""
    return _by_joint(state, _linear_to_angle)


def actions_from_pi(actions: Tensor) -> Tensor:
    """(..., 14), as the network gives them."""
    return _by_joint(actions, lambda g: (g * 1.1 + 0.4 + 0.6213) / (1.4910 + 0.6213))


def actions_to_pi(actions: Tensor) -> Tensor:
    """The inverse of `actions_from_pi`."""
    return _by_joint(actions, lambda g: (g * (1.4910 + 0.6213) - 0.6213 - 0.4) / 1.1)


def _linear_to_angle(gripper: Tensor) -> Tensor:
    travel = gripper * (0.05800 - 0.01844) + 0.01844
    horn, rod = 0.022, 0.036
    cosine = (horn**2 + travel.square() - rod**2) / (2 * horn * travel)
    return (torch.asin(cosine.clamp(-1.0, 1.0)) - 0.4) / (1.5 - 0.4)


def _by_joint(values: Tensor, gripper: Callable[[Tensor], Tensor]) -> Tensor:
    n = values.shape[-1]
    sign = torch.tensor([-1.0 if i in _FLIPPED else 1.0 for i in range(n)], device=values.device)
    is_gripper = torch.tensor([i in _GRIPPERS for i in range(n)], device=values.device)
    return torch.where(is_gripper, gripper(values), values * sign)

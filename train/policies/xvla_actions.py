"""X-VLA's action spaces: what a channel means, how it is scored, what stands before and behind the network.

A space is data: channels that hold a gripper, loss terms as (weight, kind, channels), channels zeroed at the input and
squashed at the output. A user's own is one more function from the config to an `ActionSpace`, found by its
`action_mode` in `ACTION_SPACES` or, where the command line finds it too, among the entry points of installed packages:

    [project.entry-points."edgevla.action_spaces"]
    six_joints = "my_package:six_joints"

    def six_joints(config):
        parts = {"arm_loss": (Term(1.0, "mse", (0, 1, 2, 3, 4)),), "gripper_loss": (Term(0.1, "bce", (5,)),)}
        return ActionSpace("six_joints", 20, 6, parts, is_joint=True, zeroed=(5,), squashed=(5,))

Whatever else it needs it says by overriding `losses`, `hide`, `output` and (for real-time chunking) `inverse_output`.
Nothing here imports torch before a tensor arrives: `edgevla inspect` reads spaces without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Literal

from edgevla.errors import CheckpointError
from edgevla.strict import nearest

if TYPE_CHECKING:
    from torch import Tensor

    from .xvla_config import XVlaConfig

ENTRY_POINTS = "edgevla.action_spaces"
ROT6D_STEP = "xvla_rotation_6d_to_axis_angle"
"""The post-processor step that turns two columns of a rotation into its axis and angle."""


@dataclass(frozen=True)
class Term:
    """weight * (mean of `kind` over batch, time and `channels`)."""

    weight: float
    kind: Literal["mse", "bce"]
    channels: tuple[int, ...]

    def __call__(self, predicted: Tensor, target: Tensor) -> Tensor:
        import torch.nn.functional as F

        p, t = predicted[..., list(self.channels)], target[..., list(self.channels)]
        loss = F.mse_loss(p, t) if self.kind == "mse" else F.binary_cross_entropy_with_logits(p, t)
        return self.weight * loss


@dataclass(frozen=True)
class ActionSpace:
    """width: the network's. real: what leaves it. parts: log name -> its terms. is_joint: whether the real channels are
    joints, which a bus can drive; end-effector poses are refused by `inspect` and `export`. zeroed: channels hidden from
    the network, in proprio and x alike. squashed: output channels that are logits.

    Raises:
        CheckpointError: channels beyond the width.
    """

    name: str
    width: int
    real: int
    parts: Mapping[str, tuple[Term, ...]]
    is_joint: bool
    zeroed: tuple[int, ...] = ()
    squashed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.real <= self.width:
            raise CheckpointError(f"action space '{self.name}': {self.real} real of {self.width} channels")
        scored = [c for terms in self.parts.values() for term in terms for c in term.channels]
        strange = sorted({c for c in (*scored, *self.zeroed, *self.squashed) if not 0 <= c < self.width})
        if strange:
            raise CheckpointError(
                f"action space '{self.name}' names channel {strange[0]}, but has 0 to {self.width - 1}"
            )

    def losses(self, predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Terms by their log names; the training loss is their sum. predicted, target: (B, T, width)."""
        import torch

        return {
            name: torch.stack([term(predicted, target) for term in terms]).sum()
            for name, terms in self.parts.items()
        }

    def hide(self, x: Tensor) -> Tensor:
        """Zero on the hidden channels of proprio (B, P) or of actions (B, T, width)."""
        if not self.zeroed:
            return x
        return x * x.new_tensor([0.0 if i in self.zeroed else 1.0 for i in range(x.shape[-1])])

    def output(self, x: Tensor) -> Tensor:
        """Network output (B, T, width) -> normalised actions (B, T, real)."""
        if self.squashed:
            x = x.sigmoid().where(_among(x, self.squashed), x)
        return x[..., : self.real]

    def inverse_output(self, actions: Tensor) -> Tensor:
        """Normalised actions (B, T, real) -> what the network would have to say, on the real channels."""
        if not self.squashed:
            return actions
        logits = actions.clamp(1e-4, 1 - 1e-4).logit()
        return logits.where(_among(actions, self.squashed), actions)

    def as_taught(self, x: Tensor) -> Tensor:
        """Network output (B, T, width) as a target of `losses`: logits that a term scores become what they stand for."""
        terms = [term for terms in self.parts.values() for term in terms if term.kind == "bce"]
        return x.sigmoid().where(_among(x, [c for term in terms for c in term.channels]), x)


def _among(x: Tensor, channels: Sequence[int]) -> Tensor:
    """bool (channels of x,)."""
    return x.new_tensor([i in channels for i in range(x.shape[-1])]).bool()


def _span(a: int, b: int) -> tuple[int, ...]:
    return tuple(range(a, b))


def _poses(gripper: tuple[Term, ...], squashed: tuple[int, ...], name: str) -> ActionSpace:
    parts = {
        "position_loss": (Term(500.0, "mse", _span(0, 3)), Term(500.0, "mse", _span(10, 13))),
        "rotate6D_loss": (Term(10.0, "mse", _span(3, 9)), Term(10.0, "mse", _span(13, 19))),
        "gripper_loss": gripper,
    }
    return ActionSpace(name, 20, 20, parts, is_joint=False, zeroed=squashed, squashed=squashed)


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
    return ActionSpace("joint", 14, 14, parts, is_joint=True, zeroed=(6, 13), squashed=(6, 13))


def _franka(config: XVlaConfig) -> ActionSpace:
    parts = {"joints_loss": (Term(1.0, "mse", _span(0, 7)),)}
    return ActionSpace("franka_joint7", 20, 7, parts, is_joint=True)


def _so101_bimanual(config: XVlaConfig) -> ActionSpace:
    """The reference's terms overlap (grippers count three times), and are plain errors though the output is squashed."""
    parts = {
        "joints_loss": (Term(1.0, "mse", _span(0, 12)),),
        "gripper_loss": (Term(1.0, "mse", (5, 11)),),
        "left_arm_loss": (Term(1.0, "mse", _span(0, 6)),),
        "right_arm_loss": (Term(1.0, "mse", _span(6, 12)),),
    }
    return ActionSpace("so101_bimanual", 20, 12, parts, is_joint=True, zeroed=(5, 11), squashed=(5, 11))


def _auto(config: XVlaConfig) -> ActionSpace:
    real = config.action_dim
    parts = {"joints_loss": (Term(1.0, "mse", _span(0, real)),)}
    return ActionSpace("auto", max(config.max_action_dim, real), real, parts, is_joint=True)


ACTION_SPACES: dict[str, Callable[[XVlaConfig], ActionSpace]] = {
    "auto": _auto,
    "ee6d": _ee6d,
    "joint": _joint,
    "agibot_ee6d": _agibot_ee6d,
    "franka_joint7": _franka,
    "so101_bimanual": _so101_bimanual,
}


def action_space(config: XVlaConfig) -> ActionSpace:
    """The space that `action_mode` names.

    Raises:
        CheckpointError: a name that nobody registered (suggests the nearest), or a space that cannot be made.
    """
    mode = config.action_mode
    make = ACTION_SPACES.get(mode) or ACTION_SPACES.get(mode.lower()) or _installed(mode)
    if make is None:
        raise CheckpointError(
            f"action_mode '{mode}' is unknown (known: {', '.join(ACTION_SPACES)}; a space of your own is an entry point "
            f"'{mode}' of the group '{ENTRY_POINTS}' in an installed package){nearest(mode, ACTION_SPACES)}"
        )
    space = make(config)
    if not isinstance(space, ActionSpace):
        raise CheckpointError(f"action_mode '{mode}' made a {type(space).__name__}, not an ActionSpace")
    return space


def _installed(mode: str) -> Callable[[XVlaConfig], ActionSpace] | None:
    """A user's own space among the installed packages."""
    found = list(entry_points(group=ENTRY_POINTS, name=mode))
    if not found:
        return None
    try:
        return found[0].load()
    except Exception as error:  # a stranger's module may fail in any way
        raise CheckpointError(
            f"action space '{mode}' ({found[0].value}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error

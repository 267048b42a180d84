"""How much arithmetic each graph of a policy is, and how many of its weights it reads: counted, nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from edgevla.errors import CheckpointError
from edgevla.manifest_record import Work
from edgevla.train.policies.base import Policy

from .trace import Method, example_input

_aten = torch.ops.aten
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    # torch's own list leaves out the attention of a CPU.
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _aten._scaled_dot_product_flash_attention
    ],
}
LOOKUPS = ("embedding", "index", "index_select", "gather")
"""They read rows, not all of their first argument."""


class _Counter(TorchDispatchMode):
    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.flops = 0
        self.read: dict[int, int] = {}
        """id of a parameter -> its number of values."""
        self._own = {id(p): p.numel() for p in policy.parameters()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        packet = func._overloadpacket
        if packet not in FORMULAS and func is not torch.ops.prim.device.default:
            with self:  # what is made of simpler operations is counted by them
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        if packet.__name__ not in LOOKUPS:
            given = (value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
            self.read |= {id(t): self._own[id(t)] for t in given if id(t) in self._own}
        out = func(*args, **kwargs)
        if packet in FORMULAS:
            self.flops += FORMULAS[packet](*args, **kwargs, out_val=out)
        return out


def count(policy: Policy) -> dict[str, Work]:
    """By graph, of one run of it for one observation; `time` is a table in every bundle and no work. Products and
    convolutions alone are counted, as 2 per multiplication with its addition.

    Raises:
        CheckpointError: a policy of somebody's own, whose graphs cannot be followed without values.
    """
    try:
        return dict(_counted(policy))
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{policy.policy_type}: its arithmetic cannot be counted: {reason}") from error


def _counted(policy: Policy) -> Iterator[tuple[str, Work]]:
    was_training = policy.training
    policy.eval()
    for name, spec in policy.graphs().items():
        if name == "time":
            continue
        shapes = FakeTensorMode(allow_non_fake_inputs=True)
        values = [shapes.from_tensor(example_input(one)) for one in spec.inputs]
        counter = _Counter(policy)
        run: Callable[..., Any] = Method(policy, name, spec)
        with torch.no_grad(), shapes, counter:
            run(*values)
        yield name, Work(counter.flops, sum(counter.read.values()))
    policy.train(was_training)

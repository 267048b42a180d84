"""What an engine takes and gives, against what the manifest says: compared before the first buffer is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgevla.errors import BundleError
from edgevla.graph import GraphSpec, TensorSpec

Found = Mapping[str, tuple[str, tuple[int | None, ...]]]
"""Name -> dtype and shape; None: any length."""


def check_signature(what: str, spec: GraphSpec, inputs: Found, outputs: Found) -> None:
    """what: the file, as a person knows it.

    Raises:
        BundleError: a name, dtype or shape that differs from the manifest's.
    """
    _check(what, "input", spec.inputs, inputs)
    _check(what, "output", spec.outputs, outputs)


def _check(what: str, kind: str, wanted: Sequence[TensorSpec], found: Found) -> None:
    if set(found) != {w.name for w in wanted}:
        raise BundleError(
            f"{what} has the {kind}s {', '.join(sorted(found))}; "
            f"the manifest says {', '.join(sorted(w.name for w in wanted))}"
        )
    for w in wanted:
        dtype, shape = found[w.name]
        fits = len(shape) == len(w.shape) and all(
            a is None or a == b for a, b in zip(shape, w.shape, strict=True)
        )
        if dtype != w.dtype or not fits:
            raise BundleError(
                f"{kind} '{w.name}' of {what} is {dtype} {list(shape)}; "
                f"the manifest says {w.dtype} {list(w.shape)}"
            )

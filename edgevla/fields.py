"""What messages are made of: flat arrays, payloads, the base of every body. The messages are in `edgevla.messages`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from edgevla.kinds import Mismatch, wrong
from edgevla.strict import Length, UInt, Within


class Flat:
    """A one-dimensional array: little-endian bytes in plain data, numpy outside of it (read-only when it was read)."""

    def __init__(self, dtype: str) -> None:
        self._dtype = np.dtype(dtype)

    def read(self, value: Any) -> np.ndarray:
        if not isinstance(value, bytes):
            raise wrong(value, f"the bytes of a {self._dtype} array")
        if len(value) % self._dtype.itemsize:
            raise Mismatch(f"holds {len(value)} bytes; expected a whole number of {self._dtype}", "size")
        return np.frombuffer(value, self._dtype)

    def write(self, value: Any) -> bytes:
        if isinstance(value, np.ndarray) and value.ndim == 1:
            if value.dtype == self._dtype:
                return value.tobytes()
            if value.dtype.kind == self._dtype.kind:
                return value.astype(self._dtype).tobytes()
        raise wrong(value, f"a flat {self._dtype} array")


F32s = Annotated[np.ndarray, Flat("<f4")]
U32s = Annotated[np.ndarray, Flat("<u4")]
U16s = Annotated[np.ndarray, Flat("<u2")]
Session = Annotated[bytes, Length(8)]
Duration = Annotated[float, Within(0, 1e9)]


@dataclass(frozen=True)
class Payloads:
    """How many payloads a type has, and of which dtypes."""

    least: int = 0
    most: int = 0
    dtypes: tuple[str, ...] = ()


class MessageBody:
    """What a message says; one subclass per type."""

    PAYLOADS: ClassVar[Payloads] = Payloads()

    def misfit(self, payloads: Sequence[np.ndarray]) -> str | None:
        """What is wrong between the fields and the payloads, None when nothing."""
        return None


@dataclass(frozen=True)
class Guidance:
    """Real-time chunking. weights: one per row of the committed actions. max_guidance: bound of the correction. select:
    above 1, so many chunks are drawn without guidance, and the one nearest to the committed actions is the answer."""

    weights: F32s
    max_guidance: float
    select: UInt = 1

"""Values and arrays as openpi's messages hold them, and back: msgpack, an array as a map of four keys.

    {b"__ndarray__": true, b"data": bytes, b"dtype": "<f4", b"shape": [50, 14]}
    {b"__npgeneric__": true, b"data": 1.5, b"dtype": "<f4"}

Written are byte keys; others write texts, so both are read. Whatever arrives may be hostile: numbers of items and levels
are bounded before anything is built, an array's bytes are counted first, and there are no dtypes but truth values and
numbers: nothing of Python's own is ever unpacked.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgpack
import numpy as np

from edgevla.errors import WireError
from edgevla.kinds import say

MOST_ITEMS, MOST_LEVELS, MOST_AXES = 4096, 8, 8
"""Of one message: a few arrays of four keys each. A nested bomb is many empty lists."""
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_MAPS, _LISTS = {*range(0x80, 0x90), 0xDE, 0xDF}, {*range(0x90, 0xA0), 0xDC, 0xDD}
_EXTENSIONS = {*range(0xC7, 0xCA), *range(0xD4, 0xD9)}


def pack(value: Any) -> bytes:
    """msgpack with arrays as openpi's client packs them."""
    packed: bytes = msgpack.packb(value, default=_plain, use_bin_type=True)
    return packed


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} cannot travel")


def unpack(data: bytes) -> Any:
    """Maps with texts as keys, arrays (read-only), lists, texts, bytes, numbers, truth values, None.

    Raises:
        WireError: it is no such message.
    """
    try:
        return _Reading(data).whole()
    except msgpack.OutOfData:
        raise WireError("the message breaks off", "format") from None
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise WireError(f"the message is no msgpack: {str(error)[:80]}", "format") from error


class _Reading:
    """One message, walked item by item: the length that a header claims costs nothing until its items are there."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left = MOST_ITEMS
        self._unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=max(1, len(data)))
        self._unpacker.feed(data)

    def whole(self) -> Any:
        value = self._value(MOST_LEVELS)
        if self._unpacker.tell() != len(self._data):
            raise WireError("the message has bytes after its end", "format")
        return value

    def _value(self, levels: int) -> Any:
        place = self._unpacker.tell()
        if place >= len(self._data):
            raise msgpack.OutOfData
        kind = self._data[place]
        if kind in _EXTENSIONS:
            raise WireError("the message holds an extension type", "type")
        if kind not in _MAPS and kind not in _LISTS:
            return self._unpacker.unpack()
        if levels == 0:
            raise WireError(f"the message is nested in more than {MOST_LEVELS} levels", "size")
        if kind in _LISTS:
            n = self._counted(self._unpacker.read_array_header())
            return [self._value(levels - 1) for _ in range(n)]
        return _made(self._map(levels - 1))

    def _map(self, levels: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for _ in range(self._counted(self._unpacker.read_map_header())):
            key = self._value(levels)
            name = key.decode() if isinstance(key, bytes) else key
            if not isinstance(name, str) or name in made:
                raise WireError(
                    f"the message has the key {say(key)}, which is no text or there twice", "type"
                )
            made[name] = self._value(levels)
        return made

    def _counted(self, n: int) -> int:
        self._left -= n
        if self._left < 0:
            raise WireError(f"the message has more than {MOST_ITEMS} items", "size")
        return n


def _made(found: dict[str, Any]) -> Any:
    if "__ndarray__" in found:
        return _array(found)
    return _scalar(found) if "__npgeneric__" in found else found


def _array(found: dict[str, Any]) -> np.ndarray:
    dtype = _dtype(found, {"__ndarray__", "data", "dtype", "shape"})
    data, shape = found["data"], found["shape"]
    if not isinstance(data, bytes):
        raise WireError("an array's data are no bytes", "type")
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(_is_length(n) for n in shape):
        raise WireError(f"an array has the shape {say(shape)}; expected at most {MOST_AXES} lengths", "type")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise WireError(
            f"an array of shape {tuple(shape)} and dtype {dtype.str} has {len(data)} bytes, not "
            f"{math.prod(shape) * dtype.itemsize}",
            "size",
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(found: dict[str, Any]) -> np.generic:
    dtype, value = _dtype(found, {"__npgeneric__", "data", "dtype"}), found["data"]
    if not isinstance(value, (bool, int, float)):
        raise WireError(f"a scalar is {say(value)}; expected a number", "type")
    return dtype.type(value)


def _dtype(found: dict[str, Any], keys: set[str]) -> np.dtype:
    """Of an array or a scalar whose keys are right."""
    if set(found) != keys:
        raise WireError(
            f"an array has the keys {', '.join(map(str, found))[:80]}, not {', '.join(sorted(keys))}", "type"
        )
    text = found["dtype"]
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise WireError(
            f"an array has the dtype {say(text)}; only truth values and numbers are taken", "type"
        )
    return np.dtype(text)


def _is_length(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n >= 0

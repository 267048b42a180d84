"""The flight log's file: blocks, each whole in itself, one after the other (docs/flight-recorder.md).

    b"EVB1"  length (u32)  crc32 of the payload (u32)  payload = zlib(msgpack(map))

A file that was cut anywhere is readable up to its last whole block. Numbers are little-endian.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

MARK = b"EVB1"
HEAD = struct.Struct("<4sII")
MOST_BYTES = 64 << 20
"""A block that says it is longer is damaged."""


def pack(content: Mapping[str, Any]) -> bytes:
    """One block."""
    payload = zlib.compress(msgpack.packb(content, use_bin_type=True), 6)
    return HEAD.pack(MARK, len(payload), zlib.crc32(payload)) + payload


def unpack(data: bytes) -> Iterator[dict[str, Any]]:
    """The whole blocks of a file. What is damaged is passed over: the next mark begins anew."""
    at = 0
    while (at := data.find(MARK, at)) >= 0 and at + HEAD.size <= len(data):
        _, length, crc = HEAD.unpack_from(data, at)
        payload = data[at + HEAD.size : at + HEAD.size + length]
        if length > MOST_BYTES or len(payload) < length or zlib.crc32(payload) != crc:
            at += 1
            continue
        at += HEAD.size + length
        content = _content(payload)
        if content is not None:
            yield content


def _content(payload: bytes) -> dict[str, Any] | None:
    opener = zlib.decompressobj()
    try:
        packed = opener.decompress(payload, MOST_BYTES)
        content = msgpack.unpackb(packed, raw=False, strict_map_key=False)
    except (zlib.error, ValueError, msgpack.exceptions.UnpackException):
        return None
    return content if isinstance(content, dict) else None


def pack_ints(columns: np.ndarray) -> bytes:
    """Whole numbers that change little from row to row, small. columns: int64 (rows, columns).

    Per column: the order of difference (0, 1 or 2) that makes it smallest, bytes per number, then the zigzag numbers,
    all lowest bytes first.
    """
    parts = []
    for column in np.ascontiguousarray(columns.T, np.int64):
        tried = [_zigzag(_difference(column, order)) for order in range(3)]
        costs = [int(_bits(numbers).sum()) for numbers in tried]
        order = costs.index(min(costs))
        numbers = tried[order]
        width = max(1, -(-int(numbers.max(initial=0)).bit_length() // 8))
        planes = numbers.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width]
        parts.append(struct.pack("<BB", order, width) + np.ascontiguousarray(planes.T).tobytes())
    return b"".join(parts)


def unpack_ints(data: bytes, n_rows: int, n_columns: int) -> np.ndarray:
    """The inverse: int64 (rows, columns).

    Raises:
        ValueError: the data has another size.
    """
    made = np.zeros((n_columns, n_rows), np.int64)
    at = 0
    for k in range(n_columns):
        if at + 2 > len(data):
            raise ValueError("columns are missing")
        order, width = struct.unpack_from("<BB", data, at)
        size = width * n_rows
        if order > 2 or not 1 <= width <= 8 or at + 2 + size > len(data):
            raise ValueError("a column is damaged")
        planes = np.zeros((n_rows, 8), np.uint8)
        planes[:, :width] = np.frombuffer(data, np.uint8, size, at + 2).reshape(width, n_rows).T
        column = _unzigzag(planes.view("<u8").ravel().astype(np.uint64))
        for _ in range(order):
            column = np.cumsum(column)
        made[k] = column
        at += 2 + size
    return made.T


def _difference(column: np.ndarray, order: int) -> np.ndarray:
    for _ in range(order):
        column = np.diff(column, prepend=np.int64(0))
    return column


def _zigzag(column: np.ndarray) -> np.ndarray:
    return ((column << 1) ^ (column >> 63)).view(np.uint64)


def _unzigzag(numbers: np.ndarray) -> np.ndarray:
    return (numbers >> np.uint64(1)).view(np.int64) ^ -(numbers & np.uint64(1)).view(np.int64)


def _bits(numbers: np.ndarray) -> np.ndarray:
    """How many bits each takes, about."""
    return np.ceil(np.log2(numbers.astype(np.float64) + 1)).astype(np.int64)


def as_ints(values: Sequence[Any] | np.ndarray, quantum: np.ndarray | float) -> np.ndarray:
    """Floats as multiples of a quantum, int64; what is not finite is `ABSENT`."""
    scaled = np.asarray(values, np.float64) / quantum
    good = np.isfinite(scaled) & (np.abs(scaled) < LARGEST)
    return np.where(good, np.rint(np.where(good, scaled, 0)).astype(np.int64), ABSENT)


def as_floats(ints: np.ndarray, quantum: np.ndarray | float) -> np.ndarray:
    """float64; NaN where there was none."""
    return np.where(ints == ABSENT, np.nan, ints * np.asarray(quantum, np.float64))


ABSENT, LARGEST = -(1 << 40), float(1 << 39)

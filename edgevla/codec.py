"""One message to bytes and back: strict, size-limited, never pickle.

`[type][msgpack header][raw payloads]`; which fields a type has is data (`edgevla.messages`). `decode` takes any
bytes and gives a `Message` or raises a `WireError` whose `reason` is the name of a counter; nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np

from edgevla.errors import WireError
from edgevla.messages import COMMON, SCHEMA, TYPES, Optional_

MAX_HEADER_BYTES = 64 * 1024
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
MAX_PARTS = 66
MAX_DEPTH = 8
_ARRAYS: dict[str, np.dtype[Any]] = {
    "f32[]": np.dtype("<f4"),
    "u32[]": np.dtype("<u4"),
    "u16[]": np.dtype("<u2"),
}
_PAYLOADS = {name: np.dtype(name).newbyteorder("<") for name in ("uint8", "float32", "int64", "bool")}
_BYTES = {"bin8": 8, "bin16": 16}


@dataclass(frozen=True)
class Message:
    """One message. header: all fields, arrays as numpy (read-only after decoding). payloads: numpy arrays."""

    type: str
    header: dict[str, Any]
    payloads: list[np.ndarray] = field(default_factory=list)

    @property
    def source(self) -> str:
        return str(self.header["source"])

    @property
    def seq(self) -> int:
        return int(self.header["seq"])

    @property
    def observed_ns(self) -> int:
        return int(self.header["observed_ns"])

    def __getitem__(self, name: str) -> Any:
        return self.header[name]


# --- checking -----------------------------------------------------------------------------------------------


def _refuse(where: str, value: Any, expected: str, reason: str) -> WireError:
    shown = repr(value)
    return WireError(f"{where} is {shown[:60]}; expected {expected}", reason)


def _check_plain(value: Any, where: str, depth: int = 0) -> Any:
    """Free content of a `map`: plain values, str keys, at most MAX_DEPTH deep."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return _check_int(value, where, -(2**63), 2**64 - 1)
    if isinstance(value, float):
        return value
    if depth < MAX_DEPTH:
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {key: _check_plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [_check_plain(item, where, depth + 1) for item in value]
    raise _refuse(where, value, f"plain values, at most {MAX_DEPTH} deep", "type")


def _check_int(value: Any, where: str, low: int, high: int) -> int:
    if isinstance(value, np.integer):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _refuse(where, value, "an integer", "type")
    if not low <= value <= high:
        raise _refuse(where, value, f"{low} to {high}", "range")
    return value


def _check_float(value: Any, where: str, may_be_unknown: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        raise _refuse(where, value, "a number", "type")
    if not math.isfinite(value) and not (may_be_unknown and math.isnan(value)):
        raise _refuse(where, value, "a finite number", "range")
    return float(value)


def _check_array(value: Any, kind: str, where: str) -> np.ndarray:
    dtype = _ARRAYS[kind]
    if isinstance(value, bytes):
        if len(value) % dtype.itemsize:
            raise _refuse(where, len(value), f"a whole number of {kind[:-2]}, in bytes", "size")
        return np.frombuffer(value, dtype)
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind == dtype.kind:
        return np.ascontiguousarray(value, dtype)
    raise _refuse(where, value, f"a flat array {kind}", "type")


def _check(value: Any, kind: Any, where: str) -> Any:
    """`value` as `kind` says, arrays made numpy.

    Raises:
        WireError: with the counter's name as `reason`.
    """
    if isinstance(kind, Optional_):
        return None if value is None else _check(value, kind.kind, where)
    if isinstance(kind, dict):
        return check_fields(value, kind, where)
    if isinstance(kind, list):
        if not isinstance(value, list | tuple):
            raise _refuse(where, value, "a list", "type")
        return [_check(item, kind[0], f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(kind, tuple):
        if not isinstance(value, str) or value not in kind:
            raise _refuse(where, value, "one of " + ", ".join(kind), "range")
        return value
    if kind in _ARRAYS:
        return _check_array(value, kind, where)
    if kind in _BYTES:
        if not isinstance(value, bytes) or len(value) != _BYTES[kind]:
            raise _refuse(where, value, f"{_BYTES[kind]} bytes", "type")
        return value
    if kind == "uint":
        return _check_int(value, where, 0, 2**64 - 1)
    if kind == "int":
        return _check_int(value, where, -(2**63), 2**63 - 1)
    if kind in ("float", "measured"):
        return _check_float(value, where, kind == "measured")
    if kind in ("str", "bool"):
        if not isinstance(value, str if kind == "str" else bool):
            raise _refuse(where, value, f"a {kind}", "type")
        return value
    return _check_map(value, kind, where)


def _check_map(value: Any, kind: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refuse(where, value, "a map", "type")
    if kind == "map:uint":
        return {
            _check(k, "str", where): _check_int(v, f"{where}.{k}", 0, 2**64 - 1) for k, v in value.items()
        }
    return dict(_check_plain(value, where))


def check_fields(value: Any, fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A map of exactly these fields, each of its kind.

    Raises:
        WireError: names the field.
    """
    if not isinstance(value, Mapping):
        raise _refuse(where, value, "a map", "type")
    missing = [name for name in fields if name not in value]
    if missing:
        raise WireError(f"{where} lacks the field '{missing[0]}'", "schema")
    if len(value) != len(fields):
        unknown = next(name for name in value if name not in fields)
        raise WireError(f"{where} has the unknown field {str(unknown)[:40]!r}", "schema")
    return {name: _check(value[name], kind, f"{where}.{name}") for name, kind in fields.items()}


# --- codec --------------------------------------------------------------------------------------------------


def _check_payloads(
    type_name: str, fields: dict[str, Any], described: Sequence[Mapping[str, Any]], payloads: list[np.ndarray]
) -> None:
    message_type = TYPES[type_name]
    low, high, dtypes = message_type.payload
    if not low <= len(payloads) <= high:
        raise WireError(f"{type_name} came with {len(payloads)} payloads; expected {low} to {high}", "size")
    for about in described:
        if about["dtype"] not in dtypes:
            raise WireError(f"{type_name} has a payload of {about['dtype'][:20]}; expected {dtypes}", "type")
    wrong = message_type.check(fields, payloads) if message_type.check else None
    if wrong:
        raise WireError(f"{type_name} has {wrong}", "size")


def encode(message: Message) -> list[bytes | memoryview]:
    """Frames to send. The header is completed and checked as strictly as on arrival.

    Raises:
        WireError: our own mistake: a field is missing, unknown, or of another type.
    """
    if message.type not in TYPES:
        raise WireError(f"there is no message type '{message.type}'", "schema")
    payloads = [np.ascontiguousarray(p) for p in message.payloads]
    described = [{"dtype": p.dtype.name, "shape": list(p.shape)} for p in payloads]
    header = {**message.header, "schema": SCHEMA, "type": message.type, "payloads": described}
    fields = check_fields(header, {**COMMON, **TYPES[message.type].fields}, message.type)
    _check_payloads(message.type, fields, described, payloads)
    packed = msgpack.packb(fields, default=_bytes_of, use_bin_type=True)
    n_bytes = sum(p.nbytes for p in payloads)
    if len(packed) > MAX_HEADER_BYTES or n_bytes > MAX_PAYLOAD_BYTES:
        raise WireError(
            f"{message.type}: a header of {len(packed)} and payloads of {n_bytes} bytes; at most "
            f"{MAX_HEADER_BYTES} and {MAX_PAYLOAD_BYTES}",
            "size",
        )
    raw = [p.reshape(-1).view(np.uint8).data if p.size else b"" for p in payloads]
    return [message.type.encode(), packed, *raw]


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return value.tobytes()
    raise TypeError(f"{type(value).__name__} in a header")


def _pairs(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A map whose keys are all different; the second of two equal keys would win in silence."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice in a map")
    return made


def _unpack(packed: bytes) -> dict[str, Any]:
    if len(packed) > MAX_HEADER_BYTES:
        raise WireError(f"a header of {len(packed)} bytes; at most {MAX_HEADER_BYTES}", "size")
    try:
        header = msgpack.unpackb(packed, raw=False, strict_map_key=True, object_pairs_hook=_pairs)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"a header that is not msgpack: {error}", "format") from error
    if not isinstance(header, dict):
        raise WireError(f"a header that is a {type(header).__name__}, not a map", "format")
    return header


def _payload(about: Mapping[str, Any], raw: Any) -> np.ndarray:
    dtype = _PAYLOADS.get(about["dtype"])
    if dtype is None:
        raise WireError(f"a payload of dtype {about['dtype'][:20]!r}", "type")
    shape = about["shape"]
    if len(shape) > 6 or math.prod(shape) * dtype.itemsize != len(raw):
        raise WireError(f"a payload of {len(raw)} bytes for {about['dtype']} {shape[:6]}", "size")
    return np.frombuffer(raw, dtype).reshape(shape)


def decode(frames: Sequence[Any], session: bytes | None) -> Message:
    """A message out of frames that anybody may have sent.

    frames: bytes-like. session: 8 bytes; None accepts every session.

    Raises:
        WireError: `reason` is one of schema, session, type, range, size, format. Nothing else is raised.
    """
    if not 2 <= len(frames) <= MAX_PARTS:
        raise WireError(f"{len(frames)} parts; expected 2 to {MAX_PARTS}", "format")
    if sum(len(f) for f in frames[2:]) > MAX_PAYLOAD_BYTES:
        raise WireError(f"payloads of more than {MAX_PAYLOAD_BYTES} bytes", "size")
    header = _unpack(bytes(frames[1]))
    if header.get("schema") != SCHEMA:
        raise WireError(f"schema {str(header.get('schema'))[:20]}; this program speaks {SCHEMA}", "schema")
    name = header.get("type")
    if not isinstance(name, str) or name not in TYPES or name.encode() != bytes(frames[0]):
        raise WireError(
            f"a message of type {str(name)[:40]!r} under the topic {bytes(frames[0])[:40]!r}", "type"
        )
    if session is not None and header.get("session") != session:
        raise WireError(f"a {name} of another deployment", "session")
    header = check_fields(header, {**COMMON, **TYPES[name].fields}, name)
    described = header.pop("payloads")
    if len(described) != len(frames) - 2:
        raise WireError(f"{name} names {len(described)} payloads, {len(frames) - 2} came", "size")
    payloads = [_payload(about, raw) for about, raw in zip(described, frames[2:], strict=True)]
    _check_payloads(name, header, described, payloads)
    return Message(name, header, payloads)

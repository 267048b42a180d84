"""One message to bytes and back: strict, size-limited, never pickle.

`[type][msgpack header][raw payloads]`; the header is one map of what `Header` and the body's class in `edgevla.messages`
say. `decode` takes any bytes and gives a `Message` or raises a `WireError` whose `reason` is the name of a counter;
nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from edgevla.errors import WireError
from edgevla.kinds import Mismatch, lacking, unknown
from edgevla.messages import NAMES, SCHEMA, TYPES, Header, Message, MessageBody
from edgevla.strict import Schema, UInt, kind, record

MAX_HEADER_BYTES = 64 * 1024
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
MAX_PARTS = 66
_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ("uint8", "float32", "int64", "bool")}
_NAMES_OF = {dtype: name for name, dtype in _DTYPES.items()}
"""numpy makes up a dtype's name anew each time it is asked, in 10 us."""


@dataclass(frozen=True)
class _Array:
    """A payload as the header describes it."""

    dtype: str
    shape: tuple[UInt, ...]


_HEADER = record(Header)
_ARRAYS = kind(tuple[_Array, ...])
_BODIES: dict[str, Schema[MessageBody]] = {name: record(cls) for name, cls in TYPES.items()}
_OURS = frozenset({"schema", "type", "payloads"})
_KNOWN = {name: body.names | _HEADER.names | _OURS for name, body in _BODIES.items()}


def encode(message: Message[MessageBody]) -> list[bytes | memoryview]:
    """Frames to send, checked as strictly as on arrival.

    Raises:
        WireError: our own mistake: a value that its annotation does not allow, or payloads that do not fit.
    """
    name = NAMES[type(message.body)]
    payloads = [np.ascontiguousarray(p) for p in message.payloads]
    try:
        fields = {
            "schema": SCHEMA,
            "type": name,
            **_HEADER.write(message.header),
            "payloads": [{"dtype": _name_of(p), "shape": p.shape} for p in payloads],
            **_BODIES[name].write(message.body),
        }
    except Mismatch as error:
        raise _refused(error, name) from None
    _check_payloads(name, message.body, payloads)
    packed = msgpack.packb(fields)
    n_bytes = sum(p.nbytes for p in payloads)
    if len(packed) > MAX_HEADER_BYTES or n_bytes > MAX_PAYLOAD_BYTES:
        raise WireError(
            f"{name}: a header of {len(packed)} and payloads of {n_bytes} bytes; at most "
            f"{MAX_HEADER_BYTES} and {MAX_PAYLOAD_BYTES}",
            "size",
        )
    raw = [p.reshape(-1).view(np.uint8).data if p.size else b"" for p in payloads]
    return [name.encode(), packed, *raw]


def decode(frames: Sequence[Any], session: bytes | None) -> Message[MessageBody]:
    """A message out of frames that anybody may have sent.

    frames: bytes-like. session: 8 bytes; None accepts every session.

    Raises:
        WireError: `reason` is one of schema, session, type, range, size, format. Nothing else is raised.
    """
    if not 2 <= len(frames) <= MAX_PARTS:
        raise WireError(f"{len(frames)} parts; expected 2 to {MAX_PARTS}", "format")
    if sum(len(f) for f in frames[2:]) > MAX_PAYLOAD_BYTES:
        raise WireError(f"payloads of more than {MAX_PAYLOAD_BYTES} bytes", "size")
    fields = _unpack(bytes(frames[1]))
    name = _type_of(fields, bytes(frames[0]))
    if session is not None and fields.get("session") != session:
        raise WireError(f"a {name} of another deployment", "session")
    try:
        header = Header(**_HEADER.pick(fields))
        body_type = _BODIES[name]
        body = body_type.cls(**body_type.pick(fields))
        if not _KNOWN[name].issuperset(fields):
            raise unknown(next(key for key in fields if key not in _KNOWN[name]), _KNOWN[name])
        if "payloads" not in fields:
            raise lacking("payloads")
        described = _described(fields["payloads"])
    except Mismatch as error:
        raise _refused(error, name) from None
    if len(described) != len(frames) - 2:
        raise WireError(f"{name} names {len(described)} payloads, {len(frames) - 2} came", "size")
    payloads = [_payload(about, raw) for about, raw in zip(described, frames[2:], strict=True)]
    _check_payloads(name, body, payloads)
    return Message(header, body, payloads)


def _name_of(payload: np.ndarray) -> str:
    return _NAMES_OF.get(payload.dtype) or payload.dtype.name


def _refused(error: Mismatch, name: str) -> WireError:
    error.where = name
    return WireError(str(error), error.reason)


def _check_payloads(name: str, body: MessageBody, payloads: Sequence[np.ndarray]) -> None:
    rule = body.PAYLOADS
    if not rule.least <= len(payloads) <= rule.most:
        raise WireError(
            f"{name} came with {len(payloads)} payloads; expected {rule.least} to {rule.most}", "size"
        )
    for payload in payloads:
        if _name_of(payload) not in rule.dtypes:
            raise WireError(
                f"{name} has a payload of {_name_of(payload)}; expected {' or '.join(rule.dtypes)}", "type"
            )
    if wrong := body.misfit(payloads):
        raise WireError(f"{name} has {wrong}", "size")


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


def _pairs(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A map whose keys are all different; the second of two equal keys would win in silence."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice in a map")
    return made


def _type_of(fields: Mapping[str, Any], topic: bytes) -> str:
    if fields.get("schema") != SCHEMA:
        raise WireError(f"schema {str(fields.get('schema'))[:20]}; this program speaks {SCHEMA}", "schema")
    name = fields.get("type")
    if not isinstance(name, str) or name not in TYPES or name.encode() != topic:
        raise WireError(f"a message of type {str(name)[:40]!r} under the topic {topic[:40]!r}", "type")
    return name


def _described(value: Any) -> tuple[_Array, ...]:
    try:
        described: tuple[_Array, ...] = _ARRAYS.read(value)
    except Mismatch as error:
        raise error.inside("payloads") from None
    return described


def _payload(about: _Array, raw: Any) -> np.ndarray:
    dtype = _DTYPES.get(about.dtype)
    if dtype is None:
        raise WireError(f"a payload of dtype {about.dtype[:20]!r}", "type")
    shape = about.shape
    if len(shape) > 6 or math.prod(shape) * dtype.itemsize != len(raw):
        raise WireError(f"a payload of {len(raw)} bytes for {about.dtype} {shape[:6]}", "size")
    return np.frombuffer(raw, dtype).reshape(shape)

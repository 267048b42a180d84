"""JSON into frozen dataclasses, strictly: an unknown key is refused with its nearest, a wrong type with its place.

Fields without a default must be present (`null` where their type allows None); fields with a default may be left
out, and are left out again when they hold it. So reading and writing back gives the same JSON.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


class Mismatch(ValueError):
    """`args[0]` is the sentence; the caller turns it into an error of its own kind that names the file."""


def read(cls: type[T], data: Any, where: str) -> T:
    """Builds `cls` (a dataclass, at any depth) from parsed JSON. `where` is the path said in errors.

    Raises:
        Mismatch: unknown or missing key, or a value of another type.
    """
    return _value(cls, data, where)


def write(value: Any) -> Any:
    """The JSON that `read` turns back into `value`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: write(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if not _is_default(f, getattr(value, f.name))
        }
    if isinstance(value, dict):
        return {k: write(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [write(v) for v in value]
    return value


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """`; did you mean 'x'?` or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def _is_default(f: dataclasses.Field[Any], value: Any) -> bool:
    if f.default is not dataclasses.MISSING:
        return bool(value == f.default)
    return f.default_factory is not dataclasses.MISSING and bool(value == f.default_factory())


def _dataclass(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise Mismatch(f"{where} must be an object, not {_say(data)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise Mismatch(f"{where} has the unknown key '{key}'{nearest(key, fields)}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, f in fields.items():
        if name in data:
            values[name] = _value(hints[name], data[name], f"{where}.{name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise Mismatch(f"{where} lacks the key '{name}'")
    return cls(**values)


def _value(hint: Any, data: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        (inner,) = (a for a in args if a is not type(None))
        return _value(inner, data, where)
    if origin is typing.Literal:
        if data not in args:
            known = ", ".join(map(str, args))
            raise Mismatch(
                f"{where} is {_say(data)}, expected one of {known}{nearest(str(data), map(str, args))}"
            )
        return data
    if origin is tuple:
        return _tuple(args, data, where)
    if origin is dict:
        if not isinstance(data, dict):
            raise Mismatch(f"{where} must be an object, not {_say(data)}")
        return {k: _value(args[1], v, f"{where}.{k}") for k, v in data.items()}
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, data, where)
    return _scalar(hint, data, where)


def _tuple(args: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, (list, tuple)):
        raise Mismatch(f"{where} must be a list, not {_say(data)}")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_value(args[0], v, f"{where}[{i}]") for i, v in enumerate(data))
    if len(args) != len(data):
        raise Mismatch(f"{where} must hold {len(args)} values, not {len(data)}")
    return tuple(_value(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, data, strict=True)))


def _scalar(hint: Any, data: Any, where: str) -> Any:
    is_number = isinstance(data, (int, float)) and not isinstance(data, bool)
    if hint is float and is_number:
        if not math.isfinite(data):
            raise Mismatch(f"{where} is {data}, expected a finite number")
        return float(data)
    if hint is int and is_number and isinstance(data, int):
        return data
    if hint in (str, bool) and isinstance(data, hint):
        return data
    raise Mismatch(f"{where} must be {_NAMES.get(hint, hint)}, not {_say(data)}")


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _say(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 60 else text[:57] + "..."

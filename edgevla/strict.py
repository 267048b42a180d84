"""The one reader of plain data: JSON, msgpack, TOML and words of a command line into frozen dataclasses.

A dataclass's annotations are the schema, compiled once per type. Reading and writing both check, and say what is wrong
with one set of sentences, which are in `edgevla.kinds`:

    X has the unknown key 'kye'; did you mean 'key'?      X lacks the key 'key'
    X.key is 'abc'; expected a whole number               X.key is -1; expected a whole number from 0 to 9

Understood are `int`, `float` (finite), `str`, `bool`, `bytes`, `Any`, `Literal`, `X | None`, `list[X]`, `tuple[X, ...]`,
`tuple[X, Y]`, `dict[str, X]`, dataclasses, and `Annotated` with the words below. Fields without a default must be
present (null where their type allows None); fields with a default may be left out, and are left out again when they
hold it. So reading and writing back gives the same data. No numpy here: the guardian imports this.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

from edgevla import kinds
from edgevla.kinds import Kind, Mismatch, lacking, nearest, not_one_of, unknown, wrong

__all__ = [
    "MAY_BE_UNKNOWN",
    "Int",
    "Length",
    "Measured",
    "Mismatch",
    "OneOf",
    "Plain",
    "Schema",
    "UInt",
    "Within",
    "kind",
    "nearest",
    "read",
    "record",
    "write",
]

T = TypeVar("T")


def read(hint: type[T], data: Any, where: str = "", *, words: bool = False) -> T:
    """Builds what an annotation says, most often a dataclass, from plain data.

    where: what errors call the whole; `path/to/file.json:` for a file. words: values may be words of a command line or a
    TOML file, such as `3` and `1e5` for whole numbers, `none`, JSON for lists and maps.

    Raises:
        Mismatch: unknown or missing key, or a value of another type or out of range.
    """
    try:
        made: T = kind(hint, words).read(data)
    except Mismatch as error:
        error.where = where
        raise
    return made


def write(value: Any) -> Any:
    """The plain data that `read` turns back into `value`.

    Raises:
        Mismatch: `value` holds what its annotations do not allow.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return record(type(value)).write(value)
    if isinstance(value, dict):
        return {k: write(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [write(v) for v in value]
    return value


# --- words for Annotated ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Within:
    """A number from `low` to `high`, both allowed; None: no bound."""

    low: float | None
    high: float | None


@dataclass(frozen=True)
class Length:
    """So many bytes."""

    n: int


MAY_BE_UNKNOWN = "may be NaN"
UInt = Annotated[int, Within(0, 2**64 - 1)]
Int = Annotated[int, Within(-(2**63), 2**63 - 1)]
Measured = Annotated[float, MAY_BE_UNKNOWN]
"""NaN while it is not known."""


class _Plain:
    """Free content. Like every word that has `read` and `write`, it does both by itself."""

    def read(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise wrong(value, "a map")
        return kinds.plain(value)

    write = read


Plain = Annotated[dict[str, Any], _Plain()]


class OneOf:
    """One of several dataclasses: the text under `key` says which. All it holds is written, but what is None."""

    def __init__(self, key: str, choices: Mapping[str, type]) -> None:
        self._key, self._choices = key, choices

    def read(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise wrong(value, "a map")
        rest = dict(value)
        name = rest.pop(self._key, None)
        if not isinstance(name, str) or name not in self._choices:
            raise not_one_of(name, self._choices).inside(self._key)
        return record(self._choices[name]).read(rest)

    def write(self, value: Any) -> Any:
        for name, cls in self._choices.items():
            if type(value) is cls:
                written = record(cls).write(value, even_defaults=True)
                return {self._key: name, **{k: v for k, v in written.items() if v is not None}}
        raise wrong(value, f"one of {', '.join(self._choices)}")


# --- dataclasses --------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """One field of a dataclass. default: MISSING where it must be present."""

    name: str
    kind: Kind
    default: Any


class Schema(Generic[T]):
    """A dataclass, compiled."""

    def __init__(self, cls: type[T], words: bool = False) -> None:
        hints = typing.get_type_hints(cls, include_extras=True)
        self.cls = cls
        self.fields = [
            Field(f.name, kind(hints[f.name], words), _default(f))
            for f in dataclasses.fields(cls)  # type: ignore[arg-type]
            if f.init
        ]
        self.names = frozenset(f.name for f in self.fields)

    def read(self, data: Any) -> T:
        if not isinstance(data, Mapping):
            raise wrong(data, "a map")
        for key in data:
            if key not in self.names:
                raise unknown(key, self.names)
        return self.cls(**self.pick(data))

    def pick(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The values of this dataclass's fields out of a map that may hold others."""
        values: dict[str, Any] = {}
        name = ""
        try:
            for name, of, default in self.fields:
                if name in data:
                    values[name] = of.read(data[name])
                elif default is MISSING:
                    break
            else:
                return values
        except Mismatch as error:
            raise error.inside(name) from None
        raise lacking(name)

    def write(self, value: T, even_defaults: bool = False) -> dict[str, Any]:
        if type(value) is not self.cls:
            raise wrong(value, f"a {self.cls.__name__}")
        written: dict[str, Any] = {}
        name = ""
        try:
            for name, of, default in self.fields:
                held = getattr(value, name)
                if default is MISSING or even_defaults or _differs(held, default):
                    written[name] = of.write(held)
        except Mismatch as error:
            raise error.inside(name) from None
        return written


def _differs(held: Any, default: Any) -> bool:
    """An array compares by element, also with None."""
    return held is not None if default is None else bool(held != default)


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


_records: dict[tuple[type, bool], Schema[Any]] = {}
_kinds: dict[tuple[Any, bool], Kind] = {}


def record(cls: type[T], words: bool = False) -> Schema[T]:
    """The compiled form of a dataclass."""
    if (cls, words) not in _records:
        _records[cls, words] = Schema(cls, words)
    return _records[cls, words]


# --- annotations --------------------------------------------------------------------------------------------


def kind(hint: Any, words: bool = False) -> Kind:
    """The compiled form of an annotation."""
    if (hint, words) not in _kinds:
        _kinds[hint, words] = _compile(hint, words)
    return _kinds[hint, words]


def _compile(hint: Any, words: bool) -> Kind:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _annotated(args[0], args[1:], words)
    if origin in (typing.Union, types.UnionType):
        return _union(args, words)
    if origin is Literal:
        return _both(kinds.choice(args))
    if origin in (list, tuple):
        of = [kind(a, words) for a in args if a is not Ellipsis]
        made = kinds.sequence(origin, of, origin is list or args[1:] == (Ellipsis,))
    elif origin is dict:
        made = kinds.mapping(kind(args[1], words))
    elif dataclasses.is_dataclass(hint):
        compiled: Schema[Any] = record(typing.cast(type, hint), words)
        return Kind(compiled.read, compiled.write)
    else:
        return _annotated(hint, (), words)
    return Kind(kinds.from_json(made.read), made.write) if words else made


def _both(check: kinds.Check) -> Kind:
    return Kind(check, check)


def _annotated(hint: Any, about: tuple[Any, ...], words: bool) -> Kind:
    """A scalar, with what is said about it."""
    within = next((w for w in about if isinstance(w, Within)), Within(None, None))
    for word in about:
        if hasattr(word, "read"):
            return Kind(word.read, word.write)
    if hint is Any:
        return Kind(lambda value: value, write)
    if hint is str:
        return _both(kinds.exactly(str, "a text"))
    if hint is bytes:
        return _both(kinds.some_bytes(next((w.n for w in about if isinstance(w, Length)), None)))
    parse: Callable[[str | float], Any]
    if hint is int:
        parse, check = kinds.whole_word, kinds.whole(within.low, within.high)
    elif hint is float:
        parse, check = kinds.number_word, kinds.number(within.low, within.high, MAY_BE_UNKNOWN in about)
    elif hint is bool:
        parse, check = kinds.truth, kinds.exactly(bool, "true or false")
    else:
        raise TypeError(f"{hint} is no annotation of plain data")
    return Kind(kinds.from_word(parse, check), check) if words else _both(check)


def _union(args: tuple[Any, ...], words: bool) -> Kind:
    others = [kind(a, words) for a in args if a is not type(None)]
    inner = others[0] if len(others) == 1 else kinds.first_of(others)
    if len(others) == len(args):
        return inner
    made = kinds.optional(inner)
    return Kind(kinds.nothing(made.read), made.write) if words else made

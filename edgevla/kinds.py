"""Single values of plain data, checked: what `edgevla.strict` puts together into dataclasses, and the sentences.

A `Kind` is a pair of functions, plain data to value and back. Both check; what is wrong is a `Mismatch`, whose path
grows on the way out, so that no text is made while all is well. No numpy here: the guardian imports this.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

MAX_DEPTH = 8
FEW = 8
Check = Callable[[Any], Any]
Reason = Literal["schema", "type", "range", "size"]


class Mismatch(ValueError):
    """What is wrong: `str` is the sentence; the caller turns it into an error of its own kind.

    what: the sentence without its subject. path: keys and numbers from the outermost thing read to the wrong one.
    where: what the whole is called; a file's name, ending with a colon. reason: `schema` for keys, `type`, `range`, or
    `size` for a wrong number of bytes.
    """

    def __init__(self, what: str, reason: Reason = "type") -> None:
        super().__init__(what)
        self.what, self.reason, self.where = what, reason, ""
        self.path: tuple[str | int, ...] = ()

    def inside(self, step: str | int) -> Mismatch:
        """The same, seen from one step further out."""
        self.path = (step, *self.path)
        return self

    def __str__(self) -> str:
        steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)
        if not self.where or self.where.endswith(":"):
            steps = steps.removeprefix(".")
        joint = " " if self.where.endswith(":") and steps else ""
        return f"{self.where if steps else self.where.removesuffix(':')}{joint}{steps} {self.what}".lstrip()


class Kind(NamedTuple):
    """One annotation, compiled. Both functions check, and raise Mismatch."""

    read: Check
    write: Check


def nearest_word(word: str, known: Iterable[str]) -> str | None:
    """The known word that looks most like this one; None: none does."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return near[0] if near else None


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` or nothing."""
    near = nearest_word(word, known)
    return f"; did you mean '{near}'?" if near is not None else ""


def say(value: Any) -> str:
    """A value as errors show it."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out a whole number of thousands of digits
        return "a number with thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _bare(value: Any) -> str:
    """What is compared with words that are known."""
    return value if isinstance(value, str) else say(value)


def wrong(value: Any, expected: str, reason: Reason = "type") -> Mismatch:
    """What is said of a value of another kind than expected."""
    return Mismatch(f"is {say(value)}; expected {expected}", reason)


def not_one_of(value: Any, allowed: Iterable[Any]) -> Mismatch:
    """What is said of a value outside a closed list, with the nearest of it."""
    known = [str(a) for a in allowed]
    return wrong(value, f"one of {', '.join(known)}{nearest(_bare(value), known)}", "range")


def unknown(key: Any, known: Iterable[str]) -> Mismatch:
    """With the nearest known key; where none is near and they are few, with all."""
    names = sorted(known)
    hint = nearest(_bare(key), names) or (f"; known: {', '.join(names)}" if 0 < len(names) <= FEW else "")
    return Mismatch(f"has the unknown key {say(key)[:42]}{hint}", "schema")


def lacking(key: str) -> Mismatch:
    """What is said of a key that must be there."""
    return Mismatch(f"lacks the key '{key}'", "schema")


def _bounds(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {_shown(low)} to {_shown(high)}"
    return (
        f" of {_shown(low)} or more"
        if low is not None
        else f" up to {_shown(high)}"
        if high is not None
        else ""
    )


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


# --- one value ----------------------------------------------------------------------------------------------


def exactly(cls: type, name: str) -> Check:
    """A check for values of this very class: a bool is no whole number."""

    def check(value: Any) -> Any:
        if type(value) is not cls and not isinstance(value, cls):
            raise wrong(value, name)
        return value

    return check


def whole(low: float | None = None, high: float | None = None) -> Check:
    """A whole number; of any library that calls its own so, such as numpy."""
    expected = "a whole number" + _bounds(low, high)
    least, most = (-math.inf if low is None else low), (math.inf if high is None else high)

    def check(value: Any) -> int:
        if type(value) is not int:
            if not isinstance(value, numbers.Integral) or isinstance(value, bool):
                raise wrong(value, expected)
            value = int(value)
        if not least <= value <= most:
            raise wrong(value, expected, "range")
        return value

    return check


def number(low: float | None = None, high: float | None = None, may_be_unknown: bool = False) -> Check:
    """A finite number, or NaN where it may be unknown."""
    named = "a number" + _bounds(low, high)
    expected = named if _bounds(low, high) else "a finite number"
    least, most = (-math.inf if low is None else low), (math.inf if high is None else high)

    def check(value: Any) -> float:
        made = value
        if type(value) is not float:
            if not isinstance(value, numbers.Real) or isinstance(value, bool):
                raise wrong(value, named)
            try:
                made = float(value)
            except OverflowError:
                raise wrong(value, expected, "range") from None
        is_sound = math.isfinite(made) and least <= made <= most
        if not is_sound and not (may_be_unknown and made != made):
            raise wrong(value, expected, "range")
        return made

    return check


def some_bytes(n: int | None) -> Check:
    """Bytes; so many of them, unless n is None."""

    def check(value: Any) -> bytes:
        if not isinstance(value, bytes) or (n is not None and len(value) != n):
            raise wrong(value, "bytes" if n is None else f"{n} bytes")
        return value

    return check


def choice(allowed: Sequence[Any]) -> Check:
    """A check for values of a closed list, of their types too: 1 is not True."""
    types_allowed = {type(a) for a in allowed}

    def check(value: Any) -> Any:
        if type(value) not in types_allowed or value not in allowed:
            raise not_one_of(value, allowed)
        return value

    return check


def plain(value: Any, depth: int = 0) -> Any:
    """Free content: plain values with text keys, at most MAX_DEPTH deep."""
    if value is None or isinstance(value, bool | str | float):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise wrong(value, f"a whole number from {-(2**63)} to {2**64 - 1}", "range")
        return value
    if depth < MAX_DEPTH:
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {key: plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item, depth + 1) for item in value]
    raise wrong(value, f"plain values, at most {MAX_DEPTH} deep")


# --- several ------------------------------------------------------------------------------------------------


def optional(inner: Kind) -> Kind:
    """The same kind, or None."""

    def read(value: Any) -> Any:
        return None if value is None else inner.read(value)

    def write(value: Any) -> Any:
        return None if value is None else inner.write(value)

    return Kind(read, write)


def first_of(kinds: Sequence[Kind]) -> Kind:
    """The first that takes the value; what the last has against it is said."""

    def trying(checks: Sequence[Check]) -> Check:
        def check(value: Any) -> Any:
            for attempt in checks[:-1]:
                with contextlib.suppress(Mismatch):
                    return attempt(value)
            return checks[-1](value)

        return check

    return Kind(trying([k.read for k in kinds]), trying([k.write for k in kinds]))


def sequence(make: type, kinds: Sequence[Kind], is_open: bool) -> Kind:
    """A list or tuple; is_open: any number of values of the first kind."""

    def each(checks: Sequence[Check], make: Callable[[list[Any]], Any]) -> Check:
        def check(value: Any) -> Any:
            if not isinstance(value, (list, tuple)):
                raise wrong(value, "a list")
            if not is_open and len(value) != len(checks):
                raise Mismatch(f"holds {len(value)} values; expected {len(checks)}")
            made: list[Any] = []
            try:
                for item in value:
                    made.append(checks[0 if is_open else len(made)](item))
            except Mismatch as error:
                raise error.inside(len(made)) from None
            return make(made)

        return check

    return Kind(each([k.read for k in kinds], make), each([k.write for k in kinds], list))


def mapping(of: Kind) -> Kind:
    """Text keys, all values of one kind."""

    def each(take: Check) -> Check:
        def check(value: Any) -> Any:
            if not isinstance(value, Mapping):
                raise wrong(value, "a map")
            made: dict[str, Any] = {}
            for key, item in value.items():
                if not isinstance(key, str):
                    raise Mismatch(f"has the key {say(key)}; expected a text")
                try:
                    made[key] = take(item)
                except Mismatch as error:
                    raise error.inside(key) from None
            return made

        return check

    return Kind(each(of.read), each(of.write))


# --- words of a command line or a TOML file -----------------------------------------------------------------


def from_word(parse: Callable[[str | float], Any], check: Check) -> Check:
    """`check`, of what a word means where the value is one."""

    def read(value: Any) -> Any:
        meant = value
        if isinstance(value, str | float):
            with contextlib.suppress(ValueError, OverflowError):  # `check` says what was expected
                meant = parse(value)
        return check(meant)

    return read


def whole_word(word: str | float) -> int | float:
    """`100000` and `1e5`, in TOML or typed."""
    if isinstance(word, str) and word.strip().lstrip("+-").isdigit():
        return int(word)
    value = float(word)
    return int(value) if value.is_integer() else value


def number_word(word: str | float) -> float:
    """A number out of a word of a command line or a TOML file."""
    return float(word)


def truth(word: str | float) -> bool:
    """`true` or `false` out of such a word."""
    said = {"true": True, "false": False}.get(str(word).lower())
    if said is None:
        raise ValueError(word)
    return said


def nothing(check: Check) -> Check:
    """`check`, and None for the words that mean it: TOML has no null."""

    def read(value: Any) -> Any:
        is_none = isinstance(value, str) and value.lower() in ("none", "null")
        return None if is_none else check(value)

    return read


def from_json(check: Check) -> Check:
    """`check`, of JSON where the value is a text."""

    def read(value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise wrong(value, "JSON, such as [1, 2]") from None
        return check(value)

    return read

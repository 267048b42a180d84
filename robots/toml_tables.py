"""Strict reading of a TOML file: every value is asked for by name and kind, and what nobody asked for is refused.

Errors name file, table and key, and the nearest known key. No numpy here.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgevla.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
_MISSING = object()
ANY_NUMBER = (0.0, 1e7)
PLAIN_NAME = re.compile(r"[\w.+-]+")
LONGEST_SAID = 60


def within(default: Any, low: float, high: float) -> Any:
    """A field of a dataclass that `Table.dataclass` reads: its default, and what a file may say instead."""
    return dataclasses.field(default=default, metadata={"within": (low, high)})


def read_toml(path: Path) -> Table:
    """The root table. Raises ConfigError when the file is missing or is not TOML."""
    try:
        return Table(path, "", tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        raise ConfigError(f"profile {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"profile {path} cannot be read: {error}") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # of the parser; it has no word of its own for absurd numbers
        raise ConfigError(f"profile {path} is not valid TOML: {error}") from error


def say(value: Any) -> str:
    """A value of the file, as short as a sentence can bear."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number with thousands of digits"
    return text if len(text) <= LONGEST_SAID else text[: LONGEST_SAID - 3] + "..."


class Table:
    """One table of the file. Each getter removes its key from what `finish` would complain about."""

    def __init__(self, path: Path, name: str, values: dict[str, Any]) -> None:
        self.path, self.name = path, name
        self._values = values
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def error(
        self, key: str, what: str, got: str | None = None, known: Iterable[str] | None = None
    ) -> ConfigError:
        """The sentence with file, table and key; `known`: names of which the nearest to `got` is proposed."""
        near = difflib.get_close_matches(got, list(known), n=1) if got is not None and known else []
        hint = f"; did you mean '{near[0]}'?" if near else ""
        where = f"table {self.name}, " if self.name else ""
        return ConfigError(
            f"{self.path}: {where}key '{key}': {what}{hint}", file=str(self.path), table=self.name, key=key
        )

    def peek(self, key: str) -> Any:
        return self._values.get(key)

    def raw(self, key: str, default: Any = _MISSING) -> Any:
        self._asked.add(key)
        if key in self._values:
            return self._values[key]
        if default is _MISSING:
            near = difflib.get_close_matches(key, set(self._values) - self._asked, n=1)
            hint = f"; the file has '{near[0]}', which is unknown" if near else ""
            raise self.error(key, f"is missing{hint}")
        return default

    def text(self, key: str, default: Any = _MISSING) -> str:
        value = self.raw(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"expected a text, got {say(value)}")
        if default is _MISSING and not value:
            raise self.error(key, "must not be empty")
        if not value.isprintable():
            raise self.error(key, f"{say(value)} has characters that cannot be printed")
        return value

    def word(self, key: str, default: Any = _MISSING) -> str:
        """A text that may stand in options, file names and messages."""
        value = self.text(key, default)
        if value and not PLAIN_NAME.fullmatch(value):
            raise self.error(key, f"{say(value)} is no name: letters, digits and _ . + - are allowed")
        return value

    def words(self, key: str, default: Any = _MISSING) -> Sequence[str]:
        value = self.raw(key, default)
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise self.error(key, f"expected a list of texts, got {say(value)}")
        for text in value:
            if not PLAIN_NAME.fullmatch(text):
                raise self.error(key, f"{say(text)} is no name: letters, digits and _ . + - are allowed")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"expected true or false, got {say(value)}")
        return value

    def number(self, key: str, low: float, high: float, default: Any = _MISSING) -> float:
        value = self.raw(key, default)
        if not _is_number(value):
            raise self.error(key, f"expected a number within {low:g}..{high:g}, got {say(value)}")
        if not low <= value <= high:
            raise self.error(key, f"{say(value)} is outside {low:g}..{high:g}")
        return float(value)

    def whole(self, key: str, low: int, high: int, default: Any = _MISSING) -> int:
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, f"expected a whole number within {low}..{high}, got {say(value)}")
        if not low <= value <= high:
            raise self.error(key, f"{say(value)} is outside {low}..{high}")
        return value

    def pair(
        self, key: str, low: float, high: float, default: tuple[float, float] | None = None
    ) -> tuple[float, float]:
        """`[lower, upper]`, both within low..high and in this order."""
        value = self.raw(key, _MISSING if default is None else default)
        is_pair = isinstance(value, (list, tuple)) and len(value) == 2
        if not is_pair or not all(map(_is_number, value)):
            raise self.error(key, f"expected [lower, upper], got {say(value)}")
        if not (low <= value[0] <= high and low <= value[1] <= high):
            raise self.error(key, f"{say(list(value))} is outside {low:g}..{high:g}")
        if not value[0] < value[1]:
            raise self.error(key, f"the lower limit {value[0]:g} is not below the upper {value[1]:g}")
        return float(value[0]), float(value[1])

    def choice(self, key: str, allowed: Sequence[Any], default: Any = _MISSING) -> Any:
        value = self.raw(key, default)
        if isinstance(value, bool) or value not in allowed:
            known = [str(a) for a in allowed]
            raise self.error(
                key, f"{say(value)} is not one of {', '.join(known)}", say(value).strip("'"), known
            )
        return value

    def array(self, key: str, is_needed: bool = True) -> list[Table]:
        """An array of tables, `[[key]]`."""
        value = self.raw(key, _MISSING if is_needed else [])
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise self.error(key, f"expected [[{key}]] tables")
        if is_needed and not value:
            raise self.error(key, f"needs at least one [[{key}]] table")
        return [Table(self.path, f"[[{key}]] {say(v.get('name', i))}", v) for i, v in enumerate(value, 1)]

    def tables(self, key: str) -> dict[str, Table]:
        """Named sub-tables, `[key.name]`."""
        value = self.raw(key, {})
        if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
            raise self.error(key, f"expected [{key}.NAME] tables")
        return {name: Table(self.path, f"[{key}.{name}]", v) for name, v in value.items()}

    def dataclass(self, key: str, kind: type[T]) -> T:
        """A table whose keys are the fields of a dataclass with defaults; kinds are those of the defaults, and what is
        allowed is what `within` says."""
        value = self.raw(key, {})
        if not isinstance(value, dict):
            raise self.error(key, f"expected a table [{key}]")
        table = Table(self.path, f"[{key}]", value)
        filled: dict[str, Any] = {}
        for f in dataclasses.fields(kind):  # type: ignore[arg-type]
            low, high = f.metadata.get("within", ANY_NUMBER)
            if isinstance(f.default, bool):
                filled[f.name] = table.flag(f.name, f.default)
            elif isinstance(f.default, int):
                filled[f.name] = table.whole(f.name, int(low), int(high), f.default)
            else:
                filled[f.name] = table.number(f.name, low, high, f.default)
        table.finish()
        return kind(**filled)

    def finish(self) -> None:
        """Raises ConfigError for a key that nobody asked for."""
        for key in self._values:
            if key not in self._asked:
                raise self.error(key, "is unknown", key, self._asked)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

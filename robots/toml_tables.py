"""Strict reading of a TOML file: every value is asked for by name and kind, and what nobody asked for is refused.

What a value may be is checked by `edgevla.kinds`, as everywhere; here the file, the table and the key are put before the
sentence, and the nearest known key behind it. No numpy here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgevla import kinds
from edgevla.errors import ConfigError
from edgevla.kinds import Kind, Mismatch, nearest, nearest_word, say
from edgevla.strict import record
from edgevla.toml import load_toml

T = TypeVar("T")
_MISSING = object()
PLAIN_NAME = re.compile(r"[\w.+-]+")
TEXT, FLAG = kinds.exactly(str, "a text"), kinds.exactly(bool, "true or false")
TEXTS = kinds.sequence(tuple, [Kind(TEXT, TEXT)], is_open=True).read


def read_toml(path: Path) -> Table:
    """The root table. Raises ConfigError when the file is missing or is not TOML."""
    try:
        return Table(path, "", load_toml(path))
    except FileNotFoundError:
        raise ConfigError(f"profile {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"profile {path} cannot be read: {error}") from error
    except ValueError as error:
        raise ConfigError(f"profile {path} is not valid TOML: {error}") from error


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
        hint = nearest(got, known) if got is not None and known else ""
        where = f"table {self.name}, " if self.name else ""
        return ConfigError(
            f"{self.path}: {where}key '{key}': {what}{hint}", file=str(self.path), table=self.name, key=key
        )

    def peek(self, key: str) -> Any:
        """A value, not counted as read."""
        return self._values.get(key)

    def raw(self, key: str, default: Any = _MISSING) -> Any:
        """A value as TOML has it. Raises ConfigError: it is lacking and has no default."""
        self._asked.add(key)
        if key in self._values:
            return self._values[key]
        if default is _MISSING:
            near = nearest_word(key, set(self._values) - self._asked)
            raise self.error(
                key, f"is missing; the file has '{near}', which is unknown" if near else "is missing"
            )
        return default

    def checked(self, key: str, value: Any, check: kinds.Check) -> Any:
        """The value as `check` takes it."""
        try:
            return check(value)
        except Mismatch as error:
            steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.path)
            raise self.error(f"{key}{steps}", error.what) from None

    def text(self, key: str, default: Any = _MISSING) -> str:
        """A text that can be shown. Raises ConfigError, as all below: file, table and key."""
        value: str = self.checked(key, self.raw(key, default), TEXT)
        if default is _MISSING and not value:
            raise self.error(key, "must not be empty")
        if not value.isprintable():
            raise self.error(key, f"{say(value)} has characters that cannot be printed")
        return value

    def word(self, key: str, default: Any = _MISSING) -> str:
        """A text that may stand in options, file names and messages."""
        value = self.text(key, default)
        return self._plain(key, value) if value else value

    def words(self, key: str, default: Any = _MISSING) -> Sequence[str]:
        """A list of texts."""
        texts: Sequence[str] = self.checked(key, self.raw(key, default), TEXTS)
        return [self._plain(key, text) for text in texts]

    def _plain(self, key: str, text: str) -> str:
        if not PLAIN_NAME.fullmatch(text):
            raise self.error(key, f"{say(text)} is no name: letters, digits and _ . + - are allowed")
        return text

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value: bool = self.checked(key, self.raw(key, default), FLAG)
        return value

    def number(self, key: str, low: float, high: float, default: Any = _MISSING) -> float:
        """A number from `low` to `high`, both allowed."""
        value: float = self.checked(key, self.raw(key, default), kinds.number(low, high))
        return value

    def whole(self, key: str, low: int, high: int, default: Any = _MISSING) -> int:
        """A whole number from `low` to `high`, both allowed."""
        value: int = self.checked(key, self.raw(key, default), kinds.whole(low, high))
        return value

    def pair(
        self, key: str, low: float, high: float, default: tuple[float, float] | None = None
    ) -> tuple[float, float]:
        """`[lower, upper]`, both within low..high and in this order."""
        value = self.raw(key, _MISSING if default is None else default)
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise self.error(key, f"is {say(value)}; expected [lower, upper]")
        end = kinds.number(low, high)
        ends: tuple[float, float] = self.checked(
            key, value, kinds.sequence(tuple, [Kind(end, end)], is_open=True).read
        )
        if not ends[0] < ends[1]:
            raise self.error(key, f"the lower limit {ends[0]:g} is not below the upper {ends[1]:g}")
        return ends

    def choice(self, key: str, allowed: Sequence[Any], default: Any = _MISSING) -> Any:
        """One of a closed list."""
        return self.checked(key, self.raw(key, default), kinds.choice(allowed))

    def array(self, key: str, is_needed: bool = True) -> list[Table]:
        """An array of tables, `[[key]]`."""
        value = self.raw(key, _MISSING if is_needed else [])
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise self.error(key, f"is {say(value)}; expected [[{key}]] tables")
        if is_needed and not value:
            raise self.error(key, f"needs at least one [[{key}]] table")
        return [Table(self.path, f"[[{key}]] {say(v.get('name', i))}", v) for i, v in enumerate(value, 1)]

    def tables(self, key: str) -> dict[str, Table]:
        """Named sub-tables, `[key.name]`."""
        value = self.raw(key, {})
        if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
            raise self.error(key, f"is {say(value)}; expected [{key}.NAME] tables")
        return {name: Table(self.path, f"[{key}.{name}]", v) for name, v in value.items()}

    def dataclass(self, key: str, cls: type[T]) -> T:
        """A table whose keys are the fields of a dataclass with defaults; its annotations say what is allowed."""
        value = self.raw(key, {})
        if not isinstance(value, dict):
            raise self.error(key, f"is {say(value)}; expected a table [{key}]")
        table = Table(self.path, f"[{key}]", value)
        filled = {
            name: table.checked(name, table.raw(name, default), of.read)
            for name, of, default in record(cls).fields
        }
        table.finish()
        return cls(**filled)

    def finish(self) -> None:
        """Raises ConfigError for a key that nobody asked for."""
        for key in self._values:
            if key not in self._asked:
                raise self.error(key, "is unknown", key, self._asked)

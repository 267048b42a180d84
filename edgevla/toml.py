"""TOML files, read. Python has a reader since 3.11; before that, `tomli` is the same one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["load_toml", "tomllib"]


def load_toml(path: Path) -> dict[str, Any]:
    """The file's tables; it may begin with the mark that some editors of Windows write.

    Raises:
        OSError, ValueError: it cannot be opened, or is no TOML in UTF-8.
    """
    text = path.read_text(encoding="utf-8-sig")
    try:
        return tomllib.loads(text)
    except RecursionError as error:  # the parser has no word of its own for absurd depths
        raise ValueError(str(error)) from error

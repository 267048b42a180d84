"""How an extra gets into this environment. EdgeVLA is on no index, so pip wants what this one was installed from: a
clone, or a wheel."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from urllib.parse import unquote, urlsplit


def install_words(extra: str) -> str:
    """The command, for a shell in any folder: `pip install "/home/me/edgevla[eval]"`."""
    return f'{_pip()} "{_source()}[{extra}]"'


def reinstall_words() -> str:
    """The command that brings everything back that belongs here."""
    return f'{_pip()} --force-reinstall "{_source()}"'


def _clone() -> Path | None:
    """The clone that this code runs in; None: it was copied into the environment."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() else None


def _pip() -> str:
    return "pip install -e" if _clone() else "pip install"


def _source() -> str:
    """Clone or wheel. Where pip was not told a place, or it is gone, the wheel's name says what to look for."""
    if (clone := _clone()) is not None:
        return str(clone)
    version = "VERSION"
    try:
        about = importlib.metadata.distribution("edgevla")
        version = about.version
        path = Path(unquote(urlsplit(json.loads(about.read_text("direct_url.json") or "{}")["url"]).path))
        if path.exists():
            return str(path)
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError):
        pass
    return f"PATH/edgevla-{version}-py3-none-any.whl"

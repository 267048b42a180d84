"""The wheel of the EdgeVLA that runs here, made from its own files: what is tried here is what a robot gets.

No build tool and no index: the package is pure Python, so a wheel of it is a zip of its files and of what is known of
the installation. The same files give the same bytes, so the wheel's hash says whether the robot has this EdgeVLA.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import zipfile
from collections.abc import Iterator
from pathlib import Path

import edgevla
from edgevla.errors import ConfigError

WHEEL = "Wheel-Version: 1.0\nGenerator: edgevla push\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
LEFT_OUT = ("__pycache__",)


def write_wheel(folder: Path) -> Path:
    """Writes the wheel into a folder and returns its path.

    Raises:
        ConfigError: this EdgeVLA was never installed, so its requirements are not known.
    """
    try:
        about = importlib.metadata.distribution("edgevla")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            "this EdgeVLA runs without being installed; pip install -e . makes it known, then push again"
        ) from error
    stem = f"edgevla-{edgevla.__version__}"
    info = f"{stem}.dist-info"
    files = dict(_package_files())
    files[f"{info}/METADATA"] = (about.read_text("METADATA") or "").encode()
    files[f"{info}/WHEEL"] = WHEEL.encode()
    files[f"{info}/entry_points.txt"] = (about.read_text("entry_points.txt") or "").encode()
    rows = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = ("\n".join([*rows, f"{info}/RECORD,,"]) + "\n").encode()
    target = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as wheel:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)  # its date is always the same
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            wheel.writestr(entry, data)
    return target


def _package_files() -> Iterator[tuple[str, bytes]]:
    """Names inside the wheel; the links of a checkout are folders there."""
    root = Path(edgevla.__file__).parent
    for name in sorted(_names(root, "edgevla")):
        yield name, (root.parent / name).read_bytes()


def _names(folder: Path, name: str) -> Iterator[str]:
    for path in folder.iterdir():
        if path.is_dir() and path.name not in LEFT_OUT:
            yield from _names(path, f"{name}/{path.name}")
        elif path.is_file() and path.suffix != ".pyc":
            yield f"{name}/{path.name}"


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()

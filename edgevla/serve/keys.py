"""This machine's CURVE key pair, and the folder in which it and the lists of paired machines lie.

`$EDGEVLA_HOME/keys`, else `~/.config/edgevla/keys` (or under XDG_CONFIG_HOME), 0700, its files 0600: what others may
read or write is not used. Files are written whole or not at all, under a lock, so two commands may edit at once.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edgevla import strict
from edgevla.errors import ConfigError
from edgevla.strict import Mismatch

FOLDER_MODE, FILE_MODE = 0o700, 0o600
MOST_BYTES = 1 << 20
KEY_FILE = "machine.json"
T = TypeVar("T")


@dataclass(frozen=True)
class KeyPair:
    """Z85 texts of 40 characters, as ZeroMQ has them."""

    public: str
    secret: str = field(repr=False)


def keys_folder() -> Path:
    """Where keys lie; it need not be there yet."""
    if named := os.environ.get("EDGEVLA_HOME"):
        return Path(named) / "keys"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "edgevla" / "keys"


def fingerprint(key: str) -> str:
    """What people compare of a public key: 100 bits of its SHA-256, in five groups."""
    digest = hashlib.sha256(b"edgevla key " + key.encode()).digest()
    text = base64.b32encode(digest).decode().lower()[:20]
    return "-".join(text[i : i + 4] for i in range(0, 20, 4))


def is_key(text: str) -> bool:
    """Whether it can be a public key."""
    from zmq.utils import z85

    try:
        return len(text) == 40 and len(z85.decode(text.encode("ascii"))) == 32
    except (ValueError, KeyError, UnicodeEncodeError):
        return False


def machine_keys() -> KeyPair:
    """The key pair of this machine's user; made when there is none.

    Raises:
        ConfigError: it is damaged, or others may read it; ZeroMQ was built without CURVE.
    """
    import zmq

    if not zmq.has("curve"):
        raise ConfigError(
            "this ZeroMQ was built without CURVE, so nothing can be paired; PyPI's has it: "
            "pip install --force-reinstall --only-binary pyzmq pyzmq"
        )
    path = keys_folder() / KEY_FILE
    with locked():
        if not path.exists():
            public, secret = (key.decode() for key in zmq.curve_keypair())
            write_private(path, json.dumps({"public": public, "secret": secret}))
        pair = read_private(path, KeyPair)
    try:
        is_sound = zmq.curve_public(pair.secret.encode()).decode() == pair.public
    except (ValueError, KeyError, zmq.ZMQError):
        is_sound = False
    if not is_sound:
        raise ConfigError(
            f"{path} holds no key pair; remove it, and pair this machine again: the next command makes a new one"
        )
    return pair


# -- files that nobody else may read or write ----------------------------------------------------------------


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """While one reads, changes and writes. Makes the folder.

    Raises:
        ConfigError: the folder cannot be made, or others may look into it.
    """
    folder = keys_folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=FOLDER_MODE)
        check_private(folder)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        raise ConfigError(f"{folder}, where keys lie: {error.strerror}; {_CURE}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


_CURE = "check its permissions and the room on the disk, or name another place: EDGEVLA_HOME=DIR"


def check_private(path: Path) -> None:
    """
    Raises:
        ConfigError: somebody else may read or write it. OSError: it is not there.
    """
    state = path.stat()
    if os.geteuid() not in (0, state.st_uid):
        raise ConfigError(f"{path} belongs to another user; it must be yours: sudo chown $USER {path}")
    if state.st_mode & 0o077:
        wanted = FOLDER_MODE if path.is_dir() else FILE_MODE
        raise ConfigError(
            f"{path} may be read or written by others (mode {state.st_mode & 0o777:04o}), so it is not used; "
            f"if nobody has: chmod {wanted:o} {path}"
        )


def read_private(path: Path, kind: type[T]) -> T:
    """
    Raises:
        ConfigError: others may read or write it, it cannot be read, or it holds something else.
    """
    try:
        check_private(path.parent)
        check_private(path)
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; {_CURE}") from error
    try:
        if len(data) > MOST_BYTES:
            raise ValueError(f"is larger than {MOST_BYTES >> 20} MiB")
        return strict.read(kind, json.loads(data), f"{path}:")
    except Mismatch as error:
        raise ConfigError(f"{error}; mend the file, or remove it and pair again") from error
    except (ValueError, RecursionError) as error:
        why = str(error) if data else "it is empty"
        raise ConfigError(f"{path} is damaged ({why[:80]}); mend it, or remove it and pair again") from error


def write_private(path: Path, text: str) -> None:
    """Whole or not at all.

    Raises:
        ConfigError: it cannot be written; what was there stays.
    """
    made = None
    try:
        fd, made = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # 0600 from the start
        with os.fdopen(fd, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(made).replace(path)
        made = None
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}; nothing was changed; {_CURE}"
        ) from error
    finally:
        if made is not None:
            Path(made).unlink(missing_ok=True)

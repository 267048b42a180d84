"""`ws://HOST:PORT` of an openpi server: a websocket without encryption, so on this machine only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from edgevla.errors import MissingExtraError, UsageError
from edgevla.serve.transport import is_loopback

DEFAULT_BIND = "ws://127.0.0.1:8000"
_WS = re.compile(r"ws://(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+):(?P<port>\d{1,5})/?")


@dataclass(frozen=True)
class WsAddress:
    """host: without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"ws://[{self.host}]:{self.port}" if ":" in self.host else f"ws://{self.host}:{self.port}"


def ws_address(text: str, option: str, least_port: int = 1) -> WsAddress:
    """
    Raises:
        UsageError: another form, or an address off this machine.
    """
    found = _WS.fullmatch(text)
    if found is None or not least_port <= int(found["port"]) < 65536:
        raise UsageError(f"{option} {text}: expected one ws://HOST:PORT, such as {DEFAULT_BIND}")
    port = int(found["port"])
    if not is_loopback(f"tcp://{found['host']}:{port}"):
        raise UsageError(
            f"{option} {text}: openpi's websocket is neither encrypted nor does it ask who is there, and whoever "
            f"reaches the port could steer the arm; stay on ws://127.0.0.1 and let ssh carry it: "
            f"ssh -L {port}:127.0.0.1:{port} HOST"
        )
    return WsAddress(found["host"].strip("[]"), port)


def check_extra() -> Any:
    """The library.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import websockets
    except ImportError as error:
        raise MissingExtraError("openpi", "websockets") from error
    return websockets

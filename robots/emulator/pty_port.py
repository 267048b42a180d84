"""The emulator's end of a pseudo-terminal, with a link that stays the same when it is unplugged and replugged."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import socket
import struct
import termios
import tty
from pathlib import Path

from edgevla.errors import UsageError

from ..bus.adapters import openers

TCGETS2 = 0x802C542A
READ_SIZE = 4096


class PtyPort:
    """master: our descriptor, None while unplugged. path: what a host opens; link: the stable name of it.

    Raises:
        UsageError: the link is a file, or another emulator's.
    """

    def __init__(self, link: Path) -> None:
        self.link = link
        self._claim = _claim(link)
        self.master: int | None = None
        self._slave = -1
        self.path = ""
        try:
            self.replug()
        except UsageError:
            self._claim.close()
            raise

    def replug(self) -> None:
        """A new pseudo-terminal behind the same link; raw before anybody can open it."""
        if self.master is not None:
            return
        master, self._slave = os.openpty()
        tty.setraw(self._slave)  # the descriptor stays open, or the master reads EIO between two hosts
        os.set_blocking(master, False)
        self.path = os.ttyname(self._slave)
        if self.link.exists() and not self.link.is_symlink():
            os.close(master)
            os.close(self._slave)
            raise UsageError(f"{self.link} exists and is no link; name another place with --link")
        self.link.parent.mkdir(parents=True, exist_ok=True)
        partial = self.link.with_name(self.link.name + ".new")
        partial.unlink(missing_ok=True)
        partial.symlink_to(self.path)
        partial.replace(self.link)
        self.master = master

    def unplug(self) -> None:
        """Closes our end: the host sees what a pulled cable gives."""
        if self.master is None:
            return
        for fd in (self.master, self._slave):
            os.close(fd)
        self.master = None
        with contextlib.suppress(OSError):
            if os.readlink(self.link) == self.path:  # noqa: PTH115
                self.link.unlink()

    def close(self) -> None:
        self.unplug()
        self._claim.close()

    def read(self) -> bytes:
        assert self.master is not None
        try:
            return os.read(self.master, READ_SIZE)
        except (BlockingIOError, OSError):
            return b""

    def write(self, data: bytes) -> None:
        """What a host does not read in time is lost, as on a wire."""
        if self.master is not None:
            with contextlib.suppress(BlockingIOError, OSError):
                os.write(self.master, data)

    def let_others_in(self) -> None:
        """A host that was killed while it had the line to itself: a real line would have forgotten it."""
        if self.master is not None and not openers(self.path):
            fcntl.ioctl(self._slave, termios.TIOCNXCL)

    def client_baud(self) -> int:
        """The speed that the host chose, whether it is a standard one or not."""
        assert self.master is not None
        answer = fcntl.ioctl(self.master, TCGETS2, bytes(44))
        return struct.unpack_from("=I", answer, 40)[0]


def _claim(link: Path) -> socket.socket:
    """Says that a link is ours, unplugged or not. A name of the kernel's, which ends with the process; the link itself
    may be left over, and its pseudo-terminal's number somebody else's by now."""
    claim = socket.socket(socket.AF_UNIX)
    place = link.parent.resolve() / link.name
    name = hashlib.sha256(os.fsencode(place)).hexdigest()
    try:
        claim.bind(f"\0edgevla-emulator-{name}")
    except OSError as error:
        claim.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise UsageError(f"another emulator has {link}; end it, or name another place with --link") from error
    return claim

"""Bytes to and from a servo bus, with deadlines. No protocol here, and no numpy: the guardian imports this.

`SerialPort` is a descriptor: opened here through pyserial (exclusively), or inherited from the guardian. It
sleeps in `select` and never spins. `MemoryPort` is wired to emulated servos in the same process, on any clock.
Everything that says that the adapter is gone (OSError, termios.error, end of file) becomes one BusError.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import termios
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgevla.clock import NS_PER_S, Clock, MonotonicClock
from edgevla.errors import BusError

from .adapters import candidate_ports, in_use_sentence, is_running, openers

READ_SIZE = 4096
WRITE_TIMEOUT_NS = 200_000_000
NEVER_NS = 1 << 62


class Port(Protocol):
    """What a bus needs of its line."""

    name: str
    baud: int

    def write(self, data: bytes) -> None:
        """Hands all bytes over. Raises BusError when the line is gone."""
        ...

    def read(self, n: int, deadline_ns: int) -> bytes:
        """What has come, at most `n` bytes; waits for the first byte until the deadline, then returns b""."""
        ...

    def flush_input(self) -> None:
        """Forgets what has come and was not read."""
        ...

    def close(self) -> None: ...

    def fileno(self) -> int:
        """Descriptor to wait on; -1 when there is none."""
        ...


def wire_ns(n_bytes: int, baud: int) -> int:
    """Time that bytes take on the wire: start bit, eight bits, stop bit."""
    return n_bytes * 10 * NS_PER_S // baud


def wait_readable(ports: Sequence[Port], deadline_ns: int, clock: Clock) -> list[Port]:
    """Sleeps until one of the ports has bytes or the deadline passes; returns those that have."""
    memory = [port for port in ports if isinstance(port, MemoryPort)]
    if memory:
        clock.sleep_until(min([deadline_ns, *(port.ready_ns for port in memory)]))
        now_ns = clock.now_ns()
        return [port for port in memory if port.ready_ns <= now_ns]
    waiting = {port.fileno(): port for port in ports}
    timeout_s = max(0, deadline_ns - clock.now_ns()) / NS_PER_S
    found, _, _ = select.select(list(waiting), [], [], timeout_s)
    return [waiting[fd] for fd in found]


class SerialPort:
    """A serial line by descriptor."""

    def __init__(self, fd: int, name: str, baud: int, device: Any = None) -> None:
        self.name, self.baud = name, baud
        self._fd = fd
        self._device = device
        self._clock = MonotonicClock()
        os.set_blocking(fd, False)

    @classmethod
    def open(cls, path: str, baud: int) -> SerialPort:
        """Opens the line for this process alone: who has it open is named, and who comes later finds it busy.

        Raises BusError with the cure in the sentence.
        """
        import serial

        refuse_if_in_use(path)
        try:
            device = serial.Serial(path, baud, timeout=0, write_timeout=0, exclusive=True)
        except (OSError, ValueError, termios.error) as error:  # SerialException is an OSError
            raise open_error(path, baud, error) from error
        port = cls(device.fileno(), path, baud, device)
        with contextlib.suppress(OSError):
            fcntl.ioctl(port.fileno(), termios.TIOCEXCL)
        try:
            refuse_if_in_use(path)  # somebody who came while it was being opened
        except BusError:
            port.close()
            raise
        with contextlib.suppress(OSError, termios.error, AttributeError, NotImplementedError, ValueError):
            device.set_low_latency_mode(True)  # pseudo-terminals and some adapters have no such mode
        return port

    def fileno(self) -> int:
        return self._fd

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        give_up_ns = self._clock.now_ns() + WRITE_TIMEOUT_NS
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                left_s = (give_up_ns - self._clock.now_ns()) / NS_PER_S
                if left_s <= 0 or not select.select([], [self._fd], [], left_s)[1]:
                    raise BusError(
                        f"{self.name} takes no more bytes for {WRITE_TIMEOUT_NS // 1_000_000} ms; "
                        "unplug and replug the adapter",
                        port=self.name,
                    ) from None
            except (OSError, ValueError, termios.error) as error:
                raise self._gone(error) from error

    def read(self, n: int, deadline_ns: int) -> bytes:
        while True:
            try:
                data = os.read(self._fd, n)
            except BlockingIOError:
                left_ns = deadline_ns - self._clock.now_ns()
                if left_ns <= 0 or not select.select([self._fd], [], [], left_ns / NS_PER_S)[0]:
                    return b""
                continue
            except (OSError, ValueError, termios.error) as error:
                raise self._gone(error) from error
            if data:
                return data
            # An empty read from a raw line means hang-up only when select calls it readable.
            left_ns = max(0, deadline_ns - self._clock.now_ns())
            if select.select([self._fd], [], [], left_ns / NS_PER_S)[0]:
                again = self._read_once(n)
                if again is None:
                    raise self._gone(None)
                return again
            return b""

    def _read_once(self, n: int) -> bytes | None:
        """Bytes, or None when a line that is readable gives none (unplugged)."""
        try:
            return os.read(self._fd, n) or None
        except BlockingIOError:
            return b""
        except (OSError, ValueError, termios.error) as error:
            raise self._gone(error) from error

    def flush_input(self) -> None:
        try:
            termios.tcflush(self._fd, termios.TCIFLUSH)
        except (OSError, termios.error) as error:
            if error.args and error.args[0] == errno.ENOTTY:
                while self.read(READ_SIZE, 0):
                    pass
                return
            raise self._gone(error) from error

    def close(self) -> None:
        device, self._device, fd, self._fd = self._device, None, self._fd, -1
        try:
            if device is not None:  # who opened it lets others in again: somebody may hold a descriptor still
                with contextlib.suppress(OSError):
                    fcntl.ioctl(fd, termios.TIOCNXCL)
                device.close()
            elif fd >= 0:
                os.close(fd)
        except (OSError, termios.error):
            pass  # closing an unplugged line

    def _gone(self, error: BaseException | None) -> BusError:
        why = f" ({error})" if error else ""
        return BusError(
            f"{self.name} has gone{why}: the adapter was unplugged or lost power. The servos may still hold their "
            "last goal with torque ON; switch the arm's power off before touching it, then replug",
            port=self.name,
            is_unplugged=True,
        )


def open_error(path: str, baud: int, error: BaseException) -> BusError:
    """The sentence for a line that cannot be opened."""
    number = getattr(error, "errno", None) or (error.args[0] if error.args else None)
    text = str(error)
    if number == errno.ENOENT or "No such file" in text:
        here = ", ".join(candidate_ports()) or "none"
        sentence = (
            f"serial port {path} does not exist; ports on this machine: {here}. Plug the adapter in, or name "
            "another with --port (a /dev/serial/by-id/ name does not change when replugged)"
        )
        if is_running("brltty"):
            sentence += "; brltty is running, which takes adapters away: sudo apt purge brltty, then replug"
    elif number == errno.EACCES:
        sentence = (
            f"no permission to open {path}; add yourself to its group once with: "
            f"sudo usermod -aG {_group_of(path)} $USER, then log in again"
        )
    elif number in (errno.EAGAIN, errno.EBUSY) or "exclusively lock" in text:
        sentence = in_use_sentence(path, openers(path, counts_us=True))
    elif number == errno.EINVAL or "baud" in text.lower():
        sentence = (
            f"{path} does not accept {baud} baud; use another adapter or another baud rate in the profile"
        )
    else:
        sentence = f"cannot open {path}: {text}"
    return BusError(sentence, port=path, errno=number if isinstance(number, int) else None)


def _group_of(path: str) -> str:
    try:
        return Path(path).group()
    except (OSError, KeyError):
        return "dialout"


def refuse_if_in_use(path: str) -> None:
    """Raises BusError with everybody who has the line open, whether or not they asked to have it alone."""
    if found := openers(path):
        raise BusError(in_use_sentence(path, found), port=path, errno=errno.EBUSY)


class MemoryPort:
    """A line to emulated servos in this process.

    `device(data, now_ns)` takes what is written and returns the answers as (ready_ns, bytes) in order of time.
    With a virtual clock, waiting for an answer moves the clock: a blocking read takes time.
    """

    def __init__(
        self,
        name: str,
        baud: int,
        device: Callable[[bytes, int], list[tuple[int, bytes]]],
        clock: Clock,
    ) -> None:
        self.name, self.baud = name, baud
        self._device, self._clock = device, clock
        self._coming: list[tuple[int, bytes]] = []
        self.is_unplugged = False

    def fileno(self) -> int:
        return -1

    @property
    def ready_ns(self) -> int:
        """When the next bytes can be read; far in the future when none are on their way."""
        return self._coming[0][0] if self._coming else NEVER_NS

    def write(self, data: bytes) -> None:
        self._check()
        self._coming += self._device(data, self._clock.now_ns())
        self._coming.sort(key=lambda item: item[0])

    def read(self, n: int, deadline_ns: int) -> bytes:
        self._check()
        if not self._coming:
            self._clock.sleep_until(deadline_ns)
            return b""
        ready_ns, data = self._coming[0]
        if ready_ns > max(deadline_ns, self._clock.now_ns()):
            self._clock.sleep_until(deadline_ns)
            return b""
        self._clock.sleep_until(ready_ns)
        if len(data) > n:
            self._coming[0] = (ready_ns, data[n:])
        else:
            self._coming.pop(0)
        return data[:n]

    def flush_input(self) -> None:
        self._check()
        now = self._clock.now_ns()
        self._coming = [(ready, data) for ready, data in self._coming if ready > now]

    def close(self) -> None:
        self._coming.clear()

    def _check(self) -> None:
        if self.is_unplugged:
            raise BusError(
                f"{self.name} has gone: the adapter was unplugged. The servos may still hold their last goal "
                "with torque ON",
                port=self.name,
                is_unplugged=True,
            )

"""Two places with a network each and one wire between them, whose weather a benchmark makes.

A place is a network namespace of Linux with one TUN device; the wire reads whole packets at one end and writes them at
the other, later, out of order, or never. So TCP at both ends is the kernel's, with its own repetitions and windows: what
`tc netem` does, in user space, because a kernel may have been built without netem (it is a module of its own). A place
lasts as long as a process in it or this one; nothing is left behind. Needs root.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "serve"))
from proxy_kit import Weather

HERE, THERE = "10.77.0.1", "10.77.0.2"
CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU, IPV4 = 1500, 4
QUEUE_S = 0.3
"""What waits longer than so for its turn on a throttled wire is dropped, as a router's full queue does."""


class NoPlaceError(Exception):
    """This machine permits no network namespaces with TUN devices."""


def new_place(address: str) -> int:
    """Takes this thread, and all that it starts from now on, into a place of its own; its end of the wire.

    Raises:
        NoPlaceError: this machine does not permit it.
    """
    try:
        return _new_place(address)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoPlaceError(
            f"network namespaces with a TUN device are not permitted here ({error}): run it as root, where there is "
            "/dev/net/tun and iproute2"
        ) from error


def _new_place(address: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", b"wire", IFF_TUN | IFF_NO_PI))
    for words in ("link set lo up", f"addr add {address}/24 dev wire", "link set wire up"):
        subprocess.run(["ip", *words.split()], check=True)
    return end


class Wire:
    """Carries packets both ways in a thread. Its weather may be changed at any time, and it may be pulled out."""

    def __init__(self, *ends: int, seed: int = 0) -> None:
        """ends: of `new_place`, two."""
        self.weather, self.is_cut = Weather(), False
        self.n_bytes, self.n_lost = [0, 0], 0
        """Bytes of packets that left the first and the second end, headers too; packets that never arrived."""
        self._ends, self._random = ends, random.Random(seed)
        self._due: list[tuple[float, int, int, bytes]] = []
        self._free_s, self._order = [0.0, 0.0], itertools.count()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=2)

    def _run(self) -> None:
        while not self._stopping.is_set():
            wait_s = self._due[0][0] - time.monotonic() if self._due else 0.05
            ready = select.select(self._ends, [], [], min(0.05, max(0.0, wait_s)))[0]
            for way, end in enumerate(self._ends):
                if end in ready:
                    self._take(way, os.read(end, MTU + 100))
            while self._due and self._due[0][0] <= time.monotonic():
                _, _, way, packet = heapq.heappop(self._due)
                with suppress(OSError):  # a device with a full queue loses it
                    os.write(self._ends[1 - way], packet)

    def _take(self, way: int, packet: bytes) -> None:
        if packet[0] >> 4 != IPV4:
            return
        weather, now = self.weather, time.monotonic()
        self.n_bytes[way] += len(packet)
        begin_s = max(now, self._free_s[way])
        if self.is_cut or self._random.random() < weather.loss or begin_s - now > QUEUE_S:
            self.n_lost += 1
            return
        sent_s = 0.0 if weather.bytes_per_s is None else len(packet) / weather.bytes_per_s
        self._free_s[way] = begin_s + sent_s
        late_s = weather.delay_s + weather.jitter_s * self._random.uniform(-1, 1)
        heapq.heappush(self._due, (self._free_s[way] + late_s, next(self._order), way, packet))

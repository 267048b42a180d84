"""One block read from several servos, in progress, and the loop that finishes such reads on several buses at once.

A lost or damaged answer is asked again at once, at most twice and never past the tick's deadline; what is still
missing then is left out, and the caller keeps the older value with its age. Nothing here spins: between two
events the thread sleeps in `select`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from edgevla.clock import Clock
from edgevla.errors import BusError

from .frames import Counters, Status
from .port import READ_SIZE, Port, wait_readable

N_RETRIES = 2
SILENCE_NS = 3_000_000
"""Once an answer has begun, a pause this long on the line means that the rest will not come."""
SHORTEST_TRY_NS = 1_500_000


class BusLine(Protocol):
    """What a read needs of its bus (`servo_bus.ServoBus`).

    echoes: whether the adapter returns what is sent; None: not known yet.
    """

    codec: Any
    port: Port
    echoes: bool | None
    uses_sync_read: bool
    uses_fast_read: bool
    joins_writes: bool
    adapter_latency_ns: int

    @property
    def counters(self) -> Mapping[int, Counters]: ...

    def request(self, address: int, size: int, ids: tuple[int, ...], is_fast: bool = False) -> bytes:
        """The packet that asks `ids` for `size` bytes from `address` on."""
        ...

    def wire_time_ns(self, size: int, n_ids: int, n_sent: int) -> int:
        """How long request and answers are on the wire. n_sent: bytes of the request."""
        ...

    def reply_timeout_ns(self, size: int, n_ids: int, n_sent: int) -> int:
        """How long all answers are waited for."""
        ...

    def note_error(self, servo_id: int, error: int) -> None:
        """The error byte of a servo's answer."""
        ...

    def note_fast_read(self, came: bool) -> None:
        """Whether a fast read was answered; servos that cannot are asked the usual way."""
        ...

    def overhear(self, heard: bytes, n_answers: int, size: int) -> None:
        """All that came while answers were awaited, for whoever looks for another master."""
        ...


class BlockRead:
    """Reads `size` bytes at `address` from each servo of `ids`; `replies` maps id to the data that came.

    prefix: bytes sent ahead of the first request in the same write (a sync write has no answer).
    failure: the BusError of a line that has gone; the read is then done.
    """

    def __init__(
        self,
        bus: BusLine,
        address: int,
        size: int,
        ids: Sequence[int],
        deadline_ns: int,
        prefix: bytes = b"",
        n_retries: int = N_RETRIES,
        may_merge: bool = True,
    ) -> None:
        self.bus, self.address, self.size, self.ids = bus, address, size, tuple(ids)
        self.deadline_ns = deadline_ns
        self.replies: dict[int, bytes] = {}
        self.failure: BusError | None = None
        self.is_done = False
        self.n_tries = 0
        self.wake_ns = 0
        self.is_one_by_one = False
        """Whether every servo is asked by itself, whatever the line can do."""
        self._may_merge, self._is_merged = may_merge, False
        self._prefix, self._tries_left = prefix, n_retries + 1
        self._missing: list[int] = []
        self._group: tuple[int, ...] = ()
        self._queue: list[list[int]] = []
        self._decoder = bus.codec.Decoder(size)
        self._echo = b""
        self._held = b""
        self._heard = bytearray()
        """What came in this try, without our own echo."""
        self._request = b""
        self._try_end_ns = 0

    def start(self, now_ns: int) -> None:
        self._plan(list(self.ids))
        self._guarded(self._send, now_ns)

    def on_ready(self, now_ns: int) -> None:
        self._guarded(self._receive, now_ns)

    def on_time(self, now_ns: int) -> None:
        """The try's time is over: ask the missing servos again, or leave them."""
        self._guarded(self._try_again, now_ns)

    def _guarded(self, step: Callable[[int], None], now_ns: int) -> None:
        try:
            step(now_ns)
        except BusError as error:
            self.failure, self.is_done = error, True

    def _plan(self, ids: list[int]) -> None:
        is_shared = self.bus.uses_sync_read and not self.is_one_by_one and len(ids) > 1
        self._queue = [ids] if is_shared else [[i] for i in ids]

    def _send(self, now_ns: int) -> None:
        """Sends the next request of the queue."""
        bus, prefix = self.bus, self._prefix
        self._prefix = b""
        self._group = tuple(self._queue[0])
        self._missing = self._queue.pop(0)
        can_merge = bus.uses_fast_read and self._may_merge and len(self._missing) > 1
        self._is_merged = can_merge and self.n_tries == 0
        self._request = bus.request(self.address, self.size, tuple(self._missing), self._is_merged)
        self._decoder = bus.codec.Decoder(self.size)
        self._heard.clear()
        if self._is_merged:
            self._decoder.merged_ids = self._group
        bus.port.flush_input()
        if prefix and not bus.joins_writes:
            bus.port.write(prefix)
            prefix = b""
        self._request = prefix + self._request
        bus.port.write(self._request)
        self._echo = self._request if bus.echoes is not False else b""
        self.n_tries += 1
        allowed = bus.reply_timeout_ns(self.size, len(self._missing), len(self._request))
        left = self.deadline_ns - now_ns
        if left < 2 * allowed and self._tries_left > 1:  # keep half of a short budget for a second try
            shortest = bus.wire_time_ns(self.size, len(self._missing), len(self._request)) + SHORTEST_TRY_NS
            allowed = max(shortest + bus.adapter_latency_ns, left // 2)
        self._try_end_ns = self.wake_ns = min(self.deadline_ns, now_ns + allowed)

    def _receive(self, now_ns: int) -> None:
        data = self.bus.port.read(READ_SIZE, 0)
        if self._echo:
            data = self._strip_echo(data)
        if not data:
            return
        self._heard += data
        n_corrupt = self._decoder.n_corrupt
        for status in self._decoder.feed(data):
            if status.id not in self._missing:
                self._doubt(status)
                continue
            self.bus.note_error(status.id, status.error)
            if len(status.data) == self.size and not self.bus.codec.refuses(status.error):
                self.replies[status.id] = status.data
                self._missing.remove(status.id)
        if self._decoder.n_corrupt > n_corrupt and self._missing:
            self.bus.counters[self._missing[0]].n_corrupt += self._decoder.n_corrupt - n_corrupt
        if not self._missing:
            self._next(now_ns)
        else:
            self.wake_ns = min(self._try_end_ns, now_ns + SILENCE_NS + self.bus.adapter_latency_ns)

    def _doubt(self, status: Status) -> None:
        """Two different answers under one id: one of them is another servo's, so neither counts."""
        held = self.replies.get(status.id)
        if held is not None and held != status.data and status.id in self._group:
            del self.replies[status.id]
            self._missing.append(status.id)
            self.bus.counters[status.id].n_corrupt += 1

    def _strip_echo(self, data: bytes) -> bytes:
        """Takes our own bytes off the front; the first bytes that differ show that there is no echo."""
        if self.bus.echoes is None:
            self._held += data
            data = self._held
        if data.startswith(self._echo):
            self.bus.echoes = True
            data, self._echo, self._held = data[len(self._echo) :], b"", b""
            return data
        if self._echo.startswith(data):
            if self.bus.echoes:
                self._echo = self._echo[len(data) :]
            return b""
        self.bus.echoes = self.bus.echoes or False
        self._echo, self._held = b"", b""
        return data

    def _next(self, now_ns: int) -> None:
        self._overhear()
        if self._queue:
            self._send(now_ns)
        else:
            self._finish()

    def _overhear(self) -> None:
        self.bus.overhear(bytes(self._heard), len(self._group) - len(self._missing), self.size)

    def _try_again(self, now_ns: int) -> None:
        self._overhear()
        missing = self._missing + [i for group in self._queue for i in group]
        needed = self.bus.wire_time_ns(self.size, len(missing), 14 + len(missing)) + SHORTEST_TRY_NS // 3
        needed += self.bus.adapter_latency_ns
        self._tries_left -= 1
        if self._is_merged:
            self.bus.note_fast_read(False)
        for servo_id in self._missing:
            self.bus.counters[servo_id].n_lost += 1
        if self._tries_left <= 0 or now_ns + needed > self.deadline_ns:
            if self._queue and now_ns + needed <= self.deadline_ns:
                self._send(now_ns)  # one silent servo does not cost the others their turn
                return
            self._finish()
            return
        for servo_id in self._missing:
            self.bus.counters[servo_id].n_retries += 1
        self._plan(missing)
        self._send(now_ns)

    def _finish(self) -> None:
        if self._is_merged and not self._missing:
            self.bus.note_fast_read(True)
        self.is_done = True


def finish(reads: Sequence[BlockRead], clock: Clock) -> None:
    """Starts all reads, then serves whichever line has bytes, until every read is done."""
    for read in reads:
        read.start(clock.now_ns())
    while active := [read for read in reads if not read.is_done]:
        ready = wait_readable([read.bus.port for read in active], min(read.wake_ns for read in active), clock)
        now_ns = clock.now_ns()
        for read in active:
            if read.bus.port in ready:
                read.on_ready(now_ns)
            if not read.is_done and now_ns >= read.wake_ns:
                read.on_time(now_ns)

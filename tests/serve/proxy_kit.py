"""A line between robot and server that a test can spoil: it delays, jitters, loses, throttles, goes dead, is cut.

A proxy for TCP in user space, on this machine. A packet that is lost is what TCP makes of it: it, and all behind it,
comes later. What can neither be seen nor be felt here is reordering, which TCP undoes.
"""

import contextlib
import heapq
import itertools
import random
import select
import socket
import threading
import time
from dataclasses import dataclass

RESENT_S = 0.2
"""What a lost packet costs: the kernel's shortest wait before it sends again."""


@dataclass
class Weather:
    """delay_s, jitter_s: one way, jitter uniform. loss: share of packets. bytes_per_s: None: no limit."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    bytes_per_s: float | None = None


class Proxy:
    """Listens at `port` and passes on to `to_port`. Its weather may be changed at any time."""

    def __init__(self, to_port: int, weather: Weather | None = None, seed: int = 0) -> None:
        self.to_port, self.weather = to_port, weather or Weather()
        self.is_dead = False
        """Nothing passes, and nobody is told: a cable that was pulled."""
        self.n_bytes = [0, 0]
        """To the server, to the robot."""
        self._random = random.Random(seed)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._ends: list[socket.socket] = []
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Both ends see their connection closed; new ones are taken again."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._stopping.set()
        self._threads[0].join(timeout=2)
        self._listening.close()
        self.cut()
        for thread in self._threads:
            thread.join(timeout=2)
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            if not select.select([self._listening], [], [], 0.05)[0]:
                continue
            robot, _ = self._listening.accept()
            self._ends.append(robot)
            if self.is_dead:  # the kernel answered in the proxy's name: nobody is behind it
                self._start(self._silence, robot)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.to_port), timeout=2)
            except OSError:
                robot.shutdown(socket.SHUT_RDWR)
                continue
            self._ends.append(server)
            with self._lock:
                self._pairs.append((robot, server))
            for source, target, way in ((robot, server, 0), (server, robot, 1)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._start(self._pass_on, source, target, way)

    def _start(self, act, *args) -> None:
        thread = threading.Thread(target=act, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _silence(self, robot: socket.socket) -> None:
        while self.is_dead and not self._stopping.wait(0.02):
            pass
        with contextlib.suppress(OSError):
            robot.shutdown(socket.SHUT_RDWR)

    def _pass_on(self, source: socket.socket, target: socket.socket, way: int) -> None:
        """In order, each piece when it is due."""
        due: list[tuple[float, int, bytes]] = []
        order, free_s, is_open = itertools.count(), 0.0, True
        with contextlib.suppress(OSError):
            while (is_open or due) and not self._stopping.is_set():
                now = time.monotonic()
                wait_s = min(0.02, max(0.0, due[0][0] - now)) if due else 0.02
                if is_open and not self.is_dead and select.select([source], [], [], wait_s)[0]:
                    data = source.recv(65536)
                    is_open = bool(data)
                    now = time.monotonic()
                    free_s = self._due_s(now, max(free_s, now), len(data))
                    heapq.heappush(due, (free_s, next(order), data))
                elif not is_open or self.is_dead:
                    time.sleep(wait_s or 0.001)
                while due and due[0][0] <= time.monotonic() and not self.is_dead:
                    data = heapq.heappop(due)[2]
                    target.sendall(data)
                    self.n_bytes[way] += len(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _due_s(self, now: float, free_s: float, n_bytes: int) -> float:
        weather = self.weather
        late_s = weather.delay_s + weather.jitter_s * self._random.uniform(-1, 1)
        n_packets = -(-n_bytes // 1448)
        late_s += RESENT_S * sum(self._random.random() < weather.loss for _ in range(n_packets))
        sent_s = 0.0 if weather.bytes_per_s is None else n_bytes / weather.bytes_per_s
        return max(now + max(0.0, late_s), free_s) + sent_s

"""Figures of a policy server, and the page on which Prometheus reads them (text format 0.0.4, standard library only).

The page is plain and shows to whoever asks; so it is on this machine alone unless somebody says another address.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from edgevla.errors import ConfigError

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
Labels = tuple[tuple[str, str], ...]
HELP = {
    "requests_total": ("counter", "Requests, by what became of them"),
    "joins_total": ("counter", "Robots that asked to be served, by what became of it"),
    "messages_refused_total": ("counter", "What arrived and was no message, by reason"),
    "robot_requests_total": ("counter", "Requests of each paired robot, by what became of them"),
    "handshakes_failed_total": ("counter", "Connections that never got in, by reason"),
    "connections_closed_total": ("counter", "Connections that were closed from here, by reason"),
    "connections": ("gauge", "Open connections, before and after the handshake"),
    "inferences_total": ("counter", "Inferences, by how many requests shared them"),
    "robots": ("gauge", "Robots that have joined"),
    "waiting": ("gauge", "Requests that wait for their turn"),
    "draining": ("gauge", "1 while it goes down"),
    "wait_seconds": ("histogram", "From a request's arrival to the begin of its inference"),
    "inference_seconds": ("histogram", "Of one inference, pictures decoded"),
}
"""Name, without the common prefix -> its kind and meaning; nothing else is counted."""


class Metrics:
    """Written by the server's loop, read by the page's thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[Labels, float]] = {name: {} for name in HELP}
        self._seen: dict[str, dict[Labels, list[int]]] = {name: {} for name in HELP}

    def count(self, name: str, **labels: str) -> None:
        """Adds one to a counter. labels: which of its rows."""
        with self._lock:
            values, key = self._values[name], tuple(labels.items())
            values[key] = values.get(key, 0) + 1

    def set(self, name: str, value: float, **labels: str) -> None:
        """What a gauge shows from here on."""
        with self._lock:
            self._values[name][tuple(labels.items())] = value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Adds a duration to a histogram."""
        with self._lock:
            key = tuple(labels.items())
            self._values[name][key] = self._values[name].get(key, 0.0) + seconds
            bins = self._seen[name].setdefault(key, [0] * (len(BOUNDS_S) + 1))
            bins[bisect_left(BOUNDS_S, seconds)] += 1

    def value(self, name: str, **labels: str) -> float:
        """Of a counter or gauge; 0 where nothing was counted."""
        with self._lock:
            return self._values[name].get(tuple(labels.items()), 0.0)

    def total(self, name: str) -> float:
        """Of a counter, over all labels."""
        with self._lock:
            return sum(self._values[name].values())

    def text(self) -> str:
        """The page, in Prometheus' text format."""
        lines = []
        with self._lock:
            for name, (kind, meaning) in HELP.items():
                full = f"edgevla_serve_{name}"
                lines += [f"# HELP {full} {meaning}", f"# TYPE {full} {kind}"]
                for key, value in self._values[name].items():
                    bins = self._seen[name].get(key)
                    lines += [_line(full, key, value)] if bins is None else _histogram(full, key, bins, value)
        return "\n".join(lines) + "\n"


def _histogram(name: str, key: Labels, bins: list[int], total: float) -> list[str]:
    lines, n = [], 0
    for bound, more in zip((*map(str, BOUNDS_S), "+Inf"), bins, strict=True):
        n += more
        lines.append(_line(f"{name}_bucket", (*key, ("le", bound)), n))
    return [*lines, _line(f"{name}_sum", key, total), _line(f"{name}_count", key, n)]


def _line(name: str, key: Labels, value: float) -> str:
    labels = ",".join(f'{label}="{text}"' for label, text in key)
    return f"{name}{{{labels}}} {value:g}" if labels else f"{name} {value:g}"


class MetricsPage:
    """`GET /metrics` at HOST:PORT, in threads of its own.

    Raises:
        ConfigError: the address is taken, or none of this machine.
    """

    def __init__(self, host: str, port: int, text: Callable[[], str]) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 5

            def do_GET(self) -> None:
                found = self.path.split("?")[0] in ("/metrics", "/")
                body = text().encode() if found else b"only /metrics is here\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nobody wants a line per look."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise ConfigError(
                f"--metrics {host}:{port}: {error.strerror or error}; choose another"
            ) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """The page's URL."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/metrics"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=2)

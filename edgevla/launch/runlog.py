"""The run's log: what was published, and the figures of the summary.

    run.flight     every tick, event, chunk, servo health, look at the machine, and counters that tell of losses
                   (edgevla/flight)
    summary.json   the figures

It listens like any monitor; neither the control loop nor the supervisor waits for a disk. The words a person reads at
the end are `summary.py`'s.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.board import Board
from edgevla.descriptions import AboutRobot
from edgevla.flight.writer import FlightWriter
from edgevla.launch.emergencies import Emergencies
from edgevla.launch.logfiles import Warn
from edgevla.launch.options import default_place
from edgevla.launch.shadow import Shadow
from edgevla.messages import Chunk, Event, Heartbeat, Message, MessageBody, ServoHealth, State

BUSY = (
    "ticks",
    "chunks_taken",
    "inferences",
    "infer_sent",
    "frames",
    "clipped_",
    "received_",
    "ring_",
    "sent_",
)
"""Beginnings of counters that say that all goes on, or what every tick says itself."""
ON_MODES = ("running", "holding", "paused", "homing")
"""The arm has torque, and is not ending."""


def plain(value: Any) -> Any:
    """Numpy and bytes made JSON; a number that is not finite becomes null."""
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value.tolist()]
    if dataclasses.is_dataclass(value):
        return {k: plain(v) for k, v in vars(value).items()}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return round(value, 4) if np.isfinite(value) else None
    return value.hex() if isinstance(value, bytes) else value


def open_log(place: Path | None, session: bytes, warn: Warn) -> FlightWriter | None:
    """Where nobody asked for a log, one that cannot be made is no reason not to run.

    Raises:
        OSError: the place that was asked for.
    """
    if place is None:
        return None
    try:
        return FlightWriter(place, session, warn)
    except OSError as error:
        if place != default_place():
            raise
        warn(f"this run leaves no log: {place}: {error.strerror or error}; --log DIR takes another place")
        return None


class Series:
    """Percentiles of what was seen, newest million."""

    LIMIT = 1_000_000

    def __init__(self) -> None:
        self._values: list[float] = []

    def add(self, value: float) -> None:
        """One more value; at the limit the older half goes."""
        self._values.append(value)
        if len(self._values) > self.LIMIT:
            del self._values[: self.LIMIT // 2]

    def figures(self) -> dict[str, float] | None:
        """p50, p95, p99, max; None when nothing was seen."""
        if not self._values:
            return None
        p50, p95, p99 = np.percentile(self._values, [50, 95, 99])
        worst = max(self._values)
        named = {"p50": p50, "p95": p95, "p99": p99, "max": worst}
        return {name: round(float(value), 3) for name, value in named.items()}


class BoardSeries:
    """What the looks at the machine come to."""

    def __init__(self) -> None:
        self._busy, self._gpu_busy, self._hottest = Series(), Series(), Series()
        self._zone: tuple[float, str] = (0.0, "")
        self._least_free: int | None = None
        self._slowest: dict[str, float] = {}
        self._n_looks = self._n_throttled = 0
        self._tells_throttling = False

    def add(self, board: Board) -> None:
        self._n_looks += 1
        self._n_throttled += bool(board.is_throttled)
        self._tells_throttling = self._tells_throttling or board.is_throttled is not None
        for series, share in ((self._busy, board.busy), (self._gpu_busy, board.gpu_busy)):
            if share is not None:
                series.add(share)
        if board.hottest is not None:
            name, degrees = board.hottest
            self._hottest.add(degrees)
            self._zone = max(self._zone, (degrees, name))
        if board.memory_free is not None:
            self._least_free = min(board.memory_free, self._least_free or board.memory_free)
        for name, mhz in (("cpu", board.cpu_mhz), ("gpu", board.gpu_mhz)):
            if mhz is not None:
                self._slowest[name] = min(mhz, self._slowest.get(name, mhz))

    def figures(self) -> dict[str, Any] | None:
        """None where nobody looked. throttled_share: of the looks; None where the machine does not tell."""
        if not self._n_looks:
            return None
        return {
            "busy": self._busy.figures(),
            "gpu_busy": self._gpu_busy.figures(),
            "temperature_c": self._hottest.figures(),
            "hottest_zone": self._zone[1] or None,
            "least_free_bytes": self._least_free,
            "least_mhz": self._slowest,
            "throttled_share": round(self._n_throttled / self._n_looks, 4)
            if self._tells_throttling
            else None,
        }


class RunLog:
    """Takes messages, notes them, and knows the figures of the run.

    files: None keeps figures only.
    """

    def __init__(self, files: FlightWriter | None) -> None:
        self.files = files
        self._began = time.monotonic()
        self._late, self._latency = Series(), Series()
        self._image_age, self._seam, self._within = Series(), Series(), Series()
        self._stages: dict[str, Series] = {}
        self._counters: dict[str, dict[str, int]] = {}
        self._restarted: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._board = BoardSeries()
        self._shadow = Shadow()
        self._joints: tuple[list[str], list[str]] = ([], [])
        self._past: list[tuple[int, int | None, np.ndarray]] = []
        self.n_chunks = 0
        self.last_mode = ""
        self.is_released = False
        self.last_stop = ""
        self.heard_of_robot = 0.0
        self.was_on = False
        """Whether the arm was ever switched on."""
        self.emergencies = Emergencies(time.monotonic_ns())

    def know(self, robot: AboutRobot, about: Mapping[str, Any]) -> None:
        """What the log says of the run from its beginning on."""
        joints, units = self._joints = [j.name for j in robot.joints], [j.unit for j in robot.joints]
        if self.files is not None:
            speeds = [j.max_velocity for j in robot.joints]
            told = {**about, "robot": robot.robot, "joints": joints, "units": units, "max_velocity": speeds}
            self.files.know(plain(told))

    def write(self, kind: str, fields: Mapping[str, Any]) -> None:
        if self.files is not None:
            self.files.note({"type": kind, **plain(fields)})

    def hear(self, severity: str, source: str, text: str) -> None:
        """What no message says: the guardian's words, a process that ended. From any thread."""
        said = {"source": source, "observed_ns": time.monotonic_ns(), "severity": severity, "code": "said"}
        self.write("event", {**said, "text": text, "fields": {}})

    def take(self, message: Message[MessageBody]) -> None:
        """One message of any type; what does not belong into a log is ignored."""
        handler = getattr(self, f"_on_{message.type}", None)
        if handler is not None:
            handler(message)

    def _on_state(self, m: Message[State]) -> None:
        state = m.body
        self.last_mode = state.mode
        self.heard_of_robot = time.monotonic()
        self.was_on = self.was_on or state.mode in ON_MODES
        self.emergencies.see_mode(state.mode, m.observed_ns)
        self._shadow.take(state)
        if state.mode in ("running", "holding"):
            self._late.add(state.late_ns / 1e6)
            self._note_seam(state)
        if self.files is not None:
            self.files.tick(m)

    def _note_seam(self, state: State) -> None:
        """Second difference of what was wanted: where chunks meet, beside what happens within them."""
        if state.wanted is None or state.is_led:
            self._past.clear()
            return
        self._past = [*self._past[-2:], (state.tick, state.chunk_seq, state.wanted)]
        if len(self._past) < 3 or self._past[2][0] - self._past[0][0] != 2:
            return
        a, b, c = (wanted for _, _, wanted in self._past)
        bend = float(np.max(np.abs(c - 2 * b + a)))
        (self._seam if self._past[2][1] != self._past[1][1] else self._within).add(bend)

    def _on_chunk(self, m: Message[Chunk]) -> None:
        chunk = m.body
        if m.source == "leader":  # a hand, beside the policy: states tell when it drives
            return
        self.n_chunks += 1
        for stage, spent in vars(chunk.timing_ns).items():
            self._stages.setdefault(stage, Series()).add(spent / 1e6)
        self._latency.add(chunk.timing_ns.total / 1e6)
        self._image_age.add(chunk.image_age_ns / 1e6)
        fields = {k: v for k, v in vars(chunk).items() if k not in ("policy", "timing_ns")}
        fields["timing_ns"] = {part: spent // 1000 * 1000 for part, spent in vars(chunk.timing_ns).items()}
        self.write("chunk", {**_said(m), "sent_ns": m.header.sent_ns, **fields})

    def _on_heartbeat(self, m: Message[Heartbeat]) -> None:
        known = self._counters.get(m.source, {})
        counters = m.body.counters
        if any(counters.get(name, 0) < value for name, value in known.items()):
            self._restarted[m.source] += 1
        self._counters[m.source] = dict(counters)
        changed = {k: v for k, v in counters.items() if v and v != known.get(k)}
        losses = {k: v for k, v in changed.items() if k != "chunks" and not k.startswith(BUSY)}
        if losses:
            self.write("counters", {"source": m.source, "observed_ns": m.observed_ns, "counters": losses})

    def _on_event(self, m: Message[Event]) -> None:
        event = m.body
        self._events[event.severity] += 1
        self.is_released = self.is_released or event.code == "released"
        self.was_on = self.was_on or self.is_released
        self.emergencies.see_event(event.code, m.observed_ns)
        if event.severity == "stop":
            self.last_stop = event.text
        self.write("event", {"source": m.source, "observed_ns": m.observed_ns, **vars(event)})

    def _on_servo_health(self, m: Message[ServoHealth]) -> None:
        self.write("servo_health", {"observed_ns": m.observed_ns, "servos": m.body.servos})

    def note_board(self, board: Board) -> None:
        """One look at the machine."""
        self._board.add(board)
        self.write("board", {"observed_ns": time.monotonic_ns(), **vars(board)})

    # -- the end ----------------------------------------------------------------------------------------------

    def summary(self, own_counters: Mapping[str, int]) -> dict[str, Any]:
        """The figures. own_counters: of the log's own inbox, so that its losses are not hidden."""
        robot = self._counters.get("robot", {})
        running = robot.get("ticks_running", 0)
        every = Counter(own_counters)
        for counters in self._counters.values():
            every.update(counters)
        losses = {k: v for k, v in sorted(every.items()) if k.startswith(("lost_", "wire_", "unsent_")) and v}
        return {
            "duration_s": round(time.monotonic() - self._began, 1),
            "ticks": robot.get("ticks", 0),
            "ticks_running": running,
            "deadline_misses": robot.get("deadline_misses", 0),
            "lateness_ms": self._late.figures(),
            "inferences": self.n_chunks,
            "inference_ms": self._latency.figures(),
            "stages_ms": {name: series.figures() for name, series in self._stages.items()},
            "image_age_ms": self._image_age.figures(),
            "stale_actions": robot.get("actions_skipped", 0),
            "late_chunks": sum(robot.get(f"chunks_{why}", 0) for why in ("late", "unasked", "overdue")),
            "unanswered_requests": robot.get("infer_expired", 0),
            "waiting_share": round(robot.get("ticks_starved", 0) / running, 4) if running else 0.0,
            "shadow": self._shadow.figures(*self._joints),
            "takeovers": robot.get("takeovers", 0),
            "led_share": round(robot.get("ticks_led", 0) / running, 4) if running else 0.0,
            "clipped_share": round(robot.get("ticks_clipped", 0) / running, 4) if running else 0.0,
            "clipped_by": {k: v for k, v in sorted(robot.items()) if k.startswith("clipped_") and v},
            "seam_jump": self._seam.figures(),
            "within_chunk": self._within.figures(),
            "board": self._board.figures(),
            "bus": {k: robot.get(f"bus_{k}", 0) for k in ("retries", "corrupt", "lost", "stale")},
            "losses": losses,
            "events": dict(self._events),
            "restarts": dict(self._restarted),
            "emergency_stops": self.emergencies.told(),
            "final_mode": self.last_mode,
            "log": str(self.files.path) if self.files is not None else None,
        }

    def close(self, summary: Mapping[str, Any]) -> None:
        if self.files is not None:
            self.write("summary", summary)
            self.files.close(json.dumps(plain(summary), indent=1))


def _said(m: Message[MessageBody]) -> dict[str, Any]:
    return {"source": m.source, "seq": m.seq, "observed_ns": m.observed_ns}

"""What the monitor knows, reduced from wire messages: plain data, no screen, no sockets.

`MonitorModel.apply` takes one message at a time and keeps the newest of everything plus short windows for
percentiles; widgets read it. So what a screen shows can be tested without a screen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WINDOW_TICKS = 600
WINDOW_CHUNKS = 60


@dataclass(frozen=True)
class Joint:
    """One row of the joint table. Values in robot units; `goal` is nan before the first one was sent."""

    name: str
    unit: str
    low: float
    high: float
    present: float
    goal: float
    age_ms: float
    limited_by: int


@dataclass(frozen=True)
class Servo:
    name: str
    bus: str
    id: int
    temperature_c: float
    voltage_v: float
    load_percent: float
    error_bits: int
    is_torque_on: bool
    n_retries: int
    n_stale: int

    @property
    def is_worrying(self) -> bool:
        """Hot, overloaded or reporting an error: shown in red."""
        return self.error_bits != 0 or self.temperature_c >= 60 or abs(self.load_percent) >= 90


@dataclass(frozen=True)
class Event:
    severity: str
    source: str
    text: str


@dataclass(frozen=True)
class Thumbnail:
    camera: str
    jpeg: bytes
    observed_ns: int


@dataclass(frozen=True)
class Percentiles:
    p50: float
    p99: float
    worst: float


def percentiles(values: deque[float]) -> Percentiles | None:
    if not values:
        return None
    data = np.fromiter(values, np.float64)
    return Percentiles(float(np.percentile(data, 50)), float(np.percentile(data, 99)), float(data.max()))


@dataclass
class MonitorModel:
    """Newest of everything, by `apply`. `n_lost` counts gaps in the robot's state messages seen by this monitor."""

    robot: str = ""
    bundle: str = ""
    mode: str = "waiting"
    reason: str = ""
    task: str = ""
    tick: int = 0
    queue_left: int = 0
    queue_size: int = 0
    action_index: float = 0.0
    chunk_seq: int | None = None
    n_chunks: int = 0
    n_late_ticks: int = 0
    joints: list[Joint] = field(default_factory=list)
    servos: list[Servo] = field(default_factory=list)
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=200))
    thumbnails: dict[str, Thumbnail] = field(default_factory=dict)
    phases: dict[str, str] = field(default_factory=dict)
    counters: dict[str, dict[str, int]] = field(default_factory=dict)
    last_heard_ns: dict[str, int] = field(default_factory=dict)
    late_ms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_TICKS))
    inference_ms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_CHUNKS))
    image_age_ms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_CHUNKS))
    stage_ms: dict[str, float] = field(default_factory=dict)
    _description: dict[str, Any] = field(default_factory=dict)
    _deadlines: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=WINDOW_TICKS))

    def apply(self, kind: str, header: Mapping[str, Any], payloads: list[np.ndarray], now_ns: int) -> None:
        """Takes one message in; unknown kinds are none of the monitor's business."""
        source = str(header.get("source", ""))
        self.last_heard_ns[source] = now_ns
        handler = getattr(self, f"_on_{kind}", None)
        if handler is not None:
            handler(header, payloads, source)

    def is_silent(self, source: str, now_ns: int, limit_ns: int = 1_500_000_000) -> bool:
        """Whether a node that was heard before has said nothing for `limit_ns`."""
        heard = self.last_heard_ns.get(source)
        return heard is not None and now_ns - heard > limit_ns

    @property
    def loop_hz(self) -> float | None:
        """Measured rate of the control loop over the window."""
        if len(self._deadlines) < 2:
            return None
        (first_tick, first_ns), (last_tick, last_ns) = self._deadlines[0], self._deadlines[-1]
        return (last_tick - first_tick) * 1e9 / (last_ns - first_ns) if last_ns > first_ns else None

    # -- one method per message type -----------------------------------------------------------------------

    def _on_describe(self, h: Mapping[str, Any], _: list[np.ndarray], source: str) -> None:
        if "joints" in h:
            self.robot = str(h.get("robot", ""))
            self._description = {str(j["name"]): j for j in h["joints"]}
        elif "policy" in h:
            self.bundle = str(h["name"])
            self.queue_size = int(h.get("chunk_size") or 0)

    def _on_state(self, h: Mapping[str, Any], _: list[np.ndarray], __: str) -> None:
        self.tick, self.mode, self.reason = int(h["tick"]), str(h["mode"]), str(h["reason"])
        self.queue_left = int(h["n_actions_left"])
        self.queue_size = max(self.queue_size, self.queue_left)
        self.action_index = float(h["action_index"])
        self.chunk_seq = h["chunk_seq"]
        late_ms = int(h["late_ns"]) / 1e6
        self.late_ms.append(late_ms)
        self._deadlines.append((self.tick, int(h["deadline_ns"])))
        position, goal = np.asarray(h["position"]), np.asarray(h["goal"])
        ages, limited = np.asarray(h["position_age_us"]), np.asarray(h["limited_by"])
        names = list(self._description) or [f"joint {i + 1}" for i in range(len(position))]
        self.joints = [
            Joint(
                name=name,
                unit=str(self._description.get(name, {}).get("unit", "")),
                low=float(self._description.get(name, {}).get("min", -100.0)),
                high=float(self._description.get(name, {}).get("max", 100.0)),
                present=float(position[i]),
                goal=float(goal[i]) if i < len(goal) else float("nan"),
                age_ms=float(ages[i]) / 1e3 if i < len(ages) else 0.0,
                limited_by=int(limited[i]) if i < len(limited) else 0,
            )
            for i, name in enumerate(names)
            if i < len(position)
        ]

    def _on_servo_health(self, h: Mapping[str, Any], _: list[np.ndarray], __: str) -> None:
        names = list(self._description)
        servos = h["servos"]
        self.servos = [
            Servo(
                name=str(s.get("name") or (names[i] if len(names) == len(servos) else f"id {s['id']}")),
                bus=str(s["bus"]),
                id=int(s["id"]),
                temperature_c=float(s["temperature_c"]),
                voltage_v=float(s["voltage_v"]),
                load_percent=float(s["load_percent"]),
                error_bits=int(s["error_bits"]),
                is_torque_on=bool(s["torque_on"]),
                n_retries=int(s["n_retries"]),
                n_stale=int(s["n_stale"]),
            )
            for i, s in enumerate(servos)
        ]

    def _on_chunk(self, h: Mapping[str, Any], _: list[np.ndarray], __: str) -> None:
        timing = {k: int(v) / 1e6 for k, v in h["timing_ns"].items()}
        self.n_chunks += 1
        self.stage_ms = timing
        self.inference_ms.append(sum(timing.values()))
        self.image_age_ms.append(int(h["image_age_ns"]) / 1e6)
        self.task = str(h["task"])
        self.queue_size = int(h["n_valid"])

    def _on_thumbnail(self, h: Mapping[str, Any], payloads: list[np.ndarray], _: str) -> None:
        jpeg = payloads[0].tobytes() if payloads else b""
        self.thumbnails[str(h["camera"])] = Thumbnail(str(h["camera"]), jpeg, int(h["observed_ns"]))

    def _on_heartbeat(self, h: Mapping[str, Any], _: list[np.ndarray], source: str) -> None:
        self.phases[source] = str(h["phase"])
        self.counters[source] = {str(k): int(v) for k, v in h["counters"].items()}
        self.n_late_ticks = self.counters.get("robot", {}).get("deadline_misses", self.n_late_ticks)

    def _on_event(self, h: Mapping[str, Any], _: list[np.ndarray], source: str) -> None:
        self.events.append(Event(str(h["severity"]), source, str(h["text"])))

"""What the monitor knows, reduced from wire messages: plain data, no screen, no sockets.

`MonitorModel.apply` takes one message at a time and keeps the newest of everything plus short windows for
percentiles; widgets read it. So what a screen shows can be tested without a screen.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from edgevla import messages
from edgevla.descriptions import AboutJoint, AboutRobot
from edgevla.messages import Body, Chunk, Heartbeat, Message, ServoHealth, Severity, State
from edgevla.session import Deployment

WINDOW_TICKS = 600
WINDOW_CHUNKS = 60


@dataclass(frozen=True)
class Note:
    """What the monitor itself has to say: an answer to a command."""

    severity: Severity
    text: str


Received = Message[Body] | AboutRobot | Deployment | Note
"""What a link brings: messages of the wire, what the robot is, the deployment's note, and the monitor's own words."""


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
    _description: dict[str, AboutJoint] = field(default_factory=dict)
    _deadlines: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=WINDOW_TICKS))

    def apply(self, received: Received, now_ns: int) -> None:
        """Takes one thing in; messages of other types are none of the monitor's business."""
        if isinstance(received, Message):
            self.last_heard_ns[received.source] = now_ns
            handler = getattr(self, f"_on_{received.type}", None)
            if handler is not None:
                handler(received)
        elif isinstance(received, AboutRobot):
            self.last_heard_ns["robot"] = now_ns
            self.robot = received.robot
            self._description = {joint.name: joint for joint in received.joints}
        elif isinstance(received, Deployment):
            self.bundle = received.bundle_name
        else:
            self.events.append(Event(received.severity, "monitor", received.text))

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

    def _on_state(self, message: Message[State]) -> None:
        state = message.body
        self.tick, self.mode, self.reason = state.tick, state.mode, state.reason
        self.queue_left = state.n_actions_left
        self.queue_size = max(self.queue_size, self.queue_left)
        self.action_index = state.action_index
        self.chunk_seq = state.chunk_seq
        self.late_ms.append(state.late_ns / 1e6)
        self._deadlines.append((self.tick, state.deadline_ns))
        names = list(self._description) or [f"joint {i + 1}" for i in range(len(state.position))]
        n_shown = min(len(names), len(state.position))
        self.joints = [self._joint(names[i], i, state) for i in range(n_shown)]

    def _joint(self, name: str, i: int, state: State) -> Joint:
        about = self._description.get(name)
        return Joint(
            name=name,
            unit=about.unit if about else "",
            low=about.min if about else -100.0,
            high=about.max if about else 100.0,
            present=float(state.position[i]),
            goal=float(state.goal[i]),
            age_ms=float(state.position_age_us[i]) / 1e3,
            limited_by=int(state.limited_by[i]),
        )

    def _on_servo_health(self, message: Message[ServoHealth]) -> None:
        self.servos = [
            Servo(
                name=servo.name,
                bus=servo.bus,
                id=servo.id,
                temperature_c=servo.temperature_c,
                voltage_v=servo.voltage_v,
                load_percent=servo.load_percent,
                error_bits=servo.error_bits,
                is_torque_on=servo.torque_on,
                n_retries=servo.n_retries,
                n_stale=servo.n_stale,
            )
            for servo in message.body.servos
        ]

    def _on_chunk(self, message: Message[Chunk]) -> None:
        chunk = message.body
        self.n_chunks += 1
        self.stage_ms = {stage: spent / 1e6 for stage, spent in vars(chunk.timing_ns).items()}
        self.inference_ms.append(chunk.timing_ns.total / 1e6)
        self.image_age_ms.append(chunk.image_age_ns / 1e6)
        self.task = chunk.task
        self.queue_size = chunk.n_valid

    def _on_thumbnail(self, message: Message[messages.Thumbnail]) -> None:
        camera, jpeg = message.body.camera, message.payloads[0].tobytes()
        self.thumbnails[camera] = Thumbnail(camera, jpeg, message.observed_ns)

    def _on_heartbeat(self, message: Message[Heartbeat]) -> None:
        self.phases[message.source] = message.body.phase
        self.counters[message.source] = message.body.counters
        self.n_late_ticks = self.counters.get("robot", {}).get("deadline_misses", self.n_late_ticks)

    def _on_event(self, message: Message[messages.Event]) -> None:
        event = message.body
        self.events.append(Event(event.severity, message.source, event.text))

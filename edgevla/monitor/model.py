"""What the monitor knows, reduced from messages: plain data, no screen, no sockets.

`MonitorModel.apply` takes one message at a time and keeps the newest of everything plus short windows for rates and
percentiles; panels read it. So what a screen shows can be tested without a screen.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgevla.board import Board
from edgevla.descriptions import AboutJoint, AboutPolicy, AboutRobot
from edgevla.messages import (
    Chunk,
    Event,
    Heartbeat,
    Message,
    MessageBody,
    Servo,
    ServoHealth,
    Severity,
    State,
    Thumbnail,
)
from edgevla.monitor.chunks import Timeline
from edgevla.monitor.history import CounterRates, History
from edgevla.monitor.outside import Outside
from edgevla.monitor.rates import Clockwork, TickTiming, Trouble, TroubleRates
from edgevla.monitor.said import Said
from edgevla.monitor.standing import Heard, Standing, judge

WINDOW_CHUNKS = 60
MOVING = ("running", "holding", "homing")
HEALTH_OLD_NS = 1_500_000_000
"""Health comes twice a second; three missing ones are no accident."""
CHUNKS_OLD_NS = 3_000_000_000
SILENT_NS = 1_500_000_000


@dataclass(frozen=True)
class JointRow:
    """One row of the joint table. Values in robot units; `goal` is nan before the first one was sent."""

    name: str
    unit: str
    low: float
    high: float
    present: float
    goal: float
    age_ms: float
    limited_by: int
    index: int = 0


@dataclass(frozen=True)
class ServoRow:
    """One row of the servo table. is_torque_on: None where nobody knows."""

    name: str
    temperature_c: float
    voltage_v: float
    load_percent: float
    error_bits: int
    is_torque_on: bool | None
    trouble: Trouble

    @property
    def is_worrying(self) -> bool:
        """Hot, overloaded or reporting an error: shown in red."""
        return self.error_bits != 0 or self.temperature_c >= 60 or abs(self.load_percent) >= 90


@dataclass(frozen=True)
class JpegPicture:
    jpeg: bytes
    observed_ns: int


@dataclass
class MonitorModel:
    """Everything the screen shows. Times are monotonic ns.

    execution: how chunks become goals, in words. policy: what the policy's node told of itself. beats: per node, its
    counters. present, late: the last ten seconds of the joints' positions, and of the loop's lateness in ms.
    """

    robot: str = ""
    bundle: str = ""
    task: str = ""
    cameras: Sequence[str] = ()
    execution: str = ""
    policy: AboutPolicy | None = None
    outside: Outside = field(default_factory=Outside)
    board: Board = field(default_factory=Board)
    state: State | None = None
    state_ns: int | None = None
    health_ns: int | None = None
    chunk_ns: int | None = None
    queue_size: int = 0
    said: Said = field(default_factory=Said)
    pictures: dict[str, JpegPicture] = field(default_factory=dict)
    last_heard_ns: dict[str, int] = field(default_factory=dict)
    clockwork: Clockwork = field(default_factory=Clockwork)
    inference_ms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_CHUNKS))
    image_age_ms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_CHUNKS))
    stage_ms: dict[str, float] = field(default_factory=dict)
    timeline: Timeline = field(default_factory=Timeline)
    beats: dict[str, CounterRates] = field(default_factory=dict)
    rss_bytes: dict[str, int] = field(default_factory=dict)
    present: History = field(default_factory=History)
    late: History = field(default_factory=lambda: History(np.fmax))
    _joints: dict[str, AboutJoint] = field(default_factory=dict)
    _servos: Sequence[Servo] = ()
    _released_ns: int = 0
    _is_unconfirmed: bool = False
    _trouble: TroubleRates = field(default_factory=TroubleRates)

    def apply(self, message: Message[MessageBody]) -> None:
        """Takes one message in; other types are none of the monitor's business."""
        handler: Callable[[Any, Message[MessageBody]], None] | None = getattr(
            self, f"_on_{message.type}", None
        )
        if handler is not None:
            handler(message.body, message)

    def describe(self, about: AboutRobot | AboutPolicy) -> None:
        """What a node is, as it says itself."""
        if isinstance(about, AboutPolicy):
            self.policy = about
            return
        self.robot = about.robot
        self._joints = {joint.name: joint for joint in about.joints}

    @property
    def engine(self) -> str:
        """What runs the policy, in words; empty before it has said so."""
        if self.policy is None:
            return ""
        manifest = self.policy.manifest if isinstance(self.policy.manifest, dict) else {}
        precision = (manifest.get("target") or {}).get("precision") or {}
        return " ".join([self.policy.provider, *sorted({str(p) for p in precision.values()})])

    def ticks(self, ticks: Sequence[TickTiming]) -> None:
        """Ticks whose state is not shown, because a newer one has come; they count for rate and lateness."""
        for tick in ticks:
            self._take(tick)

    def _take(self, tick: TickTiming) -> None:
        self.clockwork.take(tick)
        self.timeline.take(tick)
        self.late.take(np.array([tick.late_ns / 1e6]), tick.deadline_ns + tick.late_ns)

    def say(self, severity: Severity, text: str, source: str = "monitor", at_ns: int | None = None) -> None:
        """at_ns: when it was said, monotonic; None: now."""
        ago_ns = 0 if at_ns is None else time.monotonic_ns() - at_ns
        self.said.say(severity, source, text, time.time() - ago_ns / 1e9)

    def beat(self, node: str) -> CounterRates:
        """What a node counts; nothing where it was not heard."""
        return self.beats.get(node) or CounterRates()

    # -- what is true now --------------------------------------------------------------------------------------

    @property
    def mode(self) -> str:
        return self.state.mode if self.state else ""

    def standing(self, now_ns: int) -> Standing:
        """The header's word and sentence."""
        return judge(self._heard(now_ns), self.outside, now_ns)

    def _heard(self, now_ns: int) -> Heard:
        if self.state is None or self.state_ns is None:
            return Heard()
        on = None
        if self.health_ns is not None and self.health_ns >= self._released_ns:
            on = tuple(servo.name for servo in self._servos if servo.torque_on)
        return Heard(
            self.mode,
            self.state.reason,
            now_ns - self.state_ns,
            on,
            has_released=self._released_ns > 0,
            is_unconfirmed=self._is_unconfirmed,
            is_led=self.state.is_led,
            is_shadow=self.state.is_shadow,
        )

    @property
    def joints(self) -> list[JointRow]:
        """Of the newest state, in its order."""
        if self.state is None:
            return []
        n = len(self.state.position)
        names = list(self._joints) or [f"joint {i + 1}" for i in range(n)]
        return [self._joint(name, i, self.state) for i, name in enumerate(names[:n])]

    def _joint(self, name: str, i: int, s: State) -> JointRow:
        about = self._joints.get(name)
        return JointRow(
            name=name.removesuffix(".pos"),
            unit=about.unit if about else "",
            low=about.min if about else -100.0,
            high=about.max if about else 100.0,
            present=float(s.position[i]),
            goal=float((s.wanted if s.is_shadow and s.wanted is not None else s.goal)[i]),
            age_ms=float(s.position_age_us[i]) / 1e3,
            limited_by=int(s.limited_by[i]),
            index=i,
        )

    @property
    def n_servos(self) -> int:
        return len(self._servos)

    def servos(self, now_ns: int) -> list[ServoRow]:
        """All servos; torque as it is known now, which may be less than what was said last."""
        return [
            ServoRow(
                name=(servo.name or f"id {servo.id}").removesuffix(".pos"),
                temperature_c=servo.temperature_c,
                voltage_v=servo.voltage_v,
                load_percent=servo.load_percent,
                error_bits=servo.error_bits,
                is_torque_on=self._torque(servo, now_ns),
                trouble=self._trouble.of((servo.bus, servo.id)),
            )
            for servo in self._servos
        ]

    def _torque(self, servo: Servo, now_ns: int) -> bool | None:
        """After the guardian's release its word counts; else the servo's, while it is fresh and answers."""
        said = self.outside.guardian
        if said is not None and said.state == "released":
            is_left_on = servo.torque_on and self._is_unconfirmed and not said.why
            return None if servo.name in said.unconfirmed or is_left_on else False
        is_mute = self._trouble.is_mute((servo.bus, servo.id), self.clockwork.hz or 0.0)
        is_known = self._heard(now_ns).is_fresh and not self.is_health_old(now_ns) and not is_mute
        is_doubtful = servo.torque_on and self._is_unconfirmed
        return bool(servo.torque_on) if is_known and not is_doubtful else None

    def shared_trouble(self) -> dict[str, Trouble]:
        """Per bus: what all its servos suffer alike, which is the line's and not theirs."""
        return self._trouble.shared()

    def is_health_old(self, now_ns: int) -> bool:
        """Too long ago, or from before the loop's own release."""
        return self.health_ns is None or self.health_ns < max(self._released_ns, now_ns - HEALTH_OLD_NS)

    def is_policy_old(self, now_ns: int) -> bool:
        return self.chunk_ns is None or now_ns - self.chunk_ns > CHUNKS_OLD_NS

    def silent(self, now_ns: int) -> dict[str, int]:
        """Nodes that were heard before and have said nothing for SILENT_NS: name -> ns."""
        ages = {source: now_ns - heard for source, heard in self.last_heard_ns.items()}
        return {source: age for source, age in ages.items() if age > SILENT_NS}

    # -- one method per message type -----------------------------------------------------------------------------

    def _on_state(self, state: State, message: Message[MessageBody]) -> None:
        self._take(
            TickTiming(
                state.tick,
                state.t0_ns,
                state.deadline_ns,
                state.late_ns,
                state.chunk_seq,
                state.action_index,
                np.asarray(state.goal, "<f4").tobytes(),
            )
        )
        self.state, self.state_ns = state, message.header.sent_ns
        self.task = state.task or self.task
        self.present.take(np.asarray(state.position, float), message.header.sent_ns)
        if state.mode in MOVING and message.header.sent_ns > self._released_ns:  # started again
            self._released_ns, self._is_unconfirmed = 0, False
        self.queue_size = max(self.queue_size, state.n_actions_left)

    def _on_servo_health(self, health: ServoHealth, message: Message[MessageBody]) -> None:
        self._servos, self.health_ns = health.servos, message.header.sent_ns
        self._trouble.take(health.servos, message.header.sent_ns)

    def _on_chunk(self, chunk: Chunk, message: Message[Any]) -> None:
        if message.source == "leader":  # a hand, beside the policy
            return
        self.timeline.arrived(message)
        self.stage_ms = {name: ns / 1e6 for name, ns in vars(chunk.timing_ns).items()}
        self.inference_ms.append(chunk.timing_ns.total / 1e6)
        self.image_age_ms.append(chunk.image_age_ns / 1e6)
        self.chunk_ns = message.header.sent_ns
        self.task, self.queue_size = chunk.task or self.task, chunk.n_valid

    def _on_thumbnail(self, thumbnail: Thumbnail, message: Message[MessageBody]) -> None:
        self.pictures[thumbnail.camera] = JpegPicture(message.payloads[0].tobytes(), message.observed_ns)

    def _on_heartbeat(self, heartbeat: Heartbeat, message: Message[MessageBody]) -> None:
        self.last_heard_ns[message.source] = message.header.sent_ns
        self.rss_bytes[message.source] = heartbeat.rss_bytes
        beats = self.beats.setdefault(message.source, CounterRates())
        beats.take(heartbeat.counters, message.header.sent_ns)

    def _on_event(self, event: Event, message: Message[MessageBody]) -> None:
        self.say(event.severity, event.text, message.source, message.header.sent_ns)
        if event.code == "execution":
            self.execution = event.text.removeprefix("execution: ")
        if message.source == "robot" and event.code in ("released", "torque_unconfirmed"):
            self._released_ns = message.header.sent_ns
            self._is_unconfirmed |= event.code == "torque_unconfirmed"

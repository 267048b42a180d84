"""Every message of a deployment as a frozen dataclass, whose annotations are the wire's schema (docs/formats.md).

A message is a `Header` (who says it, when), a body (one of the classes below) and payloads (pixels or actions). What an
annotation allows is in `edgevla.strict`; an array inside a body is little-endian msgpack `bin` on the wire, and numpy
outside of it. What belongs to a type besides its fields stands with it: `PAYLOADS`, how many and of which dtype, and
`misfit`, for rules between fields. What `describe` holds is in `descriptions.py`, what commands take in `arguments.py`,
what a policy server hears and says in `server_messages.py`.

**Adding a field.** Schema 1 promises that a message has exactly the fields below: a reader refuses one that is missing,
unknown or of another type, counts it under `wire_schema` or `wire_type`, and drops the message. All processes of a
deployment run from one installation; what may be older or newer is a monitor, a recorder, a policy server that joins.

1. A new field comes with a default that means what its absence meant. The writer leaves it out while it holds the
   default, so an older reader takes the message; the reader fills it in, so an older writer's message is taken.
2. A message that does use the new field is refused by an older reader, which says `has the unknown key`; only that
   message is lost. Where even this must not happen, the value travels in a message type of its own: nobody hears a type
   that he does not subscribe to.
3. A field never changes its meaning, unit or type, and is never taken away: another field takes its place.
4. What cannot be done so raises `SCHEMA`. A reader refuses every message of another schema, and says both numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal, TypeGuard, TypeVar, get_args

import numpy as np

from edgevla.fields import F32s, Guidance, MessageBody, Payloads, Session, U16s, U32s
from edgevla.server_messages import Join, Reply, Request
from edgevla.strict import Int, Measured, Plain, UInt

SCHEMA = 1
Mode = Literal["idle", "running", "holding", "paused", "homing", "stopped", "emergency"]
Phase = Literal["starting", "ready", "running", "degraded", "stopping", "failed"]
Severity = Literal["info", "warning", "error", "stop"]
Action = Literal[
    "start",
    "pause",
    "resume",
    "hold",
    "home",
    "stop",
    "emergency_stop",
    "clear_stop",
    "set_task",
    "set_execution",
    "reset",
    "lead",
    "hand_back",
    "record",
    "keep",
    "discard",
    "save",
]
MODES: tuple[Mode, ...] = get_args(Mode)


B = TypeVar("B", bound=MessageBody)
B_co = TypeVar("B_co", bound=MessageBody, covariant=True)


@dataclass(frozen=True)
class Header:
    """session: random per deployment. source: the node. seq: per source and type, from 0; a gap is a counted loss.

    observed_ns: monotonic, when the content was true. sent_ns: only for measuring.
    """

    session: Session
    source: str
    seq: UInt
    observed_ns: Int
    sent_ns: Int


@dataclass(frozen=True)
class Message(Generic[B_co]):
    """One message. payloads: numpy arrays, read-only after decoding."""

    header: Header
    body: B_co
    payloads: Sequence[np.ndarray] = field(default_factory=tuple)

    @property
    def type(self) -> str:
        """The word by which the header names the body's class."""
        return NAMES[type(self.body)]

    @property
    def source(self) -> str:
        """The node that sent it."""
        return self.header.source

    @property
    def seq(self) -> int:
        """Of the sender's messages of this type, counted from 0."""
        return self.header.seq

    @property
    def observed_ns(self) -> int:
        """Monotonic ns at which what it tells was so."""
        return self.header.observed_ns


def holds(message: Message[MessageBody], cls: type[B]) -> TypeGuard[Message[B]]:
    """Whether the message is one of these."""
    return isinstance(message.body, cls)


# --- cameras -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame(MessageBody):
    """A picture; `observed_ns` is its capture. n_repeated: equal ones in a row. Payload: (H, W, 3), or JPEG bytes."""

    camera: str
    height: UInt
    width: UInt
    encoding: Literal["rgb8", "jpeg"]
    n_dropped: UInt
    n_repeated: UInt

    PAYLOADS: ClassVar[Payloads] = Payloads(1, 1, ("uint8",))

    def misfit(self, payloads: Sequence[np.ndarray]) -> str | None:
        size, shape = f"{self.width}x{self.height} px", payloads[0].shape
        if not (0 < self.height <= 16384 and 0 < self.width <= 16384):
            return f"a frame of {size}"
        if self.encoding == "rgb8" and shape != (self.height, self.width, 3):
            return f"a payload of shape {shape} for an rgb8 frame of {size}"
        if self.encoding == "jpeg" and len(shape) != 1:
            return f"a JPEG payload of {len(shape)} axes, not 1"
        return None


@dataclass(frozen=True)
class Thumbnail(MessageBody):
    """A small picture a few times a second, for the monitor. Payload: JPEG bytes."""

    camera: str
    height: UInt
    width: UInt

    PAYLOADS: ClassVar[Payloads] = Payloads(1, 1, ("uint8",))

    def misfit(self, payloads: Sequence[np.ndarray]) -> str | None:
        if not (0 < self.width <= 160 and 0 < self.height <= 160):
            return f"a thumbnail of {self.width}x{self.height} px; at most 160"
        return None if payloads[0].ndim == 1 else "a JPEG payload that is not flat"


# --- the robot -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State(MessageBody):
    """One tick of the control loop, robot units, joints in profile order.

    deadline_ns: when the tick was due. t0_ns, step_ns: the grid of the rollout. wanted: by the executor, None: nothing.
    goal: what was sent, NaN before the first. limited_by: bits of `safety.Reason` per joint. chunk_seq: `request_id`
    of the newest chunk that `wanted` is from; action_index: within it. task: the instruction in force; empty: none.
    is_led: a person drives by the leader arm, in the policy's place; its chunks have no number here. is_shadow: nothing
    of what is wanted is sent. Both: `goal` is the leader's; `wanted`, its chunk and `limited_by` are of the policy that
    looks on.
    """

    tick: UInt
    deadline_ns: Int
    late_ns: Int
    t0_ns: Int
    step_ns: Int
    mode: Mode
    position: F32s
    position_age_us: U32s
    wanted: F32s | None
    goal: F32s
    limited_by: U16s
    chunk_seq: UInt | None
    action_index: float
    n_actions_left: UInt
    reason: str
    task: str = ""
    is_led: bool = False
    is_shadow: bool = False

    @property
    def is_grid_moment(self) -> bool:
        """Whether it is of a tick at which a policy would be asked: whole steps after the grid began."""
        return (self.deadline_ns - self.t0_ns) % self.step_ns == 0

    def misfit(self, payloads: Sequence[np.ndarray]) -> str | None:
        n = len(self.position)
        if self.wanted is not None and len(self.wanted) != n:
            return f"wanted of another length than the {n} positions"
        if len(self.goal) == len(self.position_age_us) == len(self.limited_by) == n:
            return None
        lengths = {
            "position_age_us": self.position_age_us,
            "goal": self.goal,
            "limited_by": self.limited_by,
        }
        wrong = next(name for name, values in lengths.items() if len(values) != n)
        return f"{wrong} of another length than the {n} positions"


@dataclass(frozen=True)
class Servo:
    """error_bits: as the servo reports them. n_stale: values that were not read in time."""

    id: UInt
    bus: str
    name: str
    temperature_c: Measured
    voltage_v: Measured
    load_percent: Measured
    current_ma: float | None
    error_bits: UInt
    torque_on: bool
    n_retries: UInt
    n_corrupt: UInt
    n_stale: UInt


@dataclass(frozen=True)
class ServoHealth(MessageBody):
    """All servos of the robot, twice a second."""

    servos: tuple[Servo, ...]


# --- the policy ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Infer(MessageBody):
    """The robot asks for the chunk of one grid moment; `observed_ns` is that moment.

    state: (S,) of that moment, robot units. n_steps: of the denoise loop, None: the bundle's. buffered_ns: how long the
    arm still has actions, 0: it has none. ahead: the state is of so many steps later, and action 0 belongs there
    (policies of future states). Payload: with `rtc` the committed actions (T, A), robot units.
    """

    request_id: UInt
    grid_index: Int
    deadline_ns: Int
    task: str
    state: F32s
    n_steps: UInt | None
    rtc: Guidance | None
    buffered_ns: UInt = 0
    ahead: UInt = 0

    PAYLOADS: ClassVar[Payloads] = Payloads(0, 1, ("float32",))

    def misfit(self, payloads: Sequence[np.ndarray]) -> str | None:
        if (self.rtc is None) == bool(payloads):
            return "rtc without its committed actions, or committed actions without rtc"
        if self.rtc is None or (payloads[0].ndim == 2 and len(payloads[0]) == len(self.rtc.weights)):
            return None
        return f"committed actions of shape {payloads[0].shape} for {len(self.rtc.weights)} weights"


@dataclass(frozen=True)
class Timing:
    """What one inference spent where, ns."""

    assemble: Int = field(kw_only=True)
    prompt: Int = field(kw_only=True)
    encode: Int = field(kw_only=True)
    denoise: Int = field(kw_only=True)
    decode: Int = field(kw_only=True)
    wait: Int = field(kw_only=True)
    network: Int = field(kw_only=True)

    @property
    def total(self) -> int:
        """ns of all parts."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Chunk(MessageBody):
    """The answer to one `infer`. Payload: float32 (T, A), robot units, joints in profile order.

    grid_index: of action 0. n_valid: rows that may be executed. policy: sha256 of its manifest. image_age_ns: of the
    oldest picture it saw. ahead: steps from the request's moment to action 0, as the request had it.
    """

    request_id: UInt
    grid_index: Int
    step_ns: Int
    n_valid: UInt
    policy: str
    task: str
    is_guided: bool
    n_steps: UInt
    noise_seed: UInt
    image_age_ns: Int
    state_age_ns: Int
    timing_ns: Timing
    ahead: UInt = 0

    PAYLOADS: ClassVar[Payloads] = Payloads(1, 1, ("float32",))

    def misfit(self, payloads: Sequence[np.ndarray]) -> str | None:
        if payloads[0].ndim == 2 and self.n_valid <= len(payloads[0]):
            return None
        return f"a chunk of shape {payloads[0].shape} with {self.n_valid} valid actions"


# --- every node ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Describe(MessageBody):
    """What a node is. A request has `about` None, and so has the answer of a node that is not ready yet."""

    about: Plain | None


@dataclass(frozen=True)
class Heartbeat(MessageBody):
    """Five times a second. rss_bytes: memory the process holds."""

    pid: UInt
    phase: Phase
    counters: dict[str, UInt]
    rss_bytes: UInt


@dataclass(frozen=True)
class Command(MessageBody):
    """Answered by `Ack`. arguments: see `arguments.py`; the asked node reads them, so that it can say why not."""

    action: Action
    arguments: Plain


@dataclass(frozen=True)
class Ack(MessageBody):
    """of_seq: the command's (or fault's) sequence number. reason: why it was refused, or what was done."""

    of_seq: UInt
    is_accepted: bool
    reason: str


@dataclass(frozen=True)
class Event(MessageBody):
    """One sentence for people; `code` is stable, for programs."""

    severity: Severity
    code: str
    text: str
    fields: Plain


# --- the emulator --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thing:
    """Something in the simulated world."""

    name: str
    position_m: F32s
    yaw_rad: float


@dataclass(frozen=True)
class World(MessageBody):
    """joint_rad: (D,) true angles. gripper_m: (3,) the tool point; of two arms (6,). sim_ns: since the episode began.

    episode: which one runs. qpos: the whole position of a world with physics, as its scene orders it.
    """

    joint_rad: F32s
    gripper_m: F32s
    objects: tuple[Thing, ...]
    sim_ns: UInt
    episode: UInt = 0
    qpos: F32s | None = None

    def places_of(self, name: str) -> list[np.ndarray]:
        """float64 (3,) metres, of everything that is called so."""
        return [np.array(o.position_m, float) for o in self.objects if o.name == name]


@dataclass(frozen=True)
class BeginEpisode(MessageBody):
    """Everything but the arm goes to its place of this episode, now; answered by `Ack`."""

    episode: UInt


@dataclass(frozen=True)
class Judged(MessageBody):
    """What an episode came to; sent once, when nothing can change it any more. `place`, `outcome`, `figures`, rewards:
    see `robots/world/contract.py`."""

    episode: UInt
    is_success: bool
    time_to_success_s: float | None
    max_reward: float
    sum_reward: float
    place: tuple[float, ...]
    outcome: str
    figures: dict[str, float]


@dataclass(frozen=True)
class Fault(MessageBody):
    """One fault to inject; answered by `Ack`. None: the fault's own default. target: servo, bus, or None for all."""

    kind: str
    target: str | None
    probability: float | None
    count: UInt | None
    duration_ms: float | None
    amount: float | None


TYPES: dict[str, type[MessageBody]] = {
    "frame": Frame,
    "thumbnail": Thumbnail,
    "state": State,
    "servo_health": ServoHealth,
    "infer": Infer,
    "chunk": Chunk,
    "join": Join,
    "request": Request,
    "reply": Reply,
    "describe": Describe,
    "heartbeat": Heartbeat,
    "command": Command,
    "ack": Ack,
    "event": Event,
    "world": World,
    "begin_episode": BeginEpisode,
    "judged": Judged,
    "fault": Fault,
}
"""Name on the wire -> class. A name is never used for another meaning."""
NAMES = {cls: name for name, cls in TYPES.items()}

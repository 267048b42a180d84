"""A whole rollout in one process on a virtual clock: the real control loop, driver and packets on emulated servos.

Everything but the processes is real: give it a policy (observation -> chunk) and a delay in ticks, and it is exact and
faster than real time. Nothing waits, so an injected delay is a number of ticks, not a matter of the machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from edgevla.arguments import Arguments, Start, arguments_from, arguments_to
from edgevla.clock import NS_PER_S, VirtualClock
from edgevla.codec import decode, encode
from edgevla.errors import UsageError
from edgevla.execution import Execution, Sync
from edgevla.messages import B, Chunk, Header, Infer, Message, MessageBody, Severity, State
from edgevla.nodes.stand_in import answer_to
from edgevla.types import Observation

from ..arm import Robot
from ..emulator.robot import EmulatedRobot
from ..links import Driver
from ..node import ControlLoop
from ..profile import Profile, load_profile

Policy = Callable[..., np.ndarray]
"""observation -> float32 (T, D), robot units, profile order. With `rtc` execution, and where chunks are
selected, it is also given `rtc=(committed, weights, max_guidance, select)`."""
Delays = Callable[[int], int | None]
"""Number of a request (`DirectLinks.n_inferences`) -> ticks until its chunk is heard; None: it never comes."""
SESSION = b"lockstep"


class _Request:
    """A command and its answer."""

    def __init__(self, action: str, arguments: Arguments | None) -> None:
        self.action, self.arguments = action, arguments
        self.outcome: tuple[bool, str] | None = None

    def answer(self, is_accepted: bool, reason: str = "") -> None:
        self.outcome = (is_accepted, reason)


class DirectLinks:
    """The loop's `Links` without sockets: every message still goes through the codec, both ways.

    leader: what a leader arm would answer, where there is one; None: it is unplugged.
    """

    def __init__(self, policy: Policy, delays: Delays, look: Callable[[], Mapping[str, np.ndarray]]) -> None:
        self.policy, self.delays, self.look = policy, delays, look
        self.leader: Policy | None = None
        self.tick = 0
        self.is_policy_dead = False
        self.states: list[State] = []
        self.events: list[tuple[str, str, str]] = []
        self.leases: deque[bytes] = deque(maxlen=1000)
        self.n_inferences = 0
        self.pending_signals: list[str] = []
        self._requests: list[_Request] = []
        self._coming: list[tuple[int, Message[Chunk]]] = []

    def post(self, action: str, arguments: Arguments | None = None) -> _Request:
        request = _Request(action, arguments_from(action, arguments_to(action, arguments)))
        self._requests.append(request)
        return request

    def requests(self) -> Sequence[_Request]:
        taken, self._requests = self._requests, []
        return taken

    def signals(self) -> Sequence[str]:
        taken, self.pending_signals = self.pending_signals, []
        return taken

    def chunks(self) -> Sequence[Message[Chunk]]:
        found = [message for due, message in self._coming if due <= self.tick]
        self._coming = [item for item in self._coming if item[0] > self.tick]
        return found

    def new_grid(self) -> None:
        """Ticks are counted from 0 again: what is under way belongs to no one."""
        self._coming.clear()

    def ask(self, driver: Driver, request: Infer, payloads: Sequence[np.ndarray], observed_ns: int) -> bool:
        answers = self.leader if driver == "leader" else None if self.is_policy_dead else self.policy
        if answers is None:
            return False
        asked = self._through_the_wire("robot", request, payloads, observed_ns)
        seen = Observation(asked.body.state, dict(self.look()), task=asked.body.task)
        rtc = asked.body.rtc
        told = None if rtc is None else (asked.payloads[0], rtc.weights, rtc.max_guidance, rtc.select)
        more = {} if told is None else {"rtc": told}
        actions = np.asarray(answers(seen, **more), np.float32)
        delay = self.delays(self.n_inferences)
        self.n_inferences += 1
        if delay is None:
            return True
        answer = answer_to(
            asked.body, "lockstep", len(actions), 0, is_guided=rtc is not None and rtc.select == 1
        )
        message = self._through_the_wire(driver, answer, [actions], observed_ns)
        self._coming.append((self.tick + delay, message))
        return True

    def _through_the_wire(
        self, source: str, body: B, payloads: Sequence[np.ndarray], observed_ns: int
    ) -> Message[B]:
        header = Header(SESSION, source, self.n_inferences, observed_ns, observed_ns)
        return cast("Message[B]", decode(encode(Message(header, body, payloads)), SESSION))

    def publish(self, body: MessageBody, observed_ns: int | None = None) -> None:
        if isinstance(body, State):
            self.states.append(body)

    def event(self, severity: Severity, code: str, text: str, **_: Any) -> None:
        self.events.append((severity, code, text))

    def lease(self, byte: bytes) -> None:
        self.leases.append(byte)

    def counters(self) -> dict[str, int]:
        return {}


class ClosedLoop:
    """One emulated arm under one policy. Torque goes on with `start`.

    policy: see `Policy`. delay_ticks: from the request to the tick at which its chunk is heard, or `Delays`. look:
    images by feature name at the moment of a request. world: stepped with the arm. arm: one that is there, with its
    clock, instead of a new one. servo_hz: bound of the loop's rate; the profile's otherwise. is_shadow: as
    `Robot`. The rest is what a bundle's manifest would say.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        chunk_size: int = 1,
        execution: Execution | None = None,
        fps: float = 30.0,
        n_action_steps: int | None = None,
        delay_ticks: int | Delays = 0,
        look: Callable[[], Mapping[str, np.ndarray]] = dict,
        world: Any = None,
        profile: Profile | None = None,
        arm: EmulatedRobot | None = None,
        servo_hz: float | None = None,
        trained_speed: Sequence[float] | None = None,
        guidance_end: int = 10,
        trained_delay: int | None = None,
        future_offset: int = 0,
        seed: int = 0,
        is_shadow: bool = False,
    ) -> None:
        self.profile = profile or load_profile("so101")
        self.arm = arm or EmulatedRobot(self.profile, VirtualClock(NS_PER_S), seed, world=world)
        self.clock = self.arm.clock
        self.robot = Robot(
            self.profile, self.arm.memory_ports(), self.arm.calibration, self.clock, is_shadow=is_shadow
        )
        self.robot.connect()
        delays = delay_ticks if callable(delay_ticks) else lambda _: delay_ticks
        self.links = DirectLinks(policy, delays, look)
        self.loop = ControlLoop(self.profile, self.robot, self.links, self.clock)
        self._ticks = self.loop.ticks()
        self._held: np.ndarray | None = None
        """Where a person holds the arm, which is limp."""
        self._arguments = Start(
            fps=fps,
            chunk_size=chunk_size,
            n_action_steps=n_action_steps or chunk_size,
            execution=execution or Sync(),
            allowed=("sync", "ensemble", "async", "rtc"),
            task="",
            n_steps=None,
            guidance_end=guidance_end,
            max_guidance=10.0,
            trained_speed=None if trained_speed is None else tuple(trained_speed),
            trained_range=None,
            latency_ms=0.0,
            max_hz=servo_hz,
            trained_delay=trained_delay,
            future_offset=future_offset,
        )

    def step(self) -> State:
        """One tick; the `state` that was published."""
        if self.loop.wants_new_grid:
            self.links.new_grid()
        tick = next(self._ticks)
        self.arm.step(self.clock.now_ns())
        if self._held is not None:
            for joint, value in zip(self.profile.joints, self._held, strict=True):
                self.arm.move_by_hand(joint.name, float(value))
        self.links.tick = tick.number
        self.loop.step(tick)
        return self.links.states[-1]

    def run(self, seconds: float) -> list[State]:
        """Ticks for so much virtual time (or until the loop has ended); their states."""
        until = self.clock.now_ns() + round(seconds * NS_PER_S)
        first = len(self.links.states)
        while self.clock.now_ns() < until and not self.loop.is_over:
            self.step()
        return self.links.states[first:]

    def command(self, action: str, arguments: Arguments | None = None) -> None:
        """Sends one command and lets the loop hear it.

        Raises:
            UsageError: refused, with the loop's reason.
        """
        request = self.links.post(action, arguments)
        self.step()
        if request.outcome is None or not request.outcome[0]:
            raise UsageError(request.outcome[1] if request.outcome else f"'{action}' was not heard")

    def start(self, arguments: Start | None = None, **changes: Any) -> None:
        """Torque on, rollout from tick 0. arguments: instead of the loop's own. changes: of them."""
        self.command("start", replace(arguments or self._arguments, **changes))
        self._held = None

    def reset(self) -> None:
        """A new rollout (a new episode) from tick 0, torque stays on."""
        self.command("reset")

    def put(self, posture: np.ndarray) -> None:
        """Puts the arm somewhere as a person would by hand, and holds it there until `start` has switched torque on.

        posture: (D,) robot units. Call it before `start`.
        """
        self._held = np.asarray(posture, float)
        for _ in range(3):  # the driver believes a jump when it has seen it twice
            self.step()

    def joint_rad(self) -> np.ndarray:
        """float64 (D,): true angles now."""
        self.arm.step(self.clock.now_ns())
        return self.arm.joint_rad()

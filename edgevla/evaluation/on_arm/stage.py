"""The running deployment as the evaluation sees it: what the arm is told, what it and its processes say.

Commands and news travel by different ways: what was published before a command was answered is old news after it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from edgevla.clock import NS_PER_S
from edgevla.errors import WireError
from edgevla.evaluation.on_arm.contestants import Contestants, PolicyLoader
from edgevla.evaluation.on_arm.flow import FlowEvent
from edgevla.evaluation.on_arm.measures import Measures
from edgevla.launch.supervisor import Supervisor
from edgevla.messages import Action, BeginEpisode, Chunk, Event, Heartbeat, Judged, MessageBody, State
from edgevla.strict import write
from edgevla.wire import Dealer, Inbox, Stream, endpoint

HOME = "at home"
"""What the robot says when it has arrived there."""
FRESH_NS, SILENT_NS = NS_PER_S, 3 * NS_PER_S
"""A camera whose node was heard so lately is there; one that was silent so long has gone."""
SPOILING = ("camera_lost", "camera_missing", "camera_failed", "inference_")
"""Codes of events after which a failure would be the machine's, not the policy's."""


class ArmStage:
    """One deployment, from where its supervisor watches on."""

    def __init__(self, supervisor: Supervisor, contestants: Contestants, may_lose_cameras: bool) -> None:
        self._supervisor = supervisor
        self._may_lose = may_lose_cameras
        self.cameras = [f"camera/{name}" for name in contestants.cameras]
        robot = endpoint(supervisor.folder, "robot")
        policy = endpoint(supervisor.folder, "policy")
        eyes = [endpoint(supervisor.folder, name) for name in self.cameras]
        streams: dict[type[MessageBody], Stream] = {
            State: (robot, 4096),
            Chunk: (policy, 256),
            Event: ([policy, *eyes], 256),
            Heartbeat: ([robot, *eyes], 256),
        }
        self._world: Dealer | None = None
        if supervisor.options.is_sim:
            streams[Judged] = (endpoint(supervisor.folder, "emulator"), 16)
            address = endpoint(supervisor.folder, "emulator", "fault")
            self._world = Dealer(supervisor.ctx, address, supervisor.session, "eval")
        self._ears = Inbox(supervisor.ctx, streams, supervisor.session)
        self._judged: Judged | None = None
        self._episode = -1
        self.loader = PolicyLoader(supervisor, contestants)
        self.mode = ""
        self.is_home = False
        self.counters: Mapping[str, int] = {}
        self.measures: Measures | None = None
        self.spoilt = ""
        """Why what runs since `begin` says nothing about the policy."""
        self._phases: dict[str, tuple[str, int]] = {}
        self._losses: Mapping[str, int] = {}
        self._since_ns = 0
        self._began_ns = time.monotonic_ns()

    # -- what it is told ---------------------------------------------------------------------------------------------

    def command(self, action: Action) -> None:
        """
        Raises:
            UsageError: the robot refused, with its reason. WireError: it does not answer.
        """
        self._supervisor.command(action)
        self._since_ns, self.mode, self.is_home = time.monotonic_ns(), "", False

    def begin(self) -> None:
        """The policy moves the arm from now on."""
        joints = self._supervisor.robot.joints
        is_body = [not joint.is_gripper for joint in joints]
        unit = next((joint.unit for joint in joints if not joint.is_gripper), "unit")
        self.spoilt, self.measures = "", Measures(self.counters, is_body, unit)
        self._losses = self._supervisor.camera_losses()
        self.command("resume")

    def want(self, policy: int) -> None:
        """The policy that is to move the arm next."""
        self.loader.want(policy)

    def reset_world(self, episode: int) -> None:
        """A simulated world's things go to their places of this episode; on a real arm a person has done it."""
        self._judged, self._episode = None, episode
        if self._world is not None:
            self._world.send(BeginEpisode(episode))

    def verdict(self) -> dict[str, Any] | None:
        """What a simulated world's judge says of the episode; None: nothing (yet), or the world is a real one."""
        return None if self._judged is None else dict(write(self._judged))

    def freeze(self) -> None:
        """The guardian hears it too, by another way; it need not be answered."""
        with contextlib.suppress(WireError):
            self.command("emergency_stop")

    # -- what it says ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        for message in self._ears.drain(State):
            if message.header.sent_ns > self._since_ns:
                self.mode = message.body.mode
                self.is_home |= self.mode == "paused" and message.body.reason == HOME
                if self.measures is not None:
                    self.measures.state(message.body)
        for chunk in self._ears.drain(Chunk):
            if self.measures is not None:
                self.measures.chunk(chunk.body)
        for event in self._ears.drain(Event):
            self._hear(event.source, event.body)
        for told in self._ears.drain(Judged) if self._world is not None else ():
            if told.body.episode == self._episode and self._judged is None:
                self._judged = told.body
        for beat in self._ears.drain(Heartbeat):
            self._phases[beat.source] = (beat.body.phase, time.monotonic_ns())
            if beat.source == "robot":
                self.counters = beat.body.counters
        if self.loader.was_lost:
            self.spoilt = self.spoilt or "the policy's process has ended"
        if died := self._died():
            self.spoilt = self.spoilt or died
        if gone := self._gone(SILENT_NS):
            self.spoilt = self.spoilt or gone
        self.loader.step(is_held=self.mode == "paused")

    def _hear(self, source: str, event: Event) -> None:
        if not event.code.startswith(SPOILING) or (self._may_lose and source in self.cameras):
            return
        self.spoilt = self.spoilt or event.text.partition(";")[0]

    def news(self) -> FlowEvent | None:
        """What the arm has become, for whoever did not ask for it; the flow knows what it was."""
        if self.mode in ("", "idle", "stopped"):  # not known; or it ends, which its supervisor tells
            return None
        if self.mode == "emergency":
            return FlowEvent.FROZE
        return FlowEvent.HELD if self.mode == "paused" else FlowEvent.CLEARED

    def missing(self) -> str:
        """What an episode cannot begin without, in words; empty: nothing."""
        if gone := self._gone(FRESH_NS):
            return f"{gone}; look after its cable"
        return "" if self.loader.is_ready else "the policy is being loaded"

    def _died(self) -> str:
        """The first camera whose process has ended since `begin`, however soon another took its place."""
        for name, n in () if self._may_lose else self._supervisor.camera_losses().items():
            if n > self._losses.get(name, n):
                return f"the process of camera '{name.removeprefix('camera/')}' has ended"
        return ""

    def _gone(self, silent_ns: int) -> str:
        """The first camera that gives no pictures."""
        now = time.monotonic_ns()
        for name in () if self._may_lose else self.cameras:
            phase, heard_ns = self._phases.get(name, ("", self._began_ns))
            if phase != "running" or now - heard_ns > silent_ns:
                return f"camera '{name.removeprefix('camera/')}' gives no pictures"
        return ""

    def close(self) -> None:
        self.loader.close()
        if self._world is not None:
            self._world.close()
        self._ears.stop()

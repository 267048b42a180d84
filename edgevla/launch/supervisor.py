"""The supervisor: starts the nodes in order, waits for readiness (never for time), restarts what may be, ends all.

    emulator -> guardian + control loop -> fit -> cameras -> policy (warm) -> start -> watch -> stop

Where the actions come from (a policy, a leader arm, a recording) is its `ActionSource`. It holds nothing of the arm;
it keeps one end of a pipe whose closing tells guardian and loop that it has gone.
`edgevla/` never imports the robot's code: it names modules as strings, and learns the robot from its `describe`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import zmq

from edgevla.arguments import Arguments
from edgevla.cameras import CameraSettings
from edgevla.descriptions import About, AboutCameraNode, AboutEmulator, AboutRobot
from edgevla.errors import BusError, CameraError, EdgeVLAError, UsageError, WireError
from edgevla.execution import execution_to
from edgevla.launch.children import Child, how
from edgevla.launch.deployment import DeployOptions, execution_words
from edgevla.launch.runlog import RunLog
from edgevla.launch.sources import ActionSource
from edgevla.messages import Action, Body, Chunk, Event, Heartbeat, Message, ServoHealth, State
from edgevla.nodes.vitals import AT_ONCE
from edgevla.session import Deployment, new_session, run_dir, tell_guardian, write_deployment
from edgevla.wire import CommandClient, Inbox, endpoint

GUARDIAN, CAMERA = "edgevla.robots.guardian", "edgevla.nodes.camera"
EMULATOR, SIM_CAMERA = "edgevla.robots.emulator.cli", "edgevla.robots.world.sim_camera"
ROBOT_READY_S, CAMERAS_READY_S, EMULATOR_READY_S = 30.0, 20.0, 30.0
STOPPED_S = 40.0
FROZEN = f"frozen; Ctrl-C again releases it, else it is parked and released after {STOPPED_S:g} s"
SILENT_S = 1.0
LOGGED: Sequence[type[Body]] = (State, Chunk, Heartbeat, Event, ServoHealth)
A = TypeVar("A", bound=About)

Say = Callable[[str, str, str], None]
"""(severity, source, sentence) -> shown to the user."""


class Supervisor:
    """One deployment, from nothing to the summary.

    source: where the actions come from; loaded already, so that what cannot run starts no process.
    """

    def __init__(self, options: DeployOptions, source: ActionSource, say: Say) -> None:
        self.options, self.source, self.say = options, source, say
        self.session = new_session()
        self.folder = run_dir(self.session)
        self.ctx = zmq.Context()
        self.children: dict[str, Child] = {}
        self.about_robot: AboutRobot | None = None
        self.log = RunLog(options.log_dir)
        self.failure = ""
        self._cameras: Sequence[CameraSettings] = ()
        self._alive_read, self._alive_write = os.pipe()
        self._inbox: Inbox | None = None
        self._robot_client: CommandClient | None = None
        self._is_asked_to_stop = False
        self._is_over: Callable[[], bool] = lambda: False
        self._n_interrupts = 0
        self._is_running = False
        self._said_at_once: set[str] = set()

    # -- the story ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Everything up to a moving arm. Raises what a person must act on; `close` cleans up."""
        self._note()
        if self.options.is_sim:
            self._start_emulator()
        self._start_robot()
        self._cameras = self.source.fit(self)
        self._listen()
        self._start_cameras()
        latency_ms = self.source.start(self)
        arguments = self.source.start_arguments(self, latency_ms)
        try:
            self._command("start", arguments)
        except WireError as error:
            if self.children["robot"].wait(STOPPED_S):  # the guardian ends when the arm is released
                raise BusError(self._guardian_s_end()) from error
            raise
        self._is_running = True
        self.say(
            "info",
            "deploy",
            f"running {self.source.name} on {self.robot.robot}, "
            f"execution {execution_words(self.source.execution)}",
        )

    @property
    def robot(self) -> AboutRobot:
        """What the robot told of itself; known once it has answered."""
        assert self.about_robot is not None, "the robot was started before"
        return self.about_robot

    def stop_when(self, is_over: Callable[[], bool]) -> None:
        """Another reason for `watch` to return, such as the monitor's end."""
        self._is_over = is_over

    def watch(self) -> None:
        """Until it is over: duration, a stop that was asked for, or the robot node's end."""
        until = None if self.options.duration_s is None else time.monotonic() + self.options.duration_s
        while not (self._is_asked_to_stop or self._is_over()):
            if until is not None and time.monotonic() >= until:
                return
            self._take_messages(0.05)
            guardian = self.children["robot"]
            if not guardian.is_alive:
                self.failure = self._guardian_s_end()
                self._await_rest(guardian)
                return
            if self.log.last_mode == "stopped":
                return
            for child in self.children.values():
                self._revive(child)

    def stop(self) -> None:
        """To rest, release, and the end of the robot's processes; everybody else afterwards."""
        self._is_asked_to_stop = True  # a terminal that closes from here on is no press of Ctrl-C
        guardian = self.children.get("robot")
        if guardian is not None and guardian.is_alive:
            if self.log.last_mode != "stopped":  # a node that stopped by itself may not answer any more
                try:
                    self._command("stop")
                except WireError:
                    pass
                except UsageError:  # an emergency stop is latched; what comes now is as after a second Ctrl-C
                    self.failure = "ended while the emergency stop was latched"
                    self._n_interrupts = max(self._n_interrupts, 2)
                    self.say("stop", "deploy", f"an emergency stop is latched: the arm stays {FROZEN}")
            self._await_rest(guardian)
            self._close_alive()
            if not guardian.wait(STOPPED_S):
                self.say("error", "deploy", "the robot process does not end; ending it")
                guardian.end()
            self._take_messages(0.3)
            if guardian.exit_code and not self.failure:
                self.failure = self._last_words(guardian)

    def summary(self) -> dict[str, Any]:
        counters = dict(self._inbox.counters) if self._inbox else {}
        made = self.log.summary(counters)
        return {
            "robot": self.about_robot and self.about_robot.robot,
            **self.source.about,
            "execution": execution_to(self.source.execution),
            "failure": self.failure or None,
            "was_interrupted": self._n_interrupts > 0,
            **made,
        }

    def close(self) -> dict[str, Any]:
        """Ends all processes, writes the log; the summary."""
        self._is_running = True
        self._close_alive()
        if (guardian := self.children.get("robot")) is not None:
            if not guardian.is_alive:  # the loop, which outlives it, may still hold the arm
                self._await_rest(guardian)
            guardian.wait(STOPPED_S)
            guardian.end()
        for name in reversed(self.children):
            self.children[name].end()
        summary = self.summary()
        self.log.close(summary)
        if self._inbox is not None:
            self._inbox.stop()
        if self._robot_client is not None:
            self._robot_client.close()
        self.ctx.destroy(linger=0)
        os.close(self._alive_read)
        shutil.rmtree(self.folder, ignore_errors=True)
        return summary

    def obey_signals(self) -> None:
        """Every Ctrl-C is a press. SIGTERM, and the SIGHUP of a closed terminal, which comes from the kernel and from
        the shell, ask to stop, however often."""
        signal.signal(signal.SIGINT, lambda *_: self.interrupt())
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: None if self._is_asked_to_stop else self.interrupt())

    def interrupt(self) -> None:
        """Ctrl-C: the first stops in order, the second freezes the arm, the third lets go."""
        self._n_interrupts += 1
        self._is_asked_to_stop = True
        if self._n_interrupts == 1:
            self.say(
                "info",
                "deploy",
                "stopping: the arm moves to rest and is released (Ctrl-C again: emergency stop)",
            )
            return
        words = FROZEN if self._n_interrupts == 2 else "released"
        self.say("stop", "deploy", f"emergency stop: the arm is {words}")
        # A signal interrupts anywhere, also inside a socket's call. The guardian's datagram needs no socket of ours.
        tell_guardian(self.folder)

    # -- start-up, in order ---------------------------------------------------------------------------------------

    def _note(self) -> None:
        nodes = ["robot", "policy", *(f"camera/{name}" for name in self.source.cameras)]
        note = Deployment(
            self.session.hex(), os.getpid(), self.options.robot, self.source.bundle, nodes, self.options.task
        )
        write_deployment(self.folder, note)

    @property
    def place(self) -> list[str]:
        """What tells a child where this deployment's processes meet."""
        return [f"--run-dir={self.folder}", f"--session={self.session.hex()}"]

    def spawn(self, name: str, args: Sequence[str], pass_fds: Sequence[int] = ()) -> Child:
        child = Child(name, args, self._heard)
        self.children[name] = child
        child.start(pass_fds)
        return child

    def _heard(self, source: str, text: str) -> None:
        """What a child says on stderr. While starting, its last sentence becomes the error itself."""
        if text.startswith(AT_ONCE):
            self._said_at_once.add(text.removeprefix(AT_ONCE))
            self.say("warning", source, text.removeprefix(AT_ONCE))
        elif self._is_running:
            self.say("log", source, text.removeprefix(f"{source}: "))

    def _start_emulator(self) -> None:
        args = [
            EMULATOR,
            self.options.robot,
            f"--link={self.folder / 'ports'}/",
            f"--session={self.session.hex()}",
        ]
        args.append(f"--seed={self.options.seed}")
        sources = [self.options.cameras.get(name, "sim") for name in self.source.cameras]
        if self.options.sim_task or "sim" in sources:  # a world is for simulated cameras to see
            args.append(f"--world={self.options.sim_task or 'rest'}")
        if self.options.sim_trace is not None:
            args.append(f"--trace={self.options.sim_trace}")
        self.spawn("emulator", args)
        self.await_ready("emulator", "emulator", AboutEmulator, EMULATOR_READY_S, BusError)

    def _ports(self) -> Sequence[str]:
        return [str(self.folder / "ports")] if self.options.is_sim else self.options.ports

    def _start_robot(self) -> None:
        o = self.options
        args = [GUARDIAN, f"--robot={o.robot}", *self.place]
        args += [f"--alive-fd={self._alive_read}", *(f"--port={text}" for text in self._ports())]
        if o.is_sim:
            args.append("--calibration=nominal")
        elif o.calibration:
            args.append(f"--calibration={o.calibration}")
        self.spawn("robot", args, [self._alive_read])
        robot = self.about_robot = self.await_ready("robot", "robot", AboutRobot, ROBOT_READY_S, BusError)
        ports = ", ".join(f"{bus.name} {bus.port}" for bus in robot.buses)
        self.say("info", "deploy", f"robot {robot.robot} answers: {len(robot.joints)} joints, {ports}")
        for sentence in robot.warnings:
            if sentence not in self._said_at_once:
                self.say("warning", "robot", sentence)

    def _start_cameras(self) -> None:
        for is_sim in (True, False):
            chosen = [c for c in self._cameras if (c.source == "sim") is is_sim]
            if not chosen:
                continue
            name = "sim_camera" if is_sim else "camera"
            args = [SIM_CAMERA if is_sim else CAMERA, "--session", self.session.hex()]
            args += ["--world", endpoint(self.folder, "emulator")] if is_sim else []
            args += [part for c in chosen for part in ("--camera", c.to_json())]
            self.spawn(name, args)
            for camera in chosen:
                self.await_ready(name, f"camera/{camera.name}", AboutCameraNode, CAMERAS_READY_S, CameraError)

    def await_ready(
        self, child_name: str, node: str, cls: type[A], limit_s: float, error: type[EdgeVLAError]
    ) -> A:
        """A node's `describe` once it is ready; its own last sentence when it ends before."""
        child = self.children[child_name]
        client = CommandClient(self.ctx, endpoint(self.folder, node, "commands"), self.session, "supervisor")
        deadline = time.monotonic() + limit_s
        try:
            while True:
                self._take_messages(0.0)
                if not child.is_alive:
                    kind = UsageError if child.exit_code == UsageError.exit_code else error
                    raise kind(_without_prefix(child.last_sentence()))
                if self._is_asked_to_stop:
                    raise KeyboardInterrupt
                with contextlib.suppress(WireError):
                    about = client.describe(cls, 0.3)
                    if about is not None:
                        return about
                    time.sleep(0.02)
                if time.monotonic() > deadline:
                    raise error(f"the {child_name} process was not ready within {limit_s:g} s")
        finally:
            client.close()

    # -- while running ----------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        nodes = ["robot", "policy", *(f"camera/{c.name}" for c in self._cameras)]
        publishers = [endpoint(self.folder, node) for node in nodes]
        robot = endpoint(self.folder, "robot")
        ends: dict[type[Body], str] = {
            State: robot,
            ServoHealth: robot,
            Chunk: endpoint(self.folder, "policy"),
        }
        streams = {cls: (ends.get(cls, publishers), 4096) for cls in LOGGED}
        self._inbox = Inbox(self.ctx, streams, self.session)

    def _take_messages(self, wait_s: float) -> None:
        """Feeds the log and shows events."""
        if self._inbox is None:
            time.sleep(wait_s)
            return
        self._inbox.wait(wait_s) if wait_s else None
        messages: list[Message[Body]] = [m for cls in LOGGED for m in self._inbox.drain(cls)]
        for message in messages:
            self.log.take(message)
            if isinstance(message.body, Event):
                self.say(message.body.severity, message.source, message.body.text)
        if wait_s:
            time.sleep(min(wait_s, 0.02))  # a tick's worth at once, not one wake-up per message

    def _revive(self, child: Child) -> None:
        """Cameras and the policy are started again; the robot's processes and the emulator never are."""
        if child.is_alive or child.name == "robot":
            return
        if child.name == "emulator":
            self._say_once(child, "the emulator has ended; the arm's bus is dead")
            return
        self._say_once(child, f"{child.name} ended ({how(child.exit_code)}); starting it again")
        if child.is_due():
            child.start()

    def _say_once(self, child: Child, text: str) -> None:
        if child.told_of_start != child.n_starts:
            child.told_of_start = child.n_starts
            self.say("error", "deploy", text)

    def _command(self, action: Action, arguments: Arguments | None = None) -> None:
        """
        Raises:
            UsageError: the robot refused, with its reason.
        """
        if self._robot_client is None:
            address = endpoint(self.folder, "robot", "commands")
            self._robot_client = CommandClient(self.ctx, address, self.session, "supervisor", self.folder)
        ack = self._robot_client.request(action, arguments, timeout_s=5.0)
        if not ack.is_accepted:
            raise UsageError(f"the robot refused '{action}': {ack.reason}")

    def _guardian_s_end(self) -> str:
        guardian = self.children["robot"]
        words = self._last_words(guardian)
        if (guardian.exit_code or 0) >= 0:
            return words
        reason = f": {self.log.last_stop}" if self.log.last_stop else ""
        return f"the guardian ended with {how(guardian.exit_code)}{reason}"

    def _last_words(self, guardian: Child) -> str:
        """Why the robot's processes ended: the loop's own reason, else what the guardian said."""
        self._take_messages(0.3)
        own = [text for text in guardian.sentences if text.startswith("guardian: ")]
        return self.log.last_stop or _without_prefix((own or [*guardian.sentences, "it did not say why"])[0])

    def _await_rest(self, guardian: Child) -> None:
        """Until the arm is released, or nobody is left who could: the loop outlives a killed guardian, and is heard."""
        deadline = time.monotonic() + STOPPED_S
        while time.monotonic() < deadline and not self.log.is_released:
            self._take_messages(0.05)
            if not guardian.is_alive and time.monotonic() - self.log.heard_of_robot > SILENT_S:
                return
        if not self.log.is_released:
            self.say(
                "warning",
                "deploy",
                f"nobody released the arm for {STOPPED_S:g} s; it is parked and released now",
            )

    def _close_alive(self) -> None:
        if self._alive_write >= 0:
            os.close(self._alive_write)
            self._alive_write = -1


def _without_prefix(sentence: str) -> str:
    """`robot: ...` as the node printed it, without the name that is said anyway."""
    head, _, tail = sentence.partition(": ")
    return tail if tail and " " not in head else sentence

"""The supervisor: starts the nodes in order, waits for readiness (never for time), restarts what may be, ends all.

    engines -> emulator -> guardian + control loop -> fit -> cameras, policy -> start -> watch -> stop

Where the actions come from (a policy, a leader arm, a recording) is its `ActionSource`. It holds nothing of the arm;
it keeps one end of a pipe whose closing tells guardian and loop that it has gone. Whatever fails in it, `end` is walked
step by step, and each step whether the one before went well or not.
`edgevla/` never imports the robot's code: it names modules as strings (`processes.py`), and the robot tells of itself.
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import zmq

from edgevla.arguments import Arguments, Start
from edgevla.cameras import CameraSettings
from edgevla.descriptions import About, AboutCameraNode, AboutEmulator, AboutRobot
from edgevla.engines.ahead import NotWaited, Seldom, nobody_builds
from edgevla.errors import BusError, CameraError, EdgeVLAError, UsageError, WireError
from edgevla.execution import execution_to
from edgevla.flight.moments import is_saving
from edgevla.flight.witness import LINK
from edgevla.launch.asked import LED_SHADOW, NOT_ON, SHADOW, TO_REST, UNTOUCHED, StopSignals
from edgevla.launch.board_watch import BoardWatch
from edgevla.launch.children import Child, how, without_prefix
from edgevla.launch.deployment import DeployOptions, execution_words, speed_caps
from edgevla.launch.processes import camera_args, camera_child, emulator_args, guardian_args
from edgevla.launch.recorded import check_recorded
from edgevla.launch.runlog import RunLog, open_log
from edgevla.launch.sources import ActionSource
from edgevla.messages import Action, Chunk, Event, Heartbeat, Message, MessageBody, ServoHealth, State
from edgevla.nodes.vitals import AT_ONCE
from edgevla.session import (
    Deployment,
    announce,
    began,
    deployments,
    new_session,
    note_cameras_open,
    remove_run_dir,
    run_dir,
    tell_guardian,
    write_deployment,
)
from edgevla.wire import CommandClient, Inbox, endpoint

ROBOT_READY_S, CAMERAS_READY_S, EMULATOR_READY_S = 30.0, 20.0, 30.0
STOPPED_S = 40.0
FROZEN = f"frozen; Ctrl-C again releases it, else it is parked and released after {STOPPED_S:g} s"
SILENT_S = 1.0
SAVED_WITHIN_S = 60.0
LOGGED: Sequence[type[MessageBody]] = (State, Chunk, Heartbeat, Event, ServoHealth)
A = TypeVar("A", bound=About)

Say = Callable[[str, str, str], None]
"""(severity, source, sentence) -> shown to the user."""


class AskedToStop(Exception):
    """Somebody asked for the end before the arm was switched on."""


class Supervisor:
    """One deployment, from nothing to the summary.

    source: where the actions come from; loaded already, so that what cannot run starts no process.
    """

    def __init__(self, options: DeployOptions, source: ActionSource, say: Say) -> None:
        self.options, self.source, self.say = options, source, say
        self.session = new_session()
        self.log = RunLog(open_log(options.log_dir, self.session, self._warn))
        self.asked = StopSignals(self._step, self._say_safely, lambda: self._is_start_sent)
        self.folder = run_dir(self.session)
        self.ctx = zmq.Context()
        self.children: dict[str, Child] = {}
        self.about_robot: AboutRobot | None = None
        self.failure = ""
        self._cameras: Sequence[CameraSettings] = ()
        self._alive_read, self._alive_write = os.pipe()
        self._inbox: Inbox | None = None
        self._robot_client: CommandClient | None = None
        self._is_over: Callable[[], bool] = lambda: False
        self._is_running = False
        self._said_at_once: set[str] = set()
        self._is_start_sent = False
        self._speed_caps: dict[str, str] = {}
        self._board = BoardWatch(self.log, say)

    # -- the story ----------------------------------------------------------------------------------------------

    def prepare(self) -> Start:
        """Everything before torque; what the robot would be told. Raises what a person must act on; `end` cleans up."""
        self._note()
        try:
            self.source.prepare(self)
            with nobody_builds(Seldom(lambda text: self.say("info", "deploy", text)), self.is_over):
                if self.options.is_sim:
                    self._start_emulator()
                self._start_robot()
        except NotWaited:
            raise AskedToStop from None
        self._cameras = self.source.fit(self)
        check_recorded(self.options, self.robot, self._cameras, self.source.fps)
        self._listen()
        self._spawn_cameras()
        self.source.spawn(self)  # loads while the cameras open
        self._await_cameras()
        latency_ms = self.source.ready(self)
        return self.source.start_arguments(self, latency_ms)

    def start(self) -> None:
        """Everything up to a moving arm. Raises as `prepare`, and where the robot refuses; `end` cleans up."""
        arguments = self.prepare()
        self._write_note(execution_words(self.source.execution, arguments.trained_delay))
        if self.asked.by:  # while the last process answered
            raise AskedToStop
        self._is_start_sent = True
        self._speed_caps = speed_caps(self.robot, arguments.trained_speed)
        try:
            self.command("start", arguments)
        except WireError as error:
            if self.children["robot"].wait(STOPPED_S):  # the guardian ends when the arm is released
                raise BusError(self._guardian_s_end()) from error
            raise
        self._is_running = True
        in_thought = SHADOW if self.options.is_untouched else LED_SHADOW
        what = f"{in_thought if self.options.is_shadow else 'running'} {self.source.name} on {self.robot.robot}, "
        what += f"execution {execution_words(self.source.execution, arguments.trained_delay)}"
        self.say("info", "deploy", "the arm has its torque, and holds" if arguments.is_held else what)

    def is_over(self) -> bool:
        return bool(self.asked.by)

    @property
    def robot(self) -> AboutRobot:
        """What the robot told of itself; known once it has answered."""
        assert self.about_robot is not None, "the robot was started before"
        return self.about_robot

    @property
    def cameras(self) -> Sequence[CameraSettings]:
        """Those that were started."""
        return self._cameras

    def camera_losses(self) -> Mapping[str, int]:
        """How often the process of each camera (`camera/NAME`) has ended so far."""
        children = {c.name: self.children[camera_child(c.source == "sim")] for c in self._cameras}
        return {f"camera/{name}": child.n_starts - child.is_alive for name, child in children.items()}

    def stop_when(self, is_over: Callable[[], bool]) -> None:
        """Another reason for `watch` to return, such as the monitor's end."""
        self._is_over = is_over

    def watch(self) -> None:
        """Until it is over: duration, a stop that was asked for, or the robot node's end."""
        until = None if self.options.duration_s is None else time.monotonic() + self.options.duration_s
        while not (self.asked.by or self._is_over()):
            if until is not None and time.monotonic() >= until:
                return
            self._take_messages(0.05)
            self._board.look()
            guardian = self.children["robot"]
            if not guardian.is_alive:
                self.failure = self._guardian_s_end()
                self._await_rest(guardian)
                return
            if self.log.last_mode == "stopped":
                return
            for child in self.children.values():
                self._revive(child)

    # -- the end ------------------------------------------------------------------------------------------------

    def end(self) -> dict[str, Any]:
        """The arm to rest and released, all processes ended, the log closed; the summary.

        Every step is walked, whatever happened before or in the one before: what fails is noted.
        """
        self.asked.is_ending = True  # a terminal that closes from here on is no press of Ctrl-C
        summary: dict[str, Any] = {}
        steps = [self._ask_to_stop, self._await_release, self._end_robot, self._await_saved]
        steps += [self.children[name].end for name in reversed(self.children)]
        steps += [lambda: summary.update(self.summary()), lambda: self.log.close(summary), *self._closings()]
        for step in steps:
            self._surely(step)
        return {"emergency_stops": [], **summary, "failure": self.failure or None}

    def _surely(self, step: Callable[[], Any]) -> None:
        """Once more where it fails; a step that is walked twice does no harm."""
        for _ in range(2):
            try:
                step()
                return
            except BaseException as error:
                self.note_failure(error)

    def note_failure(self, error: BaseException) -> None:
        """The first is the run's; what follows from it is only said. A bug is shown whole."""
        if isinstance(error, KeyboardInterrupt | AskedToStop):
            self.asked.by = self.asked.by or "SIGINT"
            return
        words = str(error) if isinstance(error, EdgeVLAError) else f"{type(error).__name__}: {error}"
        if words == self.failure:
            return
        if not isinstance(error, EdgeVLAError | OSError):
            self._say_safely("log", "deploy", "".join(traceback.format_exception(error)).rstrip())
        if self.failure:
            self._say_safely("error", "deploy", words)
        self.failure = self.failure or words

    def _ask_to_stop(self) -> None:
        """To rest. An emergency stop is obeyed before: then the arm stays where it is."""
        if not (self._is_start_sent and self._guardian_lives()) or self.log.last_mode == "stopped":
            return
        try:
            self.command("stop")
        except WireError:
            pass  # a node that stopped by itself may not answer any more
        except UsageError:  # an emergency stop is latched; what comes now is as after a second Ctrl-C
            self.failure = self.failure or "ended while the emergency stop was latched"
            self.asked.steps.latch()
            self._say_safely("stop", "deploy", f"an emergency stop is latched: the arm stays {FROZEN}")

    def _await_release(self) -> None:
        """Until the arm is released; the loop, which outlives a killed guardian, may still hold it."""
        guardian = self.children.get("robot")
        if guardian is not None and self._is_start_sent and not self.options.is_untouched:
            self._await_rest(guardian)

    def _end_robot(self) -> None:
        """The pipe's closing tells guardian and loop to end, the arm to come to rest where it has not yet."""
        self._is_running = True
        self._close_alive()
        guardian = self.children.get("robot")
        if guardian is None:
            return
        if not guardian.wait(STOPPED_S):
            self._say_safely("error", "deploy", "the robot process does not end; ending it")
            guardian.end()
        self._take_messages(0.3)
        if guardian.exit_code and self._is_start_sent and not self.failure:
            self.failure = self._last_words(guardian)

    def _await_saved(self) -> None:
        """The arm is released: what the policy saw before a fault is given time to reach the disk."""
        policy, files = self.children.get("policy"), self.log.files
        if policy is None or files is None:
            return
        deadline = time.monotonic() + SAVED_WITHIN_S
        while policy.is_alive and is_saving(files.folder) and time.monotonic() < deadline:
            self._take_messages(0.1)

    def summary(self) -> dict[str, Any]:
        """The run in figures and words, as `summary.json` has it."""
        counters = dict(self._inbox.counters) if self._inbox else {}
        if self.asked.steps.step >= 2 and self.log.was_on:
            self.log.emergencies.surely(self.asked.steps.stepped_ns)
        made = self.log.summary(counters)
        return {
            "robot": self.about_robot and self.about_robot.robot,
            **self.source.about,
            "execution": execution_to(self.source.execution),
            "failure": self.failure or None,
            "asked_by": self.asked.by,
            "was_interrupted": self.asked.by in ("SIGINT", "SIGHUP"),
            "was_on": self.log.was_on,
            "speed_caps": self._speed_caps,
            **made,
        }

    def _closings(self) -> list[Callable[[], None]]:
        inbox, client = self._inbox, self._robot_client
        return [
            lambda: inbox.stop() if inbox is not None else None,
            lambda: client.close() if client is not None else None,
            lambda: self.ctx.destroy(linger=0),
            self._close_alive,
            lambda: remove_run_dir(self.folder),
        ]

    def _step(self, step: int) -> None:
        """A step of Ctrl-C, in a signal's handler."""
        if step > 1:
            # A signal interrupts anywhere, also inside a socket's call. The guardian's datagram needs no socket of ours.
            tell_guardian(self.folder)
        if not self._is_start_sent or self.options.is_untouched:
            again = " already" if step > 1 else ""
            self.say("info", "deploy", f"stopping{again}: {UNTOUCHED if self._is_start_sent else NOT_ON}")
        elif step == 1:
            self.say("info", "deploy", f"stopping: {TO_REST} (Ctrl-C again: emergency stop)")
        else:
            self.say("stop", "deploy", f"emergency stop: the arm is {FROZEN if step == 2 else 'released'}")

    def _say_safely(self, severity: str, source: str, text: str) -> None:
        with contextlib.suppress(Exception):
            self.say(severity, source, text)

    def _warn(self, text: str) -> None:
        self._say_safely("warning", "log", text)

    def _guardian_lives(self) -> bool:
        guardian = self.children.get("robot")
        return guardian is not None and guardian.is_alive

    # -- start-up, in order ---------------------------------------------------------------------------------------

    def _note(self) -> None:
        deployments()  # removes what killed ones left behind
        self._write_note()
        announce(self.folder)
        if self.log.files is not None:
            (self.folder / LINK).symlink_to(self.log.files.folder.resolve())

    def _write_note(self, execution: str = "") -> None:
        nodes = ["robot", *self.options.drivers, *(f"camera/{name}" for name in self.source.cameras)]
        me, o, session = os.getpid(), self.options, self.session.hex()
        made = Deployment(session, me, o.robot, self.source.bundle, nodes, o.task, began(me), execution)
        write_deployment(self.folder, made)

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
            self.log.hear("log", source, text.removeprefix(f"{source}: "))
            self.say("log", source, text.removeprefix(f"{source}: "))

    def _start_emulator(self) -> None:
        self.spawn("emulator", emulator_args(self.options, self.source.cameras, self.folder, self.session))
        self.await_ready("emulator", "emulator", AboutEmulator, EMULATOR_READY_S, BusError)

    def _start_robot(self) -> None:
        args = [*guardian_args(self.options, self.folder, self._alive_read), *self.place]
        self.spawn("robot", args, [self._alive_read])
        robot = self.about_robot = self.await_ready("robot", "robot", AboutRobot, ROBOT_READY_S, BusError)
        told = {"is_shadow": True, "is_led": not self.options.is_untouched} if self.options.is_shadow else {}
        self.log.know(robot, {**self.source.about, **told, "execution": execution_to(self.source.execution)})
        ports = ", ".join(f"{bus.name} {bus.port}" for bus in robot.buses)
        self.say("info", "deploy", f"robot {robot.robot} answers: {len(robot.joints)} joints, {ports}")
        for sentence in robot.warnings:
            if sentence not in self._said_at_once:
                self.say("warning", "robot", sentence)

    def _spawn_cameras(self) -> None:
        for is_sim in (True, False):
            if chosen := [c for c in self._cameras if (c.source == "sim") is is_sim]:
                args = camera_args(chosen, is_sim, self.options, self.folder, self.session)
                self.spawn(camera_child(is_sim), args)

    def _await_cameras(self) -> None:
        for camera in self._cameras:
            name, node = camera_child(camera.source == "sim"), f"camera/{camera.name}"
            self.await_ready(name, node, AboutCameraNode, CAMERAS_READY_S, CameraError)
        note_cameras_open(self.folder)

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
                    raise kind(without_prefix(child.last_sentence()))
                if self.asked.by:
                    raise AskedToStop
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
        nodes = ["robot", *self.options.drivers, *(f"camera/{c.name}" for c in self._cameras)]
        publishers = [endpoint(self.folder, node) for node in nodes]
        robot = endpoint(self.folder, "robot")
        ends: dict[type[MessageBody], str] = {
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
        messages: list[Message[MessageBody]] = [m for cls in LOGGED for m in self._inbox.drain(cls)]
        for message in sorted(messages, key=lambda m: m.header.sent_ns):
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
            try:
                child.start()
            except OSError as error:  # no memory, too many processes: perhaps next time
                self.say(
                    "error", "deploy", f"{child.name} could not be started: {error.strerror}; trying again"
                )

    def _say_once(self, child: Child, text: str) -> None:
        if child.told_of_start != child.n_starts:
            child.told_of_start = child.n_starts
            self.log.hear("error", "deploy", text)
            self.say("error", "deploy", text)

    def command(self, action: Action, arguments: Arguments | None = None) -> None:
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
        return self.log.last_stop or without_prefix((own or [*guardian.sentences, "it did not say why"])[0])

    def _await_rest(self, guardian: Child) -> None:
        """Until the arm is released, or nobody is left who could: the loop outlives a killed guardian, and is heard."""
        deadline = time.monotonic() + STOPPED_S
        while time.monotonic() < deadline and not self.log.is_released:
            self._take_messages(0.05)
            if self.log.last_mode == "stopped" and not self.log.was_on:
                return  # nothing was switched on
            if not guardian.is_alive and time.monotonic() - self.log.heard_of_robot > SILENT_S:
                return
        if not self.log.is_released:
            self.say(
                "warning",
                "deploy",
                f"nobody released the arm for {STOPPED_S:g} s; it is parked and released now",
            )

    def _close_alive(self) -> None:
        """Both ends of the pipe; its readers have descriptors of their own."""
        read, self._alive_read = self._alive_read, -1
        write, self._alive_write = self._alive_write, -1
        for fd in (write, read):
            if fd >= 0:
                os.close(fd)

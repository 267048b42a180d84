"""The process around the control loop: descriptors from the guardian, sockets, priorities, and the end.

Started by the guardian, never by hand. Its exit code: 0 ended as asked, 1 with a sentence on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from edgevla.clock import MonotonicClock
from edgevla.errors import EdgeVLAError
from edgevla.messages import Chunk, Infer, Message, MessageBody, Severity
from edgevla.nodes.vitals import (
    END,
    ask_for_real_time,
    freeze_garbage,
    leave_signals_to_the_supervisor,
    tell_at_once,
)
from edgevla.wire import CommandRequest, CommandServer, Dealer, Inbox, Publisher, endpoint

from .arm import Robot
from .bus.port import SerialPort
from .calibration import find_calibration
from .describe import describe
from .links import Driver
from .node import ControlLoop
from .profile import Profile, load_profile


class ZmqLinks:
    """The loop's `Links` over ZeroMQ and pipes."""

    def __init__(
        self,
        folder: Path,
        session: bytes,
        lease_fd: int | None,
        watched: dict[str, int],
        drivers: Sequence[Driver] = ("policy",),
    ) -> None:
        """watched: what it means when a pipe closes -> its descriptor. drivers: whom chunks may be asked of."""
        self._ctx = zmq.Context()
        self._publisher = Publisher(self._ctx, endpoint(folder, "robot"), session, "robot")
        self.server = CommandServer(self._ctx, endpoint(folder, "robot", "commands"), session, "robot")
        self._dealers = {
            name: Dealer(self._ctx, endpoint(folder, name, "infer"), session, "robot") for name in drivers
        }
        self._inbox = Inbox(self._ctx, {Chunk: ([endpoint(folder, name) for name in drivers], 8)}, session)
        self._lease_fd, self._watched = lease_fd, dict(watched)
        self.must_end = False
        for fd in [*watched.values(), *([] if lease_fd is None else [lease_fd])]:
            os.set_blocking(fd, False)

    def requests(self) -> Sequence[CommandRequest]:
        return self.server.poll()

    def signals(self) -> Sequence[str]:
        found = ["terminated"] if self.must_end else []
        self.must_end = False
        for name, fd in list(self._watched.items()):
            try:
                data = os.read(fd, 64)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if data:
                found.append("emergency_stop")
            else:
                del self._watched[name]
                found.append(name)
        return found

    def chunks(self) -> Sequence[Message[Chunk]]:
        return self._inbox.drain(Chunk)

    def ask(self, driver: Driver, request: Infer, payloads: Sequence[np.ndarray], observed_ns: int) -> bool:
        return self._dealers[driver].send(request, payloads, observed_ns) is not None

    def publish(self, body: MessageBody, observed_ns: int | None = None) -> None:
        self._publisher.send(body, (), observed_ns)

    def event(self, severity: Severity, code: str, text: str, **fields: Any) -> None:
        self._publisher.event(severity, code, text, **fields)

    def lease(self, byte: bytes) -> None:
        if self._lease_fd is not None:
            with contextlib.suppress(OSError):  # full: the guardian sleeps; gone: its own pipe tells
                os.write(self._lease_fd, byte)

    def counters(self) -> dict[str, int]:
        dealers = sum((dealer.counters for dealer in self._dealers.values()), Counter[str]())
        return {**self._inbox.counters, **dealers, **self.server.counters}

    def close(self) -> None:
        self._inbox.stop()
        self._publisher.close()
        self.server.close()
        for dealer in self._dealers.values():
            dealer.close()
        self._ctx.term()


def open_robot(
    profile: Profile, port_fds: Sequence[str], calibration: str | None, is_shadow: bool = False
) -> Robot:
    """The connected robot, torque off. port_fds: `BUS=FD=NAME` each. is_shadow: as `Robot`.

    Raises:
        BusError, CalibrationError: with the cure in the sentence.
    """
    bauds = {bus.name: bus.baud for bus in profile.buses}
    ports = {}
    for text in port_fds:
        bus, fd, name = text.split("=", 2)
        ports[bus] = SerialPort(int(fd), name, bauds[bus])
    robot = Robot(
        profile, ports, find_calibration(profile, calibration), say=tell_at_once, is_shadow=is_shadow
    )
    robot.connect()
    return robot


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--robot", required=True)
    parser.add_argument("--joint-units", choices=("degrees", "range100"))
    parser.add_argument("--calibration", help="LeRobot calibration id or file")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--session", required=True)
    parser.add_argument("--port-fd", action="append", default=[])
    parser.add_argument("--lease-fd", type=int)
    parser.add_argument("--guardian-fd", type=int)
    parser.add_argument("--alive-fd", type=int)
    parser.add_argument("--shadow", action="store_true", help="write nothing into the servos")
    parser.add_argument("--has-leader", action="store_true", help="a leader arm may take the policy's place")


def main() -> int:
    parser = argparse.ArgumentParser(prog="edgevla.robots.node_process", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args()
    leave_signals_to_the_supervisor()
    signal.signal(END, signal.SIG_IGN)  # the guardian's
    try:
        return _run(args)
    except EdgeVLAError as error:
        with contextlib.suppress(OSError):
            print(f"robot: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Exception:  # the edge of the process: the guardian stops the arm when we end
        traceback.print_exc()
        return 1


def _run(args: argparse.Namespace) -> int:
    profile = load_profile(args.robot)
    if args.joint_units:
        profile = profile.with_units(args.joint_units)
    watched = {"guardian_gone": args.guardian_fd, "supervisor_gone": args.alive_fd}
    links = ZmqLinks(
        args.run_dir,
        bytes.fromhex(args.session),
        args.lease_fd,
        {name: fd for name, fd in watched.items() if fd is not None},
        ("policy", "leader") if args.has_leader else ("policy",),
    )
    signal.signal(signal.SIGTERM, lambda *_: setattr(links, "must_end", True))
    robot = open_robot(profile, args.port_fd, args.calibration, args.shadow)
    loop = ControlLoop(profile, robot, links, MonotonicClock())
    links.server.about = describe(profile, robot)
    freeze_garbage()
    if refusal := ask_for_real_time():
        loop.remark("no_real_time", refusal)
    try:
        for tick in loop.ticks():
            loop.step(tick)
    finally:
        robot.close()
        links.close()
    return 1 if loop.machine.has_failed else 0


if __name__ == "__main__":
    sys.exit(main())

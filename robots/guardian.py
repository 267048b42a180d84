"""The guardian: a tiny process that opens the serial ports, starts the control loop, and outlives it.

    supervisor --alive pipe--> guardian --descriptors, pipe--> control loop --lease byte per tick--> guardian

While the loop's lease runs (`lease.py`), the guardian touches nothing. When the loop is silent, or dies with torque on,
or does not obey an emergency stop, the guardian kills it and takes the bus: goal := present, then less and less torque,
then release, as the profile's escalation table says. An emergency stop reaches it by a datagram, past everything else.
What it does stands in the run directory (`session.GuardianStatus`): it owns the torque, so it says what is true of it.
No numpy here, so that it starts fast, stays small, and has little that can fail.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from edgevla.errors import EdgeVLAError
from edgevla.nodes.vitals import END, leave_signals_to_the_supervisor
from edgevla.session import (
    EMERGENCY_STOP,
    GuardianState,
    GuardianStatus,
    guardian_socket,
    write_guardian_status,
)

from .bus.port import SerialPort
from .lease import TERMINATED_GRACE_S, Lease
from .links import PARKED
from .ports import open_ports
from .profile import Profile, load_profile
from .rescue import Rescue, unconfirmed

TOOK_OVER = 3


def say(sentence: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be left to read it
        print(f"guardian: {sentence}", file=sys.stderr, flush=True)


class Guardian:
    """The ports, the loop, and the rule for when the loop fails."""

    now_s = staticmethod(time.monotonic)

    def __init__(self, profile: Profile, ports: dict[str, SerialPort], run_dir: Path, alive_fd: int | None):
        self.is_shadow = False  # whether the arm is never touched, whatever happens
        self.profile, self.ports, self.run_dir, self.alive_fd = profile, ports, run_dir, alive_fd
        self.poll_s = min(0.02, profile.escalation.lease_ms / 4000)
        self.lease = Lease(profile.escalation.lease_ms / 1000, 2 * self.poll_s, self.now_s())
        path = guardian_socket(run_dir)
        path.unlink(missing_ok=True)
        self.stop_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.stop_socket.setblocking(False)
        self.stop_socket.bind(str(path))
        self.note("watching")

    def note(self, state: GuardianState, why: str = "", unreached: Sequence[str] = ()) -> None:
        status = GuardianStatus(state, os.getpid(), time.monotonic_ns(), why, list(unreached))
        write_guardian_status(self.run_dir, status)

    def run(self, loop_args: list[str]) -> int:
        lease_read, lease_write = os.pipe()
        loop_read, self.to_loop = os.pipe()
        fds = [lease_write, loop_read, *(p.fileno() for p in self.ports.values())]
        fds += [] if self.alive_fd is None else [self.alive_fd]
        args = [sys.executable, "-m", "edgevla.robots.node_process", *loop_args]
        args += [f"--lease-fd={lease_write}", f"--guardian-fd={loop_read}"]
        args += [f"--port-fd={name}={port.fileno()}={port.name}" for name, port in self.ports.items()]
        self.loop = subprocess.Popen(args, pass_fds=fds)
        os.close(lease_write)
        os.close(loop_read)
        if why := self.watch(lease_read):
            self.loop.kill()
            self.loop.wait()
            if self.is_shadow:
                say(f"{why}; the arm is as it was")
                self.note("released", why)
                return TOOK_OVER
            self.take_over(Rescue(self.profile, self.ports), why)
            return TOOK_OVER
        if (code := self.loop.wait()) < 0:
            say(f"the control loop ended ({how(code)}) while torque was off")
        self.note("parked" if self.lease.last == PARKED else "released")
        return code if code >= 0 else 1

    def watch(self, lease_fd: int) -> str:
        """Until the loop has ended by itself (empty), or why the guardian must act."""
        lease, sources = self.lease, [lease_fd, self.stop_socket.fileno()]
        sources += [] if self.alive_fd is None else [self.alive_fd]
        while True:
            ready, _, _ = select.select(sources, [], [], self.poll_s)
            now = self.now_s()
            lease.turn(now)
            if lease_fd in ready:
                if not (data := os.read(lease_fd, 4096)):
                    code = self.loop.wait()
                    return "" if lease.is_at_rest else f"the control loop ended ({how(code)})"
                lease.heard(data)
            if self.stop_socket.fileno() in ready and self.is_pressed():
                with contextlib.suppress(OSError):
                    os.write(self.to_loop, b"e")
            if self.alive_fd in ready and not os.read(self.alive_fd or 0, 64):
                sources.remove(self.alive_fd or 0)
                lease.must_end(now)
            if lease.wants_end(now) and self.to_loop >= 0:  # the loop holds, lowers and ends
                os.close(self.to_loop)
                self.to_loop = -1
            if why := lease.why(now):
                return why

    def is_pressed(self) -> bool:
        """Whether a new emergency stop has come by the socket."""
        with contextlib.suppress(OSError):
            return self.stop_socket.recv(64) == EMERGENCY_STOP and self.lease.press(self.now_s())
        return False

    def take_over(self, rescue: Rescue, why: str) -> None:
        """Freeze, lower, release, by the profile's table; pressed twice, released at once. Says what it did."""
        rule = self.profile.escalation
        then = f"lowered in {rule.hold_ms / 1000:g} s" + (
            ", then released" if rule.release else ", not released"
        )
        is_asked = self.lease.wants_release
        say(
            f"{why}; the arm is "
            + ("let go at once, as was asked" if is_asked else f"held where it is, {then}")
        )
        if not is_asked:
            self.note("held", why)
            rescue.freeze()
            is_asked = self.wait(rule.hold_ms / 1000)
        if not is_asked:
            self.note("parking", why)
            is_asked = rescue.lower(self.wait)
        if rule.release or is_asked:
            unreached = rescue.release()
            self.note("released", why, unreached)
            off = "torque is off, at the second emergency stop" if is_asked else "torque is off"
            say(unconfirmed(unreached) if unreached else off)
        else:
            self.note("parked", why)
        for sentence in rescue.lost.values():
            say(sentence)

    def wait(self, seconds: float) -> bool:
        """Whether a person asked for release meanwhile."""
        until = self.now_s() + seconds
        while not self.lease.wants_release and (left := until - self.now_s()) > 0:
            if select.select([self.stop_socket], [], [], left)[0]:
                self.is_pressed()
        return self.lease.wants_release


def how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="edgevla.robots.guardian", description=__doc__)
    parser.add_argument("--robot", required=True)
    parser.add_argument("--run-dir", required=True, type=Path)
    parser.add_argument("--port", action="append", default=[], metavar="[BUS=]PATH")
    parser.add_argument("--alive-fd", type=int)
    parser.add_argument("--shadow", action="store_true", help="as `edgevla deploy` has it")
    args, rest = parser.parse_known_args()
    leave_signals_to_the_supervisor()
    try:
        profile = load_profile(args.robot)
        guardian = Guardian(profile, open_ports(profile, args.port), args.run_dir, args.alive_fd)
    except EdgeVLAError as error:
        say(str(error))
        return error.exit_code
    guardian.is_shadow = args.shadow
    grace_s = TERMINATED_GRACE_S if args.alive_fd is not None else 0.0
    signal.signal(signal.SIGTERM, lambda *_: guardian.lease.terminate(guardian.now_s() + grace_s))
    signal.signal(END, lambda *_: guardian.lease.must_end(guardian.now_s()))
    loop_args = [f"--robot={args.robot}", f"--run-dir={args.run_dir}", *rest]
    loop_args += [] if args.alive_fd is None else [f"--alive-fd={args.alive_fd}"]
    loop_args += ["--shadow"] if args.shadow else []
    return guardian.run(loop_args)


if __name__ == "__main__":
    sys.exit(main())

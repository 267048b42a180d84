"""The guardian: a tiny process that opens the serial ports, starts the control loop, and outlives it.

    supervisor --alive pipe--> guardian --descriptors, pipe--> control loop --lease byte per tick--> guardian

While the loop's lease runs, the guardian touches nothing. When the loop is silent for `lease_ms`, or dies with torque
on, or does not obey an emergency stop, the guardian kills it and takes the bus: goal := present, later the reduced
torque limit, later release, as the profile's escalation table says. An emergency stop reaches it past everything else,
by a datagram. No numpy here, so that it starts fast, stays small, and has little that can fail.
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
from pathlib import Path

from edgevla.errors import EdgeVLAError
from edgevla.nodes.vitals import END
from edgevla.session import EMERGENCY_STOP, guardian_socket

from .bus.port import SerialPort
from .links import RELEASED, RUNNING, STOPPING
from .ports import open_ports
from .profile import Profile, load_profile
from .rescue import Rescue, unconfirmed

STOPPING_LEASE_S = 2.0
"""A loop that switches torque talks to servos one by one, some of them perhaps gone: its ticks may be long."""
OBEY_S = 0.3
END_S = 60.0
TOOK_OVER = 3


def say(sentence: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be left to read it
        print(f"guardian: {sentence}", file=sys.stderr, flush=True)


class Guardian:
    """The ports, the loop, and the rule for when the loop fails."""

    def __init__(
        self, profile: Profile, ports: dict[str, SerialPort], run_dir: Path, alive_fd: int | None
    ) -> None:
        self.profile, self.ports, self.alive_fd = profile, ports, alive_fd
        self.rule = profile.escalation
        self.must_end = False
        self.n_presses = 0
        path = guardian_socket(run_dir)
        path.unlink(missing_ok=True)
        self.stop_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.stop_socket.setblocking(False)
        self.stop_socket.bind(str(path))

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
        why, is_released = self.watch(lease_read)
        if why == "":
            if (code := self.loop.wait()) < 0:
                say(f"the control loop ended ({_how(code)}) while torque was off")
            return code if code >= 0 else 1
        self.loop.kill()
        self.loop.wait()
        self.take_over(why, is_released)
        return TOOK_OVER

    def watch(self, lease: int) -> tuple[str, bool]:
        """Until the loop has ended. Why the guardian must act (empty: it need not), and whether to release at once."""
        last, silent_s, obey_by, end_by = RELEASED, 0.0, float("inf"), float("inf")
        poll_s = min(0.02, self.rule.lease_ms / 4000)
        turned = time.monotonic()
        sources: list[int | socket.socket] = [lease, self.stop_socket]
        sources += [] if self.alive_fd is None else [self.alive_fd]
        while True:
            ready, _, _ = select.select(sources, [], [], poll_s)
            now = time.monotonic()
            # Time in which this process did not run either says nothing about the loop: the machine was stalled.
            silent_s += min(now - turned, 2 * poll_s)
            turned = now
            if lease in ready:
                bytes_ = os.read(lease, 4096)
                if not bytes_:
                    code = self.loop.wait()
                    return (
                        "" if last == RELEASED else f"the control loop ended ({_how(code)})"
                    ), self.n_presses > 1
                last, silent_s = bytes_[-1:], 0.0
                if (last == STOPPING and self.n_presses < 2) or last == RELEASED:
                    obey_by = float("inf")
                if last == RUNNING and obey_by == float("inf"):
                    self.n_presses = 0
            if self.stop_socket in ready and self.stop_socket.recv(64) == EMERGENCY_STOP:
                self.n_presses += 1
                obey_by = now + (OBEY_S if self.n_presses == 1 else STOPPING_LEASE_S)
                with contextlib.suppress(OSError):
                    os.write(self.to_loop, b"e")
            if self.alive_fd in ready and not os.read(self.alive_fd or 0, 64):
                sources.remove(self.alive_fd or 0)
                end_by = now + END_S  # the loop saw it too: it holds, parks and ends
            if self.must_end and end_by == float("inf"):
                end_by = now + END_S
                os.close(self.to_loop)
            allowed = {RUNNING: self.rule.lease_ms / 1000, STOPPING: STOPPING_LEASE_S}.get(last, float("inf"))
            if silent_s > allowed:
                return f"the control loop was silent for {silent_s * 1000:.0f} ms", self.n_presses > 1
            if now > obey_by and last != RELEASED:
                return "the control loop did not obey the emergency stop", self.n_presses > 1
            if now > end_by:
                return f"the control loop did not end within {END_S:.0f} s", False

    def take_over(self, why: str, is_released: bool) -> None:
        """Freeze, park at reduced torque, release, by the profile's table; a second stop releases at once."""
        rule, rescue = self.rule, Rescue(self.profile, self.ports)
        plan = f"parked at {rule.park_torque:.0%} torque in {rule.hold_ms / 1000:g} s"
        plan += f", released {rule.park_ms / 1000:g} s later" if rule.release else ", not released"
        say(f"{why}; the arm is held where it is, {plan}")
        if not is_released:
            rescue.freeze()
            is_released = self.wait(rule.hold_ms)
        if not is_released:
            rescue.park()
            rescue.freeze()  # where it is now: a push meanwhile is not fought
            is_released = self.wait(rule.park_ms)
        if rule.release or is_released:
            unreached = rescue.release()
            say(unconfirmed(unreached) if unreached else "torque is off")
        for sentence in rescue.lost.values():
            say(sentence)

    def wait(self, ms: int) -> bool:
        """Whether a person asked for release meanwhile."""
        until = time.monotonic() + ms / 1000
        while (left := until - time.monotonic()) > 0:
            if (
                select.select([self.stop_socket], [], [], left)[0]
                and self.stop_socket.recv(64) == EMERGENCY_STOP
            ):
                self.n_presses += 1
                if self.n_presses > 1:
                    return True
        return False


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="edgevla.robots.guardian", description=__doc__)
    parser.add_argument("--robot", required=True)
    parser.add_argument("--run-dir", required=True, type=Path)
    parser.add_argument("--port", action="append", default=[], metavar="[BUS=]PATH")
    parser.add_argument("--alive-fd", type=int)
    args, rest = parser.parse_known_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        profile = load_profile(args.robot)
        guardian = Guardian(profile, open_ports(profile, args.port), args.run_dir, args.alive_fd)
    except EdgeVLAError as error:
        say(str(error))
        return error.exit_code
    for number in (signal.SIGTERM, END):
        signal.signal(number, lambda *_: setattr(guardian, "must_end", True))
    loop_args = [f"--robot={args.robot}", f"--run-dir={args.run_dir}", *rest]
    loop_args += [] if args.alive_fd is None else [f"--alive-fd={args.alive_fd}"]
    return guardian.run(loop_args)


if __name__ == "__main__":
    sys.exit(main())

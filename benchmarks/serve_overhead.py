"""What a policy server costs beside its inference: one robot, two 640x480 cameras, over loopback, against a bare echo.

    python benchmarks/serve_overhead.py [--seconds 20] [--out FILE]

A server process and a robot process, by turns with a ZeroMQ ROUTER that answers the same bytes with a chunk's and does
nothing else. Overhead is the way there and back without the inference itself, pictures encoded and decoded. Then 1, 4
and 16 robots that ask without a pause: requests per second, and the time of one. Not part of the tests.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import zmq

from edgevla.descriptions import AboutCamera, AboutJoint, AboutRobot
from edgevla.predictor import Wanted
from edgevla.serve.pictures import RAW, Encoding
from edgevla.serve.remote import RemotePolicy, look_up
from edgevla.serve.transport import Address, as_robot, as_server
from edgevla.types import Observation

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))

from deployment_kit import SO101, make_bundle

CAMERAS, SIZE = ("front", "wrist"), (480, 640)
SERVER, ECHO = "tcp://127.0.0.1:5641", "tcp://127.0.0.1:5642"
HEAD = """# A policy server beside its inference

Written by `python benchmarks/serve_overhead.py` on {machine} (load average {load:.1f} at the end: other work ran, if it
is not small). Two 640x480 pictures and six joints per request, over loopback, robot and server in two processes, by
turns with a bare ZeroMQ echo of the same bytes. Overhead: there and back without the inference.

| way | n | median ms | p99 ms | least ms | robot CPU ms | server CPU ms |
| --- | --- | --- | --- | --- | --- | --- |
"""
ROBOTS = """
Robots that ask without a pause, raw pictures, no batches; all robots are threads of one process:

| robots | requests per second | one request: median ms | p99 ms |
| --- | --- | --- | --- |
"""


def echo() -> None:
    """In a process of its own."""
    socket = zmq.Context().socket(zmq.ROUTER)
    as_server(socket, ECHO, 1 << 24)
    socket.bind(ECHO)
    chunk = bytes(30 * 6 * 4)
    while True:
        peer, *_ = socket.recv_multipart(copy=False)
        socket.send_multipart([peer, b"reply", chunk])


def robot() -> AboutRobot:
    joints = tuple(
        AboutJoint(name, unit, low, high, 90.0, "gripper" in name, None, "mid_range")
        for name, (unit, low, high) in SO101.items()
    )
    seen = tuple(AboutCamera(name, "0", *SIZE, 30.0, False, "exact") for name in CAMERAS)
    return AboutRobot("robot", "so101", joints, seen, 100.0, (), ())


def picture(seed: int) -> np.ndarray:
    """Smooth with some noise, as a camera's; JPEG at 90 takes 30 to 60 kB."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 200, (6, 8, 3)).repeat(80, 0).repeat(80, 1)
    return (coarse + rng.integers(0, 12, coarse.shape)).astype(np.uint8)


class Robot:
    def __init__(self, number: int, encoding: Encoding = RAW) -> None:
        self._ctx = zmq.Context()
        session, servers = f"robot {number:2}".encode(), (Address(SERVER),)
        served = look_up(self._ctx, servers, session, 20.0)
        self.policy = RemotePolicy(self._ctx, servers, served, robot(), session, encoding=encoding)
        images = {f"observation.images.{name}": picture(i) for i, name in enumerate(CAMERAS)}
        self._seen, self._number = Observation(np.zeros(6, np.float32), images), 0

    def ask(self) -> tuple[float, float]:
        """ms of one request, and of it what was no inference."""
        self._number += 1
        wanted = Wanted(time.monotonic_ns() + 10**10)
        began = time.monotonic_ns()
        result = self.policy.infer(
            self._seen, grid_index=0, past={}, n_steps=None, rtc=None, chunk_seq=self._number, wanted=wanted
        )
        spent = time.monotonic_ns() - began
        inside = sum(result.timing_ns[stage] for stage in ("prompt", "encode", "denoise", "decode"))
        return spent / 1e6, (spent - inside) / 1e6

    def close(self) -> None:
        self.policy.close()
        self._ctx.destroy(linger=0)


class Echo:
    def __init__(self) -> None:
        self._ctx = zmq.Context()
        self._socket = self._ctx.socket(zmq.DEALER)
        as_robot(self._socket, Address(ECHO))
        self._socket.connect(ECHO)
        self._parts = [b"request", bytes(600), *(picture(i) for i in range(len(CAMERAS)))]

    def ask(self) -> tuple[float, float]:
        began = time.monotonic_ns()
        self._socket.send_multipart(self._parts, copy=True)
        self._socket.recv_multipart()
        spent = (time.monotonic_ns() - began) / 1e6
        return spent, spent

    def close(self) -> None:
        self._ctx.destroy(linger=0)


def cpu_ms(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return 1000 * (times.user + times.system)


def by_turns(ways: dict[str, tuple[Robot | Echo, int]], seconds: float) -> list[str]:
    """Rows of the table. ways: name -> who asks, and the process that answers."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    own, theirs = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for name, (asker, pid) in ways.items():
            before = cpu_ms(os.getpid()), cpu_ms(pid)
            spent[name] += [asker.ask()[1] for _ in range(20)]
            own[name] += cpu_ms(os.getpid()) - before[0]
            theirs[name] += cpu_ms(pid) - before[1]
    rows = []
    for name, values in spent.items():
        p50, p99 = np.percentile(values, [50, 99])
        n = len(values)
        figures = f"{p50:.2f} | {p99:.2f} | {min(values):.2f} | {own[name] / n:.2f} | {theirs[name] / n:.2f}"
        rows.append(f"| {name} | {n} | {figures} |\n")
    return rows


def together(n_robots: int, seconds: float) -> str:
    robots = [Robot(i) for i in range(n_robots)]
    spent: list[float] = []
    until = time.monotonic() + seconds

    def run(one: Robot) -> None:
        while time.monotonic() < until:
            spent.append(one.ask()[0])

    threads = [threading.Thread(target=run, args=(one,)) for one in robots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in robots:
        one.close()
    p50, p99 = np.percentile(spent, [50, 99])
    return f"| {n_robots} | {len(spent) / seconds:.0f} | {p50:.1f} | {p99:.1f} |\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "serve_overhead.md")
    args = parser.parse_args()
    echoing = multiprocessing.get_context("spawn").Process(target=echo, daemon=True)
    echoing.start()
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder) / "bundle", cameras=CAMERAS, size=SIZE)
        words = [sys.executable, "-m", "edgevla", "serve", str(bundle), f"--bind={SERVER}", "--threads=1"]
        server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        try:
            asking: dict[str, tuple[Robot | Echo, int]] = {
                "echo": (Echo(), echoing.pid or 0),
                "raw": (Robot(0), server.pid),
                "jpeg:90": (Robot(1, Encoding("jpeg", 90)), server.pid),
            }
            rows = by_turns(asking, args.seconds)
            for one, _ in asking.values():
                one.close()
            many = [together(n, args.seconds / 4) for n in (1, 4, 16)]
        finally:
            server.terminate()
            server.wait(20)
            echoing.kill()
    machine = f"{os.cpu_count()} cores {platform.machine()}"
    text = HEAD.format(machine=machine, load=os.getloadavg()[0]) + "".join(rows) + ROBOTS + "".join(many)
    args.out.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a policy server costs beside its inference: one robot, two 640x480 cameras, over loopback, against a bare echo.

    python benchmarks/serve_overhead.py [--seconds 20] [--lerobot LEROBOT/bin/python] [--out FILE]

A server process and a robot process, by turns with a ZeroMQ ROUTER that answers the same bytes with a chunk's and does
nothing else, and with LeRobot's asynchronous server where an environment with `lerobot[async]==0.4.4` is named. Overhead
is the way there and back without the inference itself, pictures encoded and decoded. Then 1, 4 and 16 robots that ask
without a pause: requests per second, and the time of one. Not part of the tests.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

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
turns with a bare ZeroMQ echo of the same bytes. Overhead: there and back without the inference.{lerobot}

| way | n | median ms | p99 ms | least ms | robot CPU ms | server CPU ms |
| --- | --- | --- | --- | --- | --- | --- |
"""
LEROBOT = """ LeRobot's
asynchronous server 0.4.4, a chunk of zeros in place of its network: first without what it does between a request's
arrival and its answer, then with it (pictures to floats, normalising, denormalising; ours does that in its graphs)."""
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
    def __init__(self, number: int, server: int, encoding: Encoding = RAW) -> None:
        self.pids = os.getpid(), server
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
    def __init__(self, server: int) -> None:
        self.pids = os.getpid(), server
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


class LeRobot:
    """Both its processes, in an environment of its own."""

    def __init__(self, python: str) -> None:
        script = str(Path(__file__).with_name("lerobot_async.py"))
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
            "OMP_NUM_THREADS": "1"
        }
        self._process = subprocess.Popen(
            [python, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env,
        )
        told = self._read()
        self.pids = told["robot"], told["server"]

    def ask(self) -> tuple[float, float]:
        assert self._process.stdin is not None
        self._process.stdin.write("1\n")
        self._process.stdin.flush()
        told = self._read()
        return told["all"][0], told["all"][0] - told["inside"][0]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("LeRobot's side has ended; run benchmarks/lerobot_async.py by hand to see why")
        return dict(json.loads(line))

    def close(self) -> None:
        self._process.communicate()


def cpu_ms(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return 1000 * (times.user + times.system)


def by_turns(ways: dict[str, Robot | Echo | LeRobot], seconds: float) -> list[str]:
    """Rows of the table. ways: name -> who asks."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    own, theirs = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for name, asker in ways.items():
            robot, server = asker.pids
            before = cpu_ms(robot), cpu_ms(server)
            spent[name] += [asker.ask() for _ in range(20)]
            own[name] += cpu_ms(robot) - before[0]
            theirs[name] += cpu_ms(server) - before[1]
    rows = []
    for name, pairs in spent.items():
        n = len(pairs)
        cpu = f"{own[name] / n:.2f} | {theirs[name] / n:.2f}"
        rows.append(row(name, [overhead for _, overhead in pairs], cpu))
        if isinstance(ways[name], LeRobot):
            rows.append(
                row(f"{name}, with its own work", [whole for whole, _ in pairs], "as above | as above")
            )
    return rows


def row(name: str, values: list[float], cpu: str) -> str:
    p50, p99 = np.percentile(values, [50, 99])
    return f"| {name} | {len(values)} | {p50:.2f} | {p99:.2f} | {min(values):.2f} | {cpu} |\n"


def together(n_robots: int, seconds: float, server: int) -> str:
    robots = [Robot(i, server) for i in range(n_robots)]
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
    parser.add_argument("--lerobot", metavar="PYTHON", help="of an environment with lerobot[async]==0.4.4")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "serve_overhead.md")
    args = parser.parse_args()
    echoing = multiprocessing.get_context("spawn").Process(target=echo, daemon=True)
    echoing.start()
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder) / "bundle", cameras=CAMERAS, size=SIZE)
        words = [sys.executable, "-m", "edgevla", "serve", str(bundle), f"--bind={SERVER}", "--threads=1"]
        server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        try:
            asking: dict[str, Robot | Echo | LeRobot] = {
                "echo": Echo(echoing.pid or 0),
                "raw": Robot(0, server.pid),
                "jpeg:90": Robot(1, server.pid, Encoding("jpeg", 90)),
            }
            if args.lerobot:
                asking["LeRobot 0.4.4"] = LeRobot(args.lerobot)
            rows = by_turns(asking, args.seconds)
            for one in asking.values():
                one.close()
            many = [together(n, args.seconds / 4, server.pid) for n in (1, 4, 16)]
        finally:
            server.terminate()
            server.wait(20)
            echoing.kill()
    machine = f"{os.cpu_count()} cores {platform.machine()}"
    lerobot = LEROBOT if args.lerobot else ""
    text = (
        HEAD.format(machine=machine, load=os.getloadavg()[0], lerobot=lerobot)
        + "".join(rows)
        + ROBOTS
        + "".join(many)
    )
    args.out.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A policy server under attack: what it costs a robot, and whether the server's memory stays flat.

    python benchmarks/serve_hostile.py [--messages 100000] [--handshakes 2000] [--out FILE]

A server process that serves paired robots only; one robot asks as fast as it can throughout. By turns: nobody attacks; a
paired robot sends hostile messages (malformed, cut, replayed, of other types, too large, of a session that never
joined); strangers without a pairing try the handshake again and again; strangers open connections, say nothing or
rubbish. Written down are the robot's times, the server's memory, and what the server counted. Not part of the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import zmq

from edgevla.serve.keys import KeyPair
from edgevla.serve.paired import keep
from edgevla.serve.transport import Address, as_robot

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "serve"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))

from deployment_kit import SO101, make_bundle
from serve_kit import Arm, free_port, robot
from stranger_kit import Stranger, hostile, sound_request

from edgevla.types import Observation

HEAD = """# A policy server under attack

Written by `python benchmarks/serve_hostile.py --messages {messages} --handshakes {handshakes}` on
{machine}, {cores} cores, load average {load:.1f} at the end (attackers, robot and server share the machine). A server of
paired robots only; one robot asks without a pause, one picture of 64x48, all the time. Memory: of the server's process
(RSS). A part that is too large ends the connection, and what was under way on it is not counted.

| attack | attacks | seconds | robot: answers | median ms | p99 ms | worst ms | server MB before | after |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Place:
    """What an attacker knows. own: the keys of a paired robot."""

    endpoint: str
    server_key: str
    own: KeyPair
    sha256: str


def new_keys() -> KeyPair:
    return KeyPair(*(key.decode() for key in zmq.curve_keypair()))


# -- attackers, each in a process of its own ---------------------------------------------------------------------


class _Served:
    """What `stranger_kit` wants to know of a server."""

    def __init__(self, sha256: str) -> None:
        self.policies = [argparse.Namespace(sha256=sha256)]


def messages(place: Place, n: int) -> None:
    guest = Stranger(place.endpoint, b"stranger", Address(place.endpoint, "", place.server_key, place.own))
    sound, rng = sound_request(guest, _Served(place.sha256)), np.random.default_rng(0)
    for number in range(n):
        if (
            number % 10_000 == 9_999
        ):  # ends the connection, with what is under way; the next one is made by itself
            guest.throw([sound[0], bytes(1 << 20)])
        else:
            guest.throw(hostile(rng, sound) if number % 10 else sound)
        guest.dealer.poll()
    guest.close()


def handshakes(place: Place, n: int) -> None:
    """Of a stranger who knows the server's public key."""
    ctx = zmq.Context()
    for _ in range(n):
        made = ctx.socket(zmq.DEALER)
        as_robot(made, Address(place.endpoint, "", place.server_key, new_keys()))
        monitor = made.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED)
        made.connect(place.endpoint)
        monitor.poll(5000)
        made.disable_monitor()
        monitor.close(linger=0)
        made.close(linger=0)
    ctx.destroy(linger=0)


def connections(place: Place, n: int) -> None:
    host, port = place.endpoint.removeprefix("tcp://").rsplit(":", 1)
    rng, held = np.random.default_rng(1), []
    for number in range(n):
        with contextlib.suppress(OSError):
            held.append(socket.create_connection((host, int(port)), 5))
            if number % 3:
                held[-1].sendall(rng.bytes(int(rng.integers(1, 400))))
        if len(held) > 400:
            held.pop(0).close()
    for one in held:
        one.close()


# -- the robot ---------------------------------------------------------------------------------------------------


def ask(arm: Arm, seen: Observation, is_over: Callable[[], bool]) -> list[float]:
    """ms of each answer. A request that got none in five seconds ends the benchmark with its error."""
    spent: list[float] = []
    while not is_over():
        began = time.perf_counter()
        arm.ask(seen, len(spent), budget_s=5.0)
        spent.append((time.perf_counter() - began) * 1000)
    return spent


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Process, endpoint, page of figures."""
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    words = [sys.executable, "-m", "edgevla", "serve", f"arm={folder}", f"--bind={endpoint}", "--paired"]
    made = subprocess.Popen([*words, "--threads=1", "--metrics=0"], stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    page = ""
    for line in made.stdout:
        page = found[0] if (found := re.search(r"http://\S+", line)) else page
        if "paired robots alone" in line:
            break
    try:
        yield made, endpoint, page
    finally:
        made.terminate()
        made.communicate(timeout=30)


def row(name: str, n: int, spent: list[float], seconds: float, before: int, after: int) -> str:
    middle, late = np.percentile(spent, [50, 99])
    return (f"| {name} | {n} | {seconds:.1f} | {len(spent)} | {middle:.2f} | {late:.2f} | {max(spent):.1f} | "
            f"{before / 1e6:.1f} | {after / 1e6:.1f} |\n")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--handshakes", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EDGEVLA_HOME"] = folder
        print(attacked(args, Path(folder)), end="")


def attacked(args: argparse.Namespace, folder: Path) -> str:
    own, his = new_keys(), new_keys()
    keep("robots", "arm", own.public)
    keep("robots", "broken", his.public)
    bundle = make_bundle(folder / "bundle")
    with server(bundle) as (process, endpoint, page):
        from edgevla.serve.keys import machine_keys

        key = machine_keys().public
        about = robot(size=(48, 64), joints=[name.removesuffix(".pos") for name in SO101])
        arm = Arm(Address(endpoint, "", key, own), about=about)
        place = Place(endpoint, key, his, arm.policy.sha256)
        seen = Observation(
            np.zeros(6, np.float32), {"observation.images.front": np.zeros((48, 64, 3), np.uint8)}
        )
        text = HEAD.format(machine=platform.machine(), cores=os.cpu_count(), load=0.0, **vars(args))
        watched = psutil.Process(process.pid)
        began = time.monotonic()
        spent = ask(arm, seen, lambda: time.monotonic() - began > 5)
        rss = watched.memory_info().rss
        text += row("none", 0, spent, 5, rss, rss)
        for name, what, n in (
            ("hostile messages of a paired robot", messages, args.messages),
            ("handshakes of who is not paired", handshakes, args.handshakes),
            ("connections that say nothing or rubbish", connections, 5 * args.handshakes),
        ):
            before, began = watched.memory_info().rss, time.monotonic()
            attacker = multiprocessing.get_context("spawn").Process(target=what, args=(place, n))
            attacker.start()
            spent = ask(arm, seen, lambda one=attacker: not one.is_alive())
            text += row(name, n, spent, time.monotonic() - began, before, watched.memory_info().rss)
        arm.close()
        with urllib.request.urlopen(page, timeout=5) as answer:
            figures = answer.read().decode()
    kept = [line for line in figures.splitlines() if re.match(r"\w+(refused|failed|closed)_total\{", line)]
    text += "\nWhat the server counted:\n\n" + "".join(f"    {line}\n" for line in kept)
    text = text.replace("average 0.0 at", f"average {os.getloadavg()[0]:.1f} at")
    if args.out is not None:
        args.out.write_text(text)
    return text


if __name__ == "__main__":
    main()

"""What the monitor costs: per cent of a core, and bytes to the terminal, beside a deployment that says a lot.

    python benchmarks/monitor_cost.py [--seconds 20] [--size 120x40 ...] [--state-hz 200] [--cameras 4] [--arms 2]

The deployment is synthetic: two processes with the real sockets, one robot with state at 200 Hz, health at 2 Hz and a
policy's chunks, one with four cameras whose thumbnails (a moving arm before a still table, and a sensor's noise) come
at 5 Hz. The monitor is `edgevla monitor` on a pseudo-terminal; its processor time is the kernel's own count.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import multiprocessing
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import zmq

from edgevla.descriptions import AboutJoint, AboutRobot
from edgevla.messages import Chunk, Heartbeat, Servo, ServoHealth, State, Thumbnail, Timing
from edgevla.session import Deployment, began, endpoint, new_session, run_dir, write_deployment
from edgevla.wire import CommandServer, Publisher

SIZES = ("80x24", "120x40", "200x60")
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
SEVEN = (*JOINTS[:5], "wrist_rotate", "gripper")
SETTLE_S = 3.0


def joint_names(n_arms: int) -> tuple[str, ...]:
    """Six joints of one arm, or seven of each of two."""
    return JOINTS if n_arms == 1 else tuple(f"{side}_{name}" for side in ("left", "right") for name in SEVEN)


def robot(folder: Path, session: bytes, hz: float, names: tuple[str, ...]) -> None:
    """State at `hz`, health at 2 Hz, heartbeats at 5 Hz, a chunk every half second."""
    ctx = zmq.Context()
    server = CommandServer(ctx, endpoint(folder, "robot", "commands"), session, "robot")
    joints = tuple(AboutJoint(f"{name}.pos", "deg", -100.0, 100.0, 90.0, False, None, None) for name in names)
    server.about = AboutRobot("robot", "synthetic", joints, (), hz, (), ())
    publisher = Publisher(ctx, endpoint(folder, "robot"), session, "robot")
    policy = Publisher(ctx, endpoint(folder, "policy"), session, "policy")
    t0, period_ns = time.monotonic_ns(), round(1e9 / hz)
    for tick in range(1 << 40):
        deadline = t0 + tick * period_ns
        time.sleep(max(0, deadline - time.monotonic_ns()) / 1e9)
        publisher.send(state(tick, deadline, t0, hz, len(names)))
        for request in server.poll():
            request.answer(True)
        if tick % round(hz / 5) == 0:
            for node in (publisher, policy):
                counters = {
                    "ticks_running": tick,
                    "chunks_taken": round(2 * tick / hz),
                    "ticks_clipped": tick // 200,
                }
                node.send(Heartbeat(os.getpid(), "running", counters, 60 << 20))
        if tick % round(hz / 2) == 0:
            publisher.send(ServoHealth(tuple(servo(i, name) for i, name in enumerate(names))))
            policy.send(chunk(), [np.zeros((30, len(names)), np.float32)], deadline - 20_000_000)


def state(tick: int, deadline: int, t0: int, hz: float, n: int) -> State:
    """A chunk is used for half a second, from a tenth of a second after it came."""
    position = (60 * np.sin(tick / hz + np.arange(n))).astype(np.float32)
    in_use = (tick / hz - 0.1) * 2
    return State(
        tick=tick,
        deadline_ns=deadline,
        late_ns=max(0, time.monotonic_ns() - deadline),
        t0_ns=t0,
        step_ns=33_333_333,
        mode="running",
        position=position,
        position_age_us=np.zeros(n, np.uint32),
        wanted=position + 1,
        goal=position + 1,
        limited_by=np.zeros(n, np.uint16),
        chunk_seq=int(in_use) if in_use > 0 else None,
        action_index=3 + 15 * (in_use % 1),
        n_actions_left=27 - int(15 * (in_use % 1)),
        reason="",
    )


def servo(i: int, name: str) -> Servo:
    load = float(np.random.default_rng().normal(20, 5))
    return Servo(i + 1, "main", name, 35.0 + i, 7.4, load, None, 0, True, 0, 0, 0)


def chunk() -> Chunk:
    timing = Timing(
        assemble=2_000_000, prompt=0, encode=9_000_000, denoise=0, decode=1_000_000, wait=0, network=0
    )
    return Chunk(0, 0, 33_333_333, 30, "act", "sort the bolts", False, 1, 0, 21_000_000, 0, timing)


def cameras(folder: Path, session: bytes, names: list[str]) -> None:
    """Thumbnails at 5 Hz each, one heartbeat with each."""
    ctx = zmq.Context()
    publishers = [
        Publisher(ctx, endpoint(folder, f"camera/{name}"), session, f"camera/{name}") for name in names
    ]
    table, random = still_life(), np.random.default_rng(0)
    n_frames = 0
    while True:
        n_frames += 6
        for name, publisher in zip(names, publishers, strict=True):
            picture = table.copy()
            where = (int(80 + 50 * np.sin(time.monotonic())), 60)
            cv2.line(picture, (80, 119), where, (40, 120, 220), 9)
            noisy = np.clip(picture + random.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)
            jpeg = np.asarray(cv2.imencode(".jpg", noisy)[1]).reshape(-1)
            publisher.send(Thumbnail(name, 120, 160), [jpeg])
            publisher.send(Heartbeat(os.getpid(), "running", {"frames": n_frames}, 50 << 20))
        time.sleep(0.2)


def still_life() -> np.ndarray:
    """uint8 (120, 160, 3): a table with a gradient of light and a few things on it."""
    y, x = np.mgrid[0:120, 0:160]
    picture = np.stack([90 + x / 3, 80 + y / 2, 70 + (x + y) / 5], -1).astype(np.uint8)
    for i, (cx, cy) in enumerate([(30, 40), (120, 30), (60, 90), (140, 95)]):
        cv2.circle(picture, (cx, cy), 8, (60 * i, 200 - 40 * i, 255 - 60 * i), -1)
    return picture


@contextlib.contextmanager
def deployment(hz: float, n_cameras: int, n_arms: int = 1) -> Iterator[Path]:
    """The run directory of two processes that publish."""
    session = new_session()
    folder = run_dir(session)
    names = [f"cam{i}" for i in range(n_cameras)]
    nodes = ["robot", "policy", *(f"camera/{name}" for name in names)]
    me = os.getpid()
    note = Deployment(
        session.hex(), me, "synthetic", "bundles/sort", nodes, "sort the bolts", began(me), "async"
    )
    write_deployment(folder, note)
    processes = [
        multiprocessing.Process(target=robot, args=(folder, session, hz, joint_names(n_arms)), daemon=True),
        multiprocessing.Process(target=cameras, args=(folder, session, names), daemon=True),
    ]
    for process in processes:
        process.start()
    try:
        yield folder
    finally:
        for process in processes:
            process.kill()
            process.join()
        shutil.rmtree(folder)


def measure(folder: Path, size: str, seconds: float) -> tuple[float, float]:
    """(per cent of a core, kB/s) of a monitor on a terminal of this size, once it has settled."""
    columns, rows = map(int, size.split("x"))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    command = [sys.executable, "-m", "edgevla", "monitor", f"--run-dir={folder}"]
    env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True
    )
    os.close(slave)
    try:
        read_for(master, SETTLE_S)
        kernel = psutil.Process(process.pid)
        before, began = kernel.cpu_times(), time.monotonic()
        n_bytes = read_for(master, seconds)
        after, spent = kernel.cpu_times(), time.monotonic() - began
    finally:
        process.terminate()
        read_for(master, 0.5)
        process.wait()
        os.close(master)
    busy_s = after.user + after.system - before.user - before.system
    return 100 * busy_s / spent, n_bytes / spent / 1000


def read_for(master: int, seconds: float) -> int:
    """Reads what the monitor writes, as a terminal does; the number of bytes."""
    n_bytes, until = 0, time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if select.select([master], [], [], left)[0]:
            try:
                n_bytes += len(os.read(master, 65536))
            except OSError:  # it has ended
                break
    return n_bytes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument(
        "--size", action="append", metavar="COLUMNSxROWS", help=f"default: {', '.join(SIZES)}"
    )
    parser.add_argument("--state-hz", type=float, default=200.0)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--arms", type=int, default=1, choices=(1, 2))
    args = parser.parse_args()
    print(f"{'terminal':<10} {'% of a core':>12} {'kB/s':>8}")
    for size in args.size or SIZES:
        with deployment(args.state_hz, args.cameras, args.arms) as folder:
            per_cent, kb_per_s = measure(folder, size, args.seconds)
        print(f"{size:<10} {per_cent:>12.1f} {kb_per_s:>8.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

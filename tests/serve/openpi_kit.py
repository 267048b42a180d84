"""openpi's protocol from the other side: maps, a server of a few lines in a process of its own, how they are started.

The stub packs by itself, as openpi's own server does, and computes inside its event loop. What it does is said by the
request's prompt. Its policy goes from the state towards TARGET, in radians, its gripper closed at 1 and open at 0.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgpack
import numpy as np

BODY = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
TARGET = [*np.radians([20.0, -10.0, 15.0, -5.0, 0.0]), 0.6]
CHUNK, GAIN = 30, 0.15
PIXELS = (48, 64)

DEPLOY_MAP = f"""
fps = 30
chunk_size = {CHUNK}
n_action_steps = 15
prompt = "prompt"
task = "go on"
[gripper]
closed = 1.0
open = 0.0
[state]
key = "state"
names = {[*BODY, "gripper"]}
units = ["rad", "rad", "rad", "rad", "rad", "gripper"]
zero = "mid_range"
[actions]
names = {[*BODY, "gripper"]}
units = ["rad", "rad", "rad", "rad", "rad", "gripper"]
zero = "mid_range"
speeds = [1.4137, 1.4137, 1.4137, 1.4137, 1.4137, 0.45]
[images.front]
key = ["images", "cam_high"]
layout = "chw"
size = {list(PIXELS)}
"""

SERVE_MAP = """
prompt = "prompt"
unused = [["images", "cam_low"]]
[state]
key = "state"
[images.front]
key = ["images", "cam_high"]
layout = "chw"
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as made:
        return made.getsockname()[1]


class Process:
    """A server that can be killed and started again at its port; it prints a line once it listens."""

    def __init__(self, words):
        self._words = [sys.executable, *words]
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            self._words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines = []
        while not self.lines or "listening" not in self.lines[-1]:
            self.lines.append(self.process.stdout.readline())
            assert self.lines[-1], self.lines

    @property
    def url(self):
        return next(word for word in self.lines[-1].split() if "://" in word).rstrip(",")

    def end(self, number=signal.SIGKILL):
        """Its exit code, and all that it said since it listens."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        said, _ = self.process.communicate(timeout=20)
        return self.process.returncode, said


def stub(port):
    return Process([str(Path(__file__)), str(port)])


def theirs(array):
    """An array as openpi packs it."""
    return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}


def mine(found):
    """An array as openpi unpacks it."""
    if b"__ndarray__" not in found:
        return found
    return np.ndarray(buffer=found[b"data"], dtype=np.dtype(found[b"dtype"]), shape=found[b"shape"])


def _answer(message):
    asked = msgpack.unpackb(message, object_hook=mine)
    assert set(asked) == {"state", "images", "prompt"}
    assert asked["images"]["cam_high"].shape == (3, *PIXELS)
    assert (asked["state"].dtype, asked["state"].shape) == (np.float32, (6,))
    share = 1 - (1 - GAIN) ** np.arange(1, CHUNK + 1)[:, None]
    actions = (asked["state"] + share * (np.array(TARGET) - asked["state"])).astype(np.float64)
    prompt = asked["prompt"]
    if prompt == "nan":
        actions[3, 2] = np.nan
    if prompt == "short":
        actions = actions[:7]
    if prompt == "slow":
        time.sleep(1.5)
    if prompt == "error":
        return "Traceback (most recent call last):\n  File ...\nKeyError: 'cam_left'"
    if prompt == "nothing":
        return msgpack.packb({"policy_timing": {}})
    if prompt == "rubbish":
        return b"\xc1\xff"
    if prompt == "huge":
        shape = [2**40, 2**20]
        return msgpack.packb({"actions": {**theirs(actions), b"shape": shape}})
    return msgpack.packb({"actions": theirs(actions), "server_timing": {"infer_ms": 0.01}})


async def _client(connection):
    await connection.send(msgpack.packb({"reset_pose": [0.0] * 6}))
    async for message in connection:
        reply = _answer(message)
        await connection.send(reply)
        if isinstance(reply, str):
            await connection.close(1011, "Internal server error.")


async def _serve(port):
    from websockets.asyncio.server import serve

    async with serve(_client, "127.0.0.1", port, compression=None, max_size=None):
        print(f"listening at ws://127.0.0.1:{port}", flush=True)
        await asyncio.Future()


if __name__ == "__main__":
    import asyncio

    asyncio.run(_serve(int(sys.argv[1])))

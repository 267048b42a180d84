"""Policy servers and their robots, made small: real sockets on this machine, real bundles of a few nodes."""

import socket
import threading
import time

import numpy as np
import zmq

from edgevla.bundle import load_bundle
from edgevla.clock import NS_PER_S
from edgevla.descriptions import AboutCamera, AboutJoint, AboutRobot
from edgevla.predictor import Wanted
from edgevla.runner import BundlePolicy
from edgevla.serve.authority import Authority
from edgevla.serve.hosted import Hosted
from edgevla.serve.paired import reached_at
from edgevla.serve.pictures import RAW
from edgevla.serve.remote import RemotePolicy, look_up
from edgevla.serve.server import PolicyServer
from edgevla.serve.transport import Address
from edgevla.types import Observation

_FAR = reached_at("0.0.0.0")[-1]
HOST = _FAR if _FAR.count(".") == 3 else "127.0.0.1"
"""An address of this machine that others reach; without a network one that they do not."""
FRONT = "observation.images.front"
STATE = np.array([1, -2, 3, -4, 5, 60], np.float32)
SESSION = b"a robot."
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


def free_port():
    with socket.create_server(("", 0)) as made:
        return made.getsockname()[1]


def robot(*, joints=JOINTS, size=(24, 32), cameras=("front",), unit="deg", servo_hz=100.0, name="so101"):
    """A robot that the hand-made bundles fit, or not."""
    about = tuple(
        AboutJoint(j, "percent" if j == "gripper" else unit, -100, 100, 90, j == "gripper", None, "mid_range")
        for j in joints
    )
    seen = tuple(AboutCamera(c, "0", *size, 30.0, False, "exact") for c in cameras)
    return AboutRobot("robot", name, about, seen, servo_hz, (), ())


def observation(light=255, state=STATE, task=""):
    return Observation(state, {FRONT: np.full((24, 32, 3), light, np.uint8)}, task=task)


def noisy(seed=0, state=STATE, task=""):
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    return Observation(state, {FRONT: pixels}, task=task)


class SlowPolicy(BundlePolicy):
    """One that takes its time. order: the numbers of the requests it served. gate: closed, nothing is inferred alone."""

    def __init__(self, bundle, seconds=0.0):
        super().__init__(bundle)
        self.seconds, self.order, self.began = seconds, [], threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def infer(self, *args, **kwargs):
        self.order.append(kwargs["chunk_seq"])
        self.began.set()
        assert self.gate.wait(30)
        time.sleep(self.seconds)
        return super().infer(*args, **kwargs)


class Serving:
    """A policy server in a thread of its own. `kill` is what SIGKILL does to its sockets.

    host: where it listens. is_paired: it serves robots on the list of $EDGEVLA_HOME only.
    """

    def __init__(self, *folders, port=0, seconds=0.0, host="127.0.0.1", is_paired=False, limit=None):
        self.ctx = zmq.Context()
        self.authority = Authority() if is_paired else None
        if is_paired:
            self.authority.start(self.ctx)
        self.policies = [SlowPolicy(load_bundle(folder), seconds) for folder in folders]
        hosted = [Hosted(f.name, p, limit) for f, p in zip(folders, self.policies, strict=True)]
        self.lines = []
        self.server = PolicyServer(
            self.ctx, f"tcp://{host}:{port}", hosted, note=self._note, authority=self.authority
        )
        self.endpoint = self.server.door.endpoint
        self.port = int(self.endpoint.rpartition(":")[2])
        self._stopping = threading.Event()
        self._drain = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _note(self, kind, **fields):
        self.lines.append((kind, fields))

    def _run(self):
        while not self._stopping.is_set() and not self.server.is_drained:
            self.server.door.socket.poll(2)
            if self._drain.is_set() and not self.server.is_draining:
                self.server.drain()
            self.server.step(time.monotonic_ns())
        self.server.close()

    def shared(self, n):
        """Inferences that n requests shared."""
        labels = {"policy": next(iter(self.server._by_name)), "batch": str(n)}
        return self.server.metrics.value("inferences_total", **labels)

    def outcome(self, name):
        return self.server.metrics.value("requests_total", outcome=name)

    def drain(self):
        self._drain.set()

    def kill(self):
        self._stopping.set()
        self._thread.join(timeout=5)
        if self.authority is not None:
            self.authority.close()
        self.ctx.destroy(linger=0)


class Arm:
    """The robot's end: a remote policy and how it is asked."""

    def __init__(self, *endpoints, session=SESSION, about=None, encoding=RAW, seed=0, patience_s=3.0):
        self.ctx = zmq.Context()
        self.servers = tuple(e if isinstance(e, Address) else Address(e) for e in endpoints)
        try:
            served = look_up(self.ctx, self.servers, session, patience_s)
        except BaseException:
            self.ctx.destroy(linger=0)
            raise
        about = about or robot()
        self.policy = RemotePolicy(
            self.ctx, self.servers, served, about, session, seed=seed, encoding=encoding
        )

    def ask(
        self, seen=None, number=0, *, budget_s=3.0, buffered_s=0.0, grid=0, past=None, n_steps=None, rtc=None
    ):
        wanted = Wanted(time.monotonic_ns() + round(budget_s * NS_PER_S), round(buffered_s * NS_PER_S))
        return self.policy.infer(
            observation() if seen is None else seen,
            grid_index=grid,
            past=past or {},
            n_steps=n_steps,
            rtc=rtc,
            chunk_seq=number,
            wanted=wanted,
        )

    def close(self):
        self.policy.close()
        self.ctx.destroy(linger=0)


def until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)
    return found

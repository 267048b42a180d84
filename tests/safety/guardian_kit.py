"""A guardian's surroundings without processes: its loop, its rescue, and time that passes in `select`."""

import contextlib
import os
import select
import socket
from dataclasses import replace

import pytest

from edgevla.robots import guardian as module
from edgevla.robots.guardian import Guardian
from edgevla.robots.profile import load_profile
from edgevla.session import EMERGENCY_STOP, guardian_socket, read_guardian_status

PROFILE = load_profile("so101")


class Loop:
    """A control loop's process."""

    def __init__(self, code=0):
        self.code, self.did = code, []

    def kill(self):
        self.did.append("kill")

    def wait(self):
        self.did.append("wait")
        return self.code


class Rescue:
    def __init__(self, unreached=(), lost=()):
        self.did, self.unreached, self.lost = [], list(unreached), dict(lost)

    def freeze(self):
        self.did.append("freeze")

    def lower(self, wait):
        self.did.append("lower")
        return wait(0.5)

    def release(self):
        self.did.append("release")
        return self.unreached


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Virtual time: every `select` that finds nothing lets its timeout pass, and then runs what is due."""

    class World:
        def __init__(self):
            self.now, self.due, self.waits, self.open = 100.0, [], [], []
            self.started = None

        def at(self, seconds, deed):
            self.due.append((self.now + seconds, deed))
            self.due.sort(key=lambda item: item[0])

        def select(self, sources, _, __, timeout):
            self.waits.append(timeout)
            assert len(self.waits) < 20_000, "it watches for ever"
            found = real(sources, [], [], 0)
            if not found[0]:
                self.now += timeout
                while self.due and self.due[0][0] <= self.now:
                    self.due.pop(0)[1]()
                found = real(sources, [], [], 0)
            return found

        def guardian(self, alive=False, **changes):
            profile = replace(PROFILE, escalation=replace(PROFILE.escalation, **changes))
            alive_read, self.alive = self.pipe() if alive else (None, None)
            made = Guardian(profile, {}, tmp_path, alive_read)
            self.open.append(made.stop_socket)
            self.lease_read, self.lease_write = self.pipe()
            self.loop_read, made.to_loop = self.pipe()
            made.loop = Loop()
            return made

        def pipe(self):
            ends = os.pipe()
            self.open += ends
            return ends

        def tell(self, data):
            os.write(self.lease_write, data)

        def keep_telling(self, data, seconds, every=0.05):
            for n in range(int(seconds / every)):
                self.at(n * every, lambda: self.tell(data))

        def close(self, fd):
            self.open.remove(fd)
            os.close(fd)

        def press(self, data=EMERGENCY_STOP):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.sendto(data, str(guardian_socket(tmp_path)))

        def heard(self):
            os.set_blocking(self.loop_read, False)
            try:
                return os.read(self.loop_read, 64)
            except BlockingIOError:
                return None

        def status(self):
            return read_guardian_status(tmp_path)

    made = World()
    real = select.select
    monkeypatch.setattr(module.select, "select", made.select)
    monkeypatch.setattr(Guardian, "now_s", staticmethod(lambda: made.now))
    yield made
    for each in made.open:
        if isinstance(each, int):
            with contextlib.suppress(OSError):
                os.close(each)
        else:
            each.close()

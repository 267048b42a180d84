"""Robots on other machines on the page of all deployments: a real policy server tells of them, and is killed."""

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from monitor_kit import Watcher
from rich.cells import cell_len
from test_fleet import line_of, press, wait_for_line

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
from remote_kit import Server
from serve_kit import HOST, Arm, free_port, robot

from edgevla.cli import main
from edgevla.descriptions import AboutRobots, ServedRobot
from edgevla.errors import WireError
from edgevla.monitor.elsewhere import STALE_NS, Far
from edgevla.monitor.fleet_app import IS_FAR, STEERS_NOTHING
from edgevla.monitor.panels.elsewhere import far_words
from edgevla.monitor.panels.fleet import fleet_keys
from edgevla.monitor.rows import OLD
from edgevla.monitor.standing import ALARM
from edgevla.serve.keys import KeyPair, machine_keys
from edgevla.serve.lookout import Lookout, Report
from edgevla.serve.paired import keep, revoke
from edgevla.serve.transport import Address

TOLD = ServedRobot(
    "0", "so101", "kitchen", "arm", "", True, 9e3, 100.0, 4.0, 400.0, 1000.0, 20.0, False, "answered", ""
)  # fmt: skip
ROBOTS = ("kitchen", "lab")


def new_keys():
    return KeyPair(*(key.decode() for key in zmq.curve_keypair()))


class Site:
    """A policy server with keys, the machine of whoever looks, and robots: each with a key of its own."""

    def __init__(self, root, bundle, monkeypatch):
        self._patch, self._homes = monkeypatch, (root / "server", root / "looker")
        self.runtime = Path(tempfile.mkdtemp(prefix="ev-", dir="/tmp"))
        monkeypatch.setenv("EDGEVLA_RUNTIME_DIR", str(self.runtime))
        self._at_server()
        self._key = machine_keys().public
        self._at_looker()
        self.looker = machine_keys()
        keep("servers", "gpu", self._key, HOST)
        self._keys = {name: new_keys() for name in ROBOTS}
        for name, keys in {"looker": self.looker, **self._keys}.items():
            self.pair(name, keys)
        self.server = Server(bundle, free_port(), HOST, self._homes[0])
        self._arms = []

    def _at_server(self):
        self._patch.setenv("EDGEVLA_HOME", str(self._homes[0]))

    def _at_looker(self):
        self._patch.setenv("EDGEVLA_HOME", str(self._homes[1]))

    def pair(self, name, keys):
        self._at_server()
        keep("robots", name, keys.public)
        self._at_looker()

    def revoke(self, name):
        self._at_server()
        revoke(name)
        self._at_looker()

    def robot(self, name, kind="so101"):
        """It asks ten times a second, until it is closed; silent while `asks` is cleared."""
        self._arms.append(Asker(Address(self.server.endpoint, "", self._key, self._keys[name]), name, kind))
        return self._arms[-1]

    def close(self):
        for arm in self._arms:
            arm.close()
        self.server.kill()
        shutil.rmtree(self.runtime, ignore_errors=True)


class Asker:
    """A robot's half of the conversation, in a thread."""

    def __init__(self, address, name, kind):
        self._arm = Arm(address, session=name.ljust(8).encode()[:8], about=robot(name=kind), patience_s=20)
        self.asks, self._is_ending = threading.Event(), threading.Event()
        self.asks.set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        number = 0
        while not self._is_ending.wait(0.1):
            if self.asks.is_set():
                try:
                    self._arm.ask(number=(number := number + 1), budget_s=2.0, buffered_s=0.3)
                except WireError:  # the server is down
                    continue

    def close(self):
        self._is_ending.set()
        self._thread.join()
        self._arm.close()


@pytest.fixture
def site(tmp_path, make_bundle, monkeypatch):
    made = Site(tmp_path, make_bundle("act"), monkeypatch)
    yield made
    made.close()


@pytest.fixture
def page(site):
    """`page(size)`: `edgevla monitor --policy` on a terminal."""
    made = []

    def start(size=(120, 30)):
        made.append(Watcher(["-m", "edgevla", "monitor", f"--policy={site.server.endpoint}"], size))
        made[-1].wait_for("robots at tcp://", 40)
        return made[-1]

    yield start
    for watcher in made:
        watcher.close()


@pytest.mark.realtime
def test_robots_elsewhere_are_lines_that_grow_old_when_their_server_is_lost_and_come_back(site, page):
    kitchen, _ = site.robot("kitchen"), site.robot("lab", "aloha")
    watcher = page()
    for name, kind in (("kitchen", "so101"), ("lab", "aloha")):
        wait_for_line(watcher, name, "SERVED")
        wait_for_line(watcher, name, "300 ms buffered · answered in")
        assert kind in line_of(watcher, name)
        assert " arm " in line_of(watcher, name)
    watcher.wait_for("2 served")
    kitchen.asks.clear()
    wait_for_line(watcher, "kitchen", "QUIET")
    watcher.wait_for("paused, held or stopped; what it does, its own machine's monitor shows")
    kitchen.asks.set()
    wait_for_line(watcher, "kitchen", "SERVED")
    site.server.kill()
    killed = time.monotonic()
    wait_for_line(watcher, "kitchen", "LOST")
    wait_for_line(watcher, "lab", "LOST")
    assert time.monotonic() - killed < 2
    watcher.wait_for("policy server does not answer")
    assert "green" not in watcher.colours
    watcher.wait_until(lambda: " 3 s " in line_of(watcher, "lab"), "its age did not grow")
    site.server.start()
    for name in ("kitchen", "lab"):
        wait_for_line(watcher, name, "SERVED")
    assert "LEFT" not in watcher.screen
    press(watcher, "q")
    assert watcher.wait_for_end() == 0
    watcher.assert_sane()


@pytest.mark.realtime
def test_what_is_no_key_of_theirs_says_so_and_a_server_that_hangs_is_lost_too(site, page):
    site.robot("kitchen")
    watcher = page()
    wait_for_line(watcher, "kitchen", "SERVED")
    press(watcher, "\r")
    watcher.wait_for("only its own machine steers it: ssh -t HOST edgevla monitor")
    press(watcher, "e")
    watcher.wait_for("only its own machine stops it: ssh -t HOST edgevla monitor, or its power switch")
    os.kill(site.server.process.pid, signal.SIGSTOP)
    try:
        wait_for_line(watcher, "kitchen", "LOST")
    finally:
        os.kill(site.server.process.pid, signal.SIGCONT)
    wait_for_line(watcher, "kitchen", "SERVED")


def test_a_machine_that_is_paired_no_more_is_told_so_on_the_page(site, page):
    site.revoke("looker")
    watcher = page()
    watcher.wait_for("does not take this robot: it is not paired there, or not any more; to pair it: edgevla")
    assert "LOST" in watcher.screen
    site.pair("looker", site.looker)
    watcher.wait_for("it serves no robot now; one that joins is shown at once")


def test_whose_key_no_server_has_is_refused_before_there_is_a_screen(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDGEVLA_HOME", str(tmp_path))
    assert main(["monitor", "--policy=tcp://gpu.lab:5599"]) == 2
    assert "this robot is not paired with a server at gpu.lab; pair them first" in capsys.readouterr().err
    assert main(["monitor", "--policy=gpu.lab"]) == 2
    assert "expected tcp://HOST:PORT" in capsys.readouterr().err
    assert main(["monitor", "--policy=tcp://127.0.0.1:1", f"--run-dir={tmp_path}"]) == 2
    assert "leave one of them out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "changes", "report"),
    [
        ("SERVED", {}, {}),
        ("SERVED", {"outcome": ""}, {}),
        ("JOINED", {"asked_ms": None, "outcome": ""}, {}),
        ("WAITING", {"asked_ms": 3e3, "outcome": ""}, {}),
        ("QUIET", {"asked_ms": 3e3}, {}),
        ("LATE", {"outcome": "expired"}, {}),
        ("REFUSED", {"outcome": "unfit", "words": "a state of 5 values"}, {}),
        ("GONE", {"is_connected": False}, {}),
        ("DRAINING", {}, {"about": AboutRobots("serve", True, ())}),
        ("LOST", {"outcome": "expired"}, {"told_ns": 10**10 - STALE_NS - 1}),
        ("LOST", {}, {"why_not": "does not answer"}),
    ],
)  # fmt: skip
def test_only_what_is_of_now_and_answered_is_green(word, changes, report):
    now = 10**10
    made = Report(**({"about": AboutRobots("serve", False, ()), "told_ns": now} | report))
    standing = Far(Address("tcp://gpu:1"), replace(TOLD, **changes), now, made).standing(now)
    assert standing.word == word
    assert ("green" in standing.style) == (word == "SERVED") == standing.is_live
    assert (standing.style == ALARM) == (word == "LOST")
    assert (far_words(Far(Address("tcp://gpu:1"), TOLD, now, made), standing)[0][1] == OLD) == (
        word != "SERVED"
    ), "figures of then look as if they were of now"


def test_what_is_said_below_the_lines_fits_a_small_terminal():
    asked = [
        IS_FAR.format(asks="stops", or_else=", or its power switch"),
        IS_FAR.format(asks="steers", or_else=""),
        STEERS_NOTHING,
    ]
    for said in ("", *asked):
        assert sum(cell_len(text) for text, _ in fleet_keys(said, 80)) <= 80, said


def test_an_address_where_something_else_listens_is_doubted():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        lookout = Lookout(Address(f"tcp://127.0.0.1:{silent.getsockname()[1]}"))
        until = time.monotonic() + 30
        while not lookout.report.why_not and time.monotonic() < until:
            time.sleep(0.05)
        lookout.close()
    assert lookout.report.why_not == "does not answer; does `edgevla serve` run there, at this port?"

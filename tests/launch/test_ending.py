"""Whatever is raised in the supervisor, at whichever line: the arm goes to rest, everybody is ended, a summary is made.

The supervisor is the real one; its children, the robot's answers and what is published are made here, so that hundreds
of runs take seconds. `test_ending_processes.py` does the same with real processes at a few lines.
"""

import contextlib
import os
import select
import sys
import time

import numpy as np
import pytest

from edgevla.descriptions import AboutRobot
from edgevla.launch import supervisor as launched
from edgevla.launch.asked import StopSignals
from edgevla.launch.deployment import DeployOptions
from edgevla.launch.foreground import carry_out
from edgevla.launch.sources import DirectSource
from edgevla.launch.supervisor import Supervisor
from edgevla.messages import Ack, Event, Header, Message, State

FILE = launched.__file__


class World:
    """A robot that obeys, and what became of it."""

    def __init__(self):
        self.commands, self.ended, self.mode = [], set(), "idle"
        self.news, self.alive = [], -1
        self.is_on, self.how = False, ""

    def publish(self, body):
        now = time.monotonic_ns()
        self.news.append(Message(Header(bytes(8), "robot", 0, now, now), body))

    def tick(self):
        none, bits = np.zeros(0, np.float32), np.zeros(0, np.uint16)
        ages = np.zeros(0, np.uint32)
        self.publish(State(1, 1, 0, 0, 2, self.mode, none, ages, None, none, bits, None, 0.0, 0, ""))
        if self.is_on and self.is_left_alone():
            self.release("parked")

    def is_left_alone(self):
        return bool(select.select([self.alive], [], [], 0)[0])

    def release(self, how):
        self.is_on, self.how = False, self.how or how
        self.publish(Event("info", "released", "torque is off", {}))

    def obey(self, action):
        self.commands.append(action)
        if action == "start":
            self.is_on, self.mode = True, "running"
        if action == "stop":
            self.mode = "stopped"
            self.tick()
            if self.is_on:
                self.release("rest")
        return Ack(0, True, "")


@pytest.fixture
def world(monkeypatch, own_runtime):
    made = World()

    class Child:
        def __init__(self, name, args, say):
            self.name, self.sentences, self.n_starts, self.told_of_start = name, [], 1, 0

        def start(self, pass_fds=()):
            if self.name == "robot":
                made.alive = os.dup(pass_fds[0])

        @property
        def is_alive(self):
            return self.name not in made.ended

        @property
        def exit_code(self):
            return None if self.is_alive else 0

        def wait(self, timeout_s):
            if self.name == "robot" and made.is_left_alone():
                made.tick()
                made.ended.add("robot")
            return not self.is_alive

        def end(self):
            made.ended.add(self.name)

    class Client:
        def __init__(self, ctx, address, session, source, folder=None):
            pass

        def describe(self, cls, timeout_s):
            return AboutRobot("robot", "so101", (), (), 120.0, (), ())

        def request(self, action, arguments, timeout_s):
            return made.obey(action)

        def close(self):
            pass

    class Inbox:
        def __init__(self, ctx, streams, session):
            self.counters = {}

        def wait(self, timeout_s):
            made.tick()

        def drain(self, kind):
            found = [m for m in made.news if type(m.body) is kind]
            made.news = [m for m in made.news if type(m.body) is not kind]
            return found

        def stop(self):
            made.ended.add("inbox")

    for name, stand_in in (("Child", Child), ("CommandClient", Client), ("Inbox", Inbox)):
        monkeypatch.setattr(launched, name, stand_in)
    monkeypatch.setattr(launched, "STOPPED_S", 0.5)
    monkeypatch.setattr(launched, "SILENT_S", 0.1)
    monkeypatch.setattr(launched.time, "sleep", lambda _: None)
    yield made
    if made.alive >= 0:
        os.close(made.alive)


class Source(DirectSource):
    def __init__(self):
        super().__init__("a source", 30.0)

    def fit(self, run):
        return []

    def spawn(self, run):
        run.spawn("policy", [])

    def ready(self, run):
        return 1.0

    def start_arguments(self, run, latency_ms):
        return self.direct_arguments(run, 30, latency_ms)


class Trap:
    """Raises at the nth line of the supervisor that is executed after the arm was switched on."""

    def __init__(self, n, error, world):
        self.left, self._error, self._world = n, error, world
        self.where = ""

    def __enter__(self):
        sys.settrace(lambda frame, *_: self._line if frame.f_code.co_filename == FILE else None)

    def __exit__(self, *_):
        sys.settrace(None)

    def _line(self, frame, event, _):
        if event != "line" or self.left < 0 or (not self._world.is_on and "stop" not in self._world.commands):
            return self._line
        self.left -= 1
        if self.left < 0:
            self.where = f"{frame.f_code.co_name}:{frame.f_lineno}"
            raise self._error
        return self._line


def run(world, trap):
    said = []
    made = Supervisor(DeployOptions("so101"), Source(), lambda *words: said.append(words))
    made.asked.obey_signals = lambda: None
    rounds = iter(range(2))
    made.stop_when(lambda: next(rounds, None) is None)
    with trap:
        summary = carry_out(made)
    return made, summary, said


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt, MemoryError])
def test_whichever_line_fails_the_arm_is_released_and_everybody_ended(world, error):
    n, places = 0, set()
    while True:
        for name, value in vars(World()).items():
            setattr(world, name, value)
        trap = Trap(n, error(28, "No space left on device") if error is OSError else error("a bug"), world)
        made, summary, _ = run(world, trap)
        os.close(world.alive)
        world.alive = -1
        if not trap.where:
            break
        places.add(trap.where)
        assert not world.is_on, trap.where
        assert world.how == "rest", trap.where
        assert world.ended >= {"robot", "policy", "inbox"}, trap.where
        if error is KeyboardInterrupt:
            assert made.asked.by == "SIGINT", trap.where
        else:
            assert "No space left" in summary["failure"] or "a bug" in summary["failure"], trap.where
        assert not made.folder.exists() or "_closings" in trap.where or "<lambda>" in trap.where
        n += 1
    assert len(places) > 60, "the end is some lines long"


def test_a_run_in_which_nothing_fails(world):
    _, summary, said = run(world, contextlib.nullcontext())
    assert world.how == "rest"
    assert summary["failure"] is None
    assert summary["was_on"]
    assert [words[0] for words in said if words[0] != "info"] == []


def test_what_cannot_begin_is_an_error_and_nothing_is_left(world, monkeypatch):
    monkeypatch.setattr(Source, "ready", lambda *_: (_ for _ in ()).throw(OSError(2, "no engine")))
    with pytest.raises(OSError, match="no engine"):
        run(world, contextlib.nullcontext())
    assert world.commands == []
    assert world.ended >= {"robot", "inbox"}


@pytest.mark.parametrize("ask", [lambda asked: asked.end("SIGTERM", "asked to terminate"), StopSignals.press])
def test_who_is_asked_to_end_while_the_last_process_answers_does_not_switch_the_arm_on(
    world, monkeypatch, ask
):
    ready = Source.ready

    def asked_meanwhile(self, supervisor):
        ask(supervisor.asked)
        return ready(self, supervisor)

    monkeypatch.setattr(Source, "ready", asked_meanwhile)
    _, summary, said = run(world, contextlib.nullcontext())
    assert world.commands == []
    assert not summary["was_on"]
    assert summary["failure"] is None
    assert any("the arm has not been switched on" in words[2] for words in said)


def test_a_robot_that_refuses_to_start_is_not_waited_for(world, monkeypatch):
    monkeypatch.setattr(launched, "STOPPED_S", 30.0)
    obey = World.obey
    monkeypatch.setattr(
        World, "obey", lambda self, action: Ack(0, False, "no") if action == "start" else obey(self, action)
    )
    began = time.monotonic()
    with pytest.raises(Exception, match="the robot refused 'start': no"):
        run(world, contextlib.nullcontext())
    assert time.monotonic() - began < 10


def test_ctrl_c_before_the_arm_is_on_says_nothing_of_an_arm_that_is_frozen_or_released(monkeypatch):
    said, told = [], []
    monkeypatch.setattr(launched, "tell_guardian", told.append)
    made = Supervisor(DeployOptions("so101"), Source(), lambda *words: said.append(words))
    for step in (1, 2, 3):
        made._step(step)
    already = ("info", "deploy", "stopping already: the arm has not been switched on")
    assert said == [("info", "deploy", "stopping: the arm has not been switched on"), already, already]
    assert told == [made.folder] * 2, "it may be sinking, found with torque on"
    made._closings()[2]()

"""The guardian as a program: what it is given, what it passes on, and which signals it obeys."""

import signal
import sys
from types import SimpleNamespace

import pytest

from edgevla.errors import BusError, UsageError
from edgevla.nodes.vitals import END, ENDS, STOPS
from edgevla.robots import guardian as module
from edgevla.robots.guardian import Guardian, main
from edgevla.robots.links import RUNNING

# -- the program ---------------------------------------------------------------------------------------------


@pytest.fixture
def program(world, tmp_path, monkeypatch):
    """`program(*options)` runs `main`; what it did: signals and the loop's arguments."""
    handlers, given = {}, {}

    def start(*options, opens=lambda profile, texts: {}):
        monkeypatch.setattr(sys, "argv", ["guardian", "--robot=so101", f"--run-dir={tmp_path}", *options])
        monkeypatch.setattr(module.signal, "signal", lambda number, deed: handlers.update({number: deed}))
        monkeypatch.setattr(module, "open_ports", opens)

        def run(self, loop_args):
            given.update(guardian=self, args=loop_args)
            world.open.append(self.stop_socket)
            return 0

        monkeypatch.setattr(Guardian, "run", run)
        return main()

    return SimpleNamespace(start=start, handlers=handlers, given=given)


def test_the_loop_is_given_what_the_guardian_does_not_know(program, tmp_path):
    ports = []
    assert (
        program.start("--port=/dev/x", "--session=ab", opens=lambda p, texts: ports.append(texts) or {}) == 0
    )
    assert ports == [["/dev/x"]]
    assert program.given["args"] == ["--robot=so101", f"--run-dir={tmp_path}", "--session=ab"]
    assert program.given["guardian"].alive_fd is None


def test_a_shadow_is_passed_on_to_the_loop(program):
    program.start("--shadow")
    assert program.given["args"][-1] == "--shadow"
    assert program.given["guardian"].is_shadow
    program.start()
    assert "--shadow" not in program.given["args"]
    assert not program.given["guardian"].is_shadow


@pytest.mark.parametrize("number", sorted((ENDS | STOPS) - {signal.SIGTERM, END}))
def test_nothing_but_sigterm_and_the_supervisor_s_signal_is_heard(program, number):
    """Sent to all processes at once, it would take those away that could take the torque away."""
    program.start()
    assert program.handlers[number] == signal.SIG_IGN


@pytest.mark.parametrize("missing", ["--robot", "--run-dir"])
def test_a_robot_and_a_run_directory_are_needed(monkeypatch, tmp_path, capsys, missing):
    options = [o for o in ("--robot=so101", f"--run-dir={tmp_path}") if not o.startswith(missing)]
    monkeypatch.setattr(sys, "argv", ["guardian", *options])
    with pytest.raises(SystemExit):
        main()
    assert missing in capsys.readouterr().err


@pytest.mark.parametrize("error", [BusError("busy"), UsageError("no such port")])
def test_ports_that_cannot_be_opened_are_an_error_in_words(program, capsys, error):
    def refuse(profile, texts):
        raise error

    assert program.start(opens=refuse) == error.exit_code != 0
    assert capsys.readouterr().err == f"guardian: {error}\n"


def test_a_signal_to_end_is_obeyed_at_once_without_a_supervisor(program, world):
    program.start()
    lease = program.given["guardian"].lease
    lease.heard(RUNNING)
    program.handlers[signal.SIGTERM](15, None)
    assert lease.wants_end(world.now)


def test_a_supervisor_is_given_three_seconds_to_end_in_order(program, world):
    program.start("--alive-fd=9")
    assert program.given["args"][-1] == "--alive-fd=9"
    guardian = program.given["guardian"]
    assert guardian.alive_fd == 9
    guardian.lease.heard(RUNNING)
    program.handlers[signal.SIGTERM](15, None)
    assert not guardian.lease.wants_end(world.now + 2.9)
    assert guardian.lease.wants_end(world.now + 3.0)


def test_the_signal_of_the_supervisor_ends_in_order_at_once(program, world):
    program.start("--alive-fd=9")
    program.handlers[END](END, None)
    assert program.given["guardian"].lease.wants_end(world.now)

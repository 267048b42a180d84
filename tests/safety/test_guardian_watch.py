"""The guardian in this process, on a clock that the test moves: its loop is an object, `select` takes no time."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from guardian_kit import Loop, Rescue

from edgevla.robots import guardian as module
from edgevla.robots.guardian import TOOK_OVER, Guardian, how
from edgevla.robots.lease import OBEY_S
from edgevla.robots.links import PARKED, RELEASED, RUNNING, STOPPING

# -- watching ------------------------------------------------------------------------------------------------


def test_it_begins_by_watching_and_says_so(world):
    made = world.guardian()
    status = world.status()
    assert (status.state, status.pid, status.why, status.unconfirmed) == ("watching", os.getpid(), "", [])
    assert status.since_ns > 0
    assert made.poll_s == 0.02
    assert made.lease._stall_s == 2 * made.poll_s
    assert world.guardian(lease_ms=40).poll_s == 0.01


def test_a_socket_that_was_left_over_is_no_obstacle(world):
    world.guardian()
    world.guardian()


@pytest.mark.parametrize(("lease_ms", "silent_ms"), [(100, 120), (40, 50)])
def test_a_loop_that_falls_silent_is_noticed_within_a_turn_of_its_lease(world, lease_ms, silent_ms):
    made = world.guardian(lease_ms=lease_ms)
    world.keep_telling(RUNNING, 1.0, every=0.02)
    why = made.watch(world.lease_read)
    assert why.startswith("the control loop was silent for")
    assert int(why.split()[-2]) <= silent_ms
    assert set(world.waits) == {made.poll_s}


def test_a_guardian_that_stood_still_blames_nobody(world):
    made = world.guardian()
    world.tell(RUNNING)
    world.at(0.01, lambda: setattr(world, "now", world.now + 5.0))
    world.at(0.01, lambda: world.tell(RELEASED))
    world.at(0.05, lambda: world.close(world.lease_write))
    assert made.watch(world.lease_read) == ""


@pytest.mark.parametrize(
    ("last", "code", "why"),
    [
        (RELEASED, 0, ""),
        (PARKED, 0, ""),
        (RUNNING, -9, "the control loop ended (killed by SIGKILL)"),
        (STOPPING, 3, "the control loop ended (exit code 3)"),
    ],
)
def test_a_loop_that_ends_with_torque_on_is_taken_over(world, last, code, why):
    made = world.guardian()
    made.loop.code = code
    world.tell(last)
    world.at(0.05, lambda: world.close(world.lease_write))
    assert made.watch(world.lease_read) == why
    assert made.loop.did == ["wait"]


def test_a_press_is_passed_on_once_and_must_be_obeyed(world):
    made = world.guardian()
    world.keep_telling(RUNNING, 5.0)
    world.at(1.0, world.press)
    world.at(1.2, world.press)
    assert made.watch(world.lease_read) == "the control loop did not obey the emergency stop"
    assert world.heard() == b"e"
    assert world.now == pytest.approx(101.0 + OBEY_S, abs=0.06)


def test_a_press_that_is_obeyed_ends_nothing(world):
    made = world.guardian()
    world.tell(RUNNING)
    world.at(0.04, world.press)
    world.at(0.1, lambda: world.tell(STOPPING))
    world.at(1.0, lambda: world.tell(RELEASED))
    world.at(1.1, lambda: world.close(world.lease_write))
    assert made.watch(world.lease_read) == ""


def test_another_word_by_the_socket_is_no_press(world):
    made = world.guardian()
    world.press(b"hello")
    assert not made.is_pressed()
    assert not made.is_pressed(), "and nothing is there any more"
    world.press()
    assert made.is_pressed()
    assert not made.lease.wants_release


def test_a_press_with_a_deaf_loop_is_counted_all_the_same(world):
    made = world.guardian()
    os.close(made.to_loop)
    world.keep_telling(RUNNING, 5.0)
    world.at(0.5, world.press)
    world.open.remove(made.to_loop)
    assert "did not obey" in made.watch(world.lease_read)


def test_a_supervisor_that_has_gone_ends_the_loop_in_order(world):
    made = world.guardian(alive=True)
    world.tell(RUNNING)
    world.at(0.05, lambda: world.close(world.alive))
    seen = []
    world.at(0.1, lambda: seen.append(world.heard()))
    world.at(0.1, lambda: world.tell(RELEASED))
    world.at(0.3, lambda: world.close(world.lease_write))
    assert made.watch(world.lease_read) == ""
    assert seen == [b""], "the loop's pipe was closed"
    assert made.to_loop == -1


def test_a_supervisor_that_only_says_something_has_not_gone(world):
    made = world.guardian(alive=True)
    world.tell(RELEASED)
    world.at(0.05, lambda: os.write(world.alive, b"."))
    world.at(0.2, lambda: world.close(world.lease_write))
    assert made.watch(world.lease_read) == ""
    assert made.to_loop >= 0


def test_a_loop_that_does_not_end_is_taken_over_after_a_minute(world):
    made = world.guardian(alive=True)
    world.tell(STOPPING)
    world.keep_telling(STOPPING, 70.0, every=1.0)
    world.at(0.0, lambda: world.close(world.alive))
    assert made.watch(world.lease_read) == "the control loop did not end within 60 s"
    assert world.now == pytest.approx(160.0, abs=0.1)


# -- starting the loop ---------------------------------------------------------------------------------------


def run(world, monkeypatch, code=0, alive=False, tells=RELEASED, ports=(), is_shadow=False):
    made = world.guardian(alive=alive)
    if is_shadow:
        made.is_shadow = True
    made.ports = {name: SimpleNamespace(fileno=lambda: 77, name="/dev/tty7") for name in ports}
    world.loop = Loop(code)
    world.rescue = Rescue()

    def start(args, pass_fds):
        world.started = (args, list(pass_fds))
        for fd in pass_fds[:1]:
            os.write(fd, tells)
        world.keep = os.dup(pass_fds[1])
        return world.loop

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(module, "Rescue", lambda profile, ports: world.rescue)
    result = made.run(["--robot=so101", "--x"])
    os.close(world.keep)
    if made.to_loop >= 0:
        os.close(made.to_loop)
    return made, result


def test_the_loop_is_started_with_its_pipes_and_ports(world, monkeypatch):
    made, result = run(world, monkeypatch, alive=True, ports=("arm",))
    args, fds = world.started
    assert result == 0
    assert args[:5] == [sys.executable, "-m", "edgevla.robots.node_process", "--robot=so101", "--x"]
    assert args[5:7] == [f"--lease-fd={fds[0]}", f"--guardian-fd={fds[1]}"]
    assert args[7:] == ["--port-fd=arm=77=/dev/tty7"]
    assert fds[2:] == [77, made.alive_fd]
    assert world.status().state == "released"
    assert world.loop.did.count("kill") == 0


def test_the_loops_ends_of_the_pipes_are_the_loops_alone(world, monkeypatch):
    """Else neither would notice that the other has gone."""
    held = []

    def is_open(fd):
        try:
            os.fstat(fd)
        except OSError:
            return False
        return True

    monkeypatch.setattr(
        Guardian, "watch", lambda self, fd: held.extend(map(is_open, world.started[1][:2])) or ""
    )
    run(world, monkeypatch)
    assert held == [False, False]


@pytest.mark.parametrize(
    ("code", "tells", "result", "state"),
    [
        (4, RELEASED, 4, "released"),
        (0, PARKED, 0, "parked"),
        (-11, RELEASED, 1, "released"),
    ],
)
def test_what_the_loop_ended_with_is_passed_on(world, monkeypatch, capsys, code, tells, result, state):
    assert run(world, monkeypatch, code, tells=tells)[1] == result
    assert world.status().state == state
    said = capsys.readouterr().err
    assert said == (
        "" if code >= 0 else "guardian: the control loop ended (killed by SIGSEGV) while torque was off\n"
    )


def test_a_loop_that_died_with_torque_on_is_killed_and_the_bus_taken(world, monkeypatch, capsys):
    _, result = run(world, monkeypatch, -9, tells=RUNNING)
    assert result == TOOK_OVER == 3
    assert world.loop.did == ["wait", "kill", "wait"]
    assert world.rescue.did == ["freeze", "lower", "release"]
    assert (
        "the control loop ended (killed by SIGKILL); the arm is held where it is" in capsys.readouterr().err
    )


def test_beside_a_shadow_the_bus_is_never_taken(world, monkeypatch, capsys):
    _, result = run(world, monkeypatch, -9, tells=RUNNING, is_shadow=True)
    assert result == TOOK_OVER
    assert world.loop.did == ["wait", "kill", "wait"]
    assert world.rescue.did == []
    assert (world.status().state, world.status().why) == (
        "released",
        "the control loop ended (killed by SIGKILL)",
    )
    assert "killed by SIGKILL); the arm is as it was" in capsys.readouterr().err


# -- taking over ---------------------------------------------------------------------------------------------


def test_the_bus_is_taken_by_the_profiles_table_and_each_step_is_said(world, capsys):
    made = world.guardian(hold_ms=2000)
    rescue, states = Rescue(), []
    for name in ("freeze", "lower", "release"):
        original = getattr(rescue, name)
        setattr(rescue, name, lambda *a, original=original: (states.append(world.status()), original(*a))[1])
    begun = world.now
    made.take_over(rescue, "it was silent")
    assert rescue.did == ["freeze", "lower", "release"]
    assert world.now - begun == pytest.approx(2.5)
    assert [(s.state, s.why) for s in states] == [
        ("held", "it was silent"), ("parking", "it was silent"), ("parking", "it was silent"),
    ]  # fmt: skip
    assert (world.status().state, world.status().why) == ("released", "it was silent")
    assert capsys.readouterr().err.splitlines() == [
        "guardian: it was silent; the arm is held where it is, lowered in 2 s, then released",
        "guardian: torque is off",
    ]


def test_an_arm_that_is_not_released_is_left_parked(world, capsys):
    made, rescue = world.guardian(release=False, hold_ms=500), Rescue()
    made.take_over(rescue, "it was silent")
    assert rescue.did == ["freeze", "lower"]
    assert world.status().state == "parked"
    assert "lowered in 0.5 s, not released" in capsys.readouterr().err


@pytest.mark.parametrize("is_released", [True, False])
def test_pressed_twice_it_lets_go_at_once(world, capsys, is_released):
    made, rescue = world.guardian(release=is_released), Rescue()
    made.lease.press(world.now)
    made.lease.press(world.now + 2)
    made.take_over(rescue, "it did not obey")
    assert rescue.did == ["release"]
    said = capsys.readouterr().err
    assert "the arm is let go at once, as was asked" in said
    assert "torque is off, at the second emergency stop" in said


@pytest.mark.parametrize(
    ("at_s", "did"), [(1.0, ["freeze", "release"]), (2.2, ["freeze", "lower", "release"])]
)
def test_pressed_twice_meanwhile_it_lets_go_then(world, at_s, did):
    made, rescue = world.guardian(hold_ms=2000, release=False), Rescue()
    made.lease.press(world.now - 10)
    world.at(at_s, world.press)
    begun = world.now
    made.take_over(rescue, "it was silent")
    assert rescue.did == did
    assert world.now - begun <= 2.5


def test_whoever_was_not_reached_is_named_and_so_are_lost_lines(world, capsys):
    made, rescue = world.guardian(), Rescue(["elbow"], {"arm": "the adapter is gone"})
    made.take_over(rescue, "why")
    assert world.status().unconfirmed == ["elbow"]
    lines = capsys.readouterr().err.splitlines()
    assert "torque could not be confirmed off on elbow" in lines[1]
    assert lines[2] == "guardian: the adapter is gone"


def test_one_press_while_it_waits_is_not_two(world):
    made = world.guardian()
    world.at(0.5, world.press)
    begun = world.now
    assert made.wait(1.0) is False
    assert world.now - begun == pytest.approx(1.0)
    assert made.wait(0.0) is False


def test_how_a_process_ended_is_said():
    assert how(0) == "exit code 0"
    assert how(2) == "exit code 2"
    assert how(-15) == "killed by SIGTERM"


def test_a_terminal_that_has_gone_is_no_obstacle(monkeypatch):
    class Gone:
        def write(self, text):
            raise OSError

        def flush(self):
            raise OSError

    monkeypatch.setattr(sys, "stderr", Gone())
    module.say("hello")

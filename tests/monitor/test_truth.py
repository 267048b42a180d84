"""What a person sees when things go wrong: the screen of a real monitor says what is true, and nothing old is green."""

from __future__ import annotations

import shutil
import subprocess
import sys

from monitor_kit import SO101, health, servo

from edgevla.messages import Event, ServoHealth

TORQUE = "on retry/s"


def on_column(watcher):
    """What the column `on` says, per servo in the order of the profile; on the screen the worst come first."""
    lines = watcher.screen.split("\n")
    at = next((line.index(TORQUE) for line in lines if TORQUE in line), 0)
    said = {line[max(0, at - 28) : at - 14].strip(): line[at : at + 3].strip() for line in lines if at}
    return [said[name] for name in SO101 if name in said]


def test_a_robot_that_falls_silent_is_lost_and_its_old_figures_are_grey(robot, watch):
    watcher = watch(robot)
    watcher.wait_until(lambda: on_column(watcher) == ["on"] * 6, "torque is on")
    assert "green" in watcher.colours
    robot.guardian("watching")
    robot.is_silent = True
    watcher.wait_for("LOST", 3)
    watcher.wait_for("nothing from the robot for 1 s")
    watcher.wait_until(lambda: "green" not in watcher.colours, "nothing old is green")
    watcher.wait_until(lambda: on_column(watcher) == ["?"] * 6, "nobody knows")
    assert "s old" in watcher.screen
    assert "12.5" in watcher.screen, "the last figures stay, in grey"
    assert "Hz" not in watcher.screen
    robot.is_silent = False
    watcher.wait_for("RUNNING", 3)


def test_what_the_guardian_does_is_said_while_it_does_it(robot, watch):
    watcher = watch(robot)
    watcher.wait_until(lambda: on_column(watcher) == ["on"] * 6, "torque is on")  # the servos have spoken
    robot.guardian("watching")
    robot.is_silent = True
    robot.guardian("held", "the control loop was silent for 112 ms")
    watcher.wait_for("HELD BY GUARDIAN", 3)
    watcher.wait_for("silent for 112 ms")
    robot.guardian("parking", "the control loop was silent for 112 ms")
    watcher.wait_for("PARKING", 3)
    robot.guardian("released", "the control loop was silent for 112 ms", ["gripper"])
    watcher.wait_for("RELEASED", 3)
    watcher.wait_for("may still be ON at gripper")
    watcher.wait_until(lambda: on_column(watcher) == ["off"] * 5 + ["?"], "as the guardian says")
    assert watcher.style_of("RELEASED").bg == "red"
    assert "green" not in watcher.colours


def test_a_monitor_attached_during_the_hold_shows_it_at_once(robot, watch):
    robot.is_silent = True
    robot.guardian("held", "the control loop ended (killed by SIGKILL)")
    watcher = watch(robot, first="HELD BY GUARDIAN")
    watcher.wait_for("killed by SIGKILL")
    assert "so101" in watcher.screen
    assert "no robot yet" not in watcher.screen


def test_a_guardian_that_died_with_torque_on_is_an_alarm(robot, watch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    watcher = watch(robot)
    watcher.wait_until(lambda: on_column(watcher) == ["on"] * 6, "torque is on")
    robot.guardian("watching", pid=dead.pid)
    robot.is_silent = True
    watcher.wait_for("UNHELD", 3)
    watcher.wait_for("torque may still be ON")
    assert watcher.style_of("UNHELD").bg == "red"


def test_a_run_directory_that_goes_is_the_end_with_what_was_known(robot, watch):
    watcher = watch(robot)
    robot.guardian("released", "asked to stop")
    watcher.wait_for("RELEASED", 3)
    robot.end()
    shutil.rmtree(robot.folder)
    watcher.wait_for("ENDED", 3)
    watcher.wait_for("the guardian said: released, asked to stop")
    watcher.wait_until(lambda: "green" not in watcher.colours, "nothing old is green")
    watcher.write("q")
    assert watcher.wait_for_end() == 0
    assert "ended" in watcher.after_the_screen


def test_after_an_orderly_stop_no_servo_is_shown_as_on(robot, watch):
    watcher = watch(robot)
    watcher.wait_until(lambda: on_column(watcher) == ["on"] * 6, "torque is on")
    robot.mode, robot.reason = "stopped", "asked to stop: to the rest pose, then released"
    watcher.wait_for("STOPPING", 3)
    robot.health = health(torque_on=False)
    robot.say(robot.health)
    robot.say(Event("info", "released", "torque is off", {}))
    watcher.wait_for("STOPPED", 3)
    watcher.wait_until(lambda: on_column(watcher) == ["off"] * 6, "torque is off")


def test_a_motor_that_could_not_be_switched_off_is_a_question_and_an_alarm(robot, watch):
    watcher = watch(robot)
    watcher.wait_until(lambda: on_column(watcher) == ["on"] * 6, "torque is on")
    robot.mode = "stopped"
    robot.health = ServoHealth(
        tuple(servo(name, i + 1, torque_on=name == "gripper") for i, name in enumerate(SO101))
    )
    robot.say(Event("error", "torque_unconfirmed", "torque could not be confirmed off on gripper", {}))
    robot.say(Event("info", "released", "torque is off on the others", {}))
    watcher.wait_for("may still be ON at gripper", 3)
    watcher.wait_until(lambda: on_column(watcher) == ["off"] * 5 + ["?"], "one is not known")

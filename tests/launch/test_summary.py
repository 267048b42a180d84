"""The summary's words: emergency stops first, what safety changed by joint and limit."""

import pytest

from edgevla.board import Board
from edgevla.descriptions import AboutJoint, AboutRobot
from edgevla.launch.deployment import TRAINED_SPEED_MARGIN, speed_caps
from edgevla.launch.emergencies import Emergencies
from edgevla.launch.runlog import RunLog
from edgevla.launch.summary import clipped_words, describe_summary
from edgevla.messages import Event, Header, Heartbeat, Message
from edgevla.robots import safety

S = 1_000_000_000


def told(*heard):
    """Emergency stops of a log that began at 100 s. heard: (what, seconds)."""
    stops = Emergencies(100 * S)
    for what, at_s in heard:
        see = (
            stops.see_mode
            if what in ("running", "paused", "emergency", "stopped", "idle")
            else stops.see_event
        )
        see(what, int(at_s * S))
    return [stop["words"] for stop in stops.told()]


def test_a_stop_that_was_cleared_is_told_all_the_same():
    words = told(
        ("running", 101), ("emergency", 112.3), ("emergency", 115), ("paused", 116.4), ("running", 120)
    )
    assert words == ["at 12.3 s: the arm was frozen, and the stop was cleared 4.1 s later"]


def test_a_stop_that_ended_in_a_release_is_one_stop():
    """The mode stays `emergency` after the release."""
    words = told(
        ("running", 101),
        ("mode_emergency", 103),
        ("emergency", 103.1),
        ("released", 105),
        ("emergency", 105.1),
    )
    assert words == ["at 3.0 s: the arm was frozen, and the arm was released 2.0 s later"]


def test_a_stop_that_was_latched_until_the_end():
    words = told(("running", 101), ("emergency", 103), ("emergency", 200))
    assert words == ["at 3.0 s: the arm was frozen, and the stop was latched until the end"]


def test_states_and_events_come_by_different_ways():
    """The event is there first; the states before it, still running, are old news."""
    words = told(("mode_emergency", 103), ("running", 102.9), ("emergency", 103.01), ("paused", 104))
    assert words == ["at 3.0 s: the arm was frozen, and the stop was cleared 1.0 s later"]


def test_every_stop_is_told():
    words = told(("emergency", 101), ("paused", 102), ("running", 103), ("emergency", 104), ("paused", 106))
    assert [text.split(":")[0] for text in words] == ["at 1.0 s", "at 4.0 s"]


def message(body, observed_ns=0):
    return Message(Header(bytes(8), "robot", 0, observed_ns, observed_ns), body)


def summary(**counters):
    log = RunLog(None)
    counters = {"ticks": 1100, "ticks_running": 1000, **counters}
    log.take(message(Heartbeat(1, "running", counters, 0)))
    return {"trained_camera_age_ms": None, **log.summary({})}


CAPS = {"elbow_flex.pos": "training", "shoulder_pan.pos": "training", "gripper.pos": "profile"}


def test_what_safety_changed_is_named_by_joint_and_limit_the_worst_first():
    clipped = {"speed_elbow_flex.pos": 40, "limit_wrist_roll.pos": 15, "speed_shoulder_pan.pos": 5}
    counters = {f"clipped_{name}": n for name, n in clipped.items()}
    made = {**summary(ticks_clipped=60, **counters, **{"clipped_speed_gripper.pos": 0}), "speed_caps": CAPS}
    words = describe_summary(made)
    assert "clipped          6.00% of ticks: the speed cap from training" in words
    said = clipped_words(made["clipped_by"], CAPS, 1000)
    assert said == (
        "the speed cap from training (1.5 times what it showed) held back elbow_flex 4.0%, shoulder_pan 0.5%; "
        "the joint's limit held back wrist_roll 1.5%"
    )
    assert "RED: safety changed 6.0% of the goals (limit 2%)" in words
    assert said in words.splitlines()[-1]


def test_the_speed_cap_is_named_by_whose_it_is():
    joints = tuple(
        AboutJoint(name, "deg", -90.0, 90.0, 180.0, name == "gripper.pos", None, None)
        for name in ("elbow_flex.pos", "shoulder_pan.pos", "gripper.pos")
    )
    robot = AboutRobot("robot", "so101", joints, (), 120.0, (), ())
    caps = speed_caps(robot, [81.0, 130.0, 10.0])
    assert caps == {"elbow_flex.pos": "training", "shoulder_pan.pos": "profile", "gripper.pos": "profile"}
    assert set(speed_caps(robot, None).values()) == {"profile"}
    assert "robot's profile held back gripper 2.0%" in clipped_words(
        {"clipped_speed_gripper.pos": 2}, caps, 100
    )
    assert TRAINED_SPEED_MARGIN == safety.TRAINED_SPEED_MARGIN


def test_a_limit_that_has_no_words_yet_is_named_as_it_is():
    assert clipped_words({"clipped_torque_elbow_flex": 10}, {}, 100) == "torque elbow_flex 10.0%"


def test_a_leader_is_not_called_a_policy():
    made = {**summary(ticks_clipped=60), "speed_caps": CAPS, "bundle": "leader so101_leader"}
    words = describe_summary(made)
    assert "1000 ticks under the leader" in words
    assert "policy" not in words


def test_emergency_stops_come_first():
    log = RunLog(None)
    event = Event("warning", "mode_emergency", "emergency", {})
    log.take(message(event, log.emergencies._began_ns + 2 * S))
    words = describe_summary({"trained_camera_age_ms": None, **log.summary({})})
    assert words.startswith(
        "EMERGENCY STOP at 2.0 s: the arm was frozen, and the stop was latched until the end\n"
    )


@pytest.mark.parametrize(
    ("n_led", "by_whom"), [(0, "nothing was sent to the arm"), (1000, "a leader arm moved it")]
)
def test_a_shadow_s_summary_says_who_moved_the_arm_after_the_stops(n_led, by_whom):
    shadow = {"pan": {"rms": 1.0, "p95": 2.0, "unit": "deg"}}
    stop = {"words": "at 2.0 s"}
    made = {**summary(ticks_clipped=60, ticks_led=n_led), "shadow": shadow, "emergency_stops": [stop]}
    first, second, *more = describe_summary(made).splitlines()
    assert first == "EMERGENCY STOP at 2.0 s"
    assert second.startswith(f"SHADOW, {by_whom}: ran ")
    assert "safety would have changed 6.0% of the policy's goals" in more[-1]


def test_the_machine_s_health_is_told_with_what_it_does_not_tell_left_out():
    log = RunLog(None)
    assert log.summary({})["board"] is None
    hot = Board(
        busy=0.5, hottest=("gpu", 84.0), memory_free=2 << 30, cpu_mhz=729.6, gpu_mhz=306.0, is_throttled=True
    )
    cool = Board(
        hottest=("cpu", 60.0), memory_free=3 << 30, cpu_mhz=1728.0, gpu_mhz=918.0, is_throttled=False
    )
    for board in (cool, hot, cool, cool):
        log.note_board(board)
    words = describe_summary({"trained_camera_age_ms": None, **log.summary({})})
    assert (
        "cores 50% busy, gpu at most 84 °C, CPU at least 730 MHz, GPU at least 306 MHz, at least 2.0 GB free, "
        "throttled 25.0% of the time"
    ) in words
    assert "RED: the machine was throttled 25% of the time" in words

    silent = RunLog(None)
    silent.note_board(Board())
    words = describe_summary({"trained_camera_age_ms": None, **silent.summary({})})
    assert "machine          -" in words
    assert "throttled" not in words

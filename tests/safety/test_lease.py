"""When the guardian must act: the loop's promise, presses and pipes, on a clock of plain numbers."""

import pytest

from edgevla.robots.lease import (
    END_S,
    NEVER,
    OBEY_S,
    STOPPING_S,
    SURE_QUIET_NS,
    TERMINATED_GRACE_S,
    Lease,
)
from edgevla.robots.links import PARKED, RELEASED, RUNNING, STOPPING

T0 = 1000.0
SILENT = "the control loop was silent"
DISOBEYED = "did not obey"
NOT_ENDED = "did not end within"


def lease_that_heard(*data):
    lease = Lease(0.1, 0.04, T0)
    for byte in data:
        lease.heard(byte)
    return lease


def pass_time(lease, seconds, now=T0, step=0.01):
    """Turn after turn; the time now."""
    for _ in range(round(seconds / step)):
        now += step
        lease.turn(now)
    return now


def test_the_times_are_what_the_documentation_says():
    assert (STOPPING_S, OBEY_S, END_S, TERMINATED_GRACE_S) == (2.0, 0.3, 60.0, 3.0)
    assert SURE_QUIET_NS == 1_000_000_000


@pytest.mark.parametrize(("byte", "allowed_s"), [(RUNNING, 0.1), (STOPPING, 2.0)])
def test_a_loop_may_be_silent_as_long_as_its_byte_allows(byte, allowed_s):
    lease = lease_that_heard(byte)
    now = pass_time(lease, allowed_s - 0.01)
    assert lease.why(now) == ""
    now = pass_time(lease, 0.02, now)
    assert lease.why(now) == f"{SILENT} for {allowed_s * 1000 + 10:.0f} ms"


def test_silence_of_exactly_the_lease_is_kept():
    lease = Lease(0.25, 1.0, 0.0)
    lease.heard(RUNNING)
    lease.turn(0.25)
    assert lease.why(0.25) == ""
    lease.turn(0.2501)
    assert SILENT in lease.why(0.2501)


@pytest.mark.parametrize("data", [(), (PARKED,), (RELEASED,)])
def test_a_loop_that_holds_no_arm_may_be_silent_for_ever(data):
    lease = lease_that_heard(*data)
    assert lease.why(pass_time(lease, 100, step=1.0)) == ""
    assert lease.is_at_rest


def test_an_arm_with_torque_is_not_at_rest():
    assert not lease_that_heard(RUNNING).is_at_rest
    assert not lease_that_heard(STOPPING).is_at_rest


def test_the_newest_byte_counts_and_ends_the_silence():
    lease = lease_that_heard(RUNNING)
    now = pass_time(lease, 0.09)
    lease.heard(STOPPING + RUNNING)
    assert lease.last == RUNNING
    now = pass_time(lease, 0.09, now)
    assert lease.why(now) == ""
    assert SILENT in lease.why(pass_time(lease, 0.02, now))


def test_a_machine_that_stood_still_says_nothing_about_the_loop():
    lease = lease_that_heard(RUNNING)
    lease.turn(T0 + 50)
    lease.turn(T0 + 100)
    assert lease.why(T0 + 100) == ""
    lease.turn(T0 + 150)
    assert SILENT in lease.why(T0 + 150)


def test_a_press_must_be_obeyed_in_time():
    lease = lease_that_heard(RUNNING)
    assert lease.press(T0)
    assert not lease.wants_release
    assert lease.why(T0 + OBEY_S) == ""
    assert DISOBEYED in lease.why(T0 + OBEY_S + 0.001)


@pytest.mark.parametrize("byte", [STOPPING, RELEASED])
def test_a_frozen_or_released_arm_is_obedience(byte):
    lease = lease_that_heard(RUNNING)
    lease.press(T0)
    lease.heard(byte)
    assert lease.why(T0 + 10) == ""


def test_going_on_is_no_obedience_and_does_not_forget_the_press():
    lease = lease_that_heard(RUNNING)
    lease.press(T0)
    lease.heard(RUNNING)
    assert DISOBEYED in lease.why(T0 + 1)
    assert lease.press(T0 + 2)
    assert lease.wants_release


def test_a_held_key_is_one_press_and_a_second_one_wants_release():
    lease = lease_that_heard(RUNNING)
    assert lease.press(T0)
    assert not lease.press(T0 + 0.99)
    assert not lease.press(T0 + 1.98)
    assert not lease.wants_release
    assert lease.press(T0 + 2.98)
    assert lease.wants_release


def test_a_second_press_is_obeyed_only_by_release_and_within_its_time():
    lease = lease_that_heard(STOPPING)
    lease.press(T0)
    lease.heard(STOPPING)
    lease.press(T0 + 2)
    lease.heard(STOPPING)
    assert lease.why(T0 + 2 + STOPPING_S) == ""
    assert DISOBEYED in lease.why(T0 + 2 + STOPPING_S + 0.001)
    lease.heard(RELEASED)
    assert lease.why(T0 + 100) == ""


def test_an_arm_without_torque_has_obeyed_every_press():
    lease = lease_that_heard()
    lease.press(T0)
    assert lease.why(T0 + 100) == ""


@pytest.mark.parametrize("byte", [RUNNING, PARKED])
def test_a_stop_that_was_cleared_is_forgotten(byte):
    lease = lease_that_heard(RUNNING)
    lease.press(T0)
    lease.heard(STOPPING)
    lease.heard(byte)
    lease.press(T0 + 10)
    assert not lease.wants_release
    lease.heard(STOPPING)
    lease.press(T0 + 20)
    assert lease.wants_release


def test_a_frozen_arm_does_not_forget_the_press():
    lease = lease_that_heard(RUNNING)
    lease.press(T0)
    lease.heard(STOPPING)
    lease.heard(STOPPING)
    lease.press(T0 + 2)
    assert lease.wants_release


def test_the_end_must_come_within_a_minute_of_the_first_word():
    lease = lease_that_heard(STOPPING)
    assert not lease.wants_end(T0)
    lease.must_end(T0)
    lease.must_end(T0 + 30)
    assert lease.wants_end(T0)
    assert lease.why(T0 + END_S) == ""
    assert lease.why(T0 + END_S + 0.001) == "the control loop did not end within 60 s"


def test_a_request_to_terminate_waits_for_the_end_in_order():
    lease = lease_that_heard(RUNNING)
    lease.terminate(T0 + 3)
    assert not lease.wants_end(T0 + 2.999)
    assert lease.wants_end(T0 + 3)
    assert lease.why(T0 + 3 + END_S) == ""
    assert NOT_ENDED in lease.why(T0 + 3 + END_S + 0.001)


def test_an_end_that_has_begun_is_not_begun_again():
    lease = lease_that_heard(STOPPING)
    lease.terminate(T0 + 3)
    assert not lease.wants_end(T0 + 3)
    lease.heard(RUNNING)
    assert not lease.wants_end(T0 + 9), "that request has been answered"
    lease.terminate(T0 + 20)
    assert lease.wants_end(T0 + 20)


def test_whoever_asks_to_terminate_twice_is_obeyed_at_once():
    lease = lease_that_heard(RUNNING)
    lease.turn(T0 + 1)
    lease.terminate(T0 + 4)
    lease.terminate(T0 + 5)
    assert lease.wants_end(T0 + 1)


def test_nothing_is_due_at_the_beginning():
    lease = lease_that_heard(RUNNING)
    assert lease.why(T0) == ""
    assert not lease.wants_end(1e12)
    assert float("inf") == NEVER

"""The timeline of chunks, from what the robot and the policy say of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from monitor_kit import chunk

from edgevla.messages import Chunk, Header, Message
from edgevla.monitor.chunks import Timeline
from edgevla.monitor.rates import TickTiming

MS = 1_000_000
STEP = 10 * MS


def arrival(seq: int, asked_ms: int, arrived_ms: int, n: int = 10) -> Message[Chunk]:
    """seq: of its request; the policy, which was started again, counts its own messages from 0."""
    header = Header(b"12345678", "policy", 0, asked_ms * MS, arrived_ms * MS)
    body = replace(chunk(), request_id=seq, step_ns=STEP, n_valid=n)
    return Message(header, body, [np.zeros((n, 2), np.float32)])


def tick(
    number: int, seq: int | None, index: float = 0.0, goal: tuple[float, float] = (0.0, 0.0)
) -> TickTiming:
    return TickTiming(number, 0, number * STEP, 0, seq, index, np.array(goal, "<f4").tobytes())


def test_asked_arrived_skipped_and_how_far_it_is() -> None:
    timeline = Timeline()
    timeline.arrived(arrival(7, asked_ms=0, arrived_ms=25))
    for number in (3, 4, 5):
        timeline.take(tick(number, 7, index=number))
    [track] = timeline.tracks
    assert (track.asked_ns, track.arrived_ns, track.first_ns, track.last_ns) == (0, 25 * MS, 30 * MS, 50 * MS)
    assert (track.n_skipped, track.at) == (3, 5)
    assert track.ends_ns == 100 * MS, "seven of its ten actions were left"
    assert not track.is_late


def test_a_chunk_that_was_never_used_though_a_newer_one_was_came_too_late() -> None:
    timeline = Timeline()
    for seq in (1, 2, 3):
        timeline.arrived(arrival(seq, 10 * seq, 10 * seq + 5))
    timeline.take(tick(5, 1))
    timeline.take(tick(6, 3))
    assert [track.is_late for track in timeline.tracks] == [False, True, False]
    assert [track.is_over for track in timeline.tracks] == [True, True, False]


def test_a_state_that_is_heard_before_its_chunk_begins_it_all_the_same() -> None:
    timeline = Timeline()
    timeline.take(tick(5, 1, index=2.0))
    timeline.arrived(arrival(1, asked_ms=20, arrived_ms=45))
    assert timeline.tracks[0].first_ns == 50 * MS
    assert timeline.tracks[0].n_skipped == 2


def test_the_seam_is_the_bend_of_the_joint_that_bends_most() -> None:
    timeline = Timeline()
    timeline.arrived(arrival(1, 0, 5))
    timeline.arrived(arrival(2, 10, 15))
    goals = [(0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (3.0, 4.0)]
    for number, goal in enumerate(goals):
        timeline.take(tick(number, 1 if number < 3 else 2, goal=goal))
    seam = timeline.newest_seam
    assert seam is not None
    assert seam.joint == 1
    assert seam.jump == pytest.approx(4.0), "the first joint only goes on"


def test_no_seam_is_made_up_where_ticks_are_missing_or_nothing_was_before() -> None:
    timeline = Timeline()
    timeline.arrived(arrival(1, 0, 5))
    timeline.arrived(arrival(2, 10, 15))
    for number, seq in ((0, None), (1, None), (2, 1), (3, 1), (7, 2)):
        timeline.take(tick(number, seq, goal=(float(number), 0.0)))
    assert [track.seam for track in timeline.tracks] == [None, None]

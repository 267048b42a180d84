"""Logs made by hand, tick by tick."""

import os
import time

import numpy as np

from edgevla.flight.writer import FlightWriter
from edgevla.messages import Header, Message, State

UNITS = ["deg"] * 5 + ["percent"]
T0 = time.monotonic_ns() // 1000 * 1000 + 36_000_000_000_000
"""After the log's beginning, whenever in a test that is."""
PERIOD = 8_333_333


def tick(n, wanted=None, **changes):
    """One tick of a six-joint arm; by default at rest."""
    fields = {
        "tick": n,
        "deadline_ns": T0 + n * PERIOD,
        "late_ns": 120_000,
        "t0_ns": T0,
        "step_ns": 33_333_333,
        "mode": "running",
        "position": np.full(6, 0.088 * (n % 3), np.float32),
        "position_age_us": np.full(6, 1200, np.uint32),
        "wanted": np.zeros(6, np.float32) if wanted is None else wanted,
        "goal": np.zeros(6, np.float32),
        "limited_by": np.zeros(6, np.uint16),
        "chunk_seq": n // 30,
        "action_index": (n % 30) / 4,
        "n_actions_left": 30 - n % 30,
        "reason": "",
    }
    body = State(**{**fields, **changes})
    return Message(
        Header(b"\0" * 8, "robot", n, body.deadline_ns + 500_000, body.deadline_ns + 600_000), body
    )


def write_log(place, ticks=(), notes=(), about=None):
    """A run's folder."""
    said = []
    log = FlightWriter(place, os.urandom(8), said.append)
    log.know(about or {"units": UNITS, "joints": [f"j{k}.pos" for k in range(6)]})
    for message in ticks:
        log.tick(message)
    for note in notes:
        log.note(note)
    log.close("{}")
    assert said == []
    return log.folder

"""What stands beside a camera's name: frames per second, age, what was lost."""

from __future__ import annotations

from edgevla.monitor.model import MonitorModel
from edgevla.monitor.panels.marks import rate
from edgevla.monitor.standing import duration

OLD_NS = 1_000_000_000
"""Thumbnails come five times a second."""


def picture(model: MonitorModel, camera: str, room: int, now_ns: int) -> tuple[bytes | None, str, bool]:
    """Of one camera: its newest picture, words for the `room` cells beside its name, and whether it is old."""
    newest = model.pictures.get(camera)
    if newest is None:
        return None, "no picture yet", False
    age_ns = now_ns - newest.observed_ns
    if age_ns > OLD_NS:
        return newest.jpeg, f"{duration(age_ns)} old", True
    beat = model.beat(f"camera/{camera}")
    fps = beat.per_s("frames")
    parts = [f"{fps:.0f} fps"] if fps is not None and "frames" in beat.now else []
    parts.append(f"{duration(age_ns)} old")
    if lost := beat.per_s("dropped"):
        parts.append(f"{rate(lost)} dropped")
    words = ""
    for part in parts:
        longer = f"{words} · {part}" if words else part
        words = longer if len(longer) <= room else words
    return newest.jpeg, words, False

"""How far long work is, where nobody watches a terminal."""

from __future__ import annotations

import io

from edgevla.progress import ProgressLine


def test_the_end_is_told_once_and_rates_are_plain_numbers() -> None:
    out, now = io.StringIO(), [0.0]
    line = ProgressLine(5000, "MB", out=out, clock=lambda: now[0])
    for now[0], done in ((1.0, 10), (11.0, 2000), (12.0, 2500), (20.0, 5000), (21.0, 5000), (40.0, 5000)):
        line.show(done)
    assert out.getvalue().splitlines() == [
        "2000 of 5000 MB, 182 a second, 16 s left",
        "5000 of 5000 MB, 250 a second",
    ]

"""Which arm: options of `pytest -m hardware tests/hardware`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hardware")
    group.addoption("--robot", default="so101", help="profile of the arm")
    group.addoption("--port", action="append", default=[], help="[BUS=]PATH, as edgevla takes it")
    group.addoption("--calibration", help="id of its calibration")

"""`pytest -m hardware -x -s tests/hardware --port /dev/ttyACM0`: an arm's first power-up, a test per step.

The same steps on an emulated arm: tests/robots/test_first_power_up.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves neighbours unimportable

from first_power_up import STEPS, PowerUp

pytestmark = pytest.mark.hardware


def ask(sentence: str) -> None:
    if input(f"\n{sentence} (n stops) ").strip().lower().startswith("n"):
        pytest.exit("stopped by the person at the arm", returncode=1)


@pytest.fixture(scope="module")
def arm(request: pytest.FixtureRequest) -> Iterator[PowerUp]:
    ports = request.config.getoption("--port", default=[])
    if not ports:
        pytest.skip("a real arm is named: --port /dev/ttyACM0, and input needs -s")
    made = PowerUp(request.config.getoption("--robot"), ports, request.config.getoption("--calibration"), ask)
    yield made
    made.close()


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_step(step: Callable[[PowerUp], None], arm: PowerUp) -> None:
    print(f"\n{step.__doc__}")
    step(arm)

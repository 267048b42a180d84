"""Fixtures of scripted deployments and of monitors on terminals; what they are made of is in `monitor_kit.py`."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves neighbours unimportable

from monitor_kit import Robot, attach, deploy_with_monitor


@pytest.fixture
def robot():
    made = Robot()
    yield made
    made.close()


@pytest.fixture
def watch():
    """`watch(robot)` attaches a monitor and waits for its first figures; it ends with the test."""
    made = []

    def start(robot, size=(100, 30), first="RUNNING", **environment):
        made.append(attach(robot, size, **environment))
        made[-1].wait_for(first, 30)
        return made[-1]

    yield start
    for watcher in made:
        watcher.close()


@pytest.fixture
def watch_as_deploy():
    """The same, started by a supervisor in its terminal."""
    made = []

    def start(robot, size=(100, 30)):
        made.append(deploy_with_monitor(robot, size))
        made[-1].wait_for("RUNNING", 30)
        return made[-1]

    yield start
    for watcher in made:
        watcher.close()

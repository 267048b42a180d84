"""A policy server in a process of its own, and what a deployment that used it must have done whatever became of it."""

import collections
import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from bus_trace import judge

from edgevla.flight.reader import entries

TRAINED_SPEED = [81.0] * 5 + [45.0]
SERVO_HZ = 120.0


class Server:
    """`edgevla serve`, of a bundle as `arm`; it may be killed and started again at the same place.

    home: where its keys lie, if it has any.
    """

    def __init__(self, bundle, port, host="127.0.0.1", home=None):
        self.endpoint = f"tcp://{host}:{port}"
        self._words = [sys.executable, "-m", "edgevla", "serve", f"arm={bundle}"]
        self._words += [f"--bind={self.endpoint}", "--threads=1"]
        self._env = {**os.environ, **({} if home is None else {"EDGEVLA_HOME": str(home)})}
        self.start()

    def start(self):
        """Until it listens."""
        self.process = subprocess.Popen(self._words, stdout=subprocess.PIPE, text=True, env=self._env)
        assert "policy arm" in self.process.stdout.readline()
        assert "listening" in self.process.stdout.readline()

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        self.process.communicate(timeout=20)


def log_of(run):
    """The lines of a deployment's log."""
    return list(entries(run.log_path))


def played_twice(log):
    """Requests that were answered twice, and actions that the arm was given again after a later one, in words."""
    answered = collections.Counter(line["request_id"] for line in log if line["type"] == "chunk")
    found = [f"request {number} was answered {n} times" for number, n in answered.items() if n > 1]
    last = (-1, -1.0)
    for line in log:
        if line["type"] != "state" or line["mode"] != "running" or line["wanted"] is None:
            continue
        action = (line["chunk_seq"], line["action_index"])
        if action < last or (action == last and line["n_actions_left"]):  # the last of all is held
            found.append(
                f"action {action[1]:g} of chunk {action[0]} came after action {last[1]:g} of {last[0]}"
            )
        last = action
    return found


def verdict_on(run):
    """After the end of a run on a `write_fast_profile`: the trace's verdict, with what was played twice."""
    verdict = judge(run.trace(), run.profile, TRAINED_SPEED, SERVO_HZ)
    verdict.violations += played_twice(log_of(run))
    return verdict

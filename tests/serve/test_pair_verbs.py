"""The verbs as a person types them, in processes of their own: pair, serve, deploy, revoke under a moving arm."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from serve_kit import HOST, free_port, until

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from bus_trace import judge
from deployment_kit import Deployment, make_bundle, write_fast_profile

TRAINED_SPEED = [81.0] * 5 + [45.0]


class Machine:
    """A home of its own, and what is typed there."""

    def __init__(self, home):
        self.env = {**os.environ, "EDGEVLA_HOME": str(home), "PYTHONUNBUFFERED": "1"}
        self._started = []

    def start(self, *words):
        command = [sys.executable, "-m", "edgevla", *map(str, words)]
        pipe = subprocess.PIPE
        made = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=self.env)
        self._started.append(made)
        return made

    def says(self, *words, typed=""):
        """Exit code, what it shows, what it complains."""
        process = self.start(*words)
        output, errors = process.communicate(typed, timeout=60)
        return process.returncode, output, errors

    def end(self):
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture
def machines(tmp_path):
    both = Machine(tmp_path / "server"), Machine(tmp_path / "robot")
    yield both
    for machine in both:
        machine.end()


def pair(server, robot, port):
    """Pairs them as people do; what both screens show."""
    desk = server.start("serve", "--pair", f"--bind=tcp://{HOST}:{port}")
    code = re.search(r"code: (\d{3} \d{3}) ", desk.stdout.readline())[1]
    assert f"edgevla pair {HOST}:{port}" in desk.stdout.readline()
    rc, seen, errors = robot.says("pair", f"{HOST}:{port}", "--name=kitchen", typed=code + "\n")
    assert (rc, errors) == (0, "")
    shown, errors = desk.communicate(timeout=20)
    assert (desk.returncode, errors) == (0, "")
    return shown, seen


@pytest.mark.realtime
def test_an_arm_is_paired_served_and_holds_when_it_is_revoked(machines, tmp_path, monkeypatch):
    server, robot = machines
    monkeypatch.setenv("EDGEVLA_HOME", robot.env["EDGEVLA_HOME"])
    port, bundle = free_port(), make_bundle(tmp_path / "bundle")
    serve = ["serve", f"arm={bundle}", f"--bind=tcp://{HOST}:{port}", "--paired", "--threads=1"]
    screens = pair(server, robot, free_port())
    prints = [re.findall(r"  (server|robot) +(\S+) +([a-z2-7-]{24})\n", screen) for screen in screens]
    assert len(prints[0]) == 2
    assert prints[0] == prints[1], "both screens show the same"
    assert f"at {HOST}\n" in robot.says("pair", "--list")[1]

    running = server.start(*serve)
    until(lambda: "paired robots alone are served: kitchen" in running.stdout.readline())
    profile = write_fast_profile(tmp_path / "so101_fast.toml")
    run = Deployment(tmp_path, f"--policy=tcp://{HOST}:{port}/arm", profile)
    try:
        run.wait_for("robot        running", 60)
        assert "is served no more" in server.says("pair", "--revoke=kitchen")[1]
        until(lambda: "does not take this robot: it is not paired there, or not any more" in run.output, 15)
        until(lambda: "holding: " in run.output, 15)
        run.process.send_signal(signal.SIGTERM)
        assert run.wait_for_end() == 0, run.output
        assert judge(run.trace(), run.profile, TRAINED_SPEED, 120.0).violations == []
    finally:
        run.close()
    running.send_signal(signal.SIGTERM)
    output, errors = running.communicate(timeout=20)
    assert (running.returncode, errors) == (0, "")
    assert "'kitchen' is not paired any more: thrown out" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_pairing_is_given_up_in_order_and_nothing_is_kept(machines, number):
    server, _ = machines
    desk = server.start("serve", "--pair", f"--bind=tcp://{HOST}:{free_port()}")
    assert "code: " in desk.stdout.readline()
    desk.send_signal(number)
    _, errors = desk.communicate(timeout=20)
    assert desk.returncode == (130 if number == signal.SIGINT else -signal.SIGTERM)
    assert "Traceback" not in errors
    assert "none" in server.says("pair", "--list")[1]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["pair"], 2, "say one of: edgevla pair HOST"),
        (["pair", "gpu", "--list"], 2, "say one of: edgevla pair HOST"),
        (["pair", "--list", "--code=123456"], 2, "--code and --name go with a host"),
        (["pair", "gpu", "--code=12345"], 2, "the code has 6 digits"),
        (["pair", "gpu", "--name=a b"], 2, "--name a b: letters, digits"),
        (["pair", "tcp://gpu:5599/act"], 2, "expected HOST or HOST:PORT"),
        (["pair", "--revoke=gpu"], 2, "no paired machine is called 'gpu'"),
        (["serve"], 2, "no policy to serve: edgevla serve BUNDLE, or edgevla serve --pair"),
        (["serve", "--pair", "act", "--paired"], 2, "leave BUNDLE, --paired out"),
        (["serve", "--pair", "--bind=tcp://0.0.0.0:5598/act"], 2, "leave /act out"),
        (["serve", "--pair", "--bind=tcp://203.0.113.9:5598"], 1, "no address of this machine"),
        (["serve", "--pair", "--bind=tcp://nosuch.invalid:5598"], 1, "no address of this machine"),
    ],
)
def test_what_cannot_be_is_one_sentence(words, code, sentence, tmp_path, monkeypatch, capsys):
    from edgevla.cli import main

    monkeypatch.setenv("EDGEVLA_HOME", str(tmp_path))
    assert main(words) == code
    assert sentence in capsys.readouterr().err

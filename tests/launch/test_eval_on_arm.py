"""`edgevla eval --robot` as a person meets it: a real terminal, real processes, an emulated arm on a serial port."""

import contextlib
import json
import os
import re
import resource
import secrets
import shlex
import sys
import time
from itertools import groupby

import psutil
import pytest
from deployment_kit import MARK, LivingArm, Terminal, make_bundle

from edgevla.cli import main
from edgevla.dataset import open_dataset
from edgevla.dataset.stated import read_stated
from edgevla.errors import ConfigError

pytestmark = pytest.mark.realtime

READY, RUNS, ASKS = "Enter when ready", "it runs, at most", "Success? s or y"


class Desk:
    """One command in a shell of its own, and what is said after what was waited for before."""

    def __init__(self, folder, number, words):
        self._mark = secrets.token_hex(8)
        self.shell = Terminal({**os.environ, MARK: self._mark}, folder / f"shown{number}.txt")
        self._seen = 0
        self.shell.type(shlex.join([sys.executable, "-m", "edgevla", "eval", *words]) + "; echo code=$?\n")
        self.sees("edgevla eval ")

    @property
    def shown(self):
        return self.shell.output_path.read_text(errors="replace")

    def sees(self, words, timeout_s=90.0):
        deadline = time.monotonic() + timeout_s
        while (found := self.shown.find(words, self._seen)) < 0:
            assert time.monotonic() < deadline, f"never said {words!r}:\n{self.shown}"
            time.sleep(0.02)
        self._seen = found + len(words)
        return self

    def presses(self, key):
        """After the pause by which a person's next press differs from a key that is held down."""
        time.sleep(0.9)
        self.shell.type(key)
        return self

    def episode(self, key):
        return self.sees(READY).presses("\n").sees(RUNS).presses(key).sees(" after ")

    def processes(self, word):
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self._mark and word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill(self, word):
        for process in self.processes(word):
            with contextlib.suppress(psutil.Error):
                process.kill()

    def close(self):
        self.shell.close()
        self.kill("edgevla")


@pytest.fixture
def sit_down(tmp_path, own_runtime):
    """`sit_down(*words)` types the command; what is left of it ends with the test."""
    desks = []

    def start(*words):
        desks.append(Desk(tmp_path, len(desks), [*words, "-o", str(tmp_path / "out")]))
        return desks[-1]

    yield start
    for desk in desks:
        desk.close()


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out/episodes.jsonl").read_text().splitlines()]


def test_two_policies_blindly_on_a_serial_port_and_a_power_cut_between(sit_down, tmp_path, fast_profile):
    """The servos keep their torque from the first episode to the last policy's; what was judged survives."""
    bundles = [
        str(make_bundle(tmp_path / name, cameras=(), target=[a, -10.0, 15.0, -5.0, 0.0, 40.0]))
        for name, a in (("blue", 20.0), ("green", -20.0))
    ]
    arm = LivingArm(tmp_path, fast_profile)
    words = [
        *bundles,
        "--robot",
        str(fast_profile),
        *arm.options,
        "--episodes",
        "2",
        "--seconds",
        "2",
        "--task",
        "reach",
    ]
    try:
        desk = sit_down(*words)
        desk.sees("So few cannot tell two settings apart").episode("s")
        desk.sees("second policy: put everything back exactly as it was").presses("\n").sees(ASKS).presses(
            "n"
        )
        desk.sees(" after ").sees(READY).presses("\n").sees(RUNS)
        desk.kill("edgevla")  # everything at once, amid an episode
        hidden = desk.shown[desk.shown.index("So few") :]
        assert "blue" not in hidden
        assert "green" not in hidden

        desk = sit_down(*words)
        desk.sees("2 of 4 are judged already").sees("round 2 of 2, first policy").presses("\n").sees(
            RUNS
        ).presses("f")
        desk.sees(" after ").sees("round 2 of 2, second policy").presses("\n").sees(RUNS).presses("y").sees(
            " after "
        )
        desk.sees("all episodes are judged").presses("\n").sees("code=0")
    finally:
        trace = arm.trace()
    info = json.loads((tmp_path / "out/eval_info.json").read_text())
    assert info["kind"] == "robot"
    order = info["order"]["rounds"]
    assert sorted(order) == [[0, 1], [1, 0]], "each policy begins one round"
    said = [[True, False], [False, True]]
    for cell, name, policy in zip(info["cells"], ("blue", "green"), (0, 1), strict=True):
        assert cell["name"] == name
        assert [e["success"] for e in cell["per_episode"]] == [
            said[r][order[r].index(policy)] for r in (0, 1)
        ]
        assert cell["aggregated"]["n_success"] == sum(e["success"] for e in cell["per_episode"])
    dataset = open_dataset(tmp_path / "out/rollouts")
    assert dataset.n_episodes == 4
    dataset.close()
    assert list(read_stated(tmp_path / "out/rollouts").success) == [True, False, False, True]
    torque = [
        entry["values"]["1"]
        for entry in trace
        if entry["dir"] == "tx" and entry.get("register") == "torque_enable" and "1" in entry["values"]
    ]
    assert [value for value, _ in groupby(torque)].count(1) == 2, "once per evening, whatever the policies"
    assert torque[-1] == 0


def test_what_a_person_does_at_the_keyboard_and_the_keyboard_is_as_before(
    sit_down, tmp_path, bundle, fast_profile
):
    sim = [
        "--robot",
        str(fast_profile),
        "--sim",
        "--task",
        "follow_cube",
        "--sim-trace",
        str(tmp_path / "trace.jsonl"),
    ]
    desk = sit_down(str(bundle), *sim, "--episodes", "2", "--seconds", "20")
    desk.sees("the arm moves home").sees(READY)
    desk.presses("yes, it was a success\n").sees("are text: none was obeyed")
    desk.presses("s").sees("no episode waits for a verdict")
    time.sleep(0.9)
    for _ in range(30):  # held down: it begins the episode, and does not hold it
        desk.shell.type("\n")
        time.sleep(0.03)
    desk.sees(RUNS).presses("e").sees("EMERGENCY STOP").presses("s").sees("the emergency stop is latched")
    desk.presses("\x12").sees("the arm holds where it is").presses("\n")
    desk.episode("s").sees(READY).presses("u").sees("was judged success").presses("f").sees("now failure")
    desk.sees(READY).presses("\n").sees(RUNS).presses("\x03").sees("the arm moves to rest").sees("code=130")
    verdicts = [line for line in lines(tmp_path) if "verdict" in line]
    assert len(verdicts) == 1
    assert [line["void"] for line in lines(tmp_path) if "void" in line] == [
        "key e", "Ctrl-C",
    ]  # fmt: skip
    desk.presses("stty -a\n").sees("iexten")
    modes = desk.shown.rpartition("stty -a")[2]
    for mode in ("icanon", "echo", "isig"):
        assert re.search(rf"(?<!-)\b{mode}\b", modes), modes


def test_what_dies_amid_an_episode_costs_that_episode_only(sit_down, tmp_path, bundle, fast_profile):
    sim = ["--robot", str(fast_profile), "--sim", "--task", "follow_cube"]
    desk = sit_down(str(bundle), *sim, "--episodes", "2", "--seconds", "30")
    desk.episode("s")
    for word, why in (
        ("edgevla.nodes.policy", "policy's process has ended"),
        ("sim_camera", "camera 'front'"),
    ):
        desk.sees(READY).presses("\n").sees(RUNS)
        desk.kill(word)
        desk.sees("does not count").sees("the arm moves home")
        assert why in [line["void"] for line in lines(tmp_path) if "void" in line][-1]
    desk.sees(READY).presses("\n").sees(RUNS)
    desk.kill("emulator.cli")
    desk.sees("the deployment has ended").sees("Enter starts it again").presses("\n")
    desk.episode("f").sees("all episodes are judged").presses("q").sees("code=0")
    info = json.loads((tmp_path / "out/eval_info.json").read_text())
    assert [e["success"] for e in info["per_episode"]] == [True, False]
    assert info["n_void"] == 3


def test_a_full_disk_costs_the_pictures_and_no_verdict(sit_down, tmp_path, bundle, fast_profile):
    sim = ["--robot", str(fast_profile), "--sim", "--task", "follow_cube"]
    desk = sit_down(str(bundle), *sim, "--episodes", "1", "--expect", "0.9")
    desk.sees(READY)
    (command,) = [p for p in desk.processes("edgevla eval") if p.cmdline()[1:4] == ["-m", "edgevla", "eval"]]
    resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (7_000, resource.RLIM_INFINITY))
    desk.presses("\n").sees(ASKS).presses("f").sees("its verdict counts all the same")
    desk.sees("all episodes are judged")
    resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    desk.presses("\n").sees("expected 90 %").sees("code=1")
    assert [line["success"] for line in lines(tmp_path) if "verdict" in line] == [False]
    assert not [line for line in lines(tmp_path) if "rollout" in line]


def test_a_misspelt_arm_leaves_nothing_behind(tmp_path, bundle, capsys):
    words = [
        "eval",
        str(bundle),
        "--robot",
        "nonsuch",
        "--sim",
        "--task",
        "follow_cube",
        "-o",
        str(tmp_path / "out"),
    ]
    assert main(words) == ConfigError.exit_code
    assert "unknown robot 'nonsuch'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

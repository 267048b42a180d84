"""The demo's pieces that need no training: the stage that runs processes, the table, demonstrations, statistics."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgevla.dataset import open_dataset
from edgevla.dataset.check import check_dataset
from edgevla.demo import stage
from edgevla.demo.stage import DemoCommand, run_side_by_side
from edgevla.demo.table import closing_words
from edgevla.errors import EdgeVLAError
from edgevla.evaluation.statistics import wilson
from edgevla.execution import execution_from
from edgevla.robots.trials.closed_loop import ClosedLoop
from edgevla.robots.trials.contest import misalign
from edgevla.robots.trials.demonstrate import DemonstrationPlan, demonstrate
from edgevla.robots.trials.experts.follow_cube import FollowCubeExpert
from edgevla.robots.world.follow_cube import kinematics
from edgevla.robots.world.follow_cube.places import CONVEYOR, REST, above, first_posture, place, velocity
from edgevla.robots.world.follow_cube.scene import SceneCamera
from edgevla.robots.world.follow_cube.world import FollowCube
from edgevla.simulated import TASKS, task_named


def test_demonstrations_are_a_sound_dataset_of_what_was_seen(tmp_path):
    result = demonstrate(tmp_path / "demos", DemonstrationPlan("follow_cube/conveyor", 2, n_steps=40, seed=3))
    assert result["n_frames"] == 80
    dataset = open_dataset(tmp_path / "demos")
    assert dataset.tasks == ["follow the cube on the belt"]
    assert not [f for f in check_dataset(tmp_path / "demos") if f.severity == "error"]
    state, action = dataset.columns["observation.state"], dataset.columns["action"]
    # The label is the clean step of at most 0.05 rad from where the arm was seen, the disturbance is not in it.
    assert np.abs(action - state)[:, :5].max() <= np.rad2deg(0.05) + 0.01
    steps = np.diff(state[:40, 1])
    assert steps.std() > 0.1, "the execution is disturbed"
    # The picture belongs to its row: the cube is red where the world had it at that moment.
    for row in (0, 30):
        cube = place(CONVEYOR, 3, 0) + velocity(CONVEYOR) * row / 30
        (x, y), _ = SceneCamera("front", 64, 64).pinhole.project(cube)
        patch = dataset.frame("observation.images.front", row)[
            round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2
        ]
        red, green, blue = patch.reshape(-1, 3).mean(0)
        assert red > 120, (row, red)
        assert max(green, blue) < 110


def perfect(loop_of, task, delay_steps, chunk=30):
    """A policy that knows the world: the expert's own future, as if it had been learnt perfectly."""
    expert = FollowCubeExpert(task)

    def policy(seen, **_):
        world = loop_of["world"]
        joints = kinematics.radians(seen.state)
        postures = expert.postures(world.cube_m, chunk)
        goals = []
        for posture in postures:
            joints = expert.step(joints, posture)
            goals.append(kinematics.robot_units(joints))
        return np.array(goals, np.float32)

    return policy


def follow(execution, delay_steps, misaligned=False, n=2):
    """Success of a perfect policy on the conveyor, in lock-step through control loop, driver and servos."""
    verdicts = []
    for episode in range(n):
        world = FollowCube(task_named(CONVEYOR), 77, episode_s=0)
        loop = ClosedLoop(
            perfect({"world": world}, CONVEYOR, delay_steps),
            chunk_size=30,
            n_action_steps=15,
            execution=execution_from({"kind": execution}),
            delay_ticks=delay_steps,
            world=world,
            servo_hz=30.0,
        )
        if misaligned:
            misalign(loop)
        loop.put(kinematics.robot_units(kinematics.READY_RAD))
        loop.start(latency_ms=delay_steps / 30 * 1000)
        world.reset(episode, loop.clock.now_ns())
        loop.run(TASKS[CONVEYOR].episode_s)
        verdicts.append(world.verdict())
    return verdicts


@pytest.mark.parametrize("task", [REST, CONVEYOR])
def test_demonstrations_begin_where_an_episode_or_a_deployment_leaves_the_arm(task):
    """With the jaws of that moment: a policy that never saw open jaws far from the cube does not come back to it."""
    starts = np.array([first_posture(task, 0, episode) for episode in range(200)])
    jaws, tool = kinematics.gripper_percent(starts[:, 5]), kinematics.forward(starts)
    is_far = np.linalg.norm(tool - above(np.array([place(task, 0, e) for e in range(200)])), axis=-1) > 0.15
    assert (jaws[is_far] > 55).mean() > 0.3, "as the last episode ends"
    assert (jaws < 20).sum() > 5, "as the home pose has them"
    assert ((jaws > 20) & (jaws < 40)).mean() > 0.3


def test_at_200_ms_only_an_aligned_executor_follows_the_belt():
    """The demo's point, without its training: the policy is perfect, so what fails is the execution."""
    assert all(v.is_success for v in follow("sync", 0))
    aligned, late, naive = follow("async", 6), follow("sync", 6), follow("async", 6, misaligned=True)
    assert all(v.is_success for v in aligned)
    assert not any(v.is_success for v in late)
    assert not any(v.is_success for v in naive)
    assert np.mean([v.figures["rms_mm"] for v in aligned]) < 0.5 * np.mean(
        [v.figures["rms_mm"] for v in late]
    )


def test_the_stage_runs_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "script_of_test.py").write_text("import time; time.sleep(1.0); print('done')")
    works = [DemoCommand(name, ["script_of_test"]) for name in ("one", "two")]
    began = time.monotonic()
    run_side_by_side(works, tmp_path / "logs", lambda _: None)
    assert [w.latest for w in works] == ["done", "done"]
    assert time.monotonic() - began < 10
    assert (tmp_path / "logs" / "one.log").read_text().startswith("$ python -m script_of_test")


def test_a_step_that_fails_ends_the_others_and_says_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "bad_of_test.py").write_text(
        "import sys; print('no such camera', file=sys.stderr); sys.exit(3)"
    )
    (tmp_path / "long_of_test.py").write_text(
        "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    )
    works = [
        DemoCommand("long", ["long_of_test"]),
        DemoCommand("bad", ["bad_of_test"]),
    ]
    with pytest.raises(EdgeVLAError, match=r"'bad' ended with code 3: no such camera"):
        run_side_by_side(works, tmp_path / "logs", lambda _: None)
    assert works[0].process.poll() is not None


@pytest.fixture
def interrupts():
    """As at a terminal: a shell that starts the tests in the background has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_in_the_midst_of_starting_a_step_leaves_no_process_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "long_of_test.py").write_text("import time; time.sleep(60)")
    born = []

    def start_and_be_interrupted(*words, **options):
        born.append(popen(*words, **options))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)  # in the main thread, KeyboardInterrupt comes here: the caller never sees its process
        return born[-1]

    popen = subprocess.Popen
    monkeypatch.setattr(stage.subprocess, "Popen", start_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_side_by_side([DemoCommand("long", ["long_of_test"])], tmp_path / "logs", lambda _: None)
    assert [process.poll() is not None for process in born] == [True]


@pytest.mark.usefixtures("interrupts")
def test_a_second_ctrl_c_kills_a_step_that_does_not_heed_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "deaf_of_test.py").write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: pathlib.Path(sys.argv[1] + '.asked').touch())\n"
        "pathlib.Path(sys.argv[1] + '.ready').touch()\n"
        "for _ in range(600): time.sleep(0.1)"
    )
    works = [DemoCommand(name, ["deaf_of_test", str(tmp_path / name)]) for name in ("one", "two")]

    def press_twice():
        for word in ("ready", "asked"):
            while not all((tmp_path / f"{work.name}.{word}").exists() for work in works):
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press_twice, daemon=True)
    presser.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_side_by_side(works, tmp_path / "logs", lambda _: None)
    presser.join()
    assert time.monotonic() - began < stage.END_S
    assert [work.process.poll() for work in works] == [-signal.SIGKILL] * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_demo_and_all_it_started(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "edgevla", "demo", "--quick", "--output", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = tmp_path / "run" / "logs" / "demonstrate-rest.log"
    deadline = time.monotonic() + 30
    while not log.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err
    needle = str(tmp_path / "run").encode()
    left = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if needle in entry.read_bytes():
                left.append(entry.parent.name)
    assert not left


def test_the_closing_words_hold_every_cell_and_what_to_do_next():
    def cell(task, execution, delay, good, control="none"):
        n = 60
        return {"task": task, "execution": execution, "delay_ms": delay, "control": control, "n": n,
                "n_success": good, "success": good / n, "interval": list(wilson(good, n)), "rms_mm": 7.0}  # fmt: skip

    results = {
        "size": {"learns": True},
        "passed": True,
        "folder": "demo-runs/x",
        "seconds": {"train": 100.0, "all": 420.0},
        "rollouts": [{"task": REST, "execution": "sync", "delay_ms": 0.0, "n": 6, "n_success": 6, "summary": {}}],
        "trials": [cell(REST, "sync", 0, 60), cell(CONVEYOR, "sync", 200, 0), cell(CONVEYOR, "async", 200, 58),
                   cell(REST, "sync", 0, 1, "black")],
    }  # fmt: skip
    text = closing_words(results)
    for words in (
        "cube at rest",
        "60/60",
        "0/60",
        "58/60",
        "0 to 6 %",
        "control: black pictures",
        "7.0 minutes",
        "edgevla doctor",
    ):
        assert words in text, words
    assert max(len(line) for line in text.splitlines()) <= 130
    assert "fall short" in closing_words({**results, "passed": False})

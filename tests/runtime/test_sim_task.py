"""`deploy --sim` of tasks with physics: real processes, pseudo-terminals, cameras drawn in a process of their own."""

import subprocess
import sys

import numpy as np
import pytest

from edgevla.errors import CameraError
from edgevla.flight.reader import entries
from edgevla.robots.world.physics import gl

pytestmark = pytest.mark.realtime
pytest.importorskip("mujoco")


@pytest.fixture
def aloha_bundle(tmp_path, bundle_maker):
    """Looks through `top`; turns both waists inwards and opens the grippers."""
    arm = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
    joints = {}
    for side in ("left", "right"):
        joints |= {f"{side}_{name}": ("rad", -1.5, 1.5) for name in arm}
        joints[f"{side}_gripper"] = ("unit", 0.0, 1.0)
    target = [0.3, -0.96, 1.16, 0.0, -0.3, 0.0, 0.9] * 2
    return bundle_maker(
        tmp_path / "aloha", cameras=("top",), size=(48, 64), joints=joints, target=target, fps=50.0
    )


def deploy(*args):
    done = subprocess.run(
        [sys.executable, "-m", "edgevla", "deploy", *map(str, args)],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr + done.stdout


def test_a_task_s_name_puts_the_arms_into_its_world_and_the_policy_sees_it(aloha_bundle, tmp_path):
    try:
        gl.find_platform()
    except CameraError as error:
        pytest.skip(str(error))
    code, said = deploy(
        aloha_bundle, "--robot=aloha", "--sim", "--task=aloha/transfer_cube", "--duration=6", "--json",
        f"--log={tmp_path / 'log'}",
    )  # fmt: skip
    assert code == 0, said
    run = list(entries(tmp_path / "log" / "latest"))
    states = [line for line in run if line.get("type") == "state" and line.get("mode") == "running"]
    assert states[-1]["task"] == "pick up the cube with the right arm and hand it to the left arm"
    reached = np.array(states[-1]["position"])
    assert reached[[0, 7]] == pytest.approx([0.3, 0.3], abs=0.05)
    assert (reached[[6, 13]] > 0.7).all()


@pytest.mark.parametrize("option", ["--sim-task", "--task"])
def test_a_task_of_another_robot_is_refused_and_the_robot_s_own_are_named(bundle, option):
    code, said = deploy(bundle, "--robot=so101", "--sim", f"{option}=aloha/insertion")
    assert code == 2
    assert (
        "the simulated task 'aloha/insertion' is for aloha, not for so101; tasks of so101: follow_cube"
        in said
    )


def test_an_unknown_task_is_refused_with_the_nearest_name(bundle):
    code, said = deploy(bundle, "--robot=so101", "--sim", "--sim-task=aloha/insertoin")
    assert code == 2
    assert "did you mean 'aloha/insertion'" in said

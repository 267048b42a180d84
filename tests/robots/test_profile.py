"""Profiles: all of ours load; a wrong one is a sentence with file, table and key."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgevla.errors import ConfigError
from edgevla.robots.profile import PROFILES_DIR, load_profile, profile_names

ALOHA_NAMES = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")


def test_every_shipped_profile_loads():
    assert {"so101", "so101_bimanual", "aloha", "so101_leader", "widowx250s", "aloha_leader"} <= set(
        profile_names()
    )
    for name in profile_names():
        profile = load_profile(name)
        assert profile.name == name
        for joint in profile.joints:
            assert joint.min <= joint.home <= joint.max
            assert joint.min <= joint.rest <= joint.max


def test_joint_order_is_the_datasets():
    assert [j.name for j in load_profile("so101").joints] == [
        "shoulder_pan.pos", "shoulder_lift.pos", "elbow_flex.pos", "wrist_flex.pos", "wrist_roll.pos", "gripper.pos",
    ]  # fmt: skip
    aloha = [j.name for j in load_profile("aloha").joints]
    assert aloha == [f"{side}_{name}" for side in ("left", "right") for name in ALOHA_NAMES]
    assert [j.name for j in load_profile("so101_bimanual").joints][6] == "right_shoulder_pan.pos"


def test_aloha_has_nine_servos_per_arm_of_which_two_are_shadows():
    for bus in load_profile("aloha").buses:
        assert [m.id for m in bus.motors] == list(range(1, 10))
        assert [m.shadow_of for m in bus.motors if m.shadow_of] == [
            f"{bus.name}_shoulder",
            f"{bus.name}_elbow",
        ]


def edited(tmp_path, old, new, name="so101"):
    text = (PROFILES_DIR / f"{name}.toml").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    return path


WRONG = [
    (
        'model = "sts3215"',
        'model = "stc3215"',
        r"table \[\[motor\]\] 'shoulder_pan', key 'model'.*did you mean 'sts3215'",
    ),
    ("baud = 1000000", "baud = 57601", r"table \[\[bus\]\] 'arm', key 'baud': 57601 is not one of"),
    (
        "max_velocity = 180.0",
        "max_velocty = 180.0",
        r"key 'max_velocity': is missing; the file has 'max_velocty'",
    ),
    ("home = 0.0", "home = 0.0\nhom = 1", r"key 'hom': is unknown; did you mean 'home'"),
    ("id = 2", "id = 1", r"'shoulder_lift', key 'id': two motors of bus 'arm' have id 1"),
    ("home = 0.0", "home = 500.0", r"key 'home': 500.0 is outside -110..110"),
    (
        "hold_ms = 2000",
        "hold_mss = 2000",
        r"table \[escalation\], key 'hold_mss': is unknown; did you mean 'hold_ms'",
    ),
    (
        "limits = [-110, 110]",
        "limits = [110, -110]",
        "key 'limits': the lower limit 110 is not below the upper -110",
    ),
    ("limits = [-110, 110]", "limits = [1]", r"key 'limits': expected \[lower, upper\]"),
    ("position_p = 16", "position_q = 16", r"key 'settings.position_q'.*did you mean 'position_"),
    (
        "position_p = 16",
        "position_p = 300",
        r"key 'settings.position_p': 300 is not a whole number within 0..255",
    ),
    ('bus = "arm"', 'bus = "arn"', r"key 'bus': 'arn' is not one of arm; did you mean 'arm'"),
    ('kind = "follower"', 'kind = "folower"', r"key 'kind'.*did you mean 'follower'"),
    ("release = true", 'release = "yes"', r"\[escalation\], key 'release': expected true or false"),
    ('name = "so101"', "name = ", "is not valid TOML"),
    ("width = 640", "width = 640.5", r"\[\[camera\]\] 'front', key 'width': expected a whole number"),
]


@pytest.mark.parametrize(("old", "new", "sentence"), WRONG, ids=[w[1][:24] for w in WRONG])
def test_a_wrong_profile_names_file_table_and_key(tmp_path, old, new, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_profile(edited(tmp_path, old, new))
    assert "mine.toml" in str(caught.value)


def test_a_shadow_of_nothing_is_refused(tmp_path):
    path = edited(tmp_path, 'shadow_of = "left_shoulder"', 'shadow_of = "left_sholder"', "aloha")
    with pytest.raises(ConfigError, match="did you mean 'left_shoulder'"):
        load_profile(path)


def test_a_user_s_own_file_is_a_profile(tmp_path):
    path = edited(tmp_path, 'name = "so101"', 'name = "mine"')
    assert load_profile(str(path)).name == "mine"
    with pytest.raises(ConfigError, match="does not exist"):
        load_profile(tmp_path / "other.toml")
    with pytest.raises(ConfigError, match="unknown robot 'so1001'; known: aloha"):
        load_profile("so1001")


def test_the_guardian_s_modules_need_no_numpy():
    code = (
        "import sys; sys.modules['numpy'] = None; "
        "from edgevla.robots.rescue import Rescue; from edgevla.robots.profile import load_profile; "
        "from edgevla.robots.ports import choose_ports; from edgevla.robots import calibration; "
        "load_profile('aloha')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

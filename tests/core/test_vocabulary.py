"""What a person writes after an option means the same in every verb."""

from __future__ import annotations

import argparse
import importlib

import pytest

from edgevla.errors import UsageError
from edgevla.vocabulary import (
    NONE,
    Side,
    camera_help,
    join,
    matches,
    once,
    pairs,
    robots_name,
    short_name,
    size,
)

STEREO = ["observation.images.left.rgb", "observation.images.right.rgb"]
LEFT, RIGHT = STEREO


def test_pairs_are_read_in_their_order_and_a_value_may_hold_an_equals_sign() -> None:
    assert list(pairs(["b=1", "a=x=y"], "--set").items()) == [("b", "1"), ("a", "x=y")]


@pytest.mark.parametrize("text", ["front", "front=", "=0", "="])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"--camera {text}: expected NAME=VALUE"):
        pairs([text], "--camera")


def test_a_name_given_twice_is_refused_with_both_values() -> None:
    with pytest.raises(UsageError, match="--set k is given twice, as 1 and as 2"):
        pairs(["k=1", "j=1", "k=2"], "--set")
    with pytest.raises(UsageError, match="--motor a is given twice"):
        once(["a", "b", "a"], "--motor")


def test_a_size_is_said_width_first() -> None:
    assert size("640x480", "--camera-size front") == size("640X480", "") == (480, 640)


@pytest.mark.parametrize(
    "text", ["640", "640x", "x480", "0x480", "640x480x3", "-1x2", "½x2", "64.0x48", "٣x٤"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected WIDTHxHEIGHT"):
        size(text, "--camera-size front")


def test_a_camera_is_named_in_full_or_by_an_end_of_its_name() -> None:
    cameras = ["observation.images.front", "observation.image", *STEREO]
    assert matches("front", cameras) == matches("observation.images.front", cameras) == cameras[:1]
    assert matches("image", cameras) == ["observation.image"]
    assert matches("left.rgb", cameras) == [LEFT]
    assert matches("rgb", cameras) == STEREO
    assert matches("ront", cameras) == []


def test_a_name_in_full_wins_over_the_end_of_another() -> None:
    assert matches("rgb", ["observation.images.rgb", LEFT]) == ["observation.images.rgb"]


def test_the_short_name_is_one_that_leads_back() -> None:
    cameras = ["observation.images.front", *STEREO, "observation.images.front.left.rgb"]
    for camera in cameras:
        assert matches(short_name(camera, cameras), cameras) == [camera]
    assert short_name("observation.images.front", cameras[:3]) == "front"
    assert robots_name(LEFT, STEREO) == "left_rgb", "a robot's camera has no dot in its name"


def test_a_source_is_joined_in_either_order_and_none_leaves_out() -> None:
    policy = Side("the policy", ["observation.images.camera1", "observation.images.camera2"])
    dataset = Side("the dataset", ["observation.images.front"])
    expected = {"observation.images.camera1": "observation.images.front", "observation.images.camera2": NONE}
    assert join({"camera1": "front", "camera2": "none"}, policy, dataset) == expected
    assert join({"front": "camera1", "camera2": "none"}, policy, dataset) == expected


def test_where_both_orders_have_a_meaning_the_name_comes_first() -> None:
    both = ["observation.images.a", "observation.images.b"]
    joined = join({"a": "b"}, Side("the policy", both), Side("the dataset", both))
    assert joined == {both[0]: both[1]}


@pytest.mark.parametrize(
    "said", [{"rgb": "none"}, {"rgb": "front"}, {"front": "rgb"}], ids=["left out", "fed", "the other way"]
)
def test_a_name_that_may_mean_two_cameras_is_refused_with_both(said: dict[str, str]) -> None:
    policy, robot = Side("the policy", STEREO), Side("the dataset", ["observation.images.front"])
    with pytest.raises(UsageError, match=f"'rgb' may mean {LEFT} or {RIGHT} of the policy; write it in full"):
        join(said, policy, robot)


def test_one_camera_under_two_of_its_names_is_refused() -> None:
    with pytest.raises(UsageError, match=r"names .observation\.images\.left\.rgb. of the policy twice"):
        join({"left.rgb": "a", LEFT: "b"}, Side("the policy", STEREO), Side("the robot", None))


def test_a_name_nobody_has_is_said_with_what_there_is() -> None:
    with pytest.raises(
        UsageError, match=r"the policy has no camera 'side'.*it has observation.images.left.rgb"
    ):
        join({"side": "front"}, Side("the policy", STEREO), Side("the robot", None))


VERBS = ["edgevla.train.cli", "edgevla.export.cli", "edgevla.launch.deploy_cli", "edgevla.robots.teleop"]


@pytest.mark.parametrize("module", [*VERBS, "edgevla.launch.record_cli"])
def test_camera_is_explained_by_one_sentence_in_every_verb(module: str) -> None:
    parser = argparse.ArgumentParser()
    importlib.import_module(module).add_arguments(parser)
    (action,) = (a for a in parser._actions if "--camera" in a.option_strings)
    before, _, after = camera_help("|").partition("|")
    assert action.help is not None
    assert action.help.startswith(before)
    assert action.help.endswith(after)

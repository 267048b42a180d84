"""Joining the dataset's cameras with the policy's, by short names, in either order, or with none."""

from __future__ import annotations

import pytest

from edgevla.errors import UsageError
from edgevla.train.cameras import Cameras, for_fresh_policy, for_policy

DATA = ["observation.images.front", "observation.images.wrist"]
BASE = ["observation.images.camera1", "observation.images.camera2"]
FRONT, WRIST = DATA
ONE, TWO = BASE


def test_a_fresh_policy_takes_all_cameras_under_their_names() -> None:
    assert for_fresh_policy({}, DATA) == Cameras()


def test_a_fresh_policy_may_leave_out_and_rename() -> None:
    assert for_fresh_policy({"wrist": "none", "front": "top"}, DATA) == Cameras(
        {FRONT: "observation.images.top"}, unused=(WRIST,)
    )


@pytest.mark.parametrize(
    "wanted", [{"camera1": "front", "camera2": "wrist"}, {"front": "camera1", WRIST: TWO}]
)
def test_either_order(wanted: dict[str, str]) -> None:
    assert for_policy(wanted, DATA, BASE, {}) == Cameras({FRONT: ONE, WRIST: TWO})


def test_an_absent_camera_and_one_that_is_not_needed() -> None:
    assert for_policy({"camera1": "front", "camera2": "none"}, DATA, BASE, {}) == Cameras(
        {FRONT: ONE}, (TWO,), (WRIST,)
    )


def test_equal_names_need_no_binding_and_the_checkpoints_own_map_counts() -> None:
    assert for_policy({}, DATA, DATA, {}) == Cameras()
    assert for_policy({}, DATA, BASE, {FRONT: ONE, WRIST: TWO}) == Cameras({FRONT: ONE, WRIST: TWO})


def test_empty_cameras_of_a_checkpoint_are_absent_by_themselves() -> None:
    empty = "observation.images.empty_camera_0"
    assert for_policy({}, DATA, [*DATA, empty], {}) == Cameras(absent=(empty,))


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({}, "camera1=front"),
        ({"camera1": "front"}, "camera2=wrist"),
        ({"camera1": "front", "camera2": "front"}, "two cameras"),
        ({"camera1": "none", "camera2": "none"}, "without any camera"),
        ({"camera1": "side"}, "must join"),
    ],
)
def test_what_does_not_fit_is_said_with_the_words_to_type(wanted: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        for_policy(wanted, DATA, BASE, {})


def test_where_no_camera_is_left_none_is_the_only_cure() -> None:
    with pytest.raises(UsageError, match=r"\); do without it: --camera camera3=none"):
        for_policy({"camera1": "front", "camera2": "wrist"}, DATA, [*BASE, "observation.images.camera3"], {})


def test_two_cameras_cannot_have_one_name() -> None:
    with pytest.raises(UsageError, match="same name"):
        for_fresh_policy({"front": "wrist"}, DATA)

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


@pytest.mark.parametrize("named", [{"top": "front"}, {"front": "top"}, {"top": FRONT}], ids=str)
def test_a_fresh_policy_may_leave_out_and_rename(named: dict[str, str]) -> None:
    assert for_fresh_policy({"wrist": "none", **named}, DATA) == Cameras(
        {FRONT: "observation.images.top"}, unused=(WRIST,)
    )


@pytest.mark.parametrize(
    "wanted",
    [{"front": "none", FRONT: "none"}, {"front": "none", "top": "front"}, {"a": "front", "b": "front"}],
)
def test_a_camera_of_the_dataset_has_one_fate(wanted: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=f"'{FRONT}' of the dataset twice"):
        for_fresh_policy(wanted, DATA)


STEREO = ["observation.images.left.rgb", "observation.images.right.rgb"]


@pytest.mark.parametrize("wanted", [{"rgb": "none"}, {"rgb": "front"}], ids=str)
def test_a_name_that_two_cameras_end_with_is_refused_with_both(wanted: dict[str, str]) -> None:
    for join in (lambda: for_fresh_policy(wanted, STEREO), lambda: for_policy(wanted, DATA, STEREO, {})):
        with pytest.raises(UsageError, match=r"left\.rgb.*right\.rgb"):
            join()
    assert for_fresh_policy({"left.rgb": "none"}, STEREO).unused == (STEREO[0],)


def test_the_words_to_type_are_ones_that_work() -> None:
    with pytest.raises(
        UsageError, match=r"--camera left\.rgb=front, or do without it: --camera left\.rgb=none"
    ):
        for_policy({}, DATA, STEREO, {})
    assert for_policy({"left.rgb": "front", "right.rgb": "none"}, DATA, STEREO, {}).absent == (STEREO[1],)


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
        ({"camera1": "side"}, "the dataset has no camera 'side'"),
        ({"wrist": "none"}, "the policy has no camera 'wrist'"),
        ({"camera1": "front", FRONT: ONE}, "twice"),
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

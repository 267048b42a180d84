"""Which camera of the robot feeds which of the policy, in a bundle."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgevla.errors import UsageError
from edgevla.export.features import _bind_cameras
from edgevla.export.options import ExportOptions

STEREO = ["observation.images.left.rgb", "observation.images.right.rgb"]
LEFT, RIGHT = STEREO


def bind(names: list[str], **said: str) -> dict[str, str]:
    cameras = {k.replace("__", "."): v for k, v in said.items()}
    policy: Any = SimpleNamespace(
        config=SimpleNamespace(image_features=dict.fromkeys(names)),
        processors=SimpleNamespace(rename_map={}),
    )
    return _bind_cameras(policy, None, ExportOptions(cameras=cameras))[0]


def test_cameras_that_end_alike_are_names_of_their_own_for_the_robot() -> None:
    assert bind(STEREO) == {LEFT: "left_rgb", RIGHT: "right_rgb"}
    assert bind(STEREO, left__rgb="front", right__rgb="none") == {LEFT: "front", RIGHT: "none"}


def test_an_end_that_two_cameras_have_is_refused_with_both() -> None:
    for said in ("none", "front"):
        with pytest.raises(UsageError, match=f"'rgb' may mean {LEFT} or {RIGHT}"):
            bind(STEREO, rgb=said)


def test_the_policys_camera_comes_first_and_the_other_order_is_understood() -> None:
    names = ["observation.images.camera1", "observation.images.camera2"]
    expected = dict(zip(names, ["front", "wrist"], strict=True))
    assert bind(names, camera1="front", camera2="wrist") == expected
    assert bind(names, front="camera1", wrist="observation.images.camera2") == expected


def test_an_exchange_reads_the_same_both_ways_and_a_round_must_be_written_in_full() -> None:
    names = [f"observation.images.{n}" for n in "abc"]
    a, b, c = names
    assert bind(names, a="b", b="a") == {a: "b", b: "a", c: "c"}
    with pytest.raises(
        UsageError, match=r"both are cameras of the policy; .* say --camera observation\.images\.a=b"
    ):
        bind(names, a="b", b="c", c="a")
    assert bind(names, **{a: "b", b: "c", c: "a"}) == {a: "b", b: "c", c: "a"}

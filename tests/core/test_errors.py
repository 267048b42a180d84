"""Errors go from one process to another, and are said again with more words, whatever their constructor takes."""

from __future__ import annotations

import pickle

import pytest

from edgevla import errors
from edgevla.errors import BusError, EdgeVLAError, MissingExtraError, WireError, made_again

EXAMPLES = [
    MissingExtraError("sim", "mujoco", "simulated physics needs it"),
    BusError("the bus is gone", port="/dev/ttyACM0", motor_id=3),
    WireError("too long", "size", n=3),
    errors.UsageError("no"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_in_another_process(error: EdgeVLAError) -> None:
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert str(there) == str(error)
    assert vars(there) == vars(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_is_said_again_with_more_words(error: EdgeVLAError) -> None:
    again = made_again(type(error), f"episode 3: {error}", vars(error))
    assert type(again) is type(error)
    assert str(again) == f"episode 3: {error}"
    assert again.fields == error.fields


def test_an_error_of_which_only_class_and_message_are_known() -> None:
    assert made_again(BusError, "gone").port is None
    assert made_again(WireError, "odd").reason == "format"
    assert made_again(MissingExtraError, "not there").fields == {}

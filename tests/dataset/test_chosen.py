"""Which episodes a person means."""

from __future__ import annotations

import pytest

from edgevla.dataset.chosen import episodes_text, parse_episodes
from edgevla.errors import UsageError


def test_episodes_by_list_by_stretch_and_by_pythons_range() -> None:
    assert parse_episodes("0,2-5", 10) == [0, 2, 3, 4, 5]
    assert parse_episodes("0:3,5,8:", 10) == [0, 1, 2, 5, 8, 9]
    assert parse_episodes(":2", 10) == [0, 1]


@pytest.mark.parametrize("bad", ["3:1", "9:12", "5-10", "5-3", "2-", "a", "", "-1", "1,,2", "1.5"])
def test_what_is_no_such_list_is_refused_with_the_option(bad: str) -> None:
    with pytest.raises(UsageError, match="--episodes"):
        parse_episodes(bad, 10)


def test_what_is_written_reads_back() -> None:
    assert episodes_text([7, 0, 2, 3, 4]) == "0,2-4,7"
    assert parse_episodes(episodes_text([7, 0, 2, 3, 4]), 8) == [0, 2, 3, 4, 7]

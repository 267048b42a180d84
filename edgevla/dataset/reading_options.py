"""`--feature`, `--without`, `--task-from`: how a dataset is to be read, for every command that opens one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from edgevla.vocabulary import TaskFrom, once, pairs

if TYPE_CHECKING:
    from edgevla.dataset.reading import DatasetReading


def add_reading_arguments(parser: Any) -> None:
    """parser: an argparse parser or group. What is not given is absent, or None."""
    parser.add_argument(
        "--feature",
        dest="features",
        metavar="POLICY=DATASET",
        nargs="+",
        action="extend",
        help="the dataset's names of what policies know, such as observation.state=state action=actions",
    )
    parser.add_argument(
        "--without",
        metavar="FEATURE",
        nargs="+",
        action="extend",
        help="features of the dataset to leave out",
    )
    parser.add_argument(
        "--task-from",
        choices=get_args(TaskFrom),
        help="the instruction of a frame: its task (default), or its subtask where it has one",
    )


def reading_of(
    features: Sequence[str] | None, without: Sequence[str] | None, task_from: TaskFrom | None
) -> DatasetReading:
    """What these options say.

    Raises:
        UsageError: not of the form NAME=VALUE, or a name twice.
    """
    from edgevla.dataset.reading import DatasetReading

    return DatasetReading(
        pairs(features or (), "--feature"), tuple(once(without or (), "--without")), task_from
    )

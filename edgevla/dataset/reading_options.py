"""`--feature`, `--without`, `--task-from`: how a dataset is to be read, for every command that opens one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from edgevla.dataset.reading import Reading, TaskFrom
from edgevla.errors import UsageError


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
) -> Reading:
    """What these options say.

    Raises:
        UsageError: not of the form POLICY=DATASET, or a name twice.
    """
    return Reading(feature_names(features or ()), tuple(dict.fromkeys(without or ())), task_from)


def feature_names(words: Sequence[str]) -> dict[str, str]:
    """`observation.state=state` ... -> the policy's name -> the dataset's."""
    names: dict[str, str] = {}
    for word in words:
        name, equals, source = word.partition("=")
        if not (name and equals and source):
            raise UsageError(f"--feature {word} is not of the form POLICY=DATASET, such as action=actions")
        if names.get(name, source) != source:
            raise UsageError(f"--feature {name} is both '{names[name]}' and '{source}'; say it once")
        names[name] = source
    return names

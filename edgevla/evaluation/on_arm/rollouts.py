"""The rollouts of an evaluation as a LeRobotDataset: what the recorder saw from the key that began an episode to the key
that ended it. A dataset that cannot be written costs the pictures, never a verdict.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import zmq

from edgevla.arguments import Record
from edgevla.dataset.layout import INFO
from edgevla.errors import DatasetError, EdgeVLAError, MissingExtraError
from edgevla.nodes.recorder import RecorderNode

ROLLOUTS = "rollouts"


def check_record() -> None:
    """
    Raises:
        MissingExtraError: what writes datasets is not installed.
    """
    for module in ("pyarrow", "av"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError("record", module)


def check_rollouts(output: Path, rollouts: Mapping[int, int]) -> None:
    """rollouts: verdict -> episode of the dataset, of earlier sessions.

    Raises:
        DatasetError: they are not there any more, and new ones would be taken for them.
    """
    if not rollouts:
        return
    n_wanted, n = max(rollouts.values()) + 1, 0
    with contextlib.suppress(OSError, ValueError, AttributeError):
        n = int(json.loads((output / INFO).read_text(encoding="utf-8")).get("total_episodes", 0))
    if n < n_wanted:
        raise DatasetError(
            f"{output} holds {n} of the {n_wanted} rollouts that were judged; put it back, or begin anew with another -o"
        )


class Rollouts:
    """say: (severity, sentence)."""

    def __init__(
        self,
        ctx: zmq.Context,
        folder: Path,
        session: bytes,
        output: Path,
        cameras: Sequence[str],
        task: str,
        say: Callable[[str, str], None],
    ) -> None:
        self._node = RecorderNode(ctx, folder, session, output / ROLLOUTS, cameras, task)
        self._node.heard = lambda text: say("warning", text)
        self._task, self._say = task, say
        self._is_open = False

    def open(self) -> None:
        """Before the first episode, because it takes a moment.

        Raises:
            DatasetError: these rollouts cannot join those that are there, or the disk is full.
        """
        self._node.prepare()

    def step(self, now_ns: int) -> None:
        self._try(lambda: self._node.step(now_ns))

    def begin(self) -> None:
        self._is_open = self._try(lambda: self._node.obey("record", Record(self._task)))

    def rest(self) -> None:
        """No more rows; the episode waits to be judged."""
        if self._node.recording is not None:
            self._node.recording.rest()

    def save(self) -> int | None:
        """Its number in the dataset; None where there is none."""
        recording = self._node.recording
        if not self._is_open or recording is None:
            return None
        self._is_open = False
        try:
            return recording.keep()
        except (EdgeVLAError, OSError) as error:
            self._say("error", f"the rollout could not be saved, its verdict counts all the same: {error}")
            return None

    def drop(self) -> None:
        if self._node.recording is not None:
            self._node.recording.discard()
        self._is_open = False

    def close(self) -> None:
        self._node.close()

    def _try(self, act: Callable[[], object]) -> bool:
        try:
            act()
        except (EdgeVLAError, OSError) as error:
            self.drop()
            self._say(
                "error", f"this episode's rollout is not recorded, its verdict counts all the same: {error}"
            )
            return False
        return True

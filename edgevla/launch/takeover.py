"""Who drives a deployment that has a policy and a leader arm: asked for by one key, answered by the robot."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import zmq

from edgevla.errors import UsageError
from edgevla.presses import Presses
from edgevla.wire import CommandClient, endpoint

ANSWER_S = 1.0


class Takeover:
    """folder: the run directory of the deployment."""

    def __init__(
        self,
        ctx: zmq.Context,
        folder: Path,
        session: bytes,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._client = CommandClient(ctx, endpoint(folder, "robot", "commands"), session, "recorder", folder)
        self._presses, self._clock = Presses(), clock

    def press(self, is_led: bool) -> str:
        """The other one drives; a sentence, empty where the key is only held down. is_led: who drives now.

        Raises:
            UsageError: the robot refused, with its reason. WireError: it does not answer.
        """
        if not self._presses.press(self._clock()):
            return ""
        answer = self._client.request("hand_back" if is_led else "lead", timeout_s=ANSWER_S)
        if not answer.is_accepted:
            raise UsageError(f"the robot refused: {answer.reason}")
        return "the policy drives" if is_led else "YOU drive: the arm goes to the leader slowly; t hands back"

    def close(self) -> None:
        self._client.close()

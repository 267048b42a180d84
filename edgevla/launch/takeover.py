"""Who drives a deployment that has a policy and a leader arm: asked for by one key, answered by the robot."""

from __future__ import annotations

from pathlib import Path

import zmq

from edgevla.errors import UsageError
from edgevla.wire import CommandClient, endpoint

ANSWER_S = 1.0


class Takeover:
    """folder: the run directory of the deployment."""

    def __init__(self, ctx: zmq.Context, folder: Path, session: bytes) -> None:
        self._client = CommandClient(ctx, endpoint(folder, "robot", "commands"), session, "recorder", folder)

    def press(self, is_led: bool) -> str:
        """The other one drives, as the sentence says. is_led: who drives now.

        Raises:
            UsageError: the robot refused, with its reason. WireError: it does not answer.
        """
        answer = self._client.request("hand_back" if is_led else "lead", timeout_s=ANSWER_S)
        if not answer.is_accepted:
            raise UsageError(f"the robot refused: {answer.reason}")
        return "the policy drives" if is_led else "YOU drive: the arm goes to the leader slowly; t hands back"

    def close(self) -> None:
        self._client.close()

"""One line of the account of a checkpoint: what was found, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["used", "no effect", "noted", "unknown", "refused"]


@dataclass(frozen=True)
class Entry:
    """where: the file, or part of it. name: what was found there. becomes: in words; of a refusal the whole sentence.

    verdict: `noted` is used or left out as LeRobot does, and a person should know it; `unknown` needs torch.
    in_training: False for what training replaces by the dataset's own (statistics): a refusal of it does not stop
    `train --from`.
    """

    where: str
    name: str
    becomes: str
    verdict: Verdict
    in_training: bool = True

"""Texts that a person gives: a task for a policy, a name, a path. What they may hold is decided here, at the door,
before it reaches a message, a prompt, a file's name or a screen."""

from __future__ import annotations

import unicodedata

from edgevla.errors import UsageError

LONGEST = 4096
"""Bytes of a path that Linux takes."""
LONGEST_TASK = 1000
"""Characters. No policy's prompt has room for more than a few hundred tokens."""
REFUSED = {
    "Cs": "bytes that are no UTF-8",
    "Cc": "a control character",
    "Zl": "a line break",
    "Zp": "a line break",
}


def check_text(text: str, name: str, longest: int = LONGEST) -> str:
    """The text itself. name: as the person knows it, such as `--task`.

    Raises:
        UsageError: it is too long, or holds what no screen, message or file can.
    """
    if len(text) > longest:
        raise UsageError(f"{name} has {len(text)} characters; at most {longest} are taken")
    for place, character in enumerate(text):
        kind = REFUSED.get(unicodedata.category(character))
        if kind is not None:
            where = f"{character!a} after {text[:place][-20:]!a}"
            raise UsageError(f"{name} holds {kind} ({where}); type it again as plain text")
    return text


def check_task(text: str, name: str = "the task") -> str:
    """The task without blanks around it.

    Raises:
        UsageError: there is nothing in it, it is too long, or it holds what no policy can read.
    """
    task = check_text(text, name, LONGEST_TASK).strip()
    if not task:
        raise UsageError(f"{name} is empty; say in words what shall be done, or leave it out")
    return task

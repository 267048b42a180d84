"""The hub: a name becomes a folder of what was fetched, once. Without a network it is asked once, not five times.

Needs huggingface_hub, which comes with the extra `train`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

ANSWER_S = 5.0
"""Who does not answer within this is not there."""


class HubError(Exception):
    """Why a name could not be fetched, and what to do, as the end of a sentence. Callers say what it was for."""


class NotCachedError(HubError):
    """The hub cannot be asked, and this revision was not fetched before; another one may have been."""


@functools.cache
def why_unreachable() -> str | None:
    """None: the hub answers, or will not be asked at all. Asked once per process: a policy has several files."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_S)
    except Exception as error:  # requests' or httpx's, by the release of huggingface_hub
        return f"{constants.ENDPOINT} does not answer ({first_line(error)})"
    return None


def fetch(
    name: str,
    *,
    repo_type: str = "model",
    revision: str | None = None,
    patterns: Sequence[str] | None = None,
    local_dir: str | None = None,
) -> Path:
    """The folder of a repository: from the cache where the hub cannot be asked, else renewed.

    Raises:
        HubError: it is neither here nor to be had; NotCachedError where the hub cannot be asked.
        RevisionNotFoundError (huggingface_hub): it has not this revision.
    """
    import huggingface_hub
    from huggingface_hub.errors import RevisionNotFoundError

    unreachable = why_unreachable()
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                repo_type=repo_type,
                revision=revision,
                allow_patterns=None if patterns is None else list(patterns),
                local_dir=local_dir,
                local_files_only=unreachable is not None,
            )
        )
    except RevisionNotFoundError:
        raise
    except Exception as error:  # the client raises many kinds; all mean that it is not here
        raise _reason(unreachable, error) from error


def _reason(unreachable: str | None, error: Exception) -> HubError:
    from huggingface_hub import constants

    cure = "give a local folder, or fetch it where there is a network and copy the cache (HF_HOME)"
    if constants.HF_HUB_OFFLINE:
        return NotCachedError(
            f"HF_HUB_OFFLINE forbids to ask the hub, and the cache has not got it; unset it, or {cure}"
        )
    if unreachable is not None:
        return NotCachedError(f"{unreachable}, and the cache has not got it; {cure}")
    return HubError(first_line(error))


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

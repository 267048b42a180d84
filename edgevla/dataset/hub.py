"""Where a dataset lies: a folder, or a hub id fetched once. Only a hub id touches the network."""

from __future__ import annotations

import os
from pathlib import Path

from edgevla.errors import DatasetError, MissingExtraError
from edgevla.hub import HubError, NotCachedError, fetch

REVISIONS = ("v3.0", "v2.1", "v2.0", "main")
"""Tags LeRobot gives its dataset repositories; untagged ones are read from `main`."""


def local_folder(path_or_repo: str | Path, root: str | Path | None = None) -> tuple[Path, str | None]:
    """(folder, hub id or None) of a dataset. root: where a hub id's files lie, or go; None: the hub's own cache.

    Raises:
        DatasetError: neither a folder nor a dataset on the hub.
    """
    path = Path(path_or_repo).expanduser()
    if path.is_dir():
        return path, None
    if root is not None and (Path(root) / "meta/info.json").is_file():
        return Path(root), str(path_or_repo)
    text = str(path_or_repo)
    if not _is_repo_id(text) or isinstance(path_or_repo, Path):
        raise DatasetError(f"there is no dataset folder {text}", file=text)
    return _download(text, root), text


def _is_repo_id(text: str) -> bool:
    parts = text.split("/")
    return len(parts) == 2 and all(parts) and not text.startswith((".", "~", os.sep))


def _download(repo_id: str, root: str | Path | None) -> Path:
    try:
        from huggingface_hub.errors import RevisionNotFoundError
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "train", "huggingface_hub", f"there is no folder {repo_id}, and a hub id needs it"
        ) from error
    why: HubError | None = None
    for revision in REVISIONS:
        try:
            return fetch(
                repo_id, repo_type="dataset", revision=revision, local_dir=None if root is None else str(root)
            )
        except RevisionNotFoundError:
            continue
        except NotCachedError as error:  # which one was fetched before is not known here
            why = error
        except HubError as error:
            why = error
            break
    if why is not None:
        raise DatasetError(
            f"'{repo_id}' is neither a folder here nor a dataset that the hub gives us: {why}", file=repo_id
        ) from why
    raise DatasetError(f"dataset '{repo_id}' on the hub has none of the revisions {', '.join(REVISIONS)}")

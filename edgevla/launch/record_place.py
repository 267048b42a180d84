"""The folder that is recorded into, looked at before an arm starts: may it be, and what is there already."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgevla.errors import DatasetError


def check_place(output: Path) -> None:
    """Before an arm moves, not when the first episode begins.

    Raises:
        DatasetError: nothing can be written there.
    """
    from edgevla.dataset.room import SPARE, free_bytes, in_words

    place = output.absolute()
    if place.exists() and not place.is_dir():
        raise DatasetError(f"{output} is a file; name a folder to record into", file=str(output))
    if place.is_dir() and any(place.iterdir()) and not (place / "meta/info.json").exists():
        raise DatasetError(
            f"{output} is not empty and not a dataset; record into a new folder", file=str(output)
        )
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise DatasetError(
            f"{there} takes no files: {error.strerror or error}; record into another folder", file=str(there)
        ) from error
    if (free := free_bytes(there)) < SPARE:
        raise DatasetError(
            f"only {in_words(free)} are free where {output} is, too little for an episode; make room, "
            "or record elsewhere",
            file=str(output),
        )


def check_dataset(output: Path) -> None:
    """Before an arm starts: what is in `output` already is whole, and nobody else records into it.

    Raises:
        DatasetError: it is not.
    """
    from edgevla.dataset.append import check_resumable

    check_resumable(output)


def check_who_drove(output: Path, has_policy: bool) -> None:
    """Before an arm starts: the dataset in `output` has the column `intervention` just where this recording has.

    Raises:
        DatasetError: only one of them has it, or the dataset cannot be appended to.
    """
    from edgevla.dataset.append import existing_kind
    from edgevla.dataset.layout import INTERVENTION

    there = existing_kind(output)
    if there is None or (INTERVENTION in there.features) == has_policy:
        return
    if has_policy:
        why = f"it lacks the column '{INTERVENTION}', which a recording with --policy has"
    else:
        why = f"it has the column '{INTERVENTION}', which a recording without --policy lacks"
    raise DatasetError(f"{output} cannot be appended to: {why}; record into another folder", file=str(output))


def episodes_there(output: Path) -> int:
    """Episodes of the dataset in `output`; none where nothing was kept yet."""
    from edgevla.dataset.append import existing_kind
    from edgevla.dataset.open import listed_episodes

    return 0 if existing_kind(output) is None else len(listed_episodes(output))


def told_before(output: Path) -> Iterator[str]:
    """What a person must know of the recordings before this one, sentence by sentence."""
    from edgevla.dataset.layout import SCRATCH
    from edgevla.dataset.stated import read_stated

    if (output / SCRATCH).is_dir():
        yield "! the recording before was killed: if an episode was open then, it is lost"
    if cut_off := read_stated(output).cut_off_episodes:
        which = ",".join(map(str, cut_off))
        yield (
            f"! cut off, because their recording ended: episode {which.replace(',', ', ')}. To remove: edgevla dataset "
            f"{shlex.quote(str(output))} delete {which}"
        )

"""Episodes taken out of a dataset, datasets joined, divided, and given other instructions: always a whole new dataset.

Each function returns a sentence about what was done. What is changed where it lies is replaced in one step (whole.py).
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgevla.dataset.append import DatasetKind, differences
from edgevla.dataset.assemble import SUBTASKS, Assembly, Part
from edgevla.dataset.check import check_videos
from edgevla.dataset.chosen import episodes_text, parse_episodes
from edgevla.dataset.layout import INFO, Findings
from edgevla.dataset.open import read_all
from edgevla.dataset.reader import Dataset
from edgevla.dataset.source import ChosenEpisodes, n_listed, read_source
from edgevla.dataset.store import MIB
from edgevla.dataset.tables import read_numbered_texts
from edgevla.dataset.whole import kept_still, made_beside
from edgevla.errors import DatasetError, UsageError
from edgevla.words import check_task

Say = Callable[[str], None]


def delete(root: Path, episodes: str, out: Path | None, say: Say) -> str:
    """Without these episodes, where it lies or in `out`.

    Raises:
        UsageError: unknown episodes, or all of them. DatasetError: it cannot be edited.
    """
    root = root.resolve()
    _check_outside(out, [root])
    with kept_still(root, is_changed=out is None):
        n = n_listed(root)
        gone = parse_episodes(episodes, n, what="delete")
        kept = [e for e in range(n) if e not in set(gone)]
        if not kept:
            raise UsageError(f"delete {episodes} leaves no episode of {root}; remove the folder instead")
        part = _part(root, kept, say)
        splits = _splits_without(part, n)
        _make({out or root: [part]}, out or root, say, takes_place=out is None, splits=splits)
    where = f"{out} holds" if out else f"{root} holds"
    return f"episodes {episodes_text(gone)} are left out: {where} {_count(len(part.episodes))}"


def merge(root: Path, others: Sequence[Path], out: Path, say: Say) -> str:
    """One dataset after the other, in `out`.

    Raises:
        DatasetError: they do not fit each other; every difference is named.
    """
    roots = [path.resolve() for path in (root, *others)]
    _check_outside(out, roots)
    with contextlib.ExitStack() as stack:
        for path in dict.fromkeys(roots):
            stack.enter_context(kept_still(path, is_changed=False))
        parts = [_part(path, range(n_listed(path)), say) for path in roots]
        for part in parts[1:]:
            _check_fitting(parts[0].source, part.source)
        _make({out: parts}, out, say)
    return f"{out} holds {_count(sum(len(part.episodes) for part in parts))} of {len(parts)} datasets"


def split(root: Path, specs: Sequence[str], out: Path, say: Say) -> str:
    """A dataset per `NAME=EPISODES` or `NAME=SHARE%`, as `out/NAME`; all of them or none.

    Raises:
        UsageError: a spec that cannot be understood, an episode in two of them.
    """
    root = root.resolve()
    _check_outside(out, [root])
    with kept_still(root, is_changed=False):
        n = n_listed(root)
        chosen = parse_split(specs, n)
        parts = {out / name: [_part(root, numbers, say)] for name, numbers in chosen.items()}
        _make(parts, out, say)
    left = sorted(set(range(n)) - {e for numbers in chosen.values() for e in numbers})
    rest = f"; episodes {episodes_text(left)} are in none" if left else ""
    counts = ", ".join(f"{name} {len(numbers)}" for name, numbers in chosen.items())
    return f"{out} holds the datasets {counts} (episodes){rest}"


def retask(root: Path, task: str, episodes: str | None, out: Path | None, say: Say) -> str:
    """All rows of these episodes (None: of all) get the instruction `task`.

    Raises:
        UsageError: no words, what no policy can read, or unknown episodes.
    """
    task = check_task(task, "the instruction")
    root = root.resolve()
    _check_outside(out, [root])
    with kept_still(root, is_changed=out is None):
        n = n_listed(root)
        chosen = list(range(n)) if episodes is None else parse_episodes(episodes, n, what="retask")
        part = _part(root, range(n), say, dict.fromkeys(chosen, task))
        _make(
            {out or root: [part]}, out or root, say, takes_place=out is None, splits=_splits_without(part, n)
        )
    return f"episodes {episodes_text(chosen)} of {out or root} have the task '{task}'"


def parse_split(specs: Sequence[str], n_episodes: int) -> dict[str, list[int]]:
    """`train=0:40`, `val=40:` or `train=80%`, `val=20%` (one after the other) -> name -> episodes.

    Raises:
        UsageError: not of that form, a name twice, shares above 100 %, an episode in two, a share of no episode.
    """
    chosen: dict[str, list[int]] = {}
    share = 0.0
    for spec in specs:
        found = re.fullmatch(r"([\w.-]*\w)=(.+)", spec)
        if found is None:
            raise UsageError(
                f"split '{spec}' is not of the form NAME=0:40 or NAME=80%, NAME of letters, digits, _ . and -"
            )
        name, text = found.groups()
        if name in chosen:
            raise UsageError(f"split names '{name}' twice")
        if percent := re.fullmatch(r"(\d+(?:\.\d+)?)%", text):
            first, share = share, share + float(percent[1])
            if share > 100 + 1e-9:
                raise UsageError(f"the shares of split add up to {share:g} %, more than all")
            numbers = list(range(round(first * n_episodes / 100), round(share * n_episodes / 100)))
        else:
            numbers = parse_episodes(text, n_episodes, what=f"split {name}=")
        twice = sorted({e for other in chosen.values() for e in other} & set(numbers))
        if twice:
            raise UsageError(f"split '{spec}': episodes {episodes_text(twice)} are in another part already")
        if not numbers:
            raise UsageError(f"split '{spec}' is no whole episode of the {n_episodes} that there are")
        chosen[name] = numbers
    return chosen


def _check_outside(out: Path | None, roots: Sequence[Path]) -> None:
    """A dataset in a dataset would be carried along by every later edit of the outer one.

    Raises:
        UsageError: it would be made in one of its sources.
    """
    for root in roots:
        if out is not None and root in out.resolve().parents:
            raise UsageError(f"-o {out} lies in the dataset {root}; name a folder outside of it")


# -- how ------------------------------------------------------------------------------------------------------


def _part(root: Path, episodes: Sequence[int], say: Say, retask: Mapping[int, str] | None = None) -> Part:
    source = read_source(root, episodes)
    empty = [e for e in episodes if e not in source.episodes]
    if empty:
        say(f"episodes {episodes_text(empty)} of {root} have no frames and are left out")
    return Part(source, [e for e in episodes if e in source.episodes], retask or {})


def _make(
    outputs: Mapping[Path, Sequence[Part]],
    target: Path,
    say: Say,
    *,
    takes_place: bool = False,
    splits: Mapping[str, str] | None = None,
) -> None:
    """Each output is `target` itself or a folder in it. Nothing has changed unless all are made, and sound."""
    try:
        with made_beside(target, takes_place=takes_place) as scratch:
            _check_room(outputs, scratch, is_linked=takes_place)
            for output, parts in outputs.items():
                folder = scratch / output.relative_to(target)
                folder.mkdir(exist_ok=True)
                Assembly(folder, parts, is_linked=takes_place, splits=splits, say=say).run()
                _check_result(folder)
    except OSError as error:
        raise DatasetError(
            f"{target} could not be made: {error.strerror or error}; nothing was changed", file=str(target)
        ) from error


def _check_room(outputs: Mapping[Path, Sequence[Part]], scratch: Path, *, is_linked: bool) -> None:
    """
    Raises:
        DatasetError: the disk has less room than may be needed.
    """
    sources = [part.source for parts in outputs.values() for part in parts]
    needed = sum(_table_bytes(source) for source in sources)
    needed += 0 if is_linked else sum(_video_bytes(part) for parts in outputs.values() for part in parts)
    free = shutil.disk_usage(scratch).free
    if needed > free:
        raise DatasetError(
            f"{scratch.parent} has {free / MIB:.0f} MB of room, and up to {needed / MIB:.0f} MB are needed; make room, "
            "or write elsewhere with -o"
        )


def _table_bytes(source: ChosenEpisodes) -> int:
    return sum((source.root / file).stat().st_size for file in source.opened.frames.files)


def _video_bytes(part: Part) -> int:
    spans = [span for e in part.episodes for span in part.source.episodes[e].videos.values()]
    return sum(
        (part.source.root / file).stat().st_size
        for file in {span.file for span in spans}
        if (part.source.root / file).is_file()
    )


def _check_result(root: Path) -> None:
    """
    Raises:
        DatasetError: a reader would not take it, such as where a video of the source is damaged.
    """
    findings = Findings()
    try:
        check_videos(Dataset(root, read_all(root, findings), findings), findings)
    except DatasetError as error:
        words = str(error).replace(f"{root}/", "").replace(str(root), "it")
        raise DatasetError(
            f"the result would not be sound, and nothing was changed: {words}", **error.fields
        ) from error


def _splits_without(part: Part, n_before: int) -> dict[str, str]:
    """info.json's ranges of episodes, over those that are left."""
    raw = part.source.opened.info.raw.get("splits") or {}
    splits = {}
    for name, text in raw.items():
        found = re.fullmatch(r"(\d+):(\d+)", str(text))
        if found is None:
            raise DatasetError(
                f"{part.source.root / INFO} says the split '{name}' is {text!r}; expected a range like 0:{n_before}",
                file=INFO,
            )
        first, end = (sum(e < int(bound) for e in part.episodes) for bound in found.groups())
        splits[str(name)] = f"{first}:{end}"
    return splits


def _check_fitting(one: ChosenEpisodes, other: ChosenEpisodes) -> None:
    first, second = _kind(one), _kind(other)
    found = list(differences(first, second, str(other.root)))
    if one.stated.others != other.stated.others:
        found.append(f"{one.root} and {other.root} say different things in meta/edgevla.json")
    if _subtasks(one) != _subtasks(other):
        found.append("their subtasks are numbered differently")
    if found:
        raise DatasetError(f"{one.root} and {other.root} cannot be merged: {'; '.join(found)}", file=INFO)


def _kind(source: ChosenEpisodes) -> DatasetKind:
    info = source.opened.info
    return DatasetKind(info.fps, info.features, info.robot_type, source.stated.joint_units)


def _subtasks(source: ChosenEpisodes) -> dict[int, str]:
    if not (source.root / SUBTASKS).is_file():
        return {}
    return read_numbered_texts(source.root, SUBTASKS, "subtask_index", "subtask")


def _count(n: int) -> str:
    return f"{n} episode{'s' * (n != 1)}"

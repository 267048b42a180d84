"""Which camera of the dataset feeds which camera of the policy: `--camera NAME=SOURCE` resolved and checked.

NAME is a camera of the policy, SOURCE one of the dataset; in the other order they are taken where only that has a
meaning. `NAME=none` says that a policy's camera is absent, or that a dataset's is left out of a fresh policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from edgevla.dataset.layout import FeatureInfo
from edgevla.errors import UsageError
from edgevla.vocabulary import IMAGES, NONE, Side, join, matches, one_camera, short_name


@dataclass(frozen=True)
class Cameras:
    """rename: dataset key -> policy key, where they differ. absent: policy cameras without a source.
    unused: dataset cameras that are left out."""

    rename: dict[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def refuse_depth(words: Iterable[str], features: Iterable[FeatureInfo]) -> None:
    """Raises UsageError: a camera that is named is one of depth; says why that is none."""
    depth = {feature.name: feature for feature in features if feature.is_depth}
    for word in words:
        for name in matches(word, depth):
            raise UsageError(
                f"camera '{word}': '{name}' of the dataset {depth[name].why_depth}; no policy here takes it as a camera"
            )


def for_fresh_policy(wanted: Mapping[str, str], dataset: Sequence[str]) -> Cameras:
    """`NAME=SOURCE` makes a camera NAME of the dataset's SOURCE; `NAME=none` leaves one of the dataset out.

    Raises:
        UsageError: a name that is no camera of the dataset.
    """
    whose = Side("the dataset", dataset)
    given = {left: right for left, right in wanted.items() if right != NONE}
    unused = [one_camera(n, whose, f"--camera {n}={NONE}") for n, right in wanted.items() if right == NONE]
    joined = join(given, Side("the policy", None), whose)
    used = [*joined.values(), *unused]
    if twice := next((c for c in used if used.count(c) > 1), None):
        raise UsageError(f"--camera names '{twice}' of the dataset twice; leave one of them out")
    rename: dict[str, str] = {}
    for taker, source in joined.items():
        known = matches(taker, dataset)
        full = taker if taker.startswith("observation.") else IMAGES + taker
        rename[source] = known[0] if len(known) == 1 else full
    names = [rename.get(c, c) for c in dataset if c not in unused]
    if len(set(names)) != len(names):
        raise UsageError(f"--camera gives two cameras the same name; after it they are {', '.join(names)}")
    return Cameras({k: v for k, v in rename.items() if k != v}, unused=tuple(unused))


def for_policy(
    wanted: Mapping[str, str], dataset: Sequence[str], policy: Sequence[str], rename: Mapping[str, str]
) -> Cameras:
    """Binds every camera of a policy that already exists. rename: the checkpoint's own map.

    Raises:
        UsageError: a name nobody knows, or a policy camera that nothing feeds; says what to write.
    """
    bound = join(wanted, Side("the policy", policy), Side("the dataset", dataset))
    for camera in policy:
        if camera not in bound:
            back = next((k for k, v in rename.items() if v == camera and k in dataset), None)
            if camera in dataset or back is not None:
                bound[camera] = back or camera
    missing = [c for c in policy if c not in bound and not c.startswith(IMAGES + "empty_camera_")]
    if missing:
        free = [c for c in dataset if c not in bound.values()]
        short = short_name(missing[0], policy)
        cure = f"bind it with --camera {short}={short_name(free[0], dataset)}, or " if free else ""
        raise UsageError(
            f"the policy's camera '{missing[0]}' is not among the dataset's ({', '.join(dataset) or 'none'}); {cure}do "
            f"without it: --camera {short}=none"
        )
    absent = [c for c in policy if bound.get(c, "none") == "none"]
    sources = [s for s in bound.values() if s != "none"]
    doubled = next((s for s in sources if sources.count(s) > 1), None)
    if doubled is not None:
        raise UsageError(f"--camera binds '{doubled}' to two cameras of the policy; one of them must be none")
    if not sources and policy:
        raise UsageError("--camera leaves the policy without any camera; bind at least one")
    renamed = {s: c for c, s in bound.items() if s not in ("none", c)}
    return Cameras(renamed, tuple(absent), tuple(c for c in dataset if c not in sources))

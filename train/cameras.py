"""Which camera of the dataset feeds which camera of the policy: `--camera NAME=KEY` resolved and checked.

A name may be short (`front` for `observation.images.front`). Of the two sides one names a camera of the dataset,
the other one of the policy, in either order; `NAME=none` says that a policy's camera is absent, or that a dataset's
camera is left out of a fresh policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgevla.errors import UsageError

IMAGES = "observation.images."


@dataclass(frozen=True)
class Cameras:
    """rename: dataset key -> policy key, where they differ. absent: policy cameras without a source.
    unused: dataset cameras that are left out."""

    rename: dict[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def full_name(name: str, known: Sequence[str]) -> str | None:
    """The camera of `known` that a person means: its feature name, or the last part of it."""
    if name in known:
        return name
    return next((k for k in known if k == IMAGES + name or k.rpartition(".")[2] == name), None)


def for_fresh_policy(wanted: Mapping[str, str], dataset: Sequence[str]) -> Cameras:
    """`NAME=none` leaves a camera of the dataset out; `NAME=KEY` gives it another name in the policy.

    Raises:
        UsageError: a name that is no camera of the dataset.
    """
    rename: dict[str, str] = {}
    unused: list[str] = []
    for left, right in wanted.items():
        name = full_name(left, dataset)
        if name is None:
            raise UsageError(
                f"--camera {left}={right}: the dataset has no camera '{left}'; it has {', '.join(dataset) or 'none'}"
            )
        if right == "none":
            unused.append(name)
        else:
            rename[name] = right if right.startswith("observation.") else IMAGES + right
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
    bound: dict[str, str] = {}  # policy camera -> dataset camera, "none"
    for left, right in wanted.items():
        for policy_side, dataset_side in ((left, right), (right, left)):
            camera = full_name(policy_side, policy)
            source = "none" if dataset_side == "none" else full_name(dataset_side, dataset)
            if camera is not None and source is not None:
                bound[camera] = source
                break
        else:
            raise UsageError(
                f"--camera {left}={right} must join a camera of the policy ({', '.join(policy)}) with one of the "
                f"dataset ({', '.join(dataset)}) or with none"
            )
    for camera in policy:
        if camera not in bound:
            back = next((k for k, v in rename.items() if v == camera and k in dataset), None)
            if camera in dataset or back is not None:
                bound[camera] = back or camera
    missing = [c for c in policy if c not in bound and not c.startswith(IMAGES + "empty_camera_")]
    if missing:
        free = [c for c in dataset if c not in bound.values()]
        short = missing[0].rpartition(".")[2]
        cure = f"bind it with --camera {short}={free[0].rpartition('.')[2]}, or " if free else ""
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

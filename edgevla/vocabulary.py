"""What a person may write after an option, the same in every verb: NAME=VALUE, sizes, and names of cameras.

A camera may be named in full (`observation.images.front`) or by a last part that no other camera has (`front`).
`--camera NAME=SOURCE` means one thing everywhere: where the camera NAME gets its pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from edgevla.errors import UsageError
from edgevla.strict import nearest

T = TypeVar("T")

IMAGES = "observation.images."
NONE = "none"
"""The source of a camera that is left out."""
TaskFrom = Literal["task", "subtask"]
"""What the instruction of a frame is."""
WeightKind = Literal["zeros", "ones", "linear", "exp"]
"""How the guidance of `rtc` fades over a chunk."""
BASE_HELP = "of an adapter (LoRA): where the policy that it belongs to lies, if not where the adapter says"


# -- NAME=VALUE ---------------------------------------------------------------------------------------------


def pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    """`NAME=VALUE` texts, each name once.

    Raises:
        UsageError: another form, or a name that is given twice; says both.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not (name and value):
            raise UsageError(f"{option} {text}: expected NAME=VALUE")
        if name in found:
            raise UsageError(
                f"{option} {name} is given twice, as {found[name]} and as {value}; leave one of them out"
            )
        found[name] = value
    return found


def once(texts: Sequence[T], option: str) -> list[T]:
    """The values of an option that may be repeated. Raises UsageError: the same one twice."""
    for i, text in enumerate(texts):
        if text in texts[:i]:
            raise UsageError(f"{option} {text} is given twice; leave one of them out")
    return list(texts)


def size(text: str, option: str) -> tuple[int, int]:
    """`640x480`, width first as people say it -> (480, 640), height first as arrays have it.

    Raises:
        UsageError: no two positive whole numbers.
    """
    width, _, height = text.lower().partition("x")
    if not all(n.isascii() and n.isdigit() and int(n) for n in (width, height)):
        raise UsageError(f"{option} {text}: expected WIDTHxHEIGHT in pixels, such as 640x480")
    return int(height), int(width)


# -- cameras --------------------------------------------------------------------------------------------------


def camera_help(source: str) -> str:
    """The one sentence about `--camera NAME=SOURCE`. source: what it may be here."""
    return f"where the camera NAME gets its pictures: {source}; NAME=none: nowhere, it is left out; repeat"


def matches(word: str, cameras: Iterable[str]) -> list[str]:
    """The cameras that a word may mean: the one of that name, else those whose last part or parts it is."""
    known = list(cameras)
    for full in (word, IMAGES + word):
        if full in known:
            return [full]
    return [camera for camera in known if camera.endswith(f".{word}")]


def short_name(camera: str, cameras: Iterable[str] = ()) -> str:
    """The shortest end of a camera's name that no other of `cameras` has: what a person types."""
    others = [other for other in cameras if other != camera]
    parts = camera.removeprefix(IMAGES).split(".")
    ends = [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]
    return next((end for end in ends if not matches(end, others)), camera)


def robots_name(camera: str, cameras: Iterable[str] = ()) -> str:
    """What a robot calls the camera that a dataset or policy calls so: its short name, without dots."""
    return short_name(camera, cameras).replace(".", "_")


@dataclass(frozen=True)
class Side:
    """Who has the cameras on one side of a join. whose: what sentences call it. names: in full; None: any will do."""

    whose: str
    names: Sequence[str] | None

    def meant(self, word: str) -> list[str]:
        """The cameras of this side that a word may mean."""
        return [word] if self.names is None else matches(word, self.names)


def one_camera(word: str, side: Side, said: str) -> str:
    """The camera that a word means. said: the option with its value, for the error.

    Raises:
        UsageError: none of that name, or several; names them.
    """
    found = side.meant(word)
    if len(found) == 1:
        return found[0]
    names = side.names or ()
    if found:
        raise UsageError(f"{said}: '{word}' may mean {' or '.join(found)} of {side.whose}; write it in full")
    raise UsageError(
        f"{said}: {side.whose} has no camera '{word}'; it has {', '.join(names) or 'none'}{nearest(word, names)}"
    )


def join(said: Mapping[str, str], takers: Side, sources: Side) -> dict[str, str]:
    """Taker -> its source, or `none`, out of `--camera NAME=SOURCE`; the names in the other order where only that
    order has a meaning.

    Raises:
        UsageError: a name nobody knows, one that may mean several, or a taker that is named twice.
    """
    joined: dict[str, str] = {}
    for left, right in said.items():
        taker, source = _pair(left, right, takers, sources)
        if taker in joined:
            raise UsageError(
                f"--camera names '{taker}' of {takers.whose} twice, with {joined[taker]} and with {source}; "
                "leave one of them out"
            )
        joined[taker] = source
    return joined


def _pair(left: str, right: str, takers: Side, sources: Side) -> tuple[str, str]:
    option = f"--camera {left}={right}"
    if right == NONE:
        return one_camera(left, takers, option), NONE
    for taker, source in ((left, right), (right, left)):
        if len(takers.meant(taker)) == 1 and len(sources.meant(source)) == 1:
            return takers.meant(taker)[0], sources.meant(source)[0]
    is_swapped = (not takers.meant(left) and takers.meant(right)) or (
        not sources.meant(right) and sources.meant(left) and not takers.meant(left)
    )
    taker, source = (right, left) if is_swapped else (left, right)
    return one_camera(taker, takers, option), one_camera(source, sources, option)

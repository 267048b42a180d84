"""`edgevla.toml`: what would otherwise be typed each time.

    robot = "so101"
    bundle = "bundles/act"
    port = "/dev/ttyACM0"                  # or one per bus: ["left=/dev/ttyACM0", "right=/dev/ttyACM1"]
    calibration = "my_arm"
    leader_port = "/dev/ttyACM1"           # of the leader arm, where --leader names one
    leader_calibration = "my_leader"
    [camera]
    front = 0
    wrist = "/dev/video2"

The file lies in the working directory, or `--config FILE` names it. Its keys are options' names and its values what
would stand behind them. The command line wins, and where it names another robot nothing of this one's is taken.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgevla.errors import ConfigError
from edgevla.strict import Mismatch, read

NAME = "edgevla.toml"
TAKEN = "from "
"""Begins the line that says what was taken."""
OF_THE_ARM = ("port", "calibration", "camera")
OF_THE_LEADER = ("leader_port", "leader_calibration")
TAKES: dict[str, tuple[str, ...]] = {
    "deploy": ("robot", "bundle", *OF_THE_ARM, *OF_THE_LEADER),
    "teleop": ("robot", *OF_THE_ARM, *OF_THE_LEADER),
    "record": ("robot",),  # the rest is taken by the teleop or deploy that it starts
    "replay": ("robot", "port", "calibration"),
    "calibrate": ("robot", "port"),
    "setup-motors": ("robot", "port"),
    "doctor": ("port", "calibration"),  # without a robot it looks at the machine
}
"""Verb -> what it takes from the file, where its command line does not say it."""
INSTEAD = {"bundle": "policy"} | dict.fromkeys((*OF_THE_ARM, *OF_THE_LEADER), "sim")
"""Key -> the option that stands in its place: with it nothing is taken."""
ONLY_WITH = dict.fromkeys(OF_THE_LEADER, "leader")
"""Key -> the option without which it has no meaning."""
ONLY_VERB_WITH = {"record": "leader"}
"""Verb -> the option without which it takes nothing: what runs already has its own arm."""


@dataclass(frozen=True)
class Usual:
    """What a file says. port, leader_port: one, or `[BUS=]PATH` of several. camera: name -> source."""

    robot: str | None = None
    bundle: str | None = None
    port: str | tuple[str, ...] | None = None
    calibration: str | None = None
    leader_port: str | tuple[str, ...] | None = None
    leader_calibration: str | None = None
    camera: dict[str, str | int] = field(default_factory=dict)

    def words(self, key: str) -> str | list[str] | None:
        """The value of a key as the command line's parser would hold it; None: the file does not say it."""
        value = getattr(self, key)
        if key == "camera":
            return [f"{name}={source}" for name, source in value.items()] or None
        if key.endswith("port") and value is not None:
            return [value] if isinstance(value, str) else list(value)
        said: str | None = value
        return said


def load(path: Path) -> Usual:
    """
    Raises:
        ConfigError: no such file, no TOML, an unknown key or a value of another kind; names file and key.
    """
    from edgevla.toml import load_toml

    try:
        data = load_toml(path)
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    try:
        return read(Usual, data, f"{path}:")
    except Mismatch as error:
        raise ConfigError(str(error)) from error


def add_argument(verb: str, parser: argparse.ArgumentParser) -> None:
    """The option `--config`, of a verb that takes something."""
    if verb in TAKES:
        parser.add_argument(
            "--config", type=Path, metavar="FILE",
            help=f"take {', '.join(TAKES[verb])} from there where they are not given here (default: ./{NAME})",
        )  # fmt: skip


def parse(verb: str, parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, completed by the file; what was taken is said on stderr, first of all.

    `camera_from_file`, where there is a file, holds those cameras that nobody typed.

    Raises:
        UsageError: as the parser. ConfigError: as `load`.
    """
    path = _found(argv) if verb in TAKES else None
    if path is None:
        return parser.parse_args(argv)
    usual = load(path)
    actions = {
        a.dest: a for a in parser._actions if a.dest in TAKES[verb] and usual.words(a.dest) is not None
    }
    kept = {dest: action.default for dest, action in actions.items()}
    for action in actions.values():  # so that it shows what was typed
        action.default, action.required = None, False
    args = parser.parse_args(argv)
    needed = ONLY_VERB_WITH.get(verb)
    is_meant = needed is None or getattr(args, needed)
    taken = dict(_taken(args, actions, usual)) if is_meant else {}
    for dest, default in kept.items():
        if getattr(args, dest) is None:
            setattr(args, dest, default)
    typed = getattr(args, "camera", None) or ()
    args.camera_from_file = [text for text in taken.get("camera", ()) if text not in typed]
    vars(args).update(taken)
    if taken:
        print(f"edgevla {verb}: {TAKEN}{path}: {_shown(taken, actions, usual)}", file=sys.stderr)
    if verb == "record" and is_meant and usual.bundle and args.policy is None:
        print(
            f"edgevla {verb}: {usual.bundle} of {path} does not drive here: a person does, or --policy",
            file=sys.stderr,
        )
    return args


def _found(argv: Sequence[str]) -> Path | None:
    """The file that is meant. Where nobody sits (`--unattended`) one that merely lies there is not."""
    asking = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    asking.add_argument("--config", type=Path)
    given, rest = asking.parse_known_args(list(argv))
    if given.config is not None or any(word in ("-h", "--help", "--unattended") for word in rest):
        named: Path | None = given.config
        return named
    return Path(NAME) if Path(NAME).is_file() else None


def _taken(
    args: argparse.Namespace, actions: dict[str, argparse.Action], usual: Usual
) -> Iterator[tuple[str, Any]]:
    robot = args.robot or ("robot" in actions and usual.robot)
    is_same_robot = bool(robot) and usual.robot in (None, robot)
    for dest in actions:
        typed, said = getattr(args, dest), usual.words(dest)
        if (dest != "robot" and not is_same_robot) or getattr(args, INSTEAD.get(dest, ""), None):
            continue
        if dest in ONLY_WITH and not getattr(args, ONLY_WITH[dest]):
            continue
        if typed is None:
            yield dest, said
        elif dest == "camera":  # by name: those that were typed win
            names = {text.partition("=")[0] for text in typed}
            yield dest, [*typed, *(text for text in said or () if text.partition("=")[0] not in names)]


def _shown(taken: dict[str, Any], actions: dict[str, argparse.Action], usual: Usual) -> str:
    words = []
    for dest in taken:
        said = usual.words(dest)
        values = said if isinstance(said, list) else [str(said)]
        option = actions[dest].option_strings
        kept = [value for value in values if value in taken[dest]]
        words += [word for value in kept for word in ([option[0], value] if option else [value])]
    return shlex.join(words)

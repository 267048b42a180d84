"""Servos behind a pseudo-terminal that speak their real protocol, until stopped.

    edgevla emulate so101 --link /tmp/so101              one arm, one port
    edgevla emulate aloha --link /tmp/aloha/             one link per bus in that folder
    edgevla emulate so101 --faults faults.jsonl          {"at_s": 5, "kind": "drop", "probability": 0.01}
    edgevla emulate so101 --faults -                     typed: mute 4, weak gripper 30, clear, or JSON as above
    edgevla emulate so101 --energised --gravity 0.3      as an arm is found whose host has died
    edgevla emulate aloha --world aloha/transfer_cube    with physics: MuJoCo moves what the servos drive

A link is a serial port: give it to `--port`, to a vendor's SDK, or to any other program. As on metal, torque and goals
stay when a host goes away, and the next one finds them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from edgevla.errors import EdgeVLAError
from edgevla.simulated import TASKS

from .fault_kinds import help_text
from .servo import FIRMWARES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = help_text()
    parser.add_argument("robot", help="name of a profile, or a path to a .toml file")
    parser.add_argument(
        "--link", help="link to make, or a folder for one link per bus (default: below the runtime folder)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of faults, and of the world's places")
    parser.add_argument("--untimed", action="store_true", help="answer at once instead of at the wire's pace")
    parser.add_argument(
        "--adapter", choices=("none", "cdc", "ftdi1", "ftdi16"), default="none",
        help="latency of the USB adapter to imitate",
    )  # fmt: skip
    parser.add_argument(
        "--gravity", type=float, default=0.0, metavar="SHARE",
        help="share of the shoulder's full torque that the arm's weight asks; with it a limp arm falls (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--sway", type=float, default=0.0, metavar="SHARE",
        help="move the limp arm to and fro by this share of its range, as a person does with a leader (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--energised", action="store_true",
        help="torque is on where the arm is, as a run leaves it whose host has died",
    )  # fmt: skip
    parser.add_argument(
        "--firmware", action="append", default=[], metavar="[SERVO=]NAME",
        help="; ".join(f"{name}: {words}" for name, words in FIRMWARES.items()),
    )  # fmt: skip
    parser.add_argument("--start", choices=("home", "rest"), default="home", help="pose at power-up")
    parser.add_argument(
        "--missing", choices=("skip", "stall"), default="skip",
        help="what servos behind a silent one do in a sync read",
    )  # fmt: skip
    parser.add_argument("--trace", metavar="FILE", help="write every frame as a JSON line")
    parser.add_argument(
        "--faults",
        metavar="FILE",
        help='script of faults: JSON lines with "at_s" and what a fault has; `-`: as they are typed',
    )
    parser.add_argument("--session", help="deployment whose sockets carry world and faults (16 hex digits)")
    parser.add_argument(
        "--end-with-parent", action="store_true", help="end soon after the process that started it has died",
    )  # fmt: skip
    parser.add_argument(
        "--world", metavar="TASK", help=f"simulated task whose world to publish: {', '.join(TASKS)}"
    )


def run(args: argparse.Namespace) -> int:
    from .server import serve

    return serve(args, sys.stdout)


def main(argv: Sequence[str] | None = None) -> int:
    """The process that `deploy --sim` starts."""
    parser = argparse.ArgumentParser(
        prog="edgevla.robots.emulator.cli",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except EdgeVLAError as error:
        print(f"emulator: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

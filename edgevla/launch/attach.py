"""Which running deployment a command means: `record` and `monitor` have one option and one rule for it.

The one that `--run-dir` names; else the only one; else a person at a terminal is asked, and a program is refused with
the list.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from edgevla.errors import UsageError
from edgevla.session import deployments, describe, find_deployment


def add_run_dir(parser: argparse.ArgumentParser) -> None:
    """The option `--run-dir`, of verbs that attach to a deployment."""
    parser.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="run directory of the deployment; default: the only one that runs, else you are asked",
    )


def attach(args: argparse.Namespace) -> Path:
    """Run directory of the deployment that is meant.

    Raises:
        UsageError: none runs, the one that was named has ended, or several run and nobody can be asked.
    """
    is_asked = args.run_dir is None and sys.stdin.isatty() and sys.stderr.isatty()
    if is_asked and len(found := deployments()) > 1:
        return ask(found, _read_line)
    return find_deployment(args.run_dir)


def ask(found: Sequence[Path], read_line: Callable[[str], str]) -> Path:
    """
    Raises:
        UsageError: the answer is none of the numbers.
    """
    lines = [f"  {n}  {describe(folder)}\n     {folder}" for n, folder in enumerate(found, 1)]
    question = (
        f"{len(found)} deployments are running:\n" + "\n".join(lines) + f"\nwhich one (1 to {len(found)})? "
    )
    answer = read_line(question).strip()
    if not (answer.isdecimal() and 1 <= int(answer) <= len(found)):
        raise UsageError(f"'{answer}' is none of 1 to {len(found)}; nothing was started")
    return found[int(answer) - 1]


def _read_line(question: str) -> str:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()

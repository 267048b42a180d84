"""Let systemd run a deployment or a policy server: start it at boot, its lines in the journal, stop it in order.

    sudo edgevla service install NAME BUNDLE --robot so101 --port /dev/ttyACM0 ...      any option of edgevla deploy
    sudo edgevla service install NAME serve BUNDLE ...                                  any option of edgevla serve
    edgevla service show NAME                           the unit, and whether it runs
    sudo edgevla service remove NAME                    stops it in order first

Installing moves nothing and starts nothing. The unit is called edgevla-NAME; it runs as the user who said sudo, or as
--user says, in the folder where the command was typed. What is wrong with the options is said now, not at boot.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgevla.errors import ConfigError, UsageError
from edgevla.words import check_text

TEMPLATES = {verb: Path(__file__).parent / f"edgevla-{verb}.service" for verb in ("deploy", "serve")}
MARK = "# Written by `edgevla service install`"
UNITS = Path("/etc/systemd/system")
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,19}")
STOP_S = {"deploy": 150, "serve": 60}
"""deploy: both waits of the supervisor's ending (`STOPPED_S`), its children's ends, and room. serve: one inference."""
MORE_WORDS = {"deploy": ["--unattended"], "serve": []}
STOPS = {"deploy": "to rest, and end", "serve": "robots are told, and hold"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--user", metavar="USER", help="who runs it; default: who said sudo")
    add("--unit-dir", type=Path, default=UNITS, metavar="DIR",
        help="write the unit there, and leave systemd alone (for images)")  # fmt: skip
    add("action", choices=("install", "show", "remove"))
    add("name", metavar="NAME", help="small letters, digits and -, at most 20")
    add(
        "deploy",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="install: bundle and options of edgevla deploy, or `serve` and those of edgevla serve",
    )


def run(args: argparse.Namespace) -> int:
    _take_own_options(args)
    if not NAME.fullmatch(args.name):
        raise UsageError(f"'{args.name}' cannot be a service's name: small letters, digits and -, at most 20")
    if args.deploy and args.action != "install":
        raise UsageError(f"{args.action} takes a name alone, not '{args.deploy[0]}'")
    unit = args.unit_dir / f"edgevla-{args.name}.service"
    if args.action == "install":
        return _install(unit, args)
    if not unit.is_file():
        raise UsageError(f"there is no service '{args.name}' ({unit}); edgevla service install makes one")
    return _show(unit, args) if args.action == "show" else _remove(unit, args)


def _take_own_options(args: argparse.Namespace) -> None:
    """`--user` and `--unit-dir` are heard wherever they stand: all after NAME is otherwise the deployment's."""
    from edgevla.cli import Parser

    own = Parser(prog="edgevla service", add_help=False, allow_abbrev=False)
    own.add_argument("--user", default=args.user)
    own.add_argument("--unit-dir", type=Path, default=args.unit_dir)
    _, args.deploy = own.parse_known_args(args.deploy, namespace=args)


def _install(unit: Path, args: argparse.Namespace) -> int:
    verb, words = what_runs(args.deploy)
    user = user_name(args.user)
    with keys_of(user):
        check_deploy(words) if verb == "deploy" else check_serve(words)
    if unit.exists() and MARK not in unit.read_text():
        raise UsageError(f"{unit} is not of edgevla's making; remove it, or take another name")
    text = unit_text(args.name, user, Path.cwd(), args.deploy)
    try:
        unit.write_text(text)
    except PermissionError as error:
        again = f"sudo {sys.executable} -m edgevla service install {args.name} ..."
        raise ConfigError(f"{unit} may be written by root only: {again}") from error
    print(f"written: {unit}, run by {user}")
    if _systemctl(args, "daemon-reload"):
        for do, what in (
            ("start", "begin now"), ("enable", "begin at every boot"), ("stop", STOPS[verb]),
        ):  # fmt: skip
            print(f"  sudo systemctl {do:<7} {unit.stem:<20} {what}")
        look = f"; as {user}: edgevla monitor" if verb == "deploy" else ""
        print(f"  journalctl -fu {unit.stem}{look}")
    return 0


def _show(unit: Path, args: argparse.Namespace) -> int:
    print(unit.read_text(), end="")
    _systemctl(args, "status", "--no-pager", "--lines=5", unit.stem)
    return 0


def _remove(unit: Path, args: argparse.Namespace) -> int:
    if MARK not in unit.read_text():
        raise UsageError(f"{unit} is not of edgevla's making; it stays")
    if not os.access(unit.parent, os.W_OK):
        raise ConfigError(f"{unit} may be removed by root only; say it with sudo")
    _systemctl(args, "disable", "--now", unit.stem)
    unit.unlink()
    _systemctl(args, "daemon-reload")
    print(f"removed: {unit}")
    return 0


def _systemctl(args: argparse.Namespace, *words: str) -> bool:
    """Whether it went well; a machine without a running systemd is told about, and nothing more."""
    if args.unit_dir != UNITS:
        return False
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        print("systemd does not run here: nothing was told to it")
        return False
    return subprocess.run(["systemctl", *words], check=False).returncode == 0


# -- the unit --------------------------------------------------------------------------------------------------


def what_runs(words: Sequence[str]) -> tuple[str, list[str]]:
    """The verb, `deploy` unless the first word is `serve`, and the verb's own words."""
    return ("serve", list(words[1:])) if words and words[0] == "serve" else ("deploy", list(words))


def check_serve(words: Sequence[str]) -> None:
    """As `edgevla serve` would at boot, up to the engines.

    Raises:
        EdgeVLAError: what is wrong with bundles or options.
    """
    from edgevla.bundle import load_bundle
    from edgevla.cli import Parser
    from edgevla.serve import serve_cli

    parser = Parser(prog="edgevla service install NAME serve")
    serve_cli.add_arguments(parser)
    args = parser.parse_args(words)
    if args.pair:
        raise UsageError("a service cannot pair, a person reads the code: edgevla serve --pair")
    plan = serve_cli.plan_from(args)
    for folder in plan.folders.values():
        load_bundle(folder)
    serve_cli.authority_of(plan)


def check_deploy(words: Sequence[str]) -> None:
    """As `edgevla deploy --unattended` would at boot, up to the first process.

    Raises:
        EdgeVLAError: what is wrong with bundle or options.
    """
    from edgevla.cli import Parser
    from edgevla.launch import deploy_cli

    parser = Parser(prog="edgevla service install NAME")
    deploy_cli.add_arguments(parser)
    args = parser.parse_args([*words, "--unattended"])
    deploy_cli.source_from(args, deploy_cli.options_from(args))


@contextlib.contextmanager
def keys_of(user: str) -> Iterator[None]:
    """The keys that the unit will find, not those of whoever says sudo."""
    home = Path(pwd.getpwnam(user).pw_dir) / ".config" / "edgevla"
    before = os.environ.get("EDGEVLA_HOME")
    os.environ["EDGEVLA_HOME"] = str(home)
    try:
        yield
    finally:
        del os.environ["EDGEVLA_HOME"]
        if before is not None:
            os.environ["EDGEVLA_HOME"] = before


def user_name(said: str | None) -> str:
    """
    Raises:
        UsageError: there is no such user.
    """
    name = said or os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    try:
        return pwd.getpwnam(name).pw_name
    except KeyError as error:
        raise UsageError(f"--user {name}: this machine knows no such user") from error


def unit_text(name: str, user: str, directory: Path, words: Sequence[str]) -> str:
    """The unit file. words: after `edgevla service install NAME`, as a shell would hand them over."""
    verb, words = what_runs(words)
    command = [sys.executable, "-m", "edgevla", verb, *words, *MORE_WORDS[verb]]
    return (
        TEMPLATES[verb]
        .read_text()
        .format(
            name=name,
            user=user,
            directory=_escape(check_text(str(directory), "this folder's name")),
            command=" ".join(quote(word) for word in command),
            stop_s=STOP_S[verb],
        )
    )


def quote(word: str) -> str:
    """One word of a unit's command line: systemd takes % for a specifier, $ for a variable, and splits at blanks."""
    escaped = _escape(word).replace("$", "$$")
    if re.fullmatch(r"[\w%$@:,./=+-]+", escaped):
        return escaped
    return '"' + escaped.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _escape(text: str) -> str:
    return text.replace("%", "%%")

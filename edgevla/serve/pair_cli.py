"""Let this robot and a policy server on another machine know each other.

Once, with a short code. On the server, then on the robot:

  edgevla serve --pair         shows a code, and what to type on the robot
  edgevla pair gpu.lab         asks for the code

Both screens then show the same two fingerprints. From then on, encrypted:

  edgevla deploy --policy tcp://gpu.lab:5599/act --robot so101 ...

The server is known by its host as it was typed here: one that was paired as
gpu.lab is not known by its address.

  edgevla pair --list          who is paired with this machine
  edgevla pair --revoke NAME   ends it; a server that runs throws the robot out

Keys lie in ~/.config/edgevla/keys (or $EDGEVLA_HOME/keys) of the user who
runs this.

Exit codes: 0 done; 1 failed, such as nobody there, or a wrong code; 2 wrong
usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import re
import sys

from edgevla.errors import UsageError
from edgevla.launch.options import check_texts
from edgevla.serve.pairing import DIGITS
from edgevla.serve.transport import DEFAULT_BIND, NAME, PAIR_BIND, PAIR_PORT, address, is_loopback, plain_host

_PLACE = re.compile(r"(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Za-z:.%]+\])(:(?P<port>\d{1,5}))?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("host", nargs="?", metavar="HOST[:PORT]", help=f"where edgevla serve --pair runs; port: {PAIR_PORT}")
    add("--code", metavar="DIGITS", help="the code on the server's screen; default: it is asked for")
    add("--name", metavar="NAME", help="what the server shall call this robot; default: the host's name")
    add("--list", action="store_true", help="who is paired with this machine")
    add("--revoke", metavar="NAME", help="be paired with this one no longer")


def run(args: argparse.Namespace) -> int:
    check_texts(args)
    asked = [bool(args.host), args.list, args.revoke is not None]
    if sum(asked) != 1:
        raise UsageError(
            "say one of: edgevla pair HOST (on the robot), edgevla pair --list, edgevla pair --revoke NAME; "
            "on the server: edgevla serve --pair"
        )
    if not args.host and (args.code or args.name):
        raise UsageError("--code and --name go with a host: edgevla pair HOST")
    if args.list:
        return _list()
    return _revoke(args.revoke) if args.revoke is not None else _pair(args)


# -- on the robot ----------------------------------------------------------------------------------------------


def _pair(args: argparse.Namespace) -> int:
    from edgevla.serve.keys import machine_keys
    from edgevla.serve.paired import own_name, paired
    from edgevla.serve.pairing import look, pair, shown

    host, port = place(args.host)
    name = args.name or own_name()
    if not NAME.fullmatch(name):
        raise UsageError(f"--name {name}: letters, digits and _.-, at most 64")
    code = None if args.code is None else digits(args.code)
    keys = machine_keys()
    paired("servers")  # what is wrong with the list is said before a code is spent
    if code is None:
        print(f"{shown(host, port)} answers and calls itself '{look(host, port)}'")
        code = digits(_asked())
    made = pair(host, port, code, name, keys, plain_host(host))
    _show(made.name, made.key, name, keys.public)
    where = f"[{host}]" if ":" in host else host
    print(f"next: edgevla deploy --policy tcp://{where}:{DEFAULT_BIND.rpartition(':')[2]} --robot ...")
    return 0


def place(text: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        UsageError: another form.
    """
    bare = f"[{text}]" if text.count(":") > 1 and not text.startswith("[") and "/" not in text else text
    found = _PLACE.fullmatch(bare)
    port = int((found and found["port"]) or PAIR_PORT)
    if found is None or not 0 < port < 65536:
        raise UsageError(
            f"{text[:80]}: expected HOST or HOST:PORT, such as gpu.lab, without tcp:// and policy"
        )
    return found["host"].strip("[]"), port


def digits(text: str) -> str:
    """
    Raises:
        UsageError: no code.
    """
    code = "".join(text.split()).replace("-", "")
    if len(code) != DIGITS or not (code.isascii() and code.isdigit()):
        raise UsageError(f"the code has {DIGITS} digits, as the server's screen shows them")
    return code


def _asked() -> str:
    if sys.stdin.isatty():
        try:
            return input("code on its screen: ")
        except EOFError:
            print()  # the sentence stands in a line of its own
            text = ""
    else:
        text = sys.stdin.readline()
    if not text:
        raise UsageError("nobody is there to type the code: --code DIGITS")
    return text


# -- on the server ---------------------------------------------------------------------------------------------


def show_code(args: argparse.Namespace) -> int:
    """`edgevla serve --pair`."""
    from edgevla.serve.keys import machine_keys
    from edgevla.serve.paired import own_name, paired, reached_at
    from edgevla.serve.pairing import Pairing, shown

    others = {"BUNDLE": args.bundles, "--paired": args.paired, "--provider": args.provider,
              "--threads": args.threads, "--metrics": args.metrics, "--log": args.log,
              "--protocol": args.protocol != "edgevla", "--keys": args.keys}  # fmt: skip
    if given := [name for name, value in others.items() if value]:
        raise UsageError(
            f"--pair pairs and serves nothing: leave {', '.join(given)} out. A server that runs meanwhile hears of the "
            "new robot at once"
        )
    bind = address(args.bind or PAIR_BIND, "--bind")
    if bind.policy:
        raise UsageError(f"--bind {args.bind}: a robot is paired for all policies; leave /{bind.policy} out")
    host, port = bind.host, int(bind.endpoint.rpartition(":")[2])
    keys = machine_keys()
    paired("robots")
    pairing = Pairing(host, port, keys, lambda text: print(text, flush=True))
    try:
        code = f"{pairing.code[:3]} {pairing.code[3:]}"
        print(f"code: {code}   (two minutes, one robot)")
        for lead, where in zip(("on the robot:", "          or:"), reached_at(host), strict=False):
            print(f"{lead} edgevla pair {shown(where, port) if port != PAIR_PORT else where}")
        if is_loopback(bind.endpoint):
            print("only this machine reaches it there; from others: --bind tcp://0.0.0.0:PORT")
        sys.stdout.flush()
        made = pairing.run()
    finally:
        pairing.close()
    _show(own_name(), keys.public, made.name, made.key)
    print(f"next: edgevla serve BUNDLE --bind tcp://0.0.0.0:{DEFAULT_BIND.rpartition(':')[2]}")
    print("a server that runs already knows the robot now")
    return 0


# -- both ------------------------------------------------------------------------------------------------------


def _show(server: str, server_key: str, robot: str, robot_key: str) -> None:
    from edgevla.serve.keys import fingerprint

    print("paired; both screens must show the same fingerprints:")
    width = max(len(server), len(robot))
    print(f"  server  {server:<{width}}  {fingerprint(server_key)}")
    print(f"  robot   {robot:<{width}}  {fingerprint(robot_key)}")


def _list() -> int:
    from edgevla.serve.keys import fingerprint, machine_keys
    from edgevla.serve.paired import Side, own_name, paired

    titles: dict[Side, str] = {
        "robots": "robots that its servers take",
        "servers": "servers that its robots ask",
    }
    print(f"this machine  {own_name()}  {fingerprint(machine_keys().public)}")
    for side, title in titles.items():
        machines = paired(side)
        print(f"\n{title}: {'' if machines else 'none'}".rstrip())
        width = max((len(one.name) for one in machines), default=0)
        for one in machines:
            at = f"  at {', '.join(one.hosts)}" if one.hosts else ""
            print(f"  {one.name:<{width}}  {fingerprint(one.key)}  {one.since}{at}")
    return 0


def _revoke(name: str) -> int:
    from edgevla.serve.paired import revoke

    for side in revoke(name):
        if side == "robots":
            print(f"'{name}' is served no more; a server that runs throws it out within a second")
        else:
            print(
                f"'{name}' is asked no more; a deployment that runs with it keeps its connection until it ends"
            )
    return 0

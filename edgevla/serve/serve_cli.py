"""Let robots use policies that run here: one server, several policies, many arms.

  edgevla serve bundles/act                   at tcp://127.0.0.1:5599, as `act`
  edgevla serve bundles/act cubes=bundles/smolvla --provider cuda
  edgevla serve bundles/act --protocol openpi --keys map.toml     for robots that speak openpi, at ws://127.0.0.1:8000

On the robot:

  edgevla deploy --policy tcp://127.0.0.1:5599/act --robot so101 ...

The robot keeps its cameras, its safety and its time; it sends what it sees
and gets a chunk of actions. The one whose actions end first is served first.
Nothing is kept between requests, so the server may be restarted under a
moving arm: it plays what it has, holds, and goes on. Ctrl-C or SIGTERM:
whoever waits is told, what runs is finished, then it ends.

Robots on other machines are paired first, once each. Then only paired robots
are served, and all is encrypted:

  edgevla serve --pair                                shows a code, here
  edgevla pair HOST                                   asks for it, on the robot
  edgevla serve bundles/act --bind tcp://0.0.0.0:5599
  edgevla pair --list                                 who is paired
  edgevla pair --revoke NAME                          ends it

Exit codes: 0 ended by a signal; 1 failed; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevla.errors import ConfigError, UsageError
from edgevla.launch.options import check_texts, whole
from edgevla.serve.transport import (
    DEFAULT_BIND,
    NAME,
    PAIR_BIND,
    Address,
    address,
    hint_for_bind,
    is_loopback,
)

if TYPE_CHECKING:
    from edgevla.serve.authority import Authority
    from edgevla.serve.hosted import Hosted
    from edgevla.serve.server import PolicyServer

SHOWN = {
    "join": "{robot} has joined for '{policy}' ({session})",
    "join_refused": "! a robot was refused: {reason}",
    "left": "{robot} has left ({session})",
    "revoked": "'{name}' is not paired any more: thrown out",
    "pairing": "! {words}",
    "drain": "going down: robots are told, what runs is finished",
}
"""Kind of a line in the log -> what is shown of it; the others are in the log and the figures only."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "bundles",
        nargs="*",
        metavar="[NAME=]BUNDLE",
        help="folders made by edgevla export; NAME: the folder's",
    )
    add("--bind", metavar="tcp://HOST:PORT",
        help=f"default: {DEFAULT_BIND}, for this machine alone; with --pair: {PAIR_BIND}, for all; "
        "with --protocol openpi: ws://127.0.0.1:8000")  # fmt: skip
    add("--pair", action="store_true",
        help="serve nothing, but show a code with which one robot is paired; valid two minutes, once")  # fmt: skip
    add("--paired", action="store_true",
        help="serve paired robots only, encrypted, also where this machine alone reaches it")  # fmt: skip
    add("--protocol", choices=("edgevla", "openpi"), default="edgevla",
        help="openpi: for one bundle and robots that speak its websocket protocol (docs/openpi.md)")  # fmt: skip
    add("--keys", type=Path, metavar="MAP.toml",
        help="openpi: how clients call cameras, state and actions; default: as ALOHA or LIBERO do")  # fmt: skip
    add("--provider", choices=("cpu", "cuda", "tensorrt"),
        help="inference engine; default: each bundle's target")  # fmt: skip
    add("--threads", type=whole(1, 1024), metavar="N", help="of the CPU engine; default: all cores but one")
    add("--max-batch", type=whole(1, 64), metavar="N",
        help="robots that may share one inference; default: what each bundle was exported for")  # fmt: skip
    add(
        "--metrics",
        metavar="[HOST:]PORT",
        help="figures for Prometheus at http://HOST:PORT/metrics; HOST: 127.0.0.1",
    )
    add("--log", metavar="DIR", type=Path,
        help="write run.jsonl, a line per request, into a new folder there; DIR/latest is the newest")  # fmt: skip


@dataclass(frozen=True)
class ServePlan:
    """What the options say, judged. folders: by the policies' names. place: host and port of the figures.

    is_paired: whether only paired robots are served.
    """

    endpoint: str
    folders: dict[str, Path]
    place: tuple[str, int] | None
    is_paired: bool


def plan_from(args: argparse.Namespace) -> ServePlan:
    """
    Raises:
        UsageError: what cannot be.
    """
    check_texts(args)
    if not args.bundles:
        raise UsageError("no policy to serve: edgevla serve BUNDLE, or edgevla serve --pair to pair a robot")
    folders = named(args.bundles)
    place = None if args.metrics is None else metrics_place(args.metrics)
    if args.protocol == "openpi":
        from edgevla.serve.openpi import serving

        if args.paired:
            raise UsageError(
                "--paired: openpi's protocol carries no keys; leave it out, or serve without --protocol"
            )
        return ServePlan(serving.check(args.bind, folders, args.keys), folders, place, is_paired=False)
    if args.keys is not None:
        raise UsageError(
            "--keys is for robots that speak openpi's protocol: give --protocol openpi too, or leave it out"
        )
    bind = address(args.bind or DEFAULT_BIND, "--bind")
    if bind.policy:
        raise UsageError(f"--bind {args.bind}: the bundles say the names; leave /{bind.policy} out")
    return ServePlan(bind.endpoint, folders, place, args.paired or not is_loopback(bind.endpoint))


def run(args: argparse.Namespace) -> int:
    if args.pair:
        from edgevla.serve.pair_cli import show_code

        return show_code(args)
    from edgevla.engines.ahead import NotWaited

    plan = plan_from(args)
    authority = authority_of(plan)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: asked.append(number))
    try:
        hosted = [_host(name, folder, args, asked) for name, folder in plan.folders.items() if not asked]
    except NotWaited:
        return 0
    if asked:
        return 0
    if args.protocol == "openpi":
        return _serve_openpi(plan, hosted[0], args, asked)
    return _serve(plan, hosted, args.log, asked, authority)


def authority_of(plan: ServePlan) -> Authority | None:
    """Who may be served; None: whoever is on this machine.

    Raises:
        ConfigError: paired robots alone may be served there, and none is paired.
    """
    from edgevla.serve.authority import Authority

    if not plan.is_paired:
        return None
    try:
        return Authority()
    except ConfigError as error:
        raise ConfigError(f"--bind {plan.endpoint}: {error}") from error


def named(texts: Sequence[str]) -> dict[str, Path]:
    """Name -> folder.

    Raises:
        UsageError: a name twice, one that no address can hold, or no folder.
    """
    found: dict[str, Path] = {}
    for text in texts:
        said, is_named, folder = text.rpartition("=")
        if not folder:
            raise UsageError(f"'{text}' names no folder: NAME=FOLDER, or the folder alone")
        name = said if is_named else Path(text).resolve().name
        if not NAME.fullmatch(name):
            raise UsageError(
                f"'{name}' cannot be a policy's name: letters, digits and _.-, at most 64; say another: NAME={folder}"
            )
        if name in found:
            raise UsageError(f"two policies are called '{name}'; give one another name: NAME={folder}")
        found[name] = Path(folder)
    return found


def metrics_place(text: str) -> tuple[str, int]:
    """
    Raises:
        UsageError: no port.
    """
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not int(port) < 65536:
        raise UsageError(f"--metrics {text}: expected PORT or HOST:PORT, such as 9599")
    return host.strip("[]") or "127.0.0.1", int(port)


def printable(value: Any) -> str:
    """What a stranger may have sent, for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(value))[:300]


def say(text: str) -> None:
    """One line at once, also where stdout is a file."""
    print(text, flush=True)


def _host(name: str, folder: Path, args: argparse.Namespace, asked: list[int]) -> Hosted:
    """One policy, loaded and warm.

    Raises:
        NotWaited: asked to end before its engines were built.
    """
    from edgevla.bundle import load_bundle
    from edgevla.engines import EngineOptions
    from edgevla.engines.ahead import Seldom, build_ahead, is_native
    from edgevla.runner import BundlePolicy
    from edgevla.serve.hosted import Hosted

    bundle = load_bundle(folder)
    if is_native(args.provider or bundle.manifest.target.provider):
        build_ahead(bundle, Seldom(say), lambda: bool(asked))
    # Whether a lost camera may be done without is the robot's decision: it leaves its picture out, or asks nothing.
    policy = BundlePolicy(
        bundle,
        provider=args.provider,
        options=EngineOptions(threads=args.threads or 0),
        allow_lost_cameras=True,
    )
    made = Hosted(name, policy, 1 if args.protocol == "openpi" else args.max_batch)
    made.warm_up()
    say(
        f"policy {name}: {folder}, on {policy.provider}, {made.latency_ms:.1f} ms per inference, {_batches(made)}"
    )
    return made


def _batches(hosted: Hosted) -> str:
    """How many robots share an inference, and what it costs: whether they should is the reader's to judge."""
    n, most = hosted.max_batch, hosted.policy.manifest.batch.max
    if most == 1:
        return "one robot each (exported without --max-batch)"
    if n == 1:
        return f"one robot each (exported for {most})"
    return f"up to {n} robots in one of {hosted.batch_ms[n]:.1f} ms"


def _serve_openpi(plan: ServePlan, hosted: Hosted, args: argparse.Namespace, asked: list[int]) -> int:
    from edgevla.serve.openpi import serving

    note, close_log = _log(args.log)
    counts: dict[str, Any] = {}
    try:
        counts = serving.serve(plan.endpoint, hosted, args.keys, plan.place, note, say, asked)
    finally:
        close_log(counts)
    say(f"{counts['answered']} requests answered")
    return 0


def _serve(
    plan: ServePlan, hosted: Sequence[Hosted], log: Path | None, asked: list[int], authority: Authority | None
) -> int:
    import zmq

    from edgevla.serve.metrics import MetricsPage
    from edgevla.serve.server import PolicyServer

    note, close_log = _log(log)
    with contextlib.ExitStack() as ending:  # in the opposite order
        ctx = zmq.Context()
        ending.callback(ctx.term)
        waker, woken = ctx.socket(zmq.PUSH), ctx.socket(zmq.PULL)
        for socket in (waker, woken):
            ending.callback(socket.close, linger=0)
        woken.bind("inproc://worker-done")
        waker.connect("inproc://worker-done")
        if authority is not None:
            authority.start(ctx)
            ending.callback(authority.close)
        try:
            server = PolicyServer(
                ctx, plan.endpoint, hosted, note=note, wake=lambda: waker.send(b"", zmq.NOBLOCK),
                authority=authority,
            )  # fmt: skip
        except zmq.ZMQError as error:
            raise ConfigError(
                f"--bind {plan.endpoint}: {error.strerror}; {hint_for_bind(error.errno)}"
            ) from error
        ending.callback(lambda: close_log(_summary(server)))
        ending.callback(server.close)
        if plan.place is not None:
            page = MetricsPage(*plan.place, server.metrics.text)
            ending.callback(page.close)
            say(f"figures: {page.address}")
        say(f"listening at {server.door.endpoint}; on a robot: edgevla deploy --policy "
            f"{_seen_from_afar(server.door.endpoint)}/{hosted[0].name} --robot ...")  # fmt: skip
        if authority is not None:
            say(f"paired robots alone are served: {', '.join(authority.names)}")
        _turn(server, woken, asked)
    say(f"{_summary(server)['answered']} requests answered")
    return 0


def _summary(server: PolicyServer) -> dict[str, int]:
    answered = server.metrics.value("requests_total", outcome="answered")
    return {"answered": round(answered), "requests": round(server.metrics.total("requests_total"))}


def _seen_from_afar(endpoint: str) -> str:
    """All addresses of this machine are none that a robot can ask."""
    from edgevla.serve.paired import reached_at

    bound = Address(endpoint)
    host = reached_at(bound.host)[0]
    return endpoint if host == bound.host else f"tcp://{host}:{endpoint.rpartition(':')[2]}"


def _turn(server: PolicyServer, woken: Any, asked: list[int]) -> None:
    """Until it was asked to end and nothing runs any more."""
    import zmq

    poller = zmq.Poller()
    poller.register(server.door.socket, zmq.POLLIN)
    poller.register(woken, zmq.POLLIN)
    while not server.is_drained:
        if any(socket is woken for socket, _ in poller.poll(50)):
            woken.recv()
        if asked and not server.is_draining:
            server.drain()
        server.step(time.monotonic_ns())


def _log(place: Path | None) -> tuple[Any, Any]:
    """What takes a line, and what closes the log with its summary."""
    from edgevla.launch.logfiles import LogFiles
    from edgevla.session import new_session

    files = None if place is None else LogFiles(place, new_session(), lambda text: say(f"! {text}"))

    def note(kind: str, **fields: Any) -> None:
        if kind in SHOWN:
            paired = f", paired as '{printable(fields['paired'])}'" if fields.get("paired") else ""
            say(SHOWN[kind].format(**{k: printable(v) for k, v in fields.items()}) + paired)
        if files is not None:
            at = round(time.time(), 3)
            files.write(json.dumps({"type": kind, "at": at, **fields}, separators=(",", ":")))

    return note, lambda summary: files.close(json.dumps(summary)) if files is not None else None

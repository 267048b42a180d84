"""Let robots use policies that run here: one server, several policies, many arms.

  edgevla serve bundles/act                                       at tcp://127.0.0.1:5599, as `act`
  edgevla serve bundles/act cubes=bundles/smolvla --provider cuda
  edgevla serve bundles/act --protocol openpi --keys map.toml     for robots that speak openpi, at ws://127.0.0.1:8000

On the robot:  edgevla deploy --policy tcp://127.0.0.1:5599/act --robot so101 ...

The robot keeps its cameras, its safety and its time; it sends what it sees and gets a chunk of actions. The one whose
actions end first is served first. Nothing is kept between requests, so the server may be restarted under a moving arm:
it plays what it has, holds, and goes on. Ctrl-C or SIGTERM: whoever waits is told, what runs is finished, then it ends.
Nothing is encrypted yet, so it listens on this machine only; from another one let ssh carry it:
ssh -L 5599:127.0.0.1:5599 HOST

Exit codes: 0 ended by a signal; 1 failed; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevla.errors import ConfigError, UsageError
from edgevla.launch.options import check_texts, whole
from edgevla.serve.transport import DEFAULT_BIND, NAME, address, check_plain

if TYPE_CHECKING:
    from edgevla.serve.hosted import Hosted
    from edgevla.serve.server import PolicyServer

SHOWN = {
    "join": "{robot} has joined for '{policy}' ({session})",
    "join_refused": "! a robot was refused: {reason}",
    "left": "{robot} has left ({session})",
    "drain": "going down: robots are told, what runs is finished",
}
"""Kind of a line in the log -> what is shown of it; the others are in the log and the figures only."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "bundles",
        nargs="+",
        metavar="[NAME=]BUNDLE",
        help="folders made by edgevla export; NAME: the folder's",
    )
    add("--bind", metavar="tcp://HOST:PORT",
        help=f"default: {DEFAULT_BIND}; with --protocol openpi: ws://127.0.0.1:8000")  # fmt: skip
    add("--protocol", choices=("edgevla", "openpi"), default="edgevla",
        help="openpi: for one bundle and robots that speak its websocket protocol (docs/openpi.md)")  # fmt: skip
    add("--keys", type=Path, metavar="MAP.toml",
        help="openpi: how clients call cameras, state and actions; default: as ALOHA or LIBERO do")  # fmt: skip
    add("--provider", choices=("cpu", "cuda", "tensorrt"),
        help="inference engine; default: each bundle's target")  # fmt: skip
    add("--threads", type=whole(1, 1024), metavar="N", help="of the CPU engine; default: all cores but one")
    add(
        "--metrics",
        metavar="[HOST:]PORT",
        help="figures for Prometheus at http://HOST:PORT/metrics; HOST: 127.0.0.1",
    )
    add("--log", metavar="DIR", type=Path,
        help="write run.jsonl, a line per request, into a new folder there; DIR/latest is the newest")  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What the options say, judged. folders: by the policies' names. place: host and port of the figures."""

    endpoint: str
    folders: dict[str, Path]
    place: tuple[str, int] | None


def plan_from(args: argparse.Namespace) -> Plan:
    """
    Raises:
        UsageError: what cannot be.
    """
    check_texts(args)
    folders = named(args.bundles)
    place = None if args.metrics is None else metrics_place(args.metrics)
    if args.protocol == "openpi":
        from edgevla.serve.openpi import serving

        return Plan(serving.check(args.bind, folders, args.keys), folders, place)
    if args.keys is not None:
        raise UsageError(
            "--keys is for robots that speak openpi's protocol: give --protocol openpi too, or leave it out"
        )
    bind = address(args.bind or DEFAULT_BIND, "--bind")
    if bind.policy:
        raise UsageError(f"--bind {args.bind}: the bundles say the names; leave /{bind.policy} out")
    check_plain(bind.endpoint, "--bind")
    return Plan(bind.endpoint, folders, place)


def run(args: argparse.Namespace) -> int:
    plan = plan_from(args)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: asked.append(number))
    hosted = [_host(name, folder, args) for name, folder in plan.folders.items()]
    if asked:
        return 0
    return (
        _serve_openpi(plan, hosted[0], args, asked)
        if args.protocol == "openpi"
        else _serve(plan, hosted, args.log, asked)
    )


def named(texts: Sequence[str]) -> dict[str, Path]:
    """Name -> folder.

    Raises:
        UsageError: a name twice, or one that no address can hold.
    """
    found: dict[str, Path] = {}
    for text in texts:
        said, is_named, folder = text.rpartition("=")
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
    print(text, flush=True)


def _host(name: str, folder: Path, args: argparse.Namespace) -> Hosted:
    """One policy, loaded and warm."""
    from edgevla.bundle import load_bundle
    from edgevla.engines import EngineOptions
    from edgevla.runner import BundlePolicy
    from edgevla.serve.hosted import Hosted

    bundle = load_bundle(folder)
    # Whether a lost camera may be done without is the robot's decision: it leaves its picture out, or asks nothing.
    policy = BundlePolicy(
        bundle,
        provider=args.provider,
        options=EngineOptions(threads=args.threads or 0),
        allow_lost_cameras=True,
    )
    made = Hosted(name, policy)
    made.warm_up()
    say(f"policy {name}: {folder}, on {policy.provider}, {made.latency_ms:.1f} ms per inference")
    return made


def _serve_openpi(plan: Plan, hosted: Hosted, args: argparse.Namespace, asked: list[int]) -> int:
    from edgevla.serve.openpi import serving

    note, close_log = _log(args.log)
    counts: dict[str, Any] = {}
    try:
        counts = serving.serve(plan.endpoint, hosted, args.keys, plan.place, note, say, asked)
    finally:
        close_log(counts)
    say(f"{counts['answered']} requests answered")
    return 0


def _serve(plan: Plan, hosted: Sequence[Hosted], log: Path | None, asked: list[int]) -> int:
    import zmq

    from edgevla.serve.metrics import MetricsPage
    from edgevla.serve.server import PolicyServer

    note, close_log = _log(log)
    ctx = zmq.Context()
    waker, woken = ctx.socket(zmq.PUSH), ctx.socket(zmq.PULL)
    woken.bind("inproc://worker-done")
    waker.connect("inproc://worker-done")
    try:
        server = PolicyServer(
            ctx, plan.endpoint, hosted, note=note, wake=lambda: waker.send(b"", zmq.NOBLOCK)
        )
    except zmq.ZMQError as error:
        ctx.destroy(linger=0)
        raise ConfigError(
            f"--bind {plan.endpoint}: {error.strerror}; is another server running there?"
        ) from error
    page = None
    try:
        if plan.place is not None:
            page = MetricsPage(*plan.place, server.metrics.text)
            say(f"figures: {page.address}")
        say(f"listening at {server.door.endpoint}; on a robot: edgevla deploy --policy "
            f"{server.door.endpoint}/{hosted[0].name} --robot ...")  # fmt: skip
        _turn(server, woken, asked)
    finally:
        if page is not None:
            page.close()
        server.close()
        for socket in (waker, woken):
            socket.close(linger=0)
        ctx.term()
        n = round(server.metrics.value("requests_total", outcome="answered"))
        close_log({"answered": n, "requests": round(server.metrics.total("requests_total"))})
    say(f"{n} requests answered")
    return 0


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
            say(SHOWN[kind].format(**{k: printable(v) for k, v in fields.items()}))
        if files is not None:
            at = round(time.time(), 3)
            files.write(json.dumps({"type": kind, "at": at, **fields}, separators=(",", ":")))

    return note, lambda summary: files.close(json.dumps(summary)) if files is not None else None

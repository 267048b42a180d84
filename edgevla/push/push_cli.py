"""Brings a bundle and its runtime to a robot's computer over ssh, measures it there, and keeps the version before it.

    edgevla push bundles/act me@robot                copy what changed, verify, install or update EdgeVLA there, bench
    edgevla push --rollback me@robot                 the version before the last push is current again
    edgevla push bundles/act me@robot --copy-only    the bundle alone, without runtime and bench

What is current there changes in one step, after everything else went well. A push that was cut goes on where it was.
ssh asks for what it needs, and reads ~/.ssh/config. Nothing is pushed where a deployment is running.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevla.errors import RemoteError, UsageError

if TYPE_CHECKING:
    from edgevla.bundle import Bundle
    from edgevla.push.line import RobotLine

MACHINES = ("aarch64", "x86_64")
EXTRA_OF = {"tensorrt": "jetson", "cuda": "gpu", "cpu": "cpu"}
"""Which extra has the engine for a bundle, by its target."""
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class File:
    """name: inside its folder. path: here."""

    name: str
    path: Path
    sha256: str

    @property
    def size(self) -> int:
        return self.path.stat().st_size


@dataclass
class Traffic:
    """What went over the line: bytes sent, and bytes that were there already."""

    n_files: int = 0
    n_sent: int = 0
    sent_bytes: int = 0
    there_bytes: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [options] BUNDLE USER@HOST, or --rollback USER@HOST"
    add = parser.add_argument
    add("words", nargs="+", metavar="BUNDLE USER@HOST", help="the bundle's folder, and where ssh goes")
    add(
        "--rollback",
        action="store_true",
        help="make the version before the last push current (USER@HOST alone)",
    )
    add("--to", metavar="DIR", default="edgevla", help="folder there, in the home unless it begins with /")
    add("--copy-only", action="store_true", help="neither install or update the runtime there, nor bench")
    add("--wheels", type=Path, metavar="DIR",
        help="bring these wheels too, and install from them alone: for a robot without a network")  # fmt: skip
    add("--python", default="python3", metavar="NAME", help="which Python there; default: %(default)s")
    add("--ssh", default="ssh", metavar="COMMAND", help="what to call, such as 'ssh -p 2222'")
    add("--json", action="store_true", help="print what was done as JSON")


def run(args: argparse.Namespace) -> int:
    *bundle, host = args.words
    if args.rollback:
        _check_rollback(args, bundle)
        report = _rollback(args, host)
    else:
        if len(bundle) != 1:
            raise UsageError("say one bundle and where it goes: edgevla push bundles/act me@robot")
        if args.copy_only and args.wheels is not None:
            raise UsageError("--wheels is for the runtime, which --copy-only leaves alone")
        report = _push(args, Path(bundle[0]), host)
    print(json.dumps(report, indent=1) if args.json else "\n".join(_lines(report, host)))
    return 0


def _check_rollback(args: argparse.Namespace, bundle: Sequence[str]) -> None:
    if bundle:
        raise UsageError("--rollback takes USER@HOST alone: it undoes the last push there")
    for name in ("copy_only", "wheels"):
        if getattr(args, name):
            raise UsageError(f"--rollback copies nothing; leave out --{name.replace('_', '-')}")


@contextlib.contextmanager
def _there(args: argparse.Namespace, host: str) -> Iterator[tuple[RobotLine, dict[str, Any], File]]:
    """The line, what the machine is, and our wheel, once it is there and nobody is moving."""
    from edgevla.bundle import sha256_of
    from edgevla.push.line import RobotLine, check_host
    from edgevla.push.own_wheel import write_wheel

    if not (ssh := shlex.split(args.ssh)):
        raise UsageError("--ssh is empty; leave it out, or say what to call")
    check_host(host)
    with tempfile.TemporaryDirectory(prefix="edgevla-push-") as folder:
        path = write_wheel(Path(folder))
        wheel = File(path.name, path, sha256_of(path))
        with RobotLine(host, ssh, args.python, _show(args)) as line:
            about = line.ask("about")
            check_machine(about, host)
            about["root"] = line.ask("open", to=args.to)["root"]
            _copy(line, [wheel], Traffic(), args)
            line.ask("check_idle", wheel=wheel.sha256)
            yield line, about, wheel


def check_machine(about: dict[str, Any], host: str) -> None:
    """
    Raises:
        RemoteError: the runtime cannot run there.
    """
    if about["system"] != "Linux" or about["machine"] not in MACHINES:
        raise RemoteError(
            f"{host}: it is a {about['system']} on {about['machine']}; EdgeVLA runs on 64-bit Linux "
            f"({', '.join(MACHINES)})",
            host=host,
        )


def _push(args: argparse.Namespace, folder: Path, host: str) -> dict[str, Any]:
    from edgevla.bundle import load_bundle, sha256_of

    bundle = load_bundle(folder)
    name = bundle.folder.resolve().name
    if not NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot be a bundle's name there; rename the folder (letters, digits, . _ -)"
        )
    files = files_of(bundle)
    wheels = [] if args.wheels is None else [
        File(p.name, p, sha256_of(p)) for p in sorted(args.wheels.glob("*.whl"))
    ]  # fmt: skip
    if args.wheels is not None and not wheels:
        raise UsageError(f"--wheels {args.wheels}: there is no wheel; pip download fills it (docs/push.md)")
    account = Traffic()
    with _there(args, host) as (line, about, wheel):
        _copy(line, files, account, args)
        version = f"{name}-{bundle.sha256[:12]}"
        line.ask("place", version=version, files=[(f.name, f.sha256) for f in files])
        runtime, bench = None, None
        if not args.copy_only:
            runtime = _install(line, extras_of(bundle), wheel, wheels, account, args)
            bench = line.ask("bench", version=version, key=runtime["key"])
        chosen = {k: runtime and runtime[k] for k in ("key", "engine")}
        current = line.ask("switch", name=name, version=version, **chosen)
    return {
        "host": host,
        "machine": about,
        "copied": asdict(account),
        "runtime": runtime,
        "bench": bench,
        "current": current,
    }


def _install(
    line: RobotLine,
    engine: str,
    wheel: File,
    wheels: Sequence[File],
    account: Traffic,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Which environment runs bundles there; made where it is missing, or older than ours."""
    from edgevla import __version__

    plan: dict[str, Any] = line.ask("plan_runtime", version=__version__, engine=engine, wheel=wheel.sha256)
    if plan["is_new"]:
        _copy(line, wheels, account, args)
        named = [(w.name, w.sha256) for w in (wheel, *wheels)]
        chosen = {k: plan[k] for k in ("key", "version", "engine")}
        line.ask("make_runtime", **chosen, wheels=named, offline=bool(wheels))
    return plan


def _rollback(args: argparse.Namespace, host: str) -> dict[str, Any]:
    with _there(args, host) as (line, about, _):
        return {"host": host, "machine": about, "current": line.ask("rollback")}


def extras_of(bundle: Bundle) -> str:
    """What is installed to run it, as pip wants it said: `cpu`, `jetson,language`."""
    extra = EXTRA_OF[bundle.manifest.target.provider]
    return extra if bundle.manifest.prompt is None else f"{extra},language"


def files_of(bundle: Bundle) -> list[File]:
    """All files of a bundle, the manifest last."""
    from edgevla.bundle import MANIFEST

    listed = [File(e.path, bundle.path(e.path), e.sha256) for e in bundle.manifest.files]
    return [*listed, File(MANIFEST, bundle.path(MANIFEST), bundle.sha256)]


def _copy(line: RobotLine, files: Sequence[File], account: Traffic, args: argparse.Namespace) -> None:
    """Sends what the robot lacks, from where it broke off."""
    from edgevla.progress import ProgressLine

    there = line.ask("have", files=[(f.sha256, f.size) for f in files])
    lacking = {f.sha256: f for f in files if there[f.sha256] < f.size or not f.size}
    n_bytes = sum(f.size - there[s] for s, f in lacking.items())
    account.n_files += len(files)
    account.n_sent += len(lacking)
    account.there_bytes += sum({f.sha256: there[f.sha256] for f in files}.values())
    shown = ProgressLine(max(1, n_bytes >> 20), "MB", out=None if args.json else sys.stderr)
    begun = account.sent_bytes

    def count(n: int) -> None:
        account.sent_bytes += n
        shown.show((account.sent_bytes - begun) >> 20)

    try:
        for sha256, file in lacking.items():
            line.send(file.path, sha256, there[sha256], count)
    finally:
        shown.close()


def _show(args: argparse.Namespace) -> Any:
    """Shows what programs on the robot say, where a person looks on."""
    from edgevla.progress import columns_of, tell

    out = sys.stderr
    width = columns_of(out)
    if args.json or width is None:
        return lambda _: None

    def show(text: str) -> None:
        clean = "".join(c if c.isprintable() else " " for c in text)
        tell(f"\r\x1b[K{clean[: width - 1]}\r", out, end="")

    return show


# -- what a person reads --------------------------------------------------------------------------------------


def _lines(report: dict[str, Any], host: str) -> Iterator[str]:
    about, current = report["machine"], report["current"]
    tegra = f", {about['tegra'].split(', GCID')[0]}" if about["tegra"] else ""
    yield f"{host}: {about['machine']}, Python {about['python']}{tegra}"
    if copied := report.get("copied"):
        yield (
            f"copied: {copied['n_sent']} of {copied['n_files']} files, {_megabytes(copied['sent_bytes'])}; "
            f"{_megabytes(copied['there_bytes'])} were there"
        )
    if runtime := report.get("runtime"):
        done = "installed" if runtime["is_new"] else "as it was"
        done = "is later than ours, and was kept" if runtime["is_kept"] else done
        yield f"runtime: {runtime['version']} [{runtime['engine']}], {done}"
    if bench := report.get("bench"):
        yield (
            f"bench: {bench['policy']} on {bench['provider']}, opened in {bench['opened_s']} s; an inference takes "
            f"{bench['p50_ms']} ms, at most {bench['max_ms']} ms (of {bench['n']}); a chunk lasts {bench['chunk_ms']} ms"
        )
    before = f"; before it: {current['before']}" if current["before"] else ""
    yield f"current: {current['bundle']} is {current['version']}{before}"
    if current["edgevla"]:
        yield f"start it: ssh -t {host} {current['edgevla']} deploy {current['bundle']} --robot ..."


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"

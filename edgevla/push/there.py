"""The robot's half of `edgevla push`: sent over ssh, run by the robot's own python3, the standard library alone.

    DIR/bundles/NAME      -> .push/versions/NAME-HASH     what `edgevla deploy` is given; a link, changed in one step
    DIR/venv              -> .push/runtimes/KEY           the runtime, the same way
    DIR/.push/store/HASH     every file once, under its sha256; HASH.part is one that is still arriving
    DIR/.push/state.json     which versions are now, and which were before

Versions are hard links into the store: a file that two versions share is kept once and copied once. A line of JSON comes
in, lines of JSON go out: `{"line": ...}` while it works, then `{"ok": ...}` or `{"error": ...}`, and an error ends it.
Whatever is cut short leaves the old version in place and is used by the next push.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

GREETING = "edgevla push, version 1"
SILENCE_S = 90
"""Longer than any pause of a living sender: a line that was cut is noticed then, and its lock freed."""
LOCK_S = 3.0
BLOCK, PIPE_BLOCK = 1 << 20, 1 << 16
SPARE_BYTES = 64 << 20
RUNTIME_BYTES = 700 << 20
"""What a fresh environment with an engine takes at most."""
ENGINES = ("jetson", "cpu", "gpu")
"""Extras, each of which runs what those before it do beside the machine's own TensorRT."""
TEGRA = Path("/etc/nv_tegra_release")
BENCH = "BENCH "
READY = "edgevla-version"
"""A file in an environment that was made to its end; holds EdgeVLA's version."""


class PushRefusal(Exception):
    """A sentence for the person who pushes."""


class RobotFolder:
    """The folder on the robot. All that changes what is current happens in `_settle`."""

    def __init__(self, told: str) -> None:
        self.root = Path(told).expanduser() if told.startswith("~") else Path.home() / told
        self.own = self.root / ".push"
        self.store, self.versions, self.runtimes = (self.own / n for n in ("store", "versions", "runtimes"))
        for folder in (self.root / "bundles", self.store, self.versions, self.runtimes):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.own / "lock").open("w")
        self._lock_or_refuse()
        self._wheel = ""
        self.state: dict[str, Any] = {"bundles": {}, "runtime": None, "engine": None, "before": None}
        file = self.own / "state.json"
        if file.is_file():
            self.state.update(json.loads(file.read_text()))
            self._settle()

    def _lock_or_refuse(self) -> None:
        """One push at a time; one that was just cut is given a moment to notice it."""
        until = time.monotonic() + LOCK_S
        while True:
            try:
                return fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if time.monotonic() > until:
                    raise PushRefusal(
                        f"another push into {self.root} is running, or was cut less than {SILENCE_S} s ago; push "
                        "again then"
                    ) from error
                time.sleep(0.1)

    def close(self) -> None:
        self._lock.close()

    # -- files ------------------------------------------------------------------------------------------------

    def have(self, files: Sequence[tuple[str, int]]) -> dict[str, int]:
        """sha256 -> how many of its bytes are here. A whole file is read again: what was damaged counts for nothing."""
        found = {}
        for sha256, size in files:
            whole, part = self.store / sha256, self.store / f"{sha256}.part"
            if whole.is_file() and (whole.stat().st_size != size or hash_of(whole) != sha256):
                whole.unlink()
            if part.is_file() and part.stat().st_size > size:
                part.unlink()
            found[sha256] = size if whole.is_file() else part.stat().st_size if part.is_file() else 0
        missing = sum(size - found[sha256] for sha256, size in files)
        self._check_room(missing)
        return found

    def put(self, sha256: str, size: int, offset: int) -> None:
        """The rest of a file from `offset` on, as raw bytes on standard input."""
        part = self.store / f"{sha256}.part"
        with part.open("ab") as file:
            file.truncate(offset)
            left = size - offset
            while left:
                with a_word_within(SILENCE_S):
                    block = sys.stdin.buffer.read(min(left, PIPE_BLOCK))
                if not block:
                    raise EOFError
                file.write(block)
                left -= len(block)
            file.flush()
            os.fsync(file.fileno())
        if hash_of(part) != sha256:
            part.unlink()
            raise PushRefusal("a file arrived damaged, or was changed while it was sent; push again")
        part.replace(self.store / sha256)

    def place(self, version: str, files: Sequence[tuple[str, str]]) -> None:
        """Makes the folder of one version: (path, sha256) per file, all in the store already."""
        target, part = self.versions / version, self.versions / f"{version}.part"
        shutil.rmtree(part, ignore_errors=True)
        for path, sha256 in files:
            (part / path).parent.mkdir(parents=True, exist_ok=True)
            link(self.store / sha256, part / path)
        if target.is_dir():  # made before: anew, should somebody have changed it
            gone = self.versions / f"{version}.gone"
            shutil.rmtree(gone, ignore_errors=True)
            target.replace(gone)
            part.replace(target)
            shutil.rmtree(gone)
        else:
            part.replace(target)

    def _check_room(self, n_bytes: int) -> None:
        free = shutil.disk_usage(self.root).free
        if n_bytes and n_bytes + SPARE_BYTES > free:
            raise PushRefusal(
                f"{self.root} has room for {free >> 20} MB, {(n_bytes + SPARE_BYTES) >> 20} MB are needed; "
                "remove something there, or choose another folder with --to"
            )

    # -- the runtime ------------------------------------------------------------------------------------------

    def check_idle(self, wheel: str) -> None:
        """Nobody may be moving: a bench takes the cores of a control loop, and a restarted policy its new bundle."""
        self._wheel = wheel
        sys.path.insert(0, str(self.store / wheel))
        from edgevla.session import deployments, describe

        running = deployments()
        if running:
            raise PushRefusal(
                f"a deployment is running there ({describe(running[0])}); end it first, then push again"
            )

    def plan_runtime(self, version: str, engine: str, wheel: str) -> dict[str, Any]:
        """Which environment shall run bundles: the present one, or one to be made. engine: the extras that a bundle
        asks for, `cpu,language`. wheel: sha256 of ours."""
        kept = self._newer_than(version)
        if kept is not None:
            return {"key": self.state["runtime"], "version": kept, "engine": self.state["engine"],
                    "is_kept": True, "is_new": False}  # fmt: skip
        engine = together(engine, self.state["engine"] or engine)
        key = f"{wheel[:12]}-{engine.replace(',', '-')}-py{sys.version_info[0]}{sys.version_info[1]}"
        is_new = not (self.runtimes / key / READY).is_file()
        return {"key": key, "version": version, "engine": engine, "is_kept": False, "is_new": is_new}

    def make_runtime(
        self, key: str, version: str, engine: str, wheels: Sequence[tuple[str, str]], offline: bool
    ) -> None:
        """An environment beside the present one. wheels: name and sha256, ours first; offline: of these alone."""
        folder = self.runtimes / key
        shutil.rmtree(folder, ignore_errors=True)
        self._check_room(RUNTIME_BYTES)
        self._make_environment(folder)
        (folder / "wheels").mkdir()
        for name, sha256 in wheels:
            link(self.store / sha256, folder / "wheels" / name)
        pip = [
            str(folder / "bin/python"),
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--no-compile",  # half of it is never imported; the bench compiles the rest
        ]
        if offline:
            pip += ["--no-index", "--find-links", str(folder / "wheels")]
        code, said = run([*pip, f"{folder / 'wheels' / wheels[0][0]}[{engine}]"], self.own / "pip.log")
        if code != 0:
            shutil.rmtree(folder, ignore_errors=True)
            raise PushRefusal(
                f"pip could not install the runtime there: {last_error(said)} (all it said: {self.own}/pip.log); "
                "a robot without a network takes --wheels DIR"
            )
        part = folder / f"{READY}.part"
        part.write_text(version)
        part.replace(folder / READY)

    def _newer_than(self, version: str) -> str | None:
        """The version of the present runtime, where it is a later one."""
        ready = self.runtimes / str(self.state["runtime"]) / READY
        here = ready.read_text() if ready.is_file() else ""
        return here if numbers(here) > numbers(version) else None

    def _make_environment(self, folder: Path) -> None:
        """JetPack's TensorRT is a system package, which an environment shows only when it is told to."""
        more = ["--system-site-packages"] if TEGRA.is_file() else []
        code, said = run([sys.executable, "-m", "venv", *more, str(folder)], self.own / "venv.log")
        if code == 0:
            return
        shutil.rmtree(folder, ignore_errors=True)
        if "ensurepip" in said or "No module named venv" in said:
            raise PushRefusal(
                "python3 there cannot make environments: sudo apt install python3-venv, then push again"
            )
        raise PushRefusal(f"no environment could be made there: {last_error(said)}")

    def bench(self, version: str, key: str) -> dict[str, Any]:
        """Opens the version in the runtime (engines are built now), and measures it."""
        python = self.runtimes / key / "bin/python"
        code, said = run(
            [str(python), "-m", "edgevla.push.bench", str(self.versions / version)], self.own / "bench.log"
        )
        found = [line for line in said.splitlines() if line.startswith(BENCH)]
        if code != 0 or not found:
            raise PushRefusal(
                f"the bundle does not run there: {last_error(said)} (all it said: {self.own}/bench.log); what was "
                "there before stays current"
            )
        answer: dict[str, Any] = json.loads(found[-1][len(BENCH) :])
        return answer

    # -- what is current --------------------------------------------------------------------------------------

    def switch(self, name: str, version: str, key: str | None, engine: str | None) -> dict[str, Any]:
        """Makes a version and a runtime (key; None: the present one) the current ones, and remembers which were."""
        mine = self.root / "bundles" / name
        if mine.exists() and not mine.is_symlink():
            raise PushRefusal(
                f"{mine} is not of edgevla's making; move it away, or choose another folder with --to"
            )
        state = self.state
        before = self._present(name)
        runtime = key or state["runtime"]
        is_the_same = before["bundle"] == version and before["runtime"] in (None, runtime)
        if not is_the_same:  # a first runtime for the same bundle leaves nothing to go back to
            state["before"] = before
        state["bundles"][name], state["runtime"], state["engine"] = (
            version,
            runtime,
            engine or state["engine"],
        )
        self._settle()
        self._prune()
        return self.current(name)

    def rollback(self) -> dict[str, Any]:
        """Exchanges what is current with what was before the last push."""
        state, before = self.state, self.state["before"]
        if before is None or before["bundle"] is None:
            raise PushRefusal(
                f"there is no version before the present one in {self.root}; nothing was changed"
            )
        name = before["name"]
        state["before"] = self._present(name)
        state["bundles"][name] = before["bundle"]
        if before["runtime"] is not None:
            state["runtime"], state["engine"] = before["runtime"], before.get("engine", state["engine"])
        self._settle()
        return self.current(name)

    def _present(self, name: str) -> dict[str, Any]:
        """What a rollback would bring back. bundle: None where there is none of this name."""
        state = self.state
        return {"name": name, "bundle": state["bundles"].get(name)} | {
            k: state[k] for k in ("runtime", "engine")
        }

    def current(self, name: str) -> dict[str, Any]:
        before = self.state["before"] or {}
        return {
            "name": name,
            "bundle": str(self.root / "bundles" / name),
            "version": self.state["bundles"][name],
            "before": before.get("bundle") if before.get("name") == name else None,
            "edgevla": str(self.root / "venv/bin/edgevla") if self.state["runtime"] else None,
        }

    def _settle(self) -> None:
        """State first, links after it: links that a cut left behind are set right by the next push."""
        part = self.own / "state.json.part"
        part.write_text(json.dumps(self.state, indent=1))
        part.replace(self.own / "state.json")
        for name, version in self.state["bundles"].items():
            point(self.root / "bundles" / name, f"../.push/versions/{version}")
        if self.state["runtime"]:
            point(self.root / "venv", f".push/runtimes/{self.state['runtime']}")

    def _prune(self) -> None:
        """Removes what neither is current nor was before."""
        before = self.state["before"] or {}
        for folder, kept in (
            (self.versions, {*self.state["bundles"].values(), before.get("bundle")}),
            (self.runtimes, {self.state["runtime"], before.get("runtime")}),
        ):
            for path in folder.iterdir():
                if path.name not in kept:
                    shutil.rmtree(path, ignore_errors=True)
        for path in self.store.iterdir():
            if path.stat().st_nlink == 1 and path.name != self._wheel:
                path.unlink()


def point(link_path: Path, target: str) -> None:
    """Makes a link, or changes it, in one step."""
    if link_path.is_symlink() and link_path.readlink() == Path(target):
        return
    part = link_path.with_name(f".{link_path.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(target)
    part.replace(link_path)


def link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        raise PushRefusal(
            f"the disk of {target.parent} has no hard links; choose another one with --to"
        ) from error


def hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def together(some: str, others: str) -> str:
    """Extras that serve both: the greater of the two engines, and each other one that either wants."""
    wanted = {*some.split(","), *others.split(",")}
    engine = max(wanted.intersection(ENGINES), key=ENGINES.index)
    return ",".join([engine, *sorted(wanted.difference(ENGINES))])


def numbers(version: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", version)]


def last_error(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["it said nothing"])[-1]


# -- the conversation -----------------------------------------------------------------------------------------


@contextmanager
def a_word_within(seconds: int) -> Iterator[None]:
    """Ends this process where the line has been silent for so long."""
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def tell(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def run(command: Sequence[str], log: Path) -> tuple[int, str]:
    """Exit code and output of a program, its lines told as they come; it ends where the one who pushes has gone."""
    with log.open("w") as file, subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as child:  # fmt: skip
        assert child.stdout is not None
        try:
            for line in lines_of(child.stdout):
                file.write(line)
                tell(line=line.rstrip())
        finally:
            if child.poll() is None and sys.exc_info()[0] is not None:
                child.kill()
    return child.returncode, log.read_text()


def lines_of(output: IO[str]) -> Iterator[str]:
    """
    Raises:
        EOFError: the line to the one who pushes was cut meanwhile (nobody speaks while we work).
    """
    text = b""
    while True:
        ready, _, _ = select.select([output, sys.stdin.buffer], [], [])
        if sys.stdin.buffer in ready:
            raise EOFError
        block = os.read(output.fileno(), 65536)
        *whole, text = (text + block).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace") + "\n"
        if not block:
            if text:
                yield text.decode(errors="replace") + "\n"
            return


def about() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "tegra": TEGRA.read_text().splitlines()[0].strip("# ") if TEGRA.is_file() else "",
    }


def converse() -> None:
    """Answers one line after the other until there is none."""
    place: RobotFolder | None = None
    while True:
        with a_word_within(SILENCE_S):
            line = sys.stdin.buffer.readline()
        if not line:
            return
        asked = json.loads(line)
        do = asked.pop("do")
        if do == "about":
            tell(ok=about())
            continue
        if do == "open":
            place = RobotFolder(asked["to"])
            tell(ok={"root": str(place.root)})
            continue
        answer = getattr(place, do)(**asked)
        tell(ok=answer)


def main() -> None:
    tell(greeting=GREETING)
    try:
        converse()
    except PushRefusal as refusal:
        tell(error=str(refusal))
    except (EOFError, BrokenPipeError):
        pass  # the line was cut, there is nobody to tell
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        cures = {
            errno.ENOSPC: "the disk is full; remove something there, or choose another folder with --to",
            errno.EACCES: "this user may not write there; choose another folder with --to, or another user",
            errno.EROFS: "the disk cannot be written; choose another folder with --to",
        }
        cure = cures.get(error.errno or 0, "look after that folder there")
        tell(error=f"{where}{error.strerror or error}: {cure}")


if __name__ == "__main__":
    main()

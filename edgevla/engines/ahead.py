"""Engines are built before they are needed: by whoever starts a policy, in a process that outlives an accident.

    the command that waits is asked to end (Ctrl-C, SIGTERM)    the builder is ended, unless others wait for it
    it dies in any other way (SIGKILL, the terminal closes)     the builder goes on; the next command joins it
    the builder dies                                            who waits says why; the next command builds what lacks

Nothing here loads TensorRT: the builder does, and ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from edgevla.bundle import Bundle, check_provider
from edgevla.engines.engine_files import (
    LOCK,
    BuildSettings,
    BuildStatus,
    engines_folder,
    is_waited_for,
    read_status,
    take,
    tidy,
)
from edgevla.errors import EngineError, UsageError
from edgevla.progress import duration

SAID = "trt_build: "
LOOK_S = 0.1
ENDS_S = 5.0
STALLED_S = 1800.0
"""A build that gets on may take hours; one that does not get on for so long never will."""
SETTLED = 0.05
"""Of the work, before which the time that is left is not guessed."""

Tell = Callable[[str], None]


class NotWaited(Exception):
    """`is_over` said so before the engines were there."""


class Seldom:
    """Passes on what is told where a line stays: the first of each graph, then one every ten seconds."""

    def __init__(self, tell: Tell, every_s: float = 10.0) -> None:
        self._tell, self._every_s = tell, every_s
        self._told, self._subject = 0.0, ""

    def __call__(self, text: str) -> None:
        subject, now = text.partition(")")[0], time.monotonic()
        if subject != self._subject or now - self._told >= self._every_s:
            self._subject, self._told = subject, now
            self._tell(text)


def is_native(provider: str) -> bool:
    """Whether TensorRT runs engines of ours here: no onnxruntime has it built in."""
    return provider == "tensorrt" and not onnxruntime_has_tensorrt()


def onnxruntime_has_tensorrt() -> bool:
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    return "TensorrtExecutionProvider" in onnxruntime.get_available_providers()


def build_ahead(
    bundle: Bundle,
    tell: Tell,
    is_over: Callable[[], bool] = lambda: False,
    settings: BuildSettings | None = None,
) -> list[dict[str, Any]]:
    """Every engine of a bundle, built now where it lacks; for each its graph, file, bytes and seconds of building.

    settings: None: as `edgevla build` last chose for a graph. tell: is told how far it is, several times a second.

    Raises:
        NotWaited: `is_over` said so. EngineError: no TensorRT or GPU, or TensorRT refuses a graph; with its reason.
        BundleError: the bundle is made for another target, or a graph is not what its manifest says.
        UsageError: an arm may have its torque on.
    """
    check_provider(bundle, "tensorrt")
    words = [sys.executable, "-m", "edgevla.engines.trt_build", str(bundle.folder)]
    words += [] if settings is None else ["--settings", json.dumps(asdict(settings))]
    # Files without a name: they live as long as the builder, whoever else ends.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
        builder = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=said, start_new_session=True
        )
        try:
            _watch(builder, bundle, tell, is_over)
        except BaseException:
            _leave(builder, tell)
            raise
        finally:
            tidy(engines_folder())
        if builder.returncode != 0:
            raise _failure(builder.returncode, said, bundle)
        out.seek(0)
        built: list[dict[str, Any]] = json.loads(out.read().splitlines()[-1])
        return built


def _watch(builder: subprocess.Popen[bytes], bundle: Bundle, tell: Tell, is_over: Callable[[], bool]) -> None:
    """Until it has ended."""
    watch = _StallWatch()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            builder.wait(LOOK_S)
            return
        if is_over():
            raise NotWaited
        status = read_status(engines_folder())
        if status is None:
            continue
        is_other = "" if status.pid == builder.pid else f"waiting for {Path(status.bundle).name}: "
        tell(is_other + described(status))
        if watch.is_stalled(status):
            raise EngineError(
                f"building the engines of {Path(status.bundle).name} (process {status.pid}) has not got on for "
                f"{duration(STALLED_S)}, at '{status.phase}'; end it, and build again with less: "
                f"edgevla build {bundle.folder} --workspace 512"
            )


class _StallWatch:
    def __init__(self) -> None:
        self._seen: BuildStatus | None = None
        self._since = time.monotonic()

    def is_stalled(self, status: BuildStatus) -> bool:
        if status != self._seen:
            self._seen, self._since = status, time.monotonic()
        return time.monotonic() - self._since > STALLED_S


def described(status: BuildStatus) -> str:
    """`building encode (1 of 3): Timing tactics, 43 %, about 2 min 10 s left`."""
    words = (
        f"building {status.graph} ({status.index + 1} of {status.n}): {status.phase}, {status.fraction:.0%}"
    )
    spent = (time.monotonic_ns() - status.began_ns) / 1e9
    if SETTLED < status.fraction < 1:
        words += f", about {duration(spent / status.fraction * (1 - status.fraction))} left"
    return words.replace("%", " %")


def _leave(builder: subprocess.Popen[bytes], tell: Tell) -> None:
    """It is ended with who asked for it, unless it builds and others wait for that."""
    status = read_status(engines_folder())
    if status is not None and status.pid == builder.pid and is_waited_for(engines_folder()):
        tell(f"another command waits for these engines: building goes on (process {builder.pid})")
        builder.returncode = 0  # not ours any more
        return
    builder.terminate()
    try:
        builder.wait(ENDS_S)
    except subprocess.TimeoutExpired:
        builder.kill()
        builder.wait()


def _failure(code: int, said: IO[bytes], bundle: Bundle) -> Exception:
    """Why it failed, in its own words or the kernel's."""
    said.seek(0)
    lines = [line.strip() for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    own = [line.removeprefix(SAID) for line in lines if line.startswith(SAID)]
    if own:
        return (UsageError if code == UsageError.exit_code else EngineError)(own[-1])
    less = f"edgevla build {bundle.folder} --workspace 512"
    if code == -signal.SIGKILL:
        return EngineError(
            f"building the engines of {bundle.folder} was killed, most likely because memory ran out; end other "
            f"programs, add swap, or let it take less: {less}"
        )
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    last = f"; its last words: {lines[-1]}" if lines else ""
    return EngineError(f"building the engines of {bundle.folder} ended with {how}{last}; try again: {less}")


@contextlib.contextmanager
def nobody_builds(tell: Tell, is_over: Callable[[], bool]) -> Iterator[None]:
    """Waits for a running build, and lets none begin meanwhile: an arm is switched on.

    Raises:
        NotWaited: `is_over` said so.
    """
    if not engines_folder().is_dir():
        yield
        return
    while (lock := take(engines_folder() / LOCK, is_shared=True)) is None:
        if is_over():
            raise NotWaited
        if (status := read_status(engines_folder())) is not None:
            tell(f"waiting until the arm may start: {described(status)}")
        time.sleep(LOOK_S)
    try:
        yield
    finally:
        os.close(lock)

"""The ssh connection to a robot's computer, and what can be wrong with one, in sentences.

One `ssh` for all, so a person is asked once for what ssh asks for. Whom it trusts, which keys and which port it takes is
its own affair: `~/.ssh/config`, the agent, `known_hosts`. We see no password.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgevla.errors import RemoteError, UsageError
from edgevla.progress import tell
from edgevla.push.there import BLOCK, GREETING

HOST = re.compile(r"(?:[A-Za-z0-9_][\w.+-]*@)?[A-Za-z0-9_\[][\w.:%\]-]*", re.ASCII)
OPTIONS = ("-T", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3")
MOST_NOISE = 1 << 16
"""Bytes that a login shell may say before our program speaks."""
SILENT_S = 30.0
"""Then it is said that nothing was heard: a login shell may wait for something that nobody sees."""
OLDEST = (3, 10)
LAST_WORDS = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "its key is another one than last time; if you know why: ssh-keygen -R "
     "with its name, then ssh there once by hand"),
    ("Host key verification failed", "ssh does not know its key; ssh there once by hand, and compare what it shows"),
    ("Permission denied (", "ssh's keys do not open it; ssh-copy-id brings yours there"),
    ("Could not resolve hostname", "no machine of this name is known here; check the name, or use its address "
     "(a port belongs into ~/.ssh/config)"),
    ("Connection refused", "no ssh server listens there; sudo apt install openssh-server on it"),
    ("timed out", "nothing answers there; is it switched on, and in this network?"),
    ("No route to host", "there is no way to it; is it switched on, and in this network?"),
)  # fmt: skip
"""What ssh says, and what a person does about it."""


def check_host(host: str) -> str:
    """
    Raises:
        UsageError: ssh could take it for an option, or it is no USER@HOST.
    """
    if not HOST.fullmatch(host):
        raise UsageError(f"'{host}' is no USER@HOST; a port or a key belongs into ~/.ssh/config")
    return host


class RobotLine:
    """A conversation with `there.py` on the robot.

    ssh: what is called, with its first options. on_line: hears what programs there say while they work.
    """

    def __init__(self, host: str, ssh: Sequence[str], python: str, on_line: Callable[[str], None]) -> None:
        """
        Raises:
            RemoteError: no connection, or no Python of ours there.
        """
        self.host, self._on_line = check_host(host), on_line
        program = (Path(__file__).parent / "there.py").read_bytes()
        begin = (
            'import sys; v = sys.version_info; sys.exit("python is %d.%d" % v[:2]) if v < (3, 10) else '
            f'exec(compile(sys.stdin.buffer.read({len(program)}), "edgevla push", "exec"))'
        )
        command = [*ssh, *OPTIONS, "--", host, f"exec {shlex.quote(python)} -u -c {shlex.quote(begin)}"]
        self._python = python
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  read after the end, closed in `close`
        try:
            self._ssh = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr
            )
        except OSError as error:
            self._stderr.close()
            raise RemoteError(
                f"'{ssh[0]}' cannot be run here ({error.strerror}): sudo apt install openssh-client"
            ) from error
        try:
            self._write(program)
            self._await_greeting()
        except BaseException:
            self.close()
            raise

    def _await_greeting(self) -> None:
        """A login shell may speak before our program does, or wait, or end."""
        words = (
            f"{self.host}: nothing heard for {SILENT_S:g} s: ssh waits for you, or the login shell there for "
            "something; Ctrl-C ends it"
        )
        silence = threading.Timer(SILENT_S, tell, [words, sys.stderr])
        silence.daemon = True
        silence.start()
        noise = b""
        try:
            while (line := self._read()) and len(noise) < MOST_NOISE:
                if GREETING.encode() in line:
                    return
                noise += line
        finally:
            silence.cancel()
        raise self._failure(noise.decode(errors="replace"))

    def ask(self, do: str, **fields: Any) -> Any:
        """One question, its answer.

        Raises:
            RemoteError: the robot's side refused, or the line is gone.
        """
        self._write(json.dumps({"do": do, **fields}).encode() + b"\n")
        return self._answer()

    def send(self, file: Path, sha256: str, offset: int, on_block: Callable[[int], None]) -> None:
        """The rest of a file, from `offset` on. on_block: hears how many bytes went out.

        Raises:
            RemoteError: as `ask`.
        """
        size = file.stat().st_size
        said = {"do": "put", "sha256": sha256, "size": size, "offset": offset}
        with file.open("rb") as stream:
            stream.seek(offset)
            block = json.dumps(said).encode() + b"\n"
            while self._write(block) and (block := stream.read(min(BLOCK, size - stream.tell()))):
                on_block(len(block))
        self._answer()

    def close(self) -> None:
        for stream in (self._ssh.stdin, self._ssh.stdout):
            try:
                if stream is not None:
                    stream.close()
            except OSError:
                pass  # what was still to be sent has nobody to go to
        try:
            self._ssh.wait(5)
        except subprocess.TimeoutExpired:
            self._ssh.kill()
            self._ssh.wait()
        self._stderr.close()

    def __enter__(self) -> RobotLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, data: bytes) -> bool:
        """Whether it went out; where not, the robot's side has said why, or ssh has."""
        assert self._ssh.stdin is not None
        try:
            self._ssh.stdin.write(data)
            self._ssh.stdin.flush()
        except OSError:
            return False
        return True

    def _read(self) -> bytes:
        assert self._ssh.stdout is not None
        return self._ssh.stdout.readline()

    def _answer(self) -> Any:
        while line := self._read():
            try:
                said = json.loads(line)
            except ValueError:
                break  # a line that was cut
            if "line" in said:
                self._on_line(said["line"])
            elif "error" in said:
                raise RemoteError(f"{self.host}: {said['error']}", host=self.host)
            else:
                return said["ok"]
        raise self._failure()

    def _failure(self, noise: str | None = None) -> RemoteError:
        """Why ssh ended, or the program on the other side. noise: all that was heard; None: our program had begun."""
        code = self._ssh.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace")
        return RemoteError(f"{self.host}: {failure_words(code, said, self._python, noise)}", host=self.host)


def failure_words(code: int, said: str, python: str, noise: str | None = None) -> str:
    """A sentence out of ssh's exit code and its standard error. noise: what came instead of our program's greeting."""
    for words, sentence in LAST_WORDS:
        if words in said:
            return sentence
    if old := re.search(r"^python is (\S+)", said, re.MULTILINE):
        oldest = ".".join(map(str, OLDEST))
        return (
            f"its {python} is Python {old[1]}, {oldest} or later is needed (a Jetson has it from JetPack 6 on); "
            "name another one with --python"
        )
    if code in (126, 127):
        return f"it has no '{python}'; sudo apt install python3 python3-venv there, or name one with --python"
    lines = [line.strip() for line in f"{noise or ''}\n{said}".splitlines() if line.strip()]
    last = f" ({lines[-1]})" if lines else ""
    if noise is not None and code not in (0, 255):
        return (
            f"its login shell or {python} ended before our program began{last}; mend it until "
            f"`ssh HOST {python} -V` says its version, then push again"
        )
    return f"the line was cut{last}; push again: it goes on where it was"

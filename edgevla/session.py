"""Where the processes of one deployment meet: a private folder, its sockets, and the note that names them.

Without numpy or ZeroMQ, because the guardian reads this too. The folder is `$XDG_RUNTIME_DIR/edgevla/<session>`
(or below /tmp, mode 0700); a socket's path must stay under 100 bytes, the kernel's limit being 107.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import stat
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from edgevla.errors import UsageError, WireError

MAX_PATH_BYTES = 100
NOTE = "deployment.json"
EMERGENCY_STOP = b"emergency_stop"


def new_session() -> bytes:
    """8 random bytes that every message of a deployment carries."""
    return secrets.token_bytes(8)


def runtime_root() -> Path:
    """The user's folder of deployments, made with mode 0700.

    Raises:
        WireError: the folder belongs to somebody else or others may write into it.
    """
    candidates = [Path(tempfile.gettempdir()) / f"edgevla-{os.getuid()}", Path(f"/tmp/edgevla-{os.getuid()}")]
    if os.environ.get("XDG_RUNTIME_DIR"):
        candidates.insert(0, Path(os.environ["XDG_RUNTIME_DIR"]) / "edgevla")
    for root in candidates:
        if len(os.fsencode(root)) > 60:  # leaves 40 bytes for session, node and stream
            continue
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        about = root.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
            raise WireError(
                f"{root} must be a folder of this user alone (mode 0700), or others could steer the arm; "
                f"remove it and try again"
            )
        return root
    raise WireError(f"no folder for the deployment's sockets could be made in {candidates[0].parent} or /tmp")


def run_dir(session: bytes) -> Path:
    """The deployment's own folder, made with mode 0700 when it does not exist yet."""
    folder = runtime_root() / session.hex()
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def endpoint(folder: Path | str, node: str, stream: str = "pub") -> str:
    """ZeroMQ address of one socket of a node.

    folder: the run directory, or the string `inproc` in tests (all nodes then share one zmq context).
    node: `robot`, `policy`, `camera/front`, ... stream: `pub` (everything a node publishes), `commands`, `infer`.
    """
    name = f"{node.replace('/', '-')}.{stream}"
    if str(folder) == "inproc":
        return f"inproc://{name}"
    path = Path(folder) / name
    if len(os.fsencode(path)) >= MAX_PATH_BYTES:
        raise WireError(
            f"the socket path {path} has {len(os.fsencode(path))} bytes; at most {MAX_PATH_BYTES} work"
        )
    return f"ipc://{path}"


@dataclass(frozen=True)
class Deployment:
    """The note `deployment.json`: what a monitor needs to attach.

    session: hex. nodes: names of all nodes that publish. supervisor_pid: whoever wrote the note.
    """

    session: str
    supervisor_pid: int
    robot: str
    bundle: str | None
    nodes: list[str] = field(default_factory=list)
    task: str = ""

    @property
    def bundle_name(self) -> str:
        return Path(self.bundle).name if self.bundle else ""

    @property
    def session_bytes(self) -> bytes:
        return bytes.fromhex(self.session)


def write_deployment(folder: Path, deployment: Deployment) -> None:
    """Writes the note whole or not at all."""
    part = folder / (NOTE + ".part")
    part.write_text(json.dumps(asdict(deployment), indent=1))
    part.replace(folder / NOTE)


def read_deployment(folder: Path) -> Deployment:
    """
    Raises:
        WireError: no note, or not one of ours.
    """
    try:
        return Deployment(**json.loads((folder / NOTE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise WireError(f"{folder / NOTE} does not describe a deployment: {error}") from error


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def find_deployment() -> Path:
    """Run directory of the newest running deployment of this user.

    Raises:
        UsageError: none runs.
    """
    notes = sorted(runtime_root().glob(f"*/{NOTE}"), key=lambda note: note.stat().st_mtime, reverse=True)
    for note in notes:
        try:
            if is_alive(read_deployment(note.parent).supervisor_pid):
                return note.parent
        except WireError:
            continue
    raise UsageError("no deployment is running; start one with: edgevla deploy --robot so101 --sim")


def guardian_socket(folder: Path) -> Path:
    """Datagram socket that reaches the guardian past everything else."""
    return Path(folder) / "guardian.stop"


def tell_guardian(folder: Path) -> bool:
    """Sends `EMERGENCY_STOP` straight to the guardian; whether it was there to hear it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.setblocking(False)
        try:
            out.sendto(EMERGENCY_STOP, str(guardian_socket(folder)))
        except OSError:
            return False
    return True


GuardianState = Literal["watching", "held", "parking", "parked", "released"]


@dataclass(frozen=True)
class GuardianStatus:
    """What the guardian says of the torque it owns, in the file `guardian.json` of the run directory.

    state: `watching`: the loop has the bus, and says itself what it does; `held`, `parking`: the guardian has taken
    the bus, and holds the arm or lowers it; `parked`: torque is left on, reduced; `released`: torque is off.
    since_ns: monotonic. why: one sentence, empty while watching. unconfirmed: motors whose torque may still be on.
    """

    state: GuardianState
    pid: int
    since_ns: int
    why: str = ""
    unconfirmed: list[str] = field(default_factory=list)


def write_guardian_status(folder: Path, status: GuardianStatus) -> None:
    """Writes the status whole or not at all; a folder that has gone is nobody's fault."""
    part = folder / "guardian.json.part"
    try:
        part.write_text(json.dumps(asdict(status)))
        part.replace(folder / "guardian.json")
    except OSError:
        pass


def read_guardian_status(folder: Path) -> GuardianStatus | None:
    """None where there is none (no guardian yet, or the run directory has been removed)."""
    try:
        return GuardianStatus(**json.loads((folder / "guardian.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None

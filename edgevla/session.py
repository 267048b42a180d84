"""Where the processes of one deployment meet: a private folder, its sockets, and the note that names them.

Without numpy or ZeroMQ, because the guardian reads this too. The folder is `<root>/<session>`, mode 0700; a socket's
path must stay under 100 bytes, the kernel's limit being 107. Where the root lies depends on who starts the deployment
(a login has `$XDG_RUNTIME_DIR`, a unit `$RUNTIME_DIRECTORY`, cron neither), so whoever looks for one looks in all of
them, and where only the starter's environment names the root a link stands in /tmp/edgevla-UID, which everybody knows.
`$EDGEVLA_RUNTIME_DIR` replaces them all: for tests, and for containers.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgevla.errors import UsageError, WireError
from edgevla.strict import read, write

MAX_PATH_BYTES = 100
MAX_ROOT_BYTES = 60
"""Leaves 40 bytes for session, node and stream."""
NOTE = "deployment.json"
CAMERAS_OPEN = "cameras_open"
EMERGENCY_STOP = b"emergency_stop"
OVERRIDE = "EDGEVLA_RUNTIME_DIR"
SERVICES = Path("/run/edgevla")
"""Services of this machine have their roots here, each its own (`edgevla service`)."""


def new_session() -> bytes:
    """8 random bytes that every message of a deployment carries."""
    return os.urandom(8)  # `secrets` would load OpenSSL into every process


def _told(name: str, below: str = "") -> list[Path]:
    """What an environment variable says; systemd's own may hold several, joined by colons."""
    said = os.environ.get(name, "")
    return [
        Path(part) / below for part in (said.split(":") if name == "RUNTIME_DIRECTORY" else [said]) if part
    ]


def _known() -> Path:
    """The root that needs no environment."""
    return Path(f"/tmp/edgevla-{os.getuid()}")


def _temporary() -> list[Path]:
    import tempfile  # half a dozen modules that the guardian, which looks for nothing, has no use for

    return [Path(tempfile.gettempdir()) / _known().name, _known()]


def runtime_root() -> Path:
    """The user's folder of deployments, made with mode 0700: the first of several places that will do.

    Raises:
        WireError: the folder belongs to somebody else or others may write into it.
    """
    units = [root for root in _told("RUNTIME_DIRECTORY") if _is_private(root)]
    candidates = _told(OVERRIDE) or [*units, *_told("XDG_RUNTIME_DIR", "edgevla"), *_temporary()]
    for root in candidates:
        if len(os.fsencode(root)) > MAX_ROOT_BYTES:
            continue
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if not _is_private(root):
            raise WireError(
                f"{root} must be a folder of this user alone (mode 0700), or others could steer the arm; "
                f"remove it and try again"
            )
        return root
    raise WireError(f"no folder for the deployment's sockets could be made in {candidates[0].parent} or /tmp")


def _is_private(root: Path) -> bool:
    try:
        about = root.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o077


def runtime_roots() -> list[Path]:
    """All folders in which deployments that this user may steer can lie, whatever their environment was."""
    told = [*_told("RUNTIME_DIRECTORY"), *_told("XDG_RUNTIME_DIR", "edgevla")]
    found = _told(OVERRIDE) or [*told, _login(), *_temporary()]
    roots = [root.resolve() for root in found if _is_private(root)]
    if not _told(OVERRIDE):
        roots += [root for root in _services() if os.access(root, os.R_OK | os.W_OK | os.X_OK)]
    return list(dict.fromkeys(roots))


def _login() -> Path:
    return Path(f"/run/user/{os.getuid()}/edgevla")


def _services() -> list[Path]:
    try:
        return sorted(path for path in SERVICES.iterdir() if path.is_dir())
    except OSError:
        return []


def run_dir(session: bytes) -> Path:
    """The deployment's own folder, made with mode 0700 when it does not exist yet."""
    folder = runtime_root() / session.hex()
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def announce(folder: Path) -> None:
    """A link in the root that everybody knows, where `folder` lies in one that only this environment names."""
    root = _known()
    is_known = folder.parent in (root, _login()) or folder.parent.parent == SERVICES
    if is_known or _told(OVERRIDE):
        return
    with contextlib.suppress(OSError):
        root.mkdir(mode=0o700, exist_ok=True)
        if _is_private(root):
            (root / folder.name).symlink_to(folder.resolve())


def remove_run_dir(folder: Path) -> None:
    """The folder, all in it, and the link to it."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    link = _known() / folder.name
    with contextlib.suppress(OSError):
        if link.is_symlink():
            link.unlink()


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

    session: hex. nodes: names of all nodes that publish. supervisor_pid: whoever wrote the note. supervisor_since:
    when that process began, in clock ticks after boot, because numbers of processes are used again; 0: not known.
    execution: how chunks become goals, in words; empty before that was decided.
    """

    session: str
    supervisor_pid: int
    robot: str
    bundle: str | None
    nodes: list[str] = field(default_factory=list)
    task: str = ""
    supervisor_since: int = 0
    execution: str = ""

    @property
    def bundle_name(self) -> str:
        """The bundle's folder, without the path; empty without one."""
        return Path(self.bundle).name if self.bundle else ""

    @property
    def session_bytes(self) -> bytes:
        """As messages carry it."""
        return bytes.fromhex(self.session)


def write_deployment(folder: Path, deployment: Deployment) -> None:
    """Writes the note whole or not at all."""
    part = folder / (NOTE + ".part")
    part.write_text(json.dumps(write(deployment), indent=1))
    part.replace(folder / NOTE)


def read_deployment(folder: Path) -> Deployment:
    """
    Raises:
        WireError: no note, or not one of ours.
    """
    try:
        return read(Deployment, json.loads((folder / NOTE).read_text()), "it")
    except FileNotFoundError as error:
        raise WireError(f"there is no deployment in {folder}: it has ended, or never was one") from error
    except (OSError, ValueError) as error:
        raise WireError(f"{folder / NOTE} does not describe a deployment: {error}") from error


def began(pid: int) -> int:
    """When a process began, in clock ticks after boot; 0: it has ended, or this is not Linux.

    Asked of its main thread: in its own `/proc/PID/stat` an emulated process reads another beginning than others do.
    """
    try:
        after_name = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return 0
    return 0 if after_name[0] in "ZX" else int(after_name[19])


def is_alive(pid: int, since: int = 0) -> bool:
    """Whether a process runs, and is the one that began at `since` (0: whichever has this number)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return since in (0, began(pid))


# -- which deployments there are -------------------------------------------------------------------------------


def is_running(folder: Path) -> bool:
    """Whether somebody still owns this deployment: its supervisor, or the guardian that outlives it.

    Raises:
        WireError: the folder has no note.
    """
    note = read_deployment(folder)
    return is_alive(note.supervisor_pid, note.supervisor_since) or _guardian_listens(folder)


def deployments() -> list[Path]:
    """Run directories of all deployments of this user, the newest first.

    What a supervisor left behind that was killed is removed on the way, once its guardian has gone, too.
    """
    running: list[tuple[float, Path]] = []
    for folder in _noted():
        with contextlib.suppress(WireError, OSError):  # of another version, or just being removed
            if is_running(folder):
                running.append(((folder / NOTE).stat().st_mtime, folder))
            elif (
                folder.name == read_deployment(folder).session
            ):  # made by `run_dir`, not a folder of the user's
                remove_run_dir(folder)
    return [folder for _, folder in sorted(running, reverse=True)]


def guarded_deployments() -> list[Path]:
    """Of all deployments of this user those with a guardian: each may hold an arm."""
    return [folder for folder in deployments() if _guardian_listens(folder)]


def _noted() -> Iterator[Path]:
    """Folders with a note, through links, too; each once. A link to nothing is removed."""
    seen = set()
    for root in runtime_roots():
        for path in list(root.iterdir()):
            folder = path.resolve()
            if path.is_symlink() and not folder.exists():
                path.unlink(missing_ok=True)
            elif folder not in seen and (folder / NOTE).exists():
                seen.add(folder)
                yield folder


def find_deployment(run_dir: Path | None = None) -> Path:
    """Run directory of the deployment that is meant: the one that was named, else the only one that runs.

    Raises:
        UsageError: none runs, or several do and none was named; lists them. WireError: no deployment in `run_dir`.
    """
    if run_dir is not None:
        if not is_running(run_dir):
            raise UsageError(f"the deployment in {run_dir} has ended")
        return run_dir
    found = deployments()
    if len(found) == 1:
        return found[0]
    if found:
        lines = "".join(f"\n  --run-dir {folder}   {describe(folder)}" for folder in found)
        raise UsageError(f"{len(found)} deployments are running; say which one:{lines}")
    raise UsageError(_none_runs())


def describe(folder: Path) -> str:
    """A deployment in a few words, for a person who has to choose."""
    note = read_deployment(folder)
    since = time.strftime("%H:%M:%S", time.localtime((folder / NOTE).stat().st_mtime))
    words = [note.robot, Path(note.bundle).name if note.bundle else "", note.task and f"“{note.task[:60]}”"]
    gone = "" if is_alive(note.supervisor_pid, note.supervisor_since) else ", its supervisor has gone"
    return f"{', '.join(word for word in words if word)}, since {since}{gone}"


def _none_runs() -> str:
    closed = [] if _told(OVERRIDE) else [root for root in _services() if not os.access(root, os.X_OK)]
    if closed:
        owner = closed[0].owner()
        return (
            f"no deployment of this user is running; {closed[0]} belongs to '{owner}': look as that user, "
            f"with sudo -u {owner}"
        )
    return "no deployment is running; start one with: edgevla deploy --robot so101 --sim"


# -- what is made before the robot's processes begin -----------------------------------------------------------


def note_cameras_open(folder: Path) -> None:
    """Every camera of the deployment has shown a picture; stays true when one is lost afterwards."""
    (folder / CAMERAS_OPEN).touch()


def are_cameras_open(folder: Path) -> bool:
    """What `note_cameras_open` has noted."""
    return (folder / CAMERAS_OPEN).exists()


def write_preparing(folder: Path, text: str) -> None:
    """Says to whoever looks on how far TensorRT's engines are, which take minutes. Empty: they are there."""
    with contextlib.suppress(OSError):  # a folder that has gone is nobody's fault
        part = folder / "preparing.part"
        part.write_text(text)
        part.replace(folder / "preparing")


def read_preparing(folder: Path) -> str:
    """Empty where nothing is being made."""
    try:
        return (folder / "preparing").read_text()
    except (OSError, ValueError):
        return ""


# -- the guardian ----------------------------------------------------------------------------------------------


def _guardian_listens(folder: Path) -> bool:
    """Whether a guardian lives there; it hears nothing of this."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        try:
            out.connect(str(guardian_socket(folder)))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True  # not known: better left alone
    return True


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
        part.write_text(json.dumps(write(status)))
        part.replace(folder / "guardian.json")
    except OSError:
        pass


def read_guardian_status(folder: Path) -> GuardianStatus | None:
    """None where there is none (no guardian yet, or the run directory has been removed)."""
    try:
        return read(GuardianStatus, json.loads((folder / "guardian.json").read_text()))
    except (OSError, ValueError):
        return None

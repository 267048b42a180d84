"""What the operating system knows of serial adapters: which there are, under which names, how they save power, how long
they hold back an answer, and which programs have them open. No protocol here, and no numpy: the guardian imports this.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LATENCY_WARN_MS = 2
PLAIN = ("ttyACM*", "ttyUSB*")
UDEV_NAMES = ("ttyDXL*",)
"""Links that users' udev rules make for arms."""
PTY_MAJORS = range(136, 144)
SYSFS = "/sys"
PROC = "/proc"

CURES = {
    "ModemManager": "it takes serial adapters for modems: sudo systemctl disable --now ModemManager, or tell it to "
    'leave this one alone with a udev rule: ATTRS{{idVendor}}=="{vendor}", ENV{{ID_MM_DEVICE_IGNORE}}="1"',
    "brltty": "it takes serial adapters for braille displays: sudo apt purge brltty, then replug the adapter",
}
"""Programs that open serial adapters unasked, and how they are kept off. vendor: the adapter's USB vendor id."""


# ---- which adapters there are ----


def candidate_ports(dev: str = "/dev", sysfs: str = SYSFS) -> list[str]:
    """Serial adapters on this machine, each once, by the name that will still be its own when it is replugged.

    That is a udev rule's, else the by-id link. Adapters without a serial number of one kind share that link, which then
    points at whichever came last: they go by their socket (by-path), or by the plain name.
    """
    root = Path(dev)
    devices = sorted(str(p) for pattern in PLAIN for p in root.glob(pattern))
    by_id, by_path = _links(root / "serial/by-id"), _links(root / "serial/by-path")
    by_rule: dict[str, str] = {}
    for pattern in UDEV_NAMES:
        by_rule.update({os.path.realpath(p): str(p) for p in sorted(root.glob(pattern))})
    are_all_linked = all(os.path.realpath(device) in by_id for device in devices)
    names = []
    for device in dict.fromkeys([*(os.path.realpath(d) for d in devices), *by_rule]):
        has_own_link = are_all_linked or _usb_fact(device, "serial", sysfs) is not None
        stable = by_id.get(device) if has_own_link else None
        names.append(by_rule.get(device) or stable or by_path.get(device) or device)
    return sorted(names)


def _links(folder: Path) -> dict[str, str]:
    """Device -> the first link to it."""
    links: dict[str, str] = {}
    for link in sorted(folder.glob("*")):
        links.setdefault(os.path.realpath(link), str(link))
    return links


def usb_device(path: str, sysfs: str = SYSFS) -> Path | None:
    """The folder of the adapter's USB device; None where it has none, or the system does not say."""
    at = Path(sysfs, "class/tty", os.path.basename(os.path.realpath(path)), "device")  # noqa: PTH119
    if not at.exists():
        return None
    at = at.resolve()
    while at != at.parent:
        if (at / "idVendor").exists():
            return at
        at = at.parent
    return None


def _usb_fact(path: str, name: str, sysfs: str) -> str | None:
    device = usb_device(path, sysfs)
    return None if device is None else _read(device / name)


def autosuspend_file(path: str, sysfs: str = SYSFS) -> Path | None:
    """The file that lets the adapter fall asleep between two uses; None where it stays awake."""
    device = usb_device(path, sysfs)
    if device is None or _read(device / "power/control") != "auto":
        return None
    delay = _read(device / "power/autosuspend_delay_ms")
    return None if delay is not None and delay.startswith("-") else device / "power/control"


def is_left_to_us(path: str, udev: str = "/run/udev/data") -> bool:
    """Whether a udev rule tells ModemManager to leave this adapter alone."""
    try:
        device = os.stat(path).st_rdev  # noqa: PTH116
    except OSError:
        return False
    facts = _read(Path(udev, f"c{os.major(device)}:{os.minor(device)}")) or ""
    return "E:ID_MM_DEVICE_IGNORE=1" in facts.splitlines()


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


# ---- how long an adapter holds back an answer ----


def latency_timer_path(path: str, sysfs: str = SYSFS) -> Path | None:
    """The file with the adapter's latency timer (ms); None where the adapter has none."""
    name = os.path.basename(os.path.realpath(path))  # noqa: PTH119
    timer = Path(sysfs, "bus/usb-serial/devices", name, "latency_timer")
    return timer if timer.exists() else None


def latency_timer_ms(timer: Path | None) -> int | None:
    """What the file of `latency_timer_path` says; None where there is none, or it went away with its adapter."""
    try:
        return None if timer is None else int(timer.read_text())
    except (OSError, ValueError):
        return None


def set_latency_timer(path: str, ms: int = 1, sysfs: str = SYSFS) -> str | None:
    """Sets the adapter's latency timer where permitted.

    Returns:
        None when there is nothing to do (no timer, or it is low now), else the sentence that says what to run.
    """
    timer = latency_timer_path(path, sysfs)
    now_ms = latency_timer_ms(timer)
    if timer is None or now_ms is None or now_ms <= LATENCY_WARN_MS:
        return None
    try:
        timer.write_text(str(ms))
    except OSError:
        return (
            f"{path} delays every answer by up to {now_ms} ms (its USB latency timer); run: "
            f"echo {ms} | sudo tee {timer}"
        )
    return None


# ---- who has an adapter open ----


@dataclass(frozen=True)
class Opener:
    """A process that has a device open. program: what a person would call it."""

    pid: int
    program: str


def openers(path: str, *, counts_us: bool = False, proc: str = PROC) -> list[Opener]:
    """The processes that have a device open, locked or not, as far as this user may see; of us only if asked.

    Who owns the other end of a pseudo-terminal is no opener: it is the device itself.
    """
    device = _device(path)
    if device is None:
        return []
    found = []
    for pid in sorted(_pids(proc)):
        if (counts_us or pid != os.getpid()) and _has_open(pid, device, proc):
            found.append(Opener(pid, program_of(pid, proc)))
    return found


def in_use_sentence(path: str, found: Sequence[Opener], sysfs: str = SYSFS) -> str:
    """Who has it, and what to do. found: empty when whoever has it cannot be seen."""
    if not found:
        text = f"{path} is in use by another process, of a user whose processes cannot be seen from here"
        unasked = [name for name in CURES if is_running(name)]
        hint = "; ".join(f"{name} is running, and {_cure(name, path, sysfs)}" for name in unasked)
        return f"{text}. {hint}" if hint else f"{text}; find it with: sudo fuser -v {path}, and stop it first"
    who = ", ".join(f"pid {opener.pid}, {opener.program}" for opener in found)
    text = f"{path} is in use by another process ({who}); stop it first"
    cures = [_cure(o.program, path, sysfs) for o in found if o.program in CURES]
    return text + "".join(f": {cure}" for cure in cures)


def _cure(program: str, path: str, sysfs: str) -> str:
    return CURES[program].format(vendor=_usb_fact(path, "idVendor", sysfs) or "1a86")


def is_running(program: str, proc: str = PROC) -> bool:
    """Whether a program of this name runs, of any user."""
    return any(_read(Path(proc, str(pid), "comm")) == program for pid in _pids(proc))


def program_of(pid: int, proc: str = PROC) -> str:
    """What runs in a process: of an interpreter its script or module."""
    try:
        words = Path(proc, str(pid), "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        words = []
    name = _read(Path(proc, str(pid), "comm")) or "unknown"
    if not Path(words[0] if words else "").name.startswith("python"):
        return name
    for i, word in enumerate(words[1:], 1):
        if word == "-m" and i + 1 < len(words):
            return words[i + 1]
        if word == "-c":
            break
        if word and not word.startswith("-"):
            return Path(word).name
    return name


def _pids(proc: str) -> list[int]:
    return [int(name) for name in _names(proc) if name.isdigit()]


def _names(folder: str) -> list[str]:
    """What a folder of /proc holds: nothing when its process has ended, or is another user's."""
    try:
        return os.listdir(folder)  # noqa: PTH208
    except OSError:
        return []


def _device(path: str) -> tuple[int, ...] | None:
    """What tells one character device from another; pseudo-terminals of two containers have the same numbers."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    if not stat.S_ISCHR(found.st_mode):
        return None
    is_pty = os.major(found.st_rdev) in PTY_MAJORS
    return (found.st_rdev, found.st_dev) if is_pty else (found.st_rdev,)


def _has_open(pid: int, device: tuple[int, ...], proc: str) -> bool:
    folder = f"{proc}/{pid}/fd"
    has_it = owns_pty = False
    for fd in _names(folder):
        with contextlib.suppress(OSError):  # closed meanwhile
            target = os.readlink(f"{folder}/{fd}")  # noqa: PTH115
            if target.endswith("/ptmx"):
                owns_pty |= len(device) > 1 and _pty_index(pid, fd, proc) == os.minor(device[0])
            elif target.startswith("/dev/"):
                has_it |= _device(f"{folder}/{fd}") == device
    return has_it and not owns_pty


def _pty_index(pid: int, fd: str, proc: str) -> int | None:
    """Number of the pseudo-terminal whose master a descriptor is."""
    facts = _read(Path(proc, str(pid), "fdinfo", fd)) or ""
    for line in facts.splitlines():
        key, _, value = line.partition(":")
        if key == "tty-index":
            return int(value)
    return None

"""What the doctor looks at on a Jetson: JetPack, TensorRT and CUDA, the environment, power, clocks, memory, groups.

Files under `root`, so that a disk of another Jetson can be examined, too; what only a running machine can tell (loading
libraries) is asked where root is /. The places are NVIDIA's documentation's; no Jetson was within reach yet.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from edgevla.board import BoardReader
from edgevla.extras import install_words

from .checkup import Check

HERE = Path("/")
RELEASE = "etc/nv_tegra_release"
OLDEST_L4T = 36
JETPACKS = {36: "JetPack 6", 38: "JetPack 7", 39: "JetPack 7"}
OLDEST_TENSORRT = 10
PROBE_S = 60
NEEDED_GROUPS = {"dialout": "the arm's port", "video": "cameras and the GPU"}
SMALL_BYTES = 12 << 30
"""Machines below this build engines only with swap beside them."""
HOT_C = 80.0


def is_jetson(root: Path = HERE) -> bool:
    return (root / RELEASE).is_file()


def jetpack(root: Path = HERE) -> list[Check]:
    """All findings; on the running machine with its libraries loaded."""
    checks = [
        *_release(root),
        *_power_mode(root),
        *_clocks(root),
        *_memory(root),
        *_health(root),
        *_cameras(root),
    ]
    checks += _groups(root)
    return [*checks, *_environment(), *_libraries()] if root == HERE else checks


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _release(root: Path) -> Iterator[Check]:
    text = _text(root / RELEASE)
    found = re.search(r"R(\d+).*?REVISION: ([\d.]+)", text)
    if found is None:
        yield Check("warn", "jetpack", f"/{RELEASE} says no release: {text[:60].strip()!r}")
        return
    major = int(found[1])
    package = re.search(
        r"^Package: nvidia-jetpack\n(?:.+\n)*?Version: (\S+)",
        _text(root / "var/lib/dpkg/status"),
        re.MULTILINE,
    )
    name = f"nvidia-jetpack {package[1]}" if package else JETPACKS.get(major, "a JetPack unknown here")
    said = f"{name}, Jetson Linux {found[1]}.{found[2]}"
    if major < OLDEST_L4T:
        yield Check(
            "fail", "jetpack", said, "install JetPack 6 or 7: older ones have no Python 3.10, nor TensorRT 10"
        )
    elif package is None:
        step = "where TensorRT is missing: sudo apt install nvidia-jetpack"
        yield Check("ok", "jetpack", f"{said}; the package nvidia-jetpack is not installed", step)
    else:
        yield Check("ok", "jetpack", said)


def _power_mode(root: Path) -> Iterator[Check]:
    """What `nvpmodel -q` says, from the files that it reads."""
    now = re.search(r"pmode:\s*(\d+)", _text(root / "var/lib/nvpmodel/status"))
    conf = _text(root / "etc/nvpmodel.conf")
    modes = {int(n): name for n, name in re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", conf)}
    if now is None:
        if modes:
            yield Check("ok", "power mode", "the board's default; sudo nvpmodel -q says which")
        return
    mode = int(now[1])
    name = modes.get(mode, f"mode {mode}")
    most = next((n for n, said in modes.items() if said.startswith("MAXN")), None)
    if most is None or name.startswith("MAXN"):
        yield Check("ok", "power mode", name)
    else:
        step = f"for all cores at full speed: sudo nvpmodel -m {most}, with a supply that bears it"
        yield Check("warn", "power mode", f"{name}, of {', '.join(modes.values())}", step)


def _clocks(root: Path) -> Iterator[Check]:
    cpus = sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"))
    ranges = []
    for cpu in cpus:
        ends = [_text(cpu / f"scaling_{end}_freq").strip() for end in ("min", "max")]
        if all(end.isdecimal() for end in ends):
            ranges.append((int(ends[0]) // 1000, int(ends[1]) // 1000))
    if not ranges:
        return
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    n_cores = f"{len(cpus)} core{'s' * (len(cpus) != 1)}"
    if all(a == b for a, b in ranges):
        yield Check("ok", "clocks", f"{n_cores} held at {high} MHz")
    else:
        governor = _text(cpus[0] / "scaling_governor").strip() or "a governor"
        step = "held at the top until the next boot: sudo jetson_clocks"
        yield Check("ok", "clocks", f"{n_cores}, {low} to {high} MHz as {governor} sees fit", step)


def _memory(root: Path) -> Iterator[Check]:
    swaps = [line.split() for line in _text(root / "proc/swaps").splitlines()[1:]]
    swap = sum(int(words[2]) * 1024 for words in swaps if len(words) > 2 and words[2].isdecimal())
    board = BoardReader(root).read()
    if board.memory_total is None or board.memory_free is None:
        return
    kinds = sorted({"zram" if "zram" in words[0] else "on a disk" for words in swaps if words})
    told = f"{swap / 2**30:.1f} GB of swap ({', '.join(kinds)})" if swap else "no swap"
    text = f"{board.memory_free / 2**30:.1f} of {board.memory_total / 2**30:.1f} GB free, shared with the GPU; {told}"
    is_short = board.memory_total < SMALL_BYTES and "on a disk" not in kinds
    step = (
        "engines of large policies may not be built: add a swap file of 8 GB (docs/jetson.md)"
        if is_short
        else ""
    )
    yield Check("warn" if is_short else "ok", "memory", text, step)


def _health(root: Path) -> Iterator[Check]:
    board = BoardReader(root).read()
    parts = [f"{board.hottest[0]} {board.hottest[1]:.0f} degC"] if board.hottest else []
    parts += [f"CPU {board.cpu_mhz:.0f} MHz"] if board.cpu_mhz else []
    parts += [f"GPU {board.gpu_mhz:.0f} MHz"] if board.gpu_mhz else []
    if board.is_throttled:
        yield Check(
            "warn", "health", ", ".join([*parts, "throttled now"]), "cool it, or choose a lower power mode"
        )
    elif board.hottest and board.hottest[1] >= HOT_C:
        yield Check("warn", "health", ", ".join(parts), "look after fan and air: it will slow down")
    elif parts:
        yield Check("ok", "health", ", ".join(parts))


def _cameras(root: Path) -> Iterator[Check]:
    names = [
        f"/dev/{path.name} {_text(path / 'name').strip()}".strip()
        for path in sorted(root.glob("sys/class/video4linux/video*"))
    ]
    if any(" vi-output" in name for name in names):
        step = "a CSI camera: docs/jetson.md says how it is reached"
        yield Check("ok", "cameras' names", "; ".join(names), step)
    elif names:
        yield Check("ok", "cameras' names", "; ".join(names))


def _groups(root: Path) -> Iterator[Check]:
    """Of whoever asks: root may do everything."""
    if os.geteuid() == 0 and root == HERE:
        return
    mine = {*os.getgroups(), os.getegid()}
    for line in _text(root / "etc/group").splitlines():
        name, _, number, *_ = [*line.split(":"), "", "", ""]
        if name in NEEDED_GROUPS and number.isdecimal() and int(number) not in mine:
            step = f"sudo usermod -aG {name} $USER, then log in again"
            yield Check("warn", "groups", f"this user is not in {name} ({NEEDED_GROUPS[name]})", step)


def _environment() -> Iterator[Check]:
    """TensorRT is a system package: an environment shows it only when it was made so."""
    if sys.prefix == sys.base_prefix:
        yield Check("ok", "environment", "the system's own Python")
        return
    shows = re.search(
        r"^include-system-site-packages\s*=\s*true", _text(Path(sys.prefix, "pyvenv.cfg")), re.MULTILINE
    )
    if shows:
        yield Check("ok", "environment", f"{sys.prefix}, with the system's packages")
    else:
        step = f"make it anew: python3 -m venv --system-site-packages, and in it: {install_words('jetson')}"
        yield Check("fail", "environment", f"{sys.prefix} does not show JetPack's TensorRT", step)


def _libraries() -> Iterator[Check]:
    """TensorRT, CUDA and OpenCV, loaded in a process of their own."""
    command = [sys.executable, "-m", "edgevla.robots.tools.gpu_probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S, check=False)
        found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        yield Check("fail", "libraries", f"loading them takes more than {PROBE_S} s", "restart the machine")
        return
    except (ValueError, IndexError):
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield Check(
            "fail", "libraries", f"loading them ended the process: {words}", "sudo apt install nvidia-jetpack"
        )
        return
    yield from judge_libraries(found)


def judge_libraries(found: dict[str, str]) -> Iterator[Check]:
    """found: what `gpu_probe` says."""
    version = found["tensorrt"]
    again = "sudo apt install nvidia-jetpack"
    if version.startswith("error"):
        yield Check("fail", "tensorrt", f"does not load ({version.removeprefix('error: ')})", again)
    elif int(re.match(r"\d*", version)[0] or 0) < OLDEST_TENSORRT:  # type: ignore[index]
        yield Check("fail", "tensorrt", f"{version}; {OLDEST_TENSORRT} or later is needed", "update JetPack")
    else:
        yield Check("ok", "tensorrt", f"{version} loads")
    cuda = found["cuda"]
    if cuda.startswith("error"):
        yield Check("fail", "cuda", f"does not load ({cuda.removeprefix('error: ')})", again)
    else:
        yield Check("ok", "cuda", cuda)
    opencv = found["opencv"]
    step = (
        "it opens no CSI camera: docs/jetson.md says how one is reached" if "GStreamer NO" in opencv else ""
    )
    yield Check("ok", "opencv", opencv.removeprefix("error: "), step)

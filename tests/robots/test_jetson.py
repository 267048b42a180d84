"""A Jetson without a Jetson: the doctor and the board's health on a disk that we invented.

INVENTED, not recorded: the tree below was written after NVIDIA's documentation (paths, formats) with plausible values;
no Jetson was within reach. A recorded one should take its place.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgevla.board import BoardReader
from edgevla.cli import main
from edgevla.robots.tools import jetpack

L4T_6 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
DPKG = """Package: nvidia-jetpack-dev
Status: install ok installed
Version: 1.0

Package: nvidia-jetpack
Status: install ok installed
Maintainer: NVIDIA Corporation
Version: 6.2+b77
"""
NVPMODEL = """< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
"""
ORIN_NANO = {
    "etc/nv_tegra_release": L4T_6,
    "etc/nvpmodel.conf": NVPMODEL,
    "etc/group": "root:x:0:\ndialout:x:20:\nvideo:x:44:me\n",
    "var/lib/dpkg/status": DPKG,
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
    "proc/loadavg": "1.52 0.80 0.41 2/512 4711\n",
    "proc/stat": "cpu  1000 0 500 8000 500 0 0 0 0 0\ncpu0 1000 0 500 8000 500 0 0 0 0 0\n",
    "proc/meminfo": "MemTotal:        7802896 kB\nMemFree:          612340 kB\nMemAvailable:    3145728 kB\n",
    "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 650240 0 5\n/swapfile file 8388604 0 -2\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48250\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "51500\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone2/temp": "-256000\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "2\n",
    "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "7\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "612000000\n",
    "sys/devices/platform/gpu.0/load": "345\n",
    "sys/class/video4linux/video0/name": "vi-output, imx219 9-0010\n",
    "sys/class/video4linux/video1/name": "USB Camera: USB Camera\n",
    **{
        f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_{what}": f"{value}\n"
        for n in range(2)
        for what, value in (("min_freq", 729600), ("max_freq", 1728000), ("governor", "schedutil"))
    },
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "729600\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1510400\n",
}


@pytest.fixture
def orin(tmp_path):
    """`orin(changes)` writes the tree; a value of None leaves a file out."""

    def make(changes=None):
        shutil.rmtree(tmp_path / "disk", ignore_errors=True)
        for name, text in {**ORIN_NANO, **(changes or {})}.items():
            path = tmp_path / "disk" / name
            if text is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        return tmp_path / "disk"

    return make


def found(root):
    return {check.what: check for check in jetpack.jetpack(root)}


# -- doctor ---------------------------------------------------------------------------------------------------


def test_a_jetson_is_named_with_its_jetpack_power_clocks_and_memory(orin, capsys):
    root = orin({"etc/group": f"dialout:x:{os.getgid()}:\nvideo:x:{os.getgid()}:\n"})
    assert main(["doctor", "--root", str(root), "--json"]) == 0
    checks = {c["what"]: c for c in json.loads(capsys.readouterr().out)["checks"]}
    assert {name: check["text"] for name, check in checks.items()} == {
        "jetpack": "nvidia-jetpack 6.2+b77, Jetson Linux 36.4.3",
        "power mode": "MAXN_SUPER",
        "clocks": "2 cores, 729 to 1728 MHz as schedutil sees fit",
        "memory": "3.0 of 7.4 GB free, shared with the GPU; 8.6 GB of swap (on a disk, zram)",
        "health": "gpu 52 degC, CPU 1510 MHz, GPU 612 MHz",
        "cameras' names": "/dev/video0 vi-output, imx219 9-0010; /dev/video1 USB Camera: USB Camera",
    }
    assert "sudo jetson_clocks" in checks["clocks"]["next_step"]
    assert "docs/jetson.md" in checks["cameras' names"]["next_step"]


@pytest.mark.parametrize(
    ("changes", "what", "level", "words"),
    [
        ({"etc/nv_tegra_release": "# R35 (release), REVISION: 5.0, GCID: 1\n", "var/lib/dpkg/status": None},
         "jetpack", "fail", "a JetPack unknown here, Jetson Linux 35.5.0"),
        ({"etc/nv_tegra_release": "nonsense"}, "jetpack", "warn", "says no release"),
        ({"etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 1\n", "var/lib/dpkg/status": ""},
         "jetpack", "ok", "JetPack 7, Jetson Linux 38.2.0; the package nvidia-jetpack is not installed"),
        ({"var/lib/nvpmodel/status": "pmode:0000 fmode:quiet\n"}, "power mode", "warn", "15W, of 15W, 25W, MAXN_SUPER"),
        ({"var/lib/nvpmodel/status": None}, "power mode", "ok", "sudo nvpmodel -q says which"),
        ({"proc/swaps": "Filename Type Size Used Priority\n"}, "memory", "warn", "no swap"),
        ({"sys/class/thermal/cooling_device1/cur_state": "3\n"}, "health", "warn", "throttled now"),
        ({"sys/class/thermal/thermal_zone1/temp": "91000\n"}, "health", "warn", "gpu 91 degC"),
        ({"sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "1728000\n",
          "sys/devices/system/cpu/cpu1/cpufreq/scaling_min_freq": "1728000\n"},
         "clocks", "ok", "2 cores held at 1728 MHz"),
        ({"etc/group": "dialout:x:987654:\n"}, "groups", "warn", "this user is not in dialout (the arm's port)"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_jetson_is_said_with_a_cure(orin, changes, what, level, words):
    check = found(orin(changes))[what]
    assert (check.level, words in check.text) == (level, True), check
    assert check.level == "ok" or check.next_step or what == "jetpack"


def test_a_tree_that_tells_nothing_more_is_no_crash(orin):
    root = orin(dict.fromkeys([name for name in ORIN_NANO if name != "etc/nv_tegra_release"]))
    assert list(found(root)) == ["jetpack"]


def test_a_disk_that_is_no_jetson_s_and_an_arm_on_a_disk_are_refused(tmp_path, capsys):
    assert main(["doctor", "--root", str(tmp_path)]) == 2
    assert (
        "so it is no Jetson's disk; name the folder where its root partition is mounted"
        in capsys.readouterr().err
    )
    assert main(["doctor", "--root", str(tmp_path), "--robot", "so101"]) == 2


def probe(tmp_path, module):
    (tmp_path / "tensorrt.py").write_text(module)
    path = os.pathsep.join(
        [str(tmp_path), str(Path(jetpack.__file__).parents[3].parent), os.environ.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-m", "edgevla.robots.tools.gpu_probe"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("module", "level", "words"),
    [
        ("__version__ = '10.3.0'", "ok", "10.3.0 loads"),
        ("__version__ = '8.6.2'", "fail", "8.6.2; 10 or later is needed"),
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "fail", "libnvinfer.so.10"),
    ],
)
def test_tensorrt_is_loaded_and_not_only_looked_for(tmp_path, module, level, words):
    """With a module of that name in TensorRT's place; libcudart is whatever this machine has."""
    said = probe(tmp_path, module)
    assert set(said) == {"tensorrt", "cuda", "opencv"}
    check = next(c for c in jetpack.judge_libraries(said) if c.what == "tensorrt")
    assert (check.level, words in check.text) == (level, True), check


def test_what_the_libraries_say_is_judged():
    said = {"tensorrt": "10.3.0", "cuda": "error: libcudart is not there", "opencv": "4.12.0, GStreamer NO"}
    checks = {c.what: c for c in jetpack.judge_libraries(said)}
    assert checks["cuda"].level == "fail"
    assert "docs/jetson.md" in checks["opencv"].next_step


# -- health ---------------------------------------------------------------------------------------------------


def test_the_board_tells_clocks_heat_memory_and_the_gpu(orin):
    board = BoardReader(orin()).read()
    assert (board.load, board.busy) == (1.52, None), "how busy it was is known from the second look on"
    assert (board.memory_total, board.memory_free) == (7802896 * 1024, 3145728 * 1024)
    assert board.memory_used == (7802896 - 3145728) * 1024
    assert board.hottest == ("gpu", 51.5), "a zone that is switched off is left out"
    assert (board.cpu_mhz, board.cpu_max_mhz) == (1510.4, 1728.0)
    assert (board.gpu_mhz, board.gpu_busy) == (612.0, 0.345)
    assert board.is_throttled is False, "a fan that turns is no throttling"


def test_what_happened_between_two_looks(orin):
    root = orin()
    reader = BoardReader(root)
    reader.read()
    (root / "proc/stat").write_text("cpu  1060 0 540 8080 520 0 0 0 0 0\n")
    (root / "sys/class/hwmon/hwmon3/oc1_event_cnt").write_text("8\n")
    second = reader.read()
    assert second.busy == pytest.approx(0.5)
    assert second.is_throttled is True
    assert reader.read().is_throttled is False, "nothing new since"


@pytest.mark.parametrize("damage", ["", "nonsense", "-5", "1 2 3", "\x00\xff"])
def test_files_that_say_nonsense_are_not_known(orin, damage):
    root = orin(dict.fromkeys(ORIN_NANO, damage))
    board = BoardReader(root).read()
    assert (board.memory_total, board.hottest, board.cpu_mhz, board.gpu_mhz) == (None,) * 4


def test_a_container_tells_little_and_nothing_fails(tmp_path):
    board = BoardReader(tmp_path).read()
    assert (board.load, board.busy, board.memory_total, board.hottest, board.is_throttled) == (None,) * 5

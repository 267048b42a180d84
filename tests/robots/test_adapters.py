"""Serial adapters: which there are, who has them open, and that nobody else gets in. Real pseudo-terminals."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tty
from pathlib import Path

import pytest

from edgevla.cli import main
from edgevla.errors import BusError, UsageError
from edgevla.robots.bus import adapters
from edgevla.robots.bus.adapters import autosuspend_file, candidate_ports, openers
from edgevla.robots.bus.port import SerialPort
from edgevla.robots.ports import choose_ports
from edgevla.robots.profile import load_profile

NOBODY = 65534
OPEN = "import os, sys\nos.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)\nprint('open', flush=True)\nsys.stdin.read()\n"


@pytest.fixture
def pty():
    """Path of a pseudo-terminal whose other end is ours."""
    master, slave = os.openpty()
    tty.setraw(slave)
    yield os.ttyname(slave)
    os.close(master)
    os.close(slave)


@pytest.fixture
def start():
    """`start([...])` -> a process, killed at the end."""
    started = []

    def begin(words, **options):
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def other_program(tmp_path, start):
    """Opens a port as LeRobot and the vendors' SDKs do: without a lock."""
    script = tmp_path / "lerobot-record"
    script.write_text(OPEN)

    def begin(path):
        process = start([sys.executable, str(script), path])
        assert process.stdout.readline() == "open\n"
        return process

    return begin


def can_others_open(path: str) -> bool:
    """Whether a process of an ordinary user gets in."""
    Path(path).chmod(0o666)
    code = f"import os; os.setuid({NOBODY}); os.close(os.open({path!r}, os.O_RDWR | os.O_NOCTTY))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="root may become an ordinary user")


def test_a_program_that_has_the_port_open_without_a_lock_is_named_and_refused(pty, other_program):
    process = other_program(pty)
    who = rf"pid {process.pid}, lerobot-record"
    with pytest.raises(BusError, match=rf"in use by another process \({who}\); stop it first"):
        SerialPort.open(pty, 1_000_000)
    process.kill()
    process.wait()
    SerialPort.open(pty, 1_000_000).close()


def test_all_who_have_it_open_are_named(pty, other_program):
    pids = [other_program(pty).pid for _ in range(2)]
    with pytest.raises(BusError) as caught:
        SerialPort.open(pty, 1_000_000)
    assert all(f"pid {pid}, lerobot-record" in str(caught.value) for pid in pids)


def test_every_tool_refuses_a_port_that_is_in_use(pty, other_program, capsys):
    process = other_program(pty)
    for words in (["calibrate", "--robot", "so101"], ["doctor", "--robot", "widowx250s", "--reboot", "9"]):
        assert main([*words, "--port", pty]) == 1
        assert f"pid {process.pid}, lerobot-record); stop it first" in capsys.readouterr().err
    assert main(["doctor", "--robot", "so101", "--port", pty]) == 1
    assert f"pid {process.pid}, lerobot-record); stop it first" in capsys.readouterr().out


def test_setup_motors_refuses_a_port_that_is_in_use_at_once(pty, other_program, capsys):
    process = other_program(pty)
    assert main(["setup-motors", "--robot", "so101", "--port", pty]) == 1
    assert f"pid {process.pid}, lerobot-record" in capsys.readouterr().err


@needs_root
def test_who_comes_later_finds_the_port_busy_until_it_is_closed(pty):
    assert can_others_open(pty)
    port = SerialPort.open(pty, 1_000_000)
    assert not can_others_open(pty)
    port.close()
    assert can_others_open(pty)


@needs_root
def test_an_emulated_port_is_free_again_after_its_host_was_killed(start_emulator, start):
    path = os.path.realpath(start_emulator("so101", "--untimed").ports["arm"])
    code = (
        "import sys; from edgevla.robots.bus.port import SerialPort; port = SerialPort.open(sys.argv[1], 1_000_000); "
        "port.write(b'x'); print('open', flush=True); sys.stdin.read()"
    )
    host = start([sys.executable, "-c", code, path])
    assert host.stdout.readline() == "open\n"
    assert not can_others_open(path)
    host.kill()
    host.wait()
    until = time.monotonic() + 20
    while not can_others_open(path):
        assert time.monotonic() < until, "an ordinary user's next run would find the port in use for ever"
        time.sleep(0.2)


def test_the_other_end_of_a_pseudo_terminal_is_no_opener(start_emulator):
    path = start_emulator("so101", "--untimed").ports["arm"]
    assert openers(path) == []
    assert openers("/dev/nowhere") == []


def test_modem_manager_and_brltty_are_named_with_their_cure(pty, start, tmp_path):
    for name, cure in (("ModemManager", "ID_MM_DEVICE_IGNORE"), ("brltty", "sudo apt purge brltty")):
        program = tmp_path / name
        shutil.copy("/bin/sleep", program)
        with Path(pty).open("rb") as held:
            process = subprocess.Popen([str(program), "60"], stdin=held)
        try:
            with pytest.raises(BusError, match=rf"\(pid {process.pid}, {name}\); stop it first: .*{cure}"):
                SerialPort.open(pty, 1_000_000)
            assert adapters.is_running(name)
        finally:
            process.kill()
            process.wait()


def test_a_module_that_python_runs_is_called_by_its_name(start):
    process = start([sys.executable, "-m", "json.tool"])
    until = time.monotonic() + 10
    while (name := adapters.program_of(process.pid)) != "json.tool":
        assert time.monotonic() < until, name
        time.sleep(0.01)
    assert adapters.program_of(1 << 22) == "unknown"


# ---- names of adapters ----


def tree(root: Path, devices: dict[str, dict[str, str]], links: dict[str, str]) -> tuple[str, str]:
    """A /dev and a /sys. devices: name -> facts of its USB device; links: path below dev -> device."""
    dev, sysfs = root / "dev", root / "sys"
    for i, (name, facts) in enumerate(devices.items()):
        (dev / name).parent.mkdir(parents=True, exist_ok=True)
        (dev / name).touch()
        usb = sysfs / f"devices/usb1/1-{i}"
        (usb / "tty").mkdir(parents=True)
        for fact, text in {"idVendor": "1a86", **facts}.items():
            (usb / fact).parent.mkdir(exist_ok=True)
            (usb / fact).write_text(text + "\n")
        (sysfs / "class/tty" / name).mkdir(parents=True)
        (sysfs / "class/tty" / name / "device").symlink_to(usb / "tty")
    for link, device in links.items():
        (dev / link).parent.mkdir(parents=True, exist_ok=True)
        (dev / link).symlink_to(dev / device)
    return str(dev), str(sysfs)


CH340 = "serial/by-id/usb-1a86_USB_Serial-if00-port0"


def test_two_adapters_without_a_serial_number_are_both_listed(tmp_path):
    dev, sysfs = tree(tmp_path, {"ttyUSB0": {}, "ttyUSB1": {}}, {CH340: "ttyUSB1"})
    assert candidate_ports(dev, sysfs) == [f"{dev}/ttyUSB0", f"{dev}/ttyUSB1"]


def test_sockets_name_them_where_the_system_does(tmp_path):
    paths = {f"serial/by-path/pci-0000:00:14.0-usb-0:{i + 1}:1.0": f"ttyUSB{i}" for i in range(2)}
    dev, sysfs = tree(tmp_path, {"ttyUSB0": {}, "ttyUSB1": {}}, {CH340: "ttyUSB1", **paths})
    assert candidate_ports(dev, sysfs) == [f"{dev}/{path}" for path in paths]


def test_an_adapter_with_a_serial_number_keeps_its_name_beside_one_without(tmp_path):
    ftdi = "serial/by-id/usb-FTDI_USB__-__Serial_Converter_FT6Z5MBC-if00-port0"
    dev, sysfs = tree(
        tmp_path,
        {"ttyUSB0": {}, "ttyUSB1": {}, "ttyUSB2": {"serial": "FT6Z5MBC"}},
        {CH340: "ttyUSB1", ftdi: "ttyUSB2"},
    )
    assert candidate_ports(dev, sysfs) == [f"{dev}/{ftdi}", f"{dev}/ttyUSB0", f"{dev}/ttyUSB1"]


def test_one_adapter_is_listed_once_by_its_stable_name(tmp_path):
    dev, sysfs = tree(tmp_path, {"ttyUSB0": {}}, {CH340: "ttyUSB0"})
    assert candidate_ports(dev, sysfs) == [f"{dev}/{CH340}"]
    dev, sysfs = tree(
        tmp_path / "b", {"ttyUSB0": {"serial": "1"}}, {CH340: "ttyUSB0", "ttyDXL_puppet_left": "ttyUSB0"}
    )
    assert candidate_ports(dev, sysfs) == [f"{dev}/ttyDXL_puppet_left"]


def test_of_two_adapters_none_is_the_only_one(tmp_path, monkeypatch):
    dev, sysfs = tree(tmp_path, {"ttyUSB0": {}, "ttyUSB1": {}}, {CH340: "ttyUSB1"})
    monkeypatch.setattr(adapters, "candidate_ports", lambda: candidate_ports(dev, sysfs))
    with pytest.raises(BusError, match=r"which serial port is bus 'arm' of so101\?") as caught:
        choose_ports(load_profile("so101"), [])
    assert f"{dev}/ttyUSB0, {dev}/ttyUSB1" in str(caught.value)
    assert "unplug the arm's and see which name goes" in str(caught.value)


def test_an_adapter_that_may_fall_asleep_is_found(tmp_path):
    awake, asleep = {"power/control": "on"}, {"power/control": "auto", "power/autosuspend_delay_ms": "2000"}
    never = {"power/control": "auto", "power/autosuspend_delay_ms": "-1000"}
    dev, sysfs = tree(tmp_path, {"ttyACM0": awake, "ttyACM1": asleep, "ttyACM2": never}, {})
    assert autosuspend_file(f"{dev}/ttyACM0", sysfs) is None
    assert autosuspend_file(f"{dev}/ttyACM1", sysfs) == tmp_path / "sys/devices/usb1/1-1/power/control"
    assert autosuspend_file(f"{dev}/ttyACM2", sysfs) is None
    assert autosuspend_file("/dev/pts/0", sysfs) is None


def test_a_udev_rule_keeps_modem_manager_off(tmp_path):
    device = Path("/dev/null").stat().st_rdev
    facts = tmp_path / f"c{os.major(device)}:{os.minor(device)}"
    assert not adapters.is_left_to_us("/dev/null", str(tmp_path))
    facts.write_text("I:1234\nE:ID_MM_DEVICE_IGNORE=1\n")
    assert adapters.is_left_to_us("/dev/null", str(tmp_path))
    assert not adapters.is_left_to_us("/dev/nowhere", str(tmp_path))


def test_two_buses_on_one_adapter_are_refused(pty, tmp_path):
    link = tmp_path / "right"
    link.symlink_to(pty)
    with pytest.raises(UsageError, match=r"buses 'right' and 'left' are both on"):
        choose_ports(load_profile("aloha"), [f"left={pty}", f"right={link}"])

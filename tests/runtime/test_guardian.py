"""The guardian alone: no numpy, exclusive ports, words for what cannot be opened."""

import os
import pty
import subprocess
import sys

import pytest

from edgevla.errors import BusError, UsageError
from edgevla.robots.calibration import nominal, write
from edgevla.robots.ports import choose_ports
from edgevla.robots.profile import PROFILES_DIR, load_profile
from edgevla.session import new_session, run_dir, tell_guardian


def test_the_guardian_is_small_and_imports_no_numpy():
    source = (PROFILES_DIR / "guardian.py").read_text()
    assert len(source.splitlines()) < 200
    code = "import edgevla.robots.guardian, sys; print('numpy' in sys.modules, 'zmq' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]


def test_the_control_loop_imports_neither_opencv_nor_an_engine():
    code = (
        "import edgevla.robots.node_process, sys; "
        "print([m for m in ('cv2', 'onnxruntime', 'torch', 'tensorrt') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_ports_are_given_by_bus_by_folder_or_refused_in_words(tmp_path):
    one, two = load_profile("so101"), load_profile("so101_bimanual")
    assert choose_ports(one, ["/dev/ttyX"]) == {"arm": "/dev/ttyX"}
    assert choose_ports(one, ["arm=/dev/ttyX"]) == {"arm": "/dev/ttyX"}
    assert choose_ports(one, ["/dev/serial/by-id/a=b"]) == {"arm": "/dev/serial/by-id/a=b"}
    assert choose_ports(one, [str(tmp_path)]) == {"arm": f"{tmp_path}/arm"}
    assert choose_ports(two, [str(tmp_path)]) == {b.name: f"{tmp_path}/{b.name}" for b in two.buses}
    with pytest.raises(UsageError, match="no bus 'leg'"):
        choose_ports(one, ["leg=/dev/ttyX"])
    with pytest.raises(UsageError, match="expected BUS=PATH"):
        choose_ports(one, ["arm="])
    with pytest.raises(UsageError, match="'arm' is given twice, /dev/ttyX and /dev/ttyY"):
        choose_ports(one, ["/dev/ttyX", "arm=/dev/ttyY"])
    with pytest.raises(UsageError, match="a folder; name the port in it"):
        choose_ports(one, [f"arm={tmp_path}"])
    with pytest.raises(UsageError, match="2 buses; say which"):
        choose_ports(two, ["/dev/ttyX"])
    with pytest.raises(BusError, match="which serial port"):
        choose_ports(two, [])


def run_guardian(port):
    folder = run_dir(new_session())
    args = [sys.executable, "-m", "edgevla.robots.guardian", "--robot=so101", f"--run-dir={folder}"]
    done = subprocess.run(
        [*args, f"--port=arm={port}", "--session=0011223344556677"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


def test_a_port_that_does_not_exist_is_one_sentence():
    code, words = run_guardian("/dev/ttyNOTHERE")
    assert code == 1
    assert words.startswith("guardian: serial port /dev/ttyNOTHERE does not exist")
    assert words.count("\n") == 1


def test_a_silent_line_is_one_sentence_of_the_loop():
    master, slave = pty.openpty()
    code, words = run_guardian(os.ttyname(slave))
    os.close(master)
    os.close(slave)
    assert code == 1
    assert "Traceback" not in words
    assert "no answer" in words or "no calibration" in words


def test_without_a_name_the_only_calibration_there_is_serves_the_loop(tmp_path, monkeypatch):
    """As `edgevla doctor` finds it: the silent line is what is wrong, not a file called None.json."""
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path))
    profile = load_profile("so101")
    write(profile, nominal(profile), "blue")
    master, slave = pty.openpty()
    code, words = run_guardian(os.ttyname(slave))
    os.close(master)
    os.close(slave)
    assert code == 1
    assert "no answer from motor" in words


def test_nobody_home_is_told_to_the_caller():
    assert tell_guardian(run_dir(new_session())) is False

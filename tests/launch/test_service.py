"""A deployment as a systemd unit: written by one command, judged when it is written, safe however it is stopped."""

import configparser
import getpass
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgevla.cli import main
from edgevla.errors import UsageError
from edgevla.flight.reader import entries
from edgevla.launch import service_cli, supervisor
from edgevla.launch.deploy_cli import NOT_YET
from edgevla.launch.service_cli import quote, unit_text, user_name
from edgevla.session import find_deployment

SIM = ["--robot=so101", "--sim"]


def unit_of(text):
    """Sections of a unit file, as systemd reads it: the case of keys counts, `;` and `#` begin comments."""
    parsed = configparser.RawConfigParser(strict=False, delimiters="=", comment_prefixes=("#", ";"))
    parsed.optionxform = str
    parsed.read_string(text)
    return parsed


def words_of(command):
    """A unit's command line as systemd splits it: quotes as in a shell, then specifiers and variables."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(command)]


@pytest.fixture
def unit(tmp_path, bundle):
    assert (
        main(["service", "install", f"--unit-dir={tmp_path}", "kitchen", str(bundle), *SIM, "--task=wave"])
        == 0
    )
    return tmp_path / "edgevla-kitchen.service"


def test_the_unit_says_the_deployment_as_it_was_typed(unit, bundle):
    service = unit_of(unit.read_text())["Service"]
    assert words_of(service["ExecStart"]) == [
        sys.executable, "-m", "edgevla", "deploy", str(bundle), *SIM, "--task=wave", "--unattended",
    ]  # fmt: skip
    assert service["WorkingDirectory"] == str(Path.cwd()), "relative paths mean what they meant"
    assert service["User"] == os.environ.get("SUDO_USER", getpass.getuser())


def test_systemd_finds_nothing_wrong_with_the_unit(unit):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed; the other tests parse the unit themselves")
    done = subprocess.run(
        [analyze, "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, unit.name in done.stderr) == (0, False), done.stderr


def test_it_is_stopped_by_asking_everybody_and_given_longer_than_any_ending_takes(unit):
    """`mixed` would kill guardian and loop at once when the supervisor has crashed: the arm would keep its torque."""
    service = unit_of(unit.read_text())["Service"]
    assert service["KillMode"] == "control-group"
    assert service["KillSignal"] == "SIGTERM"
    longest_s = 2 * supervisor.STOPPED_S + 6 * 3.0 + 10
    assert int(service["TimeoutStopSec"]) > longest_s


def test_it_starts_again_after_a_crash_and_never_after_an_emergency_stop(unit):
    parsed = unit_of(unit.read_text())
    service, limits = parsed["Service"], parsed["Unit"]
    assert service["Restart"] == "on-failure"
    assert set(service["RestartPreventExitStatus"].split()) == {"1", "2"}
    assert str(NOT_YET) not in service["RestartPreventExitStatus"].split()
    assert service["SuccessExitStatus"] == "130"
    tries_s = int(limits["StartLimitBurst"]) * int(service["RestartSec"])
    assert 60 <= tries_s < int(limits["StartLimitIntervalSec"]), (
        "late devices are waited for, but not for ever"
    )


def test_nobody_and_nothing_stands_between_it_and_the_journal(unit):
    service = unit_of(unit.read_text())["Service"]
    assert (service["StandardInput"], service["StandardOutput"], service["StandardError"]) == (
        "null",
        "journal",
        "journal",
    )


def test_its_sockets_lie_where_the_monitor_looks(unit, monkeypatch):
    from edgevla import session

    service = unit_of(unit.read_text())["Service"]
    runtime = Path("/run") / service["RuntimeDirectory"]
    assert runtime.parent == session.SERVICES
    assert service["RuntimeDirectoryMode"] == "0700"
    longest = Path("/run/edgevla") / ("x" * 20)
    assert len(os.fsencode(longest)) <= session.MAX_ROOT_BYTES, "a name of 20 leaves room for the sockets"


@pytest.mark.parametrize(
    "word",
    ["plain", "two words", "100%", "%h/x", "$HOME", "${HOME}", 'say "hi"', "it's", "back\\slash", "semi;colon", "",
     "--task=put the cube; then $wait 5%", "Würfel"],
)  # fmt: skip
def test_a_word_reaches_the_deployment_as_it_was_typed(word):
    assert words_of(f"edgevla {quote(word)} --x") == ["edgevla", word, "--x"]
    assert not re.search(r"(?<!%)%(%%)*(?!%)", quote(word)), "a specifier of systemd"


def test_what_is_wrong_is_said_when_it_is_installed_and_not_at_boot(tmp_path, bundle, capsys):
    def refused(*words):
        assert main(["service", "install", f"--unit-dir={tmp_path}", "kitchen", *words]) in (1, 2)
        assert not (tmp_path / "edgevla-kitchen.service").exists()
        return capsys.readouterr().err

    assert "say which bundle" in refused(*SIM)
    assert "--threads 0 must be a whole number" in refused(str(bundle), *SIM, "--threads=0")
    assert "there is no policy bundle at" in refused(str(tmp_path / "nowhere"), *SIM)
    assert "leave out --unattended" in refused(str(bundle), *SIM, "--monitor")
    (bundle / "decode.onnx").unlink()
    assert "'decode.onnx' is missing" in refused(str(bundle), *SIM)


def test_a_name_that_cannot_be_a_unit_s_is_refused(capsys):
    for name in ("Kitchen", "a b", "../x", "x" * 21, "-x"):
        assert main(["service", "install", "--", name, "bundle"]) == 2
        assert "small letters, digits and -" in capsys.readouterr().err


def test_options_of_the_service_itself_may_stand_behind_its_name(tmp_path, bundle, capsys):
    own = [f"--unit-dir={tmp_path}", "--user", getpass.getuser()]
    assert main(["service", "install", "kitchen", str(bundle), *SIM, *own, "--task=wave"]) == 0
    unit = tmp_path / "edgevla-kitchen.service"
    command = words_of(unit_of(unit.read_text())["Service"]["ExecStart"])
    assert command[4:] == [str(bundle), *SIM, "--task=wave", "--unattended"], "and are not the deployment's"
    assert main(["service", "show", "kitchen", own[0]]) == 0
    assert main(["service", "remove", "kitchen", own[0]]) == 0
    assert not unit.exists()
    assert main(["service", "remove", "kitchen", "--user"]) == 2
    assert "--user: expected one argument" in capsys.readouterr().err


def test_a_user_that_does_not_exist_is_refused(monkeypatch):
    with pytest.raises(UsageError, match="knows no such user"):
        user_name("nobody-of-this-name")
    monkeypatch.setenv("SUDO_USER", getpass.getuser())
    assert user_name(None) == getpass.getuser()


def test_a_unit_of_somebody_else_is_neither_overwritten_nor_removed(tmp_path, bundle, capsys):
    theirs = tmp_path / "edgevla-kitchen.service"
    theirs.write_text("[Service]\nExecStart=/bin/true\n")
    assert main(["service", "install", f"--unit-dir={tmp_path}", "kitchen", str(bundle), *SIM]) == 2
    assert main(["service", "remove", f"--unit-dir={tmp_path}", "kitchen"]) == 2
    assert theirs.read_text() == "[Service]\nExecStart=/bin/true\n"


def test_it_is_shown_written_anew_and_removed(unit, bundle, capsys):
    folder = f"--unit-dir={unit.parent}"
    assert main(["service", "install", folder, "kitchen", str(bundle), *SIM, "--threads=2"]) == 0
    capsys.readouterr()
    assert main(["service", "show", folder, "kitchen"]) == 0
    shown = capsys.readouterr().out
    assert shown == unit.read_text()
    assert "--threads=2" in shown
    assert main(["service", "remove", folder, "kitchen"]) == 0
    assert not unit.exists()
    assert main(["service", "show", folder, "kitchen"]) == 2
    assert "there is no service 'kitchen'" in capsys.readouterr().err


def test_the_template_has_no_other_places_than_those_that_are_filled():
    text = unit_text("kitchen", "pi", Path("/home/pi/my robots"), ["bundles/act", "--robot", "so101"])
    assert not re.search(r"[{}]", text)
    assert unit_of(text)["Service"]["WorkingDirectory"] == "/home/pi/my robots"
    assert service_cli.MARK in text


@pytest.mark.realtime
def test_the_unit_s_own_command_runs_is_found_and_stops_in_order(tmp_path, fast_profile, bundle, monkeypatch):
    """As systemd does it: no terminal, its environment, SIGTERM to the whole group in the same moment."""
    runtime = Path(f"/tmp/evs{os.getpid()}")
    log = tmp_path / "log"
    words = [str(bundle), f"--robot={fast_profile}", "--sim", f"--log={log}"]
    assert main(["service", "install", f"--unit-dir={tmp_path}", "kitchen", *words]) == 0
    service = unit_of((tmp_path / "edgevla-kitchen.service").read_text())["Service"]
    runtime.mkdir(mode=int(service["RuntimeDirectoryMode"], 8))
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH", "LANG")}
    environment = {**kept, "RUNTIME_DIRECTORY": str(runtime), "INVOCATION_ID": "0" * 32}
    with (tmp_path / "journal").open("w") as journal:
        process = subprocess.Popen(
            words_of(service["ExecStart"]),
            stdin=subprocess.DEVNULL, stdout=journal, stderr=journal, env=environment, start_new_session=True,
        )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while "robot        running" not in (tmp_path / "journal").read_text():
            assert time.monotonic() < until, (tmp_path / "journal").read_text()
            time.sleep(0.1)
        monkeypatch.setattr("edgevla.session.SERVICES", runtime.parent)
        monkeypatch.delenv("EDGEVLA_RUNTIME_DIR", raising=False)
        (folder,) = runtime.iterdir()
        assert find_deployment(folder) == folder
        for pid in group_of(process.pid):
            os.kill(pid, signal.SIGTERM)
        assert process.wait(60) == 0, (tmp_path / "journal").read_text()
        assert "\x1b" not in (tmp_path / "journal").read_text()
        summary = json.loads((log / "latest" / "summary.json").read_text())
        assert summary["final_mode"] == "stopped"
        told = list(entries(log / "latest"))
        looks = [line for line in told if line["type"] == "board"]
        assert looks[0]["memory_total"] > 0
        assert summary["board"]["least_free_bytes"] == min(look["memory_free"] for look in looks)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(runtime, ignore_errors=True)


def group_of(pid):
    """The process and all that descend from it: what is in a unit's control group."""
    import psutil

    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]

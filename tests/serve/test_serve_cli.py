"""`edgevla serve` and `deploy --policy` as a person types them: what is refused, and how a server ends when asked."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import zmq
from serve_kit import SESSION, free_port

from edgevla.cli import main
from edgevla.errors import UsageError
from edgevla.launch import service_cli
from edgevla.launch.service_cli import keys_of
from edgevla.serve.keys import keys_folder, machine_keys
from edgevla.serve.paired import keep
from edgevla.serve.pictures import RAW, Encoding, encoding
from edgevla.serve.remote import look_up
from edgevla.serve.serve_cli import metrics_place, named, printable
from edgevla.serve.transport import Address, address, addresses, is_loopback


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Nobody is paired."""
    monkeypatch.setenv("EDGEVLA_HOME", str(tmp_path / "home"))


@pytest.fixture(autouse=True)
def own_signals():
    """A server takes the process's signals; this process is the test's."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def said(capsys, *words):
    """Exit code and sentence."""
    code = main([str(word) for word in words])
    return code, capsys.readouterr().err.strip()


def test_off_this_machine_it_does_not_listen_while_nobody_is_paired(make_bundle, capsys):
    bundle = make_bundle("act")
    for bind in ("tcp://0.0.0.0:5599", "tcp://192.168.1.5:5599", "tcp://gpu.lab:5599", "tcp://[::]:5599"):
        code, words = said(capsys, "serve", bundle, f"--bind={bind}")
        assert code == 1
        assert f"--bind {bind}: no robot is paired with this server" in words
        assert "pair one first: edgevla serve --pair" in words
    code, words = said(capsys, "serve", bundle, "--paired")
    assert (code, "--bind tcp://127.0.0.1:5599: no robot is paired" in words) == (1, True)
    code, words = said(capsys, "deploy", "--policy=tcp://gpu.lab:5599/act", "--robot=so101", "--sim")
    assert code == 2
    assert "--policy tcp://gpu.lab:5599: this robot is not paired with a server at gpu.lab" in words


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["bundles/act", "--policy=tcp://127.0.0.1:1"], "leave one of them out"),
        (["--frames=jpeg"], "--frames is for a policy server"),
        (["--policy=127.0.0.1:5599"], "expected tcp://HOST:PORT"),
        (["--policy=tcp://127.0.0.1:5599,tcp://127.0.0.1:5599/a"], "one address is given twice"),
        (["--policy=tcp://127.0.0.1:1/a,tcp://127.0.0.1:2/b"], "name different policies"),
        (["--policy=tcp://127.0.0.1:1", "--frames=png"], "expected raw, jpeg or jpeg:QUALITY"),
        (["--policy=tcp://127.0.0.1:1", "--frames=jpeg:0"], "a quality from 1 to 100"),
        (["--policy=tcp://127.0.0.1:1", "--provider=cuda"], "--provider is the policy server's"),
        (["--policy=tcp://127.0.0.1:1", "--threads=2"], "--threads is the policy server's"),
    ],
)
def test_what_cannot_take_effect_is_said_before_anything_starts(capsys, options, words):
    code, sentence = said(capsys, "deploy", *options, "--robot=so101", "--sim")
    assert code == 2
    assert words in sentence


def test_policies_have_the_names_of_their_folders_or_those_that_are_said():
    assert named(["runs/act", "cubes=runs/b"]) == {"act": Path("runs/act"), "cubes": Path("runs/b")}
    with pytest.raises(UsageError, match="two policies are called 'act'; give one another name: NAME=b/act"):
        named(["a/act", "b/act"])
    with pytest.raises(UsageError, match="'my policy' cannot be a policy's name"):
        named(["my policy"])
    with pytest.raises(UsageError, match="'cubes=' names no folder"):
        named(["cubes="])


def test_addresses_are_read_and_known_to_be_near_or_far():
    assert address("tcp://127.0.0.1:5599/act", "--policy") == Address("tcp://127.0.0.1:5599", "act")
    assert str(addresses("tcp://localhost:1,tcp://[::1]:2/x", "--policy")[1]) == "tcp://[::1]:2/x"
    assert addresses(" tcp://a:1/x, tcp://b:2 ", "--policy") == addresses("tcp://a:1/x,tcp://b:2", "--policy")
    for near in ("tcp://127.1.2.3:1", "tcp://localhost:1", "tcp://[::1]:1", "inproc://x", "ipc:///tmp/x"):
        assert is_loopback(near)
    for far in (
        "tcp://10.0.0.1:1",
        "tcp://*:1",
        "tcp://0.0.0.0:1",
        "tcp://127.0.0.1.evil.com:1",
        "udp://127.0.0.1:1",
    ):
        assert not is_loopback(far)


def test_pictures_travel_raw_on_this_machine_and_as_jpeg_elsewhere_unless_said():
    here, there = Address("tcp://127.0.0.1:1"), Address("tcp://gpu:1")
    assert encoding(None, [here]) is RAW
    assert encoding(None, [here, there]) == Encoding("jpeg", 90)
    assert encoding("raw", [there]) is RAW
    assert encoding(str(Encoding("jpeg", 70)), [here]) == Encoding("jpeg", 70)


def test_figures_are_on_this_machine_unless_said():
    assert metrics_place("9599") == ("127.0.0.1", 9599)
    assert metrics_place("0.0.0.0:9599") == ("0.0.0.0", 9599)
    with pytest.raises(UsageError, match="expected PORT or HOST:PORT"):
        metrics_place("here")


def test_what_a_stranger_says_cannot_paint_the_terminal():
    assert printable("\x1b[2Jso101\n" + "x" * 999) == "?[2Jso101?" + "x" * 290


@pytest.fixture
def served(make_bundle):
    """A process, its endpoint and what it says first."""
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "edgevla", "serve", str(make_bundle("act")), f"--bind={endpoint}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = [process.stdout.readline(), process.stdout.readline()]
    yield process, endpoint, lines
    process.kill()
    process.communicate()


@pytest.mark.parametrize("host", ["nosuch.invalid", "203.0.113.9"])
def test_a_host_that_is_not_of_this_machine_is_no_other_server(host, make_bundle, capsys):
    keep("robots", "kitchen", machine_keys().public)
    code, words = said(capsys, "serve", make_bundle("act", "act"), f"--bind=tcp://{host}:5599")
    assert code == 1
    assert "is no address of this machine" in words
    assert "another server" not in words


def test_a_server_warms_up_listens_and_ends_in_order_when_asked(served, capsys, make_bundle):
    process, endpoint, lines = served
    assert "policy bundle: " in lines[0]
    assert "ms per inference" in lines[0]
    assert f"edgevla deploy --policy {endpoint}/bundle --robot" in lines[1]
    ctx = zmq.Context()
    try:
        about = look_up(ctx, [Address(endpoint)], SESSION, 5.0)
    finally:
        ctx.destroy(linger=0)
    assert about.manifest.policy == "act"
    code, words = said(capsys, "serve", make_bundle("act", "other"), f"--bind={endpoint}")
    assert (code, "another server running there" in words) == (1, True)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert "going down: robots are told, what runs is finished" in output
    assert errors == ""


def test_a_service_is_judged_by_the_keys_of_its_user():
    user = pwd.getpwuid(os.getuid())
    before = keys_folder()
    with keys_of(user.pw_name):
        assert keys_folder() == Path(user.pw_dir) / ".config" / "edgevla" / "keys"
    assert keys_folder() == before


def test_systemd_runs_a_server_as_it_was_typed_and_again_for_ever(make_bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(service_cli, "keys_of", lambda _: contextlib.nullcontext())
    bundle = make_bundle("act")
    install = ["service", "install", f"--unit-dir={tmp_path}", "gpu", "serve", f"cubes={bundle}"]
    assert main([*install, "--metrics=9599"]) == 0
    unit = (tmp_path / "edgevla-gpu.service").read_text()
    assert f"ExecStart={sys.executable} -m edgevla serve cubes={bundle} --metrics=9599\n" in unit
    assert "StartLimitIntervalSec=0" in unit
    assert "RestartPreventExitStatus=2\n" in unit
    analyze = shutil.which("systemd-analyze")
    if analyze is not None:
        words = [analyze, "verify", str(tmp_path / "edgevla-gpu.service")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, "edgevla-gpu" in done.stderr) == (0, False), done.stderr
    code, words = said(capsys, *install, "--bind=tcp://0.0.0.0:1")
    assert (code, "no robot is paired with this server" in words) == (1, True)
    code, words = said(capsys, *install[:-1], "--pair")
    assert (code, "a service cannot pair" in words) == (2, True)
    (bundle / "encode.onnx").unlink()
    code, words = said(capsys, *install)
    assert (code, "'encode.onnx' is missing" in words) == (1, True)

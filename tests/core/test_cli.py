"""The command line as a person meets it: fast, helpful, honest exit codes."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from edgevla.cli import VERBS, main

HEAVY = ("numpy", "zmq", "cv2", "torch", "onnxruntime", "textual", "pyarrow", "transformers", "matplotlib")


def edgevla(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgevla", *argv], capture_output=True, text=True, timeout=60, check=False
    )


def test_without_arguments_it_lists_every_verb() -> None:
    done = edgevla()
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)


def test_an_unknown_verb_suggests_the_nearest() -> None:
    done = edgevla("deplyo")
    assert done.returncode == 2
    assert "did you mean 'deploy'" in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_nothing_heavy(verb: str) -> None:
    """Imports, not seconds: a timed assertion would measure the machine's neighbours."""
    code = (
        "import sys\nfrom edgevla.cli import main\n"
        f"try: main([{verb!r}, '--help'])\nexcept SystemExit as e: assert e.code == 0, e.code\n"
        f"bad = [m for m in {HEAVY!r} if m in sys.modules]\nassert not bad, bad\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage: edgevla " + verb in done.stdout


def test_help_of_a_verb_is_the_verbs_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["help", "inspect"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: edgevla inspect")
    assert main(["help", "inspekt"]) == 2


def test_help_shows_defaults_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["deploy", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "of the policy's noise and of the simulated world (default: 0)" in said
    assert "denoise steps; default: the bundle's" in said
    assert "(default: None)" not in said
    assert "(default: False)" not in said


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_option_is_wrong_usage(verb: str) -> None:
    done = edgevla(verb, "--no-such-option")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_what_the_system_refuses_is_a_sentence_with_the_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgevla import inspect_cli

    def refused(args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "/data/run")

    monkeypatch.setattr(inspect_cli, "run", refused)
    assert main(["inspect", "x"]) == 1
    assert capsys.readouterr().err.startswith("edgevla inspect: /data/run: Permission denied; check the path")
    with pytest.raises(PermissionError):
        main(["inspect", "x", "--verbose"])


def test_a_file_that_is_nested_without_end_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    assert main(["inspect", str(tmp_path)]) == 1
    assert "nested thousands of levels deep" in capsys.readouterr().err


def test_the_home_of_nobody_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "~nobody-of-this-name/runs"]) == 1
    assert "a user that this machine does not know" in capsys.readouterr().err


def test_a_link_that_leads_to_itself_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert main(["serve", str(loop)]) == 1
    assert str(loop) in capsys.readouterr().err


def test_no_file_gets_the_number_of_a_standard_stream_that_was_closed(tmp_path: Path) -> None:
    """A daemon that closes them all; what is opened next would be written to by whoever writes to standard error."""
    code = (
        "import os\nfrom edgevla.cli import main\nmain(['--version'])\n"
        f"os.write(os.open({str(tmp_path / 'next')!r}, os.O_CREAT | os.O_WRONLY), b'%d' % os.dup(2))"
    )
    command = ["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code]
    subprocess.run(command, timeout=60, check=True)
    assert int((tmp_path / "next").read_text()) > 2

"""What a shell completes: in a real bash, from the script that the verb prints."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edgevla.cli import VERBS, main

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.fixture
def bash_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "edgevla.bash"
    path.write_text(script("bash", capsys))
    return path


def completed(path: Path, *words: str) -> list[str]:
    """What bash offers for the last word, by the function that `complete` was told."""
    line = (
        'source "$0"; f=$(complete -p edgevla); f=${f##*-F }; f=${f%% *}; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); '
        '"$f"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-u", "-c", line, str(path), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


@needs_bash
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["de"], ["deploy", "demo"]),
        (["help", "dep"], ["deploy"]),
        (["deploy", "--exec"], ["--execution"]),
        (["deploy", "x", "--execution", ""], ["sync", "ensemble", "async", "rtc"]),
        (["deploy", "--robot", "so101_b"], ["so101_bimanual"]),
        (["train", "--prec"], ["--precision"]),
        (["completion", "f"], ["fish"]),
        (["dataset", ""], []),
        (["dataset", "datasets/cube", "re"], ["retask"]),
        (["dataset", "datasets/cube", "delete", "--out"], ["--output"]),
        (["record", "x", "--leader", "so101_leader_"], ["so101_leader_bimanual"]),
        (["deploy", "bundles/"], []),
        (["nonsense", "--"], []),
    ],
)
def test_bash_offers(words: list[str], offered: list[str], bash_script: Path) -> None:
    assert completed(bash_script, "edgevla", *words) == offered


@needs_bash
def test_bash_offers_every_option_that_a_parser_has(bash_script: Path) -> None:
    assert set(completed(bash_script, "edgevla", "")) == {*VERBS, "help"}
    assert {"--robot", "--dry-run", "--config", "--help"} <= set(
        completed(bash_script, "edgevla", "deploy", "--")
    )


def test_the_other_shells_get_the_same_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither shell is on every machine; that they take the scripts is not tested."""
    zsh = script("zsh", capsys).splitlines()
    assert zsh[0] == "autoload -Uz bashcompinit && bashcompinit"
    assert zsh[1:] == script("bash", capsys).splitlines()
    fish = script("fish", capsys)
    assert "__fish_seen_subcommand_from deploy' -l execution -a 'sync ensemble async rtc' -r" in fish
    assert all(f"-f -a {verb} -d '" in fish for verb in VERBS)

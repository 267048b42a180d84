"""`edgevla inspect CHECKPOINT` says what is in any policy folder, from its headers, and notices what does not fit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgevla.cli import main
from edgevla.errors import CheckpointError
from edgevla.export.describe import describe_checkpoint
from edgevla.export.draft import fade
from edgevla.train.header import read_header
from edgevla.train.policies import POLICIES

GOLDENS = Path(__file__).parents[1] / "fixtures" / "goldens"


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_described(policy: str) -> None:
    lines, data, code = describe_checkpoint(GOLDENS / policy / "checkpoint")
    config = json.loads((GOLDENS / policy / "checkpoint/config.json").read_text())
    assert code == 0
    assert lines[-1].startswith("sound")
    assert data["type"] == policy
    assert data["n_parameters"] == sum(data["parts"].values()) == sum(data["dtypes"].values())
    assert data["inputs"] == config["input_features"]
    assert data["normalisation"]["statistics"].startswith("policy_preprocessor")
    assert (data["tokenizer"] is not None) == (policy not in ("act", "diffusion"))
    assert data["action_space"]["n"] == config["output_features"]["action"]["shape"][0]
    files = {p: size["file"] for p, size in data["export"].items()}
    assert files["int8"] < files["fp16"] < files["fp32"]
    assert json.dumps(data)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_training_would_change_is_what_the_reference_trains(policy: str) -> None:
    """Recorded with the weights: T for trainable, F for frozen."""
    from edgevla.train.skeleton import parameters

    found = parameters(GOLDENS / policy / "checkpoint")
    rows = [line.split("\t") for line in (GOLDENS / policy / "keys.txt").read_text().splitlines()[1:]]
    flags = {name: flag for name, _, _, flag in rows if flag.strip("-") in ("T", "F")}
    differ = {
        n for n, (_, is_trained) in found.items() if n in flags and is_trained != flags[n].startswith("T")
    }
    assert len(set(found) & set(flags)) > 10
    assert differ == set()


def test_weights_that_do_not_fit_are_not_read(tmp_path: Path) -> None:
    """A sparse file of 40 GB with a true header is described at once."""
    shutil.copytree(GOLDENS / "act/checkpoint", tmp_path / "c")
    path = tmp_path / "c/model.safetensors"
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + n])
    end = max(e["data_offsets"][1] for k, e in header.items() if k != "__metadata__")
    size = 40 << 30
    header["model.big"] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [end, end + size]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + raw[8 + n :])
        file.truncate(8 + len(text) + end + size)
    assert read_header(path)["model.big"].count == size // 4
    _, data, code = describe_checkpoint(tmp_path / "c")
    assert code == 1  # ACT has no such weight
    assert "holds weights that the policy has not: big" in data["problem"]


@pytest.mark.parametrize("features", [["x"], {"action": -1}, {"action": {"type": "ACTION", "shape": True}}])
def test_features_of_another_form_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], features: object
) -> None:
    shutil.copytree(GOLDENS / "act/checkpoint", tmp_path / "c")
    path = tmp_path / "c/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "output_features": features}))
    assert main(["inspect", str(tmp_path / "c")]) == 1
    assert "config.json: " in (said := capsys.readouterr().err)
    assert "expected" in said


def test_a_normalisation_of_another_kind_is_named(tmp_path: Path) -> None:
    shutil.copytree(GOLDENS / "groot/checkpoint", tmp_path / "c")
    path = tmp_path / "c/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalization_mapping": True}))
    _, data, code = describe_checkpoint(tmp_path / "c")
    assert code == 1
    assert "'normalization_mapping' is True" in data["problem"]


def test_a_network_that_cannot_be_built_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(GOLDENS / "act/checkpoint", tmp_path / "c")
    path = tmp_path / "c/config.json"
    data = json.loads(path.read_text())
    data["input_features"]["observation.state"]["shape"] = [1 << 70]
    path.write_text(json.dumps(data))
    assert main(["inspect", str(tmp_path / "c")]) == 1
    assert "describes a network that cannot be built" in capsys.readouterr().out
    path.write_text(json.dumps(data | {"n_encoder_layers": 10**9}))
    assert main(["inspect", str(tmp_path / "c")]) == 1
    assert "'n_encoder_layers' is 1000000000; no more than 1000 are built" in capsys.readouterr().out


def test_damage_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(GOLDENS / "act/checkpoint", tmp_path / "c")
    path = tmp_path / "c/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert main(["inspect", str(tmp_path / "c")]) == 1
    assert "its header says" in capsys.readouterr().err
    path.write_bytes(b"short")
    with pytest.raises(CheckpointError, match="damaged"):
        describe_checkpoint(tmp_path / "c")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"holds no model.safetensors"):
        describe_checkpoint(tmp_path / "c")


def test_a_bundle_is_described_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import edgevla.export.describe as d\n"
        f"print(d.describe_checkpoint({str(GOLDENS / 'act/checkpoint')!r})[0][-2:])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[train]" in done.stdout


@pytest.mark.parametrize(("said", "meant"), [("LINEAR", "linear"), ("exp", "exp")])
def test_guidance_fades_in_the_bundle_as_lerobot_s_words_say(said: str, meant: str) -> None:
    assert fade(said) == meant


def test_a_fade_of_guidance_that_nobody_knows_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"'COSINE'; known are zeros, ones, linear, exp"):
        fade("COSINE")

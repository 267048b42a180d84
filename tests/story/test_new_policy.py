"""A new policy touches what CONTRIBUTING names, and no more: a toy in the table goes through every verb."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import torch

from edgevla.bundle import load_bundle
from edgevla.cli import main
from edgevla.robots.trials.contest import one
from edgevla.robots.trials.demonstrate import DemonstrationPlan, demonstrate
from edgevla.train.checkpoint import load_policy, save_policy
from edgevla.train.policies import ALIASES, POLICIES, Places, config_class, policy_class

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves neighbours unimportable
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import own_policy
from every_policy import run_verb, train_words

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROOT = Path(__file__).parents[2]


def test_a_toy_policy_goes_through_every_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file, one line in the table, one recipe: the example's."""
    monkeypatch.setitem(POLICIES, "toy", Places("own_policy:Toy", "own_policy:ToyConfig"))
    demonstrate(tmp_path / "data", DemonstrationPlan("follow_cube", 2, n_steps=30))
    run, bundle = tmp_path / "run", tmp_path / "run" / "bundle"
    words = train_words("toy", tmp_path / "data", run, None, "--recipe", str(tmp_path / "run.toml"))
    assert own_policy.main(str(tmp_path / "data"), str(run), *words[7:], "--steps", "6") == 0
    run_verb(["train", "--resume", str(run), "--steps", "8"])
    capsys.readouterr()
    run_verb(["inspect", str(run / "checkpoints/last/pretrained_model")])
    assert "toy" in capsys.readouterr().out

    policy = load_policy(run / "checkpoints/last")
    again = load_policy(save_policy(policy, tmp_path / "saved"))
    assert all(torch.equal(w, again.state_dict()[n]) for n, w in policy.state_dict().items())
    tuned = [*words[:6], str(tmp_path / "tuned"), *words[7:], "--from", str(run / "checkpoints/last")]
    run_verb([*tuned, "--steps", "1"])

    run_verb(["inspect", str(bundle)])
    manifest = load_bundle(bundle).manifest
    assert manifest.parity is not None
    assert manifest.parity.passed
    assert (manifest.policy, manifest.chunk_size, manifest.n_action_steps) == ("toy", 12, 6)
    states = one(bundle, "follow_cube").play(0).states
    assert {s.mode for s in states} == {"running"}
    assert len({s.chunk_seq for s in states if s.chunk_seq is not None}) >= 3


def test_what_the_toy_cannot_do_is_said_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(POLICIES, "toy", Places("own_policy:Toy", "own_policy:ToyConfig"))
    (tmp_path / "toy.toml").write_text(own_policy.RECIPE)
    demonstrate(tmp_path / "data", DemonstrationPlan("follow_cube", 1, n_steps=10))
    words = train_words("toy", tmp_path / "data", tmp_path / "run", None, "--steps", "1")
    words += ["--recipe", str(tmp_path / "toy.toml")]
    for more, said in (
        (["--from-scratch"], "toy has no backbone to start without"),
        (["--trunk-width", "16"], "the vision trunk of toy has one width"),
        (["--gradient-checkpointing"], "toy has no gradient checkpointing"),
        (["--set", "use_relative_actions=true"], "toy has no such field"),
    ):
        assert main([*words, *more]) in (1, 2)
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "toy" in " ".join(capsys.readouterr().out.split())


def test_every_row_of_the_table_is_a_policy_and_its_config() -> None:
    for name in POLICIES:
        assert (policy_class(name).policy_type, config_class(name).type) == (name, name)
        assert policy_class(name).Config is config_class(name)
        assert (policy_class(name).published_backbone is None) == (policy_class(name).backbone_kind is None)
        assert policy_class(name).tiny, f"{name} declares no size that trains in a test"
        assert (ROOT / "train" / "recipes" / f"{name}.toml").is_file()
        assert (ROOT / "tests" / "golden" / f"cases_{name}.py").is_file()


def test_no_policy_is_named_outside_its_own_files() -> None:
    """In code: a name among strings is a branch or a list that the next policy would have to be added to."""
    names = {*POLICIES, *ALIASES} - {"act"}  # the default of --policy
    found = []
    for path in (p for room in ("train", "export") for p in (ROOT / room).rglob("*.py")):
        if path.is_relative_to(ROOT / "train" / "policies"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            is_probe = isinstance(node, ast.Name) and node.id == "hasattr"
            if is_probe or (isinstance(node, ast.Constant) and node.value in names):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []

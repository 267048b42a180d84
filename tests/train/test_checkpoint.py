"""LeRobot's folder: what is written, what is refused, what older versions left, and memory while loading."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from edgevla.errors import CheckpointError
from edgevla.train.checkpoint import config_to_save, load_policy, new_policy, save_policy, save_weights
from edgevla.train.legacy import split_legacy
from edgevla.train.policies import policy_class
from edgevla.train.policies.act import ActConfig
from edgevla.train.policies.config import PolicyFeature

FEATURES = {
    "observation.images.front": {
        "dtype": "video",
        "shape": (32, 48, 3),
        "names": ["height", "width", "channels"],
    },
    "observation.environment_state": {"dtype": "float32", "shape": (2,)},
    "observation.state": {"dtype": "float32", "shape": (3,)},
    "action": {"dtype": "float32", "shape": (3,)},
    "timestamp": {"dtype": "float32", "shape": (1,)},
}
STATS = {
    "observation.images.front": {"mean": np.full((3, 1, 1), 0.1), "std": np.full((3, 1, 1), 0.2)},
    "observation.state": {"mean": np.array([1, 2, 3.0]), "std": np.array([1, 2, 0.5])},
    "action": {"mean": np.array([0.5, 2, -3.0]), "std": np.array([4, 2, 0.5])},
}
FRONT = {"observation.images.front": PolicyFeature("VISUAL", (3, 32, 48))}
TINY = {
    "dim_model": 16,
    "n_heads": 2,
    "dim_feedforward": 24,
    "n_encoder_layers": 1,
    "n_vae_encoder_layers": 1,
    "chunk_size": 4,
    "n_action_steps": 2,
    "pretrained_backbone_weights": None,
}


def fresh(**overrides):
    torch.manual_seed(0)
    return new_policy("act", FEATURES, STATS, {**TINY, **overrides}, say=lambda _: None)


LATER_THAN_04 = {
    "diffusion": {"pretrained_revision", "gradient_checkpointing"},
    "pi0": {"pretrained_revision", "use_relative_actions", "relative_exclude_joints", "action_feature_names"},
}


@pytest.mark.parametrize("kind", LATER_THAN_04)
def test_what_older_lerobots_refuse_is_written_only_where_it_says_something(kind):
    """LeRobot ends at a key of config.json or a processing step that it does not know."""
    cls = policy_class(kind)

    def written(config):
        policy = SimpleNamespace(config=config, config_keys=None, config_extras={})
        steps = cls.default_processors(config, {})
        return set(config_to_save(policy)), {step.name for step in [*steps.pre, *steps.post]}

    keys, steps = written(cls.Config(input_features=FRONT))
    assert not keys & LATER_THAN_04[kind]
    assert not any("relative" in name or "absolute" in name for name in steps)
    said = sorted(LATER_THAN_04[kind] - {"pretrained_revision"})[-1]
    keys, steps = written(cls.Config(input_features=FRONT, **{said: True}))
    assert said in keys
    assert ("relative_actions_processor" in steps) is (kind == "pi0")


def observation():
    generator = torch.Generator().manual_seed(0)
    return {
        "camera:observation.images.front": torch.randint(0, 256, (1, 32, 48, 3), generator=generator).byte(),
        "state": torch.randn(1, 3, generator=generator),
        "environment_state": torch.randn(1, 2, generator=generator),
    }


def act(policy):
    with torch.no_grad():
        return policy.eval().decode(policy.encode(observation())["x"], {})


def test_a_fresh_policy_takes_types_and_order_from_the_dataset():
    config = fresh().config
    assert {k: (f.type, f.shape) for k, f in config.input_features.items()} == {
        "observation.images.front": ("VISUAL", (3, 32, 48)),
        "observation.environment_state": ("ENV", (2,)),
        "observation.state": ("STATE", (3,)),
    }
    assert list(config.input_features) == list(FEATURES)[:3]
    assert list(config.output_features) == ["action"]


def test_cameras_are_normalised_by_imagenet_unless_told_otherwise():
    imagenet = fresh().processors.stats["observation.images.front"]
    np.testing.assert_allclose(imagenet["mean"].ravel(), [0.485, 0.456, 0.406], rtol=1e-6)
    assert imagenet["mean"].shape == (3, 1, 1)
    own = new_policy("act", FEATURES, STATS, TINY, use_imagenet_stats=False, say=lambda _: None)
    np.testing.assert_allclose(
        own.processors.stats["observation.images.front"]["mean"].ravel(), 0.1, rtol=1e-6
    )


def test_the_environment_state_is_not_normalised():
    stats = {**STATS, "observation.environment_state": {"mean": np.full(2, 9.0), "std": np.full(2, 9.0)}}
    policy = new_policy("act", FEATURES, stats, TINY, say=lambda _: None)
    x = torch.tensor([[1.0, 2.0]])
    assert torch.equal(policy.normalizers("observation.environment_state", x), x)


def test_a_saved_folder_has_lerobots_files_and_loads_to_the_bit(tmp_path):
    policy = fresh()
    folder = save_policy(policy, tmp_path / "policy")
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "policy_postprocessor.json",
        "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
        "policy_preprocessor.json",
        "policy_preprocessor_step_3_normalizer_processor.safetensors",
    ]
    assert torch.equal(act(load_policy(folder)), act(policy))
    save_policy(load_policy(folder), folder)
    assert torch.equal(act(load_policy(folder)), act(policy))
    assert [p.name for p in tmp_path.iterdir()] == ["policy"], "scratch folders are left behind"


def test_a_failed_save_leaves_the_old_folder(tmp_path, monkeypatch):
    folder = save_policy(fresh(), tmp_path / "policy")
    before = (folder / "model.safetensors").read_bytes()
    other = fresh(dim_feedforward=32)
    monkeypatch.setattr(other.processors, "save", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_policy(other, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]


def test_saving_keeps_the_loaded_configs_keys_and_adds_what_was_changed(tmp_path):
    folder = save_policy(fresh(), tmp_path / "policy")
    data = json.loads((folder / "config.json").read_text())
    for key in ("pretrained_path", "dropout", "use_peft"):
        del data[key]
    data["optimizer_fused"] = True  # of another LeRobot version, and how it trains
    (folder / "config.json").write_text(json.dumps(data))
    policy = load_policy(folder)
    policy.config.dropout = 0.3
    save_policy(policy, tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert set(again) == set(data) | {"dropout"}
    assert again["optimizer_fused"] is True


def test_facts_and_tokenizer_folders_travel_with_the_policy(tmp_path):
    class Facts:
        def to_json(self):
            return {"fps": 30.0}

    folder = save_policy(fresh(), tmp_path / "policy", facts=Facts())
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    (folder / "tokenizer" / "config.json").write_text('{"model_type": "florence2"}')
    (folder / "scraps").mkdir()
    again = save_policy(load_policy(folder), tmp_path / "again")
    assert json.loads((again / "edgevla.json").read_text()) == {"fps": 30.0}
    assert (again / "tokenizer" / "tokenizer.json").is_file()
    assert not (again / "tokenizer" / "config.json").exists(), "transformers would take it for a network's"
    assert not (again / "scraps").exists()


def test_normalisation_among_the_weights_is_read_as_before_lerobot_04(tmp_path):
    policy = fresh()
    folder = save_policy(policy, tmp_path / "policy")
    for path in folder.glob("policy_*"):
        path.unlink()
    weights = load_file(str(folder / "model.safetensors"))
    stats = policy.processors.stats
    for prefix, feature in (
        ("normalize_inputs", "observation.images.front"),
        ("normalize_inputs", "observation.state"),
        ("normalize_targets", "action"),
        ("unnormalize_outputs", "action"),
    ):
        for stat in ("mean", "std"):
            key = f"{prefix}.buffer_{feature.replace('.', '_')}.{stat}"
            weights[key] = torch.from_numpy(stats[feature][stat].copy())
    save_file(weights, str(folder / "model.safetensors"))
    legacy = load_policy(folder)
    assert torch.equal(act(legacy), act(policy))
    again = save_policy(legacy, tmp_path / "again")
    assert (again / "policy_preprocessor.json").is_file()
    assert torch.equal(act(load_policy(again)), act(policy))

    # SmolVLA's base keeps statistics per robot, which match no feature; others were never set.
    weights["normalize_inputs.so100_buffer_observation_state.mean"] = torch.zeros(3)
    save_file(weights, str(folder / "model.safetensors"))
    with pytest.warns(UserWarning, match="'so100_buffer_observation_state' is no feature"):
        assert torch.equal(act(load_policy(folder)), act(policy))
    del weights["normalize_inputs.so100_buffer_observation_state.mean"]
    for stat in ("mean", "std"):
        weights[f"normalize_inputs.buffer_observation_state.{stat}"] = torch.full((3,), torch.inf)
    save_file(weights, str(folder / "model.safetensors"))
    with pytest.warns(UserWarning, match=r"'observation\.state' was never given any"):
        unset = load_policy(folder)
    assert torch.equal(unset.normalizers("observation.state", torch.ones(1, 3)), torch.ones(1, 3))


def test_what_is_normalised_is_what_the_pipelines_lists_say(tmp_path):
    """As LeRobot: the action always, observations that `features` and `normalize_observation_keys` name."""
    folder = save_policy(fresh(normalization_mapping={"ENV": "MEAN_STD"}), tmp_path / "policy")
    path = folder / "policy_preprocessor.json"
    data = json.loads(path.read_text())
    settings = data["steps"][3]["config"]
    del settings["features"]["action"]
    del settings["features"]["observation.images.front"]
    settings["normalize_observation_keys"] = ["observation.images.front"]
    path.write_text(json.dumps(data))
    normalizers = load_policy(folder).normalizers
    ones = torch.ones(1, 3)
    torch.testing.assert_close(normalizers("action", ones), torch.tensor([[0.125, -0.5, 8.0]]))
    assert torch.equal(normalizers("observation.state", ones), ones)
    assert torch.equal(normalizers("observation.images.front", ones), ones)
    assert (
        "normalize_observation_keys"
        in (save_policy(load_policy(folder), tmp_path / "b") / path.name).read_text()
    )


@pytest.mark.parametrize(
    "text", ["[]", '{"steps": [3]}', '{"steps": [{"config": [1]}]}', '{"steps": 4}', "{"]
)
def test_a_damaged_pipeline_is_refused_in_a_sentence(tmp_path, text):
    folder = save_policy(fresh(), tmp_path / "policy")
    state = folder / "policy_preprocessor_step_3_normalizer_processor.safetensors"
    whole = state.read_bytes()
    state.write_bytes(whole[:50])
    with pytest.raises(CheckpointError, match=f"{state.name} is damaged"):
        load_policy(folder)
    state.write_bytes(whole)
    (folder / "policy_preprocessor.json").write_text(text)
    with pytest.raises(CheckpointError, match="is no pipeline"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("norm_map", "MEAN_STD"), ("norm_map", {"STATE": {}}), ("features", True), ("features", {"action": -1}),
     ("normalize_observation_keys", 3), ("eps", "x")],
)  # fmt: skip
def test_a_pipelines_setting_of_another_kind_is_refused_by_name(tmp_path, key, value):
    folder = save_policy(fresh(), tmp_path / "policy")
    path = folder / "policy_postprocessor.json"
    data = json.loads(path.read_text())
    data["steps"][0]["config"][key] = value
    path.write_text(json.dumps(data))
    words = f"{path}: step 'unnormalizer_processor' has {key} = {value!r}, expected"
    with pytest.raises(CheckpointError, match=re.escape(words)):
        load_policy(folder)


def test_null_in_a_pipeline_says_as_much_as_leaving_it_out(tmp_path):
    folder = save_policy(fresh(), tmp_path / "policy")
    path = folder / "policy_preprocessor.json"
    data = json.loads(path.read_text())
    data["steps"][3]["config"].update(norm_map=None, features=None)
    path.write_text(json.dumps(data))
    policy = load_policy(folder)
    assert policy.processors.norm_map is None
    torch.testing.assert_close(
        policy.normalizers("action", torch.ones(1, 3)), torch.tensor([[0.125, -0.5, 8.0]])
    )


def test_what_is_no_checkpoint_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_policy(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="not a LeRobot checkpoint folder"):
        load_policy(tmp_path)
    folder = save_policy(fresh(), tmp_path / "policy")
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(CheckpointError, match="damaged"):
        load_policy(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        load_policy(folder)
    for text, words in (
        ("{", "cannot be read"),
        ("{}", "no policy 'type'"),
        ('{"type": "atc"}', "did you mean 'act'"),
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=words):
            load_policy(folder)
    (folder / "config.json").write_text('{"type": "act", "input_features": {"a": 3}}')
    with pytest.raises(CheckpointError, match=re.escape("feature 'a' is 3, expected its type and shape")):
        load_policy(folder)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("chunk_size", "100", "'chunk_size' is '100', expected int"),
        ("dim_feedforward", 1.5, "'dim_feedforward' is 1.5, expected int"),
        ("use_vae", 1, "'use_vae' is 1, expected bool"),
        ("dropout", float("nan"), "'dropout' is nan, expected float"),
        ("normalization_mapping", "MEAN_STD", "'normalization_mapping' is 'MEAN_STD'"),
        ("latent_dim", -1, "latent_dim is -1"),
        ("input_features", {"observation.state": {"type": "STATE", "shape": [3]}}, "environment state"),
        ("input_features", {"observation.image": {"type": "VISUAL", "shape": [3, 4]}}, "has shape [3, 4]"),
        ("output_features", {"action": {"type": "ACTION", "shape": [3, 2]}}, "'action' has shape [3, 2]"),
        (
            "input_features",
            ["observation.state"],
            "input_features is ['observation.state'], expected a table",
        ),
        ("output_features", {"action": {"type": "ACTION", "shape": "3"}}, "feature 'action' is {'type'"),
        ("output_features", {"action": {"shape": [3]}}, "expected its type and shape"),
    ],
)
def test_settings_of_another_kind_are_refused_by_name(tmp_path, key, value, words):
    folder = save_policy(fresh(), tmp_path / "policy")
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, key: value}))
    with pytest.raises(CheckpointError, match=re.escape(words)):
        load_policy(folder)


def test_null_takes_the_default_and_whole_numbers_may_be_written_as_fractions(tmp_path):
    folder = save_policy(fresh(), tmp_path / "policy")
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "dim_model": 16.0, "kl_weight": None}))
    config = load_policy(folder).config
    assert (config.dim_model, config.kl_weight) == (16, 10.0)
    assert isinstance(config.dim_model, int)


def test_a_hub_id_is_fetched_and_what_cannot_be_fetched_is_a_sentence(tmp_path, monkeypatch):
    folder = save_policy(fresh(), tmp_path / "cache")
    asked = []

    def fetch(name, **_):
        asked.append(name)
        if name == "someone/nothing":
            raise OSError("no such repository\nlong explanation")
        return str(folder)

    monkeypatch.setattr("edgevla.hub.why_unreachable", lambda: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert load_policy("someone/act").policy_type == "act"
    with pytest.raises(CheckpointError, match=r"could not be fetched from the hub: no such repository$"):
        load_policy("someone/nothing")
    assert asked == ["someone/act", "someone/nothing"]


def test_tensors_that_share_memory_are_stored_once(tmp_path):
    shared = torch.randn(3)
    save_weights({"b": shared, "a": shared, "c": torch.randn(2)}, tmp_path / "w.safetensors")
    with safe_open(str(tmp_path / "w.safetensors"), framework="pt") as file:
        assert sorted(file.keys()) == ["a", "c"]
        assert file.metadata()["b"] == "a"


def test_a_file_of_imagenet_weights_starts_the_trunk_and_another_is_refused(tmp_path, capsys):
    donor = fresh().backbone
    for tensor in donor.state_dict().values():
        tensor.uniform_(0.1, 0.2)
    weights = {**donor.state_dict(), "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    torch.save(weights, tmp_path / "resnet18-x.pth")
    policy = new_policy("act", FEATURES, STATS, TINY, backbone_weights=tmp_path / "resnet18-x.pth")
    assert "starts from the weights in" in capsys.readouterr().out
    own = policy.backbone.state_dict()
    assert all(torch.equal(own[k], v) for k, v in donor.state_dict().items())
    save_file(
        {k: v.clone() for k, v in weights.items() if "layer4" not in k}, str(tmp_path / "r.safetensors")
    )
    with pytest.raises(CheckpointError, match="of another trunk"):
        new_policy("act", FEATURES, STATS, TINY, backbone_weights=tmp_path / "r.safetensors")


def test_imagenet_weights_that_cannot_be_had_are_announced(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *a, **k: (_ for _ in ()).throw(OSError("offline"))
    )
    said: list[str] = []
    settings = {**TINY, "pretrained_backbone_weights": ActConfig.pretrained_backbone_weights}
    new_policy("act", FEATURES, STATS, settings, say=said.append)
    assert "RANDOM" in said[0]
    assert "ResNet18_Weights.IMAGENET1K_V1" in said[0]


MEASURE = """
import resource, sys
from edgevla.train.checkpoint import load_policy
import edgevla.train.policies.act
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
policy = load_policy(sys.argv[1])
sum(float(p.sum()) for p in policy.parameters())     # touches every page
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("is_mapped", [True, False])
def test_loading_takes_at_most_1_3_times_the_file(tmp_path, is_mapped):
    """Mapped weights count once. Small files are copied out of the map page by page, so they may count twice."""
    policy = fresh(dim_model=512, n_heads=8, dim_feedforward=24_000, n_encoder_layers=4)
    folder = save_policy(policy, tmp_path / "policy")
    size = (folder / "model.safetensors").stat().st_size
    assert size > 400e6
    code = MEASURE
    if is_mapped:
        code = MEASURE.replace(
            "import edgevla.train.policies.act", "import edgevla.train.checkpoint as c; c.MAPPED_BYTES = 0"
        )
    out = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=200, check=True
    )
    grown = int(out.stdout) * 1024
    assert grown < (1.3 if is_mapped else 2.2) * size, f"{grown / size:.2f} times the file"


def test_two_different_statistics_among_old_weights_are_refused_by_name():
    config = fresh().config
    weights = {
        "normalize_targets.buffer_action.mean": torch.zeros(config.action_dim),
        "unnormalize_outputs.buffer_action.mean": torch.zeros(config.action_dim),
    }
    assert set(split_legacy(weights, config)[1]["action"]) == {"mean"}
    weights["unnormalize_outputs.buffer_action.mean"] += 1
    with pytest.raises(CheckpointError, match="two different statistics 'mean'"):
        split_legacy(weights, config)

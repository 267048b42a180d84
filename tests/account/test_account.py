"""Nothing that a checkpoint says passes unread: it is computed, on a list, or refused by name, by one function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from account_kit import (
    GOLDENS,
    NORMALIZER,
    POLICIES,
    POST,
    PRE,
    UNNORMALIZER,
    checkpoint,
    edit,
    edit_statistics,
    edit_step,
    step,
)
from safetensors.numpy import load_file, save_file

from edgevla.cli import main
from edgevla.errors import CheckpointError
from edgevla.export.build import export_checkpoint
from edgevla.export.options import ExportOptions
from edgevla.train.account import account_of
from edgevla.train.policies.checkpoints import PIPELINES
from edgevla.train.steps import draw


def problems(folder: Path, *, with_weights: bool = False) -> str:
    return " | ".join(account_of(folder, with_weights=with_weights).problems)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_recorded_checkpoint_is_accounted_for_to_the_last_key(policy: str) -> None:
    account = account_of(GOLDENS / policy / "checkpoint")
    assert account.problems == account.notes == []
    config = json.loads((GOLDENS / policy / "checkpoint/config.json").read_text())
    assert {e.name for e in account.entries if e.where == "config.json"} == set(config) - {"type"}
    steps = [
        s["registry_name"]
        for file in (PRE, POST)
        for s in json.loads((GOLDENS / policy / "checkpoint" / file).read_text())["steps"]
    ]
    assert [e.name for e in account.entries if " step " in e.where and "." not in e.name] == steps


def test_the_documents_table_is_the_programs() -> None:
    docs = Path(__file__).parents[2] / "docs" / "pipelines.md"
    assert draw() in docs.read_text(encoding="utf-8"), "write train.steps.draw() into docs/pipelines.md"


# -- D1: steps ------------------------------------------------------------------------------------------------


def _rename(name: dict[str, str], file: str) -> Callable[[str, Path], str]:
    def tamper(policy: str, folder: Path) -> str:
        edit(folder, file, lambda d: step(d, name[policy]).update(registry_name=f"{name[policy]}_v9"))
        return f"'{name[policy]}_v9'"

    return tamper


def _add(file: str, entry: dict[str, object], where: int) -> Callable[[str, Path], str]:
    def tamper(policy: str, folder: Path) -> str:
        edit(folder, file, lambda d: d["steps"].insert(where, dict(entry)))
        return str(entry.get("registry_name") or "is the class None")

    return tamper


def _relative(policy: str, folder: Path) -> str:
    edit(
        folder,
        PRE,
        lambda d: d["steps"].insert(
            2, {"registry_name": "relative_actions_processor", "config": {"enabled": True}}
        ),
    )
    edit(
        folder,
        POST,
        lambda d: d["steps"].insert(
            1, {"registry_name": "absolute_actions_processor", "config": {"enabled": True}}
        ),
    )
    return "relative_actions_processor"


def _twice(policy: str, folder: Path) -> str:
    edit(folder, PRE, lambda d: d["steps"].append(step(d, NORMALIZER[policy])))
    return "2 times"


def _unknown_setting(policy: str, folder: Path) -> str:
    edit_step(folder, POST, UNNORMALIZER[policy], gain=2.0)
    return "gain = 2.0"


def _disabled(policy: str, folder: Path) -> str:
    edit(folder, POST, lambda d: step(d, UNNORMALIZER[policy]).update(enabled=False))
    return "enabled = False beside its settings"


def _top_level(policy: str, folder: Path) -> str:
    edit(folder, PRE, lambda d: d.update(scale=2))
    return "the key 'scale'"


def _exchanged(policy: str, folder: Path) -> str:
    edit(folder, PRE, lambda d: d.update(name="policy_postprocessor"))
    return "exchanged"


def _half(policy: str, folder: Path) -> str:
    edit_step(folder, PRE, "device_processor", float_dtype="bfloat16")
    return "float_dtype"


def _class(policy: str, folder: Path) -> str:
    def change(data: dict[str, list[dict[str, str]]]) -> None:
        entry = step(data, NORMALIZER[policy])
        entry["class"] = "lerobot.processor.NormalizerProcessorStep"
        del entry["registry_name"]

    edit(folder, PRE, change)
    return "NormalizerProcessorStep"


def _state_elsewhere(policy: str, folder: Path) -> str:
    save_file({"scale": np.ones(1, np.float32)}, folder / "scale.safetensors")
    edit(folder, PRE, lambda d: step(d, "to_batch_processor").update(state_file="scale.safetensors"))
    return "has tensors (scale.safetensors)"


def _odd_tensor(policy: str, folder: Path) -> str:
    edit_statistics(
        folder, POST, UNNORMALIZER[policy], lambda t: t.update({"action.gain": np.ones(6, np.float32)})
    )
    return "action.gain"


def _late_rename(policy: str, folder: Path) -> str:
    edit(folder, PRE, lambda d: d["steps"].append(d["steps"].pop(0)))
    return "before 'rename_observations_processor'"


TAMPERED: dict[str, Callable[[str, Path], str]] = {
    "normaliser under another name": _rename(NORMALIZER, PRE),
    "unnormaliser under another name": _rename(UNNORMALIZER, POST),
    "a scaling step": _add(PRE, {"registry_name": "scale_state_processor", "config": {"by": 2}}, 2),
    "a step of language supervision": _add(
        PRE, {"registry_name": "render_messages_processor", "config": {}}, 2
    ),
    "another policy's post step": _add(POST, {"registry_name": "some_action_decode", "config": {}}, 1),
    "a step by its class": _class,
    "a step without a name": _add(POST, {"config": {}}, 0),
    "a step twice": _twice,
    "an unknown setting": _unknown_setting,
    "a step switched off": _disabled,
    "an unknown key of the file": _top_level,
    "files exchanged": _exchanged,
    "floats cut to half": _half,
    "tensors of a step that has none": _state_elsewhere,
    "a tensor that is no statistic": _odd_tensor,
    "renamed after it was read": _late_rename,
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("how", TAMPERED)
def test_a_tampered_pipeline_is_refused_by_name(policy: str, how: str, tmp_path: Path) -> None:
    folder = checkpoint(policy, tmp_path)
    named = TAMPERED[how](policy, folder)
    assert named in problems(folder)


@pytest.mark.parametrize("policy", ["act", "diffusion", "xvla", "groot"])
def test_relative_actions_are_refused_where_they_are_not_computed(policy: str, tmp_path: Path) -> None:
    folder = checkpoint(policy, tmp_path)
    _relative(policy, folder)
    assert (
        f"'relative_actions_processor' makes actions relative to the state, which is not computed for {policy}"
        in (problems(folder))
    )


@pytest.mark.parametrize(
    ("policy", "name"), [("pi0", "delta_actions_processor"), ("pi05", "delta_actions_processor")]
)
def test_half_of_relative_actions_is_refused(policy: str, name: str, tmp_path: Path) -> None:
    folder = checkpoint(policy, tmp_path)
    edit_step(folder, PRE, name, enabled=True)
    assert "'relative_actions_processor' is on and 'absolute_actions_processor' is off" in problems(folder)
    edit(folder, POST, lambda d: d["steps"].pop(1))
    assert "'absolute_actions_processor' is not there" in problems(folder)
    other = checkpoint(policy, tmp_path / "other")
    edit_step(other, POST, "absolute_actions_processor", enabled=True)
    assert "'absolute_actions_processor' is on and 'relative_actions_processor' is off" in problems(other)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_three_verbs_ask_the_same_function(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(policy, tmp_path)
    named = _rename(UNNORMALIZER, POST)(policy, folder)
    assert main(["inspect", str(folder)]) == 1
    assert f"not sound: {POST}: step 0 {named}" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=named):
        export_checkpoint(folder, tmp_path / "bundle", ExportOptions(fps=30, joint_units="raw"))
    assert not (tmp_path / "bundle").exists()
    dataset = GOLDENS.parent / "datasets" / "so101_v30"
    argv = [
        "train",
        "--policy",
        policy,
        "--from",
        str(folder),
        "--dataset",
        str(dataset),
        "--output",
        str(tmp_path / "r"),
    ]
    assert main([*argv, "--steps", "1"]) == 1
    assert named in capsys.readouterr().err


def test_a_mode_that_only_one_half_has_is_refused(tmp_path: Path) -> None:
    folder = checkpoint("act", tmp_path)
    edit_step(folder, POST, "unnormalizer_processor", norm_map={"ACTION": "MIN_MAX"})
    assert "normalised by MEAN_STD in the pre-processor and un-normalised by MIN_MAX" in problems(folder)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"eps": 0}, "above 0"),
        ({"norm_map": {"STATE": "ROBUST"}}, "'ROBUST' is unknown"),
        ({"normalize_observation_keys": "observation.state"}, "list"),
        ({"features": {"observation.state": {"type": "ACTION", "shape": [6]}}}, "has type 'ACTION' there"),
    ],
)
def test_a_value_that_cannot_be_computed_is_refused(
    tmp_path: Path, settings: dict[str, object], why: str
) -> None:
    folder = checkpoint("act", tmp_path)
    edit_step(folder, PRE, "normalizer_processor", **settings)
    assert why in problems(folder)


@pytest.mark.parametrize(
    ("policy", "name", "settings"),
    [
        ("smolvla", "tokenizer_processor", {"task_key": "subtask"}),
        ("pi0", "tokenizer_processor", {"padding": "do_not_pad"}),
        ("xvla", "tokenizer_processor", {"truncation": False}),
        ("pi05", "pi05_prepare_state_tokenizer_processor_step", {"task_key": "subtask"}),
        ("groot", "groot_pack_inputs_v3", {"state_horizon": 2}),
        ("groot", "groot_pack_inputs_v3", {"action_horizon": 4}),
        ("groot", "groot_pack_inputs_v3", {"max_state_dim": 64}),
        ("groot", "groot_pack_inputs_v3", {"normalize_min_max": False}),
        ("act", "rename_observations_processor", {"rename_map": {"observation.state": "observation.other"}}),
        (
            "act",
            "rename_observations_processor",
            {"rename_map": {"observation.images.front": "observation.images.x"}},
        ),
    ],
)
def test_a_setting_that_would_change_numbers_is_refused(
    policy: str, name: str, settings: dict[str, object], tmp_path: Path
) -> None:
    folder = checkpoint(policy, tmp_path)
    edit_step(folder, PRE, name, **settings)
    assert next(iter(settings)) in problems(folder)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_step_that_is_needed_is_missed(policy: str, tmp_path: Path) -> None:
    for needed in PIPELINES[policy].needs:
        folder = checkpoint(policy, tmp_path / needed)
        for file in (PRE, POST):
            edit(
                folder,
                file,
                lambda d, n=needed: d.update(steps=[s for s in d["steps"] if n not in _names(s)]),
            )
        assert f"lacks the step '{needed}'" in problems(folder)


def _names(entry: dict[str, str]) -> tuple[str, ...]:
    newline = ("smolvla_new_line_processor", "pi0_new_line_processor")
    name = entry["registry_name"]
    return newline if name in newline else (name,)


# -- D2: statistics -------------------------------------------------------------------------------------------


def test_a_folder_without_pipelines_is_refused_where_something_is_normalised(tmp_path: Path) -> None:
    folder = checkpoint("act", tmp_path)
    for file in (PRE, POST):
        (folder / file).unlink()
    assert "config.json normalises VISUAL MEAN_STD, STATE MEAN_STD, ACTION MEAN_STD" in problems(folder)
    account_of(folder, with_weights=False).require(
        for_training=True
    )  # --from brings the dataset's statistics
    edit(folder, "config.json", lambda d: d.update(normalization_mapping={"STATE": "IDENTITY"}))
    assert problems(folder) == ""
    half = checkpoint("act", tmp_path / "half")
    (half / POST).unlink()
    assert f"lacks {POST}" in problems(half)


@pytest.mark.parametrize("policy", ["xvla", "groot", "pi05"])
def test_a_policy_that_always_had_pipelines_is_refused_without(policy: str, tmp_path: Path) -> None:
    folder = checkpoint(policy, tmp_path)
    for file in (PRE, POST):
        (folder / file).unlink()
    with pytest.raises(CheckpointError, match=r"lacks policy_preprocessor\.json"):
        account_of(folder, with_weights=False).require(for_training=True)


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "xvla"])  # recorded with IDENTITY
def test_a_statistic_that_is_used_must_be_there_and_be_numbers(policy: str, tmp_path: Path) -> None:
    one = {"act": "std", "smolvla": "std", "pi0": "std", "pi05": "q99"}.get(policy, "max")
    for file, name in ((PRE, NORMALIZER[policy]), (POST, UNNORMALIZER[policy])):
        for what, change in (
            (f"its '{one}'", lambda t: t.pop(f"action.{one}")),
            ("has shape [2]", lambda t: t.update({f"action.{one}": np.ones(2, np.float32)})),
            ("not finite", lambda t: t[f"action.{one}"].__setitem__(0, np.nan)),
            ("no statistics of it", lambda t: [t.pop(k) for k in list(t) if k.startswith("action.")]),
        ):
            folder = checkpoint(policy, tmp_path / f"{file}-{what.split()[1]}")
            edit_statistics(folder, file, name, change)
            assert what in problems(folder)
            assert account_of(folder, with_weights=False).require(for_training=True)


def test_statistics_kept_by_dataset_are_named_where_the_policys_are_missing(tmp_path: Path) -> None:
    """As the published base of SmolVLA has them."""
    folder = checkpoint("smolvla", tmp_path)
    edit_statistics(
        folder,
        POST,
        "unnormalizer_processor",
        lambda t: [
            t.update({f"so100.buffer.{k}": t.pop(k)}) for k in [k for k in t if k.startswith("action.")]
        ],
    )
    assert "no statistics of it, only 'so100.buffer.action', other datasets'" in problems(folder)
    assert account_of(folder, with_weights=False).require(for_training=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t["action.std"].__imul__(-1),
            "its 'std' in policy_preprocessor.json, step 'normalizer_processor' is neg",
        ),
        (lambda t: t["action.std"].__imul__(0), "is 0 where the minimum and the maximum differ"),
    ],
)
def test_a_deviation_that_no_data_have_is_refused(
    change: Callable[[dict[str, np.ndarray]], object], said: str, tmp_path: Path
) -> None:
    folder = checkpoint("act", tmp_path)
    edit_statistics(folder, PRE, "normalizer_processor", change)
    assert said in problems(folder)


def test_a_range_that_is_turned_round_is_refused(tmp_path: Path) -> None:
    folder = checkpoint("pi05", tmp_path)
    edit_statistics(folder, PRE, "normalizer_processor", lambda t: t["action.q99"].__isub__(1e4))
    assert "is below its 'q01'" in problems(folder)


def test_a_statistic_that_nothing_uses_may_be_anything(tmp_path: Path) -> None:
    folder = checkpoint("act", tmp_path)
    edit_statistics(
        folder,
        PRE,
        "normalizer_processor",
        lambda t: t.update({"timestamp.mean": np.full(1, np.nan, np.float32)}),
    )
    assert problems(folder) == ""


def test_a_feature_that_the_normaliser_does_not_list_is_refused(tmp_path: Path) -> None:
    folder = checkpoint("act", tmp_path)
    edit(
        folder, PRE, lambda d: step(d, "normalizer_processor")["config"]["features"].pop("observation.state")
    )
    assert "does not list 'observation.state'" in problems(folder)


def test_what_a_person_should_know_is_noted(tmp_path: Path) -> None:
    folder = checkpoint("act", tmp_path)
    edit_statistics(folder, POST, "unnormalizer_processor", lambda t: t["action.mean"].__iadd__(1))
    edit(folder, "config.json", lambda d: d["normalization_mapping"].update(STATE="MIN_MAX"))
    edit(
        folder,
        "config.json",
        lambda d: d["input_features"].update({"observation.velocity": {"type": "STATE", "shape": [6]}}),
    )
    account = account_of(folder, with_weights=False)
    said = " | ".join(account.notes)
    assert account.problems == []
    assert "the action's 'mean' differs between the two pipelines" in said
    assert "STATE: normalizer_processor says MEAN_STD, config.json MIN_MAX" in said
    assert "'observation.velocity': no input of this policy" in said


# -- D3, D4, config -------------------------------------------------------------------------------------------


def test_a_key_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    folder = checkpoint("act", tmp_path)
    edit(folder, "config.json", lambda d: d.update(dim_modell=64, optimizer_fused=True))
    assert problems(folder).startswith(
        "config.json (act): the key 'dim_modell' = 64 is unknown here, did you mean"
    ) or ("the key 'dim_modell' = 64 is unknown here" in problems(folder))
    assert "optimizer_fused" not in problems(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda d: d["input_features"]["observation.state"].update(scale=57.3),
            "feature 'observation.state' says scale = 57.3, which is unknown",
        ),
        (lambda d: d["normalization_mapping"].update(FORCE="MEAN_STD"), "says FORCE = 'MEAN_STD'"),
        (lambda d: d["normalization_mapping"].update(STATE="mean_std"), "says STATE = 'mean_std'"),
    ],
)
def test_a_key_further_inside_that_nobody_reads_is_refused(
    change: Callable[..., object], said: str, tmp_path: Path
) -> None:
    folder = checkpoint("act", tmp_path)
    edit(folder, "config.json", change)
    assert said in problems(folder)


def test_quantised_weights_are_not_taken_for_numbers(tmp_path: Path) -> None:
    folder = checkpoint("act", tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = "model.action_head.weight"
    (folder / "model.safetensors").unlink()
    save_file({**weights, name: weights[name].astype(np.int8)}, folder / "model.safetensors")
    assert f"quantised ({name} is I8)" in problems(folder, with_weights=True)


def test_a_delay_that_pi05_was_trained_for_is_kept_and_said(tmp_path: Path) -> None:
    from edgevla.train.checkpoint import load_policy, save_policy

    folder = checkpoint("pi05", tmp_path)
    newer = {
        "rtc_training_max_delay": 7,
        "use_visual_memory": False,
        "use_proprioceptive_memory": False,
        "memory_frames": 6,
        "memory_stride": 30,
        "memory_temporal_attention_every": 4,
    }
    edit(folder, "config.json", lambda d: d.update(newer))
    account = account_of(folder, with_weights=False)
    assert account.problems == []
    assert [e.verdict for e in account.entries if e.name == "rtc_training_max_delay"] == ["used"]
    saved = json.loads((save_policy(load_policy(folder), tmp_path / "saved") / "config.json").read_text())
    assert {k: saved[k] for k in newer} == newer
    edit(folder, "config.json", lambda d: d.update(use_visual_memory=True))
    assert "use_visual_memory is True" in problems(folder)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (PRE, lambda d: step(d, "groot_pack_inputs_v3").update(registry_name="groot_n1_7_pack_inputs_v1")),
        (PRE, lambda d: step(d, "groot_eagle_encode_v3").update(registry_name="groot_n1_7_vlm_encode_v1")),
        (POST, lambda d: d["steps"][0].update(registry_name="groot_action_unpack_unnormalize_v2")),
        ("config.json", lambda d: d.update(model_version="n1.7")),
        ("config.json", lambda d: d.update(base_model_path="nvidia/GR00T-N1.7-3B")),
        ("config.json", lambda d: d.update(n1_7_backbone_model="nvidia/Cosmos-Reason2-2B")),
    ],
)
def test_n17_is_refused_as_n17(tmp_path: Path, file: str, change: Callable[..., object]) -> None:
    folder = checkpoint("groot", tmp_path)
    edit(folder, file, change)
    assert "this is GR00T N1.7" in problems(folder)


def test_depth_is_no_rgb_camera(tmp_path: Path) -> None:
    folder = checkpoint("smolvla", tmp_path)
    edit(
        folder,
        "config.json",
        lambda d: d["input_features"]["observation.images.top"].update(shape=[1, 48, 64]),
    )
    assert "camera 'observation.images.top' has 1 channels" in problems(folder)


# -- D20: weights ---------------------------------------------------------------------------------------------


def weights_of(policy: str) -> dict[str, np.ndarray]:
    return load_file(GOLDENS / policy / "checkpoint" / "model.safetensors")


def write_shards(folder: Path, weights: dict[str, np.ndarray]) -> None:
    """Two shards and their index in place of the one file."""
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    placed = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file({n: weights[n] for n in part}, folder / file)
        placed |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def test_shards_are_read_as_one_file(tmp_path: Path) -> None:
    import torch

    from edgevla.train.checkpoint import load_policy

    folder = checkpoint("act", tmp_path)
    write_shards(folder, weights_of("act"))
    assert problems(folder, with_weights=True) == ""
    whole, parts = load_policy(GOLDENS / "act/checkpoint").state_dict(), load_policy(folder).state_dict()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert main(["inspect", str(folder)]) == 0
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "lists model-00002-of-00002.safetensors, which" in problems(folder, with_weights=True)


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def _pointer(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n"
    )


def _prefixed(prefix: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        save_file({prefix + k: v for k, v in weights_of("act").items()}, folder / "model.safetensors")

    return change


def _nan(folder: Path) -> None:
    weights = weights_of("act")
    weights["model.action_head.bias"][1] = np.nan
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors")


def _distributed(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "__0_0.distcp").write_bytes(b"x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_pickle, "holds its weights as pytorch_model.bin, a pickle"),
        (_pointer, "is a Git LFS pointer, not the weights"),
        (_prefixed("_orig_mod."), "saved from inside torch.compile"),
        (_prefixed("module."), "saved from inside data-parallel training"),
        (_nan, "hold values that are not finite, in model.action_head.bias"),
        (_distributed, "holds only a distributed checkpoint"),
    ],
)
def test_what_lies_there_instead_of_weights_has_its_own_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None], words: str
) -> None:
    folder = checkpoint("act", tmp_path)
    change(folder)
    assert words in problems(folder, with_weights=True)
    assert main(["inspect", str(folder)]) == 1
    said = capsys.readouterr()
    assert words in said.out + said.err
    with pytest.raises(CheckpointError, match=words.split(",")[0]):
        export_checkpoint(folder, tmp_path / "bundle", ExportOptions(fps=30, joint_units="raw"))


def test_a_folder_of_a_sharded_run_alone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c" / "dcp").mkdir(parents=True)
    (tmp_path / "c" / "dcp" / "__0_0.distcp").write_bytes(b"x")
    assert main(["inspect", str(tmp_path / "c")]) == 1
    assert "holds only a distributed checkpoint" in capsys.readouterr().err


def test_an_average_beside_the_weights_is_said(tmp_path: Path) -> None:
    folder = checkpoint("act", tmp_path)
    save_file({"x": np.ones(1, np.float32)}, folder / "ema_model.safetensors")
    account = account_of(folder)
    assert account.problems == []
    assert "ema_model.safetensors beside the weights is not read" in account.notes[0]

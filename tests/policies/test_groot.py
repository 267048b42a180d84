"""GR00T N1.5: what docs/policies.md#gr00t-n15 says, on the recorded tiny checkpoint and on hand-made numbers."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgevla.errors import BundleError, CheckpointError
from edgevla.train.checkpoint import load_policy, save_policy
from edgevla.train.nn.dit import angles
from edgevla.train.nn.resize import byte_resize_matrix, resize_bytes
from edgevla.train.policies.config import PolicyFeature
from edgevla.train.policies.groot import N_TEXT_TOKENS, Groot, MinMax
from edgevla.train.policies.groot_config import GrootConfig
from edgevla.train.tiny import write_tiny_backbone

GOLDEN = Path(__file__).parents[1] / "fixtures" / "goldens" / "groot" / "checkpoint"
CAMERAS = ("observation.images.front", "observation.images.wrist")


@pytest.fixture
def policy() -> Groot:
    torch.manual_seed(0)
    loaded = load_policy(GOLDEN)
    assert isinstance(loaded, Groot)
    return loaded


def frames(n: int = 1, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {c: torch.randint(0, 256, (n, 36, 48, 3), generator=generator, dtype=torch.uint8) for c in CAMERAS}


def observation(policy: Groot, task: str = "pick the cube", seed: int = 0) -> dict[str, Tensor]:
    prompt = policy.prompt_builder().build([task])
    horizon, _ = policy.sample_shape
    return {
        **{f"camera:{name}": image for name, image in frames(seed=seed).items()},
        "prompt:tokens": torch.from_numpy(prompt.tokens),
        "prompt:mask": torch.from_numpy(prompt.mask),
        "state": torch.randn(1, 6, generator=torch.Generator().manual_seed(seed)),
        "rtc:committed": torch.randn(1, horizon, 6, generator=torch.Generator().manual_seed(9)),
        "rtc:weights": torch.zeros(1, horizon),
        "rtc:max_guidance": torch.full((1,), 10.0),
    }


def batch(policy: Groot, n: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    prompt = policy.prompt_builder().build(["pick the cube", "close the drawer now"][:n])
    horizon, _ = policy.sample_shape
    return {
        **frames(n),
        "observation.state": torch.randn(n, 6, generator=generator),
        "action": torch.randn(n, horizon, 6, generator=generator),
        "action_is_pad": torch.zeros(n, horizon, dtype=torch.bool),
        "tokens": torch.from_numpy(prompt.tokens),
        "token_mask": torch.from_numpy(prompt.mask),
    }


def test_both_time_embeddings_have_the_published_values() -> None:
    step = torch.tensor([250])
    time, action = angles(step, 128, 127)[0], angles(step, 768, 768)[0]
    cos_sin = torch.cat([time.cos(), time.sin()])
    sin_cos = torch.cat([action.sin(), action.cos()])
    expected = {0: 0.240988, 1: 0.999443, 127: 0.999687, 128: -0.970528, 129: 0.033368, 255: 0.024997}
    assert {i: float(cos_sin[i]) for i in expected} == pytest.approx(expected, abs=2e-5)
    expected = {0: -0.970528, 1: 0.919206, 767: 0.025299, 768: 0.240988, 769: -0.393777, 1535: 0.99968}
    assert {i: float(sin_cos[i]) for i in expected} == pytest.approx(expected, abs=2e-5)


def test_min_max_maps_constants_to_zero_and_back() -> None:
    stats = {"min": np.array([-2.0, 5.0], np.float32), "max": np.array([4.0, 5.0], np.float32)}
    scale = MinMax(stats, 2)
    x = torch.tensor([[-2.0, 5.0], [1.0, 5.0], [4.0, 5.0], [10.0, 5.0]])
    assert scale(x).tolist() == [[-1, 0], [0, 0], [1, 0], [3, 0]]
    torch.testing.assert_close(scale.inverse(scale(x)), x)
    assert MinMax(None, 2)(x).equal(x)


def test_the_pack_step_s_statistics_are_the_checkpoint_s(policy: Groot) -> None:
    """The export's tolerances are shares of these ranges."""
    assert {"min", "max"} <= set(policy.processors.stats["action"])


@pytest.mark.parametrize("size", [(36, 48), (480, 640), (1080, 1920)])
def test_bytes_are_resized_as_bytes(size: tuple[int, int]) -> None:
    """Bicubic, antialiased, in whole grey levels: torch's own byte kernel exactly, whatever the order of a sum is."""
    image = torch.randint(
        0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    expected = torch.nn.functional.interpolate(image, size=(56, 56), mode="bicubic", antialias=True).float()
    rows, columns = (byte_resize_matrix(n, 56) for n in size)
    assert resize_bytes(image.float(), rows, columns).equal(expected)
    assert resize_bytes(image.float().flip(-1), rows, columns.flip(-1)).equal(expected)


def test_euler_steps_of_the_exact_velocity_end_at_the_action(
    policy: Groot, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise, action = torch.randn(1, *policy.sample_shape), torch.randn(1, *policy.sample_shape)
    monkeypatch.setattr(policy, "predict", lambda *_: action - noise)
    x = noise
    for tau, tau_next in pairwise(policy.schedule.taus()):
        x = policy.denoise({}, x, torch.full((1,), tau), torch.full((1,), tau_next), {})
    torch.testing.assert_close(x, action, atol=1e-6, rtol=1e-5)


def test_padding_on_the_right_equals_no_padding(policy: Groot) -> None:
    """The reference has no masks and no padding; masked right padding gives the same context."""
    values = observation(policy)
    n_real = int(values["prompt:mask"].sum())
    assert n_real < values["prompt:mask"].shape[1]
    short = {
        **values,
        "prompt:tokens": values["prompt:tokens"][:, :n_real],
        "prompt:mask": values["prompt:mask"][:, :n_real],
    }
    noise, tau = torch.randn(1, *policy.sample_shape), torch.full((1,), 0.25)
    padded, unpadded = (policy.predict(policy.encode(v), noise, tau, {}) for v in (values, short))
    torch.testing.assert_close(padded, unpadded, atol=2e-6, rtol=1e-5)


def test_cameras_go_in_alphabetical_order(policy: Groot) -> None:
    assert list(policy.config.image_features) != policy.live_cameras
    assert policy.live_cameras == sorted(policy.live_cameras)
    assert [s.name for s in policy.graphs()["encode"].inputs[:2]] == ["front", "wrist"]


@pytest.mark.parametrize(
    ("task", "quoted"), [("pick it up", "['pick it up']"), ("pick Bob's cup", '["pick Bob\'s cup"]')]
)
def test_the_instruction_is_quoted_like_a_python_list(policy: Groot, task: str, quoted: str) -> None:
    assert policy.prompt_builder().text(task).endswith(f"{quoted}<|im_end|>\n<|im_start|>assistant\n")


def test_a_prompt_that_does_not_fit_is_refused_with_its_length(policy: Groot) -> None:
    with pytest.raises(BundleError, match=r"the prompt has \d+ tokens"):
        policy.prompt_builder().build(["word " * (N_TEXT_TOKENS + 10)])


def test_each_sample_of_a_batch_has_its_own_prompt(policy: Groot) -> None:
    data = batch(policy)
    pixels = [policy.pixels(data[c]) for c in policy.live_cameras]
    both = policy.context(pixels, data["tokens"], data["token_mask"], data["observation.state"])
    for i in range(2):
        alone = policy.context(
            [p[i : i + 1] for p in pixels],
            data["tokens"][i : i + 1],
            data["token_mask"][i : i + 1],
            data["observation.state"][i : i + 1],
        )
        real = data["token_mask"][i]
        torch.testing.assert_close(
            both["cross_kv"][:, :, i][..., real, :],
            alone["cross_kv"][:, :, 0][..., real, :],
            atol=1e-5,
            rtol=1e-4,
        )


def test_baking_an_embodiment_changes_no_number(policy: Groot) -> None:
    values, noise = observation(policy), torch.randn(1, *policy.sample_shape)
    before = policy.sample([values], noise=noise)
    policy.bake()
    torch.testing.assert_close(policy.sample([values], noise=noise), before)


def test_guidance_pulls_towards_what_was_committed_and_zero_is_the_plain_step(policy: Groot) -> None:
    values, noise = observation(policy), torch.randn(1, *policy.sample_shape)
    context = policy.encode(values)
    tau, tau_next = torch.zeros(1), torch.full((1,), 0.25)
    rtc = {k: v for k, v in values.items() if k.startswith("rtc:")}
    plain = policy.denoise(context, noise, tau, tau_next, {})
    assert torch.equal(plain, policy.denoise(context, noise, tau, tau_next, rtc))
    wanted = policy.committed(values["rtc:committed"])

    @torch.no_grad()
    def distance(weights: Tensor) -> float:
        x = policy.sampler().solve(context, {**values, "rtc:weights": weights}, noise=noise)
        return float((x[..., :6] - wanted).abs().mean())

    assert distance(torch.ones(1, policy.sample_shape[0])) < 0.5 * distance(
        torch.zeros(1, policy.sample_shape[0])
    )


def test_padded_dimensions_do_not_teach(policy: Groot) -> None:
    data, draws = batch(policy), policy.draw(batch(policy), torch.Generator().manual_seed(0))
    before, _ = policy.loss(data, draws)
    with torch.no_grad():
        policy.action_head.action_decoder.layer2.b[:, 6:] += 1.0
    after, _ = policy.loss(data, draws)
    assert torch.equal(before, after)


def test_sampled_times_are_dense_near_noise(policy: Groot) -> None:
    many = {"action": torch.zeros(20000, 1, 6)}
    time = policy.draw(many, torch.Generator().manual_seed(0))["time"]
    assert time.min() >= -0.0011
    assert time.max() <= 1
    assert float(time.mean()) == pytest.approx(0.3994, abs=0.01)


def test_unused_weights_are_kept_for_the_reference(policy: Groot, tmp_path: Path) -> None:
    """Published files hold a pooling head and an untied output head; saving gives them back."""
    folder = tmp_path / "published"
    shutil.copytree(GOLDEN, folder)
    weights = load_file(str(folder / "model.safetensors"))
    prefix = "_groot_model.backbone.eagle_model."
    table = weights.pop(f"{prefix}language_model.lm_head.weight")
    weights[f"{prefix}language_model.model.embed_tokens.weight"] = table
    weights[f"{prefix}language_model.lm_head.weight"] = table + 1
    weights[f"{prefix}vision_model.vision_model.head.probe"] = torch.ones(1, 1, 24)
    weights[f"{prefix}vision_model.vision_model.head.mlp.fc1.weight"] = torch.ones(40, 24)
    save_file(weights, str(folder / "model.safetensors"))
    saved = load_file(str(save_policy(load_policy(folder), tmp_path / "saved") / "model.safetensors"))
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[k], weights[k]) for k in weights)


@pytest.mark.parametrize("flag", ["tune_llm", "tune_visual"])
def test_unused_weights_follow_the_part_that_they_belong_to(flag: str, tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    shutil.copytree(GOLDEN, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "tune_llm": False, "tune_visual": False, flag: True})
    )
    weights = load_file(str(folder / "model.safetensors"))
    prefix = "backbone.eagle_model."
    heads = {"tune_visual": f"{prefix}vision_model.vision_model.head.probe"}
    heads["tune_llm"] = f"{prefix}language_model.lm_head.weight"
    table = weights[f"_groot_model.{heads['tune_llm']}"]
    weights[f"_groot_model.{prefix}language_model.model.embed_tokens.weight"] = table + 1  # so it is not tied
    weights[f"_groot_model.{heads['tune_visual']}"] = torch.ones(1, 1, 24)
    save_file(weights, str(folder / "model.safetensors"))
    named = dict(load_policy(folder).named_parameters())
    assert {name: named[head].requires_grad for name, head in heads.items()} == {n: n == flag for n in heads}


def test_a_projection_behind_the_language_model(policy: Groot, tmp_path: Path) -> None:
    """`project_to_dim` of the base model's config; the identity as its matrix changes nothing."""
    folder = tmp_path / "projected"
    shutil.copytree(GOLDEN, folder)
    config = json.loads((folder / "groot_config/config.json").read_text())
    config["backbone_cfg"]["project_to_dim"] = 32
    (folder / "groot_config/config.json").write_text(json.dumps(config))
    weights = load_file(str(folder / "model.safetensors"))
    weights["_groot_model.backbone.eagle_linear.weight"] = torch.eye(32)
    weights["_groot_model.backbone.eagle_linear.bias"] = torch.zeros(32)
    save_file(weights, str(folder / "model.safetensors"))
    projected = load_policy(folder)
    values, noise = observation(policy), torch.randn(1, *policy.sample_shape)
    torch.testing.assert_close(projected.sample([values], noise=noise), policy.sample([values], noise=noise))
    with torch.no_grad():
        projected.backbone.eagle_linear.weight[0] += 1  # type: ignore[union-attr,index,operator]
    assert not torch.allclose(projected.sample([values], noise=noise), policy.sample([values], noise=noise))
    assert (
        load_file(str(save_policy(projected, tmp_path / "saved") / "model.safetensors")).keys()
        == weights.keys()
    )


def test_sizes_are_found_in_the_folders_that_the_config_names(policy: Groot, tmp_path: Path) -> None:
    """LeRobot's fine-tunes hold neither sizes nor tokenizer: they name the base model and its assets."""
    folder, base, assets = (tmp_path / n for n in ("tuned", "base", "assets"))
    shutil.copytree(GOLDEN, folder)
    (folder / "groot_config").rename(base)
    (folder / "tokenizer").rename(assets)
    (folder / "vlm_config/config.json").rename(assets / "config.json")
    config = json.loads((folder / "config.json").read_text())
    named = {"base_model_path": str(base), "tokenizer_assets_repo": str(assets)}
    (folder / "config.json").write_text(json.dumps({**config, **named}))
    loaded = load_policy(folder)
    assert isinstance(loaded, Groot)
    assert loaded.arch == policy.arch
    assert loaded.prompt_builder().text("go") == policy.prompt_builder().text("go")


def test_a_size_that_cannot_be_is_refused() -> None:
    with pytest.raises(CheckpointError, match="groot: n_action_steps is 0"):
        GrootConfig.from_json({"n_action_steps": 0})


def test_a_switch_that_makes_another_network_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "shuffled"
    shutil.copytree(GOLDEN, folder)
    config = json.loads((folder / "vlm_config/config.json").read_text())
    (folder / "vlm_config/config.json").write_text(json.dumps({**config, "use_pixel_shuffle": True}))
    with pytest.raises(CheckpointError, match="use_pixel_shuffle"):
        load_policy(folder)


def test_an_empty_task_is_the_references_default(policy: Groot) -> None:
    builder = policy.prompt_builder()
    assert "['Perform the task.']" in builder.text("")
    assert builder.text("") == builder.text("Perform the task.")


def test_it_starts_from_the_published_base_in_shards(policy: Groot, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    shutil.copytree(GOLDEN / "vlm_config", base / "vlm_config")
    shutil.copytree(GOLDEN / "tokenizer", base / "tokenizer")
    shutil.copy(GOLDEN / "groot_config/config.json", base / "config.json")
    weights = {
        k.removeprefix("_groot_model."): v for k, v in load_file(str(GOLDEN / "model.safetensors")).items()
    }
    names = sorted(weights)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({n: weights[n] for n in part}, str(base / file))
    index = {"weight_map": {n: file for file, part in halves.items() for n in part}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    processors = Groot.default_processors(policy.config, policy.processors.stats)
    fresh = Groot.from_backbone(base, policy.config, processors)
    again = load_policy(save_policy(fresh, tmp_path / "saved"))
    for name, tensor in policy.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_an_absent_camera_is_left_out_of_the_prompt(policy: Groot, tmp_path: Path) -> None:
    """As of a policy that never had it; only one that is left with no picture at all is refused."""
    folder = tmp_path / "one"
    shutil.copytree(GOLDEN, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["input_features"][CAMERAS[0]]
    (folder / "config.json").write_text(json.dumps(config))
    one = load_policy(folder)
    assert isinstance(one, Groot)
    policy.set_cameras({CAMERAS[1]: (36, 48)}, absent=[CAMERAS[0]])
    with torch.no_grad():
        found, expected = (p.encode(observation(p)) for p in (policy, one))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)
    assert policy.graphs() == one.graphs()
    with pytest.raises(CheckpointError, match="cannot do without any camera"):
        policy.set_cameras({}, absent=CAMERAS)


def test_it_overfits_one_batch(policy: Groot) -> None:
    policy.eval()
    data = batch(policy)
    draws = policy.draw(data, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(60):
        loss, _ = policy.loss(data, draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_a_tiny_base_hears_the_state_and_the_noisy_actions(tmp_path: Path) -> None:
    """The published start of the layers per body is made for 1536 inputs; of 64, positions would drown what they say."""
    torch.manual_seed(0)
    config = GrootConfig(
        input_features={
            **{c: PolicyFeature("VISUAL", (3, 36, 48)) for c in CAMERAS},
            "observation.state": PolicyFeature("STATE", (6,)),
        },
        output_features={"action": PolicyFeature("ACTION", (6,))},
    )
    base = write_tiny_backbone(tmp_path / "base", "eagle", depth=2)
    tiny = Groot.from_backbone(base, config, Groot.default_processors(config, {})).eval()
    seen, horizon = observation(tiny), tiny.sample_shape[0]
    noise = torch.randn(3, *tiny.sample_shape)
    context = tiny.encode({**seen, "state": torch.zeros(1, 6)})
    moved = tiny.encode({**seen, "state": torch.ones(1, 6)})
    v, other_state, other_noise = (
        tiny.predict(c, n[None], torch.full((1,), 0.5), {})[:, :horizon, :6]
        for c, n in ((context, noise[0]), (moved, noise[0]), (context, noise[1]))
    )
    assert (other_noise - v).norm() > 0.1 * v.norm()  # 0.002 with the published start
    assert (other_state - v).norm() > 0.01 * v.norm()  # 0.0035

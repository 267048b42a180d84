"""Real sizes: a VLA at its published dimensions with random weights, through every stage, with peak memory.

    python benchmarks/real_sizes.py smolvla                    # 450 M parameters, 1.8 GB of weights
    python benchmarks/real_sizes.py xvla                       # 880 M, 3.5 GB
    python benchmarks/real_sizes.py groot                      # 2.4 G without what nothing uses, 9.6 GB
    python benchmarks/real_sizes.py pi05 --dtype bfloat16      # 4 G parameters with both heads, 9 GB of weights

Every stage is a process of its own, so its peak is its own: build and save, load, run in torch, export with external
data, run the graphs in ONNX Runtime with mapped weights. Exit code 1 when loading needs more than 1.3 times the weight
file, exporting more than 2.5 times, or the graphs compute something else than torch. Not part of the test suite.
With --work it takes the machine's room where you say; needs about three times the weight file on disk.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgevla.train.policies.base import Policy

LOAD_LIMIT, EXPORT_LIMIT = 1.3, 2.5
MAX_ABS = {"float32": 1e-3, "bfloat16": 0.1}
"""What graphs (float32) and torch may differ by, in robot units of a spread of about 1; bfloat16 has 8 bits."""
PREPACKED_BYTES = 4 << 30
CAMERAS = ("observation.images.front", "observation.images.wrist")
SIZE = (480, 640)


def build(
    kind: str, folder: Path, dtype: str, other: Mapping[str, Any] | None = None, size: tuple[int, int] = SIZE
) -> dict[str, Any]:
    """Published dimensions, two cameras, six joints; weights uniform and small, norms about one: values stay finite.
    other: settings of the config in which it differs from what was published. size: of pictures, height and width.
    """
    import torch

    from edgevla.train.checkpoint import save_policy
    from edgevla.train.memory import without_init

    with without_init():
        policy = published(kind, folder.parent, dtype, other, size)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        bound = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.02
        parameter.data.uniform_(-bound, bound, generator=generator)
        if "norm" in name and name.endswith("weight") and parameter.ndim == 1:
            parameter.data.add_(1)
    save_policy(policy, folder)
    n = sum(p.numel() for p in policy.parameters())
    return {"parameters": n, "weight_bytes": (folder / "model.safetensors").stat().st_size}


def published(
    kind: str, scratch: Path, dtype: str, other: Mapping[str, Any] | None = None, size: tuple[int, int] = SIZE
) -> Policy:
    """The policy at its published dimensions before its weights are filled, with a byte tokenizer of its kind."""
    import numpy as np

    from edgevla.train.policies import policy_class
    from edgevla.train.policies.config import PolicyFeature
    from edgevla.train.tiny import BART, EAGLE, write_byte_tokenizer

    tokenizer = scratch / "tokenizer"
    special: dict[str, Any] = {
        "smolvla": {"adds_bos": False},
        "xvla": {"adds_bos": True, "adds_eos": True, "special": BART, "bos": "<s>", "eos": "</s>"},
        "groot": {"adds_bos": False, "special": EAGLE, "eos": "<|im_end|>", "pad": "<|endoftext|>"},
    }
    write_byte_tokenizer(tokenizer, **special.get(kind, {"adds_bos": True}))
    cls = policy_class(kind)
    features = {name: PolicyFeature("VISUAL", (3, *size)) for name in CAMERAS}
    features["observation.state"] = PolicyFeature("STATE", (6,))
    config = cls.Config(
        input_features=features,
        output_features={"action": PolicyFeature("ACTION", (6,))},
        **settings(kind, dtype),
        **(other or {}),
    )
    config.validate()
    six = {"mean": np.zeros(6), "std": np.ones(6), "q01": -np.ones(6), "q99": np.ones(6)}
    six |= {"min": -np.ones(6), "max": np.ones(6)}
    pixel = {"mean": np.full((3, 1, 1), 0.5), "std": np.full((3, 1, 1), 0.25)}
    pixel |= {"min": np.zeros((3, 1, 1)), "max": np.ones((3, 1, 1))}
    stats = {"observation.state": six, "action": six, **dict.fromkeys(CAMERAS, pixel)}
    processors = cls.default_processors(config, stats)
    if kind == "groot":
        from edgevla.train.policies.groot_config import PUBLISHED_VLM

        vlm = {**PUBLISHED_VLM, "image_token_index": EAGLE.index("<IMG_CONTEXT>")}
        (scratch / "vlm_config").mkdir()
        (scratch / "vlm_config/config.json").write_text(json.dumps(vlm))
        processors.folder = scratch
    policy = cls.build(config, processors)
    policy.extra_folders = {"tokenizer": tokenizer}
    return policy


def settings(kind: str, dtype: str) -> dict[str, Any]:
    """Where the published checkpoint differs from the config's defaults."""
    if kind == "smolvla":
        return {"pad_language_to": "max_length"}
    if kind in ("act", "diffusion"):
        return {"pretrained_backbone_weights": None}
    if kind == "groot":
        return {}
    if kind != "xvla":
        return {"dtype": dtype}
    vision = {
        "model_type": "davit",
        "patch_size": [7, 3, 3, 3],
        "patch_stride": [4, 2, 2, 2],
        "patch_padding": [3, 1, 1, 1],
        "patch_prenorm": [False, True, True, True],
        "dim_embed": [256, 512, 1024, 2048],
        "num_heads": [8, 16, 32, 64],
        "num_groups": [8, 16, 32, 64],
        "depths": [1, 1, 9, 1],
        "window_size": 12,
        "projection_dim": 1024,
        "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": 100},
        "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": 50},
        "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
    }
    text = {
        "model_type": "florence2_language",
        "vocab_size": 51289,
        "d_model": 1024,
        "encoder_layers": 12,
        "encoder_ffn_dim": 4096,
        "encoder_attention_heads": 16,
        "max_position_embeddings": 4096,
    }
    florence = {
        "model_type": "florence2",
        "projection_dim": 1024,
        "vision_config": vision,
        "text_config": text,
    }
    return {
        "dtype": dtype,
        "florence_config": florence,
        "chunk_size": 30,
        "n_action_steps": 30,
        "action_mode": "auto",
        "max_state_dim": 20,
        "resize_imgs_with_padding": (224, 224),
        "num_image_views": 3,
        "tokenizer_max_length": 50,
    }


def load(kind: str, folder: Path, dtype: str) -> dict[str, Any]:
    """Loads, then reads every weight once, so that mapped pages count."""
    from edgevla.train.checkpoint import load_policy

    begin = time.perf_counter()
    policy = load_policy(folder)
    seconds = time.perf_counter() - begin
    total = sum(float(p.detach().reshape(-1)[::512].float().sum()) for p in policy.parameters())
    return {"seconds": seconds, "checksum": total}


def values_of(policy: Policy) -> dict[str, Any]:
    """One observation by source; nothing is guided."""
    import numpy as np

    rng = np.random.default_rng(0)
    state = rng.standard_normal((1, 6), dtype=np.float32) / 2
    prompt = policy.prompt_builder().build(["pick up the cube"], state)
    length = policy.graphs()["decode"].outputs[0].shape[1]
    return {
        **{f"camera:{name}": rng.integers(0, 256, (1, 480, 640, 3), dtype=np.uint8) for name in CAMERAS},
        "camera_present": np.ones((1, len(CAMERAS)), np.bool_),
        "state": state,
        "prompt:tokens": prompt.tokens,
        "prompt:mask": prompt.mask,
        "rtc:committed": np.zeros((1, length, 6), np.float32),
        "rtc:weights": np.zeros((1, length), np.float32),
        "rtc:max_guidance": np.full(1, 10.0, np.float32),
    }


def torch_run(kind: str, folder: Path, dtype: str) -> dict[str, Any]:
    import numpy as np
    import torch

    from edgevla.train.checkpoint import load_policy

    policy = load_policy(folder)
    return timed(
        policy.sampler(), policy, torch.from_numpy, lambda x: np.save(folder.parent / "torch.npy", x)
    )


def timed(
    sampler: Any, policy: Policy, to_sample: Callable[..., Any], keep: Callable[[Any], None]
) -> dict[str, Any]:
    """Encode, then one step twice (the second is timed), then the whole chunk."""
    import numpy as np
    import torch

    from edgevla.policy import initial_noise

    values = values_of(policy)
    noise = to_sample(initial_noise((1, *policy.sample_shape), 0, 0))
    with torch.no_grad():
        begin = time.perf_counter()
        context = sampler.encode(values)
        encode = time.perf_counter() - begin
        sampler.solve(context, values, noise=noise, n_steps=1)
        begin = time.perf_counter()
        sampler.solve(context, values, noise=noise, n_steps=1)
        step = time.perf_counter() - begin
        actions = np.asarray(sampler.decode(sampler.solve(context, values, noise=noise), values))
    assert np.isfinite(actions).all()
    keep(actions)
    return {"encode_s": encode, "step_s": step, "spread": float(actions.std())}


def export(kind: str, folder: Path, dtype: str) -> dict[str, Any]:
    from edgevla.export.build import in_float32
    from edgevla.export.trace import save, trace
    from edgevla.train.checkpoint import load_policy

    policy = load_policy(folder, adapt=in_float32)
    policy.bake()
    graphs = folder.parent / "graphs"
    graphs.mkdir(exist_ok=True)
    seconds = {}
    for name, spec in policy.graphs().items():
        begin = time.perf_counter()
        save(trace(policy, name, spec), graphs, name)
        seconds[name] = round(time.perf_counter() - begin, 1)
    sizes = {p.name: p.stat().st_size for p in sorted(graphs.iterdir())}
    return {"seconds": seconds, "bytes": sizes}


def onnx_run(kind: str, folder: Path, dtype: str) -> dict[str, Any]:
    import numpy as np

    from edgevla.engines import EngineOptions, load_graph
    from edgevla.export.build import in_float32
    from edgevla.policy import Sampler
    from edgevla.train.checkpoint import load_policy

    policy = load_policy(folder, adapt=in_float32)
    options = EngineOptions(prepack=False)
    paths = {
        name: (folder.parent / "graphs" / f"{name}.onnx", spec) for name, spec in policy.graphs().items()
    }
    graphs = {name: load_graph(path, spec, options=options) for name, (path, spec) in paths.items()}
    kept: list[Any] = []
    result = timed(Sampler(graphs, policy.schedule), policy, lambda x: x, kept.append)
    result["max_abs"] = float(np.abs(kept[0] - np.load(folder.parent / "torch.npy")).max())
    return result


def latency(kind: str, folder: Path, dtype: str) -> dict[str, Any]:
    """Encode and one denoise step, eager and in ONNX Runtime as deployed, by turns in one process: [eager, exported]."""
    import numpy as np
    import torch

    from edgevla.engines import EngineOptions, load_graph
    from edgevla.policy import Sampler, initial_noise
    from edgevla.train.checkpoint import load_policy

    policy = load_policy(folder)
    torch.set_num_threads(1)
    values = values_of(policy)
    noise = initial_noise((1, *policy.sample_shape), 0, 0)
    graphs = {}
    for name, spec in policy.graphs().items():
        file = folder.parent / "graphs" / f"{name}.onnx"
        data = file.with_name(f"{file.name}.data")
        # Packed weights take their size a second time: not those that this machine has no room for.
        fits = not data.exists() or data.stat().st_size < PREPACKED_BYTES
        graphs[name] = load_graph(file, spec, options=EngineOptions(threads=1, prepack=fits))
    eager, exported = policy.sampler(), Sampler(graphs, policy.schedule)
    with torch.no_grad():
        context = eager.encode(values)
        copies = {name: value.numpy() for name, value in context.items()}
        runs = {
            "encode": (lambda: eager.encode(values), lambda: exported.encode(values)),
            "step": (
                lambda: eager.solve(context, values, noise=torch.from_numpy(noise), n_steps=1),
                lambda: exported.solve(copies, values, noise=noise, n_steps=1),
            ),
        }
        result: dict[str, Any] = {"n_steps": policy.schedule.n_steps}
        for name, pair in runs.items():
            spent: tuple[list[float], list[float]] = ([], [])
            for i in range(6):
                for run, laps in zip(pair, spent, strict=True):
                    begin = time.perf_counter()
                    run()
                    if i:  # the first is a warm-up
                        laps.append(1e3 * (time.perf_counter() - begin))
            result[name] = {
                "median_ms": [round(float(np.median(laps)), 1) for laps in spent],
                "best_ms": [round(min(laps), 1) for laps in spent],
            }
    return result


STAGES = {
    "build": build,
    "load": load,
    "torch": torch_run,
    "export": export,
    "onnx": onnx_run,
    "latency": latency,
}


def stage(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs one stage as a process; its result and its peak memory in bytes."""
    command = [sys.executable, __file__, arguments.kind, "--dtype", arguments.dtype, "--folder", str(folder)]
    done = subprocess.run([*command, "--stage", name], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"stage {name} failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def report(arguments: argparse.Namespace, root: Path) -> int:
    folder = root / "policy"
    made = stage("build", arguments, folder)
    size = made["weight_bytes"]
    print(
        f"{arguments.kind}: {made['parameters'] / 1e6:.1f} M parameters, {size / 1e9:.2f} GB {arguments.dtype}"
    )
    # The graphs are float32, so their times are no measure for a bfloat16 policy.
    names = [n for n in STAGES if n != "build" and not (n == "latency" and arguments.dtype == "bfloat16")]
    failures = []
    for name in names:
        result = stage(name, arguments, folder)
        ratio = result.pop("peak_bytes") / size
        print(f"  {name:7} peak {ratio:.2f} x the weight file   {json.dumps(result)}", flush=True)
        limit = {"load": LOAD_LIMIT, "export": EXPORT_LIMIT}.get(name)
        if limit is not None and ratio > limit:
            failures.append(f"{name} needed {ratio:.2f} times the weight file; allowed {limit}")
        if result.get("max_abs", 0) > MAX_ABS[arguments.dtype]:
            failures.append(f"the graphs differ from torch by {result['max_abs']:.2g}")
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["smolvla", "pi0", "pi05", "xvla", "groot"])
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of Pi0, Pi0.5, X-VLA"
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help="where the big files go (default: a temporary folder)")
    arguments = parser.parse_args()
    if arguments.stage:
        result = STAGES[arguments.stage](arguments.kind, arguments.folder, arguments.dtype)
        result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(result))
        return 0
    with tempfile.TemporaryDirectory(prefix="real-sizes-", dir=arguments.work) as root:
        return report(arguments, Path(root))


if __name__ == "__main__":
    sys.exit(main())

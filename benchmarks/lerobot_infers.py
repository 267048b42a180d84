"""LeRobot 0.4.4's own eager policies, one thread: the other side of `lerobot_speed.py`.

Runs in an environment with `lerobot[smolvla]==0.4.4`, started by that benchmark:

    python benchmarks/lerobot_infers.py CHECKPOINT

First line out: the number of parameters. Then each line in is a chunk asked for, and each line out its ms: the network
and its denoise steps alone. Pictures are float already, tokens are cut, nothing is normalised or moved to robot units.
An empty line in ends it; the last line out is the peak of its memory in MB.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

PADDED_TOKENS = {"smolvla": 48, "xvla": 50}


def act(folder: Path, config: dict[str, Any]) -> tuple[torch.nn.Module, Callable[[], Any]]:
    from lerobot.policies.act.modeling_act import ACTPolicy

    policy = ACTPolicy.from_pretrained(folder)
    batch = pictures(config) | {"observation.state": torch.rand(1, 6)}
    return policy, lambda: policy.predict_action_chunk(batch)


def diffusion(folder: Path, config: dict[str, Any]) -> tuple[torch.nn.Module, Callable[[], Any]]:
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    policy = DiffusionPolicy.from_pretrained(folder)
    n = config["n_obs_steps"]
    seen = torch.stack(list(pictures(config).values()), dim=1)
    batch = {"observation.state": torch.rand(1, n, 6), "observation.images": torch.stack([seen] * n, dim=1)}
    return policy, lambda: policy.diffusion.generate_actions(batch)


def smolvla(folder: Path, config: dict[str, Any]) -> tuple[torch.nn.Module, Callable[[], Any]]:
    import transformers

    # What LeRobot would fetch from a hub: the published backbone's dimensions, and two token numbers.
    published = {"model_type": "smolvlm", "vision_config": VISION, "text_config": TEXT, "scale_factor": 4}
    transformers.AutoConfig.from_pretrained = lambda *_, **__: transformers.SmolVLMConfig(**published)
    tokenizer = SimpleNamespace(fake_image_token_id=49189, global_image_token_id=49152)
    transformers.AutoProcessor.from_pretrained = lambda *_, **__: SimpleNamespace(tokenizer=tokenizer)
    from lerobot.policies.smolvla import smolvlm_with_expert
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    smolvlm_with_expert.AutoProcessor = transformers.AutoProcessor
    smolvlm_with_expert.AutoConfig = transformers.AutoConfig
    policy = SmolVLAPolicy.from_pretrained(folder)
    batch = pictures(config) | words("smolvla") | {"observation.state": torch.rand(1, 6)}
    return policy, lambda: policy.predict_action_chunk(batch)


def xvla(folder: Path, config: dict[str, Any]) -> tuple[torch.nn.Module, Callable[[], Any]]:
    from lerobot.policies.xvla.modeling_xvla import XVLAPolicy

    policy = XVLAPolicy.from_pretrained(folder)
    batch = pictures(config) | words("xvla") | {"observation.state": torch.rand(1, 6)}
    batch["domain_id"] = torch.zeros(1, dtype=torch.long)
    return policy, lambda: policy.predict_action_chunk(batch)


VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 512, "patch_size": 16, "model_type": "smolvlm_vision",
}  # fmt: skip
TEXT = {
    "model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
    "num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280,
    "max_position_embeddings": 8192, "rope_theta": 100000, "rms_norm_eps": 1e-5,
}  # fmt: skip


def pictures(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    features = config["input_features"].items()
    return {k: torch.rand(1, *feature["shape"]) for k, feature in features if feature["type"] == "VISUAL"}


def words(kind: str) -> dict[str, torch.Tensor]:
    """Of a short sentence, padded as LeRobot's own step pads it."""
    n = PADDED_TOKENS[kind]
    mask = torch.arange(n)[None] < 8
    tokens = torch.ones(1, n, dtype=torch.long) * mask
    return {"observation.language.tokens": tokens, "observation.language.attention_mask": mask}


def main() -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # LeRobot prints while it loads
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    folder = Path(sys.argv[1])
    config = json.loads((folder / "config.json").read_text())
    policy, infer = globals()[config["type"]](folder, config)
    policy.eval()
    with torch.inference_mode():
        infer()
        print(sum(p.numel() for p in policy.parameters()), file=out, flush=True)
        while sys.stdin.readline().strip():
            began = time.perf_counter()
            infer()
            print(1e3 * (time.perf_counter() - began), file=out, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, file=out, flush=True)


if __name__ == "__main__":
    main()

"""What the parity tests share: fixtures as found on disk, and the adapter that answers for every recorded key.

A fixture records outputs under keys such as `infer/chunk` or `train/grad_norms`. Every key is one test: the
policy's adapter computes the value, `compare` holds it against the record. A key that nobody computes fails, and so does
an input that nobody reads, a tensor that is listed as neither, and a statement in `cases.json` that nobody knows.

To cover a policy, write `cases_<policy>.py` with a class `Cases(Adapter)`. Much is inherited; a policy adds
methods decorated by `@computes("pattern", ...)` that return {key: value} for all keys matching the patterns (one
call serves them all; the subclass's methods are asked first), and overrides hooks: `prompt` (language), `chunk`
(cuts x to the recorded normalised chunk), `normalized`, `draws`, `optimizer`.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgevla.execution.ensemble import ensemble
from edgevla.train.checkpoint import load_policy
from edgevla.train.policies.base import Policy

DEFAULT = Path(__file__).parents[1] / "fixtures" / "goldens"
Method = TypeVar("Method", bound=Callable[..., Any])
STATEMENTS = {"inputs", "expected", "expected_v06", "tasks", "rtc", "temporal_ensemble_coeff", "n_queries"}
STATEMENTS |= {"grad_names", "grad_names_v06", "opt_lr_scale"}
STATEMENTS |= {
    "policy",
    "lerobot",
    "transformers",
    "cameras",
    "resnet_widths",
    "action_dim",
    "prompt",
    "prompts",
}
STATEMENTS |= {"n_select_steps", "n_ensemble_steps"}
"""What `cases.json` may say; the last two lines only tell a reader how the fixture was made, and sizes that the tensors
have themselves."""
INPUTS = ("*/obs/*", "*/noise", "query/*/variance_noise", "rtc/*/prev_chunk_left_over")
INPUTS += ("train/action", "train/action_is_pad")
"""Inputs that every adapter understands, whether a fixture's outputs need them or not."""


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, p) for p in patterns)


class Watched(dict[str, Any]):
    """Remembers which of its keys were asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


@dataclass(frozen=True)
class Fixture:
    """One checkpoint with recorded cases; a folder with several checkpoints or pipelines gives one fixture each."""

    name: str
    folder: Path
    checkpoint: Path
    processors: Path | None = None

    @functools.cached_property
    def policy_type(self) -> str:
        return str(json.loads((self.checkpoint / "config.json").read_text())["type"])

    @functools.cached_property
    def is_bfloat16(self) -> bool:
        return json.loads((self.checkpoint / "config.json").read_text()).get("dtype") == "bfloat16"

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.folder / "cases.json").read_text())

    @functools.cached_property
    def cases(self) -> dict[str, Tensor]:
        return load_file(str(self.folder / "cases.safetensors"))

    @functools.cached_property
    def expected(self) -> list[str]:
        """Recorded outputs; what LeRobot 0.6 computes otherwise stands in for its namesake of 0.5."""
        newer = list(self.meta.get("expected_v06", []))
        superseded = {key.replace("train_v06/", "train/") for key in newer}
        return [key for key in self.meta["expected"] if key not in superseded] + newer

    def write_checkpoint(self, folder: Path) -> Path:
        """A complete checkpoint folder: the variant's files over those of `checkpoint`."""
        folder.mkdir(parents=True)
        if (self.folder / "checkpoint").is_dir():
            ignore = None if self.is_base else _files_of_root
            shutil.copytree(self.folder / "checkpoint", folder, ignore=ignore, dirs_exist_ok=True)
        for source in (self.checkpoint, self.processors):
            if source is not None and source.name != "checkpoint":
                shutil.copytree(source, folder, dirs_exist_ok=True)
        return folder

    @property
    def is_base(self) -> bool:
        """Whether the weights are those of `checkpoint`."""
        return self.checkpoint.name == "checkpoint"


def _files_of_root(folder: str, names: list[str]) -> list[str]:
    """Ignored when another checkpoint's weights replace the first's: everything but sub-folders."""
    root = Path(folder)
    return [n for n in names if root.name == "checkpoint" and not (root / n).is_dir()]


def find_fixtures(root: Path) -> list[Fixture]:
    """All fixtures in or below `root`: folders with cases.safetensors and at least one checkpoint*/config.json."""
    found = []
    for cases in sorted(root.rglob("cases.safetensors")):
        folder = cases.parent
        name = folder.name if folder == root else str(folder.relative_to(root))
        checkpoints = sorted(p.parent for p in folder.glob("checkpoint*/config.json"))
        for checkpoint in checkpoints:
            suffix = "" if checkpoint.name == "checkpoint" else f"+{checkpoint.name}"
            found.append(Fixture(name + suffix, folder, checkpoint))
        for processors in sorted(p for p in folder.glob("processors*") if p.is_dir()):
            found.append(Fixture(f"{name}+{processors.name}", folder, folder / "checkpoint", processors))
    return found


def own_graphs(root: Path) -> list[Fixture]:
    """Without other pipelines of the same weights, which run the same graphs. Ends the program where there is none."""
    found = [f for f in find_fixtures(root) if f.processors is None]
    if not found:
        raise SystemExit(f"no fixture (a folder with cases.safetensors) in {root}")
    return found


def open_adapter(fixture: Fixture, folder: Path) -> Adapter:
    """The fixture's policy behind its adapter. folder: where its checkpoint is laid out, not there yet."""
    module = importlib.import_module(f"cases_{fixture.policy_type}")
    return module.Cases(fixture, fixture.write_checkpoint(folder))


def computes(*patterns: str) -> Callable[[Method], Method]:
    """Marks an adapter method as the source of all keys that match one of the patterns (`*` crosses slashes)."""

    def mark(method: Method) -> Method:
        method.patterns = patterns  # type: ignore[attr-defined]
        return method

    return mark


class Adapter:
    """Computes recorded keys with one policy. `folder`: the checkpoint; `policy`: loaded, eval mode, cameras set."""

    def __init__(self, fixture: Fixture, folder: Path) -> None:
        self.fixture, self.folder = fixture, folder
        self.cases, self.meta = Watched(fixture.cases), dict(fixture.meta)
        self.policy = self.load()
        self._results: dict[str, dict[str, Any] | Exception] = {}

    def compute(self, key: str) -> Any:
        """The value of a recorded key; KeyError where no method computes it."""
        for cls in type(self).__mro__:
            for name, method in vars(cls).items():
                if _matches(key, getattr(method, "patterns", ())):
                    results = self._run(f"{cls.__name__}.{name}", method)
                    if key in results:
                        return results[key]
        raise KeyError(key)

    def unread(self) -> list[str]:
        """Tensors that are neither compared nor understood, and statements that nobody knows, once all was computed."""
        understood = (*INPUTS, *(f"train/{name}" for name in self.drawn))
        inputs, listed = set(self.meta["inputs"]), {*self.meta["expected"], *self.fixture.expected}
        strange = set(self.fixture.cases) - listed - inputs
        strange |= {k for k in inputs - self.cases.read if not _matches(k, understood)}
        return sorted(strange | {f"cases.json: {key}" for key in set(self.meta) - STATEMENTS})

    def _run(self, name: str, method: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        if name not in self._results:
            try:
                self._results[name] = method(self)
            except Exception as error:
                self._results[name] = error
        result = self._results[name]
        if isinstance(result, Exception):
            raise result
        return result

    # -- hooks that policies override ---------------------------------------------------------------------

    def prompt(self, tasks: list[str], observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`prompt:tokens` and `prompt:mask` for policies with language."""
        return {}

    def normalized(self, feature: str, value: Tensor) -> Tensor:
        """A raw feature as it leaves the pre-processor; images come as float (..., 3, H, W) in 0..1."""
        return self.policy.normalizers(feature, value)  # type: ignore[operator]

    def chunk(self, x: Tensor) -> Tensor:
        """The recorded normalised chunk within the sampler's last x: padded action dimensions removed."""
        return x[..., : self.policy.config.action_dim]

    def step_noise(self, query: str) -> Callable[[int], Tensor] | None:
        """Fresh noise per denoise step of a query (`query/00`), for policies that need it."""
        return None

    def draws(self) -> dict[str, Tensor]:
        """Random numbers of the training loss: recorded `train/...` inputs by the names of `Policy.draw`."""
        return {k: self.cases[f"train/{k}"] for k in self.drawn if f"train/{k}" in self.meta["inputs"]}

    @functools.cached_property
    def drawn(self) -> list[str]:
        """Names of the random numbers that the loss takes."""
        if "train/action" not in self.cases:
            return []
        return list(self.policy.draw({"action": self.cases["train/action"]}))

    def optimizer(self, policy: Policy, lr_scale: float) -> torch.optim.Optimizer:
        """The preset with the config's settings, rates multiplied by the fixture's scale."""
        config: Any = policy.config
        groups = [{**g, "lr": g.get("lr", config.optimizer_lr) * lr_scale} for g in policy.optimizer_groups()]
        betas = tuple(getattr(config, "optimizer_betas", (0.9, 0.999)))
        eps = getattr(config, "optimizer_eps", 1e-8)
        return torch.optim.AdamW(groups, betas=betas, eps=eps, weight_decay=config.optimizer_weight_decay)

    @property
    def clip_norm(self) -> float:
        return float(getattr(self.policy.config, "optimizer_grad_clip_norm", 10.0))

    # -- inputs -------------------------------------------------------------------------------------------

    def load(self) -> Policy:
        policy = load_policy(self.folder)
        prefix = "infer" if any(k.startswith("infer/obs/") for k in self.cases) else "steps/00"
        frames = {k: v for k, v in self.observation(prefix, policy).items() if v.dtype == torch.uint8}
        absent = [name for name in policy.config.image_features if name not in frames]
        policy.set_cameras({k: (v.shape[-3], v.shape[-2]) for k, v in frames.items()}, absent)
        return policy

    def observation(self, prefix: str, policy: Policy | None = None) -> dict[str, Tensor]:
        """Recorded raw observation by the policy's feature names, batch axis added where it lacks."""
        start = f"{prefix}/obs/"
        found = {k.removeprefix(start): v for k, v in self.cases.items() if k.startswith(start)}
        renames = (policy or self.policy).processors.rename_map
        self.cases.read.update(start + k for k in found)
        return {renames.get(k, k): v if prefix == "train" else v[None] for k, v in found.items()}

    def sources(self, observation: Mapping[str, Tensor], tasks: list[str] | None = None) -> dict[str, Tensor]:
        """An observation by the graphs' sources, with what else a graph may ask for at its neutral value."""
        policy, config = self.policy, self.policy.config
        batch = next(iter(observation.values())).shape[0]
        values = {f"camera:{k}": v for k, v in observation.items() if k in config.image_features}
        values["camera_present"] = torch.ones(batch, len(policy.live_cameras), dtype=torch.bool)
        if "observation.state" in observation:
            values["state"] = observation["observation.state"]
        if config.environment_state_key in observation:
            values["environment_state"] = observation[config.environment_state_key]
        for name, setting in policy.settings.items():
            values[f"setting:{name}"] = torch.full(
                (batch,), setting["default"], dtype=getattr(torch, setting["dtype"])
            )
        for graph in policy.graphs().values():
            for spec in graph.inputs:
                if (spec.source or "").startswith("rtc:"):
                    values[spec.source or ""] = torch.zeros(batch, *spec.shape[1:])
        return {**values, **self.prompt(tasks or self.tasks[:1], observation)}

    @property
    def tasks(self) -> list[str]:
        return list(self.meta.get("tasks", [""]))

    def tasks_of(self, observation: Mapping[str, Tensor]) -> list[str]:
        """One per element of a batch; the recorded ones from the first again where there are fewer."""
        n = next(iter(observation.values())).shape[0]
        return (self.tasks * n)[:n]

    # -- pre-processing -----------------------------------------------------------------------------------

    @computes("*/pre/observation.*", "*/pre/action")
    def preprocessed(self) -> dict[str, Any]:
        results = {}
        for key in self.fixture.expected:
            prefix, middle, feature = key.partition("/pre/")
            if middle and feature == "action":
                results[key] = self.normalized(feature, self.cases[f"{prefix}/action"])
            elif middle and feature in (observation := self.observation(prefix)):
                raw = observation[feature]
                if raw.dtype == torch.uint8:
                    raw = raw.float().div(255).movedim(-1, -3)
                results[key] = self.normalized(feature, raw)
        return results

    # -- inference ----------------------------------------------------------------------------------------

    @computes("infer/chunk", "infer/chunk_robot", "infer/x", "infer/v", "infer/times", "infer/timesteps")
    @torch.no_grad()
    def inferred(self) -> dict[str, Any]:
        policy, sampler = self.policy, self.policy.sampler()
        values = self.sources(self.observation("infer"))
        context = sampler.encode(values)
        noise = self.cases.get("infer/noise")
        xs: list[Tensor] = []
        x = sampler.solve(context, values, noise=noise, on_step=lambda _, x: xs.append(x))
        results = {"infer/chunk": self.chunk(x), "infer/chunk_robot": sampler.decode(x, values)}
        if xs and policy.schedule is not None:
            taus = torch.from_numpy(policy.schedule.taus()[:-1])
            before = [noise, *xs[:-1]]
            velocities = [
                policy.predict(context, b, t[None], values) for b, t in zip(before, taus, strict=True)
            ]
            results |= {"infer/x": torch.stack(xs), "infer/v": torch.stack(velocities), "infer/times": taus}
            results["infer/timesteps"] = taus.to(torch.int64)
        return results

    @computes("batch/chunk", "batch/chunk_robot")
    @torch.no_grad()
    def batched(self) -> dict[str, Any]:
        sampler = self.policy.sampler()
        observation = self.observation("train")
        values = self.sources(observation, self.tasks_of(observation))
        x = sampler.solve(sampler.encode(values), values, noise=self.cases.get("batch/noise"))
        return {"batch/chunk": self.chunk(x), "batch/chunk_robot": sampler.decode(x, values)}

    @computes("select/actions", "select/actions_robot")
    @torch.no_grad()
    def selected(self) -> dict[str, Any]:
        decay = getattr(self.policy.config, "temporal_ensemble_coeff", None)
        n = len(self.cases["select/actions"])
        normalized, robot = self.ensembled_rows(n, decay) if decay is not None else self.queued_rows(n)
        return {"select/actions": normalized, "select/actions_robot": robot}

    @computes("ensemble/actions", "ensemble/actions_robot")
    @torch.no_grad()
    def ensembled(self) -> dict[str, Any]:
        normalized, robot = self.ensembled_rows(
            len(self.cases["ensemble/actions"]), self.meta["temporal_ensemble_coeff"]
        )
        return {"ensemble/actions": normalized, "ensemble/actions_robot": robot}

    def queued_rows(self, n: int) -> tuple[Tensor, Tensor]:
        """LeRobot's queue: when empty a new chunk, `n_action_steps` of it executed; (n, A) normalised, robot units."""
        sampler, n_queue = self.policy.sampler(), int(self.policy.config.n_action_steps)  # type: ignore[attr-defined]
        contexts: list[dict[str, Any]] = []
        rows, robot_rows = [], []
        for i in range(n):
            values = self.sources(self.observation(f"steps/{i:02d}"))
            contexts.append(sampler.encode(values))
            position = i % n_queue
            if position == 0:
                query = f"query/{i // n_queue:02d}"
                noise = self.cases.get(f"{query}/noise")
                x = sampler.solve(
                    sampler.merge(contexts), values, noise=noise, step_noise=self.step_noise(query)
                )
            rows.append(self.chunk(x)[0, position])
            # The post-processor of LeRobot sees the newest state, also for actions of an older chunk.
            robot_rows.append(sampler.decode(x, values)[0, position])
        return torch.stack(rows), torch.stack(robot_rows)

    def ensembled_rows(self, n: int, decay: float) -> tuple[Tensor, Tensor]:
        """Inference at every step, all chunks that cover it averaged; (n, A) normalised and robot units."""
        sampler = self.policy.sampler()
        chunks: list[np.ndarray] = []
        robot_chunks: list[np.ndarray] = []
        rows, robot_rows = [], []
        for now in range(n):
            values = self.sources(self.observation(f"steps/{now:02d}"))
            x = sampler.solve(sampler.encode(values), values)
            chunks.append(self.chunk(x)[0].numpy())
            robot_chunks.append(sampler.decode(x, values)[0].numpy())
            anchors = [a for a in range(now + 1) if now - a < len(chunks[a])]
            for source, out in ((chunks, rows), (robot_chunks, robot_rows)):
                out.append(ensemble(np.stack([source[a][now - a] for a in anchors]), anchors, decay))
        return torch.from_numpy(np.stack(rows)), torch.from_numpy(np.stack(robot_rows))

    # -- training -----------------------------------------------------------------------------------------

    def batch(self) -> dict[str, Any]:
        """The recorded training batch, raw, with what `sources` adds for language."""
        observation = self.observation("train")
        prompt = self.prompt(self.tasks_of(observation), observation)
        batch: dict[str, Any] = {**observation, "action": self.cases["train/action"]}
        batch["action_is_pad"] = self.cases["train/action_is_pad"]
        for source, name in (("prompt:tokens", "tokens"), ("prompt:mask", "token_mask")):
            if source in prompt:
                batch[name] = prompt[source]
        return batch

    def trainable(self) -> Policy:
        """A fresh copy of the policy in train mode, with every dropout off."""
        policy = self.load().train()
        for module in policy.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        return policy

    @computes("train/*", "train_v06/*")
    def trained(self) -> dict[str, Any]:
        """Loss, its parts by their log names, and gradients."""
        policy, batch, draws = self.trainable(), self.batch(), self.draws()
        with torch.no_grad():  # before training mode moves any running statistics
            loss_eval = policy.eval().loss(batch, draws)[0]
        loss, parts = policy.train().loss(batch, draws)
        loss.backward()
        named = dict(parts, loss=loss, loss_valid=loss, loss_eval=loss_eval, loss_eval_valid=loss_eval)
        named |= {f"{name}_valid": part for name, part in parts.items()}
        results: dict[str, Any] = {}
        for era, suffix in (("train", ""), ("train_v06", "_v06")):
            results |= {f"{era}/{name}": value.detach() for name, value in named.items()}
            if f"grad_names{suffix}" in self.meta:
                results[f"{era}/grad_norms"] = gradient_norms(policy, self.meta[f"grad_names{suffix}"])
        return results

    @computes("train*/opt_losses", "train*/opt_grad_norms")
    def optimized(self) -> dict[str, Any]:
        policy, batch, draws = self.trainable(), self.batch(), self.draws()
        optimizer = self.optimizer(policy, float(self.meta["opt_lr_scale"]))
        losses, norms = [], []
        for _ in range(len(self.cases["train/opt_grad_norms"])):
            loss = policy.loss(batch, draws)[0]
            optimizer.zero_grad()
            loss.backward()
            norms.append(nn.utils.clip_grad_norm_(policy.parameters(), self.clip_norm))
            optimizer.step()
            losses.append(loss.detach())
        with torch.no_grad():
            losses.append(policy.loss(batch, draws)[0])
        values = {"opt_losses": torch.stack(losses), "opt_grad_norms": torch.stack(norms)}
        return {f"{era}/{k}": v for era in ("train", "train_v06") for k, v in values.items()}


def gradient_norms(policy: Policy, names: list[str]) -> Tensor:
    """L2 norms by LeRobot's names, 0 without a gradient; the names must be exactly the trainable parameters."""
    own = {policy.Prefix + n: p for n, p in policy.named_parameters() if p.requires_grad}
    assert set(own) == set(names), (
        f"trainable parameters differ: missing {sorted(set(names) - set(own))}, extra {sorted(set(own) - set(names))}"
    )
    return torch.stack([torch.zeros(()) if (g := own[n].grad) is None else g.norm() for n in names])


def compare(key: str, computed: Any, expected: Tensor, *, is_bfloat16: bool = False) -> None:
    """Within the fixture's stated tolerances; integers and booleans exactly."""
    computed = computed.detach() if isinstance(computed, Tensor) else torch.as_tensor(np.asarray(computed))
    assert computed.shape == expected.shape, (
        f"{key}: shape {tuple(computed.shape)}, expected {tuple(expected.shape)}"
    )
    assert computed.dtype == expected.dtype, f"{key}: dtype {computed.dtype}, expected {expected.dtype}"
    if not expected.dtype.is_floating_point:
        assert torch.equal(computed, expected), f"{key}: {int((computed != expected).sum())} elements differ"
        return
    absolute, relative = tolerance(key)
    if key.endswith("/grad_norms"):
        absolute = max(absolute, GRADIENT_NOISE * float(expected.abs().max()))
    if is_bfloat16:
        absolute, relative = BFLOAT16_SHARE * float(expected.abs().max()), 0.0
    error = (computed - expected).abs()
    worst = float((error - relative * expected.abs()).max()) if error.numel() else 0.0
    assert torch.isfinite(computed).all(), f"{key}: not finite"
    assert worst <= absolute, (
        f"{key}: off by {float(error.max()):.3g} (allowed {absolute:g} + {relative:g} relative)"
    )


GRADIENT_NOISE = 2e-6
"""Of the largest gradient's norm: where a gradient is zero in exact arithmetic (a bias before a softmax or a norm),
large terms cancel, and what is left of them is some roundings of 2^-24 each, other ones in every implementation."""
BFLOAT16_SHARE = 1e-2
"""Of a tensor's largest value, allowed for a policy that computes in bfloat16: every operation rounds by up to 2^-9
(0.2 %), and some ten lie one after the other in a chunk. Two implementations that round in another place (ours turns by
RoPE in float32) can agree no better; measured on Pi0 and Pi0.5: 0.5 %, with everything up to the first attention equal
to the bit."""


def tolerance(key: str) -> tuple[float, float]:
    """(absolute, relative) of a recorded key, as the fixtures' READMEs state."""
    name = key.rpartition("/")[2]
    if name.startswith("opt_"):
        return 1e-6, 1e-3
    if key.startswith("train") and ("loss" in name or name == "grad_norms") and name != "elementwise_loss":
        return 1e-6, 1e-4
    return 1e-5, 1e-4

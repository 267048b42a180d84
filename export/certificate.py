"""The bundle against the checkpoint's own pipelines, from raw frames to robot units.

`parity.py` compares graphs with our torch, and both read a checkpoint by the same code: what that code overlooks is
missing on both sides. Here the other side is

    raw frames -> saved pre-processor, run step by step (train/pipeline.py) -> the policy's network alone
               -> saved post-processor, run step by step -> robot units

with the noise of the bundle's own inference. The network's side is `Policy.behind_pipeline`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgevla.errors import ParityError
from edgevla.manifest_record import PipelineParity
from edgevla.policy import Sampler, initial_noise
from edgevla.runner import BundlePolicy
from edgevla.train.pipeline import TOKEN_MASK, TOKENS, SavedPipeline
from edgevla.train.policies.base import Policy
from edgevla.train.processors import PRE
from edgevla.types import ENVIRONMENT_STATE, STATE, Observation

from .parity import action_parity, precision_of_bundle
from .samples import PolicyInput

LOOSER = {"fp32": 3.0, "fp16": 3.0, "bf16": 3.0, "int8": 1.5, "int4": 1.5}
"""Times the tolerance against torch: both sides scale the same numbers in another order, the network bends it, and no
sample is guided here, which holds chunks together."""


def certify(
    policy: Policy,
    folder: Path,
    exported: BundlePolicy,
    samples: Sequence[PolicyInput],
    origin: str,
    dataset_keys: Mapping[str, str],
) -> PipelineParity:
    """policy: baked, as it was traced. folder: the checkpoint's. dataset_keys: policy camera -> camera of the data.

    Raises:
        ParityError: the pipelines name another domain or body than the graphs were made for.
    """
    samples = [replace(sample, rtc=None) for sample in samples]
    with _saved_pipeline(policy, folder) as pipeline, _behind_pipeline(policy):
        reference = _Reference(policy, pipeline, exported, dataset_keys)
        ours = np.stack([reference.infer(sample, i) for i, sample in enumerate(samples)])
    theirs = []
    for i, sample in enumerate(samples):
        exported.reset()
        theirs.append(
            exported.infer(
                sample.observation, grid_index=sample.grid_index, past=sample.past, chunk_seq=i
            ).actions
        )
    precision = precision_of_bundle(exported.bundle)
    actions, passed = action_parity(policy, exported.bundle, ours, np.stack(theirs), LOOSER[precision])
    said = pipeline.describe()
    return PipelineParity(f"{said} and torch's network ({origin})", len(samples), actions, passed)


@contextlib.contextmanager
def _saved_pipeline(policy: Policy, folder: Path) -> Iterator[SavedPipeline]:
    """A checkpoint from before LeRobot 0.4 has no files of its own: those that LeRobot would make of it are run."""
    tokenizer = policy.tokenizer_folder() if policy.prompt_recipe() is not None else None
    if (folder / f"{PRE}.json").is_file():
        yield SavedPipeline(folder, tokenizer)
        return
    with tempfile.TemporaryDirectory() as made:
        policy.processors.save(Path(made))
        yield SavedPipeline(Path(made), tokenizer)


@contextlib.contextmanager
def _behind_pipeline(policy: Policy) -> Iterator[None]:
    """The policy as its network alone."""
    parts = policy.behind_pipeline
    kept = {name: getattr(policy, name) for name in parts if name in {**vars(policy), **policy._modules}}
    try:
        for name, part in parts.items():
            setattr(policy, name, part)
        yield
    finally:
        for name in parts:
            delattr(policy, name)
        for name, part in kept.items():
            setattr(policy, name, part)


class _Reference:
    """Infers as the bundle's runner does, with the saved pipelines around torch's network."""

    def __init__(
        self,
        policy: Policy,
        pipeline: SavedPipeline,
        exported: BundlePolicy,
        dataset_keys: Mapping[str, str],
    ) -> None:
        self.policy, self.pipeline, self.exported = policy, pipeline, exported
        self.manifest = exported.manifest
        self.sampler: Sampler = policy.sampler()
        self.raw_names = _raw_names(pipeline, self.manifest.cameras, dataset_keys)

    @torch.no_grad()
    def infer(self, sample: PolicyInput, seq: int) -> np.ndarray:
        """float32 (T, A), robot units."""
        m = self.manifest
        n = self.exported.n_moments
        known = [sample.past[k] for k in sorted(sample.past)] + [sample.observation]
        values = self._constants()
        moments = [{**values, **self._before(o)} for o in ([known[0]] * n + known)[-n:]]
        noise = None if m.sample is None else initial_noise(m.sample.shape, self.exported.seed, seq)
        n_steps = m.schedule.n_steps if m.schedule is not None else None
        step_noise = self.exported.step_noise(seq)
        chunk = self.sampler.sample(moments, values, noise=noise, n_steps=n_steps, step_noise=step_noise)
        return self.pipeline.after(chunk.cpu().numpy())[0, : m.chunk_size]

    def _before(self, observation: Observation) -> dict[str, Any]:
        """What the pre-processor makes of an observation, by the graphs' sources."""
        m = self.manifest
        images = {self.raw_names[name]: observation.images[name] for name in m.cameras}
        vectors = {STATE: observation.state} if STATE in m.features else {}
        if observation.environment_state is not None:
            vectors[self.policy.config.environment_state_key] = observation.environment_state
        task = observation.task or (m.prompt.default_task if m.prompt is not None else None) or ""
        given = self.pipeline.before(images, vectors, task)
        self._check_numbers(given)
        return _by_source(given, m.cameras, self.policy)

    def _constants(self) -> dict[str, Any]:
        """What the runner gives besides observations: every camera is there, nothing is guided."""
        m = self.manifest
        settings = {f"setting:{k}": np.full(1, s.default, np.dtype(s.dtype)) for k, s in m.settings.items()}
        shape = (1, m.chunk_size, m.action.shape[0])
        return {
            **settings,
            "camera_present": np.ones((1, len(m.cameras)), np.bool_),
            "rtc:committed": np.zeros(shape, np.float32),
            "rtc:weights": np.zeros(shape[:2], np.float32),
            "rtc:max_guidance": np.zeros(1, np.float32),
        }

    def _check_numbers(self, given: Mapping[str, Any]) -> None:
        """The graphs keep one domain, or one body, for good."""
        for key, baked in self.policy.baked_numbers.items():
            if key in given and int(given[key][0]) != baked:
                raise ParityError(
                    f"the saved pipeline says {key} {int(given[key][0])}, the graphs were made for {baked}; "
                    "nothing was written"
                )


def _raw_names(
    pipeline: SavedPipeline, cameras: Sequence[str], dataset_keys: Mapping[str, str]
) -> dict[str, str]:
    """Policy camera -> the name under which its frames enter the pipeline: the data's own where the pipeline's rename
    step makes the policy's of it; where --camera binds otherwise, the name that becomes the policy's."""
    renamed: dict[str, str] = {}
    for step in pipeline.pre:
        renamed |= step.settings.get("rename_map") or {}
    names = {}
    for camera in cameras:
        key = dataset_keys.get(camera, camera)
        back = next((old for old, new in renamed.items() if new == camera), camera)
        names[camera] = key if renamed.get(key, key) == camera else back
    return names


def _by_source(given: Mapping[str, Any], cameras: Sequence[str], policy: Policy) -> dict[str, Any]:
    """LeRobot's keys -> the graphs' sources. A camera is undone to what `encode` divides by 255 and turns."""
    values: dict[str, Any] = {}
    if "eagle_pixel_values" in given:  # GR00T's pack step takes the names away and sorts by them
        pictures = dict(zip(sorted(cameras), given["eagle_pixel_values"][:, None], strict=True))
        state = given["state"][:, 0, : policy.config.state_dim]
        tokens, mask = given["eagle_input_ids"], given["eagle_attention_mask"].astype(np.bool_)
    else:
        pictures = {name: given[name] for name in cameras}
        state, tokens, mask = given.get(STATE), given.get(TOKENS), given.get(TOKEN_MASK)
    for name, picture in pictures.items():
        values[f"camera:{name}"] = np.transpose(picture, (0, 2, 3, 1)).astype(np.float32) * np.float32(255)
    environment = given.get(policy.config.environment_state_key, given.get(ENVIRONMENT_STATE))
    for source, value in (
        ("state", state),
        ("environment_state", environment),
        ("prompt:tokens", tokens),
        ("prompt:mask", mask),
    ):
        if value is not None:
            values[source] = value
    return values

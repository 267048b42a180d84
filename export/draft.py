"""The manifest of an export before its files exist: what the policy, its features and the options say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from edgevla import __version__
from edgevla.checkpoints import run_name
from edgevla.errors import CheckpointError, UsageError
from edgevla.graph import GraphSpec
from edgevla.manifest import (
    Batch,
    Execution,
    GraphFile,
    Manifest,
    PromptRecipe,
    RtcSupport,
    Sample,
    Setting,
    Target,
)
from edgevla.manifest_record import CheckpointOrigin, DatasetOrigin, Provenance, Work
from edgevla.strict import read
from edgevla.train.adapters import chain
from edgevla.train.policies.base import Policy
from edgevla.train.weight_files import weights_sha256
from edgevla.types import ACTION, STATE
from edgevla.vocabulary import WeightKind

from . import trace
from .features import Meaning
from .options import ExportOptions
from .work import count

if TYPE_CHECKING:
    from edgevla.dataset.facts import DatasetFacts

TASKS_LISTED = 32
"""A manifest names no more; datasets of hundreds exist."""
FLOAT_GRAPHS = ("decode", "time")
"""Stay float32 at every precision: they are small, and what they yield is robot units or times."""


def draft_manifest(
    policy: Policy, folder: Path, facts: DatasetFacts | None, meaning: Meaning, options: ExportOptions
) -> Manifest:
    """The manifest before its files exist, of float32 graphs."""
    graphs = policy.graphs()
    schedule = policy.schedule
    if schedule is not None and options.n_steps is not None:
        schedule.taus(options.n_steps)
        schedule = replace(schedule, n_steps=options.n_steps)
    elif options.n_steps is not None:
        raise UsageError(f"{policy.policy_type} has no denoise steps; leave --n-steps out")
    if options.target == "tensorrt" and "time" in graphs and schedule is not None:
        schedule = replace(schedule, n_steps_allowed=(schedule.n_steps, schedule.n_steps))
    chunk = graphs["decode"].outputs[0].shape[1]
    shape = policy.sample_shape
    rtc = _rtc(policy, graphs)
    return Manifest(
        schema=1,
        policy=policy.policy_type,
        name=options.name or run_name(folder),
        fps=meaning.fps,
        chunk_size=chunk,
        n_action_steps=min(chunk, policy.config.n_action_steps),
        n_obs_steps=policy.sampler().n_moments,
        batch=Batch(1, options.max_batch),
        features=meaning.features,
        trained_range=meaning.trained_range,
        trained_speed_p999=meaning.trained_speed_p999,
        prompt=_prompt(policy, options.task, facts),
        sample=None
        if shape is None
        else Sample("float32", (1, *shape), graphs["decode"].outputs[0].shape[2]),
        schedule=schedule,
        settings={k: read(Setting, _plain(v), f"settings.{k}") for k, v in policy.settings.items()},
        rtc=rtc,
        graphs={name: GraphFile(s.inputs, s.outputs, file=f"{name}.onnx") for name, s in graphs.items()},
        execution=_execution(policy, chunk, rtc),
        target=Target(
            "onnxruntime",
            options.target,
            trace.OPSET,
            trace.IR_VERSION,
            dict.fromkeys(graphs, "fp32"),
        ),
        parity=None,
        latency=None,
        provenance=_provenance(folder, facts, meaning, options),
        files=(),
        trained_camera_age_ms=meaning.trained_camera_age_ms,
        trained_camera_look=meaning.trained_camera_look,
        trained_still=meaning.trained_still,
        still_joints=options.still_joints,
        work=_work(policy),
        future_offset=_future_offset(policy, meaning),
    )


def _future_offset(policy: Policy, meaning: Meaning) -> int:
    """Raises UsageError: goals that are no states of this robot."""
    offset = policy.config.future_state_max_offset
    state, action = (meaning.features.get(name) for name in (STATE, ACTION))
    if offset and (
        state is None or action is None or (state.names, state.units) != (action.names, action.units)
    ):
        raise UsageError(
            f"this policy was trained with future_state_max_offset={offset}, which tells it goals as states, but "
            f"'{STATE}' and '{ACTION}' do not name the same joints in the same units; train it without"
        )
    return offset


def _work(policy: Policy) -> dict[str, Work] | None:
    """None for a policy of somebody's own that cannot be followed without values; tracing says why, if it matters."""
    try:
        return count(policy)
    except CheckpointError:
        return None


def _plain(setting: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in setting.items()}


def _prompt(policy: Policy, task: str | None, facts: DatasetFacts | None) -> PromptRecipe | None:
    """The task of a dataset that has one is what is asked for when nobody says; of several, none is."""
    recipe = policy.prompt_recipe()
    if recipe is None:
        if task is not None:
            raise UsageError(f"{policy.policy_type} takes no language; leave --task out")
        return None
    known = [text for text in (facts.tasks if facts is not None else ()) if text.strip()]
    usual = known[0] if len(known) == 1 else recipe.get("default_task") if not known else None
    listed = known[:TASKS_LISTED] if len(known) > 1 else []
    return read(PromptRecipe, {**recipe, "default_task": task or usual, "trained_tasks": listed}, "prompt")


def _rtc(policy: Policy, graphs: Mapping[str, GraphSpec]) -> RtcSupport | None:
    """None where no step takes what was commanded: policies without real-time chunking, and X-VLA's poses."""
    takers = (
        [i for i in graphs["denoise"].inputs if i.source == "rtc:committed"] if "denoise" in graphs else []
    )
    if policy.rtc_kind is None or not takers:
        return None
    longest = policy.config.trained_delay
    if longest:
        return RtcSupport("trained", "zeros", longest, 0.0, longest)
    own = policy.config.rtc_settings
    return RtcSupport(
        policy.rtc_kind,  # type: ignore[arg-type]
        fade(own.get("prefix_attention_schedule") or "linear"),
        int(own.get("execution_horizon") or 10),
        float(own.get("max_guidance_weight") or 10.0),
    )


def fade(said: object) -> WeightKind:
    """
    Raises:
        CheckpointError: guidance would fade as nobody here knows.
    """
    for known in get_args(WeightKind):
        if known == str(said).lower():
            return known  # type: ignore[no-any-return]
    raise CheckpointError(
        f"rtc_config.prefix_attention_schedule of the checkpoint is '{said}'; known are "
        f"{', '.join(get_args(WeightKind))}. Correct its config.json"
    )


def _execution(policy: Policy, chunk: int, rtc: RtcSupport | None) -> Execution:
    n = min(chunk, policy.config.n_action_steps)
    decay = policy.config.ensemble_decay
    if policy.config.future_state_max_offset:  # chunks begin where the one before leads to
        return Execution({"kind": "async"}, ("sync", "async"), 0.01)
    default: dict[str, Any] = {"kind": "sync", "n_action_steps": n}
    if decay is not None:
        default = {"kind": "ensemble"}
    elif rtc is not None:
        default = {"kind": "rtc"}
    allowed = ("sync", "ensemble", "async", *(["rtc"] if rtc is not None else []))
    return Execution(default, allowed, 0.01 if decay is None else float(decay))


def _provenance(
    folder: Path, facts: DatasetFacts | None, meaning: Meaning, options: ExportOptions
) -> Provenance:
    said: dict[str, Any] = {"joint_units": meaning.joint_units, "cameras": meaning.bindings}
    if meaning.warnings:
        said["warnings"] = list(meaning.warnings)
    *adapters, whole = chain(folder, options.base)
    if adapters:
        said["base"] = _shown(whole)
    if options.adapt_to_pi_aloha:
        said["adapt_to_pi_aloha"] = True
    if options.allow_parity_failure:
        said["allow_parity_failure"] = True
    layout = "lerobot 0.4 to 0.7" if (folder / "policy_preprocessor.json").is_file() else "lerobot before 0.4"
    return Provenance(
        checkpoint=CheckpointOrigin(_shown(folder), weights_sha256(folder), layout),
        dataset=None
        if facts is None
        else DatasetOrigin(
            facts.repo_id or "local", facts.sha256, float(facts.fps), facts.episodes, facts.reading
        ),
        features_from=meaning.features_from,
        edgevla=__version__,
        torch=version("torch").partition("+")[0],
        onnx=version("onnx"),
        onnxruntime=_onnxruntime_version(),
        exported_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        options=said,
    )


def _onnxruntime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _shown(folder: Path) -> str:
    """The last few parts of a path: enough to recognise it, nothing of the machine's layout."""
    return "/".join(folder.resolve().parts[-4:])

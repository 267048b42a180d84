"""Train a policy on a LeRobot dataset, or go on with a run that was interrupted.

    edgevla train --policy act --dataset datasets/so101
    edgevla train --policy smolvla --dataset me/so101_pick --from lerobot/smolvla_base --camera camera1=front \\
        --camera camera2=none --camera camera3=none
    edgevla train --resume runs/act-1124-1800

Learning rates, batch size and the like come from the policy's published preset (train/recipes/*.toml), unless an
option says otherwise. Checkpoints have LeRobot's layout; Ctrl-C finishes the step, saves, and says how to go on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from edgevla.checkpoints import (
    CHECKPOINTS,
    CONFIG,
    LAST,
    PRETRAINED,
    find_checkpoint,
    policy_folder,
    run_of,
    step_of,
)
from edgevla.dataset.reading_options import add_reading_arguments
from edgevla.errors import UsageError
from edgevla.vocabulary import BASE_HELP, camera_help, once, pairs, short_name

from .policies import policy_names

# Options that may differ when a run goes on: they change where and how, not what is learnt.
FREE_ON_RESUME = ["steps", "base", "dataset", "root", "device", "threads", "workers", "cache", "tensorboard"]
FREE_ON_RESUME += ["log_freq", "save_freq", "eval_freq"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # No defaults here: what the command line does not say comes from the recipe.
    parser.argument_default = argparse.SUPPRESS
    what = parser.add_argument_group("what")
    *most, last = policy_names()
    what.add_argument(
        "--policy", help=f"{', '.join(most)} or {last} (default: that of a checkpoint in --from)"
    )
    what.add_argument(
        "--list-settings",
        action="store_true",
        default=False,
        help="say what can be set of --policy, with defaults and meaning, and end",
    )
    what.add_argument(
        "--list-recipes", action="store_true", default=False, help="say which presets --recipe knows, and end"
    )
    what.add_argument("--dataset", metavar="PATH|REPO", help="LeRobot dataset: a folder or a hub id")
    what.add_argument("--root", metavar="DIR", help="where a hub dataset lies or is put")
    what.add_argument(
        "--from",
        dest="start",
        metavar="CHECKPOINT",
        help="policy folder or hub id to fine-tune; or the backbone's own folder (SmolVLM2, PaliGemma, ...)",
    )
    what.add_argument("--base", metavar="PATH", help=BASE_HELP)
    what.add_argument(
        "--from-scratch",
        action="store_true",
        help="without --from: train all of a policy that is built on a backbone, from random weights",
    )
    what.add_argument("--resume", metavar="RUN", help="go on with an interrupted run, to the bit on CPU")
    what.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="preset other than the policy's own: act_small for small machines, others by --list-recipes, "
        "or a TOML file like train/recipes/",
    )
    what.add_argument(
        "--output", metavar="DIR", help="the run's folder (default runs/<policy>-<date>-<time>)"
    )
    what.add_argument("--episodes", metavar="LIST", help="episodes to use, such as 0:40 or 3,5,8:12")
    what.add_argument(
        "--eval-episodes", metavar="N|LIST", help="hold these out (the last N) and log the loss on them"
    )
    what.add_argument(
        "--camera",
        dest="cameras",
        metavar="NAME=SOURCE",
        action="append",
        help=camera_help("a camera of the dataset"),
    )
    what.add_argument(
        "--domain-id",
        type=int,
        metavar="N",
        help="row of an X-VLA's soft prompts for this robot (of several: --set domain_feature_key=FEATURE)",
    )
    what.add_argument("--joint-units", choices=["degrees", "range100"], help="units of the dataset's joints")
    what.add_argument(
        "--backbone-weights", metavar="FILE", help="torchvision ResNet weights for the vision trunk"
    )
    what.add_argument(
        "--trunk-width",
        type=int,
        metavar="N",
        help="channels in the stem of a fresh ResNet trunk (published: 64)",
    )
    add_reading_arguments(what)
    _add_numbers(parser.add_argument_group("how"))
    _add_machine(parser.add_argument_group("where"))


def _add_numbers(how: Any) -> None:
    how.add_argument("--steps", type=int, help="optimizer steps in all")
    how.add_argument("--batch-size", type=int, help="samples per batch (and process)")
    how.add_argument("--accumulate", type=int, metavar="N", help="batches per optimizer step")
    how.add_argument(
        "--lr", type=float, help="learning rate; rates of groups and schedule keep their proportion"
    )
    how.add_argument("--weight-decay", type=float)
    how.add_argument("--grad-clip", type=float, help="largest norm of the gradient; 0 only measures it")
    how.add_argument(
        "--schedule",
        choices=["none", "cosine", "cosine_decay_with_warmup", "two_phase"],
        help="rate over time",
    )
    how.add_argument("--warmup", type=int, metavar="STEPS", help="steps of rising rate")
    how.add_argument("--decay-steps", type=int, metavar="STEPS", help="length of cosine_decay_with_warmup")
    how.add_argument("--final-lr", type=float, help="rate at the end of cosine_decay_with_warmup")
    how.add_argument("--seed", type=int)
    how.add_argument(
        "--set",
        dest="settings",
        metavar="KEY=VALUE",
        action="append",
        help="a field of the policy's config.json, such as chunk_size=30",
    )
    how.add_argument(
        "--image-transforms", action="store_true", help="random changes of colour, sharpness, place"
    )
    how.add_argument("--precision", choices=["auto", "fp32", "bf16"], help="auto follows the policy's config")
    how.add_argument("--lora", type=int, metavar="RANK", help="train LoRA factors of this rank, nothing else")
    how.add_argument("--lora-alpha", type=int, help="scale of the factors times the rank (default: the rank)")
    how.add_argument(
        "--lora-targets", metavar="REGEX", help="layers that get factors (default: the policy's own)"
    )
    how.add_argument(
        "--merge-lora", action="store_true", help="at the end also write RUN/merged, a plain policy"
    )
    how.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")


def _add_machine(where: Any) -> None:
    where.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    where.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch")
    where.add_argument("--workers", type=int, metavar="N", help="threads that prepare batches")
    where.add_argument(
        "--cache", choices=["auto", "ram", "disk", "none"], help="where decoded frames are kept"
    )
    where.add_argument("--log-freq", type=int, metavar="STEPS")
    where.add_argument("--save-freq", type=int, metavar="STEPS", help="0: only the last step")
    where.add_argument("--eval-freq", type=int, metavar="STEPS", help="default: at every save")
    where.add_argument("--no-tensorboard", dest="tensorboard", action="store_false")
    where.add_argument("--json", action="store_true", default=False, help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    given = vars(args).copy()
    for name in ("verbose", "verb"):
        given.pop(name, None)
    as_json = given.pop("json")
    if given.pop("list_recipes"):
        from .config import recipe_lines

        print("\n".join(recipe_lines()))
        return 0
    if given.pop("list_settings"):
        return _list_settings(given)
    return train_command(given, as_json)


def _list_settings(given: dict[str, Any]) -> int:
    from .settings import lines

    if "policy" not in given:
        raise UsageError("--list-settings of which policy? Say --policy NAME")
    _known(given["policy"])
    print("\n".join(lines(given["policy"])))
    return 0


def train_command(given: dict[str, Any], as_json: bool) -> int:
    """given: what the command line says, by option name."""
    import logging
    import os

    from .job import prepare
    from .loop import train

    is_first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(
        format="%(levelname)s: %(message)s", level=logging.WARNING if is_first else logging.ERROR
    )
    logging.getLogger("huggingface_hub").propagate = False  # it prints by itself

    def say(text: str) -> None:
        if is_first:
            print(text, file=sys.stderr if as_json else sys.stdout, flush=True)

    resumed = given.pop("resume", None)
    config, place, checkpoint = _resuming(resumed, given) if resumed else _starting(given)
    with place if is_first else nullcontext(Path(config.output)) as folder, _plain_warnings():
        prepared = prepare(config, folder, say, checkpoint)
        _introduce(prepared, say)
        try:
            outcome = train(prepared.job, prepared.done)
        finally:
            prepared.close()
        return _conclude(prepared, outcome, say, as_json and is_first)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as sentences for a person, without the place in our code."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"WARNING: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


Place = AbstractContextManager[Path]
"""Of a run: while it is open, the folder is nobody else's."""


def _starting(given: dict[str, Any]) -> tuple[Any, Place, None]:
    import dataclasses

    from .claim import claimed_anew
    from .config import TrainConfig, read_recipe
    from .policies import ALIASES

    start = given.get("start", "")
    given["policy"] = given.get("policy") or _policy_of(start)
    if start and not given["policy"]:
        raise UsageError(
            f"--from {start}: no checkpoint lies there that says its policy; correct it, or say --policy"
        )
    for name in ("policy", "dataset"):
        if not given.get(name):
            raise UsageError(f"--{name} is missing: edgevla train --policy act --dataset PATH_OR_REPO")
    policy = given.pop("policy")
    _known(policy)
    recipe = given.pop("recipe", None) or policy
    overrides = _overrides(given)
    if "policy" not in read_recipe(recipe):  # it is for several
        overrides["policy"] = ALIASES.get(policy, policy)
    config = TrainConfig.resolve(recipe, overrides)
    config = dataclasses.replace(config, settings=_typed(policy, config))
    kind = config.scheduler.type
    idle = [name for name in SCHEDULED if name in given and kind not in SCHEDULED[name]]
    if idle:
        option = "--" + idle[0].replace("_", "-")
        raise UsageError(f"{option} does nothing under the schedule '{kind}'; choose another with --schedule")
    return config, claimed_anew(config.output, policy), None


def _policy_of(start: str) -> str:
    """The type of the policy that a run starts from, where it lies here and says so; else nothing."""
    folder = policy_folder(Path(start).expanduser()) if start else None
    try:
        said = json.loads((folder / CONFIG).read_text()) if folder is not None else {}
    except (OSError, ValueError):
        return ""
    return str(said.get("type") or "") if isinstance(said, dict) else ""


def _known(policy: str) -> None:
    from edgevla.errors import CheckpointError

    from .policies import policy_class

    try:
        policy_class(policy)
    except CheckpointError as error:
        raise UsageError(f"--policy: {error}") from error


def _typed(named: str, config: Any) -> dict[str, Any]:
    """The policy's settings as values of their types, as they will stand in edgevla-train.toml."""
    from .policies import ALIASES, policy_class
    from .start import own_settings

    cls = policy_class(named)
    if ALIASES.get(named, named) != config.policy:
        raise UsageError(f"--policy {named} was asked for, but the recipe is for {config.policy}")
    _check_recipe(named, config)
    # TOML has no null; read back, "none" becomes None for a field that may be.
    return {k: "none" if v is None else v for k, v in own_settings(cls.Config, config.settings).items()}


def _check_recipe(named: str, config: Any) -> None:
    """Raises UsageError where a recipe for several policies sets what this one does not have."""
    import dataclasses

    from .config import read_recipe
    from .policies import POLICIES, config_class, policy_class

    def lacks(cls: Any) -> list[str]:
        fields = {f.name for f in dataclasses.fields(cls)}
        return [key for key in read_recipe(config.recipe).get("settings", {}) if key not in fields]

    if missing := lacks(policy_class(named).Config):
        able = [name for name in POLICIES if not lacks(config_class(name))]
        raise UsageError(
            f"--recipe {config.recipe} sets {missing[0]}, which {named} does not have; it is for {', '.join(able)}"
        )


def _resuming(resumed: str, given: dict[str, Any]) -> tuple[Any, Place, Path]:
    import dataclasses

    from .claim import claimed
    from .config import OWN_CONFIG, TrainConfig

    checkpoint = find_checkpoint(Path(resumed))
    if checkpoint.parent.name != CHECKPOINTS:
        raise UsageError(
            f"{checkpoint} is not in its run any more (RUN/{CHECKPOINTS}/STEP); put it back, or start a new run from "
            f"its weights: --from {checkpoint / PRETRAINED}"
        )
    path = checkpoint / PRETRAINED / OWN_CONFIG
    if not path.is_file():
        raise UsageError(f"{checkpoint} was not written by edgevla train; fine-tune it with --from instead")
    config = TrainConfig.load(path)
    changes = _overrides(given)
    fixed = [k for k in changes if k not in FREE_ON_RESUME and changes[k] != getattr(config, k, None)]
    if fixed:
        free = ", ".join("--" + n.replace("_", "-") for n in sorted(FREE_ON_RESUME))
        raise UsageError(
            f"--resume goes on with the run as it was begun, so '{fixed[0]}' cannot change (these can: {free}); "
            f"to train further with other settings, start a run with --from {checkpoint / PRETRAINED}"
        )
    config = dataclasses.replace(config, **{k: v for k, v in changes.items() if k in FREE_ON_RESUME})
    done = step_of(checkpoint)
    if done >= config.steps:
        raise UsageError(f"{resumed} has made all of its {config.steps} steps; ask for more with --steps")
    folder = run_of(checkpoint)
    if folder.is_relative_to(Path.cwd()):  # shorter to read, and to type again
        folder = folder.relative_to(Path.cwd())
    return config, claimed(folder), checkpoint


NESTED = {
    "lr": ("optimizer", "lr"),
    "weight_decay": ("optimizer", "weight_decay"),
    "grad_clip": ("optimizer", "grad_clip_norm"),
    "schedule": ("scheduler", "type"),
    "warmup": ("scheduler", "warmup_steps"),
    "decay_steps": ("scheduler", "decay_steps"),
    "final_lr": ("scheduler", "decay_lr"),
}
SCHEDULED = {
    "warmup": ("cosine", "cosine_decay_with_warmup", "two_phase"),
    "decay_steps": ("cosine_decay_with_warmup",),
    "final_lr": ("cosine_decay_with_warmup",),
}
"""Options of the schedule, and the schedules that have them."""


def _overrides(given: dict[str, Any]) -> dict[str, Any]:
    """Options as the nested table that a recipe is."""
    overrides: dict[str, Any] = {}
    for name, value in given.items():
        if name in ("settings", "cameras"):
            overrides[name] = pairs(value, "--set" if name == "settings" else "--camera")
        elif name == "features":
            overrides[name] = pairs(value, "--feature")
        elif name == "without":
            overrides[name] = tuple(once(value, "--without"))
        elif name in NESTED:
            table, key = NESTED[name]
            overrides.setdefault(table, {})[key] = value
        else:
            overrides[name] = value
    return overrides


def _introduce(prepared: Any, say: Any) -> None:
    """One screen about what is going to happen."""
    from .notes import notes

    job, facts = prepared.job, prepared.facts
    config, policy = job.config, job.policy
    n_all = sum(p.numel() for p in policy.parameters())
    n_trained = sum(p.numel() for p in job.trainable)
    say(
        f"{config.policy}: {n_all / 1e6:.1f} M parameters, {n_trained / 1e6:.1f} M trained, on {job.worker.device}"
        + (f" ({job.worker.n_ranks} processes)" if job.worker.n_ranks > 1 else "")
        + (", bf16 autocast" if job.worker.bf16 else "")
    )
    cameras = ", ".join(short_name(c, policy.live_cameras) for c in policy.live_cameras) or "none"
    say(
        f"{config.dataset}: {facts.n_episodes} episodes, {facts.n_frames} frames at {facts.fps:g} Hz, "
        f"{len(prepared.data)} samples; cameras: {cameras}"
    )
    if facts.joint_units is None:
        guess = f"they look like {facts.units_guess}" if facts.units_guess else "they cannot be told"
        say(
            f"Joint units are not stated; {guess} ({facts.units_reason}). "
            "Export will ask for --joint-units; giving it here settles it."
        )
    for sentence in notes(policy, prepared.data, facts):
        say(sentence)
    epochs = config.steps * config.batch_size * config.accumulate * job.worker.n_ranks / len(prepared.data)
    begun = f" from step {prepared.done}" if prepared.done else ""
    _warn_of_room(job, prepared.done, say)
    say(f"{config.steps} steps{begun}, batch {config.batch_size}, {epochs:.1f} epochs in all; run: {job.run}")


def _warn_of_room(job: Any, done: int, say: Any) -> None:
    """Before hours of training: whether the disk has room for what they will save."""
    from .loop import checkpoint_bytes
    from .room import free_bytes, gigabytes

    config = job.config
    freq = config.save_freq or config.steps
    n_saves = -(-config.steps // freq) - done // freq
    need, free = n_saves * checkpoint_bytes(job), free_bytes(job.run)
    if need > free:
        each = f"its {n_saves} checkpoints take" if n_saves > 1 else "its checkpoint takes"
        say(f"WARNING: {each} about {gigabytes(need)}, and {gigabytes(free)} are free for {job.run}")


def _export_of(checkpoint: Path, config: Any) -> str:
    """The next command. With the dataset graphs are compared on real frames, and int8 is possible."""
    return shlex.join(["edgevla", "export", str(checkpoint), "--dataset", config.root or config.dataset])


def _conclude(prepared: Any, outcome: Any, say: Any, as_json: bool) -> int:
    import signal

    job = prepared.job
    last = job.run / CHECKPOINTS / LAST
    resume, export = f"edgevla train --resume {job.run}", _export_of(last, job.config)
    if outcome.signal is not None:
        name = signal.Signals(outcome.signal).name
        say(f"{name}: step {outcome.step} of {job.config.steps} is saved. Go on with:\n  {resume}")
    else:
        say(f"Done: {last}, loss {job.log.last.get('loss', float('nan')):.4g}, curve {job.run / 'loss.png'}.")
        if job.config.merge_lora and job.worker.rank == 0:
            export = _export_of(prepared.save_merged(), job.config)
        say(f"Next:\n  {export}")
    if as_json:
        result = {
            "run": str(job.run),
            "checkpoint": str(last),
            "step": outcome.step,
            "steps": job.config.steps,
            "interrupted": outcome.signal is not None,
            "metrics": job.log.last,
            "next": export if outcome.signal is None else resume,
        }
        print(json.dumps(result))
    return 130 if outcome.signal is not None else 0

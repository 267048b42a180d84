"""What is in a checkpoint or a bundle, for `edgevla inspect`: read from headers and JSON, without loading weights.

Each function returns (lines for a person, the same as data, exit code: 0 sound, 1 something is wrong, or the actions
are end-effector poses, which nothing here can deploy).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgevla.bundle import load_bundle
from edgevla.checkpoints import policy_folder
from edgevla.dataset.facts import DatasetFacts, read_facts
from edgevla.dataset.still import still_sentences, still_values
from edgevla.errors import BundleError, CheckpointError
from edgevla.execution.commit import future_words, rtc_words
from edgevla.extras import install_words
from edgevla.manifest import Manifest
from edgevla.seam_methods import seam_words
from edgevla.train.account import account_of
from edgevla.train.adapters import ADAPTER_WEIGHTS, chain, strange_layers, summary
from edgevla.train.header import Weight, read_header
from edgevla.train.own_keys import read_own_keys
from edgevla.train.policies import config_class
from edgevla.train.policies.config import features_of
from edgevla.train.processors import POST, PRE, Processors
from edgevla.train.weight_files import distributed_sentence, is_distributed, read_weights_header
from edgevla.types import STATE

from . import planner
from .certified import certificate_words
from .features import NOT_JOINTS
from .planner import CPU_MEMORY_FACTOR, RUNTIME_BYTES
from .verdict import kept_words

Report = tuple[list[str], dict[str, Any], int]

PARTS = (
    ("VAE encoder (training only)", r"vae_encoder"),
    ("vision", r"vision_(tower|model)|rgb_encoder|(^|\.)backbone\.(conv1|bn1|layer\d)"),
    ("connector", r"connector|multi_modal_projector|image_proj|\.mlp1\.|visual_(proj|pos|temporal)"),
    ("action expert", r"(lm|gemma)_expert\.|_groot_model\.action_head|\bunet\b|model\.transformer\."),
    ("language", r"language_model|text_model|lm_head|embed_tokens"),
)
"""Part of a policy -> what the names of its weights hold; the first that fits. Others go by their first word."""
NOT_EXPORTED = re.compile(r"vae_encoder|lm_head")


def describe_checkpoint(path: str | Path, base: str = "", device: str = "") -> Report:
    """device: also says how fast it can be there.

    Raises:
        CheckpointError: no readable config.json or weights there. UsageError: an unknown device.
    """
    on = planner.device(device) if device else None
    folder = policy_folder(Path(path)) or Path(path)
    if not (folder / "config.json").is_file() and is_distributed(folder):
        raise CheckpointError(distributed_sentence(folder))
    config = _json(folder / "config.json")
    if not isinstance(config.get("type"), str):
        raise CheckpointError(
            f"{folder / 'config.json'} names no policy 'type', so it is not a LeRobot policy config"
        )
    inputs, outputs = (_features(config, key) for key in ("input_features", "output_features"))
    *adapters, whole = chain(folder, base)
    weights, _ = read_weights_header(whole)
    account = account_of(folder)
    processors = Processors.load(folder)
    facts = read_facts(folder)
    parts = _parts(weights)
    problems = [*account.problems, *_strange_factors(adapters, weights)]
    trained = None if problems else _trained(folder, whole)
    poses, unknown = (None, None) if problems else _pose_space(config, processors)
    problems = problems if unknown is None else [*problems, unknown]
    dtypes = Counter[str]()
    for w in weights.values():
        dtypes[w.dtype] += w.count
    data: dict[str, Any] = {
        "kind": "checkpoint",
        "type": config["type"],
        "adapter": summary([*adapters, whole]) if adapters else None,
        "layout": "lerobot 0.4 to 0.7" if processors.pre else "lerobot before 0.4",
        "n_parameters": sum(w.count for w in weights.values()),
        "n_tensors": len(weights),
        "parts": parts,
        "trained": trained,
        "dtypes": dict(dtypes),
        "inputs": inputs,
        "outputs": outputs,
        "normalisation": _normalisation(config, processors, weights),
        "tokenizer": _tokenizer(folder, config, processors),
        "action_space": _action_space(config, outputs, processors, facts, poses),
        "joint_units": None if facts is None else facts.joint_units,
        "fps": None if facts is None else facts.fps,
        "never_moved": _never_moved(processors, facts),
        "chunk": {
            k: config[k] for k in ("chunk_size", "horizon", "n_action_steps", "n_obs_steps") if k in config
        },
        "own_settings": None if problems else read_own_keys(folder),
        "export": _export_sizes(weights),
        "account": [vars(entry) for entry in account.entries],
        "notes": account.notes,
        "problem": problems[0] if problems else None,
        "problems": problems,
    }
    lines = _checkpoint_lines(folder, data)
    if on is not None and not problems:
        subject = planner.subject_of_checkpoint(folder, base, data["fps"])
        found = planner.plans(subject, on)
        lines += ["", *planner.lines(subject, on, found)]
        data["planned"] = planner.as_data(on, found)
    return lines, data, 1 if problems or poses else 0


def describe_bundle(path: str | Path, device: str = "") -> Report:
    """A damaged bundle is described as far as it can be read, with exit code 1. device: also how fast it can be there.

    Raises:
        UsageError: an unknown device, or the bundle does not say how much arithmetic it is.
    """
    folder = Path(path)
    on = planner.device(device) if device else None
    problem = None
    try:
        manifest = load_bundle(folder).manifest
    except BundleError as error:
        problem = str(error)
        try:
            manifest = load_bundle(folder, verify=False).manifest
        except BundleError:
            return [f"not sound: {problem}"], {"kind": "bundle", "problem": problem}, 1
    data = {"kind": "bundle", "problem": problem, "manifest": manifest.to_json()}
    lines = _bundle_lines(folder, manifest)
    lines.append(f"not sound: {problem}" if problem else "sound: every file is as the manifest says")
    if on is not None and not problem:
        subject = planner.subject_of(manifest)
        found = planner.plans(subject, on)
        measured = planner.measured_ms(load_bundle(folder, verify=False)) if device == planner.THIS else None
        lines += ["", *planner.lines(subject, on, found, measured)]
        data["planned"] = planner.as_data(on, found, measured)
    return lines, data, 1 if problem else 0


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); fetch the checkpoint again") from error
    return data if isinstance(data, dict) else {}


def _features(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: {"type": f.type, "shape": list(f.shape)} for name, f in features_of(config, key).items()}


# -- parts of a checkpoint ------------------------------------------------------------------------------------


def _parts(weights: Mapping[str, Weight]) -> dict[str, int]:
    """Part -> number of values, largest first."""
    counts = Counter[str]()
    for name, weight in weights.items():
        counts[part_of(name)] += weight.count
    return dict(counts.most_common())


def part_of(name: str) -> str:
    """Which part of a policy a parameter belongs to, by its name."""
    for part, pattern in PARTS:
        if re.search(pattern, name):
            return part
    words = re.sub(r"^(model|diffusion|_groot_model)\.", "", name).split(".")
    return (
        words[0] if words[0] in ("encoder", "decoder", "unet", "backbone") else "projections and embeddings"
    )


def _strange_factors(adapters: Sequence[Path], weights: Mapping[str, Weight]) -> Iterator[str]:
    """Why factors do not belong to their base."""
    for folder in adapters:
        strange = strange_layers(weights, read_header(folder / ADAPTER_WEIGHTS))
        if strange:
            yield f"{folder} has factors for {len(strange)} layers that its base lacks, e.g. {strange[0]}"


def _trained(folder: Path, whole: Path) -> dict[str, float] | None:
    """Part -> share of its parameters that training would change, by building the policy without memory; None
    without torch."""
    try:
        from edgevla.train.skeleton import parameters
    except ModuleNotFoundError:
        return None
    trained, total = Counter[str](), Counter[str]()
    for name, (n, is_trained) in parameters(folder, whole).items():
        total[part_of(name)] += n
        trained[part_of(name)] += n * is_trained
    return {part: trained[part] / n for part, n in total.items() if n}


def _normalisation(
    config: Mapping[str, Any], processors: Processors, weights: Mapping[str, Weight]
) -> dict[str, Any]:
    modes = processors.norm_map or config.get("normalization_mapping") or {}
    holder = next((s.name for s in processors.pre if s.state), None)
    if holder is not None:
        source = f"policy_preprocessor, step {holder}"
    elif any("normalize_inputs" in name for name in weights):
        source = "buffers among the weights (before LeRobot 0.4)"
    elif processors.stats:
        source = "policy_postprocessor"
    else:
        source = "none"
    modes = modes if isinstance(modes, dict) else {}  # else loading says what it is
    return {"modes": modes, "statistics": source, "features": sorted(processors.stats)}


def _tokenizer(folder: Path, config: Mapping[str, Any], processors: Processors) -> dict[str, Any] | None:
    step = processors.step("tokenizer_processor")
    name = (step.config if step else {}).get("tokenizer_name") or config.get("tokenizer_assets_repo")
    if name is None:
        return None
    file = folder / "tokenizer" / "tokenizer.json"
    length = (step.config if step else {}).get("max_length")
    return {"name": name, "max_length": length, "is_in_checkpoint": file.is_file()}


def _pose_space(config: dict[str, Any], processors: Processors) -> tuple[str | None, str | None]:
    """What makes the actions end-effector poses, None for joints; and why that cannot be told, if so."""
    try:
        return config_class(config["type"]).from_json(config).pose_space(processors), None
    except ModuleNotFoundError:  # this policy's config needs torch, which is not installed
        return None, None
    except CheckpointError as error:
        return None, str(error)


def _action_space(
    config: Mapping[str, Any],
    outputs: Mapping[str, Any],
    processors: Processors,
    facts: Any,
    poses: str | None,
) -> dict[str, Any]:
    relative = processors.step("relative_actions_processor", "delta_actions_processor")
    names = list(facts.features["action"].names) if facts is not None and "action" in facts.features else None
    return {
        "n": next(iter(outputs.get("action", {}).get("shape", ())), None),
        "names": names,
        "mode": config.get("action_mode"),
        "embodiment": config.get("embodiment_tag"),
        "is_relative": bool(relative is not None and relative.config.get("enabled")),
        "drives_joints": poses is None,
        "poses": poses,
    }


def _never_moved(processors: Processors, facts: DatasetFacts | None) -> list[str]:
    """On the elements of the state that the training data never saw move."""
    state = facts.features.get(STATE) if facts is not None else None
    names, units = (state.names, state.units) if state is not None else ((), ())
    return still_sentences(still_values(processors.stats.get(STATE, {}), units), names, units)


def _export_sizes(weights: Mapping[str, Weight]) -> dict[str, dict[str, int]]:
    """Bytes per precision. `file`: the graphs' weights; `cpu`, `gpu`: memory while running, estimated from it."""
    matrices = vectors = 0
    for name, w in weights.items():
        if NOT_EXPORTED.search(name):
            continue
        if len(w.shape) >= 2:
            matrices += w.count
        else:
            vectors += w.count
    out = {}
    for precision, n_bytes in (("fp32", 4), ("fp16", 2), ("int8", 1), ("int4", planner.BYTES["int4"])):
        file = int(matrices * n_bytes) + vectors * 4
        # A CPU computes fp16 with widened weights.
        cpu = (
            (matrices * 4 + vectors * 4) * CPU_MEMORY_FACTOR
            if precision == "fp16"
            else file * CPU_MEMORY_FACTOR
        )
        out[precision] = {"file": file, "cpu": int(cpu) + RUNTIME_BYTES, "gpu": file + RUNTIME_BYTES}
    return out


# -- lines ------------------------------------------------------------------------------------------------------


def _checkpoint_lines(folder: Path, d: Mapping[str, Any]) -> list[str]:
    n = d["n_parameters"]
    lines = [
        f"{folder}",
        f"policy        {d['type']} ({d['layout']})",
        *_adapter_lines(d["adapter"]),
        f"parameters    {_count(n)} in {d['n_tensors']} tensors, "
        + ", ".join(f"{dtype} {_count(c)}" for dtype, c in d["dtypes"].items()),
    ]
    trained = d["trained"]
    for part, count in d["parts"].items():
        share = "" if trained is None else f", {_share(trained.get(part, 0.0))}"
        lines.append(f"  {part:<28} {_count(count):>8}{share}")
    lines += [f"input         {name}: {f['type']} {_shape(f['shape'])}" for name, f in d["inputs"].items()]
    lines += [f"output        {name}: {f['type']} {_shape(f['shape'])}" for name, f in d["outputs"].items()]
    modes = ", ".join(f"{k} {v}" for k, v in d["normalisation"]["modes"].items()) or "none"
    lines.append(f"normalisation {modes}; statistics from {d['normalisation']['statistics']}")
    tokenizer = d["tokenizer"]
    if tokenizer is not None:
        where = (
            "in the checkpoint" if tokenizer["is_in_checkpoint"] else "not in the checkpoint, fetched by name"
        )
        lines.append(
            f"tokenizer     {tokenizer['name']}, up to {tokenizer['max_length'] or '?'} tokens, {where}"
        )
    lines.append(f"actions       {_actions(d['action_space'], d['chunk'])}")
    units = d["joint_units"] or "not stated: export will ask for --joint-units"
    lines.append(f"joint units   {units}" + (f", {d['fps']:g} Hz" if d["fps"] else ""))
    if d["own_settings"]:
        said = ", ".join(f"{key} {value}" for key, value in d["own_settings"].items())
        lines.append(f"trained with  {said} (edgevla-policy.json; LeRobot runs it as an ordinary policy)")
    lines += [f"warning: {sentence}" for sentence in d["never_moved"]]
    for precision, size in d["export"].items():
        lines.append(
            f"as {precision:<10} file {_bytes(size['file'])}; memory about {_bytes(size['cpu'])} on a CPU, "
            f"{_bytes(size['gpu'])} on a GPU"
        )
    lines += _account_lines(d["account"])
    lines += [f"note          {note}" for note in d["notes"]]
    if trained is None and not d["problems"]:
        lines.append(
            "whether settings and weights are the network's, and what training would change, is known where torch is: "
            f"{install_words('train')}"
        )
    lines += [f"not sound: {problem}" for problem in d["problems"]]
    if not d["problems"]:
        fit = "" if trained is None else ", and the weights fit the config"
        lines.append(f"sound: all that it says is read{fit}")
    poses = d["action_space"]["poses"]
    if poses is not None:
        lines.append(
            f"refused: the actions are {NOT_JOINTS.format(poses)}, so export refuses them too; "
            "fine-tune on joints with --set action_mode=auto"
        )
    return lines


def _adapter_lines(adapter: Mapping[str, Any] | None) -> list[str]:
    if adapter is None:
        return []
    ranks = ", ".join(map(str, adapter["ranks"]))
    whole = f", with {', '.join(adapter['whole_modules'])} whole" if adapter["whole_modules"] else ""
    return [
        f"adapter       {adapter['kind']} of rank {ranks}{whole}, added to {' and '.join(adapter['bases'])}"
    ]


def _account_lines(entries: list[dict[str, Any]]) -> list[str]:
    """The pipelines step by step, and of the rest how much there is."""
    lines = []
    for file, title in ((PRE, "before"), (POST, "after")):
        for e in entries:
            if (
                e["where"].startswith(f"{file}.json step")
                and "." not in e["name"]
                and e["verdict"] != "refused"
            ):
                lines.append(f"{title:<13} {e['name']}: {e['becomes']}")
    keys = Counter(e["verdict"] for e in entries if e["where"] == "config.json")
    said = ", ".join(f"{n} {verdict}" for verdict, n in keys.items())
    return [*lines, f"settings      {sum(keys.values())} in config.json: {said}"] if keys else lines


def _actions(space: Mapping[str, Any], chunk: Mapping[str, Any]) -> str:
    words = [f"{space['n']} values"]
    if space["names"]:
        words.append(f"({', '.join(space['names'])})")
    words += [f"{k} {v}" for k, v in chunk.items()]
    words += [f"{k} {space[k]}" for k in ("mode", "embodiment") if space[k]]
    words += ["relative to the state"] if space["is_relative"] else []
    words += ["end-effector poses"] if space["poses"] else []
    return ", ".join(words)


def _bundle_lines(folder: Path, m: Manifest) -> list[str]:
    size = sum(f.bytes for f in m.files)
    lines = [
        f"{folder}",
        f"bundle        '{m.name}', policy {m.policy}, {_bytes(size)}, for {m.target.engine} on {m.target.provider}",
        f"actions       {m.fps:g} Hz, chunks of {m.chunk_size}, {m.n_action_steps} executed by sync",
        f"execution     {m.execution.default['kind']} (allowed: {', '.join(m.execution.allowed)})",
        f"seams         {seam_words(m)}",
    ]
    longest = None if m.rtc is None else m.rtc.max_delay
    lines.append(f"real-time     {rtc_words(None if m.rtc is None else m.rtc.mode, longest, m.fps)}")
    if m.future_offset:
        lines.append(f"future state  {future_words(m.future_offset, m.fps)}")
    if m.schedule is not None:
        low, high = m.schedule.n_steps_allowed
        lines.append(f"denoise       {m.schedule.n_steps} steps ({m.schedule.kind}; {low} to {high} allowed)")
    for name, f in m.features.items():
        if f.kind == "camera":
            lines.append(
                f"camera        {f.camera_name} -> {name}, {f.shape[1]}x{f.shape[0]} RGB{_looked(m, name)}"
            )
        elif f.kind == "absent_camera":
            lines.append(f"camera        none for {name}")
        else:
            joints = ", ".join(f"{n} {u}" for n, u in zip(f.names, f.units, strict=True)) or _shape(f.shape)
            lines.append(f"{f.kind:<13} {joints}")
    for name, still in (m.trained_still or {}).items():
        known = zip(m.features[name].names, still, strict=True)
        listed = ", ".join(f"{joint} {value:.6g}" for joint, value in known if value is not None)
        told = (
            "the policy is told so" if m.still_joints == "trained" else "the policy is told what is measured"
        )
        lines.append(f"never moved   {listed} in training; {told}")
    for name, graph in m.graphs.items():
        takes = ", ".join(i.source or i.name for i in graph.inputs)
        lines.append(f"{name:<13} {graph.file}, {m.target.precision[name]}, takes {takes}")
    if m.lowered is not None:
        lines.append(f"precision     {kept_words(m)}")
    if m.prompt is not None:
        task = repr(m.prompt.default_task) if m.prompt.default_task else "none: deploy with --task"
        lines.append(f"prompt        {m.prompt.tokenizer.n_tokens} tokens, default task {task}")
        lines += [f"trained on    {text!r}" for text in m.prompt.trained_tasks]
    if m.parity is not None:
        verdict = "as torch" if m.parity.passed else "NOT as torch"
        lines.append(
            f"parity        computes {verdict} on {m.parity.n_samples} samples ({m.parity.reference})"
        )
        lines.append(f"certificate   {certificate_words(m.parity)}")
    if m.latency is not None:
        lines.append(
            f"latency       encode {m.latency.encode_ms.p50:g} ms, one eager chunk {m.latency.eager_ms.p50:g} ms "
            f"({m.latency.machine})"
        )
    p = m.provenance
    lines.append(
        f"from          {p.checkpoint.path}, features from {p.features_from}, exported {p.exported_at}"
    )
    return lines


def _looked(m: Manifest, camera: str) -> str:
    """How bright its pictures were in training, 0 to 255, where the bundle knows."""
    look = (m.trained_camera_look or {}).get(camera)
    return (
        ""
        if look is None
        else f", brightness {look.brightness[0]:.0f} to {look.brightness[1]:.0f} in training"
    )


def _count(n: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return str(n)


def _bytes(n: float) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def _shape(shape: Any) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _share(trained: float) -> str:
    """Of a part's parameters; statistics of norms and tables of positions are no parameters."""
    if trained == 0:
        return "frozen"
    return "trained" if trained >= 1 else f"{trained:.0%} trained"

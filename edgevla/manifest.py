"""`manifest.json` of a policy bundle as frozen dataclasses: every key of schema 1, and what must agree.

Reading refuses unknown keys, sources outside the closed vocabulary, paths that leave the folder, and parts that
contradict each other, each with one sentence. Writing gives back the JSON that was read. What the keys mean:
docs/formats.md#keys-of-the-manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from edgevla.errors import BundleError
from edgevla.graph import GraphSpec, TensorSpec, is_source
from edgevla.look import GRID, CameraLook
from edgevla.manifest_record import Latency, Lowered, Parity, Provenance, Work
from edgevla.policy import Schedule
from edgevla.strict import Mismatch, nearest, read, write
from edgevla.types import ACTION, STATE, CameraAge, Feature, named_features
from edgevla.vocabulary import WeightKind

SCHEMA = 1
UNITS = ("deg", "rad", "range100", "percent", "unit", "m", "raw")
"""`raw`: whatever the dataset holds, no joint; no robot takes it."""
EXECUTIONS = ("sync", "ensemble", "async", "rtc")
GRAPH_NAMES = ("encode", "time", "denoise", "decode")


@dataclass(frozen=True)
class Batch:
    """How many observations one inference takes."""

    min: int
    max: int


@dataclass(frozen=True)
class Range:
    """1st and 99th percentile per element, robot units."""

    q01: tuple[float, ...]
    q99: tuple[float, ...]


@dataclass(frozen=True)
class PromptState:
    """How Pi0.5 writes the state into its prompt. a, b: q01/q99, min/max or mean/std, as `mode` says."""

    mode: str
    eps: float
    a: tuple[float, ...]
    b: tuple[float, ...]
    n_bins: int
    pad_to: int | None


@dataclass(frozen=True)
class TokenizerRecipe:
    """add_bos: the tokenizer's own special tokens are added. padding_side right, or left as GR00T's reference.

    padding: to n_tokens, or to the longest of a batch (training only: a bundle's graphs have one length).
    """

    file: str
    n_tokens: int
    padding: Literal["max_length", "longest"]
    padding_side: Literal["right", "left"]
    add_bos: bool
    pad_id: int
    truncation: bool = True


@dataclass(frozen=True)
class PromptRecipe:
    """From a task (and a state) to tokens: see `edgevla/prompt.py`.

    default_task: for a deployment that names none; None where the training data have several, `trained_tasks`.
    """

    recipe: str
    template: str
    clean_task: tuple[str, ...]
    state: PromptState | None
    tokenizer: TokenizerRecipe
    default_task: str | None
    trained_tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """The running sample x. shape: with the batch axis (1, T, W). action_dim: width of `actions`."""

    dtype: Literal["float32"]
    shape: tuple[int, ...]
    action_dim: int


@dataclass(frozen=True)
class Setting:
    """values: what a deployment may choose; None: any number."""

    dtype: str
    default: float
    values: tuple[float, ...] | None = None


@dataclass(frozen=True)
class RtcSupport:
    """weights, guidance_end, max_guidance: what a deployment uses that says nothing else. max_delay: actions, the
    longest committed beginning that a `trained` policy was shown; None: it was shown none."""

    mode: Literal["guided", "inpaint", "trained"]
    weights: WeightKind
    guidance_end: int
    max_guidance: float
    max_delay: int | None = None


@dataclass(frozen=True)
class GraphFile(GraphSpec):
    """A graph's signature and its file. data: external weights beside it."""

    file: str = ""
    data: str | None = None


@dataclass(frozen=True)
class Execution:
    """default: `kind` and that strategy's options. ensemble_decay: 1 / grid moment."""

    default: dict[str, Any]
    allowed: tuple[str, ...]
    ensemble_decay: float


@dataclass(frozen=True)
class Target:
    engine: str
    provider: str
    opset: int
    ir_version: int
    precision: dict[str, str]


@dataclass(frozen=True)
class FileEntry:
    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The whole of `manifest.json`. None means "does not apply".

    trained_camera_age_ms: by camera feature; left out where the training data do not hold ages.
    trained_camera_look: by camera feature; left out where the training data were not at hand.
    trained_still: by feature, per element what it always was in the training data, null where it moved; left out where
        all of them moved. still_joints: what the policy is told of such elements, that value or what is measured.
    work: by graph; left out by exports before it was counted.
    future_offset: steps; the state may be where the arm will be up to so much later, and action 0 belongs there then;
        left out where the policy knows the present state only.
    """

    schema: int
    policy: str
    name: str
    fps: float
    chunk_size: int
    n_action_steps: int
    n_obs_steps: int
    batch: Batch
    features: dict[str, Feature]
    trained_range: dict[str, Range] | None
    trained_speed_p999: dict[str, tuple[float, ...]] | None
    prompt: PromptRecipe | None
    sample: Sample | None
    schedule: Schedule | None
    settings: dict[str, Setting]
    rtc: RtcSupport | None
    graphs: dict[str, GraphFile]
    execution: Execution
    target: Target
    parity: Parity | None
    latency: Latency | None
    provenance: Provenance
    files: tuple[FileEntry, ...]
    trained_camera_age_ms: dict[str, CameraAge] | None = None
    trained_camera_look: dict[str, CameraLook] | None = None
    trained_still: dict[str, tuple[float | None, ...]] | None = None
    still_joints: Literal["trained", "live"] = "trained"
    work: dict[str, Work] | None = None
    lowered: Lowered | None = None
    future_offset: int = 0

    @property
    def cameras(self) -> list[str]:
        """Features of cameras the robot must have, in the order of `camera_present`."""
        return [name for name, f in self.features.items() if f.kind == "camera"]

    @property
    def state(self) -> Feature | None:
        """The feature of the measured joints; None: the policy takes none."""
        return self.features.get(STATE)

    @property
    def action(self) -> Feature:
        """The feature of the actions."""
        return self.features[ACTION]

    @property
    def is_quantised(self) -> bool:
        """Whether a graph has a precision below 16 bit."""
        return any(p not in ("fp32", "fp16", "bf16") for p in self.target.precision.values())

    @classmethod
    def from_json(cls, data: Any, where: str = "manifest.json") -> Manifest:
        """Raises BundleError: newer schema, unknown key, wrong type, or parts that contradict each other."""
        if not isinstance(data, dict):
            raise BundleError(f"{where} must hold a JSON object")
        schema = data.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise BundleError(
                f"{where} has schema {schema}, this EdgeVLA reads up to {SCHEMA}; upgrade EdgeVLA on this machine"
            )
        body = dict(data)
        if "features" in body:
            body["features"] = named_features(body["features"])
        try:
            body["schedule"] = _read_schedule(body.get("schedule"), where)
            manifest = read(cls, body, f"{where}:")
            _check(manifest, where)
        except Mismatch as error:
            raise BundleError(f"{error}") from None
        return manifest

    def to_json(self) -> dict[str, Any]:
        """What `manifest.json` holds."""
        data = write(self)
        for name, f in self.features.items():
            entry = data["features"][name]
            del entry["name"]
            if f.kind == "absent_camera":
                del entry["shape"]
            else:
                # `dtype` has a default in types.Feature, but a manifest always says it.
                data["features"][name] = {"kind": entry.pop("kind"), "dtype": f.dtype, **entry}
        if self.schedule is not None:
            data["schedule"] = _write_schedule(self.schedule)
        return data

    def dumps(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"


def _read_schedule(data: Any, where: str) -> Any:
    """A schedule's JSON without `spacing`, of which there is one kind."""
    if not isinstance(data, dict) or data.get("kind") != "timesteps":
        return data
    rest = dict(data)
    spacing = rest.pop("spacing", None)
    if spacing != "leading":
        raise Mismatch(f"{where}: schedule.spacing is {spacing!r}; expected 'leading'")
    return rest


def _write_schedule(s: Schedule) -> dict[str, Any]:
    times = (
        {"start": s.start, "end": s.end}
        if s.kind == "linear"
        else {"n_train": s.n_train, "spacing": "leading"}
    )
    return {"kind": s.kind, **times, "n_steps": s.n_steps, "n_steps_allowed": list(s.n_steps_allowed)}


def is_safe_path(path: str) -> bool:
    """Relative, inside the folder, forward slashes."""
    parts = PurePosixPath(path).parts
    return (
        bool(parts)
        and not path.startswith("/")
        and ".." not in parts
        and "\\" not in path
        and ":" not in path
    )


def _check(m: Manifest, where: str) -> None:
    """What types cannot say. Each generator yields sentences; the first is raised."""
    for check in (_features, _graphs, _sampling, _execution, _files):
        for sentence in check(m):
            raise Mismatch(f"{where}: {sentence}")


def _features(m: Manifest) -> Iterator[str]:
    if m.schema != SCHEMA:
        yield f"schema {m.schema} is unknown, expected {SCHEMA}"
    if m.fps <= 0 or m.chunk_size < 1 or m.n_obs_steps < 1 or not 1 <= m.n_action_steps <= m.chunk_size:
        yield (
            f"fps {m.fps}, chunk_size {m.chunk_size}, n_action_steps {m.n_action_steps} and n_obs_steps "
            f"{m.n_obs_steps} cannot work together"
        )
    if not 1 == m.batch.min <= m.batch.max:
        yield f"batch goes from {m.batch.min} to {m.batch.max}; a policy takes one observation at least"
    if ACTION not in m.features or m.features[ACTION].kind != "action":
        yield "features lack 'action'"
    for name, f in m.features.items():
        if f.kind == "camera" and (len(f.shape) != 3 or f.shape[2] != 3 or f.dtype != "uint8"):
            yield f"camera '{name}' must be uint8 (H, W, 3), not {f.dtype} {f.shape}"
        if f.kind == "camera" and f.encoding != "rgb8":
            yield f"camera '{name}' has encoding {f.encoding!r}, expected 'rgb8'"
        if f.kind in ("state", "environment_state", "action") and f.dtype != "float32":
            yield f"'{name}' has dtype {f.dtype!r}, expected 'float32'"
        if f.kind in ("state", "action") and not len(f.shape) == 1 == len(
            {f.shape[0], len(f.names), len(f.units)}
        ):
            yield f"'{name}' has shape {f.shape}, {len(f.names)} names and {len(f.units)} units; they must agree"
        twice = sorted(
            {n for n, unit in zip(f.names, f.units, strict=False) if unit != "raw" and f.names.count(n) > 1}
        )
        if twice:
            yield f"'{name}' names {', '.join(twice)} more than once"
        for unit in f.units:
            if unit not in UNITS:
                yield f"'{name}' has the unknown unit '{unit}'{nearest(unit, UNITS)}"
    for block, by_feature in (
        ("trained_range", m.trained_range),
        ("trained_speed_p999", m.trained_speed_p999),
    ):
        for name, value in (by_feature or {}).items():
            sizes = {len(value.q01), len(value.q99)} if isinstance(value, Range) else {len(value)}
            if name not in m.features or sizes != {m.features[name].shape[0]}:
                yield f"{block} of '{name}' does not fit the feature"
            if isinstance(value, Range) and any(
                low > high + 1e-3 * (1 + abs(high)) for low, high in zip(value.q01, value.q99, strict=True)
            ):
                yield f"{block} of '{name}' has a q01 above its q99"
            if not isinstance(value, Range) and min(value, default=0) < 0:
                yield f"{block} of '{name}' has the speed {min(value)}"
    for name, still in (m.trained_still or {}).items():
        if name != STATE or name not in m.features or len(still) != m.features[name].shape[0]:
            yield f"trained_still of '{name}' does not fit the feature"
    for name in m.trained_camera_age_ms or {}:
        if name not in m.cameras:
            yield f"trained_camera_age_ms names '{name}', which is no camera of the policy"
    if m.work is not None and set(m.work) != set(m.graphs) - {"time"}:
        yield f"work is told of {', '.join(sorted(m.work)) or 'no graph'}, which are not the graphs that run"
    for name, look in (m.trained_camera_look or {}).items():
        if name not in m.cameras:
            yield f"trained_camera_look names '{name}', which is no camera of the policy"
        try:
            look.cells()
        except ValueError:
            yield f"trained_camera_look of '{name}' holds no thumbnail of {' x '.join(map(str, GRID))} cells"


def _graphs(m: Manifest) -> Iterator[str]:
    for name in ("encode", "decode"):
        if name not in m.graphs:
            yield f"graphs lack '{name}'"
    context = {o.name for o in m.graphs["encode"].outputs}
    rows = {o.name for o in m.graphs["time"].outputs} if "time" in m.graphs else set()
    for name, graph in m.graphs.items():
        if name not in GRAPH_NAMES:
            yield f"graph '{name}' is unknown{nearest(name, GRAPH_NAMES)}"
        if not graph.file:
            yield f"graph '{name}' lacks the key 'file'"
        for spec in graph.inputs:
            yield from _input(m, name, spec, context, rows)
        if not graph.outputs:
            yield f"graph '{name}' yields nothing"
    batch = m.graphs["decode"].outputs[0].shape[:1]
    wanted = (*batch, m.chunk_size, *m.features[ACTION].shape)
    if m.graphs["decode"].outputs[0].shape != wanted:
        yield f"decode yields {m.graphs['decode'].outputs[0].shape}, but chunk_size and 'action' say {wanted}"


def _input(m: Manifest, graph: str, spec: TensorSpec, context: set[str], rows: set[str]) -> Iterator[str]:
    said = f"input '{spec.name}' of {graph}"
    source = spec.source or ""
    kind, _, key = source.partition(":")
    if not is_source(source):
        yield f"{said} has the unknown source '{source}'"
    if spec.name == "t":
        yield f"{said} has a reserved name"
    if kind == "camera":
        f = m.features.get(key)
        if f is None or f.kind != "camera" or tuple(spec.shape[1:]) != f.shape:
            yield f"{said} takes {source} with shape {spec.shape}, which features do not declare so"
    if kind == "context" and key not in context:
        yield f"{said} takes '{source}', which encode does not yield"
    if kind == "time" and key not in rows:
        yield f"{said} takes '{source}', which no time graph yields"
    if kind == "setting" and key not in m.settings:
        yield f"{said} takes '{source}', which settings do not declare"
    if source in ("state", "environment_state"):
        f = m.features.get(f"observation.{source}")
        if f is None or tuple(spec.shape[1:]) != f.shape:
            yield f"{said} has shape {spec.shape}, which features do not declare so"
    if kind == "prompt" and m.prompt is None:
        yield f"{said} takes a prompt, but there is no prompt recipe"
    if kind == "rtc" and m.rtc is None:
        yield f"{said} takes '{source}', but rtc is null"


def _sampling(m: Manifest) -> Iterator[str]:
    given = {
        "denoise": "denoise" in m.graphs,
        "schedule": m.schedule is not None,
        "sample": m.sample is not None,
    }
    if len(set(given.values())) != 1:
        yield f"a policy has all of denoise, schedule and sample or none; here: {given}"
    if m.schedule is not None and m.schedule.kind == "timesteps" and m.schedule.n_train is None:
        yield "a schedule of kind 'timesteps' needs n_train"
    if m.sample is not None and m.sample.action_dim != m.features[ACTION].shape[0]:
        yield f"sample.action_dim {m.sample.action_dim} is not the width of 'action'"
    for key, setting in m.settings.items():
        if setting.values is not None and setting.default not in setting.values:
            yield f"setting '{key}' has the default {setting.default}, which its values do not hold"
    if m.prompt is not None and m.prompt.state is not None and len(m.prompt.state.a) != len(m.prompt.state.b):
        yield "prompt.state has statistics of different lengths"


def _execution(m: Manifest) -> Iterator[str]:
    default = m.execution.default.get("kind")
    for kind in (*m.execution.allowed, default):
        if kind not in EXECUTIONS:
            yield f"execution '{kind}' is unknown{nearest(str(kind), EXECUTIONS)}"
    if default not in m.execution.allowed:
        yield f"execution '{default}' is the default, but not allowed"
    if m.rtc is not None and (m.rtc.mode == "trained") != (m.rtc.max_delay is not None):
        yield f"rtc of mode '{m.rtc.mode}' has max_delay {m.rtc.max_delay}; only 'trained' has one, and always"
    if m.rtc is not None and m.rtc.max_delay is not None and not 0 < m.rtc.max_delay < m.chunk_size:
        yield f"rtc.max_delay is {m.rtc.max_delay}; it must be from 1 to {m.chunk_size - 1}, within a chunk"
    if "rtc" in m.execution.allowed and m.rtc is None:
        yield f"execution 'rtc' is allowed, but {m.policy} has no rtc"
    yield from _future(m)
    if set(m.target.precision) != set(m.graphs):
        yield f"target.precision must name the graphs {', '.join(m.graphs)}"


def _future(m: Manifest) -> Iterator[str]:
    if not m.future_offset:
        return
    if not 0 < m.future_offset < m.chunk_size:
        yield f"future_offset is {m.future_offset}; it must be from 0 (none) to {m.chunk_size - 1}, within a chunk"
    state, action = m.state, m.action
    if state is None or (state.names, state.units) != (action.names, action.units):
        yield f"future_offset {m.future_offset} tells goals as states, but '{STATE}' and '{ACTION}' are not of one kind"
    if m.n_obs_steps != 1:
        yield f"future_offset is {m.future_offset}, but the policy looks at {m.n_obs_steps} moments"
    for kind in ("rtc", "ensemble"):
        if kind in m.execution.allowed:
            yield f"execution '{kind}' is allowed, but chunks of future states begin where the last one leads to"


def _files(m: Manifest) -> Iterator[str]:
    listed = {f.path for f in m.files}
    for path in listed:
        if not is_safe_path(path):
            yield f"the path '{path}' leaves the bundle; paths are relative, without '..'"
    if len(listed) != len(m.files):
        yield "files lists a path twice"
    needed = [p for g in m.graphs.values() for p in (g.file, g.data) if p is not None]
    needed += [m.prompt.tokenizer.file] if m.prompt is not None else []
    for path in needed:
        if not is_safe_path(path):
            yield f"the path '{path}' leaves the bundle; paths are relative, without '..'"
        if path not in listed:
            yield f"'{path}' is used but not listed in files"

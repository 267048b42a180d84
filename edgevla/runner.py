"""A bundle that infers: its engine sessions, its prompts, the sampler, and what is remembered between observations.

The same class serves the policy node, `serve`, `bench` and the exporter's parity check, so what was compared with
torch is what drives the arm. It knows no policy by name. It is one `Predictor`; a policy server's client is another.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgevla.bundle import Bundle, check_provider
from edgevla.engines import EngineOptions, load_graph, to_numpy
from edgevla.errors import BundleError, EdgeVLAError, EngineError
from edgevla.execution.commit import check_commitment
from edgevla.execution.select import nearest
from edgevla.graph import Graph
from edgevla.policy import Sampler, initial_noise
from edgevla.predictor import InferenceResult, RtcInputs, Wanted, blank_observation
from edgevla.prompt import PromptBuilder
from edgevla.seam_methods import missing_for_select
from edgevla.strict import nearest as nearest_word
from edgevla.types import ACTION, STATE, Observation


@dataclass(frozen=True)
class Asked:
    """One of several observations that share an inference: what `BundlePolicy.infer` takes of each."""

    observation: Observation
    chunk_seq: int
    grid_index: int = 0
    task: str | None = None
    past: Mapping[int, Observation] = field(default_factory=dict)
    rtc: RtcInputs | None = None
    seed: int | None = None


@dataclass
class _Clock:
    """Nanoseconds spent per part of one inference."""

    spent: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("prompt", "encode", "denoise", "decode"), 0)
    )
    _since: int = field(default_factory=time.monotonic_ns)

    def lap(self, part: str) -> None:
        now = time.monotonic_ns()
        self.spent[part] += now - self._since
        self._since = now


@dataclass(frozen=True)
class _Prepared:
    """moments: per moment, oldest first, values by source with a batch axis of 1."""

    asked: Asked
    moments: list[dict[str, np.ndarray]]


class BundlePolicy:
    """Everything a bundle needs to turn observations into chunks. Not thread-safe: one inference at a time."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: str | None = None,
        seed: int = 0,
        options: EngineOptions | None = None,
        allow_lost_cameras: bool = False,
        graphs: Mapping[str, Graph] | None = None,
        select: int = 1,
    ) -> None:
        """provider: None takes the bundle's target. graphs: in place of the bundle's own (torch, for comparison).
        select: chunks that an inference will draw, for `warm_up`.

        Raises:
            BundleError: files made for another target, or not for so many chunks. EngineError, MissingExtraError: as
                `load_graph`.
        """
        m = bundle.manifest
        self.bundle, self.manifest, self.seed = bundle, m, seed
        self.sha256 = bundle.sha256
        self.counters: Counter[str] = Counter()
        self.provider = provider or m.target.provider
        self.allow_lost_cameras = allow_lost_cameras
        check_provider(bundle, self.provider)
        self._select = select
        self._check_drawn(select)
        self.options = options or EngineOptions()
        self.graphs: dict[str, Graph] = dict(graphs or self._open(self.options))
        self._sampler = Sampler(self.graphs, m.schedule)
        self._prompts = PromptBuilder.from_recipe(m.prompt, bundle.folder) if m.prompt is not None else None
        self._sources = {i.source: i for g in m.graphs.values() for i in g.inputs}
        self._contexts: dict[int, dict[str, Any]] = {}
        self._n_inferences = 0

    def _open(self, options: EngineOptions) -> dict[str, Graph]:
        graphs = {}
        for name, graph in self.manifest.graphs.items():
            # What depends on tau alone runs once per step count, on the CPU, in double where it must.
            provider = "cpu" if name == "time" else self.provider
            keep = name in ("encode", "denoise") and provider != "cpu"
            path = self.bundle.path(graph.file)
            settings = replace(options, keep_on_device=keep, max_batch=self.manifest.batch.max)
            graphs[name] = load_graph(path, graph, provider=provider, options=settings)
        return graphs

    # -- what the node asks -------------------------------------------------------------------------------

    @property
    def n_moments(self) -> int:
        """Observations that one inference looks at: 1 but for Diffusion."""
        return self._sampler.n_moments

    @property
    def has_rtc(self) -> bool:
        """Whether its chunks can be guided by what is committed (`RtcInputs`)."""
        return "rtc:weights" in self._sources

    def missing_moments(self, grid_index: int) -> list[int]:
        """Past grid moments, oldest first, whose observations `infer` would like in `past`."""
        return [n for n in self._moments(grid_index)[:-1] if n not in self._contexts]

    def reset(self) -> None:
        """Forgets the past: session start, reset, pause."""
        self._contexts.clear()

    def warm_up(self, n: int = 3, batch: int = 1) -> list[int]:
        """Runs n inferences on blank input, so that no allocation or autotuning is left; ns of each."""
        blank = blank_observation(self.manifest)
        spent = []
        for i in range(n):
            began = time.monotonic_ns()
            if batch == 1:
                self.run_blank(i)
            else:
                self._run_batch([self._prepared(Asked(blank, k, i)) for k in range(batch)], None, {})
            spent.append(time.monotonic_ns() - began)
        self.reset()
        return spent

    def run_blank(self, grid_index: int) -> dict[str, int]:
        """One inference on blank input, which nobody judges; ns by part, as `InferenceResult.timing_ns`."""
        rtc = self._blank_choice() if self._select > 1 else None
        blank = blank_observation(self.manifest)
        return self._run(blank, grid_index, None, {}, None, rtc, {}, 0, self.seed).timing_ns

    # -- inference ----------------------------------------------------------------------------------------

    def infer(
        self,
        observation: Observation,
        *,
        grid_index: int = 0,
        task: str | None = None,
        past: Mapping[int, Observation] | None = None,
        n_steps: int | None = None,
        rtc: RtcInputs | None = None,
        settings: Mapping[str, float] | None = None,
        chunk_seq: int | None = None,
        seed: int | None = None,
        wanted: Wanted | None = None,
    ) -> InferenceResult:
        """One chunk for the observation of one grid moment.

        past: observations of earlier grid moments that were not seen before (see `missing_moments`).
        task: None takes the observation's, then the bundle's default. seed: None takes its own.
        wanted: of those who wait for others; an inference that has begun here is not given up.

        Raises:
            BundleError: input that does not fit the bundle. EngineError: the engine failed or yielded NaN.
        """
        observation = self._steadied(observation)
        earlier = {n: self._steadied(then) for n, then in (past or {}).items()}
        seed = self.seed if seed is None else seed
        result = self._run(
            observation, grid_index, task, earlier, n_steps, rtc, settings or {}, chunk_seq, seed
        )
        if (unfit := _not_finite(result)) is not None:
            raise unfit
        self._n_inferences = result.chunk_seq + 1
        return result

    def infer_batch(
        self,
        asked: Sequence[Asked],
        *,
        n_steps: int | None = None,
        settings: Mapping[str, float] | None = None,
    ) -> list[InferenceResult | EdgeVLAError]:
        """A chunk for each of several observations, in one inference, within the bundle's tolerance of `infer`'s.

        What is wrong with one of them stands in its place and touches no other. Nothing is remembered. timing_ns is
        that of the whole inference.

        Raises:
            BundleError: more than the bundle takes, steps or settings that it does not. EngineError: the engine failed.
        """
        most = self.manifest.batch.max
        if len(asked) > most:
            raise BundleError(
                f"{len(asked)} observations for one inference of {self.manifest.name}, which takes {most}; "
                f"export it with --max-batch {len(asked)}"
            )
        prepared = [self._prepared_or_not(one) for one in asked]
        fit = [one for one in prepared if isinstance(one, _Prepared)]
        chunks = iter(self._run_batch(fit, n_steps, settings or {}) if fit else ())
        results = [next(chunks) if isinstance(one, _Prepared) else one for one in prepared]
        return [r if isinstance(r, EdgeVLAError) else _not_finite(r) or r for r in results]

    # -- parts ----------------------------------------------------------------------------------------------

    def _steadied(self, observation: Observation) -> Observation:
        """With joints that never moved in the training data where they were then, as the manifest wants it.

        Normalised, a thousandth of a degree off is a value that the policy never saw.
        """
        still = (self.manifest.trained_still or {}).get(STATE)
        if still is None or self.manifest.still_joints == "live" or len(still) != len(observation.state):
            return observation
        state = np.array(observation.state, np.float32)
        for i, value in enumerate(still):
            if value is not None and np.isfinite(state[i]):
                state[i] = value
        return replace(observation, state=state)

    def _run(
        self,
        observation: Observation,
        grid_index: int,
        task: str | None,
        past: Mapping[int, Observation],
        n_steps: int | None,
        rtc: RtcInputs | None,
        settings: Mapping[str, float],
        chunk_seq: int | None,
        seed: int,
    ) -> InferenceResult:
        """`infer` without judging what came out."""
        m = self.manifest
        clock = _Clock()
        seq = self._n_inferences if chunk_seq is None else chunk_seq
        n_drawn = 1 if rtc is None else rtc.n_drawn
        self._check_drawn(n_drawn)
        guidance = None if rtc is None or rtc.select > 1 else rtc
        values = self._rtc(guidance) | self._settings(settings)
        prompt = self._prompt(observation, task)
        clock.lap("prompt")
        self._encode_new(grid_index, {**past, grid_index: observation}, {**values, **prompt})
        context = self._sampler.merge(self._history(grid_index))
        clock.lap("encode")
        values |= self._raw(observation, vectors_only=True)
        if n_drawn > 1:
            context = self._repeated(context, n_drawn)
            values = {source: np.repeat(value, n_drawn, axis=0) for source, value in values.items()}
        noise, step_noise = self._drawn_noise([(seed, seq, k) for k in range(n_drawn)])
        x = self._sampler.solve(context, values, noise=noise, n_steps=n_steps, step_noise=step_noise)
        clock.lap("denoise")
        actions = to_numpy(self._sampler.decode(x, values))
        chosen = 0 if rtc is None or n_drawn == 1 else self._nearest(actions, rtc)
        clock.lap("decode")
        steps = 0 if m.schedule is None else n_steps or m.schedule.n_steps
        return InferenceResult(
            actions[chosen], clock.spent, seed, seq, steps, guidance is not None, grid_index
        )

    def _nearest(self, drawn: np.ndarray, rtc: RtcInputs) -> int:
        speeds = (self.manifest.trained_speed_p999 or {}).get(ACTION)
        return nearest(drawn, rtc.committed, rtc.weights, speeds)

    def _check_drawn(self, n: int) -> None:
        """
        Raises:
            BundleError: so many chunks cannot be drawn from one observation.
        """
        if n > 1 and (missing := missing_for_select(self.manifest, n)) is not None:
            raise BundleError(f"{self.bundle.folder} cannot select one of {n} chunks: {missing}")

    def _blank_choice(self) -> RtcInputs:
        """For a warm-up that draws as many chunks as a rollout will."""
        m = self.manifest
        committed = np.zeros((m.chunk_size, m.action.shape[0]), np.float32)
        return RtcInputs(committed, np.ones(m.chunk_size, np.float32), select=self._select)

    def _repeated(self, context: Mapping[str, Any], n: int) -> dict[str, Any]:
        """The context of one observation for n chunks at once; on the host, wherever it was."""
        axes = {output.name: output.batch_axis for output in self.graphs["encode"].spec.outputs}
        return {name: np.repeat(to_numpy(value), n, axis=axes[name]) for name, value in context.items()}

    def _drawn_noise(self, draws: Sequence[tuple[int, int, int]]) -> tuple[np.ndarray | None, Any]:
        """Initial noise and noise of each step, for one chunk per (seed, number of the inference, draw)."""
        m = self.manifest
        if m.sample is None:
            return None, None
        steps = [self.step_noise(seq, seed, draw) for seed, seq, draw in draws]
        noise = np.concatenate([initial_noise(m.sample.shape, *draw) for draw in draws])
        return noise, None if None in steps else lambda i: np.concatenate([step(i) for step in steps])

    def _prepared_or_not(self, one: Asked) -> _Prepared | BundleError:
        try:
            return self._prepared(one)
        except BundleError as error:
            return error

    def _prepared(self, one: Asked) -> _Prepared:
        """
        Raises:
            BundleError: input that does not fit the bundle.
        """
        if one.rtc is not None and one.rtc.select > 1:
            raise BundleError(
                f"select {one.rtc.select}: an inference that is shared draws one chunk for each"
            )
        now = self._steadied(one.observation)
        seen = {n: self._steadied(then) for n, then in one.past.items()} | {one.grid_index: now}
        constant = self._rtc(one.rtc) | self._prompt(now, one.task)
        raw = {n: {**constant, **self._raw(seen[n])} for n in self._moments(one.grid_index) if n in seen}
        return _Prepared(one, [raw[n] for n in self._seen_then(raw, one.grid_index)])

    def _run_batch(
        self, batch: Sequence[_Prepared], n_steps: int | None, settings: Mapping[str, float]
    ) -> list[InferenceResult]:
        """`infer_batch` without judging what came out."""
        m, n = self.manifest, len(batch)
        clock = _Clock()
        chosen = {k: np.repeat(v, n) for k, v in self._settings(settings).items()}
        moments = [{**chosen, **_joined([one.moments[k] for one in batch])} for k in range(self.n_moments)]
        seeds = [self.seed if one.asked.seed is None else one.asked.seed for one in batch]
        numbers = [one.asked.chunk_seq for one in batch]
        clock.lap("prompt")
        context = self._sampler.merge([self._sampler.encode(values) for values in moments])
        clock.lap("encode")
        noise, step_noise = self._drawn_noise([(*pair, 0) for pair in zip(seeds, numbers, strict=True)])
        x = self._sampler.solve(context, moments[-1], noise=noise, n_steps=n_steps, step_noise=step_noise)
        clock.lap("denoise")
        actions = to_numpy(self._sampler.decode(x, moments[-1]))
        clock.lap("decode")
        steps = 0 if m.schedule is None else n_steps or m.schedule.n_steps
        return [
            InferenceResult(
                actions[i],
                dict(clock.spent),
                seed,
                seq,
                steps,
                one.asked.rtc is not None,
                one.asked.grid_index,
            )
            for i, (one, seed, seq) in enumerate(zip(batch, seeds, numbers, strict=True))
        ]

    def _moments(self, grid_index: int) -> list[int]:
        return list(range(grid_index - self.n_moments + 1, grid_index + 1))

    def _encode_new(
        self, grid_index: int, observations: Mapping[int, Observation], values: Mapping[str, Any]
    ) -> None:
        """Encodes the moments of this inference that were not encoded before; the newest always."""
        wanted = self._moments(grid_index)
        self._contexts = {n: c for n, c in self._contexts.items() if n in wanted[:-1]}
        for n in wanted:
            if n in observations and n not in self._contexts:
                self._contexts[n] = self._sampler.encode({**values, **self._raw(observations[n])})

    def _history(self, grid_index: int) -> list[dict[str, Any]]:
        """One context per moment: a hole takes the newest before it, a missing past repeats the oldest."""
        return [self._contexts[n] for n in self._seen_then(self._contexts, grid_index)]

    def _seen_then(self, seen: Iterable[int], grid_index: int) -> list[int]:
        """Per moment the one whose observation stands for it."""
        have = sorted(seen)
        return [max((h for h in have if h <= n), default=have[0]) for n in self._moments(grid_index)]

    def _raw(self, observation: Observation, vectors_only: bool = False) -> dict[str, np.ndarray]:
        """Values by source, batch axis added, checked against the bundle's signature."""
        values: dict[str, np.ndarray] = {}
        for source, vector in (
            ("state", observation.state),
            ("environment_state", observation.environment_state),
        ):
            if source in self._sources:
                values[source] = self._vector(source, vector)
        if vectors_only:
            return values
        present = []
        for name in self.manifest.cameras:
            image = observation.images.get(name)
            present.append(image is not None)
            values[f"camera:{name}"] = self._image(name, image)
        values["camera_present"] = np.array([present], np.bool_)
        return values

    def _vector(self, source: str, vector: np.ndarray | None) -> np.ndarray:
        shape = self._sources[source].shape[1:]
        value = None if vector is None else np.asarray(vector, np.float32)
        if value is None or value.shape != shape:
            got = "nothing" if value is None else str(value.shape)
            raise BundleError(f"observation.{source} must have the shape {shape}, got {got}")
        if not np.all(np.isfinite(value)):
            raise BundleError(f"observation.{source} holds values that are not finite: {value.tolist()}")
        return value[None]

    def _image(self, name: str, image: np.ndarray | None) -> np.ndarray:
        shape = self.manifest.features[name].shape
        if image is None:
            if "camera_present" not in self._sources:
                raise BundleError(
                    f"the camera '{name}' is lost and {self.manifest.policy} cannot do without it"
                )
            if not self.allow_lost_cameras:
                raise BundleError(
                    f"the camera '{name}' is lost; --allow-lost-cameras lets the policy go on without it"
                )
            return np.zeros((1, *shape), np.uint8)
        if image.shape != shape or image.dtype != np.uint8:
            raise BundleError(
                f"the camera '{name}' gave {image.dtype} {image.shape}, the bundle takes uint8 {shape} RGB"
            )
        return image[None]

    def _prompt(self, observation: Observation, task: str | None) -> dict[str, np.ndarray]:
        if self._prompts is None or self.manifest.prompt is None:
            return {}
        text = task or observation.task or self.manifest.prompt.default_task
        if not text:
            raise BundleError(
                f"{self.manifest.policy} needs a task, such as --task 'put the cube into the bowl'"
            )
        prompt = self._prompts.build([text], np.asarray(observation.state, np.float32)[None])
        return {"prompt:tokens": prompt.tokens, "prompt:mask": prompt.mask}

    def _rtc(self, rtc: RtcInputs | None) -> dict[str, np.ndarray]:
        m = self.manifest
        if m.rtc is None or not self.has_rtc:
            if rtc is not None:
                raise BundleError(f"{m.policy} has no real-time chunking; choose sync, ensemble or async")
            return {}
        committed = np.zeros((1, m.chunk_size, m.action.shape[0]), np.float32)
        weights = np.zeros((1, m.chunk_size), np.float32)
        limit = m.rtc.max_guidance
        if rtc is not None:
            n = min(len(rtc.committed), m.chunk_size)
            committed[0, :n] = rtc.committed[:n]
            weights[0, : min(len(rtc.weights), n)] = rtc.weights[:n]
            if not (np.isfinite(committed).all() and np.isfinite(weights).all()):
                raise BundleError(
                    "committed actions or their weights are not finite; nothing was inferred from them"
                )
            if m.rtc.max_delay is not None:
                check_commitment(weights[0], m.rtc.max_delay)
            limit = rtc.max_guidance if rtc.max_guidance is not None else limit
        return {
            "rtc:committed": committed,
            "rtc:weights": weights,
            "rtc:max_guidance": np.full(1, limit, np.float32),
        }

    def _settings(self, chosen: Mapping[str, float]) -> dict[str, np.ndarray]:
        known = self.manifest.settings
        for key, value in chosen.items():
            if key not in known:
                raise BundleError(f"{self.manifest.policy} has no setting '{key}'{nearest_word(key, known)}")
            allowed = known[key].values
            if allowed is not None and value not in allowed:
                raise BundleError(f"setting '{key}' is {value}, allowed: {', '.join(map(str, allowed))}")
        return {
            f"setting:{key}": np.full(1, chosen.get(key, s.default), np.dtype(s.dtype))
            for key, s in known.items()
        }

    def step_noise(self, seq: int, seed: int | None = None, draw: int = 0) -> Any:
        """Step -> the noise of that step of chunk number `seq`; None for a policy that takes none. draw: as of
        `initial_noise`."""
        m = self.manifest
        if m.sample is None or "noise:step" not in self._sources:
            return None
        words = [self.seed if seed is None else seed, seq, 1, *([draw] if draw else [])]
        generator = np.random.Generator(np.random.PCG64(words))
        shape = m.sample.shape
        return lambda _: generator.standard_normal(shape, dtype=np.float32)


def _joined(several: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {source: np.concatenate([values[source] for values in several]) for source in several[0]}


def _not_finite(result: InferenceResult) -> EngineError | None:
    if np.all(np.isfinite(result.actions)):
        return None
    return EngineError(
        f"the policy yielded actions that are not finite (grid moment {result.grid_index}, seed {result.chunk_seq})"
    )

"""One policy of a server: who may use it, which requests fit it, and the inference itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgevla.clock import NS_PER_MS
from edgevla.descriptions import AboutPolicy, AboutRobot, AboutServed
from edgevla.errors import BundleError, EdgeVLAError
from edgevla.predictor import InferenceResult, RtcInputs
from edgevla.runner import Asked, BundlePolicy
from edgevla.seam_methods import ONE_PER_REQUEST
from edgevla.serve.pictures import decoded
from edgevla.server_messages import Moment, Request, SentFrame
from edgevla.types import Observation
from edgevla.words import LONGEST_TASK

WARM_UPS = 3


@dataclass
class Hosted:
    """name: as robots say it. limit: of requests in one inference; None: what the bundle takes.

    latency_ms: of one inference, and batch_ms: of one with so many requests, measured by `warm_up`.
    """

    name: str
    policy: BundlePolicy
    limit: int | None = None
    latency_ms: float = 0.0
    batch_ms: dict[int, float] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        return self.policy.sha256

    @property
    def max_batch(self) -> int:
        """Robots that share one inference at most."""
        most = self.policy.manifest.batch.max
        return most if self.limit is None else min(self.limit, most)

    @property
    def most_bytes(self) -> int:
        """Of the largest payload of a request."""
        m = self.policy.manifest
        shapes = [m.features[camera].shape for camera in m.cameras]
        return max([math.prod(shape) for shape in shapes] + [4 * m.chunk_size * math.prod(m.action.shape)])

    def warm_up(self) -> None:
        spent = self.policy.warm_up(WARM_UPS)
        self.latency_ms = max(spent[1:]) / NS_PER_MS
        self.batch_ms = {1: min(spent[1:]) / NS_PER_MS}
        # A GPU's kernels are chosen for every size anew; on a CPU the largest tells of the others.
        sizes = range(2, self.max_batch) if self.policy.provider != "cpu" else ()
        for size in (*sizes, self.max_batch) if self.max_batch > 1 else ():
            self.batch_ms[size] = self.policy.warm_up(2, size)[1] / NS_PER_MS

    def expected_ns(self, n: int) -> float:
        """Of an inference that n requests share."""
        if not self.batch_ms:
            return 0.0
        return float(np.interp(n, sorted(self.batch_ms), sorted(self.batch_ms.values()))) * NS_PER_MS

    def about(self) -> AboutServed:
        m = self.policy.manifest
        return AboutServed(
            self.name, m.policy, self.sha256, self.policy.provider, self.max_batch, self.latency_ms
        )

    def about_policy(self) -> AboutPolicy:
        """With the whole manifest: a robot checks it as it would check a bundle's."""
        return AboutPolicy(
            node="policy",
            manifest=self.policy.manifest.to_json(),
            sha256=self.sha256,
            provider=self.policy.provider,
            latency_ms=self.latency_ms,
        )

    # -- who, and what -----------------------------------------------------------------------------------------

    def admit(self, robot: AboutRobot) -> None:
        """
        Raises:
            BundleError: the robot cannot be driven by this policy; the sentence that `deploy` would give.
        """
        self.policy.bundle.fits(robot)

    def check(self, request: Request, payloads: Sequence[np.ndarray]) -> str | None:
        """What of a request does not fit the bundle, before anything is spent on it; None: nothing."""
        m = self.policy.manifest
        back = [moment.steps_back for moment in request.moments]
        if back != sorted(set(back), reverse=True) or back[0] >= self.policy.n_moments:
            return f"moments {back} for a policy that looks at {self.policy.n_moments}"
        if len(request.task) > LONGEST_TASK:
            return f"a task of {len(request.task)} characters; at most {LONGEST_TASK}"
        shape = m.action.shape
        if request.rtc is not None and payloads[0].shape != (m.chunk_size, *shape):
            return f"committed actions of shape {payloads[0].shape}, not {(m.chunk_size, *shape)}"
        if request.rtc is not None and not _finite(payloads[0], request.rtc.weights):
            return "committed actions or weights that are not finite"
        if request.rtc is not None and request.rtc.select > 1:
            return f"select {request.rtc.select}: {ONE_PER_REQUEST}"
        return next((wrong for moment in request.moments if (wrong := self._wrong_in(moment))), None)

    def _wrong_in(self, moment: Moment) -> str | None:
        m = self.policy.manifest
        wanted = m.state.shape if m.state is not None else (0,)
        if moment.state.shape != wanted or not _finite(moment.state):
            return f"a state of {len(moment.state)} values, not {wanted[0]}, or one that is not finite"
        named = [frame.feature for frame in moment.frames]
        if len(set(named)) < len(named):
            return "one camera twice in a moment"
        for frame in moment.frames:
            feature = m.features.get(frame.feature)
            if feature is None or frame.feature not in m.cameras:
                return f"pictures of '{frame.feature[:80]}', which the policy does not look at"
            if (frame.height, frame.width, 3) != feature.shape:
                height, width = feature.shape[:2]
                return f"'{frame.feature}' of {frame.width}x{frame.height}, exported for {width}x{height}"
        return None

    # -- in the worker ------------------------------------------------------------------------------------------

    def infer(self, request: Request, payloads: Sequence[np.ndarray]) -> InferenceResult:
        """
        Raises:
            BundleError: a picture that is none, or what `BundlePolicy.infer` refuses. EngineError: it failed.
        """
        asked = _asked(request, payloads)
        self.policy.reset()  # another robot was served before
        return self.policy.infer(
            asked.observation,
            past=asked.past,
            n_steps=request.n_steps,
            rtc=asked.rtc,
            chunk_seq=asked.chunk_seq,
            seed=asked.seed,
        )

    def shares(self, request: Request, other: Request) -> bool:
        """Whether both may be answered by one inference: they walk the same steps."""
        schedule = self.policy.manifest.schedule
        usual = None if schedule is None else schedule.n_steps
        first, second = (usual if r.n_steps is None else r.n_steps for r in (request, other))
        return first == second

    def infer_batch(
        self, requests: Sequence[tuple[Request, Sequence[np.ndarray]]]
    ) -> list[InferenceResult | EdgeVLAError]:
        """All of them in one inference; what is wrong with one stands in its place.

        Raises:
            BundleError, EngineError: none of them was answered.
        """
        asked = [_asked_or_not(request, payloads) for request, payloads in requests]
        fit = [one for one in asked if isinstance(one, Asked)]
        chunks = iter(self.policy.infer_batch(fit, n_steps=requests[0][0].n_steps) if fit else ())
        return [next(chunks) if isinstance(one, Asked) else one for one in asked]


def _asked_or_not(request: Request, payloads: Sequence[np.ndarray]) -> Asked | BundleError:
    try:
        return _asked(request, payloads)
    except BundleError as error:
        return error


def _asked(request: Request, payloads: Sequence[np.ndarray]) -> Asked:
    """A request as the runner takes it; its own moment is 0.

    Raises:
        BundleError: a picture that is none.
    """
    pictures = list(payloads)
    rtc = None
    if request.rtc is not None:
        rtc = RtcInputs(pictures.pop(0), request.rtc.weights, request.rtc.max_guidance)
    moments: dict[int, Observation] = {}
    for moment in request.moments:
        images = {frame.feature: _pixels(frame, pictures.pop(0)) for frame in moment.frames}
        moments[-moment.steps_back] = Observation(moment.state, images, task=request.task)
    return Asked(moments.pop(0), request.request_id, past=moments, rtc=rtc, seed=request.seed)


def _pixels(frame: SentFrame, payload: np.ndarray) -> np.ndarray:
    picture = decoded(frame, payload)
    if picture is None:
        raise BundleError(
            f"the picture of '{frame.feature}' is a damaged JPEG, or of another size than it says"
        )
    return picture


def _finite(*arrays: np.ndarray) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)

"""Where a deployment's actions come from: a policy's bundle, or what may stand in its place.

    PolicySource      edgevla deploy     here
    ServedSource      edgevla deploy     launch/served.py
    EpisodeSource     edgevla replay     launch/episode.py
    LeaderSource      edgevla teleop     robots/leader_source.py
    LedSource         deploy --leader    robots/led_source.py

Each is a process `policy` that answers every `infer` with a `chunk`. The supervisor, the robot node, the guardian,
safety, cameras, the recorder and the monitor see no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from edgevla import strict
from edgevla.arguments import Start
from edgevla.bundle import Fit, fit, load_bundle
from edgevla.cameras import CameraSettings
from edgevla.descriptions import About, AboutCamera, AboutPolicy, AboutRobot, write_robot
from edgevla.engines.ahead import Seldom, build_ahead, is_native
from edgevla.errors import CameraError, EdgeVLAError, EngineError, UsageError
from edgevla.execution import Async, Execution, Sync, judge_latency
from edgevla.execution.commit import future_words, rtc_words
from edgevla.execution.strategies import drawn_by
from edgevla.launch.children import Child
from edgevla.launch.deployment import (
    DeployOptions,
    camera_names,
    camera_settings,
    check_fitting,
    chosen_execution,
    start_arguments,
)
from edgevla.look import Oddity
from edgevla.manifest import Manifest
from edgevla.prompt import check_extra
from edgevla.seam_methods import ONE_PER_REQUEST, seam_words
from edgevla.session import write_preparing

POLICY = "edgevla.nodes.policy"
POLICY_READY_S = 600.0
A = TypeVar("A", bound=About)


class SupervisorLike(Protocol):
    """What a source needs of its supervisor.

    options: what the command line says. folder: the run directory.
    """

    options: DeployOptions
    folder: Path

    @property
    def robot(self) -> AboutRobot:
        """What the robot tells of itself."""
        ...

    @property
    def place(self) -> list[str]:
        """Arguments that tell a child where this deployment's processes meet."""
        ...

    def say(self, severity: str, source: str, text: str, /) -> None:
        """One line for the person. severity, source: as events have them."""
        ...

    def is_over(self) -> bool:
        """Whether somebody asked for the end."""
        ...

    def spawn(self, name: str, args: Sequence[str], pass_fds: Sequence[int] = ()) -> Child:
        """Starts a process of this deployment.

        args: module and its arguments; pass_fds: descriptors that it inherits.
        """
        ...

    def await_ready(
        self, child_name: str, node: str, cls: type[A], limit_s: float, error: type[EdgeVLAError]
    ) -> A:
        """What a node tells of itself once it answers.

        Raises `error`: it ended, or did not answer in `limit_s` seconds.
        """
        ...


class ActionSource(Protocol):
    """One source, loaded. The supervisor calls, once each and in this order, `prepare`, `fit`, `spawn`, `ready`,
    `start_arguments`."""

    @property
    def name(self) -> str:
        """As the user knows it."""
        ...

    @property
    def bundle(self) -> str | None:
        """Its folder, or the address of who runs it; None without one."""
        ...

    @property
    def cameras(self) -> Sequence[str]:
        """Names of those it may look through."""
        ...

    @property
    def fps(self) -> float:
        """Rate of its actions."""
        ...

    @property
    def execution(self) -> Execution:
        """How its chunks are carried out; final after `start_arguments`."""
        ...

    @property
    def about(self) -> dict[str, Any]:
        """For the run's summary."""
        ...

    def prepare(self, run: SupervisorLike) -> None:
        """What takes long and must be over before any process of the arm begins.

        Raises:
            EdgeVLAError: it cannot be done; nothing was started. NotWaited: `run.is_over` said so.
        """
        ...

    def fit(self, run: SupervisorLike) -> list[CameraSettings]:
        """Compares itself with `run.robot`, which answers by now; the cameras to start.

        Raises:
            EdgeVLAError: the two do not belong together.
        """
        ...

    def spawn(self, run: SupervisorLike) -> None:
        """Starts the process `policy`, while the cameras open."""
        ...

    def ready(self, run: SupervisorLike) -> float:
        """Waits until that process is ready; its latency in ms, measured warm."""
        ...

    def start_arguments(self, run: SupervisorLike, latency_ms: float) -> Start:
        """What the robot is told with `start`."""
        ...


def _about(name: str, sha256: str = "", camera_age_ms: Any = None) -> dict[str, Any]:
    return {"bundle": name, "policy_sha256": sha256, "trained_camera_age_ms": camera_age_ms}


class PolicySource:
    """A policy's bundle.

    Raises:
        BundleError, UsageError: the bundle is damaged, or cannot be carried out as the options say.
        MissingExtraError: it reads text, and what cuts text into tokens is not installed.
    """

    CAN_SELECT = True
    """Whether what infers draws several chunks for one request."""

    def __init__(self, folder: Path, options: DeployOptions) -> None:
        bundle = self._loaded = load_bundle(folder)
        self.bundle: str | None = str(folder)
        check_extra(bundle.manifest.prompt)
        self._hold(str(folder), bundle.manifest, bundle.sha256, options)

    def _hold(self, name: str, manifest: Manifest, sha256: str, options: DeployOptions) -> None:
        self.name, self._manifest = name, manifest
        self.cameras: Sequence[str] = camera_names(manifest)
        check_fitting(manifest, options)
        self.execution = chosen_execution(manifest, options)
        if (n := drawn_by(self.execution)) > 1 and not self.CAN_SELECT:
            raise UsageError(f"--select {n}: {ONE_PER_REQUEST}")
        self.fps, self.sha256 = manifest.fps, sha256
        self.about = _about(name, sha256, strict.write(manifest.trained_camera_age_ms))
        self._fit: Fit | None = None

    def _where(self, options: DeployOptions) -> list[str]:
        """Tells the policy's process what infers."""
        words = [f"--bundle={self.bundle}", f"--threads={options.threads}"]
        return words + ([f"--provider={options.provider}"] if options.provider else [])

    def prepare(self, run: SupervisorLike) -> None:
        """TensorRT's engines, where they lack."""
        if is_native(run.options.provider or self._manifest.target.provider):
            seldom = Seldom(lambda text: run.say("log", "deploy", text))

            def tell(text: str) -> None:
                seldom(text)
                write_preparing(run.folder, text)

            try:
                build_ahead(self._loaded, tell, run.is_over)
            finally:
                write_preparing(run.folder, "")

    def fit(self, run: SupervisorLike) -> list[CameraSettings]:
        if run.options.task and self._manifest.prompt is None:
            run.say("info", "deploy", "this policy reads no text; the task labels what is recorded")
        run.say("info", "deploy", f"seams: {seam_words(self._manifest, not self.CAN_SELECT)}")
        settings = camera_settings(self._manifest, run.robot, run.options)
        robot = replace(run.robot, cameras=tuple(delivered(camera) for camera in settings))
        self._fit = fit(self._manifest, robot)
        write_robot(robot, run.folder / "robot.json")
        for feature, camera in self._fit.cameras.items():
            source = next(c.source for c in settings if c.name == camera)
            run.say("info", "deploy", f"camera {camera} ({source}) -> {feature}")
        for warning in self._fit.warnings:
            run.say("warning", "deploy", warning)
        return settings

    def spawn(self, run: SupervisorLike) -> None:
        """Starts the process; it answers once the policy is loaded and warm, and the cameras are open."""
        o = run.options
        words = [POLICY, *self._where(o), *run.place, f"--robot-json={run.folder / 'robot.json'}"]
        words += [f"--seed={o.seed}", f"--inject-delay-ms={o.inject_delay_ms}"]
        words += [f"--select={drawn_by(self.execution)}"] if self.CAN_SELECT else []
        words += [f"--observations={o.observations_s}"]
        words += ["--allow-lost-cameras"] if o.may_lose_cameras else []
        run.spawn("policy", words)

    def ready(self, run: SupervisorLike) -> float:
        return self.greet(run, run.await_ready("policy", "policy", AboutPolicy, POLICY_READY_S, EngineError))

    def greet(self, run: SupervisorLike, about: AboutPolicy) -> float:
        """Says what the process told of itself; its latency in ms.

        Raises:
            CameraError: a camera certainly shows no picture.
        """
        run.say(
            "info", "deploy", f"policy ready on {about.provider}: {about.latency_ms:.1f} ms per inference"
        )
        self._say_oddities(run, about.oddities)
        return about.latency_ms

    @staticmethod
    def _say_oddities(run: SupervisorLike, oddities: Sequence[Oddity]) -> None:
        """What the policy's first look at the cameras found.

        Raises:
            CameraError: one certainly shows no picture.
        """
        for oddity in oddities:
            if not oddity.is_blind or run.options.may_be_blind:
                run.say("warning", "camera", oddity.text)
        blind = [oddity.text for oddity in oddities if oddity.is_blind]
        if blind and not run.options.may_be_blind:
            raise CameraError(f"{blind[0]}. To start all the same: --allow-blind-cameras")

    def start_arguments(self, run: SupervisorLike, latency_ms: float) -> Start:
        """A latency that the execution cannot bear turns it into `sync`."""
        assert self._fit is not None, "the bundle was fitted before"
        m = self._manifest
        longest = m.rtc.max_delay if m.rtc else None
        if m.rtc is not None:
            run.say("info", "deploy", f"real-time chunking {rtc_words(m.rtc.mode, longest, m.fps)}")
        if m.future_offset:
            run.say("info", "deploy", f"future state: {future_words(m.future_offset, m.fps)}")
        verdict = judge_latency(
            self.execution, chunk_size=m.chunk_size, fps=m.fps, latency_ms=latency_ms, trained_delay=longest
        )
        if verdict.sentence:
            run.say(verdict.severity, "deploy", verdict.sentence)
        if verdict.execution != self.execution:
            self.execution = Sync(m.n_action_steps)
        start = start_arguments(m, self._fit, run.options, self.execution, latency_ms)
        return start if self.CAN_SELECT else replace(start, most_drawn=1)


def delivered(camera: CameraSettings) -> AboutCamera:
    """The camera as its device delivers it, before it is fitted."""
    return AboutCamera(
        name=camera.name,
        source=camera.source,
        height=camera.asked_height or camera.height,
        width=camera.asked_width or camera.width,
        fps=camera.fps,
        locked_exposure=camera.has_locked_exposure,
        fit=camera.fit,
    )


class DirectSource:
    """Base of the sources without a policy: their actions are followed as they come.

    Without training there are no speeds and ranges to stay within but the robot's own.
    """

    bundle: str | None = None

    def __init__(self, name: str, fps: float, cameras: Sequence[str] = ()) -> None:
        self.name, self.fps, self.cameras = name, fps, cameras
        self.about = _about(name)
        self.execution: Execution = Async(every=1)

    def prepare(self, run: SupervisorLike) -> None:
        """Nothing."""

    def direct_arguments(self, run: SupervisorLike, chunk_size: int, latency_ms: float) -> Start:
        """What the robot is told with `start` where there is no policy. latency_ms: of the source."""
        return Start(
            fps=self.fps,
            chunk_size=chunk_size,
            n_action_steps=1,
            execution=self.execution,
            allowed=("async",),
            task=run.options.task,
            n_steps=None,
            guidance_end=0,
            max_guidance=0.0,
            trained_speed=None,
            trained_range=None,
            latency_ms=latency_ms,
            max_hz=None,
        )

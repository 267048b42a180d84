"""What a deployment shall be, out of the command line, the bundle's manifest, and what the robot tells of itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgevla.arguments import Start
from edgevla.bundle import Fit
from edgevla.cameras import CameraSettings
from edgevla.descriptions import AboutRobot
from edgevla.errors import UsageError
from edgevla.execution import Execution, execution_from, execution_to
from edgevla.execution.commit import check_untrained_options
from edgevla.execution.strategies import KINDS, check_chunk, drawn_by
from edgevla.manifest import Manifest
from edgevla.seam_methods import FUTURE_INSTEAD, is_one_step, missing_for_select, most_drawn
from edgevla.vocabulary import NONE

TRAINED_SPEED_MARGIN = 1.5
"""As `robots/safety.py` has it, where it is applied; here it says in the summary which cap it was."""


@dataclass(frozen=True)
class DeployOptions:
    """What the command line says. execution: options of `--execution`; ports: `[BUS=]PATH`; cameras: name -> source.

    has_stand_in: with is_sim, only the servos are emulated; cameras are the robot's own (`--dry-run`).
    is_shadow: nothing that the policy wants is sent to the arm. leader: profile of a leader arm by which a person may
    take the policy's place; in a shadow run a person has it all along.
    recording: the dataset that this run will be recorded into; one that would not take it is refused before torque.
    """

    robot: str
    is_sim: bool = False
    has_stand_in: bool = False
    ports: Sequence[str] = ()
    cameras: Mapping[str, str] = field(default_factory=dict)
    execution: Mapping[str, Any] | None = None
    task: str = ""
    duration_s: float | None = None
    inject_delay_ms: float = 0.0
    log_dir: Path | None = None
    observations_s: float = 60.0
    provider: str | None = None
    threads: int = 0
    seed: int = 0
    n_steps: int | None = None
    calibration: str | None = None
    servo_hz: float | None = None
    may_lose_cameras: bool = False
    may_be_blind: bool = False
    sim_task: str | None = None
    sim_trace: Path | None = None
    is_shadow: bool = False
    leader: str | None = None
    leader_ports: Sequence[str] = ()
    leader_calibration: str | None = None
    recording: Path | None = None

    @property
    def is_untouched(self) -> bool:
        """Whether nothing at all is sent to the arm."""
        return self.is_shadow and self.leader is None

    @property
    def drivers(self) -> list[str]:
        """Nodes that answer with chunks."""
        return ["policy"] if self.leader is None else ["policy", "leader"]


def camera_names(manifest: Manifest) -> list[str]:
    """Names of the robot's cameras that the policy looks through, in the manifest's order."""
    return [manifest.features[name].camera_name for name in manifest.cameras]


def camera_settings(manifest: Manifest, robot: AboutRobot, o: DeployOptions) -> list[CameraSettings]:
    """One per camera the policy needs: the profile's, with what the command line says; simulated ones fit.

    Raises:
        UsageError: `--camera` names one that the policy does not have, or leaves out one that it needs.
    """
    known = {camera.name: camera for camera in robot.cameras}
    unused = [n for n in o.cameras if n not in camera_names(manifest)]
    if unused:
        names = ", ".join(camera_names(manifest)) or "none"
        raise UsageError(f"--camera {unused[0]}=...: the policy has no such camera; it has {names}")
    absent = [name for name, source in o.cameras.items() if source == NONE]
    if absent:
        raise UsageError(
            f"--camera {absent[0]}={NONE}: this bundle looks through '{absent[0]}'; export the checkpoint again without "
            f"it, with the same words"
        )
    made = []
    for name, feature in zip(camera_names(manifest), manifest.cameras, strict=True):
        height, width = manifest.features[feature].shape[:2]
        camera = known.get(name)
        has_world = o.is_sim and not o.has_stand_in
        declared = "sim" if has_world else camera.source if camera else None
        source = o.cameras.get(name, declared)
        if source is None:
            continue  # `fit` says which camera is missing
        fps = max(camera.fps if camera else 0.0, manifest.fps)
        settings = CameraSettings(name, source, width, height, fps)
        if camera is not None and source != "sim":
            settings = replace(CameraSettings.of_profile(camera, source), fps=fps)
            if camera.fit != "exact":  # where it is and the sizes differ, `fit` refuses
                settings = replace(
                    settings,
                    width=width,
                    height=height,
                    asked_width=camera.width,
                    asked_height=camera.height,
                )
        made.append(settings)
    return made


def chosen_execution(manifest: Manifest, options: DeployOptions) -> Execution:
    """The user's, else the bundle's default.

    Raises:
        UsageError: the policy cannot do it, or an option does not belong to it.
    """
    given = dict(options.execution or {})
    default = dict(manifest.execution.default)
    kind = given.get("kind", default.get("kind"))
    base = default if kind == default.get("kind") else {}
    if kind == "ensemble":
        base.setdefault("decay", manifest.execution.ensemble_decay)
    if kind == "sync":
        base.setdefault("n_action_steps", manifest.n_action_steps)
    if kind == "rtc" and manifest.rtc is not None and manifest.rtc.mode != "trained":
        base.setdefault("weights", manifest.rtc.weights)
    if kind in KINDS and kind not in manifest.execution.allowed:
        allowed = ", ".join(manifest.execution.allowed)
        why = f": {FUTURE_INSTEAD}" if manifest.future_offset else ""
        raise UsageError(
            f"the policy '{manifest.policy}' of this bundle cannot run '{kind}'; it allows {allowed}{why}"
        )
    if kind == "rtc" and "rtc" not in kinds_allowed(manifest, options):
        raise UsageError(
            "'rtc' guides many small denoise steps, and a single one it would throw too far; choose --execution async, "
            "or more --n-steps"
        )
    execution = execution_from({**base, **given, "kind": kind})
    check_chunk(execution, manifest.chunk_size, manifest.n_action_steps)
    n = drawn_by(execution)
    if n > 1 and (missing := missing_for_select(manifest, n)) is not None:
        raise UsageError(f"--select {n}: this bundle cannot draw {n} chunks per inference: {missing}")
    check_untrained_options(execution, manifest.rtc.max_delay if manifest.rtc else None)
    return execution


def kinds_allowed(m: Manifest, options: DeployOptions) -> tuple[str, ...]:
    """Executions that the bundle takes with these options: guidance needs more than one denoise step."""
    missing = m.rtc is not None and m.rtc.mode == "guided" and is_one_step(m, options.n_steps)
    return tuple(kind for kind in m.execution.allowed if kind != "rtc" or not missing)


def check_fitting(manifest: Manifest, options: DeployOptions) -> None:
    """What the bundle alone can say about the options, before a process is started.

    Raises:
        UsageError: no task for a policy that reads one, denoise steps it does not take, a loop slower than its rate.
    """
    m, o = manifest, options
    if m.prompt is not None and not (o.task or m.prompt.default_task):
        raise UsageError(
            f"the policy '{m.policy}' does what it is told in words, and neither the command line nor the bundle says "
            "it; add --task 'put the cube into the bowl'"
        )
    if o.n_steps is not None:
        if m.schedule is None:
            raise UsageError(
                f"--n-steps {o.n_steps}: the policy '{m.policy}' has no denoise steps; leave it out"
            )
        low, high = m.schedule.n_steps_allowed
        if not low <= o.n_steps <= high:
            raise UsageError(f"--n-steps {o.n_steps} must be from {low} to {high} for this bundle")
    if o.servo_hz is not None and o.servo_hz < m.fps:
        raise UsageError(f"--servo-hz {o.servo_hz:g} is slower than the policy's {m.fps:g} Hz")


def execution_words(execution: Execution, trained_delay: int | None = None) -> str:
    """An execution with its options, as a person would type them. trained_delay: of a policy that nothing guides."""
    options = execution_to(execution)
    if trained_delay is not None:
        options.pop("weights", None)
    return options.pop("kind") + "".join(f" {k}={v}" for k, v in options.items())


def start_arguments(
    m: Manifest, fit: Fit, options: DeployOptions, execution: Execution, latency_ms: float
) -> Start:
    """Arguments of `start`, speeds and ranges in the robot's order and units."""
    speed = m.trained_speed_p999.get("action") if m.trained_speed_p999 else None
    return Start(
        fps=m.fps,
        chunk_size=m.chunk_size,
        n_action_steps=m.n_action_steps,
        execution=execution,
        allowed=kinds_allowed(m, options),
        task=options.task or (m.prompt.default_task if m.prompt else None) or "",
        n_steps=options.n_steps,
        guidance_end=m.rtc.guidance_end if m.rtc else 0,
        max_guidance=m.rtc.max_guidance if m.rtc else 0.0,
        trained_speed=None if speed is None else tuple(fit.action.speeds_to_robot(speed).tolist()),
        trained_range=_trained_range(m, fit),
        latency_ms=latency_ms,
        max_hz=options.servo_hz,
        most_drawn=most_drawn(m),
        trained_delay=m.rtc.max_delay if m.rtc else None,
        future_offset=m.future_offset,
    )


def speed_caps(robot: AboutRobot, trained_speed: Sequence[float] | None) -> dict[str, str]:
    """Joint -> whose speed cap is the lower one: that of `training`, or of the `profile`; a gripper keeps its own."""
    trained = trained_speed or [math.inf] * len(robot.joints)
    return {
        joint.name: "training"
        if not joint.is_gripper and TRAINED_SPEED_MARGIN * speed < joint.max_velocity
        else "profile"
        for joint, speed in zip(robot.joints, trained, strict=True)
    }


def _trained_range(m: Manifest, fit: Fit) -> tuple[tuple[float, ...], ...] | None:
    """[lowest, highest] per joint."""
    seen = m.trained_range.get("observation.state") if m.trained_range else None
    if seen is None or fit.state is None:
        return None
    ends = [fit.state.to_robot(np.array(values)) for values in (seen.q01, seen.q99)]
    low_high = (ends[0].clip(max=ends[1]), ends[1].clip(min=ends[0]))
    return tuple(tuple(values.tolist()) for values in low_high)

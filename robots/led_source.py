"""A policy, and a leader arm by which a person may take its place, or with `--shadow` has it all along: the source of
`edgevla deploy --leader`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgevla.arguments import Start
from edgevla.cameras import CameraSettings
from edgevla.execution import Execution
from edgevla.launch.deployment import DeployOptions
from edgevla.launch.sources import PolicySource, SupervisorLike

from .leader_source import LeaderArm, check_arms
from .profile import load_profile


class LedSource:
    """The policy's source, with the leader's process beside it. It is the policy's in all else.

    Raises:
        ConfigError, UsageError: the two arms do not fit.
    """

    def __init__(self, policy: PolicySource, options: DeployOptions) -> None:
        assert options.leader is not None, "whoever has none takes the policy's source as it is"
        self._policy = policy
        self._arm = LeaderArm(load_profile(options.leader), options.leader_ports, options.leader_calibration)
        check_arms(self._arm, load_profile(options.robot), options)
        self._leader_ms, self._is_shadow = 0.0, options.is_shadow

    @property
    def name(self) -> str:
        return self._policy.name

    @property
    def bundle(self) -> str | None:
        return self._policy.bundle

    @property
    def cameras(self) -> Sequence[str]:
        return self._policy.cameras

    @property
    def fps(self) -> float:
        return self._policy.fps

    @property
    def execution(self) -> Execution:
        return self._policy.execution

    @property
    def about(self) -> dict[str, Any]:
        return self._policy.about

    def prepare(self, run: SupervisorLike) -> None:
        self._policy.prepare(run)

    def fit(self, run: SupervisorLike) -> list[CameraSettings]:
        return self._policy.fit(run)

    def spawn(self, run: SupervisorLike) -> None:
        """The leader first: whether it answers is known at once."""
        self._leader_ms = self._arm.start(run, self._policy.fps, "leader")
        self._policy.spawn(run)

    def ready(self, run: SupervisorLike) -> float:
        return self._policy.ready(run)

    def start_arguments(self, run: SupervisorLike, latency_ms: float) -> Start:
        policy_s = self._policy.start_arguments(run, latency_ms)
        return replace(policy_s, leader_ms=self._leader_ms, is_shadow=self._is_shadow)

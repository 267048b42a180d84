"""The policies of one evaluation as the source of one deployment's actions, one after the other on an arm that is held.

The process of one is ended and the next one's started while the person resets the scene; the arm holds at home and gets
the next plan with `start`, its torque on. Where there are two, nothing that is said tells which one it is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from edgevla.arguments import Start
from edgevla.cameras import CameraSettings
from edgevla.descriptions import About, AboutPolicy, AboutRobot, write_robot
from edgevla.errors import EdgeVLAError, UsageError, WireError
from edgevla.execution import Execution
from edgevla.execution.strategies import drawn_by
from edgevla.launch.children import Child
from edgevla.launch.deployment import DeployOptions
from edgevla.launch.served import source_of
from edgevla.launch.sources import SupervisorLike, delivered
from edgevla.launch.supervisor import Supervisor
from edgevla.wire import CommandClient, endpoint

A = TypeVar("A", bound=About)
ASK_EVERY_S = 0.2
LEAST_NAME = 3
"""A shorter one would be found in any sentence."""
HIDDEN = "two policies in hidden order"


class Quiet:
    """A `SupervisorLike` for a policy whose name is hidden: good news is not said, warnings are, without the name."""

    def __init__(self, run: SupervisorLike, options: DeployOptions, names: Sequence[str]) -> None:
        self.options, self.folder = options, run.folder
        self._run, self._names = run, names

    @property
    def robot(self) -> AboutRobot:
        return self._run.robot

    @property
    def place(self) -> list[str]:
        return self._run.place

    def say(self, severity: str, source: str, text: str, /) -> None:
        if severity != "info" or not self._names:
            self._run.say(severity, source, without(text, self._names))

    def is_over(self) -> bool:
        return self._run.is_over()

    def spawn(self, name: str, args: Sequence[str], pass_fds: Sequence[int] = ()) -> Child:
        return self._run.spawn(name, args, pass_fds)

    def await_ready(
        self, child_name: str, node: str, cls: type[A], limit_s: float, error: type[EdgeVLAError]
    ) -> A:
        return self._run.await_ready(child_name, node, cls, limit_s, error)


def without(text: str, names: Sequence[str]) -> str:
    """The sentence, the policies' names hidden; not where one is part of a longer word."""
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "the policy", text)
    return text


class Contestants:
    """An `ActionSource` of one or two policies; the deployment begins held, with the policy `first`.

    policies: folders of bundles, or addresses of policy servers. options: of each, in the same order. names: by which a
    bundle may be known; hidden where there are two.
    """

    def __init__(self, policies: Sequence[str], options: Sequence[DeployOptions], first: int) -> None:
        self.sources = [source_of(p, o) for p, o in zip(policies, options, strict=True)]
        self._options = options
        is_hidden = len(self.sources) > 1
        names = [name for s in self.sources for name in (s.name, Path(s.name).name)]
        self.hidden = [name for name in names if is_hidden and len(name) >= LEAST_NAME]
        self.name = HIDDEN if is_hidden else self.sources[0].name
        self.bundle = None if is_hidden else self.sources[0].bundle
        self.about: dict[str, Any] = {} if is_hidden else self.sources[0].about
        self.cameras: Sequence[str] = list(dict.fromkeys(name for s in self.sources for name in s.cameras))
        self.current = first
        self.execution: Execution = self.sources[first].execution
        self._check_rate()
        self.fps = self.sources[first].fps

    def prepare(self, run: SupervisorLike) -> None:
        for k, source in enumerate(self.sources):
            source.prepare(self.quiet(run, k))

    def fit(self, run: SupervisorLike) -> list[CameraSettings]:
        merged: dict[str, CameraSettings] = {}
        for k, source in enumerate(self.sources):
            for camera in source.fit(self.quiet(run, k)):
                merged[camera.name] = _joined(merged.get(camera.name, camera), camera)
        robot = replace(run.robot, cameras=tuple(delivered(camera) for camera in merged.values()))
        write_robot(robot, run.folder / "robot.json")
        return list(merged.values())

    def spawn(self, run: SupervisorLike) -> None:
        self.sources[self.current].spawn(self.quiet(run, self.current))

    def ready(self, run: SupervisorLike) -> float:
        return self.sources[self.current].ready(self.quiet(run, self.current))

    def start_arguments(self, run: SupervisorLike, latency_ms: float) -> Start:
        """Of the current policy; the arm is held until it is told to move."""
        source = self.sources[self.current]
        arguments = source.start_arguments(self.quiet(run, self.current), latency_ms)
        self.execution = source.execution
        return replace(arguments, is_held=True)

    def quiet(self, run: SupervisorLike, policy: int) -> Quiet:
        """The run as one policy's source sees it: its own options, and names kept back."""
        return Quiet(run, self._options[policy], self.hidden)

    def is_same_process(self, a: int, b: int) -> bool:
        """Whether two differ only in how their chunks are carried out; one that draws more of them warms up for it."""
        drawn = {drawn_by(self.sources[k].execution) for k in (a, b)}
        return self.sources[a].name == self.sources[b].name and len(drawn) == 1

    def _check_rate(self) -> None:
        """
        Raises:
            UsageError: their rollouts have different rates, and one dataset has one.
        """
        rates = [s.fps for s in self.sources]
        if len(set(rates)) > 1:
            raise UsageError(
                f"the policies run at {rates[0]:g} and {rates[1]:g} Hz, and the dataset of their rollouts has one rate; "
                "evaluate them one by one"
            )


def _joined(a: CameraSettings, b: CameraSettings) -> CameraSettings:
    """One camera for two policies.

    Raises:
        UsageError: they want it in different sizes.
    """
    if (a.height, a.width) != (b.height, b.width):
        raise UsageError(
            f"the policies look through camera '{a.name}' in different sizes ({a.width}x{a.height} and "
            f"{b.width}x{b.height}), and one camera gives one; evaluate them one by one"
        )
    return replace(a, fps=max(a.fps, b.fps))


class PolicyLoader:
    """Brings the wanted policy into the running deployment, step by step; nothing here waits."""

    def __init__(self, supervisor: Supervisor, contestants: Contestants) -> None:
        self._supervisor, self._contestants = supervisor, contestants
        self._wanted = contestants.current
        self._child: tuple[Child, int] | None = self._running()
        self._latency_ms: float | None = 0.0
        self._is_planned = True
        """Whether the robot has this policy's plan; the first one's it got with the deployment."""
        self._client: CommandClient | None = None
        self._asked_s = 0.0

    def want(self, policy: int) -> None:
        """Loads the policy of that number, unless it is the one that runs."""
        if policy == self._wanted:
            return
        is_same = self._contestants.is_same_process(policy, self._wanted)
        self._wanted = self._contestants.current = policy
        self._is_planned = False
        if not is_same:
            supervisor, source = self._supervisor, self._contestants.sources[policy]
            supervisor.children["policy"].end()
            source.spawn(self._contestants.quiet(supervisor, policy))
            self._begin_asking()

    def step(self, is_held: bool) -> None:
        """is_held: whether the robot would take another plan now.

        Raises:
            EdgeVLAError: the policy cannot run here.
        """
        if self.was_lost:
            self._begin_asking()
        if self._latency_ms is None:
            self._ask()
        elif not self._is_planned and is_held:
            arguments = self._contestants.start_arguments(self._supervisor, self._latency_ms)
            self._supervisor.command("start", arguments)
            self._is_planned = True

    @property
    def was_lost(self) -> bool:
        """Whether the policy's process has ended since it was ready; the supervisor starts it again."""
        child = self._supervisor.children["policy"]
        return self._latency_ms is not None and (self._child != self._running() or not child.is_alive)

    @property
    def is_ready(self) -> bool:
        """Whether the policy that is wanted is loaded, warm, and planned with."""
        return self._latency_ms is not None and self._is_planned and not self.was_lost

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _running(self) -> tuple[Child, int] | None:
        child = self._supervisor.children.get("policy")
        return None if child is None else (child, child.n_starts)

    def _begin_asking(self) -> None:
        self.close()
        s = self._supervisor
        self._client = CommandClient(s.ctx, endpoint(s.folder, "policy", "commands"), s.session, "eval")
        self._latency_ms, self._is_planned = None, False

    def _ask(self) -> None:
        """Whether it is loaded and warm. An answer that comes later is read the next time."""
        now = time.monotonic()
        child = self._supervisor.children["policy"]
        if now - self._asked_s < ASK_EVERY_S or not child.is_alive:
            return
        self._asked_s = now
        assert self._client is not None
        try:
            about = self._client.describe(AboutPolicy, 0.02)
        except WireError:
            return
        if about is not None:
            run = self._contestants.quiet(self._supervisor, self._wanted)
            self._latency_ms = self._contestants.sources[self._wanted].greet(run, about)
            self._child = self._running()

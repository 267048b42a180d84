"""Before anything moves: whether a bundle, a setting, a task and its robot belong together, and what is not as asked."""

from __future__ import annotations

from collections.abc import Iterator

from edgevla.bundle import fit
from edgevla.evaluation.episodes import Cell, Conditions
from edgevla.execution import judge_latency
from edgevla.launch.deployment import chosen_execution, start_arguments
from edgevla.manifest import Manifest
from edgevla.simulated import Task

from ..describe import describe
from ..rollout import Plan, plan_from
from .contest import cameras_of, emulated, options_of, profile_of, with_cameras


class Inspection:
    """unit: of the robot's body joints."""

    def __init__(self, task: Task, conditions: Conditions) -> None:
        self.task, self.conditions = task, conditions
        profile = profile_of(task)
        self._robot = emulated(profile)
        self._about = describe(profile, self._robot)
        self.unit = next((joint.unit for joint in profile.joints if not joint.is_gripper), "")

    def notes(self, cell: Cell, m: Manifest) -> Iterator[str]:
        """Sentences.

        Raises:
            UsageError, BundleError, ConfigError: they do not belong together.
        """
        c = self.conditions
        options = options_of(c, cell, m, self.task)
        found = fit(m, with_cameras(self._about, m, cameras_of(m, self.task, c.cameras)))
        for warning in found.warnings:
            yield f"{cell.label}: {warning}"
        chosen = chosen_execution(m, options)
        verdict = judge_latency(
            chosen,
            chunk_size=m.chunk_size,
            fps=m.fps,
            latency_ms=cell.delay_ms,
            trained_delay=m.rtc.max_delay if m.rtc else None,
        )
        if verdict.sentence:
            yield f"{cell.label}, {cell.delay_ms:g} ms: {verdict.sentence}"
        start = start_arguments(m, found, options, verdict.execution, cell.delay_ms)
        plan = plan_from(start, self._robot.max_hz, len(self._about.joints))
        if c.way == "lock-step":
            yield from _rounded(cell, plan)
        if m.fps != self.task.fps:
            yield f"{cell.label} acts at {m.fps:g} Hz, demonstrations of {self.task.name} at {self.task.fps} Hz"


def _rounded(cell: Cell, plan: Plan) -> Iterator[str]:
    period_ms = plan.period_ns / 1e6
    ticks = round(cell.delay_ms / period_ms)
    if abs(ticks * period_ms - cell.delay_ms) > 1e-3:
        yield (
            f"{cell.delay_ms:g} ms are no whole ticks of {period_ms:.4g} ms: {ticks} ticks are injected, "
            f"{ticks * period_ms:.4g} ms"
        )

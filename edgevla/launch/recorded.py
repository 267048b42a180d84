"""What a run will be recorded into, looked at while the arm has no torque yet."""

from __future__ import annotations

from collections.abc import Sequence

from edgevla.cameras import CameraSettings
from edgevla.descriptions import AboutRobot
from edgevla.launch.deployment import DeployOptions


def check_recorded(
    options: DeployOptions, robot: AboutRobot, cameras: Sequence[CameraSettings], fps: float
) -> None:
    """cameras: those that run. fps: of the actions.

    Raises:
        DatasetError: `options.recording` would not take this run's episodes; names every difference.
    """
    if options.recording is None:
        return
    from edgevla.dataset.append import check_recording
    from edgevla.nodes.recording import kind_of

    kind = kind_of(robot, cameras, fps, has_leader=options.leader is not None)
    check_recording(options.recording, **kind)

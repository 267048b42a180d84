"""Scenes as a recording for Rerun's viewer (extra `rerun`): every joint a plot, every camera a view, one timeline.

    [episode-003/]joints/shoulder_pan/state   scalars          [episode-003/]cameras/front   JPEG
    [episode-003/]loop/late                   scalars          [episode-003/]events          text

Several episodes all begin at 0, so that they can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgevla import __version__
from edgevla.errors import MissingExtraError
from edgevla.view.scene import Scene, TimeSeries
from edgevla.view.written import jpegs, prefix, written

COLOURS = {
    "state": (34, 34, 34),
    "measured": (34, 34, 34),
    "sent": (255, 127, 14),
    "action": (31, 119, 180),
    "wanted": (31, 119, 180),
}
LEVELS = {"info": "INFO", "warning": "WARN", "error": "ERROR", "stop": "CRITICAL"}
CLOCK = "time"


def write_rerun(scenes: Sequence[Scene], path: Path) -> list[str]:
    """What could not be written, in sentences.

    Raises:
        MissingExtraError: rerun-sdk is not installed. OSError: the file cannot be written.
    """
    try:
        import rerun as rr
    except ModuleNotFoundError as error:
        raise MissingExtraError("rerun", "rerun-sdk") from error
    problems: list[str] = []
    with written(path) as part:
        part.touch()  # what cannot be written there is said as for every file
        recording = rr.RecordingStream("edgevla", recording_id=path.stem)
        recording.save(part, default_blueprint=_layout(scenes))
        recording.send_property("edgevla", rr.AnyValues(version=__version__, title=[s.title for s in scenes]))
        for scene in scenes:
            _log(rr, recording, scene, prefix(scene, scenes), problems)
        recording.flush()
        recording.disconnect()
    return problems


def _log(rr: Any, recording: Any, scene: Scene, above: str, problems: list[str]) -> None:
    for name, table in scene.tables.items():
        for joint in table.names:
            place = f"{above}joints/{_part(joint)}/{name}"
            _send(rr, recording, place, table, joint)
            recording.log(place, rr.SeriesLines(names=name, colors=COLOURS.get(name)), static=True)
    for name, table in scene.others.items():
        for figure in table.names:
            _send(rr, recording, f"{above}{name}/{_part(figure)}", table, figure)
    for camera in scene.cameras:
        place = f"{above}cameras/{_part(camera)}"
        for time, jpeg in jpegs(scene, camera, problems):
            recording.set_time(CLOCK, duration=time)
            recording.log(place, rr.EncodedImage(contents=jpeg, media_type="image/jpeg"))
    for said in scene.said:
        recording.set_time(CLOCK, duration=said.time)
        recording.log(f"{above}events", rr.TextLog(said.text, level=LEVELS.get(said.severity, "INFO")))


def _send(rr: Any, recording: Any, place: str, table: TimeSeries, name: str) -> None:
    values = table.column(name)
    assert values is not None
    known = np.isfinite(values)
    if known.any():
        clock = rr.TimeColumn(CLOCK, duration=table.times[known])
        recording.send_columns(place, indexes=[clock], columns=rr.Scalars.columns(scalars=values[known]))


def _layout(scenes: Sequence[Scene]) -> Any:
    """Of the first scene: cameras above, a plot per joint below, what was said at the bottom."""
    import rerun.blueprint as rrb

    first, above = scenes[0], prefix(scenes[0], scenes)
    views: list[Any] = []
    cameras = [rrb.Spatial2DView(origin=f"/{above}cameras/{_part(c)}", name=c) for c in first.cameras]
    if cameras:
        views.append(rrb.Horizontal(*cameras))
    plots = [
        rrb.TimeSeriesView(origin=f"/{above}joints/{_part(joint)}", name=_named(first, joint))
        for joint in first.joints
    ]
    views.append(rrb.Grid(*plots))
    if first.said:
        views.append(rrb.TextLogView(origin=f"/{above}events", name="events"))
    shares = [2] * bool(cameras) + [4] + [1] * bool(first.said)
    return rrb.Blueprint(rrb.Vertical(*views, row_shares=shares), collapse_panels=True)


def _named(scene: Scene, joint: str) -> str:
    unit = scene.unit(joint)
    return f"{joint} ({unit})" if unit else joint


def _part(name: str) -> str:
    """As one part of an entity's path: a slash would begin another."""
    return name.replace("/", "_").replace(" ", "_")

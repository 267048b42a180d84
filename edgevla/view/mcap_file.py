"""Scenes as an MCAP file (extra `mcap`): JSON messages with their schemas inside, as Foxglove and others read them.

    [/episode-003]/state, /action, or /measured, /sent, /wanted    {"shoulder_pan": 1.25, ...}, a message per row or tick
    [/episode-003]/loop                                           lateness in ms, actions left, chunk
    [/episode-003]/cameras/front                                  foxglove.CompressedImage, JPEG
    [/episode-003]/events                                         foxglove.Log

A run has its own clock's time. Episodes have none: they follow each other from 1970 on, a second between.
"""

from __future__ import annotations

import base64
import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevla import __version__
from edgevla.errors import MissingExtraError
from edgevla.view.scene import Scene, TimeSeries
from edgevla.view.written import jpegs, prefix, written

BETWEEN_S = 1.0
LEVELS = {"info": 2, "warning": 3, "error": 4, "stop": 5}
"""foxglove.Log's numbers."""
TIME = {
    "type": "object",
    "title": "time",
    "properties": {"sec": {"type": "integer", "minimum": 0}, "nsec": {"type": "integer", "minimum": 0}},
}
IMAGE = {
    "title": "foxglove.CompressedImage",
    "type": "object",
    "properties": {
        "timestamp": TIME,
        "frame_id": {"type": "string"},
        "data": {"type": "string", "contentEncoding": "base64"},
        "format": {"type": "string"},
    },
}
LOG = {
    "title": "foxglove.Log",
    "type": "object",
    "properties": {
        "timestamp": TIME,
        "level": {"type": "integer"},
        "message": {"type": "string"},
        "name": {"type": "string"},
        "file": {"type": "string"},
        "line": {"type": "integer", "minimum": 0},
    },
}


@dataclass(frozen=True)
class Note:
    """One message of a topic. ns: since 1970."""

    ns: int
    topic: str
    content: Mapping[str, Any]


def write_mcap(scenes: Sequence[Scene], path: Path) -> list[str]:
    """What could not be written, in sentences.

    Raises:
        MissingExtraError: mcap is not installed. OSError: the file cannot be written.
    """
    try:
        from mcap.writer import Writer
    except ModuleNotFoundError as error:
        raise MissingExtraError("mcap", "mcap") from error
    problems: list[str] = []
    with written(path) as part, part.open("wb") as stream:
        writer = Writer(stream)
        writer.start(profile="", library=f"edgevla {__version__}")
        channels = _register(writer, scenes)
        begun_ns = 0
        for scene in scenes:
            begun_ns = scene.begun_ns or begun_ns
            for n, note in enumerate(_notes(scene, prefix(scene, scenes), begun_ns, problems)):
                data = json.dumps(note.content, separators=(",", ":")).encode()
                writer.add_message(channels[note.topic], note.ns, data, note.ns, n)
            writer.add_metadata(scene.name, _about(scene))
            begun_ns += round((scene.span[1] - scene.span[0] + BETWEEN_S) * 1e9)
        writer.finish()
    return problems


def _about(scene: Scene) -> dict[str, str]:
    outcome = {} if scene.outcome is None else {"outcome": scene.outcome.words}
    return {"title": scene.title, **outcome, **{joint: scene.unit(joint) for joint in scene.joints}}


def _register(writer: Any, scenes: Sequence[Scene]) -> dict[str, int]:
    """A channel per topic. Each table has a schema of its own, which says the units."""
    channels: dict[str, int] = {}

    def add(topic: str, schema: Mapping[str, Any]) -> None:
        number = writer.register_schema(
            name=schema["title"], encoding="jsonschema", data=json.dumps(schema).encode()
        )
        channels[topic] = writer.register_channel(topic=topic, message_encoding="json", schema_id=number)

    for scene in scenes:
        above = f"/{prefix(scene, scenes)}"
        for name, table in {**scene.tables, **scene.others}.items():
            add(f"{above}{name}", _schema(name, table))
        for camera in scene.cameras:
            add(f"{above}cameras/{camera}", IMAGE)
        if scene.said:
            add(f"{above}events", LOG)
    return channels


def _schema(name: str, table: TimeSeries) -> dict[str, Any]:
    units = table.units or [""] * len(table.names)
    properties = {
        joint: {"type": "number", **({"description": unit} if unit else {})}
        for joint, unit in zip(table.names, units, strict=True)
    }
    return {"title": f"edgevla.{name}", "type": "object", "properties": properties}


def _notes(scene: Scene, above: str, begun_ns: int, problems: list[str]) -> Iterator[Note]:
    """By time, as readers like it best."""
    topics: list[Iterator[Note]] = [
        _figures(f"/{above}{name}", table, begun_ns)
        for name, table in {**scene.tables, **scene.others}.items()
    ]
    topics += [_images(scene, camera, above, begun_ns, problems) for camera in scene.cameras]
    yield from heapq.merge(*topics, _logs(scene, above, begun_ns), key=lambda note: note.ns)


def _figures(topic: str, table: TimeSeries, begun_ns: int) -> Iterator[Note]:
    """What is not known is left out: JSON has no NaN."""
    for time, row, known in zip(table.times, table.values.tolist(), np.isfinite(table.values), strict=True):
        figures = {n: round(v, 6) for n, v, is_known in zip(table.names, row, known, strict=True) if is_known}
        yield Note(_ns(begun_ns, time), topic, figures)


def _images(scene: Scene, camera: str, above: str, begun_ns: int, problems: list[str]) -> Iterator[Note]:
    for time, jpeg in jpegs(scene, camera, problems):
        ns, data = _ns(begun_ns, time), base64.b64encode(jpeg).decode()
        image = {"timestamp": _stamp(ns), "frame_id": camera, "data": data, "format": "jpeg"}
        yield Note(ns, f"/{above}cameras/{camera}", image)


def _logs(scene: Scene, above: str, begun_ns: int) -> Iterator[Note]:
    for said in scene.said:
        ns, source = _ns(begun_ns, said.time), said.text.partition(":")[0]
        log = {"timestamp": _stamp(ns), "level": LEVELS.get(said.severity, 2), "message": said.text}
        yield Note(ns, f"/{above}events", {**log, "name": source, "file": "", "line": 0})


def _ns(begun_ns: int, seconds: float) -> int:
    return max(0, begun_ns + round(float(seconds) * 1e9))


def _stamp(ns: int) -> dict[str, int]:
    return {"sec": ns // 10**9, "nsec": ns % 10**9}

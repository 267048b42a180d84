"""All deployments of this user on this machine, and robots elsewhere, as they come and go: what is known of each. No
screen.

One that has ended stays, with what was last known of it, until the same robot runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgevla.errors import WireError
from edgevla.messages import Event, ServoHealth, Severity, State
from edgevla.monitor.elsewhere import Elsewhere, Far
from edgevla.monitor.link import Listener
from edgevla.monitor.model import MonitorModel
from edgevla.monitor.said import Sentence
from edgevla.session import deployments

STREAMS = (State, ServoHealth, Event)
FIND_NS = 1_000_000_000
MOST_ENDED = 20
GRAVITY: dict[Severity, int] = {"info": 0, "warning": 1, "error": 2, "stop": 3}


@dataclass
class Deployed:
    """One deployment. listener: None once it has ended. model: what it said since this page was opened."""

    folder: Path
    model: MonitorModel
    listener: Listener | None

    @property
    def key(self) -> object:
        """By which it is found again among all lines."""
        return self.folder

    @property
    def worst(self) -> Sentence | None:
        """Of what it said, the newest of the gravest."""
        said = [sentence for sentence in self.model.said if sentence.source != "monitor"]
        return max(reversed(said), key=lambda sentence: GRAVITY[sentence.severity], default=None)

    def look(self) -> None:
        """Takes in what was said, and what is true past the sockets."""
        if self.listener is not None:
            self.listener.poll(self.model)
            self.model.outside = self.listener.look(self.model.outside)

    def end(self) -> None:
        """It is not among those that run any more."""
        if self.listener is not None:
            self.look()
            self.model.outside = replace(self.model.outside, is_folder_there=False, is_supervisor_alive=False)
            self.listener.close()
            self.listener = None


@dataclass
class Fleet:
    """lines: in the order in which they were found; a robot that runs again takes the place of its ended line.

    servers: policy servers whose robots are shown too. find: run directories of all that run.
    """

    servers: Sequence[Elsewhere] = ()
    find: Callable[[], Sequence[Path]] = deployments
    lines: list[Deployed] = field(default_factory=list)
    _found_ns: int | None = None

    def look(self, now_ns: int) -> None:
        """What came, what went, and what all of them said."""
        if self._found_ns is None or now_ns - self._found_ns >= FIND_NS:
            self._found_ns = now_ns
            self._compare(list(self.find()))
        for line in self.lines:
            line.look()
        for server in self.servers:
            server.look()

    @property
    def all_lines(self) -> list[Deployed | Far]:
        """Of this machine, then of each server."""
        return [*self.lines, *(line for server in self.servers for line in server.lines)]

    @property
    def running(self) -> list[Deployed]:
        return [line for line in self.lines if line.listener is not None]

    def close(self) -> None:
        """Hears nothing more; lines of what runs are made anew when it looks again."""
        for line in self.running:
            assert line.listener is not None
            line.listener.close()
            self.lines.remove(line)
        for server in self.servers:
            server.close()
        self._found_ns = None

    def _compare(self, found: list[Path]) -> None:
        for line in self.running:
            if line.folder not in found:
                line.end()
        known = {line.folder for line in self.running}
        new = []
        for folder in found:
            if folder not in known:
                try:
                    new.append(Listener(folder, STREAMS))
                except WireError:  # just being removed, or of another version
                    continue
        for listener in sorted(new, key=lambda listener: listener.robot):
            self._add(Deployed(listener.folder, MonitorModel(listener.robot, listener.bundle), listener))
        ended = [line for line in self.lines if line.listener is None]
        for line in ended[:-MOST_ENDED]:
            self.lines.remove(line)

    def _add(self, line: Deployed) -> None:
        line.model.task = line.listener.note.task if line.listener is not None else ""
        for i, old in enumerate(self.lines):
            if old.listener is None and old.model.robot == line.model.robot:
                self.lines[i] = line
                return
        self.lines.append(line)

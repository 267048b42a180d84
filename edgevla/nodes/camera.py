"""The camera node: one process for all cameras of a robot.

Each camera has a capture thread (capture and JPEG release the interpreter's lock) that reads, turns the picture to
RGB, fits it to the declared size, and leaves the newest frames in a small ring; `step` publishes them. A camera that was
there and vanished is looked for again, for ever; one that was never there ends the process with a sentence.

Run as `python -m edgevla.nodes.camera --session HEX --camera JSON [--camera JSON ...]`.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zmq

from edgevla.cameras import CameraSettings, Picture, Source, open_source
from edgevla.cameras.pixels import encode_jpeg, fit, thumbnail, to_rgb, turned
from edgevla.cameras.watch import PictureWatch
from edgevla.clock import NS_PER_S
from edgevla.descriptions import AboutCameraNode
from edgevla.errors import CameraError, EdgeVLAError
from edgevla.messages import Frame, Phase, Severity, Thumbnail
from edgevla.nodes.vitals import heartbeat, is_orphan, stop_when_asked
from edgevla.wire import CommandServer, Publisher, endpoint, run_dir

HEARTBEAT_NS = NS_PER_S // 5
THUMBNAIL_NS = NS_PER_S // 5
RING = 4
REOPEN_S = (0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class _Ready:
    """A frame on its way out: payload as it will be sent, and now and then a thumbnail (JPEG, height, width)."""

    frame: Frame
    payload: np.ndarray
    captured_ns: int
    small: tuple[np.ndarray, int, int] | None


class Capture(threading.Thread):
    """Reads one source for ever. The node takes frames and news from it; it never touches a socket."""

    def __init__(self, source: Source, wake: threading.Event) -> None:
        super().__init__(name=f"capture {source.settings.name}", daemon=True)
        self.source, self.settings = source, source.settings
        self.frames: deque[_Ready] = deque(maxlen=RING)
        self.news: deque[tuple[Severity, str, str]] = deque(maxlen=32)
        self.counters = dict.fromkeys(("frames", "dropped", "repeated", "reopened", "silent", "odd"), 0)
        self.is_lost = False
        self.failure: Exception | None = None
        self._wake, self._stopping = wake, threading.Event()
        self._n_repeated = self._n_tries = self._n_odd = 0
        self._last_ns: int | None = None
        self._previous: np.ndarray | None = None
        self._thumbnail_ns = 0
        self._said: set[str] = set()
        self._watch: PictureWatch | None = None

    def run(self) -> None:
        try:
            if not self.source.is_drawn:
                self._watch = PictureWatch(self.settings.name, self._who)
            while not self._stopping.is_set() and not self.source.is_at_end:
                self._turn()
            if self.source.is_at_end:
                self._say("info", "camera_ended", f"{self._who} has shown its last picture")
        except Exception as error:  # the thread's edge: `step` raises it in the node
            self.failure = error
        finally:
            self.source.close()
            self._wake.set()

    def _turn(self) -> None:
        picture = self.source.read()
        if picture is None or not picture.pixels.size:
            if not self.source.is_at_end and not self._stopping.is_set():
                self.counters["silent"] += 1
                self._reopen("gives no more pictures; looking for it. Check its plug and cable")
            return
        image = self._fitted(picture)
        if image is not None:
            if self.is_lost:
                self._found()
            if self.source.n_rounds == 1:
                self._say_once("info", "camera_again", f"{self._who} has ended, and begins again")
            self.frames.append(self._prepare(image, picture.captured_ns))
            self._wake.set()
        elif self._n_odd >= self.settings.fps:
            self._reopen("keeps giving pictures of another size; opening it again")

    def _fitted(self, picture: Picture) -> np.ndarray | None:
        """The picture as it is published; None when it came in another size than those before.

        Raises:
            CameraError: the first picture has another size than declared.
        """
        try:
            image = fit(turned(to_rgb(picture), self.settings.rotation), self.settings)
        except CameraError as error:
            if not self.counters["frames"]:
                raise
            self._n_odd += 1
            self.counters["odd"] += 1
            self._say_once("warning", "camera_odd", f"{error}. Such pictures are left out")
            return None
        self._n_odd = 0
        return image

    def _prepare(self, image: np.ndarray, captured_ns: int) -> _Ready:
        self._count(image, captured_ns)
        jpeg = self.settings.encoding == "jpeg"
        payload = encode_jpeg(image, self.settings.jpeg_quality) if jpeg else np.ascontiguousarray(image)
        small = None
        if captured_ns - self._thumbnail_ns >= THUMBNAIL_NS:
            self._thumbnail_ns = captured_ns
            picture = thumbnail(image)
            small = (encode_jpeg(picture, 80), *picture.shape[:2])
        frame = Frame(
            camera=self.settings.name,
            height=image.shape[0],
            width=image.shape[1],
            encoding=self.settings.encoding,
            n_dropped=self.counters["dropped"],
            n_repeated=self._n_repeated,
        )
        return _Ready(frame, payload, captured_ns, small)

    def _count(self, image: np.ndarray, captured_ns: int) -> None:
        """Frames that the device skipped, by the time between two; and pictures equal to the one before."""
        self.counters["frames"] += 1
        period = NS_PER_S / self.settings.fps
        if self._last_ns is not None:
            self.counters["dropped"] += max(0, round((captured_ns - self._last_ns) / period) - 1)
        self._last_ns = captured_ns
        is_same = self._previous is not None and np.array_equal(self._previous, image)
        self._n_repeated = self._n_repeated + 1 if is_same else 0
        self.counters["repeated"] += is_same
        self._previous = image
        for news in self._watch.see(image, captured_ns, is_same) if self._watch is not None else ():
            self._say(*news)

    def _reopen(self, why: str) -> None:
        """Close the device and try to open it, waiting longer each time, until it opens."""
        if not self.is_lost:
            self.is_lost, self._last_ns, self._previous, self._n_tries = True, None, None, 0
            self._say("warning", "camera_lost", f"{self._who} {why}")
        while True:
            self.source.close()
            if self._stopping.wait(REOPEN_S[min(self._n_tries, len(REOPEN_S) - 1)]):
                return
            self._n_tries += 1
            try:
                self.source.open()
                return
            except CameraError as error:
                if self._n_tries == len(REOPEN_S):
                    self._say("warning", "camera_missing", str(error))

    def _found(self) -> None:
        """It is back when it shows something: a device may open and stay dark."""
        self.is_lost = False
        self._said.discard("camera_odd")
        self.counters["reopened"] += 1
        self._say("info", "camera_back", f"{self._who} is back")

    @property
    def _who(self) -> str:
        return f"camera '{self.settings.name}' ({self.source.about})"

    def _say(self, severity: Severity, code: str, text: str) -> None:
        self.news.append((severity, code, text))
        self._wake.set()

    def _say_once(self, severity: Severity, code: str, text: str) -> None:
        if code not in self._said:
            self._said.add(code)
            self._say(severity, code, text)

    def stop(self) -> None:
        """Asks the thread to end; it does after the picture that it waits for."""
        self._stopping.set()


class CameraNode:
    """Cameras of a deployment, which may have several of these nodes (real and simulated ones). `step` never blocks.

    folder: the run directory, or `inproc`. Each camera publishes at `camera/<name>`, and answers commands and
    `describe` there.
    """

    def __init__(
        self, ctx: zmq.Context, folder: Path | str, session: bytes, sources: Sequence[Source]
    ) -> None:
        if len({s.settings.name for s in sources}) != len(sources):
            raise CameraError("two cameras have the same name; give each its own")
        self.wake = threading.Event()
        self.captures = [Capture(source, self.wake) for source in sources]
        self._publishers: dict[str, Publisher] = {}
        self._servers: dict[str, CommandServer] = {}
        self._heartbeat_ns = 0
        try:
            for source in sources:
                name, node = source.settings.name, f"camera/{source.settings.name}"
                self._publishers[name] = Publisher(ctx, endpoint(folder, node), session, node)
                self._servers[name] = CommandServer(ctx, endpoint(folder, node, "commands"), session, node)
        except zmq.ZMQError:
            self.close()
            raise

    def open(self) -> None:
        """Opens all cameras, then begins to capture.

        Raises:
            CameraError: one is missing or cannot do what is declared; none captures then.
        """
        try:
            for capture in self.captures:
                capture.source.open()
        except CameraError as error:
            name = str(error.fields.get("camera", ""))
            if name in self._publishers:
                self._publishers[name].event("error", "camera_missing", str(error))
            for capture in self.captures:
                capture.source.close()
            raise
        for capture in self.captures:
            capture.start()

    def step(self, now_ns: int) -> None:
        """Publishes what has come, answers, beats.

        Raises:
            CameraError: a camera gives frames that were not declared; or what else ended a capture.
        """
        for capture in self.captures:
            name = capture.settings.name
            publisher, server = self._publishers[name], self._servers[name]
            while capture.frames:
                self._publish(publisher, capture.frames.popleft())
            while capture.news:
                publisher.event(*capture.news.popleft())
            if capture.failure is not None:
                publisher.event("error", "camera_failed", str(capture.failure))
                raise capture.failure
            if server.about is None and capture.counters["frames"]:
                server.about = _about(capture)
            for command in server.poll():
                command.answer(False, f"a camera knows no command '{command.action}'")
        if now_ns - self._heartbeat_ns >= HEARTBEAT_NS:
            self._heartbeat_ns = now_ns
            self._beat()

    @property
    def is_at_end(self) -> bool:
        """Whether every source was a file and has ended."""
        return all(
            not c.is_alive() and not c.frames and not c.news and c.failure is None for c in self.captures
        )

    def _publish(self, publisher: Publisher, ready: _Ready) -> None:
        publisher.send(ready.frame, [ready.payload], ready.captured_ns)
        if ready.small is not None:
            jpeg, height, width = ready.small
            publisher.send(Thumbnail(ready.frame.camera, height, width), [jpeg], ready.captured_ns)

    def _beat(self) -> None:
        for capture in self.captures:
            phase: Phase = (
                "degraded" if capture.is_lost else "running" if capture.counters["frames"] else "starting"
            )
            self._publishers[capture.settings.name].send(heartbeat(phase, capture.counters))

    def close(self) -> None:
        for capture in self.captures:
            capture.stop()
        for capture in self.captures:
            if capture.is_alive():
                capture.join(timeout=2)
        for publisher in self._publishers.values():
            publisher.close()
        for server in self._servers.values():
            server.close()


def _about(capture: Capture) -> AboutCameraNode:
    """The `describe` of one camera: real size, rate and format."""
    settings = capture.settings
    return AboutCameraNode(
        node=f"camera/{settings.name}",
        name=settings.name,
        source=settings.source,
        height=settings.height,
        width=settings.width,
        fps=settings.fps,
        locked_exposure=settings.has_locked_exposure or settings.exposure is not None,
        fit=settings.fit,
        format=capture.source.about,
    )


def serve(session: bytes, sources: Sequence[Source]) -> int:
    """Runs a camera node until it is asked to end, its parent dies, or all files end. Exit code."""
    stopping = stop_when_asked()
    ctx = zmq.Context()
    node = CameraNode(ctx, run_dir(session), session, sources)
    try:
        node.open()
        while not stopping.is_set() and not is_orphan() and not node.is_at_end:
            node.wake.wait(0.05)
            node.wake.clear()
            node.step(time.monotonic_ns())
        return 0
    except EdgeVLAError as error:
        print(f"camera: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        node.close()
        ctx.term()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgevla.nodes.camera", description=__doc__)
    parser.add_argument("--session", required=True, help="hex of the deployment's session")
    parser.add_argument("--camera", action="append", required=True, help="CameraSettings as JSON; repeat")
    args = parser.parse_args(argv)
    try:
        sources = [open_source(CameraSettings.from_json(text)) for text in args.camera]
    except EdgeVLAError as error:
        print(f"camera: {error}", file=sys.stderr)
        return error.exit_code
    return serve(bytes.fromhex(args.session), sources)


if __name__ == "__main__":
    sys.exit(main())

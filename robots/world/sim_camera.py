"""A camera that looks at the simulated world: drawn from the emulator's `world` messages, published like any other.

Run as `python -m edgevla.robots.world.sim_camera --world ENDPOINT --session HEX --camera front --width 64
--height 64`; `--camera` also takes the JSON of `CameraSettings`, several times for several cameras.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence

import zmq

from edgevla.cameras import CameraSettings, Picture, Source
from edgevla.clock import NS_PER_MS, NS_PER_S
from edgevla.errors import EdgeVLAError
from edgevla.messages import World
from edgevla.nodes.camera import serve
from edgevla.simulated import task_named
from edgevla.wire import Inbox

from .contract import Painter, make_painter


class SimCamera:
    """Draws the newest world on its own 1/fps grid; a world that has gone silent gives no pictures."""

    is_at_end = False
    n_rounds = 0
    is_drawn = True

    def __init__(self, settings: CameraSettings, inbox: Inbox, painter: Painter) -> None:
        self.settings, self._inbox, self._painter = settings, inbox, painter
        self._due_ns = 0
        self._last_seq = -1

    @property
    def about(self) -> str:
        return "simulated"

    def open(self) -> None:
        self._painter.open(self.settings.name, self.settings.width, self.settings.height)
        self._due_ns = time.monotonic_ns()

    def read(self) -> Picture | None:
        now = time.monotonic_ns()
        self._due_ns = max(self._due_ns + round(NS_PER_S / self.settings.fps), now - 100 * NS_PER_MS)
        time.sleep(max(0, self._due_ns - now) / NS_PER_S)
        give_up = time.monotonic_ns() + 500 * NS_PER_MS
        while time.monotonic_ns() < give_up:
            message = self._inbox.newest(World)
            if message is not None and message.seq != self._last_seq:
                self._last_seq = message.seq
                s = self.settings
                image = self._painter.draw(s.name, s.width, s.height, message.body)
                return Picture(image, message.observed_ns, is_bgr=False)
            time.sleep(0.002)
        return None

    def close(self) -> None:
        pass


def _settings(args: argparse.Namespace) -> list[CameraSettings]:
    plain = CameraSettings("", "sim", args.width, args.height, args.fps, encoding=args.encoding)
    return [
        CameraSettings.from_json(text) if text.startswith("{") else dataclasses.replace(plain, name=text)
        for text in args.camera
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgevla.robots.world.sim_camera", description=__doc__)
    parser.add_argument("--world", required=True, help="ZeroMQ endpoint of the emulator's `world` messages")
    parser.add_argument("--task", required=True, help="simulated task whose world it is")
    parser.add_argument("--session", required=True, help="hex of the deployment's session")
    parser.add_argument(
        "--camera", action="append", required=True, help="front, top or wrist; or JSON; repeat"
    )
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--encoding", choices=("rgb8", "jpeg"), default="rgb8")
    args = parser.parse_args(argv)
    session = bytes.fromhex(args.session)
    ctx = zmq.Context()
    inbox = Inbox(ctx, {World: (args.world, 2)}, session)
    try:
        painter = make_painter(task_named(args.task))
        sources: list[Source] = [SimCamera(settings, inbox, painter) for settings in _settings(args)]
        return serve(session, sources)
    except EdgeVLAError as error:
        print(f"camera: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        inbox.stop()
        ctx.destroy(linger=0)


if __name__ == "__main__":
    sys.exit(main())

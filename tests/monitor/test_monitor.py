"""The monitor by key presses and by what its screen says, at 80x24 and larger."""

from __future__ import annotations

import asyncio
from typing import Any

import cv2
import numpy as np
import pytest

from edgevla.arguments import Arguments, SetTask
from edgevla.descriptions import AboutJoint, AboutRobot
from edgevla.messages import (
    Action,
    Body,
    Chunk,
    Event,
    Header,
    Heartbeat,
    Message,
    Mode,
    Servo,
    ServoHealth,
    State,
    Thumbnail,
    Timing,
)
from edgevla.monitor.app import MonitorApp
from edgevla.monitor.model import MonitorModel, Received
from edgevla.monitor.widgets import half_blocks
from edgevla.session import Deployment

SO101 = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
ALOHA = tuple(f"{side}_{j}" for side in ("left", "right") for j in (*SO101, "wrist_rotate"))


def jpeg(bgr: tuple[int, int, int]) -> np.ndarray:
    return np.asarray(cv2.imencode(".jpg", np.full((120, 160, 3), bgr, np.uint8))[1]).reshape(-1)


def from_node(source: str, body: Body, *payloads: np.ndarray) -> Message[Body]:
    return Message(Header(b"12345678", source, 0, 1, 1), body, payloads)


def state_of(joints: tuple[str, ...], mode: Mode, tick: int, deadline_ns: int) -> State:
    n = len(joints)
    return State(
        tick=tick,
        deadline_ns=deadline_ns,
        late_ns=2_000_000,
        t0_ns=0,
        step_ns=33_333_333,
        mode=mode,
        position=np.full(n, 12.5, np.float32),
        position_age_us=np.zeros(n, np.uint32),
        wanted=None,
        goal=np.full(n, 14.5, np.float32),
        limited_by=np.zeros(n, np.uint16),
        chunk_seq=4,
        action_index=3.0,
        n_actions_left=12,
        reason="",
    )


def messages(joints: tuple[str, ...] = SO101, mode: Mode = "running") -> list[Received]:
    about = [AboutJoint(f"{j}.pos", "deg", -100.0, 100.0, 90.0, False, None, None) for j in joints]
    servos = tuple(
        Servo(
            id=i + 1,
            bus="main",
            name=joint,
            temperature_c=71.0 if i == 2 else 35.0,
            voltage_v=7.4,
            load_percent=10.0,
            current_ma=None,
            error_bits=0,
            torque_on=True,
            n_retries=0,
            n_corrupt=0,
            n_stale=0,
        )
        for i, joint in enumerate(joints)
    )
    chunk = Chunk(
        request_id=4,
        grid_index=0,
        step_ns=33_333_333,
        n_valid=30,
        policy="",
        task="sort the bolts",
        is_guided=False,
        n_steps=0,
        noise_seed=0,
        image_age_ns=21_000_000,
        state_age_ns=0,
        timing_ns=Timing(
            assemble=0, prompt=0, encode=9_000_000, denoise=0, decode=1_000_000, wait=0, network=0
        ),
    )
    return [
        Deployment("12" * 8, 1, "so101", "bundles/reach-cube"),
        AboutRobot("robot", "so101", tuple(about), (), 100.0, (), ()),
        from_node("robot", state_of(joints, mode, 90, 0)),
        from_node("robot", state_of(joints, mode, 180, 1_000_000_000)),
        from_node("robot", ServoHealth(servos)),
        from_node("policy", chunk),
        from_node("camera/front", Thumbnail("front", 120, 160), jpeg((0, 0, 255))),
        from_node("robot", Event("warning", "warm", "elbow_flex is warm", {})),
    ]


class ScriptedLink:
    """A deployment that says what it is told to, and remembers what it was commanded."""

    def __init__(self, script: list[Received]) -> None:
        self.waiting, self.sent, self.is_closed = list(script), [], False

    def poll(self) -> list[Received]:
        waiting, self.waiting = self.waiting, []
        return waiting

    def command(self, action: Action, arguments: Arguments | None = None) -> None:
        self.sent.append((action, arguments))

    def close(self) -> None:
        self.is_closed = True


def drive(
    script: list[Received], keys: tuple[str, ...] = (), size: tuple[int, int] = (80, 24)
) -> tuple[str, list[Any]]:
    """Runs the app headless; returns the screen as text and the commands it sent."""
    link = ScriptedLink(script)

    async def run() -> str:
        app = MonitorApp(link)
        async with app.run_test(size=size) as pilot:
            app.refresh_now()
            await pilot.pause(0.15)
            for key in keys:
                await pilot.press(key)
                await pilot.pause(0.02)
            app.refresh_now()
            await pilot.pause(0.1)
            lines = [
                "".join(segment.text for segment in app.screen._compositor.render_strips()[y])
                for y in range(size[1])
            ]
        return "\n".join(lines)

    screen = asyncio.run(run())
    assert link.is_closed
    return screen, link.sent


def test_the_screen_says_what_the_arm_does_at_80_by_24() -> None:
    screen, _ = drive(messages())
    for expected in ("so101", "RUNNING", "reach-cube", "sort the bolts", "shoulder_pan", "12.5", "14.5"):
        assert expected in screen
    for expected in (
        "90.0 Hz",
        "p50 2.00",
        "p50 10.0",
        "12/30",
        "71",
        "elbow_flex is warm",
        "front",
        "pause",
    ):
        assert expected in screen
    assert all(len(line) <= 80 for line in screen.split("\n"))


def test_fourteen_joints_fit_into_80_by_24() -> None:
    screen, _ = drive(messages(ALOHA))
    assert "l sho_lif" in screen
    assert "r wri_rot" in screen
    assert screen.count("14.5") == 14


def test_nothing_heard_yet_is_said_so() -> None:
    screen, _ = drive([])
    assert "waiting for the robot" in screen
    assert "no camera yet" in screen


@pytest.mark.parametrize(
    ("mode", "key", "action"),
    [
        ("running", "space", "pause"),
        ("paused", "space", "resume"),
        ("running", "s", "stop"),
        ("running", "e", "emergency_stop"),
        ("running", "f12", "emergency_stop"),
        ("emergency", "c", "clear_stop"),
        ("running", "h", "home"),
    ],
)
def test_a_key_is_a_command(mode: Mode, key: str, action: str) -> None:
    screen, sent = drive(messages(mode=mode), (key,))
    assert sent == [(action, None)]
    assert f"sent: {action.replace('_', ' ')}" in screen


def test_the_task_is_typed_without_moving_the_arm() -> None:
    typed = ("t", *["backspace"] * len("sort the bolts"), *"see", "enter")
    _, sent = drive(messages(), typed)
    assert sent == [("set_task", SetTask("see"))]


def test_the_emergency_key_works_while_typing() -> None:
    _, sent = drive(messages(), ("t", "x", "f12"))
    assert sent == [("emergency_stop", None)]


def test_a_silent_node_is_named() -> None:
    model = MonitorModel()
    model.apply(from_node("policy", Heartbeat(1, "running", {}, 0)), now_ns=0)
    assert not model.is_silent("policy", now_ns=1_000_000_000)
    assert model.is_silent("policy", now_ns=2_000_000_000)


def test_a_red_thumbnail_is_red_and_a_broken_one_is_no_crash() -> None:
    cell = half_blocks(jpeg((0, 0, 255)).tobytes(), 16, 6).spans[0].style
    assert cell.color.triplet.red > 240  # type: ignore[union-attr]
    assert cell.color.triplet.blue < 20  # type: ignore[union-attr]
    assert half_blocks(b"not a jpeg", 16, 6).plain == "unreadable"

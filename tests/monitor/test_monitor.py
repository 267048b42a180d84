"""The monitor by key presses and by what its screen says, at 80x24 and larger."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pytest

from edgevla.monitor.app import MonitorApp, Received
from edgevla.monitor.model import MonitorModel
from edgevla.monitor.widgets import half_blocks

SO101 = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
ALOHA = tuple(f"{side}_{j}" for side in ("left", "right") for j in (*SO101, "wrist_rotate"))


def jpeg(bgr: tuple[int, int, int]) -> np.ndarray:
    return np.asarray(cv2.imencode(".jpg", np.full((120, 160, 3), bgr, np.uint8))[1]).reshape(-1)


def messages(joints: tuple[str, ...] = SO101, mode: str = "running") -> list[Received]:
    n = len(joints)
    described = [
        {"name": f"{j}.pos", "unit": "deg", "min": -100, "max": 100, "max_velocity": 90.0} for j in joints
    ]
    servos = [
        {
            "id": i + 1,
            "bus": "main",
            "temperature_c": 71.0 if i == 2 else 35.0,
            "voltage_v": 7.4,
            "load_percent": 10.0,
            "error_bits": 0,
            "torque_on": True,
            "n_retries": 0,
            "n_stale": 0,
        }
        for i in range(n)
    ]
    state = {
        "source": "robot",
        "tick": 90,
        "mode": mode,
        "reason": "",
        "n_actions_left": 12,
        "action_index": 3.0,
        "chunk_seq": 4,
        "late_ns": 2_000_000,
        "deadline_ns": 0,
        "position": np.full(n, 12.5),
        "goal": np.full(n, 14.5),
        "position_age_us": np.zeros(n),
        "limited_by": np.zeros(n, np.uint16),
    }
    later = {**state, "tick": 180, "deadline_ns": 1_000_000_000}
    chunk = {
        "source": "policy",
        "timing_ns": {"encode": 9_000_000, "decode": 1_000_000},
        "task": "sort the bolts",
    }
    return [
        ("describe", {"source": "robot", "robot": "so101", "joints": described}, []),
        ("describe", {"source": "policy", "policy": "act", "name": "reach-cube", "chunk_size": 30}, []),
        ("state", state, []),
        ("state", later, []),
        ("servo_health", {"source": "robot", "servos": servos}, []),
        ("chunk", {**chunk, "image_age_ns": 21_000_000, "n_valid": 30}, []),
        ("thumbnail", {"source": "camera/front", "camera": "front", "observed_ns": 1}, [jpeg((0, 0, 255))]),
        ("event", {"source": "robot", "severity": "warning", "text": "elbow_flex is warm"}, []),
    ]


class ScriptedLink:
    """A deployment that says what it is told to, and remembers what it was commanded."""

    def __init__(self, script: list[Received]) -> None:
        self.waiting, self.sent, self.is_closed = list(script), [], False

    def poll(self) -> list[Received]:
        waiting, self.waiting = self.waiting, []
        return waiting

    def command(self, action: str, arguments: Mapping[str, Any]) -> None:
        self.sent.append((action, dict(arguments)))

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
def test_a_key_is_a_command(mode: str, key: str, action: str) -> None:
    screen, sent = drive(messages(mode=mode), (key,))
    assert sent == [(action, {})]
    assert f"sent: {action.replace('_', ' ')}" in screen


def test_the_task_is_typed_without_moving_the_arm() -> None:
    typed = ("t", *["backspace"] * len("sort the bolts"), *"see", "enter")
    _, sent = drive(messages(), typed)
    assert sent == [("set_task", {"task": "see"})]


def test_the_emergency_key_works_while_typing() -> None:
    _, sent = drive(messages(), ("t", "x", "f12"))
    assert sent == [("emergency_stop", {})]


def test_a_silent_node_is_named() -> None:
    model = MonitorModel()
    model.apply("heartbeat", {"source": "policy", "phase": "running", "counters": {}}, [], now_ns=0)
    assert not model.is_silent("policy", now_ns=1_000_000_000)
    assert model.is_silent("policy", now_ns=2_000_000_000)


def test_a_red_thumbnail_is_red_and_a_broken_one_is_no_crash() -> None:
    cell = half_blocks(jpeg((0, 0, 255)).tobytes(), 16, 6).spans[0].style
    assert cell.color.triplet.red > 240  # type: ignore[union-attr]
    assert cell.color.triplet.blue < 20  # type: ignore[union-attr]
    assert half_blocks(b"not a jpeg", 16, 6).plain == "unreadable"

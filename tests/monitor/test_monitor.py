"""The monitor by key presses and by what its screen says, at 80x24 and larger, on a scripted link."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from monitor_kit import SO101, about, chunk, health, jpeg, servo, state

from edgevla.messages import Event, Header, Heartbeat, Message, MessageBody, ServoHealth, Thumbnail
from edgevla.monitor.app import MonitorApp
from edgevla.monitor.model import MonitorModel
from edgevla.monitor.outside import Outside
from edgevla.monitor.panels.chunks import chunks
from edgevla.monitor.panels.servos import servos
from edgevla.monitor.standing import Standing

ALOHA = tuple(f"{side}_{j}" for side in ("left", "right") for j in (*SO101, "wrist_rotate"))


def said(
    source: str, body: MessageBody, payloads: Sequence[np.ndarray] = (), age_s: float = 0.0
) -> Message[MessageBody]:
    now = time.monotonic_ns() - round(age_s * 1e9)
    return Message(Header(b"12345678", source, 0, now, now), body, payloads)


def fresh(message: Message[MessageBody]) -> Message[MessageBody]:
    return replace(message, header=replace(message.header, sent_ns=time.monotonic_ns()))


def messages(
    joints: Sequence[str] = SO101, mode: str = "running", **changes: Any
) -> list[Message[MessageBody]]:
    """A healthy robot of these joints: 90 ticks in a second, a chunk, a picture, an event."""
    hot = tuple(servo(name, i + 1, temperature_c=71.0 if i == 2 else 35.0) for i, name in enumerate(joints))
    n = len(joints)
    return [
        said("robot", state(n, tick=90, mode=mode)),
        said("robot", state(n, tick=180, deadline_ns=1_000_000_000, mode=mode, **changes)),
        said("robot", ServoHealth(hot)),
        said("policy", chunk()),
        said("camera/front", Thumbnail("front", 120, 160), [jpeg((0, 0, 255))]),
        said("robot", Event("warning", "warm", "elbow_flex is warm", {})),
    ]


class ScriptedLink:
    """A deployment that says what it is told to, and remembers what it was asked."""

    robot, bundle, cameras, is_ours, has_leader = "so101", "reach-cube", ("front",), False, False

    def __init__(self, script: Sequence[Message[MessageBody]], joints: Sequence[str] = SO101) -> None:
        self.waiting, self.joints = list(script), joints
        self.sent: list[tuple[str, Any]] = []
        self.is_closed, self.is_silent = False, False
        self.outside = Outside()

    def poll(self, model: MonitorModel) -> None:
        if self.waiting:
            model.describe(about(self.joints))
        for message in self.waiting:
            model.apply(message)
        states = [message for message in self.waiting if message.type == "state"]
        self.waiting = [] if self.is_silent else [fresh(message) for message in states[-1:]]

    def look(self, before: Outside) -> Outside:
        return self.outside

    def command(self, action: str, arguments: Any = None) -> None:
        self.sent.append((action, arguments))

    def interrupt(self) -> None:
        self.sent.append(("interrupt", None))

    def close(self) -> None:
        self.is_closed = True


def drive(
    link: ScriptedLink, keys: Sequence[str] = (), size: tuple[int, int] = (80, 24), pause_s: float = 0.1
) -> str:
    """Runs the app headless, presses keys one by one; the screen as text."""

    async def run() -> str:
        app = MonitorApp(link)
        async with app.run_test(size=size) as pilot:
            app.refresh_now()
            await pilot.pause(0.05)
            for key in keys:
                await pilot.press(key)
                await pilot.pause(pause_s)
            for _ in range(6):  # until everything was due once more
                app.refresh_now()
            await pilot.pause(0.05)
            strips = app.screen._compositor.render_strips()
            return "\n".join("".join(segment.text for segment in strip) for strip in strips)

    screen = asyncio.run(run())
    assert link.is_closed
    return screen


def test_the_screen_says_what_the_arm_does_at_80_by_24() -> None:
    screen = drive(ScriptedLink(messages()))
    for expected in ("so101", "RUNNING", "reach-cube", "sort the bolts", "shoulder_pan", "12.5", "14.5"):
        assert expected in screen
    for expected in (
        "90.0 Hz",
        "p50 2.0",
        "p50 10.0",
        "12/30",
        "71",
        "elbow_flex is warm",
        "front",
        "pause",
    ):
        assert expected in screen
    assert all(len(line) == 80 for line in screen.split("\n"))


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 50), (50, 15), (60, 40), (30, 8), (20, 5)])
def test_no_size_breaks_a_row(size: tuple[int, int]) -> None:
    screen = drive(ScriptedLink(messages(ALOHA), ALOHA), ("t", "x"), size)
    lines = screen.split("\n")
    assert len(lines) == size[1]
    assert all(len(line) == size[0] for line in lines)
    assert "RUNNING" in lines[0]
    assert "task ❯ x" in screen
    assert "EMERGE" in lines[-1]


def test_fourteen_joints_fit_into_80_by_24() -> None:
    screen = drive(ScriptedLink(messages(ALOHA), ALOHA))
    assert "left (deg)" in screen
    assert "right (deg)" in screen
    assert screen.count("shoulder_lift") == 2
    assert screen.count("wrist_rotate") == 2
    assert screen.count(" 12   14 ─") == 14, "whole degrees, where it is tight"


def test_nothing_heard_yet_is_said_so() -> None:
    screen = drive(ScriptedLink([]))
    assert "NO ROBOT YET" in screen
    assert "front no picture yet"[:20] in screen


@pytest.mark.parametrize(
    ("mode", "key", "action"),
    [
        ("running", "space", "pause"),
        ("paused", "space", "resume"),
        ("holding", "space", "pause"),
        ("homing", "space", "pause"),
        ("running", "s", "stop"),
        ("running", "e", "emergency_stop"),
        ("running", "f12", "emergency_stop"),
        ("running", "ctrl+e", "emergency_stop"),
        ("emergency", "ctrl+r", "clear_stop"),
        ("running", "h", "home"),
    ],
)
def test_a_key_is_a_command(mode: str, key: str, action: str) -> None:
    link = ScriptedLink(messages(mode=mode))
    screen = drive(link, (key,))
    assert link.sent == [(action, None)]
    assert f"sent: {action.replace('_', ' ')}" in screen


@pytest.mark.parametrize(("is_led", "action"), [(False, "lead"), (True, "hand_back")])
def test_a_key_changes_who_drives_where_there_is_a_leader(is_led: bool, action: str) -> None:
    link = ScriptedLink(messages(mode="running", is_led=is_led))
    drive(link, ("l",))
    assert link.sent == [], "nobody could take over"
    link.has_leader = True
    screen = drive(link, ("l",))
    assert link.sent == [(action, None)]
    assert ("LED BY HAND" in screen) is is_led
    assert ("hand back" if is_led else "take over") in screen


def test_a_shadow_shows_what_the_policy_would_do_beside_where_the_arm_is() -> None:
    wanted, nothing = np.full(6, 33.5, np.float32), np.full(6, np.nan, np.float32)
    screen = drive(ScriptedLink(messages(mode="running", is_shadow=True, wanted=wanted, goal=nothing)), ())
    assert "SHADOW" in screen
    assert "33.5" in screen
    assert "12.5" in screen


def test_space_never_resumes_what_is_not_known_to_be_paused_now() -> None:
    link = ScriptedLink(messages(mode="paused"))
    link.is_silent = True
    drive(link, ("x", "space"), pause_s=0.7)
    assert link.sent == [("pause", None)], "the state was too old to be believed"


def test_the_task_is_typed_without_moving_the_arm() -> None:
    link = ScriptedLink(messages())
    drive(link, ("t", *"see", "enter", "h"), pause_s=0.25)
    assert [action for action, _ in link.sent] == ["set_task", "home"]
    assert link.sent[0][1].task == "see"


def test_the_last_task_comes_back_with_the_key_up() -> None:
    link = ScriptedLink(messages())
    drive(link, ("t", "up", "s", "enter"), pause_s=0.25)
    assert link.sent[0][1].task == "sort the boltss"


def test_a_latched_stop_names_the_keys_that_let_go_and_that_clear_it() -> None:
    screen = drive(ScriptedLink(messages(mode="emergency")))
    assert "e  LETS GO" in screen
    assert "ctrl+r  clears the stop" in screen


def test_a_silent_node_is_named_with_its_age() -> None:
    link = ScriptedLink(messages())
    model_of: list[MonitorModel] = []
    poll = link.poll

    def remember(model: MonitorModel) -> None:
        model.apply(said("policy", Heartbeat(1, "running", {}, 0), age_s=3.2))
        model_of.append(model)
        poll(model)

    link.poll = remember  # type: ignore[method-assign]
    assert "policy has been silent for 3 s" in drive(link)


def test_what_comes_from_elsewhere_cannot_move_the_cursor() -> None:
    link = ScriptedLink([*messages(), said("robot", Event("info", "x", "a\x1b[2Jb\nc\x07", {}))])
    screen = drive(link)
    assert "a·[2Jb·c·" in screen


def test_what_comes_and_goes_takes_a_line_each_and_a_number() -> None:
    flapping = [Event("warning", "mode", "holding: stale", {}), Event("info", "mode", "running", {})] * 9
    screen = drive(ScriptedLink([*messages(), *(said("robot", event) for event in flapping)]))
    assert "robot: holding: stale (9 times)" in screen
    assert "robot: running (9 times)" in screen
    assert "elbow_flex is warm" in screen, "and nothing else is pushed away"


def test_a_mistake_of_the_monitor_ends_it_with_a_reason_that_names_the_robot() -> None:
    link = ScriptedLink(messages())

    def broken(model: MonitorModel) -> None:
        raise KeyError("by a mistake")

    link.poll = broken  # type: ignore[method-assign]

    async def run() -> MonitorApp:
        app = MonitorApp(link)
        async with app.run_test() as pilot:
            await pilot.pause(0.3)
        return app

    app = asyncio.run(run())
    assert app.return_code == 1
    assert "KeyError" in app.reason
    assert "so101" in app.reason


# -- the model ----------------------------------------------------------------------------------------------------


def model_of(script: Sequence[Message[MessageBody]]) -> MonitorModel:
    model = MonitorModel("so101", "reach-cube")
    model.describe(about())
    for message in script:
        model.apply(message)
    return model


def test_a_chunk_that_was_dropped_as_overdue_counts_as_late() -> None:
    model = model_of(messages())
    for n in (0, 2):
        counters = {"chunks_taken": 9 + n, "chunks_late": n, "chunks_overdue": 2 * n}
        model.apply(said("robot", Heartbeat(1, "running", counters, 0)))
    standing = Standing("RUNNING", "", is_live=True)
    for height in (1, 8):
        first = "".join(text for text, _ in chunks(model, standing, 100, height, time.monotonic_ns())[0])
        assert "6 late" in first or "late 6" in first


def torque(model: MonitorModel, age_s: float = 0.0) -> list[bool | None]:
    return [row.is_torque_on for row in model.servos(time.monotonic_ns() + round(age_s * 1e9))]


def test_torque_is_what_is_known_now() -> None:
    model = model_of(messages())
    assert torque(model) == [True] * 6
    assert torque(model, age_s=0.6) == [None] * 6, "the robot is silent"


def test_health_from_before_the_release_says_nothing_of_torque() -> None:
    model = model_of(
        [*messages(mode="stopped"), said("robot", Event("info", "released", "torque is off", {}))]
    )
    assert torque(model) == [None] * 6
    model.apply(said("robot", health(torque_on=False)))
    assert torque(model) == [False] * 6


def test_a_robot_that_was_started_again_has_released_nothing() -> None:
    model = model_of(
        [
            said("robot", Event("error", "torque_unconfirmed", "gripper", {})),
            said("robot", Event("info", "released", "torque is off", {})),
            *messages(),
        ]
    )
    assert torque(model) == [True] * 6
    assert model.standing(time.monotonic_ns()).word == "RUNNING"


def test_a_servo_that_gives_no_values_is_not_known_to_have_torque() -> None:
    script = messages()
    mute = replace(servo("gripper", 6), n_stale=45)
    earlier = [said("robot", health(), age_s=0.5)]
    later = [said("robot", ServoHealth((*health().servos[:5], mute)))]
    model = model_of([*script[:2], *earlier, *later])
    assert torque(model) == [True] * 5 + [None]


def test_trouble_of_a_whole_line_is_said_once_and_of_a_servo_in_its_row() -> None:
    script = [message for message in messages() if message.type != "servo_health"]
    healthy = health().servos
    for i in range(11):
        counted = [replace(s, n_retries=10 * i + (5 * i if s.name == "gripper" else 0)) for s in healthy]
        script.append(said("robot", ServoHealth(tuple(counted)), age_s=5 - i / 2))
    shown = servos(model_of(script), 78, 8, script[-1].header.sent_ns)
    lines = ["".join(text for text, _ in row) for row in shown]
    assert "line main: 20 retries/s" in lines[1]
    assert lines[2].startswith("gripper"), "the worst first"
    rows = {line[:14].strip(): line[14:] for line in lines[2:]}
    assert "10.0" in rows["gripper"]
    assert all(not any(rate in rows[name] for rate in ("10.0", "20.0", "30.0")) for name in SO101[:5])


# -- pictures -------------------------------------------------------------------------------------------------------


def test_a_red_picture_is_red_grey_when_it_is_old_and_a_broken_one_is_no_crash() -> None:
    from edgevla.monitor.pictures import HalfBlocks, decoded, fit

    image = decoded(jpeg((0, 0, 255)).tobytes())
    assert image is not None
    blocks = HalfBlocks()
    regions = blocks.show(fit(image, 16, 6), 20)
    assert len(regions) == 6
    [style] = {segment.style for segment in blocks.strips[0] if segment.text.strip()}
    assert style is not None
    assert style.color.triplet.red > 240  # type: ignore[union-attr]
    assert style.color.triplet.blue < 20  # type: ignore[union-attr]
    assert decoded(b"not a jpeg") is None


def test_only_what_has_changed_visibly_is_drawn_again() -> None:
    from edgevla.monitor.pictures import HalfBlocks, fit

    random = np.random.default_rng(0)
    image = np.full((120, 160, 3), 120, np.uint8)
    blocks = HalfBlocks()
    blocks.show(fit(image, 32, 12), 32)
    noisy = np.clip(image + random.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
    assert blocks.show(fit(noisy, 32, 12), 32) == [], "a sensor's noise"
    moved = noisy.copy()
    moved[60:80, 40:60] = 250
    regions = blocks.show(fit(moved, 32, 12), 32)
    assert 0 < sum(region.area for region in regions) < 20

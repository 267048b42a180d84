"""The same verb through the real processes: the arm goes home, the world begins an episode, the emulator judges it."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

from edgevla.clock import NS_PER_MS, VirtualClock
from edgevla.messages import Ack, BeginEpisode, Judged, World
from edgevla.robots.emulator.robot import EmulatedRobot
from edgevla.robots.emulator.server import WorldLink
from edgevla.robots.profile import load_profile
from edgevla.robots.world.contract import make_world
from edgevla.session import OVERRIDE, endpoint, run_dir
from edgevla.simulated import task_named
from edgevla.wire import Dealer, Inbox


def test_the_emulator_begins_an_episode_when_asked_and_says_once_what_it_came_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = tempfile.mkdtemp(prefix="edgevla-", dir="/tmp")  # a socket's path must be short
    monkeypatch.setenv(OVERRIDE, root)
    session, clock = secrets.token_bytes(8), VirtualClock(0)
    folder = run_dir(session)
    world = make_world(task_named("follow_cube"), 7, episode_s=1.0)
    link = WorldLink(EmulatedRobot(load_profile("so101"), clock, world=world), session)
    ctx = zmq.Context()
    inbox = Inbox(
        ctx, {Judged: (endpoint(folder, "emulator"), 32), World: (endpoint(folder, "emulator"), 2)}, session
    )
    dealer = Dealer(ctx, endpoint(folder, "emulator", "fault"), session, "test")
    try:
        while inbox.newest(World) is None:  # until it is heard
            clock.sleep_until(clock.now_ns() + 20 * NS_PER_MS)
            link.turn(clock.now_ns())
            inbox.wait(0.05)
        seq = None
        while seq is None:
            seq = dealer.send(BeginEpisode(5))
        answers: list[Any] = []
        while not answers:
            link.turn(clock.now_ns())
            answers = dealer.poll(0.05)
        assert isinstance(answers[0].body, Ack)
        assert answers[0].body.is_accepted
        assert (world.episode, world.sim_ns) == (5, 0)
        inbox.drain(Judged)
        until = clock.now_ns() + 2_100 * NS_PER_MS
        while clock.now_ns() < until:
            clock.sleep_until(clock.now_ns() + 20 * NS_PER_MS)
            link.turn(clock.now_ns())
        found: list[Judged] = []
        while len(found) < 2:
            inbox.wait(1.0)
            found += [message.body for message in inbox.drain(Judged)]
    finally:
        inbox.stop()
        dealer.close()
        link.close()
        ctx.destroy(linger=0)
        shutil.rmtree(root)
    assert [judged.episode for judged in found] == [5, 6]
    assert found[0].outcome == "not reached"
    assert found[0].place == pytest.approx(world.verdicts[0].place)


@pytest.mark.realtime
@pytest.mark.timeout(300)
def test_two_places_through_the_real_processes(
    bundle: Path, evaluate: Callable[..., Any], info_in: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    code, out, err = evaluate(
        bundle, "--real-time", "--episodes", 2, "--execution", "async", "--delay-ms", 100
    )
    assert code == 0, err
    info = info_in(tmp_path / "eval")
    assert info["conditions"]["way"] == "real time"
    (cell,) = info["cells"]
    assert [e["episode_ix"] for e in cell["per_episode"]] == [0, 1]
    for episode in cell["per_episode"]:
        assert episode["stopped"] is None
        assert episode["outcome"] in ("not reached", "not held", "success")
        assert episode["n_inferences"] >= 2
        assert 2.5 < episode["seconds"] < 6
    assert cell["delay_ms_measured"]["p50"] > 100
    summary = json.loads(next(tmp_path.glob("eval/deploy/*-async-100ms/latest/summary.json")).read_text())
    assert summary["failure"] is None
    assert "in real time" in out

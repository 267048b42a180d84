"""The policy node over inproc sockets, with a real bundle: which frame it takes, what it answers, what it refuses."""

import json
import re
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import zmq

from edgevla.bundle import load_bundle
from edgevla.descriptions import AboutCamera, AboutJoint, AboutRobot
from edgevla.errors import CameraError
from edgevla.messages import Chunk, Describe, Event, Frame, Header, Heartbeat, Infer, Message
from edgevla.nodes.assembler import OLDEST_FRAME_NS, AgeWatch, Assembler, StillWatch
from edgevla.nodes.policy import PolicyNode
from edgevla.runner import BundlePolicy
from edgevla.types import CameraAge
from edgevla.wire import CommandClient, Dealer, Inbox, Publisher, endpoint

SESSION = b"policynd"
MS = 1_000_000
STATE = np.zeros(6, np.float32)


def frame(captured_ns, value=0, encoding="rgb8", color=None):
    pixels = np.full((48, 64, 3), value, np.uint8)
    if color is not None:
        pixels[:] = color
    payload = pixels if encoding == "rgb8" else cv2.imencode(".jpg", pixels[..., ::-1])[1].reshape(-1)
    header = Header(SESSION, "camera/front", 0, captured_ns, captured_ns)
    return Message(header, Frame("front", 48, 64, encoding, 0, 0), [payload])


class Ring:
    def __init__(self, *frames):
        self.frames = list(frames)

    def recent(self, cls, source):
        return self.frames if (cls, source) == (Frame, "camera/front") else []


def assembler(*frames, may_lose=False):
    return Assembler(Ring(*frames), {"observation.images.front": "front"}, may_lose)


def test_the_frame_is_the_newest_not_later_than_the_grid_moment():
    made = assembler(frame(10 * MS, 1), frame(43 * MS, 2), frame(76 * MS, 3))
    seen = made.assemble(STATE, 70 * MS, "")
    assert seen.observation.images["observation.images.front"].max() == 2
    assert seen.ages_ns["observation.images.front"] == 27 * MS
    assert made.assemble(STATE, 43 * MS, "").ages_ns["observation.images.front"] == 0


def test_before_the_first_frame_the_first_one_is_taken():
    seen = assembler(frame(100 * MS, 7)).assemble(STATE, 90 * MS, "")
    assert seen.observation.images["observation.images.front"].max() == 7


def test_a_camera_that_shows_nothing_new_is_lost_and_named():
    with pytest.raises(CameraError, match=r"'front' has shown nothing new for 1\.1 s"):
        assembler(frame(0)).assemble(STATE, OLDEST_FRAME_NS + 100 * MS, "")
    with pytest.raises(CameraError, match="nothing yet"):
        assembler().assemble(STATE, 0, "")
    seen = assembler(may_lose=True).assemble(STATE, 0, "")
    assert seen.lost == ["front"]
    assert seen.observation.images == {}


def test_a_red_card_stays_red_through_jpeg():
    seen = assembler(frame(0, encoding="jpeg", color=(220, 20, 30))).assemble(STATE, 0, "")
    np.testing.assert_allclose(
        seen.observation.images["observation.images.front"][20, 30], (220, 20, 30), atol=6
    )


def test_a_damaged_jpeg_is_refused():
    damaged = frame(0, encoding="jpeg")
    damaged.payloads[0] = np.arange(50, dtype=np.uint8)
    with pytest.raises(CameraError, match="damaged JPEG"):
        assembler(damaged).assemble(STATE, 0, "")


@pytest.mark.parametrize(
    ("trained_ms", "live_ms", "words"),
    [
        (20, [65], None),  # one and a half steps of 33 ms: the phase of camera and grid
        (20, [75], "camera 'front' gives pictures 75 ms old, .* they were 20 ms .* too late; look for what"),
        (95, [40], "camera 'front' gives pictures 40 ms old, .* they were 95 ms .* too early; use the"),
        (20, [25, 25, 400], None),  # now and then a late one: as everywhere
    ],
)
def test_a_camera_that_is_later_or_earlier_than_in_training_is_told_once(trained_ms, live_ms, words):
    feature = "observation.images.front"
    watch = AgeWatch({feature: CameraAge(trained_ms, 120.0, 200.0)}, {feature: "front"}, 100 / 3)
    told = [text for age in live_ms * AgeWatch.N_JUDGED for text in watch.see({feature: age * MS})]
    assert len(told) == (words is not None)
    if words is not None:
        assert re.search(words, told[0])


@pytest.mark.parametrize("told", [True, False])
def test_a_joint_far_from_where_it_always_was_in_training_is_said_once(told):
    watch = StillWatch([None, 12.5, 3.0], ["a", "gripper", "c"], ["deg", "percent", "raw"], told)
    near, far = (np.array([50, grip, 90], np.float32) for grip in (16.0, 40.0))
    assert watch.see(near) == []
    (sentence,) = watch.see(far)
    assert re.search(r"'gripper' is at 40 percent; in the training data it always was at 12.5", sentence)
    assert ("the policy is told 12.5" in sentence) == told
    assert watch.see(far) == [], "once"


class Bench:
    """A policy node with a camera and a robot around it."""

    def __init__(self, bundle_path, **options):
        self.ctx = zmq.Context()
        bundle = load_bundle(bundle_path)
        action = bundle.manifest.action
        joints = tuple(
            AboutJoint(name, unit, -100.0, 100.0, 90.0, False, None, None)
            for name, unit in zip(action.names, action.units, strict=True)
        )
        camera = AboutCamera("front", "sim", 48, 64, 30.0, False, "exact")
        fit = bundle.fits(AboutRobot("robot", "so101", joints, (camera,), 100.0, (), ()))
        self.camera = Publisher(self.ctx, endpoint("inproc", "camera/front"), SESSION, "camera/front")
        self.node = PolicyNode(self.ctx, "inproc", SESSION, BundlePolicy(bundle), fit, **options)
        self.node.warm_up()
        self.robot = Dealer(self.ctx, endpoint("inproc", "policy", "infer"), SESSION, "robot")
        policy = endpoint("inproc", "policy")
        self.inbox = Inbox(
            self.ctx, {Chunk: (policy, 8), Event: (policy, 8), Heartbeat: (policy, 8)}, SESSION
        )
        self.until(lambda: self.inbox.newest(Heartbeat))
        self.show(0)

    def show(self, value):
        """Sends a frame, again and again until the node has it: what was there before does not count."""
        made = frame(time.monotonic_ns(), value)
        before = self.node._inbox.newest(Frame)

        def has_arrived():
            self.camera.send(made.body, made.payloads)
            newest = self.node._inbox.newest(Frame)
            return newest is not None and newest is not before

        self.until(has_arrived)

    def ask(self, request=0, grid=0, deadline_s=10.0, state=STATE, ahead=0):
        now = time.monotonic_ns()
        infer = Infer(request, grid, now + int(deadline_s * 1e9), "reach", state, None, None, ahead=ahead)
        assert self.robot.send(infer, (), now) is not None
        return now

    def until(self, condition, timeout_s=10.0):
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < deadline, "it did not happen"
            self.node.step(time.monotonic_ns())
            time.sleep(0.001)
        return found

    def close(self):
        self.inbox.stop()
        self.node.close()
        self.camera.close()
        self.robot.close()
        self.ctx.destroy(linger=0)


@pytest.fixture
def bench(bundle):
    made = []

    def start(**options):
        made.append(Bench(bundle, **options))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_a_chunk_of_a_future_state_stands_where_that_state_is(bench):
    setup = bench()
    setup.ask(grid=5, ahead=3)
    setup.until(lambda: setup.inbox.newest(Chunk))
    answer = setup.inbox.newest(Chunk).body
    assert (answer.grid_index, answer.ahead) == (8, 3)


def test_the_node_says_once_that_a_joint_is_where_training_never_saw_it(bundle, bench):
    path = bundle / "manifest.json"
    still = {"observation.state": [None, None, None, None, None, 0.0]}
    path.write_text(json.dumps({**json.loads(path.read_text()), "trained_still": still}))
    setup = bench()
    for request in range(3):
        setup.ask(request=request, grid=request, state=np.array([0, 0, 0, 0, 0, 70], np.float32))
        setup.until(lambda n=request: (c := setup.inbox.newest(Chunk)) is not None and c.body.request_id == n)
    setup.until(lambda: setup.inbox.recent(Event, "policy"))
    events = [m.body for m in setup.inbox.recent(Event, "policy") if m.body.code == "still_joint"]
    assert [e.severity for e in events] == ["warning"]
    assert "at 70" in events[0].text


def test_one_request_is_answered_by_one_chunk_with_its_moment_and_ages(bench):
    setup = bench()
    asked_ns = setup.ask(request=5, grid=7, state=np.full(6, 10.0, np.float32))
    message = setup.until(lambda: setup.inbox.newest(Chunk))
    chunk = message.body
    assert (chunk.request_id, chunk.grid_index, chunk.task) == (5, 7, "reach")
    assert message.observed_ns == asked_ns
    assert 0 <= chunk.image_age_ns < 5e9
    assert chunk.timing_ns.encode > 0
    target = np.array([20.0, -10.0, 15.0, -5.0, 0.0, 40.0])
    np.testing.assert_allclose(message.payloads[0][0], target + (10.0 - target) * 0.85, rtol=1e-5)


def test_only_the_newest_waiting_request_counts_and_an_expired_one_is_dropped(bench):
    setup = bench()
    for request in range(4):
        setup.ask(request=request, grid=request)
    setup.ask(request=9, grid=9, deadline_s=-1.0)
    time.sleep(0.05)
    setup.node.step(time.monotonic_ns())
    assert setup.node.counters["requests_superseded"] == 4
    assert setup.node.counters["requests_expired"] == 1
    assert setup.inbox.newest(Chunk) is None


def test_an_injected_delay_holds_the_chunk_back(bench):
    setup = bench(inject_delay_ns=300 * MS)
    asked_ns = setup.ask()
    setup.until(lambda: setup.inbox.newest(Chunk))
    assert time.monotonic_ns() - asked_ns >= 300 * MS
    client = CommandClient(setup.ctx, endpoint("inproc", "policy", "commands"), SESSION, "supervisor")
    client._dealer.send(Describe(None))
    about = setup.until(lambda: client._dealer.poll())[0].body.about
    assert about["latency_ms"] >= 300
    client.close()


def test_pictures_older_than_in_training_raise_a_warning(bundle, bench, monkeypatch):
    # However slow this machine is, the picture does not count as lost.
    monkeypatch.setattr("edgevla.nodes.assembler.OLDEST_FRAME_NS", 60_000 * MS)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["trained_camera_age_ms"] = {"observation.images.front": {"p50": 5.0, "p99": 9.0, "max": 12.0}}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    setup = bench()
    time.sleep(0.2)
    for number in range(AgeWatch.N_JUDGED):
        setup.ask(request=number, grid=number)
        setup.until(lambda n=number: (c := setup.inbox.newest(Chunk)) and c.body.request_id == n)
    event = setup.until(lambda: setup.inbox.newest(Event)).body
    assert (event.severity, event.code) == ("warning", "camera_age")
    assert "in the training data they were 5 ms" in event.text


def test_a_lost_camera_yields_a_sentence_and_no_chunk(bench):
    setup = bench()
    time.sleep(1.1)
    setup.ask()
    event = setup.until(lambda: setup.inbox.newest(Event)).body
    assert "camera 'front' has shown nothing new" in event.text
    assert setup.inbox.newest(Chunk) is None
    setup.show(3)
    setup.ask(request=1, grid=1)
    assert setup.until(lambda: setup.inbox.newest(Chunk)).body.request_id == 1


def test_a_warning_reaches_the_log_as_a_sentence():
    words = ["--bundle=b", "--run-dir=d", "--session=s", "--robot-json=r"]
    program = (
        "import sys, warnings; from edgevla.nodes import policy\n"
        "policy._run = lambda args: warnings.warn('the prompt was cut', stacklevel=1) or 0\n"
        f"sys.argv[1:] = {words}; sys.exit(policy.main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "the prompt was cut\n"

"""Recording through real sockets: what the camera saw is what the dataset holds."""

import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import zmq

from edgevla.arguments import Record, SetTask
from edgevla.cameras import CameraSettings, open_source
from edgevla.dataset import open_dataset
from edgevla.dataset.check import check_dataset
from edgevla.dataset.encode import EpisodeEncoder
from edgevla.dataset.writer import DatasetWriter
from edgevla.descriptions import AboutCamera, AboutJoint, AboutRobot
from edgevla.errors import DatasetError, UsageError
from edgevla.messages import State
from edgevla.nodes.camera import CameraNode
from edgevla.nodes.recorder import RecorderNode
from edgevla.nodes.recording import Recording, features_of, joint_units_of
from edgevla.wire import CommandServer, Publisher, endpoint

SESSION = b"rec-test"
RED_CARD = (214, 30, 24)
STEP_NS = 40_000_000  # 25 fps
NAMES = ("shoulder_pan.pos", "gripper.pos")


def joint(name: str, unit: str) -> AboutJoint:
    return AboutJoint(name, unit, -100.0, 100.0, 90.0, unit == "percent", None, None)


def state(
    tick: int, deadline_ns: int, t0_ns: int, step_ns: int = STEP_NS, task: str = "", mode="running"
) -> State:
    return State(
        tick=tick,
        deadline_ns=deadline_ns,
        late_ns=0,
        t0_ns=t0_ns,
        step_ns=step_ns,
        mode=mode,
        position=np.array([tick, 50], np.float32),
        position_age_us=np.zeros(2, np.uint32),
        wanted=None,
        goal=np.array([tick + 1, 51], np.float32),
        limited_by=np.zeros(2, np.uint16),
        chunk_seq=None,
        action_index=0.0,
        n_actions_left=0,
        reason="",
        task=task,
    )


class FakeRobot:
    """A robot node's voice: `describe`, and `state` twice per grid moment, all on a thread-free clock."""

    def __init__(self, ctx) -> None:
        self.publisher = Publisher(ctx, endpoint("inproc", "robot"), SESSION, "robot")
        self.server = CommandServer(ctx, endpoint("inproc", "robot", "commands"), SESSION, "robot")
        joints = (joint(NAMES[0], "deg"), joint(NAMES[1], "percent"))
        self.server.about = AboutRobot("robot", "so101", joints, (), 100.0, (), (), ("so101_follower",))
        self.t0_ns, self.tick = time.monotonic_ns(), 0
        self.task, self.task_at, self.mode = "", {}, "running"
        self.more = {}

    def step(self) -> None:
        self.server.poll()
        while self.t0_ns + self.tick * STEP_NS // 2 <= time.monotonic_ns():
            self.say(self.tick, self.t0_ns + self.tick * STEP_NS // 2)
            self.tick += 1

    def say(self, tick: int, deadline_ns: int) -> None:
        self.task_at[tick] = self.task
        said = replace(state(tick, deadline_ns, self.t0_ns, task=self.task, mode=self.mode), **self.more)
        self.publisher.send(said, observed_ns=deadline_ns)

    def close(self) -> None:
        self.publisher.close()
        self.server.close()


@pytest.fixture
def stage(tmp_path):
    """A red card before a camera that sends JPEG, a robot, and a recorder; `play(done)` lets them live."""
    card = np.full((48, 64, 3), 120, np.uint8)
    card[12:36, 16:48] = RED_CARD
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(7):
        card[:4, : 8 * i] = 255
        cv2.imwrite(str(pictures / f"{i}.png"), card[..., ::-1])
    ctx = zmq.Context()
    settings = CameraSettings("front", str(pictures), 64, 48, fps=50.0, encoding="jpeg")
    camera = CameraNode(ctx, "inproc", SESSION, [open_source(settings)])
    robot = FakeRobot(ctx)
    recorder = RecorderNode(ctx, "inproc", SESSION, tmp_path / "recorded", ["front"], "show the card")
    camera.open()

    def play(done, timeout_s: float = 60.0) -> None:
        end = time.monotonic() + timeout_s
        while not done() and time.monotonic() < end:
            for node in (camera, robot, recorder):
                node.step(time.monotonic_ns()) if node is not robot else robot.step()
            time.sleep(0.002)
        assert done(), "it did not happen in time"

    # `describe` and the newest state are asked for within one step of the recorder, so the others live meanwhile.
    def answering(method):
        def run(*args):
            import threading

            stop = threading.Event()

            def live():
                while not stop.is_set():
                    robot.step()
                    camera.step(time.monotonic_ns())
                    time.sleep(0.002)

            thread = threading.Thread(target=live)
            thread.start()
            try:
                return method(*args)
            finally:
                stop.set()
                thread.join()

        return run

    recorder.obey, recorder.robot = answering(recorder.obey), robot
    recorder.check_output = answering(recorder.check_output)
    drain, heard = recorder.inbox.drain, set()

    def noted(kind: type):
        messages = drain(kind)
        heard.update(message.type for message in messages)
        return messages

    recorder.inbox.drain = noted
    play(lambda: heard == {"state", "frame"})
    yield recorder, play, tmp_path / "recorded"
    recorder.close()
    camera.close()
    robot.close()
    ctx.destroy(linger=0)


def test_a_red_card_stays_red_from_camera_to_dataset(stage):
    recorder, play, root = stage
    recorder.obey("record", Record("show the card"))
    play(lambda: recorder.recording.writer.n_open_frames >= 12)
    assert "episode 0 kept" in recorder.obey("keep")
    recorder.obey("record")
    play(lambda: recorder.recording.writer.n_open_frames >= 5)
    assert "discarded" in recorder.obey("discard")
    recorder.close()

    dataset = open_dataset(root)
    assert (dataset.n_episodes, dataset.info.fps) == (1, 25)
    assert dataset.tasks == ["show the card"]
    for row in range(dataset.n_frames):
        pixel = dataset.frame("observation.images.front", row)[24, 32].astype(int)
        assert np.abs(pixel - RED_CARD).max() < 25, f"row {row} shows {pixel}, not the red card"
    state, action = dataset.columns["observation.state"], dataset.columns["action"]
    assert (action - state == 1).all()
    assert (np.diff(state[:, 0]) == 2).all(), "every grid moment once: each second tick"
    ages = dataset.columns["camera_age_ms.front"]
    assert (ages >= 0).all()
    assert np.median(ages) < 100  # a 50 fps camera; the rest is this machine's other work
    assert not [f for f in check_dataset(root) if f.severity == "error"]


def test_an_episode_that_cannot_be_saved_is_forgotten_and_the_next_one_is_kept(stage, monkeypatch):
    recorder, play, root = stage

    def fails(self) -> None:
        raise DatasetError("the encoder hangs")

    recorder.obey("record", Record("lost"))
    play(lambda: recorder.recording.writer.n_open_frames >= 3)
    with monkeypatch.context() as patch:
        patch.setattr(EpisodeEncoder, "finish", fails)
        with pytest.raises(DatasetError, match="the encoder hangs"):
            recorder.obey("keep")
    recorder.obey("record", Record("kept"))
    play(lambda: recorder.recording.writer.n_open_frames >= 3)
    assert "episode 0 kept" in recorder.obey("keep")
    recorder.close()
    assert open_dataset(root).tasks == ["kept"]


def test_beside_a_shadow_there_are_no_actions_to_record(stage):
    recorder, play, root = stage
    recorder.robot.more = {"is_shadow": True}
    play(lambda: recorder._state is not None and recorder._state.is_shadow)
    with pytest.raises(UsageError, match="a shadow run sends nothing to the arm"):
        recorder.obey("record", Record("wave"))
    assert not root.exists()


def tasks_of(root, robot) -> list[tuple[str, str]]:
    """(what a row says, what the robot had at its tick); ticks are in the state's first element."""
    dataset = open_dataset(root)
    ticks = dataset.columns["observation.state"][:, 0].astype(int)
    return [(dataset.task(row), robot.task_at[tick]) for row, tick in enumerate(ticks)]


def test_every_row_carries_the_task_that_the_robot_had_at_its_moment(stage):
    """The task is changed in the monitor, within an episode and between two."""
    recorder, play, root = stage
    robot, said = recorder.robot, []
    recorder.heard, recorder.task = said.append, ""
    robot.task = "pick"
    n_ticks = robot.tick
    play(lambda: robot.tick > n_ticks + 2)
    assert recorder.obey("record") == "recording episode 0: pick"
    play(lambda: recorder.recording.writer.n_open_frames >= 4)
    robot.task = "place"
    play(lambda: recorder.recording.writer.n_open_frames >= 12)
    recorder.obey("keep")
    robot.task = "rest"
    n_ticks = robot.tick
    play(lambda: robot.tick > n_ticks + 2)
    assert recorder.obey("record") == "recording episode 1: rest"
    play(lambda: recorder.recording.writer.n_open_frames >= 3)
    recorder.obey("keep")
    recorder.close()
    rows = tasks_of(root, robot)
    assert all(row == robots for row, robots in rows), rows
    assert [e.tasks for e in open_dataset(root).episodes] == [("pick", "place"), ("rest",)]
    assert len(said) == 1
    assert said[0].startswith("the task is 'place' from row ")
    assert not [f for f in check_dataset(root) if f.severity == "error"]


def test_a_label_is_for_robots_without_a_task_and_a_contradiction_is_said(stage):
    recorder, play, root = stage
    robot, said = recorder.robot, []
    recorder.heard = said.append
    recorder.obey("record", Record("by hand"))
    play(lambda: recorder.recording.writer.n_open_frames >= 3)
    recorder.obey("keep")
    assert said == []
    robot.task = "pick"
    n_ticks = robot.tick
    play(lambda: robot.tick > n_ticks + 2)
    for _ in range(2):
        recorder.obey("record", Record("by hand"))
        play(lambda: recorder.recording.writer.n_open_frames >= 3)
        recorder.obey("keep")
    with pytest.raises(
        UsageError, match="the robot's own task is 'pick', and every row carries it; change it there"
    ):
        recorder.obey("set_task", SetTask("by hand"))
    recorder.close()
    assert [e.tasks for e in open_dataset(root).episodes] == [("by hand",), ("pick",), ("pick",)]
    assert said == ["the robot's task is 'pick', and every row carries it; 'by hand' is not used"]


def test_a_recording_without_any_task_says_so(stage):
    recorder, _, _ = stage
    recorder.task = ""
    assert recorder.obey("record").startswith("recording episode 0, without a task: its rows carry an empty")


def test_a_robot_that_is_not_started_yet_has_no_grid(stage):
    """Its loop's own rate would become the dataset's."""
    recorder, _, root = stage
    recorder.robot.mode = "idle"
    n_ticks = recorder.robot.tick
    recorder.robot.step()
    while recorder.robot.tick < n_ticks + 2:
        recorder.robot.step()
    for refused in (recorder.check_output, lambda: recorder.obey("record")):
        with pytest.raises(UsageError, match="the robot is not started yet"):
            refused()
    assert not root.exists()


def test_a_recording_that_does_not_belong_into_the_folder_is_refused_before_the_first_demonstration(stage):
    """The joints of the same arm, once in degrees and once in -100..100: `replay` of a mixture would go elsewhere."""
    recorder, play, root = stage
    recorder.obey("record", Record("first"))
    play(lambda: recorder.recording.writer.n_open_frames >= 3)
    recorder.obey("keep")
    recorder.recording.writer.close()
    recorder.recording = None
    before = (root / "meta/edgevla.json").read_bytes()
    server, here = recorder.robot.server, recorder.robot.server.about
    others = (joint(NAMES[0], "range100"), joint(NAMES[1], "percent"))
    server.about = replace(here, robot="my_arm", lerobot_types=(), joints=others)
    for refused in (recorder.check_output, lambda: recorder.obey("record")):
        with pytest.raises(
            DatasetError,
            match="its joints are in degrees, those of this recording in range100; its robot is so101, that of this "
            "recording is my",
        ):
            refused()
    assert (root / "meta/edgevla.json").read_bytes() == before
    server.about = replace(here, robot="my_arm", lerobot_types=("so101",))
    recorder.check_output()
    assert "recording episode 1" in recorder.obey("record")


def test_commands_out_of_order_are_refused_with_a_reason(stage):
    recorder, _, _ = stage
    with pytest.raises(UsageError, match="no episode to keep"):
        recorder.obey("keep")
    recorder.obey("record")
    with pytest.raises(UsageError, match="already being recorded"):
        recorder.obey("record")
    with pytest.raises(UsageError, match="knows record, keep"):
        recorder.obey("home")


def test_features_carry_names_sizes_and_units():
    joints = [joint(NAMES[0], "deg"), joint(NAMES[1], "percent")]
    features = features_of(joints, [AboutCamera("front", "0", 48, 64, 30.0, False, "exact")])
    assert features["action"]["names"] == list(NAMES)
    assert features["observation.images.front"]["shape"] == (48, 64, 3)
    assert joint_units_of(joints) == "degrees"
    assert joint_units_of([joint("waist", "rad")]) is None


def test_grid_moments_are_whole_steps():
    t0, step = 1_000_003, 33_333_332
    assert state(0, t0 + 7 * step, t0, step).is_grid_moment
    assert not state(0, t0 + 7 * step + 8_333_333, t0, step).is_grid_moment


def test_what_happens_in_a_pause_is_left_out_and_counted_and_no_moment_is_missed(tmp_path):
    """Moments 0 to 9, of which 3 to 5 are paused and 8 never comes."""
    features = features_of([joint(NAMES[0], "deg"), joint(NAMES[1], "percent")], [])
    with DatasetWriter(tmp_path / "set", fps=25, features=features) as writer:
        recording = Recording(writer, [])
        recording.begin("wave")
        for moment in (0, 1, 2, 3, 4, 5, 6, 7, 9):
            recording.is_paused = moment in (3, 4, 5)
            recording.state(state(2 * moment, moment * STEP_NS, 0))
        recording.settle(10**12)
        recording.keep()
    assert recording.counters["paused_rows"] == 3
    assert recording.counters["missed_moments"] == 1
    moved = open_dataset(tmp_path / "set").columns["observation.state"][:, 0]
    assert moved.tolist() == [0, 2, 4, 12, 14, 18]

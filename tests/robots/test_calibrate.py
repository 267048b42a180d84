"""The guided calibration: what a person does with the arm, joint by joint, on emulated servos."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from edgevla.errors import BusError, CalibrationError, UsageError
from edgevla.robots.calibration import find_calibration
from edgevla.robots.handshake import held_calibration
from edgevla.robots.tools.guided import guide
from edgevla.robots.tools.terminal import Terminal

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
WIDE = {"shoulder_pan": (-1200, 1200), "shoulder_lift": (-1100, 1100), "elbow_flex": (-1050, 1080),
        "wrist_flex": (-1000, 1000), "gripper": (-620, 640)}  # fmt: skip
"""Ticks to both sides of the middle, as a person sweeps them."""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path / "calibration"))
    return tmp_path / "calibration"


class Person(Terminal):
    """Somebody who reads what is asked and moves the arm. steps: (words of the question, what to do, answer); a step
    whose `what to do` is a dictionary sweeps those joints to their ends."""

    def __init__(self, made, steps):
        super().__init__("calibration", io.StringIO(), io.StringIO())
        self.made, self.steps, self.said = made, list(steps), []
        self._path = iter(())

    def say(self, text):
        self.said.append(text)
        if self.steps and isinstance(self.steps[0][1], dict) and self.steps[0][0] in text:
            self._path = self._sweep(self.steps.pop(0)[1])

    def ask(self, text, answers):
        words, act, answer = self.steps.pop(0)
        assert words in text, text
        self.said.append(text)
        if callable(act):
            act(self.made)
        assert answer in answers
        return answer

    def pressed(self):
        self.made.clock.advance(10_000_000)
        return next(self._path, True)

    def _sweep(self, ends):
        axes = {name: self.made.servo(name).axis for name in ends}
        start = {name: axis.position for name, axis in axes.items()}
        for share in (*range(0, 11), *range(10, -11, -1), *range(-10, 1)):
            for name, (low, high) in ends.items():
                axes[name].position = start[name] + (high if share > 0 else -low) * share / 10
            yield False


def in_the_middle(ticks=2600):
    def put(made):
        for name in JOINTS:
            made.servo(name).axis.position = ticks

    return put


CENTRE = ("1. Move every joint to the middle", in_the_middle(), "")


def calibrated(bench, steps, before=lambda made: None, **options):
    """What came of it: the bench, the person with all that was said, and the file's entries."""
    made = bench("so101", **options)
    before(made)
    person = Person(made, steps)
    assert guide(made.profile, made.robot.buses, "blue", person) == 0
    assert person.steps == [], "not all of it was asked"
    return made, person, find_calibration(made.profile, "blue").motors


def test_a_whole_sweep_is_saved_at_once(bench, home):
    made, person, motors = calibrated(bench, [CENTRE, ("2. Move every joint", WIDE, "")])
    for name, (low, high) in WIDE.items():
        assert (motors[name].range_min, motors[name].range_max) == (2047 + low, 2047 + high)
        assert motors[name].homing_offset == 2600 - 2047
        assert made.servo(name).get("min_position") == 2047 + low
    assert (motors["wrist_roll"].range_min, motors["wrist_roll"].range_max) == (0, 4095)
    assert {made.servo(name).present for name in JOINTS} == {2047}
    assert f"Saved {home}" in person.said[-1]
    assert not any("Careful" in text for text in person.said)


def test_a_joint_that_was_moved_to_one_side_only_is_asked_about_by_name(bench):
    one_sided = {**WIDE, "shoulder_lift": (0, 1100)}
    _, _person, motors = calibrated(
        bench,
        [
            CENTRE,
            ("2. Move every joint", one_sided, ""),
            (
                "shoulder_lift was seen from +0 to +97 degrees of its middle, to one side only; -100 to +100 is",
                None,
                "",
            ),
            ("Move it to both its ends", {"shoulder_lift": (-1100, 1100)}, ""),
        ],
    )
    assert (motors["shoulder_lift"].range_min, motors["shoulder_lift"].range_max) == (947, 3147)
    assert motors["elbow_flex"].range_max == 2047 + 1080, "the others were not swept again"


def test_half_of_the_profile_s_range_is_asked_about_and_may_be_kept(bench):
    short = {**WIDE, "wrist_flex": (-400, 300)}
    _, person, motors = calibrated(
        bench,
        [
            CENTRE,
            ("2. Move every joint", short, ""),
            ("wrist_flex was seen from -35 to +26 degrees of its middle; -95 to +95 is expected", None, "k"),
        ],
    )
    assert (motors["wrist_flex"].range_min, motors["wrist_flex"].range_max) == (1647, 2347)
    assert any(
        "Careful: wrist_flex: rest is 60 in so101.toml, its calibrated range ends at 30.77" in t
        for t in person.said
    )


def test_a_gripper_that_was_only_opened_is_asked_about(bench):
    calibrated(
        bench,
        [
            CENTRE,
            ("2. Move every joint", {**WIDE, "gripper": (-10, 900)}, ""),
            ("gripper was seen from -1 to +79 degrees of its middle, to one side only.", None, "k"),
        ],
    )


def test_a_joint_with_another_middle_is_centred_and_swept_alone(bench):
    def middle(made):
        made.servo("elbow_flex").axis.position = 1900

    _, _person, motors = calibrated(
        bench,
        [
            CENTRE,
            ("2. Move every joint", {**WIDE, "elbow_flex": (0, 1200)}, ""),
            ("elbow_flex was seen", None, "c"),
            ("Put elbow_flex in the middle of its range", middle, ""),
            ("Move elbow_flex to both its ends", {"elbow_flex": (-1000, 1000)}, ""),
        ],
    )
    assert motors["elbow_flex"].homing_offset == 1900 - 2047
    assert motors["wrist_flex"].homing_offset == 2600 - 2047
    assert (motors["elbow_flex"].range_min, motors["elbow_flex"].range_max) == (1047, 3047)


def test_an_untouched_joint_is_asked_for_again_and_only_that(bench):
    without = {name: ends for name, ends in WIDE.items() if name not in ("shoulder_pan", "gripper")}
    _, _person, motors = calibrated(
        bench,
        [
            CENTRE,
            ("2. Move every joint", without, ""),
            (
                "shoulder_pan was not moved: 0 degrees were seen. Move it to both its ends",
                {"shoulder_pan": WIDE["shoulder_pan"]},
                "",
            ),
            ("gripper was not moved", {"gripper": WIDE["gripper"]}, ""),
        ],
    )
    assert motors["shoulder_pan"].range_max == 2047 + 1200


def test_a_joint_that_wrapped_is_centred_and_swept_alone(bench):
    def middle(made):
        made.servo("shoulder_pan").axis.position = 2000

    _, person, motors = calibrated(
        bench,
        [
            CENTRE,
            ("2. Move every joint", {**WIDE, "shoulder_pan": (-100, 2300)}, ""),
            ("Put shoulder_pan in the middle of its range", middle, ""),
            ("Move shoulder_pan to both its ends", {"shoulder_pan": WIDE["shoulder_pan"]}, ""),
        ],
    )
    assert any("shoulder_pan passed the end of its encoder" in text for text in person.said)
    assert motors["shoulder_pan"].homing_offset == 2000 - 2047
    assert motors["elbow_flex"].homing_offset == 2600 - 2047


# ---- servos with a past ----


def test_a_servo_with_multi_turn_feedback_is_set_right_first(bench):
    def before(made):
        for name in JOINTS:
            made.servo(name).put("phase", made.servo(name).get("phase") | 0x10)
            made.servo(name).axis.position += 4096

    def middle(made):
        for name in JOINTS:
            made.servo(name).axis.position = 2600 + 4096

    made, _, motors = calibrated(
        bench, [("1. Move every", middle, ""), ("2. Move every joint", WIDE, "")], before
    )
    assert (motors["elbow_flex"].range_min, motors["elbow_flex"].range_max) == (997, 3127)
    assert not any(made.servo(name).get("phase") & 0x10 for name in JOINTS)


def test_firmware_without_sync_read_is_read_one_by_one(bench):
    _made, person, motors = calibrated(
        bench, [CENTRE, ("2. Move every joint", WIDE, "")], has_sync_read=False
    )
    assert any("servos are read one by one" in text for text in person.said)
    assert motors["gripper"].range_max == 2047 + 640


def test_an_arm_with_torque_is_said_and_lowered_after_enter_not_before(bench):
    torque = []

    def before(made):
        made.robot.connect()
        assert made.robot.set_torque(True) == []

    def look(made):
        torque.append([made.servo(name).torque_on for name in JOINTS])

    made, _person, _ = calibrated(
        bench,
        [
            ("so101 has torque (all its servos) and is held where it is. Hold the arm", look, ""),
            ("1. Move every", in_the_middle(), ""),
            ("2. Move every joint", WIDE, ""),
        ],
        before,
    )
    assert torque == [[True] * 6]
    assert not any(made.servo(name).torque_on for name in JOINTS)


def test_one_joint_with_torque_is_named(bench):
    def before(made):
        made.servo("shoulder_lift").put("torque_enable", 1)

    calibrated(
        bench,
        [("so101 has torque (shoulder_lift)", None, ""), CENTRE, ("2. Move every joint", WIDE, "")],
        before,
    )


def test_a_raised_arm_sinks_and_does_not_fall(bench):
    made = bench("so101", gravity=0.3)
    made.robot.connect()
    made.robot.set_torque(True)
    made.clock.advance(2_000_000_000)
    made.tick()
    lift = made.servo("shoulder_lift").axis
    began, fastest = lift.position, 0.0
    person = Person(made, [("so101 has torque", None, ""), ("1. Move every", lambda m: m.gone, "")])
    watched = made.emulated.step

    def watch(now_ns):
        nonlocal fastest
        watched(now_ns)
        fastest = max(fastest, -lift.velocity)

    for line in made.emulated.lines.values():
        line.before_frame = watch
    with pytest.raises(AttributeError):
        guide(made.profile, made.robot.buses, "blue", person)
    assert began - lift.position > 300, "it is down"
    assert fastest < 700, "a servo that is switched off falls at 900 ticks/s here"


# ---- endings ----


@pytest.mark.parametrize("step", [0, 1, 2])
def test_whatever_ends_it_leaves_the_servos_as_they_were(bench, home, step):
    def end(_):
        raise KeyboardInterrupt

    made = bench("so101")
    made.servo("gripper").put("phase", 0x1C)
    lines = made.robot.buses
    before = held_calibration(lines, made.profile)
    steps = [
        CENTRE,
        ("2. Move every joint", {**WIDE, "gripper": (-10, 900)}, ""),
        ("gripper was seen", end, "k"),
    ]
    if step < 2:
        steps[step:] = [(steps[step][0], end if step == 0 else {"gone": (0, 1)}, "")]
    person = Person(made, steps)
    with pytest.raises((KeyboardInterrupt, KeyError)):
        guide(made.profile, lines, "blue", person)
    assert held_calibration(lines, made.profile) == before
    assert made.servo("gripper").get("phase") == 0x1C
    assert "the servos hold again what they held before" in person.said[-1]
    assert not list(home.rglob("*.json"))


def test_nothing_is_written_before_the_end(bench):
    """A process that is killed cannot put anything back."""
    made = bench("so101")
    lines = made.robot.buses
    before = held_calibration(lines, made.profile)
    seen = []

    def look(_):
        seen.append(held_calibration(lines, made.profile))

    person = Person(
        made,
        [
            CENTRE,
            ("2. Move every joint", {**WIDE, "gripper": (-10, 900)}, ""),
            ("gripper was seen", look, "k"),
        ],
    )
    assert guide(made.profile, lines, "blue", person) == 0
    assert seen == [before]


def test_what_cannot_be_taken_back_is_said(bench):
    made = bench("so101")

    def unplug(made):
        in_the_middle()(made)
        made.fault("unplug")

    person = Person(made, [("1. Move every", unplug, "")])
    with pytest.raises(BusError, match="has gone"):
        guide(made.profile, made.robot.buses, "blue", person)
    assert "could not be taken back" in person.said[-1]


def test_nobody_to_hold_an_arm_with_torque_leaves_it_held(bench):
    made = bench("so101")
    made.robot.connect()
    made.robot.set_torque(True)
    with pytest.raises(UsageError, match="the input has ended"), Path("/dev/null").open() as nobody:
        guide(made.profile, made.robot.buses, "blue", Terminal("calibration", nobody, io.StringIO()))
    assert all(made.servo(name).torque_on for name in JOINTS)


def test_a_place_where_nothing_can_be_saved_is_refused_before_the_work(bench, home):
    home.parent.joinpath("calibration").write_text("a file where the folder should be")
    made = bench("so101")
    with pytest.raises(
        CalibrationError, match=r"cannot be made .*name another folder in HF_LEROBOT_CALIBRATION"
    ):
        guide(made.profile, made.robot.buses, "blue", Person(made, []))


def test_a_file_that_cannot_be_written_at_the_end_puts_the_servos_back(bench, home, monkeypatch):
    made = bench("so101")
    before = held_calibration(made.robot.buses, made.profile)
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "no room")))
    person = Person(made, [CENTRE, ("2. Move every joint", WIDE, "")])
    with pytest.raises(OSError, match="no room"):
        guide(made.profile, made.robot.buses, "blue", person)
    assert held_calibration(made.robot.buses, made.profile) == before
    assert "the servos hold again what they held before" in person.said[-1]

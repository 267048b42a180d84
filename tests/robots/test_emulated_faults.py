"""The emulator's faults, firmware and settings, as a host on the line meets them: real frames, virtual time."""

from __future__ import annotations

import argparse

import pytest

from edgevla.clock import VirtualClock
from edgevla.errors import UsageError
from edgevla.robots.bus import dynamixel, feetech
from edgevla.robots.emulator.cli import add_arguments
from edgevla.robots.emulator.fault_kinds import KINDS
from edgevla.robots.emulator.faults import InjectedFault
from edgevla.robots.emulator.robot import EmulatedRobot
from edgevla.robots.profile import load_profile

CODECS = {"so101": feetech, "aloha": dynamixel}
BOTH = pytest.mark.parametrize("name", ["so101", "aloha"])


class Host:
    """Somebody on the first line of an emulated arm, who speaks to one servo (id 4) in frames."""

    def __init__(self, name="so101", **options):
        self.codec = CODECS[name]
        self.robot = EmulatedRobot(load_profile(name), VirtualClock(1_000_000_000), **options)
        self.line = self.robot.lines[self.robot.profile.buses[0].name]
        self.servo = next(s for s in self.line.servos if s.id == 4)

    def send(self, frame):
        """All that comes back, as frames."""
        pieces = self.line.receive(frame, self.robot.clock.now_ns())
        return self.codec.Decoder().feed(b"".join(data for _, data in pieces))

    def write(self, register, value):
        r = self.codec.REGISTERS[register]
        return self.send(self.codec.write(4, r.address, r.encode(value)))

    def sync_write(self, register, value):
        r = self.codec.REGISTERS[register]
        return self.send(self.codec.sync_write(r.address, r.size, {4: r.encode(value)}))

    def read(self, register):
        r = self.codec.REGISTERS[register]
        found = self.send(self.codec.read(4, r.address, r.size))
        return r.decode(found[0].data) if found else None

    def hurt(self, kind, target="servo", amount=0.0, **more):
        self.robot.apply(
            InjectedFault(kind, self.servo.name if target == "servo" else target, amount=amount, **more)
        )

    def wait(self, seconds):
        for _ in range(round(seconds * 100)):
            self.robot.clock.advance(10_000_000)
            self.robot.step(self.robot.clock.now_ns())


# ---- firmware that energises by goals ----


@BOTH
@pytest.mark.parametrize("way", ["write", "sync_write", "reg_write"])
def test_a_goal_switches_torque_on_with_the_firmware_that_does_so_and_only_then(name, way):
    for firmware, is_on in (((), 0), (("goal-energises",), 1), (("gripper=goal-energises",), None)):
        if is_on is None:  # another servo's firmware is nothing to this one
            firmware = [f"{'gripper' if name == 'so101' else 'left_gripper'}=goal-energises"]
        host = Host(name, firmware=firmware)
        goal, r = host.servo.present, host.codec.REGISTERS["goal_position"]
        if way == "reg_write":
            host.send(host.codec.reg_write(4, r.address, r.encode(goal)))
            assert host.read("torque_enable") == 0
            host.send(host.codec.action(4))
        else:
            getattr(host, way)("goal_position", goal)
        assert host.read("torque_enable") == (is_on or 0)


def test_after_a_brown_out_that_firmware_is_back_with_the_next_goal_and_has_forgotten_its_settings():
    for firmware, is_back in (((), False), (("goal-energises",), True)):
        host = Host(firmware=firmware, is_energised=True)
        assert host.read("acceleration") == 254
        host.hurt("brownout")
        host.sync_write("goal_position", 2047)
        assert not host.servo.torque_on, "it obeys nothing while it starts"
        assert host.read("torque_enable") is None
        host.wait(0.06)
        assert host.read("torque_enable") == 0
        host.sync_write("goal_position", 2047)
        assert bool(host.read("torque_enable")) is is_back
        assert (host.read("acceleration"), host.read("lock")) == (0, 1)


def test_a_firmware_is_kept_over_a_power_failure_and_an_unknown_one_is_refused():
    host = Host(firmware=["no-sync-read"])
    host.hurt("brownout")
    host.wait(0.1)
    at = feetech.REGISTERS["present_position"]
    assert host.send(feetech.sync_read(at.address, at.size, (4, 5))) == []
    assert host.read("firmware_minor") == 9
    assert host.read("present_position") == host.servo.present
    with pytest.raises(
        UsageError, match="elbow_flex cannot have the firmware 'no-fast-read'; known for it: goal-"
    ):
        Host(firmware=["elbow_flex=no-fast-read"])
    with pytest.raises(UsageError, match=r"no servo 'elbow' to give .* did you mean 'elbow_flex'"):
        Host(firmware=["elbow=goal-energises"])


def test_one_servo_of_an_older_firmware_is_missing_from_a_sync_read():
    host = Host(firmware=["elbow_flex=no-sync-read"])
    at = feetech.REGISTERS["present_position"]
    assert [s.id for s in host.send(feetech.sync_read(at.address, at.size, range(1, 7)))] == [1, 2, 4, 5, 6]
    host = Host("aloha", firmware=["left_elbow=no-fast-read"])
    at = dynamixel.REGISTERS["present_position"]
    assert host.line.receive(dynamixel.fast_sync_read(at.address, at.size, (4, 6)), 0) == []
    assert len(host.line.receive(dynamixel.fast_sync_read(at.address, at.size, (6, 7)), 0)) == 1


# ---- the phase register ----


def driven(phase, goal=400, speed=0):
    """(host, what it read before, what it reads a second after a goal `goal` ticks away)."""
    host = Host(is_energised=True)
    host.servo.put("phase", phase)
    host.servo.hold()
    before = host.read("present_position")
    host.write("goal_velocity", speed)
    host.write("goal_position", before + goal)
    host.wait(1.0)
    return host, before, host.read("present_position")


def test_a_servo_whose_motor_and_feedback_are_both_reversed_turns_the_other_way_and_arrives():
    angle = {}
    for phase in (12, 12 | 1 | 128):
        host, before, after = driven(phase)
        assert after == before + 400
        angle[phase] = host.robot.joint_rad()[3]
    assert angle[12 | 129] == pytest.approx(-angle[12])
    assert angle[12] == pytest.approx(400 * 2 * 3.14159 / 4096, rel=0.01)


@pytest.mark.parametrize("bit", [1, 128])
def test_a_servo_of_which_only_one_is_reversed_runs_away_from_its_goal(bit):
    host = Host(is_energised=True)
    host.servo.put("phase", 12 | bit)
    host.servo.hold()
    goal = host.read("present_position") + 40
    host.write("goal_position", goal)
    host.wait(0.2)
    assert abs(host.read("present_position") - goal) > 200
    assert abs(host.read("present_velocity")) > 1500


def test_speeds_are_counted_in_fifties_without_phase_bit_2():
    for phase, unit in ((12, 1), (8, 50)):
        host = Host(is_energised=True)
        host.servo.put("phase", phase)
        host.servo.hold()
        host.write("goal_velocity", 500 // unit)
        host.write("goal_position", host.servo.present + 900)
        host.wait(0.5)
        assert host.servo.axis.velocity == pytest.approx(500)
        assert host.read("present_velocity") == 500 // unit


def test_speed_zero_is_the_fastest_with_phase_bit_3_and_stands_without():
    assert driven(12)[2] == driven(12)[1] + 400
    assert driven(4)[2] == driven(4)[1]
    assert driven(4, speed=1000)[2] == driven(4, speed=1000)[1] + 400


def test_torque_128_makes_the_pose_the_centre_for_a_reversed_servo_too():
    host = Host()
    host.servo.put("phase", 12 | 129)
    host.servo.axis.position = 1500
    host.write("torque_enable", 128)
    assert host.read("present_position") == 2048


# ---- who answers what ----


def test_a_feetech_servo_of_response_level_0_does_what_it_is_told_and_only_answers_reads():
    host = Host()
    host.hurt("quiet")
    assert host.write("acceleration", 33) == []
    r = feetech.REGISTERS["goal_position"]
    assert host.send(feetech.reg_write(4, r.address, r.encode(2000))) == []
    assert host.send(feetech.action(4)) == []
    assert (host.read("acceleration"), host.read("goal_position")) == (33, 2000)
    assert len(host.send(feetech.ping(4))) == 1
    assert len(host.send(feetech.sync_read(56, 2, (3, 4, 5)))) == 3


@pytest.mark.parametrize(("level", "pings", "reads", "writes"), [(0, 1, 0, 0), (1, 1, 1, 0), (2, 1, 1, 1)])
def test_a_dynamixel_answers_as_its_return_level_says(level, pings, reads, writes):
    host = Host("aloha")
    host.hurt("quiet", amount=level)
    at = dynamixel.REGISTERS["present_position"]
    assert len(host.send(dynamixel.ping(4))) == pings
    assert len(host.send(dynamixel.read(4, at.address, at.size))) == reads
    assert len(host.send(dynamixel.sync_read(at.address, at.size, (4,)))) == reads
    assert len(host.send(dynamixel.bulk_read([(4, at.address, at.size)]))) == reads
    assert len(host.write("led", 1)) == writes
    assert host.servo.get("led") == 1
    assert len(host.send(dynamixel.ping(6))) == 1


def test_a_broadcast_is_heard_by_servos_of_the_host_s_speed_only():
    host = Host()
    host.servo.put("baud", 1)
    host.line.client_baud = 1_000_000
    assert [s.id for s in host.send(feetech.ping(254))] == [1, 2, 3, 5, 6]


# ---- the owner's limits ----


def test_a_feetech_owner_s_limit_is_copied_at_power_up_and_what_a_host_writes_above_it_is_obeyed():
    host = Host()
    host.hurt("weak", amount=35)
    assert (host.read("max_torque"), host.read("torque_limit"), host.servo.strength) == (350, 350, 0.35)
    host.write("torque_limit", 1000)
    assert host.servo.strength == 1.0
    host.hurt("brownout")
    host.wait(0.1)
    assert (host.read("torque_limit"), host.servo.strength) == (350, 0.35)
    host.write("torque_limit", 4000)
    assert host.servo.strength == 1.0, "there is no more than full torque"


@pytest.mark.parametrize(("register", "limit", "allowed"), [
    ("goal_pwm", "pwm_limit", 300), ("goal_current", "current_limit", 200), ("goal_velocity", "velocity_limit", 100),
    ("profile_velocity", "velocity_limit", 100),
])  # fmt: skip
def test_a_dynamixel_refuses_what_is_above_its_owner_s_limit(register, limit, allowed):
    host = Host("aloha")
    assert host.write(limit, allowed)[0].error == 0
    assert host.write(register, allowed)[0].error == 0
    assert host.write(register, allowed + 1)[0].error == dynamixel.DATA_LIMIT
    assert host.read(register) == allowed
    host.sync_write(register, allowed + 1)
    assert host.read(register) == allowed, "refused in silence"
    if host.codec.REGISTERS[register].is_signed:
        assert host.write(register, -allowed - 1)[0].error == dynamixel.DATA_LIMIT


def test_a_dynamixel_with_a_lower_pwm_limit_is_as_weak_as_that():
    host = Host("aloha", is_energised=True)
    host.hurt("weak", amount=25)
    assert host.servo.strength == pytest.approx(0.25, abs=0.001)
    assert host.write("goal_pwm", 885)[0].error == dynamixel.DATA_LIMIT
    assert host.servo.strength == pytest.approx(0.25, abs=0.001)


def test_a_dynamixel_whose_watchdog_fired_takes_no_goal_of_any_kind():
    host = Host("aloha", is_energised=True)
    host.write("bus_watchdog", 1)
    host.wait(0.1)
    assert host.read("bus_watchdog") == dynamixel.WATCHDOG_FIRED
    for register in ("goal_position", "goal_pwm", "goal_current", "goal_velocity"):
        assert host.write(register, host.servo.get(register))[0].error == dynamixel.DATA_RANGE
    host.write("bus_watchdog", 0)
    assert host.write("goal_pwm", 400)[0].error == 0


# ---- what servos report and forget ----


def test_an_overload_that_trips_a_feetech_is_cleared_by_enabling_torque_and_one_that_is_held_is_not():
    host = Host(is_energised=True)
    host.hurt("trip")
    assert host.send(feetech.ping(4))[0].error == feetech.OVERLOAD
    assert host.servo.strength == 0.2
    host.write("torque_enable", 1)
    assert host.send(feetech.ping(4))[0].error == 0
    host.hurt("overload")
    host.write("torque_enable", 1)
    assert host.send(feetech.ping(4))[0].error == feetech.OVERLOAD


def test_an_overload_that_trips_a_dynamixel_is_cleared_by_a_reboot_and_one_that_is_held_is_not():
    for kind, after in (("trip", 0), ("overload", 0x80)):
        host = Host("aloha", is_energised=True)
        host.hurt(kind)
        host.wait(0.05)
        assert host.read("torque_enable") == 0
        assert host.read("status") == dynamixel.OVERLOAD
        assert host.write("torque_enable", 1)[0].error == 0x80 | dynamixel.RESULT_FAIL
        host.send(dynamixel.reboot(4))
        host.wait(0.1)
        assert host.send(dynamixel.ping(4))[0].error == after


@BOTH
@pytest.mark.parametrize("kind", ["overload", "overheat", "voltage", "sensor", "overcurrent"])
def test_every_condition_is_reported_as_the_family_reports_it_and_ends(name, kind):
    host = Host(name)
    host.hurt(kind)
    bit = host.servo.error_bits[kind]
    assert host.read("status") == bit
    assert host.send(host.codec.ping(4))[0].error == (bit if name == "so101" else 0x80)
    words = host.codec.error_texts(bit)
    assert len(words) == 1
    host.hurt("clear", None)
    assert host.read("status") == 0


@BOTH
def test_heat_and_voltage_may_be_measured_values(name):
    host = Host(name, is_energised=True)
    host.hurt("overheat", amount=66)
    host.hurt("voltage", amount=6.1)
    host.wait(0.02)
    assert host.read("present_temperature") == 66
    assert host.read("present_voltage") == 61


@BOTH
def test_torque_and_registers_change_behind_the_host_s_back(name):
    host = Host(name, is_energised=True)
    host.hurt("torque_off")
    assert host.read("torque_enable") == 0
    host.hurt("torque_on")
    assert (host.read("torque_enable"), host.read("goal_position")) == (1, host.servo.present)
    register = "lock" if name == "so101" else "position_p"
    host.hurt("register", f"{host.servo.name}.{register}", amount=7)
    assert host.read(register) == 7
    with pytest.raises(UsageError, match=r"no register 'torque_limits'|no register 'goal_pwms'"):
        host.hurt("register", f"{host.servo.name}.{'torque_limits' if name == 'so101' else 'goal_pwms'}")


@BOTH
def test_a_reading_that_trembles_is_off_by_a_tick_at_most_and_the_shaft_is_still(name):
    host = Host(name, is_energised=True)
    at = host.servo.axis.position
    host.hurt("jitter")
    seen = set()
    for _ in range(60):
        host.wait(0.01)
        seen.add(host.read("present_position") - host.servo.present)
    assert seen == {-1, 0, 1}
    assert host.servo.axis.position == at
    host.hurt("clear", None)
    assert host.read("present_position") == host.servo.present


@BOTH
def test_a_hand_pushes_a_joint_beyond_its_range(name):
    host = Host(name)
    joint = next(j for j in host.robot.profile.joints if j.motor == host.servo.name)
    beyond = joint.max + (30 if name == "so101" else 0.5)
    host.hurt("hand", amount=beyond)
    k = host.robot.profile.joints.index(joint)
    ticks = [host.robot.servos[j.motor].present for j in host.robot.profile.joints]
    assert host.robot.units.state(ticks)[k] == pytest.approx(beyond, abs=0.1)


def test_a_feetech_joint_that_stands_outside_its_range_goes_to_the_edge_when_torque_comes_on():
    host = Host()
    host.hurt("hand", amount=125)
    host.write("goal_position", host.read("present_position"))
    host.write("torque_enable", 1)
    host.wait(1.0)
    assert host.read("present_position") == host.servo.get("max_position")


# ---- two of one id, other masters ----


@BOTH
def test_two_servos_of_one_id_answer_at_once_and_only_the_same_words_are_understood(name):
    host = Host(name)
    other = next(s for s in host.line.servos if s.id == 6)
    host.hurt("duplicate_id", other.name, amount=4)
    assert len(host.send(host.codec.ping(4))) == 1  # word for word the same
    other.axis.position = host.servo.axis.position + 777
    assert host.read("present_position") is None
    host.write("led" if name == "aloha" else "acceleration", 1)
    assert other.get("led" if name == "aloha" else "acceleration") == 1


@BOTH
def test_another_master_s_question_and_its_answer_are_heard_before_one_s_own(name):
    host = Host(name)
    seen = []
    host.line.on_frame = lambda way, frame, _: seen.append((way, frame))
    host.hurt("foreign", None, count=1)
    r = host.codec.REGISTERS["present_position"]
    pieces = host.line.receive(host.codec.read(4, r.address, r.size), 1_000_000_000)
    (question_ns, question), (answer_ns, answer), (own_ns, own) = pieces
    ((servo_id, code, _),) = host.codec.split_instructions(bytearray(question))
    assert code == host.codec.READ
    assert host.codec.Decoder(r.size).feed(answer)[0].id == servo_id
    assert host.codec.Decoder(r.size).feed(own)[0].id == 4
    assert 1_000_000_000 < question_ns < answer_ns < own_ns
    assert ("other", question) in seen
    assert len(host.line.receive(host.codec.read(4, r.address, r.size), 2_000_000_000)) == 1


# ---- one table ----


def test_every_kind_of_fault_stands_in_the_help_and_can_be_begun_and_ended():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    targets = {"hand": "elbow_flex", "jump": "elbow_flex", "register": "elbow_flex.lock"}
    for name in CODECS:
        robot = EmulatedRobot(load_profile(name), VirtualClock())
        for kind, entry in KINDS.items():
            assert f"\n  {kind} " in parser.epilog
            assert entry.words.split()[0] in parser.epilog
            target = (
                targets.get(kind) if name == "so101" else None if kind != "register" else "left_elbow.led"
            )
            robot.apply(InjectedFault(kind, target, amount=1))
        robot.apply(InjectedFault("clear"))


def test_a_fault_that_cannot_be_is_refused_by_name():
    robot = EmulatedRobot(load_profile("so101"), VirtualClock())
    with pytest.raises(
        UsageError, match="no servo or bus 'elbow' for the fault 'mute'; servos: shoulder_pan"
    ):
        robot.apply(InjectedFault("mute", target="elbow"))
    with pytest.raises(UsageError, match="no register 'None'"):
        robot.apply(InjectedFault("register"))
    with pytest.raises(UsageError, match=r"the fault\.probability is 2; expected a number from 0 to 1"):
        InjectedFault.from_map({"kind": "drop", "probability": 2})
    with pytest.raises(UsageError, match=r"unknown fault 'weka'.*did you mean 'weak'"):
        InjectedFault.from_map({"kind": "weka"})
    with pytest.raises(UsageError, match="the fault has the unknown key 'volume'; known: amount, count"):
        InjectedFault.from_map({"kind": "weak", "volume": 3})


# ---- an arm that was left energised ----


@pytest.mark.parametrize("name", ["so101", "so101_bimanual", "aloha"])
def test_an_energised_arm_holds_its_pose_and_is_configured_as_a_run_leaves_it(name):
    robot = EmulatedRobot(load_profile(name), VirtualClock(1_000_000_000), is_energised=True, gravity=0.3)
    begun = robot.joint_rad()
    for _ in range(100):
        robot.clock.advance(10_000_000)
        robot.step(robot.clock.now_ns())
    assert (robot.joint_rad() == begun).all()
    for bus in robot.profile.buses:
        for motor in bus.motors:
            servo = robot.servos[motor.name]
            assert servo.torque_on
            assert servo.error == 0
            assert {register: servo.get(register) for register, _ in motor.settings} == dict(motor.settings)
            if motor.shadow_of is not None:
                partner = robot.servos[motor.shadow_of]
                assert (servo.get("secondary_id"), servo.present) == (partner.id, partner.present)


def test_a_servo_of_another_model_keeps_its_model_number_over_a_power_failure():
    profile = load_profile("so101")
    motors = tuple(
        type(m)(**{**vars(m), "model": "sts3250"}) if m.id == 4 else m for m in profile.buses[0].motors
    )
    bus = type(profile.buses[0])(**{**vars(profile.buses[0]), "motors": motors})
    robot = EmulatedRobot(type(profile)(**{**vars(profile), "buses": (bus,)}), VirtualClock())
    robot.apply(InjectedFault("brownout", 4))
    assert robot.servos["wrist_flex"].get("model_number") == feetech.MODELS["sts3250"]

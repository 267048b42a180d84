"""A whole emulated robot: the servos of a profile on their lines, with a supply, shadows, weight, and faults.

The servos are born calibrated (`calibration.nominal`), so that a real robot's code finds them ready. Time comes
in through `step`; the emulator itself never reads a clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgevla.clock import Clock, VirtualClock
from edgevla.errors import UsageError
from edgevla.strict import nearest
from edgevla.vocabulary import once

from ..bus.port import MemoryPort
from ..calibration import Calibration, nominal
from ..profile import Joint, Profile
from ..units import RAD_PER_TICK, JointUnits, joint_units
from ..world.contract import Physics, TaskWorld
from .dynamixel_bus import MODELS as DYNAMIXEL_MODELS
from .dynamixel_bus import DynamixelLine, DynamixelServo
from .fault_kinds import KINDS
from .faults import Faults, InjectedFault
from .feetech_bus import MODELS as FEETECH_MODELS
from .feetech_bus import FeetechLine, FeetechServo
from .line import Line
from .motion import Axis, GravityLoad, MotorModel, MovedAxis
from .servo import SUPPLY_OHM, EmulatedServo

STEP_NS = 2_000_000
LONGEST_STEP_NS = 100_000_000
"""A longer time than this without a step is a process that was held up: the servos do not live through the rest."""
SWAY_PERIOD_NS = 8_000_000_000
JAW_CLOSED_RAD = -10 * np.pi / 180
"""SO101's jaw angle at 0 percent."""
SHADOW_BIAS = 6
"""Ticks by which a shadow's horn sits off its partner's: what the homing offset of a pair is for."""
LIGHTER_OUTWARDS = 0.5
"""Of the weight that a joint carries, this share is carried by the next one outwards that carries any."""
FAMILIES: dict[str, tuple[type[EmulatedServo], type[Line], Mapping[str, MotorModel]]] = {
    "feetech": (FeetechServo, FeetechLine, FEETECH_MODELS),
    "dynamixel": (DynamixelServo, DynamixelLine, DYNAMIXEL_MODELS),
}


class EmulatedRobot:
    """See the module.

    calibration: what the servos hold; default the nominal one. start: pose at power-up, "home" or "rest".
    gravity: share of the shoulder's full torque that the arm's weight asks of it (0: a limp arm stays where it is);
    joints farther out carry less, and those that rest where they are at home (a turn about the vertical) nothing.
    is_energised: torque is on where the arm is, the servos configured, as a run leaves them whose host has died.
    firmware: `[SERVO=]NAME` texts, of `servo.FIRMWARES`; without a servo, all have it.
    sway: a person moves the limp arm to and fro, by this share (0..1) of every joint's range.
    is_timed, adapter: whether answers take the wire's time, and what USB adds (see `line`).
    world: stepped with the arm. Where it has physics, that moves the joints instead of the shafts' own mechanics.
    """

    def __init__(
        self,
        profile: Profile,
        clock: Clock | None = None,
        seed: int = 0,
        *,
        calibration: Calibration | None = None,
        gravity: float = 0.0,
        start: str = "home",
        is_energised: bool = False,
        firmware: Sequence[str] = (),
        is_timed: bool = True,
        adapter: str = "none",
        world: TaskWorld | None = None,
        sway: float = 0.0,
        **line_options: Any,
    ) -> None:
        self.profile, self.world, self.sway = profile, world, sway
        self.physics = None if world is None else world.physics
        self.clock: Clock = clock or VirtualClock()
        self.calibration = calibration or nominal(profile)
        self.units: JointUnits = joint_units(profile, self.calibration)
        self.servos: dict[str, EmulatedServo] = {}
        self.lines: dict[str, Line] = {}
        self.faults = Faults(seed)
        self.on_unplug: Callable[[str, bool], None] | None = None
        """Told of `unplug` (True) and `replug` (False) of a bus; the owner of the ports acts."""
        self._ports: dict[str, MemoryPort] = {}
        self._now_ns = self.clock.now_ns()
        self._joints = {joint.motor: joint for joint in profile.joints}
        self._random = random.Random(seed)
        self._bear(start)
        self._couple()
        self._weigh(gravity)
        self._install(firmware)
        for servo in self.servos.values():
            servo.power_up(self._now_ns)
            servo.n_power_ups = 1
        if is_energised:
            self._energise()
        options = {
            "faults": self.faults,
            "is_timed": is_timed,
            "adapter": adapter,
            "seed": seed,
            **line_options,
        }
        for bus in profile.buses:
            line = FAMILIES[bus.protocol][1](bus.name, [self.servos[m.name] for m in bus.motors], **options)
            line.before_frame = self.step
            self.lines[bus.name] = line
        # A shadow pulls before its partner's joint moves for both.
        self._in_turn = sorted(self.servos.values(), key=lambda s: profile.motor(s.name).shadow_of is None)
        self._origin = np.array([self._tick_at_zero(k, joint) for k, joint in enumerate(profile.joints)])
        axes = [self.servos[joint.motor].axis for joint in profile.joints]
        self._moved_axes = [axis for axis in axes if isinstance(axis, MovedAxis)]
        if self.physics is not None:
            self.physics.put(self._angles())
            self._take_places(self.physics)

    # ---- birth ----

    def _bear(self, start: str) -> None:
        pose = self._ticks_of(
            [joint.home if start == "home" else joint.rest for joint in self.profile.joints]
        )
        for bus in self.profile.buses:
            family, _, models = FAMILIES[bus.protocol]
            for motor in bus.motors:
                make = Axis if self.physics is None else MovedAxis
                servo = family.born(motor, make(0.0, models.get(motor.model, MotorModel())))
                tick = pose.get(motor.name, pose.get(motor.shadow_of or "", 2048))
                servo.calibrate(self.calibration.motors[motor.name], bus.baud, tick)
                self.servos[motor.name] = servo

    def _ticks_of(self, pose: list[float]) -> dict[str, int]:
        """Raw positions by motor of a pose in the units of `action`."""
        ticks = self.units.ticks(np.array(pose))
        return {joint.motor: int(t) for joint, t in zip(self.profile.joints, ticks, strict=True)}

    def _couple(self) -> None:
        """Shadows sit on their partner's joint."""
        for bus in self.profile.buses:
            for motor in bus.motors:
                if motor.shadow_of is not None:
                    self.servos[motor.shadow_of].axis.carry(self.servos[motor.name].axis, SHADOW_BIAS)

    def _weigh(self, gravity: float) -> None:
        """The arm of each bus, from the shoulder outwards."""
        home = self._ticks_of([joint.home for joint in self.profile.joints])
        rest = self._ticks_of([joint.rest for joint in self.profile.joints])
        for bus in self.profile.buses:
            share = gravity
            for motor in bus.motors:
                joint = self._joints.get(motor.name)
                if not share or joint is None or joint.is_gripper or home[motor.name] == rest[motor.name]:
                    continue
                servo, entry = self.servos[motor.name], self.calibration.motors[motor.name]
                up = 1 if home[motor.name] > rest[motor.name] else -1
                servo.axis.weight = GravityLoad(share, servo.shaft_tick(rest[motor.name], entry), up)
                share *= LIGHTER_OUTWARDS

    def _install(self, firmware: Sequence[str]) -> None:
        named = [text.rpartition("=")[0] for text in firmware]
        once([name or "for all servos" for name in named], "--firmware")
        for name, text in zip(named, firmware, strict=True):
            wanted = text.removeprefix(f"{name}=")
            if name and name not in self.servos:
                raise UsageError(
                    f"{self.profile.name} has no servo '{name}' to give the firmware '{wanted}'; it has "
                    f"{', '.join(self.servos)}{nearest(name, self.servos)}"
                )
            for servo in [self.servos[name]] if name else self.servos.values():
                servo.take_firmware(wanted)

    def _energise(self) -> None:
        for bus in self.profile.buses:
            for motor in bus.motors:
                servo = self.servos[motor.name]
                servo.configure(motor, bus)
                if motor.shadow_of is not None:  # what a host aligns: both of a pair say the same tick
                    servo.put("homing_offset", servo.get("homing_offset") - servo.offset_sign * SHADOW_BIAS)
                servo.hold()

    # ---- time ----

    def step(self, now_ns: int) -> None:
        """Brings servos, supply and world to `now_ns`; time never runs backwards.

        With physics, to its last whole step before that: what happens does not depend on when somebody looks.
        """
        self._now_ns = max(self._now_ns, now_ns - LONGEST_STEP_NS)
        if self.physics is not None:
            while self._now_ns + self.physics.step_ns <= now_ns:
                self._step_physics(self.physics)
        elif self._now_ns < now_ns:
            self._step_shafts(now_ns)

    def _step_shafts(self, now_ns: int) -> None:
        while self._now_ns < now_ns:
            part = min(STEP_NS, now_ns - self._now_ns)
            self._now_ns += part
            for servo in self._in_turn:
                servo.step(part / 1e9)
        if self.sway:
            self._sway(now_ns)
        for servo in self.servos.values():
            servo.axis.follow()
        self._share_supply()
        if self.world is not None:
            self.world.step(now_ns, self.joint_rad())

    def _step_physics(self, physics: Physics) -> None:
        """One step of the physics: the servos say where to and how hard, and are told where they are."""
        dt_s = physics.step_ns / 1e9
        self._now_ns += physics.step_ns
        for servo in self._in_turn:
            servo.step(dt_s)
        if self.sway:
            self._sway(self._now_ns)
        axes = self._moved_axes
        set_points = np.array([axis.set_point - axis.slip for axis in axes])
        physics.step(
            (set_points - self._origin) * RAD_PER_TICK,
            np.array([axis.strength for axis in axes]),
            np.array([axis.is_stuck for axis in axes]),
        )
        positions = (physics.angle_rad / RAD_PER_TICK + self._origin).tolist()
        for axis, position, effort in zip(axes, positions, physics.effort.tolist(), strict=True):
            axis.moved(dt_s, position + axis.slip, effort)
        self._share_supply()
        if self.world is not None:
            self.world.step(self._now_ns, physics.angle_rad)

    def _sway(self, now_ns: int) -> None:
        """Every joint on a slow wave about the middle of its range, the next one a little later."""
        low = self.units.ticks(np.array([joint.min for joint in self.profile.joints]))
        high = self.units.ticks(np.array([joint.max for joint in self.profile.joints]))
        for k, joint in enumerate(self.profile.joints):
            servo = self.servos[joint.motor]
            if servo.torque_on:
                continue
            middle, half = (low[k] + high[k]) / 2, abs(high[k] - low[k]) / 2
            phase = 2 * np.pi * now_ns / SWAY_PERIOD_NS + k
            self._turn_by_hand(k, middle + self.sway * half * np.sin(phase) - self._true_tick(joint))

    def _share_supply(self) -> None:
        for line in self.lines.values():
            amps = sum(servo.axis.current_ma for servo in line.servos) / 1000
            for servo in line.servos:
                servo.voltage_v = servo.supply_v - SUPPLY_OHM * amps

    def joint_rad(self) -> np.ndarray:
        """float64 (D,): true angles of the joints, whatever the servos' registers say."""
        return self._angles() if self.physics is None else self.physics.angle_rad.copy()

    def _angles(self) -> np.ndarray:
        """As the shafts' encoders count them."""
        ticks = np.array([self.servos[joint.motor].axis.position for joint in self.profile.joints])
        return (ticks - self._origin) * RAD_PER_TICK

    def _tick_at_zero(self, k: int, joint: Joint) -> float:
        """What a joint's bare encoder counts at the angle 0."""
        zero = self._zero_tick(k, joint)
        if joint.unit == "percent":
            zero -= JAW_CLOSED_RAD / RAD_PER_TICK
        servo, entry = self.servos[joint.motor], self.calibration.motors[joint.motor]
        return float(servo.shaft_tick(zero, entry))

    def _true_tick(self, joint: Joint) -> float:
        servo, entry = self.servos[joint.motor], self.calibration.motors[joint.motor]
        return servo.axis.position + servo.offset_sign * entry.homing_offset

    def _zero_tick(self, k: int, joint: Joint) -> float:
        if joint.unit == "percent":
            return float(self.units.low[k])
        if joint.unit in ("rad", "unit"):
            return 2048.0
        return (self.units.low[k] + self.units.high[k]) / 2

    def move_by_hand(self, joint_name: str, value: float) -> None:
        """Puts a joint to a state value (robot units), as a person does; also beyond its calibrated range."""
        names = [joint.name for joint in self.profile.joints]
        goal = self.units.action(np.array([self.servos[j.motor].present for j in self.profile.joints]))
        goal[names.index(joint_name)] = value
        joint = self.profile.joints[names.index(joint_name)]
        tick = int(self.units.ticks(goal, is_clamped=False)[names.index(joint_name)])
        self._turn_by_hand(names.index(joint_name), tick - self._true_tick(joint))

    def _turn_by_hand(self, k: int, ticks: float) -> None:
        """Turns the joint, whatever its servo wants."""
        axis = self.servos[self.profile.joints[k].motor].axis
        if self.physics is None:
            axis.position += ticks
            return
        angles = self.physics.angle_rad.copy()
        angles[k] += ticks * RAD_PER_TICK
        self.physics.put(angles)
        self._take_places(self.physics)

    def _take_places(self, physics: Physics) -> None:
        """The shafts stand where the joints were put."""
        positions = physics.angle_rad / RAD_PER_TICK + self._origin
        for axis, position in zip(self._moved_axes, positions.tolist(), strict=True):
            axis.put(position + axis.slip)

    # ---- ports and faults ----

    def memory_ports(self) -> dict[str, MemoryPort]:
        """A port per bus on this robot's clock; ports stay the same over calls."""
        for bus in self.profile.buses:
            if bus.name not in self._ports:
                line = self.lines[bus.name]
                self._ports[bus.name] = MemoryPort(f"emulated {bus.name}", bus.baud, line.receive, self.clock)
        return self._ports

    def apply(self, fault: InjectedFault, now_ns: int | None = None) -> None:
        """Begins a fault. Raises UsageError when its target is not there."""
        now_ns = self.clock.now_ns() if now_ns is None else now_ns
        if fault.kind == "clear":
            self._clear()
        elif fault.kind in ("unplug", "replug"):
            if fault.target is not None and fault.target not in self.lines:
                raise UsageError(f"no bus '{fault.target}' to {fault.kind}; buses: {', '.join(self.lines)}")
            for name in [n for n in self.lines if fault.target in (None, n)]:
                if name in self._ports:
                    self._ports[name].is_unplugged = fault.kind == "unplug"
                if self.on_unplug is not None:
                    self.on_unplug(name, fault.kind == "unplug")
        elif (hurt := KINDS[fault.kind].hurt) is not None:
            for servo in self._targets(fault.target, fault.kind):
                hurt(servo, fault.amount, now_ns)
        elif fault.kind == "hand":
            for servo in self._targets(fault.target, fault.kind):
                if joint := self._joints.get(servo.name):
                    self.move_by_hand(joint.name, fault.amount)
        elif fault.kind == "register":
            self._change_register(str(fault.target), int(fault.amount))
        else:
            self._targets(fault.target, fault.kind)  # refuses a target that is not there
            self.faults.add(fault, now_ns)

    def _targets(self, target: int | str | None, kind: str) -> list[EmulatedServo]:
        def is_meant(servo: EmulatedServo, bus: str) -> bool:
            return target is None or target in (servo.id, str(servo.id), servo.name, bus)

        found = [s for name, line in self.lines.items() for s in line.servos if is_meant(s, name)]
        if not found:
            raise UsageError(
                f"no servo or bus '{target}' for the fault '{kind}'; servos: {', '.join(self.servos)}"
            )
        return found

    def _change_register(self, target: str, value: int) -> None:
        name, _, register = target.rpartition(".")
        for servo in self._targets(name or None, "register"):
            if register not in servo.registers:
                raise UsageError(
                    f"{servo.name} has no register '{register}'; the fault's target is servo.register"
                    f"{nearest(register, servo.registers)}"
                )
            servo.put(register, value)

    def _clear(self) -> None:
        self.faults.clear()
        for servo in self.servos.values():
            servo.extra_error, servo.is_mute, servo.axis.is_stuck, servo.jitter_ticks = 0, False, False, 0
            servo.supply_v = servo.rated_v

"""A whole emulated robot: the servos of a profile on their lines, with a supply, shadows, and faults.

The servos are born calibrated (`calibration.nominal`), so that a real robot's code finds them ready. Time comes
in through `step`; the emulator itself never reads a clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from edgevla.clock import Clock, VirtualClock
from edgevla.errors import UsageError

from ..bus import dynamixel, feetech
from ..bus.port import MemoryPort
from ..calibration import Calibration, nominal
from ..profile import Joint, Motor, Profile
from ..units import RAD_PER_TICK, JointUnits, joint_units
from .dynamixel_bus import MODELS as DYNAMIXEL_MODELS
from .dynamixel_bus import DynamixelLine, DynamixelServo
from .faults import SERVO_FAULTS, Fault, Faults
from .feetech_bus import MODELS as FEETECH_MODELS
from .feetech_bus import FeetechLine, FeetechServo
from .line import Line
from .motion import Axis, MotorModel
from .servo import SUPPLY_OHM, Servo

STEP_NS = 2_000_000
LONGEST_STEP_NS = 100_000_000
"""A longer time than this without a step is a process that was held up: the servos do not live through the rest."""
SWAY_PERIOD_NS = 8_000_000_000
JAW_CLOSED_RAD = -10 * np.pi / 180
"""SO101's jaw angle at 0 percent."""
SUPPLY_V = {"feetech": 7.4, "dynamixel": 12.0}
SHADOW_BIAS = 6
"""Ticks by which a shadow's horn sits off its partner's: what the homing offset of a pair is for."""


class EmulatedRobot:
    """See the module.

    calibration: what the servos hold; default the nominal one. gravity: share of full torque that the arm's
    weight asks of the joints (0: torque off leaves the arm where it is). start: pose at power-up, "home" or "rest".
    sway: a person moves the limp arm to and fro, by this share (0..1) of every joint's range.
    is_timed, adapter: whether answers take the wire's time, and what USB adds (see `line`).
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
        is_timed: bool = True,
        adapter: str = "none",
        world: Any = None,
        sway: float = 0.0,
        **line_options: Any,
    ) -> None:
        self.profile, self.world, self.sway = profile, world, sway
        self.clock: Clock = clock or VirtualClock()
        self.calibration = calibration or nominal(profile)
        self.units: JointUnits = joint_units(profile, self.calibration)
        self.servos: dict[str, Servo] = {}
        self.lines: dict[str, Line] = {}
        self.faults = Faults(seed)
        self.on_unplug: Callable[[str, bool], None] | None = None
        """Told of `unplug` (True) and `replug` (False) of a bus; the owner of the ports acts."""
        self._ports: dict[str, MemoryPort] = {}
        self._now_ns = self.clock.now_ns()
        self._joints = {joint.motor: joint for joint in profile.joints}
        self._random = random.Random(seed)
        start_ticks = self._start_ticks(start)
        for bus in profile.buses:
            servos = [self._make(bus.protocol, motor, start_ticks, gravity) for motor in bus.motors]
            for servo, motor in zip(servos, bus.motors, strict=True):
                self.servos[motor.name] = servo
            kind = FeetechLine if bus.protocol == "feetech" else DynamixelLine
            line = kind(
                bus.name,
                servos,
                faults=self.faults,
                is_timed=is_timed,
                adapter=adapter,
                seed=seed,
                **line_options,
            )
            line.before_frame = self.step
            self.lines[bus.name] = line
        self._couple()
        for servo in self.servos.values():
            servo.power_up(self._now_ns)
            servo.n_power_ups = 1

    def _start_ticks(self, start: str) -> dict[str, int]:
        pose = [joint.home if start == "home" else joint.rest for joint in self.profile.joints]
        ticks = self.units.ticks(np.array(pose))
        return {joint.motor: int(t) for joint, t in zip(self.profile.joints, ticks, strict=True)}

    def _make(self, protocol: str, motor: Motor, start: dict[str, int], gravity: float) -> Servo:
        supply = SUPPLY_V[protocol]
        model = (FEETECH_MODELS if protocol == "feetech" else DYNAMIXEL_MODELS).get(motor.model, MotorModel())
        ticks = start.get(motor.name, start.get(motor.shadow_of or "", 2048))
        entry = self.calibration.motors[motor.name]
        axis = Axis(ticks, model)
        joint = self._joints.get(motor.name)
        if gravity and joint is not None and not joint.is_gripper:
            axis.gravity = gravity
        if protocol == "feetech":
            axis.position += entry.homing_offset
            servo: Servo = FeetechServo(motor.name, motor.id, motor.model, axis, supply)
            servo.put("baud", feetech.BAUDS.index(self.profile.bus_of_motor(motor).baud))
            servo.put("homing_offset", entry.homing_offset)
        else:
            servo = DynamixelServo(motor.name, motor.id, motor.model, axis, supply, motor.drive_mode)
            servo.put("baud", dynamixel.BAUDS.index(self.profile.bus_of_motor(motor).baud))
            servo.put("return_delay", 0)
            axis.position -= entry.homing_offset
            servo.put("homing_offset", entry.homing_offset)
        servo.put("min_position", entry.range_min)
        servo.put("max_position", entry.range_max)
        if axis.gravity:
            sign = 1 if protocol == "feetech" else -1
            axis.rest = float(self._rest_tick(joint) + sign * entry.homing_offset)
        return servo

    def _rest_tick(self, joint: Joint | None) -> int:
        pose = np.array([j.rest for j in self.profile.joints])
        return int(self.units.ticks(pose)[self.profile.joints.index(joint)]) if joint else 2048

    # ---- time ----

    def step(self, now_ns: int) -> None:
        """Brings servos, supply and world to `now_ns`; time never runs backwards."""
        span = min(now_ns - self._now_ns, LONGEST_STEP_NS)
        if span <= 0:
            return
        at = now_ns - span
        while at < now_ns:
            part = min(STEP_NS, now_ns - at)
            at += part
            for servo in self.servos.values():
                servo.step(part / 1e9)
        self._now_ns = now_ns
        if self.sway:
            self._sway(now_ns)
        self._couple()
        self._share_supply()
        if self.world is not None:
            self.world.step(now_ns, self.joint_rad())

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
            servo.axis.position += middle + self.sway * half * np.sin(phase) - self._true_tick(joint)

    def _couple(self) -> None:
        """Shadows sit on their partner's joint."""
        for bus in self.profile.buses:
            for motor in bus.motors:
                if motor.shadow_of is not None:
                    partner = self.servos[motor.shadow_of].axis
                    self.servos[motor.name].axis.position = partner.position + SHADOW_BIAS

    def _share_supply(self) -> None:
        for line in self.lines.values():
            amps = sum(servo.axis.current_ma for servo in line.servos) / 1000
            for servo in line.servos:
                servo.voltage_v = servo.supply_v - SUPPLY_OHM * amps

    def joint_rad(self) -> np.ndarray:
        """float64 (D,): true angles of the joints, whatever the servos' registers say."""
        out = np.empty(len(self.profile.joints))
        for k, joint in enumerate(self.profile.joints):
            out[k] = (self._true_tick(joint) - self._zero_tick(k, joint)) * RAD_PER_TICK
            if joint.unit == "percent":
                out[k] += JAW_CLOSED_RAD
        return out

    def _true_tick(self, joint: Joint) -> float:
        servo = self.servos[joint.motor]
        sign = -1 if isinstance(servo, FeetechServo) else 1
        return servo.axis.position + sign * self.calibration.motors[joint.motor].homing_offset

    def _zero_tick(self, k: int, joint: Joint) -> float:
        if joint.unit == "percent":
            return float(self.units.low[k])
        if joint.unit in ("rad", "unit"):
            return 2048.0
        return (self.units.low[k] + self.units.high[k]) / 2

    def move_by_hand(self, joint_name: str, value: float) -> None:
        """Puts a joint to a state value (robot units), as a person does with a leader arm."""
        names = [joint.name for joint in self.profile.joints]
        goal = self.units.action(np.array([self.servos[j.motor].present for j in self.profile.joints]))
        goal[names.index(joint_name)] = value
        joint = self.profile.joints[names.index(joint_name)]
        tick = int(self.units.ticks(goal)[names.index(joint_name)])
        self.servos[joint.motor].axis.position += tick - self._true_tick(joint)

    # ---- ports and faults ----

    def memory_ports(self) -> dict[str, MemoryPort]:
        """A port per bus on this robot's clock; ports stay the same over calls."""
        for bus in self.profile.buses:
            if bus.name not in self._ports:
                line = self.lines[bus.name]
                self._ports[bus.name] = MemoryPort(f"emulated {bus.name}", bus.baud, line.receive, self.clock)
        return self._ports

    def apply(self, fault: Fault, now_ns: int | None = None) -> None:
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
        elif fault.kind in SERVO_FAULTS:
            for servo in self._targets(fault):
                self._hurt(servo, fault, now_ns)
        else:
            self._targets(fault)  # refuses a target that is not there
            self.faults.add(fault, now_ns)

    def _targets(self, fault: Fault) -> list[Servo]:
        def is_meant(servo: Servo, bus: str) -> bool:
            return fault.target is None or fault.target in (servo.id, str(servo.id), servo.name, bus)

        found = [s for name, line in self.lines.items() for s in line.servos if is_meant(s, name)]
        if not found:
            raise UsageError(f"no servo or bus '{fault.target}' to hurt; servos: {', '.join(self.servos)}")
        return found

    def _hurt(self, servo: Servo, fault: Fault, now_ns: int) -> None:
        bits = {"overload": feetech.OVERLOAD, "overheat": feetech.OVERHEAT, "voltage": feetech.VOLTAGE}
        if fault.kind == "overheat" and fault.amount:
            servo.axis.temperature_c = fault.amount
        elif fault.kind == "voltage" and fault.amount:
            servo.supply_v = fault.amount
        elif fault.kind in bits:
            servo.extra_error |= bits[fault.kind]
        elif fault.kind == "mute":
            servo.is_mute = True
        elif fault.kind == "brownout":
            servo.power_up(now_ns)
        elif fault.kind == "stuck":
            servo.axis.is_stuck = True
        elif fault.kind == "jump":
            servo.axis.position += fault.amount or 700
        elif fault.kind == "wrong_model":
            servo.put("model_number", int(fault.amount) or 1284)
        elif fault.kind == "wrong_firmware":
            servo.put(
                "firmware_minor" if isinstance(servo, FeetechServo) else "firmware", int(fault.amount) or 9
            )
        elif fault.kind == "duplicate_id":
            servo.put("id", int(fault.amount) or 1)
        elif fault.kind == "hand":
            joint = self._joints[servo.name]
            self.move_by_hand(joint.name, fault.amount)

    def _clear(self) -> None:
        self.faults.clear()
        for servo in self.servos.values():
            servo.extra_error, servo.is_mute, servo.axis.is_stuck = 0, False, False
            servo.supply_v = SUPPLY_V["feetech" if isinstance(servo, FeetechServo) else "dynamixel"]

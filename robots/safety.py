"""Between what the policy wants and what the servos get: one function, and the reasons it had.

`SafetyFilter.allow` bends a wanted goal into an allowed one, joint by joint, and says why in bits. `Watch.look` judges
what was measured and says whether to go on, hold, stop or give up. Neither moves anything: the control loop does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Protocol

import numpy as np

from .bus.report import what_it_says
from .profile import Limits

TRAINED_SPEED_MARGIN = 1.5
"""Faster than 1.5 times what training ever showed is not the policy's intention (design section 4)."""
LEAST_SHARE = 0.05
"""A joint that never moved in training may still move at this share of the profile's speed."""
SLOW_START_FROM_S = 0.25
"""A first action within a quarter second's travel needs no slow start."""

OVERLOADS = frozenset({"overload", "over-current"})
"""What a servo reports that pushes too hard."""
TORQUE_LOST_MS = 500
"""Health is read servo by servo: what it says of torque may be this old after switching it on."""


class Reason(IntFlag):
    """Why a joint's goal is not what was wanted: bits of `limited_by`."""

    NOT_FINITE = 1
    LIMIT = 2
    RATE = 4
    SLOW_START = 8
    STALE = 16
    FOLLOWING = 32
    SERVO = 64


CLIPPING = Reason.LIMIT | Reason.RATE


@dataclass(frozen=True)
class Caps:
    """float32 (D,) each: lowest and highest goal, and speed in unit/s."""

    low: np.ndarray
    high: np.ndarray
    speed: np.ndarray
    slow_speed: np.ndarray


def make_caps(
    low: np.ndarray,
    high: np.ndarray,
    max_velocity: np.ndarray,
    is_gripper: np.ndarray,
    home_speed: float,
    trained_speed: np.ndarray | None = None,
) -> Caps:
    """The profile's hard limits, narrowed by 1.5 times the speeds of training; a gripper keeps its own.

    trained_speed: float (D,), unit/s, or None when the bundle does not know. home_speed: share of `max_velocity` for
    slow moves.
    """
    speed = np.asarray(max_velocity, np.float32)
    if trained_speed is not None:
        trained = np.maximum(TRAINED_SPEED_MARGIN * np.asarray(trained_speed), LEAST_SHARE * speed)
        speed = np.where(is_gripper, speed, np.minimum(speed, trained))
    return Caps(
        np.asarray(low, np.float32),
        np.asarray(high, np.float32),
        np.asarray(speed, np.float32),
        np.asarray(np.minimum(speed, home_speed * np.asarray(max_velocity)), np.float32),
    )


def limit(
    wanted: np.ndarray, last_goal: np.ndarray, caps: Caps, speed: np.ndarray, dt_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Joint limits, then the distance to the last goal *sent*.

    Limiting against the present position would cancel the lead against gravity and the gripper's force.

    Returns:
        float32 (D,) goal, uint16 (D,) reasons. Not finite or of another shape: the last goal.
    """
    bits = np.zeros(len(last_goal), np.uint16)
    if np.shape(wanted) != last_goal.shape or not np.isfinite(wanted).all():
        bits[:] = Reason.NOT_FINITE
        return last_goal.copy(), bits
    inside = np.clip(wanted, caps.low, caps.high)
    bits[inside != wanted] |= np.uint16(Reason.LIMIT)
    reach = speed * np.float32(dt_s)
    # A last goal outside the limits (the arm was found there) may only come back, at the same speed.
    goal = np.clip(inside, last_goal - reach, last_goal + reach).astype(np.float32)
    # A difference below a thousandth of a step is rounding, not clipping.
    bits[np.abs(goal - inside) > 1e-3 * reach + 1e-6] |= np.uint16(Reason.RATE)
    return goal, bits


class SafetyFilter:
    """`limit` with a memory: the last goal sent, and whether the arm still approaches its first action slowly."""

    def __init__(self, caps: Caps, dt_s: float, slow_from_s: float = SLOW_START_FROM_S) -> None:
        """slow_from_s: a first action farther away than this much travel is gone to slowly."""
        self.caps, self.dt_s = caps, dt_s
        self._slow_from_s = slow_from_s
        self.last_goal: np.ndarray | None = None
        self._is_slow = False
        self._is_first = True

    def begin(self, goal: np.ndarray) -> None:
        """The arm holds `goal`; the next wanted one may be far away."""
        self.last_goal = np.asarray(goal, np.float32).copy()
        self._is_first = True

    @property
    def is_approaching(self) -> bool:
        """Whether the arm is on its slow way to a first goal that was far."""
        return self._is_slow or self._is_first

    def allow(
        self, wanted: np.ndarray | None, is_slow: bool = False, is_withheld: np.ndarray | bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """float32 (D,) allowed goal, uint16 (D,) reasons. None keeps the last goal.

        is_slow: move at the slow speed whatever the distance (homing). is_withheld: bool (D,), joints that are told
        nothing: their last goal stays, or the next one they hear of would be a jump.
        """
        assert self.last_goal is not None, "begin() gives the first goal"
        if wanted is None:
            return self.last_goal, np.zeros(len(self.last_goal), np.uint16)
        if self._is_first and np.shape(wanted) == self.last_goal.shape:
            far = np.abs(wanted - self.last_goal) > self.caps.speed * self._slow_from_s
            self._is_slow, self._is_first = bool(far.any()), False
        slow = is_slow or self._is_slow
        speed = self.caps.slow_speed if slow else self.caps.speed
        goal, bits = limit(wanted, self.last_goal, self.caps, speed, self.dt_s)
        if slow:
            was_slowed = (bits & np.uint16(Reason.RATE)) != 0
            bits[was_slowed] = (bits[was_slowed] & ~np.uint16(Reason.RATE)) | np.uint16(Reason.SLOW_START)
            self._is_slow = self._is_slow and bool(was_slowed.any())
        self.last_goal = np.where(is_withheld, self.last_goal, goal)
        return self.last_goal, np.where(is_withheld, np.uint16(Reason.STALE), bits)


class Level(IntEnum):
    """What to do, mildest first. GO on; WARN a person; HOLD the goal; STOP: freeze, park, release; FAIL: the same at
    once and the run has failed."""

    GO = 0
    WARN = 1
    HOLD = 2
    STOP = 3
    FAIL = 4


@dataclass(frozen=True)
class Judgement:
    """One judgement. code: stable, for programs; text: one sentence; bits: uint16 (D,)."""

    level: Level
    code: str = ""
    text: str = ""
    bits: np.ndarray | None = None


class ServoState(Protocol):
    """What `Watch` reads of a servo's health; None where it was not read yet."""

    name: str
    temperature_c: float | None
    voltage_v: float | None
    load_percent: float | None
    torque_on: bool | None
    faults: tuple[str, ...]
    cure: str
    restart: str
    is_gripper: bool


def measured(servo: ServoState) -> str:
    """` (load 52 %, 41 degC)`, as far as it is known."""
    known = [] if servo.load_percent is None else [f"load {abs(servo.load_percent):.0f} %"]
    known += [] if servo.temperature_c is None else [f"{servo.temperature_c:.0f} degC"]
    return f" ({', '.join(known)})" if known else ""


class _Since:
    """How long a condition has held, by key."""

    def __init__(self) -> None:
        self._began: dict[str, int] = {}

    def ms(self, key: str, holds: bool, now_ns: int) -> float:
        if not holds:
            self._began.pop(key, None)
            return -1.0
        return (now_ns - self._began.setdefault(key, now_ns)) / 1e6


class Watch:
    """Judges what was measured, by the profile's limits. Acts before the servos' own shutdown does."""

    def __init__(
        self,
        limits: Limits,
        joints: Sequence[str],
        is_gripper: Sequence[bool],
        explain_silence: Callable[[np.ndarray], str] = lambda _: "",
    ) -> None:
        self._limits, self._joints, self._explain_silence = limits, list(joints), explain_silence
        self._watches_following = ~np.asarray(is_gripper, bool)  # a gripper's error is its grip
        self._since = _Since()
        self._n_stale_ticks = np.zeros(len(self._joints), np.int64)

    def look(
        self,
        position: np.ndarray,
        age_us: np.ndarray,
        goal: np.ndarray | None,
        servos: Sequence[ServoState],
        now_ns: int,
        is_torque_on: bool,
        tick_us: float,
    ) -> list[Judgement]:
        """All findings of this tick, the gravest first. goal: None while nothing is sent."""
        findings = [self._stale(age_us, tick_us)]
        if goal is not None and is_torque_on:
            findings.append(self._following(position, goal, age_us, now_ns))
        findings += [self._servo(servo, now_ns, is_torque_on) for servo in servos]
        return sorted((f for f in findings if f.level), key=lambda f: -f.level)

    def _stale(self, age_us: np.ndarray, tick_us: float) -> Judgement:
        limits = self._limits
        self._n_stale_ticks = np.where(age_us > tick_us, self._n_stale_ticks + 1, 0)
        is_old = (age_us > limits.stale_hold_ms * 1000) | (self._n_stale_ticks >= limits.stale_hold_ticks)
        if not is_old.any():
            return Judgement(Level.GO)
        worst = int(np.argmax(age_us))
        names = [name for name, old in zip(self._joints, is_old, strict=True) if old]
        who = "any joint" if len(names) == len(self._joints) else ", ".join(names)
        bits = np.where(is_old, np.uint16(Reason.STALE), np.uint16(0)).astype(np.uint16)
        if age_us[worst] > limits.stale_fail_ms * 1000:
            text = f"no position of {who} for {age_us[worst] / 1000:.0f} ms; {self._explain_silence(is_old)}"
            return Judgement(Level.FAIL, "state_lost", f"{text}. The arm is held, parked and released", bits)
        text = f"no new position of {who} for {age_us[worst] / 1000:.0f} ms"
        return Judgement(Level.HOLD, "state_stale", text, bits)

    def _following(
        self, position: np.ndarray, goal: np.ndarray, age_us: np.ndarray, now_ns: int
    ) -> Judgement:
        limits = self._limits
        error = np.abs(goal - position)
        is_off = (
            (error > limits.following_error)
            & self._watches_following
            & (age_us < limits.stale_hold_ms * 1000)
        )
        for i, name in enumerate(self._joints):
            if self._since.ms(f"follow/{name}", bool(is_off[i]), now_ns) >= limits.following_ms:
                bits = np.where(is_off, np.uint16(Reason.FOLLOWING), np.uint16(0)).astype(np.uint16)
                text = (
                    f"{name} is {error[i]:.0f} from its goal for {limits.following_ms} ms (limit "
                    f"{limits.following_error:g}): it is blocked, overloaded or unplugged"
                )
                return Judgement(Level.STOP, "following_error", text, bits)
        return Judgement(Level.GO)

    @staticmethod
    def _reported(servo: ServoState) -> Judgement | None:
        """What the servo says of itself. Volts are judged by the measured ones, a gripper's push by `GripRelief`."""
        said = [fault for fault in servo.faults if fault != "voltage"]
        if not said or (servo.is_gripper and set(said) <= OVERLOADS):
            return None
        return Judgement(Level.STOP, "servo_fault", f"servo {servo.name} {what_it_says(said)}; {servo.cure}")

    def _servo(self, servo: ServoState, now_ns: int, is_torque_on: bool) -> Judgement:
        limits, name = self._limits, servo.name
        hot = servo.temperature_c
        if hot is not None and hot >= limits.temperature_stop_c:
            return Judgement(
                Level.STOP,
                "over_temperature",
                f"servo {name} has {hot:.0f} degC (limit {limits.temperature_stop_c:g}); let it cool down",
            )
        if finding := self._reported(servo):
            return finding
        load = servo.load_percent
        overloaded = load is not None and abs(load) >= limits.overload_percent
        if self._since.ms(f"load/{name}", overloaded, now_ns) >= limits.overload_ms:
            return Judgement(
                Level.STOP,
                "overload",
                f"servo {name} pushes with {abs(load or 0):.0f} % for {limits.overload_ms} ms (limit "
                f"{limits.overload_percent:g} %); free the joint before you start again",
            )
        volts = servo.voltage_v
        is_out = volts is not None and not limits.voltage_min <= volts <= limits.voltage_max
        if self._since.ms(f"volt/{name}", is_out, now_ns) >= limits.voltage_ms:
            return Judgement(
                Level.STOP,
                "voltage",
                f"servo {name} has {volts:.1f} V, allowed {limits.voltage_min:g} to {limits.voltage_max:g} V; "
                f"check the power supply",
            )
        is_limp = is_torque_on and servo.torque_on is False
        if self._since.ms(f"torque/{name}", is_limp, now_ns) >= TORQUE_LOST_MS:
            return Judgement(
                Level.STOP,
                "torque_lost",
                f"servo {name} has switched its torque off (brown-out, overload or heat); it stays off until you "
                f"start again",
            )
        if "voltage" in servo.faults and volts is not None:
            text = f"servo {name} reports that its voltage is wrong: {volts:.1f} V; check the power supply"
            return Judgement(Level.WARN, "voltage_reported", text)
        if hot is not None and hot >= limits.temperature_warn_c:
            text = f"servo {name} is warm: {hot:.0f} degC, the arm stops at {limits.temperature_stop_c:g}"
            return Judgement(Level.WARN, "warm", text)
        return Judgement(Level.GO)

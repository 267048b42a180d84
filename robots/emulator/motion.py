"""How an emulated servo moves, warms and loads its supply: one shaft, in encoder ticks and seconds.

The position follows the goal with a limited acceleration and speed and stops on it without overshoot, as the servo's
own trajectory generator does. What the arm weighs pulls at the shaft: a servo that is off, or may not pull as much as
that, falls as a geared arm does: it accelerates, towards a speed that what is missing of its torque sets, until it
lies at rest. Load follows the error, the acceleration and the weight; heat follows the load squared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

AMBIENT_C = 25.0
HEAT_C_PER_S = 1.2
COOLING_S = 180.0
LOAD_PER_TICK = 0.4
FULL_ACCELERATION = 40_000.0
"""Ticks/s2 that full torque gives a joint. A joint that falls for want of 0.3 of it has 18 rad/s2: a rod of 0.35 m
would fall at 42, and the gears of these servos take about half."""
FALL_SPEED = 4000.0
"""Ticks/s at which gears and motor, turned from outside, brake with as much as full torque (an estimate; near the speed
that full torque reaches). A joint that lacks 0.3 falls with at most 105 degrees/s."""
CAUGHT = 4
"""Steps of full acceleration from which a joint that comes past its goal is taken to stand there."""
LEAN_TICKS = 512.0
LEAST_LEVER = 0.25
"""Within 45 degrees of its rest the arm leans on what it comes to lie on, more and more, down to this share."""


@dataclass(frozen=True)
class MotorModel:
    """max_speed: ticks/s without load. max_current_ma: at full load."""

    max_speed: float = 3000.0
    max_current_ma: float = 2400.0


@dataclass(frozen=True)
class GravityLoad:
    """What the arm's weight asks of one joint. share: of the joint's full torque, where the lever is longest.

    rest: tick of the shaft at which the arm lies. up: on which side of it the arm is raised, 1 or -1.
    """

    share: float
    rest: float
    up: int

    def at(self, position: float) -> float:
        raised = (position - self.rest) * self.up
        if raised <= 0:
            return 0.0
        return self.share * max(LEAST_LEVER, math.sin(math.pi / 2 * min(1.0, raised / LEAN_TICKS)))


class Pull(NamedTuple):
    """What a servo that has torque does: go `error` ticks. strength: share (0..1) of full torque that it may use."""

    error: float
    speed: float
    acceleration: float
    strength: float


class Axis:
    """Mechanical state of one servo's shaft.

    position, velocity: ticks and ticks/s of the bare encoder. load: -1..1 of the servo's full torque.
    Two servos of one joint: the joint's own axis moves, with half of its torque from each; `carry` couples them.
    """

    def __init__(self, position: float, model: MotorModel) -> None:
        self.position, self.velocity, self.load = float(position), 0.0, 0.0
        self.temperature_c = AMBIENT_C + 5.0
        self.model = model
        self.weight: GravityLoad | None = None
        self.is_stuck = False
        self._pull: Pull | None = None
        self._effort = 0.0
        self._shadow: Axis | None = None
        self._carrier: Axis | None = None
        self._bias = 0.0

    @property
    def current_ma(self) -> float:
        """What the motor draws."""
        return abs(self.load) * self.model.max_current_ma

    @property
    def asked(self) -> float:
        """Share of the joint's full torque that the weight asks where the joint is now."""
        weight = self.weight if self._carrier is None else self._carrier.weight
        return weight.at(self.position - self._bias) if weight is not None else 0.0

    def carry(self, shadow: Axis, bias: float) -> None:
        """A second servo on this joint, whose horn sits `bias` ticks off."""
        self._shadow, shadow._carrier, shadow._bias = shadow, self, bias
        shadow.follow()

    def follow(self) -> None:
        """A shadow is where its joint is."""
        if self._carrier is not None:
            self.position = self._carrier.position + self._bias
            self.velocity = self._carrier.velocity

    def drive(self, dt_s: float, error: float, speed: float, acceleration: float, strength: float) -> None:
        """Towards a goal `error` ticks away; speed and acceleration 0: as fast as it can."""
        self._pass(dt_s, Pull(error, speed, acceleration, strength) if strength > 0 else None)

    def coast(self, dt_s: float) -> None:
        """Without torque: stays, or falls."""
        self._pass(dt_s, None)

    def jump(self, ticks: float) -> None:
        """The encoder counts so many more than the shaft has turned."""
        self.position += ticks

    def spin(self, dt_s: float, speed: float) -> None:
        """Turns at a speed (wheel mode)."""
        limit = self.model.max_speed
        self.velocity = 0.0 if self.is_stuck else max(-limit, min(limit, speed))
        self.position += self.velocity * dt_s
        self.load = 0.1 if self.velocity else 0.0
        self._warm(dt_s)

    def _pass(self, dt_s: float, pull: Pull | None) -> None:
        """Time passes. A shadow only pulls: its joint's own axis, which comes after it, moves for both."""
        self._pull, moved = pull, 0.0
        if self._carrier is None:
            before = self.position
            self._move(dt_s, self._both_pull())
            moved = self.position - before
        else:
            self.follow()
            self._effort = self._carrier._effort
        self.load = self._load_of(pull, moved)
        self._warm(dt_s)

    def _both_pull(self) -> Pull | None:
        """Of a pair each gives half; of two that want different places neither gets its own."""
        if self._shadow is None:
            return self._pull
        pulls = [pull for pull in (self._pull, self._shadow._pull) if pull is not None]
        if not pulls:
            return None
        strength = sum(pull.strength for pull in pulls)
        error = sum(pull.error * pull.strength for pull in pulls) / strength
        return pulls[0]._replace(error=error, strength=strength / 2)

    def _move(self, dt_s: float, pull: Pull | None) -> None:
        asked, strength = self.asked, pull.strength if pull else 0.0
        self._effort = 0.0
        if self.is_stuck or (pull is None and not asked):  # the gears of a limp joint stop it
            self.velocity = 0.0
            return
        change = math.inf if pull is None else self._wanted_change(dt_s, pull, self.velocity)
        if self.weight is not None and asked:
            # The most that torque, weight and the brake of the gears allow upwards: less than nothing, and it falls.
            up = self.weight.up
            brake = self.velocity * up / FALL_SPEED
            most = (strength - asked - brake) * FULL_ACCELERATION * dt_s
            change = up * most if pull is None else up * min(up * change, most)
        self.velocity += change
        step = self.velocity * dt_s
        if pull is not None and strength >= asked:
            self._effort = change / dt_s / FULL_ACCELERATION
            if _has_arrived(dt_s, pull, self.velocity):
                step, self.velocity = pull.error, 0.0
        self.position += step
        if strength < asked:
            self._land()

    def _wanted_change(self, dt_s: float, pull: Pull, velocity: float) -> float:
        """Of a speed, as the servo's own trajectory generator wants it."""
        acceleration = pull.acceleration or FULL_ACCELERATION
        speed = min(pull.speed or self.model.max_speed, self.model.max_speed)
        # The speed from which whole steps of this length still come to rest in time.
        lag = acceleration * dt_s / 2
        braking = math.sqrt(lag * lag + 2 * acceleration * abs(pull.error)) - lag
        wanted = math.copysign(min(speed, braking), pull.error)
        return max(-acceleration * dt_s, min(acceleration * dt_s, wanted - velocity))

    def _land(self) -> None:
        """What falls comes to lie at its rest."""
        weight = self.weight
        if weight is not None and (self.position - weight.rest) * weight.up <= 0:
            self.position, self.velocity = weight.rest, 0.0

    def _load_of(self, pull: Pull | None, moved: float) -> float:
        if pull is None:
            return 0.0
        weight = self.weight if self._carrier is None else self._carrier.weight
        lift = self.asked * weight.up if weight is not None else 0.0
        if abs(lift) > pull.strength:
            return math.copysign(pull.strength, lift)
        wanted = (pull.error - moved) * LOAD_PER_TICK / 100 + 0.3 * self._effort + lift
        return max(-pull.strength, min(pull.strength, wanted))

    def _warm(self, dt_s: float) -> None:
        cooling = (self.temperature_c - AMBIENT_C) / COOLING_S
        self.temperature_c += (self.load**2 * HEAT_C_PER_S - cooling) * dt_s


def _has_arrived(dt_s: float, pull: Pull, velocity: float) -> bool:
    is_slow = abs(velocity) <= CAUGHT * (pull.acceleration or FULL_ACCELERATION) * dt_s
    return is_slow and (abs(pull.error) <= abs(velocity * dt_s) or abs(pull.error) < 0.02)


class MovedAxis(Axis):
    """A shaft whose joint something else moves: outside physics, which is told where it shall be.

    The servo's own trajectory generator goes on making the set point from goal, speed and acceleration.
    set_point: ticks, as the encoder counts. strength: share (0..1) of the joint's full force that may be used, 0: limp.
    slip: ticks that the encoder counts too many.
    """

    def __init__(self, position: float, model: MotorModel) -> None:
        super().__init__(position, model)
        self.set_point, self.strength, self.slip = self.position, 0.0, 0.0
        self._speed = self._middle = 0.0

    def jump(self, ticks: float) -> None:
        super().jump(ticks)
        self.slip += ticks

    def spin(self, dt_s: float, speed: float) -> None:
        limit = self.model.max_speed
        self._pull, self.strength, self._speed = Pull(0, 0, 0, 1), 1.0, max(-limit, min(limit, speed))
        self.set_point += self._speed * dt_s
        self._warm(dt_s)

    def put(self, position: float) -> None:
        """Somebody has turned the shaft; the set point begins there."""
        self.position = self.set_point = position
        self.velocity = self._speed = 0.0

    def moved(self, dt_s: float, position: float, effort: float) -> None:
        """The joint is at `position` after `dt_s`.

        effort: -1..1 of the joint's full force; each servo of a pair gives half, more if it pulls against the other.
        """
        self.velocity = (position - self.position) / dt_s
        self.position = position
        self.load = self._share(self._pull, effort)
        if (shadow := self._shadow) is not None:
            shadow.follow()
            shadow.load = self._share(shadow._pull, effort)

    def _share(self, pull: Pull | None, effort: float) -> float:
        if pull is None or not self.strength:
            return 0.0
        against = (pull.error - self._middle) * LOAD_PER_TICK / 100
        return max(-pull.strength, min(pull.strength, effort * pull.strength / self.strength + against))

    def _move(self, dt_s: float, pull: Pull | None) -> None:
        if pull is None:
            self.set_point, self._speed, self.strength = self.position, 0.0, 0.0
            return
        self.strength, self._middle = pull.strength, pull.error
        goal = self.position + pull.error
        left = goal - self.set_point
        if not self._speed and abs(left) < 1e-9:
            return
        ahead = Pull(left, pull.speed, pull.acceleration, pull.strength)
        self._speed += self._wanted_change(dt_s, ahead, self._speed)
        if _has_arrived(dt_s, ahead, self._speed):
            self.set_point, self._speed = goal, 0.0
        else:
            self.set_point += self._speed * dt_s

    def _load_of(self, pull: Pull | None, moved: float) -> float:
        return self.load if pull is not None else 0.0

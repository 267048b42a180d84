"""How an emulated servo moves, warms and loads its supply: one axis, in encoder ticks and seconds.

The position follows the goal with a limited acceleration and speed and stops on it without overshoot, as the
servo's own trajectory generator does. Load follows the error and the acceleration; heat follows the load squared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

AMBIENT_C = 25.0
HEAT_C_PER_S = 1.2
COOLING_S = 180.0
DEFAULT_ACCELERATION = 40_000.0
LOAD_PER_TICK = 0.4
FALL_TICKS_S = 900.0


@dataclass(frozen=True)
class MotorModel:
    """max_speed: ticks/s without load. max_current_ma: at full load. gravity: share of full torque that the
    arm's weight asks of this joint; a joint with less than that sinks to `rest`."""

    max_speed: float = 3000.0
    max_current_ma: float = 2400.0


class Axis:
    """Mechanical state of one servo's shaft.

    position, velocity: ticks and ticks/s of the bare encoder. load: -1..1 of full torque.
    """

    def __init__(self, position: float, model: MotorModel) -> None:
        self.position, self.velocity, self.load = float(position), 0.0, 0.0
        self.temperature_c = AMBIENT_C + 5.0
        self.model = model
        self.gravity = 0.0
        self.rest: float | None = None
        self.is_stuck = False

    @property
    def current_ma(self) -> float:
        return abs(self.load) * self.model.max_current_ma

    def drive(self, dt_s: float, error: float, speed: float, acceleration: float, strength: float) -> None:
        """Moves towards a goal `error` ticks away. strength: share (0..1) of full torque that is allowed."""
        if strength < self.gravity:
            self.coast(dt_s, (self.gravity - strength) / max(self.gravity, 1e-6))
            self.load = math.copysign(strength, error)
            return
        if self.is_stuck:
            self.velocity = 0.0
            self._take_load(error, 0.0, strength)
        else:
            acceleration = acceleration or DEFAULT_ACCELERATION
            speed = min(speed or self.model.max_speed, self.model.max_speed)
            lag = (
                acceleration * dt_s / 2
            )  # the speed from which whole steps of this length still come to rest in time
            braking = math.sqrt(lag * lag + 2 * acceleration * abs(error)) - lag
            wanted = math.copysign(min(speed, braking), error)
            change = max(-acceleration * dt_s, min(acceleration * dt_s, wanted - self.velocity))
            self.velocity += change
            step = self.velocity * dt_s
            if abs(error) <= abs(step) or abs(error) < 0.02:
                step, self.velocity = error, 0.0
            self.position += step
            self._take_load(error - step, change / dt_s / DEFAULT_ACCELERATION, strength)
        self._warm(dt_s)

    def spin(self, dt_s: float, speed: float) -> None:
        """Turns at a speed (wheel mode)."""
        limit = self.model.max_speed
        self.velocity = 0.0 if self.is_stuck else max(-limit, min(limit, speed))
        self.position += self.velocity * dt_s
        self.load = 0.1 if self.velocity else 0.0
        self._warm(dt_s)

    def coast(self, dt_s: float, share: float = 1.0) -> None:
        """Without enough torque: stays, or sinks towards the gravity rest where there is one."""
        self.load = 0.0
        self.velocity = 0.0
        if self.rest is not None and not self.is_stuck:
            away = self.rest - self.position
            step = math.copysign(min(abs(away), FALL_TICKS_S * share * dt_s), away)
            self.position += step
            self.velocity = step / dt_s if dt_s else 0.0
        self._warm(dt_s)

    def _take_load(self, error: float, effort: float, strength: float) -> None:
        wanted = error * LOAD_PER_TICK / 100 + 0.3 * effort + math.copysign(self.gravity, error)
        self.load = max(-strength, min(strength, wanted))

    def _warm(self, dt_s: float) -> None:
        cooling = (self.temperature_c - AMBIENT_C) / COOLING_S
        self.temperature_c += (self.load**2 * HEAT_C_PER_S - cooling) * dt_s

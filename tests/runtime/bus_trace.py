"""What the trace of an emulated robot's lines proves about the arm: no jump, no free fall, torque as the profile says.

`judge` replays what was sent and answered, and holds it against rules that must hold whoever is killed whenever:

    a goal steps by at most the cap from the goal before, or goes to where the servo was read last (a freeze);
    torque goes on only with the goal where the servo is, and no other goal is sent while it is off;
    torque goes off only at the rest pose, or after `hold_ms` frozen and `park_ms` at reduced torque;
    no joint that had torque falls when it is let go or lowered: it sinks, at most at `FALL_TICKS_S`;
    in the end torque is off on every servo where it was on.

What the servos were when the trace began, and what they did that nobody told them, its `arm` entries say: an arm that
was found with torque on is under the same rules from the first byte on.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgevla.robots.bus import dynamixel, feetech
from edgevla.robots.bus.protocols import BUSES
from edgevla.robots.calibration import nominal
from edgevla.robots.emulator.trace import ArmWatch, describe
from edgevla.robots.profile import load_profile
from edgevla.robots.rescue import full_torque, goal_ids
from edgevla.robots.safety import make_caps
from edgevla.robots.units import joint_units

PROTOCOLS = {"feetech": feetech, "dynamixel": dynamixel}
NEAR_TICKS, N_READ, READ_NS = 2, 3, 40_000_000
"""A goal this near to where the servo was read in the last few readings is a freeze: the loop may have missed one."""
REST_TICKS = 3
TIME_SHARE = 0.9
"""Of the table's times: both ends are seen through the line, a message or two later."""
FALL_TICKS_S, FALL_NS = 700, 50_000_000
"""62 degrees/s, over at least so long. A lowering holds back what sinks with more than 50; an arm of which torque is
taken at once has more than 90 where it weighs 0.3."""


def record(arm):
    """(trace, let_pass) of an emulated robot in this process, from now on: what passes on its lines and becomes of it,
    as `edgevla emulate --trace` writes it; and a call that lets so many seconds pass without a host."""
    trace = []
    watch = ArmWatch(arm.lines.values(), trace.append)

    def step(now_ns):
        arm.step(now_ns)
        watch.turn(now_ns)

    def watcher(bus, protocol):
        return lambda direction, frame, t_ns: trace.append(
            {"t_ns": t_ns, "bus": bus, "dir": direction, **describe(protocol, direction, frame)}
        )

    def let_pass(seconds):
        for _ in range(round(seconds * 50)):
            arm.clock.sleep_until(arm.clock.now_ns() + 20_000_000)
            step(arm.clock.now_ns())

    step(arm.clock.now_ns())
    for name, line in arm.lines.items():
        line.before_frame, line.on_frame = step, watcher(name, line.protocol)
    return trace, let_pass


def events(trace, bus):
    """(t_ns, what, {servo: value}) of one bus: `goal_position`, `torque_enable`, the torque limit, `present`, `arm`."""
    protocol = PROTOCOLS[bus.protocol]
    position, asked, merged = protocol.REGISTERS["present_position"], None, ()
    for entry in trace:
        if entry.get("bus") != bus.name:
            continue
        if entry["dir"] == "arm":
            yield entry["t_ns"], "arm", {int(i): v for i, v in entry["servos"].items()}
        elif entry["dir"] == "tx" and "read" in entry.get("op", ""):
            asked = entry.get("address"), entry.get("size")
            merged = tuple(entry.get("ids", ())) if entry["op"] == "fast_sync_read" else ()
        elif entry["dir"] == "tx" and "values" in entry:
            yield entry["t_ns"], entry["register"], {int(i): v for i, v in entry["values"].items()}
        elif entry["dir"] == "rx" and asked is not None and None not in asked:
            address, size = asked
            at = position.address - address
            if not 0 <= at <= size - position.size:
                continue
            decoder = protocol.Decoder(size)
            if merged:
                decoder.merged_ids = merged
            answers = decoder.feed(bytes.fromhex(entry["hex"]))
            found = {
                a.id: position.decode(a.data[at : at + position.size]) for a in answers if len(a.data) == size
            }
            if found:
                yield entry["t_ns"], "present", found


@dataclass
class Verdict:
    """violations: sentences; empty is good. endings: how torque went off, `rest` or `park`, by bus.

    on_ns, off_ns: when the first torque went on and the last went off; None: never. switched: (ns, whether any torque
    is on from here).
    """

    violations: list[str] = field(default_factory=list)
    endings: Counter = field(default_factory=Counter)
    n_goals: int = 0
    largest_step: int = 0
    on_ns: int | None = None
    off_ns: int | None = None
    switched: list[tuple[int, bool]] = field(default_factory=list)

    def is_on_at(self, t_ns: int) -> bool:
        """Whether any servo has torque then."""
        return ([False] + [is_on for then, is_on in sorted(self.switched) if then <= t_ns])[-1]


def caps_in_ticks(profile, trained_speed, servo_hz):
    """{motor: ticks} by which a goal may differ from the one before."""
    units = joint_units(profile, nominal(profile))
    caps = make_caps(
        np.array([j.min for j in profile.joints]),
        np.array([j.max for j in profile.joints]),
        np.array([j.max_velocity for j in profile.joints]),
        np.array([j.is_gripper for j in profile.joints]),
        profile.rates.home_speed,
        np.array(trained_speed),
    )
    steps = np.ceil(caps.speed / servo_hz / units.scale()) + 1  # both ends are rounded to ticks
    return {joint.motor: int(step) for joint, step in zip(profile.joints, steps, strict=True)}


def rest_ticks(profile):
    """{motor: ticks} of the rest pose."""
    ticks = joint_units(profile, nominal(profile)).ticks(np.array([joint.rest for joint in profile.joints]))
    return {joint.motor: int(tick) for joint, tick in zip(profile.joints, ticks, strict=True)}


def judge(trace: Sequence[dict], robot: str, trained_speed: Sequence[float], servo_hz: float) -> Verdict:
    """trained_speed: unit/s per joint, as the bundle says. servo_hz: of the loop while the policy ran."""
    profile = load_profile(str(robot))
    verdict = Verdict()
    caps, rest = caps_in_ticks(profile, trained_speed, servo_hz), rest_ticks(profile)
    for bus in profile.buses:
        _Bus(bus, profile, caps, rest, verdict).follow(trace)
    return verdict


class _Bus:
    def __init__(self, bus, profile, caps, rest, verdict):
        self.bus, self.rule, self.verdict = bus, profile.escalation, verdict
        self.names = {m.id: m.name for m in bus.motors}
        self.caps, self.rest = caps, rest
        self.driven = goal_ids(bus)
        grippers = {joint.motor for joint in profile.joints if joint.is_gripper}  # may be blocked on the way
        self.grippers = {m.id for m in bus.motors if m.name in grippers}
        self.park = {i: int(full * self.rule.park_torque) for i, full in full_torque(bus).items()}
        self.goal, self.present, self.read_ns, self.torque = {}, {}, {}, {}
        self.parked_ns = self.moved_ns = None
        self.is_up = False
        """Whether all servos have had torque, so that letting go of one lets go of the arm."""
        self.was, self.lost, self.had_torque = {}, set(), set()
        self.falls, self.told = {}, set()

    def follow(self, trace):
        for t_ns, what, values in events(trace, self.bus):
            if what == "present":
                for i, tick in values.items():
                    self._read(t_ns, i, tick)
            elif what == "goal_position":
                self._goals(t_ns, values)
            elif what == BUSES[self.bus.protocol].torque_limit:
                is_low = all(values.get(i, limit + 1) <= limit for i, limit in self.park.items())
                self.parked_ns = (self.parked_ns or t_ns) if is_low else None
            elif what == "torque_enable":
                self._torque(t_ns, values)
            elif what == "arm":
                self._arm(t_ns, values)
        for i, speed in self.falls.items():
            self._bad(f"{self.names[i]} fell with {speed:.0f} ticks/s, sinking may have {FALL_TICKS_S}")
        if held := [self.names[i] for i, on in self.torque.items() if on]:
            self._bad(f"torque was left on at {', '.join(held)}")

    def _bad(self, text, what=""):
        """what: of several sentences about one thing the first is enough."""
        if what and what in self.told:
            return
        self.told.add(what)
        self.verdict.violations.append(f"{self.bus.name}: {text}")

    def _read(self, t_ns, i, tick):
        """The last answers, and those of the last ticks: which of them the host still heard in time, nobody knows."""
        times, ticks = [*self.read_ns.get(i, ()), t_ns], [*self.present.get(i, ()), tick]
        n = max(N_READ, sum(t_ns - then <= READ_NS for then in times))
        self.read_ns[i], self.present[i] = times[-n:], ticks[-n:]

    def _is_near(self, i, goal):
        seen = self.present.get(i, ())
        return bool(seen) and min(seen) - NEAR_TICKS <= goal <= max(seen) + NEAR_TICKS

    def _goals(self, t_ns, values):
        self.verdict.n_goals += 1
        for i, goal in values.items():
            name, before = self.names[i], self.goal.get(i)
            self.goal[i] = goal
            if not 0 <= goal < feetech.TICKS_PER_TURN:
                self._bad(f"{name} was told to go to {goal}")
            if self._is_near(i, goal):
                continue
            if i in self.lost:
                pass  # who loses its torque by itself is not known at once; whether the goal brings it back is seen
            elif not self.torque.get(i):
                text = f"{name} was told {goal} with torque off, while it was at {self.present.get(i)}"
                self._bad(text, f"{name} off")
            elif abs(goal - before) > self.caps[name]:
                text = f"{name} was told to jump from {before} to {goal}, cap {self.caps[name]}"
                self._bad(text, f"{name} jump")
            if goal != before:
                self.moved_ns = t_ns
                self.verdict.largest_step = max(self.verdict.largest_step, abs(goal - (before or goal)))

    def _torque(self, t_ns, values):
        """What the host switches."""
        for i in {i for i, on in values.items() if on} - {i for i, on in self.torque.items() if on}:
            if i in self.driven and not self._is_near(i, self.goal.get(i, -1)):
                self._bad(
                    f"{self.names[i]} was switched on at {self.present.get(i)} with goal {self.goal.get(i)}"
                )
            self.lost.discard(i)
        # Before all are on, letting go is switching on undone: nothing has moved yet.
        if self.is_up and not all(values.values()):
            self.is_up = False
            if not self._may_go_off(t_ns):
                self._bad("torque went off before the arm was at rest or parked")
        self._has_torque(t_ns, values)

    def _has_torque(self, t_ns, values):
        was_on = any(self.torque.values())
        self.torque.update(values)
        self.had_torque |= {i for i, on in values.items() if on}
        if any(values.values()):
            self.verdict.on_ns = self.verdict.on_ns or t_ns
        is_on = any(self.torque.values())
        if was_on != is_on:
            self.verdict.switched.append((t_ns, is_on))
        if was_on and not is_on:
            self.verdict.off_ns = t_ns
        self.is_up = self.is_up or (len(self.torque) == len(self.names) and all(self.torque.values()))

    def _arm(self, t_ns, values):
        """What the servos are: as the first host found them, and what they do that nobody told them."""
        values = {i: v for i, v in values.items() if i in self.names}
        for i, (present, goal, on, _) in values.items():
            if i not in self.was:
                self.goal.setdefault(i, goal)
                self.present.setdefault(i, [present])
            elif self.torque.get(i) and not on:
                self.lost.add(i)  # a brown-out, a fault of its own: it falls by itself
            elif on and not self.torque.get(i):
                self._switched_itself_on(i, present, goal)
            self._sink(t_ns, i, *values[i])
        self._has_torque(t_ns, {i: on for i, (_, _, on, _) in values.items()})

    def _switched_itself_on(self, i, present, goal):
        """Firmware that a goal energises: harmless where the servo is, or a goal's step from there."""
        self.lost.discard(i)
        is_far = abs(goal - present) > max(NEAR_TICKS, self.caps.get(self.names[i], 0))  # a shadow has no cap
        if i in self.driven and is_far and not self._is_near(i, goal):
            self._bad(f"{self.names[i]} came on by itself at {present} with goal {goal}", f"{i} on")

    def _sink(self, t_ns, i, present, goal, on, share):
        """A joint without torque, or with less than it is lowered at and on its way from its goal, may only sink."""
        is_low = share <= self.rule.park_torque + 1e-3
        then_ns, then, was_low = self.was.get(i, (t_ns, present, False))
        is_watched = i in self.driven and i in self.had_torque - self.lost - self.grippers
        is_free = is_watched and (not on or is_low)
        if i in self.was and t_ns - then_ns < FALL_NS:
            return
        self.was[i] = (t_ns, present, is_free)
        moved = present - then
        if not (is_free and was_low and moved) or (on and moved * (goal - then) > 0):
            return
        speed = abs(moved) * 1e9 / (t_ns - then_ns)
        if speed > FALL_TICKS_S:
            self.falls[i] = max(speed, self.falls.get(i, 0))

    def _may_go_off(self, t_ns):
        if all(
            abs(self.goal[i] - self.rest[self.names[i]]) <= REST_TICKS
            for i in self.driven
            if i not in self.grippers
        ):
            self.verdict.endings["rest"] += 1
            return True
        frozen_ns = t_ns - (self.moved_ns or 0)
        is_parked = (
            self.parked_ns is not None and t_ns - self.parked_ns >= TIME_SHARE * self.rule.park_ms * 1e6
        )
        is_held = frozen_ns >= TIME_SHARE * (self.rule.hold_ms + self.rule.park_ms) * 1e6
        self.verdict.endings["park" if is_parked and is_held else "dropped"] += 1
        return is_parked and is_held

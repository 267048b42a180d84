"""An arm that writes down what is done to it, and the commands that do it, on a virtual clock."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from edgevla.arguments import Start
from edgevla.clock import NS_PER_S, VirtualClock
from edgevla.errors import BusError
from edgevla.execution import Sync
from edgevla.robots.commands import Commands
from edgevla.robots.modes import NodeState
from edgevla.robots.profile import load_profile
from edgevla.robots.safety import Caps, SafetyFilter
from edgevla.robots.telling import Teller

PROFILE = load_profile("so101")
D = len(PROFILE.joints)
START = Start(
    fps=30.0, chunk_size=20, n_action_steps=20, execution=Sync(), allowed=("sync", "async", "rtc"), task="go",
    n_steps=None, guidance_end=10, max_guidance=10.0, trained_speed=None,
    trained_range=((-1.0,) * D, (1.0,) * D), latency_ms=0.0, max_hz=None,
)  # fmt: skip
T0 = 50 * NS_PER_S


class Arm:
    """A `Body` without an arm."""

    def __init__(self, profile=PROFILE):
        self.profile = profile
        self.robot = SimpleNamespace(
            max_hz=60.0, is_cut_off=False, is_shadow=False, present_goal=lambda: np.full(D, 7.0, np.float32)
        )
        self.did = []
        self.is_torque_on = self.is_reduced = self.is_shadowing = False
        self.last_goal = np.zeros(D, np.float32)
        self.fails = self.at_goal = False
        self.unreached, self.outside, self.unreachable = [], [], ""

    def energise(self, plan):
        self.did.append("energise")
        if self.fails:
            self.is_torque_on = False
            raise BusError("a pair disagrees")
        self.is_shadowing = self.robot.is_shadow
        self.is_torque_on, self.is_reduced = not self.is_shadowing, False

    def follow(self, plan):
        self.did.append(f"follow {plan.fps:g}")

    def filter_in_thought(self, plan):
        assert plan.is_shadow
        made = SafetyFilter(Caps(*(np.full(D, x, np.float32) for x in (-100.0, 100.0, 60.0, 6.0))), 1 / 60)
        made.begin(self.robot.present_goal())
        return made

    def switch_off(self):
        self.did.append("off")
        self.is_torque_on = self.is_shadowing = False
        return self.unreached

    lost = switch_off

    def limit_torque(self, share):
        self.did.append(share)
        self.is_reduced = share < 1

    def outside_training(self, seen):
        assert seen.shape == (2, D)
        return self.outside

    def unreachable_rest(self):
        return self.unreachable

    def approach(self):
        self.did.append("approach")

    def freeze(self):
        self.did.append("freeze")

    def rest(self):
        return np.full(D, 5.0, np.float32)

    def is_at_goal(self):
        return self.at_goal

    def ticks(self):
        return {}


class Loop:
    def __init__(self, profile=PROFILE):
        self.clock, self.events, self.leases = VirtualClock(T0), [], []
        self.arm = Arm(profile)
        links = SimpleNamespace(
            event=lambda severity, code, text, **more: self.events.append((severity, code, text)),
            lease=self.leases.append,
        )
        self.teller = Teller(links, self.clock, Counter())
        self.commands = Commands(self.arm, links, self.clock, self.teller)

    @property
    def state(self):
        return self.commands.machine.state

    def obey(self, action, arguments=None):
        return self.commands.obey(action, arguments)

    def start(self, **changes):
        assert self.obey("start", replace(START, **changes)) == (True, "")
        self.arm.did.clear()
        self.events.clear()
        self.leases.clear()
        return self

    def did(self):
        done, self.arm.did = self.arm.did, []
        return done

    def after(self, seconds):
        self.clock.advance(round(seconds * NS_PER_S))
        return self

    def press(self):
        self.after(2)
        return self.commands.emergency_stop()

    def told(self, code):
        return [(severity, text) for severity, found, text in self.events if found == code]

    def finish(self, limit=4000):
        for _ in range(limit):
            if self.commands.ending is None:
                return self
            self.after(0.01)
            self.commands.step_ending()
        raise AssertionError("it never ends")


def parked():
    loop = Loop(replace(PROFILE, escalation=replace(PROFILE.escalation, release=False))).start()
    loop.obey("stop")
    loop.arm.last_goal = loop.arm.rest()
    loop.arm.at_goal = True
    loop.finish()
    assert loop.state is NodeState.PARKED
    return loop


def chunk_is_there(loop):
    """Marks the plan under way, so that one that is forgotten shows."""
    loop.commands.rollout._has_flowed = True

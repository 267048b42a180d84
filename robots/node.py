"""The robot node: the control loop, master of the deployment. `ControlLoop.step` is the loop's one page.

    hear  ->  decide a goal  ->  make it safe  ->  exchange with the servos  ->  judge  ->  ask for a chunk  ->  tell

One tick is one write and one read of every bus. Time is counted in ticks from the start of the rollout; the loop goes
on at rate while inference is slow, dead or restarting. What the node is and may become is `modes.py`'s table, the arm in
its hands `body.py`, the plan under way `rollout.py`; the process around it (sockets, pipes, priorities) is
`node_process.py`. Tests drive `step` on a virtual clock. Neither cv2 nor an engine is imported here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from edgevla import messages
from edgevla.clock import NS_PER_MS, NS_PER_S, Clock, Tick, ticker
from edgevla.errors import BusError
from edgevla.execution import Goal
from edgevla.messages import Guidance, Heartbeat, Infer, Mode, Phase, ServoHealth
from edgevla.nodes.vitals import heartbeat

from .arm import EXCHANGE_SHARE, Reading, Robot
from .body import Body
from .commands import Commands
from .links import Driver, Links
from .modes import NodeEvent, NodeState
from .onlooker import Onlooker
from .profile import Profile
from .rollout import Plan, Rollout
from .safety import CLIPPING, Judgement, Level, Reason
from .telling import Teller

IDLE_HZ = 30.0
PHASES: dict[Mode, Phase] = {"running": "running", "stopped": "stopping", "emergency": "degraded"}
"""What the heartbeat says of a mode; of the others `ready`."""
HEALTH_NS = NS_PER_S // 2
HEARTBEAT_NS = NS_PER_S // 5
SILENT_POLICY_NS = 2 * NS_PER_S
SETTLED_NS = 3 * NS_PER_S // 10
"""What held the arm must have been over for so long: a joint that comes and goes is no news at every tick."""
RUN_STATES = (NodeState.RUNNING, NodeState.HOLDING)
CLIP_WORDS = {Reason.LIMIT: "limit", Reason.RATE: "speed"}


class ControlLoop:
    """One robot, one loop. `robot` is connected, torque off."""

    def __init__(self, profile: Profile, robot: Robot, links: Links, clock: Clock) -> None:
        self.profile, self.robot, self.links, self.clock = profile, robot, links, clock
        self.counters: Counter[str] = Counter()
        self._idle_ns = round(NS_PER_S / min(IDLE_HZ, profile.rates.servo_hz))
        self._teller = Teller(links, clock, self.counters)
        self._body = Body(profile, robot, clock, self._idle_ns)
        self._commands = Commands(self._body, links, clock, self._teller)
        self.machine = self._commands.machine
        self._due = {"health": 0, "heartbeat": 0}
        self._last_tick = -1
        self._t0_ns = 0
        self._had_torque = False
        self._held_ns = -SETTLED_NS
        self._is_stale = False
        """Whether a joint did not say where it is: the arm holds until it does."""

    @property
    def period_ns(self) -> int:
        """Of a tick: the plan's, or the leisurely one before the first start."""
        return self._idle_ns if self.plan is None else self.plan.period_ns

    @property
    def plan(self) -> Plan | None:
        return self._commands.plan

    @property
    def is_over(self) -> bool:
        """Whether the process may end."""
        return self._commands.is_over

    @property
    def wants_new_grid(self) -> bool:
        """Whether the next tick is the first of a new rollout."""
        return self._commands.wants_new_grid

    def remark(self, code: str, text: str) -> None:
        """A sentence to be told with the first start."""
        self._teller.remark(code, text)

    # -- the page -------------------------------------------------------------------------------------------

    def ticks(self) -> Iterator[Tick]:
        """The loop's time: a new grid begins with every rollout."""
        while not self.is_over:
            self._commands.begin_grid()
            self._last_tick = -1
            for tick in ticker(self.clock, self.period_ns):
                yield tick
                if self.is_over or self.wants_new_grid:
                    break

    def step(self, tick: Tick) -> None:
        """One tick: the story of the module's first line."""
        self._count(tick)
        self._hear()
        self._take_chunks(tick)
        decided = self._decide(tick)
        goal, bits = self._make_safe(decided)
        sent = None if self.robot.is_shadow else goal
        reading = self._exchange(sent, tick)
        findings = self._judge(sent)
        if (onlooker := self._commands.onlooker) is not None:
            # The leader's goal was sent; what is told is what the policy wants.
            decided, bits = self._look_on(onlooker, tick)
        self._ask(tick, reading, goal)
        self._tell(tick, reading, decided, sent, bits, findings)

    def _count(self, tick: Tick) -> None:
        if tick.number == 0:
            self._t0_ns = tick.deadline_ns
        skipped = tick.number - self._last_tick - 1
        self._last_tick = tick.number
        self.counters["ticks"] += 1
        if self.machine.state in RUN_STATES:
            self.counters["skipped_ticks"] += skipped
            self.counters["deadline_misses"] += skipped + (tick.late_ns > self.period_ns // 10)

    def _hear(self) -> None:
        for name in self.links.signals():
            self._commands.hear(name)
        self._commands.wait_for_supervisor()
        for request in self.links.requests():
            is_accepted, reason = self._commands.obey(request.action, request.arguments)
            request.answer(is_accepted, reason)
        self.counters["emergency_stops"] = self._commands.n_emergencies
        self.counters["takeovers"] = self._commands.n_takeovers

    def _take_chunks(self, tick: Tick) -> None:
        onlooker = self._commands.onlooker
        for message in self.links.chunks():
            rollout, last_goal = self._commands.rollout, self._body.filter.last_goal
            who = self._commands.driver
            if onlooker is not None and message.source == "policy":
                rollout, last_goal, who = onlooker.rollout, onlooker.last_goal, "policy"
            answered_ns = 0 if rollout is None else rollout.answered_ns
            receipt = None if rollout is None else rollout.take(message, tick, last_goal)
            if receipt is None:
                self._count_of(who, "chunks_of_before")
                continue
            self._count_of(who, f"chunks_{receipt.reason}")
            self._count_of(who, "actions_skipped", receipt.n_skipped if receipt.is_taken else 0)
            if answered_ns and tick.deadline_ns - answered_ns > SILENT_POLICY_NS:
                self.links.event("info", "policy_back", f"the {who} answers again")
                self._teller.again("policy_silent" if who == self._commands.driver else "shadow_silent")
            if receipt.reason == "damaged":
                self._teller.once(
                    "warning", "chunk_damaged", "a chunk with NaN or of another size was dropped"
                )
            if receipt.reason == "overdue":
                self._teller.once(
                    "warning",
                    "chunk_overdue",
                    f"a chunk came {receipt.delay_steps} steps after its observation, later than the committed "
                    "actions that it goes on from; it was dropped",
                )

    def _count_of(self, who: Driver, name: str, n: int = 1) -> None:
        """Where a policy looks on, the figures of chunks are the policy's, and the leader's have names of their own."""
        is_beside = self._commands.onlooker is not None and who == "leader"
        self.counters[f"leader_{name}" if is_beside else name] += n

    def _look_on(self, onlooker: Onlooker, tick: Tick) -> tuple[Goal, np.ndarray]:
        """What the policy wants at this tick, and what safety would have done to it."""
        if self.machine.state not in RUN_STATES or self.wants_new_grid:
            return Goal(None), np.zeros(len(self.profile.joints), np.uint16)
        goal, bits = onlooker.goal_at(tick, self._is_stale)
        self.counters["ticks_starved"] += onlooker.rollout.is_starved
        if not onlooker.is_approaching:
            self._count_clips(bits)
        silent_ns = tick.deadline_ns - max(onlooker.rollout.answered_ns, self._t0_ns)
        if silent_ns > SILENT_POLICY_NS and onlooker.rollout.is_starved:
            words = "the policy does not answer, so there is nothing to compare; the leader goes on moving the arm"
            self._teller.once("warning", "shadow_silent", words)
            return Goal(None), bits
        return goal, bits

    def _decide(self, tick: Tick) -> Goal:
        """What is wanted at this tick, before safety."""
        state, rollout = self.machine.state, self._commands.rollout
        if state is NodeState.ENDING:
            return Goal(self._commands.step_ending())
        if self.wants_new_grid:  # this tick still has a number of the old grid
            return Goal(None)
        if state is NodeState.HOMING:
            return self._decide_homing()
        if state not in RUN_STATES or rollout is None:
            return Goal(None)
        goal, silent_ns = rollout.goal_at(tick, self._is_stale)
        if silent_ns:
            self._approach_after(silent_ns, goal)
        self.counters["ticks_running"] += 1
        self._count_of(self._commands.driver, "ticks_starved", rollout.is_starved)
        self.counters["ticks_led"] += self._commands.driver == "leader"
        return goal

    def _decide_homing(self) -> Goal:
        if self._is_stale:
            return Goal(None)
        home = self._body.bent_home()
        if np.allclose(self._body.last_goal, home, atol=1e-3):
            self.machine.fire(NodeEvent.ARRIVED, "at home")
        return Goal(home)

    def _approach_after(self, silent_ns: int, goal: Goal) -> None:
        """Whoever was silent may come back with another idea of where the arm should be."""
        self._body.approach()
        far = self._body.far_from(goal.wanted)
        if far:
            self._teller.once(
                "warning",
                "approach",
                f"after {silent_ns / NS_PER_S:.1f} s without a goal the next one is far ({far}): it is gone to slowly",
            )

    def _make_safe(self, decided: Goal) -> tuple[np.ndarray | None, np.ndarray]:
        state = self.machine.state
        goal, bits = self._body.bend(decided.wanted, is_slow=state in (NodeState.HOMING, NodeState.ENDING))
        is_counted = self._commands.onlooker is None and not self._body.is_approaching
        if state is NodeState.RUNNING and is_counted:
            self._count_clips(bits)
        return goal, bits

    def _count_clips(self, bits: np.ndarray) -> None:
        """By limit and joint, so that the summary can say which; the approach is meant to be slow, and is left out."""
        if not (bits & np.uint16(CLIPPING)).any():
            return
        self.counters["ticks_clipped"] += 1
        for reason, word in CLIP_WORDS.items():
            for k in np.flatnonzero(bits & np.uint16(reason)):
                self.counters[f"clipped_{word}_{self.profile.joints[k].name}"] += 1

    def _exchange(self, goal: np.ndarray | None, tick: Tick) -> Reading:
        share_ns, now_ns = int(self.period_ns * EXCHANGE_SHARE), self.clock.now_ns()
        # Where switching torque has taken longer than the tick, there is as much time as in any other.
        least_ns = share_ns if now_ns > tick.deadline_ns + share_ns else 2 * NS_PER_MS
        try:
            reading = self.robot.exchange(goal, max(tick.deadline_ns + share_ns, now_ns + least_ns))
        except BusError as error:
            self._commands.line_gone(str(error))
            reading = self.robot.last_reading()
        self._body.saw(reading)
        return reading

    def _judge(self, goal: np.ndarray | None) -> list[Judgement]:
        ending = self._commands.ending
        is_free = ending is None and self.machine.state is not NodeState.EMERGENCY
        if is_free and goal is not None:
            self._body.renew_torque(goal)
        findings = self._body.judge(goal, self._body.is_reduced, is_gripping=is_free)
        self._is_stale = any(finding.level >= Level.HOLD for finding in findings)
        for finding in findings:
            is_grave = finding.level >= Level.STOP
            if not (finding.code.startswith("state_") and self.robot.has_lost_lines):  # said, with the reason
                self._teller.once("stop" if is_grave else "warning", finding.code, finding.text)
            if is_grave:
                self._commands.fail(finding.text)
        return findings

    def _ask(self, tick: Tick, reading: Reading, goal: np.ndarray | None) -> None:
        """Whoever drives, and a policy that looks on."""
        rollout, onlooker = self._commands.rollout, self._commands.onlooker
        if rollout is None:
            return
        asked: list[tuple[Driver, Rollout]] = [(self._commands.driver, rollout)]
        asked += [] if onlooker is None else [("policy", onlooker.rollout)]
        for who, each in asked:
            self._count_of(who, "infer_expired", each.give_up_late_requests(self.clock.now_ns()))
        if self.machine.state not in RUN_STATES:
            return
        self._hold_or_run(tick)
        if self._is_stale or self.wants_new_grid:
            return
        for who, each in asked:
            is_followed = not self.robot.is_shadow and each is rollout
            self._ask_for_chunk(who, each, tick, reading, goal if is_followed else None)

    def _ask_for_chunk(
        self, who: Driver, rollout: Rollout, tick: Tick, reading: Reading, goal: np.ndarray | None
    ) -> None:
        """One `infer` when the strategy wants a chunk; again when the deadline passed without one.

        goal: what was sent; None where nothing of its chunks is. Then the arm does not go where they lead: each is asked
        for from where the arm is, and no chunk is bound by the one before, of which nothing is done.
        """
        if not rollout.executor.wants_chunk(tick.number):
            return
        ahead, state, rtc = 0, reading.position, None
        if goal is not None:
            ahead, state = rollout.executor.state_for(tick.number, reading.position, goal)
            rtc = rollout.executor.committed(tick.number, goal)
        deadline = rollout.deadline_ns(self.clock.now_ns())
        request = Infer(
            request_id=rollout.next_request,
            grid_index=tick.number // rollout.plan.ticks_per_step,
            deadline_ns=deadline,
            task=rollout.task,
            state=state,
            n_steps=rollout.plan.n_steps,
            rtc=None if rtc is None else Guidance(rtc[1], rtc[2], rollout.executor.n_drawn),
            buffered_ns=rollout.buffered_ns(tick),
            ahead=ahead,
        )
        if not self.links.ask(who, request, () if rtc is None else (rtc[0],), tick.deadline_ns):
            self._count_of(who, "infer_unsent")
            return
        rollout.has_asked(tick, deadline)
        self._count_of(who, "infer_sent")

    def _hold_or_run(self, tick: Tick) -> None:
        rollout = self._commands.rollout
        assert rollout is not None
        if self._is_stale:
            self._hold(tick, "a joint's position is stale")
            return
        silent_ns = tick.deadline_ns - max(rollout.answered_ns, self._t0_ns)
        if not self.wants_new_grid and silent_ns > SILENT_POLICY_NS and rollout.is_starved:
            words = f"the {self._commands.driver} does not answer; the arm holds its last goal"
            self._teller.once("warning", "policy_silent", words)
            self._hold(tick, f"no chunk for {silent_ns / NS_PER_S:.0f} s")
            return
        if tick.deadline_ns - self._held_ns >= SETTLED_NS:
            self.machine.fire(NodeEvent.FLOWING)

    def _hold(self, tick: Tick, reason: str) -> None:
        self._held_ns = tick.deadline_ns
        if self.machine.state is NodeState.HOLDING:
            self.machine.rename(reason)
        self.machine.fire(NodeEvent.STALLED, reason)

    def _tell(
        self,
        tick: Tick,
        reading: Reading,
        decided: Goal,
        goal: np.ndarray | None,
        bits: np.ndarray,
        findings: Sequence[Judgement],
    ) -> None:
        for finding in findings:
            bits = bits if finding.bits is None else bits | finding.bits
        nothing = np.full(len(self.profile.joints), np.nan, np.float32)
        is_led = self._commands.driver == "leader"
        state = messages.State(
            tick=tick.number,
            deadline_ns=tick.deadline_ns,
            late_ns=tick.late_ns,
            t0_ns=self._t0_ns,
            step_ns=self.plan.step_ns if self.plan else self.period_ns,
            mode=self.machine.mode,
            position=reading.position,
            position_age_us=reading.position_age_us,
            wanted=decided.wanted,
            goal=nothing if goal is None else goal,
            limited_by=bits,
            chunk_seq=decided.chunk_seq if self._commands.onlooker is not None or not is_led else None,
            action_index=decided.action_index,
            n_actions_left=decided.n_left,
            reason=self.machine.reason,
            task="" if self._commands.rollout is None else self._commands.rollout.task,
            is_led=is_led,
            is_shadow=self.robot.is_shadow or self._commands.onlooker is not None,
        )
        self.links.publish(state, reading.observed_ns)
        self.links.lease(self._commands.lease)
        if tick.deadline_ns >= self._due["heartbeat"] or self.is_over:
            self._due["heartbeat"] = tick.deadline_ns + HEARTBEAT_NS
            self.links.publish(self._heartbeat())
        has_switched = self._had_torque != self._body.is_torque_on
        if tick.deadline_ns >= self._due["health"] or has_switched:  # what is said of torque is never old
            self._due["health"], self._had_torque = tick.deadline_ns + HEALTH_NS, self._body.is_torque_on
            self.links.publish(ServoHealth(tuple(servo.to_wire() for servo in self.robot.health())))

    def _heartbeat(self) -> Heartbeat:
        counters = {**self.counters, **self.robot.counters(), **self.links.counters()}
        return heartbeat(PHASES.get(self.machine.mode, "ready"), counters)

"""The robot node: the control loop, master of the deployment. `ControlLoop.step` is the loop's one page.

    hear  ->  decide a goal  ->  make it safe  ->  exchange with the servos  ->  judge  ->  ask for a chunk  ->  tell

One tick is one write and one read of every bus. Time is counted in ticks from the start of the rollout; the loop goes
on at rate while inference is slow, dead or restarting. The process around it (sockets, pipes, priorities) is in
`node_process.py`; tests drive `step` on a virtual clock. Neither cv2 nor an engine is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edgevla.clock import NS_PER_MS, NS_PER_S, Clock, Tick, ticker
from edgevla.errors import BusError
from edgevla.execution import Goal
from edgevla.messages import Guidance, Heartbeat, Infer, Mode, Phase, ServoHealth, State
from edgevla.nodes.vitals import heartbeat
from edgevla.types import ActionChunk

from .arm import EXCHANGE_SHARE, Reading, Robot
from .commands import Commands
from .links import RELEASED, RUNNING, STOPPING, Links
from .modes import Modes
from .profile import Profile
from .safety import CLIPPING, Finding, Level

PHASES: dict[Mode, Phase] = {"running": "running", "stopped": "stopping", "emergency": "degraded"}
HEALTH_NS = NS_PER_S // 2
HEARTBEAT_NS = NS_PER_S // 5
SILENT_POLICY_NS = 2 * NS_PER_S
RUN_MODES = ("running", "holding")


class ControlLoop(Modes):
    """One robot, one loop. `robot` is connected, torque off."""

    def __init__(self, profile: Profile, robot: Robot, links: Links, clock: Clock) -> None:
        super().__init__(profile, robot, links, clock)
        self._commands = Commands(self)
        self._due = {"health": 0, "heartbeat": 0}
        self._last_tick = -1

    # -- the page -------------------------------------------------------------------------------------------

    def ticks(self) -> Iterator[Tick]:
        """The loop's time: a new grid begins with every rollout."""
        while not self.is_done:
            self.wants_new_grid, self._last_tick = False, -1
            for tick in ticker(self.clock, self.period_ns):
                yield tick
                if self.is_done or self.wants_new_grid:
                    break

    def step(self, tick: Tick) -> None:
        """One tick: the story of the module's first line."""
        self._count(tick)
        self._hear()
        self._take_chunks(tick)
        decided = self._decide(tick)
        goal, bits = self._make_safe(decided)
        reading = self._exchange(goal, tick)
        findings = self._judge(reading, goal)
        self._ask(tick, reading, goal, findings)
        self._tell(tick, reading, decided, goal, bits, findings)

    def _count(self, tick: Tick) -> None:
        if tick.number == 0:
            self.t0_ns = tick.deadline_ns
        skipped = tick.number - self._last_tick - 1
        self._last_tick = tick.number
        self.counters["ticks"] += 1
        if self.mode in RUN_MODES:
            self.counters["skipped_ticks"] += skipped
            self.counters["deadline_misses"] += skipped + (tick.late_ns > self.period_ns // 10)

    def _hear(self) -> None:
        for name in self.links.signals():
            if name == "emergency_stop":
                self._commands.emergency_stop()
            else:
                self._commands.nobody_left(name)
        for request in self.links.requests():
            is_accepted, reason = self._commands.obey(request.action, request.arguments)
            request.answer(is_accepted, reason)

    def _take_chunks(self, tick: Tick) -> None:
        for message in self.links.chunks():
            answer, request = message.body, message.body.request_id
            self.pending.pop(request, None)
            if self.executor is None or self.plan is None or request < self.first_request:
                self.counters["chunks_of_before"] += 1
                continue
            chunk = ActionChunk(
                message.payloads[0][: answer.n_valid],
                answer.grid_index * self.plan.ticks_per_step,
                self.plan.ticks_per_step,
                message.seq,
            )
            receipt = self.executor.receive(chunk, request, tick.number, self.filter.last_goal)
            self.counters[f"chunks_{receipt.reason}"] += 1
            self.counters["actions_skipped"] += receipt.n_skipped if receipt.is_taken else 0
            if self.answered_ns and tick.deadline_ns - self.answered_ns > SILENT_POLICY_NS:
                self.links.event("info", "policy_back", "the policy answers again")
                self.told.pop("policy_silent", None)
            self.answered_ns = tick.deadline_ns
            if receipt.reason == "damaged":
                self.tell_once("warning", "chunk_damaged", "a chunk with NaN or of another size was dropped")

    def _decide(self, tick: Tick) -> Goal:
        """What is wanted at this tick, before safety."""
        if self.ending is not None:
            return self._decide_ending()
        if self.wants_new_grid:  # this tick still has a number of the old grid
            return Goal(None)
        if self.mode == "homing":
            assert self.filter.last_goal is not None
            home, _ = self.grip.bend(self.home, self.filter.last_goal)
            if np.allclose(self.filter.last_goal, home, atol=1e-3):  # type: ignore[arg-type]
                self.set_mode("paused", "at home")
            return Goal(home)
        if self.mode not in RUN_MODES or self.executor is None:
            return Goal(None)
        goal = self.executor.goal_at(tick.number)
        self.counters["ticks_running"] += 1
        self.counters["ticks_starved"] += goal.wanted is None or goal.is_starved
        return goal

    def _decide_ending(self) -> Goal:
        assert self.ending is not None
        assert self.filter.last_goal is not None
        self.links.lease(STOPPING)  # what follows may take several transactions
        wanted = self.ending.step(self.robot, self.filter.last_goal, self.clock.now_ns())
        if self.ending.is_done:
            self.finish_ending()
        return Goal(wanted)

    def _make_safe(self, decided: Goal) -> tuple[np.ndarray | None, np.ndarray]:
        if not self.is_torque_on or self.filter.last_goal is None:
            return None, np.zeros(self.n_joints, np.uint16)
        is_slow = self.mode == "homing" or self.ending is not None
        wanted, held_back = self.grip.bend(decided.wanted, self.filter.last_goal)
        goal, bits = self.filter.allow(wanted, is_slow)
        self.counters["ticks_clipped"] += self.mode == "running" and bool((bits & np.uint16(CLIPPING)).any())
        return goal, bits | held_back

    def _exchange(self, goal: np.ndarray | None, tick: Tick) -> Reading:
        share_ns, now_ns = int(self.period_ns * EXCHANGE_SHARE), self.clock.now_ns()
        # Where switching torque has taken longer than the tick, there is as much time as in any other.
        least_ns = share_ns if now_ns > tick.deadline_ns + share_ns else 2 * NS_PER_MS
        try:
            self.reading = self.robot.exchange(goal, max(tick.deadline_ns + share_ns, now_ns + least_ns))
        except BusError as error:
            self._commands.bus_gone(str(error))
            self.reading = self.robot.last_reading()
        return self.reading

    def _judge(self, reading: Reading, goal: np.ndarray | None) -> list[Finding]:
        findings = self.watch.look(
            reading.position,
            reading.position_age_us,
            goal,
            self.robot.health(),
            self.clock.now_ns(),
            self.is_torque_on,
            self.period_ns / 1000,
        )
        findings = [*self._watch_jumps(), *self._watch_grip(goal), *findings]
        findings.sort(key=lambda finding: -finding.level)
        for finding in findings:
            is_grave = finding.level >= Level.STOP
            if not (finding.code.startswith("state_") and self.robot.has_lost_lines):  # said, with the reason
                self.tell_once("stop" if is_grave else "warning", finding.code, finding.text)
            if is_grave and self.is_held and (self.ending is None or self.ending.kind == "rest"):
                self.has_failed = True
                self.stop("fault", finding.text)
        return findings

    def _watch_jumps(self) -> list[Finding]:
        if not self.is_torque_on or not (names := self.robot.jumped):
            return []
        text = (
            f"{', '.join(names)} jumped within a tick, and stayed there: a horn or gear has slipped, or the servo has "
            "restarted; look after it, then: edgevla calibrate --check"
        )
        return [Finding(Level.STOP, "jump", text)]

    def _watch_grip(self, goal: np.ndarray | None) -> list[Finding]:
        if goal is None or self.ending is not None or self.mode == "emergency":
            return []
        for motor in self.grip.arrived(goal):
            self.robot.renew_torque(motor)
        return self.grip.look(self.robot.health(), goal, self.robot.present_goal(), self.clock.now_ns())

    def _ask(
        self, tick: Tick, reading: Reading, goal: np.ndarray | None, findings: Sequence[Finding]
    ) -> None:
        """One `infer` when the strategy wants a chunk; again when the deadline passed without one."""
        now = self.clock.now_ns()
        for number, deadline in list(self.pending.items()):
            if now > deadline and self.executor is not None:
                del self.pending[number]
                self.executor.give_up(number)
                self.counters["infer_expired"] += 1
        is_fresh = not any(f.level >= Level.HOLD for f in findings)
        if (
            self.mode not in RUN_MODES
            or self.executor is None
            or self.plan is None
            or self.ending is not None
        ):
            return
        self.set_mode(*self._run_mode(tick, is_fresh))
        if not is_fresh or self.wants_new_grid or not self.executor.wants_chunk(tick.number):
            return
        rtc = self.executor.committed(tick.number, goal)
        deadline = now + max(NS_PER_S, int(4 * self.plan.latency_ms * NS_PER_MS))
        request = Infer(
            request_id=self.next_request,
            grid_index=tick.number // self.plan.ticks_per_step,
            deadline_ns=deadline,
            task=self.task,
            state=reading.position,
            n_steps=self.plan.n_steps,
            rtc=None if rtc is None else Guidance(rtc[1], rtc[2]),
        )
        if not self.links.ask(request, () if rtc is None else (rtc[0],), tick.deadline_ns):
            self.counters["infer_unsent"] += 1
            return
        self.executor.asked(self.next_request, tick.number)
        self.pending[self.next_request] = deadline
        self.next_request += 1
        self.counters["infer_sent"] += 1

    def _run_mode(self, tick: Tick, is_fresh: bool) -> tuple[Mode, str]:
        if not is_fresh:
            return "holding", "a joint's position is stale"
        if self.wants_new_grid:  # the rollout begins with the next tick
            return "running", ""
        silent_ns = tick.deadline_ns - max(self.answered_ns, self.t0_ns)
        if silent_ns > SILENT_POLICY_NS and self.executor is not None and self._starves(tick):
            self.tell_once(
                "warning", "policy_silent", "the policy does not answer; the arm holds its last goal"
            )
            return "holding", f"no chunk for {silent_ns / NS_PER_S:.0f} s"
        return "running", ""

    def _starves(self, tick: Tick) -> bool:
        assert self.executor is not None
        goal = self.executor.goal_at(tick.number)
        return goal.wanted is None or goal.is_starved

    def _tell(
        self,
        tick: Tick,
        reading: Reading,
        decided: Goal,
        goal: np.ndarray | None,
        bits: np.ndarray,
        findings: Sequence[Finding],
    ) -> None:
        for finding in findings:
            bits = bits if finding.bits is None else bits | finding.bits
        nothing = np.full(self.n_joints, np.nan, np.float32)
        state = State(
            tick=tick.number,
            deadline_ns=tick.deadline_ns,
            late_ns=tick.late_ns,
            t0_ns=self.t0_ns,
            step_ns=self.plan.step_ns if self.plan else self.period_ns,
            mode=self.mode,
            position=reading.position,
            position_age_us=reading.position_age_us,
            wanted=decided.wanted,
            goal=nothing if goal is None else goal,
            limited_by=bits,
            chunk_seq=decided.chunk_seq,
            action_index=decided.action_index,
            n_actions_left=decided.n_left,
            reason=self.reason,
        )
        self.links.publish(state, reading.observed_ns)
        self.links.lease(RELEASED if not self.is_held else STOPPING if self.is_stopping else RUNNING)
        if tick.deadline_ns >= self._due["heartbeat"]:
            self._due["heartbeat"] = tick.deadline_ns + HEARTBEAT_NS
            self.links.publish(self._heartbeat())
        if tick.deadline_ns >= self._due["health"]:
            self._due["health"] = tick.deadline_ns + HEALTH_NS
            self.links.publish(ServoHealth(tuple(servo.to_wire() for servo in self.robot.health())))

    def _heartbeat(self) -> Heartbeat:
        counters = {**self.counters, **self.robot.counters(), **self.links.counters()}
        return heartbeat(PHASES.get(self.mode, "ready"), counters)

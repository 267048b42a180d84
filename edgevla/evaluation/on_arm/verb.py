"""`edgevla eval BUNDLE [BUNDLE] --robot`: from the options to what is written.

One deployment after the other, until everything is judged or the person ends it; each is a real one, with its
supervisor, its guardian and its end in order.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgevla import __version__
from edgevla.errors import EdgeVLAError, UsageError
from edgevla.evaluation.on_arm.contestants import Contestants, without
from edgevla.evaluation.on_arm.flow import FlowState
from edgevla.evaluation.on_arm.journal import EPISODES, CommonSetting, Contestant, Journal
from edgevla.evaluation.on_arm.keys import Keys
from edgevla.evaluation.on_arm.options import Trials, trials_from
from edgevla.evaluation.on_arm.rollouts import ROLLOUTS, Rollouts, check_record, check_rollouts
from edgevla.evaluation.on_arm.rounds import Rounds
from edgevla.evaluation.on_arm.session import ArmSession
from edgevla.execution.strategies import blended_by, drawn_by, kind_of
from edgevla.launch.record_cli import obey_signals
from edgevla.launch.screen import Screen, write
from edgevla.progress import columns_of

PAUSE_S = 0.05
ASKED_BY = {"SIGINT": "Ctrl-C", "SIGHUP": "the terminal has closed"}


def run(args: argparse.Namespace, _: Callable[[str], None]) -> int:
    """The verb. Exit code: 130 interrupted, 1 failed or less success than expected."""
    check_record()
    return OnArm(args, trials_from(args)).run()


class OnArm:
    """One evaluation; loaded bundles, a journal, and then as many deployments as it takes."""

    def __init__(self, args: argparse.Namespace, trials: Trials) -> None:
        self.args, self.trials = args, trials
        self.shown = Screen(to_stderr=args.json)
        from edgevla.robots.profile import load_profile

        contestants = Contestants(trials.policies, trials.options, 0)
        policies, self._hidden = named(contestants), contestants.hidden
        o = trials.options[0]
        load_profile(o.robot)  # a misspelt arm leaves no journal behind
        setting = CommonSetting(
            policies=policies,
            robot=o.robot,
            task=o.task,
            seconds=trials.seconds,
            is_sim=o.is_sim,
            n_steps=o.n_steps,
            servo_hz=o.servo_hz,
            sim_task=o.sim_task,
            seed=o.seed,
            order_seed=secrets.randbits(31),
            edgevla=__version__,
        )
        self.folder = output_of(args.output, o.robot, policies)
        self.keys = Keys()
        self.journal = Journal(self.folder, setting)
        check_rollouts(self.folder / ROLLOUTS, self.journal.rollouts)
        self.rounds = Rounds(trials.n, len(policies), self.journal.setting.order_seed)
        self.session = ArmSession(
            self.journal,
            self.rounds,
            trials.seconds,
            self._tell_person,
            ring=self._ring,
            is_simulated=o.is_sim,
        )

    def run(self) -> int:
        code, failure = 0, ""
        try:
            self._announce()
            if not self.session.is_complete:
                with self.keys.open():
                    code, failure = self._deploy_until_done()
        except KeyboardInterrupt:
            code = 130
        finally:
            result = self._conclude(code, failure)
        return result

    def say(self, text: str) -> None:
        """Also to a terminal that has closed: what was judged is written all the same."""
        write(sys.stderr if self.args.json else sys.stdout, text)

    def _show(self, severity: str, source: str, text: str) -> None:
        """Whoever says it: of two policies none is named."""
        self.shown(severity, source, without(text, self._hidden))

    def _tell_person(self, severity: str, text: str) -> None:
        self._show(severity, "eval", text)

    def _ring(self) -> None:
        if self.keys.is_terminal:
            write(sys.stderr, "\a", end="")

    # -- before --------------------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        from edgevla.evaluation.verdict_table import what_it_shows

        n_policies, n = self.rounds.n_policies, self.rounds.n
        what = f"{n} episode{'s' * (n != 1)}"
        if n_policies > 1:
            what = f"{n} round{'s' * (n != 1)} of two policies, in an order that is told at the end"
        self.say(f"{what}, at most {self.trials.seconds:g} s each; written to {self.folder}")
        for sentence in what_it_shows(n, n_policies):
            self.say(sentence)
        if n_there := n * n_policies - self.session.n_left:
            self.say(f"{n_there} of {n * n_policies} are judged already; going on")

    # -- while ---------------------------------------------------------------------------------------------------------

    def _deploy_until_done(self) -> tuple[int, str]:
        """Exit code, and why it failed."""
        is_first = True
        while True:
            try:
                summary = self._deploy()
            except (EdgeVLAError, OSError) as error:
                if is_first:
                    raise
                summary = {"failure": str(error)}
            is_first = False
            failure = _failure(summary)
            if summary.get("asked_by"):
                return (1 if failure else 130 if summary.get("was_interrupted") else 0), failure
            if self.session.flow.state is FlowState.OVER:
                return int(bool(failure)), failure
            if not self._starts_again(failure or "it was stopped"):
                return int(bool(failure)), failure

    def _deploy(self) -> dict[str, Any]:
        from edgevla.launch.foreground import carry_out
        from edgevla.launch.supervisor import Supervisor

        turn = self.session.turn
        policy = 0 if turn is None else turn.policy
        contestants = Contestants(self.trials.policies, self.trials.options, policy)
        supervisor = Supervisor(self.trials.options[policy], contestants, self._show)
        return carry_out(supervisor, self._attached(supervisor, contestants))

    @contextlib.contextmanager
    def _attached(self, supervisor: Any, contestants: Any) -> Iterator[None]:
        """Around the watching: the session moves the arm from here on."""
        from edgevla.evaluation.on_arm.stage import ArmStage

        o = self.trials.options[0]
        ctx, run_dir, session = supervisor.ctx, supervisor.folder, supervisor.session
        cameras, tell = list(contestants.cameras), self._tell_person
        with (
            contextlib.closing(ArmStage(supervisor, contestants, o.may_lose_cameras)) as stage,
            contextlib.closing(
                Rollouts(ctx, run_dir, session, self.folder, cameras, o.task, tell)
            ) as rollouts,
        ):
            try:
                rollouts.open()
                self.keys.forget()
                self.session.attach(stage, rollouts)
                supervisor.stop_when(lambda: self.session.step(self.keys.read()))
                yield
            finally:
                by = supervisor.asked.by
                self.session.detach(ASKED_BY.get(by, by) or "the deployment has ended")

    def _starts_again(self, why: str) -> bool:
        """The deployment has ended and the arm is released: what now is the person's to say."""
        self.session.lose()
        self._tell_person("error", f"the deployment has ended: {why}")
        self._tell_person("info", "what was judged is kept. Enter starts it again, q ends")
        obey_signals(lambda: self._tell_person("warning", "Ctrl-Z is refused; q ends"))
        while True:
            is_over = self.session.step(self.keys.read())
            if is_over or self.session.must_start:
                return self.session.must_start
            time.sleep(PAUSE_S)

    # -- after ---------------------------------------------------------------------------------------------------------

    def _conclude(self, code: int, failure: str) -> int:
        """As a table and as JSON; the exit code."""
        from edgevla.evaluation.on_arm.result import INFO, Tally, note_success, write_info
        from edgevla.evaluation.verdict_table import expected, tables

        judged = Tally(self.journal, self.rounds)
        is_complete = self.session.is_complete
        stopped = None if is_complete else "interrupted" if code == 130 else failure or "ended by the person"
        try:
            note_success(self.journal, self.folder / ROLLOUTS)
            results = judged.results()
            if not results:
                return code
            e = judged.evaluated(stopped)
            info = write_info(judged, e, self.folder)
        finally:
            self.journal.close()
        if self.args.json:
            write(sys.stdout, json.dumps(info, indent=1))
        else:
            self.say("\n" + "\n".join(tables(e, columns_of(sys.stdout))))
        self.say(f"\nwritten to {self.folder}: {INFO}, {EPISODES}, {ROLLOUTS}/")
        if not is_complete:
            self.say(f"{self.session.n_left} are left; the same command goes on from here")
        is_enough = True
        if self.args.expect is not None:
            is_enough, sentences = expected(results, self.args.expect)
            for sentence in sentences:
                self.say(sentence)
        return code or int(not is_enough)


def _failure(summary: Mapping[str, Any]) -> str:
    """Why a deployment ended as nobody wants it to; empty: it did not. A stop that was cleared is none."""
    stops = [s["words"] for s in summary.get("emergency_stops", ()) if s["ended"] != "cleared"]
    return str(summary["failure"] or "") or (f"emergency stop {stops[-1]}" if stops else "")


def named(contestants: Any) -> tuple[Contestant, ...]:
    """Names of folders; paths where those are equal; with the execution where one bundle is compared with itself."""
    sources = contestants.sources
    labels = [Path(s.name).resolve().name for s in sources]
    if len(set(labels)) < len({s.name for s in sources}):
        labels = [s.name for s in sources]
    made = [
        Contestant(
            label, s.name, s.sha256, kind_of(s.execution), blended_by(s.execution), drawn_by(s.execution)
        )
        for label, s in zip(labels, sources, strict=True)
    ]
    if len(set(labels)) < len(labels):
        made = [replace(one, name=f"{one.name} {one.way}") for one in made]
    return tuple(made)


def output_of(output: str | None, robot: str, policies: tuple[Contestant, ...]) -> Path:
    """The same for the same command, so that it goes on where it ended.

    Raises:
        UsageError: the folder holds something else.
    """
    names = "-vs-".join(p.name.replace("/", "-").replace(" ", "-") for p in policies)
    folder = Path(output or f"evals/{Path(robot).stem}-{names}").expanduser()
    if folder.is_dir() and any(folder.iterdir()) and not (folder / EPISODES).is_file():
        raise UsageError(f"{folder} holds something else than an evaluation; choose another -o")
    return folder

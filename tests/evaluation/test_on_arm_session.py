"""An evaluation on an arm on a virtual clock: a robot that does as `modes.py` says, a recorder that counts, and a person
who presses keys; the file is a real one."""

import errno

import pytest

from edgevla.errors import UsageError
from edgevla.evaluation.on_arm.flow import FlowEvent, FlowState
from edgevla.evaluation.on_arm.journal import CommonSetting, Contestant, Journal
from edgevla.evaluation.on_arm.measures import Measures
from edgevla.evaluation.on_arm.rounds import Rounds
from edgevla.evaluation.on_arm.session import ArmSession

STEP_NS = 50_000_000
HOMING_STEPS, LOADING_STEPS = 10, 15
SECONDS = 4.0


class Stage:
    """The deployment: an arm that takes a moment to come home, and policies that take one to load."""

    def __init__(self, policy):
        self.mode, self.is_home, self.spoilt, self.counters = "paused", False, "", {"ticks_starved": 1}
        self.measures = None
        self.policy, self.moved, self.worlds = policy, [], []
        self.left = {"home": 0, "load": 0}
        self.camera, self.judged, self.is_deaf = "", None, False

    def command(self, action):
        if self.is_deaf:
            raise UsageError(f"the robot refused '{action}': it is coming to rest")
        self.is_home = False
        if action == "home":
            self.mode, self.left["home"] = "homing", HOMING_STEPS
        elif action in ("pause", "clear_stop"):
            self.mode = "paused"

    def begin(self):
        assert self.is_home
        assert not self.missing()
        self.mode, self.is_home, self.spoilt, self.measures = (
            "running",
            False,
            "",
            Measures(self.counters, [True, False], "deg"),
        )
        self.moved.append(self.policy)

    def freeze(self):
        self.mode, self.is_home = "emergency", False

    def want(self, policy):
        if policy != self.policy:
            assert self.mode != "running", "a policy that moves the arm is not taken away"
            self.policy, self.left["load"] = policy, LOADING_STEPS

    def step(self):
        self.left = {what: max(0, n - 1) for what, n in self.left.items()}
        if self.mode == "homing" and not self.left["home"]:
            self.mode, self.is_home = "paused", True

    def news(self):
        return {"emergency": FlowEvent.FROZE, "paused": FlowEvent.HELD}.get(self.mode, FlowEvent.CLEARED)

    def missing(self):
        return self.camera or ("the policy is being loaded" if self.left["load"] else "")

    def reset_world(self, episode):
        self.worlds.append(episode)

    def verdict(self):
        return self.judged


class Rollouts:
    def __init__(self):
        self.saved, self.is_open, self.is_full = 0, False, False

    def step(self, now_ns):
        pass

    def begin(self):
        self.is_open = True

    def rest(self):
        pass

    def save(self):
        if self.is_full or not self.is_open:
            return None
        self.saved, self.is_open = self.saved + 1, False
        return self.saved - 1

    def drop(self):
        self.is_open = False


class Evening:
    """A person, a table, an arm."""

    def __init__(self, folder, n=2, n_policies=2):
        self.now, self.said, self.rings = 10**12, [], 0
        policies = tuple(Contestant(f"p{k}", f"bundles/{k}", f"{k}" * 64, "sync") for k in range(n_policies))
        setting = CommonSetting(policies, "so101", "go", SECONDS, False, None, None, order_seed=3)
        self.journal = Journal(folder, setting)
        rounds = Rounds(n, n_policies, self.journal.setting.order_seed)
        self.session = ArmSession(self.journal, rounds, SECONDS, lambda severity, text: self.said.append(text),
                               ring=self._ring, clock=lambda: self.now)  # fmt: skip
        self.deploy()

    def _ring(self):
        self.rings += 1

    def deploy(self):
        turn = self.session.turn
        self.stage, self.rollouts = Stage(turn.policy if turn else 0), Rollouts()
        self.session.attach(self.stage, self.rollouts)

    @property
    def state(self):
        return self.session.flow.state

    def press(self, *keys):
        for key in keys:
            self.session.step([(key, "")])
        return self

    def wait(self, seconds=0.05):
        for _ in range(max(1, round(seconds * 1e9 / STEP_NS))):
            self.now += STEP_NS
            self.session.step([])
        return self

    def until(self, state, limit=400):
        for _ in range(limit):
            if self.state is state:
                return self
            self.wait()
        raise AssertionError(f"{self.state} never became {state}: {self.said}")

    def episode(self, verdict, seconds=1.0):
        return self.until(FlowState.READY).press(FlowEvent.GO).wait(seconds).press(verdict)

    def verdicts(self):
        return {turn: v.success for turn, v in self.journal.verdicts.items()}

    def has_said(self, words):
        return any(words in text for text in self.said)

    def close(self):
        self.journal.close()


@pytest.fixture
def evening(tmp_path):
    made = []

    def begin(**how):
        for old in made:
            old.close()
        made.clear()
        made.append(Evening(tmp_path / "out", **how))
        return made[-1]

    yield begin
    for old in made:
        old.close()


def test_a_whole_evaluation_gives_every_policy_every_round_and_saves_every_rollout(evening):
    e = evening()
    for verdict in (FlowEvent.SUCCESS, FlowEvent.FAILURE, FlowEvent.SUCCESS, FlowEvent.SUCCESS):
        e.episode(verdict)
    e.until(FlowState.FINISHED)
    assert list(e.verdicts().values()) == [True, False, True, True]
    turns = e.session.rounds.turns()
    assert e.stage.moved == [turn.policy for turn in turns]
    assert e.stage.worlds == [0, 0, 1, 1]
    assert e.journal.rollouts == {0: 0, 1: 1, 2: 2, 3: 3}
    assert e.press(FlowEvent.GO).state is FlowState.OVER
    assert not any("p0" in text or "p1" in text for text in e.said), "nobody is told which it was"


def test_the_person_is_called_when_something_is_to_be_done(evening):
    e = evening(n=1, n_policies=1)
    e.until(FlowState.READY)
    assert e.rings == 1
    assert e.has_said("episode 1 of 1: put everything back; Enter when ready")
    e.press(FlowEvent.GO).wait(SECONDS + 0.1)
    assert e.state is FlowState.ASKING
    assert e.rings == 2


def test_an_episode_ends_with_its_time_the_arm_holds_and_the_person_is_asked(evening):
    e = evening()
    e.until(FlowState.READY).press(FlowEvent.GO).wait(SECONDS - 0.2)
    assert e.state is FlowState.RUNNING
    e.wait(0.3)
    assert (e.state, e.stage.mode) == (FlowState.ASKING, "paused")
    e.wait(30).press(FlowEvent.FAILURE)
    (verdict,) = e.journal.verdicts.values()
    assert verdict.seconds == pytest.approx(SECONDS, abs=0.1), "not the time that the person took to answer"
    assert e.stage.mode == "homing"


def test_enter_is_refused_until_the_arm_is_home_and_its_policy_there(evening):
    e = evening()
    e.press(FlowEvent.GO)
    assert e.said[-1] == "the arm is still moving home; Enter when it is there"
    e.episode(FlowEvent.SUCCESS).wait(0.55).press(FlowEvent.GO)
    assert e.said[-1] == "the policy is being loaded; Enter when it is there"
    assert e.stage.moved == [e.session.rounds.turns()[0].policy]


def test_an_episode_without_a_camera_does_not_begin_and_one_that_loses_it_is_run_again(evening):
    e = evening()
    e.until(FlowState.READY).stage.camera = "camera 'front' gives no pictures"
    e.wait().press(FlowEvent.GO)
    assert e.state is FlowState.WAITING
    e.stage.camera = ""
    e.until(FlowState.READY).press(FlowEvent.GO).wait(
        1
    ).stage.spoilt = "camera 'front' (usb) gives no more pictures"
    e.wait()
    assert (e.stage.mode, e.verdicts(), e.journal.n_void, e.rollouts.is_open) == ("homing", {}, 1, False)
    assert e.has_said("does not count (camera 'front' (usb) gives no more pictures); it is run again")
    e.episode(FlowEvent.SUCCESS)
    assert e.verdicts() == {(0, 0): True}


def test_a_stop_by_whoever_makes_the_episode_void_and_its_turn_comes_again(evening):
    e = evening()
    e.until(FlowState.READY).press(FlowEvent.GO).wait(1).press(FlowEvent.STOP).wait()
    assert (e.state, e.stage.mode, e.journal.n_void) == (FlowState.FROZEN, "emergency", 1)
    e.press(FlowEvent.GO, FlowEvent.SUCCESS, FlowEvent.UNDO).wait()
    assert (e.state, e.verdicts()) == (FlowState.FROZEN, {})
    e.press(FlowEvent.CLEAR)
    assert (e.state, e.stage.mode) == (FlowState.HALTED, "paused"), "it moves only when it is told"
    e.press(FlowEvent.GO).until(FlowState.READY).press(
        FlowEvent.GO
    ).wait().stage.mode = "emergency"  # the monitor, the guardian
    assert (e.wait().state, e.journal.n_void) == (FlowState.FROZEN, 2)
    e.stage.mode = "paused"
    assert e.wait().state is FlowState.HALTED


def test_an_arm_that_somebody_else_holds_ends_the_episode_and_the_person_is_asked(evening):
    e = evening()
    e.until(FlowState.READY).press(FlowEvent.GO).wait(1).stage.mode = "paused"
    assert e.wait().state is FlowState.ASKING


def test_space_holds_the_arm_on_its_way_home(evening):
    e = evening()
    e.press(FlowEvent.HOLD).wait(2)
    assert (e.state, e.stage.mode) == (FlowState.HALTED, "paused")
    assert e.press(FlowEvent.GO).until(FlowState.READY).stage.is_home


def test_a_wrong_key_is_put_right_and_an_episode_that_was_disturbed_is_run_again(evening):
    e = evening()
    e.episode(FlowEvent.SUCCESS).until(FlowState.READY).press(FlowEvent.UNDO)
    assert e.has_said("round 1 of 2, first policy was judged success")
    e.press(FlowEvent.FAILURE).until(FlowState.READY)
    assert e.verdicts() == {(0, 0): False}
    e.press(FlowEvent.UNDO, FlowEvent.UNDO).until(FlowState.READY)
    assert e.verdicts() == {(0, 0): False}, "u twice leaves it as it was"
    e.press(FlowEvent.UNDO, FlowEvent.AGAIN).until(FlowState.READY)
    assert e.verdicts() == {}
    first = e.session.rounds.turns()[0].policy
    assert e.stage.policy == first, "the same policy, the same turn"
    e.episode(FlowEvent.SUCCESS).until(FlowState.READY)
    assert e.stage.moved == [first, first]
    e.press(FlowEvent.GO).wait(1).press(FlowEvent.UNDO)
    assert (e.verdicts(), e.journal.n_void) == ({(0, 0): True}, 1), "amid an episode u is about that one"


def test_nothing_can_be_taken_back_before_something_was_judged(evening):
    e = evening()
    e.until(FlowState.READY).press(FlowEvent.UNDO)
    assert (e.state, e.said[-1]) == (FlowState.READY, "no episode was judged yet")


def test_the_last_verdict_of_all_can_be_taken_back_too(evening):
    e = evening(n=1, n_policies=1)
    e.episode(FlowEvent.SUCCESS).until(FlowState.FINISHED).press(FlowEvent.UNDO, FlowEvent.AGAIN).until(
        FlowState.READY
    )
    e.episode(FlowEvent.FAILURE).until(FlowState.FINISHED)
    assert e.verdicts() == {(0, 0): False}


def test_a_deployment_that_dies_takes_only_the_open_episode_with_it(evening):
    e = evening()
    e.episode(FlowEvent.SUCCESS).until(FlowState.READY).press(FlowEvent.GO).wait(1)
    e.session.detach("the line to the servos has gone")
    e.session.lose()
    assert (e.state, e.verdicts(), e.journal.n_void) == (FlowState.GONE, {(0, 0): True}, 1)
    e.press(FlowEvent.SUCCESS)
    assert e.verdicts() == {(0, 0): True}
    e.press(FlowEvent.GO)
    assert e.session.must_start
    e.deploy()
    e.episode(FlowEvent.FAILURE)
    assert e.verdicts() == {(0, 0): True, (0, 1): False}


def test_the_next_evening_goes_on_with_the_next_turn_in_the_same_hidden_order(evening):
    e = evening()
    for verdict in (FlowEvent.SUCCESS, FlowEvent.FAILURE, FlowEvent.SUCCESS):
        e.episode(verdict)
    order = e.session.rounds.turns()
    again = evening()
    assert again.session.turn == order[3]
    again.episode(FlowEvent.SUCCESS).until(FlowState.FINISHED)
    assert again.stage.moved == [order[3].policy]
    assert again.session.is_complete


def test_on_a_full_disk_the_arm_holds_until_the_verdict_is_written(evening, monkeypatch):
    e = evening()
    e.until(FlowState.READY).press(FlowEvent.GO).wait(1)
    real = e.journal._write

    def full(data):
        raise OSError(errno.ENOSPC, "No space left on device", "out/episodes.jsonl")

    monkeypatch.setattr(e.journal, "_write", full)
    e.press(FlowEvent.SUCCESS)
    assert (e.state, e.stage.mode, e.verdicts()) == (FlowState.ASKING, "paused", {})
    assert "No space left on device; make room" in e.said[-2]
    monkeypatch.setattr(e.journal, "_write", real)
    e.press(FlowEvent.SUCCESS)
    assert e.verdicts() == {(0, 0): True}


def test_a_rollout_that_cannot_be_saved_costs_no_verdict(evening):
    e = evening()
    e.rollouts.is_full = True
    e.episode(FlowEvent.SUCCESS).until(FlowState.READY)
    assert (e.verdicts(), e.journal.rollouts) == ({(0, 0): True}, {})


def test_a_robot_that_refuses_is_heard_and_nothing_is_judged_twice(evening):
    e = evening()
    e.until(FlowState.READY).press(FlowEvent.GO).wait(1).press(FlowEvent.HOLD).stage.is_deaf = True
    e.press(FlowEvent.SUCCESS, FlowEvent.SUCCESS, FlowEvent.FAILURE)
    assert e.verdicts() == {(0, 0): True}
    assert e.has_said("the robot refused 'home'")


def test_the_simulated_judge_speaks_after_the_person_and_is_kept_beside_the_verdict(evening):
    e = evening()
    e.until(FlowState.READY).press(FlowEvent.GO).wait(1).stage.judged = {
        "is_success": False,
        "outcome": "dropped",
    }
    e.wait(SECONDS)
    assert not e.has_said("dropped")
    e.press(FlowEvent.SUCCESS)
    assert e.said[-2] == "the simulated world's judge says failure (dropped)"
    (verdict,) = e.journal.verdicts.values()
    assert (verdict.success, verdict.simulated["is_success"]) == (True, False)


def test_ending_amid_an_episode_voids_it_and_keeps_the_others(evening):
    e = evening()
    e.episode(FlowEvent.SUCCESS).until(FlowState.READY).press(FlowEvent.GO).wait(1).press(FlowEvent.QUIT)
    assert (e.state, e.verdicts(), e.journal.n_void) == (FlowState.OVER, {(0, 0): True}, 1)

"""What every key does in every state of an evaluation on an arm: done, or refused with the reason."""

import ast
import inspect
from pathlib import Path

import pytest

from edgevla.errors import UsageError
from edgevla.evaluation.on_arm import session
from edgevla.evaluation.on_arm.flow import KEYS, TABLE, Flow, FlowEvent, FlowState, draw

DOCS = Path(__file__).parents[2] / "docs" / "eval.md"
STATES = [state for state in FlowState if state is not FlowState.OVER]


def in_state(state, fails=()):
    """A flow in that state, and what it did."""
    done = []

    def do(deed):
        if deed in fails:
            raise UsageError(f"{deed} cannot be done now")
        done.append(deed)

    flow = Flow(do, lambda: "the arm is still moving home")
    flow.state = state
    return flow, done


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("key", KEYS)
def test_every_key_in_every_state_is_done_or_refused_in_words(state, key):
    flow, done = in_state(state)
    refusal = flow.fire(key)
    if refusal:
        assert (flow.state, done) == (state, [])
        assert len(refusal.split()) > 3
    else:
        assert done or flow.state is not state, "an accepted key has an effect"


def test_every_deed_of_the_table_is_a_method_of_the_session():
    named = {deed for row in TABLE.values() for cell in row.values() for deed in cell.deeds}
    (cls,) = (
        node for node in ast.parse(inspect.getsource(session)).body
        if isinstance(node, ast.ClassDef) and node.name == "ArmSession"
    )  # fmt: skip
    methods = {node.name for node in cls.body if isinstance(node, ast.FunctionDef)}
    assert {f"_{deed}" for deed in named} <= methods


def test_the_page_of_the_documentation_is_the_table():
    assert draw() in DOCS.read_text(encoding="utf-8"), "write flow.draw() into docs/eval.md"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("key", [FlowEvent.SUCCESS, FlowEvent.FAILURE])
def test_only_an_episode_that_ran_is_judged(state, key):
    flow, done = in_state(state)
    flow.fire(key)
    is_judged = bool({"succeed", "fail", "correct_to_success", "correct_to_failure"} & set(done))
    assert is_judged is (state in (FlowState.RUNNING, FlowState.ASKING, FlowState.CORRECTING))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("key", KEYS)
def test_a_policy_moves_the_arm_only_after_enter_at_home(state, key):
    _, done = flow = in_state(state)
    flow[0].fire(key)
    assert ("begin" in done) is (state is FlowState.READY and key is FlowEvent.GO)


@pytest.mark.parametrize("state", [s for s in STATES if s is not FlowState.GONE])
def test_the_emergency_stop_works_everywhere_and_what_runs_is_void(state):
    flow, done = in_state(state)
    assert flow.fire(FlowEvent.STOP) == ""
    assert done[0] == "freeze"
    assert flow.state is FlowState.FROZEN
    assert ("void" in done) is (state in (FlowState.RUNNING, FlowState.ASKING))


def test_a_latched_stop_is_cleared_by_no_plain_letter():
    for key in KEYS:
        flow, done = in_state(FlowState.FROZEN)
        flow.fire(key)
        assert ("clear" in done) is (key is FlowEvent.CLEAR)
        assert flow.state in (FlowState.FROZEN, FlowState.OVER, FlowState.HALTED)


@pytest.mark.parametrize("key", [FlowEvent.SUCCESS, FlowEvent.FAILURE])
def test_a_verdict_amid_an_episode_stops_the_arm_before_it_is_written(key):
    flow, done = in_state(FlowState.RUNNING)
    assert flow.fire(key) == ""
    assert done == ["halt", "succeed" if key is FlowEvent.SUCCESS else "fail", "go_home"]
    assert flow.state is FlowState.WAITING


def test_a_verdict_that_could_not_be_written_was_not_given_and_the_arm_holds():
    flow, done = in_state(FlowState.RUNNING, fails=["succeed"])
    assert "cannot be done" in flow.fire(FlowEvent.SUCCESS)
    assert (flow.state, done) == (FlowState.ASKING, ["halt"])


@pytest.mark.parametrize(
    ("news", "state", "to"),
    [
        (FlowEvent.TIME_OVER, FlowState.RUNNING, FlowState.ASKING),
        (FlowEvent.HELD, FlowState.RUNNING, FlowState.ASKING),
        (FlowEvent.SPOILT, FlowState.RUNNING, FlowState.WAITING),
        (FlowEvent.FROZE, FlowState.RUNNING, FlowState.FROZEN),
        (FlowEvent.LOST, FlowState.RUNNING, FlowState.GONE),
        (FlowEvent.LOST, FlowState.FINISHED, FlowState.OVER),
        (FlowEvent.HELD, FlowState.WAITING, FlowState.WAITING),
        (FlowEvent.CLEARED, FlowState.FROZEN, FlowState.HALTED),
        (FlowEvent.UNSETTLED, FlowState.READY, FlowState.WAITING),
        (FlowEvent.SETTLED, FlowState.CORRECTING, FlowState.CORRECTING),
    ],
)
def test_news_of_the_arm_change_what_the_keys_mean(news, state, to):
    flow, _ = in_state(state)
    assert flow.fire(news) == ""
    assert flow.state is to


def test_while_the_arm_moves_home_enter_says_what_is_waited_for():
    flow, _ = in_state(FlowState.WAITING)
    assert flow.fire(FlowEvent.GO) == "the arm is still moving home"
